"""What somebody is told who is woken: the first two commands name what is broken, and what to do."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from itsm import Itsm, reply
from service import Service, Start, assignment, opening, settings, until


def words_of(service: Service, *command: str) -> str:
    """All that a command says."""
    run = service.cli(*command)
    return run.out + run.err


def test_a_service_that_does_not_run_is_not_called_well(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url)
    assert "all is well" in words_of(service, "status")
    assert "address" in words_of(service, "check")
    service.stop()
    said = words_of(service, "status")
    assert "not running: webhooks are refused" in said
    assert "all is well" not in said


def test_check_says_that_another_program_has_the_address(tmp_path: Path, itsm: Itsm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        service = Service(tmp_path, settings(itsm.url, server={"listen": taken}))
        run = service.cli("check")
        assert run.code == 1
        assert f"cannot listen on {taken}: another program has this address" in run.out
    assert service.cli("check").code == 0


def test_a_file_that_is_not_there_is_named_whole(tmp_path: Path, itsm: Itsm) -> None:
    service = Service(tmp_path, settings(itsm.url))
    assert f"no file {service.database}: " in words_of(service, "status")


def test_a_running_service_without_its_control_file_is_to_be_restarted(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    (service.folder / "hd_itsm.db.control").unlink()
    run = service.cli("status")
    assert run.code == 1
    assert "hd_itsm.db.control says how to reach it: restart the service" in run.err
    service.stop()
    service.start()
    assert service.cli("status").code == 0


def test_a_refused_reload_is_told_without_the_name_of_the_program(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    good = (service.folder / "hd_itsm.toml").read_text(encoding="utf-8")
    service.configure(good.replace("timeout", "timeuot"))
    service.signal(signal.SIGHUP)
    until(lambda: service.lines("reload refused"), "the reload is refused")
    (line,) = service.lines("reload refused")
    assert "goes on: hd_itsm.toml: itsm.timeuot: unknown key (did you mean 'timeout'?)" in line


def test_of_a_damaged_file_is_told_where_it_stands_how_to_restore(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    service.stop()
    service.database.write_bytes(b"this is no database" * 100)
    assert "restore a backup (`help upgrade`)" in words_of(service, "status")
    assert "Restore:" in words_of(service, "help", "upgrade")


def test_where_an_answer_had_no_id_nobody_is_told_to_send_again_what_may_be_there(
    start: Start,
) -> None:
    with Itsm(decide=lambda received: reply(json={"data": {"no": "Q-3"}})) as itsm:
        service = start(itsm.url)
        service.post("itsm_new", opening("7"))
        service.post("itsm_ass", assignment("7"))
        until(lambda: service.show(1)["state"] == "failed", "it is refused")
        said = words_of(service, "status")
        assert "Q-3" in said
        assert "hd-itsm show 1" in said
        assert "retry --reason" not in said
        assert "if the request is there, map it" in words_of(service, "show", "1")
        assert b"Map ticket 7" in service.request("GET", "/events/1").body
        service.cli("map", "7", "Q-3")
        until(lambda: service.show(2)["state"] == "delivered", "what waited for it goes out")
        assert "all is well" in words_of(service, "status")


def test_a_signature_that_is_not_there_is_named(start: Start, itsm: Itsm) -> None:
    access = {"hmac": {"secret": "s3cret-s3cret", "header": "X-Desk-Signature"}}
    service = start(itsm.url, access=access)
    service.post("itsm_new", opening("7"))
    assert "no header X-Desk-Signature" in words_of(service, "status")


def test_a_webhook_that_no_rule_wants_says_what_the_rules_met(start: Start, itsm: Itsm) -> None:
    rules = [{"kind": "note", "when": {"ticket.state": "closed"}}]
    hook = {"path": "/desk", "rules": rules, "fields": {"ticket_id": "ticket.id"}}
    service = start(itsm.url, hooks__desk=hook, kinds__note={"body": {"ticket": "{ticket_id}"}})
    service.post("desk", {"ticket": {"id": "7", "state": "closed successful"}})
    assert "ticket.state is 'closed successful'" in words_of(service, "show", "1")
    assert "closed successful" not in service.log
