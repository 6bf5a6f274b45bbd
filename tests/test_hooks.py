"""What hooks understand beside one webhook in one body: lists, desks, orders, challenges, logins."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from time import time
from typing import Any

import pytest

from itsm import Itsm, Received, reply
from service import NOTED, Start, opening, ticket, with_notes


def noted(**more: Any) -> dict[str, Any]:
    """The hook of POST /note, with further keys."""
    return {**NOTED, **more}


def texts(itsm: Itsm, count: int) -> list[tuple[str, str]]:
    """Ticket and text of what the ITSM got, once that is so many."""
    return [(one.json()["ticket"], one.json()["text"]) for one in itsm.wait_for(count)]


# ---- Several webhooks in one body --------------------------------------------------------------


@pytest.mark.parametrize("each", ["*", "events", "events.*", "data.items"])
def test_each_element_of_a_list_is_a_webhook_of_its_own(
    start: Start, itsm: Itsm, each: str
) -> None:
    service = start(itsm.url, hooks__note=noted(each=each), itsm={"workers": 1})
    first, second = ticket(), ticket()
    elements: Any = [
        {"ticket_id": first, "text": "one"},
        {"ticket_id": second, "text": "two"},
        {"ticket_id": first, "text": "three"},
    ]
    body = elements
    for key in reversed([key for key in each.split(".") if key != "*"]):
        body = {key: body}
    answer = service.post("note", body)
    assert (answer.status, answer.json()) == (200, body)
    assert answer.headers["HD-ITSM-Event"] == "1, 2, 3"
    assert answer.headers["HD-ITSM-State"] == "pending, pending, pending"
    came = texts(itsm, 3)
    assert sorted(came) == sorted([(first, "one"), (second, "two"), (first, "three")])
    assert came.index((first, "one")) < came.index((first, "three"))
    assert [json.loads(service.show(n)["raw"]) for n in (1, 2, 3)] == [[e] for e in elements]


def test_a_list_where_an_object_should_be_is_still_refused_without_each(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url)
    answer = service.post("note", [{"ticket_id": ticket()}])
    assert (answer.status, answer.state) == (400, "failed")


def test_a_bad_element_is_kept_and_takes_no_other_along(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, hooks__note=noted(each="*"))
    good = ticket()
    answer = service.post("note", [17, {"text": "whose?"}, {"ticket_id": good, "text": "good"}])
    assert answer.status == 200  # all of it is kept: sending it again would help nobody
    assert answer.headers["HD-ITSM-State"] == "failed, failed, pending"
    assert texts(itsm, 1) == [(good, "good")]
    assert "no object" in service.show(1)["reason"]
    assert "no ticket id" in service.show(2)["reason"]


@pytest.mark.parametrize(
    ("body", "status", "state", "why"),
    [
        ([], 200, "ignored", ""),
        ({"other": 1}, 400, "failed", "no list of webhooks where hook note looks for it (each)"),
        ([{"ticket_id": "T", "text": str(n)} for n in range(1001)], 400, "failed", "1001"),
        ([17], 400, "failed", "no object"),
        (17, 400, "failed", "no object"),
    ],
)
def test_a_list_that_holds_no_webhook_is_answered_and_kept(
    start: Start, itsm: Itsm, body: Any, status: int, state: str, why: str
) -> None:
    service = start(itsm.url, hooks__note=noted(each="events"))
    answer = service.post("note", body)
    assert (answer.status, answer.state) == (status, state)
    assert why in service.show(answer.event)["reason"]
    assert json.loads(service.show(answer.event)["raw"]) == body


def test_an_element_is_read_anew_by_itself_when_it_is_retried(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, hooks__note=noted(each="events"))
    one, two = ticket(), ticket()
    service.post("note", {"events": [{"id": one, "text": "1"}, {"id": two, "text": "2"}]})
    assert [event["state"] for event in service.events()] == ["failed", "failed"]
    assert service.stop() == 0
    fields = {"ticket_id": "id", "text": "text"}
    service.configure(with_notes(itsm.url, hooks__note=noted(each="events", fields=fields)))
    service.start()
    assert service.cli("retry", "2").code == 0
    assert texts(itsm, 1) == [(two, "2")]


def test_a_requesters_json_within_a_text_is_read_where_it_is_named_and_by_no_star(
    start: Start, itsm: Itsm
) -> None:
    fields = {"ticket_id": ["*.id", "note.id"], "text": "payload.text"}
    service = start(itsm.url, hooks__note=noted(fields=fields))
    mine, other = ticket(), ticket()
    planted = json.dumps({"id": other})
    body = {"subject": planted, "item": {"id": mine}, "payload": json.dumps({"text": "named"})}
    assert service.post("note", body).status == 200
    assert texts(itsm, 1) == [(mine, "named")]
    assert service.post("note", {"subject": planted}).status == 400


def test_prefer_waits_for_all_of_a_list(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, hooks__note=noted(each="*"))
    answer = service.post("note", [{"ticket_id": ticket()}, {"ticket_id": ticket()}], {}, 10)
    assert answer.headers["HD-ITSM-State"] == "delivered, delivered"


# ---- Whose tickets, in which order, told apart by what -----------------------------------------


def test_two_desks_with_the_same_numbers_have_tickets_of_their_own(
    start: Start, itsm: Itsm
) -> None:
    fields = {"ticket_id": "ticket_id", "text": "text"}
    body = {"title": "{desk} {ticket_id}", "code": "000"}
    service = start(
        itsm.url,
        hooks__it={"kind": "new", "fields": fields, "desk": "it"},
        hooks__facility={"kind": "new", "fields": fields, "desk": "facility"},
        hooks__plain={"kind": "assign", "fields": fields, "desk": "facility"},
        kinds__new={"opens": True, "body": body},
        kinds__assign={"body": {"id": "{request_id}", "ticket": "{ticket_id}"}},
        hooks__itsm_new={"kind": "note", "fields": fields},
        hooks__itsm_ass={"kind": "note", "fields": fields},
        hooks__itsm_com={"kind": "note", "fields": fields},
        kinds__complete={"body": {}},
    )
    for hook in ("it", "facility"):
        assert service.post(hook, {"ticket_id": 17}, {}, 10).state == "delivered"
    assert service.post("plain", {"ticket_id": 17}, {}, 10).state == "delivered"
    sent = [one.json() for one in itsm.requests]
    assert [one.get("title") for one in sent[:2]] == ["it 17", "facility 17"]
    mappings = service.mappings()
    assert sent[2] == {"id": mappings["facility:17"], "ticket": "17"}
    assert mappings["it:17"] != mappings["facility:17"]
    assert "facility:17" in service.cli("show", "--ticket", "facility:17").out
    stranger = service.post("itsm_new", {"ticket_id": "facility:17", "text": "whose?"})
    assert stranger.status == 400, "a hook without a desk does not reach into one"
    assert "desk facility" in service.show(stranger.event)["reason"]


def test_a_delivery_id_may_stand_in_the_body_and_counts_within_ticket_and_kind(
    start: Start, itsm: Itsm
) -> None:
    service = start(itsm.url, hooks__note=noted(delivery_id="meta.delivery"))
    one, two = ticket(), ticket()

    def state(ticket_id: str, delivery: str, text: str) -> str:
        body = {"ticket_id": ticket_id, "text": text, "meta": {"delivery": delivery}}
        return service.post("note", body, {}, 10).state

    assert state(one, "d1", "a") == "delivered"
    assert state(one, "d1", "b") == "ignored"
    assert state(one, "d2", "a") == "delivered"
    assert state(two, "d1", "a") == "delivered"


@pytest.mark.parametrize(("named", "state"), [("", "ignored"), ("none", "delivered")])
def test_a_sender_whose_delivery_header_means_nothing_can_be_told_so(
    start: Start, itsm: Itsm, named: str, state: str
) -> None:
    service = start(itsm.url, hooks__note=noted(delivery_id=named))
    number, headers = ticket(), {"Idempotency-Key": "always the same"}
    assert service.post("note", {"ticket_id": number, "text": "a"}, headers, 10).state
    assert service.post("note", {"ticket_id": number, "text": "b"}, headers, 10).state == state


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (17, 18),
        ("17", "18"),
        ("2026-11-23T09:00:00+09:00", "2026-11-23T00:00:01Z"),
        ("2026-11-23 오전 9:00:00", "2026-11-23 오후 1:00:00"),
    ],
)
def test_a_webhook_that_is_older_than_its_tickets_latest_is_ignored(
    start: Start, itsm: Itsm, earlier: Any, later: Any
) -> None:
    service = start(itsm.url, hooks__note=noted(order="at"))
    number = ticket()

    def post(text: str, at: Any) -> Any:
        return service.post("note", {"ticket_id": number, "text": text, "at": at}, {}, 10)

    assert post("second", later).state == "delivered"
    old = post("first", earlier)
    assert (old.status, old.state) == (200, "ignored")
    kept = [e for e in service.events("--ticket", number) if e["state"] == "ignored"]
    assert [e["reason"] for e in kept] == ["older than event 1"]
    assert post("as old", later).state == "delivered"
    assert post("nobody knows", None).state == "delivered"
    assert [text for _, text in texts(itsm, 3)] == ["second", "as old", "nobody knows"]


def test_an_opening_that_comes_late_is_not_lost_by_the_order(start: Start, itsm: Itsm) -> None:
    fields = {"ticket_id": "ticket_id", "technician": "who", "subject": "subject"}
    service = start(
        itsm.url,
        hooks__itsm_new={"kind": "new", "fields": fields, "order": "at"},
        hooks__itsm_ass={"kind": "assign", "fields": fields, "order": "at"},
        kinds__new={"opens": True, "body": {"title": "{subject}", "code": "000"}},
    )
    number = ticket()
    assert service.post("itsm_ass", {"ticket_id": number, "who": "b", "at": 20}).state == "held"
    assert service.post("itsm_new", {"ticket_id": number, "subject": "s", "at": 10}, {}, 10)
    itsm.wait_for(2)
    old = service.post("itsm_ass", {"ticket_id": number, "who": "a", "at": 15})
    assert old.state == "ignored", "the opening did not turn the clock back"


def test_an_order_that_is_none_is_a_mistake_of_the_webhook(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, hooks__note=noted(order="at"))
    answer = service.post("note", {"ticket_id": ticket(), "at": "soon"})
    assert answer.status == 400
    assert "order: 'soon'" in answer.error


def test_a_body_is_read_in_the_encoding_of_its_hook(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, hooks__note=noted(encoding="cp1252"))
    number = ticket()
    raw = json.dumps({"ticket_id": number, "text": "Grüße €"}, ensure_ascii=False)
    assert service.post("note", raw.encode("cp1252")).status == 200
    assert texts(itsm, 1) == [(number, "Grüße €")]


# ---- Who tries the address ---------------------------------------------------------------------


def test_a_challenge_is_sent_back_as_text_and_nothing_is_stored(start: Start, itsm: Itsm) -> None:
    service = start(
        itsm.url,
        access={"token": "good"},
        hooks__note=noted(challenge="challenge"),
        hooks__graph={**NOTED, "challenge": "@query:validationToken"},
        hooks__front={**NOTED, "challenge": "@header:X-Front-Challenge"},
    )
    good = {"X-Webhook-Token": "good"}
    tries: list[tuple[str, str, bytes, dict[str, str]]] = [
        ("POST", "/note", b'{"type": "url_verification", "challenge": "<b>7</b>"}', {}),
        ("POST", "/graph?validationToken=%3Cb%3E7%3C%2Fb%3E", b"", {}),
        ("GET", "/graph?validationToken=%3Cb%3E7%3C%2Fb%3E", b"", {}),
        ("POST", "/front", b'{"ticket_id": "1"}', {"X-Front-Challenge": "<b>7</b>"}),
    ]
    for method, path, body, more in tries:
        refused = service.request(method, path, body, more)
        assert refused.status == 401, "only who may post is answered"
        answer = service.request(method, path, body, {**good, **more})
        assert (answer.status, answer.body) == (200, b"<b>7</b>"), path
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert service.events() == []
    assert service.post("note", {"ticket_id": ticket()}, good).state == "pending"


def test_a_hook_may_have_an_access_of_its_own(start: Start, itsm: Itsm) -> None:
    own = {"token": "for the note"}
    service = start(itsm.url, access={"token": "common"}, hooks__note={**NOTED, "access": own})
    body = {"ticket_id": ticket()}
    assert service.post("note", body, {"X-Webhook-Token": "for the note"}).status == 200
    assert service.post("note", body, {"X-Webhook-Token": "common"}).status == 401
    assert service.post("itsm_new", opening(ticket()), {"X-Webhook-Token": "common"}).status == 200
    new = service.post("itsm_new", opening(ticket()), {"X-Webhook-Token": "for the note"})
    assert new.status == 401
    assert "for the note" not in service.log


def test_a_token_may_have_a_header_of_its_own(start: Start, itsm: Itsm) -> None:
    service = start(itsm.url, access={"token": "good", "token_header": "X-Api-Key"})
    user = base64.b64encode(b"good:").decode()
    for headers in (
        {"X-Api-Key": "good"},
        {"Authorization": "Token good"},
        {"Authorization": "good"},
        {"Authorization": f"Basic {user}"},
    ):
        assert service.post("note", {"ticket_id": ticket()}, headers).status == 200, headers
    for headers in ({"X-Api-Key": "bad"}, {"X-Other-Key": "good"}, {"Authorization": ""}):
        assert service.post("note", {"ticket_id": ticket()}, headers).status == 401, headers


KEY = b"0123456789abcdef0123456789abcdef"
SECRET = base64.b64encode(KEY).decode()


def standard(body: bytes, stamp: str, key: bytes = KEY) -> dict[str, str]:
    """Headers as Standard Webhooks has them, one of two signatures being ours."""
    digest = hmac.new(key, f"msg_1.{stamp}.".encode() + body, hashlib.sha256).digest()
    ours = base64.b64encode(digest).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": stamp}
    return {**headers, "webhook-signature": f"v1,AAAA v1a,{ours[::-1]} v1,{ours}"}


def payments(body: bytes, stamp: str, key: bytes = KEY) -> dict[str, str]:
    """A header that holds its time and several signatures."""
    digest = hmac.new(key, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Signature": f"t={stamp},v1={'0' * 64},v1={digest}"}


def chat(body: bytes, stamp: str, key: bytes = KEY) -> dict[str, str]:
    """A version before the time."""
    digest = hmac.new(key, f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Slack-Signature": f"v0={digest}", "X-Slack-Request-Timestamp": stamp}


FORMS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "standard webhooks": (
        standard,
        {
            "secret": f"whsec_{SECRET}",
            "key": "base64",
            "header": "webhook-signature",
            "match": "v1,([^ ]+)",
            "encoding": "base64",
            "signed": "{id}.{timestamp}.{body}",
            "id_header": "webhook-id",
            "timestamp_header": "webhook-timestamp",
        },
    ),
    "time and signatures in one header": (
        payments,
        {
            "secret": KEY.decode(),
            "header": "X-Signature",
            "match": "v1=([0-9a-f]+)",
            "signed": "{timestamp}.{body}",
            "timestamp_header": "X-Signature",
            "timestamp_match": "t=([0-9]+)",
        },
    ),
    "a version before the time": (
        chat,
        {
            "secret": KEY.decode(),
            "header": "X-Slack-Signature",
            "match": "v0=(.+)",
            "signed": "v0:{timestamp}:{body}",
            "timestamp_header": "X-Slack-Request-Timestamp",
        },
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_signature_may_be_of_any_form(start: Start, itsm: Itsm, form: str) -> None:
    sign, rule = FORMS[form]
    service = start(itsm.url, access={"hmac": {**rule, "algorithm": "sha256"}})
    body = json.dumps({"ticket_id": ticket()}).encode()
    now = str(int(time()))
    good = sign(body, now)
    assert service.post("note", body, good).status == 200
    forged: list[tuple[bytes, dict[str, str]]] = [
        (body + b" ", good),
        (body, sign(body, now, b"another key")),
        (body, sign(body, str(int(time()) - 400))),
        (body, sign(body, "nonsense")),
        (body, sign(body, "")),
        *[(body, {k: v for k, v in good.items() if k != name}) for name in good],
    ]
    for place, (changed, headers) in enumerate(forged):
        assert service.post("note", changed, headers).status == 401, place


def test_a_key_that_is_not_encoded_as_it_is_said_to_be_is_told(start: Start, itsm: Itsm) -> None:
    rule = {"secret": "no base64!", "key": "base64", "algorithm": "sha256"}
    service = start(itsm.url)
    hook = {**NOTED, "access": {"hmac": rule}}
    service.configure(with_notes(itsm.url, access={"hmac": rule}, hooks__note=hook))
    run = service.cli("check")
    assert run.code == 2
    assert "access.hmac.secret: is no base64" in run.err
    assert "hooks.note.access.hmac.secret: is no base64" in run.err
    assert "no base64!" not in run.err


# ---- What answers bring besides the id ---------------------------------------------------------


def numbered(received: Received) -> Any:
    """An ITSM that calls its requests by a number, too."""
    number = received.number
    return reply(200, json={"result": {"request_id": f"R-{number}", "number": f"INC{number:04}"}})


KEEPING: dict[str, Any] = {
    "kinds__new": {
        "opens": True,
        "body": {"title": "{subject}"},
        "keep": {"number": "result.number", "absent": "result.nothing"},
    },
    "kinds__assign": {"url": "", "body": {"number": "{number}", "to": "{technician}"}},
}


def test_what_an_answer_brings_is_kept_with_the_mapping_and_names_it_later(
    start: Start, tmp_path: Any
) -> None:
    with Itsm(decide=numbered) as itsm:
        service = start(itsm.url, **KEEPING)
        number = ticket()
        early = service.post("itsm_ass", {"ticket_id": number, "technician": "hong"})
        assert early.state == "held", "it waits for what the opening brings, not for its id alone"
        assert service.post("itsm_new", opening(number), {}, 10).state == "delivered"
        assert itsm.wait_for(2)[1].json() == {"number": "INC0001", "to": "hong"}
        shown = service.ask("show", ticket=number)
        assert shown
        assert shown["mapping"]["kept"] == {"number": "INC0001"}
        assert "number INC0001" in service.cli("show", "--ticket", number).out
        assert service.show(1)["kept"] == {"number": "INC0001"}
        assert service.events()[0]["kept"] == {"number": "INC0001"}
        page = service.request("GET", f"/tickets/{number}").body.decode()
        assert "<span>number <strong>INC0001</strong></span>" in page
        exported = service.cli("export").out
        assert exported.splitlines()[0] == "ticket_id,request_id,timestamp,keep"
        assert '{""number"":""INC0001""}' in exported
        (tmp_path / "mappings.csv").write_text(exported.replace(f"{number},", f"{number}-b,"))
        assert service.cli("import", str(tmp_path / "mappings.csv")).code == 0
        service.post("itsm_ass", {"ticket_id": f"{number}-b", "technician": "kim"}, {}, 10)
        assert itsm.requests[-1].json() == {"number": "INC0001", "to": "kim"}


def test_a_kept_value_that_never_came_is_a_translation_error_that_names_it(start: Start) -> None:
    with Itsm() as itsm:  # it gives no number
        service = start(itsm.url, **KEEPING)
        number = ticket()
        assert service.post("itsm_new", opening(number), {}, 10).state == "delivered"
        assign = service.post("itsm_ass", {"ticket_id": number, "technician": "hong"}, {}, 10)
        assert assign.state == "failed"
        assert "number" in service.show(assign.event)["reason"]


def test_map_by_hand_forgets_what_belonged_to_the_other_request(start: Start) -> None:
    with Itsm(decide=numbered) as itsm:
        service = start(itsm.url, **KEEPING)
        number = ticket()
        service.post("itsm_new", opening(number), {}, 10)
        assert service.cli("map", number, "R-77").code == 0
        shown = service.ask("show", ticket=number)
        assert shown
        assert shown["mapping"]["kept"] == {}


# ---- explain -----------------------------------------------------------------------------------


def test_explain_shows_each_webhook_of_a_list_and_what_a_challenge_gets(
    start: Start, itsm: Itsm, tmp_path: Any
) -> None:
    service = start(itsm.url, hooks__note=noted(each="*", challenge="challenge", order="at"))
    body = tmp_path / "body.json"
    body.write_text(json.dumps([{"ticket_id": "A", "at": 5}, {"text": "whose?"}]))
    run = service.cli("explain", "note", str(body), "--json")
    first, second = run.json()["webhooks"]
    assert (first["ticket"], first["order"], first["result"]) == ("A", 5.0, "would be sent")
    assert second["result"].startswith("failed (400): no ticket id")
    assert run.code == 1
    body.write_text('{"challenge": "abc"}')
    assert service.cli("explain", "note", str(body)).out.strip() == (
        "a challenge: the answer is 'abc'"
    )
    assert service.events() == []
    assert itsm.requests == []


def test_explain_names_what_answers_will_have_brought(
    start: Start, itsm: Itsm, tmp_path: Any
) -> None:
    service = start(itsm.url, **KEEPING)
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"ticket_id": ticket(), "technician": "hong"}))
    run = service.cli("explain", "itsm_ass", str(body), "--json")
    assert '"NUMBER"' in run.json()["body"]
