"""The door from outside: crowds of slow clients, nonsense in bytes, and what machines read.

CI set: 20,000 mutated requests instead of 3,000.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from faultlib import Disk, Rig, missing, need_faketime, need_mounts, sabotaged, set_clock
from itsm import Itsm, ok, reply, silence, unauthorized
from service import (
    NONCE,
    Reply,
    Service,
    asked,
    assignment,
    opening,
    read_replies,
    settings,
    ticket,
    until,
)

CROWD = 1000
REQUESTS = 20_000 if os.environ.get("CI") else 3_000


class Door(NamedTuple):
    """A running service and the ITSM behind it."""

    service: Service
    itsm: Itsm

    def good(self) -> None:
        """The next good webhook is answered as if nobody else were there, and delivered."""
        body = opening(ticket())
        answer = self.service.post("itsm_new", body)
        assert (answer.status, answer.state) == (200, "pending")
        assert answer.seconds < 5.0
        self.itsm.wait_for(1, where=lambda one: one.json().get("title") == body["subject"])


Start = Callable[..., Door]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service with these sections of configuration."""
    with ExitStack() as stack:

        def starter(itsm_: Itsm | None = None, **sections: Mapping[str, Any]) -> Door:
            itsm = stack.enter_context(itsm_ or Itsm())
            text = settings(itsm.url, **sections)
            return Door(stack.enter_context(Service(tmp_path, text)), itsm)

        yield starter


# ---- A crowd -----------------------------------------------------------------------------------


@contextmanager
def descriptors(many: int) -> Iterator[None]:
    """This process, and those it starts, may have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < many:
        missing(f"the right to open {many} files (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, many), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WHOLE = b"POST /itsm_new HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n" + b" " * 500


class Crowd:
    """Clients that each hold a connection. `begin` is what each sends first, `drip` what each
    then sends a byte of every second; nobody reads."""

    def __init__(self, service: Service, begin: bytes, drip: bytes) -> None:
        self.service, self.begin, self.drip = service, begin, drip
        self.lines: list[socket.socket] = []
        self.over = threading.Event()
        self.dripping = threading.Thread(target=self._drip)

    def __enter__(self) -> Crowd:
        for _ in range(CROWD):
            line = socket.socket()
            self.lines.append(line)
            line.settimeout(10)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            line.connect(("127.0.0.1", self.service.port))
            if self.begin:
                line.sendall(self.begin)
        self.dripping.start()
        return self

    def _drip(self) -> None:
        for at in range(len(self.drip)):
            if self.over.wait(1.0):
                return
            for line in self.lines:
                with suppress(OSError):
                    line.send(self.drip[at : at + 1])

    def __exit__(self, *problem: object) -> None:
        self.over.set()
        self.dripping.join(10)
        for line in self.lines:
            line.close()


CROWDS = {
    "silent": (b"", b""),
    "a byte a second of the head": (b"", WHOLE),
    "a byte a second of the body": (WHOLE[:-500], WHOLE[-500:]),
    "a body that never comes": (WHOLE[:-500], b""),
    "never reading the answers": (
        b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
        b"",
    ),
}


@pytest.mark.parametrize(
    "manner", ["silent", *(pytest.param(one, marks=pytest.mark.slow) for one in list(CROWDS)[1:])]
)
def test_1000_slow_clients_do_not_keep_a_good_webhook_waiting(start: Start, manner: str) -> None:
    with descriptors(2 * CROWD + 500):
        door = start()
        with Crowd(door.service, *CROWDS[manner]):
            until(lambda: door.service.request("GET", "/health").seconds < 0.2, "it is calm", 30)
            began, turns = monotonic(), 0
            while monotonic() - began < 3 or turns < 5:
                door.good()
                turns += 1
            page = door.service.request("GET", "/health")
            assert (page.status, page.seconds < 5.0) == (200, True)
        door.good()


PIPELINED = {
    "health": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nowhere": b"GET / HTTP/1.1\r\n\r\n",
    "no webhook": b"POST /itsm_new HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    "empty lines": b"\r\n" * 20,
}


@pytest.mark.parametrize(
    ("request_", "reads"),
    [
        pytest.param(
            request,
            reads,
            id=f"{name}-{'reading' if reads else 'never reading'}",
            marks=[pytest.mark.slow] if (name, reads) != ("nowhere", True) else [],
        )
        for name, request in PIPELINED.items()
        for reads in (False, True)
    ],
)
def test_200_connections_that_pipeline_do_not_keep_a_good_webhook_waiting(
    start: Start, request_: bytes, reads: bool
) -> None:
    door = start()
    burst = request_ * (40_000 // len(request_))
    over = threading.Event()
    with ExitStack() as stack:
        lines = [stack.enter_context(door.service.connect()) for _ in range(200)]
        for line in lines:
            line.setblocking(False)

        def pour() -> None:
            while not over.is_set():
                readable, writable, _ = select.select(lines if reads else [], lines, [], 0.1)
                for line in writable:
                    with suppress(OSError):
                        line.send(burst)
                for line in readable:
                    with suppress(OSError):
                        line.recv(65536)
                over.wait(0.05)  # the crowd shares this machine with who serves it

        pouring = threading.Thread(target=pour)
        pouring.start()
        try:
            began = monotonic()
            while monotonic() - began < 4:
                door.good()
        finally:
            over.set()
            pouring.join(10)
    door.good()


SLOW = {
    "silent after a part of the head": (WHOLE[:30], b""),
    "a byte a second of the head": (b"", WHOLE[:100]),
    "a byte a second of the body": (WHOLE[:-500], b" " * 100),
    "silent": (b"", b""),
    "empty lines": (b"", b"\r\n" * 40),
    "a body of one who is not let in": (WHOLE.replace(b"/itsm_new", b"/nowhere"), b"x" * 40),
}


def closed_after(service: Service, manners: Iterable[tuple[bytes, bytes]]) -> list[float]:
    """Seconds until each of these clients has lost its connection; 40 for never."""
    began = monotonic()
    with ExitStack() as stack:
        lines = [stack.enter_context(service.connect()) for _ in manners]
        drips = {}
        for line, (begin, drip) in zip(lines, manners, strict=True):
            line.sendall(begin)
            drips[line] = drip
        ends = dict.fromkeys(lines, 40.0)
        sent = 0
        while monotonic() - began < 30 and 40.0 in ends.values():
            waiting = [line for line in lines if ends[line] == 40.0]
            readable, _, _ = select.select(waiting, [], [], 0.1)
            for line in readable:
                try:
                    gone = not line.recv(65536)
                except ConnectionError:
                    gone = True
                if gone:
                    ends[line] = monotonic() - began
            if monotonic() - began > sent + 1:
                for line in waiting:
                    with suppress(OSError):
                        line.send(drips[line][sent : sent + 1])
                sent += 1
        return [round(ends[line], 1) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(60)  # it waits out the 20 seconds of the contract, for all manners at once
def test_a_request_that_is_not_whole_after_20_seconds_is_closed(start: Start) -> None:
    door = start()
    ends = dict(zip(SLOW, closed_after(door.service, list(SLOW.values())), strict=True))
    assert {manner: end for manner, end in ends.items() if not 15 <= end <= 27} == {}
    door.good()


def test_a_request_that_comes_in_slowly_but_in_time_is_taken(start: Start) -> None:
    door, found = start(), opening(ticket())
    body = json.dumps(found).encode()
    top = f"POST /itsm_new HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    data, pause = top.encode() + body, threading.Event()
    with door.service.connect() as line:
        for at in range(0, len(data), 10):
            line.sendall(data[at : at + 10])
            pause.wait(0.1)
        heard = line.recv(65536)
    assert heard.startswith(b"HTTP/1.1 200")
    door.itsm.wait_for(1, where=lambda one: one.json().get("title") == found["subject"])


PLACES = [b"GET /", b"GET /events/1", b"POST /act/pause", b"POST /control/status", b"GET /metrics"]


@pytest.mark.parametrize("place", PLACES, ids=[one.decode() for one in PLACES])
@pytest.mark.parametrize(
    "rows",
    [
        b"".join(b"X-Pad-%d: %s\r\n" % (at, b"a" * 1000) for at in range(300)),
        b"".join(b"X-Pad-%d: %s\r\n" % (at, b"a" * 40) for at in range(500)),
        b"Cookie: " + b"a" * 70_000 + b"\r\n",
    ],
    ids=["300 KB of headers", "500 headers", "a header of 70 KB"],
)
def test_oversized_headers_are_refused_everywhere(shared: Door, place: bytes, rows: bytes) -> None:
    data = place + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n" + rows + b"\r\n"
    answers = shared.service.exchange(data)
    assert [answer.status for answer in answers[:1]] in ([431], [400])
    assert answers[0].error
    shared.good()


@pytest.mark.parametrize("place", [b"/?q=", b"/search?q=", b"/tickets/", b"/control/"])
def test_a_request_line_of_70_kb_is_refused_everywhere(shared: Door, place: bytes) -> None:
    data = b"GET " + place + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = shared.service.exchange(data)
    assert [answer.status for answer in answers[:1]] in ([431], [400], [414])
    assert answers[0].error
    shared.good()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A service that several tests use."""
    with Itsm() as itsm:
        text = settings(itsm.url)
        with Service(tmp_path_factory.mktemp("shared"), text) as service:
            yield Door(service, itsm)


# ---- Nonsense in bytes -------------------------------------------------------------------------


QUOTED = (
    b'{"ticket_id": "EVIL-1", "technician": "x", "writer": "x", "subject": "x", "contents": "x"}'
)
PARTS = (  # a form of two parts, whose second one quotes the JSON of another ticket
    b'--b\r\nContent-Disposition: form-data; name="ticket_id"\r\n\r\nT-3\r\n'
    b'--b\r\nContent-Disposition: form-data; name="technician"\r\n\r\nsee '
    + QUOTED
    + b"\r\n--b--\r\n"
)
WITHIN = [  # JSON within something else
    PARTS,
    b"<ticket><id>T-4</id><note>" + QUOTED + b"</note></ticket>",
    b"Dear colleague, please look at " + QUOTED + b" and close it.",
    b"--\r\n" + QUOTED,
    b'[["' + QUOTED.replace(b'"', b'\\"') + b'"]]',
    b"ticket_id=T-5&technician=" + QUOTED,
    json.dumps({**assignment("T-6"), "note": QUOTED.decode()}).encode(),
]


def misread(database: Path) -> list[tuple[str, bytes]]:
    """Events made for the ticket of QUOTED though their body does not name it at its place."""
    with closing(sqlite3.connect(database)) as file:
        rows = file.execute("SELECT ticket, raw FROM events WHERE ticket LIKE '%EVIL%'")
        return [(ticket, raw) for ticket, raw in rows if not _names(raw, ticket)]


def _names(raw: bytes, ticket: str) -> bool:
    """Whether a body names the ticket where one is to be named; True also where it may."""
    text = raw.decode("utf-8", "replace").lstrip("\ufeff\ufffd\x00 \t\r\n")
    with suppress(ValueError, RecursionError):
        whole = json.loads(text)
        return isinstance(whole, str) or (
            isinstance(whole, dict) and str(whole.get("ticket_id")) == ticket
        )
    if not re.match(r'[{\["&]|[\w.%+-]*=', text):
        part = re.search(r'name="?ticket_id"?[^\r\n]*\r?\n\r?\n(.*?)\r?\n-', text, re.DOTALL)
        return part is not None and ticket in part[1]
    return True  # it begins as JSON or a form, and is broken: what is repaired is judged elsewhere


def seeds(service: Service) -> list[bytes]:
    """Good requests of every sort."""
    body = json.dumps(opening("T-1"), ensure_ascii=False).encode()
    form = b"ticket_id=T-1&technician=%ED%99%8D&subject=a%26b"
    mixed = b'{"ticket_id": "T-2", "technician": "' + "홍길동".encode("cp949") + b'"}'
    key = str(service.control["key"])

    def control(operation: str, data: bytes) -> bytes:
        rows = "".join(
            f"{name}: {value!s}\r\n" for name, value in asked(key, operation, data).items()
        )
        return post(f"/control/{operation}".encode(), data, rows.encode())

    def post(path: bytes, data: bytes, rows: bytes = b"") -> bytes:
        size = b"Content-Length: %d\r\n" % len(data)
        return b"POST %s HTTP/1.1\r\nHost: localhost\r\n%s%s\r\n%s" % (path, size, rows, data)

    half = (body[:5], len(body[5:]), body[5:])
    chunked = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % half
    trailed = (
        b'005;a=b;c="d e"\r\n%b\r\n%X;\r\n%b\r\n0;last\r\nX-Trailer: a\r\nX-More: b\r\n\r\n' % half
    )
    frame = b"POST /itsm_new HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"Content-Type: multipart/form-data; boundary=b\r\n"
    return [
        *(post(b"/itsm_ass", one, part if one is PARTS else b"") for one in WITHIN),
        post(b"/itsm_new", body) + post(b"/itsm_ass", mixed) + post(b"/nowhere", b"{}"),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
        frame + trailed + frame + chunked,
        post(b"http://localhost/itsm_new", body),
        post(b"http://[::1]:80/itsm_new?a=b#c", body),
        post(b"//itsm_new/", body, b"Expect: 100-continue\r\n"),
        post(b"/itsm_new", body, b"Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n"),
        b"OPTIONS /itsm_new HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n",
        post(b"/itsm_new", body, b"Content-Type: application/json\r\n"),
        post(b"/itsm_ass", mixed, b"Content-Type: application/json; charset=utf-8\r\n"),
        post(b"/itsm_com", form, b"Content-Type: application/x-www-form-urlencoded\r\n"),
        post(b"/itsm_new", b'{"ticket_id": 1e3, "text": [{"a": [1, null, true]}]}'),
        post(b"/itsm_new", body, b"Idempotency-Key: 17\r\nPrefer: wait=0\r\n"),
        control("events", b'{"limit": 5, "state": "failed"}'),
        control("show", b'{"event": 1}'),
        f"GET /control/hello HTTP/1.1\r\nHost: localhost\r\nHD-ITSM-Nonce: {NONCE}\r\n\r\n".encode(),
        post(b"/act/retry", b"event=1&seal=x", b"Origin: http://localhost\r\n"),
        frame + chunked,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 10.0.0.1, ::1\r\n\r\n",
        b"GET /events/1?before=3&state=held HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?state=failed&kind=new&before=99&notice=a&sealed=b HTTP/1.1\r\nHost: [::1]:1\r\n\r\n",
        b"GET /tickets/T-1%2F%ED%99%8D HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"GET /search?q=T-1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic YTpi\r\n\r\n",
        b"GET /confirm/map?ticket=T-1&request_id=R-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]


PIECES = [
    b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\xff\xfe", b"\xed\xa0\x80", b"%", b"%00", b"%ff",
    b"%ed%a0%80", b"..", b"//", b"?", b"#", b";", b"&", b"=", b"\t", b'"', b"\\", b"{", b"}", b"[", b"]",
    b"\\ud800", b"9" * 25, b"-1", b"1e999", b"NaN", b"A" * 300, b"chunked", b"identity", b"gzip",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Prefer: wait=0\r\n", b"Host: x\r\n", b"Content-Encoding: gzip\r\n",
    b"http://[", b"://", b"*", b";", b";a=", b"0\r\n\r\n", b"f" * 20, b"1" * 5000, b"Content-Encoding: 8bit\r\n",
    b"Sec-Fetch-Site: cross-site\r\n", b"Origin: http://[\r\n", b"--b\r\n", b"<a>", b"Forwarded: for=;\r\n",
    b"Authorization: Basic =\r\n", b"X-Forwarded-For: ,,x,%\r\n", "가".encode(), "\u202e".encode(),
]  # fmt: skip


def mutated(chance: random.Random, good: list[bytes]) -> bytes:
    """A good request with one to six changes: cut, doubled, swapped, replaced, spliced."""
    data = bytearray(chance.choice(good))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 40)))
        match chance.randrange(7):
            case 0:
                data[at:end] = b""
            case 1:
                data[at:at] = chance.choice(PIECES)
            case 2:
                data[at:end] = chance.choice(PIECES)
            case 3:
                data[at:end] = chance.randbytes(end - at)
            case 4:
                data[at:at] = data[at:end] * chance.choice((1, 2, 30))
            case 5:
                other = chance.choice(good)
                data[at:] = other[chance.randrange(len(other)) :]
            case _ if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def answers_to(service: Service, data: bytes) -> bytes:
    """All that is answered to these bytes, of a client that then sends no more."""
    heard = bytearray()
    with service.connect(15.0) as line:
        with suppress(ConnectionError):
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := line.recv(65536):
                heard += piece
    return bytes(heard)


def bombard(
    service: Service, seed: int, count: int, statuses: Counter[int], bad: list[tuple[bytes, bytes]]
) -> None:
    """Sends mutated requests, one a connection; notes the answers' statuses and the bad ones."""
    chance, good = random.Random(seed), seeds(service)
    for _ in range(count):
        data = mutated(chance, good)
        try:
            heard = answers_to(service, data)
        except OSError as error:
            bad.append((data, repr(error).encode()))
            return
        found = [answer.status for answer in read_replies(heard)]
        if heard and not heard.startswith(b"HTTP/1."):
            bad.append((data, heard[:200]))
        if any(status >= 500 and status not in (501, 503) for status in found):
            bad.append((data, heard[:200]))
        statuses.update(found or [0])


@pytest.mark.slow
@pytest.mark.timeout(240 if os.environ.get("CI") else 60)
def test_mutated_requests_never_give_a_500_or_end_the_process(start: Start) -> None:
    door = start()
    statuses: Counter[int] = Counter()
    bad: list[tuple[bytes, bytes]] = []
    each = REQUESTS // 4
    threads = [
        threading.Thread(target=bombard, args=(door.service, seed, each, statuses, bad))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(230)
    assert bad[:3] == [], f"{len(bad)} of {REQUESTS}; {statuses}"
    assert {200, 400, 404, 405} <= set(statuses), statuses  # it reaches all parts of the door
    assert statuses[200] > REQUESTS / 20, statuses
    door.good()
    assert door.service.stop() == 0
    assert "Traceback" not in door.service.log
    assert misread(door.service.database)[:3] == []


@pytest.mark.parametrize("body", WITHIN)
def test_control_a_program_that_reads_json_within_something_else_is_found(
    tmp_path: Path, body: bytes
) -> None:
    code = """
_read_webhooks = read_webhooks
def read_webhooks(hook, raw, *rest):
    inner = re.findall(rb"[{][^{}]*[}]", raw.replace(b"\\\\", b""))[-1]
    return _read_webhooks(hook, inner, *rest)
"""
    with Itsm() as itsm:
        rig = Rig(tmp_path, settings(itsm.url), sabotaged(tmp_path, code=code))
        rig.start()
        rig.post("itsm_ass", body)
        assert rig.stop() == 0
        assert bool(misread(rig.database)) == (not body.startswith(b"ticket_id="))


def test_control_a_program_that_stumbles_is_found_by_mutated_requests(tmp_path: Path) -> None:
    code = """
_tell = Door.tell_stored
def _stumbling(self, hook, webhook, receipt):
    _tell(self, hook, webhook, receipt)
    if receipt.event % 3 == 0:
        raise ValueError("stumbled")
Door.tell_stored = _stumbling
"""
    with Itsm() as itsm:
        rig = Rig(tmp_path, settings(itsm.url), sabotaged(tmp_path, code=code))
        rig.start()
        statuses: Counter[int] = Counter()
        bad: list[tuple[bytes, bytes]] = []
        bombard(rig, 1, 200, statuses, bad)
        rig.kill()
        assert bad


# ---- /openapi.json -----------------------------------------------------------------------------

SCHEMATHESIS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "503"]
"""  # what is no ticket's id, or no date, is beyond a schema: 400 is documented for it


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("guarded", [False, True], ids=["open", "with a token"])
def test_schemathesis_finds_nothing_in_the_hooks_as_described(
    start: Start, tmp_path: Path, guarded: bool
) -> None:
    program = shutil.which(
        "schemathesis", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if program is None:
        missing("schemathesis (pip install '.[api]')")
    door = start(access={"token": "t-1"}) if guarded else start()
    folder = tmp_path / "schemathesis"
    folder.mkdir()
    (folder / "schemathesis.toml").write_text(SCHEMATHESIS)
    command = [program, "run", door.service.url + "/openapi.json", "--no-color", "--seed", "7"]
    command += ["--max-examples", "200" if os.environ.get("CI") else "40", "--workers", "1"]
    command += ["--header", "Authorization: Bearer t-1"] if guarded else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "selected / 6 total" in " ".join(done.stdout.split())
    door.service.post("itsm_new", opening("T"), {"X-Webhook-Token": "t-1"})
    assert door.service.stop() == 0
    assert "Traceback" not in door.service.log


FIELDS = {"ticket_id": "id", "technician": "who"}


def test_the_description_names_each_hook_as_configured_and_every_answer(start: Start) -> None:
    door = start(hooks__desk={"path": "/desk/in", "kind": "assign", "fields": FIELDS})
    answer = door.service.request("GET", "/openapi.json")
    found = answer.json()
    assert found["openapi"].startswith("3.1")
    assert set(found["paths"]) == {"/itsm_new", "/itsm_ass", "/itsm_com", "/desk/in"}
    for path in found["paths"].values():
        assert set(path) == {"get", "post"}
        assert {"200", "400", "413", "503"} <= set(path["post"]["responses"])
    names = [way["operationId"] for path in found["paths"].values() for way in path.values()]
    assert len(names) == len(set(names))


# ---- /metrics ----------------------------------------------------------------------------------


def families(service: Service) -> dict[str, Any]:
    """What Prometheus' own parser makes of /metrics, by name."""
    try:
        from prometheus_client import parser
    except ImportError:
        missing("prometheus_client (pip install '.[test]')")
    answer = service.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = list(parser.text_string_to_metric_families(answer.body.decode()))
    names = [one.name for one in found]
    assert len(names) == len(set(names))
    return {one.name: one for one in found}


def values(family: Any, label: str = "") -> dict[str, float]:
    """A family's numbers by the value of a label."""
    return {one.labels.get(label, ""): one.value for one in family.samples}


def test_metrics_are_read_by_prometheus_with_the_right_types_help_and_numbers(
    start: Start,
) -> None:
    door = start(Itsm(script=[ok(), reply(503), ok(), reply(400)]))
    service = door.service
    service.post("itsm_new", opening("A"), wait=5)
    service.post("itsm_new", opening("A"))
    service.post("itsm_new", opening("B"), wait=5)
    service.post("itsm_new", opening("C"), wait=5)
    service.post("itsm_ass", assignment("nobody"))
    service.post("itsm_ass", b'{"ticket_id": "A", "technician": "x\ny"}', wait=5)
    service.post("itsm_new", b"nonsense")
    service.request("POST", "/itsm_new", b"{}", {"Content-Encoding": "gzip"})
    found = families(service)
    types = {
        "hd_itsm_events": "gauge",
        "hd_itsm_webhooks": "counter",
        "hd_itsm_duplicates": "counter",
        "hd_itsm_repaired": "counter",
        "hd_itsm_refused": "counter",
        "hd_itsm_attempts": "counter",
        "hd_itsm_attempt_seconds": "histogram",
        "hd_itsm_oldest_undelivered_seconds": "gauge",
        "hd_itsm_itsm_up": "gauge",
        "hd_itsm_paused": "gauge",
    }
    assert {name: found[name].type for name in types} == types
    assert [one.name for one in found.values() if not one.documentation] == []
    states = ("pending", "held", "delivered", "failed", "ignored", "dropped")
    counts = service.status()["counts"]
    assert values(found["hd_itsm_events"], "state") == {state: counts[state] for state in states}
    attempts = values(found["hd_itsm_attempts"], "outcome")
    assert attempts == {"delivered": 3, "later": 1, "failed": 1}
    assert values(found["hd_itsm_duplicates"]) == {"": 1}
    assert values(found["hd_itsm_repaired"]) == {"": 1}
    assert values(found["hd_itsm_refused"], "status") == {"415": 1}
    assert values(found["hd_itsm_itsm_up"]) == {"": 1}
    samples = found["hd_itsm_attempt_seconds"].samples
    buckets = [one.value for one in samples if one.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    [count] = [one.value for one in samples if one.name.endswith("_count")]
    [total] = [one.value for one in samples if one.name.endswith("_sum")]
    assert buckets[-1] == count == sum(attempts.values())
    assert 0 < total < 30
    assert [one.labels["le"] for one in samples if "le" in one.labels][-1] == "+Inf"


def test_metrics_tell_a_pause_an_itsm_that_is_down_and_the_oldest_event(start: Start) -> None:
    door = start(Itsm(reply(503)))
    for _ in range(3):
        door.service.post("itsm_new", opening(ticket()))
    until(lambda: values(families(door.service)["hd_itsm_itsm_up"]) == {"": 0}, "it is down")
    door.service.cli("pause")
    assert values(families(door.service)["hd_itsm_paused"]) == {"": 1}
    name = "hd_itsm_oldest_undelivered_seconds"
    until(lambda: values(families(door.service)[name])[""] >= 1, "the oldest grows old")


def test_counters_only_grow(start: Start) -> None:
    door = start()
    before = families(door.service)
    door.service.post("itsm_new", opening(ticket()), wait=5)
    after = families(door.service)
    for name, family in before.items():
        if family.type in ("counter", "histogram"):
            for one, new in zip(family.samples, after[name].samples, strict=False):
                assert new.value >= one.value, name


# ---- /health -----------------------------------------------------------------------------------


def health(service: Service) -> tuple[int, str]:
    """The answer's status and its word."""
    answer = service.request("GET", "/health")
    return answer.status, answer.json()["status"]


def test_health_is_ok_when_all_is_delivered(start: Start) -> None:
    door = start()
    door.service.post("itsm_new", opening(ticket()), wait=5)
    assert health(door.service) == (200, "ok")


def test_health_warns_once_the_oldest_event_is_older_than_alert_after(start: Start) -> None:
    door = start(Itsm(silence()), alert={"after": 1}, itsm={"timeout": 30})
    assert health(door.service) == (200, "ok")
    door.service.post("itsm_new", opening(ticket()))
    assert health(door.service) == (200, "ok")
    until(lambda: health(door.service) == (200, "warn"), "it warns", 5)


def test_health_fails_once_the_oldest_event_is_older_than_an_hour(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    environ = {
        "LD_PRELOAD": need_faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url), environ) as service:
        itsm.stop()
        service.post("itsm_new", opening(ticket()))
        set_clock(clock, 3590)
        assert health(service) == (200, "warn")
        set_clock(clock, 3610)
        until(lambda: health(service) == (503, "fail"), "it fails")
        itsm.start()
        until(lambda: health(service) == (200, "ok"), "it is well again")


def test_health_warns_of_an_open_breaker_only_after_alert_after(start: Start) -> None:
    door = start(Itsm(reply(503)), alert={"after": 2})
    for _ in range(3):
        door.service.post("itsm_new", opening(ticket()))

    def tells() -> dict[str, Any]:
        found = door.service.request("GET", "/health").json()
        assert isinstance(found, dict)
        return found

    found = until(lambda: (one := tells())["itsm"]["state"] == "down" and one, "it is down")
    assert found["itsm"]["reason"]
    until(lambda: tells()["status"] == "warn", "it warns", 6)
    assert tells()["oldest_age"] >= 2
    door.itsm.answer = ok()
    until(lambda: health(door.service) == (200, "ok"), "it is well again")


def test_health_warns_of_a_refused_credential_at_once(start: Start) -> None:
    door = start(Itsm(unauthorized()))
    door.service.post("itsm_new", opening(ticket()))
    until(lambda: health(door.service) == (200, "warn"), "it warns")


def test_health_warns_of_failed_and_of_held_events(start: Start) -> None:
    door = start(Itsm(reply(400)))
    event = door.service.post("itsm_new", opening(ticket()), wait=5).event
    assert health(door.service) == (200, "warn")
    assert door.service.cli("drop", event, "--why", "x").code == 0
    assert health(door.service) == (200, "ok")
    door.service.post("itsm_ass", assignment(ticket()))
    assert health(door.service) == (200, "ok")  # its opening may be on the way
    door.service.stop()
    door.service.change_file("UPDATE events SET settled = settled - 61 WHERE state = 'held'")
    door.service.start()
    assert health(door.service) == (200, "warn")


def test_health_warns_of_a_pause_and_says_since_when(start: Start) -> None:
    door = start()
    door.service.cli("pause")
    answer = door.service.request("GET", "/health")
    assert answer.json()["paused"]
    assert (answer.status, answer.json()["status"]) == (200, "warn")
    door.service.cli("resume")
    assert health(door.service) == (200, "ok")


def test_health_fails_when_the_workers_show_no_life(tmp_path: Path) -> None:
    code = """
Delivery._watch = lambda self: None
_real = time.monotonic
time.monotonic = lambda: 20 * _real()  # half a minute goes by in 1.5 s
"""
    with Itsm() as itsm:
        rig = Rig(tmp_path, settings(itsm.url), sabotaged(tmp_path, code=code))
        rig.start()
        until(lambda: health(rig) == (503, "fail"), "it fails", 5)
        assert rig.request("GET", "/health").json()["workers"] == "dead"
        rig.kill()


def test_health_warns_of_a_full_disk_until_there_is_room(tmp_path: Path) -> None:
    need_mounts()
    with Itsm() as itsm, Disk(tmp_path, "tmpfs", 12) as disk:
        config = settings(itsm.url, store={"path": str(disk.place / "hd_itsm.db")})
        rig = Rig(tmp_path, config, wrap=disk.inside)
        rig.start()
        assert health(rig) == (200, "ok")
        disk.fill()
        until(lambda: posted(rig).status == 503, "the disk is full")
        assert health(rig) == (200, "warn")
        assert values(families(rig)["hd_itsm_disk_full"]) == {"": 1}
        disk.make_room()
        until(lambda: posted(rig).status == 200, "it heals", 20)
        until(lambda: health(rig) == (200, "ok"), "all is well again")
        rig.kill()


def posted(service: Service) -> Reply:
    """The answer to a further good webhook of some size."""
    return service.post("itsm_new", opening(ticket(), contents="x" * 20_000))
