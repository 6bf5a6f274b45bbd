"""Whole lives of tickets, seen from outside: the real command, killed, stopped, refused."""

from __future__ import annotations

import http.client
import json
import logging
import re
import signal
import socket
import statistics
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic

import pytest

from itsm import (
    Answer,
    Itsm,
    Received,
    empty,
    error_inside,
    hang_up,
    held,
    html,
    ok,
    plain_text,
    reply,
    reset,
    silence,
    too_many,
    unauthorized,
    with_id,
)
from service import (
    AUTHORIZATION,
    Service,
    Start,
    assignment,
    closing,
    opening,
    sample,
    settings,
    ticket,
    until,
)

SEOUL = timezone(timedelta(hours=9))
FORMAT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8},[0-9]{3} - [A-Z]+ - \S.*")


def code(received: Received) -> str:
    """What the ITSM was asked for: 000 new, 020 assign, 030 complete, 900 note."""
    return str(received.json()["code"])


# ---- The main job ------------------------------------------------------------------------------


def expected_dates(*moments: datetime) -> set[str]:
    """The expected date, had the event come at one of these moments."""
    return {(one + timedelta(days=7)).strftime("%Y-%m-%d") for one in moments}


def test_the_originals_webhooks_become_exactly_the_requests_of_the_contract(
    itsm: Itsm, start: Start
) -> None:
    service = start(itsm.url)
    before = datetime.now(SEOUL)
    for hook, name in (
        ("itsm_new", "original-created.json"),
        ("itsm_ass", "original-assigned.json"),
        ("itsm_com", "original-closed.json"),
    ):
        body = sample(name).body
        answer = service.post(hook, body, wait=10)
        assert (answer.status, answer.state) == (200, "delivered")
        assert answer.json() == json.loads(body)
        assert answer.headers["HD-ITSM-Request-Id"] == "R-1"
    after = datetime.now(SEOUL)
    new, assign, complete = (one.json() for one in itsm.requests)
    assert new.pop("end_hop_date") in expected_dates(before, after)
    assert new == {
        "code": "000",
        "item_id": "ITEM-1",
        "service": "SVC-1",
        "req_user_id": "jimin.park",
        "reg_user_id": "jimin.park",
        "request_purpose": "OA기기/복합기",
        "priority": 2,
        "title": "3층 복합기 용지 걸림 반복 발생",
        "contents": "오늘 오전부터 같은 자리에서 세 번째입니다. 오류 코드 E-041",
        "after_improvement": "없음",
    }
    assert type(new["priority"]) is int
    assert assign.pop("end_expect_date") in expected_dates(before, after)
    assert assign == {
        "code": "020",
        "request_id": "R-1",
        "rcv_user_id": "dohyun.lee",
        "trt_user_id": "dohyun.lee",
        "comment": "요청이 접수되었습니다.",
    }
    opened = datetime(2026, 11, 23, 15, 5, 9, tzinfo=SEOUL)
    hours = {str(max(0, int((one - opened).total_seconds() // 3600))) for one in (before, after)}
    assert complete.pop("work_qty") in hours
    assert complete == {
        "code": "030",
        "request_id": "R-1",
        "comment": "처리가 완료되었습니다.",
    }


def test_every_request_is_a_post_with_authorization_and_a_key_of_its_own(
    itsm: Itsm, start: Start
) -> None:
    service = start(itsm.url)
    number = ticket()
    service.post("itsm_new", opening(number))
    service.post("itsm_ass", assignment(number))
    service.post("itsm_com", closing(number))
    requests = itsm.wait_for(3)
    for one in requests:
        assert (one.method, one.path) == ("POST", "/api")
        assert one.headers.all("Authorization") == [AUTHORIZATION]
        assert one.headers["Content-Type"].startswith("application/json")
        assert one.headers.all("Idempotency-Key") == [str(uuid.UUID(one.key))]
    assert len({one.key for one in requests}) == 3


def test_work_is_the_whole_hours_from_opening_to_receipt_and_never_below_zero(
    itsm: Itsm, start: Start
) -> None:
    service, told = start(itsm.url), []
    hours = {5.02: "5", 4.98: "4", 0.5: "0", -48: "0", 1000.5: "1000"}
    for ago in hours:
        number, opened = ticket(), datetime.now(SEOUL) - timedelta(hours=ago)
        service.post("itsm_new", opening(number), wait=20)
        date = opened.strftime("%m/%d/%Y %I:%M:%S %p")
        assert service.post("itsm_com", closing(number, date), wait=20).state == "delivered"
        told.append(itsm.requests[-1].json()["work_qty"])
    assert told == list(hours.values())


JITBIT = [
    ("jitbit-created.txt", "4185", {"title": "대용량 첨부 발송 실패"}),
    ("jitbit-created-cp949.txt", None, {}),
    ("jitbit-created-broken-quotes.txt", None, {}),
    ("jitbit-created-injection.txt", None, {}),
]


@pytest.mark.parametrize(("name", "ticket_id", "told"), JITBIT, ids=[one[0] for one in JITBIT])
def test_a_helpdesk_with_pasted_templates_opens_its_ticket(
    itsm: Itsm, start: Start, name: str, ticket_id: str | None, told: dict[str, str]
) -> None:
    service = start(itsm.url)
    path, headers, body = sample(name)
    answer = service.post(path, body, headers, wait=10)
    assert (answer.status, answer.state) == (200, "delivered")
    (created,) = itsm.created
    sent = created.received.json()
    assert told.items() <= sent.items()
    assert all(sent[key] for key in ("req_user_id", "title", "contents"))
    assert "\ufffd" not in created.received.body.decode()
    if ticket_id:
        assert service.mappings() == {ticket_id: "R-1"}


def test_a_mask_left_in_an_assignment_is_refused_with_400(itsm: Itsm, start: Start) -> None:
    service = start(itsm.url)
    path, headers, body = sample("jitbit-assigned-mask-left.txt")
    answer = service.post(path, body, headers)
    assert (answer.status, answer.state) == (400, "failed")
    assert "technician" in answer.error


# ---- Retries -----------------------------------------------------------------------------------


def test_the_key_stays_the_same_over_retries_and_a_restart(itsm: Itsm, start: Start) -> None:
    itsm.answer = reply(503)
    service = start(itsm.url)
    answer = service.post("itsm_new", opening(ticket()))
    itsm.wait_for(2)
    itsm.answer = hang_up()
    itsm.wait_for(4)
    service.restart()
    count = len(itsm.requests)
    itsm.wait_for(count + 1)
    itsm.answer = ok()
    itsm.wait_created(1)
    assert len({one.key for one in itsm.requests}) == 1
    assert len({one.body for one in itsm.requests}) == 1
    until(lambda: service.show(answer.event)["state"] == "delivered", "it is recorded")
    assert len(itsm.created) == 1


LATER: dict[str, Answer] = {
    "400-less door": reply(404),
    "500": reply(500, text="boom"),
    "503": reply(503),
    "429": too_many("1"),
    "hangs up": hang_up(),
    "resets": reset(),
    "is silent": silence(),
    "sends HTML": html(),
}


def test_an_itsm_that_could_not_take_it_gets_it_again_later(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, itsm={"timeout": 0.5})
    for name, bad in LATER.items():
        itsm.script = [bad]
        answer = service.post("itsm_new", opening(ticket()), wait=20)
        assert (answer.status, answer.state) == (200, "delivered"), name
        first, second = itsm.requests[-2:]
        assert first.key == second.key, name
        assert answer.headers["HD-ITSM-Request-Id"] == itsm.created[-1].request_id, name
        if name == "429":
            assert second.at - first.at >= 1.0
        shown = service.show(answer.event)
        outcomes = [one["outcome"] == "delivered" for one in shown["attempts"]]
        assert outcomes == [False, True], name
    assert len(itsm.requests) == 2 * len(LATER)


REFUSALS: dict[str, Answer] = {
    "400": reply(400, json={"error": "no such user"}),
    "422": reply(422),
    "200 without an id": error_inside(),
    "id null": with_id(None),
    "id blank": with_id(""),
    "id false": with_id(False),
    "id object": with_id({}),
    "empty": empty(),
    "plain text": plain_text(),
    "a list": reply(json=[]),
}


def test_an_answer_without_a_usable_id_fails_the_opening_and_is_never_an_empty_mapping(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    for name, bad in REFUSALS.items():
        itsm.script = [bad]
        number = ticket()
        answer = service.post("itsm_new", opening(number), wait=20)
        assert (answer.status, answer.state) == (200, "failed"), name
        assert "HD-ITSM-Request-Id" not in answer.headers, name
        assigned = service.post("itsm_ass", assignment(number))
        assert (assigned.status, assigned.state) == (200, "held"), name
        assert service.show(answer.event)["reason"], name
    assert service.mappings() == {}
    counts, each = service.status()["counts"], len(REFUSALS)
    assert (counts["failed"], counts["held"], len(itsm.requests)) == (each, each, each)


def test_a_wrong_credential_makes_everything_wait_until_its_file_is_replaced(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("Basic wrong\n")
    good = "Basic good-credential"

    def decide(received: Received) -> Answer | None:
        return None if received.headers["Authorization"] == good else unauthorized()

    itsm.decide = decide
    file = {"file": str(tmp_path / "token")}
    service = start(itsm.url, itsm={"authorization": file}, retry={"probe": 30, "first": 30})
    names = [ticket() for _ in range(10)]
    for name in names:
        service.post("itsm_new", opening(name))
        service.post("itsm_ass", assignment(name))
    run = service.cli("status")
    assert run.code == 1
    assert "credential" in run.out
    assert service.status()["counts"]["failed"] == 0
    assert len(itsm.requests) <= 8  # gently: one per worker and a probe, not one per event
    (tmp_path / "token").write_text(good + "\n")
    itsm.wait_for(20, where=lambda one: one.headers["Authorization"] == good)
    in_order(itsm, names, ["000", "020"], lambda one: one.headers["Authorization"] == good)


def in_order(
    itsm: Itsm,
    names: list[str],
    codes: list[str],
    where: Callable[[Received], bool] = lambda one: True,
    repeats: bool = False,
) -> None:
    """Each ticket's requests came once each, in this order (`repeats`: at least once)."""
    opened = {one.received.json()["title"]: one.request_id for one in itsm.created}
    assert set(opened) == {f"제목 {name}" for name in names}
    taken = [one for one in itsm.requests if where(one)]
    by_key = {one.key: one for one in reversed(taken)}
    first_ones = sorted(by_key.values(), key=lambda one: one.number)
    if not repeats:
        assert len(first_ones) == len(taken)
        assert itsm.repeated() == {}
    by_ticket: dict[str, list[str]] = {}
    for one in first_ones:
        body = one.json()
        number = opened[body["title"]] if code(one) == "000" else body["request_id"]
        by_ticket.setdefault(number, []).append(code(one))
    assert by_ticket == {opened[f"제목 {name}"]: codes for name in names}


# ---- Outages and crashes -----------------------------------------------------------------------


def post_life(service: Service, name: str, place: int) -> None:
    """A ticket's three webhooks; every third ticket's assignment overtakes its opening."""
    hooks: list[tuple[str, object]] = [
        ("itsm_new", opening(name)),
        ("itsm_ass", assignment(name)),
        ("itsm_com", closing(name)),
    ]
    if place % 3 == 0:
        hooks[0], hooks[1] = hooks[1], hooks[0]
    for hook, body in hooks:
        answer = service.post(hook, body)
        assert answer.status == 200
        assert answer.seconds < 5.0


def test_180_webhooks_survive_an_outage_and_kill_9_and_arrive_once_in_order(start: Start) -> None:
    names = [ticket() for _ in range(60)]
    itsm = Itsm()  # it has a port, and refuses connections
    try:
        service = start(itsm.url, retry={"probe": 1})
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(post_life, [service] * 60, names, range(60)))
        service.kill()
        service.start()
        assert service.status()["counts"]["delivered"] == 0
        itsm.start()
        itsm.wait_for(180, timeout=30)
        until(lambda: service.status()["counts"]["delivered"] == 180, "all is recorded")
        assert service.cli("status").code == 0
        assert len(itsm.requests) == 180
        in_order(itsm, names, ["000", "020", "030"])
    finally:
        itsm.close()


def test_kill_9_again_and_again_under_load_loses_nothing_that_was_answered(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    answered: list[tuple[str, str]] = []
    names: list[str] = []

    def send(name: str) -> None:
        for hook, body in (
            ("itsm_new", opening(name)),
            ("itsm_ass", assignment(name)),
            ("itsm_com", closing(name)),
        ):
            try:
                answer = service.post(hook, body)
            except (OSError, http.client.HTTPException):
                return  # killed before it answered: the helpdesk would try again
            if answer.status == 200:
                answered.append((name, hook))

    for turn in range(4):
        batch = [ticket() for _ in range(30)]
        names += batch
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send, name) for name in batch]
            enough = len(answered) + 15 + 10 * turn
            until(lambda: len(answered) >= enough, "the load runs")  # noqa: B023
            service.kill()
            for done in sent:
                done.result(20)
        service.start()
    until(lambda: service.status()["counts"]["pending"] == 0, "all goes out", 20)
    codes = {"itsm_new": "000", "itsm_ass": "020", "itsm_com": "030"}
    opened: dict[str, set[str]] = {}
    for created in itsm.created:
        opened.setdefault(created.received.json()["title"], set()).add(created.request_id)
    seen = {(one.json()["request_id"], code(one)) for one in itsm.requests if code(one) != "000"}
    for name, hook in answered:
        ids = opened[f"제목 {name}"]
        assert hook == "itsm_new" or any((number, codes[hook]) in seen for number in ids)
    assert len(itsm.repeated()) <= 4 * 4  # at most what was in flight at each kill
    for ids in opened.values():
        for number in ids:
            firsts: dict[str, int] = {}
            for one in itsm.requests:
                if one.json().get("request_id") == number:
                    firsts.setdefault(code(one), one.number)
            assert list(firsts) == sorted(firsts, key=lambda word: word)


def test_a_request_in_flight_at_kill_9_is_repeated_under_the_same_key(
    start: Start, itsm: Itsm
) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    service = start(itsm.url)
    answer = service.post("itsm_new", opening(ticket()))
    itsm.wait_for(1)
    service.kill()
    go.set()
    service.start()
    first, second = itsm.wait_for(2)
    assert first.key == second.key
    until(lambda: service.show(answer.event)["state"] == "delivered", "it is recorded")
    assert len(itsm.requests) == 2


# ---- Waiting for the request id ----------------------------------------------------------------


def test_an_assignment_of_an_unknown_ticket_is_held_and_goes_out_after_map(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    number = ticket()
    answer = service.post("itsm_ass", assignment(number))
    assert (answer.status, answer.state) == (200, "held")
    run = service.cli("status")
    assert run.code == 0  # its opening may be a second behind: a person is told after a minute
    assert "held 1" in run.out
    assert service.cli("map", number, "R-77").code == 0
    (sent,) = itsm.wait_for(1)
    assert sent.json()["request_id"] == "R-77"
    until(lambda: service.cli("status").code == 0, "nothing needs a person")
    assert service.show(answer.event)["state"] == "delivered"


def test_what_was_held_goes_out_after_its_opening_in_the_order_received(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    number = ticket()
    for technician in ("kim", "lee"):
        assert service.post("itsm_ass", assignment(number, technician)).state == "held"
    assert service.post("itsm_com", closing(number)).state == "held"
    service.restart()
    assert service.post("itsm_new", opening(number), wait=10).state == "delivered"
    new, first, second, last = itsm.wait_for(4)
    assert [code(one) for one in (new, first, second, last)] == ["000", "020", "020", "030"]
    assert [one.json()["rcv_user_id"] for one in (first, second)] == ["kim", "lee"]
    assert {one.json()["request_id"] for one in (first, second, last)} == {"R-1"}


def test_an_assignment_waits_in_line_while_its_opening_is_pending(
    start: Start, itsm: Itsm
) -> None:
    itsm.answer = reply(503)
    service = start(itsm.url)
    number = ticket()
    assert service.post("itsm_new", opening(number)).state == "pending"
    assert service.post("itsm_ass", assignment(number)).state == "pending"
    itsm.wait_for(3)
    assert service.status()["counts"]["held"] == 0
    itsm.answer = ok()
    itsm.wait_for(1, where=lambda one: code(one) == "020")
    assert [code(one) for one in itsm.requests[-2:]] == ["000", "020"]


def test_a_refused_ticket_holds_its_own_events_alone_and_retry_sends_all_in_order(
    start: Start, itsm: Itsm
) -> None:
    bad, good = ticket(), ticket()
    itsm.decide = lambda one: reply(400) if one.json().get("title") == f"제목 {bad}" else None
    service = start(itsm.url)
    first = service.post("itsm_new", opening(bad), wait=10)
    assert service.post("itsm_ass", assignment(bad)).state == "held"
    assert service.post("itsm_com", closing(bad)).state == "held"
    assert service.post("itsm_new", opening(good), wait=10).state == "delivered"
    itsm.decide = None
    assert service.cli("retry", first.event).code == 0
    itsm.wait_for(3, where=lambda one: one.number > 2)
    assert [code(one) for one in itsm.requests[2:]] == ["000", "020", "030"]


def test_one_ticket_that_always_fails_delays_no_other_and_ends_as_failed(
    start: Start, itsm: Itsm
) -> None:
    bad = ticket()
    itsm.decide = lambda one: reply(500) if one.json().get("title") == f"제목 {bad}" else None
    service = start(itsm.url, retry={"tries": 4})
    poison = service.post("itsm_new", opening(bad))

    def given_up() -> bool:
        answer = service.post("itsm_new", opening(ticket()), wait=10)
        assert answer.state == "delivered"
        assert answer.seconds < 5.0
        return bool(service.show(poison.event)["state"] == "failed")

    until(given_up, "the poison is given up", 20)
    assert len(service.show(poison.event)["attempts"]) >= 4


# ---- Stopping ----------------------------------------------------------------------------------


def test_sigterm_finishes_the_attempt_in_flight_and_ends_with_0(start: Start, itsm: Itsm) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    service = start(itsm.url, server={"stop_after": 10})
    answer = service.post("itsm_new", opening(ticket()))
    service.post("note", {"ticket_id": ticket()})  # what has not begun may wait for the next start
    itsm.wait_for(1)
    service.signal(signal.SIGTERM)
    until(lambda: service.lines("stopping"), "it stops")
    go.set()
    assert service.wait() == 0
    assert service.show(answer.event)["state"] == "delivered"
    service.start()
    itsm.wait_for(2)
    service.post("note", {"ticket_id": ticket()}, wait=10)
    assert len({one.key for one in itsm.requests}) == len(itsm.requests)


def test_sigterm_finishes_an_answer_that_waits_for_the_itsm(start: Start, itsm: Itsm) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    service = start(itsm.url, server={"stop_after": 10})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.post, "itsm_new", opening(ticket()), {}, 20)
        itsm.wait_for(1)
        service.signal(signal.SIGTERM)
        until(lambda: service.lines("stopping"), "it stops")
        go.set()
        answer = waiting.result(10)
    assert (answer.status, answer.state) == (200, "delivered")
    assert service.wait() == 0


def test_once_it_stops_it_accepts_no_more(start: Start, itsm: Itsm) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    service = start(itsm.url, server={"stop_after": 10})
    service.post("itsm_new", opening(ticket()))
    itsm.wait_for(1)
    service.signal(signal.SIGTERM)
    until(lambda: service.lines("stopping"), "it stops")
    late = ticket()
    try:
        answered = service.post("note", {"ticket_id": late}, timeout=1.0).status
    except OSError:
        answered = 0
    assert answered in (0, 503)
    go.set()
    assert service.wait() == 0
    assert service.events("--ticket", late) == []


def test_a_second_sigterm_changes_nothing(start: Start, itsm: Itsm) -> None:
    go = threading.Event()
    itsm.script = [held(go, ok())]
    service = start(itsm.url, server={"stop_after": 10})
    answer = service.post("itsm_new", opening(ticket()))
    itsm.wait_for(1)
    service.signal(signal.SIGTERM)
    until(lambda: service.lines("stopping"), "it stops")
    service.signal(signal.SIGTERM)
    service.signal(signal.SIGINT)
    go.set()
    assert service.wait() == 0
    assert service.show(answer.event)["state"] == "delivered"
    assert len(itsm.requests) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_itsm_that_stays_silent_holds_up_a_stop_for_stop_after_at_most(
    start: Start, itsm: Itsm, number: int
) -> None:
    itsm.script = [silence()]
    service = start(itsm.url, server={"stop_after": 1}, itsm={"timeout": 60})
    answer = service.post("itsm_new", opening(ticket()))
    itsm.wait_for(1)
    began = monotonic()
    service.signal(number)
    assert service.wait() == 0
    assert monotonic() - began < 4.0
    assert service.show(answer.event)["state"] == "pending"
    service.start()
    itsm.wait_created(1)
    assert len({one.key for one in itsm.requests}) == 1


def test_an_idle_service_with_a_client_that_keeps_its_connection_stops_at_once(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url, server={"stop_after": 10})
    with service.connect() as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(65536)
        began = monotonic()
        assert service.stop() == 0
        assert monotonic() - began < 3.0


# ---- One owner ---------------------------------------------------------------------------------


def test_a_second_serve_on_the_same_file_is_refused_and_the_first_goes_on(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    before = service.control
    run = service.cli("serve")
    assert run.code == 1
    assert "cannot start" in run.err
    assert str(service.pid) in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert service.control == before
    assert service.post("itsm_new", opening(ticket()), wait=10).state == "delivered"
    assert service.cli("status").code == 0


def test_a_port_that_is_taken_is_an_error_of_one_line_with_exit_1(
    tmp_path: Path, itsm: Itsm
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        service = Service(tmp_path, settings(itsm.url, server={"listen": address}))
        run = service.cli("serve")
    assert run.code == 1
    assert "cannot start" in run.err
    assert address in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert not (tmp_path / "hd_itsm.db.control").exists()


def test_no_other_program_can_write_to_the_file_while_it_runs(start: Start, itsm: Itsm) -> None:
    import sqlite3

    service = start(itsm.url)
    other = sqlite3.connect(service.database, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT count(*) FROM events")
    other.close()
    assert service.post("itsm_new", opening(ticket()), wait=10).state == "delivered"


# ---- Speed -------------------------------------------------------------------------------------


def test_an_answer_takes_no_longer_when_the_itsm_is_dead_or_slow(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, itsm={"timeout": 30}, server={"stop_after": 0.2})

    def median() -> float:
        times = [service.post("itsm_new", opening(ticket())).seconds for _ in range(80)]
        return statistics.median(times)

    median()  # warm
    well = median()
    until(lambda: len(itsm.created) == 160, "it is quiet again")
    itsm.answer = silence()
    slow = median()
    itsm.stop()
    dead = median()
    assert slow < 3 * well + 0.01, (well, slow)
    assert dead < 3 * well + 0.01, (well, dead)


# ---- The log -----------------------------------------------------------------------------------


def test_each_attempt_is_one_log_line_with_event_ticket_kind_outcome_reason_and_duration(
    start: Start, itsm: Itsm
) -> None:
    itsm.script = [reply(503), hang_up()]
    service = start(itsm.url)
    number = ticket()
    answer = service.post("itsm_new", opening(number), wait=10)
    assert answer.state == "delivered"
    words = (f"event {answer.event} ", "attempt")
    until(lambda: len(service.lines(*words)) == 3, "the third is told")
    lines = service.lines(*words)
    for place, line in enumerate(lines, 1):
        assert FORMAT.fullmatch(line)
        assert f"ticket {number} new attempt {place}" in line
        assert re.search(r"[0-9.]+ s", line)
    assert "503" in lines[0]
    assert "delivered" in lines[2]
    assert [line for line in service.log.splitlines() if not FORMAT.fullmatch(line)] == []


SECRET_TEXT = "비밀스러운 내용"


def test_the_log_holds_no_ticket_text_at_info(start: Start, itsm: Itsm) -> None:
    words = [f"{SECRET_TEXT}-{place}" for place in range(5)]
    itsm.script = [reply(400), reply(503)]
    service = start(itsm.url)
    number = ticket()
    body = opening(number, writer=words[0], category=words[1], subject=words[2], contents=words[3])
    assert service.post("itsm_new", body, wait=10).state == "failed"
    assert service.post("itsm_new", body, wait=10).state == "delivered"
    service.post("itsm_ass", assignment(number, words[4]), wait=10)
    service.post("itsm_ass", assignment(number, words[4]))
    service.post("itsm_new", f"broken {words[0]}")
    service.post("itsm_com", closing(number, words[1]))
    service.post("itsm_new", f'{{"ticket_id":"{number}","writer":"{words[0]}" "{words[1]}"}}')
    assert service.stop() == 0
    assert SECRET_TEXT not in service.log
    assert service.lines("ticket " + number)


def test_what_comes_from_outside_cannot_break_or_colour_a_log_line(
    start: Start, itsm: Itsm
) -> None:
    bad = "\x1b[31mred\r\n2026-01-01 00:00:00,000 - INFO - forged\u2028x\u202ey\x85z\x00"
    itsm.script = [reply(400, json={"error": bad}), reply(400, text=bad)]
    service = start(itsm.url, hooks__named={"kind": "note", "fields": {"ticket_id": "ticket_id"}})
    service.post("itsm_new", opening(ticket(), subject=bad), wait=10)
    service.post("itsm_new", opening(ticket(), writer=bad), wait=10)
    service.post("note", {"ticket_id": bad})
    service.post("note", {"ticket_id": ticket(), bad: bad}, {"webhook-id": "\x1b[31m\x85"})
    service.request("POST", "/itsm_new%0d%0aforged%1b[31m", b"{}")
    service.post("itsm_com", closing(ticket(), bad))
    service.exchange(b"POST /itsm_new\x1b[31m\x85\xff HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n")
    assert service.stop() == 0
    assert [line for line in service.log.split("\n") if line and not FORMAT.fullmatch(line)] == []
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", service.log)
    assert [line for line in service.log.split("\n") if line.startswith("2026-01-01")] == []


def test_the_log_file_turns_over_at_its_size_and_keeps_so_many(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    service = start(itsm.url, log={"file": "hd.log", "max_bytes": 3000, "backups": 3})
    for _ in range(100):
        service.post("note", {"ticket_id": ticket()})
    itsm.wait_for(100)
    assert service.stop() == 0
    files = sorted(path.name for path in tmp_path.glob("hd.log*"))
    assert files == ["hd.log", "hd.log.1", "hd.log.2", "hd.log.3"]
    for name in files:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert len(text.encode()) <= 3000
        assert all(FORMAT.fullmatch(line) for line in text.splitlines())
    assert (tmp_path / "hd.log").read_text().splitlines()[-1] in service.log


def test_under_systemd_the_lines_on_stderr_have_no_time(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, {"JOURNAL_STREAM": "8:1"})
    assert service.stop() == 0
    levels = "|".join(logging.getLevelNamesMapping())
    assert all(re.match(rf"({levels}) - \S", line) for line in service.log.splitlines())


# ---- Secrets -----------------------------------------------------------------------------------


def test_a_broken_configuration_is_told_without_its_secrets(tmp_path: Path, itsm: Itsm) -> None:
    word = "secret-token-0002"
    text = settings(
        itsm.url,
        access={"token": [word, 5], "hmac": {"secret": word, "algorithm": "md5"}},
        itsm={"authorization": [word]},
        server={"admin_password": {"fle": word}},
    )
    run = Service(tmp_path, text).cli("serve")
    assert run.code == 2
    assert "access.token" in run.err
    assert word not in run.out + run.err


def test_a_toml_that_cannot_be_parsed_is_told_without_its_secrets(
    tmp_path: Path, itsm: Itsm
) -> None:
    text = settings(itsm.url) + '[access]\ntoken = "secret-token-0002\n'
    run = Service(tmp_path, text).cli("serve")
    assert run.code == 2
    assert "hd_itsm.toml" in run.err
    assert "secret-token-0002" not in run.out + run.err


# ---- Configuration, seen from outside ----------------------------------------------------------


def test_a_misspelt_key_a_wrong_type_and_an_unknown_filter_are_one_list_with_exit_2(
    tmp_path: Path, itsm: Itsm
) -> None:
    text = settings(
        itsm.url,
        server={"thread": 4},
        retry={"tries": "ten"},
        kinds__new={"opens": True, "body": {"title": "{subject|uppr}", "x": "{nothing}"}},
        values={"item_id": 5},
    )
    run = Service(tmp_path, text).cli("serve")
    assert run.code == 2
    for word in ("server.thread", "threads", "retry.tries", "kinds.new", "uppr", "nothing"):
        assert word in run.err
    assert not (tmp_path / "hd_itsm.db").exists()


def test_without_a_configuration_the_message_says_what_to_do(tmp_path: Path) -> None:
    service = Service(tmp_path, "")
    run = service.cli("serve")
    assert run.code == 2
    assert "itsm.url" in run.err
