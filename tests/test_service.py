"""The service under its manager: readiness, the kept socket, reloads, the watchdog, the end.

`Manager` stands in for systemd: a notify socket that believes the main process alone, and a store
for one descriptor, which the next start finds as descriptor 3. `Unit` is the real command under it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from crowd import multiply
from faultlib import missing, sabotaged
from itsm import MODES, Itsm, held, ok, reply, silence
from service import (
    AUTHORIZATION,
    NO_HEADERS,
    PROGRAM,
    START,
    Run,
    Service,
    opening,
    settings,
    ticket,
    until,
)

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="systemd speaks over AF_UNIX, and is not here"
)
UNIT = PROGRAM.parent / "hd_itsm.service"
PATIENCE = 3.0  # seconds: the shortest that a helpdesk waits for its answer
BIND = "127.0.0.1:0"


# ---- The stand-in ------------------------------------------------------------------------------


class Said(NamedTuple):
    """One message to the manager: when (monotonic), from whom, and its assignments."""

    at: float
    pid: int
    rows: tuple[str, ...]

    def value(self, name: str) -> str | None:
        """What it says of `name`; None for nothing."""
        return next(
            (one.partition("=")[2] for one in self.rows if one.startswith(f"{name}=")), None
        )


class Manager:
    """systemd's side: hears what the main process says and keeps one descriptor for it.

    A thread reads the socket. `_grown` guards `_said`, `main` and `kept`.
    """

    def __init__(self, keeps: bool = True) -> None:
        self.keeps = keeps
        self.main = 0  # the only process that is believed (NotifyAccess=main)
        self.kept: socket.socket | None = None
        self.refused: list[str] = []  # descriptors that were not taken, and why
        self._said: list[Said] = []
        self._grown = threading.Condition()
        self._folder = tempfile.TemporaryDirectory(prefix="hd-")  # a short path, as AF_UNIX wants
        self.path = str(Path(self._folder.name) / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.path)
        self._ending, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and lets go what was kept."""
        self._end.close()
        self._thread.join(5)
        for one in (self._socket, self._ending, self.kept):
            if one is not None:
                one.close()
        self._folder.cleanup()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _listen(self) -> None:
        room = socket.CMSG_SPACE(struct.calcsize("3i")) + socket.CMSG_SPACE(4 * 4)
        while self._ending not in select.select([self._socket, self._ending], [], [])[0]:
            data, ancillary, _, _ = self._socket.recvmsg(65536, room)
            pid, descriptors = 0, list[int]()
            for _, kind, content in ancillary:
                if kind == socket.SCM_CREDENTIALS:
                    pid = struct.unpack("3i", content[: struct.calcsize("3i")])[0]
                elif kind == socket.SCM_RIGHTS:
                    size = len(content) // 4
                    descriptors += struct.unpack(f"{size}i", content[: 4 * size])
            message = Said(monotonic(), pid, tuple(data.decode().split("\n")))
            with self._grown:
                self._said.append(message)
                if pid == self.main:
                    self._store(message, descriptors)
                for one in descriptors:
                    os.close(one)
                self._grown.notify_all()

    def _store(self, message: Said, descriptors: list[int]) -> None:
        """FDSTORE and FDSTOREREMOVE as service_add_fd_store() has them, for one descriptor."""
        if message.value("FDSTOREREMOVE") == "1" and message.value("FDNAME") == "http":
            self._let_go()
        if message.value("FDSTORE") != "1" or not self.keeps:
            return
        assert message.value("FDNAME") == "http", message
        for descriptor in descriptors:
            if self.kept is None:
                self.kept = socket.socket(fileno=os.dup(descriptor))
            elif not os.path.sameopenfile(self.kept.fileno(), descriptor):
                self.refused.append("the store is full (FileDescriptorStoreMax=1)")

    def _let_go(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def forget(self) -> None:
        """What `systemctl stop` does to the store."""
        with self._grown:
            self._let_go()

    def all(self) -> list[Said]:
        """Everything said by anybody: a copy."""
        with self._grown:
            return list(self._said)

    def heard(self, name: str, since: float = 0.0) -> list[Said]:
        """What the main processes said of `name` after a moment."""
        return [one for one in self.all() if one.value(name) is not None and one.at > since]

    def wait(self, name: str, since: float = 0.0, timeout: float = START) -> Said:
        """The first that is said of `name` after a moment."""
        found = until(lambda: self.heard(name, since), f"nobody says {name}", timeout)
        return found[0]


NOTED = {"kind": "note", "fields": {"ticket_id": "ticket_id"}}


def with_text(itsm_url: str, text: str, **sections: Mapping[str, Any]) -> str:
    """A configuration with POST /note, whose kind opens a request that says `text`."""
    kind = {"opens": True, "body": {"ticket": "{ticket_id}", "text": text}}
    tables: dict[str, Mapping[str, Any]] = {"hooks__note": NOTED, "kinds__note": kind}
    return settings(itsm_url, **{**tables, **sections})


def with_notes(itsm_url: str, **sections: Mapping[str, Any]) -> str:
    """A configuration with POST /note; every ticket is opened by its note."""
    return with_text(itsm_url, "", **sections)


# As systemd does it: a socket is descriptor 3, and LISTEN_PID is the service's own number.
WITH_SOCKET = 'exec 3<&0 0</dev/null; LISTEN_PID=$$; export LISTEN_PID; exec "$@"'


class Unit(Service):
    """The real command under a manager; `start` returns with READY=1."""

    def __init__(
        self,
        folder: Path,
        config: str,
        manager: Manager,
        environ: Mapping[str, str] = NO_HEADERS,
        program: Path = PROGRAM,
        arguments: tuple[str, ...] = (),
        watchdog: float = 0.0,
    ) -> None:
        usec = {"WATCHDOG_USEC": str(round(watchdog * 1e6))} if watchdog else {}
        super().__init__(folder, config, {"NOTIFY_SOCKET": manager.path, **usec, **environ})
        self.manager = manager
        self.program = program
        self.arguments = arguments
        self.names = "http"

    def __enter__(self) -> Unit:
        self.start()
        return self

    def launch(self) -> None:
        """Starts it, with the kept socket if there is one, and does not wait."""
        assert self._process is None, "it runs already"
        self._begun = len(self.log)
        command = [sys.executable, str(self.program), *self.arguments]
        kept, environ = self.manager.kept, self._environ
        if kept is not None:
            command = ["sh", "-c", WITH_SOCKET, "sh", *command]
            environ = {**environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": self.names}
        with (self.folder / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL if kept is None else kept.fileno(),
                stdout=log,
                stderr=log,
            )
        self.manager.main = self._process.pid

    def start(self) -> None:
        """Starts it and returns when it says that it is ready."""
        began = monotonic()
        self.launch()

        def ready() -> bool:
            code = self._running().poll()
            assert code is None, f"it ended with {code}:\n{self.log[self._begun :]}"
            return bool(self.manager.heard("READY", began))

        try:
            until(ready, "it is not ready", START)
        except BaseException:
            self.kill()
            raise
        self.port = int(self.control["port"])

    def bounce(self) -> None:
        """`systemctl restart`: a stop and a start, with the kept socket."""
        assert self.stop() == 0, self.log
        self.start()

    def reload(self, timeout: float = START) -> None:
        """SIGHUP, until the same process says that it is ready again."""
        began = monotonic()
        self.signal(signal.SIGHUP)
        self.manager.wait("READY", began, timeout)
        self.port = int(self.control["port"])

    def refused_reload(self) -> str:
        """SIGHUP, until the log says why not."""
        before = len(self.lines("reload refused"))
        self.signal(signal.SIGHUP)

        def line() -> list[str]:
            assert self._running().poll() is None, self.log
            return self.lines("reload refused")[before:]

        return until(line, "the reload is refused", START)[0]


Start = Callable[..., Unit]


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A stand-in for systemd that keeps the descriptor."""
    with Manager() as stand_in:
        yield stand_in


@pytest.fixture
def start(tmp_path: Path, manager: Manager) -> Iterator[Start]:
    """Starts a unit under the manager, with these sections of configuration."""
    with ExitStack() as stack:

        def starter(
            itsm_url: str, options: Mapping[str, Any] | None = None, **sections: Any
        ) -> Unit:
            text = with_notes(itsm_url, **sections)
            return stack.enter_context(Unit(tmp_path, text, manager, **(options or {})))

        yield starter


def end(unit: Unit) -> None:
    """SIGKILL, where it still runs."""
    if unit._process is not None:
        unit.kill()


def note(ticket_id: str, **more: Any) -> dict[str, Any]:
    """The body of POST /note."""
    return {"ticket_id": ticket_id, **more}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


# ---- Ready -------------------------------------------------------------------------------------


def test_it_is_ready_when_it_answers_and_tells_where(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    assert unit.post("note", note(ticket())).status == 200
    ready = unit.manager.wait("READY")
    assert ready.value("STATUS") == f"listening on {unit.url}"
    assert len(unit.manager.heard("READY")) == 1


def test_it_hands_over_its_listening_socket_before_it_is_ready(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    assert unit.manager.kept is not None
    assert unit.manager.kept.getsockname() == ("127.0.0.1", unit.port)
    assert unit.manager.wait("FDSTORE").at < unit.manager.wait("READY").at


def test_only_the_main_process_speaks_to_the_manager(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url, {"watchdog": 30.0})
    unit.reload()
    assert unit.stop() == 0
    assert {one.pid for one in unit.manager.all()} == {unit.manager.main}


class Flaw(NamedTuple):
    """What keeps a start from being ready: how it is made, how it ends, what it is called."""

    make: Callable[[Path, ExitStack, Itsm], str]
    code: int
    words: tuple[str, ...]


def _misspelt(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return settings(itsm.url, itsm={"urll": "x"})


def _no_toml(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return "[server"


def _no_url(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return f'[server]\nlisten = "{BIND}"\n'


def _no_credential(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return settings(itsm.url, itsm={"authorization": {"credential": "hd_itsm.token"}})


def _open_to_all(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return settings(itsm.url, server={"listen": "0.0.0.0:0"})


def _taken_port(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return settings(itsm.url, server={"listen": f"127.0.0.1:{itsm.port}"})


def _made(folder: Path, itsm: Itsm) -> Path:
    """A file as a start leaves it."""
    with Service(folder, settings(itsm.url)) as service:
        return service.database


def _locked_file(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    other = stack.enter_context(closing(sqlite3.connect(_made(folder, itsm))))
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    return settings(itsm.url)


def _damaged_file(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    _made(folder, itsm).write_bytes(b"no database, but some text " * 1000)
    return settings(itsm.url)


def _no_folder(folder: Path, stack: ExitStack, itsm: Itsm) -> str:
    return settings(itsm.url, store={"path": str(folder / "hd_itsm.toml" / "x.db")})


FLAWS = {
    "a misspelt key": Flaw(_misspelt, 2, ("itsm.urll", "did you mean")),
    "no TOML": Flaw(_no_toml, 2, ("hd_itsm.toml",)),
    "no address of the ITSM": Flaw(_no_url, 2, ("itsm.url",)),
    "a credential that is not there": Flaw(_no_credential, 2, ("itsm.authorization",)),
    "open to all": Flaw(_open_to_all, 2, ("access",)),
    "a taken port": Flaw(_taken_port, 1, ("cannot start", "another program has this address")),
    "a locked file": Flaw(_locked_file, 1, ("cannot start", "in use")),
    "a damaged file": Flaw(_damaged_file, 1, ("cannot start", "hd_itsm.db")),
    "a folder that is none": Flaw(_no_folder, 1, ("cannot start", "x.db")),
}


@pytest.mark.parametrize("name", FLAWS)
def test_it_is_never_ready_with(name: str, tmp_path: Path, manager: Manager, itsm: Itsm) -> None:
    flaw = FLAWS[name]
    with ExitStack() as stack:
        unit = Unit(tmp_path, flaw.make(tmp_path, stack, itsm), manager)
        stack.callback(end, unit)
        unit.launch()
        assert unit.wait() == flaw.code, unit.log
    said = unit.log[unit._begun :]
    assert all(word in said for word in flaw.words), said
    assert "Traceback" not in said
    assert manager.all() == []  # neither READY nor a descriptor nor anything else
    assert manager.kept is None


def test_its_status_counts_what_waits_and_what_failed(start: Start, itsm: Itsm) -> None:
    itsm.decide = lambda received: reply(400) if received.json()["ticket"] == "bad" else None
    unit = start(itsm.url)
    assert unit.post("note", note("bad"), wait=10).state == "failed"
    assert unit.post("itsm_ass", {"ticket_id": "unknown", "technician": "x"}).state == "held"
    assert unit.cli("pause").code == 0
    assert unit.post("note", note(ticket())).state == "pending"
    assert unit.post("note", note(ticket())).state == "pending"
    began = monotonic()
    unit.bounce()
    expected = f"listening on {unit.url}; 2 pending, 1 held, 1 failed"
    words = [one.value("STATUS") for one in unit.manager.heard("STATUS", began)]
    until(
        lambda: expected in [one.value("STATUS") for one in unit.manager.heard("STATUS", began)],
        f"{expected!r} after {words}",
    )


def test_it_says_that_it_stops_before_it_is_gone(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    began = monotonic()
    assert unit.stop() == 0
    stopping = unit.manager.wait("STOPPING", began, timeout=1)
    assert stopping.value("STOPPING") == "1"
    assert unit.manager.heard("READY", began) == []
    assert unit.lines("stopped")


def test_a_notify_socket_that_is_not_there_is_no_obstacle(
    tmp_path: Path, manager: Manager, itsm: Itsm
) -> None:
    absent = {"NOTIFY_SOCKET": str(tmp_path / "absent")}
    with Service(tmp_path, with_notes(itsm.url), absent) as service:
        assert service.post("note", note(ticket())).status == 200


# ---- The watchdog ------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0.5, pytest.param(7200.0, marks=pytest.mark.slow)])
def test_the_watchdog_is_fed_twice_in_its_time_at_least_and_every_other_second(
    patience: float, start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url, {"watchdog": patience})
    until(lambda: len(unit.manager.heard("WATCHDOG")) >= 4, "it is fed four times")
    fed = [one.at for one in unit.manager.heard("WATCHDOG")]
    gaps = sorted(b - a for a, b in pairwise(fed))
    assert gaps[len(gaps) // 2] <= min(patience / 2, 2.5)  # the middle one: the machine is busy
    assert {one.value("WATCHDOG") for one in unit.manager.heard("WATCHDOG")} == {"1"}


def test_the_watchdog_is_fed_while_a_reload_waits_for_a_slow_client(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url, {"watchdog": 1.0})
    with unit.connect() as line:
        began = monotonic()
        unit.signal(signal.SIGHUP)
        until(lambda: unit.lines("reloading"), "it reloads")
        line.sendall(b"POST /note HTTP/1.1\r\nHost: localhost\r\n")  # and then no more
        until(lambda: unit.lines("stopping"), "the old program stops")
        stopping = monotonic()
        ready = unit.manager.wait("READY", began).at
    fed = [one.at for one in unit.manager.heard("WATCHDOG", stopping) if one.at < ready]
    assert len(fed) >= 2


@pytest.mark.slow
def test_nothing_is_fed_where_no_watchdog_was_asked_for(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    first = unit.manager.wait("STATUS")
    until(lambda: monotonic() - first.at > 2.5, "a feeding would have come")
    assert unit.manager.heard("WATCHDOG") == []


# Each breaks one part for good once the file `hang` lies in the folder.
HANGS = {
    "store": """
class _Hung(sqlite3.Connection):
    def execute(self, *rest):
        while os.path.exists("hang"):
            time.sleep(0.05)
        return super().execute(*rest)
_connect_real = sqlite3.connect
sqlite3.connect = lambda *rest, **named: _connect_real(*rest, **{**named, "factory": _Hung})
""",
    "worker": """
_decide_real = decide
def decide(*rest, **named):
    while os.path.exists("hang"):
        time.sleep(0.05)
    return _decide_real(*rest, **named)
_watch_real = Delivery.watch
def _watch(self, now, turn):
    # a minute of patience goes by at once
    return _watch_real(self, now + 60 * os.path.exists("hang"), turn)
Delivery.watch = _watch
""",
    "intake": """
_read_real = read_webhooks
def read_webhooks(*rest, **named):
    while os.path.exists("hang"):
        time.sleep(0.05)
    return _read_real(*rest, **named)
""",
}
FED_FOR = 30.0  # seconds that a hang may go unnoticed, at most


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Unit, float]]]:
    """One unit per kind of hang, all begun at once, since each takes its time to be noticed."""
    with ExitStack() as stack:
        itsm = stack.enter_context(Itsm())
        units = {}
        for name, code in HANGS.items():
            folder = tmp_path_factory.mktemp(name)
            program = sabotaged(folder, code=code)
            config = with_notes(itsm.url, server={"threads": 2}, itsm={"timeout": 1.0})
            unit = Unit(
                folder, config, stack.enter_context(Manager()), program=program, watchdog=30.0
            )
            stack.callback(end, unit)
            unit.start()
            assert unit.post("note", note(ticket()), wait=10).state == "delivered"
            unit.manager.wait("WATCHDOG")
            units[name] = unit
        for unit in units.values():
            (unit.folder / "hang").touch()
            for _ in range(4):
                threading.Thread(target=_shout, args=(unit,), daemon=True).start()
        yield {name: (unit, monotonic()) for name, unit in units.items()}


def _shout(unit: Unit) -> None:
    """More often than there are threads at the door: what comes at once takes one thread only."""
    for _ in range(4):
        with suppress(OSError, http.client.HTTPException):
            unit.post("note", note(ticket()), timeout=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", HANGS)
def test_the_watchdog_is_not_fed_any_more_once_this_hangs(
    name: str, hung: Mapping[str, tuple[Unit, float]]
) -> None:
    unit, began = hung[name]

    def starving() -> bool:
        """No feeding for three of its seconds, or the process ended by itself."""
        fed = unit.manager.heard("WATCHDOG")[-1].at
        return unit._running().poll() is not None or monotonic() - fed > 3.0

    until(starving, "it is fed on", max(0.1, began + FED_FOR - monotonic()))


# ---- Webhooks without a pause ------------------------------------------------------------------


class Load:
    """Helpdesks that post without a pause: some on fresh connections, some on kept ones.

    Each webhook has a ticket of its own. `answered` are the tickets answered 200; `trouble` is
    every other end, by its kind. Each thread only appends to lists.
    """

    def __init__(self, unit: Unit, fresh: int = 2, kept: int = 2, rate: float = 60.0) -> None:
        self.unit = unit
        self.answered: list[str] = []
        self.seconds: list[float] = []
        self.trouble: list[str] = []
        self.went_on = 0  # kept connections that the service ended with `Connection: close`
        self._pause = 1.0 / rate
        self._over = threading.Event()
        self._numbers = count(1)
        jobs = [*[self._fresh] * fresh, *[self._kept] * kept]
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "a webhook hangs"

    def go_on(self, more: int = 100) -> None:
        """Returns when so many more were answered."""
        wanted = len(self.answered) + more
        until(lambda: len(self.answered) >= wanted, "webhooks are answered", 20)

    def _line(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.unit.port, timeout=20)

    def _post(self, line: http.client.HTTPConnection) -> bool:
        """One webhook; whether the connection may be used again."""
        name, began = f"L{next(self._numbers)}", monotonic()
        try:
            body = json.dumps(note(name)).encode()
            line.request("POST", "/note", body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.trouble.append(type(error).__name__)
            line.close()
            return False
        if answer.status == 200:
            self.answered.append(name)
            self.seconds.append(monotonic() - began)
        else:
            self.trouble.append(str(answer.status))
        return not answer.will_close

    def _fresh(self) -> None:
        while not self._over.wait(self._pause):
            line = self._line()
            self._post(line)
            line.close()

    def _kept(self) -> None:
        line = self._line()
        while not self._over.wait(self._pause):
            if not self._post(line):
                self.went_on += 1
                line.close()
                line = self._line()
        line.close()


def delivered_once(itsm: Itsm, tickets: list[str]) -> None:
    """Every one of these tickets came to the ITSM, and none came twice."""
    itsm.wait_for(len(tickets), timeout=20)

    def lacking() -> set[str]:
        return set(tickets) - {one.json()["ticket"] for one in itsm.requests}

    until(lambda: not lacking(), "all that was answered 200 is delivered", 20)
    came = [one.json()["ticket"] for one in itsm.requests]
    assert len(came) == len(set(came)), "some were delivered twice"


@pytest.mark.slow
def test_no_connection_is_refused_or_cut_and_no_webhook_lost_by_reloads(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    pid = unit.pid
    with Load(unit) as load:
        for _ in range(3):
            unit.reload()
            load.go_on()
    assert load.trouble == []
    assert max(load.seconds) < PATIENCE
    assert load.went_on >= 6  # the kept connections were told, not cut
    assert (unit.pid, unit._running().poll()) == (pid, None)
    delivered_once(itsm, load.answered)


@pytest.mark.slow
def test_no_connection_is_refused_or_cut_and_no_webhook_lost_by_restarts(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    with Load(unit) as load:
        for _ in range(3):
            unit.bounce()
            load.go_on()
    assert load.trouble == []
    assert max(load.seconds) < PATIENCE
    delivered_once(itsm, load.answered)


@pytest.mark.slow
def test_control_without_the_kept_socket_some_are_refused(tmp_path: Path, itsm: Itsm) -> None:
    port = free_port()
    config = with_notes(itsm.url, server={"listen": f"127.0.0.1:{port}"})
    with Manager(keeps=False) as manager, Unit(tmp_path, config, manager) as unit:
        with Load(unit) as load:
            unit.bounce()
            load.go_on()
        assert "ConnectionRefusedError" in load.trouble
        delivered_once(itsm, load.answered)


def test_a_kill_refuses_no_connection_and_loses_nothing_that_was_answered(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    with Load(unit) as load:
        for _ in range(2):
            unit.kill()
            unit.start()
            load.go_on()
    assert "ConnectionRefusedError" not in load.trouble
    until(
        lambda: {one.json()["ticket"] for one in itsm.requests} >= set(load.answered),
        "all that was answered 200 is delivered",
        20,
    )


@pytest.mark.parametrize("how", ["reload", "bounce"])
def test_a_connection_that_waits_to_be_accepted_is_answered_by_the_next(
    how: str, start: Start, itsm: Itsm
) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    unit = start(itsm.url, server={"stop_after": 5})
    unit.post("note", note(ticket()))
    itsm.wait_for(1)  # in flight: the old one cannot be over yet
    change = threading.Thread(target=getattr(unit, how))
    change.start()
    until(lambda: unit.lines("stopping"), "the old one stops")
    with unit.connect() as line:
        body = json.dumps(note("waiting")).encode()
        head = f"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body)
        go.set()
        assert line.recv(65536).startswith(b"HTTP/1.1 200 ")
    change.join(20)
    assert not change.is_alive()
    itsm.wait_for(1, where=lambda received: received.json()["ticket"] == "waiting")


@pytest.mark.slow
def test_webhooks_are_answered_in_time_while_a_reload_waits_for_a_silent_itsm(
    start: Start, itsm: Itsm
) -> None:
    itsm.answer = silence()
    unit = start(itsm.url, server={"stop_after": 8}, itsm={"timeout": 30.0})
    unit.post("note", note(ticket()))
    itsm.wait_for(1)
    unit.signal(signal.SIGHUP)
    slowest, began = 0.0, monotonic()
    while not unit.lines("reloading") or monotonic() - began < 4.0:
        slowest = max(slowest, unit.post("note", note(ticket())).seconds)
    assert slowest < PATIENCE
    unit.kill()


# ---- Commands without a pause ------------------------------------------------------------------

# One command after the other, without an interpreter's start between two of them; stdout is their
# exit codes, stderr what they complain of.
ASKING = """
import contextlib, io, os, hd_itsm
while not os.path.exists("enough"):
    with contextlib.redirect_stdout(io.StringIO()):
        code = hd_itsm.main(["status"])
    print(code, flush=True)
"""


class Asking:
    """Somebody who asks for the status all the time; `codes` are the commands' exit codes."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def __enter__(self) -> Asking:
        with (self.unit.folder / "codes").open("wb") as codes:
            self._process = subprocess.Popen(
                [sys.executable, "-c", ASKING],
                cwd=self.unit.folder,
                env=self.unit._environ,
                stdout=codes,
                stderr=subprocess.PIPE,
            )
        self.go_on()
        return self

    def __exit__(self, *problem: object) -> None:
        (self.unit.folder / "enough").touch()
        self.complaints = self._process.communicate(timeout=30)[1].decode()

    @property
    def codes(self) -> list[str]:
        return (self.unit.folder / "codes").read_text().split()

    def go_on(self, more: int = 10) -> None:
        """Returns when so many more commands have ended."""
        wanted = len(self.codes) + more
        until(lambda: len(self.codes) >= wanted or self._process.poll(), "commands end")


@pytest.mark.slow
def test_no_command_fails_and_none_ends_the_service_whatever_the_service_does(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    with Asking(unit) as asking:
        for change in (unit.reload, unit.bounce, unit.restart) * 4:
            change()
            asking.go_on()
        assert unit.post("note", note(ticket()), wait=10).state == "delivered"
    assert asking.complaints == ""
    assert set(asking.codes) == {"0"}


def asked(unit: Unit) -> tuple[threading.Thread, list[Run]]:
    """A `status` under way, and where it puts what came of it."""
    runs: list[Run] = []
    asking = threading.Thread(target=lambda: runs.append(unit.cli("status")), daemon=True)
    asking.start()
    return asking, runs


def test_a_command_waits_for_the_new_program_and_leaves_it_the_file(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    lingering = """
_init_real = File.__init__
def _init(self, *rest, **named):
    while os.path.exists("linger") and SIGNALS <= signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        open("lingers", "w").close()  # a new program, as it is the only one without signals
        time.sleep(0.01)
    _init_real(self, *rest, **named)
File.__init__ = _init
"""
    unit = start(itsm.url, {"program": sabotaged(tmp_path, code=lingering)})
    (tmp_path / "linger").touch()
    began = monotonic()
    unit.signal(signal.SIGHUP)
    until(lambda: (tmp_path / "lingers").exists(), "the old program is gone")
    asking, runs = asked(unit)
    asking.join(2.0)
    assert runs == []
    (tmp_path / "linger").unlink()
    asking.join(30)
    unit.manager.wait("READY", began)
    assert (runs[0].code, runs[0].err) == (0, "")
    assert re.search(r"service +running", runs[0].out)


def test_a_command_waits_for_a_service_that_is_there_and_does_not_listen_yet(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    left = unit.control
    assert unit.stop() == 0
    silent = {**left, "pid": os.getpid(), "port": free_port()}
    (unit.folder / "hd_itsm.db.control").write_text(json.dumps(silent))
    asking, runs = asked(unit)
    asking.join(1.0)
    assert runs == []
    unit.start()
    asking.join(30)
    assert (runs[0].code, runs[0].err) == (0, "")
    assert re.search(r"service +running", runs[0].out)


# ---- SIGHUP ------------------------------------------------------------------------------------


def sent_text(itsm: Itsm) -> list[str]:
    """What the notes at the ITSM say, in the order they came."""
    return [one.json()["text"] for one in itsm.requests]


def says(unit: Unit, itsm: Itsm, text: str) -> bool:
    """Whether a webhook that comes now becomes a note of this text."""
    name = ticket()
    unit.post("note", note(name))
    return bool(
        itsm.wait_for(1, 10, lambda one: one.json()["ticket"] == name)[0].json()["text"] == text
    )


def test_a_reload_brings_the_new_configuration_on_the_same_pid_and_port(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    before = unit.pid, unit.port
    unit.configure(with_text(itsm.url, "new words"))
    unit.reload()
    assert (unit.pid, unit.port) == before
    unit.post("note", note(ticket()), wait=10)
    assert sent_text(itsm) == ["new words"]
    assert unit.control["pid"] == unit.pid
    assert unit.cli("status").code == 0


def test_a_reload_tells_the_manager_when_it_begins_and_ends(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    began = monotonic()
    unit.reload()
    reloading = unit.manager.wait("RELOADING", began)
    stamp = int(reloading.value("MONOTONIC_USEC") or 0) / 1e6
    assert began <= stamp <= reloading.at
    assert unit.manager.wait("READY", began).at > reloading.at
    assert unit.manager.heard("STOPPING", began) == []


def test_without_a_manager_a_reload_works_as_well(tmp_path: Path, itsm: Itsm) -> None:
    with Service(tmp_path, with_notes(itsm.url)) as service:
        pid = service.pid
        service.configure(with_text(itsm.url, "new words"))
        service.signal(signal.SIGHUP)
        until(lambda: len(service.lines("listening on")) == 2, "it listens again")
        service.post("note", note(ticket()), wait=10)
        assert (sent_text(itsm), service.pid) == (["new words"], pid)


def test_an_attempt_in_flight_is_finished_and_not_repeated_by_a_reload(
    start: Start, itsm: Itsm
) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    unit = start(itsm.url, server={"stop_after": 10})
    unit.post("note", note("flying"))
    itsm.wait_for(1)
    began = monotonic()
    unit.signal(signal.SIGHUP)
    unit.manager.wait("RELOADING", began)
    go.set()
    unit.manager.wait("READY", began)
    assert unit.post("note", note(ticket()), wait=10).state == "delivered"
    assert [one.json()["ticket"] for one in itsm.requests].count("flying") == 1


BROKEN: Mapping[str, Callable[[Itsm], str]] = {
    "a misspelt key": lambda itsm: settings(itsm.url, itsm={"urll": "x"}),
    "no TOML": lambda itsm: "[server",
    "a filter that does not exist": lambda itsm: settings(
        itsm.url, kinds__new={"opens": True, "body": {"title": "{subject|shout}"}}
    ),
    "open to all": lambda itsm: settings(itsm.url, server={"listen": "0.0.0.0:0"}),
    "a credential that is not there": lambda itsm: settings(
        itsm.url, itsm={"authorization": {"credential": "absent"}}
    ),
    # sound in itself, but the world is not as it says: the old one can go on just the same
    "a taken port": lambda itsm: settings(itsm.url, server={"listen": f"127.0.0.1:{itsm.port}"}),
    "a log that cannot be written": lambda itsm: settings(itsm.url, log={"file": "absent/x.log"}),
    "a file that cannot be made": lambda itsm: settings(
        itsm.url, store={"path": "hd_itsm.toml/x.db"}
    ),
}


def test_the_old_one_goes_on_and_says_why_when_the_new_configuration_is_broken(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    pid, url = unit.pid, unit.url
    good = (unit.folder / "hd_itsm.toml").read_text(encoding="utf-8")
    for name, broken in BROKEN.items():
        unit.configure(broken(itsm))
        assert len(unit.refused_reload()) < 1000, name
        assert unit.post("note", note(ticket()), wait=10).state == "delivered", name
        assert (unit.pid, unit.url, unit._running().poll()) == (pid, url, None), name
    assert AUTHORIZATION not in unit.log
    unit.configure(good)
    unit.reload()
    assert unit.post("note", note(ticket()), wait=10).state == "delivered"


@pytest.mark.slow
def test_a_refused_reload_shows_in_status_until_one_succeeds(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    good = (unit.folder / "hd_itsm.toml").read_text(encoding="utf-8")
    began = monotonic()
    unit.configure(settings(itsm.url, itsm={"urll": "x"}))
    unit.refused_reload()
    assert unit.cli("check").code == 2
    unit.configure(good)  # the command itself must be able to read its configuration
    told = unit.cli("status")
    assert told.code == 1
    assert "urll" in told.out
    said = until(
        lambda: [
            one
            for one in unit.manager.heard("STATUS", began)
            if "reload" in str(one.value("STATUS"))
        ],
        "the manager is told",
        15,
    )
    assert said
    unit.reload()
    assert unit.cli("status").code == 0


def test_a_reload_before_it_is_ready_waits_until_it_is(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    code = """
_init_real = File.__init__
def _init(self, *rest, **named):
    if not os.path.exists("asked"):
        open("asked", "w").close()
        os.kill(os.getpid(), signal.SIGHUP)
    _init_real(self, *rest, **named)
File.__init__ = _init
"""
    unit = start(itsm.url, {"program": sabotaged(tmp_path, code=code)})
    until(lambda: len(unit.manager.heard("READY")) == 2, "it is ready, and once more")
    assert unit.post("note", note(ticket()), wait=10).state == "delivered"


def test_two_reloads_at_once_end_with_the_latest_configuration(start: Start, itsm: Itsm) -> None:
    unit = start(itsm.url)
    pid, port = unit.pid, unit.port
    with Load(unit) as load:
        for text in ("first", "second"):
            unit.configure(with_text(itsm.url, text))
            unit.signal(signal.SIGHUP)
        until(lambda: says(unit, itsm, "second"), "the latest configuration counts", 20)
        load.go_on()
    assert load.trouble == []
    assert (unit.pid, unit.port, unit._running().poll()) == (pid, port, None)
    delivered_once(itsm, load.answered)


def children(unit: Unit) -> list[str]:
    """The processes that it has started and that still run."""
    threads = Path(f"/proc/{unit.pid}/task")
    if not (threads / str(unit.pid) / "children").exists():
        missing("/proc/PID/task/TID/children")
    found = list[str]()
    for one in threads.iterdir():
        with suppress(OSError):  # a thread that ended meanwhile
            found += (one / "children").read_text().split()
    return found


@pytest.mark.slow
def test_many_reloads_leave_no_descriptor_thread_or_process_behind(
    start: Start, itsm: Itsm
) -> None:
    unit = start(itsm.url)
    unit.post("note", note(ticket()), wait=10)
    unit.reload()

    def left() -> tuple[int, int, list[str]]:
        place = Path(f"/proc/{unit.pid}")
        counts = [len(list((place / name).iterdir())) for name in ("fd", "task")]
        return counts[0], counts[1], children(unit)

    unit.post("note", note(ticket()), wait=10)
    before = left()
    for _ in range(3):
        unit.reload()
    unit.post("note", note(ticket()), wait=10)
    until(
        lambda: left()[0] <= before[0] and left()[1:] == before[1:],
        f"{before} again, not {left()}",
    )


def test_a_changed_address_is_taken_and_the_old_one_is_given_up(
    start: Start, itsm: Itsm, manager: Manager
) -> None:
    unit = start(itsm.url)
    old, new = unit.port, free_port()
    unit.configure(with_notes(itsm.url, server={"listen": f"127.0.0.1:{new}"}))
    unit.reload()
    assert unit.port == new
    assert unit.post("note", note(ticket()), wait=10).state == "delivered"
    # Nobody may still listen there, the manager included: it would take webhooks and never answer
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=2).close()
    assert manager.kept is not None
    assert manager.kept.getsockname() == ("127.0.0.1", new)
    with Load(unit) as load:
        unit.bounce()
        load.go_on()
    assert load.trouble == []


def test_an_address_that_was_changed_while_it_was_down_is_taken_at_the_start(
    start: Start, itsm: Itsm, manager: Manager
) -> None:
    unit = start(itsm.url)
    old, new = unit.port, free_port()
    unit.kill()  # systemd keeps the socket
    unit.configure(with_notes(itsm.url, server={"listen": f"127.0.0.1:{new}"}))
    unit.start()
    assert unit.post("note", note(ticket()), wait=10).state == "delivered"
    assert unit.port == new
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=2).close()
    assert manager.kept is not None
    assert manager.kept.getsockname() == ("127.0.0.1", new)


def versioned(path: Path, version: str) -> None:
    """Writes the program to `path`, as another version of it."""
    text = PROGRAM.read_text(encoding="utf-8")
    top, mark, rest = text.partition('__version__ = "')
    assert mark
    new = path.with_name(f"{path.name}.new")
    new.write_text(top + mark + version + rest[rest.index('"') :], encoding="utf-8")
    new.replace(path)


def test_new_code_takes_over_on_the_same_pid_and_socket(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    versioned(tmp_path / "program.py", "1.0.1")
    unit = start(itsm.url, {"program": tmp_path / "program.py"})
    before = unit.pid, unit.port
    unit.post("note", note(ticket()), wait=10)
    with Load(unit) as load:
        versioned(tmp_path / "program.py", "9.9.9")
        unit.reload()
        load.go_on()
    assert load.trouble == []
    assert (unit.pid, unit.port) == before
    agents = [one.headers.get("User-Agent") for one in itsm.requests]
    assert (agents[0], agents[-1]) == ("hd_itsm/1.0.1", "hd_itsm/9.9.9")


def test_new_code_that_cannot_run_does_not_take_over(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    versioned(tmp_path / "program.py", "1.0.1")
    unit = start(itsm.url, {"program": tmp_path / "program.py"})
    (tmp_path / "program.py").write_text("this is no Python\n", encoding="utf-8")
    unit.refused_reload()
    unit.post("note", note(ticket()), wait=10)
    assert itsm.requests[-1].headers.get("User-Agent") == "hd_itsm/1.0.1"


def test_options_of_the_command_line_hold_over_a_reload(
    tmp_path: Path, manager: Manager, itsm: Itsm
) -> None:
    other = tmp_path / "other.db"
    words = ("--db", str(other), "--itsm-url", itsm.url)
    unit = Unit(tmp_path, with_notes("http://127.0.0.1:1/"), manager, arguments=words)
    unit.launch()
    try:
        first = manager.wait("READY")
        unit.signal(signal.SIGHUP)
        manager.wait("READY", first.at)
        unit.port = int(json.loads((tmp_path / "other.db.control").read_text())["port"])
        assert unit.post("note", note(ticket()), wait=10).state == "delivered"
        assert other.exists()
        assert not unit.database.exists()
    finally:
        assert unit.stop() == 0


@pytest.mark.parametrize(
    "after", ["SIGHUP", pytest.param("the old one stops", marks=pytest.mark.slow)]
)
def test_a_stop_during_a_reload_is_a_stop(after: str, start: Start, itsm: Itsm) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    unit = start(itsm.url, server={"stop_after": 5})
    unit.post("note", note(ticket()))
    itsm.wait_for(1)  # so that the old one takes a moment to end
    unit.signal(signal.SIGHUP)
    if after == "the old one stops":
        until(lambda: unit.lines("stopping"), "the old one stops")
    unit.signal(signal.SIGTERM)
    until(lambda: unit.lines("stopping"), "it stops")
    until(lambda: not children(unit), "the trial of the new configuration is over")
    go.set()
    assert unit.wait(10) == 0
    assert unit.lines("stopped")


# ---- Sockets from outside ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hd_itsm.socket", "unknown", ""])
def test_a_socket_that_the_manager_made_is_used_as_it_is(
    name: str, tmp_path: Path, manager: Manager, itsm: Itsm
) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listener.getsockname()[1]
    manager.kept = listener
    with socket.create_connection(("127.0.0.1", port), timeout=10) as early:
        body = json.dumps(note("early")).encode()
        head = f"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        early.sendall(head.encode() + body)  # before anybody runs
        config = with_notes(itsm.url, server={"listen": f"127.0.0.1:{free_port()}"})
        unit = Unit(tmp_path, config, manager)
        unit.names = name
        with unit:
            assert unit.port == port
            assert early.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert unit.post("note", note(ticket()), wait=10).state == "delivered"
            unit.reload()
            assert unit.port == port
            assert unit.post("note", note(ticket()), wait=10).state == "delivered"


ODD = {
    "of another process": {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
    "without a number": {"LISTEN_PID": "", "LISTEN_FDS": "1"},
    "none at all": {"LISTEN_FDS": "0"},
    "no number": {"LISTEN_FDS": "one"},
    "more than there are": {"LISTEN_FDS": "3"},
}


@pytest.mark.parametrize("name", ODD)
def test_a_listen_variable_is_no_obstacle_when_it_is(
    name: str, tmp_path: Path, manager: Manager, itsm: Itsm
) -> None:
    """As it stays in an environment that somebody handed down."""
    words = "; ".join(f"{key}={value}; export {key}" for key, value in ODD[name].items())
    command = f'LISTEN_PID=$$; export LISTEN_PID; {words}; exec "$@"'
    unit = Unit(tmp_path, with_notes(itsm.url), manager)
    with (tmp_path / "stderr.log").open("ab") as log:
        unit._process = subprocess.Popen(
            ["sh", "-c", command, "sh", sys.executable, str(PROGRAM)],
            cwd=tmp_path,
            env=unit._environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    manager.main = unit._process.pid
    try:
        until(lambda: manager.heard("READY") or unit.log, "it says something")
        manager.wait("READY", timeout=5)
        unit.port = int(unit.control["port"])
        assert unit.post("note", note(ticket()), wait=10).state == "delivered"
    finally:
        if unit._running().poll() is None:
            unit.stop()


# ---- The end -----------------------------------------------------------------------------------

STOP_AFTER = 1
QUICK = ["ok", "silence", "endless-chunks", "503"]
FURTHER = [
    "drip-headers", "drip-body", "drip-chunks", "endless-continue", "huge", "reset", "hang-up",
    "nonsense", "take-then-silence", "401",
]  # fmt: skip


@pytest.mark.parametrize(
    "mode", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in FURTHER)]
)
def test_sigterm_ends_within_stop_after_with_0_while_the_itsm_says(
    mode: str, start: Start, itsm: Itsm
) -> None:
    itsm.answer = MODES[mode]()
    unit = start(itsm.url, server={"stop_after": STOP_AFTER}, itsm={"timeout": 30.0, "workers": 8})
    for _ in range(10):
        assert unit.post("itsm_new", opening(ticket())).status == 200
    itsm.wait_for(1 if mode in ("401", "503") else 3)
    began = monotonic()
    assert unit.stop() == 0
    assert monotonic() - began < STOP_AFTER + 1.5
    unit.start()  # nothing is lost by it
    counts = unit.status()["counts"]
    assert sum(counts.values()) == 10


def test_sigterm_ends_within_stop_after_while_clients_hold_on(start: Start, itsm: Itsm) -> None:
    itsm.answer = silence()
    unit = start(itsm.url, server={"stop_after": STOP_AFTER}, itsm={"timeout": 30.0})
    with ExitStack() as stack:
        half = b"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"
        for said in (b"", b"POST /no", half):
            stack.enter_context(unit.connect()).sendall(said)
        waiting = threading.Thread(
            target=_shout_and_wait, args=(unit, note(ticket())), daemon=True
        )
        waiting.start()
        itsm.wait_for(1)
        began = monotonic()
        assert unit.stop() == 0
        assert monotonic() - began < STOP_AFTER + 1.5
        waiting.join(5)


def _shout_and_wait(unit: Unit, body: object) -> None:
    with suppress(OSError, http.client.HTTPException):
        unit.post("note", body, wait=30)


# ---- The beginning -----------------------------------------------------------------------------


def imports() -> float:
    """Seconds that Python takes to import the three libraries."""
    began = monotonic()
    subprocess.run([sys.executable, "-c", "import bottle, waitress, urllib3"], check=True)
    return monotonic() - began


def ready_in(unit: Unit) -> float:
    """Seconds from the start to READY."""
    began = monotonic()
    unit.start()
    return unit.manager.wait("READY", began).at - began


def test_an_empty_file_is_ready_in_half_a_second(tmp_path: Path, itsm: Itsm) -> None:
    ours, bare = [], []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        bare.append(imports())
        with Manager() as manager:
            unit = Unit(folder, with_notes(itsm.url), manager)
            ours.append(ready_in(unit))
            assert unit.stop() == 0
    limit = max(0.5, 12 * min(bare))  # as one file it imports twice: once to leave its source
    assert min(ours) < limit, f"{ours} s, the imports alone {bare} s"


@pytest.mark.slow
def test_with_100_000_waiting_events_it_is_ready_in_two_seconds(
    start: Start, itsm: Itsm, manager: Manager
) -> None:
    unit = start(itsm.url)
    assert unit.cli("pause").code == 0
    assert unit.post("note", note(ticket())).event == 1
    assert unit.stop() == 0
    multiply(unit.database, 99_999)
    bare = imports()
    took = ready_in(unit)
    assert took < max(2.0, 12 * bare), f"{took} s, the imports alone {bare} s"
    expected = "100000 pending"
    until(lambda: expected in str(manager.heard("STATUS")[-1].value("STATUS")), expected)
    began = monotonic()
    unit.reload()
    assert manager.wait("READY", began).at - began < max(3.0, 16 * bare)
    unit.kill()


# ---- The process -------------------------------------------------------------------------------


def memory(pid: int) -> float:
    """What a process holds of memory, in MB."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        missing("/proc")
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def bare() -> float:
    """What Python and the three libraries need, in MB."""
    command = [sys.executable, "-c", "import bottle, waitress, urllib3; print(); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return memory(process.pid)


@pytest.mark.parametrize("name", ["hd_itsm.py", "carrier", "it's a carrier.v2.py"])
def test_started_as_one_file_it_keeps_no_syntax_tree_in_memory_and_nothing_beside_the_file(
    name: str, itsm: Itsm, manager: Manager, tmp_path: Path, bare: float
) -> None:
    place, work = tmp_path / "opt", tmp_path / "work"
    place.mkdir()
    work.mkdir()
    versioned(place / name, "1.0.1")
    words = ("--config", "hd_itsm.toml", "serve")
    with Unit(work, with_notes(itsm.url), manager, {}, place / name, words) as unit:
        before = unit.pid
        for version in ("1.0.1", "9.9.9"):
            unit.post("note", note(ticket()), wait=10)
            assert itsm.requests[-1].headers.get("User-Agent") == f"hd_itsm/{version}"
            assert memory(unit.pid) < 1.5 * bare
            shown = Path(f"/proc/{unit.pid}/cmdline").read_text().split("\0")
            assert shown[-5:-1] == [str(place / name), *words]
            assert [one.name for one in place.iterdir()] == [name]
            versioned(place / name, "9.9.9")
            unit.reload()
        assert unit.pid == before


# ---- Secrets -----------------------------------------------------------------------------------

TOKEN = "Bearer 8d1c-token-of-the-itsm"
DOOR = "b37e-token-of-the-helpdesk"
PAGE = "55aa-password-of-the-page"


@contextmanager
def secretive(folder: Path, itsm: Itsm, manager: Manager) -> Iterator[Unit]:
    """A unit whose secrets come as a credential, from a file, and in the configuration."""
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "hd_itsm.token").write_text(TOKEN)
    (folder / "door.token").write_text(DOOR)
    config = with_notes(
        itsm.url,
        itsm={"authorization": {"credential": "hd_itsm.token"}},
        access={"token": {"file": "door.token"}},
        server={"admin_password": PAGE},
    )
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    with Unit(folder, config, manager, environ) as unit:
        yield unit


def seen_from_outside(unit: Unit) -> str:
    """What any user of the machine, or its manager, is shown of the process."""
    place = Path(f"/proc/{unit.pid}")
    if not place.exists():
        missing("/proc")
    texts = [(place / name).read_bytes() for name in ("cmdline", "comm", "environ")]
    for thread in (place / "task").iterdir():
        texts.append((thread / "comm").read_bytes())
    rows = [row for one in unit.manager.all() for row in one.rows]
    return b"\n".join(texts).decode() + "\n".join(rows) + unit.log


def test_neither_title_nor_environment_nor_status_shows_a_secret_or_a_ticket(
    tmp_path: Path, itsm: Itsm, manager: Manager
) -> None:
    with secretive(tmp_path, itsm, manager) as unit:
        for _ in range(2):
            sent = unit.post(
                "note",
                note(ticket(), text="secret of the ticket"),
                {"Authorization": f"Bearer {DOOR}"},
                wait=10,
            )
            assert (sent.status, sent.state) == (200, "delivered")
            shown = seen_from_outside(unit)
            for secret in (TOKEN, TOKEN.split()[1], DOOR, PAGE, unit.control["key"]):
                assert secret not in shown
            assert "secret of the ticket" not in shown
            assert "hd_itsm" in shown  # the check looks at something
            unit.reload()
        assert itsm.requests[-1].headers["Authorization"] == TOKEN


def test_a_secret_in_a_broken_configuration_is_not_told_by_a_refused_reload(
    tmp_path: Path, itsm: Itsm, manager: Manager
) -> None:
    with secretive(tmp_path, itsm, manager) as unit:
        unit.configure(
            settings(itsm.url, itsm={"authorization": TOKEN, "urll": 1}, access={"token": DOOR})
        )
        unit.refused_reload()
        (tmp_path / "hd_itsm.toml").write_text(f'[access]\ntoken = "{DOOR}\n')
        unit.refused_reload()
        assert DOOR not in seen_from_outside(unit)
        assert TOKEN not in seen_from_outside(unit)


# ---- The unit ----------------------------------------------------------------------------------


def directives() -> dict[str, list[str]]:
    """The lines of the unit: name -> its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").split("\n"):
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_asks_for_what_the_program_does() -> None:
    unit = directives()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert unit["FileDescriptorStoreMax"] == ["1"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["Restart"] == ["always"]
    assert unit["DynamicUser"] == ["yes"]
    assert unit["StateDirectory"] == ["hd_itsm"]


def seconds(text: str) -> float:
    """A span as the unit writes it."""
    for end, factor in (("min", 60.0), ("ms", 0.001), ("s", 1.0)):
        if text.endswith(end):
            return float(text.removesuffix(end)) * factor
    return float(text)


def test_the_units_times_leave_room_for_the_programs_own() -> None:
    from rows import OPTIONS  # the one figure both must agree on

    stop_after = next(float(row.option.default) for row in OPTIONS if row.key == "stop_after")
    unit = directives()
    assert seconds(unit["TimeoutStopSec"][0]) >= stop_after + 5
    assert (
        seconds(unit["WatchdogSec"][0]) >= stop_after + 15
    )  # a reload may feed nothing meanwhile
    assert seconds(unit["RestartSec"][0]) < PATIENCE


def test_the_unit_holds_no_secret() -> None:
    unit = directives()
    assert "Environment" not in unit
    assert "SetCredential" not in unit
    assert unit["LoadCredential"] == ["hd_itsm.token:/etc/hd_itsm.token"]
    assert not any(word in " ".join(unit["ExecStart"]) for word in ("--itsm-url", "token", "key"))
