#!/usr/bin/env python3
"""hd_itsm: carries helpdesk tickets into an ITSM system.

A helpdesk posts a webhook when a ticket is created, assigned or closed. This daemon stores the
webhook in one SQLite file, answers, translates it into the request the ITSM wants and delivers it:
at least once, in order per ticket, through outages of either side. README.md is for the
administrator; this docstring is for whoever reads on.

The life of an event:
  1. The door admits a webhook, and Reading finds the hook's fields in its bytes.
  2. Events writes it durably as one event, `pending`; only then does the helpdesk get its 200.
  3. Delivery takes the first event of a ticket's line, Translation renders the ITSM's request.
  4. `decide` says what the ITSM's answer means: delivered, failed, or try again later.
  5. Events records that, keeps ticket -> request id, and lets the ticket's next event go.

The rooms, in the order in which data flows; each uses only the ones above it. Receiving (Door,
Page) and delivering are siblings that meet only in the file.
  Tables         what it does when, as plain rows
  Reading        bytes to fields: repairs, paths, dates
  Translation    fields to a request: templates and filters
  Configuration  TOML to one frozen object, or all that is wrong with it
  File           the SQLite file: open, migrate, transact, keep time and room
  Events         intake, line, outcomes, questions, a person's acts: every other statement
  Operations     what an operator asks and does, alike for command line, control and page
  Door           admit, read, store, answer
  Page           what a person sees in a browser
  Delivery       due event -> request -> outcome; the only threads we start
  Service        the daemon put together; control file, sockets, systemd, reload
  Command line   one function per command
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.2", "waitress>=3.0.2", "urllib3>=2.3"]
# ///

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import contextlib
import csv
import difflib
import email.utils
import errno
import functools
import glob
import hashlib
import hmac
import html
import http.client
import http.server
import importlib.metadata
import io
import ipaddress
import itertools
import json
import logging
import logging.handlers
import math
import os
import pathlib
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import unicodedata
import urllib.parse
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple, TypeVar

import bottle
import urllib3
import waitress
import waitress.adjustments
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.utilities
import waitress.wasyncore

__version__ = "1.0.0"

log = logging.getLogger("hd_itsm")


class Error(Exception):
    """What a person is told: what failed, for which event or key, and what to do next."""


def without_quotes(text: str) -> str:
    """`text` without what it quotes: the log holds no ticket text."""
    return re.sub(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", "'...'", text)


# ── Tables: what it does when, as plain rows ───────────────────────────────────────────────────


STATES = ("pending", "held", "delivered", "failed", "ignored", "dropped")

HOOKS: dict[str, dict[str, Any]] = {
    "itsm_new": {
        "kind": "new",
        "fields": {
            "ticket_id": "ticket_id",
            "writer": "writer",
            "category": "category",
            "subject": "subject",
            "contents": "contents",
        },
    },
    "itsm_ass": {
        "kind": "assign",
        "fields": {"ticket_id": "ticket_id", "technician": "technician"},
    },
    "itsm_com": {
        "kind": "complete",
        "fields": {"ticket_id": "ticket_id", "date": ["data", "date"]},
    },
}

KINDS: dict[str, dict[str, Any]] = {
    "new": {
        "opens": True,
        "body": {
            "code": "000",
            "item_id": "{item_id}",
            "service": "{service}",
            "req_user_id": "{writer}",
            "reg_user_id": "{writer}",
            "request_purpose": "{category}",
            "priority": 2,
            "end_hop_date": "{expected_date}",
            "title": "{subject}",
            "contents": "{contents}",
            "after_improvement": "없음",
        },
    },
    "assign": {
        "body": {
            "code": "020",
            "request_id": "{request_id}",
            "rcv_user_id": "{technician}",
            "trt_user_id": "{technician}",
            "end_expect_date": "{expected_date}",
            "comment": "요청이 접수되었습니다.",
        },
    },
    "complete": {
        "body": {
            "code": "030",
            "request_id": "{request_id}",
            "work_qty": "{hours|text}",
            "comment": "처리가 완료되었습니다.",
        },
    },
}

# HTTP status -> outcome, first row that matches. `credential`: everything waits, no ticket is to
# blame. What no row knows means "later": a wrong "failed" needs a person, a wrong "later" time.
ANSWERS: tuple[tuple[int, int, str], ...] = (
    (200, 299, "delivered"),
    (401, 401, "credential"),
    (407, 407, "credential"),
    (403, 405, "later"),  # the door, not the ticket
    (408, 408, "later"),
    (410, 410, "later"),
    (425, 425, "later"),
    (429, 429, "later"),
    (400, 499, "failed"),
    (504, 504, "unclear"),
)

DATE_FORMATS = (  # .NET's general formats; 오전 and 오후 are read as AM and PM before these apply
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %I:%M %p",
    "%m/%d/%Y %H:%M",
    "%Y-%m-%d %p %I:%M:%S",
    "%Y-%m-%d %p %I:%M",
    "%Y. %m. %d. %p %I:%M:%S",
    "%Y. %m. %d. %p %I:%M",
)

COMPUTED = (
    "request_id",
    "ticket_id",
    "event",
    "received",
    "today",
    "expected_date",
    "hours",
    "minutes",
)

MAX_ID = 200  # characters of a ticket id or request id
MAX_DEPTH = 100  # levels of nesting in a webhook's JSON
MAX_DIGITS = 100  # digits of a number in it
MAX_ANSWER = 1 << 20  # bytes read of an ITSM's answer
MAX_WAIT = 30  # seconds a caller may ask for with Prefer: wait
MAX_RETRY_AFTER = 3600.0  # seconds a Retry-After is honoured for, and the farthest due time kept


EVIDENCE = 300.0  # seconds for which another ticket's success speaks against a failing one


# ── Reading: bytes to fields ───────────────────────────────────────────────────────────────────


class Unreadable(Error):
    """The body yields no JSON object, or no ticket id."""


class Missing:
    """The type of MISSING: nothing is at a path (null is something)."""


MISSING = Missing()
SUSPECT = re.compile(r"\\u(?:d[89a-f]|0000)", re.IGNORECASE)
MASK = re.compile(r"#[^\W\d]\w*#|\{\{ ?[^\W\d]\w*(?:\.\w+)* ?\}\}|#\{[^\W\d]\w*(?:\.\w+)*\}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]")


def _first_of_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # a requester can type `","ticket_id":"1` into a subject
        for key, value in reversed(pairs):
            found[key] = value
    return found


def _bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(digits)} digits")
    return int(digits)


def _bounded_float(digits: str) -> float:
    number = float(digits)
    if len(digits) > MAX_DIGITS or math.isinf(number):
        raise Unreadable("a number that is too large")
    return number


def _no_constant(name: str) -> float:
    raise Unreadable(f"{name} is not JSON")


STRICT, LENIENT = (
    json.JSONDecoder(
        object_pairs_hook=_first_of_repeated,
        parse_int=_bounded_int,
        parse_float=_bounded_float,
        parse_constant=_no_constant,
        strict=strict,
    )
    for strict in (True, False)
)
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _clean(value: Any) -> Any:
    """`value` with lone surrogates and NUL, which no store or ITSM takes, as U+FFFD."""
    if isinstance(value, str):
        text = value.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(element) for element in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(element) for key, element in value.items()}
    return value


def _too_deep(value: Any) -> bool:
    containers, depth = [value] if isinstance(value, list | dict) else [], 0
    while containers and depth <= MAX_DEPTH:
        depth += 1
        containers = [
            element
            for container in containers
            for element in (container.values() if isinstance(container, dict) else container)
            if isinstance(element, list | dict)
        ]
    return depth > MAX_DEPTH


def parse_json(text: str, strict: bool = True) -> Any:
    """The JSON value in `text`: first of repeated keys, no NaN, bounded numbers and nesting.

    Raises ValueError where it is no JSON, Unreadable where it is JSON that is refused.
    """
    try:
        value = (STRICT if strict else LENIENT).decode(text)
    except RecursionError:
        raise Unreadable(f"nesting past {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        raise Unreadable(f"nesting past {MAX_DEPTH} levels")
    return value if strict and not SUSPECT.search(text) else _clean(value)


def decode_body(raw: bytes) -> Iterator[tuple[str, str]]:
    """The texts that `raw` may be, likeliest first, each with its repair ("" for none)."""
    encoding, readable = json.detect_encoding(raw), False
    for name, repair in ((encoding, ""), ("cp949", "cp949")):
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode(name).removeprefix("\ufeff")
            readable = True
            yield text, repair
    if not readable:
        yield raw.decode(encoding, "replace"), "bytes replaced"


def _parsed(text: str, strict: bool) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        value = parse_json(text, strict)
        if not isinstance(value, dict | str):
            raise Unreadable("the body is JSON, but no object")
        return value if isinstance(value, dict) else None
    return None


def unescape_html(text: str) -> str:
    """`text` with HTML's character references read; numbers beyond Unicode are U+FFFD."""
    return html.unescape(re.sub(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{7,});?", "\ufffd", text))


def _unwrapped(text: str) -> tuple[str, str]:
    """A JSON string that itself holds JSON, or an HTML-escaped body, laid open."""
    with contextlib.suppress(ValueError):
        inner = parse_json(text, strict=False)
        if isinstance(inner, str):
            return inner, "JSON within a string"
    if "&quot;" in text or "&#34;" in text:
        return unescape_html(text), "HTML escapes"
    return "", ""


FORM_ENCODED = re.compile(r"[!-%'-<>-~]+=[!-%'-<>-~]*(?:&[!-%'-<>-~]+=[!-%'-<>-~]*)*")
FORM_START = re.compile(r"\s*[^\s=&{\[\"]+=")


def read_form(text: str, known: frozenset[str]) -> dict[str, Any] | None:
    """The fields of a form body, or the JSON object that one of its fields holds.

    Masks pasted in without percent-encoding leave & and = inside values: such a body is cut at
    the known keys only, and its values are taken as they stand.
    """
    if not FORM_START.match(text):
        return None
    if FORM_ENCODED.fullmatch(text):
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True)
    else:
        keys = "|".join(re.escape(key) for key in sorted(known, key=len, reverse=True))
        starts = list(re.finditer(rf"(?:^|&)({keys})=", text)) if keys else []
        seen: dict[str, re.Match[str]] = {}
        for start in starts:
            seen.setdefault(start[1], start)
        ends = [*(start.start() for start in list(seen.values())[1:]), len(text)][: len(seen)]
        pairs = [
            (name, text[start.end() : end])
            for (name, start), end in zip(seen.items(), ends, strict=True)
        ]
    for _, value in pairs if known.isdisjoint(name for name, _ in pairs) else ():
        if value.lstrip().startswith("{") and (inner := _parsed(value, strict=False)) is not None:
            return inner  # never where the form itself names a known key: that one is trusted
    return _clean(_first_of_repeated(pairs)) if pairs else None


def _structure_backwards(known: Iterable[str]) -> re.Pattern[str]:
    """What may stand between a value's closing quote and the next known key, read backwards.

    That is punctuation, and members of the template that no path names: `, "key": value`, with a
    key that is not in `known`. Read from its end each stretch is looked at once.
    """
    value = r'(?:"[^"\\]*+"|[0-9.eE+-]++|eurt|eslaf|llun)'
    gap = r"[\s\[\]{}]*+"
    not_known = "".join(f'(?!{re.escape(key[::-1])}")' for key in known)
    key = rf'"{not_known}[^"\\]*+"'
    member = rf"(?:{value}(?:{gap},{gap}{value})*)?{gap}:\s*+{key}{gap},{gap}"
    return re.compile(rf'[\s,\[\]{{}}]*+(?:{member})*(?=")')


def _mended(text: str, known: frozenset[str]) -> str:
    """`text` with the string values of its known keys escaped as JSON wants them.

    A value reaches up to the next known key that was not seen before, less what is structure
    between the two. In a flat body a known key that comes again is the requester's text.
    """
    keys = "|".join(re.escape(key) for key in sorted(known, key=len, reverse=True))
    first: dict[str, re.Match[str]] = {}
    for match in re.finditer(rf'(?:(?<=[,{{\[\s])|^)"({keys})"\s*:\s*', text):
        first.setdefault(match[1], match)
    if not first:
        return text
    stops = [*(match.start() for match in list(first.values())[1:]), len(text)]
    mended = [text[: next(iter(first.values())).start()]]
    nested = any(text.startswith(("{", "["), match.end()) for match in first.values())
    structures = _structure_backwards(() if nested else known)
    for match, stop in zip(first.values(), stops, strict=True):
        stretch = text[match.end() : stop]
        mended.append(match[0])
        if not stretch.startswith('"'):
            mended.append(stretch)
            continue
        structure = structures.match(stretch[:0:-1])
        if structure:
            close = len(stretch) - structure.end() - 1
            value, rest = stretch[1:close], stretch[close + 1 :]
        else:  # its closing quote is missing
            value, rest = stretch[1:], "," if stop < len(text) else ""
        mended += [json.dumps(value, ensure_ascii=False), rest]
    return "".join(mended)


def _closed(text: str) -> str:
    """`text` with the brackets it left open closed; what follows its object is cut off."""
    open_ones: list[str] = []
    for match in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', text, re.DOTALL):
        token = match[0]
        if token in "{[":
            open_ones.append("}" if token == "{" else "]")
        elif token in "}]" and open_ones:
            open_ones.pop()
            if not open_ones:
                return text[: match.end()]
    return text.rstrip(" \t\r\n,") + "".join(reversed(open_ones))


def recover(text: str, known: frozenset[str]) -> dict[str, Any] | None:
    """The object in a template into which text was pasted unescaped, cut at the known keys."""
    start = text.find("{")
    if start < 0 or not known:
        return None
    return _parsed(_closed(_mended(text[start:], known)), strict=False)


def read_body(raw: bytes, known: frozenset[str]) -> tuple[dict[str, Any], str]:
    """The JSON object in a webhook's body and how it was repaired ("" where it was not).

    `known` are the keys that the hook's paths name. Raises Unreadable.
    """
    if not raw.strip():
        raise Unreadable("the body is empty")
    texts = []
    for text, repair in decode_body(raw):
        if (found := _parsed(text, strict=True)) is not None:
            return found, repair
        texts.append((text, repair))
    for text, repair in texts:
        if (found := _parsed(text, strict=False)) is not None:
            return found, ", ".join(filter(None, (repair, "control characters")))
    candidates = list(texts)
    for text, repair in texts:
        inner, remark = _unwrapped(text)
        if inner and (found := _parsed(inner, strict=False)) is not None:
            return found, ", ".join(filter(None, (repair, remark)))
        if inner:
            candidates.append((inner, ", ".join(filter(None, (repair, remark)))))
    for text, repair in texts:
        if (found := read_form(text, known)) is not None:
            return found, ", ".join(filter(None, (repair, "form body")))
    for text, repair in candidates:
        if (found := recover(text, known)) is not None:
            return found, ", ".join(filter(None, (repair, "cut at the known keys")))
    raise Unreadable("the body holds no JSON object")


class Step(NamedTuple):
    """One step of a path: `key` "name", `any`, or `where` name=value."""

    does: str
    name: str
    value: str = ""


PATH_STEP = re.compile(
    r'(?:^|\.)(?:"(?P<quoted>[^"]+)"|(?P<any>\*)|(?P<key>[^."\[\]*]+))'
    r"|\[(?P<name>[^\]=]+)=(?P<value>[^\]]*)\]"
)
Path = tuple[Step, ...]


def parse_path(text: str) -> Path:
    """A path of SPEC's grammar: a.b, a.0, a.-1, a[role=assigned].name, a.*.key, "quoted key".

    Raises ValueError with what is wrong.
    """
    steps, at = [], 0
    while at < len(text):
        match = PATH_STEP.match(text, at)
        if not match or (match["name"] and not at):
            raise ValueError(f"cannot be read as a path from {text[at:]!r} on")
        if match["any"]:
            steps.append(Step("any", "*"))
        elif match["name"]:
            steps.append(Step("where", match["name"].strip(), match["value"].strip().strip('"')))
        else:
            steps.append(Step("key", match["quoted"] or match["key"]))
        at = match.end()
    if not steps:
        raise ValueError("is an empty path")
    return tuple(steps)


def as_text(value: Any) -> str:
    """`value` as text: 4182 and 4182.0 are "4182", true is "true", null is "", a list is JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else COMPACT.encode(value)


def _at_step(value: Any, step: Step) -> Iterable[Any]:
    """The elements of `value` that one step of a path means."""
    if step.does == "key":
        if isinstance(value, dict):
            return (value[step.name],) if step.name in value else ()
        if isinstance(value, list) and re.fullmatch(r"-?[0-9]{1,6}", step.name):
            place = int(step.name)
            return (value[place],) if -len(value) <= place < len(value) else ()
        return ()
    if not isinstance(value, dict | list):
        return ()
    if step.does == "any":
        return value.values() if isinstance(value, dict) else value
    return [
        element
        for element in ([value] if isinstance(value, dict) else value)
        if isinstance(element, dict)
        and step.name in element
        and as_text(element[step.name]) == step.value
    ]


def find_all(value: Any, path: Path) -> list[Any]:
    """Every element of `value` that `path` means."""
    found: Iterable[Any] = _at_step(value, path[0])
    for step in path[1:]:
        found = [element for one in found for element in _at_step(one, step)]
    return list(found)


def present(value: Any) -> bool:
    """Whether `value` counts as there: no null, nothing empty, no template mask left in place."""
    if isinstance(value, str):
        return value != "" and not MASK.fullmatch(value)
    return value is not MISSING and value is not None and value != [] and value != {}


@dataclass(frozen=True, slots=True)
class Field:
    """Where one field of a hook is: the first path whose value is present wins."""

    paths: tuple[Path, ...]
    match: re.Pattern[str] | None = None

    def read(self, found: dict[str, Any]) -> Any:
        """The field's value in a webhook's object, or MISSING."""
        value = self._first(found)
        if self.match is None or value is MISSING:
            return value
        group = self.match.search(as_text(value))
        return group[1] if group else MISSING

    def _first(self, found: dict[str, Any]) -> Any:
        value: Any = MISSING
        for path in self.paths:
            for candidate in find_all(found, path):
                if present(candidate):
                    return candidate
                if value is MISSING and not (isinstance(candidate, str) and candidate):
                    value = candidate  # null or empty: kept, unless a later path has something
        return value


Headers = Mapping[str, str]  # lower-case name -> value


@dataclass(frozen=True, slots=True)
class Condition:
    """A path (or "@header:NAME") and what must be there: any of some texts, "*", "~PATTERN"."""

    path: Path
    header: str
    wanted: tuple[str | re.Pattern[str] | None, ...]  # None: present and not empty

    def holds(self, found: Any, headers: Headers) -> bool:
        """Whether an element that the path means is as wanted."""
        if self.header:
            elements: Iterable[Any] = (headers.get(self.header, MISSING),)
        else:
            elements = find_all(found, self.path)
        return any(
            (wanted is None and present(element))
            or (isinstance(wanted, re.Pattern) and wanted.search(as_text(element)) is not None)
            or (isinstance(wanted, str) and as_text(element) == wanted)
            for element in elements
            if element is not MISSING
            for wanted in self.wanted
        )


@dataclass(frozen=True, slots=True)
class Hook:
    """An address the helpdesk posts to, with the rules to read it."""

    name: str
    path: str
    kind: str
    fields: Mapping[str, Field]
    rules: tuple[tuple[str, tuple[Condition, ...]], ...]
    delivery_id: str
    known: frozenset[str]
    headers: tuple[str, ...]  # lower-case names that its rules read

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds its events may have."""
        return (self.kind,) if self.kind else tuple(dict.fromkeys(kind for kind, _ in self.rules))


class Reading(NamedTuple):
    """What a webhook says. `kind` "" with no `problem`: no rule of the hook matched."""

    kind: str
    ticket: str
    fields: dict[str, Any]
    repaired: str
    problem: str = ""
    rule: int = 0  # the rule that matched, from 1; 0 where the hook has a fixed kind
    found: Mapping[str, Any] = {}  # the whole object


def read_id(value: Any) -> str:
    """An id as text, or "" where it is none (null, true, lists, objects, over MAX_ID, control)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = as_text(value).strip(" ")
    return "" if len(text) > MAX_ID or CONTROL.search(text) or MASK.fullmatch(text) else text


def read_webhook(hook: Hook, raw: bytes, headers: Headers) -> Reading:
    """What the webhook `raw` says by the rules of `hook`; a `problem` where it cannot be used."""
    try:
        found, repaired = read_body(raw, hook.known)
    except Unreadable as error:
        return Reading("", "", {}, "", str(error))
    fields = {name: rule.read(found) for name, rule in hook.fields.items()}
    fields = {name: value for name, value in fields.items() if value is not MISSING}
    kind, number = hook.kind, 0
    for position, (name, conditions) in enumerate(hook.rules, 1):
        if all(condition.holds(found, headers) for condition in conditions):
            kind, number = name, position
            break
    ticket = read_id(fields.get("ticket_id"))
    problem = ""
    if kind and not ticket:
        shown = repr(as_text(fields["ticket_id"])[:60]) if "ticket_id" in fields else "nothing"
        problem = f"no ticket id where hook {hook.name} looks for it (found {shown})"
    fields["ticket_id"] = ticket
    return Reading(kind, ticket, fields, repaired, problem, number, found)


def local_zone(name: str) -> tzinfo | None:
    """The zone of `name`; None is the machine's own. Raises ValueError."""
    if name == "local":
        return None
    if match := re.fullmatch(r"([+-])([0-9]{2}):?([0-9]{2})", name):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return timezone(-offset if match[1] == "-" else offset)
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone data for {name!r}: write an offset like +09:00") from error


def _date_in_text(text: str, formats: Sequence[str]) -> datetime:
    if re.fullmatch(r"[0-9]{9,10}|[0-9]{12,13}", text):
        return datetime.fromtimestamp(int(text) / (1000 if len(text) > 10 else 1), UTC)
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text)
    plain = re.sub(r"[\u202f\u00a0\s]+", " ", text).replace("오전", "AM").replace("오후", "PM")
    for form in (*formats, *DATE_FORMATS):
        with contextlib.suppress(ValueError):
            return datetime.strptime(plain, form)
    raise ValueError


def parse_date(value: Any, zone: tzinfo | None, formats: Sequence[str] = ()) -> datetime:
    """The moment `value` names: ISO 8601, epoch seconds or milliseconds, .NET, `formats`.

    Text without an offset is meant in `zone`. Raises ValueError.
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / (1000 if abs(value) > 1e11 else 1), UTC)
        moment = _date_in_text(as_text(value).strip(), formats)
        if moment.tzinfo is None:
            moment = moment.astimezone() if zone is None else moment.replace(tzinfo=zone)
        moment.timestamp()
        return moment
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{as_text(value)[:60]!r} is no date known here") from None


# ── Translation: fields to an ITSM request ─────────────────────────────────────────────────────


class Untranslatable(Error):
    """The event cannot become a request with today's configuration."""


TAG = re.compile(r"<(?:/?[a-zA-Z]|[!?])")
TAG_NAME = re.compile(r"</?[a-zA-Z][a-zA-Z0-9:-]{0,30}")
QUOTE_OR_END = re.compile(r"[\"'>]")
HREF = re.compile(r"""\bhref ?= ?(?:"([^"]*)"|'([^']*)'|([^\s>]+))""", re.IGNORECASE)
LAYOUT = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body br dd div dl dt fieldset figure footer form h1 h2"
        " h3 h4 h5 h6 header hr html li main nav ol p pre section table tr ul",
    )
)
ELEMENTS = LAYOUT | frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym applet area audio b base basefont bdi bdo big button canvas caption center"
        " cite code col colgroup data datalist del details dfn dialog dir em embed font frame"
        " frameset head hgroup i iframe img input ins kbd label legend link map mark menu meta"
        " meter noframes noscript object optgroup option output param picture progress q rp rt"
        " ruby s samp script select slot small source span strike strong style sub summary sup svg"
        " tbody td template textarea tfoot th thead time title track tt u var video wbr xml",
    )
)
HIDDEN = {name: re.compile(f"</{name}\\b", re.IGNORECASE) for name in ("script", "style", "head")}


def _tag_end(text: str, at: int, absent: set[str]) -> int:
    """Where the tag that holds `at` ends (after ">"), or -1; `absent`: what will not be found."""
    if ">" in absent:
        return -1
    skip = at
    for match in QUOTE_OR_END.finditer(text, at):
        if match.start() < skip:
            continue
        if match[0] == ">":
            return match.end()
        close = -1 if match[0] in absent else text.find(match[0], match.end())
        if close < 0:
            absent.add(match[0])
        skip = close + 1
    absent.add(">")
    return -1


def _comment_end(text: str, at: int, absent: set[str]) -> int:
    end = -1 if "-->" in absent else text.find("-->", at)
    if end < 0:
        absent.add("-->")
        return -1
    return end + 3


def _html_pieces(text: str) -> Iterator[tuple[str, str]]:
    """("text", words) and (tag name, the tag), in one pass over `text`."""
    at, absent = 0, set[str]()
    while match := TAG.search(text, at):
        start = match.start()
        yield "text", text[at:start]
        name = TAG_NAME.match(text, start)
        tag = name[0][1:].lower() if name else ""
        at = -1
        if ":" in tag or not tag or tag.lstrip("/") in ELEMENTS:
            ends = _comment_end if text.startswith("<!--", start) else _tag_end
            at = ends(text, start + 1, absent)
        if at < 0:  # no tag after all: it stands as text, like List<String>
            yield "text", "<"
            at = start + 1
            continue
        if tag in HIDDEN:
            hidden = HIDDEN[tag].search(text, at)
            at = hidden.start() if hidden else len(text)
        yield tag, text[start:at]
    yield "text", text[at:]


def _link(tag: str) -> str:
    found = HREF.search(tag)
    link = unescape_html(next(filter(None, found.groups()), "")) if found else ""
    return "" if link.startswith(("#", "javascript:")) else link


def html_to_text(text: str) -> str:
    """HTML as plain text: lines, lists and links kept; linear in time on any input.

    Line breaks of the source count where no tag lays the text out, and within <pre>.
    """
    if not TAG.search(text):
        return unescape_html(text)
    pieces = list(_html_pieces(text))
    source_lines = not any(name.lstrip("/") in LAYOUT for name, _ in pieces)
    out, link, pre, fresh = [""], "", False, True  # fresh: at the start of a line
    for name, piece in pieces:
        if name == "text":
            words = unescape_html(piece).replace("\u00a0", " ")
            if not (pre or source_lines):
                words = re.sub(r"\s+", " ", words)
                words = words.lstrip(" ") if fresh or out[-1].endswith(" ") else words
            if words:
                out.append(words)
                fresh = words.endswith("\n")
        elif name == "br" or (name.lstrip("/") in LAYOUT and not fresh):
            out.append("\n")
            fresh = True
        elif name in ("/td", "/th"):
            out.append("\t")
        elif name == "/a" and link and out[-1].strip() != link:
            out.append(f" ({link})")
        link = _link(piece) if name == "a" else "" if name == "/a" else link
        pre = name == "pre" or (pre and name != "/pre")
        if name == "li":
            out.append("- ")
    lines = "".join(out).replace("\r\n", "\n").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


class Clock(NamedTuple):
    """What translation must know of time: zone (None: the machine's), days, formats."""

    zone: tzinfo | None = UTC
    due_days: int = 7
    formats: tuple[str, ...] = ()

    def local(self, moment: float | datetime) -> datetime:
        """`moment` (epoch seconds or aware) in the zone."""
        if not isinstance(moment, datetime):
            moment = datetime.fromtimestamp(moment, UTC)
        return moment.astimezone(self.zone)


class Scope(NamedTuple):
    """What placeholders may name: an event's fields, the constants, and what is computed."""

    fields: Mapping[str, Any]
    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, str]]
    clock: Clock
    event: int
    ticket: str
    received: float
    request_id: str | None

    def get(self, name: str) -> Any:
        """The value of `name`, or MISSING. Raises Untranslatable for a date that is none."""
        if name in COMPUTED:
            return self._computed(name)
        return self.fields.get(name, self.values.get(name, MISSING))

    def _computed(self, name: str) -> Any:
        received = self.clock.local(self.received)
        match name:
            case "request_id":
                return MISSING if self.request_id is None else self.request_id
            case "ticket_id":
                return self.ticket
            case "event":
                return self.event
            case "received":
                return received.isoformat(timespec="seconds")
            case "today":
                return received.date().isoformat()
            case "expected_date":
                return (received.date() + timedelta(days=self.clock.due_days)).isoformat()
        if not present(opened := self.fields.get("date")):
            return MISSING
        try:
            opened = parse_date(opened, self.clock.zone, self.clock.formats)
        except ValueError as error:
            raise Untranslatable(f"field date: {error}; see [time] date_formats") from None
        seconds = self.received - opened.timestamp()
        return max(0, int(seconds // (3600 if name == "hours" else 60)))


def _filter_number(value: Any, argument: str, scope: Scope) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = as_text(value).strip()
    if re.fullmatch(r"-?[0-9]{1,100}", text):
        return int(text)
    if re.fullmatch(r"-?[0-9]{1,50}\.[0-9]{1,50}", text):
        return float(text)
    raise Untranslatable(f"{text[:60]!r} is no number")


def _filter_date(value: Any, argument: str, scope: Scope) -> str:
    try:
        moment = parse_date(value, scope.clock.zone, scope.clock.formats)
    except ValueError as error:
        raise Untranslatable(f"{error}; see [time] date_formats") from None
    try:
        return scope.clock.local(moment).strftime(argument)
    except (ValueError, OverflowError):
        raise Untranslatable(f"{as_text(value)[:60]!r} is too far away for a calendar") from None


def _filter_or(value: Any, argument: str, scope: Scope) -> Any:
    return value if present(value) else argument


FILTERS: dict[str, Callable[[Any, str, Scope], Any]] = {
    "text": lambda value, argument, scope: as_text(value),
    "number": _filter_number,
    "html": lambda value, argument, scope: html_to_text(as_text(value)),
    "max": lambda value, argument, scope: as_text(value)[: int(argument)],
    "bytes": lambda value, argument, scope: (
        as_text(value).encode("utf-8", "replace")[: int(argument)].decode("utf-8", "ignore")
    ),
    "date": _filter_date,
    "or": _filter_or,
}


def look_up(table: Mapping[str, str], name: str, value: Any) -> str:
    """What `table` says for `value`; its "*" row serves what is not listed."""
    text = as_text(value)
    if text in table and text != "*":
        return table[text]
    if "*" not in table:
        raise Untranslatable(f'{text[:60]!r} is not in [tables.{name}], which has no "*" row')
    return table["*"].replace("{}", text)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """{name|filter|filter:argument}"""

    name: str
    filters: tuple[tuple[str, str], ...]

    def render(self, scope: Scope) -> Any:
        """Its value in `scope`, with its JSON type. Raises Untranslatable."""
        value = scope.get(self.name)
        for name, argument in self.filters:
            if value is MISSING and name != "or":
                continue
            if name in FILTERS:
                value = FILTERS[name](value, argument, scope)
            else:
                value = look_up(scope.tables[name], name, value)
        if value is MISSING:
            missing = "date" if self.name in ("hours", "minutes") else self.name
            raise Untranslatable(
                f"field {missing} is missing; {{{self.name}|or:...}} would allow it"
            )
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """One string with placeholders. Values are never expanded again."""

    parts: tuple[str | Placeholder, ...]

    def render(self, scope: Scope) -> Any:
        """Text; or, where the whole is one placeholder, its value with its JSON type."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Placeholder):
            return self.parts[0].render(scope)
        return self.text(scope)

    def text(self, scope: Scope) -> str:
        """The text, with its placeholders' values in it."""
        return "".join(
            part if isinstance(part, str) else as_text(part.render(scope)) for part in self.parts
        )


TEMPLATE_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


def parse_template(text: str) -> Template:
    """The template in `text`. Raises ValueError with what is wrong."""
    parts: list[str | Placeholder] = []
    for match in TEMPLATE_PIECE.finditer(text):
        if match[1] is None:
            if match[0] in ("{", "}"):
                raise ValueError(
                    f"has a single {match[0]}: write {match[0] * 2} for a literal one"
                )
            literal = match[0][0] if match[0] in ("{{", "}}") else match[0]
            if parts and isinstance(parts[-1], str):
                parts[-1] += literal
            else:
                parts.append(literal)
            continue
        name, *filters = match[1].split("|")
        if not name.strip():
            raise ValueError("has an empty placeholder {}")
        pairs = tuple((part.partition(":")[0].strip(), part.partition(":")[2]) for part in filters)
        parts.append(Placeholder(name.strip(), pairs))
    return Template(tuple(parts))


Tree = Any  # JSON, with Template for its string leaves


def parse_tree(value: Any) -> Tree:
    """A JSON tree with its strings as templates. Raises ValueError."""
    if isinstance(value, str):
        return parse_template(value)
    if isinstance(value, list):
        return [parse_tree(element) for element in value]
    if isinstance(value, dict):
        return {key: parse_tree(element) for key, element in value.items()}
    return value


def render_tree(tree: Tree, scope: Scope) -> Any:
    """The JSON that `tree` gives in `scope`. Raises Untranslatable."""
    if isinstance(tree, Template):
        return tree.render(scope)
    if isinstance(tree, dict):
        return {key: render_tree(element, scope) for key, element in tree.items()}
    if isinstance(tree, list):
        return [render_tree(element, scope) for element in tree]
    return tree


def templates_in(tree: Tree) -> Iterator[Template]:
    """Every template of a tree."""
    if isinstance(tree, Template):
        yield tree
    elif isinstance(tree, dict | list):
        for element in tree.values() if isinstance(tree, dict) else tree:
            yield from templates_in(element)


@dataclass(frozen=True, slots=True)
class Find:
    """How to ask the ITSM whether a create that got no answer happened after all."""

    url: Template
    request_id: tuple[Path, ...]
    after: float  # seconds to wait before asking: a create given up on may still happen


@dataclass(frozen=True)
class Kind:
    """What an event of this kind becomes at the ITSM, and how its answer is read."""

    name: str
    opens: bool
    method: str
    url: Template
    headers: Mapping[str, Any]  # name -> Template or Secret
    body: Tree
    form_field: str
    request_id: tuple[Path, ...]
    ok: tuple[Condition, ...]
    refused: tuple[Condition, ...]
    answers: Mapping[int, str]
    again: str
    unclear: str
    find: Find | None
    then: str

    @functools.cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Every placeholder in its URLs, headers and body."""
        find = self.find.url if self.find else None
        templates = templates_in([self.url, find, dict(self.headers), self.body])
        return tuple(
            part for one in templates for part in one.parts if isinstance(part, Placeholder)
        )

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The fields that make a difference to its request."""
        names = {part.name for part in self.placeholders}
        return frozenset(names | {"date"} if names & {"hours", "minutes"} else names)

    @functools.cached_property
    def needs(self) -> bool:
        """Whether it cannot be rendered without the ticket's request id."""
        return any(
            part.name == "request_id" and not any(name == "or" for name, _ in part.filters)
            for part in self.placeholders
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request for the ITSM, without the headers that hold secrets."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def _url(template: Template, scope: Scope) -> str:
    in_path, pieces = True, []
    for part in template.parts:
        if isinstance(part, str):
            in_path = in_path and not re.search(r"[?#]", part)
            pieces.append(part)
            continue
        text = as_text(part.render(scope))
        if not text and in_path:
            raise Untranslatable(f"{{{part.name}}} is empty: the URL would lead elsewhere")
        pieces.append(urllib.parse.quote(text, safe=""))
    url = "".join(pieces)
    for segment in urllib.parse.urlsplit(url).path.split("/"):
        if urllib.parse.unquote(segment) in (".", ".."):
            raise Untranslatable(f"{segment!r} as a segment of the URL would lead elsewhere")
    return url


def find_request(find: Find, scope: Scope) -> Request:
    """The question whether the ticket of `scope` is known to the ITSM. Raises Untranslatable."""
    return Request("GET", _url(find.url, scope), (), b"")


def render(kind: Kind, scope: Scope) -> tuple[str, list[tuple[str, str]], Any]:
    """URL, headers and content of the request that an event becomes. Raises Untranslatable."""
    headers = []
    for name, value in kind.headers.items():
        if isinstance(value, Template):
            text = value.text(scope)
            if CONTROL.search(text):
                raise Untranslatable(f"header {name} would hold control characters")
            headers.append((name, text.encode().decode("latin-1")))
    content = MISSING if kind.method in ("GET", "HEAD") else render_tree(kind.body, scope)
    return _url(kind.url, scope), headers, content


def translate(kind: Kind, scope: Scope) -> Request:
    """The request that an event becomes. Raises Untranslatable."""
    url, headers, content = render(kind, scope)
    body = b"" if content is MISSING else COMPACT.encode(content).encode()
    content_type = "application/json; charset=utf-8"
    if kind.form_field:
        body = urllib.parse.urlencode({kind.form_field: body}).encode()
        content_type = "application/x-www-form-urlencoded"
    return Request(
        kind.method,
        url,
        (("Content-Type", content_type), *headers) if body else tuple(headers),
        body,
    )


# ── Configuration: TOML to one frozen object, or all that is wrong with it ─────────────────────


class ConfigError(Error):
    """All problems of a configuration, one per line."""


Address = tuple[str, int]  # host and port
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


Environ = Mapping[str, str]


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Secret:
    """A text that never prints; read anew when the file it comes from changes.

    `source` is "text", "file", "env" or "credential" (a file of systemd's $CREDENTIALS_DIRECTORY).
    """

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self._stamp: tuple[int, ...] = ()
        self._value = name if source == "text" else ""

    def bind(self, environ: Environ) -> None:
        """Finds the variable, or the directory of the credential, in `environ`."""
        if self.source == "env":
            self._value = environ.get(self.name, "")
        elif self.source == "credential":
            self.name = os.path.join(environ.get("CREDENTIALS_DIRECTORY", ""), self.name)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __bool__(self) -> bool:
        return self.source != "text" or bool(self._value)

    def refresh(self) -> bool:
        """Reads the file if it changed; tells whether it did. Raises OSError, UnicodeError."""
        if self.source not in ("file", "credential"):
            return False
        stat = os.stat(self.name)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp == self._stamp:
            return False
        self._value = pathlib.Path(self.name).read_text(encoding="utf-8").strip()
        self._stamp = stamp
        return True

    def reveal(self) -> str:
        """The text; the last one known where its file cannot be read any more."""
        with contextlib.suppress(OSError, UnicodeError):
            self.refresh()
        return self._value

    def problem(self) -> str:
        """Why it cannot be used, or ""."""
        try:
            self.refresh()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            return f"cannot read {self.name}: {reason}"
        if not self._value and self.source != "text":
            return f"{self.source} {self.name} is empty or not set"
        if any(not " " <= letter <= "~" for letter in self._value):
            return "holds line breaks or letters outside ASCII, which no header can carry"
        return ""


@dataclass(frozen=True, slots=True)
class Signature:
    """A helpdesk's signature: HMAC over what `signed` says, in a header."""

    secrets: tuple[Secret, ...]
    header: str
    algorithm: str
    encoding: str
    prefix: str
    signed: str
    timestamp_header: str
    max_age: float  # seconds; 0: no limit (GLPI's timestamp is that of its queue)


@functools.lru_cache(maxsize=64)
def _spellings(secret: str) -> tuple[str, ...]:
    """A secret as others may say it back: whole, without its scheme, or a proxy's login."""
    login = urllib.parse.unquote(secret.partition("://")[2].rpartition("@")[0])
    encoded = base64.b64encode(login.encode()).decode()
    found = (secret, secret.rpartition(" ")[2], encoded, login.partition(":")[2])
    return tuple(one for one in found if len(one) > 3)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a table { name = value }")
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    return value


def _read_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number from 1 on")
    return value


def _read_days(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -3650 <= value <= 3650:
        raise ValueError("must be a whole number of days")
    return value


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _read_duration(value: Any) -> float:
    if isinstance(value, str) and (
        match := re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd])", value)
    ):
        return float(match[1]) * UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError('must be seconds, or like "90s", "15m", "12h", "7d"')
    return float(value)


def _read_silence(value: Any) -> float:
    return _read_duration(value) if value != "" else 0.0


def _read_address(value: Any) -> Address:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):([0-9]{1,5})", _read_text(value))
    if not match or int(match[2]) > 65535:
        raise ValueError('must be like "127.0.0.1:8080" or "[::1]:8080"')
    return match[1].strip("[]"), int(match[2])


def _read_url(value: Any) -> str:
    text = _read_text(value)
    if text and not re.fullmatch(r"https?://[^/?#\s@]+(?:[/?#]\S*)?", text, re.IGNORECASE):
        raise ValueError("must be like https://itsm.example.com/api (no user or password in it)")
    return text


def _read_template_url(value: Any) -> str:
    text = _read_text(value)
    if text and not re.match(r"https?://[^/?#\s{}@]+(?:[/?#]|$)", text, re.IGNORECASE):
        raise ValueError("must begin with http:// or https:// and a host without placeholders")
    parse_template(text)
    return text


def _read_file(value: Any) -> str:
    text = _read_text(value)
    if text and not os.access(text, os.R_OK):
        raise ValueError(f"cannot read {text}")
    return text


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise ValueError("must be a list of texts")
    return value


def _read_networks(value: Any) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in _texts(value))


def _read_formats(value: Any) -> tuple[str, ...]:
    for text in _texts(value):
        if "%" not in text:
            raise ValueError(f'{text!r} is no date format: write it like "%d.%m.%Y %H:%M"')
        datetime(2026, 11, 23).strftime(text)
    return tuple(value)


def _read_secret(value: Any) -> Secret:
    if isinstance(value, str):
        return Secret("text", value)
    if isinstance(value, dict) and len(value) == 1:
        ((source, name),) = value.items()
        if source in ("file", "env", "credential") and isinstance(name, str) and name:
            return Secret(source, name)
    raise ValueError(
        'must be text, { file = "PATH" }, { env = "NAME" } or { credential = "NAME" }'
    )


def _read_secrets(value: Any) -> tuple[Secret, ...]:
    found = [_read_secret(one) for one in (value if isinstance(value, list) else [value])]
    return tuple(secret for secret in found if secret)


def _read_headers(value: Any) -> dict[str, Template | Secret]:
    headers: dict[str, Template | Secret] = {}
    for name, text in _table(value).items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError(f"{name!r} is no header name")
        if name.lower() in ("content-length", "transfer-encoding", "host", "connection"):
            raise ValueError(f"{name} is set by the program itself")
        secret = isinstance(text, dict)
        headers[name] = _read_secret(text) if secret else parse_template(as_text(text))
    return headers


def _read_hmac(value: Any) -> Signature | None:
    row = {
        "secret": "", "header": "X-Hub-Signature", "algorithm": "sha1", "encoding": "hex",
        "prefix": "", "signed": "{body}", "timestamp_header": "", "max_age": 0,
    }  # fmt: skip
    for key in _table(value):
        if key not in row:
            raise ValueError(f"unknown key {key!r}{_hint(key, row)}")
    row.update(value)
    secrets = _read_secrets(row.pop("secret"))
    max_age = _read_duration(row.pop("max_age"))
    for key, text in row.items():
        if not isinstance(text, str):
            raise ValueError(f"{key} must be text in quotes")
    if row["algorithm"] not in ("sha1", "sha256", "sha512"):
        raise ValueError("algorithm must be sha1, sha256 or sha512")
    if row["encoding"] not in ("hex", "base64"):
        raise ValueError("encoding must be hex or base64")
    if row["signed"] not in ("{body}", "{timestamp}{body}", "{body}{timestamp}"):
        raise ValueError('signed must be "{body}", "{timestamp}{body}" or "{body}{timestamp}"')
    if "{timestamp}" in str(row["signed"]) and not row["timestamp_header"]:
        raise ValueError("signed names {timestamp}: timestamp_header must say where it is")
    texts = {key: str(text) for key, text in row.items()}
    return Signature(secrets=secrets, max_age=max_age, **texts) if secrets else None


def _read_paths(value: Any) -> tuple[Path, ...]:
    texts = [value] if isinstance(value, str) else _texts(value)
    location = (Step("header", "location"),)
    return tuple(
        location if text.lower() == "@location" else parse_path(text) for text in texts if text
    )


def _wanted(value: Any) -> str | re.Pattern[str] | None:
    if isinstance(value, dict | list):
        raise ValueError('a condition is a text, a number, a list of them, "*" or "~PATTERN"')
    text = as_text(value)
    if text.startswith("~"):
        try:
            return re.compile(text[1:])
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return None if text == "*" else text


def _read_conditions(value: Any) -> dict[str, Condition]:
    conditions = {}
    for where, wanted in _table(value).items():
        header = where[8:].strip().lower() if where.lower().startswith("@header:") else ""
        values = wanted if isinstance(wanted, list) else [wanted]
        path = () if header else parse_path(where)
        conditions[where] = Condition(path, header, tuple(_wanted(one) for one in values))
    return conditions


def _read_answers(value: Any) -> dict[int, str]:
    answers = {}
    for status, outcome in _table(value).items():
        if not re.fullmatch(r"[1-5][0-9]{2}", status):
            raise ValueError(f"{status!r} is no HTTP status")
        if outcome not in ("delivered", "failed", "later"):
            raise ValueError(f'{status}: must be "delivered", "failed" or "later"')
        answers[int(status)] = outcome
    return answers


def _one_of(value: Any, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}")
    return str(value)


def _read_level(value: Any) -> str:
    return _one_of(value, "DEBUG", "INFO", "WARNING", "ERROR")


def _read_zone(value: Any) -> tzinfo | None:
    return local_zone(_read_text(value))


def _read_route(value: Any) -> str:
    text = _read_text(value)
    if text and not re.fullmatch(r"/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]", text):
        raise ValueError('must be like "/hook/zammad"')
    if text.startswith("/control/") or text in ("/health", "/metrics", "/openapi.json"):
        raise ValueError("is an address of the program itself")
    return text


def _read_field(value: Any) -> Field:
    match = None
    if isinstance(value, dict):
        if unknown := set(value) - {"path", "match"}:
            raise ValueError(
                f"unknown key {min(unknown)!r}{_hint(min(unknown), ('path', 'match'))}"
            )
        with_match = value.get("match", "")
        try:
            match = re.compile(_read_text(with_match)) if with_match else None
        except re.error as error:
            raise ValueError(f"match is no regular expression: {error}") from None
        if match and not match.groups:
            raise ValueError('match needs a group in ( ): "id=(\\\\d+)"')
        value = value.get("path", "")
    paths = [value] if isinstance(value, str) else _texts(value)
    return Field(tuple(parse_path(path) for path in paths), match)


def _read_fields(value: Any) -> dict[str, Field]:
    fields = {}
    for name, where in _table(value).items():
        if not re.fullmatch(r"[^\W\d]\w*", name):
            raise ValueError(f"{name!r} is no field name (letters, digits, _)")
        try:
            fields[name] = _read_field(where)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return fields


def _read_rules(value: Any) -> list[tuple[str, dict[str, Condition]]]:
    if not isinstance(value, list):
        raise ValueError("must be a list of { kind, when }")
    rules = []
    for number, rule in enumerate(value, 1):
        try:
            if unknown := set(_table(rule)) - {"kind", "when"}:
                raise ValueError(f"unknown key {min(unknown)!r}")
            kind = _read_text(rule.get("kind"))
            rules.append((kind, _read_conditions(rule.get("when", {}))))
        except ValueError as error:
            raise ValueError(f"rule {number}: {error}") from None
    return rules


def _read_method(value: Any) -> str:
    return _one_of(value, "POST", "PUT", "PATCH", "GET", "DELETE")


def _read_again(value: Any) -> str:
    return _one_of(value, "ignore", "send")


def _read_unclear(value: Any) -> str:
    return _one_of(value, "retry", "hold", "find")


def _read_find(value: Any) -> Find | None:
    if not _table(value):
        return None
    if unknown := set(value) - {"url", "request_id", "after"}:
        known = ("url", "request_id", "after")
        raise ValueError(f"unknown key {min(unknown)!r}{_hint(min(unknown), known)}")
    if not value.get("url") or not value.get("request_id"):
        raise ValueError("needs url and request_id")
    url = parse_template(_read_template_url(value["url"]))
    after = _read_duration(value.get("after", 60.0))
    return Find(url, _read_paths(value["request_id"]), after)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(one)


def _read_template(value: Any) -> Tree:
    problems = []
    for text in _texts_in(value):
        try:
            parse_template(text)
        except ValueError as error:
            problems.append(f"{text!r} {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return parse_tree(value)


T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How one key of the configuration is read and told. `sample` is shown by `init`."""

    read: Callable[[Any], Any]
    default: Any  # as TOML has it
    sentence: str
    sample: str


def option(read: Callable[[Any], T], default: Any, sentence: str, sample: str = "") -> T:
    """A key of a table: its type is what `read` returns, its value without one in the file too."""
    metadata = {"option": Option(read, default, sentence, sample)}
    return field(default_factory=lambda: read(default), metadata=metadata)


@dataclass(frozen=True)
class ServerOptions:
    """How the helpdesk reaches us."""

    listen: Address = option(
        _read_address,
        "127.0.0.1:8080",
        "address and port for the webhooks; any other than loopback demands [access]",
    )
    threads: int = option(
        _read_count, 8, "threads that answer; one takes up to 16 webhooks at a time"
    )
    max_body: int = option(_read_count, 1048576, "largest webhook in bytes")
    stop_after: float = option(_read_duration, 10, "how long a stop waits for what is in flight")
    trusted_proxy: tuple[Network, ...] = option(
        _read_networks, [], "addresses whose X-Forwarded-For is believed"
    )
    admin_password: Secret = option(
        _read_secret,
        "",
        "for the pages, from other machines (Basic, any user); loopback needs none when empty",
    )


@dataclass(frozen=True)
class AccessOptions:
    """Who may post a webhook. Beyond loopback one of these is needed."""

    token: tuple[Secret, ...] = option(
        _read_secrets,
        "",
        "admits a webhook: Bearer, X-Webhook-Token or Basic password; a list: all are valid",
    )
    query_token: bool = option(
        _read_flag,
        False,
        "the token may also come as ?token=..., for a helpdesk that can set only the URL",
    )
    networks: tuple[Network, ...] = option(
        _read_networks,
        [],
        "only these addresses may post; alone, without a token, they admit by address",
        '["10.0.0.5/32"]',
    )
    hmac: Signature | None = option(
        _read_hmac,
        {},
        "the helpdesk's signature over the body (README, recipes)",
        '{ secret = "...", header = "X-Hub-Signature", algorithm = "sha1", encoding = "hex",'
        ' prefix = "sha1=", signed = "{body}" }',
    )


@dataclass(frozen=True)
class ItsmOptions:
    """Where tickets go."""

    url: str = option(_read_url, "", "where requests go", '"https://itsm.example.com/api"')
    authorization: Secret = option(
        _read_secret,
        "",
        "the Authorization header as it is sent: text, { file = }, { env = }, { credential = }",
        '{ file = "/etc/hd_itsm.token" }',
    )
    headers: Mapping[str, Template | Secret] = option(
        _read_headers, {}, "further headers of every request", '{ "X-Api-Version" = "2" }'
    )
    timeout: float = option(_read_duration, 60.0, "seconds an attempt may take")
    workers: int = option(_read_count, 4, "tickets delivered at the same time")
    ca_file: str = option(_read_file, "", "certificates (PEM) of the authority behind the ITSM")
    client_cert: str = option(_read_file, "", "our certificate (PEM), where the ITSM wants one")
    client_key: str = option(_read_file, "", "its private key, when not in the same file")
    proxy: Secret = option(
        _read_secret, "", "HTTP proxy towards the ITSM", '"http://proxy.example.com:3128"'
    )
    request_id: tuple[Path, ...] = option(
        _read_paths, "result.request_id", "where the request id is in the answer"
    )
    ok: Mapping[str, Condition] = option(
        _read_conditions,
        {},
        "conditions a 2xx answer must meet to count",
        '{ "result.code" = ["0", "00"] }',
    )
    refused: Mapping[str, Condition] = option(
        _read_conditions,
        {},
        "conditions that make a 2xx answer a refusal",
        '{ "*" = "~(?i)permission denied|does not exist" }',
    )
    answers: Mapping[int, str] = option(
        _read_answers,
        {},
        "what a status means, where README's table is wrong",
        '{ "404" = "failed", "400" = "later" }',
    )
    check_url: str = option(_read_url, "", "what `check` may GET; empty: url")


@dataclass(frozen=True)
class RetryOptions:
    """How patient we are. Durations: seconds, or "90s", "15m", "12h", "7d"."""

    first: float = option(_read_duration, 1.0, "longest wait before the second try; then doubled")
    max: float = option(_read_duration, 300.0, "longest wait between two tries")
    probe: float = option(_read_duration, 60.0, "longest wait between two probes of a dead ITSM")
    tries: int = option(
        _read_count, 10, "an event that failed so often, while others went through, is given up"
    )
    give_up_after: float = option(_read_duration, "7d", "an event is given up after so long")


@dataclass(frozen=True)
class StoreOptions:
    """Where events and mappings are kept."""

    path: str = option(
        _read_text,
        "hd_itsm.db",
        "the SQLite file; under systemd in $STATE_DIRECTORY",
        '"/var/lib/hd_itsm/hd_itsm.db"',
    )
    keep_days: int = option(
        _read_count, 30, "days that delivered, ignored and dropped events are kept"
    )


@dataclass(frozen=True)
class LogOptions:
    """What is written down."""

    level: str = option(_read_level, "INFO", "DEBUG, INFO, WARNING or ERROR")
    file: str = option(
        _read_text, "", "a rotating file besides stderr", '"/var/log/hd_itsm/hd_itsm.log"'
    )
    max_bytes: int = option(_read_count, 5242880, "its size when a new one is begun")
    backups: int = option(_read_count, 20, "how many old ones are kept")


@dataclass(frozen=True)
class AlertOptions:
    """Who is told when something needs a person."""

    url: Secret = option(
        _read_secret,
        "",
        'gets {"text": "..."} when a person is needed: Slack, Teams, Mattermost and alike',
        '{ file = "/etc/hd_itsm.alert" }',
    )
    after: float = option(_read_duration, "5m", "a shorter outage of the ITSM is not told")
    silence: float = option(
        _read_silence, "", "tell when no webhook came for so long; empty: never", '"8h"'
    )


@dataclass(frozen=True)
class TimeOptions:
    """How dates are read and written."""

    zone: tzinfo | None = option(
        _read_zone, "local", '"local", a name like "Asia/Seoul", or "+09:00"'
    )
    due_days: int = option(_read_days, 7, "expected date = day received + so many days")
    date_formats: tuple[str, ...] = option(
        _read_formats, [], "further date formats (strptime)", '["%d.%m.%Y %H:%M"]'
    )


@dataclass(frozen=True)
class HookOptions:
    """[hooks.NAME]: an address the helpdesk posts to."""

    path: str = option(_read_route, "", 'the address; empty: "/" and the name of the hook')
    kind: str = option(_read_text, "", "kind of its events; or rules")
    fields: Mapping[str, Field] = option(
        _read_fields, {}, "name = path, list of paths, or { path, match }"
    )
    rules: Sequence[tuple[str, Mapping[str, Condition]]] = option(
        _read_rules, [], "{ kind, when } in order; the first that holds decides"
    )
    delivery_id: str = option(_read_text, "", "header that names a delivery, for duplicates")


@dataclass(frozen=True)
class KindOptions:
    """[kinds.NAME]: what an event becomes at the ITSM."""

    opens: bool = option(_read_flag, False, "its answer brings the ticket's request id")
    method: str = option(_read_method, "POST", "HTTP method")
    url: str = option(_read_template_url, "", "where it goes; empty: itsm.url")
    headers: Mapping[str, Template | Secret] = option(_read_headers, {}, "further headers")
    body: Tree = option(_read_template, {}, "the JSON to send, with {placeholders}")
    form_field: str = option(_read_text, "", "send the JSON inside this form field")
    request_id: tuple[Path, ...] = option(
        _read_paths, "", "where the id is; empty: itsm.request_id"
    )
    ok: Mapping[str, Condition] = option(
        _read_conditions, {}, "as itsm.ok; comes before it, key by key"
    )
    refused: Mapping[str, Condition] = option(_read_conditions, {}, "as itsm.refused")
    answers: Mapping[int, str] = option(_read_answers, {}, "as itsm.answers")
    again: str = option(_read_again, "ignore", 'a second opening: "ignore" or "send"')
    unclear: str = option(
        _read_unclear,
        "retry",
        'no answer came to an opening: "retry", "hold" for a person, or "find"',
    )
    find: Find | None = option(
        _read_find, {}, "{ url, request_id, after }: how to look the ticket up before a second try"
    )
    then: str = option(_read_text, "", "a further kind delivered right after this one")


def options_of(table: type) -> dict[str, Option]:
    """The keys of a table of options."""
    return {one.name: one.metadata["option"] for one in fields(table)}


SECTIONS: Mapping[str, type[Any]] = {
    "server": ServerOptions,
    "access": AccessOptions,
    "itsm": ItsmOptions,
    "retry": RetryOptions,
    "store": StoreOptions,
    "log": LogOptions,
    "time": TimeOptions,
    "alert": AlertOptions,
}

SAMPLE_TAIL = """\
[values]                     # constants for templates: {item_id}
item_id = ""
service = ""

# [tables.users]             # a table is a filter: {technician|users}
# "홍길동" = "gdhong"
# "*" = "{}"                 # what is not listed: {} is the value itself

# The built-in hooks POST /itsm_new, /itsm_ass, /itsm_com and kinds new, assign, complete are
# active as they are. One given here replaces the built-in one of that name whole:
#
# [hooks.itsm_new]
# kind = "new"
# fields = { ticket_id = "ticket_id", writer = "writer", category = "category", \
subject = "subject", contents = "contents" }
#
# [kinds.assign]
# body = { code = "020", request_id = "{request_id}", rcv_user_id = "{technician|users}" }
"""


def as_toml(value: Any) -> str:
    """A default of the option rows as TOML text (JSON's text is TOML's for these)."""
    return "{}" if value == {} else json.dumps(value, ensure_ascii=False)


FILLED_IN = (("itsm", "url"), ("itsm", "authorization"))  # not commented out in the sample


def sample_config() -> str:
    """The commented sample configuration, made from the option rows."""
    lines = ["# Configuration of hd_itsm. Lines that start with # show a default or an example."]
    for section, table in SECTIONS.items():
        lines += ["", f"# {table.__doc__}", f"[{section}]"]
        for key, option in options_of(table).items():
            active = "" if (section, key) in FILLED_IN else "# "
            shown = option.sample or as_toml(option.default)
            lines.append(f"{active}{key} = {shown}".ljust(36) + f"  # {option.sentence}")
    return "\n".join([*lines, "", SAMPLE_TAIL])


@dataclass(frozen=True)
class Config:
    """Everything configured, checked: the tables of options, and what is named by the operator."""

    server: ServerOptions
    access: AccessOptions
    itsm: ItsmOptions
    retry: RetryOptions
    store: StoreOptions
    log: LogOptions
    alert: AlertOptions
    time: TimeOptions
    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, str]]
    hooks: Mapping[str, Hook]
    kinds: Mapping[str, Kind]
    source: str  # the file it came from, "" for none
    warnings: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()

    @functools.cached_property
    def clock(self) -> Clock:
        """What translation must know of time."""
        return Clock(self.time.zone, self.time.due_days, self.time.date_formats)

    def mask(self, text: str) -> str:
        """`text` without the secrets that somebody else put into it."""
        for secret in self.secrets:
            for part in _spellings(secret.reveal()):
                text = text.replace(part, "***")
        return text

    @functools.cached_property
    def _has_secret_values(self) -> bool:
        return any(isinstance(value, Secret) for value in self.values.values())

    def scope(
        self,
        fields: Mapping[str, Any],
        event: int,
        ticket: str,
        received: float,
        request_id: str | None,
        masked: bool = False,
    ) -> Scope:
        """What the placeholders of one event may name; `masked` shows no secret."""
        values = self.values
        if self._has_secret_values:
            values = {
                name: ("***" if masked else value.reveal()) if isinstance(value, Secret) else value
                for name, value in values.items()
            }
        return Scope(fields, values, self.tables, self.clock, event, ticket, received, request_id)


def _secrets_in(value: Any) -> Iterator[Secret]:
    if isinstance(value, Signature):
        yield from value.secrets
    elif isinstance(value, dict | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            if isinstance(one, Secret):
                yield one
    elif isinstance(value, Secret):
        yield value


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's loopback."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def admits(access: AccessOptions) -> bool:
    """Whether any means of admission is configured."""
    return bool(access.token or access.networks or access.hmac)


class _Loader:
    """Reads one configuration and collects what is wrong with it."""

    def __init__(self, tables: dict[str, Any], environ: Environ) -> None:
        self.given, self.environ = tables, environ
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.secrets: list[tuple[str, Secret]] = []

    def wrong(self, key: str, what: str) -> None:
        """Notes a problem under its key."""
        self.problems.append(f"{key}: {what}")

    def read(self, key: str, how: Callable[[Any], T], given: Any, default: Any) -> T:
        """What `how` makes of a value; of the default where the value is wrong."""
        try:
            value = how(given)
        except ValueError as error:
            self.wrong(key, str(error))
            value = how(default)
        for secret in _secrets_in(value):
            secret.bind(self.environ)
            self.secrets.append((key, secret))
        return value

    def table(self, name: str, options: type[T], given: Any) -> T:
        """One table of options; unknown keys are problems."""
        rows = options_of(options)
        if not isinstance(given, dict):
            self.wrong(name, "must be a table")
            given = {}
        for key in given:
            if key not in rows:
                self.wrong(f"{name}.{key}", f"unknown key{_hint(key, rows)}")
        return options(
            **{
                key: self.read(f"{name}.{key}", row.read, given.get(key, row.default), row.default)
                for key, row in rows.items()
            }
        )

    def load(self, source: str) -> Config:
        """All of it; look at `problems` before use."""
        allowed = [*SECTIONS, "values", "tables", "hooks", "kinds"]
        for name in self.given:
            if name not in allowed:
                self.wrong(name, f"unknown table{_hint(name, allowed)}")
        sections: dict[str, Any] = {
            name: self.table(name, options, self.given.get(name, {}))
            for name, options in SECTIONS.items()
        }
        config = Config(
            **sections,
            hooks={name: self.hook(name, row) for name, row in self.named("hooks", HOOKS).items()},
            kinds={
                name: self.kind(name, row, sections["itsm"])
                for name, row in self.named("kinds", KINDS).items()
            },
            tables=self.tables(),
            values=self.values(),
            source=source,
        )
        self.agree(config)
        return replace(
            config,
            warnings=tuple(self.warnings),
            secrets=tuple(secret for _, secret in self.secrets),
        )

    def named(self, table: str, built_in: Mapping[str, Any]) -> dict[str, Any]:
        """Hooks or kinds: the built-in ones, each replaced whole by one given of its name."""
        given = self.given.get(table, {})
        if not isinstance(given, dict):
            self.wrong(table, "must be tables like [hooks.zammad]")
            given = {}
        return {**built_in, **given}

    def hook(self, name: str, given: Any) -> Hook:
        """One hook from its table."""
        row = self.table(f"hooks.{name}", HookOptions, given)
        rules = tuple((kind, tuple(when.values())) for kind, when in row.rules)
        conditions = [condition for _, when in rules for condition in when]
        paths = [path for rule in row.fields.values() for path in rule.paths]
        paths += [condition.path for condition in conditions]
        if "ticket_id" not in row.fields:
            self.wrong(f"hooks.{name}.fields", "ticket_id is missing: where is the ticket's id?")
        if bool(row.kind) == bool(rules):
            self.wrong(f"hooks.{name}", "needs either kind or rules")
        return Hook(
            name=name,
            path=row.path or f"/{name}",
            kind=row.kind,
            fields=row.fields,
            rules=rules,
            delivery_id=row.delivery_id.lower(),
            known=frozenset(step.name for path in paths for step in path if step.does != "any"),
            headers=tuple({condition.header for condition in conditions if condition.header}),
        )

    def kind(self, name: str, given: Any, itsm: ItsmOptions) -> Kind:
        """One kind from its table, completed by what [itsm] says."""
        row = self.table(f"kinds.{name}", KindOptions, given)
        url = parse_template(row.url or itsm.url.replace("{", "{{").replace("}", "}}"))
        if row.unclear == "find" and row.find is None:
            self.wrong(f"kinds.{name}.find", 'is missing: unclear = "find" needs it')
        return Kind(
            name=name,
            opens=row.opens,
            method=row.method,
            url=url,
            headers={**itsm.headers, **row.headers},
            body=row.body,
            form_field=row.form_field,
            request_id=row.request_id or itsm.request_id,
            ok=tuple({**itsm.ok, **row.ok}.values()),
            refused=tuple({**itsm.refused, **row.refused}.values()),
            answers={**itsm.answers, **row.answers},
            again=row.again,
            unclear=row.unclear,
            find=row.find,
            then=row.then,
        )

    def values(self) -> dict[str, Any]:
        """[values]: constants, secrets among them."""
        given = self.given.get("values", {})
        if not isinstance(given, dict):
            self.wrong("values", "must be a table of constants")
            given = {}
        values: dict[str, Any] = {"item_id": "", "service": ""}
        for name, value in given.items():
            if isinstance(value, dict):
                value = self.read(f"values.{name}", _read_secret, value, "")
            elif isinstance(value, str | int | float):
                pass
            else:
                self.wrong(f"values.{name}", "must be text, a number, true or false")
            values[name] = value
        return values

    def tables(self) -> dict[str, dict[str, str]]:
        """[tables.*], each a filter."""
        found: dict[str, dict[str, str]] = {}
        given = self.given.get("tables", {})
        if not isinstance(given, dict):
            self.wrong("tables", "must be tables like [tables.users]")
            given = {}
        for name, rows in given.items():
            if name in FILTERS:
                self.wrong(f"tables.{name}", "has the name of a built-in filter")
            if not isinstance(rows, dict):
                self.wrong(f"tables.{name}", "must be a table of texts")
                continue
            if any(isinstance(value, dict | list) for value in rows.values()):
                self.wrong(f"tables.{name}", "must hold texts only")
            found[name] = {key: as_text(value) for key, value in rows.items()}
        return found

    def agree(self, config: Config) -> None:
        """Whether hooks, kinds, tables and fields name each other rightly."""
        hooks, kinds = config.hooks, config.kinds
        for hook in hooks.values():
            for kind in hook.kinds:
                if kind not in kinds:
                    self.wrong(f"hooks.{hook.name}", f"no kind {kind!r}{_hint(kind, kinds)}")
        for row in kinds.values():
            if row.then and (problem := self.then_problem(row, kinds)):
                self.wrong(f"kinds.{row.name}.then", f"kind {row.then!r} {problem}")
            self.placeholders(row, config.values, config.tables, hooks)
        self.openings(hooks, kinds)
        paths = collections.Counter(hook.path for hook in hooks.values())
        for hook in hooks.values():
            if paths[hook.path] > 1:
                self.wrong(f"hooks.{hook.name}.path", f"{hook.path} belongs to another hook, too")
        host, _ = config.server.listen
        if not is_loopback(host) and not admits(config.access):
            self.wrong(
                "server.listen",
                f"{host} is reachable from other machines: set [access] token, networks or hmac,"
                " or listen on 127.0.0.1",
            )

    def openings(self, hooks: Mapping[str, Hook], kinds: Mapping[str, Kind]) -> None:
        """Whether what needs a request id can ever get one from the ITSM."""
        heard = {name for hook in hooks.values() for name in hook.kinds if name in kinds}
        needy = [name for name, kind in kinds.items() if name in heard and kind.needs]
        if needy and not any(kinds[name].opens for name in heard):
            self.warnings.append(
                f"kinds: no hook leads to a kind with `opens = true`, so no ticket gets a request"
                f" id here: {', '.join(needy)} will wait for `map` or `import`"
            )

    def then_problem(self, kind: Kind, kinds: Mapping[str, Kind]) -> str:
        """What is wrong with the kind that follows this one, or ""."""
        seen, name = {kind.name}, kind.then
        while name:
            if name not in kinds:
                return f"is not there{_hint(name, kinds)}"
            if kinds[name].opens:
                return "opens a request itself"
            if name in seen:
                return "comes round to itself: it would never end"
            seen.add(name)
            name = kinds[name].then
        return ""

    def placeholders(
        self,
        kind: Kind,
        values: Mapping[str, Any],
        tables: Mapping[str, Any],
        hooks: Mapping[str, Hook],
    ) -> None:
        """Whether each placeholder of a kind has a source and each of its filters exists."""
        key = f"kinds.{kind.name}"
        sources = [hook for hook in hooks.values() if self.leads_to(hook, kind.name)]
        for part in kind.placeholders:
            for name, argument in part.filters:
                if name not in FILTERS and name not in tables:
                    known = [*FILTERS, *tables]
                    self.wrong(key, f"{{{part.name}|{name}}}: no such filter{_hint(name, known)}")
                if name in ("max", "bytes") and not re.fullmatch(r"[0-9]{1,9}", argument):
                    self.wrong(key, f"{{{part.name}|{name}:{argument}}}: needs a number")
                if name == "date" and "%" not in argument:
                    self.wrong(key, f"{{{part.name}|date:{argument}}}: needs a format like %Y%m%d")
            optional = any(name == "or" for name, _ in part.filters)
            if part.name in values or part.name in COMPUTED[:-2]:
                continue
            wanted = "date" if part.name in COMPUTED else part.name
            mine = self.given.get("hooks", {})
            given = [hook for hook in sources if isinstance(mine, dict) and hook.name in mine]
            for hook in sources:
                if wanted not in hook.fields and not optional:
                    known = [*hook.fields, *values, *COMPUTED]
                    what = f"{{{part.name}}}: hook {hook.name} has no such field"
                    if given and hook not in given:  # built in, and the file brings its own
                        self.warnings.append(f"{key}: {what}; what it receives will fail")
                    else:
                        self.wrong(key, what + _hint(part.name, known))
            if (
                not sources
                and not optional
                and wanted not in {f for h in hooks.values() for f in h.fields}
            ):
                self.wrong(key, f"{{{part.name}}}: no hook has such a field")

    def leads_to(self, hook: Hook, kind: str) -> bool:
        """Whether events of `hook` may become `kind`, by `then` too."""
        kinds = self.named("kinds", KINDS)
        for name in hook.kinds:
            seen: set[str] = set()
            while name and name not in seen:
                if name == kind:
                    return True
                seen.add(name)
                name = kinds[name].get("then", "") if isinstance(kinds.get(name), dict) else ""
        return False


CONFIG_PLACES = ("hd_itsm.toml", "/etc/hd_itsm.toml")


def find_config(given: str | None, environ: Environ) -> str:
    """The configuration file to read, "" for none. Raises ConfigError for one not there."""
    named = given or environ.get("HD_ITSM_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise ConfigError(f"no configuration file {named}; `init {named}` writes a sample")
        return named
    return next((place for place in CONFIG_PLACES if os.path.isfile(place)), "")


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def load_config(
    path: str, overrides: Mapping[str, str], environ: Environ, complete: bool = True
) -> Config:
    """The configuration in `path` ("" for the defaults), with `overrides` by full key.

    `complete`: the ITSM's address must be there and every secret readable (serve, check); other
    commands do without. Raises ConfigError with every problem.
    """
    tables = _read_toml(path) if path else {}
    for key, value in overrides.items():
        section, name = key.split(".")
        if isinstance(tables.setdefault(section, {}), dict):
            tables[section][name] = value
    store = tables.get("store", {})
    if (
        isinstance(store, dict)
        and isinstance(store.get("path", ""), str)
        and "STATE_DIRECTORY" in environ
    ):
        name = (
            store.get("path", "hd_itsm.db")
            if "store.path" not in overrides
            else os.path.abspath(store["path"])
        )
        tables["store"] = {**store, "path": os.path.join(environ["STATE_DIRECTORY"], name)}
    loader = _Loader(tables, environ)
    config = loader.load(path)
    if complete:
        if not config.itsm.url and any(
            not "".join(map(str, kind.url.parts)) for kind in config.kinds.values()
        ):
            loader.wrong("itsm.url", "is missing: where does the ITSM take requests?")
        for key, secret in loader.secrets:
            if problem := secret.problem():
                loader.wrong(key, problem)
        for key, secret in (("itsm.proxy", config.itsm.proxy), ("alert.url", config.alert.url)):
            url = "" if secret.problem() else secret.reveal()
            if url and not re.match(r"https?://[^/?#\s]+", url):
                loader.wrong(key, "must be like http://host.example.com:3128")
    if loader.problems:
        raise ConfigError(
            "\n".join(f"{path or 'configuration'}: {one}" for one in loader.problems)
        )
    return config


def no_such_kind(name: str) -> str:
    """The reason of an event whose kind the configuration does not know."""
    return f"kind {name} is not configured: add [kinds.{name}], then retry"


def outgoing_headers(
    config: Config, kind: Kind, request: Request, key: str, masked: bool = False
) -> dict[str, str]:
    """All headers of a request; `key` is the event's Idempotency-Key, `masked` shows no secret."""
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"hd_itsm/{__version__}",
        "Idempotency-Key": key,
    }
    if config.itsm.authorization:
        headers["Authorization"] = "***" if masked else config.itsm.authorization.reveal()
    for name, value in kind.headers.items():
        if isinstance(value, Secret):
            headers[name] = "***" if masked else value.reveal()
    return headers | dict(request.headers)


def preview(config: Config, kind: Kind, scope: Scope, key: str) -> dict[str, Any]:
    """A request as it would be sent, secrets masked, for people. Raises Untranslatable."""
    request = translate(kind, scope)
    return {
        "method": request.method,
        "url": request.url,
        "headers": outgoing_headers(config, kind, request, key, masked=True),
        "body": request.body.decode(),
    }


# ── File: the SQLite file: open, migrate, transact, keep time and room ─────────────────────────


class StoreError(Error):
    """The file cannot be opened or used; the text says what to do."""


class StoreFull(StoreError):
    """There is no room now, on the disk or in memory: nothing was stored, later it may be."""

    def __init__(self, what: str = "the disk is full") -> None:
        super().__init__(f"{what}: nothing was stored; send the webhook again later")


APPLICATION_ID = 0x68646974  # "hdit" in the file's header: this file is ours
FATAL = tuple(  # SQLite's errors after which only a new start knows what is on the disk
    f"SQLITE_{name}"
    for name in ("IOERR", "CORRUPT", "NOTADB", "READONLY", "CANTOPEN", "BUSY", "PROTOCOL")
)
RESERVE = 4 << 20  # bytes kept aside, so that outcomes can still be recorded on a full disk
SMALL_FILE = 256 << 20  # bytes up to which every start checks the whole file

MIGRATIONS = (  # entry n brings a file of version n to n + 1; never change one that was released
    """
    CREATE TABLE events (
        event INTEGER PRIMARY KEY,    -- its number: 1, 2, 3
        place INTEGER NOT NULL,       -- in the ticket's line; a `then` event has its parent's
        parent INTEGER,               -- the event that a `then` event follows
        ticket TEXT,                  -- NULL where none could be read
        kind TEXT NOT NULL,
        hook TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        opens INTEGER NOT NULL,       -- 1: its answer brings the request id
        needs INTEGER NOT NULL,       -- 1: it waits for the request id
        unclear INTEGER NOT NULL DEFAULT 0,  -- 1: an attempt may have happened at the ITSM
        received REAL NOT NULL,       -- wall clock, epoch seconds
        settled REAL,                 -- wall clock of its last change of state
        born REAL NOT NULL,           -- service clock of its receipt
        due REAL,                     -- service clock of its next try; NULL: not first in line
        tries INTEGER NOT NULL DEFAULT 0,     -- attempts that count against it
        attempts INTEGER NOT NULL DEFAULT 0,  -- all attempts
        first_try REAL,               -- service clock of its first attempt that meant "later"
        idempotency_key TEXT NOT NULL,
        delivery_id TEXT,
        sender TEXT NOT NULL,
        repaired TEXT NOT NULL,
        digest BLOB NOT NULL,         -- of what a duplicate has in common with it
        fields TEXT NOT NULL,         -- JSON
        headers TEXT NOT NULL,        -- JSON: those that the hook's rules read
        raw BLOB NOT NULL             -- the record: all else is derived from it
    );
    CREATE INDEX events_ticket ON events (ticket, place, event) WHERE ticket IS NOT NULL;
    CREATE INDEX events_due ON events (due) WHERE due IS NOT NULL;
    CREATE INDEX events_open ON events (state, event)  -- OR, not IN: SQLite proves only that
        WHERE state = 'pending' OR state = 'held' OR state = 'failed';
    CREATE INDEX events_line ON events (ticket, place, event) WHERE state IN ('pending', 'held');
    CREATE INDEX events_delivery ON events (delivery_id, hook) WHERE delivery_id IS NOT NULL;
    CREATE INDEX events_unreadable ON events (digest) WHERE ticket IS NULL;
    CREATE TABLE attempts (
        event INTEGER NOT NULL,
        attempt INTEGER NOT NULL,     -- 1, 2, 3
        at REAL NOT NULL,             -- wall clock, epoch seconds
        duration REAL,                -- seconds
        status INTEGER,               -- of the ITSM's answer; NULL: none came
        outcome TEXT NOT NULL,        -- 'sent' until it is known
        reason TEXT NOT NULL,
        answer TEXT NOT NULL,         -- the beginning of what the ITSM said
        PRIMARY KEY (event, attempt)
    ) WITHOUT ROWID;
    CREATE TABLE mappings (
        ticket TEXT PRIMARY KEY,
        request_id TEXT NOT NULL CHECK (request_id != ''),
        since REAL NOT NULL,          -- wall clock, epoch seconds
        origin TEXT NOT NULL          -- 'itsm', 'hand' or 'import'
    ) WITHOUT ROWID;
    CREATE INDEX mappings_request ON mappings (request_id);
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE hours (              -- what happened in each hour, for the page
        hour INTEGER PRIMARY KEY,     -- epoch seconds / 3600
        received INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        failed INTEGER NOT NULL
    );
    """,
)


def _refuse_foreign(path: str) -> None:
    """Raises StoreError where the file is not ours or newer, before SQLite could touch it."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    keep = "keep a copy of it; restore a backup, or move it away to begin anew"
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise StoreError(f"{path} is damaged or no SQLite file: {keep}")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file of another program: name another [store] path")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer hd_itsm (file version {version}, this program knows"
            f" {len(MIGRATIONS)}): run the newer one, or restore a backup made before the upgrade"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):  # its header may still be in the log that a crash left
        raise StoreError("the file was written by a newer hd_itsm: run that one")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number}; COMMIT;"
        )


def _sync_directory(path: str) -> None:
    if os.name == "posix":
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _create(path: str) -> None:
    """Makes a new file under another name first: a half-made one never stands at `path`."""
    new = f"{path}.new.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # unlike a rename, never over a file that came to be meanwhile
        _sync_directory(path)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be created: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def _open_error(path: str, error: sqlite3.Error) -> StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreError(f"{path} is in use by another process: only one may hold it; stop it")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return StoreError(f"{path}: {error}: directory and file must be writable for us")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        words = "is the disk full, read-only or broken? Look after it, then start again"
        return StoreError(f"{path}: {error}: {words}")
    return StoreError(
        f"{path} is damaged ({error}): keep a copy of it; restore a backup, or move it away and"
        " `import` the mappings of your last `export`"
    )


def _connect(path: str) -> sqlite3.Connection:
    """The one connection, holding the file alone. Raises StoreError."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL: then no -shm exists
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        sync = connection.execute("PRAGMA synchronous").fetchone()[0]
        if (mode, sync) != ("wal", 2):
            raise StoreError(f"{path}: SQLite refuses durable mode (journal {mode}, sync {sync})")
        if os.stat(path).st_size <= SMALL_FILE:
            found = connection.execute("PRAGMA quick_check(3)").fetchall()
            if found != [("ok",)]:
                raise sqlite3.DatabaseError(" ".join(found[0][0].split()))
        _migrate(connection)
    except StoreError:
        connection.close()
        raise
    except sqlite3.Error as error:
        connection.close()
        raise _open_error(path, error) from None
    connection.row_factory = sqlite3.Row
    return connection


class _Write:
    """An operation waiting for the transaction that carries it; `turn` is held until then."""

    __slots__ = ("done", "error", "operation", "result", "turn")

    def __init__(self, operation: Callable[[], Any]) -> None:
        self.operation = operation
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()


NO_TALLY: dict[str, Any] = {
    "counts": {},  # state -> events in it
    "hour": 0,  # epoch seconds / 3600; of these three:
    "received": 0,
    "delivered": 0,
    "failed": 0,
    "repaired": 0,  # webhooks ever
    "last_delivery": 0.0,  # epoch seconds
}


class Tallies:
    """What happened since the start, for /metrics: counters by name and labels, and durations."""

    BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counters: collections.Counter[tuple[str, str]] = collections.Counter()
        self.durations: collections.Counter[float] = collections.Counter()
        self.seconds = 0.0

    def count(self, name: str, label: str = "") -> None:
        """One more of `name`; `label` is the value of its one label."""
        with self._lock:
            self.counters[name, label] += 1

    def attempt(self, outcome: str, seconds: float) -> None:
        """One more attempt, with its outcome and how long it took."""
        with self._lock:
            self.counters["attempts", outcome] += 1
            self.seconds += seconds
            bucket = next((one for one in self.BUCKETS if seconds <= one), math.inf)
            self.durations[bucket] += 1


class Database:
    """The open file: transactions, facts, the service clock, room for a full disk.

    `_lock` guards the connection and all attributes; who holds it waits for nothing but the disk
    and takes no other lock. Writers queue their operation; one of them leads: it runs all that
    wait in one transaction, commits once (group commit), lets the others go and hands the lead to
    the first that came meanwhile. `_queue_lock` guards the queue and `_led`, for moments only.

    Service clock: seconds that the service has been running, kept over restarts. Due times and
    ages are measured with it, so that no jump of the wall clock delays or gives up an event.
    """

    def __init__(self, path: str, create: bool = False) -> None:
        if create and not os.path.exists(path):
            _create(path)
        if not os.path.exists(path):
            raise StoreError(f"no file {path}: start the service once, or name it with --db")
        _refuse_foreign(path)
        self.path = path
        self._db = _connect(path)
        for leftover in glob.glob(f"{glob.escape(path)}.new.*"):  # of a start that was killed
            with contextlib.suppress(OSError):
                os.unlink(leftover)
        self._lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Write] = []
        self._led = False  # whether somebody leads
        self._last: int | None = None  # the last event's number, where it is known
        self._moved: collections.Counter[str] = collections.Counter()  # state -> more of them
        self._hour: collections.Counter[str] = collections.Counter()  # received, delivered, failed
        self._settled: list[int] = []  # events that a transaction settled
        self._waiters: dict[int, list[threading.Event]] = {}
        self._facts = dict(tuple(row) for row in self._db.execute("SELECT name, value FROM facts"))
        self.broken = ""  # why nothing can be written any more; the process must end
        self.leaving = False  # the program is about to end
        self.tight = False  # the disk is full: outcomes only, no webhooks
        self.tally = {**NO_TALLY, **json.loads(self.fact("tally") or "{}")}
        self.edits = 0  # how often a person changed events: what was read before is old then
        self.board: dict[str, Any] = {}  # what Delivery tells and Web shows, in memory only
        self.tallies = Tallies()
        self._started = time.monotonic()
        self._base = float(self.fact("clock") or 0) + self._away()

    def close(self) -> None:
        """Keeps the clock and closes the file; a second call does nothing."""
        with contextlib.suppress(StoreError, sqlite3.ProgrammingError):
            self.keep_clock()
        with self._lock:
            self._db.close()

    def _away(self) -> float:
        """Seconds that passed while nobody ran, as far as the wall clock can be believed."""
        last = float(self.fact("clock_at") or 0)
        return min(max(0.0, time.time() - last), MAX_RETRY_AFTER) if last else 0.0

    def clock(self) -> float:
        """The service clock, in seconds."""
        return self._base + time.monotonic() - self._started

    def keep_clock(self) -> None:
        """Writes the service clock down, so that it goes on from here after a restart."""
        self.keep_facts(clock=repr(self.clock()), clock_at=repr(time.time()))

    def fact(self, name: str) -> str:
        """A fact kept earlier, "" for none: paused, itsm (how it is), told (which alerts)."""
        return str(self._facts.get(name, ""))

    def keep_facts(self, **facts: str) -> None:
        """Keeps facts that must outlive the process."""
        self._write(lambda: self._set_facts(facts))

    def _set_facts(self, facts: Mapping[str, str]) -> None:
        for name, value in facts.items():
            self._sql(
                "INSERT INTO facts (name, value) VALUES (:name, :value)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                name=name,
                value=value,
            )
            self._facts[name] = value

    def _sql(self, sql: str, **arguments: Any) -> sqlite3.Cursor:
        return self._db.execute(sql, arguments)

    def _row(self, sql: str, **arguments: Any) -> sqlite3.Row | None:
        return self._db.execute(sql, arguments).fetchone()  # type: ignore[no-any-return]

    def _read(self, sql: str, **arguments: Any) -> list[dict[str, Any]]:
        """The rows of a question, outside of any transaction."""
        with self._lock:
            try:
                return [dict(row) for row in self._db.execute(sql, arguments)]
            except sqlite3.Error as error:
                raise self._failed(error) from None

    def _write(self, operation: Callable[[], Any]) -> Any:
        """Runs `operation` in a transaction and returns its result once that is on the disk."""
        entry = _Write(operation)
        with self._queue_lock:
            self._queue.append(entry)
            follows, self._led = self._led, True
        if follows:
            entry.turn.acquire()
        if not entry.done:
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result

    def _edit(self, operation: Callable[[], Any]) -> Any:
        """Carries out what a person wants, as `_write` does."""

        def counted() -> Any:
            self.edits += 1
            return operation()

        return self._write(counted)

    def _lead(self, leader: _Write) -> None:
        """Carries out what waits, in one transaction, and hands the lead on."""
        with self._lock:
            with self._queue_lock:
                batch, self._queue = self._queue, []
            self._transact(batch)
            if leader.error is not None and len(batch) > 1 and not self.broken:
                for one in batch:  # one bad operation must not take the others with it
                    self._transact([one])
        with self._queue_lock:
            successor = self._queue[0] if self._queue else None
            self._led = successor is not None
        for entry in batch:
            if entry is not leader:
                entry.turn.release()
        if successor is not None:
            successor.turn.release()

    def _transact(self, batch: list[_Write]) -> None:
        self._moved.clear()
        self._hour.clear()
        self._settled.clear()
        error: BaseException | None = None
        try:
            if self.broken:
                raise StoreError(self.broken)
            self._db.execute("BEGIN IMMEDIATE")
            for entry in batch:
                entry.result = entry.operation()
            tally = self._new_tally() if self._moved or self._hour else self.tally
            self._db.execute("COMMIT")
            self.tally = tally
        except sqlite3.Error as found:
            error = self._failed(found)
        except BaseException as found:
            error = found
        if error is not None:
            self._last = None
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        if error is None:
            for waiter in (one for event in self._settled for one in self._waiters.get(event, ())):
                waiter.set()
        for entry in batch:
            entry.error, entry.done = error, True

    @property
    def counts(self) -> collections.Counter[str]:
        """How many events are in each state."""
        return collections.Counter(self.tally["counts"])

    def _new_tally(self) -> dict[str, Any]:
        """The tally with what this transaction adds, kept with it."""
        now = time.time()
        counts = self.counts
        counts.update(self._moved)
        tally = {**self.tally, "counts": counts}
        if tally["hour"] != int(now) // 3600:
            self._sql(
                "INSERT OR REPLACE INTO hours VALUES (:hour, :received, :delivered, :failed)",
                **{name: tally[name] for name in ("hour", "received", "delivered", "failed")},
            )
            tally |= {"hour": int(now) // 3600, "received": 0, "delivered": 0, "failed": 0}
        for name in ("received", "delivered", "failed", "repaired"):
            tally[name] += self._hour[name]
        if self._hour["delivered"]:
            tally["last_delivery"] = now
        self._set_facts({"tally": json.dumps(tally)})
        return tally

    def _failed(self, error: sqlite3.Error) -> Error:
        """What a failed statement or commit means for the file from now on."""
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            if not self.tight:
                log.error("%s: the disk is full: webhooks get 503 until there is room", self.path)
            self.tight = True
            with contextlib.suppress(OSError):
                os.unlink(self.path + ".reserve")
            return StoreFull()
        if name == "SQLITE_NOMEM":
            return StoreFull("out of memory")
        if not name.startswith(FATAL):
            return StoreError(f"{self.path}: {error}")
        # After a failed write or fsync nobody knows what is on the disk: only a new start does.
        self.broken = f"{self.path} cannot be written any more: {error} ({name})"
        log.critical("%s: ending; look after the disk", self.broken)
        return StoreError(self.broken)

    def keep_reserve(self) -> None:
        """Sets room aside for a full disk; when that works again, webhooks are taken again."""
        reserve, new = self.path + ".reserve", self.path + ".reserve.new"
        if self.broken or (not self.tight and os.path.exists(reserve)):
            return
        try:
            with open(new, "wb", opener=lambda at, how: os.open(at, how, 0o600)) as file:
                file.write(b"\0" * RESERVE)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, reserve)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        if self.tight:
            self.tight = False
            log.info("%s: there is room on the disk again: webhooks are taken", self.path)


# ── Events: intake, line, outcomes, questions, a person's acts ─────────────────────────────────


WAITS = "waits for the request id of its ticket; no opening event is pending"


class Webhook(NamedTuple):
    """What Web gives to the store: a webhook that was read, or why it could not be."""

    hook: str
    raw: bytes
    headers: str
    sender: str
    received: float
    state: str  # pending, failed or ignored
    reason: str = ""
    kind: str = ""
    ticket: str | None = None
    fields: str = "{}"
    repaired: str = ""
    delivery_id: str | None = None
    opens: bool = False
    needs: bool = False
    again: str = "ignore"  # from here on not kept
    used: str = ""  # what of the fields makes a difference to the request

    @property
    def digest(self) -> bytes:
        """What a duplicate has in common with it: kind and used fields, or the unreadable body."""
        what = (self.used or self.fields).encode() if self.ticket else self.raw
        return hashlib.sha256(f"{self.kind or self.hook}\0".encode() + what).digest()


KEPT = Webhook._fields[:-2]  # columns of the same names


class Receipt(NamedTuple):
    """What the store made of a webhook; for a duplicate, `event` is the first one's number."""

    event: int
    state: str
    reason: str
    request_id: str | None


@dataclass(frozen=True)
class Event:
    """One event as Delivery needs it; units and meanings as in the table."""

    event: int
    ticket: str
    kind: str
    hook: str
    opens: int
    unclear: int
    received: float
    born: float
    tries: int
    attempts: int
    first_try: float | None
    idempotency_key: str
    request_id: str | None
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One HTTP request of a delivery and what it meant."""

    at: float
    duration: float
    status: int | None
    outcome: str
    reason: str
    answer: str = ""


class Verdict(NamedTuple):
    """What the store is to make of an event after an attempt."""

    state: str  # pending, held, failed or delivered
    reason: str
    due: float | None = None  # service clock; for pending
    tries: int = 0
    request_id: str = ""  # for delivered, of a kind that opens
    then: str = ""  # a kind to be delivered next
    then_needs: bool = False
    unclear: bool = False


class Result(NamedTuple):
    """An attempt (None: there was none) and what it makes of its event."""

    event: Event
    attempt: Attempt | None
    verdict: Verdict


class Lines(Database):
    """The lines of the tickets: how events join them, move from state to state, and go on.

    Only the first event of a ticket's line has a due time. Methods with an underscore run inside a
    transaction.
    """

    def _request_id(self, ticket: str) -> str | None:
        row = self._row("SELECT request_id FROM mappings WHERE ticket = :ticket", ticket=ticket)
        return row["request_id"] if row else None

    def _map(self, ticket: str, request_id: str, origin: str, since: float) -> None:
        self._sql(
            "INSERT INTO mappings VALUES (:ticket, :request_id, :since, :origin)"
            " ON CONFLICT (ticket) DO UPDATE SET request_id = excluded.request_id,"
            " since = excluded.since, origin = excluded.origin",
            ticket=ticket,
            request_id=request_id,
            since=since,
            origin=origin,
        )

    def _insert(
        self, webhook: Webhook, parent: sqlite3.Row | None = None, due: float | None = None
    ) -> int:
        return self._insert_all([webhook], parent, due)

    def _insert_all(
        self,
        webhooks: Sequence[Webhook],
        parent: sqlite3.Row | None = None,
        due: float | None = None,
    ) -> int:
        """Makes each webhook an event, by one statement; the number of the first.

        One, because each statement lets other threads run and waits for its turn again.
        """
        if self._last is None:
            found = self._row("SELECT coalesce(max(event), 0) AS last FROM events")
            self._last = found["last"] if found else 0
        first, born = self._last + 1, self.clock()
        values: list[Any] = []
        for number, webhook in enumerate(webhooks, first):
            values += (number, parent["place"] if parent else number)
            values += (parent["event"] if parent else None, born, due, str(uuid.uuid4()))
            values += (webhook.digest, *webhook[: len(KEPT)])
            self._moved[webhook.state] += 1
            self._hour["received"] += parent is None
            self._hour["repaired"] += bool(webhook.repaired)
            self._hour[webhook.state] += 1
        row = f"({', '.join('?' * (7 + len(KEPT)))})"
        self._db.execute(
            "INSERT INTO events (event, place, parent, born, due, idempotency_key, digest,"
            f" {', '.join(KEPT)}) VALUES {', '.join([row] * len(webhooks))}",
            values,
        )
        self._last += len(webhooks)
        return first

    def _move(self, event: int, leaves: str, enters: str, reason: str, **columns: Any) -> bool:
        """Moves an event from one state to another; False where it was not in the first."""
        columns = {"due": None, "settled": time.time(), **columns}
        sets = "".join(f", {name} = :{name}" for name in columns)
        changed = self._sql(
            f"UPDATE events SET state = :enters, reason = :reason{sets}"
            " WHERE event = :event AND state = :leaves",
            event=event,
            leaves=leaves,
            enters=enters,
            reason=reason,
            **columns,
        ).rowcount
        if changed:
            self._moved[leaves] -= 1
            self._moved[enters] += 1
            self._hour[enters] += leaves != enters
            if enters not in ("pending", "held"):
                self._settled.append(event)
        return bool(changed)

    def _set_due(self, event: int, due: float | None) -> None:
        self._sql("UPDATE events SET due = :due WHERE event = :event", due=due, event=event)

    def _arrange(self, ticket: str) -> None:
        """Gives the first event of the ticket's line its due time, and no other.

        Without a request id the first is an opening event, or one that needs no id; the others
        wait: pending while an opening event is, held where none is. Where the opening failed, all
        wait.
        """
        line = self._sql(
            "SELECT event, state, opens, needs, unclear, due FROM events WHERE ticket = :ticket"
            " AND state IN ('pending', 'held') ORDER BY place, event",
            ticket=ticket,
        ).fetchall()
        mapped = not line or self._request_id(ticket) is not None
        opening = any(row["opens"] and row["state"] == "pending" for row in line)
        free = not mapped and any(not row["needs"] and not row["opens"] for row in line)
        barred = free and self._opening_failed(ticket)
        head = None
        for row in line:
            if row["state"] == "held" and row["unclear"]:
                continue  # a person decides
            waits = not mapped and not row["opens"] and (row["needs"] or barred)
            state = "held" if waits and not opening else "pending"
            if row["state"] != state:
                self._move(row["event"], row["state"], state, WAITS if state == "held" else "")
            if head is None and not waits:
                head = row["event"]
                if row["due"] is None:
                    self._set_due(head, self.clock())
            elif row["due"] is not None:
                self._set_due(row["event"], None)

    def _opening_failed(self, ticket: str) -> bool:
        row = self._row(
            "SELECT 1 FROM events WHERE ticket = :ticket AND opens = 1"
            " AND (state = 'failed' OR (state = 'held' AND unclear = 1)) LIMIT 1",
            ticket=ticket,
        )
        return row is not None

    def receive(self, webhooks: Sequence[Webhook]) -> list[Receipt | Exception]:
        """Stores webhooks as events, or knows them for duplicates; returns when that is durable.

        One transaction for all. For each its receipt, or why it was not stored: StoreFull,
        StoreError or what SQLite refuses.
        """
        if self.tight:
            return [StoreFull() for _ in webhooks]
        try:
            return self._write(lambda: self._receive(webhooks))  # type: ignore[no-any-return]
        except Exception as error:
            if len(webhooks) == 1 or self.tight or self.broken:
                return [error for _ in webhooks]
            return [self.receive([one])[0] for one in webhooks]  # a bad one takes no other

    def _receive(self, webhooks: Sequence[Webhook]) -> list[Receipt | Exception]:
        plain = self._plain(webhooks)
        first = self._insert_all([*plain.values()], due=self.clock()) if plain else 0
        numbers = {place: number for number, place in enumerate(plain, first)}
        return [
            Receipt(numbers[place], "pending", "", None)
            if place in numbers
            else self._receive_one(webhook)
            for place, webhook in enumerate(webhooks)
        ]

    def _plain(self, webhooks: Sequence[Webhook]) -> dict[int, Webhook]:
        """By their places those that open a ticket which nobody has heard of."""
        met: set[str | None] = set()
        plain: dict[int, Webhook] = {}
        for place, one in enumerate(webhooks):
            new = one.ticket is not None and one.ticket not in met
            if new and one.opens and one.state == "pending" and not one.delivery_id:
                plain[place] = one
            met.add(one.ticket)
        if not plain:
            return {}
        tickets = [one.ticket for one in plain.values()]
        known = self._db.execute(
            f"SELECT column1 FROM (VALUES {', '.join(['(?)'] * len(tickets))})"
            " WHERE EXISTS (SELECT 1 FROM events WHERE ticket = column1)"
            " OR EXISTS (SELECT 1 FROM mappings WHERE ticket = column1)",
            tickets,
        ).fetchall()
        old = {row["column1"] for row in known}
        return {place: one for place, one in plain.items() if one.ticket not in old}

    def _receive_one(self, webhook: Webhook) -> Receipt:
        if webhook.ticket is None:
            return self._receive_unreadable(webhook)
        request_id, seen = self._db.execute(
            "SELECT (SELECT request_id FROM mappings WHERE ticket = :ticket),"
            " EXISTS (SELECT 1 FROM events WHERE ticket = :ticket)",
            {"ticket": webhook.ticket},
        ).fetchone()
        if webhook.state != "ignored" and (seen or webhook.delivery_id or request_id):
            first, reason = self._duplicate(webhook, request_id)
            if first and first["state"] == "failed" and not first["attempts"]:
                if webhook.state == "failed":  # refused with 400 then, and now again
                    return Receipt(first["event"], "failed", webhook.reason, request_id)
            elif reason:
                number = self._insert(webhook._replace(state="ignored", reason=reason))
                return Receipt(first["event"] if first else number, "ignored", reason, request_id)
        if webhook.state != "pending":
            return Receipt(self._insert(webhook), webhook.state, webhook.reason, request_id)
        if (webhook.opens or request_id) and not (seen and self._has_line(webhook.ticket)):
            return Receipt(self._insert(webhook, due=self.clock()), "pending", "", request_id)
        return self._join(self._insert(webhook), webhook, request_id)

    def _has_line(self, ticket: str) -> bool:
        row = self._row(
            "SELECT 1 FROM events WHERE ticket = :ticket AND state IN ('pending', 'held') LIMIT 1",
            ticket=ticket,
        )
        return row is not None

    def _receive_unreadable(self, webhook: Webhook) -> Receipt:
        first = self._row(
            "SELECT event, reason FROM events WHERE digest = :digest AND ticket IS NULL"
            " AND state = 'failed'",
            digest=webhook.digest,
        )
        if first and webhook.state == "failed":
            return Receipt(first["event"], "failed", first["reason"], None)
        return Receipt(self._insert(webhook), webhook.state, webhook.reason, None)

    def _duplicate(
        self, webhook: Webhook, request_id: str | None
    ) -> tuple[sqlite3.Row | None, str]:
        """The event that `webhook` repeats, and the reason to ignore it ("" for none)."""
        if webhook.opens and webhook.again == "ignore":
            first = self._row(
                "SELECT event, state, attempts FROM events WHERE ticket = :ticket AND opens = 1"
                " AND state IN ('pending', 'held', 'delivered') ORDER BY place, event LIMIT 1",
                ticket=webhook.ticket,
            )
            if first:
                return first, f"duplicate of event {first['event']}: the ticket is opened already"
            if request_id is not None:
                return None, f"the ticket already has request id {request_id}"
        if webhook.delivery_id:
            first = self._row(
                "SELECT event, state, attempts FROM events WHERE delivery_id = :delivery_id"
                " AND hook = :hook AND state != 'ignored' ORDER BY event LIMIT 1",
                delivery_id=webhook.delivery_id,
                hook=webhook.hook,
            )
        else:
            first = self._row(
                "SELECT event, state, attempts, digest FROM events WHERE ticket = :ticket"
                " AND state != 'ignored' AND parent IS NULL ORDER BY place DESC LIMIT 1",
                ticket=webhook.ticket,
            )
            if first and first["digest"] != webhook.digest:
                return None, ""
        free = ("dropped", "failed") if webhook.opens else ("dropped",)
        if not first or first["state"] in free:
            return None, ""
        return first, f"duplicate of event {first['event']}"

    def _join(self, event: int, webhook: Webhook, request_id: str | None) -> Receipt:
        """Puts a new event at the end of its ticket's line."""
        self._arrange(str(webhook.ticket))
        row = self._row("SELECT state, reason FROM events WHERE event = :event", event=event)
        assert row is not None
        return Receipt(event, row["state"], row["reason"], request_id)


class Progress(Lines):
    """What Delivery asks and records."""

    def recover(self) -> None:
        """After a start: attempts that were on their way are unclear, due times within reach."""

        def operation() -> None:
            now = self.clock()
            self._sql(
                "UPDATE attempts SET outcome = 'unclear',"
                " reason = 'the program ended while the request was on its way'"
                " WHERE outcome = 'sent' AND event IN"
                " (SELECT event FROM events WHERE state = 'pending' AND unclear = 1)"
            )
            self._sql("UPDATE events SET due = :cap WHERE due > :cap", cap=now + MAX_RETRY_AFTER)

        self._write(operation)

    def postpone_unclear(self, kind: str, due: float) -> None:
        """Lets openings that may have happened wait until `due` (service clock)."""
        self._write(
            lambda: self._sql(
                "UPDATE events SET due = :due WHERE state = 'pending' AND unclear = 1"
                " AND kind = :kind AND due IS NOT NULL",
                due=due,
                kind=kind,
            )
        )

    def due(self, now: float, limit: int, room: int = 1 << 20) -> list[Event]:
        """Events to be tried at `now` (service clock), longest due first, `room` bytes or so."""
        found: list[Event] = []
        with self._lock:
            try:
                rows = self._sql(
                    "SELECT event, ticket, kind, hook, opens, unclear, received, born, tries,"
                    " attempts, first_try, idempotency_key, request_id, fields"
                    " FROM events LEFT JOIN mappings USING (ticket)"
                    " WHERE due <= :now ORDER BY due LIMIT :limit",
                    now=now,
                    limit=limit,
                )
                for row in rows:
                    room -= len(row["fields"])
                    found.append(Event(**{**dict(row), "fields": json.loads(row["fields"])}))
                    if room < 0:
                        break
            except sqlite3.Error as error:
                raise self._failed(error) from None
        return found

    def postpone(self, event: int, due: float) -> None:
        """Lets a pending event wait until `due` (service clock), without an attempt."""
        self._write(
            lambda: self._sql(
                "UPDATE events SET due = :due WHERE event = :event AND state = 'pending'"
                " AND due IS NOT NULL",
                event=event,
                due=due,
            )
        )

    def next_due(self, now: float) -> float | None:
        """The earliest due time after `now` (service clock), None where there is none."""
        found = self._read("SELECT min(due) AS due FROM events WHERE due > :now", now=now)
        return found[0]["due"]  # type: ignore[no-any-return]

    def _note(self, event: int, number: int, attempt: Attempt) -> None:
        self._sql(
            "INSERT OR REPLACE INTO attempts VALUES"
            " (:event, :number, :at, :duration, :status, :outcome, :reason, :answer)",
            event=event,
            number=number,
            **vars(attempt),
        )
        if number > 60:  # of a long outage the first and the last attempts are kept
            self._sql(
                "DELETE FROM attempts WHERE event = :event AND attempt = :number",
                event=event,
                number=number - 50,
            )

    def begin(self, event: Event, at: float) -> bool:
        """Records durably that an attempt is about to be made; False: the event may not go now.

        Until its outcome is recorded it may have happened: a crash leaves it unclear.
        """

        def operation() -> bool:
            changed = self._sql(
                "UPDATE events SET attempts = :number, unclear = 1"
                " WHERE event = :event AND state = 'pending'",
                number=event.attempts + 1,
                event=event.event,
            ).rowcount
            if changed:
                sent = Attempt(at, 0.0, None, "sent", "on its way")
                self._note(event.event, event.attempts + 1, sent)
            return bool(changed)

        return self._write(operation)  # type: ignore[no-any-return]

    def record(self, results: Sequence[Result]) -> list[bool]:
        """Records attempts and what becomes of their events, in one transaction.

        False for an event that is not pending any more (dropped meanwhile); a request id that the
        ITSM gave is kept all the same.
        """
        return self._write(  # type: ignore[no-any-return]
            lambda: [self._record(*result) for result in results]
        )

    def _record(self, event: Event, attempt: Attempt | None, verdict: Verdict) -> bool:
        attempts, first_try = event.attempts, event.first_try
        if attempt is not None:
            attempts += 1
            self._note(event.event, attempts, attempt)
            if verdict.state == "pending" and first_try is None:
                first_try = self.clock()
        moved = self._move(
            event.event,
            "pending",
            verdict.state,
            verdict.reason,
            due=verdict.due,
            tries=verdict.tries,
            attempts=attempts,
            first_try=first_try,
            unclear=verdict.unclear,
        )
        if verdict.request_id:
            self._map(event.ticket, verdict.request_id, "itsm", time.time())
        if moved and verdict.then:
            self._follow(event, verdict)
        if verdict.state != "pending":
            self._arrange(event.ticket)
        return moved

    def _follow(self, event: Event, verdict: Verdict) -> None:
        """Queues the `then` event of one that was delivered, ahead of the ticket's later ones."""
        parent = self._row(
            "SELECT event, place, sender, fields FROM events WHERE event = :event",
            event=event.event,
        )
        assert parent is not None
        follower = Webhook(
            hook=event.hook,
            raw=b"",
            headers="{}",
            sender=parent["sender"],
            received=event.received,
            state="pending",
            kind=verdict.then,
            ticket=event.ticket,
            fields=parent["fields"],
            needs=verdict.then_needs,
        )
        self._insert(follower, parent)

    def retain(self, received_before: float, after: int, limit: int = 200) -> int:
        """Deletes settled events received before that, among the `limit` that follow `after`.

        Returns where to go on, 0 when all are looked at. The last event stays, so that its number
        is not used again.
        """

        def operation() -> int:
            rows = self._sql(
                "SELECT event, state, received FROM events WHERE event > :after"
                " AND event < (SELECT max(event) FROM events) ORDER BY event LIMIT :limit",
                after=after,
                limit=limit,
            ).fetchall()
            old = [row for row in rows if row["received"] < received_before]
            for row in old:
                if row["state"] in ("delivered", "ignored", "dropped"):
                    self._moved[row["state"]] -= 1
                    self._sql("DELETE FROM attempts WHERE event = :event", event=row["event"])
                    self._sql("DELETE FROM events WHERE event = :event", event=row["event"])
            self._sql("DELETE FROM hours WHERE hour < :hour", hour=int(received_before) // 3600)
            return old[-1]["event"] if len(old) == limit else 0

        return self._write(operation)  # type: ignore[no-any-return]

    def near_end(self, give_up_after: float) -> list[int]:
        """Of the oldest 1,000 pending events those that have a fifth of their time left."""
        rows = self._read(
            "SELECT event, born FROM events WHERE state = 'pending' ORDER BY event LIMIT 1000"
        )
        born_before = self.clock() - 0.8 * give_up_after
        return [row["event"] for row in rows if row["born"] < born_before]

    def last_received(self) -> float | None:
        """When the last webhook came (wall clock)."""
        rows = self._read("SELECT received FROM events ORDER BY event DESC LIMIT 1")
        return rows[0]["received"] if rows else None


class Store(Progress):
    """All of it: what people and pages ask, and what a person does."""

    def wait(self, event: int, seconds: float, most: int) -> Receipt | None:
        """How `event` stands when it was settled, or after `seconds`.

        None at once where `most` callers wait already: each keeps a thread from other webhooks.
        """
        waiter, deadline = threading.Event(), time.monotonic() + seconds
        with self._lock:
            if sum(map(len, self._waiters.values())) >= most:
                return None
            self._waiters.setdefault(event, []).append(waiter)
        try:
            while True:
                found = self.show(event)
                left = deadline - time.monotonic()
                settled = found is None or found["state"] not in ("pending", "held")
                if settled or left <= 0 or self.leaving:
                    break
                waiter.wait(left)
        finally:
            with self._lock:
                self._waiters[event].remove(waiter)
                if not self._waiters[event]:
                    del self._waiters[event]
        if found is None:
            return None
        return Receipt(event, found["state"], found["reason"], found["request_id"])

    def leave(self) -> None:
        """Lets nobody wait any more: the program is about to end."""
        with self._lock:
            self.leaving = True
            for waiter in itertools.chain(*self._waiters.values()):
                waiter.set()

    def events(
        self,
        state: str = "",
        ticket: str = "",
        kind: str = "",
        since: float = 0.0,
        before: int = 0,
        limit: int = 50,
        after: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Events without bodies, newest first, with `after` oldest first.

        `since`: wall clock; `before`, `after`: event numbers; `numbers`: only these.
        """
        where = [
            f"state = '{STATES[STATES.index(state)]}'" if state else "",  # literal, for the index
            "ticket = :ticket" if ticket else "",
            "kind = :kind" if kind else "",
            "received >= :since" if since else "",
            "event < :before" if before else "",
            "event > :after" if after else "",
            f"event IN ({', '.join(map(str, numbers))})" if numbers is not None else "",
        ]
        return self._read(
            "SELECT event, state, kind, hook, ticket, request_id, received, reason, attempts, due,"
            " repaired, unclear FROM events LEFT JOIN mappings USING (ticket)"
            f" WHERE {' AND '.join(filter(None, where)) or '1'}"
            f" ORDER BY event {'ASC' if after else 'DESC'} LIMIT :limit",
            ticket=ticket,
            kind=kind,
            since=since,
            before=before,
            limit=limit,
            after=after,
        )

    def show(self, event: int) -> dict[str, Any] | None:
        """Everything of one event, its attempts included."""
        rows = self._read(
            "SELECT * FROM events LEFT JOIN mappings USING (ticket) WHERE event = :event",
            event=event,
        )
        if not rows:
            return None
        attempts = self._read(
            "SELECT attempt, at, duration, status, outcome, reason, answer FROM attempts"
            " WHERE event = :event ORDER BY attempt",
            event=event,
        )
        return {**rows[0], "attempts": attempts}

    def line(self, ticket: str) -> list[int]:
        """The numbers of all events of a ticket, in its order."""
        rows = self._read(
            "SELECT event FROM events WHERE ticket = :ticket ORDER BY place, event", ticket=ticket
        )
        return [row["event"] for row in rows]

    def mapping(self, ticket: str) -> dict[str, Any] | None:
        """The mapping of a ticket: ticket, request_id, since, origin."""
        rows = self._read("SELECT * FROM mappings WHERE ticket = :ticket", ticket=ticket)
        return rows[0] if rows else None

    def mappings(self, after: str = "", limit: int = 1000) -> list[dict[str, Any]]:
        """Mappings in the order of their tickets, from the one after `after` on."""
        return self._read(
            "SELECT * FROM mappings WHERE ticket > :after ORDER BY ticket LIMIT :limit",
            after=after,
            limit=limit,
        )

    def oldest(self) -> dict[str, Any] | None:
        """The oldest event that is pending or held: event, received."""
        rows = self._read(
            "SELECT event, received FROM events WHERE event IN ("
            "SELECT min(event) FROM events WHERE state = 'pending' UNION ALL"
            " SELECT min(event) FROM events WHERE state = 'held') ORDER BY event LIMIT 1"
        )
        return rows[0] if rows else None

    def incidents(
        self,
        outage_after: float,
        held_after: float,
        give_up_after: float,
        silence: float,
        rereads: bool,
    ) -> dict[str, str]:
        """What needs a person now, by name, each with what to do; all limits in seconds.

        `rereads`: whether a new credential is found without a restart.
        """
        now, found = time.time(), {}
        itsm = json.loads(self.fact("itsm") or "{}")
        if itsm.get("why") == "credential":
            then = "it is read by itself" if rereads else "then restart"
            found["credential"] = (
                f"the ITSM refuses our credential: put the new one in place, {then}"
            )
        elif itsm and now - itsm["since"] > outage_after:
            found["outage"] = (
                f"the ITSM is down ({itsm['reason']}): deliveries go on when it is up"
            )
        if count := self.counts["failed"]:
            found["failed"] = (
                f"{count} failed: `events --state failed` says why; `retry` or `drop`"
            )
        held = self._read("SELECT min(received) AS first FROM events WHERE state = 'held'")[0][
            "first"
        ]
        if held is not None and now - held >= held_after:
            found["held"] = f"{self.counts['held']} held: `events --state held` says what for"
        if count := len(self.near_end(give_up_after)):
            found["near_end"] = f"{count} will soon be given up: see [retry] give_up_after"
        if problem := self.board.get("reload"):
            found["reload"] = (
                f"the last reload was refused, the old configuration goes on: {problem}"
            )
        if self.tight:
            found["disk"] = "the disk is full: webhooks are refused until there is room"
        last = self.last_received()
        if silence and last is not None and now - last > silence:
            found["silence"] = f"no webhook came for {round((now - last) / 3600)} h: why not?"
        return found

    def hours(self, first: int) -> list[dict[str, Any]]:
        """What happened in each hour (epoch seconds / 3600) from `first` on."""
        rows = self._read("SELECT * FROM hours WHERE hour >= :first ORDER BY hour", first=first)
        return [*rows, self.tally]

    def find_tickets(self, text: str) -> list[str]:
        """The tickets that `text` means: as a ticket, or as a request id."""
        rows = self._read(
            "SELECT ticket FROM events WHERE ticket = :text UNION SELECT ticket FROM mappings"
            " WHERE ticket = :text OR request_id = :text LIMIT 50",
            text=text,
        )
        return [row["ticket"] for row in rows]

    def forget(self, ticket: str) -> int:
        """Removes the texts of a ticket's settled events; how many. Mapping and states stay."""

        settled = "ticket = :ticket AND state IN ('delivered', 'ignored', 'dropped')"

        def operation() -> int:
            self._sql(
                "UPDATE attempts SET answer = '', reason = '' WHERE event IN"
                f" (SELECT event FROM events WHERE {settled})",
                ticket=ticket,
            )
            return self._sql(
                "UPDATE events SET raw = X'', headers = '{}', sender = '', reason = '',"
                f" fields = :fields WHERE {settled}",
                ticket=ticket,
                fields=COMPACT.encode({"ticket_id": ticket}),
            ).rowcount

        count: int = self._edit(operation)
        self._read("PRAGMA wal_checkpoint(TRUNCATE)")  # or the texts would stay in there
        return count

    def known(self, tickets: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of some tickets: ticket, request_id, and its events' kinds and states."""
        found = []
        for ticket in tickets:
            mapping = self.mapping(ticket)
            events = self._read(
                "SELECT event, kind, state FROM events WHERE ticket = :ticket"
                " AND state != 'ignored' ORDER BY place, event",
                ticket=ticket,
            )
            request_id = mapping["request_id"] if mapping else None
            found.append({"ticket": ticket, "request_id": request_id, "events": events})
        return found

    def backup(self, path: str) -> int:
        """Writes a consistent, checked copy while work goes on; its size in bytes.

        Not under `_lock`: SQLite copies in steps and takes in what changes between them.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._db.backup(copy, pages=256, sleep=0.005)
                found = copy.execute("PRAGMA integrity_check(3)").fetchall()
            if found != [("ok",)]:
                raise StoreError(f"{path}: the copy is damaged ({found}): look after the disk")
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            return os.stat(path).st_size
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be written: {error}") from None

    def retry(self, event: int, webhook: Webhook, force: bool) -> str:
        """Puts an event back to pending as `webhook` has it now; "" or why that is refused."""
        return str(self._edit(lambda: self._retry(event, webhook, force)))

    def _retry(self, event: int, webhook: Webhook, force: bool) -> str:
        row = self._row(
            "SELECT event, state, place, unclear FROM events WHERE event = :event", event=event
        )
        if row is None:
            return f"event {event} is not there"
        if row["state"] in ("pending", "delivered") or (
            row["state"] == "held" and not row["unclear"]
        ):
            return f"event {event} is {row['state']}: nothing to retry"
        refusal = "" if force else self._out_of_order(row, webhook)
        if refusal:
            return f"{refusal}: --force sends it all the same"
        self._move(
            event,
            row["state"],
            "pending",
            "",
            kind=webhook.kind,
            ticket=webhook.ticket,
            fields=webhook.fields,
            repaired=webhook.repaired,
            digest=webhook.digest,
            opens=webhook.opens,
            needs=webhook.needs,
            unclear=False,
            tries=0,
            first_try=None,
            born=self.clock(),
        )
        self._arrange(str(webhook.ticket))
        return ""

    def _out_of_order(self, row: sqlite3.Row, webhook: Webhook) -> str:
        """Why sending the event of `row` now could double or disorder its ticket, or ""."""
        number, ticket = row["event"], webhook.ticket
        later = self._row(
            "SELECT event FROM events WHERE ticket = :ticket AND state = 'delivered'"
            " AND (place, event) > (:place, :event) LIMIT 1",
            ticket=ticket,
            place=row["place"],
            event=number,
        )
        if later:
            return (
                f"event {number} is older than event {later['event']} of ticket {ticket}, which"
                " was delivered"
            )
        if not webhook.opens or webhook.again == "send":
            return ""
        other = self._row(
            "SELECT event FROM events WHERE ticket = :ticket AND opens = 1 AND event != :event"
            " AND state IN ('pending', 'held', 'delivered') LIMIT 1",
            ticket=ticket,
            event=number,
        )
        request_id = self._request_id(str(ticket))
        if other or request_id:
            why = f"event {other['event']} does it" if other else f"it has request id {request_id}"
            return f"event {number} would open ticket {ticket} a second time ({why})"
        return ""

    def drop(self, event: int, why: str) -> str:
        """Gives an event up; "" or why it cannot be dropped."""

        def operation() -> str:
            row = self._row("SELECT state, ticket FROM events WHERE event = :event", event=event)
            if row is None:
                return f"event {event} is not there"
            if row["state"] not in ("pending", "held", "failed", "ignored"):
                return f"event {event} is {row['state']}: nothing to drop"
            self._move(event, row["state"], "dropped", f"dropped by hand: {why}")
            if row["ticket"] is not None:
                self._arrange(row["ticket"])
            return ""

        return self._edit(operation)  # type: ignore[no-any-return]

    def map(self, ticket: str, request_id: str) -> list[int]:
        """Sets a ticket's request id by hand; the events that it freed, in order.

        An opening that waits, or that may have happened, is thereby settled: it is not sent.
        """

        def operation() -> list[int]:
            self._map(ticket, request_id, "hand", time.time())
            rows = self._sql(
                "SELECT event, state, opens FROM events WHERE ticket = :ticket"
                " AND (state IN ('pending', 'held') OR (state = 'failed' AND unclear = 1))"
                " ORDER BY place, event",
                ticket=ticket,
            ).fetchall()
            for row in rows:
                if row["opens"]:
                    self._move(row["event"], row["state"], "delivered", "mapped by hand")
            self._arrange(ticket)
            return [row["event"] for row in rows if not row["opens"]]

        return self._edit(operation)  # type: ignore[no-any-return]

    def import_mappings(self, rows: Sequence[tuple[str, str, float]]) -> int:
        """Adds mappings (ticket, request id, epoch seconds) in small transactions; how many."""

        def operation(start: int) -> None:
            for ticket, request_id, since in rows[start : start + 200]:
                self._map(ticket, request_id, "import", since)
                self._arrange(ticket)

        for start in range(0, len(rows), 200):
            self._edit(functools.partial(operation, start))
        return len(rows)


# ── Operations: what an operator asks and does; pure ───────────────────────────────────────────


def judge_kind(config: Config, base: Webhook, fields: Mapping[str, Any]) -> Webhook:
    """`base` with what its kind says of it; failed where it could not be translated today."""
    kind = config.kinds.get(base.kind)
    if kind is None:
        return base._replace(state="failed", reason=no_such_kind(base.kind))
    used = {name: value for name, value in fields.items() if name in kind.names}
    base = base._replace(
        used=repr(used),
        opens=kind.opens,
        needs=kind.needs,
        again=kind.again,
    )
    try:
        render(kind, config.scope(fields, 0, str(base.ticket), base.received, "?"))
    except Untranslatable as error:
        return base._replace(state="failed", reason=f"cannot be translated: {error}")
    return base


def judge(config: Config, hook: Hook, reading: Reading, base: Webhook) -> Webhook:
    """The webhook as it is to be stored: pending, ignored by the rules, or failed and why."""
    if reading.problem:
        return base._replace(state="failed", reason=reading.problem, repaired=reading.repaired)
    base = base._replace(
        kind=reading.kind,
        ticket=reading.ticket,
        fields=COMPACT.encode(reading.fields),
        repaired=reading.repaired,
    )
    if not reading.kind:
        return base._replace(state="ignored", reason=f"no rule of hook {hook.name} matches")
    return judge_kind(config, base, reading.fields)


def incidents(config: Config, store: Store, held_after: float) -> dict[str, str]:
    """What needs a person now, by name; each says what to do."""
    return store.incidents(
        outage_after=config.alert.after,
        held_after=held_after,
        give_up_after=config.retry.give_up_after,
        silence=config.alert.silence,
        rereads=config.itsm.authorization.source not in ("credential", "env"),
    )


# The verbs: what an operator asks and does, alike from the command line and the control endpoint.

Arguments = Mapping[str, Any]


def iso(moment: float | None, clock: Clock) -> str | None:
    """Epoch seconds as ISO 8601 text in the configured zone."""
    return None if moment is None else clock.local(moment).isoformat(timespec="seconds")


def raw_text(raw: bytes) -> str:
    """A body as text, for people."""
    return next(decode_body(raw))[0] if raw else ""


def _shown(config: Config, store: Store, row: Mapping[str, Any]) -> dict[str, Any]:
    """An event's row in the words of SPEC section 2."""
    shown = {
        "event": row["event"],
        "state": row["state"],
        "kind": row["kind"] or None,
        "ticket": row["ticket"],
        "request_id": row["request_id"],
        "hook": row["hook"],
        "received": iso(row["received"], config.clock),
        "reason": row["reason"],
        "repaired": row["repaired"],
        "attempts": row["attempts"],
    }
    if row["state"] == "pending" and row["due"] is not None:
        shown["next_try"] = iso(time.time() + max(0.0, row["due"] - store.clock()), config.clock)
    return shown


def show_event(config: Config, store: Store, number: int) -> dict[str, Any]:
    """Everything of one event. Raises Error where there is none."""
    row = store.show(number)
    if row is None:
        raise Error(f"there is no event {number}; `events` lists them")
    attempts = [{**one, "at": iso(one["at"], config.clock)} for one in row["attempts"]]
    shown = _shown(config, store, row)
    shown |= {"idempotency_key": row["idempotency_key"], "sender": row["sender"]}
    shown |= {"delivery_id": row["delivery_id"], "parent": row["parent"]}
    shown |= {"settled": iso(row["settled"], config.clock), "fields": json.loads(row["fields"])}
    return shown | {"raw": raw_text(row["raw"]), "attempts": attempts}


def event_number(text: Any) -> int:
    """The number that `text` is. Raises Error where no event can have it."""
    if not re.fullmatch("[0-9]{1,18}", str(text)):
        raise Error(f"there is no event {str(text)[:40]!r}: an event has a number")
    return int(text)


def verb_events(config: Config, store: Store, arguments: Arguments) -> Any:
    """Events, newest first: state, ticket, kind, since (epoch seconds), limit, before; whole."""
    state = str(arguments.get("state") or "")
    if state and state not in STATES:
        raise Error(f"no state {state!r}{_hint(state, STATES)}: {', '.join(STATES)}")
    rows = store.events(
        state,
        str(arguments.get("ticket") or ""),
        str(arguments.get("kind") or ""),
        float(arguments.get("since") or 0),
        int(arguments.get("before") or 0),
        min(int(arguments.get("limit") or 50), 1000),
    )
    if arguments.get("whole"):
        return [show_event(config, store, row["event"]) for row in rows]
    return [_shown(config, store, row) for row in rows]


def verb_show(config: Config, store: Store, arguments: Arguments) -> Any:
    """One event (`event`), or a ticket's mapping and timeline (`ticket`)."""
    if arguments.get("event") is not None:
        return show_event(config, store, event_number(arguments["event"]))
    ticket = str(arguments["ticket"])
    mapping = store.mapping(ticket)
    numbers = store.line(ticket)
    if mapping is None and not numbers:
        raise Error(f"ticket {ticket} was never seen: no event and no mapping")
    if mapping:
        mapping["since"] = iso(mapping["since"], config.clock)
    events = [show_event(config, store, number) for number in numbers[-200:]]
    return {"ticket": ticket, "mapping": mapping, "events": events}


def reread(config: Config, row: Mapping[str, Any]) -> Webhook:
    """A stored event read and judged anew with today's configuration."""
    base = Webhook(
        hook=row["hook"],
        raw=row["raw"],
        headers=row["headers"],
        sender=row["sender"],
        received=row["received"],
        state="pending",
    )
    if row["parent"] is not None:  # it has no body of its own
        fields = json.loads(row["fields"])
        base = base._replace(kind=row["kind"], ticket=row["ticket"], fields=row["fields"])
        return judge_kind(config, base, fields)
    hook = config.hooks.get(row["hook"])
    if hook is None:
        reason = f"hook {row['hook']} is not configured any more"
        return base._replace(state="failed", reason=reason)
    return judge(config, hook, read_webhook(hook, row["raw"], json.loads(row["headers"])), base)


def _retry_one(config: Config, store: Store, number: int, force: bool, dry: bool) -> str:
    row = store.show(number)
    if row is None:
        return f"there is no event {number}"
    webhook = reread(config, row)
    if webhook.state == "ignored":
        return f"event {number}: {webhook.reason}"
    if webhook.state == "failed":
        return f"event {number} would fail again: {webhook.reason}"
    return "" if dry else store.retry(number, webhook, force)


def _chosen(store: Store, state: str, arguments: Arguments) -> list[int]:
    """Numbers of all events in `state` that fit kind, reason and since."""
    numbers: list[int] = []
    kind, since = str(arguments.get("kind") or ""), float(arguments.get("since") or 0)
    reason, before = str(arguments.get("reason") or ""), 0
    while rows := store.events(state, "", kind, since, before, 1000):
        numbers += [row["event"] for row in rows if reason in row["reason"]]
        before = rows[-1]["event"]
    return numbers


def verb_retry(config: Config, store: Store, arguments: Arguments) -> Any:
    """Puts events back to pending: events, or state with kind, reason, since; force; dry_run."""
    numbers = [event_number(number) for number in arguments.get("events") or ()]
    dry = bool(arguments.get("dry_run"))
    if not numbers:
        state = str(arguments.get("state") or "")
        if state not in ("failed", "ignored", "dropped", "held"):
            raise Error("name events, or --state failed (ignored, dropped, held)")
        numbers = _chosen(store, state, arguments)
    retried, refused = [], []
    for number in sorted(numbers):
        refusal = _retry_one(config, store, number, bool(arguments.get("force")), dry)
        if refusal:
            refused.append({"event": number, "reason": refusal})
        else:
            retried.append(number)
    return {"retried": retried, "refused": refused, "dry_run": dry}


def verb_drop(config: Config, store: Store, arguments: Arguments) -> Any:
    """Gives events up, with the reason `why`."""
    why = str(arguments.get("why") or "").strip()
    if not why:
        raise Error("drop needs a reason: --why TEXT; it is kept with the event")
    dropped, refused = [], []
    for number in map(event_number, arguments["events"]):
        if refusal := store.drop(number, why):
            refused.append({"event": number, "reason": refusal})
        else:
            dropped.append(number)
    return {"dropped": dropped, "refused": refused}


def mapping_of(arguments: Arguments) -> tuple[str, str]:
    """The ticket and the request id that are named. Raises Error where one cannot be."""
    ticket, request_id = read_id(arguments.get("ticket")), read_id(arguments.get("request_id"))
    if not ticket or not request_id:
        raise Error(f"ticket and request id must be texts of 1 to {MAX_ID} characters")
    return ticket, request_id


def verb_map(config: Config, store: Store, arguments: Arguments) -> Any:
    """Sets the request id of a ticket; what was held for it goes out."""
    ticket, request_id = mapping_of(arguments)
    return {"ticket": ticket, "request_id": request_id, "freed": store.map(ticket, request_id)}


def verb_import(config: Config, store: Store, arguments: Arguments) -> Any:
    """Adds mappings: rows of [ticket, request id, epoch seconds]."""
    rows = [(read_id(one[0]), read_id(one[1]), float(one[2])) for one in arguments["rows"]]
    if not all(ticket and request_id for ticket, request_id, _ in rows):
        raise Error("a mapping without ticket or request id: nothing was imported")
    return {"imported": store.import_mappings(rows)}


def verb_mappings(config: Config, store: Store, arguments: Arguments) -> Any:
    """A page of mappings, after the ticket `after`."""
    rows = store.mappings(str(arguments.get("after") or ""))
    return [{**row, "since": iso(row["since"], config.clock)} for row in rows]


def verb_pause(config: Config, store: Store, arguments: Arguments) -> Any:
    """Stops deliveries; intake goes on."""
    store.keep_facts(paused=store.fact("paused") or repr(time.time()))
    return {"paused": iso(float(store.fact("paused")), config.clock)}


def verb_resume(config: Config, store: Store, arguments: Arguments) -> Any:
    """Lets deliveries go on."""
    store.keep_facts(paused="")
    return {"paused": None}


def verb_status(config: Config, store: Store, arguments: Arguments) -> Any:
    """Counts by state, the oldest undelivered, the ITSM, and what needs a person."""
    oldest, clock = store.oldest(), config.clock
    counts = {state: store.counts.get(state, 0) for state in STATES}
    itsm = json.loads(store.fact("itsm") or "{}")
    last = store.tally["last_delivery"]
    return {
        **counts,
        "counts": counts,
        "oldest": oldest
        and {"event": oldest["event"], "received": iso(oldest["received"], clock)},
        "oldest_age": round(max(0.0, time.time() - oldest["received"])) if oldest else 0,
        "itsm": {
            "state": "down" if itsm else "up",
            "reason": itsm.get("reason", ""),
            "since": iso(itsm.get("since"), clock),
        },
        "paused": iso(float(store.fact("paused")), clock) if store.fact("paused") else None,
        "last_delivery": iso(last, clock) if last else None,
        "last_webhook": iso(store.last_received(), clock),
        "repaired": store.tally["repaired"],
        "running": bool(store.board),
        "needs": list(incidents(config, store, held_after=0.0).values()),
    }


def verb_forget(config: Config, store: Store, arguments: Arguments) -> Any:
    """Removes the texts of a ticket's settled events; its mapping stays."""
    ticket = str(arguments["ticket"])
    waiting = [
        number
        for state in ("pending", "held", "failed")
        for number in (row["event"] for row in store.events(state, ticket, limit=1000))
    ]
    return {"ticket": ticket, "forgotten": store.forget(ticket), "left": sorted(waiting)}


def verb_known(config: Config, store: Store, arguments: Arguments) -> Any:
    """What is known of `tickets`."""
    return store.known([str(ticket) for ticket in arguments["tickets"]])


def verb_backup(config: Config, store: Store, arguments: Arguments) -> Any:
    """Makes a copy beside the file, where a service may write; whoever asked moves it away."""
    path = f"{os.path.abspath(store.path)}.backup.{secrets.token_hex(4)}"
    return {"file": path, "bytes": store.backup(path)}


VERBS: dict[str, Callable[[Config, Store, Arguments], Any]] = {
    "events": verb_events,
    "show": verb_show,
    "retry": verb_retry,
    "drop": verb_drop,
    "map": verb_map,
    "import": verb_import,
    "mappings": verb_mappings,
    "pause": verb_pause,
    "resume": verb_resume,
    "status": verb_status,
    "known": verb_known,
    "forget": verb_forget,
    "backup": verb_backup,
}
WAKING = ("retry", "drop", "map", "import", "resume")  # after these something may be due


def health(config: Config, store: Store) -> tuple[str, dict[str, Any]]:
    """`ok`, `warn` or `fail`, and what it is made of."""
    status = verb_status(config, store, {})
    age, beat = status["oldest_age"], store.board.get("beat", 0.0)
    dead = time.monotonic() - beat > 30
    word = "fail" if age > 3600 or dead or store.broken else "ok"
    troubled = age > config.alert.after or store.tight or status["needs"]
    if word == "ok" and (troubled or status["paused"]):
        word = "warn"
    return word, {
        "status": word,
        "oldest_age": age,
        "pending": status["counts"]["pending"],
        "held": status["counts"]["held"],
        "failed": status["counts"]["failed"],
        "itsm": status["itsm"],
        "paused": status["paused"],
        "workers": "dead" if dead else "alive",
        "disk": "full" if store.tight else "ok",
        "needs": status["needs"],
    }


METRICS = (  # name, type, help, label; the values are gathered by `metrics`
    ("events", "gauge", "events by state", "state"),
    (
        "webhooks_total",
        "counter",
        "webhooks stored since the start, by the state they got",
        "state",
    ),
    ("duplicates_total", "counter", "webhooks recognised as duplicates since the start", ""),
    ("repaired_total", "counter", "webhooks whose body had to be repaired", ""),
    ("refused_total", "counter", "webhooks not stored since the start, by HTTP status", "status"),
    ("attempts_total", "counter", "attempts at the ITSM since the start, by outcome", "outcome"),
    ("oldest_undelivered_seconds", "gauge", "age of the oldest pending or held event", ""),
    ("itsm_up", "gauge", "1 while the breaker is closed", ""),
    ("paused", "gauge", "1 while deliveries are paused by hand", ""),
    ("disk_full", "gauge", "1 while webhooks are refused for want of room", ""),
    ("needs_person", "gauge", "how many things need a person", ""),
)


def metrics(config: Config, store: Store) -> str:
    """Everything countable, in Prometheus' text format 0.0.4."""
    status, tallies = verb_status(config, store, {}), store.tallies
    values: dict[str, dict[str, float]] = {
        "events": status["counts"],
        "oldest_undelivered_seconds": {"": status["oldest_age"]},
        "itsm_up": {"": float(status["itsm"]["state"] == "up")},
        "paused": {"": float(status["paused"] is not None)},
        "disk_full": {"": float(store.tight)},
        "needs_person": {"": float(len(status["needs"]))},
        "duplicates_total": {"": 0.0},
        "repaired_total": {"": status["repaired"]},
    }
    with tallies._lock:
        for (name, label), count in tallies.counters.items():
            values.setdefault(f"{name}_total", {})[label] = count
        durations, seconds = tallies.durations.copy(), tallies.seconds
    lines = []
    for name, kind, words, label in METRICS:
        lines += [f"# HELP hd_itsm_{name} {words}", f"# TYPE hd_itsm_{name} {kind}"]
        for one, value in values.get(name, {}).items():
            labels = f'{{{label}="{one}"}}' if label else ""
            lines.append(f"hd_itsm_{name}{labels} {value:g}")
    name, running = "hd_itsm_attempt_seconds", 0
    lines += [f"# HELP {name} how long attempts took", f"# TYPE {name} histogram"]
    for bucket in (*tallies.BUCKETS, math.inf):
        running += durations[bucket]
        limit = "+Inf" if bucket == math.inf else f"{bucket:g}"
        lines.append(f'{name}_bucket{{le="{limit}"}} {running}')
    return "\n".join([*lines, f"{name}_sum {seconds:g}", f"{name}_count {running}", ""])


ANSWERED = {  # what a hook answers, for the OpenAPI description
    "200": "stored, or known for a duplicate, or ignored: the webhook's own JSON",
    "400": "unreadable or not translatable: kept as failed, see `event`",
    "401": "no or a wrong credential: nothing is stored",
    "403": "this address may not post: nothing is stored",
    "413": "the body is too large: nothing is stored",
    "415": "a compressed body is not read: nothing is stored",
    "503": "it could not be stored now: send it again after Retry-After",
}
ANSWER_HEADERS = {
    "HD-ITSM-Event": "number of the event",
    "HD-ITSM-State": "its state",
    "HD-ITSM-Request-Id": "the ITSM's id, once known",
}


def openapi(config: Config) -> dict[str, Any]:
    """An OpenAPI 3.1 description of the hooks as configured."""
    text, json_object = {"type": "string"}, {"application/json": {"schema": {"type": "object"}}}
    headers = {n: {"description": words, "schema": text} for n, words in ANSWER_HEADERS.items()}
    answers = {
        status: {"description": words, "content": json_object, "headers": headers}
        for status, words in ANSWERED.items()
    }
    wait = {"name": "Prefer", "in": "header", "schema": text}
    wait["description"] = "wait=SECONDS (RFC 7240): answer when the event is settled"
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic"},
        "token": {"type": "apiKey", "in": "header", "name": "X-Webhook-Token"},
    }
    operation = {
        "parameters": [wait],
        "requestBody": {"required": True, "content": json_object},
        "responses": answers,
        "security": [{name: []} for name in schemes] if config.access.token else [],
    }
    paths = {
        hook.path: {
            "post": {"operationId": hook.name, "summary": " or ".join(hook.kinds), **operation}
        }
        for hook in config.hooks.values()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "hd_itsm", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }


# ── Door: admit, read, store, answer ───────────────────────────────────────────────────────────


class Refused(Error):
    """A request that is not let in: its HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _header(environ: Mapping[str, Any], name: str) -> str:
    key = name.upper().replace("-", "_")
    value = environ.get(f"HTTP_{key}", environ.get(key, ""))
    return str(value)


def _same(given: str, secret: Secret) -> bool:
    wanted = secret.reveal().encode("utf-8")
    return bool(wanted) and hmac.compare_digest(given.encode("utf-8", "replace"), wanted)


def client_address(environ: Mapping[str, Any], trusted: Sequence[Any]) -> Any:
    """The caller's address; behind trusted proxies, the last one that no trusted proxy added."""
    address = ipaddress.ip_address(str(environ.get("REMOTE_ADDR", "0.0.0.0")).partition("%")[0])
    hops = [hop.strip() for hop in _header(environ, "X-Forwarded-For").split(",") if hop.strip()]
    while hops and any(address in network for network in trusted):
        try:
            address = ipaddress.ip_address(hops.pop())
        except ValueError:
            address = ipaddress.ip_address("0.0.0.0")  # nobody we know, and not the proxy itself
            break
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def from_this_machine(environ: Mapping[str, Any], trusted: Sequence[Any]) -> bool:
    """Whether the caller is here; not who comes through a proxy that is not trusted."""
    behind = _header(environ, "X-Forwarded-For") or _header(environ, "Forwarded")
    peer = client_address({"REMOTE_ADDR": environ.get("REMOTE_ADDR", "0.0.0.0")}, ())
    forged = behind and not any(peer in network for network in trusted)
    return not forged and bool(client_address(environ, trusted).is_loopback)


def _basic_password(authorization: str) -> str:
    if authorization[:6].lower() != "basic ":
        return ""
    try:
        decoded = base64.b64decode(authorization[6:].strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return decoded.partition(":")[2]


def _tokens(environ: Mapping[str, Any], query_token: bool) -> Iterator[str]:
    """Every token a request brings."""
    authorization = _header(environ, "Authorization")
    if authorization[:7].lower() == "bearer ":
        yield authorization[7:].strip()
    yield _basic_password(authorization)
    yield _header(environ, "X-Webhook-Token")
    if query_token:
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=50)
        yield from query.get("token", [])


def signature_holds(rule: Signature, environ: Mapping[str, Any], raw: bytes, now: float) -> bool:
    """Whether the request carries the helpdesk's signature over its body, young enough."""
    given = _header(environ, rule.header).strip()
    timestamp = _header(environ, rule.timestamp_header) if rule.timestamp_header else ""
    if rule.timestamp_header:
        try:
            age = abs(now - parse_date(timestamp, UTC).timestamp())
        except ValueError:
            return False
        if rule.max_age and age > rule.max_age:
            return False
    signed = {
        "{body}": raw,
        "{timestamp}{body}": timestamp.encode("latin-1", "replace") + raw,
        "{body}{timestamp}": raw + timestamp.encode("latin-1", "replace"),
    }[rule.signed]
    given = given.lower() if rule.encoding == "hex" else given
    matches = False
    for secret in rule.secrets:
        digest = hmac.new(secret.reveal().encode(), signed, rule.algorithm).digest()
        text = digest.hex() if rule.encoding == "hex" else base64.b64encode(digest).decode()
        wanted = (rule.prefix + text).encode()
        matches |= hmac.compare_digest(given.encode("utf-8", "replace"), wanted)
    return matches


def admit(config: Config, environ: Mapping[str, Any], raw: bytes, now: float) -> None:
    """Lets a webhook in, or raises Refused (401, 403)."""
    networks = config.access.networks
    if networks:
        try:
            address = client_address(environ, config.server.trusted_proxy)
            inside = any(address in network for network in networks)
        except ValueError:
            inside = False
        if not inside:
            raise Refused(403, "this address may not post here: see [access] networks")
    tokens, signature = config.access.token, config.access.hmac
    if not tokens and not signature:
        return
    for given in _tokens(environ, config.access.query_token):
        if any(_same(given, secret) for secret in tokens):
            return
    if signature and signature_holds(signature, environ, raw, now):
        return
    raise Refused(401, "no valid credential: see [access] token and hmac")


ASTRAY = {404: "no such address", 405: "this address takes another method (see Allow)"}


class _Site(bottle.Bottle):  # type: ignore[misc]
    """Bottle with its own words for errors: JSON."""

    def default_error_handler(self, res: bottle.HTTPError) -> str:
        """Any error that no handler made: 404, 405, 500."""
        res.content_type = "application/json"
        words = ASTRAY.get(res.status_code, "internal error; see the log")
        return COMPACT.encode({"error": words})


def _reply(status: int, content: Any, **headers: str) -> bottle.HTTPResponse:
    body = content if isinstance(content, str) else COMPACT.encode(content)
    headers["Content_Type"] = "application/json; charset=utf-8"
    return bottle.HTTPResponse(body.encode("utf-8", "replace"), status, **headers)


def _refusal(error: Refused) -> bottle.HTTPResponse:
    headers = {"WWW_Authenticate": 'Basic realm="hd_itsm"'} if error.status == 401 else {}
    return _reply(error.status, {"error": str(error)}, **headers)


class Sparing:
    """Lets one log line a minute through for each key, and counts those it holds back."""

    MINUTE, KEYS = 60.0, 1000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}  # key -> when let through, held back since

    def line(self, key: str, now: float) -> str | None:
        """What to add to the line ("" or how many were held back); None: hold it back."""
        with self._lock:
            at, held = self._seen.get(key, (-self.MINUTE, 0))
            if now - at < self.MINUTE:
                self._seen[key] = (at, held + 1)
                return None
            if len(self._seen) >= self.KEYS:
                self._seen.clear()
            self._seen[key] = (now, 0)
            return f" (and {held} more like it)" if held else ""


PREFER_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?([0-9]{1,9})"?\s*(?:$|[,;])')  # RFC 7240
TAKEN = "hd_itsm.taken"  # where a request's environ has what became of its webhook


class Web:
    """The WSGI application: the hooks as configured, /health and the control endpoint.

    `wake` is called after an event became pending; `key` opens the control endpoint.
    """

    def __init__(self, config: Config, store: Store, wake: Callable[[], None], key: str) -> None:
        self.config, self.store, self.wake, self.key = config, store, wake, key
        self.sparing = Sparing()
        self.site = _Site(catchall=True)
        self.hooks = {
            path: hook for hook in config.hooks.values() for path in (hook.path, hook.path + "/")
        }
        for path, hook in self.hooks.items():
            self.site.route(path, "POST", functools.partial(self.hook, hook))
        for status in ASTRAY:
            self.site.error(status, callback=self.astray)
        self.site.route("/control/<verb>", "POST", self.control)
        self.site.route("/health", "GET", self.health)
        self.site.route("/metrics", "GET", self.metrics)
        self.site.route("/openapi.json", "GET", self.openapi)

    def hook(self, hook: Hook) -> bottle.HTTPResponse:
        """Answers one webhook: admit, read, store; then 200, 400, 401, 403, 415 or 503."""
        environ = bottle.request.environ
        if TAKEN not in environ:
            self.take([(hook, environ)])
        webhook, echo, receipt = environ[TAKEN]
        if isinstance(receipt, Refused):
            return self.refuse(receipt, hook.path)
        if isinstance(receipt, StoreError):
            self.store.tallies.count("refused", "503")
            return _reply(503, {"error": str(receipt)}, Retry_After="30")
        if isinstance(receipt, Exception):
            raise receipt
        self.note(hook, webhook, receipt)
        return self.answer(receipt, echo)

    def take(self, requests: Sequence[tuple[Hook, dict[str, Any]]]) -> None:
        """Reads and stores the webhooks of some requests in one transaction; `hook` answers them.

        A request is its hook and its environ, which then says what became of it: the webhook, the
        JSON to send back, its Receipt or the Exception.
        """
        admitted: list[dict[str, Any]] = []
        for hook, environ in requests:
            try:
                environ[TAKEN] = (*self.admitted(hook, environ), None)
                admitted.append(environ)
            except Exception as error:
                environ[TAKEN] = (None, None, error)
        receipts = self.store.receive([environ[TAKEN][0] for environ in admitted])
        for environ, receipt in zip(admitted, receipts, strict=True):
            environ[TAKEN] = (*environ[TAKEN][:2], receipt)
        if any(isinstance(one, Receipt) and one.state == "pending" for one in receipts):
            self.wake()

    def admitted(self, hook: Hook, environ: Mapping[str, Any]) -> tuple[Webhook, Any]:
        """The webhook that a request brings and its JSON to send back. Raises Refused."""
        raw, received = environ["wsgi.input"].read(), time.time()
        admit(self.config, environ, raw, received)
        if environ.get("HTTP_CONTENT_ENCODING", "").lower() not in ("", "identity"):
            raise Refused(415, "a compressed body is not read: send it plain")
        return self.read(hook, environ, raw, received, str(environ.get("REMOTE_ADDR", "")))

    def caller(self, environ: Mapping[str, Any]) -> str:
        """The address that asks, behind a trusted proxy the one that this names."""
        return str(client_address(environ, self.config.server.trusted_proxy))

    def refuse(self, error: Refused, path: str) -> bottle.HTTPResponse:
        """Turns a caller away."""
        self.tell_refused(error.status, str(error), path, bottle.request.environ)
        return _refusal(error)

    def tell_refused(self, status: int, why: str, path: str, environ: Mapping[str, Any]) -> None:
        """Counts a request that was turned away, and tells it in the log, though not each time."""
        self.store.tallies.count("refused", str(status))
        caller = self.caller(environ)
        more = self.sparing.line(f"{caller} {status}", time.monotonic())
        if more is not None:
            log.warning("%s from %s refused: %d %s%s", path[:200], caller, status, why, more)

    def astray(self, error: bottle.HTTPError) -> str:
        """A wrong address or method: told where it may be a helpdesk's webhook that is lost."""
        status, method = error.status_code, bottle.request.method
        if status == 405 or method in ("POST", "PUT", "PATCH"):
            why = f"{ASTRAY[status]}: {method}"
            self.tell_refused(status, why, bottle.request.path, bottle.request.environ)
        return self.site.default_error_handler(error)

    def read(
        self, hook: Hook, environ: Mapping[str, Any], raw: bytes, received: float, sender: str
    ) -> tuple[Webhook, Any]:
        """The webhook as it is to be stored, and its JSON to send back."""
        headers = {
            name: _header(environ, name).encode("latin-1", "replace").decode("utf-8", "replace")
            for name in hook.headers
        }
        delivery_id = (
            (_header(environ, hook.delivery_id) if hook.delivery_id else "")
            or environ.get("HTTP_WEBHOOK_ID", "")
            or environ.get("HTTP_IDEMPOTENCY_KEY", "")
        )
        base = Webhook(
            hook=hook.name,
            raw=raw,
            headers=json.dumps(headers) if headers else "{}",
            sender=sender,
            received=received,
            state="pending",
            delivery_id=delivery_id[:MAX_ID] or None,
        )
        try:
            reading = read_webhook(hook, raw, headers)
            return judge(self.config, hook, reading, base), reading.found
        except Exception:  # whatever it is, the webhook is kept
            log.exception("%s: a fault of this program; the webhook is kept as failed", hook.path)
            reason = "a fault of this program (see the log): retry it with a newer one"
            return base._replace(state="failed", reason=reason), {}

    def note(self, hook: Hook, webhook: Webhook, receipt: Receipt) -> None:
        """The log line of a webhook, where it is not simply taken; and the tallies."""
        tallies = self.store.tallies
        tallies.count("webhooks", receipt.state)
        if receipt.state == "ignored" and receipt.reason.startswith("duplicate"):
            tallies.count("duplicates")
        if receipt.state == "failed":
            if self.sparing.line(f"event {receipt.event}", time.monotonic()) is None:
                return
            log.warning(
                "event %d from %s on %s failed: %s",
                receipt.event,
                webhook.sender,
                hook.path,
                without_quotes(receipt.reason),
            )
        elif receipt.state == "ignored":
            log.info(
                "webhook for ticket %s on %s ignored: %s",
                webhook.ticket,
                hook.path,
                receipt.reason,
            )
        else:
            log.debug(
                "event %d ticket %s %s received", receipt.event, webhook.ticket, webhook.kind
            )
        if webhook.repaired:
            log.info("event %d was repaired: %s", receipt.event, webhook.repaired)

    def answer(self, receipt: Receipt, echo: Any) -> bottle.HTTPResponse:
        """200 or 400 for a stored webhook; with Prefer: wait, once it is settled."""
        headers: dict[str, str] = {}
        wishes = bottle.request.environ.get("HTTP_PREFER")
        match = wishes and PREFER_WAIT.search(wishes)
        if match and receipt.state in ("pending", "held"):
            seconds = min(int(match[1]), MAX_WAIT)
            waited = self.store.wait(
                receipt.event, seconds, max(1, self.config.server.threads // 2)
            )
            if waited:
                receipt = waited
                headers["Preference_Applied"] = f"wait={seconds}"
        headers["HD_ITSM_Event"] = str(receipt.event)
        headers["HD_ITSM_State"] = receipt.state
        if receipt.request_id:
            headers["HD_ITSM_Request_Id"] = urllib.parse.quote(
                receipt.request_id, safe=" !#$&'()*+,/:;=?@[]~"
            )
        if receipt.state == "failed" and "Preference_Applied" not in headers:
            return _reply(400, {"error": receipt.reason, "event": receipt.event}, **headers)
        return _reply(200, echo, **headers)

    def own_host(self, environ: Mapping[str, Any]) -> None:
        """Refuses a foreign, missing or doubled Host on loopback: DNS rebinding."""
        host, _ = self.config.server.listen
        name = re.sub(r":[0-9]+$", "", _header(environ, "Host")).strip("[]").lower()
        if is_loopback(host) and not is_loopback(name):
            raise Refused(421, "this address is for callers on the machine itself")

    def control(self, verb: str) -> bottle.HTTPResponse:
        """Carries out a verb for the command line, which proves itself by the key."""
        environ = bottle.request.environ
        try:
            self.own_host(environ)
            given = _header(environ, "HD-ITSM-Key")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self.key.encode()):
                raise Refused(401, "wrong key")
            if verb not in VERBS:
                raise Refused(404, f"no verb {verb}")
            arguments = parse_json((environ["wsgi.input"].read() or b"{}").decode())
            if not isinstance(arguments, dict):
                raise Error("the arguments must be a JSON object")
            result = VERBS[verb](self.config, self.store, arguments)
            if verb in WAKING:
                self.wake()
            return _reply(200, {"result": result}, HD_ITSM_Pid=str(os.getpid()))
        except Refused as error:
            return self.refuse(error, "/control")
        except StoreError as error:
            return _reply(503, {"error": str(error)})
        except (Error, ValueError, KeyError, TypeError) as error:
            return _reply(400, {"error": str(error)})

    def health(self) -> bottle.HTTPResponse:
        """How it is, for monitoring: 200 for ok and warn, 503 for fail."""
        try:
            word, found = health(self.config, self.store)
        except StoreError as error:
            return _reply(503, {"status": "fail", "error": str(error)})
        return _reply(503 if word == "fail" else 200, found)

    def insider(self) -> None:
        """Lets in who may read about this service: this machine, or by any means of a webhook.

        Raises Refused (401, 403).
        """
        environ, password = bottle.request.environ, self.config.server.admin_password
        if from_this_machine(environ, self.config.server.trusted_proxy):
            return
        if not _same(_basic_password(_header(environ, "Authorization")), password):
            admit(self.config, environ, b"", time.time())

    def openapi(self) -> bottle.HTTPResponse:
        """The hooks as configured, for programs."""
        try:
            self.insider()
        except Refused as error:
            return self.refuse(error, "/openapi.json")
        return _reply(200, openapi(self.config))

    def metrics(self) -> bottle.HTTPResponse:
        """Numbers for Prometheus."""
        try:
            self.insider()
            response = _reply(200, metrics(self.config, self.store))
        except Refused as error:
            return self.refuse(error, "/metrics")
        except StoreError as error:
            return _reply(503, {"error": str(error)})
        response.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        return response


class _JsonError(waitress.task.ErrorTask):  # type: ignore[misc]
    """What Waitress itself refuses (400, 413, 431, 501, 500), in JSON."""

    def execute(self) -> None:
        """Sends the error; a request that is turned away is told in the log."""
        found = self.request.error
        self.status = f"{found.code} {found.reason}"
        words = f"{found.reason}: {found.body}"
        if found.code != 500:
            forwarded = self.request.headers.get("X_FORWARDED_FOR", "")
            environ = {"REMOTE_ADDR": self.channel.addr[0], "HTTP_X_FORWARDED_FOR": forwarded}
            path = self.request.path or "a request"
            told = words.partition('"')[0]  # a quoted header may hold quotes, and credentials
            self.channel.server.web.tell_refused(found.code, told, path, environ)
            self.channel.refused = True
        body = COMPACT.encode({"error": words}).encode("utf-8", "replace")
        self.response_headers.append(("Content-Type", "application/json; charset=utf-8"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Task(waitress.task.WSGITask):  # type: ignore[misc]
    """A request; once the server is stopping, its answer ends the connection."""

    wrote_header: bool

    def start(self) -> None:
        """Begins to answer."""
        super().start()
        if self.channel.server.stopping:
            self.set_close_on_finish()

    def get_environment(self) -> dict[str, Any]:
        """The request's environ; a handful's are made beforehand."""
        if self.request.environ is None:
            self.request.environ = super().get_environment()
        return self.request.environ  # type: ignore[no-any-return]

    def write(self, data: bytes) -> None:
        """Sends a part of the answer; a short one goes with its head in one piece."""
        if self.wrote_header or not data or len(data) != self.content_length:
            super().write(data)
            return
        head = self.build_response_header()
        self.wrote_header = True
        self.content_bytes_written = len(data)
        self.channel.write_soon(head + data)


class _Parser(waitress.parser.HTTPRequestParser):  # type: ignore[misc]
    """A request coming in: bounded by the size of its body, and never two of them in one."""

    error: Any = None
    environ: dict[str, Any] | None = None
    path = ""

    def received(self, data: bytes) -> int:
        """Takes what the client sent; how much of it belongs to this request."""
        consumed = int(super().received(data))
        allowed = self.error is None or self.error.code == 413  # Waitress' limit is further off
        if allowed and self.headers_finished and not self.empty:
            size = len(self.body_rcv) if self.chunked else self.content_length
            if size > self.adj.max_body:
                words = f"the body is over the {self.adj.max_body} bytes of server.max_body"
                self.error = waitress.utilities.RequestEntityTooLarge(words)
                self.completed = True
            elif self.chunked and "CONTENT_LENGTH" in self.headers:
                self.headers["CONNECTION"] = "close"  # RFC 9112 6.3: nothing after it is believed
        if self.error is not None:
            self.expect_continue = False  # what is refused need not be sent
        return consumed


class _Rest(waitress.parser.HTTPRequestParser):  # type: ignore[misc]
    """What a client still sends after it was refused: nobody reads it."""

    def received(self, data: bytes) -> int:
        """Drops it."""
        return len(data)


class _Channel(waitress.channel.HTTPChannel):  # type: ignore[misc]
    """A connection that knows since when its request has been coming in, or nothing came."""

    task_class = _Task
    parser_class = _Parser
    error_task_class = _JsonError
    request: Any
    will_close: bool
    begun = 0.0
    refused = False

    @property
    def last_activity(self) -> float:
        """When something came or went last (monotonic)."""
        return self._active

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        self._active = time.monotonic()  # Waitress goes by a clock that people set

    def service(self) -> None:
        """Answers what came in, in one of the server's threads."""
        super().service()
        self.server.answered = time.monotonic()

    def received(self, data: bytes) -> bool:
        """Takes what the client sent."""
        if self.request is None:
            self.begun = time.monotonic()
        return bool(super().received(data))

    def handle_close(self) -> None:
        """Ends the connection. After a refusal the client's end of it may send on for a while.

        Else its system would drop our answer for the reset that meets what it sends, and nobody
        there would learn the reason (RFC 9112 9.6).
        """
        if not (self.refused and self.will_close):
            super().handle_close()
            return
        self.refused = self.will_close = False
        self.begun, self.request = time.monotonic(), _Rest(self.adj)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)


REQUEST_TIME = 20  # seconds in which a request must have come in whole


class _Handful:
    """Webhooks that came in one round of the loop: one transaction, and one thread answers them.

    Waitress would give each to a thread of its own; handing them from thread to thread would cost
    more than all that is done with them.
    """

    MOST, LARGEST = 16, 65536  # webhooks, and bytes of each: those behind it wait for a thread

    def __init__(self, web: Web) -> None:
        self.web = web
        self.channels: list[_Channel] = []

    def takes(self, channel: _Channel) -> bool:
        """Adds the channel's request, where it is a webhook that delays the others by little."""
        request = channel.requests[0]
        if (
            request.error
            or request.command != "POST"
            or request.path not in self.web.hooks
            or "PREFER" in request.headers
            or (request.body_rcv is not None and len(request.body_rcv) > self.LARGEST)
        ):
            return False
        self.channels.append(channel)
        return True

    def service(self) -> None:
        """Stores all, then answers each; the loop is woken when all is done."""
        server, thread = self.channels[0].server, threading.get_ident()
        requests = [(channel.requests[0], channel) for channel in self.channels]
        try:
            self.web.take(
                [
                    (self.web.hooks[one.path], _Task(at, one).get_environment())
                    for one, at in requests
                ]
            )
        finally:
            server.answering.add(thread)
            try:
                for channel in self.channels:
                    channel.service()
            finally:
                server.answering.discard(thread)
                server.pull_trigger()

    def cancel(self) -> None:
        """Ends the connections: the server is gone."""
        for channel in self.channels:
            channel.cancel()


class _Server(waitress.server.TcpWSGIServer):  # type: ignore[misc]
    """Waitress' server with our channels, and with patience where descriptors run out."""

    channel_class = _Channel
    stopping = False
    next_channel_cleanup = math.inf  # by the wall clock; close_idle does it
    answered = 0.0  # when a thread was done with a request (monotonic)

    def __init__(self, web: Web, *arguments: Any, **named: Any) -> None:
        self.web = web
        self.coming = _Handful(web)  # of this round
        self.answering: set[int] = set()  # threads that answer a handful
        self.looping = 0  # the thread that runs the loop
        super().__init__(web.site, {}, *arguments, **named)

    def add_task(self, task: _Channel) -> None:
        """Lets a request be answered: webhooks at the end of this round, others at once."""
        if threading.get_ident() != self.looping or not self.coming.takes(task):
            super().add_task(task)
        elif len(self.coming.channels) == _Handful.MOST:
            self.hand_over()

    def hand_over(self) -> None:
        """Ends a round of the loop, in its thread."""
        self.looping = threading.get_ident()
        if self.coming.channels:
            handful, self.coming = self.coming, _Handful(self.web)
            super().add_task(handful)

    def pull_trigger(self) -> None:
        """Wakes the loop: for a handful once."""
        if threading.get_ident() not in self.answering:
            super().pull_trigger()

    def stuck(self, now: float) -> float:
        """For how many seconds requests have been waiting while no thread was done with one."""
        if not self.task_dispatcher.queue:
            self.answered = now
        return now - self.answered

    def handle_accept(self) -> None:
        """Takes a connection; without a free descriptor it waits in the kernel's queue."""
        try:
            connection, address = self.socket.accept()
            self.set_socket_options(connection)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(0.05)  # or the loop would spin
            return
        connection.setblocking(False)
        _Channel(self, connection, address, self.adj, map=self._map)


def make_server(web: Web, listener: socket.socket, threads: int, max_body: int) -> _Server:
    """A server on a listening socket, with bounds that suit a small daemon beside a helpdesk."""
    settings = waitress.adjustments.Adjustments(
        threads=threads,
        ident="",
        backlog=1024,
        connection_limit=4000,
        channel_timeout=REQUEST_TIME,
        max_request_header_size=16384,
        max_request_body_size=8 * max_body + 65536,  # chunks count with their framing; see _Parser
        inbuf_overflow=max_body + 1,
        clear_untrusted_proxy_headers=False,  # client_address decides whom to believe
        asyncore_use_poll=True,
        log_socket_errors=False,
    )
    settings.max_body = max_body
    dispatcher = waitress.task.ThreadedTaskDispatcher()
    dispatcher.set_thread_count(threads)
    place = (listener.family, listener.type, listener.proto, listener.getsockname())
    return _Server(
        web,
        True,
        listener,
        dispatcher=dispatcher,
        adj=settings,
        sockinfo=place,
        bind_socket=False,
    )


def close_idle(server: Any, now: float) -> None:
    """Closes connections that are silent or drip their request for too long (`now`: monotonic)."""
    server.maintenance(now)
    for channel in list(server.active_channels.values()):
        if channel.request is not None and now - channel.begun > REQUEST_TIME:
            channel.will_close = True


LINGER = 0.5  # seconds in which a stopping server still answers on open connections


def drain(server: _Server, stopped: float, now: float) -> bool:
    """Ends connections that owe no answer; True when none is left. Times are monotonic.

    For LINGER seconds each may still bring its request, and is told `Connection: close`; then
    only those are waited for whose request is under way.
    """
    for channel in list(server.active_channels.values()):
        owes = channel.requests or channel.total_outbufs_len
        arriving = channel.request is not None and now - channel.begun < 4 * LINGER
        if not owes and not arriving and now - stopped > LINGER:
            channel.will_close = True
    return not server.active_channels


# ── Page: what a person sees in a browser ──────────────────────────────────────────────────────


# The page: server-rendered, nothing from outside, works without JavaScript

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--bar:#7d8690;
--paper:#fff;
--field:#f6f8fa;
--link:#0550ae;--ok:#116329;--okbg:#dafbe1;--warn:#7d4e00;--warnbg:#fff8c5;--bad:#a40e26;
--badbg:#ffebe9}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--soft:#9aa4af;--line:#3d444d;--bar:#808a95;--paper:#0d1117;
--field:#161b22;--link:#79b8ff;--ok:#7ee787;--okbg:#0f2d18;--warn:#f2cc60;--warnbg:#2e2504;
--bad:#ffa198;--badbg:#3c1114}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1100px;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.55
system-ui,-apple-system,"Segoe UI","Apple SD Gothic Neo","Malgun Gothic","Noto Sans KR",
"Noto Sans CJK KR",sans-serif}
a{color:var(--link)}h1{font-size:1.25rem;margin:0}
h3{font-size:1rem;margin:1rem 0 .3rem}h2{font-size:1.05rem;margin:2rem 0 .5rem}
header{display:flex;flex-wrap:wrap;gap:.75rem 1.5rem;align-items:center;margin-bottom:1rem}
header form{margin-left:auto}
input,select,button{font:inherit;color:inherit;background:var(--field);
border:1px solid var(--line);border-radius:6px;padding:.35rem .6rem;max-width:100%}
button{cursor:pointer}:focus-visible{outline:3px solid var(--link);outline-offset:1px}
.band{border:1px solid;border-radius:8px;padding:.8rem 1rem;margin:0 0 1rem}
.band p{margin:0}.ok{color:var(--ok);background:var(--okbg)}.warn{color:var(--warn);
background:var(--warnbg)}
.fail{color:var(--bad);background:var(--badbg)}.note{color:var(--ink);background:var(--field)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.5rem .6rem;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}main{overflow-wrap:anywhere}.nowrap{white-space:nowrap}
th,button,[data-label=event],[data-label=state],[data-label=kind]{overflow-wrap:normal}
.counts{display:flex;flex-wrap:wrap;gap:.5rem 1.25rem;padding:0;list-style:none}
.actions{display:flex;flex-wrap:wrap;gap:.5rem}.soft{color:var(--soft)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--field);
border:1px solid var(--line);
border-radius:6px;padding:.7rem;margin:.3rem 0;font-size:.9rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:.5rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
svg{width:100%;height:auto;border:1px solid var(--line);border-radius:6px}svg text{
fill:var(--soft);font-size:11px}
.r{fill:var(--bar)}.d{fill:var(--ok)}.f{fill:var(--bad)}
.key{display:inline-block;width:.7em;height:.7em;margin-left:.5em;background:var(--bar)}
.key.ok{background:var(--ok)}.key.fail{background:var(--bad)}
@media(max-width:640px){td>*{min-width:0}.nowrap{white-space:normal}
header form{margin-left:0}thead{position:absolute;left:-9999px}
tr{display:block;border-bottom:1px solid var(--line);padding:.5rem 0}td{display:flex;gap:.75rem;
border:0;padding:.2rem 0}
td::before{content:attr(data-label);color:var(--soft);flex:0 0 6.5rem}td:empty{display:none}dl{
grid-template-columns:1fr}}
"""

SCRIPT = """
function changed(f){if(f.tagName!="SELECT")return f.type!="hidden"&&f.value!=f.defaultValue;
var o=[].slice.call(f.options),d=o.filter(function(e){return e.defaultSelected})[0]||o[0];
return d&&!d.selected}
function busy(){var a=document.activeElement;
return document.hidden||String(getSelection())||document.querySelector("details[open]")||
a&&/^(A|INPUT|SELECT|TEXTAREA|BUTTON|SUMMARY)$/.test(a.tagName)||
[].some.call(document.querySelectorAll("input,select,textarea"),changed)}
setInterval(function(){if(!busy())location.reload()},10000);
"""

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{title}}</title><style>{{!style}}</style></head><body>
<header><h1><a href="/">hd_itsm</a></h1>
<form action="/search" method="get" role="search"><label>Ticket or request id
<input name="q" required maxlength="200" value="{{q}}"></label>
<button>Search</button></form></header>
<main>
% if notice:
<div class="band note" role="status"><p>{{notice}}</p></div>
% end
{{!body}}
</main>
% if refresh:
<script>{{!script}}</script>
% end
</body></html>"""

EVENT_ROWS = """
<table><thead><tr><th scope="col">event</th><th scope="col">received</th>
<th scope="col">ticket</th>
<th scope="col">kind</th><th scope="col">state</th><th scope="col">attempts</th>
<th scope="col">request id</th><th scope="col">reason</th></tr></thead><tbody>
% for row in rows:
<tr><td data-label="event"><a href="/events/{{row['event']}}">{{row['event']}}</a></td>
<td data-label="received" class="nowrap"><time title="{{row['received']}}"
datetime="{{row['received']}}">
{{row['received'][11:19] if row['received'][:10] == today else row['received'][:10]}}</time></td>
<td data-label="ticket">
% if row['ticket']:
<a href="{{address(row['ticket'])}}">{{row['ticket']}}</a>
% end
</td><td data-label="kind">{{row['kind'] or ''}}</td><td data-label="state">{{row['state']}}</td>
<td data-label="attempts">{{row['attempts']}}</td><td data-label="request
id">{{row['request_id'] or ''}}</td>
<td data-label="reason">{{row['reason']}}</td></tr>
% end
</tbody></table>
"""

HOME = """
<div class="band {{band}}" role="status"><p><strong>{{word}}</strong> {{sentence}}</p></div>
<div class="actions">{{!pausing}}</div>
% if needs:
<h2 id="needs">What needs you</h2>
<table aria-labelledby="needs"><thead><tr><th scope="col">event</th><th scope="col">ticket</th>
<th scope="col">kind</th><th scope="col">since</th><th scope="col">reason</th><th scope="col">what
to do</th>
<th scope="col">actions</th></tr></thead><tbody>
% for row in needs:
<tr><td data-label="event"><a href="/events/{{row['event']}}">{{row['event']}}</a></td>
<td data-label="ticket">
% if row['ticket']:
<a href="{{address(row['ticket'])}}">{{row['ticket']}}</a>
% end
</td><td data-label="kind">{{row['kind'] or ''}}</td>
<td data-label="since" class="nowrap">{{row['received'][:16].replace('T', ' ')}}</td>
<td data-label="reason">{{row['state']}}: {{row['reason']}}</td><td data-label="what to
do">{{row['advice']}}</td>
<td data-label="actions"><span class="actions">{{!row['actions']}}</span></td></tr>
% end
</tbody></table>
% if more:
<p class="soft">There are more: <a href="/?state=failed">all failed</a>,
<a href="/?state=held">all held</a>.</p>
% end
% end
<h2 id="day">The last 24 hours</h2>
<svg viewBox="0 0 960 156" role="img" aria-labelledby="day"><title>received, delivered and failed
per hour</title>
% for n, hour in enumerate(hours):
% x = 12 + n * 39
% for k, name in enumerate(('received', 'delivered', 'failed')):
% height = round(110 * hour[name] / peak)
<rect class="{{name[0]}}" x="{{x + k * 11}}" y="{{130 - height}}" width="10" height="{{height}}">
<title>{{hour['label']}}: {{hour[name]}} {{name}}</title></rect>
% end
% if n % 3 == 0:
<text x="{{x}}" y="148">{{hour['label']}}</text>
% end
% end
</svg>
<p class="soft">Bars from left to right: <span class="key"></span> received,
<span class="key ok"></span> delivered, <span class="key fail"></span> failed; the highest is
{{peak}} an hour.</p>
<details><summary>The same in numbers</summary><table><thead><tr><th scope="col">hour</th>
<th scope="col">received</th><th scope="col">delivered</th><th
scope="col">failed</th></tr></thead><tbody>
% for hour in hours:
<tr><td data-label="hour">{{hour['label']}}</td><td data-label="received">{{hour['received']}}</td>
<td data-label="delivered">{{hour['delivered']}}</td><td
data-label="failed">{{hour['failed']}}</td></tr>
% end
</tbody></table></details>
<h2>Events</h2>
<ul class="counts">
% for state, count in counts.items():
<li><a href="/?state={{state}}">{{state}}</a> {{count}}</li>
% end
<li><a href="/">all</a></li></ul>
<form action="/" method="get" class="actions"><label>state <select name="state"><option
value="">any</option>
% for state in counts:
<option{{' selected' if state == chosen['state'] else ''}}>{{state}}</option>
% end
</select></label> <label>kind <select name="kind"><option value="">any</option>
% for kind in kinds:
<option{{' selected' if kind == chosen['kind'] else ''}}>{{kind}}</option>
% end
</select></label> <button>Show</button></form>
% if rows:
{{!table}}
<p>
% if newer:
<a href="/?state={{chosen['state']}}&amp;kind={{chosen['kind']}}">newest</a>
<a
href="/?state={{chosen['state']}}&amp;kind={{chosen['kind']}}&amp;before={{newer}}">
newer</a>
% end
% if older:
<a
href="/?state={{chosen['state']}}&amp;kind={{chosen['kind']}}&amp;before={{rows[-1]['event']}}">
older</a>
% end
</p>
% elif any(chosen.values()):
<p class="soft">No event fits: <a href="/">all</a>.</p>
% else:
<p class="soft">No events yet. The hooks listen at {{', '.join(hooks)}}.</p>
% end
"""

TICKET = """
<h2>Ticket {{ticket}}</h2>
% if mapping:
<p>Request <strong>{{mapping['request_id']}}</strong> since {{mapping['since']}}, by
{{mapping['origin']}}.</p>
% else:
<p>No request id yet.</p>
% end
<form action="/confirm/map" method="get" class="actions"><input type="hidden" name="ticket"
value="{{ticket}}">
<label>Request id <input name="request_id" required maxlength="200"></label> <button>Map by
hand</button></form>
% for event in events:
<h2><a href="/events/{{event['event']}}">Event {{event['event']}}</a>:
{{event['kind'] or 'no kind'}}, {{event['state']}}</h2>
<p>{{event['received']}}: {{event['reason']}} {{event['waits']}}</p>
{{!event['history']}}
% end
"""

ATTEMPTS = """
% if attempts:
<table><thead><tr><th scope="col">attempt</th><th scope="col">at</th><th scope="col">seconds</th>
<th scope="col">status</th><th scope="col">outcome</th><th
scope="col">answer</th></tr></thead><tbody>
% for one in attempts:
<tr><td data-label="attempt">{{one['attempt']}}</td><td data-label="at"
class="nowrap">{{one['at']}}</td>
<td data-label="seconds">{{'%.3f' % one['duration']}}</td><td
data-label="status">{{one['status'] or ''}}</td>
<td data-label="outcome">{{one['outcome']}}</td><td data-label="answer">{{one['reason']}}
% if one['answer']:
<details><summary>the ITSM's own words</summary><pre>{{one['answer']}}</pre></details>
% end
</td></tr>
% end
</tbody></table>
% end
"""

EVENT = """
<h2>Event {{event['event']}}: {{event['state']}}</h2>
<div class="band {{band}}"><p>{{event['reason'] or 'nothing stands against it'}}.
{{advice}}</p></div>
<div class="actions">{{!actions}}</div>
<h2>What came</h2>
<dl><dt>received</dt><dd>{{event['received']}} from {{event['sender']}}</dd>
<dt>hook</dt><dd>{{event['hook']}}</dd><dt>kind</dt><dd>{{event['kind'] or '-'}}</dd>
<dt>ticket</dt><dd>
% if event['ticket']:
<a href="{{address(event['ticket'])}}">{{event['ticket']}}</a>
% else:
-
% end
</dd><dt>request
id</dt><dd>{{event['request_id'] or '-'}}</dd>
<dt>repaired</dt><dd>{{event['repaired'] or 'no'}}</dd></dl>
<h3>Fields</h3><dl>
% for name, value in event['fields'].items():
% shown = text(value)
% if len(shown) > 400:
<dt>{{name}}</dt><dd><details><summary>{{shown[:100]}} ({{len(shown)}}
characters)</summary><pre>{{shown}}</pre></details></dd>
% else:
<dt>{{name}}</dt><dd>{{shown}}</dd>
% end
% end
</dl>
<details><summary>Raw body ({{len(event['raw'])}}
characters)</summary><pre>{{event['raw']}}</pre></details>
<h2>What we send</h2>
% if 'problem' in preview:
<p>{{preview['problem']}}</p>
% else:
<p>As it would be rendered now:</p><pre>{{preview['method']}} {{preview['url']}}
% for name, value in preview['headers'].items():
{{name}}: {{value}}
% end

{{preview['body']}}</pre>
% end
<h2>What was answered</h2>
% if not event['attempts']:
<p class="soft">No attempt yet.</p>
% end
{{!history}}
"""

CONFIRM = """
<h2>{{sentence}}</h2>
<form action="/act/{{verb}}" method="post" class="actions"><input type="hidden" name="seal"
value="{{seal}}">
% for name, value in fields.items():
<input type="hidden" name="{{name}}" value="{{value}}">
% end
% if verb == 'drop':
<label>Why <input name="why" required maxlength="300"></label>
% end
<button>{{verb}}</button> <a href="{{back}}">Leave it</a></form>
"""

_template = functools.lru_cache(maxsize=None)(bottle.SimpleTemplate)  # compiled when first shown


def _render(source: str, **named: Any) -> str:
    return str(_template(source).render(**named))


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def ago(seconds: float) -> str:
    """A span of time for people: 40 s, 12 min, 5 h, 3 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and unit != "days"):
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def summary(config: Config, store: Store) -> tuple[str, str, str]:
    """(band, word, sentence): is all well?"""
    now, counts = time.time(), store.counts
    oldest, last = store.oldest(), store.tally["last_delivery"]
    itsm, paused = json.loads(store.fact("itsm") or "{}"), store.fact("paused")
    waiting = counts["pending"] + counts["held"]
    wait = "event waits" if waiting == 1 else "events wait"
    line = f"{waiting} {wait}, the oldest {ago(now - oldest['received'])}." if oldest else ""
    if paused:
        return "warn", "\u25b2 Paused", f"by hand since {iso(float(paused), config.clock)}. {line}"
    if itsm:
        since = config.clock.local(itsm["since"]).strftime("%H:%M")
        if itsm["why"] == "credential":
            source = config.itsm.authorization
            where = (
                source.name if source.source in ("file", "credential") else "itsm.authorization"
            )
            words = f"since {since}. Nothing is lost; put the new one into {where}. {line}"
            return "fail", "\u25a0 The ITSM refuses our credential", words
        probe = ago(store.board.get("next_probe", 0.0) - store.clock())
        words = f"since {since} ({itsm['reason']}). {line} Next try in {probe}."
        return "fail", "\u25a0 The ITSM does not answer", words
    needs = incidents(config, store, held_after=0.0)
    if needs:
        count = counts["failed"] + counts["held"]
        need = "event needs" if count == 1 else "events need"
        word = f"\u25b2 {count} {need} you." if count else "\u25b2 Something needs you:"
        others = [text for name, text in needs.items() if name not in ("failed", "held")]
        return "warn", word, "; ".join(others or ["What to do stands beside each"]) + "."
    received = store.last_received()
    told = f"Last webhook {ago(now - received)} ago" if received else "No webhook came yet"
    told += f", last delivery {ago(now - last)} ago." if last else "."
    return "ok", "\u25cf " + (f"{waiting} on their way." if waiting else "All delivered."), told


def advice(event: Mapping[str, Any], unclear: bool) -> str:
    """What a person may do about an event, in one sentence."""
    if unclear and event["state"] in ("held", "failed"):
        return "Look into the ITSM: if the request is there, map the ticket to it; if not, retry."
    if event["state"] == "held":
        return "Retry the ticket's opening event, or map the ticket to its request."
    if event["state"] == "failed":
        return "Mend what the reason names, then retry; or drop it."
    if event["state"] == "pending" and event.get("next_try"):
        return f"Next try at {event['next_try'][11:19]}."
    return ""


ACTIONS = {  # verb -> states in which a button for it makes sense
    "retry": ("failed", "ignored", "dropped"),
    "drop": ("pending", "held", "failed"),
}

SENTENCES = {
    "retry": "Send event {event} again, translated with today's configuration?",
    "drop": "Give event {event} up? It is kept, but not sent.",
    "map": "Map ticket {ticket} to request {request_id}? What was held for it goes out.",
    "pause": "Stop deliveries? Webhooks are still taken and wait.",
    "resume": "Let deliveries go on?",
}


ROWS = 50  # events on a page


def ticket_address(ticket: str) -> str:
    """Where a ticket's page is, however it is named."""
    quoted = urllib.parse.quote(ticket, safe="")
    return f"/tickets/{quoted}" if ticket.strip(".") else f"/tickets?ticket={quoted}"


def _redirect(where: str) -> bottle.HTTPResponse:
    return _reply(303, {}, Location=where, Cache_Control="no-store")


class Pages:
    """The status page and what its buttons do, with the same verbs as the command line."""

    def __init__(self, web: Web) -> None:
        self.web, self.config, self.store = web, web.config, web.store
        self.seal = hmac.new(web.key.encode(), b"page", "sha256").hexdigest()
        site = web.site
        for path, page in (
            ("/", self.home),
            ("/events/<event>", self.event),
            ("/tickets/<ticket:path>", self.ticket),
            ("/tickets", self.ticket),
            ("/search", self.search),
            ("/confirm/<verb>", self.confirm),
        ):
            site.route(path, "GET", functools.partial(self.guarded, page))
        site.route("/act/<verb>", "POST", functools.partial(self.guarded, self.act))

    def guarded(self, page: Callable[..., Any], **named: Any) -> bottle.HTTPResponse:
        """Lets a person in, and no other site; then the page."""
        try:
            self.web.own_host(bottle.request.environ)
            self.admit(bottle.request.environ)
            return page(**named)
        except Refused as error:
            return self.web.refuse(error, "the page")
        except StoreError as error:
            return _reply(503, {"error": str(error)})
        except (Error, ValueError, KeyError) as error:
            return self.show("Not found", f"<p>{html.escape(str(error))}</p>", status=404)

    def admit(self, environ: Mapping[str, Any]) -> None:
        """From the machine itself without a password where none is set; else only with it."""
        password = self.config.server.admin_password
        if password:
            if not _same(_basic_password(_header(environ, "Authorization")), password):
                raise Refused(401, "the page wants its password: see [server] admin_password")
            return
        if not from_this_machine(environ, self.config.server.trusted_proxy):
            raise Refused(403, "from another machine the page needs [server] admin_password")

    def show(
        self, title: str, body: str, status: int = 200, refresh: bool = False
    ) -> bottle.HTTPResponse:
        """A whole page, with the headers that keep other sites and caches out."""
        notice = bottle.request.query.getunicode("notice", "")[:300]
        text = _render(
            FRAME,
            title=title,
            style=STYLE,
            script=SCRIPT,
            body=body,
            notice=notice if bottle.request.query.get("sealed") == self.stamp(notice) else "",
            refresh=refresh,
            q=bottle.request.query.getunicode("q", ""),
        )
        policy = f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}"
        policy += "; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        response = _reply(status, text, Cache_Control="no-store", Content_Security_Policy=policy)
        response.set_header("Content-Type", "text/html; charset=utf-8")
        response.set_header("X-Content-Type-Options", "nosniff")
        response.set_header("Referrer-Policy", "same-origin")
        return response

    def stamp(self, text: str) -> str:
        """Proves that a notice is ours and not a link's."""
        return hmac.new(self.seal.encode(), text.encode(), "sha256").hexdigest()[:16]

    def table(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Events as a table."""
        today = self.config.clock.local(time.time()).date().isoformat()
        return _render(EVENT_ROWS, rows=rows, today=today, address=ticket_address)

    def buttons(self, event: Mapping[str, Any], unclear: bool = False) -> str:
        """The actions that make sense in the event's state, as links to what asks once more."""
        verbs = [verb for verb, states in ACTIONS.items() if event["state"] in states]
        if event["state"] == "held" and unclear:
            verbs.insert(0, "retry")
        links = [
            f'<form action="/confirm/{verb}" method="get"><input type="hidden" name="event"'
            f' value="{event["event"]}"><button>{verb}</button></form>'
            for verb in verbs
        ]
        return "".join(links)

    def home(self) -> bottle.HTTPResponse:
        """Is all well, what needs me, what happened?"""
        query = bottle.request.query
        chosen: dict[str, Any] = {name: query.getunicode(name, "") for name in ("state", "kind")}
        before = query.get("before", "")
        chosen["before"] = int(before) if re.fullmatch("[0-9]{1,15}", before) else 0
        rows = verb_events(self.config, self.store, {**chosen, "limit": ROWS + 1})
        newer = self.newer(chosen, rows)
        older, rows = len(rows) > ROWS, rows[:ROWS]
        band, word, sentence = summary(self.config, self.store)
        verb = "resume" if self.store.fact("paused") else "pause"
        needs = self.needs()
        hours = self.hours()
        counts = {state: self.store.counts[state] for state in STATES}
        body = _render(
            HOME,
            band=band,
            word=word,
            sentence=sentence,
            needs=needs[:ROWS],
            more=len(needs) > ROWS,
            hours=hours,
            peak=max(
                1, *(max(hour["received"], hour["delivered"], hour["failed"]) for hour in hours)
            ),
            counts=counts,
            kinds=list(self.config.kinds),
            chosen=chosen,
            newer=newer,
            older=older,
            rows=rows,
            table=self.table(rows),
            hooks=[hook.path for hook in self.config.hooks.values()],
            pausing=f'<form action="/confirm/{verb}" method="get"><button>{verb}</button></form>',
            address=ticket_address,
        )
        return self.show("hd_itsm", body, refresh=not before)

    def needs(self) -> list[dict[str, Any]]:
        """The events that need a person, each with advice and actions; one more than fit."""
        ending = self.store.near_end(self.config.retry.give_up_after)[: ROWS + 1]
        rows = [
            *self.store.events("failed", limit=ROWS + 1),
            *(self.store.events("pending", numbers=ending) if ending else ()),
            *self.store.events("held", limit=ROWS + 1),
        ]
        found = []
        for row in rows:
            shown = _shown(self.config, self.store, row)
            shown["advice"] = advice(shown, row["unclear"])
            if row["state"] == "pending":
                shown["advice"] = "It is given up soon, see [retry] give_up_after."
            shown["actions"] = self.buttons(shown, row["unclear"])
            found.append(shown)
        return found

    def newer(self, chosen: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int:
        """Before which event the page with what is newer than these rows begins; 0 for none."""
        if not chosen["before"]:
            return 0
        last = rows[0]["event"] if rows else chosen["before"] - 1
        found = self.store.events(chosen["state"], kind=chosen["kind"], after=last, limit=ROWS)
        return found[-1]["event"] + 1 if found else 0

    def hours(self) -> list[dict[str, Any]]:
        """The last 24 hours, also those in which nothing happened."""
        first = int(time.time()) // 3600 - 23
        found = {row["hour"]: row for row in self.store.hours(first)}
        nothing = {"received": 0, "delivered": 0, "failed": 0}
        return [
            {
                **found.get(hour, nothing),
                "label": self.config.clock.local(hour * 3600.0).strftime("%H:00"),
            }
            for hour in range(first, first + 24)
        ]

    def known(self, text: str) -> dict[str, Any]:
        """The event of that number. Raises Error where there is none."""
        row = self.store.show(event_number(text))
        if row is None:
            raise Error(f"there is no event {text}")
        return row

    def event(self, event: str) -> bottle.HTTPResponse:
        """One event: state and reason, what came, what we send, what was answered."""
        row = self.known(event)
        found = show_event(self.config, self.store, row["event"])
        preview = self.preview(row)
        band = {"failed": "fail", "held": "warn", "delivered": "ok"}.get(found["state"], "note")
        body = _render(
            EVENT,
            event=found,
            band=band,
            advice=advice(found, row["unclear"]),
            actions=self.buttons(found, row["unclear"]),
            preview=preview,
            history=_render(ATTEMPTS, attempts=found["attempts"]),
            text=as_text,
            address=ticket_address,
        )
        return self.show(f"Event {row['event']}", body, refresh=found["state"] == "pending")

    def preview(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The request as it would be sent now, or a problem."""
        kind = self.config.kinds.get(row["kind"])
        if kind is None:
            return {"problem": "Nothing: it has no kind that is configured."}
        fields, key = json.loads(row["fields"]), row["idempotency_key"]
        request_id = row["request_id"] or ("REQUEST-ID" if kind.needs else None)
        scope = self.config.scope(
            fields, row["event"], str(row["ticket"]), row["received"], request_id, masked=True
        )
        try:
            return preview(self.config, kind, scope, key)
        except Untranslatable as error:
            return {"problem": f"Nothing: it cannot be translated: {error}."}

    def ticket(self, ticket: str = "") -> bottle.HTTPResponse:
        """A ticket's mapping and the timeline of its events."""
        ticket = ticket or bottle.request.query.getunicode("ticket", "")
        found = verb_show(self.config, self.store, {"ticket": ticket})
        ahead = None
        for event in found["events"]:
            event["history"] = _render(ATTEMPTS, attempts=event["attempts"])
            event["waits"] = ""
            if event["state"] in ("pending", "held"):
                if ahead:
                    event["waits"] = f"Waits for event {ahead}."
                ahead = event["event"]
        body = _render(TICKET, **found)
        return self.show(f"Ticket {ticket}", body)

    def search(self) -> bottle.HTTPResponse:
        """To the ticket that was meant, by its own id or by its request id."""
        text = bottle.request.query.getunicode("q", "").strip()
        tickets = self.store.find_tickets(text)
        if len(tickets) == 1:
            return _redirect(ticket_address(tickets[0]))
        places = [(ticket_address(one), html.escape(one)) for one in tickets]
        links = "".join(f'<li><a href="{at}">{one}</a></li>' for at, one in places)
        words = f"<ul>{links}</ul>" if tickets else "<p>No such ticket or request id was seen.</p>"
        return self.show("Search", f"<h2>Search</h2>{words}", status=200 if tickets else 404)

    def confirm(self, verb: str) -> bottle.HTTPResponse:
        """Asks once, saying what the action will do."""
        if verb not in SENTENCES:
            raise Error(f"there is no action {verb}")
        fields = {
            name: bottle.request.query.getunicode(name, "")
            for name in re.findall(r"\{(\w+)\}", SENTENCES[verb])
        }
        back = "/"
        if "event" in fields:
            back = f"/events/{self.known(fields['event'])['event']}"
        elif "ticket" in fields:
            back = ticket_address(mapping_of(fields)[0])
        sentence = re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], SENTENCES[verb])
        body = _render(
            CONFIRM, sentence=sentence, verb=verb, fields=fields, back=back, seal=self.seal
        )
        return self.show(verb, body)

    def act(self, verb: str) -> bottle.HTTPResponse:
        """Carries an action out and says what it did."""
        environ, form = bottle.request.environ, bottle.request.forms
        self.own_page(environ, form.getunicode("seal", ""))
        given = {
            name: form.getunicode(name, "") for name in ("event", "ticket", "request_id", "why")
        }
        if verb not in SENTENCES:
            raise Error(f"there is no action {verb}")
        back, arguments = "/", dict(given)
        if verb in ACTIONS:
            arguments["events"] = [self.known(given["event"])["event"]]
            back = f"/events/{arguments['events'][0]}"
        elif verb == "map":
            back = ticket_address(given["ticket"])
        result = VERBS[verb](self.config, self.store, arguments)
        self.web.wake()
        notice = f"{verb}: done"
        if result.get("refused"):
            notice = result["refused"][0]["reason"]
        log.info("%s %s from the page, by %s: %s", verb, given, self.web.caller(environ), notice)
        query = urllib.parse.urlencode({"notice": notice, "sealed": self.stamp(notice)})
        return _redirect(f"{back}{'&' if '?' in back else '?'}{query}")

    def own_page(self, environ: Mapping[str, Any], seal: str) -> None:
        """Refuses a POST that does not come from a page of ours."""
        origin, host = _header(environ, "Origin"), _header(environ, "Host")
        site = _header(environ, "Sec-Fetch-Site")
        foreign = origin and urllib.parse.urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("", "same-origin", "none"):
            raise Refused(403, "this came from another site")
        if not hmac.compare_digest(seal.encode("utf-8", "replace"), self.seal.encode()):
            raise Refused(403, "this form is not of this program's run: open the page again")


# ── Delivery: due event to outcome; the only threads we start ──────────────────────────────────


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from an attempt. `status` None: nothing did, and `error` says why."""

    status: int | None
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    sent: bool = True  # whether the ITSM may have seen the request
    framed: bool = True  # whether a length (or chunks) told where the body ends


class Outcome(NamedTuple):
    """What an attempt meant: delivered, failed, later, credential or unclear."""

    name: str
    reason: str
    words: str = ""  # the ITSM's own, for people; may hold ticket text
    request_id: str = ""
    retry_after: float = 0.0  # seconds the ITSM asked for
    unclear: bool = False  # failed, but it may have happened


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After asks for (RFC 9110 10.2.3), 0 for nonsense; `now`: epoch."""
    text = value.strip()
    if re.fullmatch(r"[0-9]+", text):
        return MAX_RETRY_AFTER if len(text) > 9 else min(float(text), MAX_RETRY_AFTER)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return min(max(0.0, moment.timestamp() - now), MAX_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def _words(answer: Answer) -> str:
    """The beginning of what the ITSM said, as one line."""
    text = answer.body[:4000].decode("utf-8", "replace")
    return re.sub(r"\s+", " ", text).strip()[:500]


def _is_html(answer: Answer) -> bool:
    kind = answer.headers.get("content-type", "").lower()
    return "text/html" in kind or answer.body.lstrip()[:9].lower().startswith(
        (b"<!doctype", b"<html")
    )


def _json_of(answer: Answer) -> Any:
    """The JSON of an answer's body, or MISSING."""
    with contextlib.suppress(ValueError, Unreadable):
        return parse_json(next(decode_body(answer.body))[0])
    return MISSING


def read_request_id(kind: Kind, answer: Answer, found: Any) -> str:
    """The request id in an answer, "" where there is none."""
    for path in kind.request_id:
        if path[0].does == "header":
            location = urllib.parse.urlsplit(answer.headers.get("location", "")).path
            ids = [read_id(urllib.parse.unquote(location.rstrip("/").rpartition("/")[2]))]
        else:
            ids = [read_id(element) for element in find_all(found, path)]
        if request_id := next(filter(None, ids), ""):
            return request_id
    return ""


def _accepted(kind: Kind, answer: Answer) -> Outcome:
    """The outcome of a 2xx answer that was read whole."""
    status, words = f"answered {answer.status}", _words(answer)
    found = _json_of(answer)
    if found is MISSING and _is_html(answer):
        reason = f"{status} with HTML instead of JSON: a login page or a proxy?"
        return Outcome("later", reason, words)
    if found is MISSING and not answer.framed:
        return Outcome("unclear", f"{status}, but the answer may have been cut", words)
    judged = found is not MISSING or answer.body.strip()
    for condition in kind.refused:
        if judged and condition.holds(found, answer.headers):
            return Outcome("failed", f"{status}, but refused by what it says", words)
    for condition in kind.ok:
        if judged and not condition.holds(found, answer.headers):
            return Outcome("failed", f"{status}, but not with what `ok` demands", words)
    if not kind.opens:
        return Outcome("delivered", status, words)
    request_id = read_request_id(kind, answer, found)
    if request_id:
        return Outcome("delivered", status, words, request_id)
    if found is MISSING:
        reason = f"{status} without JSON: it may have happened; `map` or `retry` decides"
        return Outcome("failed", reason, words, unclear=True)
    return Outcome("failed", f"{status} without a request id where it should be", words)


def decide(kind: Kind, answer: Answer, now: float) -> Outcome:
    """The one author of outcomes. What it does not know means "later". `now`: epoch seconds."""
    if answer.status is None:
        return Outcome("unclear" if answer.sent else "later", answer.error)
    name = kind.answers.get(answer.status) or next(
        (name for first, last, name in ANSWERS if first <= answer.status <= last), "later"
    )
    if name != "delivered":
        wait = retry_after(answer.headers.get("retry-after", ""), now)
        return Outcome(name, f"answered {answer.status}", _words(answer), "", wait)
    if answer.error:
        return Outcome("unclear", f"answered {answer.status}, but {answer.error}")
    return _accepted(kind, answer)


class Flight:
    """One attempt on its way: the worker that makes it and the watch that may have to end it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # monotonic
        self.sent = False
        self.cut = False
        self.tap: socket.socket | None = None
        self.left: list[socket.socket] = []  # taps of connections closed meanwhile

    def end(self) -> None:
        """Wakes whoever reads from the connection: closing it would not."""
        self.cut = True
        for tap in [self.tap, *self.left]:
            if tap is not None:
                with contextlib.suppress(OSError):
                    tap.shutdown(socket.SHUT_RDWR)


_air = threading.local()  # .flight: the attempt that this thread is making


class _Tapped:
    """A connection with a second handle on its socket, good through TLS and in any state."""

    tap: socket.socket | None = None
    sock: Any
    _held: bytes | None = None  # of a request that is being put together

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.tap = _air.flight.tap = connected.dup()
        if _air.flight.cut:
            _air.flight.end()
        return connected

    def request(self, *arguments: Any, **named: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        _air.flight.tap, _air.flight.sent = self.tap, True
        self._held = b""
        try:
            super().request(*arguments, **named)  # type: ignore[misc]
        finally:
            whole, self._held = self._held, None
        self.send(whole)

    def send(self, data: Any) -> None:
        """Sends; head and body of a request in one piece."""
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held += data

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        tap, self.tap = self.tap, None
        flight = getattr(_air, "flight", None)
        if tap is not None and flight is not None:
            flight.left.append(tap)  # its answer may still be read
        elif tap is not None:
            tap.close()


class _HttpConnection(_Tapped, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_Tapped, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def _transport_reason(error: BaseException) -> str:
    """A transport error in few words; its own text would carry the whole URL."""
    seen: BaseException = error
    while True:
        inner = [seen.__cause__, getattr(seen, "reason", None), *seen.args]
        causes = [one for one in inner if isinstance(one, BaseException)]
        if not causes:
            break
        seen = causes[0]
    if isinstance(seen, ssl.SSLCertVerificationError):
        return f"TLS certificate refused: {seen.verify_message}"
    if isinstance(seen, TimeoutError | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(seen, socket.gaierror):
        return f"name not found: {seen.strerror}"
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror.lower()
    return {
        "RemoteDisconnected": "connection closed without an answer",
        "IncompleteRead": "connection closed in the middle",
    }.get(type(seen).__name__, type(seen).__name__)


_parse_url = functools.lru_cache(maxsize=64)(urllib3.util.parse_url)


class Wire:
    """One worker's connections to the ITSM. Not shared between threads.

    Without a proxy they are used directly: urllib3's pools are made for many threads and hosts,
    and cost as much as the exchange itself.
    """

    MOST = 4  # connections kept, to different hosts

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tls: dict[str, Any] = {
            "ca_certs": config.itsm.ca_file or None,
            "cert_file": config.itsm.client_cert or None,
            "key_file": config.itsm.client_key or None,
        }
        self.connections: dict[tuple[Any, ...], Any] = {}
        self.pools: urllib3.ProxyManager | None = None
        if proxy := config.itsm.proxy.reveal():
            auth = urllib.parse.unquote(urllib3.util.parse_url(proxy).auth or "")
            known = urllib3.make_headers(proxy_basic_auth=auth) if auth else None
            self.pools = urllib3.ProxyManager(
                proxy, proxy_headers=known, num_pools=self.MOST, maxsize=1, **self.tls
            )
            self.pools.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def send(
        self, flight: Flight, request: Request, headers: Mapping[str, str], fresh: bool
    ) -> Answer:
        """Makes one HTTP request; never raises for what the network or the ITSM does.

        `fresh`: on a new connection, so that no idle one that was just closed spoils it.
        """
        _air.flight = flight
        if fresh:
            self.clear()
        try:
            return self._exchange(flight, request, headers)
        except (
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as error:
            self.clear()
            reason = "no answer in time" if flight.cut else _transport_reason(error)
            return Answer(None, error=reason, sent=flight.sent)
        finally:
            _air.flight = None
            for tap in flight.left:
                tap.close()

    def clear(self) -> None:
        """Closes all connections."""
        if self.pools:
            self.pools.clear()
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()

    def _connection(self, url: urllib3.util.Url) -> Any:
        """The connection to the host of `url`, as good as new."""
        place = (url.scheme, url.host, url.port)
        connection = self.connections.get(place)
        if connection is None:
            if len(self.connections) == self.MOST:
                self.clear()
            host = str(url.host).strip("[]")
            if url.scheme == "https":
                connection = _HttpsConnection(host, url.port, **self.tls)
            else:
                connection = _HttpConnection(host, url.port)
            self.connections[place] = connection
        elif not connection.is_closed and not connection.is_connected:
            connection.close()  # the ITSM hung up meanwhile
        return connection

    def _ask(self, flight: Flight, request: Request, headers: Mapping[str, str]) -> Any:
        """The response to a request, its body unread."""
        timeout = max(0.1, flight.deadline - time.monotonic())
        asked: dict[str, Any] = {"body": request.body or None, "headers": headers}
        asked |= {"preload_content": False, "decode_content": False}
        if self.pools:
            patience = urllib3.Timeout(connect=timeout, read=timeout)
            return self.pools.request(
                request.method,
                request.url,
                timeout=patience,
                retries=False,
                redirect=False,
                **asked,
            )
        url = _parse_url(request.url)
        connection = self._connection(url)
        connection.timeout = timeout
        if connection.sock:
            connection.sock.settimeout(timeout)
        connection.request(request.method, url.request_uri, **asked)
        return connection.getresponse()

    def _exchange(self, flight: Flight, request: Request, headers: Mapping[str, str]) -> Answer:
        response = self._ask(flight, request, headers)
        error, body = "", b""
        try:
            while (
                response.length_remaining != 0
                and len(body) <= MAX_ANSWER
                and (piece := response.read(MAX_ANSWER + 1))
            ):
                body += piece
            if len(body) > MAX_ANSWER:
                error = f"its answer is longer than {MAX_ANSWER} bytes"
        except (urllib3.exceptions.HTTPError, OSError) as found:
            error = f"its answer was cut: {_transport_reason(found)}"
        if error or flight.cut:
            response.close()
            self.clear()
        if flight.cut:  # what looks like an answer may be what the cut left of one
            return Answer(None, error="no whole answer in time")
        response.release_conn()
        named = {name.lower(): value for name, value in response.headers.items()}
        framed = (
            "content-length" in named or "chunked" in named.get("transfer-encoding", "").lower()
        )
        return Answer(
            response.status,
            named,
            body[:MAX_ANSWER],
            error,
            True,
            framed or response.status == 204,
        )


class Breaker:
    """Whether the ITSM is up: three "later" for different tickets in a row say it is not.

    Then one probe at a time goes, after longer and longer waits; the first answer that takes or
    refuses a ticket opens the gates. A refused credential shuts them at once. `now` is the service
    clock; Delivery guards it.
    """

    def __init__(self, first: float, probe: float, jitter: Callable[[], float]) -> None:
        self.first, self.longest, self.jitter = first, probe, jitter
        self.why = ""  # "", "down" or "credential"
        self.reason = ""
        self.next_probe = 0.0
        self.probing = ""  # the ticket of the probe that is on its way
        self.probes = 0
        self.late: list[str] = []  # tickets of the "later" since the last other outcome
        self.last_success: tuple[str, float] = ("", -1.0)
        self.success_before: tuple[str, float] = ("", -1.0)  # the last one of another ticket

    def admits(self, now: float) -> bool:
        """Whether an attempt may start."""
        return not self.why or (not self.probing and now >= self.next_probe)

    def success_of_another(self, ticket: str) -> float:
        """When a ticket other than this one last went through; -1 for never."""
        return self.last_success[1] if self.last_success[0] != ticket else self.success_before[1]

    def note(self, outcome: Outcome, ticket: str, now: float) -> bool:
        """Takes an outcome in; True where gates closed or opened, or the reason is another."""
        before = (self.why, self.reason)
        if outcome.name in ("delivered", "failed"):
            if outcome.name == "delivered":
                if self.last_success[0] != ticket:
                    self.success_before = self.last_success
                self.last_success = (ticket, now)
            self.why, self.reason, self.late, self.probes = "", "", [], 0
        elif outcome.name == "credential":
            self._shut("credential", outcome, now)
        else:
            self.late = [*(t for t in self.late if t != ticket), ticket][-3:]
            if self.why or len(self.late) == 3:
                self._shut(self.why or "down", outcome, now)
        return before != (self.why, self.reason)

    def _shut(self, why: str, outcome: Outcome, now: float) -> None:
        if self.why and now < self.next_probe:
            return  # an attempt that was under way when the gates closed
        self.why, self.reason = why, outcome.reason
        delay = min(self.longest, self.first * 2 ** min(self.probes, 20)) * (
            0.5 + self.jitter() / 2
        )
        self.next_probe = now + max(delay, outcome.retry_after)
        self.probes += 1


class Alerts:
    """Tells a chat address what needs a person: once when it begins, once when it is over.

    What was told is kept, so that a restart does not tell it again. `tell` may take seconds: it
    has a thread of its own and nothing waits for it.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store
        self.pools = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=5))

    def look(self) -> bool:
        """Tells what is new and what is over; False where it could not. Raises StoreError."""
        after = self.config.alert.after
        now = incidents(self.config, self.store, held_after=after)
        told: dict[str, str] = json.loads(self.store.fact("told") or "{}")
        lines = [text for name, text in now.items() if name not in told]
        lines += [f"over: {text}" for name, text in told.items() if name not in now]
        if not lines:
            return True
        if not self.tell(f"hd_itsm on {socket.gethostname()}: " + "; ".join(lines)):
            return False
        self.store.keep_facts(told=json.dumps(now))
        return True

    def tell(self, text: str) -> bool:
        """Posts one text; whether it was taken."""
        try:
            answer = self.pools.request(
                "POST",
                self.config.alert.url.reveal(),
                body=json.dumps({"text": text}).encode(),
                headers={"Content-Type": "application/json"},
                redirect=False,
            )
            if answer.status < 300:
                return True
            reason = f"answered {answer.status}"
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = _transport_reason(error)
        log.warning("the alert address does not take alerts (%s): %s", reason, text)
        return False


class Gate:
    """Which event goes next, and when: the due events, the breaker, the workers that wait.

    `_changed` guards all of it and is held for moments only, never during SQL or HTTP; the store's
    lock is never taken while it is held. Workers without work wait on it; `wake`, a worker that
    leaves more work behind, a result that was recorded, an opened breaker and `stop` notify.

    Threads that compute hinder each other: while the ITSM answers within QUICK seconds, one worker
    does more than four, and records what it delivers by handfuls.
    """

    PAGE = 64  # due events read at a time: memory stays flat whatever the backlog
    QUICK = 0.002

    def __init__(self, store: Store, breaker: Breaker, workers: int) -> None:
        self.store, self.breaker, self.workers = store, breaker, workers
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._page: collections.deque[Event] = collections.deque()
        self._edits = 0  # of the store, when the page was read
        self._busy: set[str] = set()  # tickets in flight: taken, and not recorded yet
        self._taken = 0  # how many were ever taken
        self._idle = self._looking = 0  # workers that wait, and that look for work
        self._fresh = True  # something may have become due since the last look
        self._pace = math.inf  # seconds that the quicker attempts take lately
        self._seen = 0  # of `_taken`, at the last nudge

    def wake(self) -> None:
        """Something may be due. Cheap: wakes a worker only where none is looking for work."""
        with self._changed:
            self._fresh = True
            self._call()

    def _call(self) -> None:
        """Wakes a worker where one more is of use; under `_changed`."""
        if self._idle and not self._looking and self._wanted(1) and not self._barred():
            self._changed.notify()

    def _barred(self) -> bool:
        """Whether nothing may go: paused, or its outcome could not be recorded."""
        return bool(self.store.fact("paused") or self.store.broken)

    def _wanted(self, more: int) -> bool:
        """Whether so many more than those that work now are of use."""
        return self._pace >= self.QUICK or self.workers - self._idle + more <= 1

    def stop(self) -> None:
        """Lets nothing through any more."""
        with self._changed:
            self.stopping.set()
            self._changed.notify_all()

    def take(self) -> Event | None:
        """The next event to deliver; waits for one. None: time to stop."""
        while not self.stopping.is_set():
            with self._changed:
                if not self._wanted(0):
                    self._rest(60.0)
                    continue
                self._looking += 1
                self._fresh = False
            taken = None
            try:
                taken = self._first_of_page()
                wait = 0.0 if taken else self._fill_page()
            except StoreError:
                wait = 1.0
            finally:
                with self._changed:
                    self._looking -= 1
                    if taken and (self._page or self._fresh):
                        self._call()  # whoever comes now would find nobody looking
            if taken:
                return taken
            with self._changed:
                if wait > 0 and not self._fresh:
                    self._rest(wait)
        return None

    def _rest(self, seconds: float) -> None:
        """Waits to be woken; under `_changed`."""
        self._idle += 1
        try:
            if not self.stopping.is_set():
                self._changed.wait(seconds)
        finally:
            self._idle -= 1

    def another(self) -> Event | None:
        """One more event for a handful; None: what was delivered is to be recorded first."""
        with self._changed:
            hurry = self._pace < self.QUICK and not self.stopping.is_set()
        return self._first_of_page() if hurry else None

    def _first_of_page(self) -> Event | None:
        """The first event of the page, where the breaker and the operator let it go."""
        with self._changed:
            if self._edits != self.store.edits:
                self._page.clear()
            full = len(self._busy) >= self.workers
            if not self._page or full or self._barred():
                return None
            if not self.breaker.admits(self.store.clock()):
                return None
            taken = self._page.popleft()
            self._busy.add(taken.ticket)
            self._taken += 1
            self.breaker.probing = taken.ticket if self.breaker.why else ""
            return taken

    def _fill_page(self) -> float:
        """Looks for due events; 0 where some may go, else how many seconds to wait."""
        now = self.store.clock()
        if self._barred():
            return 60.0
        with self._changed:
            if not self.breaker.admits(now):
                return 60.0 if self.breaker.probing else max(0.01, self.breaker.next_probe - now)
            if len(self._busy) >= self.workers:
                return 60.0
            if self._page:
                return 0.0
            busy, taken, edits = set(self._busy), self._taken, self.store.edits
        found = self.store.due(now, self.PAGE + len(busy))
        with self._changed:
            if self._page or self._taken != taken:  # another was faster: `found` may be old
                return 0.0
            self._edits = edits
            self._page.extend(one for one in found if one.ticket not in busy)
            if self._page:
                return 0.0
        due = self.store.next_due(now)
        return 60.0 if due is None else min(60.0, max(0.001, due - now))

    def done(self, ticket: str) -> None:
        """The attempt for the ticket is over and recorded: its next event may go."""
        with self._changed:
            self._busy.discard(ticket)
            if self.breaker.probing == ticket:
                self.breaker.probing = ""
            self._fresh = True
            self._call()

    def note(self, outcome: Outcome, ticket: str, seconds: float) -> tuple[bool, str, float]:
        """Tells the breaker; (it changed, why it is open, when another ticket got through)."""
        with self._changed:
            late = seconds > self._pace  # where threads are many, some wait for each other
            self._pace = self._pace + (seconds - self._pace) / 32 if late else seconds
            changed = self.breaker.note(outcome, ticket, self.store.clock())
            self.store.board["next_probe"] = self.breaker.next_probe
            if changed:
                self._changed.notify_all()
            return changed, self.breaker.why, self.breaker.success_of_another(ticket)

    def nudge(self) -> None:
        """Wakes a worker for events that have become due while the others were busy."""
        with self._changed:
            held_up, self._seen = self._taken == self._seen, self._taken
            wanted = self._idle and not self._looking and (held_up or self._pace >= self.QUICK)
        if wanted and self.store.due(self.store.clock(), 1):
            with self._changed:
                self._pace, self._fresh = max(self._pace, self.QUICK), True
                self._changed.notify()

    def probe_now(self) -> None:
        """Ends the wait for the next probe."""
        with self._changed:
            self.breaker.next_probe = 0.0
            self._changed.notify_all()

    def forget_trouble(self) -> None:
        """Closes a breaker that nothing is left to probe with."""
        with self._changed:
            self.breaker.why = self.breaker.reason = ""


class Delivery:
    """Brings due events to the ITSM with a few worker threads, and watches over them."""

    def __init__(
        self, config: Config, store: Store, jitter: Callable[[], float] = random.random
    ) -> None:
        self.config, self.store, self.jitter = config, store, jitter
        breaker = Breaker(config.retry.first, config.retry.probe, jitter)
        self.breaker, self.gate = breaker, Gate(store, breaker, config.itsm.workers)
        self.wake = self.gate.wake
        self.fatal = ""  # why the process must end
        self._results: list[Result] = []  # not recorded yet
        self._results_lock = threading.Lock()  # guards them, for moments only
        self._over = threading.Event()  # the workers have ended
        self._flights: dict[threading.Thread, Flight] = {}
        self._since: dict[threading.Thread, float] = {}  # workers with an event: since when
        self._workers: list[threading.Thread] = []
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._alerter = threading.Thread(target=self._alert, name="alert", daemon=True)
        self._retained = 0

    def start(self) -> None:
        """Starts the threads; goes on where the last process ended."""
        self.store.recover()
        itsm = json.loads(self.store.fact("itsm") or "{}")
        if itsm and self.store.counts["pending"]:
            self.breaker.why, self.breaker.reason = itsm["why"], itsm["reason"]
        elif itsm:
            self.store.keep_facts(itsm="")
        for kind in self.config.kinds.values():
            if kind.find:
                self.store.postpone_unclear(kind.name, self.store.clock() + kind.find.after)
        for _ in range(self.config.itsm.workers):
            self._workers.append(self._new_worker())
        self.store.board["beat"] = time.monotonic()
        self._watcher.start()
        if self.config.alert.url:
            self._alerter.start()

    def _new_worker(self) -> threading.Thread:
        worker = threading.Thread(target=self._work, name="worker", daemon=True)
        worker.start()
        return worker

    def stop(self, seconds: float) -> None:
        """Starts nothing more and waits for what is in flight; after `seconds` that is cut."""
        deadline = time.monotonic() + seconds
        self.gate.stop()
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        for flight in list(self._flights.values()):
            flight.end()
        for worker in self._workers:
            worker.join(1.0)
        self._over.set()
        self._watcher.join(1.0)

    def _work(self) -> None:
        wire, thread = Wire(self.config), threading.current_thread()
        while (event := self.gate.take()) is not None:
            while event is not None:
                self._since[thread] = time.monotonic()
                self._attend(wire, event)
                event = self.gate.another()
            while not self.record() and not self.gate.stopping.wait(0.5):
                self._since[thread] = time.monotonic()  # it does not hang: the disk is full
            del self._since[thread]

    def _attend(self, wire: Wire, event: Event) -> None:
        """Delivers an event and keeps the result, whatever happens."""
        result = None
        try:
            result = self.deliver(wire, event)
        except StoreError as error:
            log.error("event %d: %s", event.event, error)
            self.gate.stopping.wait(1.0)
        except Exception:
            log.exception("event %d: a fault of this program; it is tried again", event.event)
            self.store.postpone(event.event, self.store.clock() + 60)
        finally:
            if result is None:
                self.gate.done(event.ticket)
        if result is not None:
            with self._results_lock:
                self._results.append(result)

    def deliver(self, wire: Wire, event: Event) -> Result | None:
        """Makes one attempt for an event; what it means for it. None: it may not go now."""
        kind = self.config.kinds.get(event.kind)
        if kind is None:
            return Result(event, None, Verdict("failed", no_such_kind(event.kind)))
        scope = self.config.scope(
            event.fields, event.event, event.ticket, event.received, event.request_id
        )
        try:
            if event.unclear and kind.opens and kind.unclear != "retry":
                return self._look_up(wire, event, kind, scope)
            return self._attempt(wire, event, kind, translate(kind, scope))
        except Untranslatable as error:
            return Result(event, None, Verdict("failed", f"cannot be translated: {error}"))

    def _exchange(
        self, wire: Wire, event: Event, kind: Kind, request: Request, fresh: bool
    ) -> tuple[Answer, float, float]:
        """The ITSM's answer to `request`, when it began (epoch) and how long it took (seconds)."""
        at, began = time.time(), time.monotonic()
        flight = Flight(began + self.config.itsm.timeout)
        thread = threading.current_thread()
        self._flights[thread] = flight
        try:
            headers = outgoing_headers(self.config, kind, request, event.idempotency_key)
            answer = wire.send(flight, request, headers, fresh)
        finally:
            del self._flights[thread]
        return answer, at, time.monotonic() - began

    def _attempt(self, wire: Wire, event: Event, kind: Kind, request: Request) -> Result | None:
        careful = kind.opens and kind.unclear != "retry"
        if careful and not self.store.begin(event, time.time()):
            return None
        answer, at, seconds = self._exchange(wire, event, kind, request, fresh=careful)
        outcome = decide(kind, answer, time.time())
        outcome = outcome._replace(words=self.config.mask(outcome.words))
        attempt = Attempt(at, seconds, answer.status, outcome.name, outcome.reason, outcome.words)
        self.store.tallies.attempt(outcome.name, seconds)
        return Result(event, attempt, self._judge(event, kind, outcome, seconds))

    def _look_up(self, wire: Wire, event: Event, kind: Kind, scope: Scope) -> Result:
        """An opening that may have happened: asks the ITSM (`find`) or a person (`hold`)."""
        if kind.find is None or kind.unclear == "hold":
            reason = "no answer came: it may have happened; `map` or `retry` decides"
            return Result(event, None, Verdict("held", reason, unclear=True))
        request = find_request(kind.find, scope)
        answer, at, seconds = self._exchange(wire, event, kind, request, fresh=False)
        asking = replace(kind, opens=False)
        outcome = decide(asking, answer, time.time())
        outcome = outcome._replace(words=self.config.mask(outcome.words))
        if outcome.name == "failed":  # the question was refused, not the ticket
            outcome = outcome._replace(name="later")
        hits: set[str] = set()
        found = _json_of(answer) if answer.body.strip() else None  # nothing: no hit
        if outcome.name == "delivered" and found is MISSING:
            outcome = Outcome(
                "later", f"{outcome.reason} without JSON to the question", outcome.words
            )
        if outcome.name == "delivered":
            paths = kind.find.request_id
            hits = {read_id(one) for path in paths for one in find_all(found, path)} - {""}
            word = f"asked whether it happened: {len(hits) or 'no'} request found"
            outcome = outcome._replace(reason=word)
        attempt = Attempt(at, seconds, answer.status, outcome.name, outcome.reason, outcome.words)
        if outcome.name != "delivered":
            verdict = self._judge(event, asking, outcome, seconds)._replace(unclear=True)
        elif len(hits) == 1:
            verdict = self._delivered(kind, outcome._replace(request_id=hits.pop()))
        elif hits:
            verdict = Verdict("held", f"{outcome.reason}: `map` or `retry` decides", unclear=True)
        else:
            verdict = Verdict("pending", outcome.reason, due=self.store.clock())
        return Result(event, attempt, verdict)

    def _delivered(self, kind: Kind, outcome: Outcome) -> Verdict:
        follows = self.config.kinds[kind.then] if kind.then else None
        return Verdict(
            "delivered",
            outcome.reason,
            request_id=outcome.request_id,
            then=kind.then,
            then_needs=bool(follows and follows.needs),
        )

    def _judge(self, event: Event, kind: Kind, outcome: Outcome, seconds: float) -> Verdict:
        """What becomes of the event: the breaker, the poison rule and patience have their say."""
        now = self.store.clock()
        changed, down, others = self.gate.note(outcome, event.ticket, seconds)
        if changed:
            self._tell(down)
        said = f"{outcome.reason}: {outcome.words}" if outcome.words else outcome.reason
        if outcome.name == "delivered":
            return self._delivered(kind, outcome)
        if outcome.name == "failed":
            return Verdict("failed", said, unclear=outcome.unclear)
        if outcome.name == "credential":
            return Verdict("pending", said, due=now, tries=event.tries)
        if outcome.name == "unclear" and kind.opens and kind.unclear == "hold":
            return Verdict(
                "held", f"{said}: it may have happened; `map` or `retry` decides", unclear=True
            )
        if now - event.born >= self.config.retry.give_up_after:
            return Verdict("failed", f"given up after [retry] give_up_after: {said}")
        if outcome.name == "unclear" and kind.opens and kind.find and kind.unclear == "find":
            return Verdict(
                "pending", said, due=now + kind.find.after, tries=event.tries, unclear=True
            )
        if down:
            return Verdict("pending", said, due=now, tries=event.tries)
        return self._again(event, outcome, said, others, now)

    def _again(
        self, event: Event, outcome: Outcome, said: str, others: float, now: float
    ) -> Verdict:
        """A later try: sooner or later by chance, or none any more for an event that is poison.

        Only tries count that failed while others went through: before such evidence there is one.
        """
        evidence = event.first_try is not None and max(event.first_try, now - EVIDENCE) <= others
        tries = event.tries + 1 if evidence else max(event.tries, 1)
        if tries >= self.config.retry.tries and evidence:
            return Verdict("failed", f"failed {tries} times while others went through: {said}")
        longest = min(
            self.config.retry.max, self.config.retry.first * 2 ** min(event.attempts, 30)
        )
        due = now + max(outcome.retry_after, longest * self.jitter())
        return Verdict("pending", said, due=due, tries=tries)

    def record(self) -> bool:
        """Records the results that wait; False where the disk has no room: then they wait on.

        After a crash or a stop they are pending: at most these attempts are repeated.
        """
        with self._results_lock:
            results, self._results = self._results, []
        try:
            recorded = self._recorded(results)
        except StoreFull:
            with self._results_lock:
                self._results += results
            return False
        for one in recorded:
            self._log(*one)
        for one in results:
            self.gate.done(one.event.ticket)
        return True

    def _recorded(self, results: Sequence[Result]) -> list[Result]:
        """Those that could be recorded: a bad one takes no other with it. Raises StoreFull."""
        try:
            if results:
                self.store.record(results)
            return [*results]
        except StoreFull:
            raise
        except Exception as error:
            if len(results) > 1:
                return [one for each in results for one in self._recorded([each])]
            log.error("event %d: %s", results[0].event.event, error)
            self.gate.stopping.wait(1.0)
            return []

    def _log(self, event: Event, attempt: Attempt | None, verdict: Verdict) -> None:
        named = (event.event, event.ticket, event.kind)
        if attempt is None:
            reason = without_quotes(verdict.reason)
            log.warning("event %d ticket %s %s %s: %s", *named, verdict.state, reason)
            return
        good = attempt.outcome == "delivered"  # the event, or only the question whether it was
        log.log(
            logging.INFO if good else logging.WARNING,
            "event %d ticket %s %s attempt %d: %s (%s) in %.3f s",
            *named,
            event.attempts + 1,
            attempt.outcome if verdict.state == "pending" and not good else verdict.state,
            attempt.reason,
            attempt.duration,
        )

    def _tell(self, why: str) -> None:
        """Notes in the log and the store that the gates closed (`why`) or opened ("")."""
        itsm, reason = json.loads(self.store.fact("itsm") or "{}"), self.breaker.reason
        if not why:
            log.info("the ITSM answers again")
        elif itsm.get("why") != why:
            what = "refuses our credential" if why == "credential" else "is down"
            log.error("the ITSM %s (%s): everything waits, probes go on", what, reason)
        fact = {"why": why, "reason": reason, "since": itsm.get("since", time.time())}
        self.store.keep_facts(itsm=json.dumps(fact) if why else "")

    def _alert(self) -> None:
        alerts, pause = Alerts(self.config, self.store), 1.0
        while not self._over.wait(pause):
            try:
                pause = 1.0 if alerts.look() else min(2 * pause, 300.0)
            except StoreError as error:
                log.error("alerts: %s", error)
            except Exception:
                log.exception("alerts failed; they go on")

    def _watch(self) -> None:
        """Ends attempts that are over time, replaces dead workers, keeps house."""
        turn = 0
        while not self._over.wait(0.25):
            try:
                self.watch(time.monotonic(), turn)
            except StoreError as error:
                log.error("%s", error)
            except Exception:
                log.exception("the watch failed; it goes on")
            turn += 1

    def watch(self, now: float, turn: int) -> None:
        """One round, four a second; `now` is monotonic."""
        for flight in list(self._flights.values()):
            if now > flight.deadline:
                flight.end()
        for since in list(self._since.values()):
            if now - since > self.config.itsm.timeout + 60:
                self.fatal = "a worker hangs for a minute past its deadline"
        self.gate.nudge()
        self.record()  # what a worker holds whose next attempt takes long
        for place, worker in enumerate(self._workers):
            if not worker.is_alive() and not self.gate.stopping.is_set():
                log.critical("a worker died: a new one takes its place")
                self._workers[place] = self._new_worker()
        if turn % 4 == 0:
            self.store.last_received()  # the store answers, or the beat stops here
            self.store.board["beat"] = now
            self._credential_renewed()
        if turn % 40 == 0:
            self.store.keep_reserve()
            self.store.keep_clock()
            self._near_end(turn)
        if turn % 8 == 0:
            days = self.config.store.keep_days
            self._retained = self.store.retain(time.time() - days * 86400, self._retained)

    def _credential_renewed(self) -> None:
        """Probes at once where the ITSM refuses our credential and its file has changed."""
        if self.breaker.why != "credential":
            if self.breaker.why and not self.store.counts["pending"]:
                self.gate.forget_trouble()
                self._tell("")
            return
        with contextlib.suppress(OSError, UnicodeError):
            if self.config.itsm.authorization.refresh():
                self.gate.probe_now()

    def _near_end(self, turn: int) -> None:
        """Warns of events that will soon be given up, once an hour."""
        if turn % 14400 == 0:
            found = self.store.near_end(self.config.retry.give_up_after)
            if found:
                log.warning("%d events will soon be given up: see `status`", len(found))


# ── Service: put together, beside systemd ──────────────────────────────────────────────────────


class _OneLine(logging.Formatter):
    """A log line stays one line: what came from outside cannot break or colour it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        text = super().format(record)
        if text.isprintable():
            return text
        return re.sub(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
            lambda match: match[0].encode("unicode_escape").decode(),
            text,
        )


def start_logging(config: Config, environ: Environ) -> None:
    """Logs to stderr (under systemd without the time) and to the rotating file, if any."""
    timed = "%(asctime)s - %(levelname)s - %(message)s"
    plain = "%(levelname)s - %(message)s"
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].setFormatter(_OneLine(plain if environ.get("JOURNAL_STREAM") else timed))
    if config.log.file:
        try:
            rotating = logging.handlers.RotatingFileHandler(
                config.log.file,
                maxBytes=config.log.max_bytes,
                backupCount=config.log.backups,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise Error(f"log.file: cannot write {config.log.file}: {error.strerror}") from None
        rotating.setFormatter(_OneLine(timed))
        handlers.append(rotating)
    logging.basicConfig(level=config.log.level, handlers=handlers, force=True)
    logging.raiseExceptions = False  # a full disk under the log file is no reason to fail
    for name in ("urllib3", "waitress", "waitress.queue"):  # urllib3's DEBUG shows whole URLs
        logging.getLogger(name).setLevel(logging.ERROR)


# The control file, by which a command finds the running service


def control_path(store_path: str) -> str:
    """Where the running service says how it can be reached."""
    return store_path + ".control"


def write_control(path: str, address: tuple[str, int], key: str) -> None:
    """Writes the control file, 0600, in one step."""
    new = f"{path}.new.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"host": address[0], "port": address[1], "key": key, "pid": os.getpid()}, file)
    os.replace(new, path)


class Remote:
    """The running service, as the commands see it."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        host = str(found["host"])
        self.host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.port, self.key, self.pid = int(found["port"]), str(found["key"]), int(found["pid"])

    def call(self, verb: str, arguments: Arguments) -> Any:
        """The verb's result. Raises Error for its refusal, OSError where nobody listens there."""
        pool = urllib3.HTTPConnectionPool(self.host, self.port, retries=False)
        try:
            answer = pool.request(
                "POST",
                f"/control/{verb}",
                body=json.dumps(arguments).encode(),
                headers={"HD-ITSM-Key": self.key},
                timeout=urllib3.Timeout(connect=2, read=60),
            )
        except urllib3.exceptions.HTTPError as error:
            raise OSError(str(error)) from error
        with contextlib.suppress(ValueError):
            content = json.loads(answer.data)
            if answer.status == 200 and answer.headers.get("HD-ITSM-Pid") == str(self.pid):
                return content["result"]
            if answer.status in (400, 503) and isinstance(content, dict) and "error" in content:
                raise Error(content["error"])
        raise OSError("another program listens there")


def find_remote(store_path: str) -> Remote | None:
    """The running service of this file, None where none left its control file."""
    try:
        found = json.loads(pathlib.Path(control_path(store_path)).read_text(encoding="utf-8"))
        return Remote(found)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Error(
            f"{control_path(store_path)}: not readable for you: run this as root"
        ) from None
    except (ValueError, KeyError, OSError):
        return None


class Desk:
    """Where a command's verbs are carried out: by the running service, or on the file itself."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.remote = find_remote(config.store.path)
        self._store: Store | None = None

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        if self._store is not None:
            self._store.close()

    def call(self, verb: str, **arguments: Any) -> Any:
        """The verb's result. Raises Error."""
        if self._store is None and self.remote is not None:
            try:
                return self.remote.call(verb, arguments)
            except OSError as error:
                gone = self._opened(error)
        else:
            gone = self._opened(None)
        return VERBS[verb](self.config, gone, arguments)

    def _opened(self, trouble: OSError | None) -> Store:
        if self._store is None:
            try:
                self._store = Store(self.config.store.path)
            except StoreError as error:
                hint = f" (its service does not answer: {trouble})" if trouble else ""
                raise StoreError(f"{error}{hint}") from None
        return self._store


# The service


def notify(environ: Environ, state: str, descriptor: int | None = None) -> None:
    """Tells systemd how the service is (sd_notify(3)), with a descriptor for its store."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        if descriptor is None:
            sender.sendall(state.encode())
        else:
            socket.send_fds(sender, [state.encode()], [descriptor])


OWN = "http"  # the name of a listening socket that this program made and systemd keeps


def inherited(environ: Environ, address: tuple[str, int]) -> socket.socket | None:
    """The listening socket that systemd or our former self kept for us (sd_listen_fds(3)).

    None where there is none, or only one for another address; that one is closed.
    """
    number = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not re.fullmatch("[0-9]{1,3}", number):
        return None
    found = None
    for descriptor in range(3, 3 + int(number)):
        try:
            kept = socket.socket(fileno=descriptor)
        except OSError:
            continue  # no socket
        os.set_inheritable(descriptor, False)
        host, port = kept.getsockname()[:2] if kept.family != socket.AF_UNIX else ("", 0)
        fits = address[1] in (0, port) and address[0] in ("localhost", host)
        if found is None and (fits or environ.get("LISTEN_FDNAMES") != OWN):
            found = kept  # one that .socket made is as the administrator wants it
        else:
            kept.close()
    return found


def listen(address: tuple[str, int]) -> socket.socket:
    """A listening socket. Raises Error where the address cannot be had."""
    host, port = address
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(1024)
        return listener
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        what = "another program has this address" if taken else error.strerror
        raise Error(f"cannot listen on {host}:{port}: {what}; see [server] listen") from None


def program() -> list[str]:
    """How this program was started, without its arguments: the interpreter and the file."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


PAUSE = 0.001  # seconds in which more webhooks may come in, while two threads answer others

SIGNALS = {
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
}


class Service:
    """The running daemon: store, delivery and web server, put together."""

    def __init__(self, config: Config, environ: Environ, trial: Sequence[str] = ()) -> None:
        self.config, self.environ = config, environ
        self.trial = trial  # the command that tries new configuration and code out
        self.stopping = threading.Event()
        self.asked_to_renew = threading.Event()
        self.renewing = threading.Event()  # a new start in the same process is due
        self._renewal = threading.Thread()  # the last one; this one was never started
        self.store = Store(config.store.path, create=True)
        try:
            address = config.server.listen
            self.kept = inherited(environ, address)
            self.listener = self.kept or listen(address)
            self.listener_name = environ.get("LISTEN_FDNAMES", "") if self.kept else OWN
            self.key = secrets.token_urlsafe(32)
            self.delivery = Delivery(config, self.store)
            self.web = Web(config, self.store, self.delivery.wake, self.key)
            Pages(self.web)
            self.server = make_server(
                self.web, self.listener, config.server.threads, config.server.max_body
            )
            self.address: tuple[str, int] = self.listener.getsockname()[:2]
            write_control(control_path(self.store.path), self.address, self.key)
        except BaseException:
            self.store.close()
            raise

    @property
    def url(self) -> str:
        """Where the hooks are."""
        host, port = self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def stop(self, *signal_and_frame: object) -> None:
        """Asks `run` to end; safe in a signal handler and from any thread."""
        self.stopping.set()
        self.server.pull_trigger()

    def renew(self, *signal_and_frame: object) -> None:
        """Asks for new configuration and code (SIGHUP); safe in a signal handler."""
        self.asked_to_renew.set()
        self.server.pull_trigger()

    def run(self) -> int:
        """Serves until `stop` or a `renew` that works out; the exit code.

        After `renew`, `start_anew` is to be called where `renewing` is still set.
        """
        self.delivery.start()
        log.info("listening on %s, delivering to %s", self.url, self._target())
        if not self.kept:
            notify(self.environ, f"FDSTOREREMOVE=1\nFDNAME={OWN}")  # one for a former address
            notify(self.environ, f"FDSTORE=1\nFDNAME={OWN}", self.listener.fileno())
        notify(self.environ, f"READY=1\nSTATUS=listening on {self.url}")
        round_at = told_at = 0.0
        while not (self.stopping.is_set() or self.renewing.is_set() or self._trouble()):
            self._turn(1.0)
            now = time.monotonic()
            if now - round_at >= 1.0:
                round_at = now
                close_idle(self.server, now)
                self._feed(now)
            if now - told_at >= 10.0:
                told_at = now
                notify(self.environ, f"STATUS={self._counts()}")
            if self.asked_to_renew.is_set() and not self._renewal.is_alive():
                self._renewal = threading.Thread(target=self._renew, daemon=True)
                self._renewal.start()
        return self._end()

    def _target(self) -> str:
        parts = urllib.parse.urlsplit(self.config.itsm.url)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "the ITSM"

    def _counts(self) -> str:
        counts = self.store.counts
        waiting = ", ".join(f"{counts[state]} {state}" for state in ("pending", "held", "failed"))
        refused = "; the last reload was refused" if self.store.board.get("reload") else ""
        return f"listening on {self.url}; {waiting}{refused}"

    def _feed(self, now: float) -> None:
        """Feeds systemd's watchdog while intake, store and every worker showed life just now."""
        alive = now - self.store.board["beat"] < 10 and self.server.stuck(now) < 10
        if "WATCHDOG_USEC" in self.environ and alive:
            notify(self.environ, "WATCHDOG=1")

    def _turn(self, seconds: float) -> None:
        """One round of the web server's loop.

        While several webhooks are being answered it pauses a moment: the next ones are then more
        of a handful, which shares one commit.
        """
        if self.server.task_dispatcher.active_count > 1:
            time.sleep(PAUSE)
        waitress.wasyncore.loop(timeout=seconds, use_poll=True, map=self.server._map, count=1)
        self.server.hand_over()

    def _trouble(self) -> str:
        """Why the process must end though nobody asked, or ""."""
        now = time.monotonic()
        if now - self.store.board["beat"] > 60:
            return "the watch over the deliveries is dead"
        if self.server.stuck(now) > 60:
            return "every thread of the web server hangs"
        return self.store.broken or self.delivery.fatal

    def _renew(self) -> None:
        """Ends the deliveries for a new start, where a trial run says that it will work.

        Webhooks are taken meanwhile, however long an attempt in flight takes to end.
        """
        while self.asked_to_renew.is_set():
            self.asked_to_renew.clear()
            self.store.board["reload"] = problem = self._tried()
        if problem:
            log.error("reload refused, the old configuration goes on: %s", problem)
            return
        log.info("reloading")
        usec = time.monotonic_ns() // 1000
        notify(self.environ, f"RELOADING=1\nMONOTONIC_USEC={usec}")
        self.delivery.stop(self.config.server.stop_after)
        self.renewing.set()
        self.server.pull_trigger()

    def _tried(self) -> str:
        """What a trial run has against the new configuration and code, or ""."""
        host, port = self.address if self.listener_name == OWN else self.config.server.listen
        command = [*self.trial, f"{host}:{port}"]
        try:
            trial = subprocess.run(
                command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if trial.returncode == 0 else (trial.stderr or trial.stdout).strip()

    def _end(self) -> int:
        """Answers and attempts in flight are finished, then the file is closed."""
        trouble = self._trouble()
        level = logging.CRITICAL if trouble else logging.INFO
        log.log(level, "stopping%s", trouble and f": {trouble}")
        if not self.renewing.is_set():
            notify(self.environ, "STOPPING=1")
        began, patience = time.monotonic(), self.config.server.stop_after
        ending = threading.Thread(target=self._end_deliveries, args=(patience,), daemon=True)
        ending.start()
        self.server.stopping, self.server.accepting = True, False
        while not drain(self.server, began, now := time.monotonic()) and now - began < patience:
            self._turn(0.05)
        self.server.task_dispatcher.shutdown(timeout=1)
        ending.join(max(0.1, patience + 2 - (time.monotonic() - began)))
        with contextlib.suppress(OSError):
            os.unlink(control_path(self.store.path))
        self.store.close()
        if self.renewing.is_set():
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one more waits for the new start
        if self.stopping.is_set() or trouble:
            self.renewing.clear()
        if not self.renewing.is_set():
            self.listener.close()
            log.info("stopped")
        return 1 if trouble else 0

    def _end_deliveries(self, patience: float) -> None:
        """Finishes what is in flight; who waits for anything else is answered then."""
        self.delivery.stop(patience)
        self.store.leave()

    def start_anew(self) -> None:
        """Becomes the new program, which finds the listening socket as systemd would hand it."""
        logging.shutdown()
        os.dup2(self.listener.fileno(), 3)
        os.set_inheritable(3, True)
        environ = {**self.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        environ["LISTEN_FDNAMES"] = self.listener_name
        command = [*program(), *sys.argv[1:]]
        os.execve(command[0], command, environ)


# ── Command line: one small function per command ───────────────────────────────────────────────


# What people see


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _plain(value: Any) -> str:
    """A value for a terminal: one line, nothing that moves the cursor."""
    return CONTROL.sub(" ", as_text(value))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as an aligned table for people."""
    lines = [list(columns)] + [[_plain(row.get(name)) for name in columns] for row in rows]
    widths = [max(_width(line[n]) for line in lines) for n in range(len(columns))]
    return "\n".join(
        "  ".join(
            text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _emit(arguments: argparse.Namespace, found: Any, text: str) -> None:
    print(json.dumps(found, ensure_ascii=False, indent=2) if arguments.json else text)


OVERRIDES = {  # options of the command line -> the configuration's key they override
    "config": "",
    "listen": "server.listen",
    "db": "store.path",
    "itsm_url": "itsm.url",
}
EVENT_COLUMNS = (
    "event",
    "received",
    "ticket",
    "kind",
    "state",
    "attempts",
    "request_id",
    "reason",
)


def command_serve(config: Config, arguments: argparse.Namespace, environ: Environ) -> int:
    """Runs in the foreground until SIGTERM or SIGINT."""
    start_logging(config, environ)
    try:
        remote = find_remote(config.store.path)
        given = {name: getattr(arguments, name) for name in OVERRIDES if hasattr(arguments, name)}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        trial = [*program(), *options, "check", "--configuration"]
        service = Service(config, environ, trial)
    except StoreError as error:
        running = f" (pid {remote.pid})" if remote and "in use" in str(error) else ""
        raise Error(f"cannot start: {error}{running}") from None
    except Error as error:
        raise Error(f"cannot start: {error}") from None
    for number in SIGNALS:
        renews = number == getattr(signal, "SIGHUP", None)
        signal.signal(number, service.renew if renews else service.stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for warning in config.warnings:
        log.warning("%s", warning)
    code = service.run()
    if service.renewing.is_set():
        service.start_anew()
    return code


def command_init(arguments: argparse.Namespace) -> int:
    """Writes the sample configuration; never over a file."""
    path = arguments.file or "hd_itsm.toml"
    try:
        with open(path, "x", encoding="utf-8") as file:
            os.chmod(path, 0o600)  # a token may be written into it
            file.write(sample_config())
    except FileExistsError:
        raise Error(f"{path} exists: it is left as it is; name another file") from None
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror}") from None
    print(f"wrote {path}: fill in itsm.url and itsm.authorization, then run `check`")
    return 0


Finding = tuple[str, str, str]


def _existing(path: str) -> str:
    """The path, or the nearest one above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _check_store(config: Config) -> Finding:
    path = config.store.path
    if find_remote(path) is not None and os.path.exists(path):
        try:
            with Desk(config) as desk:
                desk.call("status")
            return "ok", "file", f"{path}, held by the running service"
        except Error as error:
            return "wrong", "file", str(error)
    if os.path.exists(path):
        try:
            Store(path).close()
        except StoreError as error:
            return "wrong", "file", str(error)
        return "ok", "file", path
    folder = _existing(os.path.dirname(os.path.abspath(path)))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        return "wrong", "file", f"store.path: {folder} is not writable for this user"
    return "ok", "file", f"{path} will be made by the first start"


def _check_disk(config: Config) -> Finding:
    folder = _existing(os.path.dirname(os.path.abspath(config.store.path)))
    free = shutil.disk_usage(folder).free
    word = "ok" if free > 100 << 20 else "wrong"
    return (
        word,
        "disk",
        f"{free >> 20} MiB free in {folder}" + ("" if word == "ok" else ": make room"),
    )


def _check_zone(config: Config) -> Finding:
    now = config.clock.local(time.time())
    return "ok", "zone", f"now is {now.isoformat(timespec='seconds')}; is that your clock?"


LAST_FIXES = {"bottle": "0.13.4", "waitress": "3.0.2", "urllib3": "2.8.0"}  # security


def _check_versions() -> list[Finding]:
    """Our ground: Python, SQLite and the three libraries with their last security fixes."""
    ground = f"hd_itsm {__version__}, Python {sys.version.split()[0]}"
    findings: list[Finding] = [("ok", "version", f"{ground}, SQLite {sqlite3.sqlite_version}")]
    for name, fixed in LAST_FIXES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = getattr(sys.modules[name], "__version__", "")
        numbers = [tuple(map(int, re.findall(r"[0-9]+", one)[:3])) for one in (version, fixed)]
        if not version or numbers[0] >= numbers[1]:
            findings.append(("ok", "version", f"{name} {version or 'of unknown version'}"))
        else:
            words = f"{name} {version} is older than its last security fix {fixed}: upgrade it,"
            findings.append(
                ("look", "version", words + " or see that your distribution mended it")
            )
    return findings


def _check_reach(config: Config) -> list[Finding]:
    """What to type into the helpdesk."""
    host, port = config.server.listen
    if is_loopback(host):
        where = f"only a helpdesk on this machine reaches {host}"
    else:
        name = socket.getfqdn() if host in ("0.0.0.0", "::") else host
        where, host = f"as seen from this machine; open TCP {port} in its firewall", name
    return [
        (
            "ok",
            "hook",
            f"POST http://{host}:{port}{hook.path} -> {', '.join(hook.kinds)} ({where})",
        )
        for hook in config.hooks.values()
    ]


def _certificate(host: str, port: int, config: Config, trust: str | None) -> dict[str, Any]:
    """The server's certificate, verified as the deliveries do, or by trusting `trust` (PEM)."""
    context = ssl.create_default_context(cafile=config.itsm.ca_file or None, cadata=trust)
    if trust is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
    with (
        socket.create_connection((host, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        return dict(tls.getpeercert() or {})


def _check_certificate(config: Config, url: str) -> list[Finding]:
    """Who issued the ITSM's certificate and how long it is good; nothing behind a proxy."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" or config.itsm.proxy:
        return []
    host, port = str(parts.hostname), parts.port or 443
    try:
        found, word = _certificate(host, port, config, None), "ok"
    except ssl.SSLCertVerificationError:
        try:  # shown only; nothing is sent over this connection
            pem = ssl.get_server_certificate((host, port), timeout=10)
            found, word = _certificate(host, port, config, pem), "wrong"
        except (OSError, ValueError):
            return [("wrong", "certificate", f"{host}: not valid, and it cannot be shown")]
    except OSError:
        return []  # the ITSM's own line says it
    issuer = ", ".join(value for part in found.get("issuer", ()) for _, value in part)
    left = ssl.cert_time_to_seconds(found["notAfter"]) - time.time()
    days = f"good for {int(left // 86400)} days" if left > 0 else "expired"
    if word == "wrong" and left > 0:
        days += ": name the authority's certificate in itsm.ca_file"
    elif left < 30 * 86400:
        word, days = "wrong" if left <= 0 else "look", days + ": have it renewed"
    return [(word, "certificate", f"issued by {issuer or 'nobody known'}, {days}")]


def _check_itsm(config: Config) -> list[Finding]:
    """Name, connection, TLS and any HTTP answer to a GET; what its clock says."""
    url = config.itsm.check_url or config.itsm.url
    if not url:
        url = next(str(kind.url.parts[0]) for kind in config.kinds.values() if kind.url.parts)
    kind = replace(next(iter(config.kinds.values())), headers=config.itsm.headers)
    patience = min(10.0, config.itsm.timeout)
    wire, flight = Wire(config), Flight(time.monotonic() + patience)
    request = Request("GET", url, (), b"")
    timer = threading.Timer(patience, flight.end)
    timer.start()
    headers = outgoing_headers(config, kind, request, str(uuid.uuid4()))
    answer = wire.send(flight, request, headers, fresh=True)
    timer.cancel()
    host = urllib.parse.urlsplit(url).netloc
    proxy = urllib.parse.urlsplit(config.itsm.proxy.reveal()).hostname
    via = f" through {proxy}" if proxy else ""
    findings = _check_certificate(config, url)
    if answer.status is None:
        words = f"{host}{via}: {answer.error}: address, firewall, proxy or certificate?"
        return [("wrong", "ITSM", words), *findings]
    if answer.status in (401, 407):
        words = f"{host}{via} answers {answer.status}: look at itsm.authorization"
        return [("wrong", "ITSM", words), *findings]
    words = f"{host}{via} answers (HTTP {answer.status} to a GET; nothing was sent)"
    findings.append(("ok", "ITSM", words))
    with contextlib.suppress(ValueError, TypeError):
        theirs = email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
        offset = theirs.timestamp() - time.time()
        if abs(offset) > 60:
            words = f"the ITSM's clock is {offset:+.0f} s from ours: dates and hours may be off"
            findings.append(("look", "clock", words))
    return findings


def _check_fields(config: Config) -> list[Finding]:
    """Which configured fields no template uses."""
    findings = []
    for hook in config.hooks.values():
        used = {"ticket_id"}
        for name in hook.kinds:
            seen = set[str]()
            while name and name not in seen:
                seen.add(name)
                used |= config.kinds[name].names
                name = config.kinds[name].then
        if unused := [name for name in hook.fields if name not in used]:
            findings.append(("look", "hook", f"{hook.name}: no template uses {', '.join(unused)}"))
    return findings


def _check_log(config: Config) -> Finding:
    path = config.log.file
    if not path:
        return "ok", "log", "to stderr"
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(_existing(os.path.abspath(path)), os.W_OK):
        words = f"log.file: cannot write {path}: it or {folder} is not there or not ours"
        return "wrong", "log", words
    return "ok", "log", path


def _check_places(config: Config, address: str) -> None:
    """For a reload: could a new start have its file, its log and its address?

    `address`: where the service that asks listens. Raises Error with what is in the way.
    """
    for word, _, found in (_check_store(config), _check_log(config)):
        if word == "wrong":
            raise Error(found)
    host, port = config.server.listen
    ours = address.endswith(f":{port}")  # then only the host can be tried
    listen((host, 0 if ours else port)).close()


def command_check(config: Config, arguments: argparse.Namespace, environ: Environ) -> int:
    """Looks at everything that must be right before `serve` can work; sends no ticket."""
    findings: list[Finding] = [("ok", "configuration", config.source or "defaults")]
    if arguments.configuration is not None:
        if arguments.configuration:
            _check_places(config, arguments.configuration)
        _emit(arguments, [], "the configuration is sound")
        return 0
    findings += [("look", "configuration", warning) for warning in config.warnings]
    findings += _check_versions()
    findings += [_check_store(config), _check_disk(config), _check_log(config)]
    findings += [_check_zone(config)]
    findings += _check_itsm(config)
    findings += _check_fields(config)
    findings += _check_reach(config)
    rows = [{"result": word, "what": what, "found": found} for word, what, found in findings]
    _emit(arguments, rows, show_table(rows, ("result", "what", "found")))
    return 1 if any(word == "wrong" for word, _, _ in findings) else 0


def _explain_request(config: Config, reading: Reading, found: dict[str, Any]) -> str:
    """Adds the request that would be sent; what stands against it, or ""."""
    kind = config.kinds[reading.kind]
    request_id = None
    if kind.needs:
        with contextlib.suppress(Error), Desk(config) as desk:
            mapping = desk.call("show", ticket=reading.ticket)["mapping"]
            request_id = mapping and mapping["request_id"]
        if request_id is None:
            request_id = "REQUEST-ID"
            found["note"] = "REQUEST-ID stands for the id that the ITSM will have given the ticket"
    scope = config.scope(reading.fields, 0, reading.ticket, time.time(), request_id, masked=True)
    try:
        found |= preview(config, kind, scope, "a UUID kept with the event")
    except Untranslatable as error:
        return f"cannot be translated: {error}"
    found["result"] = "would be sent"
    return ""


def _explained(found: Mapping[str, Any]) -> str:
    lines = []
    for name, value in found.items():
        if name in ("fields", "headers"):
            lines += [f"{name}:"] + [f"  {key}: {_plain(one)}" for key, one in value.items()]
        elif name == "body":
            lines += ["body:", value]
        else:
            lines.append(f"{name}: {_plain(value) or '-'}")
    return "\n".join(lines)


def command_explain(config: Config, arguments: argparse.Namespace, environ: Environ) -> int:
    """Shows what a webhook would become: repairs, rule, fields and the exact request."""
    name = arguments.hook.strip("/")
    hook = config.hooks.get(name) or next(
        (hook for hook in config.hooks.values() if hook.path.strip("/") == name), None
    )
    if hook is None:
        raise ConfigError(
            f"no hook {name!r}{_hint(name, config.hooks)}: {', '.join(config.hooks)}"
        )
    if arguments.body == "-":
        raw = sys.stdin.buffer.read()
    else:
        try:
            raw = pathlib.Path(arguments.body).read_bytes()
        except OSError as error:
            raise ConfigError(f"{arguments.body}: cannot be read: {error.strerror}") from None
    pairs = [header.partition(":") for header in arguments.header or ()]
    headers = {key.strip().lower(): value.strip() for key, _, value in pairs}
    reading = read_webhook(hook, raw, headers)
    found: dict[str, Any] = {"hook": hook.name, "repaired": reading.repaired}
    if hook.rules:
        found["rule"] = reading.rule or None
    found |= {"kind": reading.kind or None, "ticket": reading.ticket, "fields": reading.fields}
    problem = reading.problem
    if not problem and not reading.kind:
        found["result"] = "ignored (200): no rule of the hook matches"
    elif not problem:
        problem = _explain_request(config, reading, found)
    if problem:
        found["result"] = f"failed (400): {problem}"
    _emit(arguments, found, _explained(found))
    return 1 if problem else 0


def command_status(desk: Desk, arguments: argparse.Namespace) -> int:
    """Counts, the ITSM, and what needs a person; exit 1 where something does."""
    status = desk.call("status")
    status["running"] = desk.remote is not None and desk._store is None
    counts = "  ".join(f"{state} {status['counts'][state]}" for state in STATES)
    itsm = status["itsm"]
    oldest = status["oldest"]
    lines = [
        counts,
        f"service        {'running' if status['running'] else 'not running'}",
        f"ITSM           {itsm['state']}"
        + (f" since {itsm['since']}: {itsm['reason']}" if itsm["reason"] else ""),
        f"oldest waiting {oldest['event']} of {oldest['received']}"
        if oldest
        else "oldest waiting -",
        f"last webhook   {status['last_webhook'] or '-'}",
        f"last delivery  {status['last_delivery'] or '-'}",
    ]
    if status["paused"]:
        lines.append(f"paused         since {status['paused']}: `resume` goes on")
    lines += [f"needs you      {need}" for need in status["needs"]]
    if not status["needs"] and not status["paused"] and itsm["state"] == "up":
        lines.append("all is well")
    _emit(arguments, status, "\n".join(lines))
    return 1 if status["needs"] else 0


def _since(text: str | None) -> float:
    """A point in time given as "2h" (ago) or as a date; epoch seconds, 0 for none."""
    if not text:
        return 0.0
    with contextlib.suppress(ValueError):
        return time.time() - _read_duration(text)
    try:
        return parse_date(text, None).timestamp()
    except ValueError:
        raise ConfigError(f'--since {text!r}: must be like "2h", "7d" or 2026-11-23') from None


def command_events(desk: Desk, arguments: argparse.Namespace) -> int:
    """Lists events, newest first."""
    rows = desk.call(
        "events",
        state=arguments.state,
        ticket=arguments.ticket,
        kind=arguments.kind,
        since=_since(arguments.since),
        limit=arguments.limit,
        whole=arguments.json,
    )
    _emit(arguments, rows, show_table(rows, EVENT_COLUMNS) if rows else "no such events")
    return 0


def _shown_event(event: Mapping[str, Any], brief: bool = False) -> str:
    lines = [
        f"event {event['event']}: {event['state']}"
        + (f" ({_plain(event['reason'])})" if event["reason"] else "")
    ]
    for name in (
        "ticket",
        "kind",
        "request_id",
        "hook",
        "received",
        "settled",
        "sender",
        "repaired",
        "next_try",
    ):
        if event.get(name):
            lines.append(f"  {name:<11}{_plain(event[name])}")
    if not brief:
        lines += [
            f"  field      {name} = {_plain(value)}" for name, value in event["fields"].items()
        ]
        lines += ["  raw body", *("    " + _plain(line) for line in event["raw"].splitlines())]
    for one in event["attempts"]:
        said = f": {_plain(one['answer'])}" if one["answer"] else ""
        lines.append(
            f"  attempt {one['attempt']}  {one['at']}  {one['duration']:.3f} s  {one['outcome']}"
            f" ({_plain(one['reason'])}){said}"
        )
    return "\n".join(lines)


def command_show(desk: Desk, arguments: argparse.Namespace) -> int:
    """Shows everything of an event, or a ticket's timeline."""
    if (arguments.event is None) == (arguments.ticket is None):
        raise ConfigError("show needs an event's number, or --ticket T")
    found = desk.call("show", event=arguments.event, ticket=arguments.ticket)
    if arguments.event is not None:
        _emit(arguments, found, _shown_event(found))
        return 0
    mapping = found["mapping"]
    lines = [
        f"ticket {found['ticket']}: "
        + (
            f"request {mapping['request_id']} since {mapping['since']} (by {mapping['origin']})"
            if mapping
            else "no request id yet"
        )
    ]
    for event in found["events"]:
        lines += ["", _shown_event(event, brief=True)]
    _emit(arguments, found, "\n".join(lines))
    return 0


def command_retry(desk: Desk, arguments: argparse.Namespace) -> int:
    """Puts events back to pending, translated anew."""
    if not arguments.events and arguments.state is None:
        raise ConfigError("name events, or --state failed (ignored, dropped, held)")
    found = desk.call(
        "retry",
        events=arguments.events,
        state=arguments.state,
        kind=arguments.kind,
        reason=arguments.reason,
        since=_since(arguments.since),
        force=arguments.force,
        dry_run=arguments.dry_run,
    )
    word = "would be retried" if found["dry_run"] else "back to pending"
    lines = [
        f"{len(found['retried'])} {word}: {' '.join(map(str, found['retried']))}".rstrip(": ")
    ]
    lines += [f"refused: {one['reason']}" for one in found["refused"]]
    _emit(arguments, found, "\n".join(lines))
    return 1 if found["refused"] else 0


def command_drop(desk: Desk, arguments: argparse.Namespace) -> int:
    """Gives events up."""
    found = desk.call("drop", events=arguments.events, why=arguments.why)
    lines = [f"dropped: {' '.join(map(str, found['dropped']))}"] if found["dropped"] else []
    lines += [f"refused: {one['reason']}" for one in found["refused"]]
    _emit(arguments, found, "\n".join(lines))
    return 1 if found["refused"] else 0


def command_map(desk: Desk, arguments: argparse.Namespace) -> int:
    """Sets a ticket's request id by hand."""
    found = desk.call("map", ticket=arguments.ticket, request_id=arguments.request)
    freed = f"; goes out now: {' '.join(map(str, found['freed']))}" if found["freed"] else ""
    _emit(arguments, found, f"ticket {found['ticket']} is request {found['request_id']}{freed}")
    return 0


def _rows_of(path: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file, with or without a header line."""
    names: Sequence[str] = columns
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.reader(file), 1):
                if number == 1 and columns[0] in [cell.strip() for cell in cells]:
                    names = [cell.strip() for cell in cells]
                elif any(cell.strip() for cell in cells):
                    yield number, dict(zip(names, cells, strict=False))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no CSV in UTF-8: {error}") from None


def _progress(done: int, whole: int) -> None:
    if sys.stderr.isatty() and whole > 1000:
        print(
            f"\r{done} of {whole}", end="" if done < whole else "\n", file=sys.stderr, flush=True
        )


def command_import(desk: Desk, arguments: argparse.Namespace) -> int:
    """Reads mappings from a CSV file; a bad line refuses the whole file."""
    rows, problems, zone = [], [], desk.config.clock.zone
    for number, row in _rows_of(arguments.file, ("ticket_id", "request_id", "timestamp")):
        ticket, request_id = read_id(row.get("ticket_id")), read_id(row.get("request_id"))
        try:
            since = (
                parse_date(row["timestamp"], zone).timestamp()
                if row.get("timestamp")
                else time.time()
            )
            if not ticket or not request_id:
                raise ValueError("ticket_id and request_id must not be empty")
            rows.append([ticket, request_id, since])
        except ValueError as error:
            problems.append(f"{arguments.file} line {number}: {error}")
    if problems:
        raise ConfigError("\n".join(problems[:20]) + "\nnothing was imported")
    for start in range(0, len(rows), 1000):
        desk.call("import", rows=rows[start : start + 1000])
        _progress(min(start + 1000, len(rows)), len(rows))
    _emit(arguments, {"imported": len(rows)}, f"{len(rows)} mappings imported")
    return 0


def command_export(desk: Desk, arguments: argparse.Namespace) -> int:
    """Prints all mappings as CSV (or JSON)."""
    after, found = "", []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not arguments.json:
        writer.writerow(("ticket_id", "request_id", "timestamp"))
    while rows := desk.call("mappings", after=after):
        after = rows[-1]["ticket"]
        if arguments.json:
            found += rows
        else:
            writer.writerows((row["ticket"], row["request_id"], row["since"]) for row in rows)
    if arguments.json:
        _emit(arguments, found, "")
    return 0


def command_backup(desk: Desk, arguments: argparse.Namespace) -> int:
    """Copies the file, consistently, while the service runs or not; replaces an older copy."""
    target, store = os.path.abspath(arguments.file), os.path.abspath(desk.config.store.path)
    if target in (store, f"{store}-wal", control_path(store)) or os.path.isdir(target):
        raise ConfigError(f"{target}: name another file for the copy")
    found = desk.call("backup")
    try:
        shutil.copyfile(found["file"], f"{target}.new")
        os.chmod(f"{target}.new", 0o600)
        with open(f"{target}.new", "rb+") as file:
            os.fsync(file.fileno())
        os.replace(f"{target}.new", target)
    except OSError as error:
        raise Error(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(found["file"])
    _emit(
        arguments, {"file": target, "bytes": found["bytes"]}, f"{found['bytes']} bytes to {target}"
    )
    return 0


CLOSED_WORDS = {  # what helpdesks call a state -> the kind that must have been delivered for it
    "closed": "complete", "resolved": "complete", "solved": "complete", "done": "complete",
    "assigned": "assign", "open": "new",
}  # fmt: skip


def _gaps(config: Config, ticket: Mapping[str, Any], state: str) -> tuple[str, str]:
    """("never_seen", "without_request_id", "half_sent" or "", and what is missing)."""
    events = ticket["events"]
    if not events and not ticket["request_id"]:
        return "never_seen", "no event and no mapping: send its webhook again, or `map` it"
    if not ticket["request_id"]:
        states = ", ".join(f"event {one['event']} {one['state']}" for one in events)
        return "without_request_id", states
    undelivered = [one for one in events if one["state"] in ("pending", "held", "failed")]
    if undelivered:
        listed = (f"event {one['event']} {one['kind']} {one['state']}" for one in undelivered)
        return "half_sent", ", ".join(listed)
    wanted = CLOSED_WORDS.get(state.strip().lower(), state.strip().lower())
    delivered = {one["kind"] for one in events if one["state"] == "delivered"}
    if wanted in config.kinds and not config.kinds[wanted].opens and wanted not in delivered:
        return "half_sent", f"the helpdesk says {state}, but no {wanted} was delivered"
    return "", ""


def command_reconcile(desk: Desk, arguments: argparse.Namespace) -> int:
    """Compares the helpdesk's list of tickets with what is known here; exit 1 for any gap."""
    rows = [
        (read_id(row.get("ticket_id")), row.get("state") or "", number)
        for number, row in _rows_of(arguments.file, ("ticket_id", "state"))
    ]
    if bad := [number for ticket, _, number in rows if not ticket]:
        raise ConfigError(f"{arguments.file} line {bad[0]}: no ticket id in the first column")
    gaps: dict[str, list[dict[str, str]]] = {
        "never_seen": [],
        "without_request_id": [],
        "half_sent": [],
    }
    for start in range(0, len(rows), 500):
        part = rows[start : start + 500]
        found = desk.call("known", tickets=[ticket for ticket, _, _ in part])
        for ticket, (_, state, _) in zip(found, part, strict=True):
            name, missing = _gaps(desk.config, ticket, state)
            if name:
                gaps[name].append({"ticket": ticket["ticket"], "missing": missing})
        _progress(min(start + 500, len(rows)), len(rows))
    lines = [f"{len(rows)} tickets compared"]
    for name, found in gaps.items():
        lines.append(f"{name.replace('_', ' ')}: {len(found)}")
        lines += [f"  {_plain(one['ticket'])}: {_plain(one['missing'])}" for one in found]
    _emit(arguments, {"checked": len(rows), **gaps}, "\n".join(lines))
    return 1 if any(gaps.values()) else 0


def command_forget(desk: Desk, arguments: argparse.Namespace) -> int:
    """Removes a ticket's texts (personal data); mapping, numbers and states stay."""
    found = desk.call("forget", ticket=arguments.ticket)
    text = f"ticket {arguments.ticket}: the texts of {found['forgotten']} events are removed"
    if found["left"]:
        text += (
            f"; not yet settled, so left: {' '.join(map(str, found['left']))} (`drop` them first)"
        )
    _emit(arguments, found, text)
    return 1 if found["left"] else 0


def command_pause(desk: Desk, arguments: argparse.Namespace) -> int:
    """Stops deliveries; webhooks are still taken."""
    found = desk.call("pause")
    _emit(arguments, found, f"paused since {found['paused']}: webhooks are taken, nothing is sent")
    return 0


def command_resume(desk: Desk, arguments: argparse.Namespace) -> int:
    """Lets deliveries go on."""
    _emit(arguments, desk.call("resume"), "deliveries go on")
    return 0


# The demo: the whole life of tickets against a practice ITSM


class PracticeItsm:
    """A small ITSM on loopback that can be switched off and that refuses one ticket at first."""

    def __init__(self) -> None:
        self.requests: dict[str, list[str]] = {}  # request id -> what was asked, in order
        self.refuses = "no such user: newcomer"
        self.up = True
        practice = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = practice.take(body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Says nothing on its own."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"

    def take(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer to one request."""
        if not self.up:
            return 503, {"error": "maintenance"}
        if self.refuses and body.get("req_user_id") == "newcomer":
            return 400, {"error": self.refuses}
        if body["code"] == "000":
            request_id = f"R-{len(self.requests) + 1:04d}"
            self.requests[request_id] = [f"registered: {body['title']}"]
            return 200, {"result": {"request_id": request_id}}
        what = {
            "020": f"assigned to {body.get('rcv_user_id')}",
            "030": f"completed after {body.get('work_qty')} h",
        }
        self.requests[body["request_id"]].append(what[body["code"]])
        return 200, {"result": {}}

    def close(self) -> None:
        """Ends the server."""
        self.server.shutdown()
        self.server.server_close()


class _Demo:
    """The steps of the demo, with what they print."""

    def __init__(self, service: Service, itsm: PracticeItsm) -> None:
        self.service, self.itsm = service, itsm
        self.http = urllib3.PoolManager(retries=False)

    def say(self, text: str) -> None:
        """Prints a step."""
        print(text, flush=True)

    def post(self, hook: str, **fields: str) -> str:
        """Posts a webhook as the helpdesk would; its event number."""
        answer = self.http.request("POST", f"{self.service.url}/{hook}", json=fields)
        number = answer.headers["HD-ITSM-Event"]
        self.say(
            f"  POST /{hook:<9} ticket {fields['ticket_id']} -> {answer.status}, event {number}"
        )
        return number

    def until(self, what: Callable[[], bool]) -> None:
        """Waits until `what` holds. Raises Error after 10 seconds."""
        deadline = time.monotonic() + 10
        while not what():
            if time.monotonic() > deadline:
                raise Error("the demo got stuck: please report this with what was printed")
            time.sleep(0.02)

    def all_settled(self) -> bool:
        """Whether nothing waits any more."""
        return not self.counts()["pending"]

    def counts(self) -> collections.Counter[str]:
        """How many events are in each state."""
        return self.service.store.counts

    def run(self) -> None:
        """The story."""
        writers = {"4182": "jimin.park", "4183": "dohyun.lee", "4184": "newcomer"}
        titles = {
            "4182": "3층 복합기 용지 걸림",
            "4183": "VPN 접속 불가",
            "4184": "새 노트북 요청",
        }
        self.say("1. Three tickets are created; ticket 4183 is assigned as well.")
        numbers = {
            ticket: self.post(
                "itsm_new",
                ticket_id=ticket,
                writer=writers[ticket],
                category="OA기기",
                subject=titles[ticket],
                contents="...",
            )
            for ticket in writers
        }
        self.post("itsm_ass", ticket_id="4183", technician="dohyun.lee")
        self.until(self.all_settled)
        self.say(f"   The ITSM refused ticket 4184: {self.itsm.refuses}.")
        self.say("2. The ITSM goes down. The helpdesk notices nothing:")
        self.itsm.up = False
        opened = (datetime.now(UTC) - timedelta(hours=5)).isoformat()
        self.post("itsm_ass", ticket_id="4182", technician="sora.kim")
        self.post("itsm_com", ticket_id="4183", date=opened)
        self.post("itsm_ass", ticket_id="4184", technician="sora.kim")
        time.sleep(1)
        counts = self.counts()
        self.say(
            f"   {counts['pending']} events wait, {counts['held']} held for the id of ticket 4184."
        )
        self.say("3. The ITSM is back; what waited goes out by itself, in order.")
        self.itsm.up = True
        self.until(self.all_settled)
        self.say("4. Somebody adds the user in the ITSM; the refused event is sent again: retry.")
        self.itsm.refuses = ""
        verb_retry(self.service.config, self.service.store, {"events": [numbers["4184"]]})
        self.service.delivery.wake()
        self.until(lambda: self.counts()["delivered"] == 7)
        self.say("5. What the ITSM has on record now:")
        for request_id, steps in self.itsm.requests.items():
            self.say(f"   {request_id}: " + "; ".join(steps))
        self.say("Seven webhooks, seven requests; none lost, none doubled.")


def command_demo(arguments: argparse.Namespace, environ: Environ) -> int:
    """Shows the life of three tickets; needs nothing, leaves nothing behind."""
    logging.basicConfig(level=logging.CRITICAL, force=True)
    itsm = PracticeItsm()
    with tempfile.TemporaryDirectory(prefix="hd_itsm-demo-") as folder:
        overrides = {
            "itsm.url": itsm.url,
            "server.listen": "127.0.0.1:0",
            "store.path": os.path.join(folder, "demo.db"),
        }
        config = load_config("", overrides, {})
        quick = replace(config.retry, first=0.3, max=1.0, probe=0.5)
        service = Service(replace(config, retry=quick), {})
        runner = threading.Thread(target=service.run, daemon=True)
        runner.start()
        try:
            _Demo(service, itsm).run()
        finally:
            service.stop()
            runner.join(10)
            itsm.close()
    return 0


Add = Callable[..., argparse.ArgumentParser]


def _look_arguments(add: Add, choice: Callable[[argparse.ArgumentParser], None]) -> None:
    """The commands that look."""
    check = add("check", "is everything right? Reaches the ITSM without sending a ticket")
    check.add_argument(
        "--configuration",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="only the configuration; with the ADDRESS where the service listens now: also whether"
        " a reload could have its file, log and address",
    )
    explain = add("explain", "what would this webhook become? Sends and stores nothing")
    explain.add_argument("hook", metavar="HOOK", help="the hook's name or path")
    explain.add_argument(
        "body", nargs="?", default="-", metavar="BODY", help="a file, or - for stdin"
    )
    explain.add_argument(
        "--header", action="append", metavar="NAME:VALUE", help="a header of the webhook"
    )
    add("status", "counts, the ITSM, and what needs a person (exit 1)")
    events = add("events", "list events, newest first")
    choice(events)
    events.add_argument("--ticket", metavar="T", help="only events of this ticket")
    events.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")
    show = add("show", "everything of an event, or a ticket's timeline")
    show.add_argument("event", nargs="?", type=int, metavar="EVENT")
    show.add_argument("--ticket", metavar="T", help="a ticket's mapping and events instead")


def _act_arguments(add: Add, choice: Callable[[argparse.ArgumentParser], None]) -> None:
    """The commands that change something."""
    retry = add("retry", "back to pending, translated anew with today's configuration")
    retry.add_argument("events", nargs="*", type=int, metavar="EVENT")
    choice(retry)
    retry.add_argument("--reason", metavar="TEXT", help="only where the reason holds this text")
    retry.add_argument("--dry-run", action="store_true", help="only count")
    retry.add_argument("--force", action="store_true", help="even older than a delivered one")
    drop = add("drop", "give events up; recorded")
    drop.add_argument("events", nargs="+", type=int, metavar="EVENT")
    drop.add_argument(
        "--why", required=True, metavar="TEXT", help="the reason, kept with the event"
    )
    mapping = add("map", "set a ticket's request id by hand; what was held for it goes out")
    mapping.add_argument("ticket", metavar="TICKET")
    mapping.add_argument("request", metavar="REQUEST")
    add("import", "read mappings from CSV").add_argument("file", metavar="FILE.csv")
    add("export", "print all mappings as CSV")
    backup = add("backup", "write a consistent copy of the file, while the service runs or not")
    backup.add_argument("file", metavar="FILE")
    words = "compare the helpdesk's list of tickets (ticket_id, optional state) with what is known"
    add("reconcile", words).add_argument("file", metavar="FILE.csv")
    forget = add("forget", "remove a ticket's texts (personal data); its mapping stays")
    forget.add_argument("ticket", metavar="TICKET")
    add("pause", "stop deliveries; webhooks are still taken")
    add("resume", "let deliveries go on")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--config", metavar="FILE", help="the configuration (TOML)")
    common.add_argument("--listen", metavar="HOST:PORT", help="instead of server.listen")
    common.add_argument("--db", metavar="FILE", help="instead of store.path")
    common.add_argument("--itsm-url", metavar="URL", help="instead of itsm.url")
    data = argparse.ArgumentParser(add_help=False, parents=[common])
    data.add_argument("--json", action="store_true", default=False, help="for programs")
    parser = argparse.ArgumentParser(
        prog="hd_itsm",
        parents=[common],
        description="Carries helpdesk tickets into an ITSM system. Without a command: serve.",
    )
    parser.add_argument("--version", action="version", version=f"hd_itsm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=words, description=words, parents=list(parents) or [data]
        )

    def choice(command: argparse.ArgumentParser) -> None:
        command.add_argument("--state", choices=STATES, help="only events in this state")
        command.add_argument("--kind", help="only events of this kind")
        command.add_argument("--since", metavar="D", help='received since: "2h", "7d", 2026-11-23')

    add("serve", "run in the foreground (the default)", common)
    add("demo", "the life of three tickets against a practice ITSM; needs nothing", common)
    add("init", "write the sample configuration", common).add_argument(
        "file", nargs="?", metavar="FILE"
    )
    _look_arguments(add, choice)
    _act_arguments(add, choice)
    return parser


DESK_COMMANDS: dict[str, Callable[[Desk, argparse.Namespace], int]] = {
    "status": command_status,
    "events": command_events,
    "show": command_show,
    "retry": command_retry,
    "drop": command_drop,
    "map": command_map,
    "import": command_import,
    "export": command_export,
    "backup": command_backup,
    "reconcile": command_reconcile,
    "forget": command_forget,
    "pause": command_pause,
    "resume": command_resume,
}
CONFIG_COMMANDS: dict[str, Callable[[Config, argparse.Namespace, Environ], int]] = {
    "serve": command_serve,
    "check": command_check,
    "explain": command_explain,
}


def run(arguments: argparse.Namespace, environ: Environ) -> int:
    """Carries a command out; its exit code. Raises Error."""
    name = arguments.command or "serve"
    if name == "init":
        return command_init(arguments)
    if name == "demo":
        return command_demo(arguments, environ)
    overrides = {
        key: getattr(arguments, name)
        for name, key in OVERRIDES.items()
        if key and hasattr(arguments, name)
    }
    path = find_config(getattr(arguments, "config", None), environ)
    config = load_config(path, overrides, environ, complete=name in CONFIG_COMMANDS)
    if name in CONFIG_COMMANDS:
        return CONFIG_COMMANDS[name](config, arguments, environ)
    with Desk(config) as desk:
        return DESK_COMMANDS[name](desk, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `hd-itsm`: 0 fine, 1 a person is needed or the world is wrong, 2 usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments, os.environ)
    except ConfigError as error:
        print(f"hd_itsm: {error}", file=sys.stderr)
        return 2
    except Error as error:
        print(f"hd_itsm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
