"""A real helpdesk nobody here wrote: tickets live in django-helpdesk, its own webhooks reach us.

helpdesk_site/ runs it in a process of its own, served by Waitress, on an SQLite file that was
prepared once; people click in it as in a browser (forms, cookies, CSRF tokens); what it posts, when
and how, is its own code. The recipes for it and for the original's ITSM are used as they stand,
with only their blanks filled in and HTML left alone, as the head of the helpdesk's says.
"""

from __future__ import annotations

import http.cookiejar
import importlib.metadata
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from itsm import Itsm, Received, held, ok, silence
from service import HERE, QUICK, Service, until

try:
    VERSION = importlib.metadata.version("django-helpdesk")
except importlib.metadata.PackageNotFoundError:
    VERSION = ""

pytestmark = [
    pytest.mark.skipif(
        not VERSION, reason="django-helpdesk is not here: pip install '.[helpdesk]'"
    ),
    pytest.mark.timeout(120),
]

SITE = HERE / "helpdesk_site"
RECIPES = HERE / "recipes"
ENVIRON = {"HELPDESK_TOKEN": "demo-url-token", "ITSM_AUTHORIZATION": "Basic aXRzbTpzZWNyZXQ="}
SORA, DOHYUN, YUNA = "1", "2", "3"  # the agents' numbers in Django
REQUESTER = "jimin.park@example.co.kr"
SUBJECT = "3층 복합기 \"용지 걸림\" {writer} {x.__class__} %s 🖨 '007'"
CONTENTS = (
    "오늘 세 번째입니다.\r\n경로는 \\\\fs01\\temp\\scan, R&D 팀\r\n\r\n3 < 5, {{ 7 }}, <b>null</b>"
)
RESOLVED, CLOSED = "3", "4"
SEOUL = timezone(timedelta(hours=9))
PATIENCE = 3.0  # seconds that django-helpdesk waits for the answer to a webhook
GAVE_UP = "Timeout while sending new ticket webhook"  # what it prints after these


# ---- The helpdesk ------------------------------------------------------------------------------


class Page(NamedTuple):
    """What a click led to, redirects followed."""

    status: int
    url: str
    text: str


class Browser:
    """One person's: a cookie jar, and the CSRF token that each form wants."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._jar = http.cookiejar.CookieJar()
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._jar)
        ).open

    def get(self, path: str) -> Page:
        """A link."""
        return self._ask(urllib.request.Request(self.url + path))

    def send(self, path: str, **fields: str) -> Page:
        """A form."""
        if not any(cookie.name == "csrftoken" for cookie in self._jar):
            assert self.get("/login/").status == 200
        (token,) = (cookie.value for cookie in self._jar if cookie.name == "csrftoken")
        form = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token})
        return self._ask(urllib.request.Request(self.url + path, form.encode()))

    def _ask(self, request: urllib.request.Request) -> Page:
        try:
            with self._open(request, timeout=30) as answer:
                return Page(answer.status, answer.url, answer.read().decode())
        except urllib.error.HTTPError as problem:
            with problem:
                return Page(problem.code, problem.url, problem.read().decode())


def bare(**more: str) -> dict[str, str]:
    """An environment without proxies and without another's Django settings."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT", "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in kept if name in os.environ} | more


class Helpdesk:
    """django-helpdesk, running in `folder`, posting its webhooks to these addresses."""

    def __init__(self, folder: Path, prepared: Path, new: str, followup: str) -> None:
        self.folder = folder
        shutil.copy(prepared / "helpdesk.sqlite3", folder)
        self._log = folder / "helpdesk.log"
        environ = bare(
            HELPDESK_NEW_TICKET_WEBHOOK_URLS=new, HELPDESK_FOLLOWUP_WEBHOOK_URLS=followup
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SITE), "serve", str(folder)],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.url = until(self._serving, "the helpdesk does not serve", 60)
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        """What it printed; Django prints there what goes wrong."""
        return self._log.read_text("utf-8", "replace")

    def complaints(self) -> list[str]:
        """What it printed besides where it serves, and that it is busy itself."""
        usual = ("serving on ", "Task queue depth is ")
        return [line for line in self.log.splitlines() if not line.startswith(usual)]

    def _serving(self) -> str:
        assert self._process.poll() is None, self.log
        found = re.search(r"serving on (\S+)\n", self.log)
        return found[1] if found else ""

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait(10)

    def tickets(self) -> dict[str, tuple[str, str]]:
        """Ticket -> its subject and its status, as the helpdesk's file has them."""
        with closing(sqlite3.connect(self.folder / "helpdesk.sqlite3", timeout=10)) as file:
            rows = file.execute("SELECT id, title, status FROM helpdesk_ticket")
            return {str(row[0]): (row[1], str(row[2])) for row in rows}

    def opened_earlier(self, ticket: str, by: timedelta) -> None:
        """Puts back the clock of a ticket's first follow-up."""
        with closing(sqlite3.connect(self.folder / "helpdesk.sqlite3", timeout=10)) as file, file:
            rows = file.execute(
                "SELECT id, date FROM helpdesk_followup WHERE ticket_id = ?", (ticket,)
            ).fetchall()
            ((row, date),) = rows
            earlier = str(datetime.fromisoformat(date) - by)
            file.execute("UPDATE helpdesk_followup SET date = ? WHERE id = ?", (earlier, row))

    # What people do in it

    def log_in(self, name: str) -> Browser:
        """An agent at work."""
        browser = Browser(self.url)
        page = browser.send("/login/", username=name, password=name)
        assert (page.status, "/login/" in page.url) == (200, False), page
        return browser

    def opens(self, subject: str = SUBJECT) -> Page:
        """A requester without an account fills in the public form."""
        return Browser(self.url).send("/tickets/submit/", **opening(subject))


def opening(subject: str) -> dict[str, str]:
    """The form of a new ticket."""
    fields = {"queue": "1", "title": subject, "body": CONTENTS, "priority": "3"}
    return {**fields, "due_date": "", "submitter_email": REQUESTER}


def follow(
    agent: Browser, ticket: str, comment: str = "", subject: str = SUBJECT, **more: str
) -> None:
    """An agent's answer on a ticket's page: a comment, an owner, a new status."""
    form = {"queue": "1", "title": subject, "priority": "3", "comment": comment, "public": "1"}
    page = agent.send(f"/tickets/{ticket}/update/", **form, **more)
    assert (page.status, page.url) == (200, f"{agent.url}/tickets/{ticket}/"), page
    assert comment in page.text


Start = Callable[[str, str], Helpdesk]  # the addresses for new tickets, for follow-ups


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the helpdesk's file: migrated, one queue, three agents, no ticket."""
    folder = tmp_path_factory.mktemp("helpdesk")
    command = [sys.executable, str(SITE), "prepare", str(folder)]
    done = subprocess.run(command, env=bare(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def started(prepared: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the helpdesk; it ends with the test."""
    running: list[Helpdesk] = []

    def start(new: str, followup: str) -> Helpdesk:
        folder = tmp_path / "site"
        folder.mkdir()
        running.append(Helpdesk(folder, prepared, new, followup))
        return running[-1]

    yield start
    for one in running:
        one.close()


# ---- The sidecar -------------------------------------------------------------------------------


def recipes(itsm: Itsm, token_in_query: bool = True) -> str:
    """Both recipes, their blanks filled in."""
    text = "\n".join(
        (RECIPES / name).read_text("utf-8")
        for name in ("helpdesk-django-helpdesk.toml", "itsm-original.toml")
    )
    blanks = {
        "https://itsm.example.com/api/requests": itsm.url,
        '# "홍길동" = "gdhong"': f'"{DOHYUN}" = "dohyun"',
        '"{contents|or:-|html|or:-}"': '"{contents|or:-}"',
        "\nquery_token = true\n": f"\nquery_token = {str(token_in_query).lower()}\n",
    }
    for blank, filled in blanks.items():
        assert text.count(blank) == 1, blank
        text = text.replace(blank, filled)
    return f"""{text}{QUICK}[time]
zone = "+09:00"
"""


def webhook(service: Service, path: str) -> str:
    """An address with the token in its query, as the recipe has it."""
    return f"{service.url}/{path}?token={ENVIRON['HELPDESK_TOKEN']}"


def settled(service: Service, itsm: Itsm, requests: int) -> list[tuple[str, str]]:
    """Kind and state of all events, oldest first, once so many requests came and none is due."""
    itsm.wait_for(requests, 20)
    until(lambda: not service.events("--state", "pending"), "an event stays pending", 20)
    return [(row["kind"] or "", row["state"]) for row in reversed(service.events())]


def in_days(service: Service, event: int) -> str:
    """The expected date of what came with this event."""
    received = datetime.fromisoformat(service.show(event)["received"])
    return str(received.astimezone(SEOUL).date() + timedelta(days=7))


def new_request(subject: str, date: str) -> dict[str, Any]:
    """What the ITSM must get for a ticket's opening."""
    return {
        "code": "000",
        "item_id": "ITEM-0001",
        "service": "SVC-0001",
        "req_user_id": REQUESTER,
        "reg_user_id": REQUESTER,
        "request_purpose": "IT",
        "priority": 2,
        "end_hop_date": date,
        "title": subject,
        "contents": CONTENTS,
        "after_improvement": "없음",
    }


def assign_request(request_id: str, technician: str, date: str) -> dict[str, Any]:
    """What the ITSM must get for an assignment."""
    return {
        "code": "020",
        "request_id": request_id,
        "rcv_user_id": technician,
        "trt_user_id": technician,
        "end_expect_date": date,
        "comment": "요청이 접수되었습니다.",
    }


def complete_request(request_id: str, hours: str) -> dict[str, Any]:
    """What the ITSM must get for a completion."""
    return {
        "code": "030",
        "request_id": request_id,
        "work_qty": hours,
        "comment": "처리가 완료되었습니다.",
    }


def bodies(received: list[Received]) -> list[Any]:
    """What came, each under a key of its own and with the credential."""
    assert len({one.key for one in received}) == len(received)
    assert {one.headers["Authorization"] for one in received} == {ENVIRON["ITSM_AUTHORIZATION"]}
    return [one.json() for one in received]


# ---- Tests -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["in the query", "in Basic"])
def test_a_ticket_opened_assigned_and_closed_gives_three_right_requests_whatever_else_is_clicked(
    secret: str, started: Start, tmp_path: Path
) -> None:
    basic = secret == "in Basic"
    with Itsm() as itsm:
        with Service(tmp_path, recipes(itsm, not basic), ENVIRON) as service:
            new, followup = (webhook(service, path) for path in ("new", "followup"))
            if basic:
                token = ENVIRON["HELPDESK_TOKEN"]
                new = f"http://helpdesk:{token}@127.0.0.1:{service.port}/new"
                followup = new.removesuffix("new") + "followup"
            helpdesk = started(new, followup)
            page = helpdesk.opens()
            assert page.status == 200
            assert "/view/?ticket=IT-1&" in page.url
            helpdesk.opened_earlier("1", timedelta(hours=5, minutes=30))
            sora, dohyun = helpdesk.log_in("sora.kim"), helpdesk.log_in("dohyun.lee")
            follow(sora, "1", "사진을 첨부해 주실 수 있나요?")  # nobody is assigned yet
            follow(sora, "1", owner=DOHYUN)
            follow(dohyun, "1", "부품을 주문했습니다.")
            follow(sora, "1", "담당자는 그대로입니다.", owner=DOHYUN)
            assert dohyun.get("/tickets/1/?take").status == 200  # what is his already
            follow(dohyun, "1", "롤러를 교체했습니다.", new_status=RESOLVED)
            follow(dohyun, "1", "종료합니다.", new_status=CLOSED)
            follow(sora, "1", "감사합니다.", new_status=CLOSED)
            assert settled(service, itsm, 3) == [
                ("new", "delivered"),
                ("", "ignored"),  # no rule
                ("assign", "delivered"),
                ("assign", "ignored"),
                ("assign", "ignored"),
                ("assign", "ignored"),
                ("complete", "delivered"),
                ("complete", "ignored"),
                ("complete", "ignored"),
            ]
            assert helpdesk.tickets() == {"1": (SUBJECT, CLOSED)}
            assert service.mappings() == {"1": "R-1"}
            dates = {number: in_days(service, number) for number in (1, 3)}
        assert bodies(itsm.requests) == [
            new_request(SUBJECT, dates[1]),
            assign_request("R-1", "dohyun", dates[3]),
            complete_request("R-1", "5"),
        ]
        assert helpdesk.complaints() == []


@pytest.mark.slow
def test_an_owner_named_at_the_opening_is_told_where_the_opening_goes_to_both_addresses(
    started: Start, tmp_path: Path
) -> None:
    with Itsm() as itsm, Service(tmp_path, recipes(itsm), ENVIRON) as service:
        new, followup = webhook(service, "new"), webhook(service, "followup")
        helpdesk = started(f"{new},{followup}", followup)
        assert helpdesk.opens("아무도 맡지 않은 일").status == 200
        sora = helpdesk.log_in("sora.kim")
        page = sora.send("/tickets/submit/", **opening(SUBJECT), assigned_to=DOHYUN)
        assert page.url == f"{sora.url}/tickets/2/"
        follow(sora, "2", "휴가 중이라 대신 맡습니다.", owner=YUNA)
        follow(sora, "2", "끝났습니다.", new_status=CLOSED)
        assert settled(service, itsm, 5) == [
            ("new", "delivered"),
            ("", "ignored"),  # opened without an owner
            ("new", "delivered"),
            ("assign", "delivered"),
            ("assign", "delivered"),
            ("complete", "delivered"),
        ]
        known = service.mappings()
        dates = {number: in_days(service, number) for number in range(1, 6)}
        came = bodies(itsm.requests)
        assert [one for one in came if one.get("request_id", known["2"]) == known["2"]][-3:] == [
            assign_request(known["2"], "dohyun", dates[4]),
            assign_request(known["2"], YUNA, dates[5]),  # not in the table: as Django numbers her
            complete_request(known["2"], "0"),
        ]
        assert came[:1] == [new_request("아무도 맡지 않은 일", dates[1])]
        assert new_request(SUBJECT, dates[3]) in came
        assert len(came) == 5


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refuses connections", "does not answer"])
def test_while_the_itsm_is_down_the_helpdesk_works_on_and_later_nothing_is_missing(
    trouble: str, started: Start, tmp_path: Path
) -> None:
    up = threading.Event()
    with Itsm(held(up, ok())) as itsm, Service(tmp_path, recipes(itsm), ENVIRON) as service:
        if trouble == "refuses connections":
            itsm.stop()
        helpdesk = started(webhook(service, "new"), webhook(service, "followup"))
        assert helpdesk.opens().status == 200
        sora = helpdesk.log_in("sora.kim")
        follow(sora, "1", owner=DOHYUN)
        follow(sora, "1", "롤러를 교체했습니다.", new_status=CLOSED)
        # each webhook had its answer in time: the helpdesk would have printed GAVE_UP
        assert helpdesk.complaints() == []
        assert helpdesk.tickets() == {"1": (SUBJECT, CLOSED)}
        events = [(row["kind"], row["state"]) for row in reversed(service.events())]
        assert events == [("new", "pending"), ("assign", "pending"), ("complete", "pending")]
        assert itsm.created == []
        up.set()
        itsm.start()
        assert {state for _, state in settled(service, itsm, 3)} == {"delivered"}
        assert bodies(itsm.requests) == [
            new_request(SUBJECT, in_days(service, 1)),
            assign_request("R-1", "dohyun", in_days(service, 2)),
            complete_request("R-1", "0"),
        ]


@pytest.mark.slow
def test_control_a_webhook_that_gets_no_answer_in_time_is_given_up_and_said_so(
    started: Start,
) -> None:
    with Itsm(silence()) as silent:
        helpdesk = started(f"{silent.url}/new", "")
        began = monotonic()
        assert helpdesk.opens().status == 200
        assert monotonic() - began >= PATIENCE
        assert len(silent.requests) == 1
        assert [line for line in helpdesk.complaints() if GAVE_UP in line]


def test_what_the_helpdesk_never_posted_is_found_by_comparing_its_list(
    started: Start, tmp_path: Path
) -> None:
    with Itsm() as itsm, Service(tmp_path, recipes(itsm), ENVIRON) as service:
        helpdesk = started(webhook(service, "new"), webhook(service, "followup"))
        for _ in range(2):
            assert helpdesk.opens().status == 200
        sora = helpdesk.log_in("sora.kim")
        follow(sora, "2", "끝났습니다.", new_status=CLOSED)
        closed = sora.send("/tickets/update/", ticket_id="1", action="close")  # in the list
        assert closed.status == 200
        kinds = [("new", "delivered"), ("new", "delivered"), ("complete", "delivered")]
        assert settled(service, itsm, 3) == kinds  # a click in the list posts nothing
        assert service.stop() == 0
        assert helpdesk.opens("아무도 듣지 않을 때").status == 500  # and yet the ticket is there
        states = {CLOSED: "closed", "1": "open"}
        rows = [f"{one},{states[status]}" for one, (_, status) in helpdesk.tickets().items()]
        assert rows == ["1,closed", "2,closed", "3,open"]
        (tmp_path / "tickets.csv").write_text("\n".join(["ticket_id,state", *rows]), "utf-8")
        run = service.cli("reconcile", "tickets.csv", "--json")
        assert run.code == 1
        found = run.json()
        assert [one["ticket"] for one in found["never_seen"]] == ["3"]
        assert [one["ticket"] for one in found["half_sent"]] == ["1"]
        assert found["without_request_id"] == []
        assert len(itsm.requests) == 3
