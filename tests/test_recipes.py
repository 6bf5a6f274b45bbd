"""Every recipe: what its helpdesk sends is understood, what its ITSM wants is sent, to the byte.

recipes/README.md says how the halves fit together and what cases.json holds. First each half alone,
then every pair of halves, then each ITSM half in the real command against a stand-in that answers
as that ITSM does, errors inside 200 included, with one helpdesk half after the other.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import json
import re
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from time import time
from types import MappingProxyType
from typing import Any

import pytest

import hd_itsm
from hd_itsm import Config, Kind, Lookup, Scope, Untranslatable, decide
from itsm import Answer, Itsm, Received, hang_up, reply
from service import HERE, QUICK, Reply, Sample, Service, sample, until

RECIPES = HERE / "recipes"
CASES: dict[str, Any] = json.loads((RECIPES / "cases.json").read_text(encoding="utf-8"))
HELPDESKS: dict[str, Any] = CASES["helpdesks"]
ITSMS: dict[str, Any] = CASES["itsms"]
ENVIRON: dict[str, str] = CASES["env"]
RECEIVED = datetime.fromisoformat(CASES["received"])
WEBHOOKS = [(name, case) for name, one in HELPDESKS.items() for case in one["cases"]]
KINDS = [(name, kind) for name, one in ITSMS.items() for kind in one["kinds"]]
FINDING = [name for name, one in ITSMS.items() if one["unclear"] == "find"]
LOOKUPS = [(name, lookup) for name, one in ITSMS.items() for lookup in one.get("lookups", {})]


def text_of(recipe: str | None, folder: Path) -> str:
    """A recipe; the secret files that it names are in `folder`."""
    if recipe is None:
        return ""
    text = (RECIPES / recipe).read_text(encoding="utf-8")
    for number, (named, content) in enumerate(CASES["files"].items()):
        path = folder / f"secret-{number}"
        path.write_text(content, encoding="utf-8")
        text = text.replace(named, str(path))
    return text


def pair(helpdesk: str, itsm: str, folder: Path, more: str = "") -> str:
    """Both halves in one text, as recipes/README.md says."""
    halves = (HELPDESKS[helpdesk]["recipe"], ITSMS[itsm]["recipe"])
    return "\n".join([*(text_of(half, folder) for half in halves), more])


def loaded(text: str, folder: Path) -> Config:
    """The configuration in `text`, complete, in the zone of the cases."""
    path = folder / "pair.toml"
    path.write_text(f'{text}\n[time]\nzone = "{CASES["zone"]}"\n', encoding="utf-8")
    return hd_itsm.load_config(str(path), {}, ENVIRON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes' secret files are."""
    return tmp_path_factory.mktemp("recipes")


def test_the_cases_name_every_recipe_and_every_sample() -> None:
    there = {path.name for path in RECIPES.glob("*.toml")} - {"back-zammad.toml"}
    named = {one["recipe"] for one in (*HELPDESKS.values(), *ITSMS.values())} - {None}
    assert named == there
    samples = {path.name for path in (HERE / "payloads").iterdir()} - {"_manifest.json"}
    assert {case["payload"] for _, case in WEBHOOKS} == samples


@pytest.mark.parametrize("itsm", ITSMS)
@pytest.mark.parametrize("helpdesk", HELPDESKS)
def test_every_pair_of_halves_loads_without_a_warning(
    helpdesk: str, itsm: str, folder: Path
) -> None:
    config = loaded(pair(helpdesk, itsm, folder), folder)
    assert config.warnings == ()
    assert set(config.kinds) >= set(CASES["kinds"])


# ---- The helpdesk halves -------------------------------------------------------------------------


def same(value: Any) -> str | None:
    """A field as the cases have it: text, or None where there is nothing."""
    if value is None or (isinstance(value, str) and not value):
        return None
    return hd_itsm.as_text(value)


@pytest.mark.parametrize(
    ("helpdesk", "case"), WEBHOOKS, ids=lambda one: one if isinstance(one, str) else one["payload"]
)
def test_a_webhook_gives_the_right_kind_ticket_and_fields(
    helpdesk: str, case: dict[str, Any], folder: Path
) -> None:
    config = loaded(pair(helpdesk, "original", folder), folder)
    hook = config.hooks[case["hook"]]
    assert hook.path == case["path"]
    sent = sample(case["payload"])
    headers = {name.lower(): value for name, value in sent.headers.items()}
    _, (reading,) = hd_itsm.read_webhooks(hook, sent.body, headers)
    assert reading.problem == ""
    assert (reading.kind or None) == case["kind"]
    assert reading.ticket == case["ticket"]
    assert bool(reading.repaired) is case["repaired"]
    if case["kind"]:
        vocabulary = [name for name in CASES["vocabulary"] if name != "ticket_id"]
        assert {name: same(reading.fields.get(name)) for name in vocabulary} == case["fields"]
    if reading.fields.get("date") and case["kind"]:
        hd_itsm.parse_date(reading.fields["date"], config.clock.zone, config.clock.formats)


# ---- The ITSM halves -----------------------------------------------------------------------------


def lookups_of(itsm: str, helpdesk: str) -> dict[str, Any]:
    """The look-ups of both halves."""
    return {**HELPDESKS[helpdesk].get("lookups", {}), **ITSMS[itsm].get("lookups", {})}


def scope_of(config: Config, fields: Mapping[str, Any], itsm: str, received: datetime) -> Scope:
    """What the placeholders of a case's event name; look-ups bring what the cases say."""
    ticket = str(fields["ticket_id"])
    scope = config.scope(fields, 17, ticket, received.timestamp(), ITSMS[itsm]["request_id"])
    lookups = {
        name: one for helpdesk in HELPDESKS for name, one in lookups_of(itsm, helpdesk).items()
    }
    return scope._replace(ask=lambda lookup, _: lookups[lookup.name]["value"])


def decoded(body: bytes, form_field: str) -> Any:
    """The JSON in a request's body, or in the one field of a form."""
    if not form_field:
        return json.loads(body)
    pairs = urllib.parse.parse_qsl(body.decode("ascii"), strict_parsing=True)
    assert [name for name, _ in pairs] == [form_field]
    return json.loads(pairs[0][1])


def typed(value: Any) -> str:
    """JSON that tells 1 from 1.0 and true."""
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)


def kind_of(name: str, kind: str, folder: Path) -> tuple[Config, Kind]:
    """The kind of an ITSM half."""
    config = loaded(pair("jitbit", name, folder), folder)
    return config, config.kinds[kind]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("event", ["event", "event_sparse"])
def test_an_event_becomes_exactly_the_request_that_the_itsm_wants(
    name: str, kind: str, event: str, folder: Path
) -> None:
    wanted = ITSMS[name]["kinds"][kind]["request" if event == "event" else "request_sparse"]
    config, row = kind_of(name, kind, folder)
    request = row.request.render(scope_of(config, CASES[event], name, RECEIVED))
    assert request.method == wanted["method"]
    assert request.url == CASES["itsm_prefix"] + wanted["path"]
    found = decoded(request.body, wanted.get("form_field", ""))
    assert typed(found) == typed(wanted["json"])
    assert row.opens is (kind == "new")
    assert row.then == ITSMS[name]["kinds"][kind].get("then", "")


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_request_can_be_tried_and_shown_before_its_id_is_known(
    name: str, kind: str, folder: Path
) -> None:
    config, row = kind_of(name, kind, folder)
    scope = scope_of(config, CASES["event"], name, RECEIVED)
    shown = row.request.render(scope._replace(request_id=row.unknown_id))
    assert shown.headers == row.request.render(scope).headers


@pytest.mark.parametrize("name", ITSMS)
def test_what_an_unclear_creation_means(name: str, folder: Path) -> None:
    _, row = kind_of(name, "new", folder)
    assert row.when_unclear == ITSMS[name]["unclear"]
    assert (row.find is not None) is (row.when_unclear == "find")


def body_of(answer: Mapping[str, Any]) -> bytes:
    """The body of an answer of the cases."""
    if "raw" in answer:
        return str(answer["raw"]).encode()
    return b"" if answer["body"] is None else json.dumps(answer["body"]).encode()


def heard(answer: Mapping[str, Any]) -> hd_itsm.Answer:
    """An answer of the cases as it comes from the wire."""
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    return hd_itsm.Answer(answer["status"], headers, body_of(answer))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_good_answers_deliver_and_bring_the_request_id(name: str, kind: str, folder: Path) -> None:
    _, row = kind_of(name, kind, folder)
    case = ITSMS[name]["kinds"][kind]
    for answer in [case["good"], *case.get("also_good", ())]:
        outcome = decide(row, heard(answer), RECEIVED.timestamp())
        assert outcome.name == "delivered", (answer, outcome)
        if kind == "new":
            assert outcome.request_id == case["expect_request_id"] == ITSMS[name]["request_id"]
            assert outcome.kept == ITSMS[name].get("keep", {})


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_bad_answers_never_count_as_done(name: str, kind: str, folder: Path) -> None:
    _, row = kind_of(name, kind, folder)
    for answer in ITSMS[name]["kinds"][kind]["bad"]:
        outcome = decide(row, heard(answer), RECEIVED.timestamp())
        assert outcome.name == answer["outcome"], (answer, outcome)
        assert outcome.request_id == ""
        assert outcome.retry_after == answer.get("retry_after", 0)


@pytest.mark.parametrize("name", FINDING)
def test_the_question_whether_a_creation_happened(name: str, folder: Path) -> None:
    config, row = kind_of(name, "new", folder)
    assert row.find is not None
    wanted = ITSMS[name]["find"]
    scope = scope_of(config, CASES["event"], name, RECEIVED)
    request = row.find.request.render(scope)
    assert request.method == wanted["method"]
    assert request.url == CASES["itsm_prefix"] + wanted["path"]
    if "json" in wanted:
        assert decoded(request.body, wanted.get("form_field", "")) == wanted["json"]
    else:
        assert request.body == b""
    for answer, hits in (("hit", [ITSMS[name]["request_id"]]), ("none", [])):
        message = heard(wanted[answer]).message()
        assert [
            hd_itsm.as_text(value) for value in hd_itsm.values_in(row.find, message, scope) or ()
        ] == hits


def questions_of(name: str, folder: Path) -> dict[str, tuple[Lookup, Scope]]:
    """The look-ups that the requests of an ITSM half need, each with the scope it is asked in."""
    asked: dict[str, tuple[Lookup, Scope]] = {}

    def ask(lookup: Lookup, scope: Scope) -> Any:
        asked.setdefault(lookup.name, (lookup, scope))
        return ITSMS[name]["lookups"][lookup.name]["value"]

    config = loaded(pair("jitbit", name, folder), folder)
    scope = scope_of(config, CASES["event"], name, RECEIVED)._replace(ask=ask)
    for kind in config.kinds.values():
        kind.request.render(scope)
        if kind.verify:
            asked[kind.verify.name] = (kind.verify, scope)
    return asked


@pytest.mark.parametrize("name", ITSMS)
def test_the_cases_name_every_look_up_of_an_itsm_half(name: str, folder: Path) -> None:
    assert set(questions_of(name, folder)) == set(ITSMS[name].get("lookups", {}))


@pytest.mark.parametrize(("name", "asked"), LOOKUPS)
def test_a_look_up_asks_what_the_itsm_knows_and_reads_what_it_answers(
    name: str, asked: str, folder: Path
) -> None:
    wanted = ITSMS[name]["lookups"][asked]
    lookup, scope = questions_of(name, folder)[asked]
    request = lookup.request.render(scope)
    url = wanted.get("host", CASES["itsm_prefix"]) + wanted["path"]
    assert (request.method, request.url) == (wanted["method"], url)
    if "form" in wanted:
        assert dict(urllib.parse.parse_qsl(request.body.decode())) == wanted["form"]
        assert "Authorization" not in request.headers
    else:
        assert (json.loads(request.body) if request.body else None) == wanted.get("json")
        assert {header: request.headers[header] for header in ITSMS[name]["headers"]} == ITSMS[
            name
        ]["headers"]
    if "value" in wanted:
        for answer, value in (("good", [wanted["value"]]), ("none", [])):
            message = heard(wanted.get(answer, wanted["good"])).message()
            read = hd_itsm.values_in(lookup, message, scope)
            assert read == (value if answer in wanted else [wanted["value"]]), answer
    else:
        for answer in (wanted["good"], *wanted["not_done"]):
            holds = [one.holds(heard(answer).message()) for one in lookup.conditions(scope)]
            assert all(holds) is (answer is wanted["good"])
    for answer in wanted.get("bad", ()):
        message = heard(answer).message()
        outcome = hd_itsm.read_answer(lookup.answers, heard(answer), message, 0.0)
        assert outcome.name == answer["outcome"], answer


@pytest.mark.parametrize("name", ["redmine", "topdesk", "glpi"])
def test_a_technician_whom_the_itsm_knows_by_number_alone_must_be_listed(
    name: str, folder: Path
) -> None:
    config, row = kind_of(name, "assign", folder)
    stranger = {**CASES["event"], "technician": "nobody.knows"}
    with pytest.raises(Untranslatable, match=r"nobody\.knows"):
        row.request.render(scope_of(config, stranger, name, RECEIVED))


# ---- The real command ----------------------------------------------------------------------------

# each ITSM with another helpdesk; redmine, topdesk and glpi list only one technician
PAIRS = (
    ("original", "jitbit"),
    ("servicenow-table", "zammad"),
    ("servicenow-importset", "jira"),
    ("jira-service-management", "freshdesk"),
    ("servicedesk-plus", "zendesk"),
    ("itop", "django-helpdesk"),
    ("znuny", "helpscout"),
    ("freshservice", "freescout"),
    ("topdesk", "osticket"),
    ("glpi", "glpi"),
    ("sentences", "original"),
    ("halo", "chatwoot"),
    ("bmc-helix", "freshservice"),
    ("redmine", "znuny"),
    ("roundup", "standard-webhooks"),
    ("servicedesk-plus-cloud", "zendesk"),
    ("sentences", "servicedesk-plus"),
    ("itop", "hubspot"),
)
OTHER_HOSTS = ("https://api.hubapi.com", "https://accounts.zoho.com")
RUN = f"""{QUICK}
[time]
zone = "Asia/Seoul"
"""


def test_every_recipe_runs_in_the_real_command() -> None:
    assert {name for name, _ in PAIRS} == set(ITSMS)
    assert {helpdesk for _, helpdesk in PAIRS} == set(HELPDESKS)


def configured(helpdesk: str, name: str, itsm: Itsm, folder: Path) -> str:
    """A helpdesk and an ITSM, the latter pointed at the stand-in, in a hurry."""
    prefix = f"http://127.0.0.1:{itsm.port}"
    text = pair(helpdesk, name, folder, RUN).replace(CASES["itsm_prefix"], prefix)
    for host in OTHER_HOSTS:
        text = text.replace(host, f"http://localhost:{itsm.port}")
    return text.replace('after = "60s"', 'after = "0s"')


def webhooks_of(helpdesk: str) -> dict[str, dict[str, Any]]:
    """A webhook of each kind, all of one ticket."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for case in HELPDESKS[helpdesk]["cases"]:
        if case["kind"]:
            cases.setdefault(case["ticket"], {}).setdefault(case["kind"], case)
    return next(found for found in cases.values() if set(found) == set(CASES["kinds"]))


def post(service: Service, helpdesk: str, case: Mapping[str, Any], proven: bool = True) -> Reply:
    """Posts a sample as it was recorded; `proven`: with the proof that some lack."""
    sent = sample(case["payload"])
    query = urllib.parse.urlsplit(sent.path).query
    headers = sent.headers
    aged = access_of(helpdesk).get("hmac", {"max_age": 0})  # a recorded signature may be too old
    old = "timestamp_header" in aged and aged.get("max_age") != 0
    if proven and (old or not case["authorised_as_recorded"]):
        ours = proof(helpdesk, sent)
        named = {name.lower() for name in ours}
        headers = {k: v for k, v in headers.items() if k.lower() not in named} | ours
    return service.post(case["path"] + (f"?{query}" if query else ""), sent.body, headers)


def proof(helpdesk: str, sent: Sample) -> dict[str, str]:
    """The headers that `[access]` of a helpdesk's recipe demands."""
    access = access_of(helpdesk)
    if "hmac" not in access:
        return {"X-Webhook-Token": ENVIRON["HELPDESK_TOKEN"]}
    rule = access["hmac"]
    stamp, secret = str(int(time())), ENVIRON[rule["secret"]["env"]]
    parts = {"{timestamp}": stamp.encode(), "{id}": b"msg_1", "{body}": sent.body}
    text = rule["signed"].encode()
    for name, part in parts.items():
        text = text.replace(name.encode(), part)
    encoded = rule.get("key") == "base64"
    key = base64.b64decode(secret.removeprefix("whsec_")) if encoded else secret.encode()
    digest = hmac.new(key, text, getattr(hashlib, rule["algorithm"])).digest()
    signed = digest.hex() if rule["encoding"] == "hex" else base64.b64encode(digest).decode()
    headers = {rule["header"]: rule.get("match", "").partition("(")[0] + signed}
    for named, value in (("timestamp_header", stamp), ("id_header", "msg_1")):
        if named in rule:
            headers[rule[named]] = value
    return headers


def access_of(helpdesk: str) -> dict[str, Any]:
    """The table [access] of a helpdesk's recipe, as it stands there."""
    recipe = HELPDESKS[helpdesk]["recipe"]
    tables = tomllib.loads((RECIPES / recipe).read_text("utf-8")) if recipe else {}
    access = tables.get("access", {})
    assert isinstance(access, dict)
    return access


def played(answer: Mapping[str, Any], ticket: str = "4182") -> Answer:
    """An answer of the cases from the stand-in, about this ticket."""
    body = body_of(answer).replace(b"4182", ticket.encode())
    return reply(answer["status"], data=body, headers=answer["headers"])


ADDRESS = re.compile(r"[\w.+-]+(?:@|%40)[\w.-]*\w")


def place(method: str, path: str) -> tuple[str, str]:
    """What tells one question from another, whomever it asks for."""
    return method, ADDRESS.sub("*", path)


def answering(
    name: str,
    script: list[Answer],
    instead: Mapping[str, Answer] = MappingProxyType({}),
    helpdesk: str = "original",
) -> Callable[[Received], Answer]:
    """A stand-in's answers: to a look-up what the cases say, to anything else what is scripted.

    Whoever is asked for is there, unless something stands `instead` of a look-up's answer.
    """
    lookups = lookups_of(name, helpdesk)

    def answer(received: Received) -> Answer:
        here = (received.method, received.path)
        fit = [asked for asked, one in lookups.items() if (one["method"], one["path"]) == here]
        fit += [
            asked
            for asked, one in lookups.items()
            if place(one["method"], one["path"]) == place(*here)
        ]
        if received.key or not fit:
            return script.pop(0) if script else reply(500)
        asked = next((asked for asked in fit if asked in instead), fit[0])
        if asked in instead:
            return instead[asked]
        good, ours = lookups[asked]["good"], lookups[asked]["path"]
        body = body_of(good).decode()
        for our, their in zip(*map(addresses, (ours, received.path)), strict=True):
            body = body.replace(f'"{our}"', f'"{their}"')
        return reply(good["status"], data=body.encode(), headers=good["headers"])

    return answer


def addresses(path: str) -> list[str]:
    """The e-mail addresses in the path of a request."""
    return [urllib.parse.unquote(found) for found in ADDRESS.findall(path)]


def refusal(case: Mapping[str, Any]) -> dict[str, Any] | None:
    """The worst bad answer: one inside a 2xx before any other; None where the cases have none."""
    failing = [one for one in case["bad"] if one["outcome"] == "failed"]
    inside = [one for one in failing if one["status"] < 300]
    return next(iter(inside + failing), None)


def assert_request(received: Received, name: str, kind: str, body: Any) -> None:
    """Whether a request is what the ITSM half says, with `body` as its JSON."""
    wanted = ITSMS[name]["kinds"][kind]["request"]
    assert received.method == wanted["method"]
    assert received.path == wanted["path"]
    for header, value in ITSMS[name]["headers"].items():
        assert received.headers.all(header) == [value]
    form = wanted.get("form_field", "")
    content = ITSMS[name].get("content_type", "application/json; charset=utf-8")
    assert received.headers["Content-Type"] == (
        "application/x-www-form-urlencoded" if form else content
    )
    assert re.fullmatch(r"[0-9a-f-]{36}", received.key)
    found = decoded(received.body, form)
    assert typed(found) == typed(body)


def course(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(kind, answer) of every request of a ticket whose every step is refused once, if it can be.

    The creation is refused and sent again; then come the others, then those of them that were
    refused once more, then what follows the completion.
    """
    kinds = ITSMS[name]["kinds"]
    refused = {kind: refusal(kinds[kind]) for kind in kinds}
    later = [(kind, refused[kind] or kinds[kind]["good"]) for kind in ("assign", "complete")]
    again = [(kind, kinds[kind]["good"]) for kind, _ in later if refused[kind]]
    then = kinds["complete"].get("then")
    further = [(then, refused[then]), (then, kinds[then]["good"])] if then else []
    return [("new", refused["new"]), ("new", kinds["new"]["good"]), *later, *again, *further]


def wait_for_outcomes(service: Service, outcomes: Mapping[int, str]) -> None:
    """Until the log tells these outcomes of these events."""
    for event, outcome in outcomes.items():
        words = (f"event {event} ", f": {outcome}")
        until(lambda words=words: service.lines(*words), f"event {event} is not {outcome}")  # type: ignore[misc]


def run_course(service: Service, name: str, helpdesk: str) -> None:
    """Posts a ticket's webhooks and sends again what the ITSM refuses."""
    cases, kinds = webhooks_of(helpdesk), ITSMS[name]["kinds"]
    states = []
    for number, kind in enumerate(("new", "assign", "complete"), 1):
        sent = post(service, helpdesk, cases[kind])
        assert (sent.status, sent.event) == (200, number), sent
        if kind == "new":
            wait_for_outcomes(service, {1: "failed"})
            assert service.mappings() == {}
        states.append(sent.state)
    assert states == ["pending", "held", "held"]
    outcomes = {
        number: "failed" if refusal(kinds[kind]) else "delivered"
        for number, kind in ((2, "assign"), (3, "complete"))
    }
    assert service.cli("retry", 1).code == 0
    wait_for_outcomes(service, {1: "delivered", **outcomes})
    refused = [number for number, outcome in outcomes.items() if outcome == "failed"]
    overtaken = ["--force"] if refused and outcomes[3] == "delivered" else []
    assert service.cli("retry", *refused, *overtaken).code == 0
    wait_for_outcomes(service, dict.fromkeys(refused, "delivered"))
    if kinds["complete"].get("then"):
        wait_for_outcomes(service, {4: "failed"})
        assert service.cli("retry", 4).code == 0
        wait_for_outcomes(service, {4: "delivered"})


@pytest.mark.parametrize(
    ("name", "helpdesk"),
    [pytest.param(*two, marks=pytest.mark.slow if at % 4 else ()) for at, two in enumerate(PAIRS)],
)
def test_a_ticket_goes_through_its_life_though_the_itsm_refuses_each_step_once(
    name: str, helpdesk: str, tmp_path: Path
) -> None:
    cases = webhooks_of(helpdesk)
    ticket = cases["new"]["ticket"]
    steps = course(name)
    script = [played(answer) for _, answer in steps]
    with Itsm(decide=answering(name, script, helpdesk=helpdesk)) as itsm:
        environ = {**ENVIRON, "TZ": "Asia/Seoul"}
        text = configured(helpdesk, name, itsm, tmp_path)
        with Service(tmp_path, text, environ) as service:
            run_course(service, name, helpdesk)
            assert service.mappings() == {ticket: ITSMS[name]["request_id"]}
            events = {row["kind"]: row for row in service.events()}
            assert {row["state"] for row in events.values()} == {"delivered"}
            again = post(service, helpdesk, cases["complete"])
            assert (again.status, again.state) == (200, "ignored")
        came = [received for received in itsm.requests if received.key]
    assert len(came) == len(steps)
    config = hd_itsm.load_config(str(tmp_path / "hd_itsm.toml"), {}, ENVIRON)
    keys: dict[str, set[str]] = {}
    for (kind, _), received in zip(steps, came, strict=True):
        there = cases.get(kind, cases["complete"])["fields"].items()
        fields = {"ticket_id": ticket, **{k: v for k, v in there if v is not None}}
        moment = datetime.fromisoformat(events[kind]["received"])
        scope = scope_of(config, fields, name, moment)
        request = config.kinds[kind].request
        form = ITSMS[name]["kinds"][kind]["request"].get("form_field")
        tree = request.form[form] if form else request.body
        assert_request(received, name, kind, hd_itsm.render_tree(tree, scope))
        keys.setdefault(kind, set()).add(received.key)
    assert [len(found) for found in keys.values()] == [1] * len(keys)
    assert len(set.union(*keys.values())) == len(keys)


@pytest.mark.parametrize("name", FINDING)
def test_after_a_lost_answer_the_itsm_is_asked_before_anything_is_sent_again(
    name: str, tmp_path: Path
) -> None:
    case = ITSMS[name]
    good, asked = case["kinds"]["new"]["good"], case["find"]
    answers: dict[str, list[Answer]] = {
        "hit": [hang_up(), played(asked["hit"], "hit")],
        "none": [hang_up(), played(asked["none"]), played(good)],
        "several": [hang_up(), played(asked["several"], "several")],
        "again": [
            hang_up(),
            reply(503),
            played(asked["none"]),
            hang_up(),
            played(asked["hit"], "again"),
        ],
    }
    creations = {"hit": 1, "none": 2, "several": 1, "again": 2}

    def is_scripted(received: Received) -> bool:
        path, of = received.path, asked["path"]
        return bool(received.key) or path.partition("?")[0] == of.partition("?")[0]

    scripted: list[Answer] = []
    with Itsm(decide=answering(name, scripted)) as itsm:
        text = configured("original", name, itsm, tmp_path)
        with Service(tmp_path, text, {**ENVIRON, "TZ": "Asia/Seoul"}) as service:
            for ticket, script in answers.items():
                scripted[:] = script
                before = len(itsm.wait_for(0, where=is_scripted))
                service.post("itsm_new", {**CASES["event"], "ticket_id": ticket})
                came = itsm.wait_for(before + len(script), where=is_scripted)[before:]
                questions = [one for one in came if "Idempotency-Key" not in one.headers]
                assert {one.path for one in questions} == {asked["path"].replace("4182", ticket)}
                for header, value in case["headers"].items():
                    assert [one.headers[header] for one in questions] == [value] * len(questions)
                assert len(came) - len(questions) == creations[ticket]
                assert len({one.key for one in came if one not in questions}) == 1
                if (
                    ticket != "several"
                ):  # the stand-in says the same id for each: one has it at a time
                    until(
                        lambda ticket=ticket: service.mappings().get(ticket) == case["request_id"],  # type: ignore[misc]
                        f"{ticket} has its request",
                    )
                    assert service.cli("map", ticket, f"that of {ticket}").code == 0
            until(lambda: not service.events("--state", "pending"), "some stay pending")
            states = {row["ticket"]: row["state"] for row in service.events()}
            wanted = dict.fromkeys(answers, "delivered") | {"several": "held"}
            assert states == wanted
            sent = [received for received in itsm.requests if is_scripted(received)]
            assert len(sent) == sum(len(script) for script in answers.values())


@contextlib.contextmanager
def begun(
    name: str, folder: Path, script: list[Answer], instead: Mapping[str, Answer]
) -> Iterator[tuple[Itsm, Service]]:
    """An ITSM half in the real command behind the built-in hooks, with a ticket that it opened."""
    opened = [played(ITSMS[name]["kinds"]["new"]["good"]), *script]
    with Itsm(decide=answering(name, opened, instead)) as itsm:
        text = configured("original", name, itsm, folder)
        with Service(folder, text, {**ENVIRON, "TZ": "Asia/Seoul"}) as service:
            service.post("itsm_new", CASES["event"])
            service.drained()
            assert service.mappings() == {"4182": ITSMS[name]["request_id"]}
            yield itsm, service


def last_of(service: Service, hook: str) -> dict[str, Any]:
    """The event that the case's webhook becomes, once it waits for nothing but a person."""
    event = service.post(hook, CASES["event"]).event
    service.drained()
    return service.show(event)


@pytest.mark.parametrize("name", [name for name, asked in LOOKUPS if asked == "token"])
def test_a_token_is_asked_for_once_and_anew_when_it_is_refused_and_a_refused_login_is_told(
    name: str, tmp_path: Path
) -> None:
    login, kinds = ITSMS[name]["lookups"]["token"], ITSMS[name]["kinds"]
    script = [played(kinds["assign"]["good"]), reply(401), played(kinds["complete"]["good"])]
    instead: dict[str, Answer] = {}

    def logins(itsm: Itsm) -> int:
        return sum(received.path == login["path"] for received in itsm.requests)

    with begun(name, tmp_path, [*script, reply(401)], instead) as (itsm, service):
        assert last_of(service, "itsm_ass")["state"] == "delivered"
        assert logins(itsm) == 1
        assert last_of(service, "itsm_com")["state"] == "delivered"
        assert logins(itsm) == 2
        assert service.status()["itsm"]["state"] == "up"
        instead["token"] = played(login["bad"][0])
        service.post("itsm_ass", {**CASES["event"], "technician": "dohyun.lee"})
        until(
            lambda: "look-up token" in service.status()["itsm"]["reason"], "the login is refused"
        )
        for secret in ENVIRON.values():
            assert secret not in service.log


@pytest.mark.parametrize(
    ("name", "asked"), [row for row in LOOKUPS if "not_done" in ITSMS[row[0]]["lookups"][row[1]]]
)
def test_what_the_itsm_takes_and_does_not_do_is_failed(
    name: str, asked: str, tmp_path: Path
) -> None:
    kind, hook = ("assign", "itsm_ass") if asked == "assigned" else ("complete", "itsm_com")
    case = ITSMS[name]["kinds"][kind]
    taken = [played(answer) for answer in (case["good"], *case.get("also_good", ()))]
    instead = {asked: played(ITSMS[name]["lookups"][asked]["not_done"][0])}
    with begun(name, tmp_path, [taken[0], taken[-1]], instead) as (_, service):
        event = last_of(service, hook)
        assert event["state"] == "failed"
        assert "it was not done" in event["reason"]
        del instead[asked]
        assert service.cli("retry", event["event"]).code == 0
        service.drained()
        assert service.show(event["event"])["state"] == "delivered"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        row
        for row in LOOKUPS
        if urllib.parse.quote(CASES["event"]["technician"])
        in ITSMS[row[0]]["lookups"][row[1]]["path"]
    ],
)
def test_a_technician_whom_the_itsm_does_not_know_fails_the_assignment_and_is_named(
    name: str, asked: str, tmp_path: Path
) -> None:
    instead = {asked: played(ITSMS[name]["lookups"][asked]["none"])}
    with begun(name, tmp_path, [played(ITSMS[name]["kinds"]["assign"]["good"])], instead) as (
        _,
        service,
    ):
        event = last_of(service, "itsm_ass")
        assert event["state"] == "failed"
        assert (
            f"look-up {asked}: there is none of {CASES['event']['technician']!r}"
            in event["reason"]
        )
        instead.clear()
        assert service.cli("retry", event["event"]).code == 0
        service.drained()
        assert service.show(event["event"])["state"] == "delivered"


def test_the_number_that_the_itsm_gave_is_written_back_into_the_helpdesk(tmp_path: Path) -> None:
    name, refused = "servicenow-table", reply(401, json={"error": "Invalid token"})
    kinds, cases = ITSMS[name]["kinds"], webhooks_of("zammad")
    script = [played(kinds[kind]["good"]) for kind in ("new", "assign", "complete")]
    with Itsm(decide=answering(name, script)) as itsm, Itsm(script=[refused]) as helpdesk:
        text = configured("zammad", name, itsm, tmp_path)
        text = text.replace("[kinds.new]\n", '[kinds.new]\nthen = "number_back"\n')
        back = text_of("back-zammad.toml", tmp_path)
        url = f"http://127.0.0.1:{helpdesk.port}"
        text += back.replace("https://helpdesk.example.com", url)
        with Service(tmp_path, text, {**ENVIRON, "TZ": "Asia/Seoul"}) as service:
            for kind in CASES["kinds"]:
                assert post(service, "zammad", cases[kind]).status == 200
            service.drained()
            states = {row["kind"]: row["state"] for row in service.events()}
            assert states == {
                **dict.fromkeys(CASES["kinds"], "delivered"),
                "number_back": "failed",
            }
            (failed,) = service.events("--state", "failed")
            assert "Invalid token" in failed["reason"]
            assert service.status()["itsm"]["state"] == "up"
            assert service.cli("retry", failed["event"], "--force").code == 0
            service.drained()
            assert not service.events("--state", "failed")
        for told in helpdesk.requests:
            assert (told.method, told.path) == ("PUT", "/api/v1/tickets/418")
            assert told.json() == {"itsm_number": "INC0010042"}
            assert told.headers.all("Authorization") == [ENVIRON["ZAMMAD_AUTHORIZATION"]]
        assert len(helpdesk.requests) == 2
        assert all("zammad" not in str(received.headers) for received in itsm.requests)


def test_200_tickets_of_40_people_are_40_questions(tmp_path: Path) -> None:
    known = answering("servicenow-table", [])

    def decided(received: Received) -> Answer:
        if received.key:
            number = {"sys_id": f"id-{received.number}", "number": f"INC{received.number}"}
            return reply(201, json={"result": number})
        return known(received)

    with Itsm(decide=decided) as itsm:
        text = configured("original", "servicenow-table", itsm, tmp_path)
        with Service(tmp_path, text, {**ENVIRON, "TZ": "Asia/Seoul"}) as service:
            for number in range(200):
                writer = f"person-{number % 40}@example.co.kr"
                more = {"ticket_id": f"T-{number}", "writer": writer}
                service.post("itsm_new", {**CASES["event"], **more})
            service.drained()
            assert len(service.mappings()) == 200
        asked = [received.path for received in itsm.requests if not received.key]
        assert len(asked) == len(set(asked)) == 40


@pytest.mark.parametrize("helpdesk", HELPDESKS)
def test_every_webhook_of_a_helpdesk_is_admitted_and_answered_and_no_other(
    helpdesk: str, tmp_path: Path
) -> None:
    guarded = bool(access_of(helpdesk))
    with Itsm() as itsm:
        text = configured(helpdesk, "original", itsm, tmp_path)
        with Service(tmp_path, text, {**ENVIRON, "TZ": "Asia/Seoul"}) as service:
            for case in HELPDESKS[helpdesk]["cases"]:
                if not case["authorised_as_recorded"]:
                    refused = post(service, helpdesk, case, proven=False)
                    assert refused.status == (401 if guarded else 200), case["payload"]
                answer = post(service, helpdesk, case)
                assert answer.status == 200, (case["payload"], answer)
                assert isinstance(answer.json(), dict | list)
                if case["kind"] is None:
                    assert answer.state == "ignored", case["payload"]
            naked = service.post(case["path"], sample(case["payload"]).body)
            assert naked.status == (401 if guarded else 200)


@functools.cache
def recipe_lines(recipe: str) -> tuple[str, ...]:
    return tuple((RECIPES / recipe).read_text(encoding="utf-8").splitlines())


def secrets_in(recipe: str) -> Iterator[str]:
    """The values of the cases' secrets that stand in a recipe."""
    for secret in (*ENVIRON.values(), *CASES["files"].values()):
        if any(secret in line for line in recipe_lines(recipe)):
            yield secret


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.toml")))
def test_a_recipe_begins_with_what_to_click_and_holds_no_secret(recipe: str) -> None:
    head = [line for line in recipe_lines(recipe) if line][:5]
    assert all(line.startswith("#") for line in head)
    assert list(secrets_in(recipe)) == []
