"""The page in a real browser: Chromium without a window, with JavaScript and without.

It needs Chromium and its driver (Debian packages chromium and chromium-driver) and the extra
`browser` (selenium, which speaks to the driver); axe-core (npm pack axe-core) where AXE names its
axe.min.js. Where they are missing the tests are skipped; where CI is set they fail. PICTURES=FOLDER keeps the screenshots there instead of throwing them away.
"""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from faultlib import missing
from itsm import Answer, Itsm, Received, ok, reply
from service import NO_HEADERS, Service, assignment, closing, opening, settings, ticket, until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

PHONE = (360, 740)
DESK = (1200, 900)
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'"</pre>{{7*7}}'

# ---- The browser -------------------------------------------------------------------------------


class Browser:
    """One Chromium; every wait has a deadline."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Goes to an address, and forgets what the console held before."""
        self.complaints()
        self.driver.get(url)

    def script(self, code: str) -> Any:
        """What a piece of JavaScript returns; the page's own policy does not bind it."""
        return self.driver.execute_script(code)

    def find(self, css: str) -> list[WebElement]:
        """All elements that fit."""
        return self.driver.find_elements("css selector", css)

    @property
    def path(self) -> str:
        """Where it is, without host and query."""
        return "/" + self.driver.current_url.split("/", 3)[3].split("?")[0]

    @property
    def words(self) -> str:
        """What a person reads in <main>."""
        found = self.script(
            "return document.querySelector('main').innerText"
        )  # also amid a reload
        return " ".join(str(found).split())

    @property
    def notice(self) -> str:
        """What an action said that it did, or ""."""
        return " ".join(one.text for one in self.find("div[role=status]"))

    def click(self, css: str, word: str, place: str) -> None:
        """Presses what has exactly this word, and waits for the page with this path."""
        [element] = [one for one in self.find(css) if one.text == word][:1]
        element.click()
        self.arrive(place)

    def arrive(self, place: str) -> None:
        """Waits until the page with this path is there, whole."""
        until(lambda: self.path == place, f"it comes to {place}, and is at {self.path}", 5)
        until(lambda: self.script("return document.readyState") == "complete", "it is whole", 5)

    def keys(self, *names: str) -> None:
        """Presses keys on whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self.driver)
        for name in names:
            chain.send_keys(getattr(Keys, name, name))
        chain.perform()

    def complaints(self) -> list[str]:
        """What the console holds since the last look, but for the icon that no page has."""
        rows: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [row["message"] for row in rows if "/favicon.ico" not in row["message"]]

    @contextmanager
    def seen(
        self, size: tuple[int, int] = DESK, scheme: str = "light", mobile: bool = False
    ) -> Iterator[None]:
        """The window has this size and the system this colour scheme, while inside."""
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": mobile}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tell = self.driver.execute_cdp_cmd
        tell("Emulation.setDeviceMetricsOverride", shape)
        tell("Emulation.setEmulatedMedia", {"features": features})
        try:
            yield
        finally:
            tell("Emulation.clearDeviceMetricsOverride", {})
            tell("Emulation.setEmulatedMedia", {"features": []})

    def picture(self, folder: Path, name: str) -> bytes:
        """A picture of the whole page, also kept in a file."""
        import base64

        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
        )
        data = base64.b64decode(shot["data"])
        (folder / f"{name}.png").write_bytes(data)
        return data


def chromium(javascript: bool) -> Chrome:
    """Starts one, or ends the test where there is none."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service as Driver
    except ImportError:
        missing("selenium (pip install '.[browser]')")
    program = shutil.which("chromium") or missing("chromium (Debian package chromium)")
    driver = shutil.which("chromedriver") or missing("chromedriver (Debian chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    flags = "headless=new disable-gpu disable-dev-shm-usage no-first-run disable-sync"
    quiet = "disable-background-networking disable-component-update proxy-server=direct://"
    root = " no-sandbox" if os.geteuid() == 0 else ""
    for flag in f"{flags} {quiet}{root}".split():
        options.add_argument(f"--{flag}")
    if not javascript:
        prefs = {"profile.managed_default_content_settings.javascript": 2}
        options.add_experimental_option("prefs", prefs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Driver(driver))


WITH = pytest.param(True, id="javascript")
WITHOUT = pytest.param(False, id="without", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[WITH, WITHOUT])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser with JavaScript, then one without."""
    driver = chromium(request.param)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module", params=[pytest.param(True, marks=pytest.mark.slow)], ids=[""])
def scripted(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser with JavaScript, in tests that are slow."""
    driver = chromium(request.param)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    given = os.environ.get("PICTURES")
    folder = Path(given) if given else tmp_path_factory.mktemp("pictures")
    folder.mkdir(exist_ok=True)
    return folder


# ---- The service -------------------------------------------------------------------------------

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service for this ITSM, with these sections of configuration."""
    with ExitStack() as stack:

        def starter(itsm: Itsm, **sections: Mapping[str, Any]) -> Service:
            return stack.enter_context(Service(tmp_path, settings(itsm.url, **sections)))

        yield starter


def picky(received: Received) -> Answer:
    """Refuses what says so, and takes the rest."""
    if "refuse-me" in received.body.decode():
        return reply(400, json={"error": {"code": "E-4711", "message": f"unknown user {HOSTILE}"}})
    return ok()


class Stage(NamedTuple):
    """A running service with events in every state, and one of each by name."""

    service: Service
    itsm: Itsm
    events: dict[str, int]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A busy day: tickets that went through, some that were refused, held, dropped, repeated."""
    with (
        Itsm(decide=picky) as itsm,
        Service(tmp_path_factory.mktemp("stage"), settings(itsm.url)) as service,
    ):
        yield Stage(service, itsm, furnish(service))


def furnish(service: Service) -> dict[str, int]:
    """Posts a busy day; events by name."""
    for _ in range(12):
        name = f"41{ticket()}"
        for hook, body in (
            ("itsm_new", opening(name)),
            ("itsm_ass", assignment(name, "홍길동")),
            ("itsm_com", closing(name)),
        ):
            assert service.post(hook, body, wait=10).state == "delivered"
    long = "프린터가 " * 400
    hostile = opening(HOSTILE, subject=HOSTILE, contents=long, writer=HOSTILE)
    found = {
        "hostile": service.post("itsm_new", hostile, wait=10).event,
        "unreadable": service.post("itsm_new", b"no JSON " + HOSTILE.encode()).event,
        "untranslatable": service.post("itsm_com", {"ticket_id": "4190", "data": "어제"}).event,
        "held": service.post("itsm_ass", assignment("4191" + "x" * 150)).event,
        "repeated": service.post("itsm_new", opening(HOSTILE)).event,
    }
    for number in range(3):
        body = opening(f"42{number}", subject="refuse-me", contents=long)
        found["refused"] = service.post("itsm_new", body, wait=10).event
    dropped = service.post("itsm_new", opening("4300", subject="refuse-me"), wait=10).event
    assert service.cli("drop", dropped, "--why", "손으로 했습니다").code == 0
    return {**found, "dropped": dropped}


def places(stage: Stage) -> list[str]:
    """Every kind of page."""
    numbers = stage.events.values()
    return [
        "/",
        "/?state=failed",
        "/tickets/420",
        "/tickets/4191" + "x" * 150,
        "/search?q=nobody",
        f"/confirm/retry?event={stage.events['refused']}",
        f"/confirm/drop?event={stage.events['refused']}",
        "/confirm/pause",
        "/confirm/map?ticket=4190&request_id=R-1",
        *(f"/events/{number}" for number in numbers),
    ]


# ---- Through the buttons, with JavaScript and without ------------------------------------------


def test_pause_and_resume_go_through_the_buttons(browser: Browser, start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        browser.open(service.url)
        assert "Nothing came yet" in browser.words
        browser.click("main button", "Pause", "/confirm/pause")
        assert "Stop deliveries" in browser.words
        assert service.status()["paused"] is None
        browser.click("main button", "Pause", "/")
        assert browser.notice == "Deliveries are paused"
        assert "Deliveries are paused by hand" in browser.words
        service.post("itsm_new", opening("4182"))
        assert itsm.requests == []
        browser.click("main button", "Resume", "/confirm/resume")
        browser.click("main button", "Resume", "/")
        itsm.wait_for(1)
        assert browser.complaints() == []


def test_a_question_can_be_left_without_doing_anything(browser: Browser, start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        browser.open(service.url)
        browser.click("main button", "Pause", "/confirm/pause")
        browser.click("main a", "Leave it", "/")
        assert browser.notice == ""
        assert service.status()["paused"] is None


def test_a_refused_ticket_goes_out_again_from_the_first_page(
    browser: Browser, start: Start
) -> None:
    with Itsm(decide=picky) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=10).event
        service.post("itsm_ass", assignment("4182"))
        browser.open(service.url)
        assert "What needs you" in browser.words
        browser.click("main table a", str(event), f"/events/{event}")
        assert "answered 400: unknown user" in browser.words
        assert "E-4711" in browser.words
        itsm.decide = None
        browser.click("main button", "Retry", "/confirm/retry")
        assert f"Send event {event} again" in browser.words
        browser.click("main button", "Retry", f"/events/{event}")
        assert browser.notice == f"Event {event} is sent again"
        until(lambda: service.status()["counts"]["delivered"] == 2, "both are delivered")
        browser.open(service.url)
        assert "All delivered" in browser.words
        assert "What needs you" not in browser.words
        assert browser.complaints() == []


def test_drop_wants_a_reason_and_keeps_it(browser: Browser, start: Start) -> None:
    with Itsm(decide=picky) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=10).event
        browser.open(f"{service.url}/events/{event}")
        browser.click("main button", "Drop", "/confirm/drop")
        browser.click("main button", "Drop", "/confirm/drop")  # the browser asks for the reason
        assert service.show(event)["state"] == "failed"
        browser.find("input[name=why]")[0].send_keys("손으로 <b>했습니다</b>")
        browser.click("main button", "Drop", f"/events/{event}")
        assert browser.notice == f"Event {event} is given up"
        assert "손으로 <b>했습니다</b>" in browser.words
        assert service.show(event)["state"] == "dropped"
        assert browser.complaints() == []


def test_a_ticket_is_searched_mapped_by_hand_and_goes_out(browser: Browser, start: Start) -> None:
    with Itsm() as itsm:
        service = start(itsm)
        service.post("itsm_ass", assignment("41/82"))
        browser.open(service.url)
        browser.find("input[name=q]")[0].send_keys("41/82")
        browser.click("header button", "Search", "/tickets/41%2F82")
        assert "No request id yet" in browser.words
        browser.find("input[name=request_id]")[0].send_keys("R-7 & <8>")
        browser.click("main button", "Map by hand", "/confirm/map")
        assert "Map ticket 41/82 to request R-7 & <8>" in browser.words
        browser.click("main button", "Map", "/tickets/41%2F82")
        assert "R-7 & <8>" in browser.words
        [sent] = itsm.wait_for(1)
        assert sent.json()["request_id"] == "R-7 & <8>"
        browser.find("input[name=q]")[0].send_keys("R-7 & <8>")
        browser.keys("ENTER")
        browser.arrive("/tickets/41%2F82")
        assert browser.complaints() == []


# ---- Nobody else's script, frame or form -------------------------------------------------------


def test_no_page_runs_or_loads_what_a_ticket_says(browser: Browser, stage: Stage) -> None:
    for place in places(stage):
        browser.open(stage.service.url + place)
        assert browser.script("return window.pwned") is None, place
        assert browser.find("img, iframe, object") == [], place
        loaded = browser.script(
            "return performance.getEntriesByType('resource').map(r => r.name)"
            ".filter(n => !n.endsWith('/favicon.ico'))"
        )
        assert loaded == [], place
        bad = [row for row in browser.complaints() if " 404 " not in row]
        assert bad == [], place


def test_control_what_the_policy_forbids_is_heard(scripted: Browser, stage: Stage) -> None:
    scripted.open(stage.service.url)
    scripted.complaints()
    scripted.script("document.body.setAttribute('onclick', 'window.pwned = 1')")
    scripted.script("document.body.insertAdjacentHTML('beforeend', '<img src=/metrics>')")
    until(lambda: "Content Security Policy" in " ".join(scripted.complaints()), "it complains")


@pytest.fixture
def elsewhere() -> Iterator[Callable[[str], str]]:
    """Another site: gives the address under which it shows a text as HTML."""
    pages: dict[str, bytes] = {}

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()

    def show(text: str) -> str:
        path = f"/{len(pages)}"
        pages[path] = text.encode()
        return f"http://localhost:{server.server_address[1]}{path}"

    try:
        yield show
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_form_of_another_site_presses_no_button_even_with_the_right_seal(
    scripted: Browser, stage: Stage, elsewhere: Callable[[str], str]
) -> None:
    url = stage.service.url
    scripted.open(f"{url}/confirm/pause")
    [seal] = scripted.find("input[name=seal]")
    form = (
        f"<form method=post action='{url}/act/pause'><input name=seal"
        f" value='{seal.get_attribute('value')}'><button>Win</button></form>"
    )
    for extra in (
        "",
        "<meta name=referrer content=no-referrer>",
        "<meta name=referrer content=x>",
    ):
        scripted.open(elsewhere(extra + form))
        scripted.click("button", "Win", "/act/pause")
        assert stage.service.status()["paused"] is None


def test_another_site_cannot_show_the_page_in_a_frame(
    scripted: Browser, stage: Stage, elsewhere: Callable[[str], str]
) -> None:
    scripted.open(elsewhere(f"<iframe src='{stage.service.url}/confirm/pause'></iframe>"))
    until(lambda: "frame-ancestors" in " ".join(scripted.complaints()), "it complains")
    scripted.driver.switch_to.frame(0)
    try:
        assert scripted.find("button") == []
    finally:
        scripted.driver.switch_to.default_content()


# ---- Hands and eyes ----------------------------------------------------------------------------


def focused(browser: Browser) -> str:
    """The tag and the word of what has the focus."""
    return str(
        browser.script(
            "var a = document.activeElement;"
            "return a.tagName + ' ' + (a.textContent || a.name).trim()"
        )
    )


def tab_to(browser: Browser, what: str, most: int = 60) -> None:
    """Presses Tab until `what` has the focus."""
    for _ in range(most):
        browser.keys("TAB")
        if focused(browser) == what:
            return
    raise AssertionError(f"{what!r} is not reached with Tab")


def test_a_refused_event_is_dropped_with_the_keyboard_alone(
    browser: Browser, start: Start
) -> None:
    with Itsm(decide=picky) as itsm:
        service = start(itsm)
        event = service.post("itsm_new", opening("4182", subject="refuse-me"), wait=10).event
        browser.open(service.url)
        tab_to(browser, f"A {event}")
        browser.keys("ENTER")
        browser.arrive(f"/events/{event}")
        tab_to(browser, "BUTTON Drop")
        browser.keys("SPACE")
        browser.arrive("/confirm/drop")
        tab_to(browser, "INPUT why")
        browser.keys("by hand", "ENTER")
        browser.arrive(f"/events/{event}")
        assert service.show(event)["state"] == "dropped"


def test_everything_that_can_be_pressed_is_reached_with_tab_and_shows_the_focus(
    scripted: Browser, stage: Stage
) -> None:
    for place in ("/", f"/events/{stage.events['refused']}", "/tickets/420"):
        scripted.open(stage.service.url + place)
        whole = scripted.script(
            "window.all = [...document.querySelectorAll("
            "'a[href], button, input:not([type=hidden]), select, summary')]; return all.length"
        )
        reached: set[int] = set()
        for _ in range(whole):
            scripted.keys("TAB")
            at, shown = scripted.script(
                "var a = document.activeElement, s = getComputedStyle(a);"
                "return [all.indexOf(a), s.outlineStyle != 'none' && parseFloat(s.outlineWidth)]"
            )
            assert shown >= 2, f"{focused(scripted)} on {place} shows no focus"
            reached.add(at)
        assert reached == set(range(whole)), place


def test_the_page_has_landmarks_and_names_for_a_screen_reader(
    scripted: Browser, stage: Stage
) -> None:
    scripted.open(stage.service.url)
    tree = scripted.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})
    named = [
        (node.get("role", {}).get("value"), node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"]
    ]
    roles = {role for role, _ in named}
    assert {"main", "search", "heading", "table", "columnheader", "navigation"} <= roles
    for role, name in named:
        if role in ("button", "link", "textbox", "combobox", "image"):
            assert name.strip(), f"a {role} without a name"


@pytest.mark.parametrize("size", [PHONE, (320, 640)], ids=["phone", "small phone"])
def test_no_page_scrolls_sideways_on_a_phone(
    scripted: Browser, stage: Stage, size: tuple[int, int]
) -> None:
    wide = {}
    with scripted.seen(size, mobile=True):
        for place in places(stage):
            scripted.open(stage.service.url + place)
            width = scripted.script("return document.documentElement.scrollWidth")
            if width > size[0]:
                wide[place] = width
    assert wide == {}


def test_on_a_phone_what_can_be_pressed_is_tall_enough_and_no_text_is_tiny(
    scripted: Browser, stage: Stage
) -> None:
    with scripted.seen(PHONE, mobile=True):
        for place in ("/", f"/events/{stage.events['refused']}", "/tickets/420"):
            scripted.open(stage.service.url + place)
            low = scripted.script(
                "return [...document.querySelectorAll('button')].map("
                "b => b.getBoundingClientRect().height).filter(h => h < 24)"  # WCAG 2.2, 2.5.8
            )
            assert low == [], place
            small = scripted.script(
                "return [...document.querySelectorAll('body *')].filter(e => e.innerText"
                " && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML)"
            )
            assert small == [], place


def test_nothing_is_wider_than_the_window_on_a_desk(scripted: Browser, stage: Stage) -> None:
    with scripted.seen(DESK):
        for place in places(stage):
            scripted.open(stage.service.url + place)
            assert scripted.script("return document.documentElement.scrollWidth") <= 1200, place
            width = scripted.script("return document.body.getBoundingClientRect().width")
            assert width <= 1140, place


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, as its npm package has it (axe.min.js, named by AXE)."""
    path = os.environ.get("AXE", "")
    return (Path(path) if path else Path(missing("axe-core (AXE=axe.min.js)"))).read_text()


def found_by_axe(browser: Browser, axe: str) -> list[str]:
    """What axe-core finds wrong with the page that is shown."""
    browser.driver.set_script_timeout(60)
    browser.script(axe)
    found = browser.driver.execute_async_script(
        "axe.run().then(r => arguments[0](r.violations.map(v => v.id + ': ' + v.help + ' '"
        " + v.nodes.map(n => n.html.slice(0, 120)).slice(0, 3).join(' | '))))"
    )
    return list(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_core_finds_nothing_on_any_page(
    scripted: Browser, stage: Stage, axe: str, size: tuple[int, int], scheme: str
) -> None:
    found = {}
    with scripted.seen(size, scheme, mobile=size == PHONE):
        for place in places(stage):
            scripted.open(stage.service.url + place)
            found[place] = found_by_axe(scripted, axe)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}


def test_control_axe_core_finds_a_button_without_a_name(
    scripted: Browser, stage: Stage, axe: str
) -> None:
    scripted.open(stage.service.url)
    scripted.script("document.querySelector('main').insertAdjacentHTML('beforeend', '<button>')")
    assert any(one.startswith("button-name") for one in found_by_axe(scripted, axe))


CAUSES = (5, 4, 2, 1, 1, 1, 1, 1)  # tickets of each


def refuse_by_cause(received: Received) -> Answer:
    """Refuses an opening with the words for the cause that its subject names."""
    cause = str(received.json().get("title", "")).rpartition("#")[2]
    words = f"등록되지 않은 사용자입니다: {cause} (인사시스템 연동 2026-11-20 이후 미동기화)"
    return reply(422, json={"result": {"code": f"E104{cause}", "message": words}})


def test_30_needing_events_of_8_causes_fit_into_1300_pixels_and_a_cause_takes_two_clicks(
    scripted: Browser, start: Start
) -> None:
    with Itsm(decide=refuse_by_cause) as itsm:
        service = start(itsm)
        waiting = 14
        for cause, tickets in enumerate(CAUSES):
            for _ in range(tickets):
                name = ticket()
                service.post(
                    "itsm_new", opening(name, subject=f"사내망 권한 신청 #{cause}"), wait=9
                )
                if waiting:
                    service.post("itsm_ass", assignment(name))
                    waiting -= 1
        counts = service.status()["counts"]
        assert counts["failed"] + counts["held"] == 30
        with scripted.seen((1200, 1300)):
            scripted.open(service.url)
            assert "16 tickets need you" in scripted.words
            assert len(scripted.find("tbody th[scope=rowgroup]")) == len(CAUSES)
            bottom = scripted.script(
                "return document.querySelector('.causes').getBoundingClientRect().bottom"
            )
            assert bottom <= 1300
        itsm.decide = None
        scripted.click("main button", "Retry all 5", "/confirm/retry")
        scripted.click("main button", "Retry", "/")
        assert scripted.notice == "5 events are sent again"
        until(lambda: service.status()["counts"]["failed"] == 11, "all five are sent")


def test_the_filters_are_reached_within_ten_tab_stops(scripted: Browser, stage: Stage) -> None:
    scripted.open(stage.service.url)
    scripted.keys("TAB")
    assert focused(scripted) == "A To the events"
    scripted.keys("ENTER")
    counts = stage.service.status()["counts"]
    tab_to(scripted, f"A failed {counts['failed']}", most=9)


def test_korean_words_are_not_broken(scripted: Browser, stage: Stage) -> None:
    scripted.open(stage.service.url)
    assert scripted.script("return getComputedStyle(document.body).wordBreak") == "keep-all"


def test_colours_follow_the_system(scripted: Browser, stage: Stage) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        with scripted.seen(scheme=scheme):
            scripted.open(stage.service.url)
            text = str(scripted.script(ground))
            found[scheme] = sum(int(part) for part in text[4:-1].split(","))
    assert found["light"] > 3 * 220
    assert found["dark"] < 3 * 60


# ---- It refreshes itself -----------------------------------------------------------------------

HURRY = """
window.delays = [];
var usual = window.setInterval;
window.setInterval = function (what, delay) { delays.push(delay); return usual(what, 200) };
"""


@contextmanager
def hurried(browser: Browser) -> Iterator[None]:
    """What a page does every so often, it does five times a second."""
    tell = browser.driver.execute_cdp_cmd
    made = tell("Page.addScriptToEvaluateOnNewDocument", {"source": HURRY})
    try:
        yield
    finally:
        tell("Page.removeScriptToEvaluateOnNewDocument", made)


def renews(browser: Browser, seconds: float = 2.0) -> bool:
    """Whether the page shows something anew within so many seconds."""
    browser.script("document.querySelector('main').marked = 1")
    marked = "return document.querySelector('main').marked"
    try:
        until(lambda: browser.script(marked) is None, "it is renewed", seconds)
    except AssertionError:
        return False
    return True


def test_it_refreshes_every_10_seconds_and_shows_what_came(
    scripted: Browser, start: Start
) -> None:
    with Itsm() as itsm, hurried(scripted):
        service = start(itsm)
        scripted.open(service.url)
        assert scripted.script("return delays") == [10000]
        service.post("itsm_new", opening("4182"), wait=5)
        until(lambda: "4182" in scripted.words, "the new event is shown", 5)
        assert scripted.complaints() == []


@pytest.mark.parametrize(
    "deed",
    [
        "document.querySelector('input[name=q]').value = '41'",
        "getSelection().selectAllChildren(document.querySelector('main'))",
    ],
    ids=["typed", "text is selected"],
)
def test_it_does_not_refresh_while_something_is_typed_or_selected(
    scripted: Browser, start: Start, deed: str
) -> None:
    with Itsm() as itsm, hurried(scripted):
        service = start(itsm)
        scripted.open(service.url)
        assert renews(scripted, 5), "control: it refreshes by itself"
        until(lambda: scripted.script("return document.readyState") == "complete", "whole")
        scripted.script(deed)
        assert not renews(scripted, 1.0)


@pytest.mark.parametrize("what", ["main a[href='/?state=held#events']", "main summary"])
def test_what_has_the_focus_keeps_it_over_a_refresh_and_what_is_open_stays_open(
    scripted: Browser, stage: Stage, what: str
) -> None:
    with hurried(scripted):
        scripted.open(stage.service.url)
        scripted.script(f"document.querySelector({what!r}).focus()")
        scripted.script("document.querySelector('details').open = true")
        scripted.script("scrollTo(0, 400)")
        assert renews(scripted, 5)
        assert scripted.script(f"return document.activeElement.matches({what!r})")
        assert scripted.script("return document.querySelector('details').open")
        assert scripted.script("return scrollY") == 400


def test_a_page_open_over_a_restart_says_that_it_is_not_reached_and_comes_back_by_itself(
    scripted: Browser, tmp_path: Path
) -> None:
    with Itsm() as itsm, hurried(scripted), socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        text = settings(itsm.url, server={"listen": f"127.0.0.1:{port}"})
        with Service(tmp_path, text) as service:
            scripted.open(service.url)
            lost = "return !document.querySelector('#lost').hidden"
            assert not scripted.script(lost)
            assert service.stop() == 0
            until(lambda: scripted.script(lost), "it says so", 10)
            assert "Not reached since" in scripted.find("#lost")[0].text
            assert "Nothing came yet" in scripted.words, "what is known stays"
            ends = time.monotonic() + 20
            until(lambda: time.monotonic() > ends, "20 s are over", 30)
            service.start()
            service.post("itsm_new", opening("4182"), wait=5)
            until(lambda: "All delivered" in scripted.words, "it is back", 10)
            assert not scripted.script(lost)


def test_a_question_and_older_events_do_not_refresh(scripted: Browser, stage: Stage) -> None:
    with hurried(scripted):
        for place in ("/confirm/pause", "/?before=20"):
            scripted.open(stage.service.url + place)
            assert not renews(scripted, 0.6), place


# ---- Pictures ----------------------------------------------------------------------------------


def views(browser: Browser, folder: Path, url: str, name: str) -> None:
    """Three pictures of a page: on a desk, dark, on a phone; each is more than one colour."""
    for view, size, scheme in (
        ("light", DESK, "light"),
        ("dark", DESK, "dark"),
        ("phone", PHONE, "light"),
        ("phone-dark", PHONE, "dark"),
    ):
        with browser.seen(size, scheme, mobile=size == PHONE):
            browser.open(url)
            assert len(browser.picture(folder, f"{name}-{view}")) > 5_000


def test_pictures_of_a_busy_day(scripted: Browser, stage: Stage, pictures: Path) -> None:
    url = stage.service.url
    for name, place in {
        "busy": "/",
        "failed-event": f"/events/{stage.events['refused']}",
        "hostile-event": f"/events/{stage.events['hostile']}",
        "held-event": f"/events/{stage.events['held']}",
        "ticket": "/tickets/420",
        "question": f"/confirm/drop?event={stage.events['refused']}",
        "not-found": "/search?q=nobody",
    }.items():
        views(scripted, pictures, url + place, name)


def test_pictures_in_korean(scripted: Browser, stage: Stage, pictures: Path) -> None:
    tell = scripted.driver.execute_cdp_cmd
    tell("Network.enable", {})
    tell("Network.setExtraHTTPHeaders", {"headers": {"Accept-Language": "ko"}})
    try:
        views(scripted, pictures, stage.service.url, "busy-korean")
        assert scripted.script("return document.documentElement.lang") == "ko"
        views(scripted, pictures, f"{stage.service.url}/tickets/420", "ticket-korean")
    finally:
        tell("Network.setExtraHTTPHeaders", {"headers": {}})


def test_pictures_of_a_new_service(scripted: Browser, start: Start, pictures: Path) -> None:
    with Itsm() as itsm:
        views(scripted, pictures, start(itsm).url, "empty")


def test_pictures_of_an_itsm_that_is_down_and_of_a_pause(
    scripted: Browser, start: Start, pictures: Path
) -> None:
    with Itsm() as itsm:
        service = start(itsm, retry={"probe": "40s", "first": "30s"})
        done = service.post("itsm_new", opening("4100"), wait=5)
        assert done.state == "delivered"
        itsm.stop()
        for _ in range(5):
            name = ticket()
            service.post("itsm_new", opening(name))
            service.post("itsm_ass", assignment(name))
        until(lambda: service.status()["itsm"]["state"] == "down", "the ITSM is down")
        views(scripted, pictures, service.url, "down")
        service.cli("pause")
        views(scripted, pictures, service.url, "paused")
        assert service.request("GET", "/", headers=NO_HEADERS).status == 200
