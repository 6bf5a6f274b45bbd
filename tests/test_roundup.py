"""A real ITSM nobody here wrote: Roundup opens, assigns and closes what its recipe sends.

roundup_site.py runs it in a process of its own, on an SQLite tracker that was prepared once. Between it
and the sidecar stands a relay on loopback, which can lose an answer or let somebody else's change
come first; what stands in Roundup is read as its administrator, over its own REST.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from itsm import Received
from realitsm import RealItsm, relay
from service import HERE, QUICK, Service, assignment, opening, until
from service import closing as completion

try:
    VERSION = importlib.metadata.version("roundup")
except importlib.metadata.PackageNotFoundError:
    VERSION = ""

pytestmark = pytest.mark.skipif(not VERSION, reason="Roundup is not here: pip install '.[itsm]'")

SITE = HERE / "roundup_site.py"
RECIPE = HERE / "recipes" / "itsm-roundup.toml"
PREFIX = "https://itsm.example.com"
HD_ITSM = "3"  # its number in Roundup
SUBJECT = '3층 복합기 "용지 걸림" {writer} [x] 100% *'
CONTENTS = "오늘 세 번째입니다.<br>경로는 \\\\fs01\\temp, R&amp;D 팀"


def login(name: str, password: str = "") -> str:
    """What the header Authorization says of a person of the tracker."""
    return "Basic " + base64.b64encode(f"{name}:{password or name}".encode()).decode()


class Issue(NamedTuple):
    """An issue as Roundup has it."""

    title: str
    status: str
    assigned: str
    text: str


class Roundup(RealItsm):
    """A tracker in `folder`, which takes itself to be reached at `address`."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        command = [sys.executable, str(SITE), "serve", str(folder), address]
        super().__init__(folder / "roundup.log", command, os.environ)

    def administer(self, method: str, path: str, **attributes: str) -> Any:
        """What its administrator asks or changes."""
        headers = {
            "Authorization": login("admin"),
            "X-Requested-With": "rest",
            "Origin": self.address,
            "Host": self.address.partition("//")[2],
            "Content-Type": "application/json",
        }
        if attributes:
            attributes["@etag"] = self.administer("GET", path)["@etag"]
        body = json.dumps(attributes).encode() if attributes else None
        status, _, said = self.ask(method, f"/rest/data/{path}", headers, body)
        assert status == 200, said
        return json.loads(said)["data"]

    def issues(self) -> dict[str, Issue]:
        """All issues there are."""
        return {
            row["id"]: self.issue(row["id"])
            for row in self.administer("GET", "issue")["collection"]
        }

    def issue(self, number: str) -> Issue:
        """An issue, with names instead of numbers."""
        row = self.administer("GET", f"issue/{number}")["attributes"]
        names = {
            key: self.administer("GET", f"{table}/{row[key]['id']}")["attributes"][name]
            if row[key]
            else ""
            for key, table, name in (
                ("status", "status", "name"),
                ("assignedto", "user", "username"),
            )
        }
        (message,) = row["messages"]
        text = self.administer("GET", f"msg/{message['id']}/content")["data"]
        return Issue(row["title"], names["status"], names["assignedto"], text)


class World(NamedTuple):
    """The sidecar with the recipe as it stands, and Roundup."""

    service: Service
    roundup: Roundup
    text: str  # the configuration


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tracker: three people, no issue."""
    folder = tmp_path_factory.mktemp("roundup") / "tracker"
    folder.mkdir()
    command = [sys.executable, str(SITE), "prepare", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def world(prepared: Path, tmp_path: Path) -> Iterator[World]:
    """All of it, running."""
    with relay(lambda: roundup) as between:
        address = f"http://127.0.0.1:{between.port}"
        roundup = Roundup(Path(shutil.copytree(prepared, tmp_path / "tracker")), address)
        secret = tmp_path / "authorization"
        secret.write_text(login("hd_itsm"))
        text = RECIPE.read_text("utf-8").replace(PREFIX, address).replace('"60s"', '"0s"') + QUICK
        text = text.replace('{ env = "ITSM_AUTHORIZATION" }', f'{{ file = "{secret}" }}')
        with closing(roundup), Service(tmp_path, text, {}) as service:
            yield World(service, roundup, text)


def test_roundup_opens_assigns_and_closes_and_an_assignment_afterwards_opens_nothing(
    world: World,
) -> None:
    service, roundup = world.service, world.roundup
    service.post("itsm_new", opening("4182", subject=SUBJECT, contents=CONTENTS))
    service.drained()
    text = "오늘 세 번째입니다.\n경로는 \\\\fs01\\temp, R&D 팀\n\nFrom jimin.park, category OA기기"
    expected = Issue(f"{SUBJECT} [hd 4182]", "unread", "", text)
    assert roundup.issues() == {"1": expected}
    for event, more in (
        (assignment("4182", "dlee"), {"assigned": "dlee"}),
        (completion("4182"), {"status": "resolved"}),
        (assignment("4182", "sora"), {"assigned": "sora"}),
    ):
        service.post("itsm_com" if "data" in event else "itsm_ass", event)
        service.drained()
        expected = expected._replace(**more)
        assert roundup.issues() == {"1": expected}
    assert service.mappings() == {"4182": "1"}
    assert {row["state"] for row in service.events()} == {"delivered"}


def test_what_a_dead_roundup_missed_reaches_it_once_it_lives_again(world: World) -> None:
    service, roundup = world.service, world.roundup
    service.post("itsm_new", opening("1"))
    service.drained()
    roundup.close()
    for number in ("2", "3"):
        service.post("itsm_new", opening(number))
        service.post("itsm_com", completion(number))
    service.post("itsm_ass", assignment("1", "dlee"))
    until(lambda: service.status()["itsm"]["state"] == "down", "Roundup is missed")
    roundup.start()
    service.drained()
    issues = roundup.issues().values()
    assert sorted((issue.status, issue.assigned) for issue in issues) == [
        ("resolved", ""),
        ("resolved", ""),
        ("unread", "dlee"),
    ]


@pytest.mark.parametrize("ticket", ["43786", "18139|1", "!*", "-1", "a b,c", "^x$", "x%_"])
def test_a_creation_whose_answer_is_lost_is_recognised_among_its_likes_and_not_made_again(
    ticket: str, world: World
) -> None:
    service, roundup = world.service, world.roundup
    others = [f"{ticket}2", f"1{ticket}", "18139", "1"]
    for other in others:
        service.post("itsm_new", opening(other, subject="same"))
    service.drained()
    roundup.lose_answers("POST", 1, reached=True)
    service.post("itsm_new", opening(ticket, subject="same"))
    service.drained()
    titles = {number: issue.title for number, issue in roundup.issues().items()}
    assert sorted(titles.values()) == sorted(f"same [hd {name}]" for name in (*others, ticket))
    assert titles[service.mappings()[ticket]] == f"same [hd {ticket}]"


def test_a_creation_that_never_arrived_is_made_though_another_ticket_s_number_holds_its_own(
    world: World,
) -> None:
    service, roundup = world.service, world.roundup
    service.post("itsm_new", opening("437862"))
    service.drained()
    roundup.lose_answers("POST", 1, reached=False)
    service.post("itsm_new", opening("43786"))
    service.drained()
    assert service.mappings() == {"437862": "1", "43786": "2"}
    assert len(roundup.issues()) == 2


def test_a_change_that_somebody_was_faster_with_is_made_to_what_stands_there_then(
    world: World,
) -> None:
    service, roundup = world.service, world.roundup
    service.post("itsm_new", opening("4182"))
    service.drained()
    left = ["sora"]

    def faster(received: Received) -> None:
        if left:
            roundup.administer("PUT", "issue/1", assignedto=left.pop())

    roundup.between["PUT"] = faster
    service.post("itsm_ass", assignment("4182", "dlee"))
    service.drained()
    assert roundup.issue("1").assigned == "dlee"
    event = service.show(2)
    assert [row["outcome"] for row in event["attempts"] if not row.get("asked")] == [
        "later",
        "delivered",
    ]
    assert "412" in event["attempts"][1]["reason"]


def test_what_roundup_refuses_is_failed_with_its_words_and_goes_out_when_put_right(
    world: World,
) -> None:
    service, roundup = world.service, world.roundup
    service.post("itsm_new", opening("4182"))
    service.post("itsm_ass", assignment("4182", "nobody"))
    service.drained()
    event = service.show(2)
    assert event["state"] == "failed"
    assert "'nobody' is not a user" in event["reason"]
    service.configure(world.text.replace('"*" = "{}"', '"*" = "{}"\n"nobody" = "dlee"'))
    service.reload()
    assert service.cli("retry", 2).code == 0
    service.drained()
    assert roundup.issue("1").assigned == "dlee"


def test_a_password_that_roundup_refuses_stops_everything_and_is_told_until_it_is_right(
    world: World,
) -> None:
    service, roundup = world.service, world.roundup
    roundup.administer("PUT", f"user/{HD_ITSM}", password="another")
    service.post("itsm_new", opening("4182"))
    until(lambda: "401" in service.status()["itsm"]["reason"], "the refusal is told")
    assert service.events()[0]["state"] == "pending"
    (service.folder / "authorization").write_text(login("hd_itsm", "another"))
    service.drained()
    assert [issue.status for issue in roundup.issues().values()] == ["unread"]
    for password in ("hd_itsm", "another"):
        assert login("hd_itsm", password).split()[1] not in service.log
