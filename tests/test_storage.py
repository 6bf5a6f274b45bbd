"""The store: what is in the file, in which order it goes out, and which files are refused."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import hd_itsm
from crowd import image
from hd_itsm import (
    Attempt,
    Config,
    Event,
    Events,
    File,
    FileError,
    NewEvent,
    Receipt,
    Verdict,
)
from service import until

CONFIG = """
[hooks.note]
kind = "note"
fields = { ticket_id = "ticket_id", text = "text" }
[kinds.note]
body = { text = "{text}", request = "{request_id}" }

[hooks.renew]
kind = "renew"
fields = { ticket_id = "ticket_id", subject = "subject" }
[kinds.renew]
opens = true
again = "send"
body = { title = "{subject}" }

[hooks.word]
kind = "word"
fields = { ticket_id = "ticket_id", text = "text" }
[kinds.word]
body = { text = "{text}" }
"""
FAR = 4000.0  # seconds, past every due time that a test sets
DAY = 86400.0


# ---- Webhooks in, outcomes back ----------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "hd_itsm.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return hd_itsm.load_config(str(path), {}, {}, complete=False)


def opened(path: str, create: bool = False) -> Events:
    """The events of a file; nobody is waited for who holds it."""
    return Events(File(path, create, patience=0.0))


def connection_of(events: Events) -> sqlite3.Connection:
    """The file's connection, to look at its pragmas and listen to its statements."""
    return events.file._db


@dataclass
class House:
    """Events with the hands that Door and Delivery would lay on them."""

    config: Config
    path: Path
    events: Events

    def webhook(self, hook: str, ticket: str, **named: Any) -> NewEvent:
        """The webhook as the door hands it over; `delivery_id` and `received` are not of the body."""
        about = {key: named.pop(key) for key in ("delivery_id", "received") if key in named}
        raw = json.dumps({"ticket_id": ticket, **named}, ensure_ascii=False).encode()
        base = NewEvent(
            hook=hook,
            raw=raw,
            headers="{}",
            sender="127.0.0.1",
            received=about.pop("received", time.time()),
            state="pending",
        )
        found = self.config.hooks[hook]
        _, (reading,) = hd_itsm.read_webhooks(found, raw, {})
        return hd_itsm.judge(self.config, found, reading, base._replace(**about))

    def receive(self, webhook: NewEvent) -> Receipt:
        """Stores one webhook alone. Raises what is said against it."""
        (receipt,) = self.events.receive([webhook])
        if isinstance(receipt, Exception):
            raise receipt
        return receipt

    def hears(self, kind: str, ticket: str, value: str) -> NewEvent:
        """The webhook of a kind that says `value`."""
        hook = {"new": "itsm_new", "assign": "itsm_ass"}.get(kind, kind)
        said = {"writer": "kim", "category": "it", "subject": value, "contents": "broken"}
        return self.webhook(hook, ticket, technician=value, text=value, **said)

    def send(self, kind: str, ticket: str, value: str) -> Receipt:
        return self.receive(self.hears(kind, ticket, value))

    def new(self, ticket: str, subject: str = "printer", **named: Any) -> Receipt:
        fields = {"writer": "kim", "category": "it", "subject": subject, "contents": "broken"}
        return self.receive(self.webhook("itsm_new", ticket, **(fields | named)))

    def assign(self, ticket: str, technician: str = "lee", **named: Any) -> Receipt:
        return self.receive(self.webhook("itsm_ass", ticket, technician=technician, **named))

    def complete(self, ticket: str, date: str = "2026-11-23 09:00", **named: Any) -> Receipt:
        return self.receive(self.webhook("itsm_com", ticket, data=date, **named))

    def note(self, ticket: str, text: str = "hello", **named: Any) -> Receipt:
        return self.receive(self.webhook("note", ticket, text=text, **named))

    def free_note(self, ticket: str, text: str) -> Receipt:
        """An event that waits for no request id, as where no kind opens requests."""
        return self.receive(self.webhook("note", ticket, text=text)._replace(waits_for_id=False))

    def unreadable(self, raw: bytes, hook: str = "itsm_new") -> Receipt:
        return self.receive(
            NewEvent(hook, raw, "{}", "127.0.0.1", time.time(), "failed", "no JSON object")
        )

    def due(self) -> list[int]:
        """What would go out, were it an hour later."""
        return [one.event for one in self.events.due(self.events.file.clock() + FAR, 1000)]

    def loaded(self, event: int) -> Event:
        due = {one.event: one for one in self.events.due(self.events.file.clock() + FAR, 1000)}
        assert event in due, f"event {event} may not go"
        return due[event]

    def settle(self, event: int, verdict: Verdict, outcome: str = "") -> bool:
        """Records one attempt for the event."""
        attempt = Attempt(time.time(), 0.01, 200, outcome or verdict.state, verdict.reason)
        return self.events.record(self.loaded(event), [attempt], verdict) is True

    def deliver(self, event: int, request_id: str = "", **named: Any) -> None:
        assert self.settle(
            event, Verdict("delivered", "answered 200", request_id=request_id, **named)
        )

    def fail(self, event: int, **named: Any) -> None:
        assert self.settle(event, Verdict("failed", "answered 400", **named))

    def later(self, event: int, wait: float = 1.0) -> None:
        due = self.events.file.clock() + wait
        assert self.settle(event, Verdict("pending", "answered 503", due=due, tries=1), "later")

    def hold(self, event: int) -> None:
        assert self.settle(
            event, Verdict("held", "no answer came", may_have_happened=True), "unclear"
        )

    def retry(self, event: int, force: bool = False) -> str:
        row = self.events.show(event)
        assert row is not None
        news = {event: hd_itsm.reread(self.config, row)}
        return self.events.retry(news, force).get(event, "")

    def drain(self) -> list[int]:
        """Delivers all that goes, one at a time; the numbers in the order in which they went."""
        order: list[int] = []
        while due := self.due():
            event = self.loaded(due[0])
            order.append(event.event)
            self.deliver(event.event, f"R-{event.ticket}" if event.opens else "")
            assert len(order) < 1000
        return order

    def state(self, event: int) -> str:
        row = self.events.show(event)
        return "" if row is None else str(row["state"])

    def states(self, ticket: str) -> list[str]:
        return [self.state(event) for event in self.events.line(ticket)]

    def reopen(self) -> None:
        """Ends in the usual way and starts again."""
        self.events.file.close()
        self.open()

    def open(self) -> None:
        """Starts as the service does."""
        self.events = opened(str(self.path))
        self.events.recover()

    def crash(self, folder: Path) -> None:
        """Goes on from what a power cut at this instant would leave."""
        self.path = image(self.path, folder)
        before = self.events
        self.open()
        before.file.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What another program reads in a file that nobody holds."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def counted(path: Path) -> dict[str, int]:
    return dict(rows(path, "SELECT state, count(*) FROM events GROUP BY state"))


def positive(counts: Counter[str]) -> dict[str, int]:
    return {state: count for state, count in counts.items() if count}


def numbers(events: Sequence[Event]) -> list[int]:
    return [one.event for one in events]


def queue_of(events: Events) -> list[Any]:
    """The operations that wait for the next transaction."""
    return events.file._queue


@pytest.fixture
def house(config: Config, tmp_path: Path) -> Iterator[House]:
    path = tmp_path / "hd_itsm.db"
    built = House(config, path, opened(str(path), create=True))
    yield built
    built.events.file.close()


def in_threads(*targets: Callable[[], object]) -> None:
    """Runs all at once and waits for all."""
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


# ---- The file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_file_is_for_its_owner_alone(umask: int, config: Config, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        events = opened(str(tmp_path / "hd_itsm.db"), create=True)
        House(config, tmp_path / "hd_itsm.db", events).new("1")
        events.file.keep_reserve()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        events.file.close()
    finally:
        os.umask(before)
    assert "hd_itsm.db" in modes
    assert set(modes.values()) == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file for another user")
def test_a_file_that_root_makes_is_for_the_owner_of_its_folder(public: Path) -> None:
    """Root imports the mappings before the first start; then the service must be able to write."""
    File(str(public / "hd_itsm.db"), create=True).close()
    made = (public / "hd_itsm.db").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (65534, 65534, 0o600)
    assert as_nobody(public / "hd_itsm.db", create=False) == "opened"


def test_the_file_is_written_durably_and_held_alone(house: House) -> None:
    house.new("1")
    database = connection_of(house.events)
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert database.execute("PRAGMA locking_mode").fetchone()[0] == "exclusive"
    assert not Path(f"{house.path}-shm").exists()


def test_no_half_made_file_stands_in_the_way(house: House) -> None:
    assert [path.name for path in house.path.parent.iterdir() if ".new" in path.name] == []


def test_what_was_received_is_in_the_file_before_the_answer(house: House, tmp_path: Path) -> None:
    receipt = house.new("4182", subject="프린터 고장")
    copy = image(house.path, tmp_path)
    found = rows(copy, "SELECT event, ticket, kind, state, fields, raw FROM events")
    assert [row[:4] for row in found] == [(receipt.event, "4182", "new", "pending")]
    assert json.loads(found[0][4])["subject"] == "프린터 고장"
    assert json.loads(found[0][5])["subject"] == "프린터 고장"


def test_many_writers_share_commits_and_lose_nothing(house: House, tmp_path: Path) -> None:
    commits: list[int] = []

    def statement(text: str) -> None:  # runs in the thread that writes for the others
        if text.startswith("COMMIT"):
            commits.append(1)
            if len(commits) == 1:  # the first commit lasts until all others wait
                until(lambda: len(queue_of(house.events)) == 39)

    connection_of(house.events).set_trace_callback(statement)
    receipts: dict[str, Receipt] = {}

    def writer(ticket: str) -> Callable[[], None]:
        return lambda: receipts.update({ticket: house.new(ticket)})

    in_threads(*(writer(str(number)) for number in range(40)))
    connection_of(house.events).set_trace_callback(None)
    assert len(commits) == 2
    copy = image(house.path, tmp_path)
    stored = dict(rows(copy, "SELECT ticket, event FROM events"))
    assert stored == {ticket: receipt.event for ticket, receipt in receipts.items()}
    assert sorted(stored.values()) == list(range(1, 41))
    assert positive(house.events.counts) == {"pending": 40} == counted(copy)


def test_one_bad_operation_does_not_take_the_others_along(house: House) -> None:
    begun: list[int] = []

    def statement(text: str) -> None:
        if text.startswith("BEGIN"):
            begun.append(1)
            if len(begun) == 1:  # the first waits for all others, so that they go together
                until(lambda: len(queue_of(house.events)) == 39)

    connection_of(house.events).set_trace_callback(statement)
    receipts: dict[str, Receipt] = {}
    refused: list[str] = []

    def write(ticket: str, bad: bool) -> Callable[[], None]:
        webhook = house.webhook(
            "itsm_new", ticket, writer="a", category="b", subject="c", contents="d"
        )
        if bad:  # no events takes a lone surrogate
            webhook = webhook._replace(fields='"\ud800"')

        def receive() -> None:
            try:
                receipts[ticket] = house.receive(webhook)
            except Exception:
                refused.append(ticket)

        return receive

    in_threads(*(write(str(number), number % 5 == 0) for number in range(40)))
    connection_of(house.events).set_trace_callback(None)
    assert sorted(refused, key=int) == [str(number) for number in range(0, 40, 5)]
    assert len(receipts) == 32
    for ticket, receipt in receipts.items():
        assert house.events.line(ticket) == [receipt.event]
    assert house.events.file.broken == ""
    assert positive(house.events.counts) == {"pending": 32}
    house.reopen()
    assert positive(house.events.counts) == {"pending": 32}
    house.events.file.close()
    assert counted(house.path) == {"pending": 32}


# ---- Handfuls -----------------------------------------------------------------------------------


def story(house: House, seed: int) -> list[NewEvent]:
    """NewEvents of a few tickets in any order: new, repeated, early, unreadable, with an id."""
    chance = random.Random(seed)
    found: list[NewEvent] = []
    for number in range(chance.randint(2, 16)):
        ticket = chance.choice("1234567")
        kind = chance.choice(("new", "new", "assign", "assign", "note", "broken", "again"))
        fields = {"writer": "a", "category": "b", "subject": chance.choice("cd"), "contents": "e"}
        if kind == "new":
            found.append(house.webhook("itsm_new", ticket, **fields))
        elif kind == "assign":
            found.append(house.webhook("itsm_ass", ticket, technician=chance.choice("xy")))
        elif kind == "note":
            found.append(
                house.webhook("note", ticket, text=str(number))._replace(waits_for_id=False)
            )
        elif kind == "again" and found:
            found.append(chance.choice(found))
        else:
            raw = chance.choice((b"no", b"nonsense"))
            found.append(
                NewEvent("itsm_new", raw, "{}", "127.0.0.1", 1e9, "failed", "no JSON object")
            )
        if chance.random() < 0.2:
            found[-1] = found[-1]._replace(delivery_id=chance.choice("uvw"))
    return found


def told(house: House, receipt: Receipt | Exception) -> tuple[Any, ...]:
    """A receipt without numbers: these may be others where several came at once."""
    assert isinstance(receipt, Receipt)
    row = house.events.show(receipt.event)
    assert row is not None
    reason = re.sub("[0-9]+", "#", receipt.reason)
    return (receipt.state, reason, receipt.request_id, row["ticket"], row["kind"], row["raw"])


@pytest.mark.parametrize("seed", range(60))
def test_a_handful_comes_to_the_same_as_one_after_the_other(
    seed: int, config: Config, tmp_path: Path
) -> None:
    paths = (tmp_path / "a.db", tmp_path / "b.db")
    together, single = (House(config, path, opened(str(path), create=True)) for path in paths)
    for house in (together, single):
        house.new("1")
        house.deliver(1, "R-1")
        house.events.map("7", "R-7")
    webhooks = story(together, seed)
    receipts = together.events.receive(webhooks)
    others = [single.receive(webhook) for webhook in webhooks]
    assert [told(together, one) for one in receipts] == [told(single, one) for one in others]
    assert positive(together.events.counts) == positive(single.events.counts)
    for house in (together, single):
        house.events.file.close()
    sql = (
        "SELECT events.ticket, kind, state, opens, waits_for_id, head IS event FROM events"
        " LEFT JOIN tickets USING (ticket) ORDER BY ticket, rank, event"
    )
    assert rows(together.path, sql) == rows(single.path, sql)


def test_openings_of_a_handful_are_one_transaction_and_one_statement(house: House) -> None:
    seen: list[str] = []
    webhooks = [
        house.webhook("itsm_new", str(n), writer="a", category="b", subject="c", contents="d")
        for n in range(16)
    ]
    connection_of(house.events).set_trace_callback(seen.append)
    receipts = house.events.receive(webhooks)
    connection_of(house.events).set_trace_callback(None)
    assert [one.event for one in receipts if isinstance(one, Receipt)] == list(range(1, 17))
    assert seen.count("COMMIT") == 1
    assert sum(text.startswith("INSERT INTO events") for text in seen) == 1


def test_a_bad_webhook_takes_no_other_of_its_handful_along(house: House) -> None:
    webhooks = [
        house.webhook("itsm_new", str(n), writer="a", category="b", subject="c", contents="d")
        for n in range(6)
    ]
    webhooks[2] = webhooks[2]._replace(fields='"\ud800"')  # no events takes a lone surrogate
    receipts = house.events.receive(webhooks)
    assert [isinstance(one, Receipt) for one in receipts] == [n != 2 for n in range(6)]
    assert positive(house.events.counts) == {"pending": 5}
    house.events.file.close()
    assert counted(house.path) == {"pending": 5}


def test_results_that_come_together_share_a_transaction(house: House) -> None:
    for number in range(4):
        house.new(str(number))
    events = house.events.due(house.events.file.clock() + FAR, 10)
    commits: list[str] = []

    def statement(text: str) -> None:
        if text.startswith("COMMIT"):
            commits.append(text)
            if len(commits) == 1:  # the first commit lasts until all others wait
                until(lambda: len(queue_of(house.events)) == 3)

    def recording(event: Event) -> Callable[[], object]:
        verdict = Verdict("delivered", "ok", request_id=f"R-{event.ticket}")
        return lambda: house.events.record(event, (), verdict)

    connection_of(house.events).set_trace_callback(statement)
    in_threads(*map(recording, events))
    connection_of(house.events).set_trace_callback(None)
    assert len(commits) == 2
    assert positive(house.events.counts) == {"delivered": 4}


def test_large_events_are_read_a_few_at_a_time(house: House) -> None:
    for number in range(8):
        house.new(str(number), contents="x" * 400_000)
    assert len(house.events.due(house.events.file.clock() + FAR, 64)) == 3
    busy = {event.ticket for event in house.events.due(house.events.file.clock() + FAR, 64)}
    others = house.events.due(house.events.file.clock() + FAR, 64, busy)
    assert len(others) == 3  # what is in flight takes no room from what waits
    assert not busy & {event.ticket for event in others}


def test_a_verdict_that_cannot_be_written_leaves_the_event_as_it_was(house: House) -> None:
    house.new("1")
    event = house.loaded(1)
    with pytest.raises(Exception, match=r"surrogates|UTF-8"):
        house.events.record(event, (), Verdict("delivered", "x", request_id="\ud800"))
    assert house.state(1) == "pending"
    assert house.drain() == [1]


def test_counts_are_what_another_program_counts(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.assign("1")
    house.new("2")
    house.assign("3")
    house.unreadable(b"nonsense")
    house.deliver(1, "R-1")
    house.fail(house.events.line("2")[0])
    assert house.events.drop(house.events.line("3")[0], "not wanted") == ""
    expected = {"pending": 1, "ignored": 1, "delivered": 1, "failed": 2, "dropped": 1}
    assert positive(house.events.counts) == expected
    house.events.file.close()
    assert counted(house.path) == expected
    house.open()
    assert positive(house.events.counts) == expected


def test_closing_twice_does_nothing_more(house: House) -> None:
    house.new("1")
    house.events.file.close()
    house.events.file.close()
    with pytest.raises(FileError):
        house.new("2")
    assert counted(house.path) == {"pending": 1}


def test_facts_outlive_the_process(house: House) -> None:
    house.events.file.keep_facts(paused="1.5")
    house.reopen()
    assert house.events.file.fact("paused") == "1.5"
    assert house.events.file.fact("never kept") == ""


# ---- Files that are refused --------------------------------------------------------------------


@pytest.fixture
def closed(house: House) -> Path:
    """A good file of some pages that nobody holds."""
    for number in range(60):
        house.new(str(number), contents="x" * 500)
    house.events.file.close()
    return house.path


def refused(path: Path, create: bool = True) -> str:
    """The reason for which a file is refused; it and what lies beside it stay as they were."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(FileError) as problem:
        opened(str(path), create=create).file.close()
    after = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    assert after[path.name] == before[path.name]
    assert set(after) - set(before) <= {f"{path.name}-wal", f"{path.name}-shm"}
    assert str(path) in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"nonsense" * 1000,
        b"SQLite format 3\0",
        b"\0" * 8192,
        b"SQLite format 3\0" * 600,
    ],
    ids=["empty", "a line", "nonsense", "a beginning", "zeros", "a repeated beginning"],
)
def test_garbage_is_refused_untouched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hd_itsm.db"
    path.write_bytes(content)
    assert refused(path)


@pytest.mark.parametrize("left", [0, 50, 100, 4096, 0.5, 0.9])
def test_a_truncated_file_is_refused_untouched(left: float, closed: Path) -> None:
    whole = closed.read_bytes()
    closed.write_bytes(whole[: int(left if left > 1 else left * len(whole))])
    assert "damaged" in refused(closed)


@pytest.mark.parametrize("page", [1, 2, 5, -1])
def test_a_file_with_a_damaged_page_is_refused_untouched(page: int, closed: Path) -> None:
    whole = bytearray(closed.read_bytes())
    start = (page if page > 0 else len(whole) // 4096 - 1) * 4096
    whole[start : start + 4096] = b"\xa5" * 4096
    closed.write_bytes(whole)
    assert "damaged" in refused(closed)


def test_a_file_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "hd_itsm.db"
    rows(path, "CREATE TABLE events (event INTEGER)")
    assert "another program" in refused(path)


def test_a_newer_file_is_refused_untouched(closed: Path) -> None:
    rows(closed, "PRAGMA user_version = 99")
    assert "newer" in refused(closed)


def test_a_newer_file_that_a_crash_left_in_its_log_is_refused(
    closed: Path, tmp_path: Path
) -> None:
    connection = sqlite3.connect(closed, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA user_version = 99")
    copy = image(closed, tmp_path)
    connection.close()
    assert Path(f"{copy}-wal").exists()
    with pytest.raises(FileError, match="newer"):
        opened(str(copy)).file.close()
    assert rows(copy, "PRAGMA user_version") == [(99,)]


def test_a_good_file_is_not_refused(closed: Path) -> None:
    """The control of the refusals above."""
    events = opened(str(closed), create=True)
    assert positive(events.counts) == {"pending": 60}
    events.file.close()


def test_a_missing_file_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "hd_itsm.db"
    with pytest.raises(FileError, match=r"hd_itsm\.db"):
        opened(str(path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hd_itsm.db").mkdir()
    with pytest.raises(FileError, match=r"hd_itsm\.db"):
        opened(str(tmp_path / "hd_itsm.db"), create=True)


def as_nobody(path: Path, create: bool) -> str:
    """What opening the events says to a user for whom the modes of files count (root is none)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "opened"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            opened(str(path), create=create).file.close()
        except FileError as problem:
            said = f"refused: {problem}"
        except BaseException as problem:
            said = f"raised {problem!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user reaches; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        if os.geteuid() == 0:
            os.chown(folder / "state", 65534, 65534)
        yield folder / "state"
        (folder / "state").chmod(0o755)


def test_a_directory_that_cannot_be_written_is_refused(public: Path) -> None:
    path = public / "hd_itsm.db"
    assert as_nobody(path, create=True) == "opened"
    whole = path.read_bytes()
    public.chmod(0o555)
    said = as_nobody(path, create=True)
    assert said.startswith("refused: ")
    assert str(path) in said
    assert path.read_bytes() == whole
    assert sorted(file.name for file in public.iterdir()) == ["hd_itsm.db"]


def test_no_file_in_a_directory_that_cannot_be_written_is_refused(public: Path) -> None:
    public.chmod(0o555)
    said = as_nobody(public / "hd_itsm.db", create=True)
    assert said.startswith("refused: ")
    assert list(public.iterdir()) == []


def test_a_file_that_cannot_be_read_is_refused(public: Path) -> None:
    path = public / "hd_itsm.db"
    assert as_nobody(path, create=True) == "opened"
    path.chmod(0o000)
    assert as_nobody(path, create=True).startswith("refused: ")


SECOND = """
import sys
sys.path.insert(0, sys.argv[2])
import hd_itsm
try:
    hd_itsm.File(sys.argv[1], create=True, patience=0.0).close()
    print("opened")
except hd_itsm.FileError as problem:
    print(f"refused: {problem}")
"""
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE events SET reason = 'held by another' WHERE event = 1")
print("held", flush=True)
sys.stdin.read()
"""


def second(path: Path) -> str:
    """What another process says that opens the same file."""
    arguments = [sys.executable, "-c", SECOND, str(path), str(Path(hd_itsm.__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


def test_a_second_process_is_refused_however_often_it_tries(house: House) -> None:
    house.new("1")
    for _ in range(2):  # a first try that let go of our lock would open the way for the second
        said = second(house.path)
        assert said.startswith("refused: ")
        assert "in use" in said
    assert house.new("2").event == 2
    house.events.file.close()
    assert counted(house.path) == {"pending": 2}
    assert second(house.path) == "opened\n"


def test_a_file_held_by_another_program_is_refused_and_its_work_untouched(closed: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(closed)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileError, match="in use"):
            opened(str(closed))
        other.communicate("", timeout=10)
    assert other.returncode == 0
    events = opened(str(closed))
    assert positive(events.counts) == {"pending": 60}
    events.file.close()


# ---- Numbers -----------------------------------------------------------------------------------


def test_events_are_numbered_one_two_three(house: House) -> None:
    assert [house.new(str(number)).event for number in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("restart", [False, True])
def test_no_number_is_used_again_after_retention(house: House, restart: bool) -> None:
    for number in range(5):
        house.new(str(number), received=time.time() - 40 * DAY)
    house.drain()
    retain_all(house, time.time() - 30 * DAY)
    if restart:
        house.reopen()
    assert house.new("again").event == 6


# ---- Duplicates --------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_an_event_equal_to_the_latest_of_its_ticket_is_ignored(
    house: House, restart: bool
) -> None:
    house.new("1")
    first = house.assign("1")
    if restart:
        house.reopen()
    again = house.assign("1")
    assert (again.event, again.state) == (first.event, "ignored")
    assert str(first.event) in again.reason
    assert house.assign("1").event == first.event  # also where the latest is itself ignored
    assert house.states("1") == ["pending", "pending", "ignored", "ignored"]
    assert house.drain() == [1, 2]


def test_an_ignored_event_is_kept_with_its_body_and_reason(house: House) -> None:
    house.new("1")
    house.new("1", subject="another")
    row = house.events.show(2)
    assert row is not None
    assert row["state"] == "ignored"
    assert json.loads(row["raw"])["subject"] == "another"
    assert "1" in row["reason"]


def test_an_event_equal_to_an_earlier_but_not_the_latest_is_sent(house: House) -> None:
    house.new("1")
    for technician in ("lee", "kim", "lee"):
        assert house.assign("1", technician).state == "pending"
    assert house.drain() == [1, 2, 3, 4]


def test_an_equal_event_of_another_ticket_is_no_duplicate(house: House) -> None:
    assert house.new("1").state == "pending"
    assert house.new("2").state == "pending"


@pytest.mark.parametrize("first", ["pending", "delivered", "held"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_second_opening_is_ignored_while_the_first_stands(
    house: House, first: str, restart: bool
) -> None:
    house.new("1")
    if first == "delivered":
        house.deliver(1, "R-1")
    elif first == "held":
        house.hold(1)
    if restart:
        house.reopen()
    again = house.new("1", subject="written anew")
    assert (again.event, again.state) == (1, "ignored")
    assert house.states("1") == [first, "ignored"]


@pytest.mark.parametrize("subject", ["printer", "written anew"])
def test_a_second_opening_takes_the_place_of_one_that_failed(house: House, subject: str) -> None:
    house.new("1")
    house.assign("1")
    house.fail(1)
    assert house.states("1") == ["failed", "held"]
    second_one = house.new("1", subject=subject)
    assert (second_one.event, second_one.state) == (3, "pending")
    assert house.states("1") == ["failed", "pending", "pending"]
    assert house.drain() == [3, 2]


def test_an_opening_is_ignored_where_the_first_was_removed_but_its_mapping_stays(
    house: House,
) -> None:
    house.new("1", received=time.time() - 40 * DAY)
    house.deliver(1, "R-1")
    house.new("2")
    retain_all(house, time.time() - 30 * DAY)
    assert house.events.show(1) is None
    assert house.new("1").state == "ignored"
    assert house.due() == [2]


def test_an_opening_kind_may_send_again_and_replaces_the_mapping(house: House) -> None:
    house.receive(house.webhook("renew", "1", subject="first"))
    house.deliver(1, "R-1")
    house.assign("1")
    again = house.receive(house.webhook("renew", "1", subject="second"))
    assert (again.event, again.state) == (3, "pending")
    assert house.due() == [2]
    house.deliver(2)
    house.deliver(3, "R-2")
    mapping = house.events.mappings.get("1")
    assert mapping is not None
    assert mapping["request_id"] == "R-2"


def test_a_delivery_id_seen_before_makes_a_duplicate_whatever_the_fields(house: House) -> None:
    house.new("1")
    first = house.assign("1", "lee", delivery_id="d-1")
    house.assign("1", "kim", delivery_id="d-2")
    house.reopen()
    again = house.assign("1", "park", delivery_id="d-1")
    assert (again.event, again.state) == (first.event, "ignored")


def test_a_new_delivery_id_makes_equal_fields_no_duplicate(house: House) -> None:
    house.new("1")
    assert house.assign("1", "lee", delivery_id="d-1").state == "pending"
    assert house.assign("1", "lee", delivery_id="d-2").state == "pending"


def test_a_new_delivery_id_does_not_open_a_ticket_twice(house: House) -> None:
    house.new("1", delivery_id="d-1")
    again = house.new("1", delivery_id="d-2")
    assert (again.event, again.state) == (1, "ignored")


@pytest.mark.parametrize("restart", [False, True])
def test_an_unreadable_body_repeated_gets_the_same_number_and_no_row(
    house: House, restart: bool
) -> None:
    first = house.unreadable(b"{nonsense")
    if restart:
        house.reopen()
    again = house.unreadable(b"{nonsense")
    assert (again.event, again.state) == (first.event, "failed") == (1, "failed")
    assert house.unreadable(b"{other nonsense").event == 2
    assert positive(house.events.counts) == {"failed": 2}


def test_one_webhook_fifty_times_at_once_is_one_event(house: House) -> None:
    receipts: list[Receipt] = []
    in_threads(*(lambda: receipts.append(house.new("1")) for _ in range(50)))
    assert {receipt.event for receipt in receipts} == {1}
    assert Counter(receipt.state for receipt in receipts) == {"pending": 1, "ignored": 49}
    assert positive(house.events.counts) == {"pending": 1, "ignored": 49}


def test_an_event_that_no_rule_wanted_does_not_stand_for_another(house: House) -> None:
    webhook = house.webhook("itsm_ass", "1", technician="lee")
    unwanted = webhook._replace(state="ignored", kind="")
    house.receive(unwanted)
    house.new("1")
    assert house.assign("1", "lee").state == "pending"


# ---- The order of a ticket ---------------------------------------------------------------------


def test_events_of_a_ticket_go_in_the_order_received(house: House) -> None:
    house.new("1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.complete("1")
    assert house.due() == [1]
    assert house.drain() == [1, 2, 3, 4]


def test_tickets_do_not_wait_for_each_other(house: House) -> None:
    for ticket in ("1", "2", "3"):
        house.new(ticket)
        house.assign(ticket)
    assert sorted(house.due()) == [1, 3, 5]
    house.later(1, 100.0)
    assert house.events.due(house.events.file.clock(), 10)[0].event in (3, 5)


def test_an_event_without_a_mapping_or_opening_is_held(house: House) -> None:
    receipt = house.assign("1")
    assert (receipt.state, receipt.request_id) == ("held", None)
    assert house.due() == []
    assert house.complete("1").state == "held"


def test_an_opening_overtakes_what_waits_for_the_request_id(house: House) -> None:
    house.assign("1", "lee")
    house.complete("1")
    assert house.states("1") == ["held", "held"]
    assert house.new("1").state == "pending"
    assert house.states("1") == ["pending", "pending", "pending"]
    assert house.drain() == [3, 1, 2]


def test_an_opening_does_not_overtake_what_needs_no_request_id(house: House) -> None:
    house.free_note("1", "first")
    house.assign("1")
    house.free_note("1", "second")
    house.new("1")
    assert house.due() == [1]
    assert house.drain() == [1, 3, 4, 2]


def test_events_wait_in_line_while_the_opening_is_pending(house: House) -> None:
    house.new("1")
    assert house.assign("1").state == "pending"
    house.later(1, 50.0)
    assert house.due() == [1]
    assert house.states("1") == ["pending", "pending"]
    house.reopen()
    assert house.due() == [1]


def test_a_mapping_lets_what_was_held_go_in_order(house: House) -> None:
    house.assign("1", "lee")
    house.assign("1", "kim")
    assert house.events.map("1", "R-9") == ([1, 2], "")
    assert house.drain() == [1, 2]
    receipt = house.complete("1")
    assert (receipt.state, receipt.request_id) == ("pending", "R-9")


def test_an_imported_mapping_lets_what_was_held_go(house: House) -> None:
    house.assign("1")
    assert house.events.import_mappings([("1", "R-9", 1.0, "{}"), ("2", "R-8", 2.0, "{}")]) == 2
    assert house.due() == [1]
    assert house.assign("2").state == "pending"


def test_a_failed_event_does_not_stop_the_later_ones(house: House) -> None:
    house.new("1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.deliver(1, "R-1")
    house.fail(2)
    assert house.drain() == [3]


def test_a_failed_opening_holds_the_later_ones(house: House) -> None:
    house.new("1")
    house.assign("1", "lee")
    house.complete("1")
    house.fail(1)
    assert house.states("1") == ["failed", "held", "held"]
    assert house.due() == []
    assert house.assign("1", "kim").state == "held"
    row = house.events.show(2)
    assert row is not None
    assert row["reason"]


def test_an_event_waits_at_its_next_try_and_the_line_behind_it(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.later(2, 500.0)
    now = house.events.file.clock()
    assert house.events.due(now, 10) == []
    assert numbers(house.events.due(now + FAR, 10)) == [2]
    due = house.events.next_due(now)
    assert due is not None
    assert now + 499 < due <= now + 501
    assert house.due() == [2]


def test_a_following_kind_goes_before_the_later_events(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.complete("1")
    house.deliver(1, "R-1", then="note")
    assert house.events.line("1") == [1, 4, 2, 3]
    child = house.loaded(4)
    assert (child.kind, child.ticket, child.fields) == ("note", "1", house_fields(house, 1))
    assert house.drain() == [4, 2, 3]


def house_fields(house: House, event: int) -> Any:
    row = house.events.show(event)
    assert row is not None
    return json.loads(row["fields"])


def test_a_following_kind_that_fails_is_its_own_affair(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.deliver(1, "R-1", then="note")
    house.fail(3)
    assert house.state(1) == "delivered"
    assert house.drain() == [2]


def test_a_following_kind_survives_a_crash_between_the_two(house: House, tmp_path: Path) -> None:
    house.new("1")
    house.assign("1")
    house.deliver(1, "R-1", then="note")
    house.crash(tmp_path)
    assert house.drain() == [3, 2]


def test_a_following_kind_does_not_hide_a_duplicate_of_its_parent(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    house.complete("1")
    house.deliver(2, then="note")
    assert house.complete("1").state == "ignored"


def test_an_outcome_for_an_event_dropped_meanwhile_keeps_the_request_id(house: House) -> None:
    house.new("1")
    house.assign("1")
    event = house.loaded(1)
    assert house.events.drop(1, "no longer wanted") == ""
    attempt = Attempt(time.time(), 0.1, 200, "delivered", "answered 200")
    verdict = Verdict("delivered", "answered 200", request_id="R-1")
    assert house.events.record(event, [attempt], verdict) is False
    assert house.state(1) == "dropped"
    assert house.due() == [2]
    mapping = house.events.mappings.get("1")
    assert mapping is not None
    assert mapping["request_id"] == "R-1"


# ---- Retry, drop, map --------------------------------------------------------------------------


def test_a_retried_opening_goes_first_and_frees_the_others(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.complete("1")
    house.fail(1)
    assert house.retry(1) == ""
    assert house.states("1") == ["pending", "pending", "pending"]
    assert house.drain() == [1, 2, 3]


def test_a_retried_event_goes_in_its_old_place(house: House) -> None:
    house.new("1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.deliver(1, "R-1")
    house.fail(2)
    house.later(3)
    assert house.retry(2) == ""
    assert house.due() == [2]
    assert house.drain() == [2, 3]


def test_an_event_older_than_a_delivered_one_is_retried_only_by_force(house: House) -> None:
    house.new("1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.deliver(1, "R-1")
    house.fail(2)
    house.deliver(3)
    refusal = house.retry(2)
    assert "3" in refusal
    assert house.state(2) == "failed"
    assert house.retry(2, force=True) == ""
    assert house.drain() == [2]


@pytest.mark.parametrize("state", ["pending", "delivered"])
def test_an_event_that_needs_no_retry_is_left_alone(house: House, state: str) -> None:
    house.new("1")
    if state == "delivered":
        house.deliver(1, "R-1")
    assert house.retry(1)
    assert house.state(1) == state


def test_a_retry_starts_with_fresh_patience(house: House) -> None:
    house.new("1")
    house.later(1)
    house.fail(1)
    before = house.events.file.clock()
    assert house.retry(1) == ""
    event = house.loaded(1)
    assert (event.tries, event.first_try) == (0, None)
    assert event.born >= before


def test_attempts_and_the_idempotency_key_go_on_after_a_retry(house: House) -> None:
    house.new("1")
    key = house.loaded(1).idempotency_key
    house.fail(1)
    house.retry(1)
    assert house.loaded(1).idempotency_key == key
    house.deliver(1, "R-1")
    row = house.events.show(1)
    assert row is not None
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["failed", "delivered"]


def test_an_ignored_second_opening_is_retried_only_by_force(house: House) -> None:
    house.new("1")
    house.new("1", subject="anew")
    assert house.retry(2)
    assert house.state(2) == "ignored"
    assert house.retry(2, force=True) == ""
    assert house.drain() == [1, 2]


def test_a_dropped_event_can_be_taken_up_again(house: House) -> None:
    house.new("1")
    assert house.events.drop(1, "a mistake") == ""
    row = house.events.show(1)
    assert row is not None
    assert "a mistake" in row["reason"]
    assert house.retry(1) == ""
    assert house.drain() == [1]


def test_dropping_the_opening_holds_what_waits_for_it(house: House) -> None:
    house.new("1")
    house.assign("1")
    assert house.events.drop(1, "no") == ""
    assert house.states("1") == ["dropped", "held"]


def test_dropping_the_first_lets_the_next_go(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.later(2, 3000.0)
    assert house.events.drop(2, "no") == ""
    assert numbers(house.events.due(house.events.file.clock(), 10)) == [3]


def test_what_is_done_or_not_there_cannot_be_dropped(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    assert "delivered" in house.events.drop(1, "no")
    assert "99" in house.events.drop(99, "no")
    assert house.state(1) == "delivered"


def test_mapping_an_unclear_opening_by_hand_delivers_it(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.hold(1)
    assert house.states("1") == ["held", "held"]
    house.events.map("1", "R-7")
    row = house.events.show(1)
    assert row is not None
    assert (row["state"], row["reason"]) == ("delivered", "mapped by hand")
    assert house.drain() == [2]


def test_retrying_an_unclear_opening_sends_it_again(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.hold(1)
    assert house.due() == []
    assert house.retry(1) == ""
    assert house.drain() == [1, 2]


def test_a_failed_opening_that_may_have_happened_is_settled_by_a_mapping(house: House) -> None:
    house.new("1")
    house.assign("1")
    house.fail(1, may_have_happened=True)
    house.events.map("1", "R-7")
    assert house.states("1") == ["delivered", "pending"]
    assert house.drain() == [2]


def test_an_opening_whose_answer_had_no_id_is_settled_by_a_mapping(house: House) -> None:
    house.new("1")
    house.assign("1")
    assert house.settle(1, Verdict("failed", f"answered 200 {hd_itsm.NO_ID}: {{}}"))
    house.events.map("1", "R-7")
    assert house.states("1") == ["delivered", "pending"]
    assert house.drain() == [2]


def test_a_mapping_leaves_an_opening_alone_that_was_refused(house: House) -> None:
    house.new("1")
    house.fail(1)
    house.events.map("1", "R-7")
    assert house.states("1") == ["failed"]


def test_a_mapping_is_replaced_not_doubled(house: House) -> None:
    house.events.map("1", "R-1")
    house.events.map("1", "R-2")
    assert [row["request_id"] for row in house.events.mappings.page()] == ["R-2"]


def test_an_empty_request_id_never_enters_a_mapping(house: House) -> None:
    with pytest.raises((sqlite3.IntegrityError, hd_itsm.Error, ValueError)):
        house.events.map("1", "")
    assert house.events.mappings.get("1") is None
    assert house.new("1").state == "pending"


def test_all_mappings_come_page_by_page_once_each(house: House) -> None:
    tickets = sorted([str(number) for number in range(25)] + ["가", "z'; --", "Ä"])
    house.events.import_mappings([(ticket, f"R-{ticket}", 1.0, "{}") for ticket in tickets])
    seen: list[str] = []
    while page := house.events.mappings.page(seen[-1] if seen else "", 7):
        assert len(page) <= 7
        assert all(row["request_id"] == f"R-{row['ticket']}" for row in page)
        seen += [row["ticket"] for row in page]
    assert sorted(seen) == tickets


def test_a_long_import_is_whole_and_keeps_its_times(house: House) -> None:
    count = house.events.import_mappings(
        [(f"t{n:05}", f"R-{n}", float(n), "{}") for n in range(1203)]
    )
    assert count == 1203
    assert len(house.events.mappings.page("", 5000)) == 1203
    mapping = house.events.mappings.get("t01202")
    assert mapping is not None
    assert (mapping["since"], mapping["origin"]) == (1202.0, "import")


# ---- Retention ---------------------------------------------------------------------------------


def retain_all(house: House, before: float, limit: int = 200) -> int:
    """Retention from the beginning to the end of the file; in how many steps."""
    after, steps = 0, 0
    while True:
        after, steps = house.events.retain(before, after, limit), steps + 1
        if not after:
            return steps
        assert steps < 1000


def test_retention_removes_what_is_done_and_keeps_the_rest(house: House) -> None:
    old = time.time() - 40 * DAY
    house.new("delivered", received=old)
    house.new("delivered", received=old)
    house.new("failed", received=old)
    house.new("dropped", received=old)
    house.assign("held", received=old)
    house.new("pending", received=old)
    house.new("young")
    house.new("last", received=old)
    house.deliver(1, "R-1")
    house.fail(3)
    house.events.drop(4, "no")
    house.deliver(7, "R-7")
    retain_all(house, time.time() - 30 * DAY)
    kept = {row["event"]: row["state"] for row in house.events.page(limit=100)}
    assert kept == {3: "failed", 5: "held", 6: "pending", 7: "delivered", 8: "pending"}
    assert house.events.mappings.get("delivered") is not None
    assert positive(house.events.counts) == {"failed": 1, "held": 1, "pending": 2, "delivered": 1}
    house.events.file.close()
    assert counted(house.path) == positive(house.events.counts)
    assert rows(house.path, "SELECT DISTINCT event FROM attempts ORDER BY 1") == [(3,), (7,)]


def test_retention_goes_step_by_step_past_what_stays(house: House) -> None:
    old = time.time() - 40 * DAY
    for number in range(30):
        house.new(str(number), received=old)
    for number in range(30):
        if number % 3:
            house.deliver(number + 1, f"R-{number}")
        else:
            house.fail(number + 1)
    house.new("last")
    assert retain_all(house, time.time() - 30 * DAY, limit=4) >= 7
    kept = {row["event"] for row in house.events.page(limit=100)}
    assert kept == {*range(1, 31, 3), 31}


def test_a_step_of_retention_touches_no_more_than_its_limit(house: House) -> None:
    for number in range(30):
        house.new(str(number), received=1.0)
    house.drain()
    house.events.retain(time.time(), 0, 10)
    assert len(house.events.page(limit=100)) == 20


# ---- Time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_a_jump_of_the_wall_clock_moves_no_due_time(
    house: House, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.new("1")
    house.later(1, 30.0)
    real, before = time.time, house.events.file.clock()
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    now = house.events.file.clock()
    assert before <= now < before + 10
    assert house.events.due(now, 10) == []
    assert numbers(house.events.due(now + 31, 10)) == [1]


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_a_jump_across_a_restart_delays_and_ages_nothing_beyond_the_cap(
    house: House, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.new("1")
    house.new("2")
    house.later(1, 30.0)
    before = house.events.file.clock()
    house.events.file.close()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    house.open()
    now = house.events.file.clock()
    assert before <= now <= before + hd_itsm.MAX_RETRY_AFTER + 10
    assert sorted(numbers(house.events.due(now + 31, 10))) == [1, 2]
    assert all(now - house.loaded(event).born < DAY for event in (1, 2))


def test_the_service_clock_goes_on_over_restarts(house: House) -> None:
    seen = [house.events.file.clock()]
    for _ in range(3):
        house.reopen()
        seen.append(house.events.file.clock())
    assert seen == sorted(seen)


def test_time_away_counts_as_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.new("1")
    house.later(1, 300.0)
    house.events.file.close()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 600)
    house.open()
    assert numbers(house.events.due(house.events.file.clock(), 10)) == [1]


def test_a_due_time_out_of_reach_is_brought_back_at_a_start(house: House) -> None:
    house.new("1")
    house.later(1, 1e9)
    house.reopen()
    now = house.events.file.clock()
    assert numbers(house.events.due(now + hd_itsm.MAX_RETRY_AFTER + 1, 10)) == [1]


# ---- Crashes -----------------------------------------------------------------------------------


def test_an_attempt_on_its_way_at_a_crash_is_unclear_afterwards(
    house: House, tmp_path: Path
) -> None:
    house.new("1")
    assert house.events.begin(house.loaded(1), time.time()) is True
    row = house.events.show(1)
    assert row is not None
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["sent"]
    house.crash(tmp_path)
    event = house.loaded(1)
    assert event.may_have_happened
    assert event.attempts == 1
    row = house.events.show(1)
    assert row is not None
    assert row["state"] == "pending"
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["unclear"]


def test_an_attempt_that_was_not_recorded_leaves_no_trace(house: House, tmp_path: Path) -> None:
    """The control: without `begin` a crash knows nothing, and the event is simply pending."""
    house.new("1")
    house.loaded(1)
    house.crash(tmp_path)
    assert not house.loaded(1).may_have_happened
    assert house.due() == [1]


def test_an_event_dropped_meanwhile_may_not_begin(house: House) -> None:
    house.new("1")
    event = house.loaded(1)
    house.events.drop(1, "no")
    assert house.events.begin(event, time.time()) is False


def test_everything_stands_after_a_crash_as_it_stood(house: House, tmp_path: Path) -> None:
    house.new("1")
    house.assign("1")
    house.assign("2")
    house.new("3")
    house.deliver(1, "R-1")
    house.fail(4)
    before = house.events.page(limit=100)
    house.crash(tmp_path)
    assert house.events.page(limit=100) == before
    assert positive(house.events.counts) == {"delivered": 1, "pending": 1, "held": 1, "failed": 1}
    assert house.due() == [2]


def test_of_very_many_attempts_the_first_and_the_last_are_kept(house: House) -> None:
    house.new("1")
    for _ in range(150):
        house.later(1)
    row = house.events.show(1)
    assert row is not None
    numbers = [attempt["attempt"] for attempt in row["attempts"]]
    assert len(numbers) < 100
    assert numbers[:3] == [1, 2, 3]
    assert numbers[-3:] == [148, 149, 150]


# ---- Waiting for an event ----------------------------------------------------------------------


def test_waiting_ends_when_the_event_is_settled(house: House) -> None:
    house.new("1")
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(house.events.wait(1, 20.0, 5)))
    waiting.start()
    began = time.monotonic()
    house.deliver(1, "R-1")
    waiting.join(10)
    assert time.monotonic() - began < 5
    assert [(one.state, one.request_id) for one in found] == [("delivered", "R-1")]


def test_waiting_ends_when_the_time_is_over(house: House) -> None:
    house.new("1")
    began = time.monotonic()
    found = house.events.wait(1, 0.2, 5)
    assert found is not None
    assert found.state == "pending"
    assert 0.15 < time.monotonic() - began < 5


# ---- Any story at all --------------------------------------------------------------------------


@dataclass
class Told:
    """An event as the model has it."""

    event: int
    ticket: str
    kind: str
    value: str
    state: str
    unclear: bool = False  # it may have happened
    sent: bool = False  # an attempt was made
    duplicate: bool = False

    @property
    def opens(self) -> bool:
        return self.kind in ("new", "renew")

    @property
    def needs(self) -> bool:
        """Whether it waits for the ticket's request id."""
        return self.kind in ("assign", "note")


TICKETS = st.sampled_from(["1", "2", "3"])
VALUES = st.sampled_from(["a", "b"])


@settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
class Stories(RuleBasedStateMachine):
    """Every story that helpdesk, ITSM, person and power cut can tell, against SPEC's rules.

    The model keeps a list of events and the mappings; what waits, what is held and what may go is
    derived from them anew each time. Anything may happen while a request is on its way.
    """

    stored = Bundle("stored")

    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")  # where an fsync costs nothing
        self._folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        self.events: dict[int, Told] = {}
        self.flying: dict[str, Event] = {}  # by ticket; what is on its way to the ITSM
        self.settled: set[int] = set()  # of those what a person has settled meanwhile
        self.mapped: dict[str, str] = {}
        self.opened: Counter[str] = Counter()

    @initialize()
    def begin(self) -> None:
        folder = Path(self._folder.name)
        (folder / "hd_itsm.toml").write_text(CONFIG, encoding="utf-8")
        configured = hd_itsm.load_config(str(folder / "hd_itsm.toml"), {}, {}, complete=False)
        path = folder / "hd_itsm.db"
        self.house = House(configured, path, opened(str(path), create=True))

    # The model

    def of(self, ticket: str) -> list[Told]:
        return [told for _, told in sorted(self.events.items()) if told.ticket == ticket]

    def barred(self, ticket: str) -> bool:
        """Whether an opening of the ticket needs a person."""
        return any(
            told.opens and (told.state == "failed" or (told.state == "held" and told.unclear))
            for told in self.of(ticket)
        )

    def waits(self, told: Told) -> bool:
        if told.ticket in self.mapped or told.opens:
            return False
        return told.needs or self.barred(told.ticket)

    def open_line(self, ticket: str) -> list[Told]:
        """What of a ticket is undecided, without what a person must decide."""
        return [
            told
            for told in self.of(ticket)
            if told.state in ("pending", "held") and not (told.state == "held" and told.unclear)
        ]

    def arrange(self, ticket: str) -> None:
        line = self.open_line(ticket)
        opening = any(told.opens for told in line)
        for told in line:
            told.state = "held" if self.waits(told) and not opening else "pending"

    def heads(self) -> dict[int, Told]:
        """What may go: of each ticket the first that does not wait for the request id."""
        first: dict[str, Told] = {}
        for _, told in sorted(self.events.items()):
            if told in self.open_line(told.ticket) and not self.waits(told):
                first.setdefault(told.ticket, told)
        return {told.event: told for told in first.values()}

    def ready(self) -> list[Told]:
        """What may be sent now: heads of tickets of which nothing is on its way."""
        heads = sorted(self.heads().items())
        return [told for _, told in heads if told.ticket not in self.flying]

    def repeated(self, ticket: str, kind: str, value: str) -> Told | None:
        """The ticket's latest event, duplicates apart, where it says the same."""
        latest = [told for told in self.of(ticket) if not told.duplicate][-1:]
        return next((t for t in latest if (t.kind, t.value) == (kind, value)), None)

    def first_of(self, ticket: str, kind: str, value: str) -> int | None:
        """The event that this one would repeat, 0 where only the mapping speaks against it."""
        if kind == "new":
            for told in self.of(ticket):
                if told.opens and told.state in ("pending", "held", "delivered"):
                    return told.event
            if ticket in self.mapped:
                return 0
        same = self.repeated(ticket, kind, value)
        if same is None or same.state == "dropped" or (same.state == "failed" and not same.sent):
            return None
        return None if same.opens and same.state == "failed" else same.event

    # What may happen

    @rule(
        target=stored,
        ticket=TICKETS,
        kind=st.sampled_from(["new", "renew", "assign", "note", "word"]),
        value=VALUES,
    )
    def receive(self, ticket: str, kind: str, value: str) -> int:
        first = self.first_of(ticket, kind, value)
        number = max(self.events, default=0) + 1
        state = "pending" if first is None else "ignored"
        told = Told(number, ticket, kind, value, state, duplicate=state == "ignored")
        receipt = self.house.send(kind, ticket, value)
        self.events[number] = told
        self.arrange(ticket)
        assert receipt.state == told.state
        assert receipt.event == (first or number)
        assert receipt.request_id == self.mapped.get(ticket)
        return number

    @rule(target=stored, ticket=TICKETS, value=VALUES)
    def receive_what_cannot_be_translated(self, ticket: str, value: str) -> int:
        webhook = self.house.hears("new", ticket, value)
        receipt = self.house.receive(webhook._replace(state="failed", reason="no such filter"))
        same = self.repeated(ticket, "new", value)
        if same and same.state == "failed" and not same.sent:
            assert (receipt.event, receipt.state) == (same.event, "failed")
            return same.event
        first, number = self.first_of(ticket, "new", value), max(self.events, default=0) + 1
        state = "failed" if first is None else "ignored"
        self.events[number] = Told(
            number, ticket, "new", value, state, duplicate=first is not None
        )
        self.arrange(ticket)
        assert (receipt.event, receipt.state) == (first or number, state)
        return number

    @rule(ticket=TICKETS)
    def receive_what_no_rule_wants(self, ticket: str) -> None:
        webhook = self.house.hears("word", ticket, "unwanted")
        receipt = self.house.receive(webhook._replace(state="ignored", kind="", reason="no rule"))
        self.events[receipt.event] = Told(receipt.event, ticket, "", "", "ignored")

    @precondition(lambda self: self.ready())
    @rule(choice=st.integers(0, 10), careful=st.booleans())
    def send(self, choice: int, careful: bool) -> None:
        told = self.ready()[choice % len(self.ready())]
        self.judge_order(told)
        event = self.house.loaded(told.event)
        if careful:
            assert self.house.events.begin(event, time.time()) is True
            told.unclear = told.sent = True
        self.flying[told.ticket] = event

    @precondition(lambda self: self.flying)
    @rule(
        choice=st.integers(0, 10),
        outcome=st.sampled_from(
            ["delivered"] * 3 + ["failed", "unsure", "later", "unclear", "another's"]
        ),
    )
    def hear(self, choice: int, outcome: str) -> None:
        """An answer comes, or none: what it means is recorded against what is in the file now."""
        ticket = sorted(self.flying)[choice % len(self.flying)]
        event = self.flying.pop(ticket)
        told = self.events[event.event]
        due = self.house.events.file.clock() + choice
        others = [request for other, request in self.mapped.items() if other != ticket]
        request_id = ""
        if told.opens and outcome in ("delivered", "another's"):
            request_id = others[0] if outcome == "another's" and others else f"R-{event.event}"
        verdict = {
            "delivered": Verdict("delivered", "answered 200", request_id=request_id),
            "another's": Verdict("delivered", "answered 200", request_id=request_id),
            "failed": Verdict("failed", "answered 400"),
            "unsure": Verdict("failed", "answered 200", may_have_happened=True),
            "unclear": Verdict("held", "no answer came", may_have_happened=True),
            "later": Verdict("pending", "answered 503", due=due, tries=1),
        }[outcome]
        attempt = Attempt(time.time(), 0.01, 200, outcome, verdict.reason)
        stands = event.event in self.settled
        assert self.house.events.record(event, [attempt], verdict) is not stands
        told.sent = True
        if request_id in others:
            verdict = Verdict("held", "", may_have_happened=True)
        if not stands:
            told.state, told.unclear = verdict.state, verdict.may_have_happened
            self.opened[ticket] += told.kind == "new" and verdict.state == "delivered"
        if verdict.request_id and (not stands or ticket not in self.mapped):
            self.mapped[ticket] = verdict.request_id
        self.settled.discard(event.event)
        self.arrange(ticket)

    def settle(self, told: Told) -> None:
        """A person has decided: an answer that is still to come changes nothing any more."""
        if told.ticket in self.flying and self.flying[told.ticket].event == told.event:
            self.settled.add(told.event)

    def judge_order(self, told: Told) -> None:
        """Nothing older of the ticket that could have gone is still there."""
        for other in self.of(told.ticket):
            if other.event < told.event and other.state in ("pending", "held"):
                assert self.waits(other) or other.unclear, f"{told} before {other}"
        assert not told.needs or told.ticket in self.mapped

    @rule(event=stored)
    def retry(self, event: int) -> None:
        told = self.events[event]
        others = [other for other in self.of(told.ticket) if other is not told]
        settled = told.state in ("failed", "ignored", "dropped")
        allowed = settled or (told.state == "held" and told.unclear)
        if any(other.state == "delivered" and other.event > event for other in others):
            allowed = False
        taken = [o for o in others if o.opens and o.state in ("pending", "held", "delivered")]
        if told.kind == "new" and (taken or told.ticket in self.mapped):
            allowed = False
        if told.state == "held" and not told.unclear:
            return  # what only waits goes on waiting, whether that is refused or not
        assert (self.house.retry(event) == "") == allowed
        if allowed:
            told.state, told.unclear, told.duplicate = "pending", False, False
            self.settled.discard(event)  # it is to be sent: what the first answer says counts
            self.arrange(told.ticket)

    @rule(event=stored)
    def drop(self, event: int) -> None:
        told = self.events[event]
        allowed = told.state in ("pending", "held", "failed", "ignored")
        if told.state == "ignored":
            return  # SPEC names no way from ignored to dropped, and forbids none
        assert (self.house.events.drop(event, "no") == "") == allowed
        if allowed:
            told.state = "dropped"
            self.settle(told)
            self.arrange(told.ticket)

    @rule(ticket=TICKETS, number=st.integers(1, 3), imported=st.booleans())
    def map(self, ticket: str, number: int, imported: bool) -> None:
        if imported:
            self.house.events.import_mappings([(ticket, f"H-{number}", 1.0, "{}")])
        else:
            self.house.events.map(ticket, f"H-{number}")
        self.mapped[ticket] = f"H-{number}"
        for told in self.of(ticket):
            unclear = told.unclear and told.state in ("held", "failed")
            if told.opens and (unclear or told.state == "pending"):
                told.state = "delivered"
                self.settle(told)
        self.arrange(ticket)

    @rule()
    def restart(self) -> None:
        self.flying.clear()
        self.settled.clear()
        self.house.reopen()

    @rule()
    def power_cut(self) -> None:
        self.flying.clear()
        self.settled.clear()
        self.house.crash(Path(self._folder.name))

    # What must always hold

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        if hasattr(self, "house"):
            found = self.house.events.page(limit=1000)
            assert {row["event"]: row["state"] for row in found} == {
                told.event: told.state for told in self.events.values()
            }
            assert {row["event"]: row["ticket"] for row in found} == {
                told.event: told.ticket for told in self.events.values()
            }

    @invariant()
    def of_each_ticket_exactly_one_may_go(self) -> None:
        if hasattr(self, "house"):
            assert sorted(self.house.due()) == sorted(self.heads())

    @invariant()
    def held_means_no_mapping_and_no_opening(self) -> None:
        for told in self.events.values():
            if told.state == "held" and not told.unclear:
                assert told.ticket not in self.mapped
                assert not any(o.opens and o.state == "pending" for o in self.of(told.ticket))

    @invariant()
    def counts_are_right(self) -> None:
        if hasattr(self, "house"):
            states = Counter(told.state for told in self.events.values())
            assert positive(self.house.events.counts) == dict(states)

    @invariant()
    def mappings_are_right(self) -> None:
        if hasattr(self, "house"):
            found = {row["ticket"]: row["request_id"] for row in self.house.events.mappings.page()}
            assert found == self.mapped

    @invariant()
    def no_ticket_is_opened_twice(self) -> None:
        assert all(count <= 1 for count in self.opened.values())

    def teardown(self) -> None:
        """In the end everything that may go goes, in order, and only what is held stays."""
        if hasattr(self, "house"):
            while heads := self.heads():
                told = self.events[min(heads)]
                self.judge_order(told)
                request_id = f"R-{told.event}" if told.opens else ""
                self.house.deliver(told.event, request_id)
                told.state = "delivered"
                if told.opens:
                    self.mapped[told.ticket] = request_id
                self.arrange(told.ticket)
            assert self.house.due() == []
            self.house.events.file.close()
            states = Counter(told.state for told in self.events.values())
            assert counted(self.house.path) == dict(states)
            assert "pending" not in states
        self._folder.cleanup()


TestStories = Stories.TestCase


# ---- What two do at once -----------------------------------------------------------------------


def heads(house: House) -> dict[str, int]:
    """Ticket -> the event that may go; a ticket that stands twice would fail."""
    due = house.events.due(house.events.file.clock() + FAR, 1000)
    assert len({event.ticket for event in due}) == len(due)
    return {event.ticket: event.event for event in due}


def test_an_earlier_event_that_is_retried_goes_before_one_in_flight_that_failed(
    house: House,
) -> None:
    """Both would be due, and the later one could overtake the earlier."""
    house.new("1")
    house.deliver(1, "R-1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.fail(2)
    in_flight = house.loaded(3)
    assert house.retry(2) == ""
    due = house.events.file.clock() + 1.0
    assert house.events.record(in_flight, (), Verdict("pending", "answered 503", due=due))
    assert heads(house) == {"1": 2}
    now = [event.event for event in house.events.due(house.events.file.clock(), 10)]
    assert now == [2]  # the other one's due time is not its
    assert house.drain() == [2, 3]


def test_a_mapping_by_hand_stands_though_an_answer_was_in_flight(house: House) -> None:
    house.new("1")
    in_flight = house.loaded(1)
    assert house.events.map("1", "R-hand") == ([], "")
    verdict = Verdict("delivered", "answered 200", request_id="R-itsm")
    assert house.events.record(in_flight, (), verdict) is False
    row = house.events.mappings.get("1")
    assert row is not None
    assert (row["request_id"], row["origin"]) == ("R-hand", "hand")


def test_an_import_settles_a_pending_opening_and_stands(house: House) -> None:
    house.new("1")
    house.assign("1")
    in_flight = house.loaded(1)
    assert house.events.import_mappings([("1", "R-old", 5.0, "{}")]) == 1
    assert house.states("1") == ["delivered", "pending"]
    verdict = Verdict("delivered", "answered 200", request_id="R-itsm")
    assert house.events.record(in_flight, (), verdict) is False
    assert [row["request_id"] for row in house.events.mappings.page()] == ["R-old"]
    assert house.drain() == [2]


@pytest.mark.parametrize("imported", [False, True])
def test_an_opening_that_is_sent_again_after_a_mapping_replaces_it(
    house: House, imported: bool
) -> None:
    """A person's word stands against what was on its way then, not against what came later."""
    if imported:
        house.events.import_mappings([("1", "R-old", 5.0, "{}")])
    else:
        house.events.map("1", "R-old")
    house.send("renew", "1", "anew")
    house.deliver(1, "R-new")
    assert [row["request_id"] for row in house.events.mappings.page()] == ["R-new"]


def test_what_the_itsm_took_is_delivered_though_the_line_is_held_meanwhile(house: House) -> None:
    """Its ticket's opening fails while the request is on its way: then all of the line waits."""
    house.send("word", "1", "hello")
    in_flight = house.loaded(1)
    broken = house.hears("new", "1", "printer")._replace(state="failed", reason="no such filter")
    house.receive(broken)
    house.send("word", "1", "hello again")
    assert house.states("1") == ["held", "failed", "held"]
    attempt = Attempt(time.time(), 0.01, 200, "delivered", "answered 200")
    verdict = Verdict("delivered", "answered 200")
    assert house.events.record(in_flight, [attempt], verdict) is True
    assert house.states("1") == ["delivered", "failed", "held"]


def test_attempts_are_numbered_on_though_their_event_was_dropped_meanwhile(house: House) -> None:
    house.new("1")
    in_flight = house.loaded(1)
    assert house.events.drop(1, "no") == ""
    attempt = Attempt(time.time(), 0.01, 503, "later", "answered 503")
    assert house.events.record(in_flight, [attempt], Verdict("pending", "later")) is False
    assert house.retry(1) == ""
    house.deliver(1, "R-1")
    row = house.events.show(1)
    assert row is not None
    assert [one["outcome"] for one in row["attempts"]] == ["later", "delivered"]


def test_an_event_that_is_not_the_first_any_more_may_not_begin(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    house.assign("1", "lee")
    house.assign("1", "kim")
    house.fail(2)
    read_before = house.loaded(3)
    assert house.retry(2) == ""
    assert house.events.begin(read_before, time.time()) is False
    assert house.events.begin(house.loaded(2), time.time()) is True


def test_a_request_that_another_ticket_has_is_never_taken_by_itself(house: House) -> None:
    house.new("1")
    house.deliver(1, "R-1")
    house.new("2")
    house.assign("2")
    event = house.loaded(2)
    house.events.record(event, (), Verdict("delivered", "answered 200", request_id="R-1"))
    row = house.events.show(2)
    assert row is not None
    assert (row["state"], row["may_have_happened"]) == ("held", 1)
    assert "R-1" in row["reason"]
    assert "ticket 1" in row["reason"]
    assert house.events.mappings.get("2") is None
    assert house.states("2") == ["held", "held"]
    assert house.events.map("2", "R-1") == ([3], "1")  # a person may, and is told
    assert house.drain() == [3]


def test_an_opening_refused_again_is_no_further_event(house: House) -> None:
    """As an unreadable body that is repeated: the same 400 with the same number."""
    broken = house.hears("new", "1", "printer")._replace(state="failed", reason="no such filter")
    receipts = [house.receive(broken) for _ in range(3)]
    assert [(one.event, one.state) for one in receipts] == [(1, "failed")] * 3
    assert house.new("1").event == 2  # it can be translated now


def test_an_event_is_no_duplicate_where_another_came_in_between_that_no_rule_wanted(
    house: House,
) -> None:
    """It is not equal to its ticket's latest: closed, opened again (of no interest), closed."""
    house.new("1")
    house.complete("1")
    unwanted = house.hears("word", "1", "opened again")
    house.receive(
        unwanted._replace(state="ignored", kind="", reason="no rule of the hook matches")
    )
    assert house.complete("1").state == "pending"
    assert house.complete("1").state == "ignored"
    assert house.new("1").state == "ignored"
    assert house.complete("1").state == "ignored"  # a duplicate in between says nothing new


def test_a_ticket_is_found_though_no_rule_wanted_its_events(house: House) -> None:
    unwanted = house.hears("word", "1", "opened again")
    house.receive(
        unwanted._replace(state="ignored", kind="", reason="no rule of the hook matches")
    )
    house.new("2")
    house.receive(house.hears("assign", "3", "lee"))
    house.events.map("4", "R-4")
    found = [house.events.find(text)[0] for text in ("1", "2", "3", "R-4", "5")]
    assert found == [["1"], ["2"], ["3"], ["4"], []]


def test_an_event_that_is_read_as_another_ticket_s_leaves_the_line_where_it_stood(
    house: House,
) -> None:
    """A retry after the hook's path was corrected: the failed opening bars the wrong line no more."""
    house.new("1")
    house.fail(1)
    house.send("word", "1", "hello")
    assert house.states("1") == ["failed", "held"]
    assert house.events.retry({1: house.hears("new", "2", "printer")}) == {}
    assert heads(house) == {"1": 2, "2": 1}


def test_a_delivery_id_counts_within_its_ticket_and_kind(house: House) -> None:
    """Some helpdesks send the same one with every webhook."""
    assert house.new("1", delivery_id="same").state == "pending"
    assert house.new("2", delivery_id="same").state == "pending"
    assert house.assign("1", delivery_id="same").state == "pending"
    assert house.assign("1", "kim", delivery_id="same").state == "ignored"


def test_an_event_that_differs_in_what_only_a_following_kind_sends_is_no_duplicate(
    tmp_path: Path,
) -> None:
    (tmp_path / "hd_itsm.toml").write_text(
        """
[hooks.note]
kind = "note"
fields = { ticket_id = "ticket_id", text = "text", who = "who" }
[kinds.note]
body = { text = "{text}" }
then = "sign"
[kinds.sign]
body = { who = "{who}" }
""",
        encoding="utf-8",
    )
    config = hd_itsm.load_config(str(tmp_path / "hd_itsm.toml"), {}, {}, complete=False)
    path = tmp_path / "hd_itsm.db"
    house = House(config, path, opened(str(path), create=True))
    states = [
        house.receive(house.webhook("note", "1", text="a", who=who)).state
        for who in ("kim", "kim", "lee")
    ]
    house.events.file.close()
    assert states == ["pending", "ignored", "pending"]


def test_what_waits_follows_the_kinds_as_they_are_configured_now(house: House) -> None:
    house.note("1")
    assert house.states("1") == ["held"]
    kinds = {"note": (False, True), "new": (True, False)}
    house.events.adapt(kinds)
    assert house.states("1") == ["held"]
    house.events.adapt({**kinds, "note": (False, False)})  # its request names no id any more
    assert house.drain() == [1]


def test_what_is_held_goes_when_its_kind_opens_though_another_opening_failed(
    house: House,
) -> None:
    house.new("1")
    house.fail(1)
    house.note("1")
    assert house.states("1") == ["failed", "held"]
    house.events.adapt({"note": (True, False), "new": (True, False)})
    assert house.drain() == [2]


def test_a_fact_is_not_believed_before_it_is_on_the_disk(house: House) -> None:
    def operation() -> None:
        house.events.file.set_facts({"paused": "1"})
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        house.events.file.write(operation)
    assert house.events.file.fact("paused") == ""
    house.events.file.keep_facts(paused="1")
    assert house.events.file.fact("paused") == "1"


def steps_of(house: House, what: Callable[[], object]) -> int:
    """How much SQLite did for `what`, in hundreds of its instructions."""
    count = [0]

    def tick() -> int:
        count[0] += 1
        return 0

    connection_of(house.events).set_progress_handler(tick, 100)
    what()
    connection_of(house.events).set_progress_handler(None, 0)
    return count[0]


@pytest.mark.parametrize(
    "line", ["mapped", "waiting", "held", "barred", "unclear", "repeated", "repeated and dropped"]
)
def test_an_event_costs_no_more_where_its_ticket_has_many(house: House, line: str) -> None:
    """Webhooks, duplicates and results of a ticket with 1,500 events, in SQLite's own steps.

    As many other tickets wait: they cost nothing either.
    """
    number = iter(range(100_000))

    def prepare(ticket: str) -> None:
        """A ticket whose line is one of those that can grow long."""
        if line != "held":
            house.new(ticket)
        first = house.events.line(ticket)[0] if line != "held" else 0
        if line in ("mapped", "unclear"):
            house.deliver(first, f"R-{ticket}")
        elif line == "barred":
            house.fail(first)

    def grow(ticket: str) -> None:
        if line == "repeated" or line == "repeated and dropped":
            house.new(ticket, f"n{next(number)}")
            return
        house.assign(ticket, f"t{next(number)}")
        while line == "unclear" and (due := house.events.due(house.events.file.clock() + 1, 1)):
            (event,) = due
            house.events.record(event, (), Verdict("held", "no answer", may_have_happened=True))

    def story(ticket: str) -> None:
        for _ in range(3):
            house.assign(ticket, f"t{next(number)}")
        house.assign(ticket, "same")
        house.assign(ticket, "same")
        house.send("word", ticket, f"w{next(number)}")
        if line not in ("held", "barred"):  # there it lets all go, each once
            house.new(ticket, "again")
        now = house.events.file.clock()
        later = Verdict("pending", "answered 503", due=now, tries=1)
        for verdict in (later, Verdict("delivered", "answered 200", request_id="")):
            for event in house.events.due(now + 1, 9):
                if verdict is later or not event.opens:
                    house.events.record(event, (), verdict)

    def steps(ticket: str, many: int) -> int:
        """Of the ticket's story, where it has so many events, and as many others wait."""
        prepare(ticket)
        story(ticket)
        for _ in range(many):
            grow(ticket)
        now = house.events.file.clock()
        house.events.receive([house.hears("new", f"o{next(number)}", "x") for _ in range(many)])
        later = Verdict("pending", "answered 503", due=now + FAR, tries=1)
        for event in house.events.due(now + 1, many + 1, {ticket}):
            house.events.record(event, (), later)
        if line == "repeated and dropped":
            assert house.events.drop(house.events.line(ticket)[0], "no") == ""
        return steps_of(house, lambda: story(ticket))

    few, many = steps("small", 2), steps("big", 1500)
    assert many <= 1.5 * few + 4, (few, many)


@pytest.mark.parametrize(
    "addition",
    [
        "CREATE TRIGGER t AFTER UPDATE ON events BEGIN DELETE FROM attempts; END",
        "CREATE VIEW v AS SELECT * FROM events",
        "CREATE TABLE more (x)",
        "CREATE TEMP TABLE none (x)",
    ],
)
def test_a_file_to_which_somebody_added_something_is_refused(addition: str, house: House) -> None:
    house.new("1")
    house.events.file.close()
    with sqlite3.connect(house.path) as other:
        other.execute(addition)
    other.close()
    if "TEMP" in addition:  # the control: that one is not in the file
        house.open()
        return
    with pytest.raises(FileError, match="somebody changed the file"):
        opened(str(house.path))


def test_a_copy_is_for_its_owner_from_the_first_byte_and_never_through_a_link(
    house: House, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me", encoding="utf-8")
    (tmp_path / "link").symlink_to(target)
    before = os.umask(0)
    try:
        with pytest.raises(FileError, match="link"):
            house.events.file.backup(str(tmp_path / "link"))
        house.events.file.backup(str(tmp_path / "copy"))
    finally:
        os.umask(before)
    assert target.read_text(encoding="utf-8") == "keep me"
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600


def test_what_a_killed_start_or_copy_left_is_cleared_away(house: House) -> None:
    house.events.file.close()
    for name in (".new.123", ".new.0123456789abcdef", ".new.reserve"):
        Path(f"{house.path}{name}").write_bytes(b"left")
    kept = [f"hd_itsm.db{name}" for name in (".backup.20261126", ".backup", "-monday")]
    for name in kept:  # what an administrator may call a copy
        house.path.with_name(name).write_bytes(b"left")
    house.open()
    left = [path for path in house.path.parent.iterdir() if path.read_bytes() == b"left"]
    assert sorted(path.name for path in left) == sorted(kept)


def test_the_copy_that_a_command_asks_for_is_what_a_new_start_would_clear_away(
    house: House,
) -> None:
    hd_itsm.copy_file(house.config, house.events, {"name": "0123456789abcdef"})
    copy = Path(hd_itsm.copy_path(str(house.path), "0123456789abcdef"))
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    house.reopen()
    assert not copy.exists()


def test_a_start_waits_a_moment_for_whoever_holds_the_file(house: House) -> None:
    house.new("1")
    release = threading.Timer(0.3, house.events.file.close)
    release.start()
    events = Events(File(str(house.path)))
    assert positive(events.counts) == {"pending": 1}
    events.file.close()
    release.join()


def test_webhooks_turned_away_are_counted_without_a_transaction_each(house: House) -> None:
    for number in range(100):
        house.events.file.count_soon(f"turned away: 413 too large from 10.0.0.{number}")
    assert house.events.file.hours(1) == {}
    house.events.file.flush()
    (counts,) = house.events.file.hours(1).values()
    assert sum(counts.values()) == 100
    assert len(counts) <= File.CALLERS + 1
    assert counts["turned away: others"] == 50


def test_webhooks_turned_away_are_counted_though_the_transaction_fails_that_would_keep_them(
    house: House,
) -> None:
    """As on a full disk, which is when they are turned away."""

    def no_commit(action: int, what: str | None, *rest: object) -> int:
        ends = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if ends else sqlite3.SQLITE_OK

    house.events.file.count_soon("turned away: 503 the disk is full")
    connection_of(house.events).set_authorizer(no_commit)
    with pytest.raises(FileError):
        house.new("1")
    connection_of(house.events).set_authorizer(None)
    house.events.file.count_soon("turned away: 503 the disk is full")
    house.new("1")
    house.events.file.flush()
    (counts,) = house.events.file.hours(1).values()
    assert counts == {"turned away: 503 the disk is full": 2, "received": 1}
