"""One file to one frozen object, or the whole list of what is wrong; secrets stay secret."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import hd_itsm
from hd_itsm import (
    Config,
    ConfigError,
    Secret,
    find_config,
    load_config,
    sample_config,
)
from itsm import Itsm, reply
from rows import NAMED_OPTIONS, OPTIONS, Row, flat
from service import Service, opening, settings

NOTHING: Mapping[str, str] = {}
URL = '[itsm]\nurl = "https://itsm.example.com/api"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("HD_ITSM_CONFIG", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def load(
    folder: Path,
    toml: str,
    overrides: Mapping[str, str] = NOTHING,
    environ: Mapping[str, str] = NOTHING,
    complete: bool = False,
) -> Config:
    """What a configuration of this text is."""
    path = folder / "given.toml"
    path.write_text(toml, encoding="utf-8")
    return load_config(str(path), overrides, environ, complete)


def problems(
    folder: Path,
    toml: str,
    environ: Mapping[str, str] = NOTHING,
    complete: bool = False,
) -> list[str]:
    """The lines of what is wrong with it, without the file's name; none where it loads."""
    try:
        load(folder, toml, {}, environ, complete)
    except ConfigError as error:
        lines = str(error).splitlines()
        name = str(folder / "given.toml") + ": "
        assert all(line.startswith(name) for line in lines), lines
        return [line.removeprefix(name) for line in lines]
    return []


# ---- The whole of it -----------------------------------------------------------------------------

WHOLE = """
[server]
listen = "127.0.0.1:8080"   # any other than loopback demands [access], or it refuses to start
threads = 8
max_body = 1048576
stop_after = 10
trusted_proxy = []           # addresses whose X-Forwarded-For is believed
admin_password = ""          # status page from other machines; loopback needs none when empty
public_url = ""              # the page's address, for alerts

[access]                     # any configured means admits a webhook; several may be set
token = ""                   # Authorization: Bearer, X-Webhook-Token or the password of Basic
query_token = false          # also ?token=..., for a helpdesk that can set nothing but the URL
networks = []                # ["10.0.0.5/32"]: further restricts by address
hmac = { secret = "", header = "X-Hub-Signature", algorithm = "sha1", encoding = "hex", \
match = "sha1=(.+)", signed = "{body}" }

[itsm]
url = "https://itsm.example.com/api"
authorization = { file = "/etc/hd_itsm.token" }
headers = {}
timeout = 60.0
workers = 4
ca_file = ""                 # also client_cert, client_key, proxy
request_id = "result.request_id"
answers = []                 # rules for what its answers mean, before the table
check_url = ""               # what `check` may GET; default itsm.url

[retry]
first = 1.0
max = 300.0
probe = 60.0
tries = 10
give_up_after = "7d"         # durations: seconds, or "90s", "15m", "12h", "7d"

[store]
path = "hd_itsm.db"          # under systemd: $STATE_DIRECTORY/hd_itsm.db
keep_days = 30

[log]
level = "INFO"
file = ""                    # besides stderr: rotating file
max_bytes = 5242880
backups = 20

[time]
zone = "local"               # or "Asia/Seoul"; "+09:00" works without zone data
due_days = 7
date_formats = []

[values]                     # constants for templates
item_id = ""
service = ""

[tables.users]               # {technician|users}
"홍길동" = "gdhong"
"*" = "{}"                   # what is not listed

[hooks.itsm_new]             # POST /itsm_new (or path = "/...")
kind = "new"
fields = { ticket_id = "ticket_id", writer = "writer", category = "category", \
subject = "subject", contents = "contents" }

[hooks.glpi]                 # a helpdesk with one address and a fixed body
fields = { ticket_id = "item.id", subject = "item.name", contents = "item.content", \
technician = "item.team[role=assigned].name", date = ["item.date_creation", "item.date"] }
rules = [ { kind = "new", when = { event = "new" } }, \
{ kind = "complete", when = { "item.status.id" = [5, 6] } }, \
{ kind = "assign", when = { "item.team[role=assigned].name" = "*" } } ]
# a condition on "@header:X-FreeScout-Event" reads a header; no rule matches: 200, ignored

[kinds.new]                  # replaces the built-in "new"
opens = true
method = "POST"              # default
url = "https://itsm.example.com/requests"     # default itsm.url
headers = {}
body = { code = "000", title = "{subject|max:80}", contents = "{contents|html|bytes:4000}", \
priority = 2 }
form = {}                    # instead of body: form fields
encoding = "utf-8"
request_id = "result.0.sys_id"
answers = []                 # before those of [itsm]
again = "ignore"
unclear = "retry"
find = "incident"            # unclear = "find": the look-up that is asked
find_after = "60s"           # asked no sooner
then = ""                    # a further kind delivered after this one

[lookups.incident]           # a question to the ITSM
url = "https://itsm.example.com/requests?q={ticket_id}"
value = "result.*.sys_id"
when = { "result.*.correlation_id" = "{ticket_id}" }

[alert]
url = ""                     # gets {"text": "..."}: Slack, Teams, Mattermost and alike
after = "5m"                 # an outage shorter than this is not told
silence = ""                 # "8h": tell when no webhook came for so long
"""


def test_the_whole_configuration_as_the_contract_prints_it_loads(folder: Path) -> None:
    (folder / "token").write_text("Basic abc\n", encoding="utf-8")
    toml = WHOLE.replace("/etc/hd_itsm.token", str(folder / "token"))
    config = load(folder, toml, complete=True)
    assert config.warnings == ()
    assert config.server.listen == ("127.0.0.1", 8080)
    assert config.credential.reveal() == "Basic abc"
    assert config.retry.give_up_after == 7 * 86400
    assert config.retry.max == 300
    assert config.tables["users"] == {"홍길동": "gdhong", "*": "{}"}
    assert set(config.hooks) == {"itsm_new", "itsm_ass", "itsm_com", "glpi"}
    assert config.hooks["glpi"].path == "/glpi"
    assert config.hooks["glpi"].kinds == ("new", "complete", "assign")
    assert set(config.kinds) == {"new", "assign", "complete"}
    new = config.kinds["new"]
    assert (new.opens, new.request.method, new.again, new.when_unclear, new.then) == (
        *(True, "POST", "ignore", "retry", ""),
    )
    assert new.find is config.lookups["incident"]
    assert new.find_after == 60


def test_what_the_contract_prints_as_defaults_are_the_defaults(folder: Path) -> None:
    (folder / "token").write_text("Basic abc", encoding="utf-8")
    printed = load(folder, WHOLE.replace("/etc/hd_itsm.token", str(folder / "token")))
    bare = load_config("", {}, {}, complete=False)
    different = {key for key, value in flat(bare).items() if value != flat(printed)[key]}
    secrets = {"server.admin_password", "access.token", "alert.url", "itsm.proxy"}
    assert different - secrets == {"itsm.url", "itsm.authorization"}
    assert not bare.access.token
    assert not bare.server.admin_password


def test_without_a_file_the_built_in_hooks_and_kinds_are_there(folder: Path) -> None:
    config = load_config("", {"itsm.url": "http://127.0.0.1:9/api"}, {})
    paths = {hook.path: hook.kinds for hook in config.hooks.values()}
    wanted = {"/itsm_new": ("new",), "/itsm_ass": ("assign",), "/itsm_com": ("complete",)}
    assert paths == wanted
    assert {name for name, kind in config.kinds.items() if kind.opens} == {"new"}


def test_a_configuration_cannot_be_changed(folder: Path) -> None:
    config = load(folder, URL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.source = "x"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.kinds["new"].opens = False  # type: ignore[misc]


def test_a_hook_kind_or_table_of_the_file_replaces_the_built_in_one_whole(folder: Path) -> None:
    toml = (
        '[hooks.itsm_ass]\nkind = "assign"\nfields = { ticket_id = "id", technician = "who" }\n'
        '[kinds.assign]\nbody = { who = "{technician}" }\n'
        '[kinds.new]\nbody = { a = "{subject}" }\n'
    )
    config = load(folder, toml)
    assert set(config.hooks["itsm_ass"].fields) == {"ticket_id", "technician"}
    assert set(config.kinds["assign"].request.body) == {"who"}
    assert config.kinds["new"].opens is False
    assert set(config.kinds["complete"].request.body) == {
        "code",
        "request_id",
        "work_qty",
        "comment",
    }


REPLACED = '[kinds.new]\nbody = { a = "{subject}" }\n'


@pytest.mark.parametrize(
    "more", ["", '[hooks.own]\nkind = "assign"\nfields = { ticket_id = "id", technician = "who" }']
)
def test_a_warning_tells_of_kinds_that_can_never_get_a_request_id(folder: Path, more: str) -> None:
    warning = next(one for one in load(folder, REPLACED + more).warnings if "request id" in one)
    assert "`opens = true`" in warning
    assert "assign, complete will wait for `map` or `import`" in warning


@pytest.mark.parametrize(
    "toml",
    [
        "",
        REPLACED + "opens = true\n",
        REPLACED + "[kinds.assign]\n[kinds.complete]\nbody = { r = '{request_id|or:-}' }\n",
        REPLACED + "[kinds.own]\nopens = true\n[hooks.own]\nkind = 'own'\n"
        "fields = { ticket_id = 'id' }\n",
    ],
)
def test_no_warning_where_some_kind_opens_or_none_needs_the_id(folder: Path, toml: str) -> None:
    assert load(folder, toml).warnings == ()


def test_a_warning_tells_of_a_built_in_hook_that_lacks_what_a_kind_uses(folder: Path) -> None:
    toml = (
        '[hooks.own]\nkind = "new"\nfields = { ticket_id = "id", title = "title" }\n'
        '[kinds.new]\nopens = true\nbody = { a = "{title}" }\n'
    )
    (warning,) = load(folder, toml).warnings
    assert warning == (
        "kinds.new: {title}: hook itsm_new has no such field; what it receives will fail"
    )


def test_everything_else_merges_key_by_key(folder: Path) -> None:
    config = load(folder, "[retry]\nmax = 5\n[values]\nservice = 'S'\nmine = 3\n")
    assert (config.retry.max, config.retry.first, config.itsm.timeout) == (5, 1, 60)
    assert config.values == {"item_id": "", "service": "S", "mine": 3}


def test_the_rules_and_headers_of_a_kind_come_before_those_of_the_itsm_which_are_for_its_host(
    folder: Path,
) -> None:
    toml = """
[itsm]
url = "https://itsm.example.com/api"
authorization = "Basic abc"
answers = [{ means = "failed", status = 404 }, { means = "later", status = 400 }]
request_id = "id"
headers = { A = "1", B = "2", C = "{key}", accept = "text/plain" }
[values]
key = "its secret"
[lookups.there]
url = "https://elsewhere.example.com/"
value = "id"
[kinds.assign]
answers = [{ means = "failed", status = 400 }]
headers = { b = "3" }
body = { x = "{ticket_id}" }
[kinds.complete]
url = "https://elsewhere.example.com/"
answers = [{ means = "delivered", status = 409 }]
body = { x = "{there}" }
"""
    config = load(folder, toml)
    kinds = config.kinds
    means = {name: [rule.result for rule in kind.answers] for name, kind in kinds.items()}
    assert means["assign"] == ["failed", "failed", "later"]
    assert means["new"] == ["failed", "later"]
    assert kinds["assign"].request_id == kinds["new"].request_id
    headers = kinds["assign"].request.headers
    assert {"A", "b", "accept", "Authorization", "Idempotency-Key"} <= set(headers)
    assert "B" not in headers
    assert "Accept" not in headers
    assert headers["b"] == hd_itsm.parse_template("3")
    assert "C" in headers
    for other in (kinds["complete"].request, config.lookups["there"].request):
        assert "A" in other.headers
        assert {"Authorization", "C"} & set(other.headers) == set()
    assert means["complete"] == ["delivered"]
    assert config.lookups["there"].answers == ()


# ---- What is wrong -------------------------------------------------------------------------------

WRONG = """
surprise = 1
[servr]
listen = "127.0.0.1:1"
[server]
listen = "localhost"
threds = 3
threads = "many"
trusted_proxy = ["10.0.0"]
[itsm]
url = "itsm.example.com"
timeout = "soon"
workers = 0
answers = [{ means = "retry", status = 404 }]
request_id = "a..b"
ca_file = "/nowhere/ca.pem"
headers = { "Content-Length" = "1" }
[retry]
tries = true
give_up_after = "7 days"
[log]
level = "LOUD"
[time]
zone = "Asia/Soul"
due_days = 1.5
date_formats = ["today"]
[tables]
max = { a = "b" }
[hooks.x]
path = "no-slash"
kind = "nwe"
fields = { ticket_id = "a[", subject = "s" }
[hooks.y]
fields = { subject = "s" }
[kinds.new]
opens = true
methd = "POST"
method = "post"
body = { title = "{subjct}", x = "{subject|mx:3}", y = "{subject|max:x}" }
unclear = "find"
[kinds.assign]
body = { x = "{technician" }
then = "nowhere"
[kinds.complete]
url = "https://{ticket_id}.example.com/"
again = "maybe"
body = {}
"""


def test_all_problems_of_a_file_are_told_at_once_each_with_its_key(folder: Path) -> None:
    found = problems(folder, WRONG)
    keys = {line.split(": ")[0] for line in found}
    assert keys >= {
        "surprise",
        "servr",
        "server.listen",
        "server.threds",
        "server.threads",
        "server.trusted_proxy",
        "itsm.url",
        "itsm.timeout",
        "itsm.workers",
        "itsm.answers",
        "itsm.request_id",
        "itsm.ca_file",
        "itsm.headers",
        "retry.tries",
        "retry.give_up_after",
        "log.level",
        "time.zone",
        "time.due_days",
        "time.date_formats",
        "tables.max",
        "hooks.x.path",
        "hooks.x.fields",
        "hooks.y.fields",
        "hooks.y",
        "kinds.new.methd",
        "kinds.new.method",
        "kinds.new",
        "kinds.new.find",
        "kinds.assign.body",
        "kinds.assign.then",
        "kinds.complete.url",
        "kinds.complete.again",
    }
    assert all(line.split(": ", 1)[1].strip() for line in found)


@pytest.mark.parametrize(
    ("toml", "key", "hint"),
    [
        ("[servr]", "servr", "server"),
        ("[itsms]", "itsms", "itsm"),
        ("[server]\nthreds = 1", "server.threds", "threads"),
        ("[retry]\ngive_up = '7d'", "retry.give_up", "give_up_after"),
        ("[kinds.assign]\nbodi = {}", "kinds.assign.bodi", "body"),
        ("[hooks.x]\nkind = 'nwe'\nfields = { ticket_id = 'a' }", "hooks.x", "new"),
        ("[hooks.x]\nknd = 'new'\nfields = { ticket_id = 'a' }", "hooks.x.knd", "kind"),
        ("[kinds.assign]\nbody = { a = '{technicain}' }", "kinds.assign", "technician"),
        ("[kinds.assign]\nbody = { a = '{technician|usrs}' }\n[tables.users]", "kinds.assign",
         "users"),
        ("[kinds.assign]\nbody = { a = '{technician|byte:3}' }", "kinds.assign", "bytes"),
        ("[kinds.assign]\nbody = { a = '{expected_dat}' }", "kinds.assign", "expected_date"),
        ("[access]\nhmac = { secret = 's', heder = 'X' }", "access.hmac.heder", "header"),
        ("[hooks.x]\nkind = 'new'\nfields = { ticket_id = { pth = 'a' } }", "hooks.x.fields",
         "path"),
        ("[kinds.assign]\nthen = 'complet'\nbody = {}", "kinds.assign.then", "complete"),
        ("[kinds.new]\nfind = 'incidnt'\nopens = true\n[lookups.incident]\nurl = 'https://h/'\n"
         "value = 'id'", "kinds.new.find", "incident"),
        ("[itsm]\nanswers = [{ means = 'fialed' }]", "itsm.answers", "failed"),
        ("[itsm]\nanswers = [{ mean = 'failed' }]", "itsm.answers", "means"),
        ("[hooks.x]\nrules = [{ kind = 'new', wen = {} }]\nfields = { ticket_id = 'a' }",
         "hooks.x.rules", "when"),
        ("[log]\nlevel = 'INF'", "log.level", "INFO"),
        ("[kinds.new]\nunclear = 'hald'\nopens = true\nbody = {}", "kinds.new.unclear", "hold"),
    ],
)  # fmt: skip
def test_a_misspelt_word_comes_with_a_hint(folder: Path, toml: str, key: str, hint: str) -> None:
    lines = [line for line in problems(folder, toml) if line.startswith(f"{key}: ")]
    assert any(hint in line for line in lines), lines


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[server]\nthreads = 'eight'", "server.threads: must be a whole number from 1 on, not 'eight'"),
        ("[time]\nzone = 'Asia/Seol'", "time.zone: no time zone data for 'Asia/Seol': write an offset "
         "like +09:00 (did you mean 'Asia/Seoul'?), not 'Asia/Seol'"),
        ("[access]\nquery_token = 1", "access.query_token: must be true or false, not 1"),
        ("[time]\nzone = '+25:00'", "time.zone: must be an offset within a day, like +09:00, not '+25:00'"),
        ("[access]\nhmac = { secret = 'x', algorithm = 'sha265' }", "access.hmac.algorithm: must be "
         "one of sha1, sha256, sha512 (did you mean 'sha256'?), not 'sha265'"),
        ("[access]\nhmac = { secret = 'x', key = 'base64' }", "access.hmac.secret: is no "
         'base64, as key = "base64" says'),
        ("[log]\nlevel = 'LOUDER'", "log.level: must be one of DEBUG, INFO, WARNING, ERROR, not 'LOUDER'"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_stands_there(folder: Path, toml: str, line: str) -> None:
    assert problems(folder, toml) == [line]


@pytest.mark.parametrize(
    ("toml", "keys"),
    [
        ("[kinds.assign]\nbody = { a = '{', b = '{technician', c = '{subjct}' }",
         ["kinds.assign.body", "kinds.assign.body", "kinds.assign"]),
        ("[itsm]\nheaders = { 'a b' = '1', Host = '2', C = '{' }", ["itsm.headers"] * 3),
        ("[hooks.x]\nkind = 'new'\nfields = { ticket_id = 'a[', writer = 'b[', subject = 's' }",
         ["hooks.x.fields"] * 2),  # and not that the fields are missing
        ("[hooks.x]\nfields = { ticket_id = 'a' }\nrules = [{ kind = 'assign', wen = {} }, "
         "{ kind = 'assign', when = { 'a[' = 1 } }]", ["hooks.x.rules"] * 2),
        ("[itsm]\nurl = 'itsm.example.com'", ["itsm.url"]),
        ("[lookups.x]\nvalue = 'a['", ["lookups.x.value"]),
        ("[lookups.x]\nurl = 'https://h/{y}'\nvalue = 'a'\n"
         "[lookups.y]\nurl = 'https://h/{x}'\nvalue = 'a'\n"
         "[kinds.assign]\nbody = { a = '{x}', b = '{technician}' }", ["lookups.y"]),
        ("[access]\nhmac = { secret = 's', key = 'hex', signed = '{timestmp}', match = '(' }",
         ["access.hmac.match", "access.hmac.key", "access.hmac.signed"]),
        ("[hooks.x]\nkind = 'assign'\nfields = { ticket_id = 'a' }", ["kinds.assign"]),
        ("[hooks]\nx = 1", ["hooks.x"]),
        ("[kinds.assign]\nunclear = 'find'\nbody = {}", ["kinds.assign.unclear"]),
        ("[time]\ndate_formats = ['%Q']", ["time.date_formats"]),
        ("[itsm]\nanswers = [{ means = 'x' }, { means = 'failed', status = 'y' }]",
         ["itsm.answers"] * 2),
    ],
)  # fmt: skip
def test_every_mistake_is_told_once_and_none_that_only_follows(
    folder: Path, toml: str, keys: list[str]
) -> None:
    found = problems(folder, toml, complete="itsm" in toml and "url" in toml)
    assert [line.split(": ")[0] for line in found] == keys, found


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
@pytest.mark.parametrize("bad", ["[[1]]", "1.5e300", "{ surprise = { x = 1 } }"])
def test_a_wrong_type_is_one_problem_at_its_key(folder: Path, row: Row, bad: str) -> None:
    found = problems(folder, f"[{row.section}]\n{row.key} = {bad}")
    key = f"{row.name}"
    told = [line for line in found if line.startswith((f"{key}: ", f"{key}.surprise: "))]
    assert len(told) == 1, found


@pytest.mark.parametrize("row", NAMED_OPTIONS, ids=lambda row: row.name)
@pytest.mark.parametrize("bad", ["[[1]]", "1.5e300", "{ surprise = { x = 1 } }", "'['"])
def test_a_wrong_type_in_a_hook_or_kind_is_told_without_a_crash(
    folder: Path, row: Row, bad: str
) -> None:
    harmless = ("body", "form", "delivery_id")
    found = problems(folder, f"[{row.section}.x]\n{row.key} = {bad}")
    told = any(line.startswith(f"{row.section}.x") for line in found)
    assert told or row.key in harmless


@pytest.mark.parametrize("table", ["server", "itsm", "values", "tables", "hooks", "kinds", "log"])
@pytest.mark.parametrize("value", ["1", "'x'", "[1]", "true"])
def test_a_table_that_is_none_is_told_without_a_crash(
    folder: Path, table: str, value: str
) -> None:
    assert any(line.startswith(f"{table}: ") for line in problems(folder, f"{table} = {value}"))


@pytest.mark.parametrize("table", ["hooks", "kinds", "tables"])
def test_a_row_of_a_table_that_is_no_table_is_told(folder: Path, table: str) -> None:
    assert any(line.startswith(f"{table}.x: ") for line in problems(folder, f"[{table}]\nx = 1"))


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[kinds.assign]\nbody = { a = '{nothing}' }", "kinds.assign"),
        ("[kinds.assign]\nurl = 'https://h/{nothing}'\nbody = {}", "kinds.assign"),
        ("[kinds.assign]\nheaders = { X = '{nothing}' }\nbody = {}", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = [{ b = '{nothing}' }] }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{subject}' }", "kinds.assign"),  # the hook has none
        ("[kinds.assign]\nbody = { a = '{hours}' }", "kinds.assign"),  # it has no date
        ("[kinds.close]\nbody = { a = '{nothing}' }", "kinds.close"),  # no hook leads to it
        ("[hooks.x]\nkind = 'new'\nfields = { ticket_id = 'a' }", "kinds.new"),
        ("[kinds.assign]\nbody = { a = '{technician|users}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{technician|max}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{technician|max:}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{technician|bytes:-1}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{technician|date}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{technician|}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '{}' }", "kinds.assign"),
        ("[kinds.assign]\nbody = { a = '}' }", "kinds.assign"),
        ("[kinds.new]\nopens = true\nfind = 'x'\n[lookups.x]\nurl = 'https://h/{nothing}'\n"
         "value = 'id'", "kinds.new"),
        ("[lookups.x]\nurl = 'https://h/'", "lookups.x.value"),
        ("[lookups.x]\nurl = 'https://h/'\nvalue = 'a['", "lookups.x.value"),
        ("[kinds.assign]\nbody = {}\nform = { a = 'b' }", "kinds.assign.form"),
        ("[kinds.assign]\nunclear = 'find'\nfind = 'x'\n[lookups.x]\nvalue = 'id'",
         "kinds.assign.unclear"),
        ("[kinds.assign]\nencoding = 'utf-9'", "kinds.assign.encoding"),
        ("[kinds.assign]\nheaders = { A = '1', a = '2' }", "kinds.assign.headers"),
        ("[itsm]\nanswers = [{ means = 'failed', status = [] }]", "itsm.answers"),
        ("[itsm]\nanswers = [{ means = 'failed', status = 'ok' }]", "itsm.answers"),
        ("[itsm]\nanswers = [{ means = 'failed', when = { a = [] } }]", "itsm.answers"),
        ("[hooks.x]\nrules = [{ kind = 'assign', when = { '@heder:X' = 1 } }]\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.rules"),
        ("[hooks.x]\nrules = [{ when = { a = 1 } }]\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.rules"),
        ("[kinds.assign]\nthen = 'nowhere'\nbody = {}", "kinds.assign.then"),
        ("[kinds.assign]\nthen = 'new'\nbody = {}", "kinds.assign.then"),
        ("[kinds.assign]\nthen = 'assign'\nbody = {}", "kinds.assign.then"),
        ("[kinds.assign]\nthen = 'complete'\nbody = {}\n"
         "[kinds.complete]\nthen = 'assign'\nbody = {}", "kinds.assign.then"),
        ("[hooks.x]\nkind = 'nowhere'\nfields = { ticket_id = 'a' }", "hooks.x"),
        ("[hooks.x]\nrules = [{ kind = 'nowhere' }]\nfields = { ticket_id = 'a' }", "hooks.x"),
        ("[hooks.x]\nfields = { ticket_id = 'a' }", "hooks.x"),
        ("[hooks.x]\nkind = 'assign'\nfields = { technician = 'a' }", "hooks.x.fields"),
        ("[hooks.x]\nkind = 'assign'\nrules = [{ kind = 'assign' }]\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x"),
        ("[hooks.x]\npath = '/itsm_new'\nkind = 'assign'\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.path"),
        ("[hooks.x]\npath = '/itsm_new/'\nkind = 'assign'\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.path"),
        *((f"[hooks.x]\npath = '{path}'\nkind = 'assign'\n"
           "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.path")
          for path in ("/health", "/metrics", "/openapi.json", "/control/x", "x", "/a b", "/a?b",
                       "/")),
        ("[hooks.x]\nkind = 'assign'\nfields = { ticket_id = 'a', technician = "
         "{ path = 'b', match = '[' } }", "hooks.x.fields"),
        ("[hooks.x]\nkind = 'assign'\nfields = { ticket_id = 'a', technician = "
         "{ path = 'b', match = 'no group' } }", "hooks.x.fields"),
        ("[hooks.x]\nrules = [{ kind = 'assign', when = { a = '~[' } }]\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.rules"),
        ("[hooks.x]\nrules = [{ kind = 'assign', whn = { a = 1 } }]\n"
         "fields = { ticket_id = 'a', technician = 'b' }", "hooks.x.rules"),
        ("[kinds.new]\nopens = true\nunclear = 'find'\nbody = {}", "kinds.new.find"),
        *((f"[kinds.assign]\nbody = {{}}\nurl = '{url}'", "kinds.assign.url")
          for url in ("https://{ticket_id}/x", "{ticket_id}", "https://h{ticket_id}/x",
                      "https://h:{ticket_id}/", "{ticket_id}://h/", "ftp://h/", "https://u:p@h/",
                      "https://{ticket_id}@h/", "/path")),
        *((f"[itsm]\nurl = '{url}'", "itsm.url")
          for url in ("itsm.example.com", "ftp://h/", "https://", "https://u:p@h/x",
                      "https://h/a b")),
        ("[tables.html]\na = 'b'", "tables.html"),
        ("[tables]\nx = { a = ['b'] }", "tables.x"),
        ("[values]\na = ['b']", "values.a"),
        ("[values]\na = { fil = 'b' }", "values.a"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_at_its_key(folder: Path, toml: str, key: str) -> None:
    found = problems(folder, toml)
    assert any(line.startswith(f"{key}") for line in found), found


@pytest.mark.parametrize(
    "toml",
    [
        "[kinds.assign]\nbody = { a = '{technician|or:x}', b = '{subject|or:}' }",
        "[kinds.assign]\nbody = { a = '{hours|or:0}' }",
        "[kinds.assign]\nbody = { a = '{mine}' }\n[values]\nmine = 1",
        "[kinds.assign]\nbody = { a = '{event} {received} {today} {ticket_id}' }",
        "[kinds.assign]\nbody = { a = '{{technicain}}' }",
        "[kinds.note]\nbody = { a = '{text}' }\n[hooks.note]\nkind = 'note'\n"
        "fields = { ticket_id = 'id', text = 't' }",
        "[kinds.complete]\nthen = 'close'\nbody = {}\n[kinds.close]\nbody = { a = '{hours}' }",
        "[hooks.x]\npath = '/a/b-c_d.e~f'\nkind = 'assign'\n"
        "fields = { ticket_id = 'a', technician = 'b' }",
        "[access]\ntoken = ['a', 'b']",
        "[access]\nnetworks = ['10.0.0.5', '10.0.0.0/8', '::1', 'fd00::/8']",
        "[itsm]\nrequest_id = ['id', '@header:Location']",
    ],
)
def test_what_works_is_no_problem(folder: Path, toml: str) -> None:
    assert problems(folder, toml) == []


def test_a_missing_address_of_the_itsm_is_a_problem_where_it_is_needed(folder: Path) -> None:
    (line,) = problems(folder, "", complete=True)
    assert line.startswith("itsm.url: ")
    assert problems(folder, "", complete=False) == []


@pytest.mark.parametrize(
    "content",
    [b"[server", b"a = ", b"\xff\xfe", b"a = 1\na = 2", b"\0", b"a = " + b"[" * 100_000,
     b"[a]\n[a]"],
)  # fmt: skip
def test_a_file_that_is_no_toml_is_told_with_its_name(folder: Path, content: bytes) -> None:
    path = folder / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_config(str(path), {}, {})


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    path = folder / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf" + URL.encode())
    assert load_config(str(path), {}, {}).itsm.url == "https://itsm.example.com/api"


def test_the_command_prints_the_list_and_ends_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hd_itsm.toml").write_text(WRONG, encoding="utf-8")
    for command in ("serve", "check", "status", "events"):
        assert hd_itsm.main([command]) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) > 30
        assert "Traceback" not in told
    assert not (folder / "hd_itsm.db").exists()


# ---- Durations, addresses, access ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("0.5", 0.5), ("'90s'", 90), ("'15m'", 900), ("'12h'", 43200), ("'7d'", 604800),
     ("'1.5h'", 5400)],
)  # fmt: skip
def test_a_duration(folder: Path, text: str, seconds: float) -> None:
    assert load(folder, f"[retry]\ngive_up_after = {text}").retry.give_up_after == seconds


@pytest.mark.parametrize(
    "text",
    ["'7 days'", "'7'", "'d'", "'-1s'", "-1", "true", "'1w'", "'1h30m'", "nan", "inf", "[1]", "''",
     "'٣s'", "1979-05-27"],
)  # fmt: skip
def test_what_is_no_duration_is_told(folder: Path, text: str) -> None:
    (line,) = problems(folder, f"[retry]\ngive_up_after = {text}")
    assert line.startswith("retry.give_up_after: ")
    assert "7d" in line


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "true", "'8'", "[8]"])
def test_a_count_is_a_whole_number_from_1(folder: Path, text: str) -> None:
    (line,) = problems(folder, f"[server]\nthreads = {text}")
    assert line.startswith("server.threads: ")


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("localhost:1", ("localhost", 1)),
     ("[::1]:8080", ("::1", 8080)), ("127.0.0.1:0", ("127.0.0.1", 0)),
     ("127.9.9.9:80", ("127.9.9.9", 80))],
)  # fmt: skip
def test_loopback_needs_no_access(folder: Path, listen: str, address: tuple[str, int]) -> None:
    assert load(folder, f"[server]\nlisten = '{listen}'").server.listen == address


BEYOND = [
    "0.0.0.0:8080",
    "[::]:8080",
    "10.0.0.1:8080",
    "helpdesk.example.com:80",
    "127.0.0.1.example.com:1",
]


@pytest.mark.parametrize("listen", BEYOND)
@pytest.mark.parametrize(
    "access",
    ["", "[access]\ntoken = ''", "[access]\ntoken = ['', '']", "[access]\nquery_token = true",
     "[access]\nnetworks = []", "[access]\nhmac = { secret = '' }",
     "[access]\nhmac = { secret = [] }"],
)  # fmt: skip
def test_beyond_loopback_nothing_starts_without_access(
    folder: Path, listen: str, access: str
) -> None:
    found = problems(folder, f"[server]\nlisten = '{listen}'\n{access}")
    assert any(line.startswith("server.listen: ") and "[access]" in line for line in found)


@pytest.mark.parametrize("listen", BEYOND)
@pytest.mark.parametrize(
    "access",
    ["token = 'x'", "token = ['', 'x']", "networks = ['10.0.0.5/32']", "hmac = { secret = 'x' }"],
)
def test_any_means_of_access_admits_listening_beyond_loopback(
    folder: Path, listen: str, access: str
) -> None:
    assert problems(folder, f"[server]\nlisten = '{listen}'\n[access]\n{access}") == []


@pytest.mark.parametrize(
    "listen", ["8080", "localhost", ":8080", "127.0.0.1:99999", "127.0.0.1:x", "::1:80", ""]
)
def test_an_address_that_is_none_is_told(folder: Path, listen: str) -> None:
    found = problems(folder, f"[server]\nlisten = '{listen}'")
    assert [line for line in found if line.startswith("server.listen: ")]


@pytest.mark.parametrize(
    "rest",
    [
        "algorithm = 'md5'",
        "encoding = 'base32'",
        "signed = '{x}'",
        "signed = '{timestamp}{body}'",
        "header = 1",
        "header = ''",
        "header = 'X Signature'",
        "match = 'sha1='",
        "match = 'sha1=('",
        "key = 'hex'",
        "signed = '{id}.{body}'",
        "id_header = 'X-Id'",
        "signed = '{timestamp}', timestamp_header = 'X-Stamp'",
        "max_age = 60",
        "max_age = 0",
        "timestamp_header = 'X-Stamp'",
        "signed = '{timestamp}{body}', timestamp_header = 'X Stamp'",
        "signed = '{timestamp}{body}', timestamp_header = 'X-Stamp', max_age = 'old'",
    ],
)
def test_a_signature_that_cannot_work_is_told(folder: Path, rest: str) -> None:
    found = problems(folder, f"[access]\nhmac = {{ secret = 'x', {rest} }}")
    assert [line for line in found if line.startswith("access.hmac.")]


def test_a_signature_without_a_secret_is_told(folder: Path) -> None:
    found = problems(folder, "[access]\nhmac = { header = 'X-Hub-Signature' }")
    assert [line for line in found if line.startswith("access.hmac.secret: ")]


# ---- Secrets -------------------------------------------------------------------------------------

WORD = "s3cret-w0rd"
HIDING = f"""
[server]
admin_password = "{WORD}-1"
[access]
token = ["{WORD}-2", {{ env = "TOKEN" }}]
hmac = {{ secret = "{WORD}-3" }}
[itsm]
url = "https://itsm.example.com/api"
authorization = "{WORD}-4"
headers = {{ X-Key = {{ file = "FILE" }} }}
[values]
password = {{ env = "TOKEN" }}
[alert]
url = "https://alert.example.com/{WORD}-5"
[kinds.assign]
body = {{ password = "{{password}}" }}
"""


def hiding(folder: Path) -> Config:
    """A configuration full of secrets."""
    (folder / "key").write_text(f"{WORD}-6\n", encoding="utf-8")
    toml = HIDING.replace("FILE", str(folder / "key"))
    return load(folder, toml, environ={"TOKEN": f"{WORD}-7"}, complete=True)


def test_a_secret_may_be_text_a_file_a_variable_or_a_credential(folder: Path) -> None:
    (folder / "key").write_text("from file\n", encoding="utf-8")
    (folder / "cred").mkdir()
    (folder / "cred" / "itsm").write_text("from credential\r\n", encoding="utf-8")
    environ = {"NAME": "from env", "CREDENTIALS_DIRECTORY": str(folder / "cred")}
    for given, text in (
        ("'as text'", "as text"),
        (f"{{ file = '{folder}/key' }}", "from file"),
        ("{ env = 'NAME' }", "from env"),
        ("{ credential = 'itsm' }", "from credential"),
    ):
        config = load(folder, f"{URL}authorization = {given}", environ=environ, complete=True)
        assert config.credential.reveal() == text


def test_every_secret_of_the_configuration_can_be_had(folder: Path) -> None:
    config = hiding(folder)
    assert [one.reveal() for one in config.access.token] == [f"{WORD}-2", f"{WORD}-7"]
    assert config.server.admin_password.reveal() == f"{WORD}-1"
    assert config.access.hmac
    assert config.access.hmac.secret[0].reveal() == f"{WORD}-3"
    key = config.kinds["new"].request.headers["X-Key"]
    assert isinstance(key, Secret)
    assert key.reveal() == f"{WORD}-6"
    scope = config.scope({"technician": "kim"}, 1, "T", 0.0, "R")
    body = json.loads(config.kinds["assign"].request.render(scope).body)
    assert body == {"password": f"{WORD}-7"}


def test_no_secret_shows_in_any_text_of_the_configuration(folder: Path) -> None:
    config = hiding(folder)
    secrets = [value for value in flat(config).values() if isinstance(value, Secret)]
    for thing in (config, *config.kinds.values(), *secrets, config.access.hmac, config.access):
        assert WORD not in repr(thing)
        assert WORD not in str(thing)
        assert WORD not in f"{thing}"


def test_a_masked_scope_shows_no_secret(folder: Path) -> None:
    config = hiding(folder)
    scope = config.scope({"technician": "kim"}, 1, "T", 0.0, "R", masked=True)
    request = config.kinds["assign"].request.render(scope)
    assert WORD not in request.body.decode()
    assert WORD not in repr(scope)


@pytest.mark.parametrize(
    "toml",
    [
        f"[itsm]\nauthorization = ['{WORD}']",
        f"[itsm]\nauthorization = {{ fil = '{WORD}' }}",
        f"[itsm]\nauthorization = '{WORD}\\n{WORD}'".replace("'", '"'),
        f"[itsm]\nauthorization = '가{WORD}'",
        f"[access]\ntoken = [['{WORD}']]",
        f"[access]\nhmac = {{ secret = ['{WORD}', 1] }}",
        f"[access]\nhmac = {{ secret = '{WORD}', algorithm = 'x' }}",
        f"[itsm]\nurl = 'https://user:{WORD}@h/'",
        f"[itsm]\nproxy = 'user:{WORD}@h'",
        f"[kinds.assign]\nurl = 'https://user:{WORD}@h/'\nbody = {{}}",
        f"[values]\npassword = ['{WORD}']",
        f"[alert]\nurl = 'hooks.example.com/{WORD}'",
        f"[server]\nadmin_password = {{ text = '{WORD}' }}",
        f"[itsm]\nauthorization = '{WORD}",
    ],
)
def test_no_problem_shows_a_secret(folder: Path, toml: str) -> None:
    path = folder / "given.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), {}, {})
    assert WORD not in str(caught.value)
    assert WORD not in repr(caught.value)


def test_a_file_that_changes_is_read_anew(folder: Path) -> None:
    path = folder / "key"
    path.write_text("first\n", encoding="utf-8")
    secret = load(folder, f"[itsm]\nauthorization = {{ file = '{path}' }}").credential
    assert secret.reveal() == "first"
    assert secret.refresh() is False
    path.write_text("the second\n", encoding="utf-8")
    assert secret.refresh() is True
    assert secret.reveal() == "the second"
    new = folder / "key.new"
    new.write_text("the 3rd---\n", encoding="utf-8")  # as long, and as old
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)
    assert secret.reveal() == "the 3rd---"


def test_a_file_that_goes_leaves_the_last_known_secret(folder: Path) -> None:
    path = folder / "key"
    path.write_text("known", encoding="utf-8")
    secret = load(folder, f"[itsm]\nauthorization = {{ file = '{path}' }}").credential
    assert secret.reveal() == "known"
    path.unlink()
    assert secret.reveal() == "known"


def test_a_secret_that_is_written_anew_unchanged_is_no_new_one(folder: Path) -> None:
    """Else a credential that is refused would be tried again each time, until it is locked."""
    path = folder / "token"
    path.write_text("known", encoding="utf-8")
    secret = load(folder, f"[itsm]\nauthorization = {{ file = '{path}' }}").credential
    secret.reveal()
    path.write_text("known\n", encoding="utf-8")
    assert secret.refresh() is False
    path.write_text("another", encoding="utf-8")
    assert secret.refresh() is True


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("{ file = '/nowhere/token' }", "/nowhere/token"),
        ("{ env = 'NOT_SET' }", "NOT_SET"),
        ("{ credential = 'itsm' }", "itsm"),
        ("{ file = 'empty' }", "empty"),
        ("{ file = 'lines' }", "lines"),
        ("{ file = 'binary' }", "binary"),
        ("{ file = '.' }", "."),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_with_its_source(
    folder: Path, given: str, word: str
) -> None:
    (folder / "empty").write_bytes(b" \n")
    (folder / "lines").write_bytes(b"a\nb")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (line,) = problems(folder, f"{URL}authorization = {given}", complete=True)
    assert line.startswith("itsm.authorization: ")
    assert word in line or word == "lines"
    assert problems(folder, f"{URL}authorization = {given}", complete=False) == []


def test_no_secret_shows_in_the_log_or_output_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{WORD}-6\n", encoding="utf-8")
    with Itsm() as itsm:
        config = settings(
            itsm.url,
            itsm={
                "authorization": f"{WORD}-4",
                "headers": {"X-Key": {"file": str(tmp_path / "key")}},
            },
            access={"token": [f"{WORD}-2"], "query_token": True},
            values={"service": {"env": "SERVICE"}},
            log={"level": "DEBUG"},
        )
        with Service(tmp_path, config, {"SERVICE": f"{WORD}-7"}) as service:
            for token in (f"{WORD}-2", f"{WORD}-wrong"):
                service.post("itsm_new", opening("1"), {"X-Webhook-Token": token}, wait=5)
                service.post(f"itsm_new?token={token}", opening("2"), wait=5)
            (tmp_path / "body.json").write_text(json.dumps(opening("3")), encoding="utf-8")
            said = [
                service.cli(*command.split())
                for command in (
                    "check", "explain itsm_new body.json", "explain itsm_new body.json --json",
                    "show 1", "show 1 --json", "events", "status --json",
                )
            ]  # fmt: skip
            line = Path(f"/proc/{service.pid}/cmdline")
            title = line.read_bytes() if line.exists() else b""
            answer = service.post("itsm_new", opening("1"), {"X-Webhook-Token": f"{WORD}-2"})
        assert WORD not in service.log
        for run in said:
            assert WORD not in run.out + run.err, run
        assert WORD.encode() not in title
        assert WORD.encode() not in answer.body
        received = itsm.requests[0]
        assert received.headers["Authorization"] == f"{WORD}-4"
        assert received.headers["X-Key"] == f"{WORD}-6"
        assert received.json()["service"] == f"{WORD}-7"


# ---- Where it comes from -------------------------------------------------------------------------


def test_the_order_in_which_the_file_is_looked_for(folder: Path) -> None:
    for name in ("given.toml", "named.toml"):
        (folder / name).write_text("", encoding="utf-8")
    given, named = str(folder / "given.toml"), str(folder / "named.toml")
    assert hd_itsm.CONFIG_PLACES == ("hd_itsm.toml", "/etc/hd_itsm.toml")
    elsewhere = find_config(None, {})
    assert elsewhere in ("", "/etc/hd_itsm.toml")
    (folder / "hd_itsm.toml").write_text("", encoding="utf-8")
    assert find_config(None, {}) == "hd_itsm.toml"
    assert find_config(None, {"HD_ITSM_CONFIG": named}) == named
    assert find_config(given, {"HD_ITSM_CONFIG": named}) == given


def test_a_file_that_was_named_must_be_there(folder: Path) -> None:
    (folder / "hd_itsm.toml").write_text("", encoding="utf-8")
    for given, environ in (("gone.toml", {}), (None, {"HD_ITSM_CONFIG": "gone.toml"})):
        with pytest.raises(ConfigError, match=r"gone\.toml"):
            find_config(given, environ)


def test_overrides_come_before_the_file_and_are_checked_alike(folder: Path) -> None:
    overrides = {
        "server.listen": "127.0.0.1:9",
        "store.path": "other.db",
        "itsm.url": "http://127.0.0.1:1/x",
    }
    config = load(folder, URL + "[store]\npath = 'a.db'\nkeep_days = 5", overrides)
    assert config.server.listen == ("127.0.0.1", 9)
    assert config.store.path == "other.db"
    assert config.store.keep_days == 5
    assert config.itsm.url == "http://127.0.0.1:1/x"
    with pytest.raises(ConfigError, match=r"server\.listen"):
        load(folder, URL, {"server.listen": "0.0.0.0:9"})


@pytest.mark.parametrize(
    ("store", "path"),
    [("", "/var/lib/x/hd_itsm.db"), ("[store]\npath = 'mine.db'", "/var/lib/x/mine.db"),
     ("[store]\npath = '/data/mine.db'", "/data/mine.db")],
)  # fmt: skip
def test_under_systemd_the_file_is_in_the_state_directory(
    folder: Path, store: str, path: str
) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/x"}
    assert load(folder, store, environ=environ).store.path == path
    config = load(folder, store, {"store.path": "quick.db"}, environ)
    assert config.store.path == str(folder / "quick.db")


# ---- The sample ----------------------------------------------------------------------------------

COMMENTED = re.compile(r'^# (?=\[[\w.]+\]|["\w]+ = )', re.MULTILINE)


def rows_of(sample: str) -> list[tuple[str, str]]:
    """(section, key) of every line that sets an option, commented or not."""
    section, rows = "", []
    for line in sample.splitlines():
        plain = line.removeprefix("# ")
        if match := re.match(r"\[([\w.]+)\]", plain):
            section = match[1]
        elif match := re.match(r'("?[\w*]+"?) = ', plain):
            rows.append((section, match[1]))
    return rows


def test_every_option_is_in_the_sample_once() -> None:
    rows = rows_of(sample_config())
    for row in OPTIONS:
        assert rows.count((row.section, row.key)) == 1, row.key


def test_every_line_of_the_sample_says_what_it_is_for() -> None:
    sample = sample_config()
    for row in OPTIONS:
        (line,) = [
            line
            for line in sample.splitlines()
            if row.option.sentence in line and re.match(rf"(# )?{row.key} = ", line)
        ]
        assert line.endswith(row.option.sentence)


def test_the_sample_is_the_default_until_it_is_changed(folder: Path) -> None:
    given = tomllib.loads(sample_config())
    set_there = {(section, key) for section, rows in given.items() for key in rows}
    assert set_there <= {
        *(("itsm", "url"), ("itsm", "authorization"), ("values", "item_id"), ("values", "service"))
    }
    (folder / "token").write_text("Basic abc", encoding="utf-8")
    toml = sample_config().replace("/etc/hd_itsm.token", str(folder / "token"))
    config = load(folder, toml, complete=True)
    bare = load_config("", {}, {}, complete=False)
    different = {key for key, value in flat(bare).items() if str(value) != str(flat(config)[key])}
    assert different == {"itsm.url"}


def test_with_every_line_uncommented_the_sample_loads(folder: Path) -> None:
    (folder / "token").write_text("Basic abc", encoding="utf-8")
    toml = COMMENTED.sub("", sample_config())
    tables = tomllib.loads(toml)
    for row in OPTIONS:
        assert row.key in tables[row.section], row.name
    (folder / "alert").write_text("https://chat.example.com/hook", encoding="utf-8")
    toml = toml.replace("/etc/hd_itsm.alert", str(folder / "alert"))
    toml = re.sub(r'"/etc/[\w./]+"', f'"{folder / "token"}"', toml)
    config = load(folder, toml, complete=True)
    bare = flat(load_config("", {}, {}, complete=False))
    for row in OPTIONS:
        if not row.option.sample:
            assert str(flat(config)[row.name]) == str(bare[row.name]), row.name


def test_init_writes_the_sample_for_the_owner_alone_and_never_over_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hd_itsm.main(["init", "new.toml"]) == 0
    assert (folder / "new.toml").read_text(encoding="utf-8") == sample_config()
    assert (folder / "new.toml").stat().st_mode & 0o777 == 0o600
    (folder / "new.toml").write_text("mine", encoding="utf-8")
    assert hd_itsm.main(["init", "new.toml"]) == 1
    assert (folder / "new.toml").read_text(encoding="utf-8") == "mine"
    assert "new.toml" in capsys.readouterr().err


# ---- Who wrote it ------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
SOMEBODY = 4242  # a user who is neither root nor we


def of_somebody(path: Path) -> None:
    """A file of somebody else's."""
    os.chown(path, SOMEBODY, SOMEBODY)


def linked_by_somebody(path: Path) -> None:
    """Somebody else's link to our file."""
    path.rename(path.with_name("real.toml"))
    path.symlink_to("real.toml")
    os.lchown(path, SOMEBODY, SOMEBODY)


def linked_to_somebody(path: Path) -> None:
    """Our link to somebody else's file."""
    linked_by_somebody(path)
    os.lchown(path, 0, 0)
    os.chown(path, SOMEBODY, SOMEBODY)


def in_a_folder_of_somebody(path: Path) -> None:
    """Our file where everybody may write, and somebody else may replace what others wrote."""
    path.parent.chmod(0o1777)
    os.chown(path.parent, SOMEBODY, SOMEBODY)


def open_to_the_group(path: Path) -> None:
    """A file that its group may write."""
    path.chmod(0o660)


def open_to_all(path: Path) -> None:
    """A file that everybody may write."""
    path.chmod(0o602)


def in_an_open_folder(path: Path) -> None:
    """Our file where everybody may replace it."""
    path.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(of_somebody, "belongs to user 4242", marks=needs_root),
        pytest.param(linked_by_somebody, "belongs to user 4242", marks=needs_root),
        pytest.param(linked_to_somebody, "belongs to user 4242", marks=needs_root),
        pytest.param(in_a_folder_of_somebody, "move it to a folder of your own", marks=needs_root),
        (open_to_the_group, "chmod go-w"),
        (open_to_all, "chmod go-w"),
        (in_an_open_folder, "move it to a folder of your own"),
    ],
)
def test_a_configuration_that_others_may_have_written_is_not_believed(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    (tmp_path / "folder").mkdir()
    with Itsm() as itsm:
        service = Service(tmp_path / "folder", settings(itsm.url))
        spoil(tmp_path / "folder" / "hd_itsm.toml")
        for command in (("check",), ("--config", "hd_itsm.toml", "status")):
            run = service.cli(*command)
            assert (run.code, run.out) == (2, "")
            assert "hd_itsm.toml is not believed" in run.err
            assert words in run.err
        assert itsm.requests == []


def test_a_configuration_of_ours_in_a_folder_like_tmp_is_believed(tmp_path: Path) -> None:
    with Itsm(reply(405)) as itsm:
        service = Service(tmp_path, settings(itsm.url))
        (tmp_path / "hd_itsm.toml").rename(tmp_path / "real.toml")
        (tmp_path / "hd_itsm.toml").symlink_to("real.toml")
        (tmp_path / "real.toml").chmod(0o644)
        tmp_path.chmod(0o1777)
        assert service.cli("check").code == 0
        assert itsm.requests


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[access]\nquery_token = true", "access.query_token"),
        ("[access]\ntoken_header = 'X-Key'", "access.token_header"),
        ("[retry]\nfirst = 10\nmax = 5", "retry.first"),
    ],
)
def test_what_means_nothing_beside_the_rest_is_a_warning(
    folder: Path, toml: str, key: str
) -> None:
    (folder / "hd_itsm.toml").write_text(toml)
    config = hd_itsm.load_config(str(folder / "hd_itsm.toml"), {}, {}, complete=False)
    assert [line.split(": ")[0] for line in config.warnings] == [key]


def test_a_constant_with_a_computed_name_is_a_mistake(folder: Path) -> None:
    found = problems(folder, "[values]\nticket_id = 'x'")
    assert [line.split(": ")[0] for line in found] == ["values.ticket_id"]
