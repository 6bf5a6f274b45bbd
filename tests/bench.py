"""How fast hd_itsm is, as ratios against bare programs of the same three libraries.

    python tests/bench.py                      # everything; ten minutes and more
    python tests/bench.py --quick              # smaller and rougher, about a minute
    python tests/bench.py --only intake whole  # some measures; --help names them

Seconds belong to a machine, ratios travel: each figure is taken in the same run as its bare
counterpart, in turns, and the ratio is the median of the rounds' ratios (smallest to largest in
brackets). Everything runs on loopback in processes of its own: the program from its file, the
bare programs, the stand-in ITSM and the load generator (both one selectors loop over raw sockets
with prebuilt messages; the first measure shows how far they are from being the bottleneck).
Nothing is written but a temporary folder.

Read it downwards: what is sent, the roles (each a process), the programs under test, the measures.

The bare programs, all with as many threads as hd_itsm has by default:
  echo   Bottle on Waitress, answers the JSON it was sent
  relay  the same, but puts it in a queue; threads post it with urllib3; nothing is stored
  store  the same as echo, but commits each webhook to SQLite on its own (WAL, FULL)
  loop   threads post prebuilt bodies with urllib3; no server
  idle   imports the three libraries and serves
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import re
import selectors
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from crowd import multiply

HERE = pathlib.Path(__file__).resolve()
PROGRAM = HERE.parent.parent / "hd_itsm.py"
CONNECTIONS = 8
WITH_BYTECODE = {
    name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
FSYNC = 0.005  # seconds added to every fsync for the slow disk
FIRST_TICKET = 10_000_000  # all tickets have eight digits: as texts they are in order too


class Trouble(Exception):
    """A measure could not be taken, and why."""


# ---- What is sent -------------------------------------------------------------------------------

CONTENTS = (
    "3층 복합기에서 용지가 계속 걸립니다.\n전원을 껐다 켜도 같습니다. 어제 오후부터 그렇습니다.\n"
    "The display says: paper jam in tray 2. We print the weekly report on it every Monday."
)


def webhook(kind: str, ticket: int, mark: str) -> bytes:
    """A whole request as the helpdesk sends it. `mark` makes it differ from an earlier one."""
    fields = {"ticket_id": str(ticket)}
    if kind == "new":
        fields |= {"writer": "jimin.park", "category": "OA기기"}
        fields |= {"subject": f"복합기 용지 걸림 {ticket}", "contents": CONTENTS}
    else:
        fields |= {"technician": f"sora.kim{mark}"}
    body = json.dumps(fields, ensure_ascii=False).encode()
    path = {"new": "/itsm_new", "assign": "/itsm_ass"}[kind]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: helpdesk/1.0\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def itsm_body(ticket: str) -> dict[str, Any]:
    """What the bare programs post to the ITSM: as large as what hd_itsm posts."""
    return {
        "code": "000",
        "item_id": "",
        "service": "",
        "req_user_id": "jimin.park",
        "reg_user_id": "jimin.park",
        "request_purpose": "OA기기",
        "priority": 2,
        "end_hop_date": "2026-12-01",
        "title": f"복합기 용지 걸림 {ticket}",
        "contents": CONTENTS,
        "after_improvement": "없음",
    }


LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)


def message_end(buffer: bytearray) -> int:
    """Where the first HTTP message in `buffer` ends, 0 where it is not whole."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return 0
    length = LENGTH.search(buffer, 0, head)
    end = head + 4 + (int(length[1]) if length else 0)
    return end if len(buffer) >= end else 0


# ---- Roles: the processes around the program under test -----------------------------------------


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone or closes its pipe."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class Line:
    """One keep-alive connection of the load generator."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.began = 0.0


class Load:
    """Sends prebuilt requests over connections, as fast as they are answered or at a rate."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self.requests = iter(requests)
        self.total = len(requests)
        self.lines = [Line(port) for _ in range(connections)]
        self.selector = selectors.DefaultSelector()
        for line in self.lines:
            self.selector.register(line.sock, selectors.EVENT_READ, line)
        self.latencies: list[float] = []
        self.refused: list[str] = []

    def send(self, line: Line, began: float) -> None:
        line.began = began
        line.sock.sendall(next(self.requests))

    def answered(self, timeout: float | None) -> Iterator[Line]:
        """Lines whose answer came in whole."""
        for key, _ in self.selector.select(timeout):
            line: Line = key.data
            data = line.sock.recv(65536)
            if not data:
                raise Trouble("the server closed a connection under load")
            line.buffer += data
            if message_end(line.buffer):
                self.latencies.append(time.monotonic() - line.began)
                if not line.buffer.startswith(b"HTTP/1.1 200"):
                    self.refused.append(line.buffer[:300].decode("utf-8", "replace"))
                line.buffer.clear()
                yield line

    def flat_out(self) -> None:
        for line in self.lines[: self.total]:
            self.send(line, time.monotonic())
        left = self.total - min(self.total, len(self.lines))
        while len(self.latencies) < self.total:
            for line in self.answered(None):
                if left:
                    left -= 1
                    self.send(line, time.monotonic())

    def paced(self, rate: float) -> None:
        """A request every 1/rate s whether or not earlier ones were answered; waiting counts."""
        idle, waiting = deque(self.lines), deque[float]()
        begin = time.monotonic()
        due = (begin + number / rate for number in range(self.total))
        upcoming = next(due, None)
        while len(self.latencies) < self.total:
            now = time.monotonic()
            while upcoming is not None and upcoming <= now:
                waiting.append(now)
                upcoming = next(due, None)
            while waiting and idle:
                self.send(idle.popleft(), waiting.popleft())
            left = None if upcoming is None else max(0.0, upcoming - time.monotonic())
            idle.extend(self.answered(left))


def role_load(arguments: Sequence[str]) -> None:
    """port kind first step count mark connections rate: prints how it went as JSON."""
    port, kind, first, step, count, mark, connections, rate = arguments
    requests = [
        webhook(kind, int(first) + number * int(step), mark) for number in range(int(count))
    ]
    load = Load(int(port), requests, int(connections))
    began = time.monotonic()
    load.paced(float(rate)) if float(rate) else load.flat_out()
    found = {"began": began, "seconds": time.monotonic() - began, "latencies": load.latencies}
    print(json.dumps({**found, "refused": load.refused[:3]}))


class StandIn:
    """An ITSM that always takes the ticket, `latency` seconds after it was asked."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.later: list[tuple[float, int, socket.socket, bytes]] = []
        self.asked = self.answered = 0
        self.first = self.last = 0.0

    def run(self) -> NoReturn:
        while True:
            timeout = max(0.0, self.later[0][0] - time.monotonic()) if self.later else None
            for key, _ in self.selector.select(timeout):
                if key.data is None:
                    sock, _ = self.listener.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(sock, selectors.EVENT_READ, bytearray())
                else:
                    self.readable(key.fileobj, key.data)  # type: ignore[arg-type]
            while self.later and self.later[0][0] <= time.monotonic():
                _, _, sock, answer = heapq.heappop(self.later)
                self.answer(sock, answer)

    def readable(self, sock: socket.socket, buffer: bytearray) -> None:
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(sock)
            sock.close()
        buffer += data
        while end := message_end(buffer):
            asks_count = buffer.startswith(b"GET")
            del buffer[:end]
            if asks_count:
                found = {"count": self.answered, "first": self.first, "last": self.last}
                self.write(sock, json.dumps(found).encode())
                continue
            self.asked += 1
            self.first = self.first or time.monotonic()
            content = b'{"result":{"request_id":"R-%d"}}' % self.asked
            if self.latency:
                due = time.monotonic() + self.latency
                heapq.heappush(self.later, (due, self.asked, sock, content))
            else:
                self.answer(sock, content)

    def answer(self, sock: socket.socket, content: bytes) -> None:
        self.answered += 1
        self.last = time.monotonic()
        self.write(sock, content)

    def write(self, sock: socket.socket, content: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with contextlib.suppress(OSError):
            sock.sendall(head % len(content) + content)


def role_itsm(arguments: Sequence[str]) -> None:
    """latency: prints its port and answers for ever; GET tells how many it answered."""
    stand_in = StandIn(float(arguments[0]))
    end_with_parent()
    print(stand_in.listener.getsockname()[1], flush=True)
    stand_in.run()


def role_hang(arguments: Sequence[str]) -> None:
    """port count: so many clients that are silent, drip a head, or never read; prints "ready"."""
    port, count = int(arguments[0]), int(arguments[1])
    socks: list[socket.socket | None] = [None] * count
    end_with_parent()
    drip = itertools.cycle(b"X-Drip: and so on and so on and so on\r\n")
    for turn in itertools.count():
        letter = bytes([next(drip)])
        for place, sock in enumerate(socks):
            try:
                if sock is None:
                    sock = socks[place] = socket.create_connection(("127.0.0.1", port), timeout=5)
                    sock.setblocking(False)
                    if place % 3:
                        sock.send(b"POST /itsm_new HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                    if place % 3 == 2:
                        sock.send(b"Content-Length: 2\r\n\r\n{}")
                elif place % 3 == 1:
                    sock.send(letter)
            except OSError:
                if sock is not None:
                    sock.close()
                socks[place] = None
        if turn == 0:
            print("ready", flush=True)
        time.sleep(1.0)


def serve_bare(handler: Callable[[], Any], threads: int) -> None:
    """A bare Bottle application on Waitress; prints its port and serves for ever."""
    import logging

    import bottle
    import waitress

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    site = bottle.Bottle()
    for path in ("/itsm_new", "/itsm_ass"):
        site.route(path, "POST", handler)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    end_with_parent()
    print(listener.getsockname()[1], flush=True)
    waitress.serve(site, sockets=[listener], threads=threads, _quiet=True)


def role_echo(arguments: Sequence[str]) -> None:
    """threads"""
    import bottle

    serve_bare(lambda: bottle.request.json, int(arguments[0]))


def role_idle(arguments: Sequence[str]) -> None:
    """threads"""
    import urllib3

    urllib3.PoolManager()
    role_echo(arguments)


def role_relay(arguments: Sequence[str]) -> None:
    """threads, workers, port of the ITSM"""
    import queue

    import bottle
    import urllib3

    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    ids: dict[str, str] = {}
    url = f"http://127.0.0.1:{arguments[2]}/api"

    def take() -> Any:
        found = bottle.request.json
        waiting.put(found)
        return found

    def work() -> None:
        http = urllib3.PoolManager(maxsize=1, retries=False)
        while True:
            ticket = waiting.get()["ticket_id"]
            body = json.dumps(itsm_body(ticket), ensure_ascii=False).encode()
            answer = http.request("POST", url, body=body, headers=HEADERS)
            ids[ticket] = answer.json()["result"]["request_id"]

    for _ in range(int(arguments[1])):
        threading.Thread(target=work, daemon=True).start()
    serve_bare(take, int(arguments[0]))


HEADERS = {"Content-Type": "application/json", "Authorization": "Basic YmVuY2g6YmVuY2g="}


def role_store(arguments: Sequence[str]) -> None:
    """threads, path of its file"""
    import bottle

    db = sqlite3.connect(arguments[1], isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE events (event INTEGER PRIMARY KEY, ticket TEXT, raw BLOB)")
    db.execute("CREATE INDEX events_ticket ON events (ticket)")
    lock = threading.Lock()

    def take() -> Any:
        found = bottle.request.json
        raw = bottle.request.body.getvalue()
        with lock:  # in autocommit each statement is a transaction
            db.execute("INSERT INTO events (ticket, raw) VALUES (?, ?)", (found["ticket_id"], raw))
        return found

    serve_bare(take, int(arguments[0]))


def role_loop(arguments: Sequence[str]) -> None:
    """workers, port of the ITSM, count: prints the seconds it took as JSON."""
    import urllib3

    workers, port, count = map(int, arguments)
    url = f"http://127.0.0.1:{port}/api"
    bodies = iter(
        [
            json.dumps(itsm_body(str(number)), ensure_ascii=False).encode()
            for number in range(FIRST_TICKET, FIRST_TICKET + count)
        ]
    )

    def work() -> None:
        http = urllib3.PoolManager(maxsize=1, retries=False)
        for body in bodies:  # taking the next element of a list's iterator is atomic
            http.request("POST", url, body=body, headers=HEADERS)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": time.monotonic() - began}))


def role_reading(arguments: Sequence[str]) -> None:
    """program: a JSON line for each timing of what reads bodies and HTML (see HOSTILE)."""
    program = load_program(arguments[0])
    known = frozenset({"ticket_id", "writer", "category", "subject", "contents"})
    end_with_parent()

    def body(text: str) -> None:
        raw = text.encode()
        with contextlib.suppress(program.Unreadable):
            program.read_body(raw, known)

    for what, call, patterns in (("body", body, BODIES), ("html", program.html_to_text, HTML)):
        for name, (start, piece, end) in patterns.items():
            for size in SIZES[what]:
                text = start + piece * ((size - len(start) - len(end)) // len(piece)) + end
                began, crash = time.perf_counter(), ""
                try:
                    call(text)
                except Exception as error:  # a measure of its own: none may escape
                    crash = f"{type(error).__name__}: {error}"
                seconds = time.perf_counter() - began
                print(json.dumps([what, name, crash, seconds]), flush=True)
                if seconds > 3 or crash:
                    break
    good = json.dumps({"ticket_id": "1", "contents": 'a "word" ' * (SIZES["body"][-1] // 11)})
    began = time.perf_counter()
    for _ in range(5):
        json.loads(good)
    print(json.dumps(["good", "", "", (time.perf_counter() - began) / 5]), flush=True)


FIELDS = '{"ticket_id":"1","writer":"w","category":"c","subject":"s","contents":"'
SIZES = {"body": (1 << 17, 1 << 19, (1 << 20) - 8), "html": (45_000, 90_000, 180_000, 360_000)}
BODIES = {  # name: beginning, what is repeated, end; what requesters paste, and what attackers try
    "raw quotes": (FIELDS, 'he said "no", twice\nC:\\new\\table ', '"}'),
    "line breaks": (FIELDS, "a line of plain text\r\n", '"}'),
    "HTML escapes": (FIELDS.replace('"', "&quot;"), "x &lt;b&gt; ", "&quot;}"),
    "raw form": ("ticket_id=1&writer=w&contents=", "a & b = c, ", ""),
    "known keys": (FIELDS, '","subject":"', '"}'),
    "quotes": (FIELDS, '"', '"}'),
    "backslashes": (FIELDS, "\\", '"}'),
    "open brackets": (FIELDS + '",', "{[", ""),
    "spaces": (FIELDS + '"', " ", "x"),
    "commas": (FIELDS + '",', '"",', "x"),
    "form keys": ("", "ticket_id=&", "\n"),
    "equal signs": ("a", "=", "\n"),
    "digits": ('{"ticket_id":', "9", ""),
}
HTML = {
    "a mail": ("<html><body>", '<p>Hello <b>there</b>, <a href="http://x/">see</a>&nbsp;</p>', ""),
    "open tags": ("", "<a ", ""),
    "open comments": ("", "<!--", ""),
    "declarations": ("", "<![", ""),
    "quotes in tags": ("", "<a b=\"'", ""),
    "open links": ("", '<a href="x', ""),
    "scripts": ("", "<script>", ""),
    "closing tags": ("", "</a", ""),
    "less-than": ("", "<", ""),
    "references": ("<b>", "&#1", ""),
    "breaks": ("", "<br>\n \n", ""),
    "spaces": ("<p>", " \n", "x"),
    "long words": ("<p>", "&amp", ""),
}


# ---- The programs under test --------------------------------------------------------------------


def load_program(path: str | pathlib.Path) -> ModuleType:
    """hd_itsm as a module; importing it does nothing."""
    spec = importlib.util.spec_from_file_location("hd_itsm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hd_itsm"] = module
    spec.loader.exec_module(module)
    return module


def until(what: Callable[[], Any], seconds: float, words: str, pause: float = 0.01) -> Any:
    """The first true value of `what`. Raises Trouble after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise Trouble(f"{words} not within {seconds:.0f} s")
        time.sleep(pause)
    return found


def get(port: int, path: str) -> dict[str, Any]:
    """The JSON at `path` of a server on loopback. Raises OSError where nobody listens."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        buffer = bytearray()
        while not (end := message_end(buffer)):
            data = sock.recv(65536)
            if not data:
                raise OSError("closed in the middle")
            buffer += data
    found: dict[str, Any] = json.loads(buffer[buffer.find(b"\r\n\r\n") + 4 : end])
    return found


class Child:
    """A process of ours that ends with the `with` block."""

    process: subprocess.Popen[str]

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it: politely, then not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+([0-9]+) kB", status)
        return int(found[1]) / 1024 if found else 0.0


class Role(Child):
    """A role of this file as a process."""

    def __init__(self, role: str, *arguments: object, environ: dict[str, str] | None = None):
        command = [sys.executable, str(HERE), "--role", role, *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise Trouble(f"{self.process.args!r} ended early")
        return line

    @functools.cached_property
    def port(self) -> int:
        """The port it printed first."""
        return int(self.line())


class Itsm(Role):
    """The stand-in ITSM."""

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__("itsm", latency)

    def __enter__(self) -> Itsm:
        return self

    def count(self) -> tuple[int, float, float]:
        """How many it answered; when it was first asked and last answered (monotonic)."""
        found = get(self.port, "/count")
        return found["count"], found["first"], found["last"]

    def wait_for(self, count: int, seconds: float = 300.0) -> float:
        """When the answer number `count`, or a later one, was given."""
        until(lambda: self.count()[0] >= count, seconds, f"{count} requests at the ITSM")
        return self.count()[2]


class Ours(Child):
    """hd_itsm, run from its file as a user would."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        itsm: int,
        workers: int = 0,
        environ: dict[str, str] | None = None,
        keep_days: int = 30,
        installed: bool = False,
    ) -> None:
        self.bench, self.installed = bench, installed
        self.environ = {**WITH_BYTECODE, **(environ or {})}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.file = bench.folder / f"{name}.db"
        self.config = bench.folder / f"{name}.toml"
        self.config.write_text(
            f'[server]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[itsm]\nurl = "http://127.0.0.1:{itsm}/api"\nworkers = {workers or bench.workers}\n'
            f'authorization = "Basic YmVuY2g6YmVuY2g="\n'
            f'[store]\npath = "{self.file}"\nkeep_days = {keep_days}\n'
        )
        self.start()

    def __enter__(self) -> Ours:
        return self

    def command(self, *words: str) -> list[str]:
        program = ["-m", "hd_itsm"] if self.installed else [str(self.bench.program)]
        return [sys.executable, *program, "--config", str(self.config), *words]

    def start(self) -> None:
        """Starts it; `ready_after` seconds later it answered."""
        log = self.config.with_suffix(".log")
        began = time.monotonic()
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                self.command("serve"),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
                env=self.environ,
                cwd=self.bench.folder,  # where `-m` finds it
            )

        def ready() -> bool:
            if self.process.poll() is not None:
                raise Trouble(f"hd_itsm ended at once: {log.read_text()[-500:]}")
            try:
                return bool(self.health())
            except OSError:
                return False

        until(ready, 120, "an answer from hd_itsm", 0.005)
        self.ready_after = time.monotonic() - began

    def health(self) -> dict[str, Any]:
        return get(self.port, "/health")

    def cli(self, *words: str) -> str:
        """Runs a command against it; what it printed."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60)
        if done.returncode not in (0, 1) or done.stderr:
            raise Trouble(f"{words}: {done.stderr}")
        return done.stdout

    def settled(self, seconds: float = 300.0) -> float:
        """When nothing was pending any more (monotonic)."""
        until(lambda: self.health()["pending"] == 0, seconds, "an empty line", 0.002)
        now, health = time.monotonic(), self.health()
        if health["held"] or health["failed"]:
            raise Trouble(f"not all was delivered: {health}")
        return now


class Loaded(NamedTuple):
    """What the load generator saw."""

    began: float
    rate: float
    latencies: list[float]


# ---- The measures -------------------------------------------------------------------------------


@dataclass
class Row:
    """A line of the table."""

    measure: str
    ours: str
    bare: str = ""
    ratio: str = ""
    goal: str = ""
    met: bool | None = None


@dataclass
class Bench:
    """The run: sizes, the program, the temporary folder, the tickets used so far."""

    quick: bool
    program: pathlib.Path
    folder: pathlib.Path
    threads: int = 8
    workers: int = 4
    tickets: Iterator[int] = field(default_factory=lambda: itertools.count(50_000_000, 200_000))
    marks: Iterator[int] = field(default_factory=itertools.count)

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def load(
        self,
        port: int,
        count: int,
        kind: str = "new",
        first: int = 0,
        step: int = 1,
        connections: int = CONNECTIONS,
        rate: float = 0.0,
    ) -> Loaded:
        """Sends `count` webhooks, each for a ticket of its own, from a process of its own."""
        first, mark = first or next(self.tickets), next(self.marks)
        with Role("load", port, kind, first, step, count, mark, connections, rate) as role:
            found = json.loads(role.line())
        if found["refused"]:
            raise Trouble(f"refused under load: {found['refused'][0]}")
        return Loaded(found["began"], count / found["seconds"], found["latencies"])


def ratio(ours: Sequence[float], bare: Sequence[float]) -> tuple[float, str]:
    """The median of the rounds' ratios, and as text with the smallest and largest."""
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    middle = statistics.median(ratios)
    return middle, f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def rates(measure: str, ours: Sequence[float], bare: Sequence[float], least: float) -> Row:
    """A row of two rates and the least ratio wanted."""
    middle, text = ratio(ours, bare)
    mine, theirs = (f"{statistics.median(some):,.0f}/s" for some in (ours, bare))
    return Row(measure, mine, theirs, text, f">= {least:.2f}", middle >= least)


def p99(latencies: Sequence[float]) -> float:
    """The 99th percentile in milliseconds: the median of that of stretches of 250.

    One stall of a machine that others use too then spoils one stretch, not the figure.
    """
    stretches = [latencies[at : at + 250] for at in range(0, len(latencies), 250)]
    return 1000 * statistics.median(
        sorted(some)[int(len(some) * 0.99)] for some in stretches if len(some) >= 50
    )


def measure_ceiling(bench: Bench) -> Iterator[Row]:
    """What the load generator and the stand-in ITSM reach with each other."""
    with Itsm() as itsm:
        rate = bench.load(itsm.port, bench.size(60_000, 10_000)).rate
    yield Row("generator against ITSM", f"{rate:,.0f}/s", "", "", "(a ceiling)")


def measure_intake(bench: Bench) -> Iterator[Row]:
    """Stored, synced, answered; deliveries are paused."""
    count = bench.size(8_000, 800)
    ours: list[float] = []
    bare: list[float] = []
    with Itsm() as itsm, Ours(bench, "intake", itsm.port) as mine, bare_echo(bench) as echo:
        mine.cli("pause")
        for port in (mine.port, echo.port):
            bench.load(port, 500)
        for _ in range(bench.rounds):
            ours.append(bench.load(mine.port, count).rate)
            bare.append(bench.load(echo.port, count).rate)
    yield rates("intake, 8 connections", ours, bare, 0.80)


def bare_echo(bench: Bench) -> Role:
    return Role("echo", bench.threads)


def measure_single(bench: Bench) -> Iterator[Row]:
    """One webhook at a time: what the store adds to the median answer."""
    count = bench.size(1_000, 200)
    ours: list[float] = []
    bare: list[float] = []
    with Itsm() as itsm, Ours(bench, "single", itsm.port) as mine, bare_echo(bench) as echo:
        mine.cli("pause")
        for port in (mine.port, echo.port):
            bench.load(port, 100, connections=1)
        for _ in range(bench.rounds):
            for port, found in ((mine.port, ours), (echo.port, bare)):
                latencies = bench.load(port, count, connections=1).latencies
                found.append(1000 * statistics.median(latencies))
    added = statistics.median(one - other for one, other in zip(ours, bare, strict=True))
    mine_, theirs = (f"{statistics.median(some):.2f} ms" for some in (ours, bare))
    goal = "<= +0.5 ms"
    yield Row("one at a time, median", mine_, theirs, f"+{added:.2f} ms", goal, added <= 0.5)


def measure_whole(bench: Bench) -> Iterator[Row]:
    """First webhook to last delivery recorded."""
    count = bench.size(5_000, 600)
    ours: list[float] = []
    bare: list[float] = []
    with (
        Itsm() as itsm,
        Itsm() as other,
        Ours(bench, "whole", itsm.port) as mine,
        Role("relay", bench.threads, bench.workers, other.port) as relay,
    ):
        for _ in range(bench.rounds + 1):
            ours.append(whole_way(bench, mine, itsm, count))
            before = other.count()[0]
            began = bench.load(relay.port, count).began
            bare.append(count / (other.wait_for(before + count) - began))
    yield rates("whole way, 8 connections", ours[1:], bare[1:], 0.90)  # the first warms up


def whole_way(bench: Bench, mine: Ours, itsm: Itsm, count: int, **load: Any) -> float:
    """Webhooks a second from the first one sent to the last delivery recorded."""
    before = itsm.count()[0]
    began = bench.load(mine.port, count, **load).began
    itsm.wait_for(before + count)
    rate = count / (mine.settled() - began)
    if itsm.count()[0] != before + count:
        raise Trouble(f"the ITSM got {itsm.count()[0] - before} requests for {count} events")
    return rate


def measure_p99(bench: Bench) -> Iterator[Row]:
    """At 50 webhooks a second: ITSM alive, dead, slow; and with 1,000 slow clients.

    "Unchanged" is read as at most twice that with the ITSM alive: a p99 is not steadier.
    """
    seconds = bench.size(5, 1)
    found: dict[str, list[float]] = {
        word: [] for word in ("alive", "dead", "slow (2 s)", "1,000 slow clients", "bare")
    }
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        closed = enter(socket.socket())
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        alive, slow = enter(Itsm()), enter(Itsm(2.0))
        crowded = enter(Ours(bench, "crowded", alive.port))
        ports = {
            "alive": enter(Ours(bench, "alive", alive.port)).port,
            "dead": enter(Ours(bench, "dead", closed.getsockname()[1])).port,
            "slow (2 s)": enter(Ours(bench, "slow", slow.port)).port,
            "1,000 slow clients": crowded.port,
            "bare": enter(bare_echo(bench)).port,
        }
        for number in range(bench.size(5, 1) + 1):
            for word, port in ports.items():
                with contextlib.ExitStack() as crowd:
                    if port == crowded.port:
                        crowd.enter_context(Role("hang", port, 1000)).line()
                        crowded.health()  # what they asked is answered
                    load = bench.load(port, 25 if number == 0 else 50 * seconds, rate=50)
                    if number:  # the first turn only warms up
                        found[word] += load.latencies
    quiet = p99(found["alive"])
    for word in ("alive", "dead", "slow (2 s)", "1,000 slow clients"):
        mine = p99(found[word])
        other = p99(found["bare"]) if word == "alive" else quiet
        beside = "" if word == "alive" else " (alive)"
        yield Row(
            f"p99 at 50/s, {word if 'clients' in word else 'ITSM ' + word}",
            f"{mine:.1f} ms",
            f"{other:.1f} ms{beside}",
            f"{mine / other:.2f}",
            "<= 25 ms" if word == "alive" else "<= 25 ms, 2.00",
            mine <= 25 and (word == "alive" or mine <= 2 * other),
        )


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int late(const char *name, int fd)
{
    struct timespec wait = {0, %d};
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    nanosleep(&wait, 0);
    return real(fd);
}
int fsync(int fd) { return late("fsync", fd); }
int fdatasync(int fd) { return late("fdatasync", fd); }
"""


def measure_disk(bench: Bench) -> Iterator[Row]:
    """fsync takes 5 ms longer: group commit against a commit for each webhook."""
    goal = ">= 3.00"
    if not shutil.which("gcc"):
        yield Row("slow disk (fsync + 5 ms)", "skipped: no gcc to build the shim", goal=goal)
        return
    source, shim = bench.folder / "late.c", bench.folder / "late.so"
    source.write_text(SHIM % int(FSYNC * 1e9))
    build = ["gcc", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(build, check=True)
    slow = {"LD_PRELOAD": str(shim)}
    ours: list[float] = []
    bare: list[float] = []
    path = bench.folder / "bare-store.db"
    with (
        Itsm() as itsm,
        Ours(bench, "disk", itsm.port, environ=slow) as mine,
        Role("store", bench.threads, path, environ=slow) as store,
    ):
        mine.cli("pause")
        for port in (mine.port, store.port):
            bench.load(port, 50)
        for _ in range(bench.rounds):
            ours.append(bench.load(mine.port, bench.size(1_500, 300)).rate)
            bare.append(bench.load(store.port, bench.size(400, 80)).rate)
    if max(bare) > 1 / FSYNC:
        raise Trouble("the shim does not bite: this SQLite does not call fsync of the C library")
    yield rates("slow disk (fsync + 5 ms)", ours, bare, 3.0)


def measure_backlog(bench: Bench) -> Iterator[Row]:
    """A backlog, a restart, and the drain, slice by slice in turns with a bare urllib3 loop."""
    count = bench.size(100_000, 6_000)
    each = count * 6 // 10 // bench.rounds  # some more go while the command `pause` starts
    ours: list[float] = []
    bare: list[float] = []
    with Itsm() as itsm, Itsm() as other, Ours(bench, "backlog", itsm.port) as mine:
        empty, idle = mine.ready_after, mine.memory
        mine.cli("pause")
        bench.load(mine.port, count)
        filled = mine.memory
        mine.stop()
        mine.start()
        ready, peak = mine.ready_after, mine.memory
        for _ in range(bench.rounds):
            rate, memory = drain(mine, itsm, each)
            ours.append(rate)
            peak = max(peak, memory)
            with Role("loop", bench.workers, other.port, each) as loop:
                bare.append(each / json.loads(loop.line())["seconds"])
        mine.cli("resume")
        itsm.wait_for(count)
        mine.settled()
        peak = max(peak, mine.memory)
        if itsm.count()[0] != count:
            raise Trouble(f"the ITSM got {itsm.count()[0]} requests for {count} events")
    yield rates(f"backlog of {count:,} drains", ours, bare, 0.85)
    for words, now in (("while a backlog drains", peak), (f"after {count:,} webhooks", filled)):
        more = f"+{now - idle:.1f} MB"
        met = now - idle <= 10
        memory_row = Row(f"memory {words}", f"{now:.1f} MB", f"{idle:.1f} MB (idle)", more)
        memory_row.goal, memory_row.met = "<= +10 MB", met
        yield memory_row
    words = f"restart with {count:,} waiting"
    mine_, theirs = f"{ready:.2f} s", f"{empty:.2f} s (empty)"
    yield Row(words, mine_, theirs, f"{ready / empty:.2f}", "<= 2 s", ready <= 2)


def drain(mine: Ours, itsm: Itsm, count: int) -> tuple[float, float]:
    """Lets `count` events and a few more go: how many a second, and the largest memory seen."""
    before, memory = itsm.count()[0], 0.0
    mine.cli("resume")
    first, _, began = until(lambda: found if (found := itsm.count())[0] > before else None, 30, "")
    deadline = time.monotonic() + 300
    while (now := itsm.count())[0] < before + count:
        if time.monotonic() > deadline:
            raise Trouble(f"only {now[0] - before} of {count} went in 300 s")
        memory = max(memory, mine.memory)
        time.sleep(0.05)
    mine.cli("pause")
    return (now[0] - first) / (now[2] - began), memory


def measure_memory(bench: Bench) -> Iterator[Row]:
    """Resident memory after one webhook, against the three libraries with an idle server.

    As installed, and as the one file, whose syntax tree Python would keep.
    """
    with Itsm() as itsm, Ours(bench, "bytecode", itsm.port, installed=True):
        pass  # writes the bytecode
    for words, installed in (("installed", True), ("one file", False)):
        with (
            Itsm() as itsm,
            Ours(bench, "memory", itsm.port, installed=installed) as mine,
            Role("idle", bench.threads) as idle,
        ):
            for port in (mine.port, idle.port):
                bench.load(port, 1)
            itsm.wait_for(1)
            mine.settled()
            ours, bare = mine.memory, idle.memory
        share, text = ratio([ours], [bare])
        mine_, theirs = f"{ours:.1f} MB", f"{bare:.1f} MB"
        row = Row(f"memory, idle, {words}", mine_, theirs, text.split()[0])
        row.goal, row.met = "<= 1.30", share <= 1.3
        yield row


def measure_big(bench: Bench) -> Iterator[Row]:
    """Cost per event with a large file, and what retention and `status` do to the intake."""
    events, mappings = bench.size(1_000_000, 50_000), bench.size(5_000_000, 250_000)
    count = bench.size(2_000, 150)
    with Itsm() as itsm, Itsm() as other:
        with Ours(bench, "big", itsm.port, keep_days=100_000) as big:
            whole_way(bench, big, itsm, 1, first=FIRST_TICKET)
            big.stop()
            grow(big.file, events, mappings)
            big.start()
            with Ours(bench, "small", other.port) as small:
                rows = [
                    f"{FIRST_TICKET + n},M-{n},2026-11-01T00:00:00+09:00" for n in range(count)
                ]
                csv = bench.folder / "small.csv"
                csv.write_text("\n".join(rows) + "\n")
                small.cli("import", str(csv))
                known, fresh = compared(bench, big, small, (itsm, other), count, mappings // count)
            quiet = bench.load(big.port, 50 * bench.size(20, 2), rate=50).latencies
        size = big.file.stat().st_size / 1e6
        words = f"{events:,} events, {mappings:,} mappings, {size:,.0f} MB"
        yield costs(f"cost of an opening ({words})", *fresh)
        yield costs("cost of an assignment, same file", *known)
        with Ours(bench, "big", itsm.port, keep_days=30) as busy:
            asking = threading.Event()
            asker = threading.Thread(target=ask_status, args=(busy, asking))
            asker.start()
            try:
                load = bench.load(busy.port, 50 * bench.size(20, 2), rate=50)
            finally:
                asking.set()
                asker.join()
        calm, stirred = p99(quiet), p99(load.latencies)
        words = "p99 while retention and `status` run"
        mine_, theirs, share = f"{stirred:.1f} ms", f"{calm:.1f} ms (calm)", stirred / calm
        yield Row(words, mine_, theirs, f"{share:.2f}", "<= 2.00", share <= 2)


def ask_status(service: Ours, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        service.cli("status")


def compared(
    bench: Bench, big: Ours, small: Ours, itsms: tuple[Itsm, Itsm], count: int, step: int
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Rates of the whole way on the large and the small file: assignments, openings."""
    known: tuple[list[float], list[float]] = ([], [])
    fresh: tuple[list[float], list[float]] = ([], [])
    for number in range(bench.rounds + 1):
        for place, mine in enumerate((big, small)):
            there: dict[str, Any] = {"kind": "assign", "first": FIRST_TICKET}
            there["step"] = step if mine is big else 1
            assigned = whole_way(bench, mine, itsms[place], count, **there)
            opened = whole_way(bench, mine, itsms[place], count)
            if number:
                known[place].append(assigned)
                fresh[place].append(opened)
    return known, fresh


def costs(measure: str, big: Sequence[float], small: Sequence[float]) -> Row:
    """A row of two costs per event, from rates."""
    share, text = ratio([1 / rate for rate in big], [1 / rate for rate in small])
    mine, other = (f"{1e6 / statistics.median(some):.0f} us" for some in (big, small))
    return Row(measure, mine, f"{other} (small)", text, "<= 1.10", share <= 1.1)


def grow(path: pathlib.Path, events: int, mappings: int) -> None:
    """Multiplies the one delivered event of a stopped service's file, and its mapping.

    A fifth is older than 30 days.
    """
    age = f"86400.0 * 40 * ({events} - n) / {events}"
    multiply(path, events - 1, received=f"received - {age}", settled=f"settled - {age}")
    db = sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(db):
        db.execute("PRAGMA synchronous = OFF")
        db.execute(
            "WITH RECURSIVE copies (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE"
            " n < :copies) INSERT OR IGNORE INTO tickets (ticket, request_id, since, origin)"
            f" SELECT CAST({FIRST_TICKET} + n AS TEXT), 'M-' || n, 0.0, 'import' FROM copies",
            {"copies": mappings},
        )


def measure_status(bench: Bench) -> Iterator[Row]:
    """The command `status` against a running service; bare: importing the three libraries.

    As the one file, which Python compiles anew each time, and as installed, with bytecode.
    """
    imports = [sys.executable, "-c", "import bottle, waitress, urllib3"]
    with Itsm() as itsm, Ours(bench, "status", itsm.port) as mine:
        file = mine.command("status")
        installed = [sys.executable, "-m", "hd_itsm", *file[2:]]
        for words, command in (("one file", file), ("installed", installed)):
            ours: list[float] = []
            bare: list[float] = []
            for number in range(bench.size(9, 3) + 1):
                for run, found in ((command, ours), (imports, bare)):
                    began = time.monotonic()
                    subprocess.run(
                        run,
                        stdout=subprocess.DEVNULL,
                        check=True,
                        cwd=bench.folder,
                        env=WITH_BYTECODE,
                    )
                    if number:  # the first turn writes bytecode
                        found.append(time.monotonic() - began)
            mine_, theirs = (f"{statistics.median(some):.3f} s" for some in (ours, bare))
            met = statistics.median(ours) <= 0.25
            text = ratio(ours, bare)[1]
            yield Row(f"command `status`, {words}", mine_, theirs, text, "<= 0.25 s", met)


def measure_latency(bench: Bench) -> Iterator[Row]:
    """An ITSM that takes 200 ms: throughput against workers / latency."""
    for workers in (4, 16):
        count = workers * bench.size(40, 8)
        with Itsm(0.2) as itsm, Ours(bench, f"latency{workers}", itsm.port, workers) as mine:
            mine.cli("pause")
            bench.load(mine.port, count)
            mine.cli("resume")
            itsm.wait_for(count)
            _, first, last = itsm.count()
        rate, best = count / (last - first), workers / 0.2
        share = rate / best
        words = f"ITSM takes 200 ms, {workers} workers"
        mine_, theirs = f"{rate:.1f}/s", f"{best:.0f}/s (ideal)"
        yield Row(words, mine_, theirs, f"{share:.3f}", ">= 0.95", share >= 0.95)


def measure_reading(bench: Bench) -> Iterator[Row]:
    """Damaged bodies of 1 MiB and HTML of every nasty shape: the worst of each, and its growth."""
    found: dict[str, dict[str, list[float]]] = {"body": {}, "html": {}, "good": {}}
    with Role("reading", bench.program) as role:
        assert role.process.stdout is not None
        killer = threading.Timer(90, role.process.kill)
        killer.start()
        for line in role.process.stdout:
            what, name, crash, seconds = json.loads(line)
            if crash:
                yield Row(f"{what}, {name}", crash[:60], met=False)
                continue
            found[what].setdefault(name, []).append(seconds)
        killer.cancel()
        if role.process.wait() != 0:
            raise Trouble("reading took more than 90 s, or failed")
    good = found["good"][""][0]
    for what, words, bare in (
        ("body", "damaged body of 1 MiB, worst:", f"{1000 * good:.1f} ms (good)"),
        ("html", "HTML of 360 KB, worst:", ""),
    ):
        name, times = max(found[what].items(), key=lambda one: one[1][-1])
        whole = len(times) == len(SIZES[what])
        growth = times[-1] / times[-2]
        factor = SIZES[what][len(times) - 1] / SIZES[what][len(times) - 2]
        ours = f"{1000 * times[-1]:.0f} ms" if whole else f"over {times[-1]:.0f} s"
        share = f"{times[-1] / good:.0f}" if bare else ""
        linear = whole and growth <= 1.5 * factor
        text = f"linear ({growth:.1f} for {factor:.0f} x)"
        yield Row(f"{words} {name}", ours, bare, share, text, linear)


MEASURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ceiling": measure_ceiling,
    "intake": measure_intake,
    "whole": measure_whole,
    "single": measure_single,
    "p99": measure_p99,
    "disk": measure_disk,
    "backlog": measure_backlog,
    "memory": measure_memory,
    "big": measure_big,
    "status": measure_status,
    "latency": measure_latency,
    "reading": measure_reading,
}
ROLES = {
    "load": role_load,
    "itsm": role_itsm,
    "hang": role_hang,
    "echo": role_echo,
    "idle": role_idle,
    "relay": role_relay,
    "store": role_store,
    "loop": role_loop,
    "reading": role_reading,
}
WIDTHS = (62, 12, 18, 18, 20, 3)


def print_row(*cells: str) -> None:
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    print(line.rstrip(), flush=True)


def machine(bench: Bench) -> str:
    """A line on where and with what this was measured."""
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("bottle", "waitress", "urllib3"))
    load = ", the machine is busy" if os.getloadavg()[0] > 0.5 else ""
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.system()} {platform.machine()}, {os.cpu_count()}"
        f" cores shared by all processes of the bench{load}; Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}, {libraries}; {bench.threads} threads,"
        f" {bench.workers} workers, {bench.rounds} rounds"
    )


def main(argv: Sequence[str]) -> int:
    """Prints the table; 1 where a measure could not be taken."""
    if argv[:1] == ["--role"]:
        ROLES[argv[1]](argv[2:])
        return 0
    parser = argparse.ArgumentParser(description="hd_itsm against bare programs, as ratios.")
    parser.add_argument("--quick", action="store_true", help="smaller and rougher")
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, metavar="NAME", help=str([*MEASURES])
    )
    parser.add_argument("--program", type=pathlib.Path, default=PROGRAM, help="another hd_itsm.py")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hd_itsm-bench-") as folder:
        program = pathlib.Path(folder) / "hd_itsm.py"  # a copy: edits meanwhile change no figure
        shutil.copyfile(arguments.program, program)
        bench = Bench(arguments.quick, program, pathlib.Path(folder))
        defaults = load_program(program).load_config("", {}, {}, complete=False)
        bench.threads, bench.workers = defaults.server.threads, defaults.itsm.workers
        print(machine(bench))
        print_row("measure", "ours", "bare", "ratio", "goal", "met")
        troubles = 0
        for name in arguments.only or MEASURES:
            try:
                for row in MEASURES[name](bench):
                    met = "" if row.met is None else "yes" if row.met else "NO"
                    print_row(row.measure, row.ours, row.bare, row.ratio, row.goal, met)
            except Trouble as trouble:
                troubles += 1
                print_row(f"{name}: {trouble}", "-", "", "", "", "NO")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
