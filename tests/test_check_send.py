"""`hd-itsm check --send`: one test ticket the whole way, by a running service or without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import hd_itsm
from itsm import Itsm, reply
from service import Service, Start, opening, settings


def posts(itsm: Itsm) -> list[dict[str, object]]:
    """The bodies of what was posted to the ITSM."""
    return [received.json() for received in itsm.requests if received.method == "POST"]


def test_a_test_ticket_goes_through_the_running_service_and_is_told_how_to_close(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url, access={"token": "s3cret"})  # the command needs no credential
    run = service.cli("check", "--send")
    assert run.code == 0, run
    line = next(row for row in run.out.splitlines() if " send " in row)
    (body,) = posts(itsm)
    assert body["title"] == "hd_itsm test, please close"
    match = re.search(r"event 1, ticket (hd-itsm-test-[0-9]+), by /itsm_new: delivered", line)
    assert match, line
    (event,) = service.events()
    assert (event["state"], event["ticket"]) == ("delivered", match[1])
    assert f"close request {event['request_id']} in the ITSM; `forget` removes" in line
    assert service.cli("forget", match[1]).code == 0
    run = service.cli("check", "--send", environ={"LANG": "ko_KR.UTF-8"})
    assert "닫으세요. 여기 남은 내용은 `forget`" in run.out


def test_without_a_running_service_it_is_sent_and_nothing_else_and_the_file_stays(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    service.cli("pause")
    service.post("itsm_new", opening("A"))
    service.stop()
    run = service.cli("check", "--send", "--json")
    assert run.code == 0, run
    said = run.json()[-1]
    assert (said["result"], said["what"]) == ("ok", "send")
    assert re.search(r": delivered in [0-9.]+ s; close request \S+ in the ITSM$", said["found"])
    assert [body["title"] for body in posts(itsm)] == ["hd_itsm test, please close"]
    assert [event["ticket"] for event in service.cli("events", "--json").json()] == ["A"]


def test_before_the_first_start_it_makes_no_file(tmp_path: Path, itsm: Itsm) -> None:
    service = Service(tmp_path, settings(itsm.url))
    assert service.cli("check", "--send").code == 0
    assert len(posts(itsm)) == 1
    assert not service.database.exists()


def test_what_the_itsm_refuses_is_told_in_its_words(start: Start, itsm: Itsm) -> None:
    refusal = reply(400, json={"error": "no such user: test"})
    itsm.decide = lambda received: refusal if received.method == "POST" else reply()
    service = start(itsm.url)
    run = service.cli("check", "--send")
    assert run.code == 1
    assert "wrong   send" in run.out
    assert "no such user: test" in run.out
    assert "then `retry` or `drop` that event" in run.out
    run = service.cli("check", "--send", environ={"LANG": "ko_KR.UTF-8"})
    assert "고친 뒤 `retry`" in run.out


def test_paused_deliveries_are_told_and_nothing_is_sent_where_something_is_wrong(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url, itsm={"timeout": 0.5})
    service.cli("pause")
    run = service.cli("check", "--send")
    assert run.code == 1
    assert "pending: deliveries are paused: `resume`" in run.out
    itsm.answer = reply(401)
    run = service.cli("check", "--send")
    assert run.code == 1
    assert "nothing was sent: mend what is wrong first" in run.out
    assert len(service.events()) == 1


def test_a_body_of_the_helpdesk_is_sent_as_it_is(start: Start, itsm: Itsm, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(opening("mine", subject="my own")), encoding="utf-8")
    service = start(itsm.url)
    run = service.cli("check", "--send", body)
    assert run.code == 0, run
    assert posts(itsm)[0]["title"] == "my own"
    body.write_text("[]")
    run = service.cli("check", "--send", body)
    assert run.code == 2
    assert "no hook makes" in run.err


@pytest.mark.parametrize("helpdesk", list(hd_itsm.recipes("helpdesk")))
def test_for_every_recipe_a_test_ticket_can_be_made_up(helpdesk: str, tmp_path: Path) -> None:
    halves = [hd_itsm.recipe("helpdesk", helpdesk), hd_itsm.recipe("itsm", "servicenow")]
    file = tmp_path / "hd_itsm.toml"
    file.write_text(hd_itsm.joined_recipes(halves)[0], encoding="utf-8")
    config = hd_itsm.load_config(str(file), {}, {}, complete=False)
    hook, raw, headers = hd_itsm.trial_webhook(config, "-")
    (reading,) = hd_itsm.read_webhooks(hook, raw, headers)[1]
    assert (reading.kind, reading.problem) == ("new", "")
    assert reading.ticket.startswith("hd-itsm-test-")
    if helpdesk not in ("jitbit", "osticket"):  # of which the one has no hook but these, and the
        assert hook.name not in hd_itsm.HOOKS  # other wants a number cut out of a link
