"""Canaries: a word of its own in the place of every secret, and where none of them may be found.

One service runs with every feature, with DEBUG logging, through success, refusal, outage, a refused
credential and a reload; then everything it wrote, answered and showed is searched. What `forget`
removes is searched for in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faultlib import Rig, sabotaged
from itsm import Answer, Itsm, Received, hang_up, ok, reply, unauthorized
from service import NO_HEADERS, Reply, Service, assignment, closing, opening, settings, until

pytestmark = pytest.mark.slow  # one service goes through everything first


# ---- Where a secret could show -----------------------------------------------------------------


class Secrets(NamedTuple):
    """The words, each in one place of the configuration."""

    authorization: str = "canary-authorization-7f31"
    token: str = "canary-token-one-a902"
    second_token: str = "canary-token-two-5be4"
    signature: str = "canary-hmac-c83d"
    admin: str = "canary-admin-19f0"
    header: str = "canary-header-e6a7"
    kind_header: str = "canary-kind-header-44b1"
    value: str = "canary-value-d25c"
    alert: str = "canary-alert-0e98"
    proxy: str = "canary-proxy-b3f6"


SECRETS = Secrets()

TOKEN: Mapping[str, str] = {"X-Webhook-Token": SECRETS.token}


def spellings(word: str) -> set[str]:
    """The ways in which a word may be written: as it is, in base64, in hex, in a URL, backwards."""
    found = {word, word[::-1], word.encode().hex(), urllib.parse.quote(word, safe="")}
    for padding in ("", ":", "x:", "admin:", "hook:", "proxy-user:", "itsm:"):
        coded = base64.b64encode((padding + word).encode()).decode()
        found.add(coded.rstrip("="))
    return found


def leaks(places: dict[str, bytes], words: tuple[str, ...] = SECRETS) -> dict[str, list[str]]:
    """Which words are in which places, in any spelling, also as UTF-16."""
    found: dict[str, list[str]] = {}
    for place, data in places.items():
        for word in words:
            forms = [form.encode() for form in spellings(word)] + [word.encode("utf-16-le")]
            if any(form.lower() in data.lower() for form in forms):
                found.setdefault(place, []).append(word)
    return found


@pytest.mark.parametrize("form", sorted(spellings("canary-x")))
def test_control_a_leak_is_found_in_every_spelling(form: str) -> None:
    data = b"GET /?a=" + form.encode() + b" HTTP/1.1"
    assert leaks({"log": data, "page": b"quiet"}, ("canary-x",)) == {"log": ["canary-x"]}


# ---- A run with everything ---------------------------------------------------------------------


@dataclass
class Stay:
    """A service with every secret, its ITSM (which is also the proxy and takes the alerts), and
    all that was heard of it."""

    service: Service
    itsm: Itsm
    heard: dict[str, bytes] = field(default_factory=dict)

    def note(self, name: str, answer: Reply) -> Reply:
        """Keeps an answer."""
        self.heard[f"{len(self.heard)} {name}"] = repr(answer.headers).encode() + answer.body
        return answer

    def post(
        self, hook: str, body: object, wait: int = 5, headers: Mapping[str, str] = TOKEN
    ) -> Reply:
        """A webhook, with a valid token where nothing else is said."""
        return self.note(f"POST {hook}", self.service.post(hook, body, headers, wait=wait))

    def get(self, path: str, password: str = SECRETS.admin) -> Reply:
        """A page."""
        coded = base64.b64encode(f"admin:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {coded}"}
        return self.note(f"GET {path}", self.service.request("GET", path, headers=headers))

    def command(self, *words: object, stdin: bytes = b"") -> None:
        """A command, as it is and with --json where it knows that."""
        for more in ((), ("--json",)):
            run = self.service.cli(*words, *more, stdin=stdin)
            self.heard[f"{len(self.heard)} {words[0]} {more}"] = (run.out + run.err).encode()


KINDS: dict[str, Any] = {
    "opens": True,
    "unclear": "find",
    "find": "request",
    "find_after": 0.05,
    "headers": {"X-Kind": {"env": "KIND_HEADER"}},
    "body": {"code": "000", "title": "{subject}", "key": "{api_key}", "ticket": "{ticket_id}"},
}


def configuration(itsm: Itsm, folder: Path) -> tuple[str, dict[str, str]]:
    """Every secret in its place, in all the ways to write one; and the environment."""
    (folder / "secret-authorization").write_text(f"Basic {SECRETS.authorization}\n")
    (folder / "credentials").mkdir()
    (folder / "credentials" / "secret-signature").write_text(SECRETS.signature)
    credential = {"credential": "secret-signature"}
    question = {"url": itsm.url + "/find?ticket={ticket_id}", "value": "result.*.request_id"}
    text = settings(
        itsm.url,
        server={"admin_password": SECRETS.admin, "trusted_proxy": ["127.0.0.1"]},
        access={
            "token": [SECRETS.token, {"env": "SECOND_TOKEN"}],
            "query_token": True,
            "hmac": {
                "secret": credential,
                "header": "X-Hub-Signature",
                "algorithm": "sha256",
                "encoding": "hex",
                "match": "sha256=(.+)",
                "signed": "{body}",
            },
        },
        itsm={
            "authorization": {"file": str(folder / "secret-authorization")},
            "headers": {"X-Api-Key": {"env": "API_KEY"}},
            "proxy": f"http://proxy-user:{SECRETS.proxy}@127.0.0.1:{itsm.port}",
        },
        alert={"url": {"env": "ALERT_URL"}, "after": 0.1, "silence": "1h"},
        log={"level": "DEBUG", "file": "debug.log"},
        values={"api_key": {"env": "API_VALUE"}},
        kinds__new=KINDS,
        lookups__request=question,
    )
    environ = {
        "SECOND_TOKEN": SECRETS.second_token,
        "API_KEY": SECRETS.header,
        "KIND_HEADER": SECRETS.kind_header,
        "API_VALUE": SECRETS.value,
        "ALERT_URL": f"http://127.0.0.1:{itsm.port}/alert/{SECRETS.alert}",
        "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
    }
    return text, environ


class Moody:
    """What the ITSM does: refuses, repeats what it got, hangs up, is down, wants another
    credential; and takes alerts, but not at once."""

    def __init__(self) -> None:
        self.mood = "good"
        self.alerts = 0

    def __call__(self, received: Received) -> Answer:
        if "/alert/" in received.path:
            self.alerts += 1
            return (
                [reply(500, text=received.path), hang_up()][self.alerts % 2]
                if (self.alerts < 3)
                else reply(200)
            )
        moods: dict[str, Answer] = {
            "good": reply(200, json={"result": []}) if "/find" in received.path else ok(),
            "echo": reply(400, json={"error": echoed(received)}),
            "echo later": reply(503, text=echoed(received)),
            "down": hang_up(),
            "credential": unauthorized(),
        }
        return moods[self.mood]


def echoed(received: Received) -> str:
    """Everything of a request, as a careless ITSM writes it into its error."""
    pairs = "; ".join(f"{name}: {value}" for name, value in received.headers.pairs)
    return f"{received.path} {pairs} {received.body.decode()}"


@pytest.fixture(scope="module")
def stay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stay]:
    """The run; the service still stands at its end."""
    folder, moody = tmp_path_factory.mktemp("canary"), Moody()
    with Itsm(decide=moody) as itsm:
        text, environ = configuration(itsm, folder)
        with Service(folder, text, environ) as service:
            stay = Stay(service, itsm)
            live(stay, moody)
            yield stay


def live(stay: Stay, moody: Moody) -> None:
    """Every feature once."""
    service, itsm = stay.service, stay.itsm
    webhooks(stay)
    moody.mood = "echo"
    stay.post("itsm_new", opening("4190"))
    moody.mood = "echo later"
    late = stay.post("itsm_new", opening("4191"), wait=0).event
    until(lambda: service.show(late)["attempts"], "it is tried")
    moody.mood = "down"
    for number in range(3):
        stay.post("itsm_new", opening(f"420{number}"), wait=0)
    until(lambda: service.status()["itsm"]["state"] == "down", "the ITSM is down")
    pages(stay)
    for words in (("status",), ("check",), ("show", "--ticket", "4191")):
        stay.command(*words)
    moody.mood = "credential"
    (service.folder / "secret-authorization").write_text(f"Basic {SECRETS.authorization} \n")
    until(lambda: service.lines("refuses our credential"), "the credential is refused")
    pages(stay)
    moody.mood = "good"
    itsm.wait_for(3, where=lambda one: "/alert/" in one.path)
    service.signal(signal.SIGHUP)
    until(lambda: service.log.count("listening on ") == 2, "it has taken over")
    until(lambda: service.status()["counts"]["pending"] == 0, "all is delivered", 20)
    pages(stay)
    commands(stay)
    usual = (service.folder / "hd_itsm.toml").read_text(encoding="utf-8")
    service.configure(usual + "\n[itsm\n")
    stay.command("check")
    service.configure(usual)
    title = Path(f"/proc/{service.pid}/cmdline")
    if title.exists():
        stay.heard["cmdline"] = title.read_bytes() + Path(f"/proc/{service.pid}/comm").read_bytes()


def webhooks(stay: Stay) -> None:
    """By every way in, and by every way that is none."""
    body = json.dumps(opening("4182")).encode()
    digest = hmac.new(SECRETS.signature.encode(), body, hashlib.sha256).hexdigest()
    good = {
        "signed": {"X-Hub-Signature": f"sha256={digest}"},
        "bearer": {"Authorization": f"Bearer {SECRETS.second_token}"},
        "basic": {"Authorization": "Basic " + encoded("hook:" + SECRETS.token)},
    }
    for name, headers in good.items():
        assert stay.post("itsm_new", body, headers=headers).status == 200, name
    query = f"itsm_ass?token={SECRETS.token}&x=1"
    assert stay.post(query, assignment("4182"), headers=NO_HEADERS).status == 200
    assert stay.post("itsm_com", closing("4182")).status == 200
    bad = {
        "wrong": {"X-Webhook-Token": SECRETS.token + "x"},
        "half": {"Authorization": f"Bearer {SECRETS.token} {SECRETS.second_token}"},
        "basic": {"Authorization": "Basic " + encoded("x:" + SECRETS.admin)},
        "unsigned": {"X-Hub-Signature": f"sha256={SECRETS.signature}"},
    }
    for name, headers in bad.items():
        assert stay.post("itsm_new", body, headers=headers).status == 401, name
    for path in ("itsm_new", "nowhere", "control/events", f"itsm_new/{SECRETS.token[:5]}"):
        stay.post(f"{path}?token={SECRETS.token}", b"nonsense", headers=NO_HEADERS)
    stay.post(f"itsm_new?token={SECRETS.token}", b"x" * 1_200_000, headers=NO_HEADERS)


def encoded(text: str) -> str:
    """Base64."""
    return base64.b64encode(text.encode()).decode()


def pages(stay: Stay) -> None:
    """All of them, with the right password and with a wrong one."""
    events = range(1, len(stay.service.events()) + 1)
    paths = ["/", "/metrics", "/health", "/openapi.json", "/search?q=4182", "/tickets/4182"]
    paths += [f"/events/{event}" for event in events]
    paths += ["/confirm/retry?event=1", "/confirm/pause", "/nowhere", "/control/status"]
    for path in paths:
        stay.get(path)
    stay.get("/", SECRETS.admin + "x")
    stay.get("/", SECRETS.token)
    assert stay.get("/").status == 200


def commands(stay: Stay) -> None:
    """All of them."""
    folder = stay.service.folder
    (folder / "body.json").write_text(json.dumps(opening("4182")))
    (folder / "list.csv").write_text("ticket_id,request_id,timestamp\n9,R-9,2026-11-24\n")
    (folder / "tickets.csv").write_text("ticket_id,state\n4182,closed\n77,open\n")
    for words in (
        ("status",),
        ("events",),
        ("show", 1),
        ("show", "--ticket", "4190"),
        ("explain", "itsm_new", "body.json"),
        ("explain", "itsm_ass", "body.json"),
        ("check",),
        ("export",),
        ("import", "list.csv"),
        ("reconcile", "tickets.csv"),
        ("pause",),
        ("resume",),
        ("retry", "--state", "failed", "--dry-run"),
        ("retry", 4182),
        ("drop", 4182, "--why", "x"),
        ("map", "77", "R-77"),
        ("backup", f"copy-{len(stay.heard)}.db"),
        ("serve",),
        ("forget", "77"),
    ):
        stay.command(*words)


def test_control_every_secret_arrived_where_it_belongs(stay: Stay) -> None:
    """Else a run that uses none of them would look well."""
    sent = [one for one in stay.itsm.requests if "/alert/" not in one.path and one.body]
    opened = next(one for one in sent if one.json()["code"] == "000")
    assert opened.headers["Authorization"] == f"Basic {SECRETS.authorization}"
    assert opened.headers["X-Api-Key"] == SECRETS.header
    assert opened.headers["X-Kind"] == SECRETS.kind_header
    assert opened.json()["key"] == SECRETS.value
    assert any(SECRETS.alert in one.path for one in stay.itsm.requests)


def test_the_proxy_gets_the_password_of_its_address(stay: Stay) -> None:
    wanted = "Basic " + encoded("proxy-user:" + SECRETS.proxy)
    sent = next(one for one in stay.itsm.requests if "/alert/" not in one.path)
    assert sent.path.startswith("http://")  # it is spoken to as a proxy
    assert sent.headers.get("Proxy-Authorization") == wanted


def test_no_answer_page_metric_or_command_shows_a_secret(stay: Stay) -> None:
    assert len(stay.heard) > 120
    assert leaks(stay.heard) == {}


def test_no_file_but_those_of_the_operator_holds_a_secret(stay: Stay) -> None:
    """Log, rotating log, SQLite file, its WAL, the control file, the backups."""
    theirs = {"hd_itsm.toml", "secret-authorization", "secret-signature"}
    files = {
        str(path.relative_to(stay.service.folder)): path.read_bytes()
        for path in stay.service.folder.rglob("*")
        if path.is_file() and path.name not in theirs
    }
    wanted = {"hd_itsm.db", "hd_itsm.db-wal", "hd_itsm.db.control", "stderr.log", "debug.log"}
    assert wanted <= set(files)
    assert any(name.startswith("copy-") for name in files)
    assert "event 1 " in files["debug.log"].decode()  # it did write at DEBUG
    assert leaks(files) == {}


def test_the_key_of_the_commands_is_in_its_file_alone(stay: Stay) -> None:
    key = (str(stay.service.control["key"]),)
    assert leaks(stay.heard, key) == {}
    for path in stay.service.folder.glob("*"):
        if path.is_file() and path.name != "hd_itsm.db.control":
            assert leaks({path.name: path.read_bytes()}, key) == {}
    assert (stay.service.folder / "hd_itsm.db.control").stat().st_mode & 0o077 == 0


def test_what_the_itsm_repeats_of_our_secrets_is_masked_but_else_kept(stay: Stay) -> None:
    shown = stay.service.cli("show", "--ticket", "4190").out
    assert "***" in shown
    assert "X-Api-Key" in shown


# ---- forget ------------------------------------------------------------------------------------

PRIVATE = ("홍길동-forgetme", "hong@forgetme.example.com", "010-forgetme-5678")


def private(ticket_id: str) -> dict[str, Any]:
    """An opening with personal data in every field."""
    name, mail, phone = PRIVATE
    return opening(ticket_id, writer=mail, subject=f"{name} 사번 {phone}", contents=name * 300)


def remnants(folder: Path) -> dict[str, list[str]]:
    """Which of the private words are in which of the program's files."""
    found = {}
    for path in folder.glob("hd_itsm.db*"):
        data = path.read_bytes()
        forms = {word: (word.encode(), json.dumps(word).encode()[1:-1]) for word in PRIVATE}
        words = [word for word, ways in forms.items() if any(way in data for way in ways)]
        if words:
            found[path.name] = words
    return found


def repeats(received: Received) -> Answer:
    """An ITSM that says back what it got."""
    request_id = "R-1" if "4182" in received.body.decode() else f"R-1{received.number}"
    return reply(200, json={"result": {"request_id": request_id}, "got": received.body.decode()})


UNMINDFUL = """
class _Unmindful(sqlite3.Connection):
    def __init__(self, *rest, **named):
        super().__init__(*rest, **named)
        super().execute("PRAGMA secure_delete = OFF")
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Unmindful)
"""


@pytest.mark.parametrize("usual", [True, False], ids=["as here", "built without secure_delete"])
def test_forget_removes_a_tickets_texts_from_the_file_and_keeps_its_mapping(
    tmp_path: Path, usual: bool
) -> None:
    """Some builds of SQLite overwrite what they delete by themselves, others do not."""
    with Itsm(decide=repeats) as itsm:
        program = sabotaged(tmp_path, code="" if usual else UNMINDFUL)
        rig = Rig(tmp_path, settings(itsm.url), program)
        rig.start()
        for number in range(20):
            rig.post("itsm_new", opening(f"before-{number}"), wait=5)
        event = rig.post("itsm_new", private("4182"), wait=5).event
        rig.post("itsm_ass", assignment("4182", PRIVATE[0]), wait=5)
        rig.post("itsm_new", {**private("4182"), "category": "again"}, wait=5)
        for number in range(20):
            rig.post("itsm_new", opening(f"after-{number}"), wait=5)
        mapped = rig.mappings()["4182"]
        assert remnants(tmp_path), "control: the texts are there"
        assert rig.cli("forget", "4182").code == 0
        shown = rig.show(event)
        assert not any(word in json.dumps(shown, ensure_ascii=False) for word in PRIVATE)
        assert (shown["state"], shown["raw"]) == ("delivered", "")
        assert rig.mappings()["4182"] == mapped
        assert rig.stop() == 0
        assert remnants(tmp_path) == {}


def test_what_was_forgotten_goes_from_a_running_services_files_too(tmp_path: Path) -> None:
    with Itsm(decide=repeats) as itsm, Service(tmp_path, settings(itsm.url)) as service:
        service.post("itsm_new", private("4182"), wait=5)
        assert service.cli("forget", "4182").code == 0
        until(lambda: remnants(tmp_path) == {}, "nothing of it is left in the file or its WAL", 5)


def test_forget_leaves_what_still_waits_and_says_so(tmp_path: Path) -> None:
    with Itsm(reply(400)) as itsm, Service(tmp_path, settings(itsm.url)) as service:
        event = service.post("itsm_new", private("4182"), wait=5).event
        run = service.cli("forget", "4182", "--json")
        assert run.json()["left"] == [event]
        assert service.show(event)["raw"]
        assert service.cli("drop", event, "--why", "x").code == 0
        assert service.cli("forget", "4182").code == 0
        assert service.show(event)["raw"] == ""


def test_after_forget_the_same_webhook_is_still_a_duplicate(tmp_path: Path) -> None:
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url)) as service:
        service.post("itsm_new", opening("4182"), wait=5)
        service.cli("forget", "4182")
        again = service.post("itsm_new", opening("4182"))
        assert (again.event, again.state) == (1, "ignored")
        assert len(itsm.requests) == 1
