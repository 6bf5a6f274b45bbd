"""The page without a browser: who may see it, what it says, and what its buttons do.

Read it downwards: a page as a tree, and what is wrong with one; the service with events in every
state and hostile text in every field; the door; the buttons; the sentence of the band; finding
events; the colours; a long queue.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hd_itsm
from crowd import multiply
from itsm import Answer, Headers, Itsm, Received, delay, ok, reply, unauthorized
from service import (
    NO_HEADERS,
    NOTE,
    NOTED,
    Reply,
    Service,
    assignment,
    opening,
    settings,
    ticket,
    until,
)

# ---- A page as a tree --------------------------------------------------------------------------

VOID = {"meta", "input", "img", "br", "hr", "link", "base", "embed", "source"}
KNOWN = set(
    re.findall(
        r"\w+",
        "html head meta title style script body header main h1 h2 h3 p a form label input select"
        " option button div span strong small em code table caption thead tbody tr th td ul ol li"
        " dl dt dd details summary pre time svg g rect text path line circle nav section footer mark",
    )
)


@dataclass
class Node:
    """An element: its attributes, its children in order, text among them."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)
    above: Node | None = None

    def all(self, tag: str = "", **wanted: str) -> list[Node]:
        """Every element below of this tag with these attributes, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                fits = all(child.attributes.get(key) == value for key, value in wanted.items())
                if tag in ("", child.tag) and fits:
                    found.append(child)
                found += child.all(tag, **wanted)
        return found

    @property
    def raw(self) -> str:
        """All text below, as it stands."""
        return "".join(one if isinstance(one, str) else one.raw for one in self.children)

    @property
    def words(self) -> str:
        """All text below, in single spaces."""
        return " ".join(self.raw.split())

    def inside(self, tag: str) -> bool:
        """Whether an element of this tag is above."""
        return self.above is not None and (self.above.tag == tag or self.above.inside(tag))


class _Reader(HTMLParser):
    """Builds the tree, and notes what does not close as it opened."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.top = self.at = Node("")
        self.unbalanced: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, above=self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_endtag(self, tag: str) -> None:
        if self.at.tag != tag or self.at.above is None:
            self.unbalanced.append(f"</{tag}> closes <{self.at.tag}>")
            return
        self.at = self.at.above

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


class Cause:
    """A reason for which tickets need a person, as the first page shows it."""

    def __init__(self, node: Node) -> None:
        head, *rows = node.all("tr")
        self.state = head.all("mark")[0].words.split()[-1]
        self.words = head.words
        self.button = [button.words for button in head.all("button")]
        self.rows = [row for row in rows if len(row.all("td")) == 4]
        self.more = [row.words for row in rows if len(row.all("td")) == 1]

    @property
    def events(self) -> list[int]:
        """The numbers of the events that are named."""
        hrefs = [link.attributes["href"] for row in self.rows for link in row.all("a")]
        return [int(where.removeprefix("/events/")) for where in hrefs if "/events/" in where]

    def buttons(self, row: int) -> list[str]:
        """The words of the buttons of a row."""
        return [button.words for button in self.rows[row].all("button")]


class Page:
    """An answer that must be a page."""

    def __init__(self, answer: Reply) -> None:
        assert answer.headers.get("Content-Type") == "text/html; charset=utf-8", answer
        self.answer, self.status = answer, answer.status
        reader = _Reader()
        reader.feed(answer.body.decode("utf-8"))
        reader.close()
        self.top, self.unbalanced = reader.top, reader.unbalanced

    def all(self, tag: str = "", **wanted: str) -> list[Node]:
        """As Node.all."""
        return self.top.all(tag, **wanted)

    @property
    def main(self) -> Node:
        """What is not the head of every page."""
        return self.all("main")[0]

    @property
    def words(self) -> str:
        """What a person reads."""
        return self.main.words

    @property
    def headline(self) -> str:
        """How it is, in a few words."""
        return self.all("h1")[0].words

    @property
    def band(self) -> str:
        """How it is: the headline, the sentence under it, the facts."""
        return self.main.all("section")[0].words

    @property
    def sentence(self) -> str:
        """What stands under the headline."""
        return self.main.all("section")[0].all("p")[0].words

    @property
    def facts(self) -> dict[str, str]:
        """What always stands there, by name."""
        rows = self.main.all("section")[0].all("dl")[0].all("div")
        return {row.all("dt")[0].words: row.all("dd")[0].words for row in rows}

    def section(self, title: str) -> list[Node]:
        """The <section> with this heading, if it is there."""
        return [
            node
            for node in self.main.all("section")
            if any(title in one.words for one in (*node.all("h1"), *node.all("h2")))
        ][:1]

    @property
    def causes(self) -> list[Cause]:
        """What needs a person, from top to bottom."""
        return [
            Cause(part) for node in self.section("What needs you") for part in node.all("tbody")
        ]

    def offers(self) -> list[str]:
        """The actions of the page's buttons, in their order."""
        actions = [form.attributes.get("action", "") for form in self.all("form")]
        return [one.removeprefix("/confirm/") for one in actions if one.startswith("/confirm/")]

    def events(self) -> list[int]:
        """The numbers in the table of the latest events, from top to bottom."""
        links = [link for node in self.all("section", id="events") for link in node.all("a")]
        found = [re.fullmatch("/events/([0-9]+)", one.attributes["href"]) for one in links]
        return [int(one[1]) for one in found if one]


# ---- What is wrong with a page -----------------------------------------------------------------


def flaws(page: Page) -> list[str]:
    """What a screen reader, a keyboard or the policy would stumble over."""
    found = [*page.unbalanced]
    for name, check in CHECKS.items():
        found += [f"{name}: {one}" for one in check(page)]
    return found


def _frame(page: Page) -> Iterator[str]:
    top = page.all("html")
    if len(top) != 1 or not top[0].attributes.get("lang"):
        yield "no language"
    if len(page.all("h1")) != 1:
        yield f"{len(page.all('h1'))} h1"
    if len(page.all("main")) != 1:
        yield "not one main"
    if not page.all("title") or not page.all("title")[0].words:
        yield "no title"
    if not any("width=device-width" in one.attributes.get("content", "") for one in page.all()):
        yield "no viewport for phones"


def _headings(page: Page) -> Iterator[str]:
    last = 0
    for node in page.all():
        if re.fullmatch("h[1-6]", node.tag):
            level = int(node.tag[1])
            if level > last + 1:
                yield f"<{node.tag}> {node.words} follows <h{last}>"
            if not node.words:
                yield f"an empty <{node.tag}>"
            last = level


def _controls(page: Page) -> Iterator[str]:
    named = {node.attributes.get("for") for node in page.all("label")}
    for node in page.all():
        hidden = node.attributes.get("type") == "hidden"
        if node.tag in ("input", "select", "textarea") and not hidden:
            labelled = node.inside("label") or "aria-label" in node.attributes
            if not labelled and node.attributes.get("id", "-") not in named:
                yield f"no label for {node.attributes}"
        if node.tag in ("button", "summary", "label") and not node.words:
            yield f"a <{node.tag}> without a word"
        if node.tag == "a" and not (node.words and node.attributes.get("href")):
            yield f"a link without a word or an address: {node.attributes}"


def _tables(page: Page) -> Iterator[str]:
    for table in page.all("table"):
        heads = table.all("th")
        scopes = {one.attributes.get("scope") for one in heads}
        if not heads or scopes - {"col", "row", "rowgroup"}:
            yield f"a <th> without scope in {table.words[:60]}"
        width = len([one for one in heads if one.inside("thead")])
        for row in table.all("tr"):
            cells = [*row.all("td"), *row.all("th")]
            spanned = sum(int(cell.attributes.get("colspan", "1")) for cell in cells)
            if cells and not row.inside("thead") and spanned != width:
                yield f"a row of {spanned} cells under {width} heads"


def _foreign(page: Page) -> Iterator[str]:
    for node in page.all():
        if node.tag not in KNOWN:
            yield f"<{node.tag}> is none of ours"
        for name, value in node.attributes.items():
            if name.startswith("on") or name == "style":
                yield f"inline {name}"
            outside = re.match("[a-z]+:|//", value.strip().lower())
            if name in ("href", "src", "action", "formaction") and outside:
                yield f"{name} leads out: {value}"


def _forms(page: Page) -> Iterator[str]:
    for form in page.all("form"):
        method = form.attributes.get("method", "").lower()
        if method not in ("get", "post"):
            yield f"method {method!r}"
        sealed = form.all("input", name="seal")
        if (method == "post") != bool(sealed and sealed[0].attributes.get("value")):
            yield f"{form.attributes}: a seal belongs to POST, and there alone"


def _ids(page: Page) -> Iterator[str]:
    names = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    yield from {f"id {name} is there twice" for name in names if names.count(name) > 1}
    for node in page.all():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            for one in node.attributes.get(name, "").split():
                if one not in names:
                    yield f"{name} means no id: {one}"


def _pictures(page: Page) -> Iterator[str]:
    for picture in page.all("svg"):
        named = {"aria-label", "aria-labelledby"} & set(picture.attributes)
        if picture.attributes.get("role") != "img" or not named:
            yield "a picture without a name"


def _policy(page: Page) -> Iterator[str]:
    headers = page.answer.headers
    rows = [one.split() for one in headers.get("Content-Security-Policy").split(";")]
    policy = {row[0]: set(row[1:]) for row in rows if row}
    for name in ("default-src", "frame-ancestors", "base-uri"):
        if policy.get(name) != {"'none'"}:
            yield f"{name} is {policy.get(name)}"
    if not policy.get("form-action", {"*"}) <= {"'self'", "'none'"}:
        yield f"form-action is {policy.get('form-action')}"
    for source in set().union(*policy.values()):
        if not re.fullmatch("'none'|'self'|'sha256-[A-Za-z0-9+/]{43}='", source):
            yield f"lets in {source}"
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        for node in page.all(tag):
            digest = base64.b64encode(hashlib.sha256(node.raw.encode()).digest()).decode()
            if f"'sha256-{digest}'" not in policy.get(name, set()):
                yield f"its own <{tag}> is not let in"
    if headers.get("Cache-Control") != "no-store":
        yield f"Cache-Control is {headers.get('Cache-Control')}"
    if headers.get("X-Content-Type-Options") != "nosniff":
        yield "its type may be guessed"
    if headers.get("Referrer-Policy") not in ("no-referrer", "same-origin"):
        yield "it tells other sites where it was"


CHECKS: Mapping[str, Callable[[Page], Iterator[str]]] = {
    "frame": _frame,
    "headings": _headings,
    "controls": _controls,
    "tables": _tables,
    "foreign": _foreign,
    "forms": _forms,
    "ids": _ids,
    "pictures": _pictures,
    "policy": _policy,
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("</p>", "<p><b>x</p>"),
        ("frame", "<html><h1>a</h1><h1>b</h1></html>"),
        ("headings", "<h1>a</h1><h3>b</h3>"),
        ("controls", "<label>Ticket</label><input name=q>"),
        ("controls", "<button></button>"),
        ("controls", "<a href='/'></a>"),
        ("tables", "<table><thead><tr><th>a</th></tr></thead></table>"),
        ("tables", "<table><thead><tr><th scope=col>a</th></tr></thead><tr><td>1<td>2</table>"),
        ("foreign", "<p onclick='x'>a</p>"),
        ("foreign", "<p style='x'>a</p>"),
        ("foreign", "<a href=' JavaScript:x'>a</a>"),
        ("foreign", "<form action='//elsewhere'></form>"),
        ("foreign", "<iframe></iframe>"),
        ("forms", "<form method=post></form>"),
        ("forms", "<form method=get><input name=seal value=x></form>"),
        ("ids", "<p id=a>x</p><p id=a>y</p>"),
        ("ids", "<p aria-labelledby=b>x</p>"),
        ("pictures", "<svg></svg>"),
        ("policy: its own", "<style>a{}</style>"),
        ("policy: default-src", ""),
        ("policy: Cache-Control", ""),
    ],
)
def test_control_a_flawed_page_is_found(name: str, text: str) -> None:
    head = (("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", "img-src *"))
    answer = Reply(200, Headers(head), text.encode())
    assert any(one.startswith(name) for one in flaws(Page(answer)))


def get(
    service: Service, path: str, headers: Mapping[str, str] = NO_HEADERS, status: int = 200
) -> Page:
    """A page, asked for with GET; it must answer `status` and be without a flaw."""
    page = Page(service.request("GET", path, headers=headers))
    assert page.status == status, (path, page.words)
    assert flaws(page) == [], path
    return page


# ---- The service with something of everything --------------------------------------------------

HOSTILE = (
    "<b id=x1 onclick=x>'\"&lt;&amp;</b></title></style></script></pre>-->"
    "<img src=//x onerror=x>{{1787*1789}}{{!1}}%s${x} 한글 \u202e!"
)


class Busy(NamedTuple):
    """A running service, its ITSM, and the numbers of its events by name."""

    service: Service
    itsm: Itsm
    events: dict[str, int]


def hostile_answer(received: Received) -> Answer:
    """Refuses what says so, with hostile words; takes the hostile ticket under a hostile id."""
    text = json.dumps(received.json(), ensure_ascii=False)
    if "refuse-me" in text:
        return reply(400, json={"error": HOSTILE, "more": "y" * 3000})
    return ok(request_id=HOSTILE) if received.json().get("req_user_id") == HOSTILE else ok()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    """Events in every state, hostile text in every field."""
    with Itsm(decide=hostile_answer) as itsm:
        text = settings(
            itsm.url,
            hooks__note=NOTED,
            kinds__note=NOTE,
            hooks__ruled={
                "fields": {"ticket_id": "ticket_id"},
                "rules": [{"kind": "note", "when": {"event": "new"}}],
            },
        )
        with Service(tmp_path_factory.mktemp("busy"), text) as service:
            events = fill(service)
            yield Busy(service, itsm, events)


def fill(service: Service) -> dict[str, int]:
    """Posts something of everything; the events' numbers by name."""

    def sent(hook: str, body: object) -> int:
        answer = service.post(hook, body, {"X-Zammad-Delivery": HOSTILE[:100]}, wait=10)
        return answer.event

    hostile = opening(HOSTILE, writer=HOSTILE, subject=HOSTILE, contents=HOSTILE * 40)
    found = {
        "delivered": sent("itsm_new", {**hostile, "category": HOSTILE}),
        "assigned": sent("itsm_ass", assignment(HOSTILE, HOSTILE)),
        "refused": sent("itsm_new", opening("X/" + HOSTILE, subject="refuse-me " + HOSTILE)),
        "unreadable": sent("itsm_new", HOSTILE),
        "untranslatable": sent("itsm_com", {"ticket_id": HOSTILE, "data": HOSTILE}),
        "ignored": sent("ruled", {"ticket_id": HOSTILE}),
        "dropped": sent("itsm_new", opening("Y " + HOSTILE, subject="refuse-me")),
        "alone": service.post("itsm_ass", assignment("Z " + HOSTILE, HOSTILE)).event,
    }
    done = service.cli("drop", found["dropped"], "--why", HOSTILE)
    assert done.code == 0, done
    states = {name: service.show(number)["state"] for name, number in found.items()}
    assert states == {
        "delivered": "delivered",
        "assigned": "delivered",
        "refused": "failed",
        "unreadable": "failed",
        "untranslatable": "failed",
        "ignored": "ignored",
        "dropped": "dropped",
        "alone": "held",
    }
    return found


def quoted(text: str) -> str:
    """`text` as a part of an address."""
    return urllib.parse.quote(text, safe="")


def addresses(busy: Busy) -> dict[str, int]:
    """Every address of the page, with the status it answers."""
    numbers, odd = busy.events, quoted(HOSTILE)
    found = {f"/events/{number}": 200 for number in numbers.values()}
    found |= {f"/confirm/{verb}?event={numbers['refused']}": 200 for verb in ("retry", "drop")}
    return found | {
        "/": 200,
        "/?state=failed": 200,
        "/?state=held&kind=assign": 200,
        "/?before=3": 200,
        f"/?kind={odd}": 200,
        f"/?state={odd}": 404,
        f"/?before={odd}": 200,
        f"/?done={odd}": 200,
        f"/?cause={odd}": 200,
        f"/tickets/{odd}": 200,
        f"/tickets/{quoted('X/' + HOSTILE)}": 200,
        f"/tickets/{quoted('Z ' + HOSTILE)}": 200,
        f"/tickets/none{odd}": 404,
        f"/search?q=none{odd}": 404,
        f"/search?q={odd}%00%ff": 404,
        "/search": 404,
        "/events/4182": 404,
        "/events/99999999999999999999": 404,
        "/confirm/pause": 200,
        "/confirm/resume": 200,
        f"/confirm/map?ticket={odd}&request_id={odd}": 200,
        f"/confirm/{quoted(HOSTILE.replace('/', ''))}": 404,
        "/confirm/retry?event=4182": 404,
        "/confirm/retry?event=x": 404,
        "/confirm/retry": 404,
    }


def test_every_page_is_whole_labelled_escaped_and_guarded(busy: Busy) -> None:
    found = {}
    for path, status in addresses(busy).items():
        answer = busy.service.request("GET", path)
        if answer.headers.get("Content-Type") != "text/html; charset=utf-8":
            found[path] = [f"no page: {answer.status} {answer.body[:80]!r}"]
            continue
        page = Page(answer)
        wrong = [] if page.status == status else [f"status {page.status}, not {status}"]
        found[path] = wrong + flaws(page)
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


SHOWN = {  # where a person must be able to read the hostile text as it was sent
    "delivered": ["fields", "raw body", "request id", "ticket"],
    "refused": ["the ITSM's own words"],
    "dropped": ["the reason given"],
    "unreadable": ["raw body"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_events_page_shows_hostile_text_as_it_was_sent(busy: Busy, name: str) -> None:
    page = get(busy.service, f"/events/{busy.events[name]}")
    assert HOSTILE in page.main.raw or json.dumps(HOSTILE, ensure_ascii=False) in page.main.raw


def test_a_long_field_is_folded_and_there_in_full(busy: Busy) -> None:
    sent = opening("4190-long", contents="긴 글입니다. " * 200)
    event = busy.service.post("itsm_new", sent, wait=5).event
    folded = get(busy.service, f"/events/{event}").main.all("details")
    [field] = [one for one in folded if one.words.startswith("긴 글입니다.")]
    assert field.words.count("긴 글입니다.") > 200


def test_the_tables_of_the_first_page_show_hostile_text_as_it_was_sent(busy: Busy) -> None:
    page = get(busy.service, "/")
    [latest] = page.all("section", id="events")
    assert latest.raw.count(HOSTILE) >= 4  # tickets, subjects, request ids, reasons


def test_no_page_shows_what_a_template_would_make_of_a_ticket(busy: Busy) -> None:
    for path in addresses(busy):
        body = busy.service.request("GET", path).body.decode()
        assert str(1787 * 1789) not in body, path


def test_long_text_is_folded_but_whole(busy: Busy) -> None:
    page = get(busy.service, f"/events/{busy.events['delivered']}")
    raw = next(one for one in page.all("details") if "Raw body" in one.words)
    body = json.loads(raw.all("pre")[0].raw)
    assert body["contents"] == HOSTILE * 40


def test_no_page_tells_a_person_what_python_says(busy: Busy) -> None:
    for path in addresses(busy):
        page = busy.service.request("GET", path).body.decode()
        for word in ("invalid literal", "KeyError", "Traceback", "object has no", "base 10"):
            assert word not in page, path


def test_korean_text_has_fonts_that_carry_it(busy: Busy) -> None:
    style = style_of(get(busy.service, "/"))
    assert "Malgun Gothic" in style
    assert "Noto Sans" in style


# ---- Who may come in ---------------------------------------------------------------------------

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service with these sections of configuration."""
    with ExitStack() as stack:

        def starter(
            itsm_: Itsm | None = None,
            environ: Mapping[str, str] = NO_HEADERS,
            **sections: Mapping[str, Any],
        ) -> Service:
            url = itsm_.url if itsm_ else stack.enter_context(Itsm()).url
            return stack.enter_context(Service(tmp_path, settings(url, **sections), environ))

        yield starter


PAGES = ("/", "/events/1", "/tickets/4182", "/search?q=4182", "/confirm/pause")


@pytest.mark.parametrize(
    "host",
    [
        b"Host: evil.example.com\r\n",
        b"Host: evil.example.com:8080\r\n",
        b"Host: 127.0.0.1.evil.example.com\r\n",
        b"Host: 10.0.0.5\r\n",
        b"Host:\r\n",
        b"",
        b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n",
        b"Host: 127.0.0.1\r\nHost: evil.example.com\r\n",
    ],
)
def test_a_foreign_missing_or_doubled_host_gets_421_on_every_page_and_button(
    busy: Busy, host: bytes
) -> None:
    lines = [b"GET %s HTTP/1.1\r\n" % path.encode() for path in PAGES]
    lines += [b"POST /act/pause HTTP/1.1\r\nContent-Length: 0\r\n"]
    for line in lines:
        [answer] = busy.service.exchange(line + host + b"Connection: close\r\n\r\n")
        assert answer.status in ((421, 400) if host.count(b"Host") != 1 else (421,)), line
        assert b"4182" not in answer.body
    assert busy.service.status()["paused"] is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:8080", "[::1]:9"])
def test_its_own_names_are_let_in(busy: Busy, host: str) -> None:
    get(busy.service, "/", {"Host": host})


def basic(password: str, user: str = "admin") -> dict[str, str]:
    """A header of HTTP Basic."""
    coded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {coded}"}


def from_outside(address: str, headers: Mapping[str, str] = NO_HEADERS) -> dict[str, str]:
    """The headers of a request that a proxy on this machine passes on for `address`."""
    return {"X-Forwarded-For": address, **headers}


def turned_away(service: Service, headers: Mapping[str, str], status: int) -> None:
    """No page and no button for who brings these headers."""
    for path in PAGES:
        answer = service.request("GET", path, headers=headers)
        assert answer.status == status, (path, answer)
        assert b"4182" not in answer.body
        assert status != 401 or answer.headers["WWW-Authenticate"].startswith("Basic ")
    seal = get_seal(service) if service.request("GET", "/").status == 200 else "x"
    answer = act(service, "pause", {"seal": seal}, headers)
    assert answer.status == status
    assert service.status()["paused"] is None


def test_with_admin_password_nobody_sees_the_page_without_it(start: Start) -> None:
    service = start(server={"admin_password": "open:sesame"})
    service.post("itsm_new", opening("4182"), wait=5)
    for wrong in (
        {},
        basic("open"),
        basic(""),
        basic("Open:sesame"),
        {"Authorization": "Basic %"},
    ):
        turned_away(service, wrong, 401)
    turned_away(service, {"X-Webhook-Token": "open:sesame"}, 401)
    turned_away(service, {"Authorization": "Bearer open:sesame"}, 401)
    for user in ("admin", "", "누구"):
        get(service, "/", basic("open:sesame", user))


def test_a_stranger_behind_a_trusted_proxy_is_turned_away_without_admin_password(
    start: Start,
) -> None:
    service = start(server={"trusted_proxy": ["127.0.0.1"]})
    service.post("itsm_new", opening("4182"), wait=5)
    get(service, "/")
    for address in (
        "203.0.113.9",
        "127.0.0.1, 203.0.113.9",
        "2001:db8::1",
        "::ffff:203.0.113.9",
        "10.0.0.5, 127.0.0.1",
    ):
        turned_away(service, from_outside(address), 403)


@pytest.mark.parametrize("address", ["203.0.113.9:52113", "unknown", "[2001:db8::1]:52113", "-"])
def test_an_address_that_cannot_be_read_is_a_stranger_too(start: Start, address: str) -> None:
    service = start(server={"trusted_proxy": ["127.0.0.1"]})
    service.post("itsm_new", opening("4182"), wait=5)
    turned_away(service, from_outside(address), 403)


def test_a_stranger_behind_a_trusted_proxy_comes_in_with_admin_password(start: Start) -> None:
    server = {"trusted_proxy": ["127.0.0.1"], "admin_password": "sesame"}
    service = start(server=server)
    turned_away(service, from_outside("203.0.113.9"), 401)
    get(service, "/", from_outside("203.0.113.9", basic("sesame")))


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8"]])
def test_who_comes_through_a_proxy_that_is_not_trusted_is_a_stranger(
    start: Start, trusted: list[str]
) -> None:
    service = start(server={"trusted_proxy": trusted})
    service.post("itsm_new", opening("4182"), wait=5)
    for address in ("203.0.113.9", "127.0.0.1"):
        turned_away(service, from_outside(address), 403)


def test_beyond_loopback_the_page_needs_the_password_and_a_token_of_webhooks_does_not_do(
    start: Start,
) -> None:
    service = start(
        server={"listen": "0.0.0.0:0", "trusted_proxy": ["127.0.0.1"]}, access={"token": "t-1"}
    )
    stranger = from_outside("203.0.113.9")
    turned_away(service, {**stranger, "X-Webhook-Token": "t-1"}, 403)
    for path in ("/metrics", "/openapi.json"):
        assert service.request("GET", path, headers=stranger).status == 401
        token = {**stranger, "X-Webhook-Token": "t-1"}
        assert service.request("GET", path, headers=token).status == 200


def test_who_is_turned_away_is_in_the_log_with_address_and_reason_but_not_each_time(
    start: Start,
) -> None:
    service = start(server={"trusted_proxy": ["127.0.0.1"], "admin_password": "sesame"})
    for _ in range(20):
        answer = service.request("GET", "/", headers=from_outside("203.0.113.9", basic("no")))
        assert answer.status == 401
    lines = service.lines("203.0.113.9")
    assert 1 <= len(lines) <= 3
    assert "password" in lines[0]
    assert "sesame" not in service.log


# ---- The buttons -------------------------------------------------------------------------------


def get_seal(service: Service, headers: Mapping[str, str] = NO_HEADERS) -> str:
    """What proves that a form is the page's own."""
    [seal] = get(service, "/confirm/pause", headers).all("input", name="seal")
    return seal.attributes["value"]


def act(
    service: Service,
    verb: str,
    fields: Mapping[str, str],
    headers: Mapping[str, str] = NO_HEADERS,
) -> Reply:
    """POSTs a form to a button."""
    sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    return service.request("POST", f"/act/{verb}", urllib.parse.urlencode(fields).encode(), sent)


def press(
    service: Service, verb: str, typed: Mapping[str, str] = NO_HEADERS, **asked: str
) -> Page:
    """A button from its page to what it says afterwards, as a browser without JavaScript does."""
    question = get(service, f"/confirm/{verb}?{urllib.parse.urlencode(asked)}")
    [form] = question.main.all("form")
    assert form.attributes["method"] == "post"
    fields = {
        one.attributes["name"]: one.attributes.get("value", "")
        for one in form.all("input")
        if one.attributes.get("type") == "hidden"
    }
    blanks = [one.attributes["name"] for one in form.all("input") if "type" not in one.attributes]
    assert sorted(blanks) == sorted(typed)
    host = {"Origin": service.url, "Sec-Fetch-Site": "same-origin"}
    answer = act(
        service, form.attributes["action"].removeprefix("/act/"), {**fields, **typed}, host
    )
    assert answer.status == 303, answer
    assert answer.headers.get("Cache-Control") == "no-store"
    where = answer.headers["Location"]
    assert where.startswith("/")
    assert not where.startswith("//")
    return get(service, where)


def notice(page: Page) -> str:
    """What an action says that it did, or ""."""
    bands = page.all("div", role="status")
    return bands[0].words if bands else ""


CROSS = {
    "another origin": {"Origin": "http://evil.example.com"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "no origin of its own": {"Origin": "null"},
    "a name that begins alike": {"Origin": "http://127.0.0.1.evil.example.com"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "own origin, cross-site": {"Origin": "{url}", "Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("name", CROSS)
def test_a_post_from_another_site_gets_403_and_does_nothing(busy: Busy, name: str) -> None:
    headers = {key: value.format(url=busy.service.url) for key, value in CROSS[name].items()}
    seal, number = get_seal(busy.service), str(busy.events["refused"])
    assert act(busy.service, "pause", {"seal": seal}, headers).status == 403
    drop = {"seal": seal, "event": number, "why": "x"}
    assert act(busy.service, "drop", drop, headers).status == 403
    assert busy.service.status()["paused"] is None
    assert busy.service.show(int(number))["state"] == "failed"


@pytest.mark.parametrize("seal", [None, "", "0" * 64, "é"])
def test_a_post_without_the_forms_seal_gets_403_and_does_nothing(
    busy: Busy, seal: str | None
) -> None:
    fields = {} if seal is None else {"seal": seal}
    for headers in ({}, {"Origin": busy.service.url, "Sec-Fetch-Site": "same-origin"}):
        assert act(busy.service, "pause", fields, headers).status == 403
    assert busy.service.status()["paused"] is None


def test_the_seal_in_the_address_instead_of_the_form_does_nothing(busy: Busy) -> None:
    answer = busy.service.request("POST", f"/act/pause?seal={get_seal(busy.service)}", b"")
    assert answer.status == 403
    assert busy.service.status()["paused"] is None


def test_get_and_head_change_nothing(busy: Busy) -> None:
    service, number = busy.service, busy.events["refused"]

    def state() -> tuple[Any, ...]:
        found = service.status()
        kept = {name: found[name] for name in ("counts", "paused", "needs", "last_webhook")}
        return kept, service.events(), service.mappings()

    before, seal = state(), get_seal(service)
    for path in addresses(busy):
        service.request("GET", path)
        service.request("HEAD", path)
    for verb in ("retry", "drop", "map", "pause", "resume"):
        query = f"event={number}&ticket=Z&request_id=R-9&why=x&seal={seal}"
        for path in (f"/act/{verb}?{query}", f"/confirm/{verb}?{query}&confirmed=1"):
            answer = service.request("GET", path)
            assert answer.status == (405 if path.startswith("/act") else 200), path
        assert service.request("HEAD", f"/act/{verb}?{query}").status == 405
    assert state() == before


def test_head_of_a_page_is_its_headers_alone(busy: Busy) -> None:
    whole = busy.service.request("GET", "/")
    answer = busy.service.request("HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")
    assert abs(int(answer.headers["Content-Length"]) - len(whole.body)) < 100  # ages differ
    assert answer.headers["Content-Security-Policy"] == whole.headers["Content-Security-Policy"]


def refusing(words: str) -> Callable[[Received], Answer]:
    """An ITSM that refuses what holds `words`."""
    return lambda one: reply(400, text="no such user") if words in one.body.decode() else ok()


def test_retry_asks_says_what_it_will_do_does_it_says_so_and_is_in_the_log(start: Start) -> None:
    with Itsm(decide=refusing("refuse-me")) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=5).event
        question = get(service, f"/confirm/retry?event={event}")
        assert question.headline == f"Send event {event} again?"
        assert "Ticket 4182 refuse-me" in question.words
        assert "failed: answered 400: no such user" in question.words
        assert "translated with today's configuration and sent" in question.words
        assert service.show(event)["state"] == "failed"
        itsm.decide = None
        page = press(service, "retry", event=str(event))
        assert notice(page) == f"Event {event} is sent again"
        until(lambda: service.show(event)["state"] == "delivered", "it is delivered")
        assert len(itsm.created) == 1
        [line] = service.lines("retry", "127.0.0.1")
        assert str(event) in line
        assert "refuse-me" not in line


def test_drop_wants_a_reason_keeps_it_and_says_so(start: Start) -> None:
    with Itsm(decide=refusing("refuse-me")) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=5).event
        bare = {"event": str(event), "why": "  ", "seal": get_seal(service)}
        assert act(service, "drop", bare).status in (400, 404)
        assert service.show(event)["state"] == "failed"
        page = press(service, "drop", {"why": "홍길동이 손으로 했습니다"}, event=str(event))
        assert notice(page) == f"Event {event} is given up"
        assert "홍길동이 손으로 했습니다" in page.words
        assert service.show(event)["state"] == "dropped"
        [line] = service.lines("drop", "127.0.0.1")
        assert str(event) in line


def test_map_by_hand_frees_what_was_held_and_says_so(start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        event = service.post("itsm_ass", assignment("41/82")).event
        page = press(service, "map", ticket="41/82", request_id="R 7&8")
        assert notice(page) == "Ticket 41/82 is request R 7&8 now"
        assert "R 7&8" in page.words
        assert "by hand" in page.words
        [sent] = itsm.wait_for(1)
        assert sent.json()["request_id"] == "R 7&8"
        until(lambda: service.show(event)["state"] == "delivered", "it is delivered")
        assert service.lines("map", "127.0.0.1")


@pytest.mark.parametrize(("name", "request_id"), [("", "R-1"), ("4182", ""), ("4182", "x" * 201)])
def test_map_without_a_ticket_or_a_usable_request_id_asks_nothing_and_does_nothing(
    busy: Busy, name: str, request_id: str
) -> None:
    asked = urllib.parse.urlencode({"ticket": name, "request_id": request_id})
    page = Page(busy.service.request("GET", f"/confirm/map?{asked}"))
    assert page.status in (400, 404), "it asks for what it will refuse"
    fields = {"ticket": name, "request_id": request_id, "seal": get_seal(busy.service)}
    assert act(busy.service, "map", fields).status in (400, 404)
    assert name not in busy.service.mappings()


def test_pause_and_resume_change_the_band_the_button_and_what_is_sent(start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        assert get(service, "/").offers()[0] == "pause"
        page = press(service, "pause")
        assert notice(page) == "Deliveries are paused"
        assert get(service, "/").facts["Deliveries"].startswith("paused Resume since")
        assert get(service, "/").offers()[0] == "resume"
        service.post("itsm_new", opening("4182"))
        assert service.status()["counts"]["pending"] == 1
        assert itsm.requests == []
        press(service, "resume")
        itsm.wait_for(1)
        assert get(service, "/").facts["Deliveries"] == "go on Pause"
        for verb in ("pause", "resume"):
            assert len(service.lines(verb + " ", "127.0.0.1")) == 1


def test_what_an_action_could_not_do_is_said_in_its_notice(start: Start) -> None:
    service = start()
    event = service.post("itsm_new", opening("4182"), wait=5).event
    fields = {"event": str(event), "seal": get_seal(service)}
    answer = act(service, "retry", fields)
    assert answer.status == 303
    assert "delivered: nothing to retry" in notice(get(service, answer.headers["Location"]))
    assert service.show(event)["attempts"][1:] == []


@pytest.mark.parametrize("event", ["", "x", "-1", "1e3", "0", "4182", "9" * 20, "１"])
def test_an_action_on_an_event_that_is_none_does_nothing_and_says_so(
    busy: Busy, event: str
) -> None:
    before = busy.service.status()["counts"]
    for verb in ("retry", "drop"):
        fields = {"event": event, "why": "x", "seal": get_seal(busy.service)}
        answer = act(busy.service, verb, fields)
        if answer.status == 303:
            where = answer.headers["Location"]
            answer = busy.service.request("GET", where)
        assert answer.status in (400, 404), (verb, answer.status)
        assert "invalid literal" not in answer.body.decode()
    assert busy.service.status()["counts"] == before


def test_the_log_names_the_address_that_asked_also_behind_a_trusted_proxy(start: Start) -> None:
    server = {"trusted_proxy": ["127.0.0.1"], "admin_password": "sesame"}
    service = start(server=server)
    headers = from_outside("203.0.113.9", basic("sesame"))
    answer = act(service, "pause", {"seal": get_seal(service, headers)}, headers)
    assert answer.status == 303
    assert service.lines("pause", "203.0.113.9")


def test_a_reason_with_line_breaks_stays_one_line_of_the_log(start: Start) -> None:
    with Itsm(decide=refusing("refuse-me")) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=5).event
        fields = {"event": str(event), "why": "a\r\nERROR - forged\x1b[31m"}
        act(service, "drop", {**fields, "seal": get_seal(service)})
        assert service.show(event)["state"] == "dropped"
        assert "\x1b" not in service.log
        assert [line for line in service.log.split("\n") if line.startswith("ERROR")] == []


def test_the_page_lets_a_browser_say_where_its_form_came_from(busy: Busy) -> None:
    """With no-referrer a browser sends `Origin: null` with a form, and that is another site."""
    headers = get(busy.service, "/confirm/pause").answer.headers
    assert headers.get("Referrer-Policy") == "same-origin"


def test_a_notice_is_said_once_and_none_that_a_link_brings(start: Start) -> None:
    service = start()
    where = act(service, "pause", {"seal": get_seal(service)}).headers["Location"]
    token = urllib.parse.parse_qs(urllib.parse.urlsplit(where).query)["done"][0]
    for made_up in ("", "?done=", "?done=" + "0" * len(token), "?done=Call+555-0199+now"):
        assert notice(get(service, f"/{made_up}")) == ""
    assert notice(get(service, where)) == "Deliveries are paused"
    assert notice(get(service, where)) == "", "it stands there again after a reload"


OFFERS = {
    "delivered": [],
    "refused": ["retry", "drop"],
    "unreadable": ["drop"],  # with this configuration it would fail again
    "ignored": [],
    "dropped": ["retry"],
    "alone": ["drop"],
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_event_offers_the_actions_that_make_sense_in_its_state(busy: Busy, name: str) -> None:
    offers = get(busy.service, f"/events/{busy.events[name]}").offers()
    wanted = OFFERS[name]
    assert [one for one in offers if one != "map"] == wanted


def test_a_held_event_leads_to_the_mapping_that_would_free_it(busy: Busy) -> None:
    page = get(busy.service, f"/events/{busy.events['alone']}")
    where = f"/tickets/{quoted('Z ' + HOSTILE)}"
    links = {urllib.parse.unquote(one.attributes["href"]) for one in page.main.all("a")}
    assert "map" in page.offers() or urllib.parse.unquote(where) in links
    assert "map" in get(busy.service, where).offers()


def test_what_needs_a_person_stands_first_by_cause_with_advice_and_actions(busy: Busy) -> None:
    page = get(busy.service, "/")
    assert page.main.all("h2")[0].words.startswith("What needs you")
    by_event = {event: cause for cause in page.causes for event in cause.events}
    named = ("refused", "unreadable", "untranslatable")
    assert set(by_event) == {busy.events[name] for name in named}
    assert "Mend it in the ITSM" in by_event[busy.events["refused"]].words
    assert "Mend the helpdesk's template" in by_event[busy.events["unreadable"]].words
    assert "Mend the configuration" in by_event[busy.events["untranslatable"]].words


@pytest.mark.slow
def test_an_event_near_its_end_needs_a_person(start: Start) -> None:
    with Itsm(reply(503)) as itsm:
        service = start(itsm, retry={"give_up_after": "6s", "first": 0.05, "max": 0.1})
        event = service.post("itsm_new", opening("4182")).event

        def told() -> bool:
            return [cause.events for cause in get(service, "/").causes] == [[event]]

        until(told, "the event is among what needs a person before its end", 5.9)
        assert service.show(event)["state"] == "pending"


def test_where_nothing_needs_a_person_the_section_is_not_there(start: Start) -> None:
    service = start()
    service.post("itsm_new", opening("4182"), wait=5)
    assert "What needs you" not in get(service, "/").words


# ---- How it is ---------------------------------------------------------------------------------


def test_a_new_service_says_that_nothing_came_yet_and_where_webhooks_go(start: Start) -> None:
    page = get(start(), "/")
    assert page.headline == "\u25cb Nothing came yet"
    assert "/itsm_new, /itsm_ass, /itsm_com" in page.sentence
    assert page.facts["ITSM"] == "not asked yet no delivery yet"
    assert page.events() == []


def test_when_all_is_delivered_it_says_so_and_when_the_last_ones_were(start: Start) -> None:
    service = start()
    service.post("itsm_new", opening("4182"), wait=5)
    page = get(service, "/")
    assert (page.headline, page.sentence) == ("\u25cf All delivered", "Nothing needs you.")
    assert re.fullmatch(r"answers last delivery \d+ s ago", page.facts["ITSM"])
    assert re.fullmatch(r"\d+ s ago last webhook", page.facts["Helpdesk"])
    assert (page.facts["On their way"], page.facts["Deliveries"]) == ("0 events", "go on Pause")


def let_down(service: Service, itsm: Itsm) -> None:
    """Three tickets that find the ITSM gone."""
    itsm.stop()
    for _ in range(3):
        service.post("itsm_new", opening(ticket()))
    until(lambda: service.status()["itsm"]["state"] == "down", "the ITSM is down")


def test_when_the_itsm_is_down_it_says_since_when_why_what_waits_and_the_next_try(
    start: Start,
) -> None:
    with Itsm() as itsm:
        service = start(itsm, retry={"probe": "40s", "first": "30s"})
        let_down(service, itsm)
        page = get(service, "/")
        assert page.headline == "\u25a0 The ITSM does not answer"
        wanted = r"Since \d\d:\d\d, \d+ s \(connection refused.*\)\. Nothing is lost: .*\."
        assert re.fullmatch(wanted, page.sentence)
        next_try = r"does not answer since \d\d:\d\d, next try in \d+ s; no delivery yet"
        assert re.fullmatch(next_try, page.facts["ITSM"])
        assert re.fullmatch(r"3 events the oldest \d+ s", page.facts["On their way"])


def test_an_outage_hides_no_ticket_that_waits_for_a_person_and_counts_apart(start: Start) -> None:
    with Itsm(decide=refusing("refuse-me")) as itsm:
        service = start(itsm, retry={"probe": "40s", "first": "30s"})
        service.post("itsm_new", opening("4182", subject="refuse-me"), wait=5)
        service.post("itsm_ass", assignment("4182"))
        let_down(service, itsm)
        page = get(service, "/")
        assert page.headline == "\u25a0 The ITSM does not answer"
        assert "Besides: 1 ticket needs you." in page.sentence
        assert page.facts["On their way"].startswith("3 events")
        assert [len(cause.events) for cause in page.causes] == [1]


def test_while_paused_nothing_is_promised_to_go_on_by_itself(start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm, retry={"probe": "40s", "first": "30s"})
        let_down(service, itsm)
        service.cli("pause")
        page = get(service, "/")
        assert page.headline == "\u25a0 The ITSM does not answer"
        assert page.sentence.endswith("Nothing is lost. Besides: Deliveries are paused by hand.")
        assert "next try" not in page.facts["ITSM"]


def test_a_pause_hides_no_refused_credential(start: Start) -> None:
    with Itsm(unauthorized()) as itsm:
        service = start(itsm)
        service.post("itsm_new", opening("4182"))
        until(lambda: "credential" in get(service, "/").headline, "the credential is refused")
        service.cli("pause")
        page = get(service, "/")
        assert page.headline == "\u25a0 The ITSM refuses our credential"
        assert "Besides: Deliveries are paused by hand." in page.sentence


def test_when_the_credential_is_refused_it_names_the_file_for_the_new_one(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "itsm.token"
    path.write_text("Basic old-secret\n")
    with Itsm(unauthorized()) as itsm:
        service = start(itsm, itsm={"authorization": {"file": str(path)}})
        service.post("itsm_new", opening("4182"))
        until(lambda: "credential" in get(service, "/").headline, "the credential is refused")
        wanted = (
            rf"Since \d\d:\d\d \(answered 401\)\. .* put the new one into {re.escape(str(path))}\."
        )
        assert re.fullmatch(wanted, get(service, "/").sentence)
        path.write_text("Basic new-secret\n")
        itsm.answer = ok()
        until(lambda: "All delivered" in get(service, "/").headline, "the new one is taken")


def test_a_credential_written_in_the_configuration_is_named_by_its_key(start: Start) -> None:
    with Itsm(unauthorized()) as itsm:
        service = start(itsm, itsm={"authorization": "Basic old-secret"})
        service.post("itsm_new", opening("4182"))
        until(lambda: "credential" in get(service, "/").headline, "the credential is refused")
        assert "itsm.authorization" in get(service, "/").sentence
        assert "old-secret" not in get(service, "/").top.raw


def test_what_was_turned_away_is_told_with_where_it_came_from(start: Start) -> None:
    service = start(access={"token": "s3cret"})
    service.post("itsm_new", opening("4182"))
    service.post("itsm_new", opening("4183"))
    page = get(service, "/")
    assert page.headline == "\u25b2 2 webhooks were turned away"
    [section] = page.section("Turned away")
    [row] = section.all("tbody")[0].all("tr")
    assert [cell.words for cell in row.all("td")][:4] == ["2", "401", "/itsm_new", "127.0.0.1"]


def test_when_paused_it_says_since_when_and_what_waits(start: Start) -> None:
    service = start()
    service.cli("pause")
    service.post("itsm_new", opening("4182"))
    page = get(service, "/")
    assert page.headline == "\u25b2 Deliveries are paused by hand"
    assert re.fullmatch(r"Since \d\d:\d\d nothing is sent; .*", page.sentence)
    assert re.fullmatch(r"1 event the oldest \d+ s", page.facts["On their way"])


def test_an_event_held_for_less_than_a_minute_needs_nobody(start: Start) -> None:
    service = start()
    service.post("itsm_ass", assignment("4182"))
    assert get(service, "/").headline == "\u25cf All delivered"
    service.stop()
    service.change_file("UPDATE events SET settled = settled - 61")
    service.start()
    page = get(service, "/")
    assert page.headline == "\u25b2 1 ticket needs you"
    assert page.causes[0].buttons(0) == ["Map", "Drop"]


def test_the_rate_of_deliveries_is_that_of_the_last_minute() -> None:
    pulse = hd_itsm.Pulse(delivered=120)
    assert pulse.rate() == 0.0
    pulse.beats.append((time.monotonic() - 2, 100))
    assert pulse.rate() == 0.0, "two seconds say nothing"
    pulse.beats.appendleft((time.monotonic() - 30, 60))
    assert pulse.rate() == pytest.approx(120, abs=1)


@pytest.mark.slow
def test_while_a_backlog_drains_it_says_how_fast_and_when_it_will_be_done(start: Start) -> None:
    with Itsm(delay(0.2, ok())) as itsm:
        service = start(itsm, itsm={"workers": 1})
        for _ in range(80):
            service.post("itsm_new", opening(ticket()))
        wanted = r"\d+ events the oldest \d+ s; (\d+) a minute, done in \d+ (?:s|min)"

        def rate() -> float:
            match = re.fullmatch(wanted, get(service, "/").facts["On their way"])
            return float(match[1]) if match else 0.0

        assert 100 < until(rate, "it says how fast", 12) < 320, "five a second, or fewer"


# ---- What needs a person, by cause -------------------------------------------------------------

UNKNOWN = {"result": {"code": "E1042", "message": "등록되지 않은 사용자입니다: seoyun.choi"}}


def refused_tickets(service: Service, number: int = 5) -> list[int]:
    """Openings that the ITSM refuses, the first with two events behind it; their numbers."""
    tickets = [ticket() for _ in range(number)]
    opened = [
        service.post("itsm_new", opening(name, subject=f"무선랜 {name}"), wait=5).event
        for name in tickets
    ]
    service.post("itsm_ass", assignment(tickets[0]))
    service.post("itsm_com", {"ticket_id": tickets[0], "data": "2026-11-23"})
    return opened


def test_tickets_of_one_cause_stand_together_in_the_itsms_own_words(start: Start) -> None:
    with Itsm(reply(422, json=UNKNOWN)) as itsm:
        service = start(itsm)
        opened = refused_tickets(service)
        page = get(service, "/")
        assert page.headline == "\u25b2 5 tickets need you"
        [cause] = page.causes
        assert cause.state == "failed"
        assert (
            "answered 422: 등록되지 않은 사용자입니다: seoyun.choi (E1042) 5 tickets."
            in cause.words
        )
        assert cause.events == opened[:3], "the oldest three are named"
        assert cause.more == ["2 more of this reason"]
        assert "2 more wait for it" in cause.rows[0].words
        assert "무선랜" in cause.rows[0].words
        assert [cause.buttons(row) for row in range(3)] == [["Retry", "Drop"]] * 3
        where = next(a for a in page.all("a") if a.words == "2 more of this reason")
        rest = get(service, where.attributes["href"].partition("#")[0])
        assert rest.events() == opened[::-1]
        assert where.attributes["href"].endswith("#events")


def test_all_of_a_cause_go_out_again_with_two_clicks_and_none_of_another(start: Start) -> None:
    with Itsm(reply(422, json=UNKNOWN)) as itsm:
        service = start(itsm)
        opened = refused_tickets(service)
        itsm.answer = reply(400, text="another reason")
        other = service.post("itsm_new", opening("4182"), wait=5).event
        itsm.answer = ok()
        [cause] = [one for one in get(service, "/").causes if one.button]
        assert cause.button == ["Retry all 5"]
        page = press(
            service, "retry", cause="answered 422: 등록되지 않은 사용자입니다: seoyun.choi (E1042)"
        )
        assert notice(page) == "5 events are sent again"
        until(lambda: service.status()["counts"]["delivered"] == 7, "all are delivered")
        assert {service.show(event)["state"] for event in opened} == {"delivered"}
        assert service.show(other)["state"] == "failed"


def test_more_of_a_cause_than_one_part_holds_go_out_again_together(
    start: Start, tmp_path: Path
) -> None:
    with Itsm(reply(422, json=UNKNOWN)) as itsm:
        service = start(itsm)
        service.post("itsm_new", opening("4182"), wait=5)
        service.stop()
        multiply(service.database, 449, "4182")
        service.start()
        itsm.answer = ok()
        [cause] = get(service, "/").causes
        assert cause.button == ["Retry all 450"]
        page = press(
            service, "retry", cause="answered 422: 등록되지 않은 사용자입니다: seoyun.choi (E1042)"
        )
        assert notice(page) == "450 events are sent again"
        until(lambda: service.status()["counts"]["delivered"] == 450, "all are delivered")


def test_a_retry_that_would_fail_again_is_not_offered(start: Start) -> None:
    service = start()
    service.post("itsm_new", b"no JSON")
    service.post("itsm_com", {"ticket_id": "4182", "data": "어제"})
    causes = get(service, "/").causes
    assert [cause.buttons(0) for cause in causes] == [["Drop"], ["Drop"]]
    assert [cause.button for cause in causes] == [[], []]


def test_what_may_have_happened_is_mapped_or_retried_one_by_one(start: Start) -> None:
    unclear = reply(200, text="ok")  # taken, but no request id: sending again could double it
    with Itsm(unclear) as itsm:
        service = start(itsm)
        for name in ("4182", "4183"):
            service.post("itsm_new", opening(name), wait=5)
        [cause] = get(service, "/").causes
        assert cause.state == "unclear"
        assert cause.button == []
        assert [cause.buttons(row) for row in (0, 1)] == [["Map", "Retry", "Drop"]] * 2
        assert service.cli("retry", "--reason", "answered 200").code == 1
        assert service.status()["counts"]["failed"] == 2


def test_of_what_is_held_for_a_lost_opening_the_first_stands_for_its_ticket(start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        first = service.post("itsm_ass", assignment("4182")).event
        service.post("itsm_com", {"ticket_id": "4182", "data": "2026-11-23"})
        service.stop()
        service.change_file("UPDATE events SET settled = settled - 61")
        service.start()
        [cause] = get(service, "/").causes
        assert (cause.state, cause.events) == ("held", [first])
        assert "1 more waits for it" in cause.rows[0].words
        press(service, "drop", {"why": "x"}, event=str(first))
        service.stop()
        service.change_file("UPDATE events SET settled = settled - 61")
        service.start()
        assert [one.events for one in get(service, "/").causes] == [[first + 1]]
        page = press(service, "map", {"request_id": "R-7"}, ticket="4182")
        assert notice(page) == "Ticket 4182 is request R-7 now"
        assert get(service, "/").causes == []


def test_behind_an_opening_that_failed_nothing_is_named_and_after_its_drop_the_next(
    start: Start,
) -> None:
    with Itsm(reply(422, json=UNKNOWN)) as itsm:
        service = start(itsm)
        opened = service.post("itsm_new", opening("4182"), wait=5).event
        held = service.post("itsm_ass", assignment("4182")).event
        behind = get(service, f"/events/{held}")
        assert f"waits for event {opened}, which failed." in behind.words
        question = get(service, f"/confirm/drop?event={opened}")
        assert f"Then wait for a mapping of the ticket: {held}." in question.words
        press(service, "drop", {"why": "x"}, event=str(opened))
        service.stop()
        service.change_file("UPDATE events SET settled = settled - 61")
        service.start()
        assert [one.events for one in get(service, "/").causes] == [[held]]


def test_what_waits_is_said_of_each_event_of_a_ticket(start: Start) -> None:
    service = start()
    service.cli("pause")
    first = service.post("itsm_new", opening("4182")).event
    service.post("itsm_ass", assignment("4182"))
    page = get(service, "/tickets/4182")
    assert f"waits for event {first}" in page.words
    assert "No request id yet" in page.words


# ---- Finding events ----------------------------------------------------------------------------

ODD = ["41/82", "41?82", "41#82", "41 82", "41%2f82", "&amp;", "..", ".", "../events/1", "'\"<b>"]


def landed(service: Service, address: str) -> Page:
    """The page that a browser reaches by an address or a link: dot segments are gone."""
    path = urllib.parse.urljoin(service.url + "/", re.sub("(?i)%2e", ".", address))
    return Page(service.request("GET", path.removeprefix(service.url)))


@pytest.mark.parametrize("number", ODD)
def test_a_ticket_is_found_by_its_id_and_its_links_lead_to_it(busy: Busy, number: str) -> None:
    service = busy.service
    event = service.post("itsm_ass", assignment(number)).event
    answer = service.request("GET", f"/search?q={quoted(number)}")
    assert answer.status == 303
    assert f"Ticket {number}" in landed(service, answer.headers["Location"]).words
    link = get(service, f"/events/{event}").main.all("dl")[0].all("a")[0]
    assert link.words == " ".join(number.split())
    assert f"Ticket {number}" in landed(service, link.attributes["href"]).words


def test_a_ticket_is_found_by_its_request_id(start: Start) -> None:
    service = start()
    answer = service.post("itsm_new", opening("4182"), wait=5)
    for text in ("4182", " 4182 ", answer.headers["HD-ITSM-Request-Id"]):
        found = service.request("GET", f"/search?q={quoted(text)}")
        assert (found.status, found.headers.get("Location")) == (303, "/tickets/4182")


def test_a_request_id_of_several_tickets_lists_them_all(start: Start) -> None:
    service = start()
    event = service.post("itsm_ass", assignment("4182")).event
    for name in ("4182", "<i>4183"):
        assert service.cli("map", name, "R-1").code == 0
    page = get(service, "/search?q=R-1")
    assert page.events() == [event]
    links = {one.words: one.attributes["href"] for one in page.main.all("a")}
    assert links["4182"] == "/tickets/4182"
    assert links["<i>4183"] == "/tickets/%3Ci%3E4183"


def test_an_event_the_beginning_of_an_id_and_words_of_a_subject_are_found(start: Start) -> None:
    service = start()
    for name, subject in (("4182", "회의실 A301 무선랜 접속 불가"), ("4199", "VPN 접속 불가")):
        service.post("itsm_new", opening(name, subject=subject), wait=5)
    service.post("itsm_ass", assignment("4182"), wait=5)
    assert get(service, "/search?q=2").events() == [2]
    assert get(service, "/search?q=41").events() == [3, 2]
    assert get(service, f"/search?q={quoted('무선랜 a301')}").events() == [1]
    page = get(service, f"/search?q={quoted('접속')}")
    assert page.events() == [2, 1]
    rows = [row.words for row in page.all("section", id="events")[0].all("tr")[1:]]
    assert "VPN 접속 불가" in rows[0]


def test_the_subject_is_what_the_opening_sends_as_such_where_no_field_is_called_so(
    start: Start,
) -> None:
    service = start(
        hooks__desk={"kind": "new", "fields": {"ticket_id": "ticket_id", "betreff": "betreff"}},
        kinds__new={"opens": True, "body": {"code": "000", "Short_Description": "{betreff|line}"}},
    )
    service.post("desk", {"ticket_id": "4182", "betreff": "Drucker druckt nicht"}, wait=5)
    assert "4182 Drucker druckt nicht" in get(service, "/").words
    assert get(service, "/search?q=drucker").events() == [1]


def test_a_miss_repeats_what_was_asked(busy: Busy) -> None:
    page = get(busy.service, "/search?q=nobody", status=404)
    assert page.headline == "Nothing is called \u201cnobody\u201d"
    assert page.all("input", name="q")[0].attributes["value"] == "nobody"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """120 events: assignments that are held, and every third an opening that is delivered."""
    with Itsm() as itsm, Service(tmp_path_factory.mktemp("many"), settings(itsm.url)) as service:
        for number in range(120):
            name = ticket()
            if number % 3:
                service.post("itsm_ass", assignment(name))
            else:
                service.post("itsm_new", opening(name))
        until(lambda: service.status()["counts"]["delivered"] == 40, "the openings are delivered")
        yield service


def follow(service: Service, page: Page, word: str) -> Page:
    """The page behind a link of the list of events."""
    links = [one for node in page.section("Events") for one in node.all("a")]
    [where] = {one.attributes["href"] for one in links if one.words == word}
    return get(service, where.partition("#")[0])


def test_the_latest_50_are_shown_newest_first_and_older_and_newer_lead_through_all(
    many: Service,
) -> None:
    first = get(many, "/")
    assert first.events() == list(range(120, 70, -1))
    second = follow(many, first, "older")
    assert second.events() == list(range(70, 20, -1))
    third = follow(many, second, "older")
    assert third.events() == list(range(20, 0, -1))
    assert follow(many, third, "newer").events() == second.events()
    assert follow(many, second, "newer").events() == first.events()


def test_older_is_not_offered_where_there_is_nothing_older(many: Service) -> None:
    page = get(many, "/?before=51")
    assert page.events()[-1] == 1
    assert "older" not in [link.words for link in page.all("a")]


def test_a_part_of_the_list_says_which_and_is_alone_on_its_page(many: Service) -> None:
    first = get(many, "/")
    assert "1 to 50 of 120" in first.section("Events")[0].words
    second = follow(many, first, "older")
    assert "51 to 100 of 120" in second.words
    assert second.main.all("svg") == []
    assert second.headline == "Events: all"
    assert "1 to 50 of 120" in follow(many, second, "newer").words
    held = get(many, "/?state=held")
    assert held.headline == "Events: held"
    assert "1 to 50 of 80" in held.words
    links = [one.attributes["href"] for one in held.section("Events")[0].all("a")]
    lists = [where for where in links if where.startswith(("/?", "/#"))]
    assert lists
    assert all(where.endswith("#events") for where in lists)


def test_filters_by_state_and_kind_stay_on_the_way_to_older_events(many: Service) -> None:
    page = get(many, "/?state=held&kind=assign")
    assert all(number % 3 != 1 for number in page.events())
    assert len(page.events()) == 50
    older = follow(many, page, "older")
    assert [number for number in older.events() if number % 3 == 1] == []
    assert len(older.events()) == 30
    for shown in (page, older):
        chosen = [one.words for one in shown.all("a") if "aria-current" in one.attributes]
        assert chosen == ["held 80", "assign"]


def test_a_filter_that_nothing_fits_does_not_say_that_no_event_ever_came(many: Service) -> None:
    page = get(many, "/?state=dropped")
    assert "No event fits." in page.words
    assert "No event yet" not in page.words


def test_the_counts_by_state_are_links_to_their_events(many: Service) -> None:
    [states, _, _] = get(many, "/").all("section", id="events")[0].all("nav")
    counts = {one.words: one.attributes["href"] for one in states.all("a")}
    wanted = ["all", "pending 0", "held 80", "delivered 40", "failed 0", "ignored 0", "dropped 0"]
    assert list(counts) == wanted
    page = get(many, counts["delivered 40"].partition("#")[0])
    assert [number for number in page.events() if number % 3 != 1] == []


def test_the_picture_of_the_day_has_its_numbers_in_a_table(many: Service) -> None:
    page = get(many, "/")
    [table] = [one for node in page.section("The last 24 hours") for one in node.all("table")]
    rows = [[cell.words for cell in row.all("td")] for row in table.all("tr") if row.all("td")]
    assert len(rows) == 24
    assert sum(int(row[1]) for row in rows) == 120
    assert sum(int(row[2]) for row in rows) == 40
    bars = [one.attributes["d"] for one in page.all("svg")[0].all("path")]
    assert len(bars) == 3 * 24
    assert any(re.fullmatch(r"M\d+ 42v-40\.0h8v40\.0", bar) for bar in bars), "the highest"


# ---- What we send, what was answered -----------------------------------------------------------


def test_an_events_page_shows_the_request_with_its_secrets_masked_and_each_answer(
    start: Start,
) -> None:
    with Itsm(script=[reply(503, text="busy")]) as itsm:
        service = start(itsm, itsm={"authorization": "Basic s3cr3t-word"})
        event = service.post("itsm_new", opening("4182"), wait=5).event
        until(lambda: service.show(event)["state"] == "delivered", "the second try is taken")
        page = get(service, f"/events/{event}")
        sent = page.section("What was sent")[0].all("pre")[0].raw
        assert sent.startswith(f"POST {itsm.url}")
        assert "Authorization: ***" in sent
        assert json.loads(sent.partition("\n\n")[2]) == itsm.requests[-1].json()
        [table] = page.section("All attempts")[0].all("table")
        rows = [[cell.words for cell in row.all("td")] for row in table.all("tr")[1:]]
        assert [(row[3], row[4]) for row in rows] == [
            ("503", "later answered 503"),
            ("200", "delivered answered 200"),
        ]
        words = page.section("The last answer")[0].all("pre")[0].raw
        assert json.loads(words) == {"result": {"request_id": "R-1"}}
        assert "s3cr3t-word" not in page.top.raw


def sent_of(page: Page, title: str = "What was sent") -> tuple[str, Any]:
    """The head and the body of a request that a page shows."""
    [section] = page.section(title)
    head, _, body = section.all("pre")[0].raw.partition("\n\n")
    return head, json.loads(body)


def test_what_was_really_sent_stays_when_the_configuration_changes(
    start: Start, tmp_path: Path
) -> None:
    with Itsm(reply(400)) as itsm:
        service = start(itsm, itsm={"authorization": "Basic s3cr3t-word"})
        event = service.post("itsm_new", opening("4182"), wait=5).event
        page = get(service, f"/events/{event}")
        assert sent_of(page)[1] == itsm.requests[-1].json()
        assert page.section("What would be sent now") == []
        config = tmp_path / "hd_itsm.toml"
        config.write_text(config.read_text().replace("ITEM-1", "ITEM-2"))
        service.restart()
        page = get(service, f"/events/{event}")
        head, body = sent_of(page)
        assert head.startswith(f"POST {itsm.url}")
        assert "Authorization: ***" in head
        assert body["item_id"] == "ITEM-1"
        assert sent_of(page, "What would be sent now")[1]["item_id"] == "ITEM-2"
        assert service.cli("retry", event).code == 0
        until(lambda: len(itsm.requests) == 2, "it is sent again")
        until(lambda: service.show(event)["state"] == "failed", "it is refused again")
        page = get(service, f"/events/{event}")
        assert sent_of(page)[1]["item_id"] == "ITEM-2"
        assert "ITEM-1" in page.section("All attempts")[0].words
        assert "s3cr3t-word" not in page.top.raw


def test_a_request_that_is_sent_often_is_kept_once_and_a_long_one_in_part(start: Start) -> None:
    with Itsm(script=[reply(503)] * 3) as itsm:
        service = start(itsm)
        long = opening("4182", contents="가" * 30_000)
        event = service.post("itsm_new", long, wait=10).event
        until(lambda: service.show(event)["state"] == "delivered", "it is delivered")
        sent = [attempt["sent"] for attempt in service.show(event)["attempts"]]
        assert len(sent) == 4
        assert sent[1:] == [None, None, None]
        assert len(sent[0]["body"]) < 17_000
        assert "more characters" in sent[0]["body"]


def test_secrets_in_bodies_and_addresses_of_look_ups_are_masked_in_what_was_sent(
    start: Start,
) -> None:
    secret = 'pass"word\\ 1&2'
    with Itsm(
        decide=lambda one: ok() if one.path != "/login" else reply(200, json={"token": "t0k3n-1"})
    ) as itsm:
        service = start(
            itsm,
            kinds__new={
                "opens": True,
                "headers": {"X-Session": "{login}"},  # a name that tells nothing
                "body": {"title": "{subject}"},
            },
            values={"itsm_password": {"env": "ITSM_PASSWORD"}},
            lookups__login={
                "method": "POST",
                "url": f"{itsm.url.rpartition('/')[0]}/login",
                "body": {"word": "{itsm_password}", "password": "in the clear"},
                "value": "token",
            },
            environ={"ITSM_PASSWORD": secret},
        )
        event = service.post("itsm_new", opening("4182"), wait=5).event
        sent = [attempt["sent"] for attempt in service.show(event)["attempts"]]
        asked = next(each for each in sent if each["url"].endswith("/login"))
        assert json.loads(asked["body"]) == {"word": "***", "password": "***"}
        assert "t0k3n-1" not in json.dumps(sent)
        assert "t0k3n-1" not in get(service, f"/events/{event}").top.raw


def test_forget_removes_what_was_sent_too(start: Start) -> None:
    service = start()
    event = service.post("itsm_new", opening("4182", subject="private matter"), wait=5).event
    assert "private matter" in get(service, f"/events/{event}").words
    assert service.cli("forget", "4182").code == 0
    assert "private matter" not in get(service, f"/events/{event}").words
    assert get(service, "/search?q=private", status=404)


def test_who_did_what_by_hand_stands_on_the_event_and_its_ticket(start: Start) -> None:
    with Itsm(reply(400)) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182"), wait=5).event
        press(service, "retry", event=str(event))
        until(lambda: len(itsm.requests) == 2, "it is sent again")
        until(lambda: service.show(event)["state"] == "failed", "it is refused again")
        assert service.cli("drop", event, "--why", "x").code == 0
        press(service, "map", {"request_id": "R-7"}, ticket="4182")
        [section] = get(service, f"/events/{event}").section("By hand")
        rows = [[cell.words for cell in row.all("td")] for row in section.all("tr")[1:]]
        assert [row[1:] for row in rows] == [
            ["retry", "127.0.0.1, on the page"],
            ["drop", f"{getpass.getuser()}, by command"],
            ["map R-7", "127.0.0.1, on the page"],
        ]
        [section] = get(service, "/tickets/4182").section("By hand")
        assert "map R-7" in section.words
        assert "by hand" in service.cli("show", event).out


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_in_a_browser_every_error_is_a_page_and_for_programs_json(start: Start) -> None:
    service = start(server={"admin_password": "sesame", "trusted_proxy": ["127.0.0.1"]})
    known = basic("sesame")
    for path, status, headers in (
        ("/nowhere", 404, known),
        ("/", 401, {}),
        ("/act/pause", 405, known),
    ):
        page = Page(service.request("GET", path, headers={**BROWSER, **headers}))
        assert (page.status, flaws(page)) == (status, [])
        plain = service.request("GET", path, headers=headers)
        assert plain.status == status
        assert plain.error
    assert service.request("GET", "/", headers=BROWSER).headers["WWW-Authenticate"]
    assert (
        service.request("GET", "/act/pause", headers={**BROWSER, **known}).headers["Allow"]
        == "POST"
    )
    refused = service.request("POST", "/act/pause", b"seal=x", {**BROWSER, **known})
    assert Page(refused).status == 403
    hook = service.request("POST", "/itsm_new", b"no JSON", BROWSER)
    assert (hook.status, bool(hook.error)) == (400, True)


def test_an_event_says_who_sent_it_by_which_hook_and_how_it_was_repaired(busy: Busy) -> None:
    event = busy.service.post("itsm_ass", b'{"ticket_id": "T-1", "technician": "a\nb"}').event
    page = get(busy.service, f"/events/{event}")
    head = page.main.all("dl")[0].words
    assert "hook itsm_ass" in head
    assert "from 127.0.0.1, control characters" in head


# ---- Colours -----------------------------------------------------------------------------------

TEXT = 4.5  # WCAG 2.2, 1.4.3 (AA)
SHAPE = 3.0  # 1.4.11: what shows a value or the edge of a control


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb, as WCAG defines it."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(one * 2 for one in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 (none) to 21 (black on white)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def style_of(page: Page) -> str:
    """The page's own style without blanks that say nothing."""
    return re.sub(r"\s*([{}:;,(]|$)\s*", r"\1", page.all("style")[0].raw)


def colours(style: str, scheme: str) -> dict[str, str]:
    """The custom properties of a colour scheme; the dark one is laid over the light one."""
    plain, _, dark = style.partition("@media(prefers-color-scheme:dark)")
    found = dict(re.findall(r"--([\w-]+):(#[0-9a-fA-F]{3,6})", plain))
    assert dark
    if scheme == "dark":
        inside = dark[: dark.index("}}")]
        found |= dict(re.findall(r"--([\w-]+):(#[0-9a-fA-F]{3,6})", inside))
    return found


def test_control_the_contrast_is_computed_as_wcag_does() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)  # the known near miss


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_pair_of_text_and_ground_has_the_contrast_of_aa(busy: Busy, scheme: str) -> None:
    found = colours(style_of(get(busy.service, "/")), scheme)
    pairs = [(text, ground) for text in ("ink", "soft", "link") for ground in ("paper", "field")]
    pairs += [(name, name + "bg") for name in ("ok", "warn", "bad")]
    pairs += [("ink", name + "bg") for name in ("ok", "warn", "bad")]
    weak = {
        f"{text} on {ground}": round(contrast(found[text], found[ground]), 2)
        for text, ground in pairs
        if contrast(found[text], found[ground]) < TEXT
    }
    assert weak == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_and_the_focus_stand_out_from_the_ground(busy: Busy, scheme: str) -> None:
    style = style_of(get(busy.service, "/"))
    found = colours(style, scheme)
    used = dict(re.findall(r"\.(received|delivered|failed)\{fill:var\(--([\w-]+)\)", style))
    assert set(used) == {"received", "delivered", "failed"}
    assert "border:1px solid var(--edge)" in style
    weak = {
        f"{bar} ({name})": round(contrast(found[name], found["paper"]), 2)
        for bar, name in {**used, "focus": "link", "field": "edge"}.items()
        if contrast(found[name], found["paper"]) < SHAPE
    }
    assert weak == {}


# ---- A long queue ------------------------------------------------------------------------------


def quickest(service: Service, path: str, turns: int = 5) -> float:
    """The shortest time in seconds that a page took."""
    return min(service.request("GET", path).seconds for _ in range(turns))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("state", "hook"), [("pending", "itsm_new"), ("held", "itsm_ass"), ("failed", "itsm_com")]
)
def test_with_100_000_events_every_page_opens_as_fast_as_with_one(
    state: str, hook: str, tmp_path: Path
) -> None:
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url)) as service:
        service.cli("pause")
        answer = service.post(hook, {**opening("4182"), "technician": "dohyun.lee"})
        assert answer.state == state
        alone = quickest(service, "/")
        assert service.stop() == 0
        multiply(service.database, 99_999)
        service.start()
        page = get(service, "/")
        assert page.events()[0] == 100_000
        if state == "failed":
            assert "10,000 or more tickets need you" in page.sentence
            assert "10,000 or more tickets. Mend" in page.causes[0].words
        paths = (
            "/",
            f"/?state={state}",
            f"/?state={state}&kind=new",
            "/?state=dropped",
            "/?before=50000",
            "/events/50000",
            "/search?q=4182-50000",
            "/search?q=4182-5",
            "/search?q=nothing",
            "/tickets/4182-50000",
            "/metrics",
            "/health",
        )
        took = {path: quickest(service, path) for path in paths}
        bound = max(0.2, 5 * alone)
        assert {path: round(one, 3) for path, one in took.items() if one > bound} == {}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_with_100_000_waiting_and_3_000_failed_for_60_reasons_the_first_page_opens_at_once(
    tmp_path: Path,
) -> None:
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url)) as service:
        service.cli("pause")
        service.post("itsm_new", opening("4182"))
        assert service.stop() == 0
        multiply(service.database, 102_999)
        for sql in (
            "UPDATE events SET state = 'failed', reason = 'answered 422: no ' || (event % 60),"
            " cause = 'answered 422: no ' || (event % 60), attempts = 1 WHERE event <= 3000",
            "UPDATE counts SET count = 100000 WHERE hour = 0 AND name = 'pending'",
            "INSERT OR REPLACE INTO counts VALUES (0, 'failed', 3000)",
        ):
            service.change_file(sql)
        service.start()
        page = get(service, "/")
        assert page.facts["On their way"].startswith("100000 events")
        assert "3000 tickets need you" in page.sentence
        assert [cause.button for cause in page.causes] == [["Retry all 50"]] * 12
        assert "More reasons" in page.words
        took = quickest(service, "/")
        assert took < 0.2, took
