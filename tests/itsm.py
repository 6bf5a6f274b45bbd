"""A scripted ITSM on loopback: real sockets, real threads, and the bad manners of real ones.

    with Itsm(script=[reply(503), take(hang_up())]) as itsm:    # and ok() from then on
        ...                                                     # point the sidecar at itsm.url
        refused, lost, again = itsm.wait_for(3)
        assert itsm.repeated() == {again.key: ["R-1", "R-2"]}

Read it downwards: what came (Headers, Received), what was done (Journal, Ledger), one connection
(Line), the building blocks of an answer, the named answers and MODES, the listening side (Door),
the stand-in itself (Itsm), the command line: `python tests/itsm.py --port 9000 --mode drip-body`.

Nothing here waits longer than `patience` seconds, keeps more than MOST_REQUESTS requests or serves
more than MOST_LINES connections at once; `close()` ends every thread and socket, also one in the
middle of a misbehaviour. Over TLS a connection ends without a closing alert, as that of a fallen
process does.
"""

from __future__ import annotations

import argparse
import gzip
import json as jsonlib
import signal
import socket
import ssl
import struct
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

MOST_REQUESTS = 200_000
MOST_LINES = 512
MOST_HEAD = 1 << 20
MOST_BODY = 16 << 20
PATIENCE = 120.0
JOIN = 5.0

T = TypeVar("T")
Pairs = tuple[tuple[str, str], ...]


class Gone(Exception):
    """The connection is over: the client left, the stand-in stops, or patience ran out."""


class Unreadable(Exception):
    """What the client sent is not one whole HTTP request."""


# ---- What came ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headers:
    """The header lines of a request: `pairs` as they came, look-ups without regard to case."""

    pairs: Pairs

    def all(self, name: str) -> list[str]:
        """Every value of this name, in the order they came."""
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def get(self, name: str, default: str = "") -> str:
        """The first value of this name."""
        return next(iter(self.all(name)), default)

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return self.get(name)


@dataclass(frozen=True)
class Received:
    """One whole request. `at` is monotonic; `path` has the query; `connection` counts from 1."""

    number: int
    at: float
    method: str
    path: str
    headers: Headers
    body: bytes
    connection: int = 0
    version: str = "HTTP/1.1"

    def json(self) -> Any:
        """The body as JSON; raises ValueError where it is none."""
        return jsonlib.loads(self.body)

    @property
    def key(self) -> str:
        """The idempotency key, or ""."""
        return self.headers.get("Idempotency-Key")

    @property
    def last(self) -> bool:
        """Whether the client means to use the connection no further."""
        wish = self.headers.get("Connection").lower()
        return "close" in wish or (self.version == "HTTP/1.0" and "keep-alive" not in wish)

    def __str__(self) -> str:
        """One printable line, whatever the client sent."""
        body = self.body[:200].decode("utf-8", "replace") + ("..." if len(self.body) > 200 else "")
        line = f"#{self.number} {self.method} {self.path} {len(self.body)} bytes {body}"
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def names_no_request(received: Received) -> bool:
    """Whether it opens a request: a POST whose JSON does not name a request id yet."""
    return received.method == "POST" and named_request(received) is None


def named_request(received: Received) -> str | None:
    """The `request_id` at the top of a JSON body."""
    with suppress(ValueError):
        body = received.json()
        if isinstance(body, dict) and "request_id" in body:
            return str(body["request_id"])
    return None


# ---- What was done -----------------------------------------------------------------------------


class Journal(Generic[T]):
    """A list that only grows. Its condition guards it; every append wakes who waits for more."""

    def __init__(self, what: str, most: int = MOST_REQUESTS) -> None:
        self._what = what
        self._most = most
        self._entries: list[T] = []
        self._grown = threading.Condition()

    def append(self, make: Callable[[int], T]) -> T:
        """Adds `make(number)`, numbered from 1; raises OverflowError when the journal is full."""
        with self._grown:
            if len(self._entries) >= self._most:
                raise OverflowError(f"more than {self._most} {self._what} came")
            entry = make(len(self._entries) + 1)
            self._entries.append(entry)
            self._grown.notify_all()
            return entry

    def all(self) -> list[T]:
        """A copy of what is there now."""
        with self._grown:
            return list(self._entries)

    def wait(self, count: int, timeout: float, where: Callable[[T], bool]) -> list[T]:
        """All that fit, once there are `count`; else AssertionError with what came instead."""

        def fitting() -> list[T]:
            return [entry for entry in self._entries if where(entry)]

        with self._grown:
            if self._grown.wait_for(lambda: len(fitting()) >= count, timeout):
                return fitting()
            came = "".join(f"\n  {entry}" for entry in self._entries[-50:]) or " nothing"
        raise AssertionError(f"{count} {self._what} awaited for {timeout} s; came:{came}")


class Creation(NamedTuple):
    """A request that the ITSM opened: the id it gave, and what asked for it."""

    request_id: str
    received: Received


class Ledger:
    """What the ITSM has opened: what comes twice, twice, since no ITSM knows idempotency keys."""

    def __init__(self, opens: Callable[[Received], bool]) -> None:
        self._opens = opens
        self.creations: Journal[Creation] = Journal("creations")

    def take(self, received: Received, request_id: object = None) -> str:
        """The id of what `received` opens (as given, else R-1, R-2, ...) or of what it names."""
        if not self._opens(received):
            return str(request_id or named_request(received) or "R-0")

        def creation(number: int) -> Creation:
            return Creation(f"R-{number}" if request_id is None else str(request_id), received)

        return self.creations.append(creation).request_id


# ---- One connection ----------------------------------------------------------------------------


class Line:
    """One accepted connection, used by one thread; only `shut` may come from another.

    Every read and write ends when the client goes, the stand-in stops, or `patience` seconds
    have passed since the request began: then it raises Gone.
    """

    def __init__(
        self, sock: socket.socket, number: int, stopping: threading.Event, patience: float
    ) -> None:
        self.number = number
        self.open = True
        self._sock = sock
        self._stopping = stopping
        self._patience = patience
        self._buffer = bytearray()
        sock.settimeout(patience)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.renew()

    def renew(self) -> None:
        """Patience starts anew: the next request begins."""
        self._deadline = monotonic() + self._patience

    def _check(self) -> None:
        if self._stopping.is_set() or monotonic() > self._deadline:
            raise Gone

    def more(self) -> bool:
        """Waits for the next request to begin; False when the client ends instead."""
        self.renew()
        begun = bool(self._buffer) or self._fill()
        self.renew()
        return begun

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """All up to and with `mark`."""
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit or not self._fill():
                raise Unreadable(f"no {mark!r} in {len(self._buffer)} bytes: {self._sample()}")
        return self._cut(end + len(mark))

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self._buffer) < size:
            if not self._fill():
                raise Unreadable(f"{len(self._buffer)} of {size} bytes: {self._sample()}")
        return self._cut(size)

    def _sample(self) -> str:
        return repr(bytes(self._buffer[:80]))

    def _fill(self) -> bool:
        self._check()
        try:
            piece = self._sock.recv(65536)
        except OSError as problem:
            raise Gone from problem
        self._check()
        self._buffer += piece
        return bool(piece)

    def _cut(self, size: int) -> bytes:
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def send(self, data: bytes) -> None:
        """Writes all of `data`."""
        self._check()
        try:
            self._sock.sendall(data)
        except OSError as problem:
            raise Gone from problem

    def pause(self, seconds: float) -> None:
        """Waits, but not past the end of the stand-in or of patience."""
        self._stopping.wait(min(seconds, self._patience))
        self._check()

    def hang(self) -> None:
        """Says nothing, deaf to what comes, until the client goes."""
        with suppress(OSError):
            while self._sock.recv(65536):
                self._check()
        self.close()

    def close(self) -> None:
        """Ends the connection in the usual way (FIN)."""
        self.open = False
        self._sock.close()

    def reset(self) -> None:
        """Ends the connection rudely (RST): lingering for 0 seconds throws away what is unsent."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def shut(self) -> None:
        """Wakes the thread that reads or writes here, from another one."""
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


def read_request(line: Line) -> Received:
    """The next request of a connection, whole; it has no number yet."""
    head = line.read_until(b"\r\n\r\n", MOST_HEAD).decode("latin-1")
    first, *rest = head[:-4].split("\r\n")
    try:
        method, path, version = first.split(" ")
        pairs = tuple((key, value.strip()) for key, value in (row.split(":", 1) for row in rest))
    except ValueError as problem:
        raise Unreadable(f"no HTTP: {first[:80]!r}") from problem
    headers = Headers(pairs)
    body = read_body(line, headers)
    return Received(0, monotonic(), method, path, headers, body, line.number, version)


def read_body(line: Line, headers: Headers) -> bytes:
    """The body that the headers announce, by length or in chunks."""
    if headers.get("Transfer-Encoding").lower() == "chunked":
        return read_chunks(line)
    length = headers.get("Content-Length", "0")
    if not (length.isascii() and length.isdigit() and int(length[:12]) <= MOST_BODY):
        raise Unreadable(f"Content-Length {length[:40]!r}")
    return line.read(int(length))


def read_chunks(line: Line) -> bytes:
    """A chunked body without its framing; trailers are passed over."""
    body = b""
    while size := chunk_size(line.read_until(b"\r\n", 1000)):
        if len(body) + size > MOST_BODY:
            raise Unreadable(f"more than {MOST_BODY} bytes in chunks")
        body += line.read(size + 2)[:-2]
    while line.read_until(b"\r\n", MOST_HEAD) != b"\r\n":
        pass
    return body


def chunk_size(row: bytes) -> int:
    """The number at the head of a chunk."""
    try:
        return int(row.split(b";")[0], 16)
    except ValueError as problem:
        raise Unreadable(f"chunk {row[:40]!r}") from problem


# ---- Answers: the building blocks --------------------------------------------------------------

Framing = Literal["length", "chunked", "close"]
End = Literal["close", "reset", "hang"]


class Answer(ABC):
    """What the stand-in does about one request. Frozen: it may be played many times at once."""

    @abstractmethod
    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        """Does it; `line.open` afterwards means that the next request may follow."""


@dataclass(frozen=True)
class Reply(Answer):
    """One well-formed HTTP answer. `framing` says how the client learns where the body ends."""

    status: int = 200
    body: bytes = b""
    headers: Pairs = ()
    framing: Framing = "length"

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        line.send(self.wire(bodiless=received.method == "HEAD"))
        wish = Headers(self.headers).get("Connection").lower()
        if received.last or "close" in wish or self.framing == "close":
            line.close()

    def wire(self, bodiless: bool = False) -> bytes:
        """The bytes of it."""
        if self.status < 200 or self.status in (204, 304):
            return head(self.status, *self.headers)
        if self.framing == "length":
            announced, framed = ("Content-Length", str(len(self.body))), self.body
        elif self.framing == "chunked":
            announced, framed = ("Transfer-Encoding", "chunked"), chunk(self.body) + b"0\r\n\r\n"
        else:
            announced, framed = ("Connection", "close"), self.body
        return head(self.status, *self.headers, announced) + (b"" if bodiless else framed)


@dataclass(frozen=True)
class Ok(Answer):
    """Takes the request into the ledger and answers the id at the path `at` of a JSON body."""

    request_id: str | int | None = None
    at: str = "result.request_id"
    status: int = 200
    framing: Framing = "length"

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        counted = ledger.take(received, self.request_id)
        request_id = counted if self.request_id is None else self.request_id
        body = json_bytes(nested(self.at, request_id))
        Reply(self.status, body, JSON, self.framing).play(line, received, ledger)


@dataclass(frozen=True)
class Raw(Answer):
    """These bytes, then the end of the connection: closed, reset, or never."""

    data: bytes = b""
    end: End = "close"

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        if self.data:
            line.send(self.data)
        if self.end == "hang":
            line.hang()
        elif self.end == "reset":
            line.reset()
        else:
            line.close()


@dataclass(frozen=True)
class Stream(Answer):
    """`start`, then `piece` over and over, `every` seconds apart, until the client goes."""

    start: bytes
    piece: bytes
    every: float = 0.0
    times: int = 1_000_000_000

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        line.send(self.start)
        for _ in range(self.times):
            line.send(self.piece)
            line.pause(self.every)
        line.close()


@dataclass(frozen=True)
class Delay(Answer):
    """`then`, after some seconds."""

    seconds: float
    then: Answer

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        line.pause(self.seconds)
        self.then.play(line, received, ledger)


@dataclass(frozen=True)
class Between(Answer):
    """`then`, with these bytes before and after it."""

    then: Answer
    before: bytes = b""
    after: bytes = b""

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        line.send(self.before)
        self.then.play(line, received, ledger)
        if self.after:
            line.send(self.after)


@dataclass(frozen=True)
class Held(Answer):
    """`then`, once the test sets `until`."""

    until: threading.Event
    then: Answer

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        while not self.until.wait(0.01):
            line.pause(0.0)
        self.then.play(line, received, ledger)


@dataclass(frozen=True)
class Take(Answer):
    """Takes the request into the ledger, then does `then`: done, whatever the client hears."""

    then: Answer
    request_id: str | int | None = None

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        ledger.take(received, self.request_id)
        self.then.play(line, received, ledger)


@dataclass(frozen=True)
class Last(Answer):
    """`then`, and the connection ends although nothing said so."""

    then: Answer

    def play(self, line: Line, received: Received, ledger: Ledger) -> None:
        self.then.play(line, received, ledger)
        line.close()


JSON: Pairs = (("Content-Type", "application/json"),)


def head(status: int, *pairs: tuple[str, str]) -> bytes:
    """A status line, header lines, and the empty line after them."""
    reason = next((known.phrase for known in HTTPStatus if known == status), "Unheard Of")
    rows = [f"HTTP/1.1 {status} {reason}", *(f"{key}: {value}" for key, value in pairs)]
    return "".join(f"{row}\r\n" for row in (*rows, "")).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; none for no data, since an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def json_bytes(value: object) -> bytes:
    """JSON as UTF-8."""
    return jsonlib.dumps(value, ensure_ascii=False).encode()


def nested(path: str, value: object) -> object:
    """`value` at a dotted path: `result.0.id` is {"result": [{"id": value}]}."""
    for key in reversed(path.split(".")):
        value = [value] if key.isdigit() else {key: value}
    return value


# ---- Answers: the named ones -------------------------------------------------------------------
#
# Where a misbehaviour carries a body, it is that of a good answer, so that a client which is fooled
# keeps the request id R-WRONG. None of them enters the ledger; inside take(...) it does.

WRONG = json_bytes(nested("result.request_id", "R-WRONG"))
WORDS = "요청을 처리할 수 없습니다."
ABSENT: Any = object()


def ok(
    request_id: str | int | None = None,
    *,
    at: str = "result.request_id",
    status: int = 200,
    framing: Framing = "length",
) -> Ok:
    """A good answer: the id of the request that it opens, by default R-1, R-2, ..."""
    return Ok(request_id, at, status, framing)


def reply(
    status: int = 200,
    *,
    json: Any = ABSENT,
    text: str | None = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    framing: Framing = "length",
) -> Reply:
    """Any whole answer, with a body of JSON, text, bytes, or none."""
    pairs = tuple(headers.items()) if isinstance(headers, Mapping) else tuple(headers)
    body, kind = data or b"", ""
    if json is not ABSENT:
        body, kind = json_bytes(json), "application/json"
    elif text is not None:
        body, kind = text.encode(), "text/plain; charset=utf-8"
    if kind and "Content-Type" not in Headers(pairs):
        pairs += (("Content-Type", kind),)
    return Reply(status, body, pairs, framing)


def delay(seconds: float, then: Answer) -> Delay:
    """`then`, after some seconds."""
    return Delay(seconds, then)


def held(until: threading.Event, then: Answer) -> Held:
    """`then`, once the test sets `until`: for what must happen while a request is in flight."""
    return Held(until, then)


def take(then: Answer, request_id: str | int | None = None) -> Take:
    """The request enters the ledger, then `then` happens, which should not be ok() as well."""
    return Take(then, request_id)


def take_then_cut() -> Take:
    """The create is done, and the line is cut before any answer."""
    return take(hang_up())


def reset() -> Raw:
    """The connection is reset (RST) in place of an answer."""
    return Raw(end="reset")


def hang_up() -> Raw:
    """The connection is closed (FIN) in place of an answer."""
    return Raw(end="close")


def silence() -> Raw:
    """Nothing is said, and the connection stays."""
    return Raw(end="hang")


def drip_headers(every: float = 0.05) -> Stream:
    """One endless header line, a byte at a time."""
    return Stream(b"HTTP/1.1 200 OK\r\nX-Drip: ", b"a", every)


def drip_body(every: float = 0.05) -> Stream:
    """A good body, then blanks up to a far Content-Length, a byte at a time."""
    return Stream(head(200, *JSON, ("Content-Length", "1000000")) + WRONG, b" ", every)


def endless_continue(every: float = 0.001) -> Stream:
    """100 Continue, again and again, and never an answer."""
    return Stream(b"", head(100), every)


def endless_chunks() -> Stream:
    """A good body, then chunks of blanks as fast as the client takes them, without end."""
    return Stream(chunked_start(), chunk(b" " * 4096))


def drip_chunks(every: float = 0.05) -> Stream:
    """A good body, then chunks of one blank each, now and then, without end."""
    return Stream(chunked_start(), chunk(b" "), every)


def chunked_start() -> bytes:
    """The head of a chunked answer and a whole JSON value, but not the end of the body."""
    return head(200, *JSON, ("Transfer-Encoding", "chunked")) + chunk(WRONG)


def huge(size: int = 10_000_000_000) -> Stream:
    """A good body, then blanks up to 10 GB, as fast as the client takes them."""
    piece = b" " * 65536
    start = head(200, *JSON, ("Content-Length", str(size))) + WRONG
    whole, left = divmod(size - len(WRONG), len(piece))
    return Stream(start + piece[:left], piece, times=whole)


@cache
def gzip_bomb(megabytes: int = 300) -> Reply:
    """A good body and 300 MB of blanks, compressed to 300 KB, though nobody asked for that."""
    ten_megabytes = gzip.compress(b" " * 10_000_000)
    data = gzip.compress(WRONG) + ten_megabytes * (megabytes // 10)
    return Reply(200, data, (*JSON, ("Content-Encoding", "gzip")))


def many_headers(count: int = 500) -> Reply:
    """A good answer under 500 headers."""
    return Reply(200, WRONG, (*JSON, *((f"X-Header-{n}", str(n)) for n in range(count))))


def long_header(size: int = 70_000) -> Reply:
    """A good answer with one header line of 70 KB."""
    return Reply(200, WRONG, (*JSON, ("X-Long", "a" * size)))


def cut_in_headers() -> Raw:
    """Closed in the middle of a header line."""
    return Raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Le")


def cut_in_body() -> Raw:
    """Closed in the middle of the JSON, with the right Content-Length."""
    return Raw(Reply(200, WRONG, JSON).wire()[:-10])


def length_too_long() -> Raw:
    """A whole JSON body, closed ten bytes short of its Content-Length."""
    return Raw(head(200, *JSON, ("Content-Length", str(len(WRONG) + 10))) + WRONG)


def reset_in_body() -> Raw:
    """As `length_too_long`, but reset."""
    return Raw(length_too_long().data, "reset")


def cut_in_chunks() -> Raw:
    """A whole JSON body in chunks, closed before the last, empty chunk."""
    return Raw(chunked_start())


def no_length_cut() -> Raw:
    """No length, closed in the middle of the JSON."""
    return Raw(head(200, *JSON) + WRONG[:-10])


def no_length_text() -> Raw:
    """No length, and closed after a body that is neither JSON nor HTML: it may have been cut."""
    return Raw(head(200, ("Content-Type", "text/plain")) + b"OK, your request was st")


def no_length() -> Ok:
    """A good answer whose end is the end of the connection."""
    return ok(framing="close")


def nonsense() -> Raw:
    """Something that is not HTTP."""
    return Raw(b"SSH-2.0-OpenSSH_9.2\r\n\x00\xff\r\n\r\n")


def error_inside() -> Reply:
    """200, and the refusal is in the body, without an id."""
    return reply(json={"result": {"code": "99", "message": WORDS}})


def html(status: int = 200) -> Reply:
    """A page for people, such as a log-in form."""
    page = f"<!DOCTYPE html><html><head><title>Log in</title></head><body>{WORDS}</body></html>"
    return reply(status, text=page, headers={"Content-Type": "text/html; charset=utf-8"})


def plain_text() -> Reply:
    """200 with a whole text that is not JSON."""
    return reply(text="OK")


def empty(status: int = 200) -> Reply:
    """No body at all."""
    return reply(status)


def with_id(value: Any) -> Reply:
    """200 with just this as the request id, whatever it is; nothing enters the ledger."""
    return reply(json=nested("result.request_id", value))


def redirect(status: int, location: str = "/elsewhere") -> Reply:
    """A redirect; the default would show in the stand-in's own `requests` if it were followed."""
    return reply(status, headers={"Location": location})


def unauthorized() -> Reply:
    """401: the credential is wrong."""
    challenge = {"WWW-Authenticate": 'Basic realm="ITSM"'}
    return reply(401, json={"error": WORDS}, headers=challenge)


def too_many(retry_after: str | None = None) -> Reply:
    """429 with this Retry-After, as it stands (in UTF-8), or with none."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return reply(429, json={"error": WORDS}, headers=headers)


REDIRECTS = (301, 302, 303, 307, 308)
ODD_IDS: dict[str, Any] = {
    "id-null": None,
    "id-false": False,
    "id-true": True,
    "id-blank": "",
    "id-object": {},
    "id-list": [],
}
PLAIN_STATUSES = (400, 403, 404, 405, 407, 408, 409, 410, 422, 425, 500, 502, 503, 504)

MODES: dict[str, Callable[[], Answer]] = {
    # good, if not always usual: each of these enters the ledger
    "ok": ok,
    "ok-chunked": partial(ok, framing="chunked"),
    "ok-then-closed": lambda: Last(ok()),
    "ok-201": partial(ok, status=201),
    "ok-number": partial(ok, 4711),
    "no-length": no_length,
    # done, but the client does not hear of it
    "take-then-cut": take_then_cut,
    "take-then-reset": lambda: take(reset()),
    "take-then-silence": lambda: take(silence()),
    "take-then-504": lambda: take(reply(504)),
    # no answer
    "reset": reset,
    "hang-up": hang_up,
    "silence": silence,
    "nonsense": nonsense,
    # an answer without end
    "drip-headers": drip_headers,
    "drip-body": drip_body,
    "drip-chunks": drip_chunks,
    "endless-continue": endless_continue,
    "endless-chunks": endless_chunks,
    # too much
    "huge": huge,
    "gzip-bomb": gzip_bomb,
    "many-headers": many_headers,
    "long-header": long_header,
    # cut
    "cut-in-headers": cut_in_headers,
    "cut-in-body": cut_in_body,
    "length-too-long": length_too_long,
    "reset-in-body": reset_in_body,
    "cut-in-chunks": cut_in_chunks,
    "no-length-cut": no_length_cut,
    "no-length-text": no_length_text,
    # whole, but not what is expected
    "error-inside": error_inside,
    "html": html,
    "plain-text": plain_text,
    "empty": empty,
    "no-content": partial(empty, 204),
    "list": lambda: reply(json=[]),
    **{name: partial(with_id, value) for name, value in ODD_IDS.items()},
    # other statuses
    **{str(status): partial(redirect, status) for status in REDIRECTS},
    "401": unauthorized,
    "429": partial(too_many, "3"),
    **{str(status): partial(reply, status) for status in PLAIN_STATUSES},
    "503-html": partial(html, 503),
}


# ---- The listening side ------------------------------------------------------------------------


class Door:
    """A listening socket with its connections, each on a thread, from `start` to `end`.

    No lock: only the accepting thread changes `_lines`, and `end` reads it when that one is over.
    """

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None,
        number: Callable[[], int],
        serve: Callable[[Line], None],
        patience: float,
    ) -> None:
        self._tls = tls
        self._number = number
        self._serve = serve
        self._patience = patience
        self._stopping = threading.Event()
        self._lines: dict[Line, threading.Thread] = {}
        self._listener = bound(port)
        self._listener.listen(128)
        self._listener.settimeout(1.0)
        self._acceptor = threading.Thread(target=self._accept, name=f"itsm-{port}", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                self._welcome(self._listener.accept()[0])
            except TimeoutError:
                continue
            except OSError:  # woken by `end`, a client that left at once, or no descriptors left
                self._stopping.wait(0.01)

    def _welcome(self, sock: socket.socket) -> None:
        number = self._number()
        self._lines = {line: thread for line, thread in self._lines.items() if thread.is_alive()}
        if self._stopping.is_set() or len(self._lines) >= MOST_LINES:
            sock.close()
            return
        line = Line(self._wrapped(sock), number, self._stopping, self._patience)
        name = f"{self._acceptor.name}-{number}"
        thread = threading.Thread(target=self._serve, args=(line,), name=name, daemon=True)
        thread.start()
        self._lines[line] = thread

    def _wrapped(self, sock: socket.socket) -> socket.socket:
        """With TLS, shaking hands at the first read, on the connection's own thread."""
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()
            raise

    def end(self) -> None:
        """Refuses, cuts every connection, and returns when all threads are over."""
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(JOIN)
        self._listener.close()
        for line in self._lines:
            line.shut()
        deadline = monotonic() + JOIN
        others = [t for t in self._lines.values() if t is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - monotonic()))
        if alive := [thread.name for thread in others if thread.is_alive()]:
            raise AssertionError(f"still running: {alive}")


def bound(port: int) -> socket.socket:
    """A socket bound on loopback, not listening: whoever connects is refused."""
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def tls_context(certfile: str, keyfile: str, client_ca: str | None) -> ssl.SSLContext:
    """The server's side of TLS; with `client_ca` a client must show a certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def certificate(
    folder: Path, days: int = 30, names: str = "DNS:localhost,IP:127.0.0.1"
) -> tuple[str, str]:
    """(certfile, keyfile), self-signed, made with openssl; -1 days makes an expired one."""
    cert, key = str(folder / "itsm-cert.pem"), str(folder / "itsm-key.pem")
    asked = ["-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]
    signed = ["-in", cert, "-signkey", key, "-days", str(days), "-out", cert]
    for command in (["req", "-x509", *curve, *asked, "-out", cert], ["x509", *signed]):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=30)
    return cert, key


# ---- The stand-in ------------------------------------------------------------------------------


class Itsm:
    """The stand-in. It listens inside `with`, or between `start()` and `close()`.

    What it answers may be changed while it runs: what `decide(received)` gives, where there is a
    `decide`; without one, the next of `script`, in the order of the requests; else `answer`.

    `failures` holds what `decide` raised (the client is cut off, and leaving `with` raises it);
    `unreadable` what came that was no whole HTTP request; `connections` how many were accepted.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        script: Iterable[Answer] = (),
        decide: Callable[[Received], Answer | None] | None = None,
        port: int = 0,
        tls: tuple[str, str] | None = None,
        client_ca: str | None = None,
        opens: Callable[[Received], bool] = names_no_request,
        patience: float = PATIENCE,
    ) -> None:
        self.answer: Answer = answer or ok()
        self.script = list(script)
        self.decide = decide
        self.failures: list[Exception] = []
        self.unreadable: list[str] = []
        self.connections = 0
        self._requests: Journal[Received] = Journal("requests")
        self._ledger = Ledger(opens)
        self._tls = tls_context(*tls, client_ca) if tls else None
        self._patience = patience
        self._lock = threading.Lock()  # guards _door, and the order of requests against the script
        self._door: Door | None = None
        self._place = bound(port)  # keeps the port ours while we do not listen on it

    @property
    def port(self) -> int:
        """The same for the whole life, also while stopped."""
        port: int = self._place.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where requests are to go."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/api"

    @property
    def requests(self) -> list[Received]:
        """All that came, in order: a copy."""
        return self._requests.all()

    @property
    def created(self) -> list[Creation]:
        """The ledger: (request_id, received) for every request opened, in order; a copy."""
        return self._ledger.creations.all()

    def repeated(self) -> dict[str, list[str]]:
        """Idempotency keys under which more than one request was opened, with the ids of these."""
        ids: dict[str, list[str]] = {}
        for request_id, received in self.created:
            ids.setdefault(received.key, []).append(request_id)
        return {key: several for key, several in ids.items() if len(several) > 1}

    def wait_for(
        self,
        count: int,
        timeout: float = 30.0,
        where: Callable[[Received], bool] = lambda received: True,
    ) -> list[Received]:
        """All requests that fit, once there are `count`; or AssertionError with what came."""
        return self._requests.wait(count, timeout, where)

    def wait_created(self, count: int, timeout: float = 30.0) -> list[Creation]:
        """The ledger, once it holds `count`; or AssertionError with what came."""
        return self._ledger.creations.wait(count, timeout, lambda creation: True)

    def start(self) -> None:
        """Listens (again), on the same port."""
        with self._lock:
            if self._door is None:
                self._door = Door(self.port, self._tls, self._count, self._serve, self._patience)

    def stop(self) -> None:
        """Cuts every connection and refuses new ones, until `start()`."""
        with self._lock:
            door, self._door = self._door, None
        if door is not None:
            door.end()

    def close(self) -> None:
        """Stops, and gives the port away."""
        try:
            self.stop()
        finally:
            self._place.close()

    def __enter__(self) -> Itsm:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if problem is None and self.failures:
            raise self.failures[0]

    def _count(self) -> int:
        self.connections += 1  # by the accepting thread alone
        return self.connections

    def _serve(self, line: Line) -> None:
        """One connection, request by request: the thread of each line."""
        try:
            while line.open and line.more():
                received, answer = self._admit(read_request(line))
                answer.play(line, received, self._ledger)
        except Gone:
            pass
        except Unreadable as problem:
            self.unreadable.append(str(problem))
            with suppress(Gone):
                line.send(Reply(400).wire())
        except Exception as problem:
            self.failures.append(problem)
        finally:
            line.close()

    def _admit(self, read: Received) -> tuple[Received, Answer]:
        """Numbers and keeps a request, and chooses the answer to it."""
        decide = self.decide
        with self._lock:
            received = self._requests.append(
                lambda number: replace(read, number=number, at=monotonic())
            )
            scripted = self.script.pop(0) if self.script and not decide else self.answer
        return received, (decide and decide(received)) or scripted


# ---- By hand -----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Runs one mode until interrupted, a line per request."""
    parser = argparse.ArgumentParser(description="An ITSM stand-in on loopback.")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument(
        "--mode", choices=MODES, default="ok", metavar="MODE", help=", ".join(MODES)
    )
    parser.add_argument("--tls", nargs=2, metavar=("CERTFILE", "KEYFILE"))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & leaves it ignored

    def announce(received: Received) -> Answer:
        print(received, flush=True)
        return MODES[options.mode]()

    with Itsm(decide=announce, port=options.port, tls=options.tls) as itsm:
        print(f"{options.mode} at {itsm.url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
