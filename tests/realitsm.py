"""An ITSM that nobody here wrote, in a process of its own, behind a relay on loopback.

What the sidecar sends goes through the relay, which is the scripted stand-in: it can lose an answer
after the ITSM did what was asked, or let something come in between.
"""

from __future__ import annotations

import http.client
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from itsm import Answer, Itsm, Received, hang_up, reply
from service import until

HOP = ("connection", "content-length", "transfer-encoding")  # headers of one connection


class RealItsm:
    """It serves once its process has printed "serving on http://127.0.0.1:PORT"."""

    def __init__(self, log: Path, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._log, self._command, self._environ = log, command, environ
        self.between: dict[str, Callable[[Received], Answer | None]] = {}
        self.start()

    def start(self) -> None:
        """Serves, on a port of its own."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.port = until(self._serving, "the ITSM does not serve")
        except BaseException:
            self.close()
            raise

    def _serving(self) -> int:
        log = self._log.read_text("utf-8", "replace")
        assert self._process.poll() is None, log
        found = re.search(r"serving on \S+:(\d+)\n", log)
        return int(found[1]) if found else 0

    def close(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait(10)

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of its answer. Raises OSError, HTTPException."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as line:
            line.request(method, path, body, dict(headers))
            answer = line.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def relayed(self, received: Received) -> Answer:
        """What `between` has for the method of a request that changes something, else its answer."""
        first = self.between.get(received.method) if received.key else None
        return (first and first(received)) or self.pass_on(received)

    def pass_on(self, received: Received) -> Answer:
        """Its answer to a request."""
        headers = {k: v for k, v in received.headers.pairs if k.lower() not in HOP}
        try:
            status, said, body = self.ask(received.method, received.path, headers, received.body)
        except (OSError, http.client.HTTPException):
            return hang_up()
        kept = {k: v for k, v in said.items() if k.lower() not in HOP}
        return reply(status, data=body, headers=kept)

    def lose_answers(self, method: str, times: int, reached: bool) -> None:
        """So many answers are lost; `reached`: after it did what was asked."""
        left = [None] * times

        def lose(received: Received) -> Answer | None:
            if not left:
                return None
            left.pop()
            if reached:
                self.pass_on(received)
            return hang_up()

        self.between[method] = lose


def relay(serving: Callable[[], RealItsm]) -> Itsm:
    """The relay before an ITSM that may start after it."""
    return Itsm(decide=lambda received: serving().relayed(received))
