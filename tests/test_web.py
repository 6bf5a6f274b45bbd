"""The door: what a helpdesk is answered, and what of it is stored. Always the real command."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import re
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any, NamedTuple

import pytest

import hd_itsm
from faultlib import Rig, sabotaged
from itsm import Itsm, Received, reply, silence
from service import (
    NOTED,
    PAYLOADS,
    Reply,
    Service,
    asked,
    assignment,
    closing,
    opening,
    read_replies,
    sample,
    settings,
    ticket,
    until,
    with_notes,
)

SECRET = "demo-shared-secret"
MAX_BODY = 20_000

Start = Callable[..., "Door"]


class Door(NamedTuple):
    """A running service and the ITSM behind it."""

    service: Service
    itsm: Itsm

    def good(self) -> None:
        """The next good webhook is answered as if nobody else were there, and delivered."""
        number = ticket()
        answer = self.service.post("note", {"ticket_id": number})
        assert (answer.status, answer.state) == (200, "pending")
        assert answer.seconds < 5.0
        self.arrived(number)

    def good_with(self, token: str) -> None:
        """As `good`, by a token."""
        answer = self.service.post("note", {"ticket_id": ticket()}, {"X-Webhook-Token": token})
        assert (answer.status, answer.state, answer.seconds < 5.0) == (200, "pending", True)

    def arrived(self, ticket_id: str, count: int = 1) -> list[Received]:
        """All that the ITSM got of a ticket by POST /note."""
        return self.itsm.wait_for(count, where=lambda one: one.json().get("ticket") == ticket_id)

    def nothing_of(self, ticket_id: str) -> None:
        """No event of this ticket is in the file."""
        assert self.service.events("--ticket", ticket_id) == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service with these sections of configuration (or this text)."""
    with ExitStack() as stack:

        def starter(
            itsm: Itsm | None = None,
            environ: Mapping[str, str] | None = None,
            **sections: Mapping[str, Any],
        ) -> Door:
            door = stack.enter_context(itsm or Itsm())
            text = with_notes(door.url, **sections)
            return Door(stack.enter_context(Service(tmp_path, text, environ or {})), door)

        yield starter


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A service that many tests use, each with tickets of its own."""
    with Itsm() as itsm:
        text = with_notes(
            itsm.url,
            server={"max_body": MAX_BODY},
            hooks__ruled={
                "fields": {"ticket_id": "ticket_id"},
                "rules": [{"kind": "note", "when": {"event": "new"}}],
            },
            hooks__named={**NOTED, "delivery_id": "X-Zammad-Delivery"},
            hooks__carrier={"kind": "note", "fields": {"ticket_id": "carried"}},
            hooks__place={"kind": "place", "fields": {"ticket_id": "ticket_id"}},
            kinds__place={"url": itsm.url + "/tickets/{ticket_id}/notes", "body": {"a": 1}},
        )
        with Service(tmp_path_factory.mktemp("door"), text) as service:
            yield Door(service, itsm)


def checked(answer: Reply) -> Reply:
    """What holds for every answer: JSON, no traceback, none of the statuses that do harm."""
    answer.json()
    assert answer.status not in (202, 204, 409, 410)
    assert answer.status < 500 or answer.status in (501, 503)
    return answer


# ---- The table of answers ----------------------------------------------------------------------


def test_a_stored_webhook_gets_its_own_json_back_with_its_number_and_state(door: Door) -> None:
    body = opening(ticket(), extra={"나라": [1, 2.5, None, True]})
    answer = door.service.post("itsm_new", body)
    assert (answer.status, answer.state) == (200, "pending")
    assert answer.json() == body
    assert answer.event > 0
    assert "HD-ITSM-Request-Id" not in answer.headers


def test_later_webhooks_of_a_ticket_are_told_its_request_id(door: Door) -> None:
    number = ticket()
    first = door.service.post("itsm_new", opening(number), wait=10)
    later = door.service.post("itsm_ass", assignment(number))
    assert (first.status, later.status) == (200, 200)
    assert later.headers["HD-ITSM-Request-Id"] == first.headers["HD-ITSM-Request-Id"]
    created = {one.received.json()["title"]: one.request_id for one in door.itsm.created}
    assert first.headers["HD-ITSM-Request-Id"] == created[f"제목 {number}"]


def test_an_unreadable_webhook_gets_400_and_is_kept_with_its_reason_and_raw_body(
    door: Door,
) -> None:
    text = f"no JSON at all {ticket()}"
    answer = checked(door.service.post("itsm_new", text))
    assert (answer.status, answer.state) == (400, "failed")
    assert answer.json().keys() == {"error", "event"}
    assert answer.json()["event"] == answer.event
    kept = door.service.show(answer.event)
    assert (kept["state"], kept["raw"]) == ("failed", text)
    assert kept["reason"] == answer.error


def test_a_webhook_that_cannot_be_translated_gets_400_and_is_kept(door: Door) -> None:
    number = ticket()
    answer = checked(door.service.post("itsm_ass", {"ticket_id": number}))
    assert (answer.status, answer.state) == (400, "failed")
    assert "technician" in answer.error
    kept = door.service.show(answer.event)
    assert (kept["state"], kept["ticket"], kept["kind"]) == ("failed", number, "assign")


def test_a_webhook_that_no_rule_matches_is_ignored_with_200_and_kept(door: Door) -> None:
    number = ticket()
    answer = door.service.post("ruled", {"ticket_id": number, "event": "view"})
    assert (answer.status, answer.state) == (200, "ignored")
    assert answer.json() == {"ticket_id": number, "event": "view"}
    assert door.service.show(answer.event)["state"] == "ignored"
    taken = door.service.post("ruled", {"ticket_id": number, "event": "new"})
    assert (taken.status, taken.state) == (200, "pending")
    assert len(door.arrived(number)) == 1


@pytest.mark.parametrize(
    "path", ["/itsm_nev", "/itsm_new/more", "/itsm_ne", "/ITSM_NEW", "/hooks/itsm_new"]
)
def test_an_unknown_address_gets_404_in_json(door: Door, path: str) -> None:
    number = ticket()
    answer = checked(door.service.request("POST", path, json.dumps(opening(number)).encode()))
    assert answer.status == 404
    assert answer.error
    assert "HD-ITSM-Event" not in answer.headers
    door.nothing_of(number)


@pytest.mark.parametrize("path", ["/%ff%fe", "/itsm_new%00", "/..%2f..%2fetc/passwd", "/%zz"])
def test_an_address_of_odd_bytes_gets_json(door: Door, path: str) -> None:
    answer = checked(door.service.request("POST", path, b"{}"))
    assert answer.status in (400, 404, 405)
    assert answer.error
    door.good()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/itsm_new", "/itsm_new/"])
def test_another_method_than_post_gets_405_with_allow(door: Door, method: str, path: str) -> None:
    answer = checked(door.service.request(method, path))
    assert answer.status == 405
    assert "POST" in [one.strip() for one in answer.headers["Allow"].split(",")]
    assert answer.error


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/itsm_new", "/itsm_new/"])
def test_a_hook_says_what_it_is_to_who_looks_before_it_posts(
    start: Start, method: str, path: str
) -> None:
    door = start(access={"token": SECRET})
    answer = door.service.request(method, path)
    assert (answer.status, "POST" in answer.headers["Allow"]) == (200, True)
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.json()["hook"] == "itsm_new"
    assert door.service.events() == []
    assert door.service.lines("refused") == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
def test_a_webhook_that_cannot_be_written_gets_503_and_never_a_false_200(start: Start) -> None:
    import resource

    itsm = Itsm(silence())
    door = start(itsm)
    taken = [door.service.post("itsm_new", opening(ticket())).event for _ in range(3)]
    size = max(path.stat().st_size for path in door.service.folder.glob("hd_itsm.db*"))
    resource.prlimit(door.service.pid, resource.RLIMIT_FSIZE, (size, size))
    for _ in range(200):  # what the file already has may take some more
        answer = door.service.post("itsm_new", opening(ticket(), contents="가" * 3000))
        if answer.status != 200:
            break
        taken.append(answer.event)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.error
    assert door.service.wait() != 0  # a write that failed: systemd starts it anew
    door.service.start()
    assert set(taken) <= {one["event"] for one in door.service.events()}


def test_a_trailing_slash_is_the_same_hook(door: Door) -> None:
    number = ticket()
    first = door.service.post("itsm_new", opening(number))
    again = door.service.post("itsm_new/", opening(number))
    assert (first.status, again.status) == (200, 200)
    assert (again.event, again.state) == (first.event, "ignored")


# ---- Prefer: wait ------------------------------------------------------------------------------


def test_prefer_wait_answers_when_the_event_is_delivered(door: Door) -> None:
    number = ticket()
    answer = door.service.post("itsm_new", opening(number), wait=10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.headers["HD-ITSM-Request-Id"].startswith("R-")
    assert answer.json() == opening(number)
    assert answer.seconds < 5.0


def test_prefer_wait_answers_200_when_the_itsm_refused(start: Start) -> None:
    door = start(Itsm(reply(400, json={"error": "unknown user"})))
    answer = door.service.post("itsm_new", opening(ticket()), wait=10)
    assert (answer.status, answer.state) == (200, "failed")
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.seconds < 5.0


def test_prefer_wait_ends_with_its_time_and_goes_on_waiting_for_a_held_event(start: Start) -> None:
    door = start(Itsm(silence()))
    answer = door.service.post("itsm_new", opening(ticket()), wait=1)
    assert (answer.status, answer.state) == (200, "pending")
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert 0.9 < answer.seconds < 3.0


def test_a_held_event_goes_on_waiting_and_is_answered_once_its_ticket_is_mapped(
    door: Door,
) -> None:
    number = ticket()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(door.service.post, "itsm_ass", assignment(number), {}, 20)
        until(lambda: door.service.events("--ticket", number), "the webhook is stored")
        assert not waiting.done()
        assert door.service.cli("map", number, "R-by-hand").code == 0
        answer = waiting.result(10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert answer.headers["HD-ITSM-Request-Id"] == "R-by-hand"


@pytest.mark.parametrize(
    ("preference", "applied"),
    [
        ("wait=600", "wait=30"),
        ("respond-async, wait=7", "wait=7"),
        ('return=minimal; foo="x", wait="8"', "wait=8"),
    ],
)
def test_prefer_is_read_as_rfc_7240_says_and_waits_30_seconds_at_most(
    door: Door, preference: str, applied: str
) -> None:
    answer = door.service.post("note", {"ticket_id": ticket()}, {"Prefer": preference})
    assert (answer.status, answer.state) == (200, "delivered")
    assert answer.headers["Preference-Applied"] == applied


@pytest.mark.parametrize(
    "preference",
    ["wait", "wait=", "wait=-5", "wait=soon", "wait=٣", "await=5", "wait=1_0", "=" * 99],
)
def test_a_preference_that_is_none_changes_nothing(door: Door, preference: str) -> None:
    headers = {"Prefer": preference.encode()}
    answer = door.service.post("note", {"ticket_id": ticket()}, headers)
    assert answer.status == 200
    assert "Preference-Applied" not in answer.headers


@pytest.mark.slow
def test_callers_who_wait_do_not_lock_out_those_who_do_not(start: Start) -> None:
    door = start(Itsm(silence()), server={"threads": 4})
    with ThreadPoolExecutor(12) as pool:
        waiting = [
            pool.submit(door.service.post, "itsm_new", opening(ticket()), {}, 3) for _ in range(12)
        ]
        until(lambda: len(door.itsm.requests) > 0, "the first is on its way")
        for _ in range(5):
            answer = door.service.post("note", {"ticket_id": ticket()})
            assert (answer.status, answer.state) == (200, "pending")
        assert not all(one.done() for one in waiting)
        assert {one.result(15).status for one in waiting} == {200}


@pytest.mark.slow
def test_with_one_thread_a_caller_who_waits_does_not_lock_out_the_others(start: Start) -> None:
    door = start(Itsm(silence()), server={"threads": 1})
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(door.service.post, "itsm_new", opening(ticket()), {}, 4) for _ in range(3)
        ]
        until(lambda: len(door.itsm.requests) > 0, "the first is on its way")
        for _ in range(3):
            answer = door.service.post("note", {"ticket_id": ticket()})
            assert answer.status == 200
        assert not all(one.done() for one in waiting)
        assert {one.result(15).status for one in waiting} == {200}


# ---- Handfuls: what comes at once is stored together ---------------------------------------------


def raw(path: str, body: object, *rows: str) -> bytes:
    """A whole request; a str or bytes body as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    top = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *rows]
    return "\r\n".join(top).encode() + b"\r\n\r\n" + content


def test_of_many_that_come_at_once_each_gets_its_own_answer(start: Start) -> None:
    """Good, refused, unreadable, unknown, waiting and pipelined ones, on one connection each."""
    door = start(access={"token": SECRET})
    ours, lines = f"X-Webhook-Token: {SECRET}", [door.service.connect() for _ in range(60)]
    with ExitStack() as stack:
        for line in lines:
            stack.enter_context(line)
        for turn in range(5):
            numbers = [ticket() for _ in lines]
            sends, wanted = [], []
            for place, number in enumerate(numbers):
                good = raw("/itsm_new", opening(number), ours)
                send, statuses = {
                    0: (raw("/itsm_new", opening(number)), [401]),
                    1: (raw("/itsm_new", b"no JSON", ours, f"X-Turn: {turn}"), [400]),
                    2: (raw("/nowhere", opening(number), ours), [404]),
                    3: (raw("/itsm_new", opening(number), ours, "Prefer: wait=9"), [200]),
                    4: (good + raw("/itsm_ass", assignment(number), ours), [200, 200]),
                    5: (raw("/itsm_new", opening(number), ours, "Content-Encoding: br"), [415]),
                }.get(place % 12, (good, [200]))
                sends.append(send)
                wanted.append(statuses)
            for line, send in zip(lines, sends, strict=True):
                line.sendall(send)
            for place, (line, number) in enumerate(zip(lines, numbers, strict=True)):
                heard = b""
                while len(found := read_replies(heard)) < len(wanted[place]):
                    piece = line.recv(65536)
                    assert piece, "the connection was closed"
                    heard += piece
                assert [one.status for one in found] == wanted[place]
                if wanted[place][0] == 200:
                    assert found[0].json() == opening(number)
                    few_wait = place % 12 == 3  # others of them are answered at once
                    assert found[0].state in {"pending", "delivered" if few_wait else "pending"}
        count = 5 * 60 * 8 // 12
        door.itsm.wait_created(count)
        until(lambda: door.service.status()["pending"] == 0, "all deliveries")
    assert len(door.itsm.created) == count
    assert door.service.status()["delivered"] == count + 5 * 60 // 12


# ---- Duplicates --------------------------------------------------------------------------------


def test_fifty_equal_webhooks_at_once_are_one_event_also_after_a_restart(start: Start) -> None:
    door = start()
    number = ticket()
    barrier = threading.Barrier(50)

    def send(_: int) -> Reply:
        barrier.wait(10)
        return door.service.post("itsm_new", opening(number))

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    assert {one.status for one in answers} == {200}
    assert len({one.event for one in answers}) == 1
    assert sorted(one.state for one in answers) == ["ignored"] * 49 + ["pending"]
    door.itsm.wait_created(1)
    assert door.service.stop() == 0
    door.service.start()
    again = door.service.post("itsm_new", opening(number))
    assert (again.status, again.event, again.state) == (200, answers[0].event, "ignored")
    door.good()
    assert len(door.itsm.created) == 1
    states = [one["state"] for one in door.service.events("--ticket", number)]
    assert states.count("delivered") == 1
    assert set(states) <= {"delivered", "ignored"}


def test_a_repeated_assignment_is_ignored_with_the_first_ones_number(door: Door) -> None:
    number = ticket()
    door.service.post("itsm_new", opening(number), wait=10)
    first = door.service.post("itsm_ass", assignment(number), wait=10)
    again = door.service.post("itsm_ass", assignment(number))
    assert (again.status, again.event, again.state) == (200, first.event, "ignored")
    assert again.json() == assignment(number)
    ignored = door.service.events("--ticket", number, "--state", "ignored")
    assert [str(first.event) in one["reason"] for one in ignored] == [True]


def test_equal_fields_in_another_form_are_a_duplicate(door: Door) -> None:
    number = "9" + ticket()[1:] + "77"
    door.service.post("itsm_new", opening(number), wait=10)
    first = door.service.post("itsm_ass", assignment(number, "홍길동"))
    forms = [
        json.dumps({"technician": "홍길동", "ticket_id": int(number)}, indent=2).encode(),
        f'{{"ticket_id":{number}.0,"technician":"홍길동"}}'.encode("cp949"),
        json.dumps({**assignment(number, "홍길동"), "unknown": 1}).encode("utf-16"),
    ]
    for form in forms:
        again = door.service.post("itsm_ass", form)
        assert (again.status, again.event, again.state) == (200, first.event, "ignored")


def test_only_the_latest_event_counts_so_an_assignment_back_again_is_sent(door: Door) -> None:
    number = ticket()
    door.service.post("itsm_new", opening(number), wait=10)
    for technician in ("kim", "lee", "kim"):
        answer = door.service.post("itsm_ass", assignment(number, technician), wait=10)
        assert (answer.status, answer.state) == (200, "delivered")
    request_id = answer.headers["HD-ITSM-Request-Id"]
    sent = door.itsm.wait_for(3, where=lambda one: one.json().get("request_id") == request_id)
    assert [one.json()["rcv_user_id"] for one in sent] == ["kim", "lee", "kim"]


def test_a_second_opening_is_ignored_whatever_it_says(door: Door) -> None:
    number = ticket()
    first = door.service.post("itsm_new", opening(number), wait=10)
    door.service.post("itsm_ass", assignment(number), wait=10)
    again = door.service.post("itsm_new", opening(number, subject="something else"))
    assert (again.status, again.event, again.state) == (200, first.event, "ignored")


@pytest.mark.parametrize("answer", [reply(400), reply(json={"result": {"code": "99"}})])
def test_when_the_first_opening_was_refused_a_second_takes_its_place(
    start: Start, answer: Any
) -> None:
    door = start(Itsm(script=[answer]))
    number = ticket()
    first = door.service.post("itsm_new", opening(number), wait=10)
    assert first.state == "failed"
    held = door.service.post("itsm_ass", assignment(number))
    assert held.state == "held"
    second = door.service.post("itsm_new", opening(number, subject="repaired"), wait=10)
    assert (second.status, second.state) == (200, "delivered")
    assert second.event not in (first.event, held.event)
    _, created, assigned = door.itsm.wait_for(3)
    assert created.json()["title"] == "repaired"
    assert assigned.json()["request_id"] == second.headers["HD-ITSM-Request-Id"]


def test_when_the_first_opening_could_not_be_translated_a_second_takes_its_place(
    door: Door,
) -> None:
    number = ticket()
    body = {name: one for name, one in opening(number).items() if name != "writer"}
    assert door.service.post("itsm_new", body).status == 400
    second = door.service.post("itsm_new", opening(number), wait=10)
    assert (second.status, second.state) == (200, "delivered")


def test_again_send_sends_a_second_opening_and_replaces_the_mapping(start: Start) -> None:
    kind = {"opens": True, "again": "send", "body": {"code": "000", "title": "{subject}"}}
    door = start(kinds__new=kind)
    number = ticket()
    first = door.service.post("itsm_new", opening(number), wait=10)
    second = door.service.post("itsm_new", opening(number, subject="once more"), wait=10)
    assert (first.state, second.state) == ("delivered", "delivered")
    assert [one.request_id for one in door.itsm.created] == ["R-1", "R-2"]
    assert second.headers["HD-ITSM-Request-Id"] == "R-2"
    assert door.service.mappings() == {number: "R-2"}


def test_an_unreadable_body_repeated_gets_the_same_number_and_no_new_row(start: Start) -> None:
    door = start()
    first = door.service.post("itsm_new", b"\xff\xfe nonsense")
    again = door.service.post("itsm_new", b"\xff\xfe nonsense")
    door.service.restart()
    later = door.service.post("itsm_new", b"\xff\xfe nonsense")
    assert [one.status for one in (first, again, later)] == [400, 400, 400]
    assert {one.event for one in (first, again, later)} == {first.event}
    assert first.json() == again.json() == later.json()
    assert len(door.service.events()) == 1


@pytest.mark.parametrize("header", ["webhook-id", "Idempotency-Key"])
def test_a_delivery_id_takes_the_place_of_equal_fields(door: Door, header: str) -> None:
    number = ticket()
    first = door.service.post("note", {"ticket_id": number}, {header: f"{number}-1"})
    again = door.service.post("note", {"ticket_id": number}, {header: f"{number}-1"})
    other = door.service.post("note", {"ticket_id": number}, {header: f"{number}-2"})
    assert (again.status, again.event, again.state) == (200, first.event, "ignored")
    assert (other.status, other.state) == (200, "pending")
    assert other.event != first.event
    assert len(door.arrived(number, 2)) == 2


def test_the_hooks_own_delivery_id_header_counts_and_survives_a_restart(start: Start) -> None:
    door = start(hooks__named={**NOTED, "delivery_id": "X-Zammad-Delivery"})
    number = ticket()
    headers = {"X-Zammad-Delivery": "2f0b7a52"}
    first = door.service.post("named", {"ticket_id": number, "text": "a"}, headers)
    between = door.service.post("named", {"ticket_id": number, "text": "b"}, {"webhook-id": "9"})
    assert door.service.stop() == 0
    door.service.start()
    again = door.service.post("named", {"ticket_id": number, "text": "a"}, headers)
    assert (again.status, again.event, again.state) == (200, first.event, "ignored")
    assert between.event != first.event
    assert len(door.arrived(number, 2)) == 2
    door.good()
    assert len(door.arrived(number, 2)) == 2


def test_a_new_delivery_id_does_not_open_a_ticket_twice(door: Door) -> None:
    number = ticket()
    first = door.service.post("itsm_new", opening(number), {"webhook-id": f"{number}-a"})
    again = door.service.post("itsm_new", opening(number), {"webhook-id": f"{number}-b"})
    assert (again.status, again.event, again.state) == (200, first.event, "ignored")


# ---- Bodies ------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A ticket whose subject is a list in a list in a list."""
    brackets = b"[" * depth + b"]" * depth
    return b'{"ticket_id": "DEEP", "text": ' + brackets + b"}"


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \r\n",
    "null": b"null",
    "a number": b"4182",
    "a list": b'["ticket_id", "4182"]',
    "a text": b'"4182"',
    "no ticket id": b'{"text": "x"}',
    "no known key": b'{"some": "thing"}',
    "broken, no known key": b'so {"some": "thing" it is}',
    "half, no known key": b'{"some": "thi',
    "id null": b'{"ticket_id": null}',
    "id blank": b'{"ticket_id": ""}',
    "id spaces": b'{"ticket_id": "   "}',
    "id object": b'{"ticket_id": {}}',
    "id list": b'{"ticket_id": ["1"]}',
    "id true": b'{"ticket_id": true}',
    "id of 201": b'{"ticket_id": "' + b"1" * 201 + b'"}',
    "id with a line break": b'{"ticket_id": "1\\n2"}',
    "id with a bell": b'{"ticket_id": "1\\u0007"}',
    "id with DEL": b'{"ticket_id": "1\\u007f"}',
    "mask #": b'{"ticket_id": "#ticket_id#"}',
    "mask {{}}": b'{"ticket_id": "{{ticket.id}}"}',
    "mask #{}": b'{"ticket_id": "#{ticket.id}"}',
    "deep 1,000": nested(1_000),
    "deep 9,000": nested(9_000),
    "5,000 digits": b'{"ticket_id": "LONG", "text": ' + b"7" * 5_000 + b"}",
    "101 digits": b'{"ticket_id": "LONG", "text": ' + b"7" * 101 + b"}",
    "NaN": b'{"ticket_id": "NAN", "text": NaN}',
    "Infinity": b'{"ticket_id": "INF", "text": -Infinity}',
    "1e400": b'{"ticket_id": "BIG", "text": 1e400}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_gets_400_and_the_next_good_one_is_well(door: Door, body: bytes) -> None:
    answer = checked(door.service.post("note", body))
    assert (answer.status, answer.state) == (400, "failed")
    assert answer.json()["event"] == answer.event
    door.good()


def test_every_bad_body_is_kept_as_failed_with_a_reason_and_one_log_line(start: Start) -> None:
    door = start()
    sent = {
        door.service.post("note", body).event: name
        for name, body in BAD_BODIES.items()
        if name != "blank"
    }
    assert len(sent) == len(BAD_BODIES) - 1
    kept = door.service.events("--state", "failed")
    assert {one["event"] for one in kept} == set(sent)
    assert [one["event"] for one in kept if not one["reason"]] == []
    deep = next(event for event, name in sent.items() if name == "deep 1,000")
    assert door.service.show(deep)["raw"].encode() == BAD_BODIES["deep 1,000"]
    for event in sent:
        assert len(door.service.lines(f"event {event} ")) == 1


def test_nesting_of_200_000_levels_is_refused_and_harms_nobody(start: Start) -> None:
    door = start()
    answer = checked(door.service.post("note", nested(200_000)))
    assert (answer.status, answer.state) == (400, "failed")
    assert answer.seconds < 5.0
    door.good()


TRICKS = [
    "'; DROP TABLE events; --",
    "{{7*7}}",
    "{x.__class__.__init__.__globals__}",
    "{ticket_id}",
    "<script>alert(1)</script>",
    "%s%n%d",
    "${jndi:ldap://x/a}",
    "$(reboot) `id`",
    "../../etc/passwd",
    '"quoted" \\ and \\n',
    "\u202egnp.exe\u202c",
    "tab\tline\nline\r\nend",
    "\x1b[2Jescape \x7f",
    "한글 é 🎟️ \u00a0",
]


@pytest.mark.parametrize("text", TRICKS)
def test_text_arrives_at_the_itsm_as_it_was_sent(door: Door, text: str) -> None:
    number = ticket()
    body = opening(number, writer=text, category=text, subject=text, contents=text)
    answer = door.service.post("itsm_new", body, wait=10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert answer.json() == body
    request_id = answer.headers["HD-ITSM-Request-Id"]
    sent = next(one.received.json() for one in door.itsm.created if one.request_id == request_id)
    keys = ("req_user_id", "reg_user_id", "request_purpose", "title", "contents")
    assert [sent[key] for key in keys] == [text] * 5


@pytest.mark.parametrize("text", [one for one in TRICKS if one.isprintable()])
def test_a_trick_in_the_ticket_id_stays_text(door: Door, text: str) -> None:
    number = f"{ticket()} {text}"
    answer = door.service.post("note", {"ticket_id": number}, wait=10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert len(door.arrived(number)) == 1
    assert [one["ticket"] for one in door.service.events("--ticket", number)] == [number]


def test_lone_surrogates_and_nul_become_replacement_characters(door: Door) -> None:
    number = ticket()
    body = f'{{"ticket_id": "{number}", "text": "a\\ud800b\\u0000c"}}'
    answer = checked(door.service.post("note", body, wait=10))
    assert (answer.status, answer.state) == (200, "delivered")
    assert door.arrived(number)[0].json()["text"] == "a\ufffdb\ufffdc"


CODINGS: dict[str, tuple[str, str]] = {
    "CP949 undeclared": ("cp949", ""),
    "CP949 declared UTF-8": ("cp949", "application/json; charset=utf-8"),
    "UTF-8 declared EUC-KR": ("utf-8", "application/json; charset=euc-kr"),
    "UTF-8 with BOM": ("utf-8-sig", "application/json"),
    "UTF-16": ("utf-16", "application/json"),
    "UTF-16 without BOM": ("utf-16-le", "application/json"),
    "declared XML": ("utf-8", "text/xml"),
    "declared nonsense": ("utf-8", ";;;charset=nope"),
    "declared upload": ("utf-8", "multipart/form-data"),
}


@pytest.mark.parametrize(("coding", "declared"), CODINGS.values(), ids=CODINGS)
def test_the_content_type_is_only_a_hint(door: Door, coding: str, declared: str) -> None:
    number = ticket()
    text = "똠방각하 펲시콜라 뷁"  # not in EUC-KR, but in CP949
    body = json.dumps({"ticket_id": number, "text": text}, ensure_ascii=False).encode(coding)
    answer = checked(door.service.post("note", body, {"Content-Type": declared}, wait=10))
    assert (answer.status, answer.state) == (200, "delivered")
    assert door.arrived(number)[0].json()["text"] == text


def test_of_repeated_keys_the_first_counts(door: Door) -> None:
    number = ticket()
    body = f'{{"ticket_id": "{number}", "text": "a", "ticket_id": "1", "text": "b"}}'
    assert door.service.post("note", body, wait=10).state == "delivered"
    assert door.arrived(number)[0].json()["text"] == "a"


def test_a_text_that_closes_its_string_cannot_rename_the_ticket(door: Door) -> None:
    number = ticket()
    subject = 'x","ticket_id":"1","writer":"mallory'
    body = f'{{"ticket_id":"{number}","writer":"kim","category":"c","subject":"{subject}",'
    body += '"contents":"d"}'
    answer = checked(door.service.post("itsm_new", body, wait=10))
    assert (answer.status, answer.state) == (200, "delivered")
    event = door.service.show(answer.event)
    assert (event["ticket"], event["fields"]["writer"]) == (number, "kim")


@pytest.mark.parametrize(
    ("ticket_id", "path"),
    [
        ("a/b", "a%2Fb"),
        ("a?b", "a%3Fb"),
        ("%2e%2e", "%252e%252e"),
        ("a#b", "a%23b"),
        ("한글", "%ED%95%9C%EA%B8%80"),
        ("...", "..."),
    ],
)
def test_an_id_in_the_url_never_reaches_another_endpoint(
    door: Door, ticket_id: str, path: str
) -> None:
    answer = door.service.post("place", {"ticket_id": ticket_id}, wait=10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert [one for one in door.itsm.requests if one.path == f"/api/tickets/{path}/notes"]


@pytest.mark.parametrize("ticket_id", [".", ".."])
def test_an_id_that_is_a_step_in_the_url_is_refused(door: Door, ticket_id: str) -> None:
    answer = checked(door.service.post("place", {"ticket_id": ticket_id}))
    assert (answer.status, answer.state) == (400, "failed")
    assert not [
        one for one in door.itsm.requests if one.path in ("/api/notes", "/api/tickets/notes")
    ]


def test_a_compressed_body_gets_415_and_nothing_is_stored(door: Door) -> None:
    number = ticket()
    packed = gzip.compress(json.dumps({"ticket_id": number}).encode())
    answer = checked(door.service.post("note", packed, {"Content-Encoding": "gzip"}))
    assert answer.status == 415
    assert answer.error
    door.nothing_of(number)


@pytest.mark.parametrize(
    "coding", ["identity", "utf-8", "UTF-8", "8bit", "binary", "", "none", "identity, utf-8"]
)
def test_an_encoding_that_leaves_a_body_as_it_is_is_taken(door: Door, coding: str) -> None:
    answer = door.service.post("note", {"ticket_id": ticket()}, {"Content-Encoding": coding})
    assert (answer.status, answer.state) == (200, "pending")


@pytest.mark.parametrize("coding", ["GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_every_compression_gets_415(door: Door, coding: str) -> None:
    number = ticket()
    answer = door.service.post("note", {"ticket_id": number}, {"Content-Encoding": coding})
    assert checked(answer).status == 415
    door.nothing_of(number)


# ---- Sizes and framing -------------------------------------------------------------------------


def sized(number: str, size: int) -> bytes:
    """A note of exactly `size` bytes."""
    body = json.dumps({"ticket_id": number, "text": ""}).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def chunks(body: bytes, size: int = 4096) -> bytes:
    """A body in chunks."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"


def framed(body: bytes, chunked: bool, path: str = "/note") -> bytes:
    """A raw request, with its length or in chunks."""
    frame = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    top = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{frame}\r\n\r\n"
    return top.encode() + (chunks(body) if chunked else body)


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_a_body_of_exactly_max_body_is_taken(door: Door, chunked: bool) -> None:
    number = ticket()
    (answer,) = door.service.exchange(framed(sized(number, MAX_BODY), chunked))
    assert (answer.status, answer.state) == (200, "pending")
    door.arrived(number)


@pytest.mark.parametrize("over", [1, 2, 5_000, 200_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_a_body_over_max_body_gets_413_and_its_beginning_is_kept_as_failed(
    door: Door, chunked: bool, over: int
) -> None:
    number = ticket()
    body = sized(number, MAX_BODY + over)
    (answer,) = door.service.exchange(framed(body, chunked))
    assert checked(answer).status == 413
    assert "server.max_body" in answer.error
    kept = door.service.show(answer.json()["event"])
    assert kept["state"] == "failed"
    assert "server.max_body" in kept["reason"]
    assert body.startswith(kept["raw"].encode())
    assert MAX_BODY < len(kept["raw"]) <= 65536
    door.nothing_of(number)
    door.good()


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_of_a_body_that_is_far_too_large_64_kib_are_kept(start: Start, chunked: bool) -> None:
    door = start()
    body = sized(ticket(), 5_000_000)
    (answer,) = door.service.exchange(framed(body, chunked))
    kept = door.service.show(answer.json()["event"])
    assert kept["raw"].encode() == body[:65536]
    again = door.service.exchange(framed(body, chunked))
    assert again[0].json()["event"] == answer.json()["event"]
    assert [one["event"] for one in door.service.events()] == [answer.json()["event"]]
    assert len(door.service.lines("WARNING", "413")) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize(
    "access",
    [
        {"token": "good"},
        {"networks": ["10.0.0.5"]},
        {"hmac": {"secret": SECRET, "header": "X-Hub-Signature"}},
    ],
    ids=["token", "networks", "hmac"],
)
def test_of_a_body_that_is_too_large_nothing_is_kept_where_its_sender_is_not_admitted(
    start: Start, access: dict[str, Any], chunked: bool
) -> None:
    door = start(server={"max_body": MAX_BODY}, access=access)
    for size in (MAX_BODY + 1, 3_000_000):
        (answer,) = door.service.exchange(framed(sized(ticket(), size), chunked))
        assert checked(answer).status == (413 if "hmac" in access else answer.status)
        assert answer.status in (401, 403, 413)
        assert "event" not in answer.json()
    assert door.service.events() == []


def test_the_default_limit_is_one_mebibyte_exactly(start: Start) -> None:
    door = start()
    exact = door.service.post("note", sized(ticket(), 1 << 20), wait=10)
    assert (exact.status, exact.state) == (200, "delivered")
    assert door.service.post("note", sized(ticket(), (1 << 20) + 1)).status == 413


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_who_sends_far_too_much_can_send_it_all_and_read_why_it_is_refused(
    door: Door, chunked: bool
) -> None:
    """A reset while it sends would be all that most clients tell of it."""
    whole = framed(sized(ticket(), 3_000_000), chunked)
    for _ in range(10):
        with door.service.connect() as line:
            line.sendall(whole)
            heard = bytearray()
            while piece := line.recv(65536):
                heard += piece
        (answer,) = read_replies(bytes(heard))
        assert (checked(answer).status, "server.max_body" in answer.error) == (413, True)
    door.good()


def test_who_asks_before_a_body_that_is_too_large_is_not_told_to_go_on(door: Door) -> None:
    with door.service.connect() as line:
        line.sendall(framed(sized(ticket(), MAX_BODY + 1), False).partition(b"\r\n\r\n")[0])
        line.sendall(b"\r\nExpect: 100-continue\r\n\r\n")
        heard = bytearray()
        while piece := line.recv(65536):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 413 "), heard
    (answer,) = read_replies(bytes(heard))
    assert door.service.show(answer.json()["event"])["state"] == "failed"


def first_reply(line: socket.socket) -> Reply:
    """The first answer on a connection, as soon as it is whole."""
    heard = b""
    while not (replies := read_replies(heard)):
        piece = line.recv(65536)
        assert piece, f"the connection was closed after {heard!r}"
        heard += piece
    return replies[0]


HEADS = {
    "no token": ("POST /note", 401),
    "a wrong token": ("POST /note HTTP/1.1\r\nX-Webhook-Token: bad", 401),
    "an unknown address": ("POST /nota", 404),
    "a wrong method": ("PUT /note", 405),
    "the control endpoint": ("POST /control/events", 401),
    "a button": ("POST /act/pause", 401),
}


@pytest.mark.parametrize(("line", "status"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    "frame", ["Content-Length: 15000", "Transfer-Encoding: chunked", "Content-Length: 5000000"]
)
def test_who_is_not_admitted_is_refused_before_a_body_is_read(
    closed: Door, line: str, status: int, frame: str
) -> None:
    first, _, more = line.partition(" HTTP/1.1")
    top = f"{first} HTTP/1.1\r\nHost: localhost{more}\r\n{frame}\r\n\r\n"
    with closed.service.connect(5) as connection:
        connection.sendall(top.encode())  # and nothing of the body
        answer = first_reply(connection)
    assert checked(answer).status == status
    assert ("Allow" in answer.headers) == (status == 405)
    assert closed.service.events() == []


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A service with a token and a password, to which nobody has both."""
    with Itsm() as itsm:
        text = with_notes(
            itsm.url, access={"token": "good"}, server={"admin_password": "open sesame"}
        )
        with Service(tmp_path_factory.mktemp("closed"), text) as service:
            yield Door(service, itsm)


def test_an_address_outside_the_networks_is_refused_before_its_body_is_read(
    start: Start,
) -> None:
    door = start(access={"networks": ["10.0.0.5"], "token": "good"})
    top = "POST /note HTTP/1.1\r\nHost: localhost\r\nX-Webhook-Token: good\r\n"
    with door.service.connect(5) as line:
        line.sendall(f"{top}Content-Length: 15000\r\n\r\n".encode())
        assert first_reply(line).status == 403


def test_who_is_not_admitted_is_not_told_to_go_on(closed: Door) -> None:
    top = b"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    with closed.service.connect(5) as line:
        line.sendall(top + b"Expect: 100-continue\r\n\r\n")
        assert first_reply(line).status == 401


def test_an_address_that_takes_no_body_is_answered_without_it(door: Door) -> None:
    with door.service.connect(5) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15000\r\n\r\n")
        answer = first_reply(line)
    assert (answer.status, answer.headers["Connection"]) == (200, "close")


def test_a_body_that_comes_after_its_head_is_taken_from_who_is_admitted(guarded: Door) -> None:
    number = ticket()
    whole = raw("/note", {"ticket_id": number}, "X-Webhook-Token: old-token")
    top, middle, body = whole.partition(b"\r\n\r\n")
    with guarded.service.connect(5) as line:
        line.sendall(top + middle)
        guarded.good_with("old-token")
        line.sendall(body)
        assert first_reply(line).status == 200
    guarded.arrived(number)


def test_who_sends_on_after_a_refusal_is_cut_off_in_time(tmp_path: Path) -> None:
    program = sabotaged(tmp_path, code="REQUEST_TIME = 2")
    with Itsm() as itsm, Rig(tmp_path, with_notes(itsm.url), program) as service:
        with service.connect() as line:
            line.sendall(b"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n")
            while line.recv(65536):
                pass

            def cut() -> bool:
                try:
                    line.sendall(b"x")
                except ConnectionError:
                    return True
                return False

            began = monotonic()
            until(cut, "it may send for ever")
            assert monotonic() - began > 1.0  # not at the first byte
        assert service.post("note", {"ticket_id": ticket()}).status == 200


ASTRAY = {
    "too large": (framed(sized("T", MAX_BODY + 1), False), "/note from 127.0.0.1 refused: 413"),
    "no length": (
        b"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "refused: 400",
    ),
    "a head of 20 KB": (
        b"POST /note HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        "refused: 431",
    ),
    "an unknown coding": (
        b"POST /note HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        "refused: 501",
    ),
    "a wrong address": (
        framed(b"{}", False, "/nota%0Abene"),
        "/nota\\nbene from 127.0.0.1 refused: 404 no such address",
    ),
    "a wrong method": (
        b"PUT /note HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "/note from 127.0.0.1 refused: 405",
    ),
}


def test_a_webhook_that_is_stored_nowhere_is_told_in_the_log_and_counted(start: Start) -> None:
    door = start(server={"max_body": MAX_BODY})
    for raw, words in ASTRAY.values():
        (answer,) = door.service.exchange(raw)
        assert str(answer.status) in words
        assert len(door.service.lines("WARNING", words)) == 1
        door.service.exchange(raw)  # and again, which the log does not repeat
        assert len(door.service.lines("WARNING", words)) == 1
    told = door.service.request("GET", "/metrics").body.decode()
    counted = dict(re.findall(r'hd_itsm_refused_total\{status="(\d+)"\} (\d+)', told))
    assert counted == dict.fromkeys(("400", "404", "405", "413", "431", "501"), "2")


def test_a_credential_in_a_broken_header_does_not_get_into_the_log(start: Start) -> None:
    door = start()
    head = b'POST /note HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a"b"s3cret\rx\r\n\r\n'
    (answer,) = door.service.exchange(head)
    assert answer.status == 400
    assert len(door.service.lines("WARNING", "refused: 400")) == 1
    assert "s3cret" not in door.service.log


def test_a_page_that_is_not_there_is_not_told_in_the_log(door: Door) -> None:
    assert door.service.request("GET", "/favicon.ico").status == 404
    door.good()
    assert door.service.lines("favicon") == []


LENGTHS = ["-1", "+5", "2147483648", "99999999999999999999", "0x10", "1e2", "", "5, 5", "٥", "5 5"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_content_length_that_is_nonsense_gets_400_or_413(door: Door, length: str) -> None:
    number = ticket()
    body = json.dumps({"ticket_id": number}).encode()
    top = f"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    answers = door.service.exchange(top.encode() + body)
    assert answers
    assert {checked(one).status for one in answers} <= {400, 413}
    door.nothing_of(number)
    door.good()


@pytest.mark.parametrize("other", [-5, 5])
def test_two_lengths_that_differ_get_400(door: Door, other: int) -> None:
    number = ticket()
    body = json.dumps({"ticket_id": number}).encode()
    rows = f"Content-Length: {len(body)}\r\nContent-Length: {len(body) + other}"
    top = f"POST /note HTTP/1.1\r\nHost: localhost\r\n{rows}\r\n\r\n"
    answers = door.service.exchange(top.encode() + body)
    assert answers
    assert {checked(one).status for one in answers} <= {400, 413}
    door.nothing_of(number)


def smuggler(rows: str, before: bytes, hidden: bytes) -> bytes:
    """A request with a second one in what may or may not be its body."""
    top = f"POST /carrier HTTP/1.1\r\nHost: localhost\r\n{rows}\r\n\r\n"
    return top.encode() + before + hidden


SMUGGLERS: dict[str, tuple[str, bytes]] = {
    "length and chunks": ("Content-Length: {n}\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunks and length": ("Transfer-Encoding: chunked\r\nContent-Length: {n}", b"0\r\n\r\n"),
    "chunks twice": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunks and identity": ("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
    "blank before colon": ("Content-Length: {n}\r\nTransfer-Encoding : chunked", b"0\r\n\r\n"),
    "folded": ("Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked", b"0\r\n\r\n"),
    "tabbed": ("Content-Length: {n}\r\nTransfer-Encoding:\tchunked", b"0\r\n\r\n"),
    "xchunked": ("Content-Length: {n}\r\nTransfer-Encoding: xchunked", b"0\r\n\r\n"),
    "bare line feed": ("X: a\nTransfer-Encoding: chunked\r\nContent-Length: {n}", b"0\r\n\r\n"),
    "underscore": ("Content-Length: {n}\r\nTransfer_Encoding: chunked", b"0\r\n\r\n"),
    "signed chunk": ("Transfer-Encoding: chunked", b"+0\r\n\r\n"),
    "hex chunk": ("Transfer-Encoding: chunked", b"0x0\r\n\r\n"),
    "chunk without end": ("Transfer-Encoding: chunked", b"2\r\n{}0\r\n\r\n"),
}


@pytest.mark.parametrize(("rows", "before"), SMUGGLERS.values(), ids=SMUGGLERS)
def test_a_request_hidden_in_another_is_never_carried_out(
    door: Door, rows: str, before: bytes
) -> None:
    number = ticket()
    hidden = framed(json.dumps({"ticket_id": number}).encode(), False)
    if "{n}" in rows:
        rows = rows.format(n=len(before) + len(hidden))
    answers = door.service.exchange(smuggler(rows, before, hidden))
    smuggled = door.service.events("--ticket", number)
    # where both sides agree that the first request ends before the hidden one, it is no secret
    honest = rows.count("Transfer-Encoding: chunked") and "Content-Length" not in rows
    assert smuggled == [] or (honest and before == b"0\r\n\r\n")
    assert {checked(one).status for one in answers} <= {200, 400, 413, 501}
    door.good()


def test_a_body_with_length_and_chunks_closes_the_connection_and_is_at_most_one_row(
    start: Start,
) -> None:
    door = start()
    number = ticket()
    body = chunks(json.dumps({"ticket_id": number}).encode())
    rows = f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked"
    top = f"POST /note HTTP/1.1\r\nHost: localhost\r\n{rows}\r\n\r\n".encode()
    with door.service.connect(3.0) as line:
        line.sendall(top + body)
        heard = b""
        while piece := line.recv(65536):  # ends in time only if the connection is closed
            heard += piece
    assert heard.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert len(door.service.events()) <= 1
    door.good()


def test_framing_without_end_is_refused_and_costs_others_nothing(door: Door) -> None:
    """An extension of a chunk, or what follows the last one, was searched from its beginning."""
    top = b"POST /note HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begin in (b"5;", b"0\r\nX-Trailer: ", b"2\r\n{}\r\n0", b"0" * 9000):
        with door.service.connect(5) as line, suppress(ConnectionError):
            line.sendall(top + begin)
            for _ in range(128):
                line.sendall(b"a" * 65536)  # 8 MiB of it
            door.good()
            assert first_reply(line).status == 400, begin[:9]


def test_http_1_0_with_chunks_closes_the_connection(door: Door) -> None:
    """It knows none: what such a body holds must not be the next request (RFC 9112 6.1)."""
    number = ticket()
    hidden = framed(json.dumps({"ticket_id": number}).encode(), False)
    top = b"POST /note HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
    answers = door.service.exchange(top + b"Transfer-Encoding: chunked\r\n\r\n" + hidden)
    assert len(answers) == 1
    door.nothing_of(number)


# ---- What the HTTP server itself refuses -------------------------------------------------------


def padded(rows: int, size: int) -> bytes:
    """A request with many or long header lines."""
    more = "".join(f"X-Pad-{row}: {'a' * size}\r\n" for row in range(rows))
    body = '{"ticket_id": "PADDED"}'
    top = f"POST /note HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{top}{more}\r\n{body}".encode()


REFUSED: dict[str, tuple[bytes, set[int]]] = {
    "half an address": (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "an address with a wild port": (b"POST http://[::1]x/note HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "a length of 5,000 digits": (
        b"POST /note HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        {400, 413},
    ),
    "no HTTP": (b"hello\r\n\r\n", {400}),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "no such version": (b"POST /note HTTP/9.9\r\nHost: x\r\n\r\n", {400, 505}),
    "header without colon": (b"POST /note HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", {400}),
    "300 KB of headers": (padded(300, 1000), {431, 400}),
    "500 headers": (padded(500, 40), {431, 400}),
    "one header of 70 KB": (padded(1, 70_000), {431, 400}),
    "request line of 70 KB": (
        b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        {431, 400},
    ),
    "unknown coding": (
        b"POST /note HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        {501},
    ),
}


@pytest.mark.parametrize(("data", "statuses"), REFUSED.values(), ids=REFUSED)
def test_what_the_server_itself_refuses_is_json_and_stores_nothing(
    door: Door, data: bytes, statuses: set[int]
) -> None:
    answers = door.service.exchange(data)
    assert answers
    assert checked(answers[0]).status in statuses
    assert answers[0].error
    door.nothing_of("PADDED")
    door.good()


@pytest.mark.parametrize("what", ["half an address", "a length of 5,000 digits"])
def test_what_its_parser_stumbles_over_is_one_sparing_line_in_the_log(
    start: Start, what: str
) -> None:
    door = start()
    for _ in range(5):
        (answer,) = door.service.exchange(REFUSED[what][0])
        assert checked(answer).status == 400
    assert len([line for line in door.service.log.splitlines() if "listening" not in line]) == 1
    (line,) = door.service.lines("refused: 400")
    assert len(line) < 300


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_more_query_fields_than_anybody_needs_get_400(start: Start, method: str) -> None:
    door = start(access={"token": SECRET, "query_token": True})
    path = "/note" if method == "POST" else "/metrics"
    query = "&".join(f"a{n}=1" for n in range(60))
    headers = {"X-Forwarded-For": "203.0.113.9"}  # not this machine, to whom /metrics is open
    answer = door.service.request(method, f"{path}?{query}&token={SECRET}", b"{}", headers)
    assert checked(answer).status == 400
    assert door.service.events() == []
    assert "Traceback" not in door.service.log


def test_no_answer_names_the_software_or_its_version(door: Door) -> None:
    answers = [door.service.post("note", b""), *door.service.exchange(b"hello\r\n\r\n")]
    for one in answers:
        told = str(one.headers.pairs) + one.body.decode()
        assert not [word for word in ("aitress", "ottle", "ython") if word in told]


# ---- Clients that misbehave --------------------------------------------------------------------


def test_a_webhook_whose_sender_left_at_once_is_stored_and_delivered(door: Door) -> None:
    number = ticket()
    with door.service.connect() as line:
        line.sendall(framed(json.dumps({"ticket_id": number}).encode(), False))
    door.arrived(number)


def test_a_sender_that_half_closes_still_gets_its_answer(door: Door) -> None:
    number = ticket()
    body = framed(json.dumps({"ticket_id": number}).encode(), False)
    (answer,) = door.service.exchange(body, half_close=True)
    assert (answer.status, answer.state) == (200, "pending")
    door.arrived(number)


def test_a_body_cut_short_stores_nothing(door: Door) -> None:
    number = ticket()
    whole = framed(json.dumps({"ticket_id": number, "text": "x" * 500}).encode(), False)
    answers = door.service.exchange(whole[:-100], half_close=True)
    assert not [one for one in answers if one.status == 200]
    door.good()
    door.nothing_of(number)


def test_several_webhooks_on_one_connection_are_answered_in_order(door: Door) -> None:
    names = [ticket() for _ in range(5)]
    pieces = [framed(json.dumps({"ticket_id": one}).encode(), False) for one in names]
    data = b"".join(pieces).replace(b"Connection: close\r\n", b"")
    answers = door.service.exchange(data)
    assert [one.json()["ticket_id"] for one in answers] == names


def test_600_clients_that_only_occupy_connections_do_not_delay_a_good_one(start: Start) -> None:
    door = start()
    whole = framed(b'{"ticket_id": "', False)
    with ExitStack() as stack:
        lines = [stack.enter_context(door.service.connect()) for _ in range(600)]
        for line in lines[:150]:
            line.sendall(whole[:40])  # the head, in part
        for line in lines[150:300]:
            line.sendall(whole[:-5])  # the body, in part
        for line in lines[300:400]:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        # two thousand requests are work; from then on they only wait to be read
        until(lambda: door.service.request("GET", "/health").seconds < 0.2, "it is calm", 30)
        for _ in range(3):
            for line in lines[150:300]:
                line.sendall(b" ")  # a byte now and then
            door.good()


# ---- Who may post ------------------------------------------------------------------------------


def basic(password: str, user: str = "hook") -> str:
    """The header of HTTP Basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A service with two valid tokens."""
    with Itsm() as itsm:
        text = with_notes(itsm.url, access={"token": ["old-token", "new-token:1"]})
        with Service(tmp_path_factory.mktemp("guarded"), text) as service:
            yield Door(service, itsm)


GOOD_CREDENTIALS: list[dict[str, str]] = [
    {"Authorization": "Bearer old-token"},
    {"Authorization": "bearer old-token"},
    {"X-Webhook-Token": "old-token"},
    {"Authorization": basic("old-token")},
    {"Authorization": basic("old-token", "")},
    {"Authorization": basic("new-token:1", "누구")},
    {"Authorization": basic("", "old-token")},
    {"Authorization": "old-token"},
    {"Authorization": "Token old-token"},
]


@pytest.mark.parametrize("headers", GOOD_CREDENTIALS)
def test_each_token_admits_in_each_of_its_places(guarded: Door, headers: dict[str, str]) -> None:
    number = ticket()
    answer = guarded.service.post("note", {"ticket_id": number}, headers)
    assert (answer.status, answer.state) == (200, "pending")
    guarded.arrived(number)


BAD_CREDENTIALS: dict[str, dict[str, str | bytes]] = {
    "none": {},
    "wrong": {"Authorization": "Bearer wrong-token"},
    "empty": {"Authorization": "Bearer "},
    "half": {"X-Webhook-Token": "old-toke"},
    "both": {"X-Webhook-Token": "old-token, old-token"},
    "digest": {"Authorization": 'Digest username="old-token"'},
    "broken Basic": {"Authorization": "Basic !!!"},
    "Basic not UTF-8": {"Authorization": "Basic " + base64.b64encode(b"a:\xff\xfe").decode()},
    "not ASCII": {"Authorization": "Bearer 토큰".encode()},
    "not UTF-8": {"X-Webhook-Token": b"\xff\xfe\xe9"},
    "a signature": {"X-Hub-Signature": "sha1=da39a3ee5e6b4b0d3255bfef95601890afd80709"},
}


@pytest.mark.parametrize("headers", BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS)
def test_no_or_a_wrong_credential_gets_401_and_nothing_is_stored(
    guarded: Door, headers: dict[str, str | bytes]
) -> None:
    number = ticket()
    answer = checked(guarded.service.post("note", {"ticket_id": number}, headers))
    assert answer.status == 401
    assert answer.error
    assert "HD-ITSM-Event" not in answer.headers
    guarded.nothing_of(number)


@pytest.mark.parametrize("other", ["Bearer old-token", "Bearer wrong-token"])
def test_a_doubled_credential_gets_401(guarded: Door, other: str) -> None:
    number = ticket()
    body = json.dumps({"ticket_id": number}).encode()
    whole = framed(body, False)
    rows = f"Authorization: Bearer old-token\r\nAuthorization: {other}\r\nConnection".encode()
    (answer,) = guarded.service.exchange(whole.replace(b"Connection", rows, 1))
    assert checked(answer).status == 401
    guarded.nothing_of(number)


def test_a_bad_body_without_a_credential_gets_401_and_is_not_kept(guarded: Door) -> None:
    before = len(guarded.service.events())
    assert checked(guarded.service.post("note", b"nonsense")).status == 401
    assert len(guarded.service.events()) == before


def test_a_token_in_the_url_counts_only_where_it_is_allowed(guarded: Door, start: Start) -> None:
    number = ticket()
    refused = guarded.service.post("note?token=old-token", {"ticket_id": number})
    assert checked(refused).status == 401
    door = start(access={"token": "url token/1", "query_token": True})
    assert door.service.post("note?token=url%20token%2F1", {"ticket_id": number}).status == 200
    assert door.service.post("note?a=1&token=url+token%2F1", {"ticket_id": number}).status == 200
    for query in ("token=", "token=wrong", "Token=url%20token%2F1", "token", "%ff=%fe&;&"):
        assert checked(door.service.post(f"note?{query}", {"ticket_id": number})).status == 401
    assert "url token/1" not in door.service.log
    assert "url%20token" not in door.service.log


def test_a_token_may_come_from_a_file_the_environment_or_a_systemd_credential(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    (tmp_path / "hook").write_text("from-credential\n")
    means = [{"file": str(tmp_path / "token")}, {"env": "HOOK"}, {"credential": "hook"}]
    environ = {"HOOK": "from-env", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    with Itsm() as itsm:
        text = with_notes(itsm.url, access={"token": means})
        with Service(tmp_path, text, environ) as service:
            for token in ("from-file", "from-env", "from-credential"):
                headers = {"X-Webhook-Token": token}
                assert service.post("note", {"ticket_id": ticket()}, headers).status == 200
            (tmp_path / "token").write_text("renewed\n")  # another size: seen at any resolution

            def status(token: str) -> int:
                headers = {"X-Webhook-Token": token}
                return service.post("note", {"ticket_id": ticket()}, headers).status

            until(lambda: status("renewed") == 200, "the changed file is read")
            assert status("from-file") == 401


def test_networks_alone_admit_by_address(start: Start) -> None:
    door = start(access={"networks": ["127.0.0.1/32"]})
    door.good()


def test_an_address_outside_the_networks_gets_403_and_nothing_is_stored(start: Start) -> None:
    door = start(access={"networks": ["10.0.0.5/32", "2001:db8::/32"]})
    number = ticket()
    tries: list[dict[str, str]] = [
        {},
        {"X-Forwarded-For": "10.0.0.5"},
        {"Forwarded": "for=10.0.0.5"},
        {"X-Real-IP": "10.0.0.5"},
    ]
    for headers in tries:
        answer = checked(door.service.post("note", {"ticket_id": number}, headers))
        assert answer.status == 403
        assert answer.error
    door.nothing_of(number)


def test_networks_restrict_a_token_further(start: Start) -> None:
    door = start(
        access={"networks": ["10.0.0.0/8"], "token": "good"},
        server={"trusted_proxy": ["127.0.0.1"]},
    )

    def status(token: str, address: str) -> int:
        headers = {"X-Webhook-Token": token, "X-Forwarded-For": address}
        return checked(door.service.post("note", {"ticket_id": ticket()}, headers)).status

    assert status("good", "10.1.2.3") == 200
    assert status("good", "192.0.2.1") == 403
    assert status("bad", "10.1.2.3") == 401
    assert status("bad", "192.0.2.1") in (401, 403)


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("10.0.0.5:51008", 200),
        ("[::ffff:10.0.0.5]:51008", 200),
        ("2001:db8::1", 200),
        ("[2001:db8::1]", 200),
        ("[2001:db8::1]:443", 200),
        ("2001:DB8:0::1%eth0", 200),
        ("[2001:db8::2]:443", 403),
        ("10.0.0.5:443:1", 403),
        ("[10.0.0.5", 403),
        ("203.0.113.7:51008", 403),
        ("10.0.0.5", 200),
        ("::ffff:10.0.0.5", 200),
        ("192.0.2.1, 10.0.0.5", 200),
        ("10.0.0.5, 127.0.0.1", 200),
        ("10.0.0.5, 192.0.2.1", 403),
        ("192.0.2.1", 403),
        ("", 403),
        ("nonsense", 403),
        ("10.0.0.5, nonsense", 403),
        (",,,", 403),
        ("10.0.0.5/32", 403),
        ("unknown, 192.0.2.1, 127.0.0.1", 403),
    ],
)
def test_a_trusted_proxy_names_the_address_and_nobody_before_it_can_forge_one(
    proxied: Door, forwarded: str, status: int
) -> None:
    headers = {"X-Forwarded-For": forwarded}
    answer = checked(proxied.service.post("note", {"ticket_id": ticket()}, headers))
    assert answer.status == status


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A service behind a proxy on loopback that is believed."""
    with Itsm() as itsm:
        text = with_notes(
            itsm.url,
            access={"networks": ["10.0.0.5/32", "2001:db8::1"]},
            server={"trusted_proxy": ["127.0.0.1"]},
        )
        with Service(tmp_path_factory.mktemp("proxied"), text) as service:
            yield Door(service, itsm)


def test_a_trusted_proxy_that_tells_by_another_header_tells_nobody(start: Start) -> None:
    """Else its own address would be everybody's."""
    networks = ["127.0.0.0/8", "203.0.113.7"]
    door = start(access={"networks": networks}, server={"trusted_proxy": ["127.0.0.1"]})
    door.good()
    for headers in ({"Forwarded": "for=203.0.113.7"}, {"X-Real-IP": "203.0.113.7"}):
        answer = door.service.post("note", {"ticket_id": ticket()}, headers)
        assert checked(answer).status == 403


def need_ipv6() -> None:
    """Ends a test that needs IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as line:
            line.bind(("::1", 0))
    except OSError:
        pytest.skip("missing here: IPv6")


def test_on_an_ipv6_socket_an_ipv4_proxy_is_trusted_and_a_stranger_is_one(start: Start) -> None:
    need_ipv6()
    door = start(
        server={"listen": "[::]:0", "trusted_proxy": ["127.0.0.1"]},
        access={"networks": ["10.0.0.5/32", "::ffff:192.168.7.0/120"]},
    )

    def status(path: str, address: str) -> int:
        headers = {"X-Forwarded-For": address} if address else {}
        body = None if path == "/" else json.dumps({"ticket_id": ticket()}).encode()
        return door.service.request("GET" if path == "/" else "POST", path, body, headers).status

    assert status("/", "") == 200
    for stranger in ("203.0.113.9", "::ffff:203.0.113.9", "2001:db8::9", "10.0.0.5"):
        assert status("/", stranger) == 403, stranger
    assert status("/note", "203.0.113.9") == 403
    for known in ("10.0.0.5", "::ffff:10.0.0.5", "192.168.7.30"):
        assert status("/note", known) == 200, known


def test_over_ipv6_loopback_is_this_machine_and_its_proxy_is_trusted(start: Start) -> None:
    need_ipv6()
    door = start(server={"listen": "[::1]:0", "trusted_proxy": ["::1"]})

    def status(*rows: str) -> bytes:
        head = "\r\n".join(["GET / HTTP/1.1", f"Host: [::1]:{door.service.port}", *rows])
        with socket.create_connection(("::1", door.service.port), 5) as line:
            line.sendall(f"{head}\r\n\r\n".encode())
            return line.recv(12)[9:]

    assert status() == b"200"
    assert status("X-Forwarded-For: [2001:db8::1]:443") == b"403"
    assert status("X-Forwarded-For: [::1]:443") == b"200"


PEERS = [
    ("127.0.0.1", {}, True),
    ("::1", {}, True),
    ("::ffff:127.0.0.1", {}, True),
    ("10.0.0.2", {}, False),
    ("::ffff:10.0.0.2", {}, False),
    ("10.0.0.2", {"X_FORWARDED_FOR": "127.0.0.1"}, False),
    ("10.0.0.2", {"X_FORWARDED_FOR": "::1"}, False),
    ("10.0.0.2", {"FORWARDED": "for=127.0.0.1"}, False),
    ("127.0.0.1", {"X_FORWARDED_FOR": "127.0.0.1"}, True),
    ("127.0.0.1", {"X_FORWARDED_FOR": "127.0.0.1:99, [::1]:9"}, True),
    ("::ffff:127.0.0.1", {"X_FORWARDED_FOR": "127.0.0.1"}, True),
    ("127.0.0.1", {"X_FORWARDED_FOR": "203.0.113.9, 127.0.0.1"}, False),
    ("127.0.0.1", {"X_FORWARDED_FOR": ""}, False),
    ("127.0.0.1", {"FORWARDED": 'for="[2001:db8::1]:443";proto=https'}, False),
    ("127.0.0.1", {"FORWARDED": "proto=https"}, False),
    ("127.0.0.1", {"FORWARDED": 'proto=http; For="127.0.0.1:99"'}, True),
    ("127.0.0.1", {"FORWARDED": "for=127.0.0.1", "X_FORWARDED_FOR": "203.0.113.9"}, False),
    ("127.0.0.1", {"X_REAL_IP": "203.0.113.9"}, False),
    ("127.0.0.1", {"X_REAL_IP": "203.0.113.9", "X_FORWARDED_FOR": "127.0.0.1"}, False),
    ("127.0.0.1", {"X_FORWARDED_PROTO": "https"}, False),
    ("127.0.0.1", {"VIA": "1.1 proxy"}, False),
]


@pytest.mark.parametrize(("peer", "headers", "here"), PEERS)
def test_this_machine_is_who_comes_from_loopback_and_through_nobody_else(
    peer: str, headers: dict[str, str], here: bool
) -> None:
    environ = {"REMOTE_ADDR": peer, **{f"HTTP_{name}": text for name, text in headers.items()}}
    proxies = [hd_itsm.read_network(text) for text in ("127.0.0.1", "::1", "10.0.0.2")]
    assert hd_itsm.from_this_machine(environ, proxies) == here
    if headers:
        assert not hd_itsm.from_this_machine(environ, [])


def test_a_local_proxy_that_sends_forwarded_alone_does_not_open_the_page(start: Start) -> None:
    for trusted in ([], ["127.0.0.1"]):
        door = start(server={"trusted_proxy": trusted})
        for name in ("X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "X-Azure-ClientIP"):
            answer = door.service.request("GET", "/", headers={name: "203.0.113.9"})
            assert answer.status == 403, name
        forwarded = {"Forwarded": "for=203.0.113.9"}
        assert door.service.request("GET", "/", headers=forwarded).status == 403
        assert door.service.request("GET", "/").status == 200
        assert door.service.stop() == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("10.0.0.5:80", "10.0.0.5"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("::FFFF:0a00:0005", "10.0.0.5"),
        ("[::ffff:10.0.0.5]:80", "10.0.0.5"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ],
)
def test_an_address_is_compared_in_one_form(text: str, address: str) -> None:
    assert str(hd_itsm.read_ip(text)) == address


SITES: dict[str, tuple[dict[str, str], int]] = {
    "cross-site": ({"Sec-Fetch-Site": "cross-site"}, 403),
    "same-site": ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
    "another origin": ({"Origin": "https://evil.example"}, 403),
    "no origin to tell": ({"Origin": "null"}, 403),
    "another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "nonsense": ({"Origin": "http://["}, 403),
    "another name for here": ({"Origin": "http://evil.example", "Host": "evil.example"}, 403),
    "our own": ({"Origin": "http://localhost:9", "Host": "localhost:9"}, 200),
    "our own page": ({"Origin": "http://127.0.0.1:9", "Host": "127.0.0.1:9",
                      "Sec-Fetch-Site": "same-origin"}, 200),
    "no browser": ({"Host": "helpdesk.example.com"}, 200),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "status"), SITES.values(), ids=SITES)
@pytest.mark.parametrize("access", [{}, {"networks": ["127.0.0.1"]}], ids=["open", "networks"])
def test_no_web_site_posts_through_a_browser_where_nothing_but_the_address_admits(
    sited: Mapping[str, Door], headers: dict[str, str], status: int, access: dict[str, Any]
) -> None:
    door, number = sited["networks" if access else "open"], ticket()
    answer = door.service.post("note", {"ticket_id": number}, headers)
    assert checked(answer).status == status
    if status == 403:
        door.nothing_of(number)
    by_token = sited["token"].service.post(
        "note", {"ticket_id": number}, {**headers, "X-Webhook-Token": SECRET}
    )
    assert by_token.status == 200


@pytest.fixture(scope="module")
def sited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Door]]:
    """Services that admit by address, by network and by token."""
    means: dict[str, dict[str, Any]] = {
        "open": {},
        "networks": {"networks": ["127.0.0.1"]},
        "token": {"token": SECRET},
    }
    with ExitStack() as stack:
        itsm = stack.enter_context(Itsm())
        doors = {}
        for name, access in means.items():
            text = with_notes(itsm.url, access=access)
            service = Service(tmp_path_factory.mktemp(name), text)
            doors[name] = Door(stack.enter_context(service), itsm)
        yield doors


@pytest.mark.parametrize("rule", [{}, {"match": "sha1=(.+)"}])
def test_any_configured_means_admits(rule: dict[str, str], start: Start) -> None:
    rule = {"secret": SECRET, "header": "X-Hub-Signature", **rule}
    door = start(access={"token": "good", "hmac": rule})
    body = json.dumps({"ticket_id": ticket()}).encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest()
    assert door.service.post("note", body, {"X-Hub-Signature": f"sha1={digest}"}).status == 200
    assert door.service.post("note", body, {"X-Webhook-Token": "good"}).status == 200
    wrong = {"X-Webhook-Token": "bad", "X-Hub-Signature": "sha1=00"}
    assert checked(door.service.post("note", body, wrong)).status == 401


# ---- Signatures --------------------------------------------------------------------------------

LONG = "36500d"  # the samples are signed once and for all
FORMS: dict[str, dict[str, str]] = {
    "zammad": {"header": "X-Hub-Signature", "algorithm": "sha1", "match": "sha1=(.+)"},
    "glpi11": {
        "header": "X-GLPI-signature",
        "algorithm": "sha256",
        "signed": "{body}{timestamp}",
        "timestamp_header": "X-GLPI-timestamp",
        "max_age": LONG,
    },
    "freescout": {
        "header": "X-FreeScout-Signature",
        "algorithm": "sha1",
        "encoding": "base64",
    },
    "zendesk-event": {
        "header": "x-zendesk-webhook-signature",
        "algorithm": "sha256",
        "encoding": "base64",
        "signed": "{timestamp}{body}",
        "timestamp_header": "x-zendesk-webhook-signature-timestamp",
        "max_age": LONG,
    },
    "jira": {"header": "X-Hub-Signature", "algorithm": "sha256", "match": "sha256=(.+)"},
}


def signed_samples(form: str) -> list[str]:
    """The signed samples of a sender."""
    rows = json.loads((PAYLOADS / "_manifest.json").read_bytes())["files"]
    names = [row["file"] for row in rows if "hmac" in row.get("auth", "")]
    header = FORMS[form]["header"].lower()
    found = [
        name
        for name in names
        if name.startswith(form) and header in {key.lower() for key in sample(name).headers}
    ]
    assert found, f"no signed sample of {form}"
    return found


def signing(start: Start, form: str, **more: str) -> Door:
    """A service that believes this sender's signature alone."""
    paths = {sample(name).path.partition("?")[0] for name in signed_samples(form)}
    ids = ["ticket.id", "item.id", "detail.id", "issue.id", "id"]
    hooks = {
        f"hooks__h{place}": {"path": path, "kind": "note", "fields": {"ticket_id": ids}}
        for place, path in enumerate(sorted(paths))
    }
    rule = {**FORMS[form], "secret": SECRET, **more}
    return start(access={"hmac": rule}, **hooks)


@pytest.mark.parametrize("form", FORMS)
def test_the_signature_of_each_sender_admits_its_own_body_and_no_other(
    start: Start, form: str
) -> None:
    door = signing(start, form)
    for name in signed_samples(form):
        path, headers, body = sample(name)
        assert door.service.post(path, body, headers).status == 200, name
        header = next(key for key in headers if key.lower() == FORMS[form]["header"].lower())
        turned = headers[header][:-2] + ("A=" if headers[header][-2:] != "A=" else "B=")
        without = {key: value for key, value in headers.items() if key != header}
        forged: list[tuple[bytes, dict[str, str]]] = [
            (body + b" ", headers),
            (body.replace(b"418", b"419", 1).replace(b"419", b"417", 1), headers),
            (body, without),
            (body, {**headers, header: ""}),
            (body, {**headers, header: turned}),
            (body, {**headers, header: headers[header] + ", " + headers[header]}),
            (body, {**headers, header: FORMS[form].get("match", "").partition("(")[0]}),
        ]
        if "timestamp_header" in FORMS[form]:
            stamp = next(
                k for k in headers if k.lower() == FORMS[form]["timestamp_header"].lower()
            )
            forged += [
                (body, {**headers, stamp: "2026-11-23T06:05:12Z"}),
                (body, {key: value for key, value in headers.items() if key != stamp}),
                (body, {**headers, stamp: "nonsense"}),
                (body, {**headers, stamp: "9" * 400}),
            ]
        for place, (changed, lines) in enumerate(forged):
            answer = checked(door.service.post(path, changed, lines))
            assert answer.status == 401, (name, place)


@pytest.mark.parametrize("form", FORMS)
def test_a_signature_with_another_secret_gets_401(start: Start, form: str) -> None:
    door = signing(start, form, secret="another secret")
    path, headers, body = sample(signed_samples(form)[0])
    assert checked(door.service.post(path, body, headers)).status == 401


@pytest.mark.parametrize("form", ["glpi11", "zendesk-event"])
def test_a_signature_older_than_max_age_gets_401_and_a_fresh_one_passes(
    start: Start, form: str
) -> None:
    door = signing(start, form, max_age="2m")
    path, headers, body = sample(signed_samples(form)[0])
    assert checked(door.service.post(path, body, headers)).status == 401
    now = datetime.now(UTC)
    if form == "glpi11":
        stamp, digest = str(int(now.timestamp())), hashlib.sha256
        signed = hmac.new(SECRET.encode(), body + stamp.encode(), digest).hexdigest()
    else:
        stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        mac = hmac.new(SECRET.encode(), stamp.encode() + body, hashlib.sha256).digest()
        signed = base64.b64encode(mac).decode()
    fresh = {FORMS[form]["header"]: signed, FORMS[form]["timestamp_header"]: stamp}
    assert door.service.post(path, body, fresh).status == 200


def signed(body: bytes, at: float, key: str = SECRET) -> dict[str, str]:
    """The headers of a signature over a timestamp and the body."""
    stamp = str(int(at))
    digest = hmac.new(key.encode(), stamp.encode() + body, hashlib.sha256).hexdigest()
    return {"X-Signature": f"SHA256={digest.upper()}", "X-Stamp": stamp}


STAMPED = {
    "secret": SECRET,
    "header": "X-Signature",
    "algorithm": "sha256",
    "match": "sha256=(.+)",
    "signed": "{timestamp}{body}",
    "timestamp_header": "X-Stamp",
}


def test_a_signed_timestamp_holds_300_seconds_unless_max_age_says_otherwise(
    start: Start,
) -> None:
    for more, statuses in (
        ({}, {0: 200, 250: 200, 400: 401, 40_000_000: 401}),
        ({"max_age": 10}, {0: 200, 250: 401}),
        ({"max_age": 0}, {0: 200, 400: 200, 40_000_000: 200}),
    ):
        door = start(access={"hmac": {**STAMPED, **more}})
        for age, status in statuses.items():
            body = json.dumps({"ticket_id": ticket()}).encode()
            for sign in (1, -1) if age else (1,):
                headers = signed(body, time() - sign * age)
                assert door.service.post("note", body, headers).status == status, (more, age)
        assert door.service.stop() == 0


def test_an_emptied_secret_file_admits_nobody_new_and_the_last_secret_goes_on(
    tmp_path: Path,
) -> None:
    for name in ("token", "key", "password"):
        (tmp_path / name).write_text(f"the {name}\n")
    with Itsm() as itsm:
        text = with_notes(
            itsm.url,
            access={
                "token": {"file": str(tmp_path / "token")},
                "hmac": {**STAMPED, "secret": {"file": str(tmp_path / "key")}},
            },
            server={"admin_password": {"file": str(tmp_path / "password")}},
        )
        with Service(tmp_path, text) as service:

            def statuses(token: str, key: str, password: str) -> list[int]:
                body = json.dumps({"ticket_id": ticket()}).encode()
                page = {"Authorization": basic(password)}
                return [
                    service.post("note", body, {"X-Webhook-Token": token}).status,
                    service.post("note", body, signed(body, time(), key)).status,
                    service.request("GET", "/", headers=page).status,
                ]

            assert statuses("the token", "the key", "the password") == [200, 200, 200]
            for nothing in ("", " \n", "\ufeff\n", "\0" * 9):  # zeros: after a power cut
                for name in ("token", "key", "password"):
                    (tmp_path / name).write_text(nothing)
                assert statuses("", "", "") == [401, 401, 401]
                assert statuses("the token", "the key", "the password") == [200, 200, 200]
            for name in ("token", "key", "password"):
                assert len(service.lines("WARNING", str(tmp_path / name), "is empty")) >= 4
                (tmp_path / name).write_text(f"another {name}\n")
            assert statuses("another token", "another key", "another password") == [200, 200, 200]
            assert statuses("the token", "the key", "the password") == [401, 401, 401]


# ---- The control endpoint ----------------------------------------------------------------------


def test_the_control_file_is_for_its_owner_alone_and_goes_with_the_service(start: Start) -> None:
    door = start()
    path = door.service.folder / "hd_itsm.db.control"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(door.service.database.stat().st_mode) == 0o600
    assert door.service.stop() == 0
    assert not path.exists()
    door.service.start()


@pytest.mark.parametrize(
    "rows",
    [
        "Host: evil.example",
        "Host: evil.example:8080",
        "Host: 127.0.0.1.evil.example",
        "Host: 192.0.2.1",
        "Host: localhost\r\nHost: evil.example",
        "Host: localhost\r\nHost: localhost",
        "Host:",
        "X-Other: 1",
    ],
)
@pytest.mark.parametrize("keyed", [False, True], ids=["without key", "with key"])
def test_the_control_endpoint_refuses_a_foreign_missing_or_doubled_host(
    door: Door, rows: str, keyed: bool
) -> None:
    headers = asked(door.service.control["key"], "pause", b"{}") if keyed else {}
    key = "".join(f"\r\n{name}: {value!s}" for name, value in headers.items())
    top = f"POST /control/pause HTTP/1.1\r\n{rows}{key}\r\nConnection: close\r\n"
    (answer,) = door.service.exchange(f"{top}Content-Length: 2\r\n\r\n{{}}".encode())
    assert checked(answer).status == 421
    assert answer.error
    door.good()  # nothing was paused


CROSS_BODY = b'{"ticket": "CROSS", "request_id": "R-666", "events": [1], "why": "x", "rows": []}'
CROSS: list[dict[str, str | bytes]] = [
    {},
    {"HD-ITSM-Proof": ""},
    {"HD-ITSM-Proof": "wrong"},
    {"HD-ITSM-Proof": "열쇠".encode()},
    asked("another key", "pause", CROSS_BODY),
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "null", "Content-Type": "text/plain"},
]


@pytest.mark.parametrize("headers", CROSS)
@pytest.mark.parametrize("verb", ["pause", "drop", "map", "retry", "import", "nonsense"])
def test_the_control_endpoint_does_nothing_without_its_key(
    door: Door, headers: dict[str, str | bytes], verb: str
) -> None:
    answer = checked(door.service.request("POST", f"/control/{verb}", CROSS_BODY, headers))
    assert answer.status in (401, 403, 404)
    assert answer.error
    door.good()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nonsense", b'{"events": ["x"]}', b'{"events": {}}', b"\xff", b"[" * 5000],
)
def test_the_control_endpoint_answers_nonsense_with_400(door: Door, body: bytes) -> None:
    answer = checked(door.service.control_post("drop", body))
    assert answer.status == 400
    assert answer.error
    door.good()


# ---- Listening ---------------------------------------------------------------------------------


def test_it_refuses_to_listen_beyond_loopback_without_access(tmp_path: Path) -> None:
    service = Service(tmp_path, settings("http://127.0.0.1:9/", server={"listen": "0.0.0.0:0"}))
    run = service.cli("serve")
    assert run.code == 2
    assert "[access]" in run.err
    assert "server.listen" in run.err
    assert not service.database.exists()


def test_health_is_json_and_tells_the_age_of_the_oldest_undelivered_event(start: Start) -> None:
    door = start(Itsm(silence()))
    quiet = door.service.request("GET", "/health")
    assert (quiet.status, quiet.json()["status"]) == (200, "ok")
    door.service.post("note", {"ticket_id": ticket()})
    began = monotonic()
    found = until(
        lambda: (one := door.service.request("GET", "/health").json())["oldest_age"] and one,
        "the oldest event grows old",
    )
    assert found["pending"] == 1
    assert found["oldest_age"] <= monotonic() - began + 2


def test_a_closing_without_any_date_gets_400_and_names_the_field(door: Door) -> None:
    answer = checked(door.service.post("itsm_com", {"ticket_id": ticket()}))
    assert answer.status == 400
    assert "date" in answer.error
    assert door.service.post("itsm_com", closing(ticket())).status == 200
