"""A real ITSM nobody here wrote: Redmine opens, assigns and closes what its recipe sends, or refuses.

Redmine is Debian's (packages redmine and redmine-sqlite), run as installed on a copy of the file
that its package made. What stands in it is read over its own REST.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from realitsm import RealItsm, relay
from service import HERE, QUICK, Service, assignment, opening, ticket
from service import closing as completion

HOME = Path("/usr/share/redmine")
MADE = Path("/var/lib/dbconfig-common/sqlite3/redmine/instances/default/redmine_default")
WEBRICK = "/usr/share/rubygems-integration/all/gems"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.access(MADE, os.R_OK) and shutil.which("ruby")),
        reason="Redmine is not here: apt-get install redmine redmine-sqlite (Debian 12)",
    ),
]

SITE = HERE / "redmine_site"
RECIPE = HERE / "recipes" / "itsm-redmine.toml"
PREFIX = "https://itsm.example.com"
NEW, CLOSED = "New", "Closed"


class Redmine(RealItsm):
    """Redmine on a file in `folder`."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(MADE, folder / "redmine.sqlite3")
        url = f"sqlite3:{folder}/redmine.sqlite3"
        environ = {**os.environ, "RAILS_ENV": "production", "DATABASE_URL": url}
        environ["X_DEBIAN_SITEID"] = "default"
        done = subprocess.run(
            ["bin/rails", "runner", str(SITE / "prepare.rb")],
            cwd=HOME,
            env=environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        known = json.loads(done.stdout.splitlines()[-1])
        self.fields: dict[str, int] = known["fields"]
        self.users: dict[str, dict[str, Any]] = known["users"]
        webrick = next(iter(sorted(Path(WEBRICK).glob("webrick-*"))))
        command = ["ruby", "-C", str(HOME), "-I", f"{webrick}/lib", str(SITE / "serve.rb")]
        super().__init__(folder / "redmine.log", command, environ)

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        """What hd_itsm's user asks or changes by himself."""
        headers = {
            "X-Redmine-API-Key": self.users["hd_itsm"]["key"],
            "Content-Type": "application/json",
        }
        data = None if body is None else json.dumps(body).encode()
        status, _, said = self.ask(method, path, headers, data)
        assert status < 300, said
        return json.loads(said) if said.strip() else None

    def issue(self, number: str) -> dict[str, Any]:
        """An issue."""
        found = self.rest("GET", f"/issues/{number}.json")["issue"]
        assert isinstance(found, dict)
        return found

    def stands(self, number: str) -> tuple[str, str]:
        """An issue's status and assignee."""
        issue = self.issue(number)
        return issue["status"]["name"], issue.get("assigned_to", {}).get("name", "")

    def of_ticket(self, name: str) -> list[str]:
        """The issues of a ticket, by the field that holds its number."""
        rows = self.rest("GET", "/issues.json?status_id=*&limit=100")["issues"]
        return [
            str(row["id"])
            for row in rows
            if name in [field["value"] for field in row["custom_fields"]]
        ]


@pytest.fixture(scope="module")
def redmine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redmine]:
    with closing(Redmine(tmp_path_factory.mktemp("redmine"))) as redmine:
        yield redmine


class Sidecar(NamedTuple):
    """The sidecar, and the secret of who it is in Redmine."""

    service: Service
    secret: Path


Start = Callable[..., Sidecar]


@pytest.fixture
def start(redmine: Redmine, tmp_path: Path) -> Iterator[Start]:
    """Starts the sidecar with the recipe as it stands, its blanks filled in."""
    services: list[Service] = []
    with relay(lambda: redmine) as between:

        def started(who: str = "hd_itsm", field: str = "filter") -> Sidecar:
            secret = tmp_path / "key"
            secret.write_text(redmine.users[who]["key"])
            text = RECIPE.read_text("utf-8").replace('"60s"', '"0s"')
            text = text.replace(PREFIX, f"http://127.0.0.1:{between.port}")
            text = text.replace('{ env = "REDMINE_KEY" }', f'{{ file = "{secret}" }}')
            for five in ("cf_{}", "id={}]", "{{ id = {},"):
                number = str(redmine.fields[field])
                text = text.replace(five.format(5), five.format(number))
            people = "".join(f'"{name}" = {user["id"]}\n' for name, user in redmine.users.items())
            text = re.sub(r'(\[tables.users\]\n)(".*\n)+', rf"\1{people}", text)
            services.append(Service(tmp_path, text + QUICK, {}))
            services[-1].start()
            return Sidecar(services[-1], secret)

        yield started
        for service in services:
            service.stop()
        redmine.between.clear()


def opened(service: Service, name: str) -> str:
    """The issue of a new ticket."""
    service.post("itsm_new", opening(name))
    service.drained()
    return service.mappings()[name]


def test_redmine_opens_assigns_and_closes_and_an_assignment_afterwards_opens_nothing(
    start: Start, redmine: Redmine
) -> None:
    service, name = start().service, ticket()
    number = opened(service, name)
    issue = redmine.issue(number)
    assert issue["subject"] == f"제목 {name}"
    assert issue["description"].startswith("용지가 걸립니다.")
    assert redmine.stands(number) == (NEW, "")
    for hook, event, stands in (
        ("itsm_ass", assignment(name, "dlee"), (NEW, "dlee X")),
        ("itsm_com", completion(name), (CLOSED, "dlee X")),
        ("itsm_ass", assignment(name, "sora"), (CLOSED, "sora X")),
    ):
        service.post(hook, event)
        service.drained()
        assert redmine.stands(number) == stands
    assert {row["state"] for row in service.events()} == {"delivered"}


def test_what_redmine_answers_204_to_and_leaves_out_is_failed_until_it_may_be_done(
    start: Start, redmine: Redmine
) -> None:
    (service, secret), name = start("reporter"), ticket()
    number = opened(service, name)
    service.post("itsm_ass", assignment(name, "dlee"))
    service.post("itsm_com", completion(name))
    service.drained()
    failed = service.events("--state", "failed")
    assert len(failed) == 2
    assert all("answered 204, but it was not done" in row["reason"] for row in failed)
    assert redmine.stands(number) == (NEW, "")
    secret.write_text(redmine.users["hd_itsm"]["key"])
    service.restart()
    assert service.cli("retry", "--state", "failed").code == 0
    service.drained()
    assert redmine.stands(number) == (CLOSED, "dlee X")


def test_an_issue_that_another_blocks_is_not_closed_and_says_so(
    start: Start, redmine: Redmine
) -> None:
    service, name = start().service, ticket()
    number, other = opened(service, name), opened(service, ticket())
    relation = {"relation": {"issue_to_id": number, "relation_type": "blocks"}}
    redmine.rest("POST", f"/issues/{other}/relations.json", relation)
    service.post("itsm_com", completion(name))
    service.drained()
    assert redmine.stands(number) == (NEW, "")
    (row,) = service.events("--state", "failed")
    assert "it was not done: issue.status.id is" in row["reason"]


@pytest.mark.parametrize("field", ["filter", "none"])
@pytest.mark.parametrize("odd", ["{}", "{}|1", "!{}", "!*{}", "><{}|2", "~{}", "a b,{}"])
@pytest.mark.parametrize("reached", [True, False])
def test_a_creation_whose_answer_is_lost_is_made_once_whatever_the_question_brings(
    reached: bool, odd: str, field: str, start: Start, redmine: Redmine
) -> None:
    service, plain = start(field=field).service, ticket()
    name = odd.format(plain)
    for other in (f"{plain}2", f"1{plain}"):
        opened(service, other)
    redmine.lose_answers("POST", 1, reached)
    number = opened(service, name)
    assert redmine.of_ticket(name) == [number]
