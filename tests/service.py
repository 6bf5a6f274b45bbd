"""The real command in a subprocess, in a folder of its own, and a helpdesk's side of the talk.

    with Itsm() as itsm, Service(folder, settings(itsm.url)) as service:
        reply = service.post("itsm_new", opening("4182"))       # on a connection of its own
        assert (reply.status, reply.event) == (200, 1)
        service.kill()                                          # SIGKILL; restart(), stop()
        assert service.cli("status").code == 0                  # while it runs, and while not

`settings` makes a TOML text with a quick retry policy on an ephemeral port; `exchange` speaks raw
bytes; `sample` reads a file of payloads/. Nothing waits without a deadline. Leaving `with` ends the
process, and fails where its log holds a traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import hd_itsm
from itsm import Headers

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "hd_itsm.py"
COMMAND = [sys.executable, "-m", "hd_itsm"]  # the file, but compiled once: half of a start's time
PAYLOADS = HERE / "payloads"
AUTHORIZATION = "Basic aXRzbTppdHNtLXBhc3N3b3Jk"
START = 60.0  # seconds a start may take on a busy machine
PATIENCE = 30.0  # seconds in which what is waited for must come, on a busy machine
NO_HEADERS: Mapping[str, str] = {}


def until(what: Callable[[], T], why: str = "it holds", timeout: float = PATIENCE) -> T:
    """What `what` gives, once it is true; else AssertionError with `why`."""
    deadline = monotonic() + timeout
    while not (found := what()):
        assert monotonic() < deadline, f"{timeout} s went by: {why}"
        sleep(0.005)  # between two looks, never instead of one
    return found


# ---- Configuration -----------------------------------------------------------------------------


def as_toml(value: Any) -> str:
    """A value as TOML; JSON's text is TOML's but for tables."""
    if isinstance(value, Mapping):
        rows = (f"{json.dumps(key)} = {as_toml(one)}" for key, one in value.items())
        return "{ " + ", ".join(rows) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


QUICK = """
[server]
listen = "127.0.0.1:0"
[retry]
first = 0.05
max = 0.2
probe = 0.2
"""  # what a recipe needs besides to be tried


def settings(itsm_url: str, **sections: Mapping[str, Any]) -> str:
    """A configuration; `sections` come on top, `hooks__x` is the section [hooks.x]."""
    tables: dict[str, dict[str, Any]] = {
        "server": {"listen": "127.0.0.1:0", "stop_after": 1},
        "itsm": {"url": itsm_url, "authorization": AUTHORIZATION, "timeout": 5.0},
        "retry": {"first": 0.05, "max": 0.2, "probe": 0.2},
        "time": {"zone": "+09:00"},
        "values": {"item_id": "ITEM-1", "service": "SVC-1"},
    }
    for name, rows in sections.items():
        tables.setdefault(name.replace("__", "."), {}).update(rows)
    lines: list[str] = []
    for name, rows in tables.items():
        lines += [f"[{name}]", *(f"{json.dumps(k)} = {as_toml(v)}" for k, v in rows.items())]
    return "\n".join(lines) + "\n"


NOTE = {"body": {"code": "900", "request_id": "-", "ticket": "{ticket_id}", "text": "{text|or:}"}}
NOTED = {"kind": "note", "fields": {"ticket_id": "ticket_id", "text": "text"}}


def with_notes(itsm_url: str, **sections: Mapping[str, Any]) -> str:
    """`settings` with POST /note, whose kind neither opens a request nor needs one."""
    notes: dict[str, Mapping[str, Any]] = {"hooks__note": NOTED, "kinds__note": NOTE}
    return settings(itsm_url, **{**notes, **sections})


# ---- Webhooks ----------------------------------------------------------------------------------

_tickets = count(1)


def ticket() -> str:
    """A ticket's id that no other test uses."""
    return f"T{next(_tickets)}"


def opening(ticket_id: str, **more: Any) -> dict[str, Any]:
    """The body of POST /itsm_new."""
    fields = {"writer": "jimin.park", "category": "OA기기", "subject": f"제목 {ticket_id}"}
    return {"ticket_id": ticket_id, **fields, "contents": "용지가 걸립니다.", **more}


def assignment(ticket_id: str, technician: str = "dohyun.lee") -> dict[str, Any]:
    """The body of POST /itsm_ass."""
    return {"ticket_id": ticket_id, "technician": technician}


def closing(ticket_id: str, date: str = "2026-11-23T15:05:09+09:00") -> dict[str, Any]:
    """The body of POST /itsm_com."""
    return {"ticket_id": ticket_id, "data": date}


class Sample(NamedTuple):
    """A file of payloads/: where it goes, its header lines, its body."""

    path: str
    headers: dict[str, str]
    body: bytes


def sample(name: str) -> Sample:
    """A sample; a .json is a body alone."""
    data = (PAYLOADS / name).read_bytes()
    if name.endswith(".json"):
        return Sample("", {"Content-Type": "application/json"}, data)
    top, _, body = data.partition(b"\r\n\r\n")
    first, *rest = top.decode("utf-8").split("\r\n")
    pairs = (row.split(": ", 1) for row in rest)
    # http.client sends header text as Latin-1: these are the bytes of the file
    headers = {key: value.encode().decode("latin-1") for key, value in pairs}
    headers = {k: v for k, v in headers.items() if k not in ("Host", "Content-Length")}
    return Sample(first.split(" ")[1], headers, body)


# ---- Answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """One answer to the helpdesk; `seconds` from the first byte sent to the last one read."""

    status: int
    headers: Headers
    body: bytes
    seconds: float = 0.0

    def json(self) -> Any:
        """The body, which must be JSON and say so."""
        assert self.headers.get("Content-Type").startswith("application/json"), self
        assert b"Traceback" not in self.body, self
        return json.loads(self.body)

    @property
    def event(self) -> int:
        """The number of the event."""
        return int(self.headers["HD-ITSM-Event"])

    @property
    def state(self) -> str:
        """The event's state as the answer tells it."""
        return self.headers["HD-ITSM-State"]

    @property
    def error(self) -> str:
        """What an answer other than 200 says in its JSON."""
        found = self.json()
        assert isinstance(found, dict)
        text = found["error"]
        assert isinstance(text, str)
        assert text
        return text


def read_replies(data: bytes) -> list[Reply]:
    """All whole answers in `data`, each framed by its Content-Length."""
    replies = []
    while b"\r\n\r\n" in data:
        top, _, rest = data.partition(b"\r\n\r\n")
        first, *rows = top.decode("latin-1").split("\r\n")
        pairs = tuple((key, value.strip()) for key, value in (row.split(":", 1) for row in rows))
        headers = Headers(pairs)
        size = int(headers.get("Content-Length", "0"))
        if len(rest) < size:
            break
        replies.append(Reply(int(first.split(" ")[1]), headers, rest[:size]))
        data = rest[size:]
    return replies


# ---- The control channel -----------------------------------------------------------------------

NONCE = "0123456789abcdef" * 2


def proof(key: str, *parts: str) -> str:
    """What only who has the key can say of these parts."""
    return hmac.new(key.encode(), "\n".join(parts).encode(), "sha256").hexdigest()


def asked(key: str, operation: str, body: bytes) -> dict[str, str | bytes]:
    """The headers with which a command asks for an operation."""
    digest = hashlib.sha256(body).hexdigest()
    word = proof(key, "command", NONCE, operation, digest)
    return {"HD-ITSM-Proof": f"{NONCE} {digest} {word}"}


# ---- The process -------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its standard output, which must be JSON."""
        return json.loads(self.out)


_launched: list[subprocess.Popen[bytes]] = []


def end_all() -> None:
    """Kills what a failed test left running."""
    while _launched:
        process = _launched.pop()
        process.kill()
        process.wait(PATIENCE)


class Service:
    """`command` (else the program) in `folder`; it runs inside `with`, its file and log stay."""

    def __init__(
        self,
        folder: Path,
        config: str,
        environ: Mapping[str, str] = NO_HEADERS,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.folder = folder
        self.command = list(command)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0  # where in the log the present process, or its last reload, began
        kept = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT", "PYTHONPYCACHEPREFIX")
        ours = {name: os.environ[name] for name in kept if name in os.environ}
        self._environ = {**ours, "PYTHONPATH": str(PROGRAM.parent), **environ}
        self.configure(config)

    def configure(self, config: str) -> None:
        """Writes the configuration; the next start reads it."""
        (self.folder / "hd_itsm.toml").write_text(config, encoding="utf-8")

    @property
    def url(self) -> str:
        """Where the hooks are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running().pid

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "hd_itsm.db"

    @property
    def control(self) -> dict[str, Any]:
        """What the file says by which the commands find the running service."""
        text = (self.folder / "hd_itsm.db.control").read_text(encoding="utf-8")
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    def control_post(self, operation: str, body: bytes) -> Reply:
        """Asks for an operation as a command does, with any body."""
        headers = asked(self.control["key"], operation, body)
        return self.request("POST", f"/control/{operation}", body, headers)

    @property
    def log(self) -> str:
        """All that was written to stderr, over restarts."""
        path = self.folder / "stderr.log"
        return path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""

    def lines(self, *words: str) -> list[str]:
        """The lines of the log that hold all of `words`."""
        return [line for line in self.log.split("\n") if line and all(w in line for w in words)]

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the service does not run"
        return self._process

    def launch(self) -> None:
        """Starts it and does not wait."""
        assert self._process is None, "it runs already"
        self._begun = len(self.log)
        with (self.folder / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _launched.append(self._process)

    def start(self) -> None:
        """Starts it and returns when it listens."""
        self.launch()
        try:
            assert self.ready(), f"it ended:\n{self.log[self._begun :]}"
        except BaseException:
            self.kill()
            raise

    def reload(self) -> None:
        """SIGHUP; returns when it listens again."""
        self._begun = len(self.log)
        self.signal(signal.SIGHUP)
        assert self.ready(), self.log

    def ready(self) -> bool:
        """Waits until it listens; False where it ended instead."""

        def listening() -> str:
            rows = self.log[self._begun :].split("\n")[:-1]
            return next((row for row in rows if "listening on " in row), "")

        until(lambda: self.over or listening(), "it neither listens nor ends", START)
        row = listening()
        if row:
            url = row.split("listening on ")[1].split(",")[0]
            self.port = urllib.parse.urlsplit(url).port or 0
        return bool(row)

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        self._running().send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        code = self._running().wait(timeout)
        self._process = None
        return code

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> int:
        """SIGKILL, where it has not ended; its exit code."""
        process, self._process = self._running(), None
        process.kill()
        return process.wait(PATIENCE)

    def restart(self) -> None:
        """SIGKILL, if it runs, and a new start on the same file."""
        if self._process is not None:
            self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                if problem is None:
                    raise
        if problem is None:
            assert "Traceback" not in self.log, self.log

    # The helpdesk's side

    def post(
        self,
        hook: str,
        body: object = b"",
        headers: Mapping[str, str | bytes] = NO_HEADERS,
        wait: int = 0,
        timeout: float = PATIENCE,
    ) -> Reply:
        """POSTs to a hook: bytes and text as they are, anything else as JSON in UTF-8.

        `wait`: the answer is to wait so many seconds for the ITSM (Prefer).
        """
        if isinstance(body, str):
            body = body.encode()
        if not isinstance(body, bytes):
            body = json.dumps(body, ensure_ascii=False).encode()
        preference = {"Prefer": f"wait={wait}"} if wait else {}
        sent = {"Content-Type": "application/json", **preference, **headers}
        return self.request("POST", "/" + hook.lstrip("/"), body, sent, timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | bytes] = NO_HEADERS,
        timeout: float = PATIENCE,
    ) -> Reply:
        """Any well-formed request, on a connection of its own."""
        began = monotonic()
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            line.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                line.putheader(name, value)
            if body is not None:
                line.putheader("Content-Length", str(len(body)))
            line.endheaders(body)
            answer = line.getresponse()
            content = answer.read()
            pairs = Headers(tuple(answer.getheaders()))
            return Reply(answer.status, pairs, content, monotonic() - began)
        finally:
            line.close()

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def exchange(
        self, data: bytes, half_close: bool = False, patience: float = PATIENCE
    ) -> list[Reply]:
        """The answers to raw bytes: all until the connection ends, or is silent after one."""
        heard = bytearray()
        with self.connect(patience) as line:
            with suppress(ConnectionError):
                line.sendall(data)
                if half_close:
                    line.shutdown(socket.SHUT_WR)
            with suppress(TimeoutError, ConnectionError):
                while piece := line.recv(65536):
                    heard += piece
                    line.settimeout(0.5 if read_replies(bytes(heard)) else patience)
        return read_replies(bytes(heard))

    # The operator's side

    def change_file(self, sql: str) -> None:
        """Carries out a statement on the file, while the service does not run."""
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as file:
            file.execute(sql)

    @property
    def tool(self) -> Sequence[str]:
        """How a command is called."""
        return self.command

    def cli(
        self,
        *arguments: object,
        stdin: bytes = b"",
        environ: Mapping[str, str] = NO_HEADERS,
        timeout: float = 2 * PATIENCE,
    ) -> Run:
        """A command in the service's folder, run to its end."""
        done = subprocess.run(
            [*self.tool, *map(str, arguments)],
            cwd=self.folder,
            env={**self._environ, **environ},
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Run(done.returncode, done.stdout.decode(), done.stderr.decode())

    def health(self) -> dict[str, Any]:
        """What GET /health says."""
        found = self.request("GET", "/health").json()
        assert isinstance(found, dict)
        return found

    def drained(self, timeout: float = PATIENCE) -> None:
        """Waits until nothing is pending."""
        until(lambda: self.health()["pending"] == 0, "all goes out", timeout)

    def ask(self, name: str, **given: Any) -> dict[str, Any] | None:
        """The whole result of an operation, asked of the running service as a command asks, but
        without starting one; None where none runs."""
        running = None if self.over else hd_itsm.find_service(str(self.database))
        if running is None:
            return None
        operation, whole = hd_itsm.OPERATIONS[name], dict[str, Any]()
        following: Mapping[str, Any] | None = {}
        while following is not None:
            part = running.ask(operation, operation.read({**given, **following}))
            following = part.pop("next", None) or None
            for key, value in part.items():
                whole[key] = [*whole.get(key, []), *value] if key == operation.long else value
        return whole

    def show(self, event: int) -> dict[str, Any]:
        """Everything of an event."""
        found = self.ask("show", event=event, json=True)
        if found is None:
            run = self.cli("show", event, "--json")
            assert run.code == 0, run
            found = run.json()
        assert isinstance(found, dict)
        return found

    def events(self, *filters: str) -> list[dict[str, Any]]:
        """Events, newest first."""
        given = {name[2:]: value for name, value in zip(filters[::2], filters[1::2], strict=True)}
        answer = self.ask("events", limit=1000, json=True, **given)
        found = answer["events"] if answer else None
        if found is None:
            run = self.cli("events", "--limit", "1000", "--json", *filters)
            assert run.code == 0, run
            found = run.json()
        assert isinstance(found, list)
        return found

    def status(self) -> dict[str, Any]:
        """What `status` tells."""
        found = self.ask("status") or self.cli("status", "--json").json()
        assert isinstance(found, dict)
        return found

    def mappings(self) -> dict[str, str]:
        """Ticket -> request id, all of them."""
        answer = self.ask("export")
        if answer:
            return {row["ticket"]: row["request_id"] for row in answer["mappings"]}
        rows = self.cli("export").out.splitlines()[1:]
        return {row.split(",")[0]: row.split(",")[1] for row in rows}


Start = Callable[..., Service]  # the fixture `start`
