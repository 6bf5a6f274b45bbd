"""The ITSM stand-in does on the wire what its modes say, and leaves nothing behind."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest

import itsm as stand_in
from itsm import (
    MODES,
    ODD_IDS,
    PLAIN_STATUSES,
    REDIRECTS,
    WRONG,
    Answer,
    Itsm,
    Last,
    Received,
    certificate,
    delay,
    drip_body,
    hang_up,
    held,
    huge,
    ok,
    redirect,
    reply,
    silence,
    take,
    take_then_cut,
    too_many,
)

CREATE = {"code": "000", "title": "프린터 고장"}
NAMES = {"code": "020", "request_id": "R-1"}


# ---- A client with open eyes -------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """All bytes of an answer, in how many pieces, and how it ended.

    `end`: "closed" (FIN), "reset" (RST), "open" when the time was over, "enough" at `most` bytes.
    """

    data: bytes
    pieces: int
    end: str


def listen(sock: socket.socket, seconds: float = 5.0, most: int = 1_000_000) -> Heard:
    """Reads until the other side ends, the time is over, or there is enough."""
    data, pieces, deadline = b"", 0, monotonic() + seconds
    while len(data) < most:
        sock.settimeout(max(0.001, deadline - monotonic()))
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            return Heard(data, pieces, "open")
        except ConnectionResetError:
            return Heard(data, pieces, "reset")
        if not piece:
            return Heard(data, pieces, "closed")
        data, pieces = data + piece, pieces + 1
    return Heard(data, pieces, "enough")


def connected(itsm: Itsm) -> socket.socket:
    return socket.create_connection(("127.0.0.1", itsm.port), timeout=5)


def request(last: bool = True) -> bytes:
    """A create as bytes; `last` asks for the end of the connection after the answer."""
    body = json.dumps(CREATE).encode()
    wish = "close" if last else "keep-alive"
    rows = [
        "POST /api HTTP/1.1",
        "Host: itsm",
        f"Connection: {wish}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*rows, "", ""]).encode() + body


def hear(answer: Answer, seconds: float = 5.0, most: int = 1_000_000) -> Heard:
    """What a client hears when the stand-in answers so."""
    with Itsm(answer) as itsm, connected(itsm) as sock:
        sock.sendall(request())
        return listen(sock, seconds, most)


class Wire:
    """Bytes in the place of a socket, for http.client to read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parsed(data: bytes) -> http.client.HTTPResponse:
    """The answer as a strict reader takes it; its read() raises IncompleteRead when it was cut."""
    answer = http.client.HTTPResponse(cast(socket.socket, Wire(data)))
    answer.begin()
    return answer


def post(
    itsm: Itsm, body: object = CREATE, key: str = "k-1", method: str = "POST", path: str = "/api"
) -> Any:
    """Sends one request on a connection of its own; the JSON of the answer."""
    line = http.client.HTTPConnection("127.0.0.1", itsm.port, timeout=5)
    try:
        line.request(method, path, json.dumps(body).encode(), {"Idempotency-Key": key})
        return json.loads(line.getresponse().read())
    finally:
        line.close()


def lost(itsm: Itsm, key: str = "k-1") -> None:
    """Sends a create whose answer never comes."""
    with pytest.raises((http.client.HTTPException, OSError)):
        post(itsm, key=key)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("itsm-")]


# ---- Every mode on the wire --------------------------------------------------------------------


def result(request_id: object) -> bytes:
    return json.dumps({"result": {"request_id": request_id}}).encode()


WHOLE: dict[str, tuple[int, bytes]] = {
    "ok": (200, result("R-1")),
    "ok-chunked": (200, result("R-1")),
    "ok-then-closed": (200, result("R-1")),
    "ok-201": (201, result("R-1")),
    "ok-number": (200, result(4711)),
    "no-length": (200, result("R-1")),
    "take-then-504": (504, b""),
    "many-headers": (200, WRONG),
    "long-header": (200, WRONG),
    "plain-text": (200, b"OK"),
    "empty": (200, b""),
    "no-content": (204, b""),
    "list": (200, b"[]"),
    **{name: (200, result(value)) for name, value in ODD_IDS.items()},
    **{str(status): (status, b"") for status in (*REDIRECTS, *PLAIN_STATUSES)},
}
NOTHING = {
    "take-then-cut": "closed",
    "hang-up": "closed",
    "take-then-reset": "reset",
    "reset": "reset",
    "take-then-silence": "open",
    "silence": "open",
}
ENDLESS = {  # how it begins, what comes over and over, and how much of it is listened to
    "drip-headers": (b"HTTP/1.1 200 OK\r\nX-Drip: a", b"a", 30),
    "drip-body": (b"HTTP/1.1 200 OK\r\n", b" ", 125),
    "drip-chunks": (b"HTTP/1.1 200 OK\r\n", b"1\r\n \r\n", 150),
    "endless-continue": (b"HTTP/1.1 100 ", b"HTTP/1.1 100 Continue\r\n\r\n", 2_500),
    "endless-chunks": (b"HTTP/1.1 200 OK\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n", 300_000),
    "huge": (b"HTTP/1.1 200 OK\r\n", b" " * 65536, 300_000),
}
CUT = {
    "cut-in-headers": "closed",
    "cut-in-body": "closed",
    "length-too-long": "closed",
    "reset-in-body": "reset",
    "cut-in-chunks": "closed",
}
APART = {
    "nonsense",
    "gzip-bomb",
    "no-length-cut",
    "no-length-text",
    "error-inside",
    "html",
    "503-html",
    "401",
    "429",
}


def test_every_mode_is_looked_at_here() -> None:
    assert set(MODES) == {*WHOLE, *NOTHING, *ENDLESS, *CUT, *APART}


def limitless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets http.client read 500 headers and lines of 70 KB, which it refuses by default."""
    monkeypatch.setattr(http.client, "_MAXHEADERS", 1000)
    monkeypatch.setattr(http.client, "_MAXLINE", 1 << 20)


@pytest.mark.parametrize("mode", WHOLE)
def test_a_whole_answer_has_its_status_and_body(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limitless(monkeypatch)
    heard = hear(MODES[mode]())
    answer = parsed(heard.data)
    assert heard.end == "closed"
    assert (answer.status, answer.read()) == WHOLE[mode]


@pytest.mark.parametrize("mode", NOTHING)
def test_a_mode_without_answer_sends_no_byte(mode: str) -> None:
    heard = hear(MODES[mode](), seconds=0.3 if NOTHING[mode] == "open" else 5.0)
    assert (heard.data, heard.end) == (b"", NOTHING[mode])


@pytest.mark.parametrize("mode", ENDLESS)
def test_an_endless_mode_goes_on_in_pieces(mode: str) -> None:
    start, piece, most = ENDLESS[mode]
    heard = hear(MODES[mode](), most=most)
    assert heard.data.startswith(start)
    assert piece * 2 in heard.data
    assert heard.pieces >= 2
    assert heard.end == "enough"


@pytest.mark.parametrize("mode", ["drip-body", "drip-chunks", "endless-chunks", "huge"])
def test_an_endless_body_begins_as_a_good_one(mode: str) -> None:
    answer = parsed(hear(MODES[mode](), most=ENDLESS[mode][2]).data)
    assert (answer.status, answer.read(len(WRONG))) == (200, WRONG)


@pytest.mark.parametrize("mode", CUT)
def test_a_cut_answer_cannot_be_read_whole(mode: str) -> None:
    heard = hear(MODES[mode]())
    assert heard.end == CUT[mode]
    assert heard.data.startswith(b"HTTP/1.1 200 OK\r\n")
    if mode == "cut-in-headers":
        assert heard.data.rpartition(b"\r\n")[2] == b"Content-Le"
        return
    answer = parsed(heard.data)
    with pytest.raises(http.client.IncompleteRead):
        answer.read()


@pytest.mark.parametrize("mode", ["length-too-long", "reset-in-body", "cut-in-chunks"])
def test_some_cuts_leave_a_whole_json_value(mode: str) -> None:
    assert WRONG in hear(MODES[mode]()).data


def test_a_cut_without_length_looks_complete_but_is_no_json() -> None:
    answer = parsed(hear(MODES["no-length-cut"]()).data)
    body = answer.read()
    assert "Content-Length" not in answer.headers
    assert WRONG.startswith(body)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


def test_text_without_length_is_neither_json_nor_html() -> None:
    answer = parsed(hear(MODES["no-length-text"]()).data)
    assert (answer.status, answer.headers["Content-Length"]) == (200, None)
    assert answer.read() == b"OK, your request was st"


def test_nonsense_is_not_http() -> None:
    with pytest.raises(http.client.BadStatusLine):
        parsed(hear(MODES["nonsense"]()).data)


def test_the_huge_answer_announces_ten_gigabytes_and_never_more_than_it_sends() -> None:
    assert parsed(hear(huge(), most=1000).data).headers["Content-Length"] == "10000000000"
    small = hear(huge(300_000))
    assert small.end == "closed"
    assert len(parsed(small.data).read()) == 300_000


def test_the_gzip_bomb_is_small_on_the_wire_and_300_mb_unpacked() -> None:
    answer = parsed(hear(MODES["gzip-bomb"]()).data)
    packed = answer.read()
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(packed) < 1 << 20
    start, size = b"", 0
    while packed:
        member = zlib.decompressobj(wbits=31)
        unpacked = member.decompress(packed)
        start, size, packed = start or unpacked, size + len(unpacked), member.unused_data
    assert (start, size) == (WRONG, 300_000_000 + len(WRONG))


def test_many_headers_are_500_and_the_long_one_is_70_kb() -> None:
    assert hear(MODES["many-headers"]()).data.count(b"\r\nX-Header-") == 500
    assert b"X-Long: " + b"a" * 70_000 in hear(MODES["long-header"]()).data


def test_an_error_inside_has_words_and_no_id() -> None:
    answer = parsed(hear(MODES["error-inside"]()).data)
    inside = json.loads(answer.read())["result"]
    assert (answer.status, inside["code"]) == (200, "99")
    assert "request_id" not in inside


@pytest.mark.parametrize(("mode", "status"), [("html", 200), ("503-html", 503)])
def test_a_page_is_html(mode: str, status: int) -> None:
    answer = parsed(hear(MODES[mode]()).data)
    assert (answer.status, answer.headers.get_content_type()) == (status, "text/html")
    assert answer.read().startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_names_the_place_it_was_given(status: int) -> None:
    answer = parsed(hear(redirect(status, "http://10.0.0.1/elsewhere")).data)
    assert (answer.status, answer.headers["Location"]) == (status, "http://10.0.0.1/elsewhere")


def test_a_redirect_that_is_followed_shows() -> None:
    """The control of a test that says a client follows none: urllib.request does."""
    with Itsm(script=[redirect(302)]) as itsm:
        urllib.request.urlopen(itsm.url, b"{}", timeout=5).close()
        assert [received.path for received in itsm.requests] == ["/api", "/elsewhere"]


def test_401_asks_for_a_credential() -> None:
    answer = parsed(hear(MODES["401"]()).data)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="ITSM"')


@pytest.mark.parametrize("value", ["3", "-5", "soon", "1e9", "9" * 5000, "1_000", "٣", ""])
def test_429_says_retry_after_as_it_was_given(value: str) -> None:
    data = hear(too_many(value)).data
    assert data.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert f"\r\nRetry-After: {value}\r\n".encode() in data


def test_429_can_be_without_retry_after() -> None:
    assert b"Retry-After" not in hear(too_many()).data


# ---- What is kept of a request -----------------------------------------------------------------


def test_a_request_is_kept_whole() -> None:
    with Itsm() as itsm, connected(itsm) as sock:
        before = monotonic()
        sock.sendall(b"PATCH /api/7?a=b%20c HTTP/1.1\r\nhost: x\r\nX-Two: 1\r\nx-two:  2 \r\n")
        sock.sendall(b'Content-Length: 12\r\nConnection: close\r\n\r\n{"a": "\xea\xb0\x80"}')
        listen(sock)
        (received,) = itsm.requests
    assert (received.number, received.connection) == (1, 1)
    assert before <= received.at <= monotonic()
    assert (received.method, received.path) == ("PATCH", "/api/7?a=b%20c")
    assert received.headers.pairs[:3] == (("host", "x"), ("X-Two", "1"), ("x-two", "2"))
    assert (received.headers["HOST"], received.headers.all("X-TWO")) == ("x", ["1", "2"])
    assert "X-Three" not in received.headers
    assert received.json() == {"a": "가"}
    with pytest.raises(FrozenInstanceError):
        received.number = 2  # type: ignore[misc]


def test_a_chunked_request_is_put_together() -> None:
    with Itsm() as itsm:
        line = http.client.HTTPConnection("127.0.0.1", itsm.port, timeout=5)
        line.request("POST", "/api", iter([b'{"a"', b": 1}"]), encode_chunked=True)
        line.getresponse().read()
        line.close()
        assert itsm.requests[0].json() == {"a": 1}


def test_one_connection_carries_several_requests() -> None:
    with Itsm() as itsm:
        line = http.client.HTTPConnection("127.0.0.1", itsm.port, timeout=5)
        for _ in range(3):
            line.request("POST", "/api", b"{}")
            line.getresponse().read()
        line.close()
        assert [(received.number, received.connection) for received in itsm.requests] == [
            (1, 1),
            (2, 1),
            (3, 1),
        ]
        assert itsm.connections == 1


def test_a_connection_can_end_unannounced_after_a_good_answer() -> None:
    with Itsm(Last(ok())) as itsm, connected(itsm) as sock:
        sock.sendall(request(last=False))
        heard = listen(sock)
    assert heard.end == "closed"
    assert b"Connection: close" not in heard.data


def test_head_is_answered_without_a_body() -> None:
    with Itsm() as itsm:
        line = http.client.HTTPConnection("127.0.0.1", itsm.port, timeout=5)
        for _ in range(2):
            line.request("HEAD", "/api")
            answer = line.getresponse()
            assert int(answer.headers["Content-Length"]) > 0
            assert answer.read() == b""
        line.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /half HTTP/1.1\r\nHost:",
        b"no http at all\x00\r\n\r\n",
        b"POST /api HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
        b"POST /api HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_what_is_no_whole_request_is_told_apart(sent: bytes) -> None:
    with Itsm() as itsm, connected(itsm) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert listen(sock).data.startswith(b"HTTP/1.1 400 ")
        assert (itsm.requests, len(itsm.unreadable)) == ([], 1)


def test_a_client_that_only_connects_is_no_fault() -> None:
    with Itsm() as itsm:
        connected(itsm).close()
        post(itsm)
        assert (itsm.unreadable, itsm.connections) == ([], 2)


# ---- What decides the answer -------------------------------------------------------------------


def test_the_script_comes_first_and_then_the_answer() -> None:
    with Itsm(reply(json="after"), script=[reply(json=1), reply(json=2)]) as itsm:
        assert [post(itsm) for _ in range(4)] == [1, 2, "after", "after"]


def test_script_and_answer_can_be_changed_while_it_runs() -> None:
    with Itsm() as itsm:
        itsm.script = [reply(json="scripted")]
        itsm.answer = reply(json="other")
        assert [post(itsm), post(itsm)] == ["scripted", "other"]


def test_requests_that_come_at_once_take_the_script_in_their_order() -> None:
    with Itsm(script=[reply(json=n + 1) for n in range(40)]) as itsm:
        answers: dict[str, int] = {}

        def client(key: str) -> None:
            answers[key] = post(itsm, key=key)

        clients = [threading.Thread(target=client, args=(str(n),)) for n in range(40)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(10)
        assert {received.key: received.number for received in itsm.requests} == answers


def test_decide_sees_the_request_and_falls_back_on_the_answer() -> None:
    def decide(received: Received) -> Answer | None:
        return reply(json="seen") if received.path == "/seen" else None

    with Itsm(reply(json="answer"), script=[reply(500)], decide=decide) as itsm:
        assert [post(itsm, path="/seen"), post(itsm, path="/other")] == ["seen", "answer"]
        itsm.decide = None
        itsm.script = []
        assert post(itsm, path="/seen") == "answer"


def test_what_decide_raises_cuts_the_client_off_and_reaches_the_test() -> None:
    def decide(received: Received) -> Answer:
        raise LookupError("a mistake in a test")

    with pytest.raises(LookupError, match="a mistake in a test"), Itsm(decide=decide) as itsm:
        lost(itsm)


def test_decide_may_bring_the_stand_in_down() -> None:
    with Itsm() as itsm:

        def decide(received: Received) -> Answer:
            itsm.stop()
            return ok()

        itsm.decide = decide
        lost(itsm)
        with pytest.raises(ConnectionRefusedError):
            connected(itsm)


def test_a_reply_carries_any_body_and_headers() -> None:
    data = hear(reply(418, data=b"\x00\xff", headers={"X-A": "1", "Content-Type": "a/b"})).data
    answer = parsed(data)
    assert (answer.status, answer.read()) == (418, b"\x00\xff")
    assert (answer.headers["X-A"], answer.headers.get_all("Content-Type")) == ("1", ["a/b"])
    assert parsed(hear(reply(json=None)).data).read() == b"null"
    assert parsed(hear(reply(599, text="가")).data).read().decode() == "가"


# ---- The ledger --------------------------------------------------------------------------------


def test_ids_are_counted_and_later_events_keep_theirs() -> None:
    with Itsm() as itsm:
        ids = [post(itsm, body)["result"]["request_id"] for body in (CREATE, NAMES, CREATE)]
        assert ids == ["R-1", "R-1", "R-2"]
        assert [creation.request_id for creation in itsm.created] == ["R-1", "R-2"]
        assert [received.number for _, received in itsm.created] == [1, 3]


def test_a_create_repeated_under_its_key_shows() -> None:
    with Itsm(script=[take_then_cut()]) as itsm:
        lost(itsm, key="k-1")
        post(itsm, key="k-2")
        assert itsm.repeated() == {}
        post(itsm, key="k-1")
        assert itsm.repeated() == {"k-1": ["R-1", "R-3"]}


@pytest.mark.parametrize("mode", MODES)
def test_only_good_modes_and_take_enter_the_ledger(mode: str) -> None:
    with Itsm(MODES[mode]()) as itsm, connected(itsm) as sock:
        sock.sendall(request())
        itsm.wait_for(1)
        if mode.startswith(("ok", "take", "no-length")) and mode not in APART:
            assert len(itsm.wait_created(1)) == 1
        else:
            listen(sock, seconds=0.1)
            assert itsm.created == []


def test_an_id_can_be_given_as_text_or_number_at_any_path() -> None:
    with Itsm(script=[ok("INC-7", at="result.0.sys_id", status=201), ok(7, at="id")]) as itsm:
        assert post(itsm) == {"result": [{"sys_id": "INC-7"}]}
        assert post(itsm) == {"id": 7}
        assert [creation.request_id for creation in itsm.created] == ["INC-7", "7"]


def test_what_opens_a_request_can_be_said() -> None:
    with Itsm(opens=lambda received: received.path == "/open") as itsm:
        for path in ("/other", "/open"):
            post(itsm, path=path)
        assert [received.path for _, received in itsm.created] == ["/open"]


def test_any_misbehaviour_can_come_after_the_work_is_done() -> None:
    with Itsm(take(reply(500, json="sorry"), "R-77")) as itsm:
        assert post(itsm) == "sorry"
        assert itsm.created[0].request_id == "R-77"


# ---- Waiting -----------------------------------------------------------------------------------


def test_waiting_ends_when_enough_has_come() -> None:
    with Itsm() as itsm:
        clients = [threading.Thread(target=post, args=(itsm,)) for _ in range(3)]
        for thread in clients:
            thread.start()
        assert len(itsm.wait_for(3)) == 3
        assert len(itsm.wait_created(3)) == 3
        for thread in clients:
            thread.join(5)


def test_waiting_in_vain_says_what_came() -> None:
    with Itsm() as itsm:
        post(itsm, {"title": "a\x1b\nb"})
        with pytest.raises(AssertionError, match=r"2 requests.*\n  #1 POST /api \d+ bytes \{"):
            itsm.wait_for(2, timeout=0.05)
        with pytest.raises(AssertionError, match="2 creations"):
            itsm.wait_created(2, timeout=0.05)


def test_waiting_can_be_for_some_requests_only() -> None:
    with Itsm() as itsm:
        post(itsm, CREATE)
        post(itsm, NAMES)
        (named,) = itsm.wait_for(1, where=lambda received: received.json()["code"] == "020")
        assert named.number == 2


def test_a_line_about_a_request_holds_no_control_characters() -> None:
    with Itsm() as itsm, connected(itsm) as sock:
        sock.sendall(
            b"POST /\x1b[31m HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\na\nb"
        )
        listen(sock)
        assert str(itsm.requests[0]) == "#1 POST /\\x1b[31m 3 bytes a\\nb"


# ---- Time and ends -----------------------------------------------------------------------------


def test_a_delay_delays() -> None:
    with Itsm(delay(0.2, ok())) as itsm:
        before = monotonic()
        post(itsm)
        assert monotonic() - before >= 0.2


def test_a_held_answer_comes_when_the_test_lets_it() -> None:
    until = threading.Event()
    with Itsm(held(until, reply(json="at last"))) as itsm, connected(itsm) as sock:
        sock.sendall(request())
        itsm.wait_for(1)
        assert listen(sock, seconds=0.1).data == b""
        until.set()
        assert parsed(listen(sock).data).read() == b'"at last"'


def hanging() -> dict[str, Callable[[], Answer]]:
    """What else can hang, besides the modes."""
    never = threading.Event()
    return {"delay": lambda: delay(60, ok()), "held": lambda: held(never, ok())}


@pytest.mark.parametrize("mode", [*MODES, *hanging()])
def test_closing_ends_every_mode_at_once_and_leaves_nothing(mode: str) -> None:
    answer = {**MODES, **hanging()}[mode]()
    descriptors = len(os.listdir("/proc/self/fd"))
    itsm = Itsm(answer)
    itsm.start()
    with connected(itsm) as sock:
        sock.sendall(request(last=False))  # and reads nothing
        itsm.wait_for(1)
        before = monotonic()
        itsm.close()
        assert monotonic() - before < 1.0
    assert own_threads() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # older ones may go meanwhile
    assert itsm.failures == []


@pytest.mark.parametrize("sent", [b"", b"POST /api HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"])
def test_closing_ends_connections_that_have_not_asked_yet(sent: bytes) -> None:
    with Itsm() as itsm, connected(itsm) as sock:
        sock.sendall(sent)
        post(itsm)
        itsm.close()
        assert own_threads() == []
        assert itsm.unreadable == []


@pytest.mark.parametrize("answer", [silence(), drip_body(0.01), delay(60, ok())])
def test_patience_ends_what_no_one_ends(answer: Answer) -> None:
    with Itsm(answer, patience=0.2) as itsm, connected(itsm) as sock:
        sock.sendall(request())
        assert listen(sock).end == "closed"


def test_a_client_that_goes_ends_its_thread() -> None:
    with Itsm(huge()) as itsm:
        with connected(itsm) as sock:
            sock.sendall(request())
            assert listen(sock).end == "enough"
        for thread in threading.enumerate():
            if thread.name == f"itsm-{itsm.port}-1":
                thread.join(5)
        assert own_threads() == [f"itsm-{itsm.port}"]


def test_stopped_it_refuses_and_started_it_answers_on_the_same_port() -> None:
    with Itsm() as itsm:
        port, url = itsm.port, itsm.url
        for _ in range(3):
            post(itsm)
            itsm.stop()
            itsm.stop()
            with pytest.raises(ConnectionRefusedError):
                connected(itsm)
            assert (itsm.port, itsm.url) == (port, url)
            itsm.start()
            itsm.start()
        post(itsm)
        assert len(itsm.requests) == 4
        assert url == f"http://127.0.0.1:{port}/api"


def test_stopping_cuts_open_connections() -> None:
    with Itsm(silence()) as itsm, connected(itsm) as sock:
        sock.sendall(request())
        itsm.wait_for(1)
        itsm.stop()
        assert listen(sock).end in ("closed", "reset")


def test_a_stopped_port_is_not_given_to_others() -> None:
    with Itsm() as itsm:
        itsm.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", itsm.port))


def test_it_comes_back_on_a_port_it_is_given() -> None:
    with Itsm() as first:
        port = first.port
        post(first)
    with Itsm(port=port) as second:
        post(second)
        assert second.port == port


def test_a_port_in_use_is_refused_and_nothing_leaks() -> None:
    with Itsm() as itsm:
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            Itsm(port=itsm.port)
        assert len(os.listdir("/proc/self/fd")) <= descriptors  # older ones may go meanwhile


def test_there_is_an_end_to_how_many_requests_are_kept() -> None:
    journal = stand_in.Journal[int]("numbers", most=2)
    assert [journal.append(lambda number: number) for _ in range(2)] == [1, 2]
    with pytest.raises(OverflowError, match="more than 2 numbers"):
        journal.append(lambda number: number)


def test_there_is_an_end_to_how_many_connections_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stand_in, "MOST_LINES", 1)
    with Itsm() as itsm, connected(itsm) as first:
        first.sendall(request(last=False))
        itsm.wait_for(1)
        with connected(itsm) as second:
            assert listen(second).end == "closed"


# ---- TLS ---------------------------------------------------------------------------------------


def tls_post(itsm: Itsm, context: ssl.SSLContext) -> int:
    asked = urllib.request.Request(itsm.url, b"{}", method="POST")
    with urllib.request.urlopen(asked, timeout=5, context=context) as answer:
        status: int = answer.status
        return status


def test_over_tls_it_answers_who_trusts_its_certificate(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with Itsm(tls=pair) as itsm:
        assert itsm.url.startswith("https://")
        assert tls_post(itsm, ssl.create_default_context(cafile=pair[0])) == 200
        with pytest.raises(urllib.error.URLError, match="self-signed certificate"):
            tls_post(itsm, ssl.create_default_context())
        assert len(itsm.requests) == 1


def test_an_expired_certificate_and_a_foreign_name_are_refused_by_clients(tmp_path: Path) -> None:
    for options, words in (
        ({"days": -1}, "expired"),
        ({"names": "DNS:example.org"}, "IP address mismatch"),
    ):
        pair = certificate(tmp_path, **cast(dict[str, Any], options))
        with Itsm(tls=pair) as itsm:
            with pytest.raises(urllib.error.URLError, match=words):
                tls_post(itsm, ssl.create_default_context(cafile=pair[0]))
            assert itsm.requests == []


def test_it_can_demand_a_certificate_of_the_client(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with Itsm(tls=pair, client_ca=pair[0]) as itsm:
        context = ssl.create_default_context(cafile=pair[0])
        with pytest.raises((ssl.SSLError, ConnectionError, urllib.error.URLError)):
            tls_post(itsm, context)
        assert itsm.requests == []
        context.load_cert_chain(*pair)
        assert tls_post(itsm, context) == 200


@pytest.mark.parametrize("answer", [silence(), drip_body(), huge(), hang_up()])
def test_closing_ends_connections_over_tls_too(answer: Answer, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    context = ssl.create_default_context(cafile=pair[0])
    itsm = Itsm(answer, tls=pair)
    itsm.start()
    with context.wrap_socket(connected(itsm), server_hostname="localhost") as sock:
        sock.sendall(request())
        itsm.wait_for(1)
        itsm.close()
    assert own_threads() == []


def test_a_client_that_never_shakes_hands_is_ended_too(tmp_path: Path) -> None:
    with Itsm(tls=certificate(tmp_path)) as itsm, connected(itsm):
        tls_post(itsm, ssl._create_unverified_context())
        itsm.close()
        assert own_threads() == []


# ---- By hand -----------------------------------------------------------------------------------


def test_by_hand_it_says_where_it_is_and_what_comes() -> None:
    command = [sys.executable, stand_in.__file__, "--port", "0", "--mode", "ok-201"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            mode, url = process.stdout.readline().split(" at ")
            with urllib.request.urlopen(url.strip(), b'{"a": 1}', timeout=5) as answer:
                assert (mode, answer.status) == ("ok-201", 201)
            assert process.stdout.readline() == '#1 POST /api 8 bytes {"a": 1}\n'
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
