"""The command line: every command, beside a running service and without one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from crowd import multiply
from itsm import Answer, Itsm, Received, ok, plain_text, reply
from service import (
    AUTHORIZATION,
    PROGRAM,
    Run,
    Service,
    Start,
    assignment,
    closing,
    opening,
    settings,
    ticket,
    until,
    with_notes,
)

STATES = ("pending", "held", "delivered", "failed", "ignored", "dropped")
EVENT_KEYS = {
    "event",
    "state",
    "kind",
    "ticket",
    "request_id",
    "received",
    "reason",
    "repaired",
    "fields",
    "raw",
    "attempts",
}


def populate(service: Service, itsm: Itsm) -> None:
    """One event of each state, and of ticket A its whole life: 1 to 8."""
    post = service.post
    assert post("itsm_new", opening("A"), wait=10).state == "delivered"
    assert post("itsm_ass", assignment("A"), wait=10).state == "delivered"
    assert post("itsm_ass", assignment("A")).state == "ignored"
    itsm.script = [reply(400, json={"error": "unknown user"})]
    assert post("itsm_new", opening("B"), wait=10).state == "failed"
    assert post("itsm_ass", assignment("B")).state == "held"
    assert post("itsm_new", "no object at all").state == "failed"
    assert post("itsm_ass", assignment("C")).state == "held"
    assert service.cli("drop", 7, "--why", "a test ticket").code == 0
    body = json.dumps(assignment("A", "박 김"), ensure_ascii=False).encode("cp949")
    assert post("itsm_ass", body, wait=10).state == "delivered"


# ---- With and without a running service --------------------------------------------------------

READING: list[tuple[str, ...]] = [
    ("status",),
    ("status", "--json"),
    ("events",),
    ("events", "--ticket", "A", "--limit", "2", "--json"),
    ("show", "4"),
    ("show", "8", "--json"),
    ("show", "--ticket", "A"),
    ("show", "--ticket", "B", "--json"),
    ("show", "99"),
    ("export",),
    ("export", "--json"),
    ("retry", "--state", "failed", "--dry-run"),
    ("drop", "1", "--why", "no", "--json"),
    ("retry", "99"),
]


def alike(command: tuple[str, ...], run: Run) -> Run:
    """A run without what says whether the service runs, and how much time went by."""
    if command[0] == "status":
        kept = [one for one in run.out.splitlines() if not re.search(r"running|oldest_age", one)]
        return run._replace(out="\n".join(kept))
    return run


@pytest.mark.slow
def test_each_command_prints_the_same_with_and_without_a_running_service_and_after_a_kill(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    populate(service, itsm)
    beside = [alike(command, service.cli(*command)) for command in READING]
    service.kill()  # its control file stays, and names nobody
    for place in (0, 2, 5):
        assert alike(READING[place], service.cli(*READING[place])) == beside[place]
    service.start()
    assert service.stop() == 0
    for command, run in zip(READING, beside, strict=True):
        assert alike(command, service.cli(*command)) == run
    codes = [run.code for run in beside]
    assert codes == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, codes[11], 1, 1]
    assert '"failed": 2' in beside[1].out


def test_commands_change_the_file_without_a_service_and_the_next_start_acts_on_it(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    number = ticket()
    held = service.post("itsm_ass", assignment(number)).event
    other = service.post("itsm_ass", assignment(ticket())).event
    assert service.stop() == 0
    assert service.cli("map", number, "R-9").code == 0
    assert service.cli("drop", other, "--why", "gone").code == 0
    assert service.show(other)["state"] == "dropped"
    assert itsm.requests == []
    service.start()
    (sent,) = itsm.wait_for(1)
    assert sent.json()["request_id"] == "R-9"
    until(lambda: service.show(held)["state"] == "delivered", "it is recorded")


def test_a_stale_control_file_whose_port_another_program_has_does_not_mislead(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    populate(service, itsm)
    service.kill()
    control = service.folder / "hd_itsm.db.control"
    found = json.loads(control.read_text())
    control.write_text(json.dumps({**found, "port": itsm.port}))  # it speaks HTTP, and JSON
    run = service.cli("events", "--json")
    assert run.code == 0
    assert len(run.json()) == 8
    assert itsm.requests  # it was asked, and it did not learn the key
    assert [one for one in itsm.requests if found["key"] in str(one.headers.pairs)] == []
    control.write_text("nonsense")
    assert service.cli("events", "--json").json() == run.json()


def test_a_file_whose_service_cannot_be_found_is_in_use(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    control = service.folder / "hd_itsm.db.control"
    control.rename(service.folder / "hidden")
    run = service.cli("status")
    assert run.code == 1
    assert "hd_itsm.db" in run.err
    assert len(run.err.strip().splitlines()) == 1
    (service.folder / "hidden").rename(control)


@pytest.mark.parametrize("command", ["status", "events", "export", "pause"])
def test_without_a_file_a_command_says_so_and_makes_none(
    tmp_path: Path, itsm: Itsm, command: str
) -> None:
    service = Service(tmp_path, settings(itsm.url))
    run = service.cli(command)
    assert run.code == 1
    assert "hd_itsm.db" in run.err
    assert not service.database.exists()


# ---- Usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("events", "--state", "lost"),
        ("events", "--limit", "many"),
        ("events", "--since", "once"),
        ("show",),
        ("show", "1", "--ticket", "A"),
        ("show", "one"),
        ("retry",),
        ("drop",),
        ("drop", "1"),
        ("map", "A"),
        ("import",),
        ("explain",),
        ("explain", "itsm_nwe", "-"),
        ("explain", "itsm_new", "no-such-file.json"),
        ("--config", "no-such-file.toml", "status"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_message(desk: Service, arguments: tuple[str, ...]) -> None:
    run = desk.cli(*arguments)
    assert run.code == 2
    assert run.err
    assert run.out == ""


MISTAKES: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
    (("evnts",), ("'evnts'", "did you mean 'events'")),
    (("events", "--sate", "failed"), ("--sate", "did you mean '--state'")),
    (("--confg", "x.toml", "status"), ("--confg", "did you mean '--config'")),
    (("events", "--state=faild"), ("--state", "'faild'", "did you mean 'failed'")),
    (("events", "--kind", "asign"), ("--kind", "'asign'", "did you mean 'assign'")),
    (("retry", "--state", "failed", "--kind", "asign"), ("'asign'", "did you mean 'assign'")),
    (("events", "--limit", "0"), ("--limit", "'0'", "above 0")),
    (("events", "--since", "2 hours"), ("--since", "'2 hours'", '"2h"')),
    (("show", "seven"), ("'seven'", "number")),
    (("show",), ("EVENT", "--ticket")),
    (("retry", 1, "--state", "failed"), ("EVENT", "--state")),
    (("retry", "--state", "deliverd"), ("'deliverd'", "failed, ignored, dropped, held")),
    (("drop", 1), ("--why",)),
    (("map", "A", "x" * 201), ("REQUEST", "xxxx", "200 characters")),
    (("explain", "itsm_nwe", "-"), ("'itsm_nwe'", "did you mean 'itsm_new'")),
    (("explain", "itsm_new", "nowhere.json"), ("nowhere.json", "No such file")),
    (
        ("explain", "itsm_new", "-", "--header", "X-Name"),
        ("--header", "'X-Name'", "X-Name: value"),
    ),
    (("import", "nowhere.csv"), ("nowhere.csv", "No such file")),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_is_told_with_the_wrong_value_and_what_would_be_right(
    desk: Service, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    run = desk.cli(*arguments)
    assert (run.code, run.out) == (2, "")
    for word in words:
        assert word in run.err


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one event of each state, for commands that change nothing."""
    with Itsm() as itsm, Service(tmp_path_factory.mktemp("desk"), with_notes(itsm.url)) as service:
        populate(service, itsm)
        yield service


def test_help_names_every_command(desk: Service) -> None:
    run = desk.cli("--help")
    assert run.code == 0
    for word in (
        *("serve", "init", "check", "explain", "status", "events", "show", "retry", "drop"),
        *("map", "import", "export", "pause", "resume", "demo"),
    ):
        assert re.search(rf"\b{word}\b", run.out), word


# ---- Shapes of --json --------------------------------------------------------------------------


def test_an_event_as_json_has_the_words_of_the_contract(desk: Service) -> None:
    found = desk.show(2)
    assert found.keys() >= EVENT_KEYS
    assert (found["event"], found["state"], found["kind"]) == (2, "delivered", "assign")
    assert (found["ticket"], found["request_id"]) == ("A", "R-1")
    assert found["fields"] == assignment("A")
    assert json.loads(found["raw"]) == assignment("A")
    assert datetime.fromisoformat(found["received"]).utcoffset() == timedelta(hours=9)
    (attempt,) = found["attempts"]
    assert attempt["outcome"] == "delivered"
    assert attempt["status"] == 200
    assert "R-1" not in attempt["reason"]
    assert datetime.fromisoformat(attempt["at"])


def test_events_as_json_are_newest_first_with_the_words_of_the_contract(desk: Service) -> None:
    found = desk.events()
    assert [one["event"] for one in found] == [8, 7, 6, 5, 4, 3, 2, 1]
    states = [one["state"] for one in reversed(found)]
    assert states == [
        *("delivered", "delivered", "ignored", "failed"),
        *("held", "failed", "dropped", "delivered"),
    ]
    for one in found:
        assert one.keys() >= EVENT_KEYS - {"fields", "raw", "attempts"}
    refused = found[4]
    assert "unknown user" in refused["reason"]
    assert "a test ticket" in found[1]["reason"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (("--state", "failed"), [6, 4]),
        (("--ticket", "A"), [8, 3, 2, 1]),
        (("--kind", "new"), [4, 1]),
        (("--kind", "assign", "--ticket", "B"), [5]),
        (("--since", "1h"), [8, 7, 6, 5, 4, 3, 2, 1]),
        (("--since", "2099-01-01"), []),
        (("--limit", "3"), [8, 7, 6]),
        (("--ticket", "nobody"), []),
        (("--ticket", "' OR 1=1 --"), []),
    ],
)
def test_events_are_filtered(desk: Service, filters: tuple[str, ...], found: list[int]) -> None:
    run = desk.cli("events", "--json", *filters)
    assert run.code == 0
    assert [one["event"] for one in run.json()] == found


def test_status_as_json_counts_by_state_and_needs_a_person(desk: Service) -> None:
    run = desk.cli("status", "--json")
    found = run.json()
    assert run.code == 1
    assert found["counts"] == {
        **dict.fromkeys(STATES, 0),
        "delivered": 3,
        "failed": 2,
        "held": 1,
        "ignored": 1,
        "dropped": 1,
    }
    assert found["paused"] is None
    assert datetime.fromisoformat(found["last_webhook"])
    assert datetime.fromisoformat(found["last_delivery"])


def test_a_tickets_timeline_as_json_has_its_mapping_and_its_events(desk: Service) -> None:
    found = desk.cli("show", "--ticket", "A", "--json").json()
    assert found["mapping"]["request_id"] == "R-1"
    assert [one["event"] for one in found["events"]] == [1, 2, 3, 8]
    assert desk.cli("show", "--ticket", "B", "--json").json()["mapping"] is None


def test_tables_for_people_hold_the_same_words(desk: Service) -> None:
    out = desk.cli("events").out.splitlines()
    assert out[0].split()[:5] == ["event", "received", "ticket", "kind", "state"]
    assert len(out) == 9
    shown = desk.cli("show", 4).out
    for word in ("event 4", "failed", "unknown user", "제목 B", "attempt 1", "용지가"):
        assert word in shown


def test_a_repaired_body_is_marked(desk: Service) -> None:
    found = desk.show(8)
    assert found["state"] == "delivered"
    assert "CP949" in found["repaired"].upper()
    assert "박" in found["fields"]["technician"]


def test_what_comes_from_outside_cannot_move_the_cursor(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    bad = "\x1b[2J\x07\x9bred\u202e"
    itsm.script = [reply(400, json={"error": bad})]
    event = service.post("itsm_new", opening("A" + ticket(), subject=bad), wait=10).event
    service.post("itsm_new", bad)
    for command in (("show", event), ("events",), ("status",), ("show", 2)):
        out = service.cli(*command).out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)


# ---- status ------------------------------------------------------------------------------------


def test_an_event_needs_a_person_only_when_it_is_held_for_longer_than_a_minute(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    assert service.post("itsm_ass", assignment("A")).state == "held"
    run = service.cli("status")
    assert run.code == 0
    assert "held 1" in run.out
    assert "needs you" not in run.out
    service.stop()
    for seconds, code in ((50, 0), (15, 1)):
        service.change_file(f"UPDATE events SET settled = settled - {seconds}")
        assert service.cli("status").code == code
    service.start()
    run = service.cli("status")
    assert run.code == 1
    assert "needs you      1 ticket needs you" in run.out
    assert "  1 x held: waits for the request id" in run.out
    assert "      hd-itsm map A REQUEST\n" in run.out
    assert service.post("itsm_new", opening("A"), wait=10).state == "delivered"
    until(lambda: service.cli("status").code == 0, "nothing needs a person any more")


def test_status_tells_what_was_turned_away_in_the_last_day_why_and_from_where(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url, access={"token": "s3cret"}, server={"max_body": 5000})
    good = {"X-Webhook-Token": "s3cret"}
    assert service.status()["turned_away"] == []
    assert "all is well" in service.cli("status").out
    service.post("itsm_new", opening("A", contents="x" * 6000), good)
    for _ in range(3):
        service.post("itsm_nwe", opening("B"), good)
    service.post("itsm_new", opening("C"))
    service.request("GET", "/nowhere")  # a person's mistake, no webhook
    service.request("POST", "/control/status", b"{}", {"HD-ITSM-Proof": "x"})
    expected = [(3, 404, "/itsm_nwe"), (1, 401, "/itsm_new")]
    for restarted in (False, True):
        if restarted:
            assert service.stop() == 0
            service.start()
        away = service.status()["turned_away"]
        told = [(row["count"], row["status"], row["path"]) for row in away]
        assert sorted(told, reverse=True) == sorted(expected, reverse=True)
        assert told[0] == expected[0]
        assert {row["from"] for row in away} == {"127.0.0.1"}
        assert "credential" in next(row["reason"] for row in away if row["status"] == 401)
        out = service.cli("status").out
        assert "turned away    3 x 404 /itsm_nwe from 127.0.0.1: no such address" in out
        assert "all is well" not in out
    assert "s3cret" not in service.cli("status", "--json").out


def test_what_was_turned_away_before_the_last_day_is_not_told(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.post("itsm_nwe", opening("B"))
    assert len(service.status()["turned_away"]) == 1
    assert service.stop() == 0
    service.change_file("UPDATE counts SET hour = hour - 24 WHERE hour > 0")
    assert service.status()["turned_away"] == []


def test_who_knocks_at_ever_new_addresses_does_not_fill_the_file(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    for turn in range(3):
        for number in range(40):
            service.post(f"nowhere-{turn}-{number}", b"{}")
        assert len(service.status()["turned_away"]) == 20  # it also writes them down
    away = service.status()["turned_away"]
    assert away[0]["from"] == "others"
    assert away[0]["count"] >= 20  # all but 50, and these again in a new hour
    assert service.stop() == 0
    with contextlib.closing(sqlite3.connect(service.database)) as file:
        sql = "SELECT sum(count), count(*) FROM counts WHERE name LIKE 'turned%'"
        told, rows = file.execute(sql).fetchone()
    assert told == 120
    assert rows <= 2 * 51


# ---- retry -------------------------------------------------------------------------------------


def test_retry_sends_a_refused_ticket_in_the_old_order(start: Start, itsm: Itsm) -> None:
    itsm.script = [reply(400)]
    service = start(itsm.url)
    first = service.post("itsm_new", opening("A"), wait=10).event
    service.post("itsm_ass", assignment("A"))
    service.post("itsm_com", closing("A"))
    run = service.cli("retry", first, "--json")
    assert run.code == 0
    assert run.json()["retried"] == [first]
    itsm.wait_for(4)
    assert [one.json()["code"] for one in itsm.requests] == ["000", "000", "020", "030"]
    until(lambda: service.cli("status").code == 0, "nothing needs a person any more")


def test_a_dry_run_counts_and_changes_nothing(start: Start, itsm: Itsm) -> None:
    itsm.answer = reply(400)
    service = start(itsm.url)
    for name in ("A", "B", "C"):
        service.post("itsm_new", opening(name), wait=10)
    before = service.events()
    run = service.cli("retry", "--state", "failed", "--dry-run")
    assert run.code == 0
    assert "3" in run.out
    assert service.events() == before
    assert len(itsm.requests) == 3


def test_retry_by_state_takes_kind_reason_and_since(start: Start, itsm: Itsm) -> None:
    itsm.script = [reply(400, json={"error": "unknown user"}), reply(400, text="no category")]
    service = start(itsm.url)
    first = service.post("itsm_new", opening("A"), wait=10).event
    second = service.post("itsm_new", opening("B"), wait=10).event
    third = service.post("itsm_ass", {"ticket_id": "C"}).event

    def chosen(*filters: str) -> list[int]:
        run = service.cli("retry", "--state", "failed", "--dry-run", "--json", *filters)
        numbers: list[int] = run.json()["retried"]
        return numbers

    assert chosen("--reason", "unknown user") == [first]
    assert chosen("--reason", "category", "--kind", "new") == [second]
    assert chosen("--kind", "complete") == []
    assert chosen("--since", "2099-01-01") == []
    assert chosen("--since", "1h", "--kind", "new") == [first, second]
    run = service.cli("retry", "--state", "failed", "--reason", "unknown user")
    assert run.code == 0
    itsm.wait_for(3)
    assert service.show(third)["state"] == "failed"
    assert service.show(second)["state"] == "failed"


def test_retry_translates_anew_with_todays_configuration(start: Start, itsm: Itsm) -> None:
    users = {"dohyun.lee": "E-1001"}
    kind = {"body": {"code": "020", "request_id": "{request_id}", "who": "{technician|users}"}}
    service = start(itsm.url, tables__users=users, kinds__assign=kind)
    service.post("itsm_new", opening("A"), wait=10)
    refused = service.post("itsm_ass", assignment("A", "sora.kim"))
    assert refused.status == 400
    assert "sora.kim" in service.show(refused.event)["reason"]
    run = service.cli("retry", refused.event)
    assert run.code == 1
    assert service.show(refused.event)["state"] == "failed"
    service.stop()
    more = {**users, "sora.kim": "E-1002"}
    service.configure(with_notes(itsm.url, tables__users=more, kinds__assign=kind))
    service.start()
    assert service.cli("retry", refused.event).code == 0
    sent = itsm.wait_for(2)[-1]
    assert sent.json() == {"code": "020", "request_id": "R-1", "who": "E-1002"}


def test_an_event_older_than_a_delivered_one_is_retried_only_with_force(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    service.post("itsm_new", opening("A"), wait=10)
    itsm.script = [reply(400)]
    old = service.post("itsm_ass", assignment("A", "kim"), wait=10)
    new = service.post("itsm_ass", assignment("A", "lee"), wait=10)
    assert (old.state, new.state) == ("failed", "delivered")
    run = service.cli("retry", old.event)
    assert run.code == 1
    assert "--force" in run.out + run.err
    assert service.show(old.event)["state"] == "failed"
    assert len(itsm.requests) == 3
    assert service.cli("retry", old.event, "--force").code == 0
    assert itsm.wait_for(4)[-1].json()["rcv_user_id"] == "kim"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_delivered_or_pending_event_is_not_retried(
    start: Start, itsm: Itsm, force: tuple[str, ...]
) -> None:
    service = start(itsm.url)
    first = service.post("itsm_new", opening("A"), wait=10).event
    service.cli("pause")
    second = service.post("itsm_ass", assignment("A")).event
    for event in (first, second):
        run = service.cli("retry", event, *force)
        assert run.code == 1
        assert str(event) in run.out + run.err
    service.cli("resume")
    itsm.wait_for(2)
    until(lambda: service.show(second)["state"] == "delivered", "it is recorded")
    assert len(itsm.requests) == 2


def test_retry_of_an_ignored_duplicate_sends_it(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.post("note", {"ticket_id": "A"}, wait=10)
    service.post("note", {"ticket_id": "A"})
    (again,) = service.events("--state", "ignored")
    assert service.cli("retry", again["event"]).code == 0
    itsm.wait_for(2)
    until(lambda: service.show(again["event"])["state"] == "delivered", "it is recorded")


def test_some_refused_and_some_retried_is_exit_1_and_both_are_told(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    itsm.script = [reply(400)]
    failed = service.post("itsm_new", opening("A"), wait=10).event
    done = service.post("itsm_new", opening("B"), wait=10).event
    run = service.cli("retry", failed, done, 99, "--json")
    assert run.code == 1
    assert run.json()["retried"] == [failed]
    assert [one["event"] for one in run.json()["refused"]] == [done, 99]


# ---- drop and map ------------------------------------------------------------------------------


def test_a_dropped_event_is_recorded_not_sent_and_may_come_back(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    held = service.post("itsm_ass", assignment("A")).event
    assert service.cli("drop", held, "--why", "테스트 ticket").code == 0
    shown = service.show(held)
    assert shown["state"] == "dropped"
    assert "테스트 ticket" in shown["reason"]
    assert service.cli("status").code == 0
    assert service.post("itsm_new", opening("A"), wait=10).state == "delivered"
    service.post("note", {"ticket_id": "B"}, wait=10)
    assert [one.json()["code"] for one in itsm.requests] == ["000", "900"]
    assert service.cli("retry", held, "--force").code == 0  # older than the delivered opening
    until(lambda: service.show(held)["state"] == "delivered", "it goes out after all")


def test_a_delivered_event_cannot_be_dropped_and_a_reason_is_demanded(desk: Service) -> None:
    run = desk.cli("drop", 1, "--why", "no")
    assert run.code == 1
    assert desk.show(1)["state"] == "delivered"
    assert desk.cli("drop", 5, "--why", "  ").code in (1, 2)
    assert desk.show(5)["state"] == "held"


def test_a_dropped_opening_lets_a_later_one_take_its_place(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    itsm.script = [reply(400)]
    first = service.post("itsm_new", opening("A"), wait=10).event
    assert service.cli("drop", first, "--why", "wrong form").code == 0
    again = service.post("itsm_new", opening("A"), wait=10)
    assert (again.state, again.event) == ("delivered", 2)


def test_map_replaces_a_mapping_for_what_comes_later(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.post("itsm_new", opening("A"), wait=10)
    run = service.cli("map", "A", "R-900", "--json")
    assert run.code == 0
    assert (run.json()["ticket"], run.json()["request_id"]) == ("A", "R-900")
    answer = service.post("itsm_ass", assignment("A"), wait=10)
    assert answer.headers["HD-ITSM-Request-Id"] == "R-900"
    assert itsm.requests[-1].json()["request_id"] == "R-900"
    assert service.mappings() == {"A": "R-900"}


@pytest.mark.parametrize(
    ("number", "request_id"),
    [("", "R-1"), ("A", ""), ("A", " "), ("A", "x" * 201), ("A\n", "R\n1")],
)
def test_map_refuses_an_id_that_is_none(desk: Service, number: str, request_id: str) -> None:
    run = desk.cli("map", number, request_id)
    assert run.code in (1, 2)
    assert run.err
    assert desk.mappings() == {"A": "R-1"}


def test_an_opening_answered_with_plain_text_is_decided_by_map(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    itsm.script = [plain_text()]
    first = service.post("itsm_new", opening("A"), wait=10)
    assert first.state == "failed"
    assert service.post("itsm_ass", assignment("A")).state == "held"
    assert service.cli("map", "A", "R-5").code == 0
    assert itsm.wait_for(2)[-1].json()["request_id"] == "R-5"
    assert len(itsm.requests) == 2
    shown = service.show(first.event)
    assert (shown["state"], shown["reason"]) == ("delivered", "mapped by hand")


# ---- import and export -------------------------------------------------------------------------

ORIGINAL = """\
4182,REQ2026112300001,2026-11-23 15:05:09.123456
4183,REQ2026112300002,2026-11-23 15:06:00
"INC,1",REQ-3,2026-11-24 00:00:00.5+09
"""
HEADER = "ticket_id,request_id,timestamp\n"
IMPORTED = {"4182": "REQ2026112300001", "4183": "REQ2026112300002", "INC,1": "REQ-3"}


def exported(service: Service) -> list[list[str]]:
    """What `export` prints, as rows without the header line."""
    run = service.cli("export")
    assert run.code == 0
    header, *rows = csv.reader(io.StringIO(run.out))
    assert header == ["ticket_id", "request_id", "timestamp"]
    return rows


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("header", ["", HEADER, "\ufeff" + HEADER], ids=["bare", "headed", "BOM"])
def test_the_originals_table_is_imported_with_and_without_a_header_line(
    start: Start, itsm: Itsm, header: str, running: bool
) -> None:
    service = start(itsm.url)
    if not running:
        service.stop()
    (service.folder / "map.csv").write_text(header + ORIGINAL, encoding="utf-8")
    run = service.cli("import", "map.csv")
    assert run.code == 0
    assert "3" in run.out
    rows = exported(service)
    assert {row[0]: row[1] for row in rows} == IMPORTED
    for row in rows:
        moment = datetime.fromisoformat(row[2])
        assert moment.utcoffset() is not None
        day = datetime(2026, 11, 23, 15, tzinfo=timezone(timedelta(hours=9)))
        assert abs(moment - day) < timedelta(hours=20)


def test_what_is_exported_can_be_imported_and_exports_the_same(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    service = start(itsm.url)
    (service.folder / "map.csv").write_text(HEADER + ORIGINAL, encoding="utf-8")
    service.cli("import", "map.csv")
    service.post("itsm_new", opening('한글 "quoted", and more'), wait=10)
    out = service.cli("export").out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "map.csv").write_text(out, encoding="utf-8")
    with Service(tmp_path / "other", settings(itsm.url)) as other:
        assert other.cli("import", "map.csv").code == 0
        assert other.cli("export").out == out
        assert other.cli("import", "map.csv").code == 0
        assert other.cli("export").out == out


def test_a_timestamp_without_an_offset_is_read_in_the_configured_zone(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    (service.folder / "map.csv").write_text("1,R-1,2026-11-23 15:05:09.123456\n")
    assert service.cli("import", "map.csv").code == 0
    moment = datetime.fromisoformat(exported(service)[0][2])
    assert moment.replace(microsecond=0).isoformat() == "2026-11-23T15:05:09+09:00"


def test_an_import_lets_what_was_held_go_out(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.post("itsm_ass", assignment("4182"))
    (service.folder / "map.csv").write_text(ORIGINAL)
    service.cli("import", "map.csv")
    (sent,) = itsm.wait_for(1)
    assert sent.json()["request_id"] == "REQ2026112300001"


def test_whoever_comes_from_the_original_imports_before_the_first_start(
    tmp_path: Path, itsm: Itsm
) -> None:
    service = Service(tmp_path, settings(itsm.url))
    (tmp_path / "map.csv").write_text(ORIGINAL)
    assert service.cli("status").code == 1
    assert not service.database.exists()  # a question makes no file
    assert service.cli("import", "map.csv").code == 0
    assert service.cli("map", "4199", "R-4199").code == 0
    assert service.database.stat().st_mode & 0o777 == 0o600
    with service:
        service.post("itsm_ass", assignment("4182"))
        service.post("itsm_ass", assignment("4199"))
        sent = itsm.wait_for(2)
    assert {one.json()["request_id"] for one in sent} == {"REQ2026112300001", "R-4199"}


@pytest.mark.parametrize(
    "line",
    [
        "4190,",
        "4190,,2026-11-23 15:05:09",
        ",R-1,2026-11-23 15:05:09",
        "4190",
        "4190,R-1,yesterday",
        f"{'9' * 201},R-1,",
        f"4190,{'R' * 201},",
        "4190,R\x001,",
    ],
)
def test_a_bad_line_refuses_the_whole_file_and_is_named(desk: Service, line: str) -> None:
    (desk.folder / "bad.csv").write_text(HEADER + "4188,R-4188,\n" + line + "\n")
    run = desk.cli("import", "bad.csv")
    assert run.code in (1, 2)
    assert "line 3" in run.err
    assert desk.mappings() == {"A": "R-1"}


def test_an_import_of_10_000_rows_is_quick(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    rows = "".join(f"{n},R-{n},2026-11-23 15:05:09.123456\n" for n in range(10_000))
    (service.folder / "map.csv").write_text(rows)
    began = monotonic()
    assert service.cli("import", "map.csv").code == 0
    assert monotonic() - began < 10
    assert len(exported(service)) == 10_000


# ---- pause and resume --------------------------------------------------------------------------


def test_a_pause_survives_a_restart_and_intake_goes_on(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    assert service.cli("pause").code == 0
    first = service.post("itsm_new", opening("A"))
    assert (first.status, first.state) == (200, "pending")
    service.restart()
    assert service.status()["paused"]
    second = service.post("itsm_ass", assignment("A"), wait=1)
    assert (second.status, second.state) == (200, "pending")
    assert itsm.requests == []
    assert "paused" in service.cli("status").out
    assert service.cli("resume").code == 0
    itsm.wait_for(2)
    assert service.status()["paused"] is None


def test_pause_and_resume_without_a_service(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.stop()
    assert service.cli("pause", "--json").json()["paused"]
    service.start()
    service.post("itsm_new", opening("A"), wait=1)
    assert itsm.requests == []
    service.stop()
    assert service.cli("resume", "--json").json()["paused"] is None
    service.start()
    itsm.wait_created(1)


# ---- explain -----------------------------------------------------------------------------------

EXPLAINED: list[tuple[str, object]] = [
    ("itsm_new", opening("A", subject='3층 "복합기" \\ {x}', contents="줄\n바꿈")),
    ("itsm_ass", assignment("A")),
    ("itsm_com", closing("A", "2026-11-01T00:00:00+09:00")),
]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_explain_shows_byte_for_byte_what_the_itsm_then_gets(
    start: Start, itsm: Itsm, running: bool
) -> None:
    service = start(itsm.url, itsm={"headers": {"X-Version": "2"}})
    for place, (hook, body) in enumerate(EXPLAINED):
        data = json.dumps(body, ensure_ascii=False).encode()
        if not running:
            service.stop()
        run = service.cli("explain", hook, "-", "--json", stdin=data)
        if not running:
            service.start()
        assert run.code == 0
        found = run.json()
        assert service.post(hook, data, wait=10).state == "delivered"
        sent = itsm.requests[place]
        assert found["body"].encode() == sent.body
        assert (found["method"], found["url"]) == (sent.method, itsm.url)
        told = {name.lower(): value for name, value in found["headers"].items()}
        real = {name.lower(): value for name, value in sent.headers.pairs}
        assert set(told) <= set(real)
        assert {"authorization", "content-type", "idempotency-key", "x-version"} <= set(told)
        plain = ("content-type", "x-version")
        assert [told[name] for name in plain] == [real[name] for name in plain]
        assert AUTHORIZATION not in run.out


def test_explain_stores_and_sends_nothing(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    (service.folder / "body.json").write_text(json.dumps(opening("A")))
    for hook in ("itsm_new", "/itsm_new", "itsm_ass"):
        service.cli("explain", hook, "body.json")
    service.post("note", {"ticket_id": "N"}, wait=10)
    assert [one["ticket"] for one in service.events()] == ["N"]
    assert [one.json()["code"] for one in itsm.requests] == ["900"]


def test_explain_names_the_repair_the_fields_and_why_it_would_fail(desk: Service) -> None:
    body = json.dumps(opening("A"), ensure_ascii=False).encode("cp949")
    run = desk.cli("explain", "itsm_new", "-", stdin=body)
    assert run.code == 0
    for word in ("cp949", "jimin.park", "제목 a", "post", "body"):
        assert word in run.out.lower()
    bad = desk.cli("explain", "itsm_ass", "-", stdin=b'{"ticket_id": "A"}')
    assert bad.code == 1
    assert "technician" in bad.out
    assert desk.cli("explain", "itsm_ass", "-", stdin=b"nonsense").code == 1


def test_explain_before_the_request_id_is_known_says_so(desk: Service) -> None:
    run = desk.cli(
        "explain", "itsm_ass", "-", "--json", stdin=json.dumps(assignment("Z")).encode()
    )
    assert run.code == 0
    assert json.loads(run.json()["body"])["request_id"] not in ("", None)
    assert "request" in run.json()["note"].lower()


# ---- check -------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_check_is_0_where_all_is_well_and_posts_nothing(
    start: Start, itsm: Itsm, running: bool
) -> None:
    itsm.answer = reply(405)
    service = start(itsm.url)
    if not running:
        service.stop()
    run = service.cli("check")
    assert run.code == 0, run
    assert "ok" in run.out
    assert {one.method for one in itsm.requests} <= {"GET", "HEAD"}
    assert itsm.requests


def test_check_before_the_first_start_makes_no_file(tmp_path: Path, itsm: Itsm) -> None:
    service = Service(tmp_path, settings(itsm.url))
    assert service.cli("check").code == 0
    assert not service.database.exists()


def test_check_is_1_where_the_itsm_cannot_be_reached(tmp_path: Path) -> None:
    itsm = Itsm()  # has its port, and refuses connections
    try:
        run = Service(tmp_path, settings(itsm.url)).cli("check")
        assert f"127.0.0.1:{itsm.port}" in run.out
    finally:
        itsm.close()
    assert run.code == 1


def test_check_is_1_for_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    run = Service(tmp_path, settings("http://no-such-host.invalid/api")).cli("check")
    assert run.code == 1
    assert "no-such-host.invalid" in run.out


def test_check_is_1_where_the_credential_is_refused(tmp_path: Path) -> None:
    with Itsm(reply(401)) as itsm:
        run = Service(tmp_path, settings(itsm.url)).cli("check", "--json")
    assert run.code == 1
    assert "authorization" in run.out
    assert isinstance(run.json(), list)


def test_check_does_not_wait_for_ever_for_a_silent_itsm(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        run = Service(tmp_path, settings(url, itsm={"timeout": 1})).cli("check", timeout=10)
    assert run.code == 1


def test_check_is_1_for_a_damaged_file(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.stop()
    service.database.write_bytes(b"this is no database" * 100)
    run = service.cli("check")
    assert run.code == 1
    assert "hd_itsm.db" in run.out


def test_check_is_1_where_the_folder_may_not_be_written(tmp_path: Path, itsm: Itsm) -> None:
    service = Service(tmp_path, settings(itsm.url))
    as_others: list[str] = []
    if os.geteuid() == 0:  # who may write anywhere, unless that is given up
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere")
        as_others = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run(
            [*as_others, sys.executable, str(PROGRAM), "check"],
            cwd=tmp_path,
            capture_output=True,
            timeout=30,
        )
    finally:
        tmp_path.chmod(0o755)
    assert done.returncode == 1, done.stderr.decode()
    assert "not writable" in done.stdout.decode()
    assert not service.database.exists()


def test_check_lists_what_is_wrong_with_the_configuration_and_ends_with_2(
    tmp_path: Path, itsm: Itsm
) -> None:
    run = Service(tmp_path, settings(itsm.url, server={"thread": 1})).cli("check")
    assert run.code == 2
    assert "server.thread" in run.err


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (302, "leads elsewhere"),
        (403, "may lack rights"),
        (404, "the address may be wrong"),
        (429, "enough of us"),
        (500, "trouble of its own"),
        (503, "trouble of its own"),
    ],
)
def test_check_says_what_a_doubtful_answer_may_mean(
    tmp_path: Path, itsm: Itsm, status: int, words: str
) -> None:
    itsm.answer = reply(status)
    run = Service(tmp_path, settings(itsm.url)).cli("check", "--json")
    assert run.code == 0
    (row,) = [row for row in run.json() if row["what"] == "ITSM"]
    assert row["result"] == "look"
    assert f"HTTP {status}" in row["found"]
    assert words in row["found"]


def test_check_says_who_else_may_read_or_write_secrets_and_file(
    start: Start, itsm: Itsm, tmp_path: Path
) -> None:
    token, config = tmp_path / "token", tmp_path / "hd_itsm.toml"
    token.write_text("Basic x")
    service = start(itsm.url, itsm={"authorization": {"file": str(token)}})

    def found(*modes: int) -> list[tuple[str, str]]:
        for path, mode in zip((token, config, service.database), modes, strict=True):
            path.chmod(mode)
        rows = service.cli("check", "--json").json()
        told = [row for row in rows if "others may" in row["found"]]
        for row in told:
            assert f"`chmod go-w,o-r {row['found'].partition(':')[0]}`" in row["found"]
        return [(row["result"], Path(row["found"].partition(":")[0]).name) for row in told]

    assert found(0o600, 0o644, 0o600) == []  # no secret is written in the configuration
    assert found(0o640, 0o644, 0o600) == []  # a group is somebody's choice
    assert found(0o644, 0o644, 0o644) == [("look", "hd_itsm.db"), ("look", "token")]
    assert found(0o660, 0o644, 0o602) == [("wrong", "hd_itsm.db"), ("wrong", "token")]
    assert service.cli("check").code == 1
    service.configure(with_notes(itsm.url))
    assert found(0o600, 0o644, 0o600) == [("look", "hd_itsm.toml")]
    assert found(0o600, 0o600, 0o600) == []


# ---- init and demo -----------------------------------------------------------------------------


def test_init_writes_a_sample_that_runs_once_the_itsm_is_named(tmp_path: Path, itsm: Itsm) -> None:
    service = Service(tmp_path, "")
    (tmp_path / "hd_itsm.toml").unlink()
    run = service.cli("init")
    assert run.code == 0
    path = tmp_path / "hd_itsm.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text(encoding="utf-8")
    for section in ("server", "access", "itsm", "retry", "store", "log", "time", "values"):
        assert f"\n[{section}]" in text
    named = re.sub(r"(?m)^url = .*$", f'url = "{itsm.url}"', text, count=1)
    named = re.sub(r"(?m)^authorization = .*$", 'authorization = "Basic x"', named, count=1)
    named = named.replace("# listen =", "listen =").replace("127.0.0.1:8080", "127.0.0.1:0")
    service.configure(named)
    assert service.cli("check").code == 0
    with service:
        assert service.post("itsm_new", opening("A"), wait=10).state == "delivered"


@pytest.mark.parametrize("name", [None, "other.toml"])
def test_init_never_writes_over_a_file(tmp_path: Path, name: str | None) -> None:
    service = Service(tmp_path, "# mine\n")
    (tmp_path / "other.toml").write_text("# mine\n")
    run = service.cli("init", *([name] if name else []))
    assert run.code == 1
    assert (name or "hd_itsm.toml") in run.err
    assert (tmp_path / (name or "hd_itsm.toml")).read_text() == "# mine\n"


def test_init_never_writes_through_a_link(tmp_path: Path) -> None:
    service = Service(tmp_path, "")
    (tmp_path / "hd_itsm.toml").unlink()
    (tmp_path / "hd_itsm.toml").symlink_to(tmp_path / "elsewhere")
    assert service.cli("init").code == 1
    assert not (tmp_path / "elsewhere").exists()


def test_the_demo_shows_it_all_in_under_20_seconds_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    temporary, folder = tmp_path / "tmp", tmp_path / "here"
    temporary.mkdir()
    folder.mkdir()
    service = Service(
        folder, "this is no TOML ["
    )  # it needs no configuration, not even a good one
    began = monotonic()
    run = service.cli("demo", environ={"TMPDIR": str(temporary)}, timeout=25)
    assert monotonic() - began < 20
    assert (run.code, run.err) == (0, "")
    assert list(temporary.iterdir()) == []
    assert [path.name for path in folder.iterdir()] == ["hd_itsm.toml"]
    tickets = set(re.findall(r"ticket (\S+) ->", run.out))
    assert len(tickets) >= 3
    for word in ("refused", "down", "back", "retry", "on record"):
        assert word in run.out
    record = run.out[run.out.index("on record") :]
    assert len(re.findall(r"R-\d+: ", record)) == 3
    assert record.count("registered") == 3


def test_a_reader_that_leaves_is_no_error(desk: Service) -> None:
    done = subprocess.run(
        f"{sys.executable} {PROGRAM} events | true",
        shell=True,
        cwd=desk.folder,
        capture_output=True,
        timeout=30,
    )
    assert done.stderr == b""


def test_a_request_id_that_is_a_number_is_kept_as_text(itsm: Itsm, start: Start) -> None:
    itsm.answer = ok(4711)
    service = start(itsm.url)
    assert service.post("itsm_new", opening("A"), wait=10).state == "delivered"
    assert service.mappings() == {"A": "4711"}


# ---- Much of it --------------------------------------------------------------------------------


def peak(pid: int) -> int:
    """The most memory in MiB that a process has held since it began or `forget_peak`."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+([0-9]+) kB", text)[0]) >> 10


def forget_peak(pid: int) -> None:
    """From here on `peak` counts anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


MEASURED = """
import sys, hd_itsm
code = hd_itsm.main(sys.argv[1:])
print(open("/proc/self/status").read(), file=sys.stderr)
sys.exit(code)
"""


def measured(service: Service, *arguments: object) -> tuple[list[Any], int]:
    """The events that a command prints as JSON, and the most memory in MiB that it held."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        cwd=service.folder,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    held = int(re.findall(r"VmHWM:\s+([0-9]+) kB", done.stderr.decode())[0]) >> 10
    return printed["events"] if isinstance(printed, dict) else printed, held


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_large_events_are_shown_part_by_part_and_never_held_together(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    service.cli("pause")
    large = "용지 " * 130_000  # 900 KB
    for number in range(40):
        assert service.post("note", {"ticket_id": "A", "text": f"{number} {large}"}).status == 200
    forget_peak(service.pid)
    before = peak(service.pid)
    for command in (
        ("events", "--json"),
        ("show", "--ticket", "A", "--json"),
        ("show", "--ticket", "A"),
        ("events",),
    ):
        if "--json" in command:
            events, held = measured(service, *command)
            assert sorted(event["event"] for event in events) == list(range(1, 41))
            assert {len(event["fields"]["text"]) > 390_000 for event in events} == {True}
            assert held < 100, command
        else:
            assert len(service.cli(*command).out) < 20_000
        assert peak(service.pid) < before + 60, command


@pytest.mark.slow
def test_a_long_timeline_and_a_long_list_come_whole_and_in_order(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    service.cli("pause")
    for number in range(450):
        service.post("note", {"ticket_id": "A", "text": str(number)})
    for running in (True, False):
        if not running:
            service.stop()
        timeline = service.cli("show", "--ticket", "A", "--json").json()["events"]
        assert [event["event"] for event in timeline] == list(range(1, 451))
        text = service.cli("show", "--ticket", "A").out
        assert re.findall(r"(?m)^event (\d+)", text) == [str(n) for n in range(1, 451)]
        assert text.count("ticket A: ") == 1
        for limit, last in ((450, 1), (1000, 1), (201, 250)):
            listed = service.cli("events", "--json", "--limit", limit).json()
            assert [event["event"] for event in listed] == list(range(450, last - 1, -1))
            out = service.cli("events", "--limit", limit).out
            assert re.findall(r"(?m)^(\d+) ", out) == [str(n) for n in range(450, last - 1, -1)]


def failed_events(service: Service, itsm: Itsm, count: int) -> None:
    """So many tickets whose opening the ITSM refused; from now on it takes all."""
    itsm.script = [reply(400)]
    assert service.post("itsm_new", opening("A"), wait=10).state == "failed"
    service.stop()
    multiply(service.database, count - 1, ticket_id="A")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_retry_of_many_goes_in_slices_and_shows_how_far_it_is(
    start: Start, itsm: Itsm, running: bool
) -> None:
    service = start(itsm.url)
    failed_events(service, itsm, 1000)
    if running:
        service.start()
    reader, writer = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "hd_itsm", "retry", "--state", "failed"],
        cwd=service.folder,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)},
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=60,
    )
    os.close(writer)
    told = os.read(reader, 65536).decode()
    os.close(reader)
    assert done.returncode == 0
    assert done.stdout.decode().startswith("1000 back to pending: 1 2 3 ")
    assert re.findall(r"\r(\d+)", told)[:4] == ["400", "600", "800", "1000"]
    if not running:
        service.start()
    itsm.wait_created(1000)
    until(lambda: service.status()["counts"]["delivered"] == 1000, "all is recorded")
    assert len(itsm.requests) == 1001


def test_a_retry_of_many_by_their_numbers_is_no_longer_request_either(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    failed_events(service, itsm, 500)
    service.start()
    run = service.cli("retry", *range(500, 0, -1), 900, "--dry-run", "--json")
    assert run.code == 1
    assert run.json()["retried"] == list(range(1, 501))
    assert [refused["event"] for refused in run.json()["refused"]] == [900]
    assert "next" not in run.json()


# ---- Look-ups, asked by hand -------------------------------------------------------------------


def itsm_with_login(received: Received) -> Answer:
    """An ITSM with a login server and a list of users."""
    if received.path.endswith("/token"):
        return reply(200, json={"access_token": "t0ken-of-today", "expires_in": 3600})
    if received.headers.get("Authorization") != "Bearer t0ken-of-today":
        return reply(401)
    if "/users?email=" in received.path:
        known = "jimin.park" in received.path
        return reply(200, json={"result": [{"sys_id": "U-7"}] if known else []})
    if "/every" in received.path:
        return reply(200, json={"result": [{"sys_id": "R-1"}]})
    return reply(200, json={"result": {"request_id": "R-1"}})


def asking(url: str, **more: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A configuration with a token and users."""
    return {
        "itsm": {"authorization": "Bearer {token}", "check_url": f"{url}/me"},
        "lookups__token": {
            "method": "POST",
            "url": f"{url}/token",
            "form": {"client_secret": "{client_secret}"},
            "value": "access_token",
            "keep_for": "expires_in",
        },
        "lookups__user": {
            "url": f"{url}/users?email={{value}}",
            "value": "result.0.sys_id",
        },
        "values": {"item_id": "I", "service": "S", "client_secret": {"env": "CLIENT_SECRET"}},
        "kinds__new": {"opens": True, "body": {"user": "{writer|user}"}},
        **more,
    }


SECRET_OF_OURS = {"CLIENT_SECRET": "n0body-knows"}


def test_explain_says_which_look_ups_would_be_asked_and_asks_them_only_when_told(
    start: Start, tmp_path: Path
) -> None:
    with Itsm(decide=itsm_with_login) as itsm:
        service = start(itsm.url, SECRET_OF_OURS, **asking(itsm.url))
        body = tmp_path / "body.json"
        body.write_text(json.dumps(opening("4182")))
        run = service.cli("explain", "itsm_new", str(body), "--json")
        assert run.code == 0
        assert itsm.requests == []
        told = run.json()["look-ups"]
        assert any(line.startswith("user: GET ") and "not asked" in line for line in told)
        assert any(line.startswith("token: POST ") and "not asked" in line for line in told)
        run = service.cli("explain", "itsm_new", str(body), "--ask", "--json")
        assert any(line.endswith("-> U-7") for line in run.json()["look-ups"])
        assert json.loads(run.json()["body"]) == {"user": "U-7"}
        assert "t0ken" not in run.out
        assert "n0body" not in run.out
        assert {one.path.partition("?")[0][-6:] for one in itsm.requests} == {"/token", "/users"}
        body.write_text(json.dumps(opening("4182", writer="nobody")))
        run = service.cli("explain", "itsm_new", str(body), "--ask")
        assert run.code == 1
        assert "there is none of 'nobody'" in run.out


def test_check_asks_for_a_token_and_says_until_when_it_is_good(
    start: Start, tmp_path: Path
) -> None:
    with Itsm(decide=itsm_with_login) as itsm:
        service = start(itsm.url, SECRET_OF_OURS, **asking(itsm.url))
        run = service.cli("check")
        assert run.code == 0, run.out
        assert "token brought a value, good until " in run.out
        assert "user finds nothing for an id that nobody has" in run.out
        assert "t0ken" not in run.out
        assert not [
            one
            for one in itsm.requests
            if one.method == "POST" and not one.path.endswith("/token")
        ]


def test_check_finds_a_question_whose_filter_the_itsm_ignores(start: Start) -> None:
    with Itsm(decide=itsm_with_login) as itsm:
        find = {"url": f"{itsm.url}/every?q={{ticket_id}}", "value": "result.*.sys_id"}
        new = {"opens": True, "unclear": "find", "find": "request", "body": {"a": "{subject}"}}
        more: dict[str, Mapping[str, Any]] = {"lookups__request": find, "kinds__new": new}
        service = start(itsm.url, SECRET_OF_OURS, **asking(itsm.url, **more))
        run = service.cli("check")
        assert run.code == 1
        assert "request finds R-1 for an id that nobody has: say in its `when`" in run.out


def test_check_reads_the_answer_to_a_find_as_a_delivery_does(start: Start) -> None:
    """One that is empty says nothing there, and would hold the event."""
    with Itsm(decide=lambda received: reply(200) if "find" in received.path else None) as itsm:
        find = {"url": f"{itsm.url}/find?q={{ticket_id}}", "value": "result.*.sys_id"}
        new = {"opens": True, "unclear": "find", "find": "request", "body": {"a": "{subject}"}}
        service = start(itsm.url, lookups__request=find, kinds__new=new)
        run = service.cli("check")
        assert run.code == 0, run.out
        assert "request is answered, but `value` leads nowhere" in run.out


def test_check_says_what_is_wrong_with_a_login(start: Start) -> None:
    with Itsm(decide=lambda received: reply(401)) as itsm:
        service = start(itsm.url, SECRET_OF_OURS, **asking(itsm.url))
        run = service.cli("check")
        assert run.code == 1
        assert "look-up token: answered 401" in run.out


def test_a_token_is_seen_nowhere_though_another_look_up_needs_it(start: Start) -> None:
    def decide(received: Received) -> Answer:
        answer = itsm_with_login(received)
        if received.method == "POST" and not received.path.endswith("/token"):
            return reply(400, json={"error": f"no: {received.headers.get('Authorization')}"})
        return answer

    with Itsm(decide=decide) as itsm:
        service = start(itsm.url, SECRET_OF_OURS, **asking(itsm.url))
        answer = service.post("itsm_new", opening("4182"), wait=10)
        assert answer.state == "failed"
        shown = json.dumps(service.show(answer.event))
        assert "no: Bearer ***" in shown
        assert "t0ken" not in shown + service.log
