#!/usr/bin/env python3
"""hd_itsm: carries helpdesk tickets into an ITSM system.

A helpdesk posts a webhook when a ticket is created, assigned or closed. This daemon stores the
webhook in one SQLite file, answers, translates it into the request the ITSM wants and delivers it:
at least once, in order per ticket, through outages of either side. README.md is for the
administrator; this docstring is for whoever reads on.

The life of an event:
  1. The door admits a webhook, and Reading and Fields find in its bytes what its hook names.
  2. Events writes it durably as one event, `pending`; only then does the helpdesk get its 200.
  3. Delivery takes the first event of a ticket's line, Translation renders the ITSM's request.
  4. `decide` says what the ITSM's answer means: delivered, failed, or try again later.
  5. Events records that, keeps ticket -> request id, and lets the ticket's next event go.

The rooms, in the order in which data flows; each uses only the ones above it. Receiving (Door,
Look, Page) and delivering are siblings that meet only in the file.
  Tables         what it does when, as plain rows
  Reading        bytes to an object, repaired where it must be
  Fields         an object to fields: paths, rules, ids, dates
  Translation    fields to a request: templates and filters
  Readers        TOML values to ours, secrets among them
  Options        what may be configured, and what it means
  Configuration  TOML to one frozen object, or all that is wrong with it
  File           the SQLite file: open, migrate, transact, keep time and room
  Records        what goes into the file and comes out of it
  Mappings       ticket to request id, and what else answers brought
  Questions      what is asked of the file about events, tickets and mappings
  Events         intake, line, outcomes, a person's acts: every other statement
  Words          what people read, in English and in Korean
  Status         how it is, for people, monitoring and programs
  Judging        a webhook to what is to be stored, now or when it is retried
  Operations     what an operator asks and does, alike for command line, control and page
  Door           admit, read, store, answer
  Look           style, script and templates of the page
  Page           what a person sees in a browser
  Server         Waitress, bounded; webhooks by the handful
  Wire           one HTTP exchange, with a deadline, for every request we make
  Outcomes       what an answer means
  Look-ups       questions to the ITSM, and what they brought
  Delivery       due event -> request -> outcome; the only threads we start
  Service        the daemon put together; control file, sockets, systemd, reload
  Demo           the life of tickets against a practice ITSM
  Commands       one function per command
  Check          is everything right? The one command that is long
  Help           what is for looking up, from the tables that the program works by
  Command line   the table of commands, the parser, main
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.2", "waitress>=3.0.2", "urllib3>=2.3"]
# ///

from __future__ import annotations

import argparse
import base64
import binascii
import codecs
import collections
import contextlib
import csv
import difflib
import email
import email.utils
import errno
import functools
import getpass
import glob
import hashlib
import hmac
import html
import http.client
import http.server
import importlib.metadata
import importlib.resources
import importlib.resources.abc
import io
import ipaddress
import itertools
import json
import keyword
import logging
import logging.handlers
import marshal
import math
import os
import pathlib
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import unicodedata
import urllib.parse
import uuid
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

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
NO_ID = "without a request id where it should be"  # how an opening's answer was; was it done?

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

# HTTP status -> outcome, and whether the request may have happened all the same; the first row
# that matches, after the rules of `answers`. 400 to 499 are all that no row above names: 409, 422.
# `credential`: everything waits, no ticket is to blame. What no row knows means "later" and may
# have happened: a wrong "failed" needs a person, a wrong "later" time, and who says neither that
# it was done nor that it was not has perhaps done it.
ANSWERS: tuple[tuple[int, int, str, bool], ...] = (
    (200, 299, "delivered", True),
    (300, 399, "later", True),  # forms answer with the way to what they made
    (401, 401, "credential", False),
    (407, 407, "credential", False),
    (403, 405, "later", False),  # the door, not the ticket
    (408, 408, "later", False),
    (410, 410, "later", False),
    (425, 425, "later", False),
    (429, 429, "later", False),
    (400, 499, "failed", False),
    (500, 500, "later", True),  # made first, failed then; so do gateways that lose patience
    (502, 502, "later", True),
    (504, 504, "unclear", True),
    (501, 508, "later", False),  # not now, not here
    (510, 511, "later", False),
    (521, 523, "later", False),  # a gateway that never reached it; 520 and 524 say it did
    (525, 526, "later", False),
)
UNHEARD_OF = ("later", True)  # what no row knows

DATE_FORMATS = (  # RFC 2822 and .NET's; 오전 and 오후 are read as AM and PM before these apply
    "%a, %d %b %Y %H:%M:%S",
    "%a, %d %b %Y %H:%M",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y %H:%M",
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
    "idempotency_key",
)

NEEDS_DATE = ("hours", "minutes")  # of COMPUTED those that a field `date` must be there for

MAX_ID = 200  # characters of a ticket id or request id
MAX_DEPTH = 100  # levels of nesting in a webhook's JSON
MAX_DIGITS = 100  # digits of a number in it
MAX_PART_HEAD = 4096  # bytes of the head of a part of a multipart body; a longer one is no field
MAX_ANSWER = 1 << 20  # bytes read of an ITSM's answer
MAX_WAIT = 30  # seconds a caller may ask for with Prefer: wait
MAX_RETRY_AFTER = 3600.0  # seconds a Retry-After is honoured for, and the farthest due time kept


HELD_AFTER = 60.0  # seconds for which an event may wait for its opening before a person is told
EVIDENCE = 300.0  # seconds for which another ticket's success speaks against a failing one


# ── Reading: bytes to an object ────────────────────────────────────────────────────────────────


class Unreadable(Error):
    """The body yields no JSON object, or no ticket id."""


class Missing:
    """The type of MISSING: nothing is at a path (null is something)."""


MISSING = Missing()
TORN = "\ufffd"  # stands where a body was damaged or cut off; no id may hold it
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]")
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
COMPACT_ASCII = json.JSONEncoder(separators=(",", ":"))  # good in every encoding


# ── Reading · JSON ─────────────────────────────────────────────────────────────────────────────

SUSPECT = re.compile(r"\\u(?:d[89a-f]|0000)", re.IGNORECASE)


def _first_of_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # a requester can type `","ticket_id":"1` into a subject
        for key, value in reversed(pairs):
            members[key] = value
    return members


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


def _too_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    if not isinstance(value, list | dict):
        return False
    elements = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_too_deep(element, left - 1) for element in elements)


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


# ── Reading · decoding: bytes to text ──────────────────────────────────────────────────────────

BODY_HEADERS = ("content-type", "content-length")  # what a body is read by, also at a retry
CHARSET = re.compile(r";\s*charset\s*=\s*\"?([A-Za-z0-9._:-]{1,40})", re.IGNORECASE)
BOUNDARY = re.compile(r";\s*boundary\s*=\s*(?:\"([^\"]+)\"|([^\s;,\"]+))", re.IGNORECASE)
PART_HEAD = re.compile(rb"\r?\n((?:[^\r\n]++\r?\n)++)\r?\n")
# The first line of a multipart body tells its boundary too, where the head of a part follows.
FIRST_LINE = re.compile(rb"\s*+--([!-~](?:[ -~]{0,68}[!-~])?)[ \t]*\r?\n(?=[A-Za-z-]+:)")
# Codecs of Python that no sender means, or that read plain ASCII as something else.
NO_CHARSETS = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined")


class Hints(NamedTuple):
    """What helps to read a body: the keys that the hook names, and what the request declares."""

    known: frozenset[str] = frozenset()
    headers: Mapping[str, str] = MappingProxyType({})  # by their names in lower case
    size: int = 0  # bytes that came
    encoding: str = "cp949"  # what it is read in where it is not Unicode
    lists: bool = False  # whether a list may stand where an object does

    @property
    def charset(self) -> str:
        """The charset of its Content-Type, as Python calls it; "" for none that it knows."""
        name = CHARSET.search(self.headers.get("content-type", ""))
        with contextlib.suppress(LookupError, UnicodeError):
            if name and (codec := codecs.lookup(name[1]).name) not in NO_CHARSETS:
                b"    ".decode(codec, "replace")  # zlib and its like are codecs, but of no text
                return codec
        return ""

    @property
    def boundary(self) -> bytes:
        """The boundary of its Content-Type, b"" for none."""
        match = BOUNDARY.search(self.headers.get("content-type", ""))
        return (match[1] or match[2]).encode("utf-8", "replace") if match else b""

    @property
    def cut(self) -> bool:
        """Whether more bytes were declared than came."""
        length = self.headers.get("content-length", "")
        return re.fullmatch("[0-9]{1,18}", length) is not None and int(length) > self.size


NO_HINTS = Hints()


def decode_body(raw: bytes, hints: Hints = NO_HINTS) -> Iterator[tuple[str, str]]:
    """The texts that `raw` may be, likeliest first, each with its repair ("" for none).

    In Unicode (UTF-8, and what JSON allows beside it), in CP949 or what the hook says instead, in
    the declared charset.
    """
    unicode, readable = json.detect_encoding(raw), False
    for name in (unicode, "" if raw.isascii() else hints.encoding, None):
        charset = name if name is not None else hints.charset
        with contextlib.suppress(UnicodeDecodeError):
            if charset:
                text = raw.decode(charset).removeprefix("\ufeff")
                readable = True
                yield text, charset if charset != unicode else ""
    if not readable:
        yield raw.decode(unicode, "replace"), "bytes replaced"


def _parts(raw: bytes, boundary: bytes) -> tuple[list[bytes], bool]:
    """The parts of a multipart body, and whether it ends as its boundary says."""
    line = rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*+(?=\r?\n|\Z)"
    _, *pieces = re.split(line, raw)
    closings, parts = pieces[::2], pieces[1::2]
    whole = b"--" in closings
    return parts[: closings.index(b"--")] if whole else parts, whole


def _read_part(part: bytes, hints: Hints) -> tuple[str, str] | None:
    """Name and text of the field in a part, None for a file."""
    head = PART_HEAD.match(part, 0, MAX_PART_HEAD)
    if not head:
        return None
    about = email.message_from_string(next(decode_body(head[1]))[0])
    name = about.get_param("name", "", "content-disposition")
    if not name or not isinstance(name, str) or about.get_filename() is not None:
        return None
    content = part[head.end() :]
    if about["content-transfer-encoding"]:
        about.set_payload(content.decode("ascii", "surrogateescape"))
        content = bytes(about.get_payload(decode=True))
    declared = {"content-type": about["content-type"] or hints.headers.get("content-type", "")}
    return name, next(decode_body(content, hints._replace(headers=declared)))[0]


def multipart_as_form(raw: bytes, hints: Hints) -> str:
    """The fields of a multipart body (RFC 7578) as an urlencoded form; "" where it is none.

    Where the closing boundary is missing, a last field ends in TORN (without a name after a file).
    """
    first_line = FIRST_LINE.match(raw)
    parts, whole = _parts(raw, hints.boundary) if hints.boundary else ([], True)
    if first_line and not parts:
        parts, whole = _parts(raw.lstrip(), first_line[1])
    fields = [_read_part(part, hints) for part in parts]
    if parts and not whole:
        name, text = fields[-1] or ("", "")
        fields[-1] = (name, text + TORN)
    return urllib.parse.urlencode([field for field in fields if field])


# ── Reading · repair: text to an object ────────────────────────────────────────────────────────

# Nothing is repaired that does not begin as JSON or is no form: what XML, multipart, prose or a
# text holds is a requester's, and would choose somebody's ticket.
OBJECT_START = re.compile(r'\s*+\{[\s,]*+"[^"]*+"\s*+:')
ESCAPED_START = re.compile(r"\s*+\{[\s,]*+&(?:quot|#34|#[xX]22);")
FORM_START = re.compile(r"\s*+([\w%$@\[][\w.%+$@\[\]~-]*+)=")
FORM_WORD = re.compile(r"[!-%'-~]*+(?=&[\w.%+$@\[\]~-]+=)")
FORM_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*+")


def _parsed(text: str, strict: bool = False, lists: bool = False) -> Any:
    """The object (with `lists` or the list) in a JSON text; None for a string, or no JSON."""
    with contextlib.suppress(ValueError):
        value = parse_json(text, strict)
        if isinstance(value, list) and lists:
            return value
        if not isinstance(value, dict | str):
            raise Unreadable("the body is JSON, but no object")
        return value if isinstance(value, dict) else None
    return None


def _laid_open(inner: Any) -> dict[str, Any] | str | None:
    """The object in a text that was found within another; the text itself where it is damaged."""
    if not isinstance(inner, str) or not OBJECT_START.match(inner):
        return None
    return _parsed(inner) or inner


def _object_in_string(text: str, hints: Hints) -> dict[str, Any] | str | None:
    if text.lstrip().startswith('"'):
        with contextlib.suppress(ValueError):
            return _laid_open(parse_json(text, strict=False))
    return None


def unescape_html(text: str) -> str:
    """`text` with HTML's character references read; numbers beyond Unicode are U+FFFD."""
    return html.unescape(re.sub(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{7,});?", "\ufffd", text))


def _object_in_html(text: str, hints: Hints) -> dict[str, Any] | str | None:
    return _laid_open(unescape_html(text)) if ESCAPED_START.match(text) else None


def _cut_form(text: str, known: frozenset[str]) -> list[tuple[str, str]]:
    """The known fields of a form whose masks were filled in without percent-encoding.

    A word ends where a field follows; a text is taken as it stands, up to the next known field.
    """
    keys = "|".join(map(re.escape, known))
    starts: dict[str, re.Match[str]] = {}
    for start in re.finditer(rf"(?:^|&)({keys})=", text) if keys else ():
        starts.setdefault(start[1], start)
    ends = [*(start.start() for start in starts.values()), len(text)][1:]
    fields = []
    for (name, start), end in zip(starts.items(), ends, strict=True):
        word = FORM_WORD.match(text, start.end(), end)
        fields.append((name, word[0] if word else text[start.end() : end]))
    return fields


def _form_fields(text: str, hints: Hints) -> list[tuple[str, str]]:
    encoded = text.strip()
    if not FORM_ENCODED.fullmatch(encoded):
        return _cut_form(text.lstrip(), hints.known)
    for charset in filter(None, ("utf-8", "cp949", hints.charset)):
        with contextlib.suppress(UnicodeDecodeError):
            return urllib.parse.parse_qsl(encoded, True, encoding=charset, errors="strict")
    return urllib.parse.parse_qsl(encoded, keep_blank_values=True)


def _object_in_form(text: str, hints: Hints) -> dict[str, Any] | str | None:
    """The fields of an urlencoded form, or the JSON object that one of them holds."""
    start = FORM_START.match(text)
    fields = _form_fields(text, hints) if start else []
    if hints.cut and fields:
        fields[-1] = (fields[-1][0], fields[-1][1] + TORN)
    whole = not fields or not fields[-1][1].endswith(TORN)
    if start and whole and hints.known.isdisjoint(name for name, _ in fields):
        # Never where the form itself names a known key, or did so before it was cut: the JSON
        # may be what a requester typed.
        for _, value in fields or [("", text[start.end() :])]:
            if (inner := _laid_open(value)) is not None:
                return inner
    return _clean(_first_of_repeated(fields)) if fields else None


# ── Reading · repair of a template that did not stay JSON ──────────────────────────────────────

SPACE = re.compile(r"[\s,]*+")
SURPLUS = re.compile(r"[\s,}\]]*+\Z")
KEY = re.compile(r'"((?:[^"\\]++|\\.)*+)"\s*+:\s*+', re.DOTALL)
TORN_KEY = re.compile(r'"[^"{}\[\]]*+(?:"\s*+(?::\s*+)?)?\Z')
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
TORN_STRING = re.compile(
    r'("(?:[^"\\]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+)(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z'
)
BARE = re.compile(r'[^"{}\[\],]++')
JSON_BARE = re.compile(
    r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null|NaN|-?Infinity"
)
VALUE_END = re.compile(r"\s*+(?:[,}\]]|\Z)")
CLOSERS = {"{": "}", "[": "]"}


def _bare(text: str, torn: bool) -> str:
    """A value without quotes as JSON."""
    text = text.strip()
    return text if JSON_BARE.fullmatch(text) and not torn else json.dumps(text + TORN * torn)


def _ends_as_template(text: str) -> bool:
    """Whether the last of `text` is a closing quote and what closes the object."""
    value = text.rstrip(" \t\r\n,}]")
    return value.endswith('"') and "}" in text[len(value) :]


class _Template:
    """A text that begins as a JSON object, rewritten as JSON; ValueError where it cannot be.

    Values get their quotes, commas too many go, open brackets are closed, what the end cuts off
    ends in TORN. Strings are JSON's. What follows the object is refused.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.opened: list[str] = []  # the closers that are still to come
        self.key = ""  # whose value comes next
        self.seen: set[str] = set()  # keys up to here
        self.out: list[str] = []

    def as_json(self) -> str:
        """The whole object."""
        at = 0
        while (at := next(SPACE.finditer(self.text, at)).end()) < len(self.text):
            at = self._close(at) if self.text[at] in "}]" else self._element(at)
        return "".join((*self.out, *reversed(self.opened)))

    def _close(self, at: int) -> int:
        rest = VALUE_END if len(self.opened) > 1 else SURPLUS
        if self.opened.pop() != self.text[at] or not rest.match(self.text, at + 1):
            raise ValueError
        self.out.append(self.text[at])
        return at + 1 if self.opened else len(self.text)

    def _element(self, at: int) -> int:
        """One member of an object, or element of a list, up to the first one within it."""
        key = ""
        if self.opened and self.opened[-1] == "}":
            if TORN_KEY.match(self.text, at):
                return len(self.text)
            member = KEY.match(self.text, at)
            if not member:
                raise ValueError
            self.key, at = member[1], member.end()
            self.seen.add(self.key)
            key = f'"{self.key}":'
        comma = "," if self.out and self.out[-1] not in CLOSERS else ""
        value, end = self.text[at], at
        if value in CLOSERS:
            self.opened.append(CLOSERS[value])
            end += 1
        elif value in ",}]":  # nothing stands where the value was to be
            value = "null"
        else:
            value, end = self._leaf(at)
            if not VALUE_END.match(self.text, end):
                raise ValueError
        self.out += [comma, key, value]
        return end

    def _leaf(self, at: int) -> tuple[str, int]:
        """The text or the value without quotes at `at`, as JSON, and where it ends."""
        if bare := BARE.match(self.text, at):
            return _bare(bare[0], bare.end() == len(self.text)), bare.end()
        if string := STRING.match(self.text, at):
            return string[0], string.end()
        torn = TORN_STRING.match(self.text, at)
        if not torn or _ends_as_template(self.text):
            raise ValueError
        return f'{torn[1]}{TORN}"', len(self.text)


# A value that is followed by a further member, or by the end of the body.
WHOLE_VALUE = re.compile(
    r'("[^"]*+"|[^"{}\[\],]++)(?P<closers>[\s}\]]*+)'
    r"(?:(?P<comma>,)(?P<openers>[\s,{\[]*+)"
    r'(?:"(?P<key>[^"\\]*+)"\s*+:|(?:"[^"{}\[\]]*+(?:"\s*+)?)?\Z)|\Z)'
)


def _seam(quoted: bool, last: bool, not_keys: Iterable[str]) -> re.Pattern[str]:
    """What may stand between a text and the next known key, read backwards: linear in time.

    That is the closing quote, punctuation, and members whose keys are not in `not_keys`.
    """
    opens, closes = r"[\s\[{]*+", r"[\s,\]}]*+"
    between = f"{opens},{closes}"
    avoided = "".join(f'(?!{re.escape(key[::-1])}")' for key in sorted(not_keys))
    value = r'(?:"[^"\\]*+"|(?:[^"\\,{}\[\]:]|:(?!\s*+"))*+)'
    key = rf'{opens}:\s*+"{avoided}[^"\\]*+"'
    member = rf"{value}(?:{between}{value})*(?:{key})+{between}"
    return re.compile((closes if last else between) + (f'(?:{member})*"' if quoted else ""))


def _goes_on_after_object(text: str) -> bool:
    """Whether more follows a whole object, which is not only what a pasted text reads like."""
    try:
        _, end = LENIENT.raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    rest = text.lstrip()[end:].strip(" \t\r\n,")
    return OBJECT_START.match(rest) is not None or not _ends_as_template(rest)


class _Pasted(_Template):
    """A template into which text was pasted unescaped, cut at the known keys; taken as it stands.

    A text that does not end with its first quote reaches up to the next known key not seen yet,
    less the structure between. In a flat body a key that comes again is a requester's text.
    """

    def __init__(self, text: str, known: frozenset[str]) -> None:
        super().__init__(text)
        self.known = known
        keys = "|".join(map(re.escape, known))
        self.stops = re.compile(rf'"({keys})"\s*+:')
        self.second = re.compile(rf'\}}[\s,]*+\{{\s*+"(?:{keys})"\s*+:')
        self.nested = re.search(rf'"(?:{keys})"\s*+:\s*+[{{\[]', text) is not None
        self.backwards = text[::-1]

    def as_json(self) -> str:
        """The whole object."""
        if not self.known or _goes_on_after_object(self.text):
            raise ValueError
        return super().as_json()

    def _leaf(self, at: int) -> tuple[str, int]:
        if self.opened[-1] == "]":
            return super()._leaf(at)
        quoted = self.text[at] == '"'
        value = WHOLE_VALUE.match(self.text, at)
        if not value or not self._goes_on(value):
            return self._up_to_known_key(at + quoted, quoted)
        inner = json.dumps(value[1][1:-1]) if quoted else _bare(value[1], torn=False)
        return inner, value.end(1)

    def _goes_on(self, value: re.Match[str]) -> bool:
        """Whether what stands behind a value is this template's, and not a requester's text."""
        closes = value["closers"].count("}") + value["closers"].count("]")
        if value["key"] is None:
            return bool(value["comma"]) or closes > 0 or value[1].startswith('"')
        if closes >= len(self.opened):
            return False
        in_list = self.opened[-1 - closes] == "]"
        repeated = value["key"] in self.known and value["key"] in self.seen
        return in_list == ("{" in value["openers"]) and (self.nested or not repeated)

    def _up_to_known_key(self, start: int, quoted: bool) -> tuple[str, int]:
        size, not_keys = len(self.text), self.known - (self.seen if self.nested else set())
        between, at_last = (_seam(quoted, last, not_keys) for last in (False, True))
        seams = (
            between.match(self.backwards, size - stop.start(), size - start)
            for stop in self.stops.finditer(self.text, start)
            if stop[1] not in self.seen
        )
        seam, torn = next(filter(None, seams), None), False
        if not seam:
            seam = at_last.match(self.backwards, 0, size - start)
            torn = not seam or not (quoted or {"}", "]"} & set(seam[0]))
        end = size - seam.end() if seam else size
        text = self.text[start:end]
        # A second object; or the key's true place comes later, and this one was in a text.
        if self.second.search(text) or f'"{self.key}"' in text:
            raise ValueError
        return json.dumps(text + TORN * torn), size if torn else end + quoted


def parse_beginning(text: str) -> Any:
    """The JSON object or list that `text` begins, what the end cuts off in TORN; else MISSING."""
    if text.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError, Unreadable):
            return parse_json(_Template(text).as_json(), strict=False)
    return MISSING


def _rewritten(template: _Template) -> Any:
    if OBJECT_START.match(template.text):
        with contextlib.suppress(ValueError):
            return _parsed(template.as_json())
    return None


# ── Reading · repair: the order ────────────────────────────────────────────────────────────────

Repair = Callable[[str, Hints], Any]

# What is tried on each text that the bytes may be, in this order; the first object wins. A text
# in place of an object is what the further ones go on with. Each is named as the repair.
REPAIRS: tuple[tuple[str, Repair], ...] = (
    ("", lambda text, hints: _parsed(text, True, hints.lists)),
    ("control characters", lambda text, hints: _parsed(text, False, hints.lists)),
    ("JSON within a string", _object_in_string),
    ("HTML escapes", _object_in_html),
    ("form body", _object_in_form),
    ("values without quotes", lambda text, hints: _rewritten(_Template(text))),
    ("cut at the known keys", lambda text, hints: _rewritten(_Pasted(text, hints.known))),
)
CUTTING = ("form body", "cut at the known keys")  # which guess where a text ends


def _why_unreadable(text: str) -> str:
    if text.lstrip().startswith("<"):
        return "the body is XML or HTML: let the helpdesk send JSON or a form"
    if not OBJECT_START.match(text):
        return "the body is neither JSON nor a form"
    if _goes_on_after_object(text):
        return "the body goes on after its JSON object: a webhook is one object"
    return "the body begins as JSON, but is damaged where no key of the hook helps"


def read_body(
    raw: bytes,
    known: frozenset[str],
    headers: Mapping[str, str] = MappingProxyType({}),
    encoding: str = "cp949",
    lists: bool = False,
) -> tuple[Any, str]:
    """The JSON object in a webhook's body and how it was repaired ("" where it was not).

    `known` are the keys that the hook's paths name. Of `headers` the content's type and length
    are hints, and never a reason to refuse. With `lists` a list may stand there. Raises
    Unreadable.
    """
    if not raw.strip():
        raise Unreadable("the body is empty")
    hints = Hints(known, headers, len(raw), encoding, lists)
    form = "" if raw.lstrip()[:1] in (b"{", b"[", b'"') else multipart_as_form(raw, hints)
    texts: Iterable[tuple[str, str]] = [(form, "multipart")] if form else decode_body(raw, hints)
    for name, repair in REPAIRS:
        left = []
        for text, before in texts:
            outcome = repair(text, hints)
            repaired = f"{before}, {name}" if before and name else before or name
            if isinstance(outcome, dict | list):
                return outcome, repaired
            left.append((text, before) if outcome is None else (outcome, repaired))
        texts = left
    raise Unreadable(_why_unreadable(left[0][0]))


# ── Fields: an object to the fields that its hook names ────────────────────────────────────────


# ── Fields · paths and conditions ──────────────────────────────────────────────────────────────

# A mask left in place, as a whole value, counts as missing; {word} and {{7*7}} are texts.
MASK = re.compile(
    r"#[^\W\d]\w*#|##\w+(?:\.\w+)+##"
    r"|\{\{ ?(?:[^\W\d]\w*|[0-9]+\.[^\W\d]\w*)(?:\.\w+)* ?\}\}"
    r"|[#@]\{[^{}]*\}|\{[^\W\d_]\w*(?:\.[^\W\d_]\w*)+\}|%[^\W\d]\w*(?:\.\w+)+%"
)


class Step(NamedTuple):
    """One step: `key` "name", `any`, `where` name=value; `header` and `body` stand alone."""

    does: str
    name: str
    value: str = ""


PATH_STEP = re.compile(
    r'(?:^|\.)(?:"(?P<quoted>[^"]+)"|(?P<any>\*)|(?P<key>[^."\[\]*]+))'
    r"|\[(?P<name>[^\]=]+)=(?P<value>[^\]]*)\]"
)
Path = tuple[Step, ...]


def parse_path(text: str) -> Path:
    """A path: a.b, a.0, a.-1, a[role=assigned].name, a.*.key, "quoted key", "@header:NAME".

    Raises ValueError with what is wrong.
    """
    if text.startswith("@"):
        if text == "@body":
            return (Step("body", ""),)
        match = re.fullmatch(r"@(header|query):\s*([^\s:]+)", text)
        if not match:
            raise ValueError(f"{text!r} must be like @header:NAME, @query:NAME or @body")
        return (Step("header", match[2].lower() if match[1] == "header" else f"?{match[2]}"),)
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


def path_as_text(path: Path) -> str:
    """Where a path leads, for people."""
    return ".".join(step.name for step in path)


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


def _at_step(value: Any, step: Step, named: bool = True) -> Iterable[tuple[Any, Any]]:
    """The elements of `value` that one step of a path means, each with its key or index.

    A text that holds a JSON object or list is looked into, where a step before `named` it: else a
    requester's text could stand for what the helpdesk says elsewhere.
    """
    if named and isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, Unreadable):
            value = parse_json(value)
    if step.does == "key":
        if isinstance(value, dict):
            return ((step.name, value[step.name]),) if step.name in value else ()
        if isinstance(value, list) and re.fullmatch(r"-?[0-9]{1,6}", step.name):
            index = int(step.name)
            return ((index, value[index]),) if -len(value) <= index < len(value) else ()
        return ()
    if not isinstance(value, dict | list):
        return ()
    if step.does == "any":
        return value.items() if isinstance(value, dict) else enumerate(value)
    return [
        (index, element)
        for index, element in enumerate([value] if isinstance(value, dict) else value)
        if isinstance(element, dict)
        and step.name in element
        and as_text(element[step.name]) == step.value
    ]


def locate(value: Any, path: Path) -> list[tuple[tuple[Any, ...], Any]]:
    """Every element of `value` that `path` means, behind the keys and indexes that lead to it."""
    places: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    named = True
    for step in path:
        places = [
            ((*keys, key), element)
            for keys, parent in places
            for key, element in _at_step(parent, step, named)
        ]
        named = step.does != "any"
    return places


Headers = Mapping[str, str]  # lower-case name -> value; "?name" -> a field of the query


class Message(NamedTuple):
    """What paths read: the JSON of a webhook or of an answer, and what came with it."""

    body: Any  # MISSING where it is no JSON
    headers: Headers = MappingProxyType({})
    text: str = ""  # the body of an answer, where it is no JSON

    def elements(self, path: Path) -> list[Any]:
        """Every element that `path` means."""
        name, does = path[0].name, path[0].does
        if does == "header":
            return [self.headers[name]] if name in self.headers else []
        if does == "body":
            return [self.text.strip() if self.body is MISSING else self.body]
        if does == "key" and len(path) == 1 and type(self.body) is dict:  # most paths, at once
            return [self.body[name]] if name in self.body else []
        return [element for _, element in locate(self.body, path)]


def present(value: Any) -> bool:
    """Whether `value` counts as there: no null, nothing empty, no template mask left in place."""
    if isinstance(value, str):
        return value != "" and not MASK.fullmatch(value)
    return value is not MISSING and value is not None and value != [] and value != {}


def first_group(pattern: re.Pattern[str], text: str) -> Any:
    """What the first group of `pattern` is in `text`, MISSING for none or where it is torn."""
    match = pattern.search(text)
    if not match or TORN in text[max(0, match.start(1) - 1) : match.end(1) + 1]:
        return MISSING
    return match[1]


@dataclass(frozen=True, slots=True)
class Field:
    """Where a value is: the first path at which one is present wins."""

    paths: tuple[Path, ...]
    match: re.Pattern[str] | None = None  # its first group is the value

    def read(self, message: Message) -> Any:
        """The value, or MISSING; null or empty only where no path has something."""
        value: Any = MISSING
        for path in self.paths:
            for candidate in self._at(path, message):
                if present(candidate):
                    return candidate
                if value is MISSING and not (isinstance(candidate, str) and candidate):
                    value = candidate
        return value

    def _at(self, path: Path, message: Message) -> Sequence[Any]:
        """All that stands at a path."""
        if self.match is None:
            return message.elements(path)
        groups = [first_group(self.match, as_text(e)) for e in message.elements(path)]
        return [group for group in groups if group is not MISSING]


@dataclass(frozen=True, slots=True)
class Condition:
    """A path and what must be there: any of some texts, patterns, elements of the same message.

    None: present and not empty.
    """

    path: Path
    wanted: tuple[str | re.Pattern[str] | Path | None, ...]

    def holds(self, message: Message) -> bool:
        """Whether an element that the path means is as wanted."""
        return any(self.accepts(element, message) for element in message.elements(self.path))

    def accepts(self, element: Any, message: Message) -> bool:
        """Whether an element of `message` is as wanted."""
        return any(self._is(element, wanted, message) for wanted in self.wanted)

    def _is(self, element: Any, wanted: Any, message: Message) -> bool:
        if wanted is None:
            return present(element)
        if isinstance(wanted, re.Pattern):
            return wanted.search(as_text(element)) is not None
        if isinstance(wanted, tuple):
            return any(as_text(element) == as_text(other) for other in message.elements(wanted))
        return bool(as_text(element) == wanted)


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows where its conditions fit: the kind of a webhook, or what an answer means."""

    result: str
    when: tuple[Condition, ...] = ()
    unless: tuple[Condition, ...] = ()
    statuses: frozenset[int] = frozenset()  # of an answer; empty: any

    def fits(self, message: Message, status: int) -> bool:
        """Whether all of `when` hold, and not all of `unless`."""
        if self.statuses and status not in self.statuses:
            return False
        if self.unless and all(condition.holds(message) for condition in self.unless):
            return False
        return all(condition.holds(message) for condition in self.when)


def met_by(rules: Sequence[Rule], message: Message) -> str:
    """What stands where rules look, for people: where none fits, that is the reason."""
    looked_at = {condition.path: None for rule in rules for condition in rule.when}
    met = []
    for path in [*looked_at][:3]:
        texts = [repr(as_text(element)[:60]) for element in message.elements(path)[:3]]
        met.append(f"{path_as_text(path)} is {' and '.join(texts) or 'not there'}")
    return ", ".join(met)


def first_that_fits(rules: Sequence[Rule], message: Message, status: int = 0) -> int:
    """The number of the rule that decides, from 1; 0 where none fits."""
    for number, rule in enumerate(rules, 1):
        if rule.fits(message, status):
            return number
    return 0


@dataclass(frozen=True, slots=True)
class Hook:
    """An address the helpdesk posts to, with the rules to read it."""

    name: str
    path: str
    fields: Mapping[str, Field]
    rules: tuple[Rule, ...]  # a hook with one kind has one rule, which always fits
    known: frozenset[str]  # keys of its body that its paths name
    headers: tuple[str, ...]  # lower-case names of what its paths read, and BODY_HEADERS
    delivery_id: Field = Field(())
    order: Field = Field(())  # a number or date that grows with a ticket's events
    challenge: Field = Field(())  # what is to be sent back, where a sender tries the address
    each: Path | None = None  # where a list of webhooks is; (): the body is it
    desk: str = ""  # whose tickets they are, where several number theirs alike
    encoding: str = "cp949"  # what a body is read in where it is not Unicode
    access: Any = None  # AccessOptions of its own

    def read_body(self, raw: bytes, headers: Headers) -> tuple[Any, str]:
        """As the function of this name, for what this hook gets."""
        return read_body(raw, self.known, headers, self.encoding, self.each is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of its events."""
        return (*self.fields, *(["desk"] if self.desk else []))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds its events may have."""
        return tuple(dict.fromkeys(rule.result for rule in self.rules))


# ── Fields · ids ───────────────────────────────────────────────────────────────────────────────


def read_id(value: Any) -> str:
    """An id as text, or "" where it is none (null, true, lists, objects, over MAX_ID, control)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = as_text(value).strip(" ")
    return "" if len(text) > MAX_ID or CONTROL.search(text) else text


# What stands where a helpdesk has no ticket: words of programs, and masks (%2e is none).
NO_TICKET = re.compile(
    r"undefined|Undefined|null|NULL|None|NaN|\[object Object\]|(?:[${]|%(?![0-9])|<%).*"
)


def read_ticket(value: Any) -> str:
    """A ticket's id as text, or "" where it is none."""
    text = read_id(value)
    return "" if NO_TICKET.fullmatch(text) or MASK.fullmatch(text) else text


# ── Fields · dates ─────────────────────────────────────────────────────────────────────────────

# A zone behind a date: a word, or an offset that follows the time of day.
ZONE = re.compile(
    r" ?(?:(?:(?<![A-Za-z])|(?<=[AP]M))(UTC|GMT|UT|Z)|(?<=:[0-9]{2})|(?<=[0-9M] )|(?<=[AP]M))"
    r"(?: ?([+-])(0?[0-9]|1[0-4]):?([0-5][0-9])?)?(?: ?\([^()]*\))?\Z",
    re.IGNORECASE,
)
EPOCH = re.compile(r"[0-9]{9,13}(?:\.[0-9]{1,9})?")
DATE_YEARS = range(1990, 2101)  # a moment of any other year is no date, but a number misread


def _zone_behind(text: str) -> tuple[str, tzinfo | None]:
    """`text` without the zone that stands behind it, and that zone."""
    match = ZONE.search(text)
    if not match or not (match[1] or match[2]):
        return text, None
    offset = timedelta(hours=int(match[3] or 0), minutes=int(match[4] or 0))
    return text[: match.start()], timezone(-offset if match[2] == "-" else offset)


def _dates_in(text: str, formats: Sequence[str]) -> Iterator[datetime]:
    """All that `text` may mean, likeliest first."""
    for form in formats:
        with contextlib.suppress(ValueError):  # %Z is read, and what the word means forgotten
            named = re.sub(r"\b(?:UTC|GMT|UT)\b", "Z", text)
            yield datetime.strptime(named, form.replace("%Z", "%z"))
        with contextlib.suppress(ValueError):
            yield datetime.strptime(text, form)
    if not text.isdigit() or len(text) == 8:  # Python takes any digit for the T between
        with contextlib.suppress(ValueError):
            yield datetime.fromisoformat(text)
    for form in DATE_FORMATS:
        with contextlib.suppress(ValueError):
            yield datetime.strptime(text, form)
    if EPOCH.fullmatch(text):
        for unit in (1, 1000):
            with contextlib.suppress(ValueError, OverflowError, OSError):
                yield datetime.fromtimestamp(float(text) / unit, UTC)


def parse_date(value: Any, zone: tzinfo | None, formats: Sequence[str] = ()) -> datetime:
    """The moment `value` names: `formats`, ISO 8601, RFC 2822, .NET, epoch (s or ms).

    From 1990 to 2100, in the zone that stands behind it, else in `zone`. Raises ValueError.
    """
    text = as_text(value).strip()
    plain = re.sub(r"[\u202f\u00a0\s]+", " ", text[:100])
    plain = plain.replace("오전", "AM").replace("오후", "PM")
    bare, behind = _zone_behind(plain)
    for moment in itertools.chain(_dates_in(plain, formats), _dates_in(bare, formats)):
        if moment.year in DATE_YEARS and len(text) <= 100:
            if moment.tzinfo is None:
                named = behind or zone
                moment = moment.astimezone() if named is None else moment.replace(tzinfo=named)
            return moment
    raise ValueError(f"{text[:60]!r} is no date known here")


def read_stamp(value: Any, zone: tzinfo | None) -> float:
    """What grows from one event to the next: a number, or a date's moment. Raises ValueError."""
    text = as_text(value).strip()
    if re.fullmatch(r"-?[0-9]{1,18}(?:\.[0-9]{1,9})?", text):
        return float(text)
    return parse_date(text, zone).timestamp()


# ── Fields · a webhook ─────────────────────────────────────────────────────────────────────────


class Reading(NamedTuple):
    """What a webhook says. `kind` "" with no `problem`: no rule of the hook matched."""

    kind: str
    ticket: str  # with its desk, where the hook has one
    fields: dict[str, Any]
    repaired: str
    problem: str = ""
    rule: int = 0  # the rule that fits, from 1; 0 for none
    delivery_id: str = ""
    stamp: float | None = None  # what `order` says
    met: str = ""  # what stands where the rules look, if none fits
    raw: bytes = b""  # its own part of a body that holds several, as a list


def read_message(hook: Hook, message: Message, repaired: str, zone: tzinfo | None) -> Reading:
    """What a webhook says by the rules of `hook`; a `problem` where it cannot be used."""
    fields = {name: field.read(message) for name, field in hook.fields.items()}
    fields = {name: value for name, value in fields.items() if value is not MISSING}
    number = first_that_fits(hook.rules, message)
    kind = hook.rules[number - 1].result if number else ""
    ticket = read_ticket(fields.get("ticket_id"))
    if repaired.endswith(CUTTING) and re.search('["&]', ticket):
        ticket = ""  # nobody knows how far it reaches
    problem = ""
    if kind and not ticket:
        shown = repr(as_text(fields["ticket_id"])[:60]) if "ticket_id" in fields else "nothing"
        how = f", repaired: {repaired}" if repaired else ""
        problem = f"no ticket id where hook {hook.name} looks for it (found {shown}{how})"
        repaired = ""
    stamp = hook.order.read(message)
    try:
        stamp = read_stamp(stamp, zone) if present(stamp) else None
    except ValueError as error:
        problem, stamp = problem or f"order: {error}, and no number", None
    fields["ticket_id"] = ticket
    if hook.desk:
        fields["desk"] = hook.desk
        ticket = ticket and f"{hook.desk}:{ticket}"
    delivery_id = hook.delivery_id.read(message)
    delivery_id = as_text(delivery_id)[:MAX_ID] if present(delivery_id) else ""
    met = "" if number else met_by(hook.rules, message)
    return Reading(kind, ticket, fields, repaired, problem, number, delivery_id, stamp, met)


MOST_AT_ONCE = 1000  # webhooks in one body


def read_webhooks(
    hook: Hook, raw: bytes, headers: Headers, zone: tzinfo | None = UTC
) -> tuple[Any, list[Reading]]:
    """The body `raw` and what its webhooks say by the rules of `hook`: one, or with `each` many.

    A `problem` where one cannot be used. `zone` is that of dates that name none.
    """
    try:
        body, repaired = hook.read_body(raw, headers)
    except Unreadable as error:
        return {}, [Reading("", "", {}, "", str(error))]
    if hook.each is None:
        return body, [read_message(hook, Message(body, headers), repaired, zone)]
    lists = [body] if isinstance(body, list) else [e for _, e in locate(body, hook.each)]
    if not lists:
        problem = f"no list of webhooks where hook {hook.name} looks for it (each)"
        return body, [Reading("", "", {}, "", problem)]
    elements = lists[0] if isinstance(lists[0], list) else lists
    if not elements:
        return body, [Reading("", "", {}, repaired)]
    if len(elements) > MOST_AT_ONCE:
        problem = f"{len(elements)} webhooks in one body, more than {MOST_AT_ONCE}"
        return body, [Reading("", "", {}, "", problem)]
    readings = []
    for element in elements:
        reading = read_message(hook, Message(element, headers), repaired, zone)
        if not isinstance(element, dict):
            reading = Reading("", "", {}, "", "this element of the list is no object")
        if len(elements) > 1:
            reading = reading._replace(raw=COMPACT.encode([element]).encode())
        readings.append(reading)
    return body, readings


def read_challenge(hook: Hook, raw: bytes, headers: Headers) -> str:
    """What a sender that tries the address wants to have back, "" for a webhook."""
    if not hook.challenge.paths:
        return ""
    body: Any = MISSING
    with contextlib.suppress(Unreadable):
        body, _ = hook.read_body(raw, headers)
    value = hook.challenge.read(Message(body, headers))
    return as_text(value) if present(value) else ""


# ── Translation: fields to an ITSM request ─────────────────────────────────────────────────────


# ── Translation · HTML to plain text ───────────────────────────────────────────────────────────


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


# ── Translation · scope: what placeholders may name ────────────────────────────────────────────


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


def look_up(table: Mapping[str, Any], name: str, value: Any) -> Any:
    """What `table` says for `value`; its "*" row serves what is not listed."""
    text = as_text(value)
    if text in table and text != "*":
        return table[text]
    if "*" not in table:
        raise Untranslatable(f'{text[:60]!r} is not in [tables.{name}], which has no "*" row')
    default = table["*"]
    return default.replace("{}", text) if isinstance(default, str) else default


OMIT = Missing()  # a key or list element that is to be left out


def not_asked(lookup: Any, scope: Any) -> Any:
    """What stands for a look-up's value where nobody is asked; good as a number too."""
    return "0"


class Scope(NamedTuple):
    """What placeholders may name: an event's fields, constants, look-ups, and what is computed.

    `ask` brings the value of a look-up whose placeholders stand in the scope it is given; a filter
    gives it `value`. It raises Untranslatable where there is none.
    """

    fields: Mapping[str, Any]
    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]
    clock: Clock
    event: int
    ticket: str
    received: float
    request_id: str | None
    idempotency_key: str = ""
    lookups: Mapping[str, Any] = MappingProxyType({})  # name -> Lookup
    ask: Callable[[Any, Any], Any] = not_asked  # (Lookup, Scope)

    def get(self, name: str) -> Any:
        """The value of `name`, or MISSING. Raises Untranslatable for a date that is none."""
        if name in COMPUTED:
            return self._computed(name)
        value = self.fields.get(name, self.values.get(name, MISSING))
        if value is MISSING and name in self.lookups:
            return self.ask(self.lookups[name], self)
        return value

    def filtered(self, name: str, value: Any) -> Any:
        """What the table or the look-up `name` makes of a value. Raises Untranslatable."""
        if name in self.tables:
            return look_up(self.tables[name], name, value)
        return self.ask(self.lookups[name], self._replace(fields={**self.fields, "value": value}))

    def _computed(self, name: str) -> Any:
        match name:
            case "request_id":
                return MISSING if self.request_id is None else self.request_id
            case "ticket_id":
                return self.fields.get("ticket_id") or self.ticket
            case "event":
                return self.event
            case "idempotency_key":
                return self.idempotency_key
        received = self.clock.local(self.received)
        match name:
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


# ── Translation · filters ──────────────────────────────────────────────────────────────────────


def _filter_number(value: Any, argument: str, scope: Scope) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = as_text(value).strip()
    if re.fullmatch(r"-?[0-9]{1,100}", text):
        return int(text)
    if re.fullmatch(r"-?[0-9]{1,50}\.[0-9]{1,50}", text):
        return float(text)
    raise Untranslatable(f"{text[:60]!r} is no number")


def _moment(value: Any, scope: Scope) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        return parse_date(value, scope.clock.zone, scope.clock.formats)
    except ValueError as error:
        raise Untranslatable(f"{error}; see [time] date_formats") from None


def _filter_date(value: Any, argument: str, scope: Scope) -> str:
    moment = _moment(value, scope)
    try:
        if not isinstance(value, datetime):  # else `utc` chose the zone
            moment = scope.clock.local(moment)
        return moment.strftime(argument)
    except (ValueError, OverflowError):
        raise Untranslatable(f"{as_text(value)[:60]!r} is too far away for a calendar") from None


NOT_IN_XML = re.compile("[^\\t\\n\\r\\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
DEFAULTS = ("or", "or_null", "or_omit")  # filters for what is missing, null or empty

FILTERS: dict[str, Callable[[Any, str, Scope], Any]] = {
    "text": lambda value, argument, scope: as_text(value),
    "number": _filter_number,
    "html": lambda value, argument, scope: html_to_text(as_text(value)),
    "max": lambda value, argument, scope: as_text(value)[: int(argument)],
    "bytes": lambda value, argument, scope: (
        as_text(value).encode("utf-8", "replace")[: int(argument)].decode("utf-8", "ignore")
    ),
    "utc": lambda value, argument, scope: _moment(value, scope).astimezone(UTC),
    "date": _filter_date,
    "epoch": lambda value, argument, scope: int(_moment(value, scope).timestamp()),
    "epoch_ms": lambda value, argument, scope: round(_moment(value, scope).timestamp() * 1000),
    "line": lambda value, argument, scope: " ".join(as_text(value).split()),
    "bmp": lambda value, argument, scope: re.sub("[^\0-\uffff]", "", as_text(value)),
    "xml": lambda value, argument, scope: html.escape(NOT_IN_XML.sub("", as_text(value))),
    "to_html": lambda value, argument, scope: "<br>".join(
        html.escape(as_text(value), quote=False).splitlines()
    ),
    "or": lambda value, argument, scope: value if present(value) else argument,
    "or_null": lambda value, argument, scope: value if present(value) else None,
    "or_omit": lambda value, argument, scope: value if present(value) else OMIT,
}


# ── Translation · templates ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Placeholder:
    """{name|filter|filter:argument}"""

    name: str
    filters: tuple[tuple[str, str], ...]

    def render(self, scope: Scope) -> Any:
        """Its value in `scope`, with its JSON type. Raises Untranslatable."""
        value = scope.get(self.name)
        for name, argument in self.filters:
            if value is MISSING and name not in DEFAULTS:
                continue
            if name in FILTERS:
                value = FILTERS[name](value, argument, scope)
            else:
                value = scope.filtered(name, value)
        if isinstance(value, datetime):
            value = value.isoformat(timespec="seconds")
        if value is MISSING:
            missing = "date" if self.name in NEEDS_DATE else self.name
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
        if len(self.parts) == 1:
            only = self.parts[0]
            return only if isinstance(only, str) else only.render(scope)
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
        return {
            key: value
            for key, element in tree.items()
            if (value := render_tree(element, scope)) is not OMIT
        }
    if isinstance(tree, list):
        elements = [render_tree(element, scope) for element in tree]
        return [value for value in elements if value is not OMIT]
    return tree


def templates_in(tree: Tree) -> Iterator[Template]:
    """Every template of a tree."""
    if isinstance(tree, Template):
        yield tree
    elif isinstance(tree, dict | list):
        for element in tree.values() if isinstance(tree, dict) else tree:
            yield from templates_in(element)


def placeholders_in(tree: Tree) -> Iterator[Placeholder]:
    """Every placeholder of a tree."""
    for template in templates_in(tree):
        yield from (part for part in template.parts if isinstance(part, Placeholder))


# ── Translation · requests ─────────────────────────────────────────────────────────────────────


class Hidden(Protocol):
    """A secret: nothing but `reveal` gives its text."""

    def reveal(self) -> str:
        """The text."""


TELLTALE = re.compile(
    r"(?i)authorization|cookie|token|secret|passw|(?:api|subscription|access).?key|credential"
    r"|session"
)
MOST_SENT = 16384  # characters that are kept of a request's body
SECRET_IN_BODY = re.compile(  # what stands beside a name that tells it, in JSON or in a form
    r"""(?i)((?:passw|secret|token|api.?key)\w*(?:"\s*:\s*"|=))(?:[^"\\&]|\\.)+"""
)
IN_SUCH_NAMES = ("passw", "secret", "token", "key")  # each of its names holds one of them


@functools.lru_cache(maxsize=256)
def tells_secret(name: str) -> bool:
    """Whether a header's name says that nobody may see its value."""
    return bool(TELLTALE.search(name))


def without_secrets(body: str) -> str:
    """A body without what stands in it as a password, token or key."""
    folded = body.casefold()  # most hold none, and the pattern takes long to find that out
    if not any(word in folded for word in IN_SUCH_NAMES):
        return body
    return SECRET_IN_BODY.sub(r"\1***", body)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, ready to be sent. It does not print: its headers may be secrets."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    secret: frozenset[str] = frozenset()  # names of the headers that nobody may see

    def as_json(self) -> dict[str, Any]:
        """It as people may see it."""
        return {
            "method": self.method,
            "url": self.url,
            "headers": {
                name: "***" if name in self.secret or tells_secret(name) else value
                for name, value in self.headers.items()
            },
            "body": next(decode_body(self.body))[0] if self.body else "",
        }

    def as_kept(self, hide: Callable[[str], str]) -> str:
        """The same in JSON, bounded; `hide` masks the secrets in a text."""
        shown = self.as_json()
        texts = (shown["body"], self.url, *shown["headers"].values())
        whole = "\0".join(text.replace("\0", "\ufffd") for text in texts)
        body, url, *values = hide(whole).split("\0")  # at once: each look at a secret costs
        body = without_secrets(body)
        if len(body) > MOST_SENT:
            body = f"{body[:MOST_SENT]} (and {len(body) - MOST_SENT} more characters)"
        kept = {
            "method": self.method,
            "url": url[:2000],
            "headers": {n: value[:500] for n, value in zip(shown["headers"], values, strict=True)},
            "body": body,
        }
        return COMPACT.encode(kept)


def _refuse_dots(path: str) -> None:
    for segment in re.split(r"[/\\]", path):
        segment = segment.partition(";")[0]  # what follows are parameters to some
        if segment in (".", ".."):
            raise Untranslatable(f"{segment!r} as a segment of the URL would lead elsewhere")


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
    path = urllib.parse.urlsplit(url).path
    if "." in path or "%" in path:  # else no segment can be dots
        for way in (path, urllib.parse.unquote(path)):  # split before it is decoded, or after
            _refuse_dots(way)
    return url


@dataclass(frozen=True)
class RequestTemplate:
    """A request as it is configured, before an event fills it in.

    `body`: a JSON tree, a text, or MISSING for none; `form` takes its place where there is one.
    """

    method: str
    url: Template
    headers: Mapping[str, Template | Hidden] = field(default_factory=dict)
    body: Tree = MISSING
    form: Mapping[str, Tree] = field(default_factory=dict)
    encoding: str = "utf-8"

    @functools.cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Every placeholder of it."""
        tree = [self.url, dict(self.headers), self.body, dict(self.form)]
        return tuple(placeholders_in(tree))

    @functools.cached_property
    def hidden(self) -> frozenset[str]:
        """Names of its headers that are secrets."""
        headers = self.headers.items()
        return frozenset(name for name, value in headers if not isinstance(value, Template))

    def parts(self, scope: Scope) -> tuple[str, dict[str, str], Any]:
        """URL, headers and content in `scope`, the content not yet encoded.

        Raises Untranslatable.
        """
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            if not isinstance(value, Template):
                headers[name] = value.reveal()
                continue
            rendered = value.render(scope)
            if rendered is OMIT:
                continue
            text = as_text(rendered)
            if CONTROL.search(text):
                raise Untranslatable(f"header {name} would hold control characters")
            headers[name] = text.encode().decode("latin-1")
        content: Any = MISSING
        if self.method not in ("GET", "HEAD"):
            content = render_tree(dict(self.form) or self.body, scope)
        content = MISSING if content is OMIT else content
        return _url(self.url, scope), headers, content

    def render(self, scope: Scope) -> Request:
        """The request in `scope`. Raises Untranslatable."""
        url, headers, content = self.parts(scope)
        body, content_type = b"", ""
        if content is not MISSING and self.form:
            pairs = {
                name: COMPACT.encode(value) if isinstance(value, dict | list) else as_text(value)
                for name, value in content.items()
            }
            body = urllib.parse.urlencode(pairs, encoding=self.encoding, errors="replace").encode()
            content_type = "application/x-www-form-urlencoded"
        elif isinstance(content, str):
            body, content_type = content.encode(self.encoding, "replace"), "text/plain"
        elif content is not MISSING:
            encoder = COMPACT if self.encoding == "utf-8" else COMPACT_ASCII
            body, content_type = encoder.encode(content).encode(), "application/json"
        if content_type and "content-type" not in map(str.lower, headers):
            charset = "" if self.form else f"; charset={self.encoding}"
            headers["Content-Type"] = content_type + charset
        return Request(self.method, url, headers, body, self.hidden)


@dataclass(frozen=True, eq=False)
class Lookup:
    """A question to the ITSM, and where the value it is asked for stands in the answer."""

    name: str
    request: RequestTemplate
    answers: tuple[Rule, ...]
    value: Field
    when: tuple[tuple[Path, tuple[Any, ...]], ...]  # what a hit must hold; Templates among it
    otherwise: Any = MISSING  # the value where there is none
    keep_for: float | Field = 0.0  # seconds a value is good for, or where the answer says it

    @functools.cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Every placeholder of it."""
        conditions = placeholders_in([list(wanted) for _, wanted in self.when])
        return (*self.request.placeholders, *conditions)

    @functools.cached_property
    def of_a_value(self) -> bool:
        """Whether it is asked for something; what others bring is a login, and nobody's to see."""
        return any(part.name == "value" for part in self.placeholders)

    def is_login(self, scope: Scope) -> bool:
        """Whether nothing of the event is in it: then no ticket is to blame for what it brings."""
        names = {part.name for part in self.placeholders}
        others = [scope.lookups[name] for name in names if name in scope.lookups]
        return names.isdisjoint((*COMPUTED, *scope.fields)) and all(
            other.is_login(scope) for other in others
        )

    def conditions(self, scope: Scope) -> tuple[Condition, ...]:
        """What a hit must hold, in `scope`. Raises Untranslatable."""
        return tuple(
            Condition(
                path,
                tuple(part.text(scope) if isinstance(part, Template) else part for part in wanted),
            )
            for path, wanted in self.when
        )


SUBJECTS = ("subject", "title", "summary")
AS_SUBJECT = re.compile(r"(?i)(?:.*[._])?(?:subject|title|summary|short_?description|name)")


@dataclass(frozen=True)
class Kind:
    """What an event of this kind becomes at the ITSM, and how its answer is read."""

    name: str
    opens: bool
    request: RequestTemplate
    answers: tuple[Rule, ...]
    request_id: Field
    again: str  # "ignore" or "send"
    when_unclear: str  # "retry", "hold" or "find"
    find: Lookup | None
    find_after: float  # seconds to wait before asking: a create given up on may still happen
    verify: Lookup | None  # asked after a 2xx: whether it was done indeed
    then: str
    keep: Mapping[str, Field]  # further values of its answer
    kept_names: frozenset[str] = frozenset()  # what any kind keeps
    elsewhere: bool = False  # whether it goes to another host than the ITSM's
    asks: tuple[Lookup, ...] = ()  # those that its request needs, and those that they need

    @functools.cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Every placeholder in its requests."""
        asked = [*self.asks, *filter(None, (self.find, self.verify))]
        further = (part for lookup in asked for part in lookup.placeholders)
        return (*self.request.placeholders, *further)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The fields that make a difference to its request."""
        names = {part.name for part in self.placeholders}
        return frozenset(names | {"date"} if names & {*NEEDS_DATE} else names)

    @functools.cached_property
    def subjects(self) -> tuple[str, ...]:
        """Fields that say what people call the ticket: by their name, or sent as such to open."""
        sent = self.request.form or self.request.body
        members = sent.items() if self.opens and isinstance(sent, dict) else ()
        leaves = [leaf for key, leaf in members if AS_SUBJECT.fullmatch(key)]
        return (*SUBJECTS, *(part.name for leaf in leaves for part in placeholders_in(leaf)))

    @functools.cached_property
    def unknown_id(self) -> str:
        """What stands for a request id that is not known yet: a number where it must be one."""
        numbers = (part for part in self.placeholders if ("number", "") in part.filters)
        return "0" if any(part.name == "request_id" for part in numbers) else "REQUEST-ID"

    @functools.cached_property
    def waits_for_id(self) -> bool:
        """Whether it cannot be rendered without what the answer to an opening brings."""
        asked = (part for lookup in self.asks for part in lookup.placeholders)
        brought = {"request_id", *self.kept_names}
        return any(
            part.name in brought and not any(name in DEFAULTS for name, _ in part.filters)
            for part in (*self.request.placeholders, *asked)
        )


# ── Readers: TOML values to ours, secrets among them ───────────────────────────────────────────


# ── Readers · secrets ──────────────────────────────────────────────────────────────────────────


class ConfigError(Error):
    """All problems of a configuration, one per line."""


class Mistakes(ValueError):
    """What is wrong with a value, one by one; `rest` is what can be used of it all the same."""

    def __init__(self, problems: Sequence[str], rest: Any) -> None:
        super().__init__("; ".join(problems))
        self.problems, self.rest = problems, rest


Address = tuple[str, int]  # host and port
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@functools.lru_cache(maxsize=1024)
def read_ip(text: str) -> Ip:
    """The address that `text` names, as addresses are compared here. Raises ValueError.

    IPv4 that is mapped into IPv6 is IPv4; brackets, a port and a scope (%eth0) say nothing.
    """
    match = re.fullmatch(r"\[([^]]*)\](?::[0-9]{1,5})?|([^:]*):[0-9]{1,5}", text)
    bare = (match[1] or match[2] or "") if match else text
    address = ipaddress.ip_address(bare.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def read_network(text: str) -> Network:
    """The network that `text` names, in the form of `read_ip`. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - 96))


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, is this machine's loopback."""
    if re.fullmatch(r"localhost(?::[0-9]{1,5})?", host, re.IGNORECASE):
        return True
    with contextlib.suppress(ValueError):
        return read_ip(host).is_loopback
    return False


Environ = Mapping[str, str]
T = TypeVar("T")


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
        """Reads the file if it changed; whether the secret did. Raises OSError, UnicodeError.

        An empty file changes nothing: it may be on its way to a new secret, and anybody could
        sign with an empty one.
        """
        if self.source not in ("file", "credential"):
            return False
        stat = os.stat(self.name)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp == self._stamp:
            return False
        text = pathlib.Path(self.name).read_text(encoding="utf-8-sig")
        text = text.replace("\0", "").strip()  # a power cut may leave zeros: a key of them is none
        self._stamp = stamp
        if not text and self._value:
            log.warning("%s is empty: the secret that it held before goes on", self.name)
            return False
        before, self._value = self._value, text
        return text != before  # a file that is only written anew is no new secret

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


SIGNED_PARTS = ("body", "timestamp", "id")


@functools.lru_cache(maxsize=64)
def _spellings(secret: str) -> tuple[str, ...]:
    """A secret as others may say it back: whole, without its scheme, or a proxy's login."""
    login = urllib.parse.unquote(secret.partition("://")[2].rpartition("@")[0])
    encoded = base64.b64encode(login.encode()).decode()
    quoted = (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    found = [secret, secret.rpartition(" ")[2], encoded, login.partition(":")[2], *quoted]
    found += [urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)]
    return tuple(dict.fromkeys(one for one in found if len(one) > 3))


# ── Readers · a value each ─────────────────────────────────────────────────────────────────────


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a table { name = value }")
    return value


def _each(rows: Iterable[tuple[str, Any]], read: Callable[[Any], T]) -> dict[str, T]:
    """Every row as `read` makes it. Raises Mistakes with all that are wrong."""
    problems, values = [], {}
    for name, row in rows:
        try:
            values[name] = read(row)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise Mistakes(problems, values)
    return values


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
    return tuple(map(read_network, _texts(value)))


def _read_formats(value: Any) -> tuple[str, ...]:
    for text in _texts(value):
        if "%" not in text:
            raise ValueError(f'{text!r} is no date format: write it like "%d.%m.%Y %H:%M"')
        try:
            datetime.strptime("", text)  # the format is looked at before the date
        except ValueError as error:
            if "directive" in str(error) or "stray" in str(error):
                raise ValueError(f"{text!r} can read no date: {error}") from None
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


HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SIGNED_FOR = 300.0  # seconds a signature with a timestamp holds, where max_age says nothing


def _read_header_name(value: Any) -> str:
    text = _read_text(value)
    if text and not HEADER_NAME.fullmatch(text):
        raise ValueError("is no header name")
    return text


def _read_headers(value: Any) -> dict[str, Template | Secret]:
    seen: set[str] = set()

    def read(row: tuple[str, Any]) -> Template | Secret:
        name, text = row
        if not HEADER_NAME.fullmatch(name):
            raise ValueError("is no header name")
        if name.lower() in ("content-length", "transfer-encoding", "host", "connection"):
            raise ValueError("is set by the program itself")
        if name.lower() in seen:
            raise ValueError("stands there twice: header names are one whatever their case")
        seen.add(name.lower())
        return _read_secret(text) if isinstance(text, dict) else parse_template(as_text(text))

    return _each(((row[0], row) for row in _table(value).items()), read)


def _read_pattern(value: Any, flags: int = 0) -> re.Pattern[str]:
    try:
        pattern = re.compile(_read_text(value), flags)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise ValueError(f'{value!r} needs a group in ( ): "id=(\\\\d+)"')
    return pattern


def _one_of(value: Any, *allowed: str) -> str:
    if value not in allowed:
        hint = _hint(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"must be one of {', '.join(allowed)}{hint}")
    return str(value)


def _read_match(value: Any) -> re.Pattern[str]:
    return _read_pattern(value, re.IGNORECASE)  # SHA1= is sha1=


def _read_signed(value: Any) -> tuple[str, ...]:
    parts = tuple(re.split(r"\{(\w+)\}", _read_text(value)))
    for name in parts[1::2]:
        if name not in SIGNED_PARTS:
            hint = _hint(name, SIGNED_PARTS)
            raise ValueError(f"no {{{name}}}{hint}: {{body}}, {{timestamp}} and {{id}}")
    if "body" not in parts[1::2]:
        raise ValueError("must hold {body}: else the same signature fits any webhook")
    return parts


def _read_max_age(value: Any) -> float | None:
    return None if value is None else _read_duration(value)


def _read_algorithm(value: Any) -> str:
    return _one_of(value, "sha1", "sha256", "sha512")


def _read_digest_form(value: Any) -> str:
    return _one_of(value, "hex", "base64")


def _read_key_form(value: Any) -> str:
    return _one_of(value, "text", "base64")


def _wanted(value: Any) -> str | re.Pattern[str] | Path | None:
    if isinstance(value, dict | list):
        raise ValueError('a condition is a text, a number, a list of them, "*" or "~PATTERN"')
    text = as_text(value)
    if text.startswith("~"):
        try:
            return re.compile(text[1:])
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
    if text.startswith("@body:"):
        return parse_path(text.removeprefix("@body:"))
    return None if text == "*" else text


def _read_conditions(value: Any) -> tuple[Condition, ...]:
    conditions = []
    for where, wanted in _table(value).items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if not values:
            raise ValueError(f"{where!r}: an empty list can never fit")
        conditions.append(Condition(parse_path(where), tuple(_wanted(text) for text in values)))
    return tuple(conditions)


def _read_hits(value: Any) -> tuple[tuple[Path, tuple[Any, ...]], ...]:
    """Conditions whose texts are templates."""
    return tuple(
        (
            condition.path,
            tuple(
                parse_template(wanted) if isinstance(wanted, str) else wanted
                for wanted in condition.wanted
            ),
        )
        for condition in _read_conditions(value)
    )


def _only(row: Mapping[str, Any], *known: str) -> None:
    for key in row:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{_hint(key, known)}: {', '.join(known)}")


def _read_statuses(value: Any) -> frozenset[int]:
    statuses: set[int] = set()
    for status in value if isinstance(value, list) else [value]:
        text = as_text(status)
        if re.fullmatch("[1-5]xx", text):
            statuses |= {*range(int(text[0]) * 100, int(text[0]) * 100 + 100)}
        elif re.fullmatch("[1-5][0-9]{2}", text):
            statuses.add(int(text))
        else:
            raise ValueError(f'{text!r} is no HTTP status: 404, "4xx" or a list of them')
    if not statuses:
        raise ValueError("status: an empty list can never fit")
    return frozenset(statuses)


MEANS = ("delivered", "failed", "later", "credential", "unclear")


def _read_rules(value: Any, what: str, *further: str) -> tuple[Rule, ...]:
    """Rules whose key `what` says what follows."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of {{ {what}, when }}")

    def read(row: Any) -> Rule:
        _only(_table(row), what, "when", "unless", *further)
        if not isinstance(row.get(what), str) or not row[what]:
            raise ValueError(f"{what} is missing: what follows where it fits?")
        if what == "means" and row[what] not in MEANS:
            raise ValueError(f"means {row[what]!r}{_hint(row[what], MEANS)}: {', '.join(MEANS)}")
        return Rule(
            row[what],
            _read_conditions(row.get("when", {})),
            _read_conditions(row.get("unless", {})),
            _read_statuses(row["status"]) if "status" in row else frozenset(),
        )

    rows = ((f"rule {number}", row) for number, row in enumerate(value, 1))
    try:
        return tuple(_each(rows, read).values())
    except Mistakes as mistakes:
        raise Mistakes(mistakes.problems, tuple(mistakes.rest.values())) from None


def _read_kind_rules(value: Any) -> tuple[Rule, ...]:
    return _read_rules(value, "kind")


def _read_answers(value: Any) -> tuple[Rule, ...]:
    return _read_rules(value, "means", "status")


def _read_level(value: Any) -> str:
    return _one_of(value, "DEBUG", "INFO", "WARNING", "ERROR")


def local_zone(name: str) -> tzinfo | None:
    """The zone of `name`; None is the machine's own. Raises ValueError."""
    if name == "local":
        return None
    if match := re.fullmatch(r"([+-])([0-9]{2}):?([0-9]{2})", name):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        if offset >= timedelta(days=1) or int(match[3]) > 59:
            raise ValueError("must be an offset within a day, like +09:00")
        return timezone(-offset if match[1] == "-" else offset)
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone data for {name!r}: write an offset like +09:00") from error


def _read_zone(value: Any) -> tzinfo | None:
    try:
        return local_zone(_read_text(value))
    except ValueError as error:
        hint = _hint(value, zoneinfo.available_timezones()) if isinstance(value, str) else ""
        raise ValueError(f"{error}{hint}") from None


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
        _only(value, "path", "match")
        with_match = value.get("match", "")
        match = _read_pattern(with_match) if with_match else None
        value = value.get("path", "")
    paths = [value] if isinstance(value, str) else _texts(value)
    return Field(tuple(parse_path(path) for path in paths), match)


def _read_value(value: Any) -> Field | None:
    return None if value == "" else _read_field(value)


def _read_each(value: Any) -> Path | None:
    path = parse_path(_read_text(value)) if value else None
    if path and path[0].does in ("header", "body"):
        raise ValueError('is a path in the body: "events", or "*" where the body is the list')
    return path and path[:-1] if path and path[-1].does == "any" else path


def _read_desk(value: Any) -> str:
    text = _read_text(value)
    if not re.fullmatch(r"[\w.-]{0,40}", text):
        raise ValueError("must be a short name (letters, digits, . _ -)")
    return text


DELIVERY_ID = ("@header:webhook-id", "@header:Idempotency-Key")


def _read_delivery_id(value: Any) -> Field:
    """A header's name or a path, before the usual headers; "none" for not even these."""
    text = _read_text(value)
    if text == "none":
        return Field(())
    named = [text] if text else []
    if HEADER_NAME.fullmatch(text):
        named = [f"@header:{text}", text]
    return Field(tuple(map(parse_path, (*named, *DELIVERY_ID))))


def _read_keep_for(value: Any) -> float | Field:
    if isinstance(value, str) and not re.match("[0-9]", value):
        return _read_field(value)
    return _read_duration(value)


def _read_otherwise(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("must be text, a number, true or false")
    return MISSING if value is None else value


def _read_authorization(value: Any) -> Secret | Template:
    if isinstance(value, str) and re.search(r"\{\w", value):
        return parse_template(value)
    return _read_secret(value)


def _read_fields(value: Any) -> dict[str, Field]:
    def read(row: tuple[str, Any]) -> Field:
        if not re.fullmatch(r"[^\W\d]\w*", row[0]):
            raise ValueError("is no field name (letters, digits, _)")
        return _read_field(row[1])

    return _each(((row[0], row) for row in _table(value).items()), read)


def _read_method(value: Any) -> str:
    return _one_of(value, "POST", "PUT", "PATCH", "GET", "DELETE")


def _read_again(value: Any) -> str:
    return _one_of(value, "ignore", "send")


def _read_unclear(value: Any) -> str:
    return _one_of(value, "retry", "hold", "find")


def _read_template(value: Any) -> Tree:
    """The templates of a tree, all that are wrong in one list; what is right is read anyway."""
    problems: list[str] = []

    def read(part: Any) -> Tree:
        if isinstance(part, dict):
            return {key: read(element) for key, element in part.items()}
        if isinstance(part, list):
            return [read(element) for element in part]
        try:
            return parse_tree(part)
        except ValueError as error:
            problems.append(f"{part!r} {error}")
            return ""

    tree = read(value)
    if problems:
        raise Mistakes(problems, tree)
    return tree


def _read_body(value: Any) -> Tree:
    return MISSING if value is None else _read_template(value)


def _read_form(value: Any) -> Mapping[str, Tree]:
    return dict(_read_template(_table(value)))


def _read_encoding(value: Any) -> str:
    try:
        return codecs.lookup(_read_text(value)).name
    except LookupError:
        raise ValueError(f'no encoding {value!r}: write it like "utf-8" or "cp949"') from None


# ── Options: what may be configured, and what it means ─────────────────────────────────────────


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
    public_url: str = option(
        _read_url, "", "where people reach the page, for alerts", '"https://desk.example.com/"'
    )


@dataclass(frozen=True)
class Signature:
    """access.hmac: a helpdesk's signature, HMAC over what `signed` says, in a header."""

    secret: tuple[Secret, ...] = option(_read_secrets, "", "the key; a list: all are valid")
    header: str = option(_read_header_name, "X-Hub-Signature", "where the signature is")
    match: re.Pattern[str] = option(
        _read_match,
        "(?:sha[0-9]+=)?(.+)",  # with or without what X-Hub-Signature begins with
        "its group is the signature; each match in the header is tried",
    )
    algorithm: str = option(_read_algorithm, "sha1", "sha1, sha256 or sha512")
    encoding: str = option(_read_digest_form, "hex", "of the signature: hex or base64")
    key: str = option(_read_key_form, "text", "base64 where the secret is (after whsec_)")
    signed: tuple[str, ...] = option(
        _read_signed, "{body}", "what is signed: any text of {body}, {timestamp}, {id}"
    )
    timestamp_header: str = option(_read_header_name, "", "where a signed timestamp is")
    timestamp_match: re.Pattern[str] = option(_read_match, "(.+)", "its group is the timestamp")
    max_age: float | None = option(
        _read_max_age, None, "how old a signed timestamp may be: 300 s; 0 is for ever"
    )
    id_header: str = option(_read_header_name, "", "where a signed id is")

    @property
    def names(self) -> tuple[str, ...]:
        """What is signed."""
        return self.signed[1::2]

    @property
    def limit(self) -> float:
        """How old a signature may be, in seconds; 0: no limit (GLPI signs its queue's time)."""
        if "timestamp" not in self.names:
            return 0.0
        return SIGNED_FOR if self.max_age is None else self.max_age

    def key_in(self, secret: Secret) -> bytes:
        """The key that a secret holds; b"" where it holds none."""
        text = secret.reveal()
        if self.key == "text":
            return text.encode()
        try:
            return base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except ValueError:
            return b""

    def senseless(self) -> Iterator[tuple[str, str]]:
        """Keys that mean nothing together, each with what is wrong."""
        if not self.header:
            yield "header", "must name the header that has the signature"
        for name, header in (("timestamp", self.timestamp_header), ("id", self.id_header)):
            if name in self.names and not header:
                yield f"{name}_header", f"is missing: signed names {{{name}}}"
            if header and name not in self.names:
                yield f"{name}_header", f"means nothing: signed holds no {{{name}}}"
        if self.max_age is not None and "timestamp" not in self.names:
            yield "max_age", "means nothing: signed holds no {timestamp}"


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
    token_header: str = option(
        _read_header_name, "", "a header of its own for the token", '"X-Api-Key"'
    )
    hmac: Any = option(  # a Signature, or None
        _table,
        {},
        "the helpdesk's signature over the body",
        '{ secret = "...", header = "X-Hub-Signature", algorithm = "sha1", encoding = "hex",'
        ' match = "sha1=(.+)", signed = "{body}" }',
    )


@dataclass(frozen=True)
class ItsmOptions:
    """Where tickets go."""

    url: str = option(_read_url, "", "where requests go", '"https://itsm.example.com/api"')
    authorization: Secret | Template = option(
        _read_authorization,
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
    request_id: Field = option(
        _read_field, "result.request_id", "where the request id is in the answer"
    )
    answers: tuple[Rule, ...] = option(
        _read_answers,
        [],
        "rules for what its answers mean, where the table of `help answers` is wrong",
        '[ { means = "failed", status = 200, when = { "*" = "~(?i)permission denied" } } ]',
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
    rules: tuple[Rule, ...] = option(
        _read_kind_rules, [], "{ kind, when, unless } in order; the first that fits decides"
    )
    each: Path | None = option(
        _read_each, "", 'where a list is whose elements are webhooks; "*": the body is it'
    )
    desk: str = option(
        _read_desk, "", "whose tickets these are, where two helpdesks number theirs alike"
    )
    delivery_id: Field = option(
        _read_delivery_id,
        "",
        'header or path that names a delivery, for duplicates; "none": not even webhook-id',
    )
    order: Field | None = option(
        _read_value, "", "a number or date that grows: what is older than the latest is ignored"
    )
    encoding: str = option(_read_encoding, "cp949", "of a body that is not Unicode")
    challenge: Field | None = option(
        _read_value, "", "its text is the answer where a sender tries the address"
    )
    access: Mapping[str, Any] = option(_table, {}, "takes the place of [access] for this hook")


@dataclass(frozen=True)
class RequestOptions:
    """What every request is described by."""

    method: str = option(_read_method, "POST", "HTTP method")
    url: str = option(_read_template_url, "", "where it goes; empty: itsm.url")
    headers: Mapping[str, Template | Secret] = option(_read_headers, {}, "further headers")
    body: Tree = option(_read_body, None, "what to send: a table is JSON, a text goes as it is")
    form: Mapping[str, Tree] = option(
        _read_form, {}, "form fields instead of a body; a table among them goes as JSON"
    )
    encoding: str = option(_read_encoding, "utf-8", "of what is sent")
    answers: tuple[Rule, ...] = option(_read_answers, [], "come before itsm.answers")


@dataclass(frozen=True)
class KindOptions(RequestOptions):
    """[kinds.NAME]: what an event becomes at the ITSM."""

    opens: bool = option(_read_flag, False, "its answer brings the ticket's request id")
    request_id: Field | None = option(_read_value, "", "where the id is; empty: itsm.request_id")
    again: str = option(_read_again, "ignore", 'a second opening: "ignore" or "send"')
    unclear: str = option(
        _read_unclear,
        "retry",
        'nobody can say whether it happened: "retry", "hold" for a person, or "find"',
    )
    find: str = option(_read_text, "", 'the look-up that is asked where unclear = "find"')
    find_after: float = option(
        _read_duration, "60s", "it is asked no sooner: a create given up on may still happen"
    )
    verify: str = option(
        _read_text, "", "a look-up asked after a 2xx; what its `when` demands must hold"
    )
    then: str = option(_read_text, "", "a further kind delivered right after this one")
    keep: Mapping[str, Field] = option(
        _read_fields, {}, "further values of the answer, for later templates: name = path"
    )


@dataclass(frozen=True)
class LookupOptions(RequestOptions):
    """[lookups.NAME]: a question to the ITSM."""

    method: str = option(_read_method, "GET", "HTTP method")
    value: Field | None = option(_read_value, "", "where what is asked for is in the answer")
    when: tuple[tuple[Path, tuple[Any, ...]], ...] = option(
        _read_hits, {}, "what a hit must hold, where the question may bring others too"
    )
    or_: Any = option(_read_otherwise, None, "the value where there is none; else the event fails")
    keep_for: float | Field = option(
        _read_keep_for, 0, "how long a value is good for, or the path of its seconds in the answer"
    )


def options_of(table: type) -> dict[str, Option]:
    """The keys of a table of options."""
    return {one.name.rstrip("_"): one.metadata["option"] for one in fields(table)}


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


# ── Configuration: TOML to one frozen object, or all that is wrong with it ─────────────────────


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
    tables: Mapping[str, Mapping[str, Any]]
    hooks: Mapping[str, Hook]
    kinds: Mapping[str, Kind]
    lookups: Mapping[str, Lookup]
    knock: RequestTemplate  # asks whether the ITSM is there
    source: str  # the file it came from, "" for none
    warnings: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()

    @functools.cached_property
    def clock(self) -> Clock:
        """What translation must know of time."""
        return Clock(self.time.zone, self.time.due_days, self.time.date_formats)

    @property
    def credential(self) -> Secret:
        """What [itsm] authorization shows to the ITSM; an empty one where it is a template."""
        login = self.itsm.authorization
        return login if isinstance(login, Secret) else Secret("text", "")

    def access_to(self, hook: Hook) -> AccessOptions:
        """Who may post to a hook."""
        return hook.access or self.access

    @functools.cached_property
    def desks(self) -> frozenset[str]:
        """The desks that hooks name."""
        return frozenset(hook.desk for hook in self.hooks.values() if hook.desk)

    def accesses(self) -> Iterator[tuple[str, AccessOptions]]:
        """Every table of access, with its key."""
        yield "access", self.access
        yield from (
            (f"hooks.{hook.name}.access", hook.access)
            for hook in self.hooks.values()
            if hook.access
        )

    def mask(self, text: str) -> str:
        """`text` without the secrets that somebody else put into it."""
        for secret in self.secrets:
            for part in _spellings(secret.reveal()):
                text = text.replace(part, "***")
        return text

    @functools.cached_property
    def _has_secret_values(self) -> bool:
        return any(isinstance(value, Secret) for value in self.values.values())

    @functools.cached_property
    def _stand_ins(self) -> Mapping[str, str]:
        return {name: name.upper() for kind in self.kinds.values() for name in kind.keep}

    def scope(
        self,
        fields: Mapping[str, Any],
        event: int,
        ticket: str,
        received: float,
        request_id: str | None,
        idempotency_key: str = "",
        masked: bool = False,
        kept: Mapping[str, Any] | None = None,
    ) -> Scope:
        """What the placeholders of one event may name; `masked` shows no secret.

        `kept`: what answers brought for its ticket; None: their names stand for them.
        """
        values = self.values
        if kept is None:
            kept = self._stand_ins
        if self._has_secret_values:
            values = {
                name: ("***" if masked else value.reveal()) if isinstance(value, Secret) else value
                for name, value in values.items()
            }
        return Scope(
            {**kept, **fields} if kept else fields,
            values,
            self.tables,
            self.clock,
            event,
            ticket,
            received,
            request_id,
            idempotency_key,
            self.lookups,
        )


# ── Configuration · the loader ─────────────────────────────────────────────────────────────────


def _secrets_in(value: Any) -> Iterator[Secret]:
    if isinstance(value, dict | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            if isinstance(one, Secret):
                yield one
    elif isinstance(value, Secret):
        yield value


def admits(access: AccessOptions) -> bool:
    """Whether any means of admission is configured."""
    return bool(access.token or access.networks or access.hmac)


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL (or of its template): to whom a request goes."""
    parts = urllib.parse.urlsplit(url.partition("{")[0])
    try:
        port = parts.port
    except ValueError:
        port = -1
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        port or {"https": 443, "http": 80}.get(parts.scheme),
    )


def at_home(url: str, itsm: ItsmOptions) -> bool:
    """Whether a request goes to the host of itsm.url ("": there), and shares its secrets."""
    return not url or _origin(url) == _origin(itsm.url)


def merge_headers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """All headers; of one name, whatever its case (RFC 9110 5.1), the last layer's counts."""
    merged = {name.lower(): (name, value) for layer in layers for name, value in layer.items()}
    return dict(merged.values())


OUR_HEADERS = {
    "Accept": parse_template("application/json"),
    "Accept-Encoding": parse_template("identity"),
    "User-Agent": parse_template(f"hd_itsm/{__version__}"),
}
IDEMPOTENCY = {"Idempotency-Key": parse_template("{idempotency_key}")}


def _as_given(value: Any) -> str:
    """A wrong value, to stand behind what it should be; "" for one that says nothing."""
    if isinstance(value, dict) or (isinstance(value, str) and value == ""):
        return ""
    text = as_text(value) if isinstance(value, bool) else repr(value)
    return f", not {re.sub('//.*@', '//***@', text)[:60]}"


NO_BASE64 = 'is no base64, as key = "base64" says'


class _Loader:
    """Reads one configuration and collects what is wrong with it."""

    def __init__(self, tables: dict[str, Any], environ: Environ) -> None:
        self.given, self.environ = tables, environ
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.secrets: list[tuple[str, Secret]] = []

    def wrong(self, key: str, what: str) -> None:
        """Notes a problem under its key, once."""
        if (problem := f"{key}: {what}") not in self.problems:
            self.problems.append(problem)

    def told(self, key: str) -> bool:
        """Whether something is wrong at this key or below it, so that nothing more is told."""
        return any(text.startswith((f"{key}:", f"{key}.")) for text in self.problems)

    def read(self, key: str, how: Callable[[Any], T], given: Any, default: Any) -> T:
        """What `how` makes of a value; of the default where the value is wrong."""
        try:
            value = how(given)
        except Mistakes as mistakes:
            for problem in mistakes.problems:
                self.wrong(key, problem)
            value = mistakes.rest
        except ValueError as error:
            hidden = how in (_read_secret, _read_secrets, _read_authorization)
            shown = "" if hidden else _as_given(given)
            self.wrong(key, f"{error}{shown}")
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
                f"{key}_" if keyword.iskeyword(key) else key: self.read(
                    f"{name}.{key}", row.read, given.get(key, row.default), row.default
                )
                for key, row in rows.items()
            }
        )

    def load(self, source: str) -> Config:
        """All of it; look at `problems` before use."""
        allowed = [*SECTIONS, "values", "tables", "hooks", "kinds", "lookups"]
        for name in self.given:
            if name not in allowed:
                self.wrong(name, f"unknown table{_hint(name, allowed)}")
        sections: dict[str, Any] = {
            name: self.table(name, options, self.given.get(name, {}))
            for name, options in SECTIONS.items()
            if name != "access"
        }
        sections["access"] = self.access("access", self.given.get("access", {}))
        itsm: ItsmOptions = sections["itsm"]
        lookups = {
            name: self.lookup(name, row, itsm) for name, row in self.named("lookups", {}).items()
        }
        before = self.asked_by(placeholders_in(itsm.authorization), lookups)
        lookups |= {
            name: replace(lookup, request=self.logged_in(lookup.request, itsm))
            for name, lookup in lookups.items()
            if lookup not in before  # else it would need itself
        }
        for lookup in lookups.values():
            self.asked_by(lookup.placeholders, lookups)  # a circle, though nothing asks it
        kinds = {
            name: self.kind(name, row, itsm, lookups)
            for name, row in self.named("kinds", KINDS).items()
        }
        kept = frozenset(name for kind in kinds.values() for name in kind.keep)
        kinds = {name: replace(kind, kept_names=kept) for name, kind in kinds.items()}
        config = Config(
            **sections,
            hooks={name: self.hook(name, row) for name, row in self.named("hooks", HOOKS).items()},
            kinds=kinds,
            lookups=lookups,
            knock=self.knock(itsm, kinds.values()),
            tables=self.tables(),
            values=self.values(),
            source=source,
        )
        self.agree(config)
        self.senseless(config)
        return replace(
            config,
            warnings=tuple(self.warnings),
            secrets=tuple(secret for _, secret in self.secrets if secret),
        )

    def access(self, name: str, given: Any) -> AccessOptions:
        """Who may post, from its table."""
        row, key = self.table(name, AccessOptions, given), f"{name}.hmac"
        rule = self.table(key, Signature, row.hmac) if row.hmac else None
        if row.hmac and "secret" not in row.hmac and not self.told(key):
            why = "is missing: without one no signature can be told from another"
            self.wrong(f"{key}.secret", why)
        for secret in rule.secret if rule else ():
            if secret.source == "text" and rule and not rule.key_in(secret):
                self.wrong(f"{key}.secret", NO_BASE64)
        for part, problem in rule.senseless() if rule else ():
            if not self.told(f"{key}.{part}") and not self.told(f"{key}.signed"):
                self.wrong(f"{key}.{part}", problem)
        return replace(row, hmac=rule if rule and rule.secret else None)

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
        rules = row.rules or ((Rule(row.kind),) if row.kind else ())
        if bool(row.kind) == bool(row.rules) and not self.told(f"hooks.{name}"):
            self.wrong(f"hooks.{name}", "needs either kind or rules")
        told = self.told(f"hooks.{name}.fields") or not isinstance(given, dict)
        if "ticket_id" not in row.fields and not told:
            self.wrong(f"hooks.{name}.fields", "ticket_id is missing: where is the ticket's id?")
        nowhere = Field(())
        places = [row.delivery_id, row.order or nowhere, row.challenge or nowhere]
        paths = [path for place in (*row.fields.values(), *places) for path in place.paths]
        for rule in rules:
            for condition in (*rule.when, *rule.unless):
                paths.append(condition.path)
                paths += [wanted for wanted in condition.wanted if isinstance(wanted, tuple)]
        steps = [step for path in paths for step in path]
        return Hook(
            name=name,
            path=row.path or f"/{name}",
            fields=row.fields,
            rules=rules,
            known=frozenset(step.name for step in steps if step.does in ("key", "where")),
            headers=(*BODY_HEADERS, *{step.name for step in steps if step.does == "header"}),
            delivery_id=row.delivery_id,
            order=row.order or nowhere,
            challenge=row.challenge or nowhere,
            each=row.each,
            desk=row.desk,
            encoding=row.encoding,
            access=self.access(f"hooks.{name}.access", row.access) if row.access else None,
        )

    def request(
        self, key: str, row: RequestOptions, itsm: ItsmOptions, further: Mapping[str, Template]
    ) -> RequestTemplate:
        """A request from its table. Of headers of [itsm] what is fixed goes to other hosts too."""
        url = row.url or itsm.url.replace("{", "{{").replace("}", "}}")
        common = {
            name: value
            for name, value in itsm.headers.items()
            if at_home(row.url, itsm)
            or (isinstance(value, Template) and not any(placeholders_in(value)))
        }
        if row.form and row.body is not MISSING:
            self.wrong(f"{key}.form", "stands beside a body: a request has one or the other")
        return RequestTemplate(
            method=row.method,
            url=parse_template(url),
            headers=merge_headers(OUR_HEADERS, further, common, row.headers),
            body=row.body,
            form=row.form,
            encoding=row.encoding,
        )

    def answers(self, row: RequestOptions, itsm: ItsmOptions) -> tuple[Rule, ...]:
        """Its own rules, then those of [itsm] where it is the ITSM that answers."""
        theirs = itsm.answers if not itsm.url or at_home(row.url, itsm) else ()
        return (*row.answers, *theirs)

    def logged_in(self, request: RequestTemplate, itsm: ItsmOptions) -> RequestTemplate:
        """The request with itsm.authorization, where it goes to the host of itsm.url."""
        url = "".join(part for part in request.url.parts if isinstance(part, str))
        if not itsm.authorization or not at_home(url, itsm):
            return request
        login = {"Authorization": itsm.authorization}
        return replace(request, headers=merge_headers(login, request.headers))

    def kind(
        self, name: str, given: Any, itsm: ItsmOptions, lookups: Mapping[str, Lookup]
    ) -> Kind:
        """One kind from its table, completed by what [itsm] says."""
        key = f"kinds.{name}"
        row = self.table(key, KindOptions, given)
        if row.unclear == "find" and row.opens and not row.find:
            self.wrong(f"{key}.find", 'is missing: unclear = "find" needs the name of a look-up')
        for what, asked in (("find", row.find), ("verify", row.verify)):
            if asked and asked not in lookups:
                self.wrong(f"{key}.{what}", f"no look-up {asked!r}{_hint(asked, lookups)}")
        if row.find in lookups and not lookups[row.find].value.paths:
            self.wrong(f"lookups.{row.find}.value", "is missing: where is the request id?")
        if row.verify in lookups and not lookups[row.verify].when:
            self.wrong(
                f"lookups.{row.verify}.when", "is missing: what must hold when it was done?"
            )
        if row.unclear == "find" and not row.opens:
            self.wrong(f"{key}.unclear", '"find" is for a kind that opens: "retry" or "hold"')
        request = self.logged_in(self.request(key, row, itsm, IDEMPOTENCY), itsm)
        return Kind(
            name=name,
            opens=row.opens,
            request=request,
            answers=self.answers(row, itsm),
            request_id=row.request_id or itsm.request_id,
            again=row.again,
            when_unclear=row.unclear,
            find=lookups.get(row.find),
            find_after=row.find_after,
            verify=lookups.get(row.verify),
            then=row.then,
            keep=row.keep,
            elsewhere=bool(itsm.url) and not at_home(row.url, itsm),
            asks=self.asked_by(request.placeholders, lookups),
        )

    def asked_by(
        self, placeholders: Iterable[Placeholder], lookups: Mapping[str, Lookup]
    ) -> tuple[Lookup, ...]:
        """The look-ups that these placeholders need, and those that they need in turn.

        A circle among them is told once.
        """
        asked: dict[str, Lookup] = {}

        def follow(parts: Iterable[Placeholder], above: tuple[str, ...]) -> None:
            for part in parts:
                for name in (part.name, *(name for name, _ in part.filters)):
                    if name in above:
                        ring = above[above.index(name) :]
                        way = " -> ".join((*ring, name))
                        if not any(self.told(f"lookups.{each}") for each in ring):
                            self.wrong(f"lookups.{name}", f"needs itself: {way}")
                    elif name in lookups and name not in asked:
                        asked[name] = lookups[name]
                        follow(lookups[name].placeholders, (*above, name))

        follow(placeholders, ())
        return tuple(asked.values())

    def knock(self, itsm: ItsmOptions, kinds: Iterable[Kind]) -> RequestTemplate:
        """A GET that asks for nothing: of check_url, of itsm.url, or where the first kind goes."""
        url = itsm.check_url or itsm.url.replace("{", "{{").replace("}", "}}")
        beginnings = (kind.request.url.parts[0] for kind in kinds if kind.request.url.parts)
        url = url or next((part for part in beginnings if isinstance(part, str)), "")
        request = self.request("itsm", replace(KindOptions(), method="GET", url=url), itsm, {})
        return self.logged_in(request, itsm)

    def lookup(self, name: str, given: Any, itsm: ItsmOptions) -> Lookup:
        """One look-up from its table."""
        key = f"lookups.{name}"
        row = self.table(key, LookupOptions, given)
        if name in FILTERS or name in COMPUTED:
            self.wrong(key, "has the name of something built in")
        if row.value is None and not row.when and not self.told(key):
            self.wrong(f"{key}.value", "is missing: where is what is asked for in the answer?")
        return Lookup(
            name=name,
            request=self.request(key, row, itsm, {}),
            answers=self.answers(row, itsm),
            value=row.value or Field(()),
            when=row.when,
            otherwise=row.or_,
            keep_for=row.keep_for,
        )

    def values(self) -> dict[str, Any]:
        """[values]: constants, secrets among them."""
        given = self.given.get("values", {})
        if not isinstance(given, dict):
            self.wrong("values", "must be a table of constants")
            given = {}
        values: dict[str, Any] = {"item_id": "", "service": ""}
        for name, value in given.items():
            if name in COMPUTED:
                self.wrong(f"values.{name}", "has the name of something that is computed")
            if isinstance(value, dict):
                value = self.read(f"values.{name}", _read_secret, value, "")
            elif isinstance(value, str | int | float):
                pass
            else:
                self.wrong(f"values.{name}", "must be text, a number, true or false")
            values[name] = value
        return values

    def tables(self) -> dict[str, dict[str, Any]]:
        """[tables.*], each a filter."""
        found: dict[str, dict[str, Any]] = {}
        given = self.given.get("tables", {})
        if not isinstance(given, dict):
            self.wrong("tables", "must be tables like [tables.users]")
            given = {}
        for name, rows in given.items():
            if name in FILTERS:
                self.wrong(f"tables.{name}", "has the name of a built-in filter")
            if name in self.named("lookups", {}):
                self.wrong(f"tables.{name}", "is a look-up too: a filter has one meaning")
            if not isinstance(rows, dict):
                self.wrong(f"tables.{name}", "must be a table of texts")
                continue
            if any(isinstance(value, dict | list) for value in rows.values()):
                self.wrong(f"tables.{name}", "must hold texts only")
            found[name] = dict(rows)
        return found

    def senseless(self, config: Config) -> None:
        """Warns of what means nothing beside the rest."""
        for key, access in config.accesses():
            for name in ("query_token", "token_header"):
                if getattr(access, name) and not access.token:
                    self.warnings.append(f"{key}.{name}: means nothing without {key}.token")
        retry = config.retry
        if retry.first > retry.max:
            self.warnings.append(
                f"retry.first: {retry.first:g} s is longer than retry.max, {retry.max:g} s"
            )

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
            self.placeholders(row, config)
            for name in row.keep:
                self.kept(f"kinds.{row.name}.keep.{name}", name, config)
        self.openings(hooks, kinds)
        paths = collections.Counter(hook.path for hook in hooks.values())
        for hook in hooks.values():
            if paths[hook.path] > 1:
                self.wrong(f"hooks.{hook.name}.path", f"{hook.path} belongs to another hook, too")
        host, _ = config.server.listen
        open_hooks = [hook.name for hook in hooks.values() if not admits(config.access_to(hook))]
        if not is_loopback(host) and open_hooks:
            self.wrong(
                "server.listen",
                f"{host} is reachable from other machines: set [access] token, networks or hmac,"
                f" or listen on 127.0.0.1 (hooks that anybody could use: {', '.join(open_hooks)})",
            )

    def openings(self, hooks: Mapping[str, Hook], kinds: Mapping[str, Kind]) -> None:
        """Whether what needs a request id can ever get one from the ITSM."""
        heard = {name for hook in hooks.values() for name in hook.kinds if name in kinds}
        needy = [name for name, kind in kinds.items() if name in heard and kind.waits_for_id]
        if needy and not any(kinds[name].opens for name in heard):
            self.warnings.append(
                f"kinds: no hook leads to a kind with `opens = true`, so no ticket gets a request"
                f" id here: {', '.join(needy)} will wait for `map` or `import`"
            )

    def kept(self, key: str, name: str, config: Config) -> None:
        """Whether a kept value has a name of its own."""
        others = (hook.name for hook in config.hooks.values() if name in hook.names)
        if name in (*COMPUTED, *config.values, *config.lookups):
            self.wrong(key, "has the name of something that templates know already")
        elif other := next(others, ""):
            self.wrong(key, f"has the name of a field of hook {other}")

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

    def placeholders(self, kind: Kind, config: Config) -> None:
        """Whether each placeholder of a kind has a source and each of its filters exists."""
        key = f"kinds.{kind.name}"
        sources = [hook for hook in config.hooks.values() if self.leads_to(hook, kind.name)]
        for part in kind.placeholders:
            self.filters(key, part, config)
            always = part.name in COMPUTED and part.name not in NEEDS_DATE
            known = (*config.values, *config.lookups, *kind.kept_names, "value")
            if always or part.name in known:
                continue
            optional = any(name in DEFAULTS for name, _ in part.filters)
            wanted = "date" if part.name in NEEDS_DATE else part.name
            if not optional:
                self.source(key, part.name, wanted, sources, config)

    def source(
        self, key: str, name: str, wanted: str, sources: Sequence[Hook], config: Config
    ) -> None:
        """Whether every hook that leads to a kind has the field that it wants."""
        mine = self.given.get("hooks", {})
        given = [hook for hook in sources if isinstance(mine, dict) and hook.name in mine]
        for hook in sources:
            if wanted in hook.names or self.told(f"hooks.{hook.name}"):
                continue
            what = f"{{{name}}}: hook {hook.name} has no such field"
            if given and hook not in given:  # built in, and the file brings its own
                self.warnings.append(f"{key}: {what}; what it receives will fail")
            else:
                kept = next(iter(config.kinds.values())).kept_names
                known = [*hook.names, *config.values, *config.lookups, *kept, *COMPUTED]
                self.wrong(key, what + _hint(name, known))
        if not sources and not any(wanted in hook.names for hook in config.hooks.values()):
            self.wrong(key, f"{{{name}}}: no hook has such a field")

    def filters(self, key: str, part: Placeholder, config: Config) -> None:
        """Whether the filters of a placeholder exist and can work."""
        for name, argument in part.filters:
            shown = f"{{{part.name}|{name}{argument and ':'}{argument}}}"
            if name not in (*FILTERS, *config.tables, *config.lookups):
                known = [*FILTERS, *config.tables, *config.lookups]
                self.wrong(key, f"{shown}: no such filter{_hint(name, known)}")
            if name in ("max", "bytes") and not re.fullmatch(r"[0-9]{1,9}", argument):
                self.wrong(key, f"{shown}: needs a number")
            if name == "date" and "%" not in argument:
                self.wrong(key, f"{shown}: needs a format like %Y%m%d")

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


# ── Configuration · the file ───────────────────────────────────────────────────────────────────

CONFIG_PLACES = ("hd_itsm.toml", "/etc/hd_itsm.toml")


def find_config(given: str | None, environ: Environ) -> str:
    """The configuration file to read, "" for none. Raises ConfigError for one not there."""
    named = given or environ.get("HD_ITSM_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise ConfigError(f"no configuration file {named}; `init {named}` writes a sample")
        return named
    return next((place for place in CONFIG_PLACES if os.path.isfile(place)), "")


def _who_else(path: str, handle: int) -> str:
    """Who else than we and root decides what stands in a file, and what to do; "" for nobody.

    A link counts by itself and by what it leads to.
    """
    if not hasattr(os, "geteuid"):
        return ""
    ours = {0, os.geteuid()}
    file, link = os.fstat(handle), os.lstat(path)
    folder = os.stat(os.path.dirname(os.path.abspath(path)))
    for owner in (file.st_uid, link.st_uid):
        if owner not in ours:
            return f"it belongs to user {owner}, neither to you nor to root: `chown root {path}`"
    if file.st_mode & 0o022:
        return f"others than its owner may write it: `chmod go-w {path}`"
    safe = not folder.st_mode & 0o002 or (folder.st_mode & 0o1000 and folder.st_uid in ours)
    return "" if safe else "others may put another in its place: move it to a folder of your own"


def _read_toml(path: str) -> dict[str, Any]:
    """The tables of a configuration. Raises ConfigError, also where others may have written it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            if who := _who_else(path, file.fileno()):
                raise ConfigError(f"{path} is not believed: {who}, or name another by --config")
            return tomllib.loads(file.read())
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
        if (
            not config.itsm.url
            and not loader.told("itsm.url")
            and any(not kind.request.url.parts for kind in config.kinds.values())
        ):
            loader.wrong("itsm.url", "is missing: where does the ITSM take requests?")
        for key, secret in loader.secrets:
            if problem := secret.problem():
                loader.wrong(key, problem)
        for key, access in config.accesses():
            for secret in access.hmac.secret if access.hmac else ():
                if (
                    secret.source != "text"
                    and not secret.problem()
                    and not access.hmac.key_in(secret)
                ):
                    loader.wrong(f"{key}.hmac.secret", NO_BASE64)
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


# ── File: the SQLite file: open, migrate, transact, keep time and room ─────────────────────────


class FileError(Error):
    """The file cannot be opened or used; the text says what to do."""


class FileInUse(FileError):
    """Another process holds the file."""


class FileFull(FileError):
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

# Entry n brings a file of version n to n + 1; never change one that was released. A new column of
# events: ALTER TABLE in a new entry; then NewEvent (or `_insert`) writes it, Event and `due` bring
# it to Delivery, `page` and `whole_event` to people; see whether `_retry`, `_follow` and `forget`
# have to know it.
MIGRATIONS = (
    """
    CREATE TABLE events (
        event INTEGER PRIMARY KEY,    -- its number: 1, 2, 3
        rank INTEGER NOT NULL,        -- in the ticket's line; a `then` event has its parent's
        parent INTEGER,               -- the event that a `then` event follows
        ticket TEXT,                  -- NULL where none could be read
        kind TEXT NOT NULL,
        hook TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        cause TEXT,                   -- what a person must settle; NULL: nothing, or another first
        subject TEXT NOT NULL DEFAULT '',  -- of the ticket, where the webhook says it
        opens INTEGER NOT NULL,       -- 1: its answer brings the request id
        waits_for_id INTEGER NOT NULL,       -- 1: it cannot go without the request id
        may_have_happened INTEGER NOT NULL DEFAULT 0,  -- 1: an attempt may have been carried out
        received REAL NOT NULL,       -- wall clock, epoch seconds
        settled REAL,                 -- wall clock of its last change of state
        born REAL NOT NULL,           -- service clock of its receipt
        tries INTEGER NOT NULL DEFAULT 0,     -- attempts that count against it
        attempts INTEGER NOT NULL DEFAULT 0,  -- all attempts
        first_try REAL,               -- service clock of its first attempt that meant "later"
        idempotency_key TEXT NOT NULL,
        delivery_id TEXT,
        stamp REAL,                   -- grows with a ticket's events, where the hook has `order`
        sender TEXT NOT NULL,
        repaired TEXT NOT NULL,
        digest BLOB NOT NULL,         -- of what a duplicate has in common with it
        fields TEXT NOT NULL,         -- JSON
        headers TEXT NOT NULL,        -- JSON: those that the hook's paths read
        raw BLOB NOT NULL             -- the record: all else is derived from it
    );
    CREATE INDEX events_ticket ON events (ticket, rank, event) WHERE ticket IS NOT NULL;
    CREATE INDEX events_pending ON events (ticket, waits_for_id, rank, event)
        WHERE state = 'pending';
    CREATE INDEX events_held ON events (ticket, may_have_happened, waits_for_id, cause)
        WHERE state = 'held';
    CREATE INDEX events_cause ON events (cause, event, ticket, settled) WHERE cause IS NOT NULL;
    CREATE INDEX events_openings ON events (ticket, state, rank, event) WHERE opens = 1;
    CREATE INDEX events_open ON events (state, event)  -- OR, not IN: SQLite proves only that
        WHERE state = 'pending' OR state = 'held' OR state = 'failed';
    CREATE INDEX events_delivery ON events (delivery_id, ticket, kind)
        WHERE delivery_id IS NOT NULL;
    CREATE INDEX events_unreadable ON events (digest) WHERE ticket IS NULL;
    CREATE TABLE tickets (            -- one row for each: no two of its events can be due
        ticket TEXT PRIMARY KEY,
        request_id TEXT CHECK (request_id != ''),  -- NULL: none yet
        since REAL,                   -- of the request id: wall clock, epoch seconds
        origin TEXT,                  -- 'itsm', 'hand' or 'import'
        kept TEXT NOT NULL DEFAULT '{}',  -- JSON: further values of the ITSM's answers
        latest INTEGER,               -- its latest event that a webhook brought, duplicates apart
        head INTEGER,                 -- the event of its line that may go
        due REAL                      -- service clock of the head's next try
    ) WITHOUT ROWID;
    CREATE INDEX tickets_due ON tickets (due) WHERE due IS NOT NULL;
    CREATE INDEX tickets_request ON tickets (request_id) WHERE request_id IS NOT NULL;
    CREATE TABLE attempts (
        event INTEGER NOT NULL,
        attempt INTEGER NOT NULL,     -- 1, 2, 3
        at REAL NOT NULL,             -- wall clock, epoch seconds
        duration REAL,                -- seconds
        status INTEGER,               -- of the answer; NULL: none came
        outcome TEXT NOT NULL,        -- 'sent' until it is known
        reason TEXT NOT NULL,
        answer TEXT NOT NULL,         -- the beginning of what the ITSM said
        asked TEXT NOT NULL,          -- the look-up that was asked; '' for the event's own request
        sent TEXT NOT NULL,           -- JSON: the request; '': as the last one before it
        PRIMARY KEY (event, attempt)
    ) WITHOUT ROWID;
    CREATE TABLE acts (               -- what was done by hand
        act INTEGER PRIMARY KEY,
        event INTEGER,                -- NULL: it was about the ticket
        ticket TEXT,
        at REAL NOT NULL,             -- wall clock, epoch seconds
        what TEXT NOT NULL,
        who TEXT NOT NULL
    );
    CREATE INDEX acts_event ON acts (event) WHERE event IS NOT NULL;
    CREATE INDEX acts_ticket ON acts (ticket) WHERE event IS NULL;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE counts (             -- hour 0: how many there are now, or were ever
        hour INTEGER NOT NULL,        -- epoch seconds / 3600: how many there were in it
        name TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (hour, name)
    ) WITHOUT ROWID;
    """,
)
OURS = frozenset(re.findall(r"CREATE (?:TABLE|INDEX) (\w+)", " ".join(MIGRATIONS)))


# ── File · open and migrate ────────────────────────────────────────────────────────────────────


def _refuse_foreign(path: str) -> None:
    """Raises FileError where the file is not ours or newer, before SQLite could touch it."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    keep = "keep a copy of it; restore a backup (`help upgrade`), or move it away to begin anew"
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise FileError(f"{path} is damaged or no SQLite file: {keep}")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION_ID:
        raise FileError(f"{path} is an SQLite file of another program: name another [store] path")
    if version > len(MIGRATIONS):
        raise FileError(
            f"{path} was written by a newer hd_itsm (file version {version}, this program knows"
            f" {len(MIGRATIONS)}): run the newer one, or restore a backup made before the upgrade"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):  # its header may still be in the log that a crash left
        raise FileError("the file was written by a newer hd_itsm: run that one")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number}; COMMIT;"
        )


def _refuse_additions(connection: sqlite3.Connection, path: str) -> None:
    """Raises FileError for a trigger, a view or a table that nobody here made: they would run."""
    for kind, name in connection.execute("SELECT type, name FROM sqlite_master"):
        if kind not in ("table", "index") or (name not in OURS and not name.startswith("sqlite_")):
            raise FileError(
                f"{path} holds a {kind} {name!r} that is not this program's: somebody changed the"
                " file; restore a backup, or move it away and `import` your last `export`"
            )


def _sync_directory(path: str) -> None:
    if os.name == "posix":
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def new_file(path: str) -> int:
    """A descriptor of a file that was not there, for nobody else to read. Raises OSError."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # follows no link


def _create(path: str) -> None:
    """Makes a new file under another name first: a half-made one never stands at `path`.

    Where root makes it (`import` before the first start), it belongs to the owner of the folder.
    """
    new, folder = f"{path}.new.{os.getpid()}", os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with os.fdopen(new_file(new), "wb") as file:
            if os.name == "posix" and os.geteuid() == 0:
                owner = os.stat(folder)
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # unlike a rename, never over a file that came to be meanwhile
        _sync_directory(path)
    except (OSError, sqlite3.Error) as error:
        raise FileError(f"{path}: cannot be created: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def _open_error(path: str, error: sqlite3.Error) -> FileError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return FileInUse(f"{path} is in use by another process: only one may hold it; stop it")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return FileError(f"{path}: {error}: directory and file must be writable for us")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        words = "is the disk full, read-only or broken? Look after it, then start again"
        return FileError(f"{path}: {error}: {words}")
    return FileError(
        f"{path} is damaged ({error}): keep a copy of it; restore a backup (`help upgrade`), or"
        " move it away and `import` the mappings of your last `export`"
    )


def _connect(path: str, patience: float) -> sqlite3.Connection:
    """The one connection, holding the file alone; waits so many seconds for who holds it now.

    Raises FileError.
    """
    connection = sqlite3.connect(
        path, timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL: then no -shm exists
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        sync = connection.execute("PRAGMA synchronous").fetchone()[0]
        if (mode, sync) != ("wal", 2):
            raise FileError(f"{path}: SQLite refuses durable mode (journal {mode}, sync {sync})")
        if os.stat(path).st_size <= SMALL_FILE:
            complaints = connection.execute("PRAGMA quick_check(3)").fetchall()
            if complaints != [("ok",)]:
                raise sqlite3.DatabaseError(" ".join(complaints[0][0].split()))
        _migrate(connection)
        _refuse_additions(connection, path)
        connection.execute("PRAGMA busy_timeout = 0")
    except FileError:
        connection.close()
        raise
    except sqlite3.Error as error:
        connection.close()
        raise _open_error(path, error) from None
    connection.row_factory = sqlite3.Row
    return connection


# ── File · transactions, facts, counts, the clock, room ────────────────────────────────────────


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


class File:
    """The open file: transactions, facts, the service clock, room for a full disk.

    `_lock` guards the connection and all attributes; who holds it waits for nothing but the disk
    and takes no other lock. Writers queue their operation; one of them leads: it runs all that
    wait in one transaction, commits once (group commit), lets the others go and hands the lead to
    the first that came meanwhile. `_queue_lock` guards the queue and `_led`, for moments only.

    Service clock: seconds that the service has been running, kept over restarts. Due times and
    ages are measured with it, so that no jump of the wall clock delays or gives up an event.
    """

    PATIENCE = 5.0  # seconds to wait for another process that holds the file

    def __init__(self, path: str, create: bool = False, patience: float = PATIENCE) -> None:
        if create and not os.path.exists(path):
            _create(path)
        if not os.path.exists(path):
            where = os.path.abspath(path)
            raise FileError(f"no file {where}: start the service once, or name it with --db")
        _refuse_foreign(path)
        self.path = path
        self._db = _connect(path, patience)
        for leftover in glob.glob(f"{glob.escape(path)}.new.*"):  # of what was killed
            with contextlib.suppress(OSError):
                os.unlink(leftover)
        self._lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Write] = []
        self._led = False  # whether somebody leads
        self._after: list[Callable[[], None]] = []  # what a commit makes true
        self._counting: collections.Counter[tuple[int, str]] = collections.Counter()
        rows = self.read("SELECT name, count FROM counts WHERE hour = 0")
        self._counts: dict[str, int] = {row["name"]: row["count"] for row in rows}
        self._soon: collections.Counter[str] = collections.Counter()  # not yet kept
        self._apart: tuple[int, set[str]] = (0, set())  # this hour and the names told apart in it
        self._soon_lock = threading.Lock()  # guards these; taken last
        self._facts = {row["name"]: row["value"] for row in self.read("SELECT * FROM facts")}
        self.broken = ""  # why nothing can be written any more; the process must end
        self.full = False  # the disk is full: outcomes only, no webhooks
        self._started = time.monotonic()
        self._base = float(self.fact("clock") or 0) + self._away()

    def close(self) -> None:
        """Keeps the clock and closes the file; a second call does nothing."""
        with contextlib.suppress(FileError, sqlite3.ProgrammingError):
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
        self.write(lambda: self.set_facts(facts))

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """The same, within a transaction; they are believed once it is committed."""
        for name, value in facts.items():
            self.execute(
                "INSERT INTO facts (name, value) VALUES (:name, :value)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                name=name,
                value=value,
            )
        self.after_commit(lambda: self._facts.update(facts))

    CALLERS = 50  # names that `count_soon` tells apart in an hour

    def count(self, name: str, more: int = 1, hourly: bool = False) -> None:
        """Counts, in a transaction, what must outlive the process: for good, or in this hour."""
        self._counting[int(time.time()) // 3600 if hourly else 0, name] += more

    def number(self, name: str, more: int) -> int:
        """Counts so many more of what is numbered 1, 2, 3; in a transaction. The first one's."""
        first = self.counted(name) + self._counting[0, name] + 1
        self.count(name, more)
        return first

    def count_to(self, name: str, total: int) -> None:
        """Sets a count instead of adding to it: the moment of something (ms since the epoch)."""
        self._counting[0, name] = total - self.counted(name)

    def count_soon(self, name: str) -> None:
        """Counts something in this hour, kept with the next transaction or `flush`.

        No transaction for each: whoever is turned away must not make us write.
        """
        hour = int(time.time()) // 3600
        with self._soon_lock:
            if self._apart[0] != hour:
                self._apart = hour, set()
            apart = self._apart[1]
            if len(apart) < self.CALLERS:
                apart.add(name)
            self._soon[name if name in apart else f"{name.partition(':')[0]}: others"] += 1

    def flush(self) -> None:
        """Keeps what was counted since, if anything."""
        if self._soon:
            self.write(lambda: None)

    def counted(self, name: str) -> int:
        """How many there are, or were ever."""
        return self._counts.get(name, 0)

    def hours(self, first: int) -> dict[int, dict[str, int]]:
        """What was counted in each hour (epoch seconds / 3600) from `first` on."""
        hours: dict[int, dict[str, int]] = {}
        for row in self.read("SELECT * FROM counts WHERE hour >= :first", first=first):
            hours.setdefault(row["hour"], {})[row["name"]] = row["count"]
        return hours

    def _keep_counts(self) -> None:
        """Keeps what this transaction counted, in it; one statement for all."""
        with self._soon_lock:
            soon = self._soon.copy()
        for name, more in soon.items():
            self.count(name, more, hourly=True)
        changes = [(hour, name, more) for (hour, name), more in self._counting.items() if more]
        self._counting.clear()
        if not changes:
            return
        self.execute_row(
            f"INSERT INTO counts VALUES {', '.join(['(?, ?, ?)'] * len(changes))}"
            " ON CONFLICT (hour, name) DO UPDATE SET count = count + excluded.count",
            [value for change in changes for value in change],
        )

        def believe() -> None:
            for hour, name, more in changes:
                if not hour:
                    self._counts[name] = self._counts.get(name, 0) + more
            if soon:
                with self._soon_lock:
                    self._soon -= soon

        self.after_commit(believe)

    def execute(self, sql: str, **arguments: Any) -> sqlite3.Cursor:
        """One statement, within a transaction."""
        return self._db.execute(sql, arguments)

    def execute_row(self, sql: str, values: Sequence[Any]) -> sqlite3.Cursor:
        """One statement whose arguments go by their place."""
        return self._db.execute(sql, values)

    def row(self, sql: str, **arguments: Any) -> Any:
        """The first row of a question, None for none; within a transaction."""
        return self._db.execute(sql, arguments).fetchone()

    def read(
        self,
        sql: str,
        enough: Callable[[sqlite3.Row], bool] = lambda row: False,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """The rows of a question, up to the one that is `enough`; outside of any transaction.

        Raises FileError.
        """
        rows = []
        with self._lock:
            try:
                for row in self._db.execute(sql, arguments):
                    rows.append(dict(row))
                    if enough(row):
                        break
            except sqlite3.Error as error:
                raise self._failed(error) from None
        return rows

    def after_commit(self, what: Callable[[], None]) -> None:
        """Something that becomes true when the transaction under way is on the disk."""
        self._after.append(what)

    def write(self, operation: Callable[[], T]) -> T:
        """Runs `operation` in a transaction and returns its result once that is on the disk.

        Raises FileError, and what the operation raises: then nothing of it was done.
        """
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
        return entry.result  # type: ignore[no-any-return]

    def _lead(self, leader: _Write) -> None:
        """Carries out what waits, in one transaction, and hands the lead on."""
        with self._lock:
            with self._queue_lock:
                batch, self._queue = self._queue, []
            self._transact(batch)
            if leader.error is not None and len(batch) > 1 and not self.broken:
                for entry in batch:  # one bad operation must not take the others with it
                    self._transact([entry])
        with self._queue_lock:
            successor = self._queue[0] if self._queue else None
            self._led = successor is not None
        for entry in batch:
            if entry is not leader:
                entry.turn.release()
        if successor is not None:
            successor.turn.release()

    def _transact(self, batch: list[_Write]) -> None:
        self._after.clear()
        error: BaseException | None = None
        try:
            if self.broken:
                raise FileError(self.broken)
            self._db.execute("BEGIN IMMEDIATE")
            for entry in batch:
                entry.result = entry.operation()
            self._keep_counts()
            self._db.execute("COMMIT")
        except sqlite3.Error as trouble:
            error = self._failed(trouble)
        except BaseException as trouble:
            error = trouble
        if error is None:
            for what in self._after:
                what()
        else:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self._counting.clear()
        for entry in batch:
            entry.error, entry.done = error, True

    def _failed(self, error: sqlite3.Error) -> Error:
        """What a failed statement or commit means for the file from now on."""
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            if not self.full:
                log.error("%s: the disk is full: webhooks get 503 until there is room", self.path)
            self.full = True
            with contextlib.suppress(OSError):
                os.unlink(self.path + ".reserve")
            return FileFull()
        if name == "SQLITE_NOMEM":
            return FileFull("out of memory")
        if not name.startswith(FATAL):
            return FileError(f"{self.path}: {error}")
        # After a failed write or fsync nobody knows what is on the disk: only a new start does.
        self.broken = f"{self.path} cannot be written any more: {error} ({name})"
        log.critical("%s: ending; look after the disk", self.broken)
        return FileError(self.broken)

    def keep_reserve(self) -> None:
        """Sets room aside for a full disk; when that works again, webhooks are taken again."""
        reserve, new = self.path + ".reserve", self.path + ".new.reserve"
        if self.broken or (not self.full and os.path.exists(reserve)):
            return
        try:
            with os.fdopen(new_file(new), "wb") as file:
                file.write(b"\0" * RESERVE)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, reserve)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        if self.full:
            self.full = False
            log.info("%s: there is room on the disk again: webhooks are taken", self.path)

    def backup(self, path: str) -> int:
        """Writes a consistent, checked copy while work goes on; its size in bytes.

        Not under `_lock`: SQLite copies in steps and takes in what changes between them. Raises
        FileError, also where something stands at `path`.
        """
        try:
            os.close(new_file(path))
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._db.backup(copy, pages=256, sleep=0.005)
                complaints = copy.execute("PRAGMA integrity_check(3)").fetchall()
            if complaints != [("ok",)]:
                raise FileError(f"{path}: the copy is damaged ({complaints}): look after the disk")
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            return os.stat(path).st_size
        except (OSError, sqlite3.Error) as error:
            raise FileError(f"{path}: cannot be written: {error}") from None


# ── Records: what goes into the file and comes out of it ───────────────────────────────────────


class NewEvent(NamedTuple):
    """What is to be stored: a webhook as it was read, or why it could not be; what follows one."""

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
    waits_for_id: bool = False
    stamp: float | None = None
    subject: str = ""
    again: str = "ignore"
    used: str = ""  # what of the fields makes a difference to what is sent

    @property
    def digest(self) -> bytes:
        """What a duplicate has in common with it: kind and used fields, or the unreadable body."""
        what = (self.used or self.fields).encode() if self.ticket else self.raw
        return hashlib.sha256(f"{self.kind or self.hook}\0".encode() + what).digest()


GIVEN = ("event", "rank", "parent", "born", "idempotency_key", "digest", "cause")  # by Events
NOT_KEPT = ("again", "used")  # stand last in NewEvent
KEPT = tuple(name for name in NewEvent._fields if name not in NOT_KEPT)  # columns of that name


class Receipt(NamedTuple):
    """What became of a webhook; for a duplicate, `event` is the first one's number."""

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
    may_have_happened: int
    received: float
    born: float
    tries: int
    attempts: int
    first_try: float | None
    idempotency_key: str
    request_id: str | None
    kept: Mapping[str, Any]
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
    asked: str = ""  # the look-up that was asked; "": the event's own request
    sent: str = ""  # the request as people may see it, in JSON


class Verdict(NamedTuple):
    """What is to become of an event after its attempts."""

    state: str  # pending, held, failed or delivered
    reason: str
    due: float | None = None  # service clock; for pending
    tries: int = 0
    request_id: str = ""  # for delivered, of a kind that opens
    kept: Mapping[str, Any] = MappingProxyType({})  # further values of the answer
    then: str = ""  # a kind to be delivered next
    then_waits_for_id: bool = False
    may_have_happened: bool = False


@dataclass
class Pulse:
    """What the deliveries and the service tell the others, in memory only."""

    beat: float = 0.0  # monotonic; when the watch over the deliveries last went round; 0: never
    next_probe: float = 0.0  # service clock
    reload: str = ""  # why the last reload was refused
    delivered: int = 0  # events, since the start
    beats: collections.deque[tuple[float, int]] = field(
        default_factory=lambda: collections.deque(maxlen=60)
    )  # of the last minute, a second apart: when (monotonic), and delivered then

    def count_delivered(self) -> None:
        """One more event was delivered."""
        self.delivered += 1

    def rate(self) -> float:
        """Events delivered a minute, as in the last one; 0 where that is not known."""
        if not self.beats or time.monotonic() - self.beats[0][0] < 5:
            return 0.0
        at, delivered = self.beats[0]
        return 60 * (self.delivered - delivered) / (time.monotonic() - at)


class SinceStart:
    """What happened since the start, for /metrics: counters by name and label, and durations."""

    BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: collections.Counter[tuple[str, str]] = collections.Counter()
        self._durations: collections.Counter[float] = collections.Counter()
        self._seconds = 0.0

    def count(self, name: str, label: str = "") -> None:
        """One more of `name`; `label` is the value of its one label."""
        with self._lock:
            self._counters[name, label] += 1

    def attempt(self, outcome: str, seconds: float) -> None:
        """One more attempt, with its outcome and how long it took."""
        with self._lock:
            self._counters["attempts", outcome] += 1
            self._seconds += seconds
            bucket = next((limit for limit in self.BUCKETS if seconds <= limit), math.inf)
            self._durations[bucket] += 1

    def snapshot(self) -> tuple[dict[tuple[str, str], int], dict[float, int], float]:
        """Counters, durations by bucket (seconds), and the sum of all durations (seconds)."""
        with self._lock:
            return dict(self._counters), dict(self._durations), self._seconds


class Waiters:
    """Callers who wait until an event is settled (Prefer), each in a thread of its own.

    The lock guards the list; it is taken last, for moments.
    """

    def __init__(self) -> None:
        self.leaving = False  # the program is about to end: nobody waits any more
        self._lock = threading.Lock()
        self._waiters: dict[int, list[threading.Event]] = {}

    def join(self, event: int, most: int) -> threading.Event | None:
        """What to wait on; None where `most` wait already."""
        waiter = threading.Event()
        with self._lock:
            if sum(map(len, self._waiters.values())) >= most:
                return None
            self._waiters.setdefault(event, []).append(waiter)
        return waiter

    def quit(self, event: int, waiter: threading.Event) -> None:
        """Ends what `join` began."""
        with self._lock:
            self._waiters[event].remove(waiter)
            if not self._waiters[event]:
                del self._waiters[event]

    def tell(self, event: int) -> None:
        """Lets those look who wait for this event."""
        with self._lock:
            for waiter in self._waiters.get(event, ()):
                waiter.set()

    def leave(self) -> None:
        """Ends all waiting: the program is about to end."""
        with self._lock:
            self.leaving = True
            for waiter in itertools.chain(*self._waiters.values()):
                waiter.set()


# ── Mappings: ticket to request id, and what else answers brought ──────────────────────────────


class Mappings:
    """Which ticket became which request. `set` and `keep` run within a transaction."""

    COLUMNS = "ticket, request_id, since, origin, kept"

    def __init__(self, file: File) -> None:
        self.file = file

    def request_id(self, ticket: str) -> str | None:
        """The request id of a ticket, None where it has none; within a transaction."""
        row = self.file.row("SELECT request_id FROM tickets WHERE ticket = :t", t=ticket)
        return row["request_id"] if row else None

    def other(self, ticket: str, request_id: str) -> str:
        """Another ticket that has this request id, "" for none; within a transaction."""
        row = self.file.row(
            "SELECT ticket FROM tickets WHERE request_id = :request_id AND ticket != :ticket",
            request_id=request_id,
            ticket=ticket,
        )
        return row["ticket"] if row else ""

    def set(
        self, ticket: str, request_id: str, origin: str, since: float, kept: str = "{}"
    ) -> None:
        """Maps a ticket; what was kept of another request goes. `kept` is JSON."""
        self.file.execute(
            "INSERT INTO tickets (ticket, request_id, since, origin, kept)"
            " VALUES (:ticket, :request_id, :since, :origin, :kept)"
            " ON CONFLICT (ticket) DO UPDATE SET request_id = excluded.request_id,"
            " since = excluded.since, origin = excluded.origin, kept = excluded.kept",
            ticket=ticket,
            request_id=request_id,
            since=since,
            origin=origin,
            kept=kept,
        )

    def keep(self, ticket: str, values: Mapping[str, Any]) -> None:
        """Adds further values of an answer to what is kept of its ticket."""
        row = self.file.row("SELECT kept FROM tickets WHERE ticket = :ticket", ticket=ticket)
        if row:
            self.file.execute(
                "UPDATE tickets SET kept = :kept WHERE ticket = :ticket",
                ticket=ticket,
                kept=COMPACT.encode({**json.loads(row["kept"]), **values}),
            )

    def get(self, ticket: str) -> dict[str, Any] | None:
        """The mapping of a ticket: ticket, request_id, since, origin, kept."""
        sql = f"SELECT {self.COLUMNS} FROM tickets WHERE ticket = :ticket"
        rows = self.file.read(f"{sql} AND request_id IS NOT NULL", ticket=ticket)
        return {**rows[0], "kept": json.loads(rows[0]["kept"])} if rows else None

    def page(self, after: str = "", limit: int = 1000) -> list[dict[str, Any]]:
        """Mappings in the order of their tickets, from the one after `after` on."""
        rows = self.file.read(
            f"SELECT {self.COLUMNS} FROM tickets WHERE ticket > :after"
            " AND request_id IS NOT NULL ORDER BY ticket LIMIT :limit",
            after=after,
            limit=limit,
        )
        return [{**row, "kept": json.loads(row["kept"])} for row in rows]


# ── Questions: what is asked of the file about events, tickets and mappings ────────────────────


WAITS = "waits for the request id of its ticket; no opening event is pending"
MOST_COUNTED = 10_000  # so many events or tickets are counted to say how many: beyond, "or more"


class Questions:
    """What is known of events, tickets and mappings; nothing is changed."""

    def __init__(self, file: File) -> None:
        self.file = file

    @property
    def counts(self) -> collections.Counter[str]:
        """How many events are in each state."""
        return collections.Counter({state: self.file.counted(state) for state in STATES})

    # ── Questions · events ─────────────────────────────────────────────────────────────────────

    CALLED = (  # the subject of an event's ticket
        "CASE subject WHEN '' THEN coalesce((SELECT subject FROM events AS first WHERE"
        " first.ticket = events.ticket AND opens = 1 AND subject != '' LIMIT 1), '')"
        " ELSE subject END"
    )

    def page(
        self,
        state: str = "",
        ticket: str = "",
        kind: str = "",
        since: float = 0.0,
        before: int = 0,
        limit: int = 50,
        after: int = 0,
        numbers: Sequence[int] | None = None,
        reason: str = "",
        cause: str = "",
        for_you: bool = False,
    ) -> list[dict[str, Any]]:
        """Events without bodies, newest first, with `after` oldest first.

        `since`: wall clock; `before`, `after`: event numbers; `numbers`: only these;
        `reason`: text of theirs; `for_you`: only what a person must settle.
        """
        where = [
            f"state = '{STATES[STATES.index(state)]}'" if state else "",  # literal, for the index
            "ticket = :ticket" if ticket else "",
            "kind = :kind" if kind else "",
            "received >= :since" if since else "",
            "event < :before" if before else "",
            "event > :after" if after else "",
            f"event IN ({', '.join(map(str, numbers))})" if numbers is not None else "",
            "(cause = :reason OR instr(reason, :reason))" if reason else "",
            "cause = :cause" if cause else "",
            "cause IS NOT NULL" if for_you else "",
        ]
        return self.file.read(
            "SELECT event, state, kind, hook, ticket, request_id, received, settled, reason,"
            " attempts, CASE head WHEN event THEN due END AS due, repaired, may_have_happened,"
            f" opens, cause, kept, length(raw) AS size, {self.CALLED} AS subject"
            " FROM events LEFT JOIN tickets USING (ticket)"
            f" WHERE {' AND '.join(filter(None, where)) or '1'}"
            f" ORDER BY event {'ASC' if after else 'DESC'} LIMIT :limit",
            ticket=ticket,
            kind=kind,
            since=since,
            before=before,
            limit=limit,
            after=after,
            reason=reason,
            cause=cause,
        )

    def show(self, event: int) -> dict[str, Any] | None:
        """Everything of one event, its attempts included."""
        rows = self.file.read(
            f"SELECT events.*, {self.CALLED} AS called, request_id, kept,"
            " CASE head WHEN event THEN due END AS due FROM events"
            " LEFT JOIN tickets USING (ticket) WHERE event = :event",
            event=event,
        )
        if not rows:
            return None
        further = {"subject": rows[0].pop("called"), "size": len(rows[0]["raw"])}
        return {**rows[0], **further, "attempts": self.attempts(event)}

    def attempts(self, event: int) -> list[dict[str, Any]]:
        """The attempts of an event, in their order."""
        return self.file.read(
            "SELECT attempt, at, duration, status, outcome, reason, answer, asked, sent"
            " FROM attempts WHERE event = :event ORDER BY attempt",
            event=event,
        )

    def acts(self, event: int | None, ticket: str | None) -> list[dict[str, Any]]:
        """What was done by hand to an event and to its ticket: at, what, who, event."""
        return self.file.read(
            "SELECT * FROM (SELECT act, at, what, who, event FROM acts WHERE event = :event"
            " UNION SELECT act, at, what, who, event FROM acts WHERE ticket = :ticket"
            " AND event IS NULL) ORDER BY act LIMIT 200",
            event=event,
            ticket=ticket,
        )

    def line(self, ticket: str, after: int = 0, limit: int = -1) -> list[int]:
        """The numbers of a ticket's events in its order, from the one after `after` on."""
        rows = self.file.read(
            "SELECT event FROM events WHERE ticket = :ticket AND (rank, event) >"
            " (coalesce((SELECT rank FROM events WHERE event = :after), :after), :after)"
            " ORDER BY rank, event LIMIT :limit",
            ticket=ticket,
            after=after,
            limit=limit,
        )
        return [row["event"] for row in rows]

    def before(self, event: int) -> list[int]:
        """The number of the event before this one in its ticket's line, if any."""
        rows = self.file.read(
            "SELECT before.event FROM events JOIN events AS before"
            " ON before.ticket = events.ticket"
            " AND (before.rank, before.event) < (events.rank, events.event)"
            " WHERE events.event = :event ORDER BY before.rank DESC, before.event DESC LIMIT 1",
            event=event,
        )
        return [row["event"] for row in rows]

    # ── Questions · mappings, ages ─────────────────────────────────────────────────────────────

    def oldest(self, *states: str) -> dict[str, Any] | None:
        """The oldest event in one of these states, pending and held if none: event, received."""
        oldest = (
            f"SELECT min(event) FROM events WHERE state = '{STATES[STATES.index(state)]}'"
            for state in states or ("pending", "held")
        )
        rows = self.file.read(
            f"SELECT event, received FROM events WHERE event IN ({' UNION ALL '.join(oldest)})"
            " ORDER BY event LIMIT 1"
        )
        return rows[0] if rows else None

    def near_end(self, give_up_after: float) -> list[int]:
        """Of the oldest 1,000 pending events those that have a fifth of their time left."""
        rows = self.file.read(
            "SELECT event, born FROM events WHERE state = 'pending' ORDER BY event LIMIT 1000"
        )
        born_before = self.file.clock() - 0.8 * give_up_after
        return [row["event"] for row in rows if row["born"] < born_before]

    def last_received(self) -> float | None:
        """When the last webhook came (wall clock)."""
        rows = self.file.read("SELECT received FROM events ORDER BY event DESC LIMIT 1")
        return rows[0]["received"] if rows else None

    # ── Questions · what needs a person ────────────────────────────────────────────────────────

    NEEDING = "(cause != :waits OR settled <= :held_before)"  # of what has a cause

    def tickets_for_you(self, held_before: float) -> int:
        """How many tickets need a person, at most MOST_COUNTED; unreadable webhooks among them.

        `held_before`: what was held later for its opening does not yet (wall clock).
        """
        rows = self.file.read(
            "SELECT count(DISTINCT coalesce(ticket, event)) AS tickets FROM (SELECT ticket, event"
            f" FROM events WHERE cause IS NOT NULL AND {self.NEEDING} LIMIT {MOST_COUNTED})",
            waits=WAITS,
            held_before=held_before,
        )
        return rows[0]["tickets"]  # type: ignore[no-any-return]

    def causes(self, held_before: float, limit: int, shown: int) -> list[dict[str, Any]]:
        """Why tickets need a person: cause, events, tickets, first (numbers of the oldest).

        What most wait for comes first. `limit`: causes that are looked at; of each cause `shown`
        events are named and MOST_COUNTED are counted: no more is read.
        """
        causes = self.file.read(
            "WITH RECURSIVE names (cause) AS (SELECT min(cause) FROM events WHERE cause > ''"
            " UNION ALL SELECT (SELECT min(cause) FROM events WHERE events.cause > names.cause)"
            " FROM names WHERE names.cause IS NOT NULL LIMIT :limit)"
            " SELECT cause FROM names WHERE cause IS NOT NULL",
            limit=limit + 1,  # the last one may be none
        )
        which = f"FROM events WHERE cause = :cause AND {self.NEEDING}"
        for cause in causes:
            given: dict[str, Any] = {
                "cause": cause["cause"],
                "waits": WAITS,
                "held_before": held_before,
            }
            [counts] = self.file.read(
                "SELECT count(*) AS events, count(DISTINCT coalesce(ticket, event)) AS tickets"
                f" FROM (SELECT ticket, event {which} LIMIT {MOST_COUNTED})",
                **given,
            )
            first = self.file.read(
                f"SELECT event {which} ORDER BY event LIMIT :shown", shown=shown, **given
            )
            cause |= {**counts, "first": [row["event"] for row in first]}
        needing = [cause for cause in causes[:limit] if cause["events"]]
        return sorted(needing, key=lambda cause: (-cause["tickets"], cause["first"]))

    def behind(self, ticket: str, most: int = 100) -> list[int]:
        """The events of a ticket that are held and wait for another of it, or for its mapping."""
        rows = self.file.read(
            "SELECT event FROM events WHERE ticket = :ticket AND state = 'held'"
            " AND may_have_happened = 0 AND cause IS NULL LIMIT :most",
            ticket=ticket,
            most=most,
        )
        return sorted(row["event"] for row in rows)

    # ── Questions · search ─────────────────────────────────────────────────────────────────────

    SEARCHED = 100_000  # events, the latest, whose subjects a search reads

    def find(self, text: str, limit: int = 50) -> tuple[list[str], list[int]]:
        """The tickets and the numbers of the events that `text` means.

        A ticket, a request id and an event are meant by all of their id; where there is none, by
        its beginning, or by words of the ticket's subject.
        """
        number = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
        rows = self.file.read("SELECT event FROM events WHERE event = :number", number=number)
        numbers = [row["event"] for row in rows]
        tickets = self._tickets("ticket = :text", "request_id = :text", text=text, limit=limit)
        if tickets or numbers or not text:
            return tickets, numbers
        begins = (f"{name} >= :text AND {name} < :end" for name in ("ticket", "request_id"))
        tickets = self._tickets(*begins, text=text, end=f"{text}\U0010ffff", limit=limit)
        words: dict[str, Any] = {f"word{n}": word for n, word in enumerate(text.split()[:8])}
        rows = self.file.read(
            "SELECT event FROM events WHERE event > (SELECT max(event) FROM events) - :most"
            " AND subject != '' AND ticket IS NOT NULL"
            f"{''.join(f' AND instr(lower(subject), lower(:{word}))' for word in words)}"
            " ORDER BY event DESC LIMIT :limit",
            most=self.SEARCHED,
            limit=limit,
            **words,
        )
        return tickets, [row["event"] for row in rows]

    def _tickets(self, *conditions: str, **arguments: Any) -> list[str]:
        """Tickets that fit one of the conditions: mapped, or seen in an event."""
        each = (
            f"SELECT * FROM (SELECT ticket FROM tickets WHERE {condition} LIMIT :limit)"
            for condition in conditions
        )
        rows = self.file.read(f"{' UNION '.join(each)} LIMIT :limit", **arguments)
        return [row["ticket"] for row in rows]

    def latest_of(self, tickets: Sequence[str]) -> list[int]:
        """The number of each ticket's latest event, where it has one still."""
        rows = []
        for ticket in tickets:
            rows += self.file.read(
                "SELECT event FROM events WHERE ticket = :ticket"
                " ORDER BY rank DESC, event DESC LIMIT 1",
                ticket=ticket,
            )
        return [row["event"] for row in rows]

    def steps(self, ticket: str) -> list[dict[str, Any]]:
        """Its events, duplicates apart: event, kind, state."""
        return self.file.read(
            "SELECT event, kind, state FROM events WHERE ticket = :ticket"
            " AND state != 'ignored' ORDER BY rank, event",
            ticket=ticket,
        )


# ── Events: intake, line, outcomes, a person's acts ────────────────────────────────────────────


def cause_of(reason: str, ticket: str | None) -> str:
    """What events of like reasons have in common: a reason without its ticket's id."""
    if ticket and len(ticket) > 2:
        reason = re.sub(rf"(?<!\w){re.escape(ticket)}(?!\w)", "\u2026", reason)
    return reason[:300]


PENDING = "state = 'pending'"
OPENED = tuple(f"opens = 1 AND state = '{state}'" for state in ("pending", "held", "delivered"))


class Events(Questions):
    """All that is known of tickets, on a file: their lines, and how their events move.

    Only the head of a ticket's line has a due time: it stands in the ticket's one row. Methods
    with an underscore run within a transaction.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self.mappings = Mappings(file)
        self.pulse, self.since_start = Pulse(), SinceStart()
        self.edits = 0  # how often a person changed events: what was read before is old then
        self.waiters = Waiters()

    # ── Events · the line of a ticket ──────────────────────────────────────────────────────────

    def _insert(
        self, news: Sequence[NewEvent], parent: Any = None, due: float | None = None
    ) -> int:
        """Makes each an event, by one statement; the number of the first.

        `due`: as the head of its ticket, where this has none. One statement, because each lets
        other threads run and waits for its turn again.
        """
        first, born = self.file.number("events", len(news)), self.file.clock()
        values: list[Any] = []
        tickets: list[Any] = []
        for number, new in enumerate(news, first):
            values += (number, parent["rank"] if parent else number)
            values += (parent["event"] if parent else None, born, str(uuid.uuid4()))
            cause = cause_of(new.reason, new.ticket) if new.state == "failed" else None
            values += (new.digest, cause, *new[: len(KEPT)])
            self.file.count(new.state)
            self.file.count("repaired", bool(new.repaired))
            if new.state == "failed":
                self.file.count("failed", hourly=True)
            duplicate = new.state == "ignored" and new.kind  # the others no rule wanted
            if new.ticket is not None and parent is None and not duplicate:
                tickets += (new.ticket, number, number if due is not None else None, due)
        columns = (*GIVEN, *KEPT)
        row = f"({', '.join('?' * len(columns))})"
        self.file.execute_row(
            f"INSERT INTO events ({', '.join(columns)}) VALUES {', '.join([row] * len(news))}",
            values,
        )
        if tickets:
            self.file.execute_row(
                "INSERT INTO tickets (ticket, latest, head, due)"
                f" VALUES {', '.join(['(?, ?, ?, ?)'] * (len(tickets) // 4))}"
                " ON CONFLICT (ticket) DO UPDATE SET latest = excluded.latest,"
                " due = CASE WHEN head IS NULL THEN excluded.due ELSE due END,"
                " head = coalesce(head, excluded.head)",
                tickets,
            )
        if parent is None:
            self.file.count("received", len(news), hourly=True)
        return first

    def _move(self, event: int, leaves: str, enters: str, reason: str, **columns: Any) -> bool:
        """Moves an event from one state to another; False where it was not in the first."""
        columns = {"settled": time.time(), "cause": None, **columns}
        sets = "".join(f", {name} = :{name}" for name in columns)
        changed = self.file.execute(
            f"UPDATE events SET state = :enters, reason = :reason{sets}"
            " WHERE event = :event AND state = :leaves",
            event=event,
            leaves=leaves,
            enters=enters,
            reason=reason,
            **columns,
        ).rowcount
        if not changed:
            return False
        self.file.count(leaves, -1)
        self.file.count(enters)
        if leaves != enters and enters in ("delivered", "failed"):
            self.file.count(enters, hourly=True)
        if enters == "delivered":
            self.file.count_to("last_delivery", round(time.time() * 1000))
            self.file.after_commit(self.pulse.count_delivered)
        if enters not in ("pending", "held"):
            self.file.after_commit(lambda: self.waiters.tell(event))
        return True

    def _arrange(self, ticket: str) -> None:
        """Holds what waits for nobody, lets go what was held, and finds the head of the line.

        Without a request id the head is an opening event, or one that needs no id; the others
        wait: pending while an opening event is, held where none is. Where the opening failed, all
        wait. Each question is answered from an index: the length of the line costs nothing.
        """
        line = self.file.row(
            "SELECT request_id, head, EXISTS (SELECT 1 FROM events INDEXED BY events_held"
            " WHERE ticket = :ticket AND state = 'held' AND may_have_happened = 0) AS held,"
            " EXISTS (SELECT 1 FROM events INDEXED BY events_pending"
            " WHERE ticket = :ticket AND state = 'pending') AS pending"
            " FROM tickets WHERE ticket = :ticket",
            ticket=ticket,
        )
        if line is None:
            return
        first = None
        if line["request_id"] is not None:
            if line["held"]:
                self._switch(ticket, "held", "pending", "", "may_have_happened = 0")
            if line["held"] or line["pending"]:
                waiting = (f"{PENDING} AND waits_for_id = {n}" for n in (0, 1))
                first = self._earliest(ticket, *waiting)
        else:
            barred = self._hold(ticket, bool(line["held"]))
            which = "opens = 1" if barred else "waits_for_id = 0"
            first = self._earliest(ticket, f"{PENDING} AND {which}")
        if first != line["head"]:
            self.file.execute(
                "UPDATE tickets SET head = :head, due = :due WHERE ticket = :ticket",
                ticket=ticket,
                head=first,
                due=None if first is None else self.file.clock(),
            )

    def _hold(self, ticket: str, held: bool) -> bool:
        """Lets the events of a ticket without a request id wait or go; whether all must wait.

        `held`: some are held for the request id.
        """
        opened = "EXISTS (SELECT 1 FROM events WHERE ticket = :ticket AND opens = 1 AND state ="
        opening, failed, unclear = self.file.row(
            f"SELECT {opened} 'pending'), {opened} 'failed'),"
            f" {opened} 'held' AND may_have_happened = 1)",
            ticket=ticket,
        )
        barred = failed or unclear
        for waits in () if opening else (1, 0) if barred else (1,):
            self._switch(ticket, "pending", "held", WAITS, f"waits_for_id = {waits}")
        if held and (opening or not barred):
            which = "1" if opening else "waits_for_id = 0"
            self._switch(ticket, "held", "pending", "", f"may_have_happened = 0 AND {which}")
        if not opening:
            self._name_held(ticket, bool(barred))
        return bool(barred)

    def _name_held(self, ticket: str, barred: bool) -> None:
        """Lets the first of what is held for the request id stand for all: a person is to map it.

        None of them where the ticket's opening failed: that one stands for all.
        """
        held = "state = 'held' AND may_have_happened = 0"
        causes = (
            f"SELECT * FROM (SELECT event, cause FROM events WHERE ticket = :ticket AND {held}"
            f" AND waits_for_id = {waits} ORDER BY cause DESC LIMIT 1)"
            for waits in (0, 1)
        )
        sql = f"{' UNION ALL '.join(causes)} ORDER BY cause DESC LIMIT 1"
        named = self.file.row(sql, ticket=ticket)
        if named is None or (named["cause"] is None) == barred:
            return
        self.file.execute(
            "UPDATE events SET cause = :cause WHERE event = :event",
            cause=None if barred else WAITS,
            event=named["event"] if barred else self._earliest(ticket, held),
        )

    def _earliest(self, ticket: str | None, *conditions: str) -> int | None:
        """The first event of a ticket's line that fits one of the conditions, None for none.

        Each condition is answered by itself, from the beginning of an index.
        """
        firsts = (
            "SELECT * FROM (SELECT event, rank FROM events WHERE ticket = :ticket"
            f" AND {condition} ORDER BY rank, event LIMIT 1)"
            for condition in conditions
        )
        sql = f"{' UNION ALL '.join(firsts)} ORDER BY rank, event LIMIT 1"
        row = self.file.row(sql, ticket=ticket)
        return row["event"] if row else None

    def _switch(self, ticket: str, leaves: str, enters: str, reason: str, which: str) -> None:
        changed = self.file.execute(
            "UPDATE events SET state = :enters, reason = :reason, settled = :now, cause = NULL"
            f" WHERE ticket = :ticket AND state = '{leaves}' AND {which}",
            ticket=ticket,
            enters=enters,
            reason=reason,
            now=time.time(),
        ).rowcount
        self.file.count(leaves, -changed)
        self.file.count(enters, changed)

    # ── Events · intake ────────────────────────────────────────────────────────────────────────

    def receive(self, news: Sequence[NewEvent]) -> list[Receipt | Exception]:
        """Stores webhooks as events, or knows them for duplicates; returns when that is durable.

        One transaction for all. For each its receipt, or why it was not stored: FileFull,
        FileError or what SQLite refuses.
        """
        if self.file.full:
            return [FileFull() for _ in news]
        try:
            return list(self.file.write(lambda: self._receive(news)))
        except Exception as error:
            if len(news) == 1 or self.file.full or self.file.broken:
                return [error for _ in news]
            return [self.receive([new])[0] for new in news]  # a bad one takes no other along

    def _receive(self, news: Sequence[NewEvent]) -> list[Receipt]:
        fresh = self._fresh_openings(news)
        first = self._insert([*fresh.values()], due=self.file.clock()) if fresh else 0
        numbers = {index: number for number, index in enumerate(fresh, first)}
        return [
            Receipt(numbers[index], "pending", "", None)
            if index in numbers
            else self._receive_one(new)
            for index, new in enumerate(news)
        ]

    def _fresh_openings(self, news: Sequence[NewEvent]) -> dict[int, NewEvent]:
        """By their index those that open a ticket which nobody has heard of."""
        met: set[str | None] = set()
        fresh: dict[int, NewEvent] = {}
        for index, new in enumerate(news):
            first = new.ticket is not None and new.ticket not in met
            if first and new.opens and new.state == "pending" and not new.delivery_id:
                fresh[index] = new
            met.add(new.ticket)
        if not fresh:
            return {}
        tickets = [new.ticket for new in fresh.values()]
        rows = self.file.execute_row(
            f"SELECT ticket FROM tickets WHERE ticket IN ({', '.join('?' * len(tickets))})",
            tickets,
        )
        old = {row["ticket"] for row in rows}
        return {index: new for index, new in fresh.items() if new.ticket not in old}

    def _receive_one(self, new: NewEvent) -> Receipt:
        ticket = new.ticket
        if ticket is None:
            return self._receive_unreadable(new)
        line = self.file.row(
            "SELECT request_id, latest FROM tickets WHERE ticket = :ticket", ticket=new.ticket
        )
        request_id = line["request_id"] if line else None
        if new.opens and (latest := self._overtaken(new, line)):  # it turns no clock back
            new = new._replace(stamp=latest["stamp"])
        if new.state == "failed":
            first = self._repeated(new, line)
            if first and first["unsent"]:  # refused with 400 then, and now again
                return Receipt(first["event"], "failed", new.reason, request_id)
        number, reason = self._duplicate(new, line) if new.state != "ignored" else (None, "")
        if reason:
            stored = self._insert([new._replace(state="ignored", reason=reason)])
            return Receipt(number or stored, "ignored", reason, request_id)
        if new.state == "pending" and request_id is not None:  # it waits for nothing but its turn
            number = self._insert([new], due=self.file.clock())
            return Receipt(number, "pending", "", request_id)
        number = self._insert([new])
        if new.state == "pending" or new.opens:  # an opening that failed bars the line
            self._arrange(ticket)
        row = self.file.row("SELECT state, reason FROM events WHERE event = :event", event=number)
        return Receipt(number, row["state"], row["reason"], request_id)

    def _receive_unreadable(self, new: NewEvent) -> Receipt:
        first = self.file.row(
            "SELECT event, reason FROM events WHERE digest = :digest AND ticket IS NULL"
            " AND state = 'failed'",
            digest=new.digest,
        )
        if first and new.state == "failed":
            return Receipt(first["event"], "failed", first["reason"], None)
        return Receipt(self._insert([new]), new.state, new.reason, None)

    def _duplicate(self, new: NewEvent, line: Any) -> tuple[int | None, str]:
        """The event that a webhook repeats, if any, and the reason to ignore it ("" for none).

        In this order: the ticket is opened already; it is older than the latest (`order`); it has
        a delivery id that was there, or without one all that is sent is as in the latest.
        """
        if new.opens and new.again == "ignore":
            if number := self._earliest(new.ticket, *OPENED):
                return number, f"duplicate of event {number}: the ticket is opened already"
            if line and line["request_id"] is not None:
                return None, f"the ticket already has request id {line['request_id']}"
        if latest := self._overtaken(new, line):
            return latest["event"], f"older than event {latest['event']}"
        first = self._repeated(new, line)
        if first is None or first["state"] == "dropped" or first["unsent"]:
            return None, ""
        if first["state"] == "failed" and new.opens:
            return None, ""  # it takes the place of the first
        return first["event"], f"duplicate of event {first['event']}"

    def _overtaken(self, new: NewEvent, line: Any) -> Any:
        """Its ticket's latest event, where a webhook is older by what its hook orders by."""
        if new.stamp is None or line is None:
            return None
        sql = "SELECT event, stamp FROM events WHERE event = :latest AND stamp > :stamp"
        return self.file.row(sql, latest=line["latest"], stamp=new.stamp)

    def _repeated(self, new: NewEvent, line: Any) -> Any:
        """The event that a webhook says again: by its delivery id, else its ticket's latest.

        `unsent`: it failed before any attempt.
        """
        columns = "event, state, state = 'failed' AND attempts = 0 AS unsent"
        if new.delivery_id:
            return self.file.row(
                f"SELECT {columns} FROM events WHERE delivery_id = :delivery_id AND kind = :kind"
                " AND ticket = :ticket AND state != 'ignored' ORDER BY event LIMIT 1",
                delivery_id=new.delivery_id,
                ticket=new.ticket,
                kind=new.kind,
            )
        return line and self.file.row(
            f"SELECT {columns} FROM events WHERE event = :latest AND digest = :digest",
            latest=line["latest"],
            digest=new.digest,
        )

    # ── Events · what Delivery asks and records ────────────────────────────────────────────────

    def recover(self) -> None:
        """After a start: attempts that were on their way are unclear, due times within reach."""

        def operation() -> None:
            self.file.execute(
                "UPDATE attempts SET outcome = 'unclear',"
                " reason = 'the program ended while the request was on its way'"
                " WHERE outcome = 'sent' AND event IN"
                " (SELECT event FROM events WHERE (state = 'pending' OR state = 'held')"
                " AND may_have_happened = 1)"
            )
            cap = self.file.clock() + MAX_RETRY_AFTER
            self.file.execute("UPDATE tickets SET due = :cap WHERE due > :cap", cap=cap)

        self.file.write(operation)

    def adapt(self, kinds: Mapping[str, tuple[bool, bool]]) -> None:
        """After a start: kinds as they are configured now; for each (opens, waits_for_id).

        What waits follows them: a reload may have changed what an event needs.
        """
        known = json.dumps(sorted(kinds.items()))
        if self.file.fact("kinds") == known:
            return

        def operation() -> None:
            tickets: set[str] = set()
            for kind, (opens, waits_for_id) in kinds.items():
                which = (
                    "(state = 'pending' OR state = 'held') AND kind = :kind AND ticket IS NOT NULL"
                    " AND (opens != :opens OR waits_for_id != :waits)"
                )
                arguments = {"kind": kind, "opens": opens, "waits": waits_for_id and not opens}
                rows = self.file.execute(f"SELECT ticket FROM events WHERE {which}", **arguments)
                tickets |= {row["ticket"] for row in rows.fetchall()}
                self.file.execute(
                    f"UPDATE events SET opens = :opens, waits_for_id = :waits WHERE {which}",
                    **arguments,
                )
            for ticket in tickets:
                opened = "opens = 1 AND may_have_happened = 0"  # an opening waits for nobody
                self._switch(ticket, "held", "pending", "", opened)
                self._arrange(ticket)
            self.file.set_facts({"kinds": known})

        self.file.write(operation)

    def postpone_unclear(self, kind: str, due: float) -> None:
        """Lets openings that may have happened wait until `due` (service clock)."""
        self.file.write(
            lambda: self.file.execute(
                "UPDATE tickets SET due = :due WHERE due IS NOT NULL AND head IN"
                " (SELECT event FROM events WHERE state = 'pending' AND may_have_happened = 1"
                " AND kind = :kind)",
                due=due,
                kind=kind,
            )
        )

    ROOM = 1 << 20  # bytes of fields that one page may hold, or so

    def due(
        self, now: float, limit: int, busy: Collection[str] = (), untried: bool = False
    ) -> list[Event]:
        """Events to be tried at `now` (service clock), longest due first.

        None of the tickets in `busy`. `untried`: only such that nobody tried yet.
        """
        left = [limit, self.ROOM]

        def enough(row: sqlite3.Row) -> bool:
            left[0] -= 1
            left[1] -= len(row["fields"])
            return left[0] == 0 or left[1] < 0

        flying = {f"flying{number}": ticket for number, ticket in enumerate(busy)}
        rows = self.file.read(
            "SELECT event, tickets.ticket, kind, hook, opens, may_have_happened, received, born,"
            " tries, attempts, first_try, idempotency_key, request_id, kept, fields"
            " FROM tickets CROSS JOIN events ON event = head WHERE due <= :now"
            f" AND tickets.ticket NOT IN ({', '.join(f':{name}' for name in flying)})"
            f"{' AND attempts = 0' if untried else ''} ORDER BY due",
            enough,
            now=now,
            **flying,
        )
        texts = ("fields", "kept")
        return [
            Event(**{**row, **{name: json.loads(row[name]) for name in texts}}) for row in rows
        ]

    def next_due(self, now: float) -> float | None:
        """The earliest due time after `now` (service clock), None where there is none."""
        rows = self.file.read("SELECT min(due) AS due FROM tickets WHERE due > :now", now=now)
        return rows[0]["due"]  # type: ignore[no-any-return]

    def postpone(self, event: int, due: float) -> None:
        """Lets an event wait until `due` (service clock), without an attempt."""
        self.file.write(lambda: self._put_off(event, due))

    def _put_off(self, event: int, due: float) -> bool:
        """Sets the next try of an event; False where it is not the head of its ticket's line."""
        sql = (
            "UPDATE tickets SET due = :due WHERE head = :event"
            " AND ticket = (SELECT ticket FROM events WHERE event = :event)"
        )
        return bool(self.file.execute(sql, due=due, event=event).rowcount)

    def _keep_attempt(self, event: int, number: int, attempt: Attempt) -> None:
        if number > 1 and attempt.sent:  # what was sent before is kept once
            before = self.file.row(
                "SELECT sent FROM attempts WHERE event = :event AND attempt < :number"
                " AND asked = :asked AND sent != '' ORDER BY attempt DESC LIMIT 1",
                event=event,
                number=number,
                asked=attempt.asked,
            )
            if before and before["sent"] == attempt.sent:
                attempt = replace(attempt, sent="")
        self.file.execute(
            "INSERT OR REPLACE INTO attempts VALUES (:event, :number, :at, :duration, :status,"
            " :outcome, :reason, :answer, :asked, :sent)",
            event=event,
            number=number,
            **vars(attempt),
        )
        if number > 60:  # of a long outage the first and the last attempts are kept
            self.file.execute(
                "DELETE FROM attempts WHERE event = :event AND attempt = :number AND sent = ''",
                event=event,
                number=number - 50,
            )

    def begin(self, event: Event, at: float, request: str = "") -> bool:
        """Records durably that an attempt is about to be made; False: the event may not go now.

        Until its outcome is recorded it may have happened: a crash leaves it unclear.
        """

        def operation() -> bool:
            number = event.attempts + 1
            changed = self.file.execute(
                "UPDATE events SET attempts = :number, may_have_happened = 1 WHERE event = :event"
                " AND event = (SELECT head FROM tickets WHERE ticket = :ticket)",
                number=number,
                event=event.event,
                ticket=event.ticket,
            ).rowcount
            if changed:
                sent = Attempt(at, 0.0, None, "sent", "on its way", sent=request)
                self._keep_attempt(event.event, number, sent)
            return bool(changed)

        return self.file.write(operation)

    def record(self, event: Event, attempts: Sequence[Attempt], verdict: Verdict) -> bool:
        """Records attempts and what becomes of their event, against what is in the file now.

        False for an event that a person has settled meanwhile: what a person said stands. A
        request id that the ITSM gave is kept all the same, where the ticket has none.
        """
        return self.file.write(lambda: self._record(event, attempts, verdict))

    def _record(self, event: Event, attempts: Sequence[Attempt], verdict: Verdict) -> bool:
        first_try = event.first_try
        if attempts and verdict.state == "pending" and first_try is None:
            first_try = self.file.clock()
        if verdict.request_id:
            verdict = self._one_request_one_ticket(event, verdict)
        columns: dict[str, Any] = {
            "tries": verdict.tries,
            "attempts": event.attempts + len(attempts),
            "first_try": first_try,
            "may_have_happened": verdict.may_have_happened,
        }
        if verdict.state in ("held", "failed"):
            columns["cause"] = cause_of(verdict.reason, event.ticket)
        moved = any(  # held: an opening of its ticket has failed while it was on its way
            self._move(event.event, state, verdict.state, verdict.reason, **columns)
            for state in ("pending", "held")
        )
        if not moved:
            self.file.execute(
                "UPDATE events SET attempts = :attempts WHERE event = :event",
                attempts=columns["attempts"],
                event=event.event,
            )
        for number, attempt in enumerate(attempts, event.attempts + 1):
            self._keep_attempt(event.event, number, attempt)
        if verdict.request_id and (moved or self.mappings.request_id(event.ticket) is None):
            self.mappings.set(event.ticket, verdict.request_id, "itsm", time.time())
        if verdict.kept and (moved or not event.request_id):
            self.mappings.keep(event.ticket, verdict.kept)
        if moved and verdict.then:
            self._follow(event, verdict)
        due = self.file.clock() if verdict.due is None else verdict.due
        if not (moved and verdict.state == "pending" and self._put_off(event.event, due)):
            self._arrange(event.ticket)
        return moved

    def _one_request_one_ticket(self, event: Event, verdict: Verdict) -> Verdict:
        """A request id that another ticket has is never taken by itself: a person decides."""
        other = self.mappings.other(event.ticket, verdict.request_id)
        if not other:
            return verdict
        reason = (
            f"the ITSM gave ticket {event.ticket} the request {verdict.request_id}, which ticket"
            f" {other} has: look there which is right; `map` or `retry` decides"
        )
        return Verdict("held", reason, may_have_happened=True)

    def _follow(self, event: Event, verdict: Verdict) -> None:
        """Queues the `then` event of one that was delivered, ahead of the ticket's later ones."""
        sql = "SELECT event, rank, sender, fields FROM events WHERE event = :event"
        parent = self.file.row(sql, event=event.event)
        follower = NewEvent(
            hook=event.hook,
            raw=b"",
            headers="{}",
            sender=parent["sender"],
            received=event.received,
            state="pending",
            kind=verdict.then,
            ticket=event.ticket,
            fields=parent["fields"],
            waits_for_id=verdict.then_waits_for_id,
        )
        self._insert([follower], parent)

    def _forget_line(self, ticket: str | None) -> None:
        """Removes the row of a ticket that has neither event nor request id any more."""
        gone = "NOT EXISTS (SELECT 1 FROM events WHERE ticket = :ticket)"
        for sql in (
            f"DELETE FROM tickets WHERE ticket = :ticket AND request_id IS NULL AND {gone}",
            f"DELETE FROM acts WHERE ticket = :ticket AND event IS NULL AND {gone}",
        ):
            self.file.execute(sql, ticket=ticket)

    def retain(self, received_before: float, after: int, limit: int = 200) -> int:
        """Deletes settled events received before that, among the `limit` that follow `after`.

        Returns where to go on, 0 when all are looked at. The last event stays: it says when the
        last webhook came.
        """

        def operation() -> int:
            rows = self.file.execute(
                "SELECT event, state, received, ticket FROM events WHERE event > :after"
                " AND event < (SELECT max(event) FROM events) ORDER BY event LIMIT :limit",
                after=after,
                limit=limit,
            ).fetchall()
            old = [row for row in rows if row["received"] < received_before]
            for row in old:
                if row["state"] in ("delivered", "ignored", "dropped"):
                    self.file.count(row["state"], -1)
                    for table in ("attempts", "acts", "events"):
                        self.file.execute(
                            f"DELETE FROM {table} WHERE event = :event", event=row["event"]
                        )
                    self._forget_line(row["ticket"])
            self.file.execute(
                "DELETE FROM counts WHERE hour > 0 AND hour < :hour",
                hour=int(received_before) // 3600,
            )
            return old[-1]["event"] if len(old) == limit else 0

        return self.file.write(operation)

    def wait(self, event: int, seconds: float, most: int) -> Receipt | None:
        """How `event` stands when it was settled, or after `seconds`.

        None at once where `most` callers wait already: each keeps a thread from other webhooks.
        """
        deadline, waiter = time.monotonic() + seconds, self.waiters.join(event, most)
        if waiter is None:
            return None
        try:
            while True:
                rows = self.file.read(
                    "SELECT state, reason, request_id FROM events LEFT JOIN tickets USING (ticket)"
                    " WHERE event = :event",
                    event=event,
                )
                left = deadline - time.monotonic()
                settled = not rows or rows[0]["state"] not in ("pending", "held")
                if settled or left <= 0 or self.waiters.leaving:
                    break
                waiter.wait(left)
        finally:
            self.waiters.quit(event, waiter)
        return Receipt(event, **rows[0]) if rows else None

    # ── Events · a person's acts ───────────────────────────────────────────────────────────────

    def _edit(self, operation: Callable[[], T]) -> T:
        """Carries out what a person wants; what was read before is old then."""

        def counted() -> T:
            self.edits += 1
            return operation()

        return self.file.write(counted)

    def _act(self, event: int | None, ticket: str | None, what: str, who: str) -> None:
        self.file.execute(
            "INSERT INTO acts (event, ticket, at, what, who)"
            " VALUES (:event, :ticket, :at, :what, :who)",
            event=event,
            ticket=ticket,
            at=time.time(),
            what=what,
            who=who,
        )

    def retry(
        self, news: Mapping[int, NewEvent], force: bool = False, who: str = ""
    ) -> dict[int, str]:
        """Puts events back to pending as they read now; those that are refused, with why."""
        return self._edit(
            lambda: {
                number: refusal
                for number, new in news.items()
                if (refusal := self._retry(number, new, force, who))
            }
        )

    def refusals(self, news: Mapping[int, NewEvent], force: bool = False) -> dict[int, str]:
        """What `retry` would refuse, with why; nothing is done."""
        return self.file.write(
            lambda: {
                number: refusal
                for number, new in news.items()
                if (refusal := self._why_not_retry(number, new, force)[1])
            }
        )

    def _why_not_retry(self, event: int, new: NewEvent, force: bool) -> tuple[Any, str]:
        """The event's row, and why it cannot be retried, or ""."""
        row = self.file.row(
            "SELECT event, parent, state, ticket, rank, may_have_happened, delivery_id, stamp"
            " FROM events"
            " WHERE event = :event",
            event=event,
        )
        if row is None:
            return row, f"there is no event {event}"
        if row["state"] in ("pending", "delivered") or (
            row["state"] == "held" and not row["may_have_happened"]
        ):
            return row, f"event {event} is {row['state']}: nothing to retry"
        refusal = "" if force else self._out_of_order(row, new)
        return row, f"{refusal}: --force sends it all the same" if refusal else ""

    def _retry(self, event: int, new: NewEvent, force: bool, who: str) -> str:
        row, refusal = self._why_not_retry(event, new, force)
        if refusal:
            return refusal
        self._act(event, new.ticket, "retry", who)
        self._move(
            event,
            row["state"],
            "pending",
            "",
            kind=new.kind,
            ticket=new.ticket,
            fields=new.fields,
            repaired=new.repaired,
            subject=new.subject,
            digest=new.digest,
            delivery_id=new.delivery_id or row["delivery_id"],
            stamp=row["stamp"] if new.stamp is None else new.stamp,
            opens=new.opens,
            waits_for_id=new.waits_for_id,
            may_have_happened=False,
            tries=0,
            first_try=None,
            born=self.file.clock(),
        )
        latest = event if row["parent"] is None else None
        self.file.execute(
            "INSERT INTO tickets (ticket, latest) VALUES (:ticket, :latest) ON CONFLICT (ticket)"
            " DO UPDATE SET latest = max(coalesce(latest, 0), coalesce(excluded.latest, latest))",
            ticket=new.ticket,
            latest=latest,
        )
        self._arrange(str(new.ticket))
        if row["ticket"] not in (None, new.ticket):  # it was read as another's
            self._arrange(row["ticket"])
            self._forget_line(row["ticket"])
        return ""

    def _out_of_order(self, row: Any, new: NewEvent) -> str:
        """Why sending the event of `row` now could double or disorder its ticket, or ""."""
        number, ticket = row["event"], new.ticket
        later = self.file.row(
            "SELECT event FROM events WHERE ticket = :ticket AND state = 'delivered'"
            " AND (rank, event) > (:rank, :event) LIMIT 1",
            ticket=ticket,
            rank=row["rank"],
            event=number,
        )
        if later:
            return (
                f"event {number} is older than event {later['event']} of ticket {ticket}, which"
                " was delivered"
            )
        if not new.opens or new.again == "send":
            return ""
        other = self._earliest(ticket, *(f"{opened} AND event != {number}" for opened in OPENED))
        request_id = self.mappings.request_id(str(ticket))
        if other or request_id:
            why = f"event {other} does it" if other else f"it has request id {request_id}"
            return f"event {number} would open ticket {ticket} a second time ({why})"
        return ""

    def drop(self, event: int, why: str, who: str = "") -> str:
        """Gives an event up; "" or why it cannot be dropped."""

        def operation() -> str:
            row = self.file.row("SELECT state, ticket FROM events WHERE event = :e", e=event)
            if row is None:
                return f"event {event} is not there"
            if row["state"] not in ("pending", "held", "failed", "ignored"):
                return f"event {event} is {row['state']}: nothing to drop"
            self._move(event, row["state"], "dropped", f"dropped by hand: {why}")
            self._act(event, row["ticket"], "drop", who)
            if row["ticket"] is not None and row["state"] != "ignored":
                self._arrange(row["ticket"])
            return ""

        return self._edit(operation)

    def map(self, ticket: str, request_id: str, who: str = "") -> tuple[list[int], str]:
        """Sets a ticket's request id by hand; the events that it freed, in order.

        And another ticket that has this request id already, "" for none. An opening that waits, or
        that may have happened, is thereby settled: it is not sent.
        """

        def operation() -> tuple[list[int], str]:
            self.mappings.set(ticket, request_id, "hand", time.time())
            self._act(None, ticket, f"map {request_id}", who)
            freed = self._settle_openings(ticket, "mapped by hand")
            return freed, self.mappings.other(ticket, request_id)

        return self._edit(operation)

    def _settle_openings(self, ticket: str, reason: str) -> list[int]:
        """What a new mapping makes of the ticket's line; the events that it freed, in order."""
        openings = self.file.execute(
            "SELECT event, state FROM events WHERE ticket = :ticket AND opens = 1 AND (state IN"
            " ('pending', 'held') OR (state = 'failed'"
            " AND (may_have_happened = 1 OR reason LIKE :without_id)))",
            ticket=ticket,
            without_id=f"%{NO_ID}%",
        ).fetchall()
        for row in openings:
            self._move(row["event"], row["state"], "delivered", reason)
        waiting = self.file.execute(
            "SELECT event FROM events WHERE ticket = :ticket AND (state = 'pending'"
            " OR (state = 'held' AND may_have_happened = 0)) ORDER BY rank, event",
            ticket=ticket,
        ).fetchall()
        if openings or waiting:
            self._arrange(ticket)
        return [row["event"] for row in waiting]

    def import_mappings(self, rows: Sequence[tuple[str, str, float, str]]) -> int:
        """Adds mappings (ticket, request id, epoch seconds, JSON of what is kept); how many.

        In small transactions.
        """

        def operation(start: int) -> None:
            for ticket, request_id, since, kept in rows[start : start + 200]:
                self.mappings.set(ticket, request_id, "import", since, kept)
                self._settle_openings(ticket, "mapped by import")

        for start in range(0, len(rows), 200):
            self._edit(functools.partial(operation, start))
        return len(rows)

    def forget(self, ticket: str) -> int:
        """Removes the texts of a ticket's settled events; how many. Mapping and states stay."""
        settled = "ticket = :ticket AND state IN ('delivered', 'ignored', 'dropped')"

        def operation() -> int:
            self.file.execute(
                "UPDATE attempts SET answer = '', reason = '', sent = '' WHERE event IN"
                f" (SELECT event FROM events WHERE {settled})",
                ticket=ticket,
            )
            return self.file.execute(
                "UPDATE events SET raw = X'', headers = '{}', sender = '', reason = '',"
                f" subject = '', fields = :fields WHERE {settled}",
                ticket=ticket,
                fields=COMPACT.encode({"ticket_id": ticket}),
            ).rowcount

        count = self._edit(operation)
        self.file.read("PRAGMA wal_checkpoint(TRUNCATE)")  # or the texts would stay in there
        return count


# ── Words: what people read, in English and in Korean ──────────────────────────────────────────

SENT = "event {n}, ticket {ticket}, by {path}"  # as `check --send` begins
KOREAN: dict[str, str] = {  # what the page and the commands say -> the same in Korean
    "(in the last day; a helpdesk that does not repeat lost them)": (
        "(최근 24시간; 헬프데스크가 다시 보내지 않으면 사라집니다)"
    ),
    "Actions": "작업",
    "Address": "주소",
    "address": "주소",
    "After it go: {events}.": "이어서 전달할 이벤트: {events}.",
    "all": "전체",
    "All attempts": "전체 시도",
    "All delivered": "모두 전달했습니다",
    "all is well": "이상 없습니다",
    "All others are delivered. Nothing needs you.": (
        "나머지는 모두 전달했습니다. 확인할 것은 없습니다."
    ),
    "answered {status}": "응답 {status}",
    "answered {status} with HTML instead of JSON: a login page or a proxy?": (
        "응답 {status}, JSON이 아닌 HTML: 로그인 화면이나 프록시일 수 있습니다"
    ),
    "answered {status} without a request id where it should be": "응답 {status}, 요청 번호 없음",
    "answered {status} without JSON": "응답 {status}, JSON 없음",
    "answered {status}, but the answer may have been cut": "응답 {status}, 응답이 잘렸을 수 있음",
    "answered {status}, {outcome} by rule {n} of `answers`": (
        "응답 {status}, `answers` 규칙 {n}에 따라 {outcome}"
    ),
    "answered {status}: {why}": "응답 {status}: {why}",
    "answers": "응답함",
    "as of {time}": "{time} 기준",
    "At": "시각",
    "Attempt": "시도",
    "attempt {n}": "시도 {n}",
    "Attempts": "시도",
    "Besides: {what}.": "그 밖에: {what}.",
    "By hand": "수동 작업",
    "by hand": "수동 작업",
    "cannot be translated: {why}": "변환할 수 없음: {why}",
    "certificate": "인증서",
    "clock": "시계",
    "configuration": "설정",
    "connection refused": "연결 거부",
    "Delivered": "전달",
    "delivered": "전달",
    "Deliveries": "전달 상태",
    "Deliveries are paused": "전달을 멈췄습니다",
    "Deliveries are paused by hand": "전달을 멈춰 둔 상태입니다",
    "Deliveries go on": "전달을 다시 시작했습니다",
    "disk": "디스크",
    "does not answer": "응답 없음",
    "Does the helpdesk still send them?": "헬프데스크가 웹훅을 보내고 있는지 확인하세요.",
    "down": "응답 없음",
    "Drop": "포기",
    "drop": "포기",
    "Drop event {n}": "이벤트 {n} 포기",
    "dropped": "포기",
    "dropped by hand: {why}": "직접 포기: {why}",
    "duplicate of event {n}": "이벤트 {n} 중복",
    "duplicate of event {n}: the ticket is opened already": "이벤트 {n} 중복: 이미 접수된 티켓",
    "Event": "이벤트",
    "Event {n}": "이벤트 {n}",
    "event {n}": "이벤트 {n}",
    "Event {n} is given up": "이벤트 {n} 포기함",
    "Event {n} is sent again": "이벤트 {n} 다시 보냄",
    "Events": "이벤트",
    "Events: {what}": "이벤트: {what}",
    "Failed": "실패",
    "failed": "실패",
    "failed {n} times while others went through: {why}": (
        "다른 티켓은 전달되는데 {n}번 실패: {why}"
    ),
    "field": "필드",
    "file": "파일",
    "found": "내용",
    "Found for “{text}”": "“{text}” 검색 결과",
    "From": "보낸 곳",
    "from another machine the page needs [server] admin_password": (
        "다른 컴퓨터에서 보려면 [server] admin_password를 설정하세요"
    ),
    "from {sender}": "보낸 곳 {sender}",
    "Give event {n} up?": "이벤트 {n}: 포기할까요?",
    "given up after [retry] give_up_after: {why}": "[retry] give_up_after가 지나 포기: {why}",
    "go on": "전달 중",
    "held": "보류",
    "Helpdesk": "헬프데스크",
    "hook": "훅",
    "Hour": "시간",
    "ignored": "무시",
    "In the last day; a helpdesk that does not repeat them has lost them.": (
        "최근 24시간 기준입니다. 헬프데스크가 다시 보내지 않으면 사라집니다."
    ),
    "in the words of the ITSM": "ITSM이 보낸 그대로",
    "issued by {issuer}, expired: have it renewed": "발급 {issuer}, 만료됨: 갱신하세요",
    "issued by {issuer}, good for {n} days": "발급 {issuer}, {n}일 남음",
    "issued by {issuer}, good for {n} days: have it renewed": (
        "발급 {issuer}, {n}일 남음: 갱신하세요"
    ),
    "issued by {issuer}, good for {n} days: itsm.ca_file (PEM) must hold its authority": (
        "발급 {issuer}, {n}일 남음: 발급 기관 인증서(PEM)를 itsm.ca_file에 넣으세요"
    ),
    "it has a trouble of its own, or a proxy before it: deliveries wait until it is over": (
        "ITSM이나 앞단 프록시에 문제가 있습니다. 풀릴 때까지 전달이 기다립니다"
    ),
    "it has enough of us for now, or of whoever shares our address or credential": (
        "요청이 너무 많다고 합니다. 같은 주소나 계정을 쓰는 곳이 더 있을 수 있습니다"
    ),
    "It is kept, but not sent.": "기록은 남고, 보내지는 않습니다.",
    "It is translated with today's configuration and sent.": (
        "지금 설정으로 다시 변환해서 보냅니다."
    ),
    "it leads elsewhere, and a delivery follows nowhere: put the right address into itsm.url": (
        "다른 주소로 넘깁니다. 전달은 따라가지 않으니 itsm.url에 올바른 주소를 넣으세요"
    ),
    "it will soon be given up": "곧 포기할 이벤트입니다",
    "Its events, in order": "이벤트 (순서대로)",
    "Kind": "종류",
    "last delivery": "마지막 전달",
    "last delivery {ago} ago": "마지막 전달 {ago} 전",
    "last webhook": "마지막 웹훅",
    "Leave it": "그대로 두기",
    "Let deliveries go on?": "전달을 다시 시작할까요?",
    "log": "로그",
    "Log in": "로그인이 필요합니다",
    "log.file: cannot write {file}: it or {folder} is not there or not ours": (
        "log.file: {file}에 쓸 수 없습니다: 파일이나 {folder}가 없거나 권한이 없습니다"
    ),
    "look": "확인",
    "Look into the ITSM: if the request is there, map it, and name in itsm.request_id where its"
    " answers say the id now; if not, retry.": (
        "ITSM에서 확인하세요: 요청이 있으면 `map`으로 연결하고, 번호가 있는 새 위치를"
        " itsm.request_id에 적으세요. 없으면 `retry`하세요."
    ),
    "Look into the ITSM: if the request is there, map it; if not, retry.": (
        "ITSM에서 요청을 찾아보세요. 있으면 연결하고, 없으면 다시 보내세요."
    ),
    "look-up": "조회",
    "Map": "연결",
    "Map by hand": "직접 연결",
    "Map the ticket to its request, or retry its opening where that was dropped.": (
        "티켓을 ITSM 요청에 연결하거나, 포기한 접수 이벤트를 다시 보내세요."
    ),
    "Map ticket {ticket}": "티켓 {ticket} 연결",
    "Map ticket {ticket} to request {request_id}?": (
        "티켓 {ticket}: 요청 {request_id}에 연결할까요?"
    ),
    "Map ticket {ticket} to which request?": "티켓 {ticket}: 어느 요청에 연결할까요?",
    "map {request_id}": "연결 {request_id}",
    "mapped by hand": "직접 연결함",
    "mapped by import": "가져오기로 연결함",
    "Mend it in the ITSM or in the configuration, then retry.": (
        "ITSM이나 설정을 고친 뒤 다시 보내세요."
    ),
    "Mend the configuration where the reason says, reload it, then retry.": (
        "위에 적힌 설정을 고쳐 다시 읽힌 뒤 다시 보내세요."
    ),
    "Mend the helpdesk's template or the hook's fields, then retry; or drop it.": (
        "헬프데스크 템플릿이나 훅의 필드를 고친 뒤 다시 보내거나, 포기하세요."
    ),
    "Mend what stands against them, or raise [retry] give_up_after.": (
        "막는 원인을 해결하거나 [retry] give_up_after를 늘리세요."
    ),
    "More reasons: all failed events": "다른 원인 더 보기: 실패한 이벤트 전체",
    "needs you": "확인할 것",
    "Neither a ticket, a request id or an event, nor how an id begins or words of a subject.": (
        "티켓, 요청 번호, 이벤트 번호, 번호의 앞부분, 제목에서 모두 찾지 못했습니다."
    ),
    "newer": "다음 최신",
    "newest": "최신",
    "next": "다음",
    "Next try": "다음 시도",
    "Next try at {time}.": "다음 시도 {time}.",
    "no answer in time": "제한 시간 안에 응답 없음",
    "No attempt yet.": "아직 시도하지 않았습니다.",
    "no delivery yet": "아직 전달 없음",
    "No event fits.": "해당하는 이벤트가 없습니다.",
    "No event yet.": "아직 이벤트가 없습니다.",
    "No request id yet.": "아직 요청 번호가 없습니다.",
    "no rule of hook {hook} matches": "훅 {hook}에 맞는 규칙이 없음",
    "no rule of hook {hook} matches: {what}": "훅 {hook}에 맞는 규칙이 없음: {what}",
    "no such address": "없는 주소입니다",
    "no such address: {method}": "없는 주소: {method}",
    "no ticket": "티켓 없음",
    "no valid credential: see [access] token and hmac": (
        "인증 정보가 맞지 않음: [access] token과 hmac을 확인하세요"
    ),
    "no valid credential and no header {name}: see [access] token and hmac": (
        "인증 정보가 맞지 않고 {name} 헤더도 없음: [access] token과 hmac을 확인하세요"
    ),
    "No webhook came for {ago}": "{ago} 동안 웹훅이 없습니다",
    "nobody can say whether it was done": "처리됐는지 알 수 없음",
    "nobody else may read or write what is to be kept": (
        "보호할 파일을 다른 사용자가 읽거나 쓸 수 없습니다"
    ),
    "none": "없음",
    "None is kept any more.": "남아 있는 이벤트가 없습니다.",
    "none yet": "아직 없음",
    "not asked yet": "아직 연결한 적 없음",
    "Not for you": "권한이 없습니다",
    "Not found": "찾을 수 없습니다",
    "Not now": "지금은 처리할 수 없습니다",
    "Not reached since: this is how it was at {time}. It is asked every 10 s.": (
        "서버에 연결되지 않습니다. {time} 기준 화면이며, 10초마다 다시 연결합니다."
    ),
    "not repaired": "원문 그대로",
    "not running: webhooks are refused; its log says why, `check` what is wrong": (
        "멈춤: 웹훅을 받지 못합니다. 이유는 로그에, 잘못된 점은 `check`에 나옵니다"
    ),
    "Nothing came yet": "아직 받은 웹훅이 없습니다",
    "Nothing is called “{text}”": "“{text}”에 해당하는 것이 없습니다",
    "Nothing needs you.": "확인할 것은 없습니다.",
    "nothing was sent: mend what is wrong first": "보내지 않았습니다: 오류부터 고치세요",
    "nothing yet": "아직 없음",
    "Nothing: it cannot be translated: {why}": "없음: 변환할 수 없습니다: {why}",
    "Nothing: it has no kind that is configured.": "없음: 설정에 없는 종류입니다.",
    "now is {time}; is that your clock?": "지금 {time}: 시계가 맞습니까?",
    "ok": "정상",
    "older": "이전",
    "oldest waiting": "오래된 대기",
    "On their way": "전달 대기",
    "On their way then: {events}.": "곧 전달할 것: {events}.",
    "Outcome": "결과",
    "Parts of the list": "목록 이동",
    "Pause": "멈춤",
    "paused": "멈춤",
    "pending": "대기",
    "previous": "이전",
    "Raw body": "원문",
    "raw body": "원문",
    "Reason": "이유",
    "Received": "받은 시각",
    "received": "받음",
    "refuses our credential": "인증 거부",
    "Repaired": "고친 점",
    "Request": "요청",
    "Request id": "요청 번호",
    "result": "결과",
    "Resume": "다시 시작",
    "Retry": "다시 보내기",
    "retry": "다시 보냄",
    "Retry all {n}": "{n}건 모두 다시 보내기",
    "Retry event {n}": "이벤트 {n} 다시 보내기",
    "running": "동작 중",
    "Search": "검색",
    "secret": "비밀 값",
    "send": "시험 전송",
    "Send event {n} again?": "이벤트 {n}: 다시 보낼까요?",
    "Send {n} event again?|Send all {n} events again?": "이벤트 {n}건을 모두 다시 보낼까요?",
    "service": "서비스",
    "Settled": "처리 시각",
    "Since": "받은 시각",
    "Since {since} ({reason}). Nothing is lost: put the new one into {where}, then restart.": (
        "{since}부터 ({reason}). 사라진 것은 없습니다. 새 인증 정보를 {where}에 넣고 다시 "
        "시작하세요."
    ),
    "Since {since} ({reason}). Nothing is lost: put the new one into {where}.": (
        "{since}부터 ({reason}). 사라진 것은 없습니다. 새 인증 정보를 {where}에 넣으세요."
    ),
    "Since {since} nothing is sent; webhooks are taken.": (
        "{since}부터 보내지 않고 있습니다. 웹훅은 계속 받습니다."
    ),
    "Since {since}, {ago} ({reason}). Nothing is lost.": (
        "{since}부터 {ago}째 ({reason}). 사라진 것은 없습니다."
    ),
    "Since {since}, {ago} ({reason}). Nothing is lost: deliveries go on by themselves.": (
        "{since}부터 {ago}째 ({reason}). 사라진 것은 없으며, 응답하면 자동으로 이어서 전달합니다."
    ),
    "since {since}: `resume` goes on": "{since}부터: `resume`으로 다시 시작",
    "since {since}: {reason}": "{since}부터: {reason}",
    "since {time}": "{time}부터",
    "since {time}, by hand": "{time}부터, 직접 연결",
    "since {time}, by the ITSM": "{time}부터, ITSM이 알려 줌",
    "since {time}, next try in {ago}": "{time}부터, {ago} 뒤 다시 시도",
    "State": "상태",
    "Status": "응답 코드",
    "Stop deliveries?": "전달을 멈출까요?",
    "store.path: {folder} is not writable for this user": (
        "store.path: 이 사용자는 {folder}에 쓸 수 없습니다"
    ),
    "That did not work": "처리하지 못했습니다",
    "the address may be wrong; or it knows no GET there: then name itsm.check_url": (
        "주소가 틀렸을 수 있습니다. GET을 받지 않는 주소라면 itsm.check_url을 지정하세요"
    ),
    "the body is neither JSON nor a form": "본문이 JSON도 폼도 아님",
    "the credential may lack rights, or this address may not call: ask its administrator": (
        "권한이 부족하거나 이 서버의 접근이 막혀 있을 수 있습니다. ITSM 관리자에게 문의하세요"
    ),
    "The disk is full": "디스크가 가득 찼습니다",
    "The ITSM does not answer": "ITSM이 응답하지 않습니다",
    "The ITSM refuses our credential": "ITSM이 인증 정보를 거부합니다",
    "the ITSM's clock is {n} s from ours: dates and hours may be off": (
        "ITSM 시계가 {n}초 다릅니다. 날짜와 시간이 어긋날 수 있습니다"
    ),
    "The last 24 hours": "최근 24시간",
    "The last answer": "마지막 응답",
    "The new configuration was refused": "새 설정을 적용하지 못했습니다",
    "The old one goes on: {problem}": "이전 설정으로 동작합니다: {problem}",
    "The oldest of what waits for you came {when}.": "가장 오래된 것은 {when}에 받았습니다.",
    "the oldest {ago}": "가장 오래된 것 {ago} 전",
    "the page wants its password: see [server] admin_password": (
        "비밀번호가 필요합니다: [server] admin_password"
    ),
    "the program ended while the request was on its way": "요청을 보내는 중에 프로그램이 종료됨",
    "the ticket already has request id {request_id}": "이미 요청 번호 {request_id}에 연결된 티켓",
    "Then wait for a mapping of the ticket: {events}.": (
        "그러면 티켓을 연결할 때까지 기다리는 이벤트: {events}."
    ),
    "They are translated with today's configuration and sent: {what}.": (
        "지금 설정으로 다시 변환해서 보냅니다: {what}."
    ),
    "this address may not post here: see [access] networks": (
        "허용하지 않은 주소: [access] networks를 확인하세요"
    ),
    "this address takes another method (see Allow): {method}": (
        "이 주소가 받지 않는 메서드: {method}"
    ),
    "Ticket": "티켓",
    "Ticket {ticket}": "티켓 {ticket}",
    "Ticket {ticket} is request {request_id} now": "티켓 {ticket}: 요청 {request_id}에 연결함",
    "ticket {ticket}: no request id yet": "티켓 {ticket}: 아직 요청 번호 없음",
    "ticket {ticket}: request {request_id} since {since} (by {origin})": (
        "티켓 {ticket}: 요청 {request_id}, {since}부터 ({origin})"
    ),
    "Ticket, request id, event or subject": "티켓, 요청 번호, 이벤트, 제목",
    "Times": "횟수",
    "to do": "할 일",
    "to stderr": "표준 오류로 출력",
    "To the events": "이벤트 목록으로",
    "Took": "걸린 시간",
    "turned away": "거부한 요청",
    "Turned away in the last day": "최근 24시간에 거부한 요청",
    "unclear": "불확실",
    "Until now it is request {request_id}.": "지금은 요청 {request_id}에 연결되어 있습니다.",
    "up": "정상",
    "version": "버전",
    "waits for event {n}": "앞선 이벤트 {n} 대기",
    "waits for event {n}, which failed": "실패한 이벤트 {n} 때문에 대기",
    "Waits for it: {events}.": "이것을 기다리는 이벤트: {events}.",
    "waits for the request id of its ticket; no opening event is pending": (
        "티켓의 요청 번호를 기다림: 접수 이벤트가 없음"
    ),
    "Webhooks are refused until there is room on the disk.": (
        "디스크에 공간이 생길 때까지 웹훅을 받지 못합니다."
    ),
    "Webhooks are still taken and wait; now {events}.": (
        "웹훅은 계속 받아 쌓아 둡니다. 지금 {events}."
    ),
    "Webhooks go to {hooks}.": "웹훅 주소: {hooks}",
    "What": "작업",
    "what": "항목",
    "What came": "받은 내용",
    "What needs you": "확인할 것",
    "What waits for it goes out: {events}.": "기다리던 이벤트를 보냅니다: {events}.",
    "What was sent": "보낸 내용",
    "What would be sent now": "지금 보낸다면",
    "Who": "누가",
    "Why": "이유",
    "Wide: received. Narrow, within: delivered. Below the line: failed. In numbers": (
        "넓은 막대: 받음, 안쪽 좁은 막대: 전달, 선 아래: 실패. 숫자로 보기"
    ),
    "wrong": "오류",
    "yesterday {time}": "어제 {time}",
    "zone": "시간대",
    "{address} -> {kinds} (as seen from this machine; open TCP {port} in its firewall)": (
        "{address} -> {kinds} (이 서버 기준 주소, 방화벽에서 TCP {port}를 여세요)"
    ),
    "{address} -> {kinds} (only a helpdesk on this machine reaches {host})": (
        "{address} -> {kinds} (이 서버의 헬프데스크만 {host}에 연결할 수 있습니다)"
    ),
    "{ago} ago": "{ago} 전",
    "{event} of {received}": "{event}번 ({received})",
    "{file} will be made by the first start": "{file}: 처음 시작할 때 만듭니다",
    "{file}, held by the running service": "{file}, 동작 중인 서비스가 사용",
    "{file}: others may read and write it: `{command}`": (
        "{file}: 다른 사용자가 읽고 쓸 수 있습니다: `{command}`"
    ),
    "{file}: others may read it: `{command}`": (
        "{file}: 다른 사용자가 읽을 수 있습니다: `{command}`"
    ),
    "{file}: others may write it: `{command}`": (
        "{file}: 다른 사용자가 쓸 수 있습니다: `{command}`"
    ),
    "{first} to {last}": "{first}~{last}",
    "{first} to {last} of {total}": "전체 {total}건 중 {first}~{last}",
    "{hook}: no template uses {fields}": "{hook}: 쓰이지 않는 필드 {fields}",
    "{host} answers (HTTP {status} to a GET; nothing was sent)": (
        "{host} 응답함 (GET에 HTTP {status}, 보낸 것 없음)"
    ),
    "{host} answers (HTTP {status} to a GET; nothing was sent): {why}": (
        "{host} 응답함 (GET에 HTTP {status}, 보낸 것 없음): {why}"
    ),
    "{host} answers {status}: look at itsm.authorization": (
        "{host} 응답 {status}: itsm.authorization을 확인하세요"
    ),
    "{host}: {why}: address, firewall, proxy or certificate?": (
        "{host}: {why}: 주소, 방화벽, 프록시, 인증서를 확인하세요"
    ),
    "{name} finds nothing for an id that nobody has": "{name}: 없는 번호로는 아무것도 찾지 않음",
    "{name} is older than its last security fix {fix}: upgrade it, or see that your "
    "distribution mended it": (
        "{name}: 보안 수정 {fix}보다 오래됐습니다. 올리거나 배포판에서 고쳤는지 확인하세요"
    ),
    "{n} characters": "{n}자",
    "{n} day|{n} days": "{n}일",
    "{n} event is on its way|{n} events are on their way": "이벤트 {n}건을 전달하고 있습니다",
    "{n} event is sent again|{n} events are sent again": "이벤트 {n}건을 다시 보냅니다",
    "{n} event will soon be given up|{n} events will soon be given up": "곧 포기할 이벤트 {n}건",
    "{n} event|{n} events": "{n}건",
    "{n} h": "{n}시간",
    "{n} MiB free in {folder}": "{folder}에 {n} MiB 남음",
    "{n} MiB free in {folder}: make room": "{folder}에 {n} MiB 남음: 공간을 확보하세요",
    "{n} min": "{n}분",
    "{n} more of this reason": "같은 원인 {n}건 더 보기",
    "{n} more waits for it|{n} more wait for it": "이어서 {n}건 대기",
    "{n} or more": "{n}+",
    "{n} reason|{n} reasons": "원인 {n}가지",
    "{n} s": "{n}초",
    "{n} ticket needs you|{n} tickets need you": "확인할 티켓 {n}건",
    "{n} ticket|{n} tickets": "티켓 {n}건",
    "{n} webhook was turned away|{n} webhooks were turned away": "거부한 웹훅 {n}건",
    "{rate} a minute, done in {ago}": "분당 {rate}건, 약 {ago} 뒤 완료",
    "{received} received, {delivered} delivered, {failed} failed": (
        "받음 {received}, 전달 {delivered}, 실패 {failed}"
    ),
    "deliveries are paused: `resume`": "전달이 멈춰 있습니다: `resume`",
    "{who}, by command": "{who} (명령)",
    "{who}, on the page": "{who} (웹 화면)",
    "{why}: it may have happened; `map` or `retry` decides": (
        "{why}: 이미 처리됐을 수 있으니 연결하거나 다시 보내세요"
    ),
    f"{SENT}: delivered in {{seconds}} s; close request {{request}} in the ITSM": (
        "이벤트 {n}, 티켓 {ticket} ({path}): {seconds}초에 전달."
        " ITSM의 요청 {request}을(를) 닫으세요"
    ),
    f"{SENT}: delivered in {{seconds}} s; close request {{request}} in the ITSM; `forget` removes"
    " its texts here": (
        "이벤트 {n}, 티켓 {ticket} ({path}): {seconds}초에 전달."
        " ITSM의 요청 {request}을(를) 닫으세요. "
        "여기 남은 내용은 `forget`으로 지웁니다"
    ),
    f"{SENT}: {{state}}: {{why}}": "이벤트 {n}, 티켓 {ticket} ({path}): {state}: {why}",
    f"{SENT}: {{state}}: {{why}}; then `retry` or `drop` that event": (
        "이벤트 {n}, 티켓 {ticket} ({path}): {state}: {why}."
        " 고친 뒤 `retry`, 필요 없으면 `drop`하세요"
    ),
    "{why}; `ss -ltnp` names it (systemd, where it keeps it for the next start)": (
        "{why}; 누가 쓰는지는 `ss -ltnp`로 확인하세요 (systemd가 다음 시작을 위해 잡고 있을 "
        "수도 있습니다)"
    ),
}


REASONS = (  # those that are stored or answered, which people read
    "waits for the request id of its ticket; no opening event is pending",
    "duplicate of event {n}: the ticket is opened already",
    "duplicate of event {n}",
    "the ticket already has request id {request_id}",
    "no rule of hook {hook} matches: {what}",
    "no rule of hook {hook} matches",
    "mapped by hand",
    "mapped by import",
    "dropped by hand: {why}",
    "cannot be translated: {why}",
    "given up after [retry] give_up_after: {why}",
    "failed {n} times while others went through: {why}",
    "{why}: it may have happened; `map` or `retry` decides",
    "nobody can say whether it was done",
    "answered {status} without JSON",
    "answered {status} without a request id where it should be",
    "answered {status} with HTML instead of JSON: a login page or a proxy?",
    "answered {status}, but the answer may have been cut",
    "answered {status}, {outcome} by rule {n} of `answers`",
    "answered {status}: {why}",
    "answered {status}",
    "connection refused",
    "no answer in time",
    "the body is neither JSON nor a form",
    "the program ended while the request was on its way",
    "no such address: {method}",
    "no such address",
    "this address takes another method (see Allow): {method}",
    "no valid credential: see [access] token and hmac",
    "no valid credential and no header {name}: see [access] token and hmac",
    "this address may not post here: see [access] networks",
    "the page wants its password: see [server] admin_password",
    "from another machine the page needs [server] admin_password",
    *("retry", "drop", "map {request_id}", "{who}, by command", "{who}, on the page"),
)
FINDINGS = (  # those of `check`
    *("configuration", "version", "file", "address", "disk", "log", "secret", "zone", "look-up"),
    *("hook", "certificate", "clock", "send", "ok", "look", "wrong", "result", "what", "found"),
    "{file}, held by the running service",
    "{file} will be made by the first start",
    "store.path: {folder} is not writable for this user",
    "{n} MiB free in {folder}: make room",
    "{n} MiB free in {folder}",
    "to stderr",
    "log.file: cannot write {file}: it or {folder} is not there or not ours",
    "{file}: others may read it: `{command}`",
    "{file}: others may write it: `{command}`",
    "{file}: others may read and write it: `{command}`",
    "nobody else may read or write what is to be kept",
    "now is {time}; is that your clock?",
    "{host} answers (HTTP {status} to a GET; nothing was sent): {why}",
    "{host} answers (HTTP {status} to a GET; nothing was sent)",
    "{host} answers {status}: look at itsm.authorization",
    "{host}: {why}: address, firewall, proxy or certificate?",
    "it leads elsewhere, and a delivery follows nowhere: put the right address into itsm.url",
    "the credential may lack rights, or this address may not call: ask its administrator",
    "the address may be wrong; or it knows no GET there: then name itsm.check_url",
    "it has enough of us for now, or of whoever shares our address or credential",
    "it has a trouble of its own, or a proxy before it: deliveries wait until it is over",
    "{address} -> {kinds} (only a helpdesk on this machine reaches {host})",
    "{address} -> {kinds} (as seen from this machine; open TCP {port} in its firewall)",
    "{hook}: no template uses {fields}",
    "the ITSM's clock is {n} s from ours: dates and hours may be off",
    "issued by {issuer}, good for {n} days: have it renewed",
    "issued by {issuer}, good for {n} days: itsm.ca_file (PEM) must hold its authority",
    "issued by {issuer}, good for {n} days",
    "issued by {issuer}, expired: have it renewed",
    "{name} is older than its last security fix {fix}: upgrade it, or see that your distribution"
    " mended it",
    "{name} finds nothing for an id that nobody has",
    "{why}; `ss -ltnp` names it (systemd, where it keeps it for the next start)",
    "nothing was sent: mend what is wrong first",
    f"{SENT}: delivered in {{seconds}} s; close request {{request}} in the ITSM",
    f"{SENT}: delivered in {{seconds}} s; close request {{request}} in the ITSM; `forget` removes"
    " its texts here",
    f"{SENT}: {{state}}: {{why}}; then `retry` or `drop` that event",
    f"{SENT}: {{state}}: {{why}}",
    "deliveries are paused: `resume`",
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """For each of REASONS and FINDINGS what it looks like."""
    value = re.compile(r"\\{(\w+)\\}")
    return [
        (phrase, re.compile(value.sub(r"(?P<\1>.+?)", re.escape(phrase)), re.DOTALL))
        for phrase in (*REASONS, *FINDINGS)
    ]


class Say:
    """Says a phrase in a person's language; the English one is its name.

    `{name}` is filled in; where an English phrase stands twice, parted by |, the first is for one.
    """

    def __init__(self, language: str = "en") -> None:
        self.language = language

    def __call__(self, phrase: str, /, **values: Any) -> str:
        """The phrase with its values."""
        if self.language == "ko":
            return KOREAN.get(phrase, phrase).format(**values)
        one, _, many = phrase.partition("|")
        return (many if many and values.get("n") != 1 else one).format(**values)

    def state(self, state: str) -> str:
        """A state; beside the Korean word the one that command line and log use."""
        return f"{state} {self(state)}" if self.language == "ko" else state

    def known(self, text: str) -> str:
        """A reason or a finding of ours; the ITSM's and the helpdesk's words in it as they are."""
        if self.language == "en":
            return text
        for phrase, pattern in _patterns():
            if match := pattern.fullmatch(text):
                values = match.groupdict()
                if "why" in values:
                    values["why"] = self.known(values["why"])
                return self(phrase, **values)
        return text

    def counted(self, number: int) -> int | str:
        """A number of what is counted no further than MOST_COUNTED."""
        return number if number < MOST_COUNTED else self("{n} or more", n=f"{number:,}")

    def ago(self, seconds: float) -> str:
        """A span of time: 40 s, 12 min, 5 h, 3 days."""
        if seconds >= 2 * 86400:
            return self("{n} day|{n} days", n=int(seconds // 86400))
        if seconds >= 2 * 3600:
            return self("{n} h", n=int(seconds // 3600))
        if seconds >= 60:
            return self("{n} min", n=int(seconds // 60))
        return self("{n} s", n=max(0, int(seconds)))

    def when(self, moment: float, clock: Clock, now: float, seconds: bool = False) -> str:
        """A moment as people write it: today's without the date, any other with it."""
        local, today = clock.local(moment), clock.local(now).date()
        time_of_day = local.strftime("%H:%M:%S" if seconds else "%H:%M")
        if local.date() == today:
            return time_of_day
        if local.date() == today - timedelta(days=1):
            return self("yesterday {time}", time=local.strftime("%H:%M"))
        if self.language == "ko":
            day = f"{local.month}월 {local.day}일"
            day = day if local.year == today.year else f"{local.year}년 {day}"
        else:
            day = f"{local.day} {MONTHS[local.month - 1]}"
            day = day if local.year == today.year else f"{day} {local.year}"
        return f"{day} {local.strftime('%H:%M')}"


ENGLISH = Say()


def language_of_terminal(environ: Mapping[str, str]) -> str:
    """`ko` or `en`, by the variables of POSIX for messages."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    locale = next((environ[name] for name in names if environ.get(name)), "")
    return "ko" if re.match("ko(?:[_.@-]|$)", locale) else "en"


# ── Status: how it is, for people, monitoring and programs ─────────────────────────────────────


# ── Status · words for people ──────────────────────────────────────────────────────────────────


def iso(moment: float | None, clock: Clock) -> str | None:
    """Epoch seconds as ISO 8601 text in the configured zone."""
    return None if moment is None else clock.local(moment).isoformat(timespec="seconds")


def one_line(value: Any) -> str:
    """A value for a terminal: one line, nothing that moves the cursor."""
    return CONTROL.sub(" ", as_text(value))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def labelled(label: str, value: Any, width: int = 15) -> str:
    """A line of a label and its value, the values of several below each other."""
    return f"{label}{' ' * (width - _width(label))}{one_line(value)}"


def as_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as an aligned table."""
    lines = [list(columns)] + [[one_line(row.get(name)) for name in columns] for row in rows]
    widths = [max(_width(line[n]) for line in lines) for n in range(len(columns))]
    return "\n".join(
        "  ".join(
            text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


# ── Status · status ────────────────────────────────────────────────────────────────────────────


TURNED_AWAY = "turned away"
AWAY_SHOWN = 20  # different ones


def name_turned_away(status: int, caller: str, path: str, why: str) -> str:
    """The name under which it is counted that a webhook may have been turned away."""
    return f"{TURNED_AWAY}: {json.dumps([status, caller, path[:100], why[:200]])}"


def turned_away(events: Events) -> list[dict[str, Any]]:
    """What was turned away in the last day, most of it first: it may have been webhooks."""
    with contextlib.suppress(FileError):  # then the last seconds are not in it
        events.file.flush()
    counts: collections.Counter[str] = collections.Counter()
    for hour in events.file.hours(int(time.time()) // 3600 - 23).values():
        counts.update({n: count for n, count in hour.items() if n.startswith(TURNED_AWAY)})
    rows = []
    for name, count in counts.most_common(AWAY_SHOWN):
        status, caller, path, why = None, "others", "", "too many to tell them apart"
        with contextlib.suppress(ValueError):
            status, caller, path, why = json.loads(name.partition(": ")[2])
        rows.append(
            {"count": count, "status": status, "from": caller, "path": path, "reason": why}
        )
    return rows


class Trouble(NamedTuple):
    """Something that is not as it should be: `warn` or `fail`, in a few words, and what to do."""

    tone: str
    word: str
    todo: str


CAUSES = 50  # that are looked at
WANTED = "paused"  # a trouble that somebody wants: nobody is told


def _itsm_trouble(
    config: Config, itsm: Mapping[str, Any], paused: bool, say: Say
) -> tuple[str, Trouble]:
    """What is wrong with the ITSM, by name."""
    reason = say.known(itsm["reason"])
    now, since = time.time(), say.when(itsm["since"], config.clock, time.time())
    if itsm["why"] != "credential":
        ago = say.ago(now - itsm["since"])
        phrase = (
            "Since {since}, {ago} ({reason}). Nothing is lost: deliveries go on by themselves."
        )
        if paused:
            phrase = "Since {since}, {ago} ({reason}). Nothing is lost."
        todo = say(phrase, since=since, ago=ago, reason=reason)
        return "outage", Trouble("fail", say("The ITSM does not answer"), todo)
    source = config.credential
    where = source.name if source.source in ("file", "credential") else "itsm.authorization"
    phrase = (
        "Since {since} ({reason}). Nothing is lost: put the new one into {where}, then restart."
    )
    if source.source not in ("credential", "env"):
        phrase = "Since {since} ({reason}). Nothing is lost: put the new one into {where}."
    todo = say(phrase, since=since, reason=reason, where=where)
    return "credential", Trouble("fail", say("The ITSM refuses our credential"), todo)


def _tickets_trouble(
    config: Config, events: Events, held_before: float, say: Say
) -> Trouble | None:
    """The tickets that a person must settle."""
    if not (number := events.tickets_for_you(held_before)):
        return None
    causes = events.causes(held_before, CAUSES, 1)
    oldest = min((cause["first"][0] for cause in causes), default=0)  # settled since it counted
    [row] = events.page(numbers=[oldest]) or [{"received": time.time()}]
    since = say.when(row["received"], config.clock, time.time())
    word = say("{n} ticket needs you|{n} tickets need you", n=say.counted(number))
    return Trouble("warn", word, say("The oldest of what waits for you came {when}.", when=since))


def troubles(
    config: Config, events: Events, held_after: float, outage_after: float, say: Say = ENGLISH
) -> dict[str, Trouble]:
    """All that is not as it should be, by name, the worst first.

    `held_after`, `outage_after`: seconds for which it may be so before a person is told.
    """
    now, wrong, file = time.time(), dict[str, Trouble | None](), events.file
    itsm, paused = json.loads(file.fact("itsm") or "{}"), file.fact("paused")
    if file.full:
        todo = say("Webhooks are refused until there is room on the disk.")
        wrong["disk"] = Trouble("fail", say("The disk is full"), todo)
    if itsm and (itsm["why"] == "credential" or now - itsm["since"] > outage_after):
        name, trouble = _itsm_trouble(config, itsm, bool(paused), say)
        wrong[name] = trouble
    if paused:
        since = say.when(float(paused), config.clock, now)
        todo = say("Since {since} nothing is sent; webhooks are taken.", since=since)
        wrong["paused"] = Trouble("warn", say("Deliveries are paused by hand"), todo)
    wrong["tickets"] = _tickets_trouble(config, events, now - held_after, say)
    if count := len(events.near_end(config.retry.give_up_after)):
        word = say("{n} event will soon be given up|{n} events will soon be given up", n=count)
        todo = say("Mend what stands against them, or raise [retry] give_up_after.")
        wrong["near_end"] = Trouble("warn", word, todo)
    if problem := events.pulse.reload:
        todo = say("The old one goes on: {problem}", problem=problem)
        wrong["reload"] = Trouble("warn", say("The new configuration was refused"), todo)
    last, silence = events.last_received(), config.alert.silence
    if silence and last is not None and now - last > silence:
        word = say("No webhook came for {ago}", ago=say.ago(now - last))
        wrong["silence"] = Trouble("warn", word, say("Does the helpdesk still send them?"))
    return {name: trouble for name, trouble in wrong.items() if trouble}


def unsure(event: Mapping[str, Any]) -> bool:
    """Whether an event that needs a person may have been carried out all the same."""
    there = event["may_have_happened"] or NO_ID in event["reason"]
    return event["state"] in ("held", "failed") and bool(there)


def advice(event: Mapping[str, Any], say: Say) -> str:
    """What a person may do about an event, in one sentence."""
    if unsure(event):
        if NO_ID in event["reason"]:
            return say(
                "Look into the ITSM: if the request is there, map it, and name in itsm.request_id"
                " where its answers say the id now; if not, retry."
            )
        return say("Look into the ITSM: if the request is there, map it; if not, retry.")
    if event["state"] == "held":
        return say("Map the ticket to its request, or retry its opening where that was dropped.")
    if event["state"] == "failed" and event["ticket"] is None:
        return say("Mend the helpdesk's template or the hook's fields, then retry; or drop it.")
    if event["state"] == "failed" and not event["attempts"]:
        return say("Mend the configuration where the reason says, reload it, then retry.")
    if event["state"] == "failed":
        return say("Mend it in the ITSM or in the configuration, then retry.")
    return ""


def _command(event: Mapping[str, Any], cause: Mapping[str, Any]) -> str:
    """The command that settles all of a cause, or that shows what to decide."""
    if event["state"] == "held" and not event["may_have_happened"]:
        return f"hd-itsm map {shlex.quote(event['ticket'])} REQUEST"
    if unsure(event):
        return f"hd-itsm show {event['event']}"
    return f"hd-itsm retry --reason {shlex.quote(cause['cause'])}"


def causes_now(config: Config, events: Events, say: Say, shown: int = 1) -> list[dict[str, Any]]:
    """What needs a person, by cause: state, cause, tickets, events, advice, command, rows.

    `rows`: its oldest events, at most `shown`.
    """
    causes = []
    for cause in events.causes(time.time() - HELD_AFTER, CAUSES, shown):
        rows = events.page(numbers=cause["first"], after=-1)
        if rows:
            words = {"advice": advice(rows[0], say), "command": _command(rows[0], cause)}
            causes.append({**cause, **words, "state": rows[0]["state"], "rows": rows})
    return causes


def status_now(
    config: Config, events: Events, arguments: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Counts by state, the oldest undelivered, the ITSM, and what needs a person."""
    oldest, clock, say = events.oldest(), config.clock, Say(arguments.get("language", "en"))
    wrong = troubles(config, events, HELD_AFTER, config.alert.after, say)
    counts = {state: events.counts.get(state, 0) for state in STATES}
    itsm = json.loads(events.file.fact("itsm") or "{}")
    last, paused = events.file.counted("last_delivery") / 1000, events.file.fact("paused")
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
        "paused": iso(float(paused), clock) if paused else None,
        "last_delivery": iso(last, clock) if last else None,
        "last_webhook": iso(events.last_received(), clock),
        "repaired": events.file.counted("repaired"),
        "turned_away": turned_away(events),
        "running": bool(events.pulse.beat),
        "needs": [
            f"{trouble.word}. {trouble.todo}" for name, trouble in wrong.items() if name != WANTED
        ],
        "causes": [
            {name: cause[name] for name in ("state", "cause", "tickets", "events", "command")}
            for cause in causes_now(config, events, say)
        ],
    }


def status_as_text(status: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """How it is, and what needs a person."""
    itsm, oldest = status["itsm"], status["oldest"]
    up = say("up") if itsm["state"] == "up" else say("down")
    if itsm["reason"]:
        reason = say.known(itsm["reason"])
        up += " " + say("since {since}: {reason}", since=itsm["since"], reason=reason)
    waiting = say("{event} of {received}", **oldest) if oldest else "-"
    rows = [
        (
            say("service"),
            say("running")
            if status["running"]
            else say("not running: webhooks are refused; its log says why, `check` what is wrong"),
        ),
        ("ITSM", up),
        (say("oldest waiting"), waiting),
        (say("last webhook"), status["last_webhook"] or "-"),
        (say("last delivery"), status["last_delivery"] or "-"),
    ]
    if status["paused"]:
        rows.append(
            (say("paused"), say("since {since}: `resume` goes on", since=status["paused"]))
        )
    rows += [(say("needs you"), task) for task in status["needs"]]
    lines = ["  ".join(f"{say.state(state)} {status['counts'][state]}" for state in STATES)]
    lines += [labelled(label, value) for label, value in rows]
    for cause in status["causes"]:
        reason = one_line(say.known(cause["cause"]))
        lines.append(f"  {cause['tickets']} x {say.state(cause['state'])}: {reason}")
        lines.append(f"      {one_line(cause['command'])}")
    for away in status["turned_away"]:
        sender = say("from {sender}", sender=away["from"])
        what = f"{away['count']} x {away['status'] or ''} {away['path']} {sender}"
        lines.append(labelled(say("turned away"), f"{what}: {say.known(away['reason'])}"))
    if status["turned_away"]:
        words = say("(in the last day; a helpdesk that does not repeat lost them)")
        lines.append(labelled("", words))
    elif (
        status["running"]
        and not status["needs"]
        and not status["paused"]
        and itsm["state"] == "up"
    ):
        lines.append(say("all is well"))
    return "\n".join(lines)


# ── Status · health ────────────────────────────────────────────────────────────────────────────


def health(config: Config, events: Events) -> tuple[str, dict[str, Any]]:
    """`ok`, `warn` or `fail`, and what it is made of."""
    status = status_now(config, events)
    age, beat = status["oldest_age"], events.pulse.beat
    dead = time.monotonic() - beat > 30
    word = "fail" if age > 3600 or dead or events.file.broken else "ok"
    troubled = age > config.alert.after or events.file.full or status["needs"]
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
        "disk": "full" if events.file.full else "ok",
        "needs": status["needs"],
    }


# ── Status · metrics ───────────────────────────────────────────────────────────────────────────

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


def metrics(config: Config, events: Events) -> str:
    """Everything countable, in Prometheus' text format 0.0.4."""
    status, (counters, durations, seconds) = (
        status_now(config, events),
        events.since_start.snapshot(),
    )
    values: dict[str, dict[str, float]] = {
        "events": status["counts"],
        "oldest_undelivered_seconds": {"": status["oldest_age"]},
        "itsm_up": {"": float(status["itsm"]["state"] == "up")},
        "paused": {"": float(status["paused"] is not None)},
        "disk_full": {"": float(events.file.full)},
        "needs_person": {"": float(len(status["needs"]))},
        "duplicates_total": {"": 0.0},
        "repaired_total": {"": status["repaired"]},
    }
    for (name, label), count in counters.items():
        values.setdefault(f"{name}_total", {})[label] = count
    lines = []
    for name, kind, words, label in METRICS:
        lines += [f"# HELP hd_itsm_{name} {words}", f"# TYPE hd_itsm_{name} {kind}"]
        for one, value in values.get(name, {}).items():
            labels = f'{{{label}="{one}"}}' if label else ""
            lines.append(f"hd_itsm_{name}{labels} {value:g}")
    name, running = "hd_itsm_attempt_seconds", 0
    lines += [f"# HELP {name} how long attempts took", f"# TYPE {name} histogram"]
    for bucket in (*SinceStart.BUCKETS, math.inf):
        running += durations.get(bucket, 0)
        limit = "+Inf" if bucket == math.inf else f"{bucket:g}"
        lines.append(f'{name}_bucket{{le="{limit}"}} {running}')
    return "\n".join([*lines, f"{name}_sum {seconds:g}", f"{name}_count {running}", ""])


# ── Status · openapi ───────────────────────────────────────────────────────────────────────────

ANSWERED = {  # what a hook answers, for the OpenAPI description
    "200": "stored, or known for a duplicate, or ignored: the webhook's own JSON",
    "400": "unreadable or not translatable: kept as failed, see `event`",
    "401": "no or a wrong credential: nothing is stored",
    "403": "this address or another site's page may not post: nothing is stored",
    "413": "the body is too large: its beginning is kept as failed, see `event`",
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
    look = {"description": "what this address is", "content": json_object}
    paths = {
        hook.path: {
            "get": {"operationId": f"{hook.name}.look", "responses": {"200": look}},
            "post": {"operationId": hook.name, "summary": " or ".join(hook.kinds), **operation},
        }
        for hook in config.hooks.values()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "hd_itsm", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }


# ── Judging: a webhook to what is to be stored; duplicates are known in Events ─────────────────


def subject_of(kind: Kind, fields: Mapping[str, Any]) -> str:
    """What people call the ticket, "" where nothing says it."""
    values = (as_text(fields[name]) for name in kind.subjects if present(fields.get(name)))
    return one_line(next(values, ""))[:200].strip()


def judge_kind(config: Config, base: NewEvent, fields: Mapping[str, Any]) -> NewEvent:
    """`base` with what its kind says of it; failed where it could not be translated today."""
    kind = config.kinds.get(base.kind)
    if kind is None:
        return base._replace(state="failed", reason=no_such_kind(base.kind))
    names, then = kind.names, kind.then
    while then:
        names, then = names | config.kinds[then].names, config.kinds[then].then
    used = {name: value for name, value in fields.items() if name in names}
    base = base._replace(
        used=repr(used),
        opens=kind.opens,
        waits_for_id=kind.waits_for_id and not kind.opens,
        subject=subject_of(kind, fields),
        again=kind.again,
    )
    try:
        kind.request.parts(
            config.scope(fields, 0, str(base.ticket), base.received, kind.unknown_id)
        )
    except Untranslatable as error:
        return base._replace(state="failed", reason=f"cannot be translated: {error}")
    return base


def judge(config: Config, hook: Hook, reading: Reading, base: NewEvent) -> NewEvent:
    """The webhook as it is to be stored: pending, ignored by the rules, or failed and why."""
    if reading.raw:
        base = base._replace(raw=reading.raw)
    if reading.problem:
        return base._replace(state="failed", reason=reading.problem, repaired=reading.repaired)
    base = base._replace(
        kind=reading.kind,
        ticket=reading.ticket,
        fields=COMPACT.encode(reading.fields),
        repaired=reading.repaired,
        delivery_id=reading.delivery_id or base.delivery_id,
        stamp=reading.stamp,
    )
    desk, colon, _ = reading.ticket.partition(":")
    if colon and not hook.desk and desk in config.desks:
        reason = f"hook {hook.name} has no desk, and this would be a ticket of desk {desk}"
        return base._replace(state="failed", reason=reason, kind="", ticket=None)
    if not reading.kind:
        met = reading.met and f": {reading.met}"
        return base._replace(state="ignored", reason=f"no rule of hook {hook.name} matches{met}")
    return judge_kind(config, base, reading.fields)


def reread(config: Config, row: Mapping[str, Any]) -> NewEvent:
    """A stored event read and judged anew with today's configuration."""
    base = NewEvent(
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
    zone, headers = config.clock.zone, json.loads(row["headers"])
    _, readings = read_webhooks(hook, row["raw"], headers, zone)
    return judge(config, hook, readings[0], base)


# ── Operations: what an operator asks and does, without HTTP and terminal ──────────────────────


# ── Operations · arguments ─────────────────────────────────────────────────────────────────────

Arguments = Mapping[str, Any]  # by their keys; typed, each one there


class WrongArgument(Error):
    """What was asked for cannot be meant: which argument, its wrong value, what would be right."""


def read_text(value: Any) -> str:
    """A text or a number, as text. Raises ValueError, like all that follow."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{as_text(value)[:60]!r} is no text")
    return as_text(value)


def read_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{as_text(value)[:60]!r} is neither true nor false")
    return value


def read_count(value: Any) -> int:
    """A whole number above 0."""
    if isinstance(value, bool) or not re.fullmatch("0*[1-9][0-9]{0,8}", as_text(value)):
        raise ValueError(f"{as_text(value)[:40]!r} must be a whole number above 0")
    return int(as_text(value))


def event_number(value: Any) -> int:
    """The number of an event."""
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,18}", as_text(value)):
        raise ValueError(f"there is no event {as_text(value)[:40]!r}: an event has a number")
    return int(as_text(value))


def id_of(value: Any) -> str:
    """A ticket's id or a request id."""
    if not (text := read_id(value)):
        raise ValueError(
            f"{as_text(value)[:40]!r} is no id: that is a text of 1 to {MAX_ID} characters without"
            " control characters"
        )
    return text


def read_since(value: Any) -> float:
    """A moment given as "2h" (ago), as a date, or in epoch seconds; in epoch seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    with contextlib.suppress(ValueError):
        return time.time() - _read_duration(value)
    try:
        return parse_date(value, None).timestamp()
    except ValueError:
        words = f'{as_text(value)[:40]!r} must be like "2h", "7d" or 2026-11-23'
        raise ValueError(words) from None


def word_of(what: str, words: Sequence[str]) -> Callable[[Any], str]:
    """Reads one of some words; `what` they are."""

    def read(value: Any) -> str:
        if value not in words:
            text = as_text(value)[:40]
            raise ValueError(f"{text!r} is no {what}{_hint(text, words)}: {', '.join(words)}")
        return str(value)

    return read


def read_header(value: Any) -> str:
    """A header line."""
    if not re.match(r"\s*[^\s:]+\s*:", read_text(value)):
        raise ValueError(f"{as_text(value)[:40]!r} must be like X-Name: value")
    return read_text(value)


def read_kept(value: Any) -> str:
    """What is kept of a ticket's answers: a JSON object, as text."""
    with contextlib.suppress(ValueError, Unreadable):
        if isinstance(kept := parse_json(value) if isinstance(value, str) else value, dict):
            return COMPACT.encode(kept)
    raise ValueError(f'{as_text(value)[:60]!r} must be JSON like {{"number": "INC1"}}')


def _row_of(*cells: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Reads a list of so many cells."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(cells):
            raise ValueError(f"{as_text(value)[:60]!r} must be a list of {len(cells)}")
        return tuple(read_cell(cell) for read_cell, cell in zip(cells, value, strict=True))

    return read


@dataclass(frozen=True)
class Argument:
    """One argument of an operation, given as text or as JSON.

    A name that begins with -- is an option, any other stands at its place. `read` makes the value;
    it raises ValueError with the wrong one and what would be right, and takes what it made.
    Without `help` only programs give it.
    """

    name: str
    read: Callable[[Any], Any] = read_text
    help: str = ""
    metavar: str = ""
    required: bool = False
    many: bool = False
    default: Any = None
    empty: Any = None  # the value of an option that stands alone
    words: tuple[str, ...] = ()  # of those that it may be, for completion

    @property
    def key(self) -> str:
        """Its name in JSON and in code."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def shown(self) -> str:
        """What people call it."""
        return self.name if self.name.startswith("-") else self.metavar or self.name

    def value(self, given: Any) -> Any:
        """What is given, typed; an empty text is nothing. Raises WrongArgument."""
        if given in (None, "", []):
            if self.required:
                raise WrongArgument(f"{self.shown} is missing: {self.help}")
            return [] if self.many else self.default
        if self.many and not isinstance(given, list):
            raise WrongArgument(f"{self.shown}: {as_text(given)[:60]!r} must be a list")
        try:
            return [self.read(each) for each in given] if self.many else self.read(given)
        except ValueError as error:
            raise WrongArgument(f"{self.shown}: {error}") from None


def read_arguments(
    known: Sequence[Argument], given: Mapping[str, Any], one_of: Sequence[str] = ()
) -> Arguments:
    """All arguments, typed; of `one_of` the first or any others. Raises WrongArgument."""
    described = {argument.key: argument for argument in known}
    for key in given:
        if key not in described:
            raise WrongArgument(f"no argument {key!r}{_hint(key, described)}")
    values = {key: argument.value(given.get(key)) for key, argument in described.items()}
    chosen = [key for key in one_of if values[key] not in (None, [])]
    if one_of and (not chosen or (chosen[0] == one_of[0] and chosen[1:])):
        names = " or ".join(described[key].shown for key in one_of if described[key].help)
        raise WrongArgument(f"give {names}: one of them")
    return values


# ── Operations · events ────────────────────────────────────────────────────────────────────────

AT_ONCE = 200  # events in one part of an answer
BYTES_AT_ONCE = 1 << 20  # of bodies in one part; of one event all the same
EVENT_COLUMNS = (
    "event", "received", "ticket", "kind", "state", "attempts", "request_id", "reason"
)  # fmt: skip


def raw_text(raw: bytes) -> str:
    """A body as text, for people."""
    return next(decode_body(raw))[0] if raw else ""


def event_as_json(config: Config, events: Events, row: Mapping[str, Any]) -> dict[str, Any]:
    """An event's row in the names that `--json` has."""
    event = {
        "event": row["event"],
        "state": row["state"],
        "kind": row["kind"] or None,
        "ticket": row["ticket"],
        "request_id": row["request_id"],
        "kept": json.loads(row["kept"] or "{}"),
        "hook": row["hook"],
        "received": iso(row["received"], config.clock),
        "reason": row["reason"],
        "repaired": row["repaired"],
        "attempts": row["attempts"],
    }
    if row["state"] == "pending" and row["due"] is not None:
        waits = max(0.0, row["due"] - events.file.clock())
        event["next_try"] = iso(time.time() + waits, config.clock)
    return event


def whole_event(
    config: Config, events: Events, number: int, bodies: bool = True
) -> dict[str, Any]:
    """Everything of an event, or all but raw body and fields. Raises Error where there is none."""
    row = events.show(number)
    if row is None:
        raise Error(f"there is no event {number}; `events` lists them")
    attempts = [
        {
            **each,
            "at": iso(each["at"], config.clock),
            "sent": json.loads(each["sent"]) if each["sent"] else None,
        }
        for each in row["attempts"]
    ]
    event = event_as_json(config, events, row)
    event |= {"idempotency_key": row["idempotency_key"], "sender": row["sender"]}
    event |= {"delivery_id": row["delivery_id"], "parent": row["parent"]}
    event |= {"settled": iso(row["settled"], config.clock)}
    if bodies:
        event |= {"fields": json.loads(row["fields"]), "raw": raw_text(row["raw"])}
    acts = events.acts(number, row["ticket"])
    event["advice"] = advice(row, ENGLISH)
    event["by_hand"] = [{**act, "at": iso(act["at"], config.clock)} for act in acts]
    return event | {"attempts": attempts}


def _whole_events(
    config: Config, events: Events, numbers: Sequence[int], bodies: bool
) -> tuple[list[dict[str, Any]], int]:
    """The first of these events, as many as one part holds, and how many were looked at."""
    part: list[dict[str, Any]] = []
    size, looked = 0, 0
    for number in numbers[:AT_ONCE]:
        if size >= BYTES_AT_ONCE:
            break
        looked += 1
        with contextlib.suppress(Error):  # gone meanwhile: it was old
            part.append(whole_event(config, events, number, bodies))
            size += 2 * len(part[-1].get("raw", ""))  # its fields are about as long
    return part, looked


def kind_of(config: Config, events: Events, arguments: Arguments) -> str:
    """The kind that is asked for, "" for all. Raises WrongArgument where nothing is of it."""
    kind = str(arguments["kind"] or "")
    if kind and kind not in config.kinds and not events.page(kind=kind, limit=1):
        kinds = f"{_hint(kind, config.kinds)}: {', '.join(config.kinds)}"
        raise WrongArgument(f"--kind: {kind[:40]!r} is no kind{kinds}")
    return kind


def list_events(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Events, newest first; for programs whole ones."""
    most, before = min(arguments["limit"], AT_ONCE), arguments["before"]
    rows = events.page(
        arguments["state"] or "",
        arguments["ticket"] or "",
        kind_of(config, events, arguments),
        arguments["since"] or 0.0,
        before,
        most + 1,
        reason=arguments["reason"] or "",
    )
    if arguments["json"]:
        numbers = [row["event"] for row in rows[:most]]
        part, looked = _whole_events(config, events, numbers, bodies=True)
    else:
        part = [event_as_json(config, events, row) for row in rows[:most]]
        looked = len(part)
    left = arguments["limit"] - looked
    goes_on = looked < len(rows) and left > 0
    following = {"before": rows[looked - 1]["event"], "limit": left} if goes_on else None
    return {"events": part, "next": following}


def events_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """A line for each event."""
    return as_table(result["events"], EVENT_COLUMNS) if result["events"] else "no such events"


def ticket_as_json(
    config: Config, events: Events, ticket: str, numbers: Sequence[int]
) -> dict[str, Any]:
    """A ticket's mapping and these of its events, without bodies."""
    mapping = events.mappings.get(ticket)
    if mapping:
        mapping["since"] = iso(mapping["since"], config.clock)
    part, _ = _whole_events(config, events, numbers, bodies=False)
    return {"ticket": ticket, "mapping": mapping, "events": part}


def show_event_or_ticket(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Everything of an event, or a ticket's mapping and timeline; for programs whole events."""
    if arguments["event"] is not None:
        return whole_event(config, events, arguments["event"])
    ticket, after = arguments["ticket"], arguments["after"]
    numbers = events.line(ticket, after, AT_ONCE + 1)
    result = {} if after else ticket_as_json(config, events, ticket, ())
    if not after and not numbers and result["mapping"] is None:
        raise Error(f"ticket {ticket} was never seen: no event and no mapping")
    part, looked = _whole_events(config, events, numbers, arguments["json"])
    goes_on = looked < len(numbers)
    following = {"after": numbers[looked - 1]} if goes_on else None
    return {**result, "events": part, "next": following}


SHOWN = {  # of an event, where there is anything to show, with what people call it
    "ticket": "Ticket",
    "kind": "Kind",
    "request_id": "Request id",
    "hook": "hook",
    "received": "Received",
    "settled": "Settled",
    "sender": "From",
    "repaired": "Repaired",
    "next_try": "Next try",
}


def event_as_text(event: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """Everything that is given of an event; in English by the names that JSON has for it."""
    reason = f" ({one_line(say.known(event['reason']))})" if event["reason"] else ""
    head = say("event {n}", n=event["event"])
    lines = [f"{head}: {say.state(event['state'])}{reason}"]
    for name, phrase in SHOWN.items():
        if event.get(name):
            label = name if say.language == "en" else say(phrase)
            lines.append("  " + labelled(label, event[name], 11))
    for name, value in event.get("fields", {}).items():
        lines.append("  " + labelled(say("field"), f"{name} = {one_line(value)}", 11))
    if "raw" in event:
        raw = ("    " + one_line(line) for line in event["raw"].splitlines())
        lines += ["  " + say("raw body"), *raw]
    for attempt in event["attempts"]:
        answer = f": {one_line(attempt['answer'])}" if attempt["answer"] else ""
        lines.append(
            f"  {say('attempt {n}', n=attempt['attempt'])}  {attempt['at']}"
            f"  {attempt['duration']:.3f} s"
            f"  {attempt['outcome']} ({one_line(say.known(attempt['reason']))}){answer}"
        )
    for act in event["by_hand"]:
        done = f"{act['at']}  {say.known(act['what'])} ({say.known(act['who'])})"
        lines.append("  " + labelled(say("by hand"), done, 11))
    if event["advice"]:
        lines.append("  " + labelled(say("to do"), say(event["advice"]), 11))
    return "\n".join(lines)


def shown_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """An event, or a part of a ticket's timeline."""
    if "event" in result:
        return event_as_text(result, say)
    lines, mapping = [""], result.get("mapping")  # a further part begins with an empty line
    if mapping:
        kept = "".join(f", {name} {one_line(value)}" for name, value in mapping["kept"].items())
        phrase = "ticket {ticket}: request {request_id} since {since} (by {origin})"
        lines = [say(phrase, **{**mapping, "ticket": result["ticket"]}) + kept, ""]
    elif "ticket" in result:
        lines = [say("ticket {ticket}: no request id yet", ticket=result["ticket"]), ""]
    events = (event_as_text(event, say) for event in result["events"])
    return "\n".join([*lines, "\n\n".join(events)])


# ── Operations · a person's acts ───────────────────────────────────────────────────────────────


def _numbers(numbers: Sequence[int]) -> str:
    """Numbers of events, of many the first ones."""
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return " ".join(map(str, numbers[:20])) + more


def _refusals(result: Mapping[str, Any]) -> list[str]:
    """Why some events were left as they are, of many the first ones."""
    refused = result["refused"]
    lines = [f"refused: {one_line(each['reason'])}" for each in refused[:20]]
    return lines + ([f"and {len(refused) - 20} more refused"] if len(refused) > 20 else [])


def _exit_refused(result: Mapping[str, Any]) -> int:
    return 1 if result["refused"] else 0


def reread_all(
    config: Config, events: Events, numbers: Sequence[int]
) -> tuple[dict[int, NewEvent], dict[int, str]]:
    """Events as they read now, and why those that would not go out again do not."""
    news, refused = dict[int, NewEvent](), dict[int, str]()
    for number in numbers:
        row = events.show(number)
        if row is None:
            refused[number] = f"there is no event {number}"
            continue
        new = reread(config, row)
        if new.state == "ignored":
            refused[number] = f"event {number}: {new.reason}"
        elif new.state == "failed":
            refused[number] = f"event {number} would fail again: {new.reason}"
        else:
            news[number] = new
    return news, refused


def _that_fit(
    config: Config, events: Events, arguments: Arguments
) -> tuple[list[int], Arguments | None, dict[int, str]]:
    """Numbers of the next events that fit, oldest first, the arguments to go on with, refusals.

    By reason alone none that may have happened: that is decided one by one.
    """
    rows = events.page(
        arguments["state"] or "",
        kind=kind_of(config, events, arguments),
        since=arguments["since"] or 0.0,
        after=arguments["after"] or -1,  # 0 would be the newest ones
        limit=AT_ONCE,
        reason=arguments["reason"] or "",
        cause=arguments["cause"] or "",
        for_you=not arguments["state"],
    )
    unclear = {
        row["event"]: f"event {row['event']} may have happened: look into the ITSM, then"
        f" `retry {row['event']}` or `map`"
        for row in rows
        if row["may_have_happened"] and not arguments["state"]
    }
    numbers = [row["event"] for row in rows if row["event"] not in unclear]
    following = {"after": rows[-1]["event"]} if len(rows) == AT_ONCE else None
    return numbers, following, unclear


def _of_these(numbers: Sequence[int]) -> tuple[list[int], Arguments | None]:
    """The first of the events that are named, and the arguments to go on with."""
    ordered = sorted(set(numbers))
    return ordered[:AT_ONCE], {"events": ordered[AT_ONCE:]} if len(ordered) > AT_ONCE else None


def retry_events(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Puts events back to pending, in the old order."""
    dry, force, refused = arguments["dry_run"], arguments["force"], dict[int, str]()
    if arguments["events"]:
        numbers, following = _of_these(arguments["events"])
    else:
        numbers, following, refused = _that_fit(config, events, arguments)
    news, unreadable = reread_all(config, events, numbers)
    act = events.refusals if dry else functools.partial(events.retry, who=arguments["by"])
    refused |= unreadable | (act(news, force) if news else {})
    return {
        "retried": [number for number in news if number not in refused],
        "refused": [{"event": n, "reason": reason} for n, reason in sorted(refused.items())],
        "dry_run": dry,
        "next": following,
    }


def retried_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """Which events go out again, and which not and why."""
    word = "would be retried" if result["dry_run"] else "back to pending"
    retried = result["retried"]
    numbers = f": {_numbers(retried)}" if retried else ""
    return "\n".join([f"{len(retried)} {word}{numbers}", *_refusals(result)])


def drop_events(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Gives events up, and keeps why."""
    why = arguments["why"].strip()
    if not why:
        raise WrongArgument("--why is empty: the reason is kept with the event")
    numbers, following = _of_these(arguments["events"])
    dropped, refused = [], []
    for number in numbers:
        if refusal := events.drop(number, why, arguments["by"]):
            refused.append({"event": number, "reason": refusal})
        else:
            dropped.append(number)
    return {"dropped": dropped, "refused": refused, "next": following}


def dropped_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """Which events were given up, and which not and why."""
    dropped = [f"dropped: {_numbers(result['dropped'])}"] if result["dropped"] else []
    return "\n".join([*dropped, *_refusals(result)])


def map_ticket(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Sets the request id of a ticket; what was held for it goes out."""
    ticket, request_id = arguments["ticket"], arguments["request_id"]
    freed, other = events.map(ticket, request_id, arguments["by"])
    return {"ticket": ticket, "request_id": request_id, "freed": freed, "also": other or None}


def mapped_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """The mapping, and what follows from it."""
    freed = f"; goes out now: {_numbers(result['freed'])}" if result["freed"] else ""
    also = f"; ticket {result['also']} has that request id, too" if result["also"] else ""
    return f"ticket {result['ticket']} is request {result['request_id']}{freed}{also}"


def pause_deliveries(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Stops deliveries; intake goes on."""
    events.file.keep_facts(paused=events.file.fact("paused") or repr(time.time()))
    return {"paused": iso(float(events.file.fact("paused")), config.clock)}


def resume_deliveries(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Lets deliveries go on."""
    events.file.keep_facts(paused="")
    return {"paused": None}


def paused_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """Whether deliveries go on."""
    if result["paused"]:
        return f"paused since {result['paused']}: webhooks are taken, nothing is sent"
    return "deliveries go on"


def forget_ticket(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Removes the texts of a ticket's settled events; its mapping stays."""
    ticket = arguments["ticket"]
    left = [
        row["event"]
        for state in ("pending", "held", "failed")
        for row in events.page(state, ticket, limit=1000)
    ]
    return {"ticket": ticket, "forgotten": events.forget(ticket), "left": sorted(left)}


def forgotten_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """How much was removed, and what was not."""
    text = f"ticket {result['ticket']}: the texts of {result['forgotten']} events are removed"
    left = f"; not yet settled, so left: {_numbers(result['left'])} (`drop` them first)"
    return text + (left if result["left"] else "")


def send_webhook(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Stores a webhook as if its hook had let it in. Raises Error."""
    if arguments["hook"] not in config.hooks:
        raise WrongArgument(f"no hook {arguments['hook']!r}: {', '.join(config.hooks)}")
    pairs = [line.partition(":") for line in arguments["headers"]]
    row = {
        "hook": arguments["hook"],
        "raw": arguments["body"].encode(),
        "headers": json.dumps({name.strip(): value.strip() for name, _, value in pairs}),
        "sender": "check",
        "received": time.time(),
        "parent": None,
    }
    receipt = events.receive([reread(config, row)])[0]
    if isinstance(receipt, Exception):
        raise receipt
    return {"event": receipt.event, "state": receipt.state, "reason": receipt.reason}


def sent_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """What became of a webhook that was sent by hand."""
    return f"event {result['event']}: {say.state(result['state'])} {result['reason']}"


# ── Operations · mappings and copies ───────────────────────────────────────────────────────────


def import_mappings(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Adds mappings: rows of ticket, request id, epoch seconds, JSON of what is kept."""
    return {"imported": events.import_mappings(arguments["rows"])}


def imported_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """How many mappings were added."""
    return f"{result['imported']} mappings imported"


def export_mappings(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """All mappings, in the order of their tickets."""
    rows = events.mappings.page(arguments["after"] or "")
    following = {"after": rows[-1]["ticket"]} if rows else None
    mappings = [{**row, "since": iso(row["since"], config.clock)} for row in rows]
    return {"mappings": mappings, "next": following}


def mappings_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """Mappings as lines of CSV; what is kept of a ticket is JSON, where anything is."""
    lines = io.StringIO()
    rows = [
        (row["ticket"], row["request_id"], row["since"], *filter(None, (row["kept"],)))
        for row in result["mappings"]
    ]
    rows = [(*row[:3], *map(COMPACT.encode, row[3:])) for row in rows]
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


CLOSED_WORDS = {  # what helpdesks call a state -> the kind that must have been delivered for it
    "closed": "complete", "resolved": "complete", "solved": "complete", "done": "complete",
    "assigned": "assign", "open": "new",
}  # fmt: skip
GAPS = ("never_seen", "without_request_id", "half_sent")


def _gap(config: Config, events: Events, ticket: str, state: str) -> tuple[str, str]:
    """One of GAPS or "", and what is missing; `state`: what the helpdesk says of the ticket."""
    steps, mapping = events.steps(ticket), events.mappings.get(ticket)
    if not steps and mapping is None:
        return "never_seen", "no event and no mapping: send its webhook again, or `map` it"
    if mapping is None:
        states = (f"event {step['event']} {step['state']}" for step in steps[:20])
        return "without_request_id", ", ".join(states)
    undelivered = [step for step in steps if step["state"] in ("pending", "held", "failed")]
    if undelivered:
        listed = (f"event {step['event']} {step['kind']} {step['state']}" for step in undelivered)
        return "half_sent", ", ".join(itertools.islice(listed, 20))
    wanted = CLOSED_WORDS.get(state.strip().lower(), state.strip().lower())
    delivered = {step["kind"] for step in steps if step["state"] == "delivered"}
    if wanted in config.kinds and not config.kinds[wanted].opens and wanted not in delivered:
        return "half_sent", f"the helpdesk says {state}, but no {wanted} was delivered"
    return "", ""


def reconcile_tickets(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Which of the helpdesk's tickets (id, state) are not as they should be here."""
    gaps: dict[str, Any] = {name: [] for name in GAPS}
    for ticket, state in arguments["tickets"]:
        name, missing = _gap(config, events, ticket, state)
        if name:
            gaps[name].append({"ticket": ticket, "missing": missing})
    return {"checked": len(arguments["tickets"]), **gaps}


def gaps_as_text(result: Mapping[str, Any], say: Say = ENGLISH) -> str:
    """The tickets that are not as they should be, with what is missing."""
    lines = [f"{result['checked']} tickets compared"]
    for name in GAPS:
        lines.append(f"{name.replace('_', ' ')}: {len(result[name])}")
        for gap in result[name]:
            lines.append(f"  {one_line(gap['ticket'])}: {one_line(gap['missing'])}")
    return "\n".join(lines)


def copy_path(store_path: str, name: str) -> str:
    """Where a copy is made: beside the file, where a service may write."""
    return f"{os.path.abspath(store_path)}.new.{name}"


def copy_file(config: Config, events: Events, arguments: Arguments) -> dict[str, Any]:
    """Makes a copy beside the file; whoever asked chose its name and moves it away."""
    return {"bytes": events.file.backup(copy_path(events.file.path, arguments["name"]))}


def copy_name(value: Any) -> str:
    """What tells a copy from others: hexadecimal digits, so that it names no other file."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{8,32}", value):
        raise ValueError(f"{as_text(value)[:40]!r} must be 8 to 32 hexadecimal digits")
    return value


# ── Operations · the table ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Operation:
    """What an operator asks or does, alike from the command line, from a program and the page.

    `function` raises Error. Of a result with `next` there is more: asked again with these
    arguments in place of the former, it gives the next part.
    """

    name: str
    help: str
    function: Callable[[Config, Events, Arguments], dict[str, Any]]
    as_text: Callable[[Mapping[str, Any], Say], str]
    arguments: tuple[Argument, ...] = ()
    one_of: tuple[str, ...] = ()  # keys of arguments: the first is to be given, or others
    exit_code: Callable[[Mapping[str, Any]], int] = lambda result: 0
    long: str = ""  # the key of a list that is shown part by part, since it may be long
    creates: bool = False  # the file, where there is none yet
    wakes: bool = False  # something may be due afterwards
    button: bool = False  # whether the page has one for it
    asks: tuple[str, ...] = ()  # what the page's button says of what it is about

    def read(self, given: Mapping[str, Any]) -> Arguments:
        """Its arguments, typed. Raises WrongArgument."""
        return read_arguments(self.arguments, given, self.one_of)


RETRIED = ("failed", "ignored", "dropped", "held")  # states of which all events can be retried
LANGUAGE = Argument("language", word_of("language", ("en", "ko")), default="en")
BY = Argument("by", default="")  # who asks, kept with what is changed
FOR_PROGRAMS = Argument("json", read_flag, default=False)  # for a program, which wants it all
OF_KIND = Argument("--kind", read_text, "only events of this kind")
RECEIVED_SINCE = Argument(
    "--since", read_since, 'received since: "2h", "7d", 2026-11-23', metavar="D"
)
WITH_REASON = Argument("--reason", read_text, "whose reason holds this text", metavar="TEXT")
TICKET_ID = Argument("ticket", id_of, "the helpdesk's id", metavar="TICKET", required=True)

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "status",
            "counts, the ITSM, and what needs a person (exit 1)",
            status_now,
            status_as_text,
            (LANGUAGE,),
            exit_code=lambda result: 1 if result["needs"] else 0,
        ),
        Operation(
            "events",
            "list events, newest first",
            list_events,
            events_as_text,
            (
                Argument(
                    "--state", word_of("state", STATES), "only events in this state", words=STATES
                ),
                OF_KIND,
                RECEIVED_SINCE,
                WITH_REASON,
                Argument("--ticket", id_of, "only events of this ticket", metavar="T"),
                Argument("--limit", read_count, "at most so many (50)", metavar="N", default=50),
                Argument("before", event_number, default=0),
                FOR_PROGRAMS,
            ),
            long="events",
        ),
        Operation(
            "show",
            "everything of an event, or a ticket's timeline",
            show_event_or_ticket,
            shown_as_text,
            (
                Argument("event", event_number, "its number", metavar="EVENT"),
                Argument("--ticket", id_of, "a ticket's mapping and events", metavar="T"),
                Argument("after", event_number, default=0),
                FOR_PROGRAMS,
            ),
            one_of=("event", "ticket"),
            long="events",
        ),
        Operation(
            "retry",
            "back to pending, translated anew with today's configuration",
            retry_events,
            retried_as_text,
            (
                Argument("events", event_number, "their numbers", metavar="EVENT", many=True),
                Argument(
                    "--state",
                    word_of("state to retry", RETRIED),
                    "all events in this state",
                    words=RETRIED,
                ),
                OF_KIND,
                RECEIVED_SINCE,
                WITH_REASON,
                Argument("cause"),
                BY,
                Argument("--dry-run", read_flag, "only count", default=False),
                Argument("--force", read_flag, "even older than a delivered one", default=False),
                Argument("after", event_number, default=0),
            ),
            one_of=("events", "state", "reason", "cause"),
            exit_code=_exit_refused,
            wakes=True,
            button=True,
            asks=("event", "cause"),
        ),
        Operation(
            "drop",
            "give events up; recorded",
            drop_events,
            dropped_as_text,
            (
                Argument(
                    "events", event_number, "their numbers", "EVENT", required=True, many=True
                ),
                Argument(
                    "--why", read_text, "the reason, kept with the event", "TEXT", required=True
                ),
                BY,
            ),
            exit_code=_exit_refused,
            wakes=True,
            button=True,
            asks=("event",),
        ),
        Operation(
            "map",
            "set a ticket's request id by hand; what was held for it goes out",
            map_ticket,
            mapped_as_text,
            (
                TICKET_ID,
                Argument("request_id", id_of, "the ITSM's id", "REQUEST", required=True),
                BY,
            ),
            creates=True,
            wakes=True,
            button=True,
            asks=("ticket", "request_id"),
        ),
        Operation(
            "pause",
            "stop deliveries; webhooks are still taken",
            pause_deliveries,
            paused_as_text,
            button=True,
        ),
        Operation(
            "resume",
            "let deliveries go on",
            resume_deliveries,
            paused_as_text,
            wakes=True,
            button=True,
        ),
        Operation(
            "forget",
            "remove a ticket's texts (personal data); its mapping stays",
            forget_ticket,
            forgotten_as_text,
            (TICKET_ID,),
            exit_code=lambda result: 1 if result["left"] else 0,
        ),
        Operation(
            "import",
            "read mappings from CSV",
            import_mappings,
            imported_as_text,
            (
                Argument(
                    "rows", _row_of(id_of, id_of, read_since, read_kept), required=True, many=True
                ),
            ),
            creates=True,
            wakes=True,
        ),
        Operation(
            "export",
            "print all mappings as CSV",
            export_mappings,
            mappings_as_text,
            (Argument("after"),),
            long="mappings",
        ),
        Operation(
            "reconcile",
            "compare the helpdesk's list of tickets (ticket_id, optional state) with what is here",
            reconcile_tickets,
            gaps_as_text,
            (Argument("tickets", _row_of(id_of, read_text), required=True, many=True),),
            exit_code=lambda result: 1 if any(result[name] for name in GAPS) else 0,
        ),
        Operation(
            "send",
            "",
            send_webhook,
            sent_as_text,
            (
                Argument("hook", required=True),
                Argument("body", required=True),
                Argument("headers", read_header, many=True),
            ),
            wakes=True,
        ),
        Operation(
            "backup",
            "write a consistent copy of the file, while the service runs or not",
            copy_file,
            lambda result, say: f"{result['bytes']} bytes to {result['file']}",
            (Argument("name", copy_name, required=True),),
        ),
    )
}


# ── Door: admit, read, store, answer ───────────────────────────────────────────────────────────


class Refused(Error):
    """A request that is not let in: its HTTP status, why, and headers of the answer.

    `event`: where what came of it was kept.
    """

    def __init__(self, status: int, why: str, event: int | None = None, **headers: str) -> None:
        super().__init__(why)
        self.status, self.event, self.headers = status, event, headers


# ── Door · admission: addresses, tokens, signatures ────────────────────────────────────────────


@functools.lru_cache(maxsize=256)
def _keys(name: str) -> tuple[str, str]:
    """Where a header may stand in an environ."""
    key = name.upper().replace("-", "_")
    return f"HTTP_{key}", key


def _header(environ: Mapping[str, Any], name: str) -> str:
    if name.startswith("?"):  # a field of the query
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), encoding="latin-1")
        return str(query.get(name[1:], [""])[0])
    key, plain_key = _keys(name)
    return str(environ.get(key, environ.get(plain_key, "")))


BY_A_PROXY = re.compile(  # what proxies and tunnels add beside or instead of X-Forwarded-For
    r"HTTP_(?:X_FORWARDED_|X_ORIGINAL_FORWARDED_|VIA$|CDN_LOOP$|.*(?:CLIENT|CONNECTING)_?IP$)"
)


def _hops(environ: Mapping[str, Any]) -> list[str]:
    """Where a request says that it came from, by whatever header a proxy adds; "" is not told."""
    hops = []
    for name in ("HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP"):
        hops += [hop.strip() for hop in environ[name].split(",")] if name in environ else []
    for element in (
        environ.get("HTTP_FORWARDED", "").split(",") if "HTTP_FORWARDED" in environ else ()
    ):
        match = re.search(r'(?i)(?:^|;)\s*for\s*=\s*"?([^";]*)', element)  # RFC 7239
        hops.append(match[1].strip() if match else "")
    return hops or ([""] if any(map(BY_A_PROXY.match, environ)) else [])


def client_address(environ: Mapping[str, Any], trusted: Sequence[Network]) -> Ip:
    """The caller's address; behind trusted proxies, the last one that no trusted proxy added.

    0.0.0.0, which is nobody, where a trusted proxy does not tell it by X-Forwarded-For.
    """
    address = read_ip(str(environ.get("REMOTE_ADDR", "0.0.0.0")))
    if not trusted:
        return address
    told = environ.get("HTTP_X_FORWARDED_FOR")
    hops = told.split(",") if told is not None else [""] if _hops(environ) else []
    while hops and any(address in network for network in trusted):
        try:
            address = read_ip(hops.pop().strip())
        except ValueError:
            return ipaddress.IPv4Address(0)
    return address


def from_this_machine(environ: Mapping[str, Any], trusted: Sequence[Network]) -> bool:
    """Whether the caller is here, and not behind a proxy that is, as far as that can be told."""
    peer, hops = str(environ.get("REMOTE_ADDR", "0.0.0.0")), _hops(environ)
    if not is_loopback(peer):
        return False
    believed = any(read_ip(peer) in network for network in trusted)
    return not hops or (believed and all(map(is_loopback, hops)))


def by_another_site(environ: Mapping[str, Any]) -> bool:
    """Whether a browser sends this on behalf of a site that is not ours.

    It says so itself (Fetch Metadata; Origin), and no page can make it say otherwise.
    """
    if _header(environ, "Sec-Fetch-Site").lower() not in ("", "same-origin", "none"):
        return True
    origin, host = _header(environ, "Origin").lower(), _header(environ, "Host").lower()
    return bool(origin) and origin not in (f"http://{host}", f"https://{host}")


def _names_an_address(host: str) -> bool:
    """Whether a Host is an address or localhost; any other name may lead here by another's DNS."""
    with contextlib.suppress(ValueError):
        return bool(read_ip(host))
    return is_loopback(host)


def _same(given: str, secret: Secret) -> bool:
    wanted = secret.reveal().encode("utf-8")
    return bool(wanted) and hmac.compare_digest(given.encode("utf-8", "replace"), wanted)


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of a Basic login, each "" for none."""
    if authorization[:6].lower() != "basic ":
        return "", ""
    try:
        decoded = base64.b64decode(authorization[6:].strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", ""
    user, _, password = decoded.partition(":")
    return user, password


def _tokens(access: AccessOptions, environ: Mapping[str, Any]) -> Iterator[str]:
    """Every token a request brings. Raises Refused (400) where its query has no end."""
    authorization = _header(environ, "Authorization")
    scheme, _, token = authorization.partition(" ")
    yield token.strip() if scheme.lower() in ("bearer", "token") else authorization
    yield from _basic(authorization)
    yield _header(environ, "X-Webhook-Token")
    if access.token_header:
        yield _header(environ, access.token_header)
    if access.query_token:
        try:
            query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=50)
        except ValueError:
            raise Refused(400, "more than 50 fields in the query of the address") from None
        yield from query.get("token", [])


MOST_SIGNATURES = 10  # in one header


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] or "" if match else ""


def signature_holds(rule: Signature, environ: Mapping[str, Any], raw: bytes, now: float) -> bool:
    """Whether the request carries the helpdesk's signature over its body, young enough."""
    timestamp = _first(rule.timestamp_match, _header(environ, rule.timestamp_header))
    if rule.limit:
        try:
            if abs(now - parse_date(timestamp, UTC).timestamp()) > rule.limit:
                return False
        except ValueError:
            return False
    parts = {
        "body": raw,
        "timestamp": timestamp.encode("latin-1", "replace"),
        "id": _header(environ, rule.id_header).encode("latin-1", "replace"),
    }
    if not all(parts[name] for name in rule.names if name != "body"):
        return False
    signed = b"".join(
        parts[part] if place % 2 else part.encode() for place, part in enumerate(rule.signed)
    )
    given = [
        match[1] or "" for match in rule.match.finditer(_header(environ, rule.header).strip())
    ]
    matches = False
    for secret in rule.secret:
        key = rule.key_in(secret)
        digest = hmac.new(key, signed, rule.algorithm).digest()
        wanted = digest.hex() if rule.encoding == "hex" else base64.b64encode(digest).decode()
        for text in given[:MOST_SIGNATURES]:
            text = text.lower() if rule.encoding == "hex" else text
            same = hmac.compare_digest(text.encode("utf-8", "replace"), wanted.encode())
            matches |= bool(key) and same
    return matches


def admit(
    access: AccessOptions, caller: Ip, environ: Mapping[str, Any], raw: bytes | None, now: float
) -> bool:
    """Lets a webhook in, or raises Refused (400, 401, 403).

    `raw` is None where its body has not come yet: then False says that only that can tell.
    """
    if access.networks and not any(caller in network for network in access.networks):
        raise Refused(403, "this address may not post here: see [access] networks")
    if not access.token and not access.hmac:
        stranger = _header(environ, "Origin") and not _names_an_address(_header(environ, "Host"))
        if stranger or by_another_site(environ):
            raise Refused(403, "a browser sends this for another site: that needs [access] token")
        return True
    for given in _tokens(access, environ):
        if any(_same(given, secret) for secret in access.token):
            return True
    if access.hmac and (raw is None or signature_holds(access.hmac, environ, raw, now)):
        return raw is not None
    why = "no valid credential"
    if access.hmac and not _header(environ, access.hmac.header):
        why += f" and no header {access.hmac.header}"
    raise Refused(401, f"{why}: see [access] token and hmac")


# ── Door · answers in JSON ─────────────────────────────────────────────────────────────────────


NO_ROUTE = {404: "no such address", 405: "this address takes another method (see Allow)"}
INTERNAL = "internal error; see the log"


class _Site(bottle.Bottle):  # type: ignore[misc]
    """Bottle with its own words for errors: JSON."""

    def default_error_handler(self, res: bottle.HTTPError) -> str:
        """Any error that no handler made: 404, 405, 500."""
        res.content_type = "application/json"
        words = NO_ROUTE.get(res.status_code, INTERNAL)
        return COMPACT.encode({"error": words})


def reply(status: int, content: Any, **headers: str) -> bottle.HTTPResponse:
    """An answer: `content` as JSON, a text as it is. `_` in a header's name is `-`."""
    body = content if isinstance(content, str) else COMPACT.encode(content)
    headers["Content_Type"] = "application/json; charset=utf-8"
    return bottle.HTTPResponse(body.encode("utf-8", "replace"), status, **headers)


def proof(key: str, *said: str) -> str:
    """What only who has the key of the control file can know of what is said (HMAC-SHA256)."""
    return hmac.new(key.encode(), "\n".join(said).encode(), "sha256").hexdigest()


class Sparing:
    """Lets one log line a minute through for each key, and counts those it holds back."""

    MINUTE, KEYS = 60.0, 1000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}  # key -> when let through, held back since

    def line(self, key: str, now: float) -> str | None:
        """What to add to the line ("" or how many were held back); None: hold it back."""
        with self._lock:
            at, held = self._told.get(key, (-self.MINUTE, 0))
            if now - at < self.MINUTE:
                self._told[key] = (at, held + 1)
                return None
            if len(self._told) >= self.KEYS:
                self._told.clear()
            self._told[key] = (now, 0)
            return f" (and {held} more like it)" if held else ""


PREFER_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?([0-9]{1,9})"?\s*(?:$|[,;])')  # RFC 7240


class Arrival(NamedTuple):
    """What became of a request to a hook: its webhooks, the JSON to send back, what was stored.

    A request that only tries the address brings none.
    """

    webhooks: Sequence[NewEvent]
    echo: Any
    receipts: Sequence[Receipt | Exception]


ARRIVAL = "hd_itsm.arrival"  # where a request's environ keeps it
TOO_LARGE = object()  # stands for the JSON to send back
BEGINNING = 65536  # bytes that are kept of a webhook that is too large
PACKED = {  # Content-Encodings that change a body; whatever else is written there does not
    *("gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "dcb", "dcz"),
    *("aws-chunked", "exi", "pack200-gzip"),
}


def hook_headers(hook: Hook, environ: Mapping[str, Any]) -> dict[str, str]:
    """What a hook's paths read of a request's headers and query, by name."""
    return {
        name: _header(environ, name).encode("latin-1", "replace").decode("utf-8", "replace")
        for name in hook.headers
    }


class Door:
    """The WSGI application: the hooks as configured, the control endpoint, and what machines read.

    `wake` is called after an event became pending; `key` opens the control endpoint.
    """

    def __init__(self, config: Config, events: Events, wake: Callable[[], None], key: str) -> None:
        self.config, self.events, self.wake, self.key = config, events, wake, key
        self.threads = max(2, config.server.threads)  # half of them may wait (Prefer), never all
        self.sparing = Sparing()
        self.as_page: Callable[[int, str], bottle.HTTPResponse] | None = None  # see `problem`
        self.site = _Site()
        self.site.catchall = False  # what a handler lets out is Waitress' to log, in one line
        self.site.install(self.answered)
        self.hooks = {
            path: hook for hook in config.hooks.values() for path in (hook.path, hook.path + "/")
        }
        for path, hook in self.hooks.items():
            by_head = functools.partial(self.hook_by_head, hook)
            self.site.route(path, "POST", functools.partial(self.hook, hook), by_head=by_head)
            self.site.route(path, ("GET", "OPTIONS"), functools.partial(self.describe, hook))
        for status in NO_ROUTE:
            self.site.error(status, callback=self.no_route)
        self.site.route("/control/hello", "GET", self.hello)
        self.site.route("/control/<verb>", "POST", self.control, by_head=self.proven_by_head)
        self.site.route("/health", "GET", self.health)
        self.site.route("/metrics", "GET", self.metrics)
        self.site.route("/openapi.json", "GET", self.openapi)

    def answered(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Around every handler: who is refused, or meets a file that cannot be used, is told."""

        def answer(**named: str) -> Any:
            try:
                return handler(**named)
            except Refused as error:
                return self.refuse(error, bottle.request.environ)
            except FileError as error:
                self.events.since_start.count("refused", "503")
                environ = bottle.request.environ
                if (path := environ["PATH_INFO"]) in self.hooks:
                    away = name_turned_away(503, str(self.caller(environ)), path, str(error))
                    self.events.file.count_soon(away)
                return self.problem(environ, 503, {"error": str(error)}, Retry_After="30")

        return answer

    def refuse(self, error: Refused, environ: Mapping[str, Any]) -> bottle.HTTPResponse:
        """Turns a caller away."""
        self.tell_refused(error.status, str(error), environ, kept=error.event is not None)
        content: dict[str, Any] = {"error": str(error)}
        if error.status == 401:
            error.headers["WWW_Authenticate"] = 'Basic realm="hd_itsm"'
        if error.event is not None:
            content["event"] = error.event
            error.headers["HD_ITSM_Event"] = str(error.event)
        return self.problem(environ, error.status, content, **error.headers)

    def problem(
        self, environ: Mapping[str, Any], status: int, content: Mapping[str, Any], **headers: str
    ) -> bottle.HTTPResponse:
        """What went wrong: a page for a person's browser, JSON for all others."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        person = method in ("GET", "HEAD") or path.startswith("/act/")
        wants = "text/html" in _header(environ, "Accept").lower()
        if self.as_page is None or not (person and wants) or path in self.hooks:
            return reply(status, content, **headers)
        bottle.request.bind(environ)  # it may have been refused before Bottle met it
        page = self.as_page(status, content["error"])
        for name, value in headers.items():
            page.set_header(name.replace("_", "-"), value)
        return page

    def tell_refused(
        self, status: int, why: str, environ: Mapping[str, Any], kept: bool = False
    ) -> None:
        """Counts a request that was turned away, and tells it in the log, though not each time."""
        self.events.since_start.count("refused", str(status))
        caller, path = self.caller(environ), environ["PATH_INFO"] or "a request"
        if status in NO_ROUTE:  # alike, whether its body came with its head or later
            why = f"{why}: {environ['REQUEST_METHOD']}"
        if not kept and (path in self.hooks or status not in (401, 403, 421)):  # maybe a webhook
            self.events.file.count_soon(name_turned_away(status, str(caller), path, why))
        more = self.sparing.line(f"{caller} {status}", time.monotonic())
        if more is not None:
            log.warning("%s from %s refused: %d %s%s", path[:200], caller, status, why, more)

    def no_route(self, error: bottle.HTTPError) -> bottle.HTTPResponse:
        """A wrong address or method: told where it may be a helpdesk's webhook that is lost."""
        status, method = error.status_code, bottle.request.method
        if status == 405 or method in ("POST", "PUT", "PATCH"):
            self.tell_refused(status, NO_ROUTE[status], bottle.request.environ)
        allowed = {"Allow": error.get_header("Allow")} if status == 405 else {}
        said = {"error": NO_ROUTE[status]}
        return self.problem(bottle.request.environ, status, said, **allowed)

    def caller(self, environ: Mapping[str, Any]) -> Ip:
        """The address that asks, behind a trusted proxy the one that this names."""
        return client_address(environ, self.config.server.trusted_proxy)

    def own_host(self, environ: Mapping[str, Any]) -> None:
        """Refuses a foreign, missing or doubled Host on loopback: DNS rebinding."""
        host, _ = self.config.server.listen
        if is_loopback(host) and not is_loopback(_header(environ, "Host")):
            raise Refused(421, "this address is for callers on the machine itself")

    def admit(
        self, access: AccessOptions, environ: Mapping[str, Any], raw: bytes | None, now: float
    ) -> bool:
        """As the function of this name, for the address that asks."""
        return admit(access, self.caller(environ), environ, raw, now)

    def by_head(self, environ: Mapping[str, Any]) -> bool | None:
        """Judges a request whose body is still to come. Raises Refused.

        True: its sender is let in, and what is too large is kept in part; False: all of it must
        come before that can be said; None: it is answered without its body.
        """
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "ignore")  # as Bottle does
        try:
            route, _ = self.site.match({**environ, "PATH_INFO": path})
        except bottle.HTTPError as error:
            headers = {"Allow": error.get_header("Allow")} if error.status_code == 405 else {}
            raise Refused(error.status_code, NO_ROUTE[error.status_code], **headers) from None
        judge = route.config.get("by_head")
        return judge(environ) if judge else None

    # ── Door · the hooks ───────────────────────────────────────────────────────────────────────

    def hook(self, hook: Hook) -> bottle.HTTPResponse:
        """Answers one request: admit, read, store; then 200, 400, 401, 403, 413, 415 or 503."""
        environ = bottle.request.environ
        if ARRIVAL not in environ:
            self.store_webhooks([(hook, environ)])
        webhooks, echo, outcomes = environ[ARRIVAL]
        receipts = []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            receipts.append(outcome)
        if not receipts:
            return self.challenged(echo)
        if echo is TOO_LARGE:
            self.events.since_start.count("webhooks", receipts[0].state)
            raise Refused(413, receipts[0].reason, receipts[0].event)
        for webhook, receipt in zip(webhooks, receipts, strict=True):
            self.tell_stored(hook, webhook, receipt)
        return self.answer(receipts, echo)

    def describe(self, hook: Hook) -> bottle.HTTPResponse:
        """What a hook is, for senders that look before they save its address, or try it by GET."""
        environ = bottle.request.environ
        if text := read_challenge(hook, b"", hook_headers(hook, environ)):
            self.admit(self.config.access_to(hook), environ, b"", time.time())
            return self.challenged(text)
        what = {"hook": hook.name, "kinds": hook.kinds, "send": "POST, with a webhook as JSON"}
        return reply(200, what, Allow="GET, HEAD, OPTIONS, POST")

    def challenged(self, text: str) -> bottle.HTTPResponse:
        """Sends back what a sender wants to have back, as text that no browser runs."""
        response = reply(200, text, X_Content_Type_Options="nosniff")
        response.set_header("Content-Type", "text/plain; charset=utf-8")
        return response

    def store_webhooks(self, requests: Sequence[tuple[Hook, dict[str, Any]]]) -> None:
        """Reads and stores the webhooks of some requests in one transaction; `hook` answers them.

        A request is its hook and its environ, which then holds the Arrival.
        """
        arrivals: list[tuple[dict[str, Any], Sequence[NewEvent], Any]] = []
        for hook, environ in requests:
            try:
                arrivals.append((environ, *self.arrived(hook, environ)))
            except Exception as error:
                environ[ARRIVAL] = Arrival((), None, (error,))
        receipts = self.events.receive([new for _, news, _ in arrivals for new in news])
        at = 0
        for environ, news, echo in arrivals:
            environ[ARRIVAL] = Arrival(news, echo, receipts[at : at + len(news)])
            at += len(news)
        if any(isinstance(row, Receipt) and row.state == "pending" for row in receipts):
            self.wake()

    def hook_by_head(self, hook: Hook, environ: Mapping[str, Any]) -> bool:
        """As `by_head`, for a hook."""
        return self.admit(self.config.access_to(hook), environ, None, time.time())

    def arrived(self, hook: Hook, environ: Mapping[str, Any]) -> tuple[Sequence[NewEvent], Any]:
        """The webhooks that a request brings, as they are to be stored, and its JSON to send back.

        TOO_LARGE instead of the JSON where the body is; for a challenge none, and its text. Raises
        Refused.
        """
        raw, received = environ["wsgi.input"].read(), time.time()
        self.admit(self.config.access_to(hook), environ, raw, received)
        codings = _header(environ, "Content-Encoding").lower()
        if codings and PACKED.intersection(re.split(r"[\s,]+", codings)):
            raise Refused(415, "a compressed body is not read: send it plain")
        headers = hook_headers(hook, environ)
        webhook = NewEvent(
            hook=hook.name,
            raw=raw,
            headers=json.dumps(headers) if headers else "{}",
            sender=str(environ.get("REMOTE_ADDR", "")),
            received=received,
            state="pending",
        )
        size = max(len(raw), int(environ.get("CONTENT_LENGTH") or 0))
        if size > self.config.server.max_body:
            return [self.beginning(webhook)], TOO_LARGE
        if text := read_challenge(hook, raw, headers):
            return (), text
        return self.read(hook, webhook, headers)

    def beginning(self, webhook: NewEvent) -> NewEvent:
        """What is kept of a webhook that is too large, so that a person learns of it."""
        raw, limit = webhook.raw[:BEGINNING], self.config.server.max_body
        reason = f"the body is over the {limit} bytes of server.max_body, its first {len(raw)} are"
        reason += " kept: raise max_body and let the helpdesk send it again"
        return webhook._replace(raw=raw, state="failed", reason=reason)

    def read(
        self, hook: Hook, webhook: NewEvent, headers: Mapping[str, str]
    ) -> tuple[Sequence[NewEvent], Any]:
        """The webhook (or several) with what its body says, and its JSON to send back."""
        try:
            body, readings = read_webhooks(hook, webhook.raw, headers, self.config.clock.zone)
            return [judge(self.config, hook, reading, webhook) for reading in readings], body
        except Exception:  # whatever it is, the webhook is kept
            log.exception("%s: a fault of this program; the webhook is kept as failed", hook.path)
            reason = "a fault of this program (see the log): retry it with a newer one"
            return [webhook._replace(state="failed", reason=reason)], {}

    def tell_stored(self, hook: Hook, webhook: NewEvent, receipt: Receipt) -> None:
        """The log line of a webhook, where it is not simply stored; and the tallies."""
        tallies = self.events.since_start
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
                without_quotes(receipt.reason),
            )
        else:
            log.debug(
                "event %d ticket %s %s received", receipt.event, webhook.ticket, webhook.kind
            )
        if webhook.repaired:
            log.info("event %d was repaired: %s", receipt.event, webhook.repaired)

    def answer(self, receipts: Sequence[Receipt], echo: Any) -> bottle.HTTPResponse:
        """200 for what was stored, 400 where all of it failed; with Prefer: wait, once settled."""
        headers: dict[str, str] = {}
        wishes = bottle.request.environ.get("HTTP_PREFER")
        match = wishes and PREFER_WAIT.search(wishes)
        if match and any(receipt.state in ("pending", "held") for receipt in receipts):
            seconds = min(int(match[1]), MAX_WAIT)
            waited = self.settled(receipts, time.monotonic() + seconds)
            if waited:
                receipts = waited
                headers["Preference_Applied"] = f"wait={seconds}"
        headers["HD_ITSM_Event"] = ", ".join(str(receipt.event) for receipt in receipts)
        headers["HD_ITSM_State"] = ", ".join(receipt.state for receipt in receipts)
        if len(receipts) == 1 and receipts[0].request_id:
            headers["HD_ITSM_Request_Id"] = urllib.parse.quote(
                receipts[0].request_id, safe=" !#$&'()*+,/:;=?@[]~"
            )
        failed = all(receipt.state == "failed" for receipt in receipts)
        if failed and "Preference_Applied" not in headers:
            first = receipts[0]
            return reply(400, {"error": first.reason, "event": first.event}, **headers)
        return reply(200, echo, **headers)

    def settled(self, receipts: Sequence[Receipt], deadline: float) -> Sequence[Receipt]:
        """Receipts as they are at the end of a wait (monotonic); none where too many wait."""
        waited = []
        for receipt in receipts:
            if receipt.state in ("pending", "held"):
                left = max(0.0, deadline - time.monotonic())
                later = self.events.wait(receipt.event, left, self.threads // 2)
                if later is None:
                    return ()
                receipt = later
            waited.append(receipt)
        return waited

    # ── Door · control endpoint ────────────────────────────────────────────────────────────────

    def hello(self) -> bottle.HTTPResponse:
        """Proves to a command that this is the service of its control file, by its nonce."""
        environ = bottle.request.environ
        self.own_host(environ)
        nonce = _header(environ, "HD-ITSM-Nonce")
        if not re.fullmatch("[0-9a-f]{32}", nonce):
            raise Refused(400, "HD-ITSM-Nonce must be 32 hexadecimal digits")
        return reply(200, {}, HD_ITSM_Proof=proof(self.key, "service", nonce))

    def proven(self, environ: Mapping[str, Any]) -> tuple[str, str]:
        """The nonce of a command and the digest of what it sends, both proven by the key.

        Raises Refused (401, 421).
        """
        self.own_host(environ)
        given = _header(environ, "HD-ITSM-Proof").split()
        nonce, digest, word = given if len(given) == 3 else ("", "", "")
        operation = environ["PATH_INFO"].rpartition("/")[2]
        wanted = proof(self.key, "command", nonce, operation, digest)
        if not hmac.compare_digest(word.encode(), wanted.encode()):
            raise Refused(401, "no proof of the key that stands in the control file")
        return nonce, digest

    def proven_by_head(self, environ: Mapping[str, Any]) -> bool:
        """As `by_head`, for the control endpoint: what is too large is never kept."""
        self.proven(environ)
        return False

    def control(self, verb: str) -> bottle.HTTPResponse:
        """Carries out an operation for a command that proves the key, and proves the answer."""
        environ = bottle.request.environ
        nonce, digest = self.proven(environ)
        body = environ["wsgi.input"].read()
        if hashlib.sha256(body).hexdigest() != digest:
            raise Refused(401, "this is not the body that was proven")
        status, content = 200, dict[str, Any]()
        try:
            content["result"] = self.carry_out(verb, body)
        except FileError as error:
            status, content["error"] = 503, str(error)
        except WrongArgument as error:
            status, content["error"] = 400, str(error)
        except Error as error:
            status, content["error"] = 422, str(error)
        text = COMPACT.encode(content)
        sent = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        answer = proof(self.key, "answer", nonce, str(status), sent)
        return reply(status, text, HD_ITSM_Proof=answer)

    def carry_out(self, name: str, body: bytes) -> dict[str, Any]:
        """An operation's result for arguments in JSON. Raises Error."""
        operation = OPERATIONS.get(name)
        if operation is None:
            raise WrongArgument(f"no operation {name!r}{_hint(name, OPERATIONS)}")
        try:
            given = parse_json(body.decode())
        except (ValueError, Unreadable) as error:
            raise WrongArgument(f"the arguments are no JSON: {error}") from None
        if not isinstance(given, dict):
            raise WrongArgument("the arguments must be a JSON object")
        result = operation.function(self.config, self.events, operation.read(given))
        if operation.wakes:
            self.wake()
        return result

    # ── Door · what machines read ──────────────────────────────────────────────────────────────

    def health(self) -> bottle.HTTPResponse:
        """How it is, for monitoring: 200 for ok and warn, 503 for fail."""
        try:
            word, answer = health(self.config, self.events)
        except FileError as error:
            return reply(503, {"status": "fail", "error": str(error)})
        return reply(503 if word == "fail" else 200, answer)

    def insider(self) -> None:
        """Lets in who may read about this service: this machine, or by any means of a webhook.

        Raises Refused (401, 403).
        """
        environ, password = bottle.request.environ, self.config.server.admin_password
        if from_this_machine(environ, self.config.server.trusted_proxy):
            return
        if not _same(_basic(_header(environ, "Authorization"))[1], password):
            self.admit(self.config.access, environ, b"", time.time())

    def openapi(self) -> bottle.HTTPResponse:
        """The hooks as configured, for programs."""
        self.insider()
        return reply(200, openapi(self.config))

    def metrics(self) -> bottle.HTTPResponse:
        """Numbers for Prometheus."""
        self.insider()
        response = reply(200, metrics(self.config, self.events))
        response.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        return response


# ── Look: style, script and templates of the page ──────────────────────────────────────────────

# Rendered here, nothing from outside, and it works without JavaScript.

# ── Look · style and script ────────────────────────────────────────────────────────────────────


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --field: #f5f7f9; --line: #dfe3e8; --edge: #7f8892;
  --ink: #1b1f24; --soft: #57606a; --link: #0550ae; --bar: #868f99;
  --ok: #116329; --okbg: #e9f7ed;
  --warn: #7d4e00; --warnbg: #fff7db;
  --bad: #a40e26; --badbg: #fff0ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1419; --field: #181e25; --line: #2b333c; --edge: #717b86;
    --ink: #e3e9ef; --soft: #9aa5b1; --link: #7fb8fb; --bar: #6f7a86;
    --ok: #7fdc90; --okbg: #10241a;
    --warn: #f0cb63; --warnbg: #272009;
    --bad: #ffa198; --badbg: #331518;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0 auto; max-width: 1100px; padding: 0 1.25rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic",
    "Noto Sans KR", "Noto Sans CJK KR", sans-serif;
  font-variant-numeric: tabular-nums;
  word-break: keep-all; overflow-wrap: anywhere;
}
h1, h2, p, dl, dd, table, ol, ul, pre { margin: 0; padding: 0; }
h1 { font-size: 1.5rem; line-height: 1.3; color: var(--tone, var(--ink)); }
h2 { font-size: 1.125rem; }
h1, h2, th, dd { font-weight: 600; }
small, dt, thead th, .soft { font-size: .875rem; font-weight: 400; color: var(--soft); }
section { margin-top: 2rem; }
section > * + * { margin-top: .75rem; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: 1px; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px; }
header, nav, form, .row { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; }
header { justify-content: space-between; padding: 1rem 0 .5rem; }
header p > a { font-weight: 600; color: var(--ink); text-decoration: none; }
form { gap: .5rem; }
input, button {
  font: inherit; color: inherit; min-height: 2.25rem; max-width: 100%; padding: .25rem .75rem;
  border: 1px solid var(--edge); border-radius: 6px; background: var(--paper);
}
button { cursor: pointer; }
button:hover { background: var(--field); }
.link {
  min-height: 1.5rem; padding: 0; border: 0; background: none; color: var(--link);
  text-decoration: underline; text-underline-offset: .15em; text-decoration-thickness: 1px;
}
.link:hover { background: none; }
.state { padding: 1rem 1.5rem; border-radius: 10px; background: var(--field); }
section.state { margin-top: .5rem; }
.ok { --tone: var(--ok); background: var(--okbg); }
.warn { --tone: var(--warn); background: var(--warnbg); }
.fail { --tone: var(--bad); background: var(--badbg); }
mark {
  padding: .0625rem .375rem; border-radius: 4px; white-space: nowrap;
  color: var(--tone, var(--soft));
}
mark:not([class]) { background: var(--field); }
dl { display: grid; gap: .5rem 1.5rem; }
.state > dl { grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.state > dl { padding-top: .75rem; border-top: 1px solid var(--line); }
.state dd form { display: inline; }
.state dd small { display: block; }
.pairs { grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.5rem; }
.pairs > div { display: contents; }
.pairs dd { font-weight: 400; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .375rem 1rem .375rem 0; text-align: left; vertical-align: baseline; }
tr > :last-child { padding-right: 0; }
tr { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: var(--field); }
time, thead th, .event { white-space: nowrap; }
.num { width: 1%; text-align: right; white-space: nowrap; }
.do { width: 1%; text-align: right; white-space: nowrap; }
.do form { display: inline; margin-left: .75rem; }
.causes tbody th { padding: .75rem 0 .25rem; }
.causes tbody th .row { justify-content: space-between; flex-wrap: nowrap; }
.causes th small { display: block; }
.causes td { padding-top: .125rem; padding-bottom: .125rem; }
.causes tr:has(+ tr) { border-bottom-color: transparent; }
nav a { padding: .25rem 0; white-space: nowrap; }
nav [aria-current] { color: var(--ink); font-weight: 600; box-shadow: 0 2px var(--ink); }
nav [aria-current] { text-decoration: none; }
svg { display: block; width: 100%; height: 88px; }
.received { fill: var(--bar); }
.delivered { fill: var(--ok); }
.failed { fill: var(--bad); }
.axis { display: flex; list-style: none; }
.axis li { flex: 1; }
pre {
  padding: .75rem 1rem; border-radius: 6px; background: var(--field);
  white-space: pre-wrap; font-size: .875rem;
}
.away { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.skip { position: absolute; left: -99rem; padding: .5rem 1rem; background: var(--paper); }
.skip:focus { left: 1rem; }
[hidden] { display: none; }
@media (max-width: 640px) {
  body { padding: 0 1rem 3rem; }
  header form, header label { flex: 1 0 100%; }
  header input { flex: 1; min-width: 0; }
  .state { padding: 1rem; }
  .state > dl { grid-template-columns: 1fr 1fr; }
  .pairs { grid-template-columns: minmax(0, 1fr); }
  .pairs dd { margin-bottom: .5rem; }
  .causes tbody th .row { flex-wrap: wrap; }
  table:not(.grid), table:not(.grid) :is(tbody, td, th) { display: block; }
  table:not(.grid) thead { display: none; }
  table:not(.grid) :is(td, th) { width: auto; padding: 0; text-align: left; }
  table:not(.grid) tr { display: flex; flex-wrap: wrap; gap: .125rem .75rem; padding: .5rem 0; }
  table:not(.grid) .wide, .causes tbody th { flex: 1 0 100%; }
  table:not(.grid) .do { margin-left: auto; }
  td:empty { display: none; }
}
"""

SCRIPT = """
// Shows what is new every ten seconds, in its place, but not while a person types or selects.

function changed(field) {
  return field.type != "hidden" && field.value != field.defaultValue;
}

function busy() {
  var active = document.activeElement;
  return document.hidden
    || String(getSelection())
    || active && active.tagName == "INPUT" && active.closest("main")
    || [].some.call(document.querySelectorAll("input"), changed);
}

function named(element) {
  return element && element.tagName + " " + (element.getAttribute("aria-label")
    || element.textContent) + " " + (element.getAttribute("href") || "");
}

function show(fresh) {
  if (fresh.querySelector("style").textContent != document.querySelector("style").textContent) {
    location.reload();  // another program: all of it is new
    return;
  }
  var focused = named(document.activeElement);
  var open = [].map.call(document.querySelectorAll("details[open] > summary"), named);
  document.title = fresh.title;
  ["#now", "#lost", "main"].forEach(function (part) {
    document.querySelector(part).replaceWith(fresh.querySelector(part));
  });
  document.querySelectorAll("main a, main button, main summary").forEach(function (element) {
    if (element.tagName == "SUMMARY" && open.indexOf(named(element)) >= 0) {
      element.parentNode.open = true;
    }
    if (named(element) == focused && document.activeElement == document.body) {
      element.focus({preventScroll: true});
    }
  });
}

function renew() {
  if (busy()) return;
  fetch(location.href, {cache: "no-store", signal: AbortSignal.timeout(9000)})
    .then(function (answer) {
      if (!answer.ok) throw answer.status;
      return answer.text();
    })
    .then(function (text) {
      if (!busy()) show(new DOMParser().parseFromString(text, "text/html"));
    })
    .catch(function () { document.querySelector("#lost").hidden = false; });
}

history.replaceState(null, "", location.href.replace(/[?&]done=[0-9a-f]+/, ""));
if (document.querySelector("main[data-renews]")) {
  setInterval(renew, 10000);
  document.addEventListener("visibilitychange", renew);
}
"""

# ── Look · templates ───────────────────────────────────────────────────────────────────────────

FRAME = """<!doctype html>
<html lang="{{say.language}}">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>{{title}}</title>
    <style>{{!style}}</style>
  </head>
  <body>
    % if lists:
    <a class="skip" href="#events">{{say('To the events')}}</a>
    % end
    <header>
      <p>
        <a href="/">hd_itsm</a>
        <small id="now">{{say('as of {time}', time=now)}}</small>
        <small id="lost" role="alert" hidden>{{lost}}</small>
      </p>
      <form action="/search" method="get" role="search">
        <label for="q" class="soft">{{say('Ticket, request id, event or subject')}}</label>
        <input id="q" name="q" type="search" required maxlength="200" value="{{q}}">
        <button>{{say('Search')}}</button>
      </form>
    </header>
    % if notice:
    <div class="state note" role="status">
      <p>{{notice}}</p>
    </div>
    % end
    <main{{!' data-renews' if renews else ''}}>
      {{!body}}
    </main>
    <script>{{!script}}</script>
  </body>
</html>
"""

# What several templates share. A cell has no blank in it: on a phone an empty one is not shown.
PARTS = """
% def at(moment, seconds=True):
<time datetime="{{iso(moment)}}" title="{{iso(moment)}}">{{when(moment, seconds)}}</time>
% end
% def heads(*names):
  <thead>
    <tr>
      % for name in names:
      <th scope="col">{{say(name)}}</th>
      % end
    </tr>
  </thead>
% end
% def state_mark(state, unclear=False):
<mark{{!tone_of(state)}}>{{shape_of(state)}} {{say.state('unclear' if unclear else state)}}</mark>
% end
% def ticket_link(row):
  % if row['ticket']:
<a href="{{address(row['ticket'])}}">{{row['ticket']}}</a>
  % else:
<span class="soft">{{say('no ticket')}}</span>
  % end
<span{{!tongue(row['subject'])}}>{{row['subject']}}</span>
% end
% def event_link(row):
{{row['kind'] or ''}} <a href="/events/{{row['event']}}">{{row['event']}}</a>
% end
% def buttons(offers, style=''):
  % for offer in offers:
<form action="/confirm/{{offer.verb}}" method="get">
  % for name, value in offer.fields.items():
  <input type="hidden" name="{{name}}" value="{{value}}">
  % end
  <button{{!style}} aria-label="{{offer.name}}">{{offer.word}}</button>
</form>
  % end
% end
% def listed(rows):
<table>
  % heads('Received', 'Ticket', 'Event', 'State', 'Request id')
  <tbody>
    % for row in rows:
    <tr>
      <td>
        % at(row['received'])
      </td>
      <td class="wide">
        % ticket_link(row)
      </td>
      <td class="event">
        % event_link(row)
      </td>
      <td>
        % state_mark(row['state'])
        <small>{{say.known(row['reason']) if row['state'] != 'delivered' else ''}}</small>
      </td>
      <td>{{row['request_id'] or ''}}</td>
    </tr>
    % end
  </tbody>
</table>
% end
% def by_hand(acts):
  % if acts:
<section>
  <h2>{{say('By hand')}}</h2>
  <table>
    % heads('At', 'What', 'Who')
    <tbody>
      % for act in acts:
      <tr>
        <td>
          % at(act['at'])
        </td>
        <td>{{say.known(act['what'])}}</td>
        <td>{{say.known(act['who'])}}</td>
      </tr>
      % end
    </tbody>
  </table>
</section>
  % end
% end
% def history(attempts):
<table>
  % heads('Attempt', 'At', 'Took', 'Status', 'Outcome')
  <tbody>
    % for attempt in attempts:
    <tr>
      <td>{{attempt['attempt']}}</td>
      <td>
        % at(attempt['at'])
      </td>
      <td>{{f"{attempt['duration'] or 0:.3f}"}} s</td>
      <td>{{attempt['status'] or say('none')}}</td>
      <td>{{attempt['outcome']}} <small>{{say.known(attempt['reason'])}}</small></td>
    </tr>
    % end
  </tbody>
</table>
% end
"""

HOME = (
    PARTS
    + """
% if not filtered:
<section class="state {{head.tone}}">
  <h1>{{head.shape}} {{head.word}}</h1>
  <p>{{head.sentence}}</p>
  <dl>
    % for name, value, more in facts:
    <div>
      <dt>{{name}}</dt>
      <dd>{{value}} <small>{{more}}</small></dd>
    </div>
    % end
    <div>
      <dt>{{say('Deliveries')}}</dt>
      <dd>
        {{say('paused') if paused else say('go on')}}
        % buttons([pausing], ' class="link"')
        <small>{{say('since {time}', time=when(paused)) if paused else ''}}</small>
      </dd>
    </div>
  </dl>
</section>
% end
% if causes:
<section>
  <h2 id="needs">{{say('What needs you')}} <small>{{needing}}</small></h2>
  <table class="causes" aria-labelledby="needs">
    <thead class="away">
      <tr>
        % for name in ('Ticket', 'Event', 'Since', 'Actions'):
        <th scope="col">{{say(name)}}</th>
        % end
      </tr>
    </thead>
    % for cause in causes:
    <tbody>
      <tr>
        <th scope="rowgroup" colspan="4">
          <div class="row">
            <span>
              % state_mark(cause['state'], cause['unclear'])
              {{say.known(cause['cause'])}}
              <small>{{cause['count']}}. {{cause['advice']}}</small>
            </span>
            % buttons(cause['offers'])
          </div>
        </th>
      </tr>
      % for row in cause['rows']:
      <tr>
        <td class="wide">
          % ticket_link(row)
          <small>{{row['behind']}}</small>
        </td>
        <td class="event">
          % event_link(row)
        </td>
        <td class="num">
          % at(row['received'], False)
        </td>
        <td class="do">
          % buttons(row['offers'], ' class="link"')
        </td>
      </tr>
      % end
      % if cause['more']:
      <tr>
        <td colspan="4"><a href="{{cause['address']}}">{{cause['more']}}</a></td>
      </tr>
      % end
    </tbody>
    % end
  </table>
  % if further:
  <p><a href="/?state=failed#events">{{say('More reasons: all failed events')}}</a></p>
  % end
</section>
% end
% if away:
<section>
  <h2 id="away">{{say('Turned away in the last day')}}</h2>
  <table aria-labelledby="away">
    % heads('Times', 'Status', 'Address', 'From', 'Reason')
    <tbody>
      % for row in away:
      <tr>
        <td>{{row['count']}}</td>
        <td>{{row['status'] or ''}}</td>
        <td>{{row['path']}}</td>
        <td>{{row['from']}}</td>
        <td>{{say.known(row['reason'])}}</td>
      </tr>
      % end
    </tbody>
  </table>
</section>
% end
% if hours:
<section>
  <h2 id="day">{{say('The last 24 hours')}} <small>{{day}}</small></h2>
  <div>
    <svg viewBox="0 0 240 56" preserveAspectRatio="none" role="img" aria-labelledby="day">
      % for hour in hours:
      <g>
        <title>{{hour['label']}}: {{hour['words']}}</title>
        % for name, bar in hour['bars']:
        <path class="{{name}}" d="{{bar}}"/>
        % end
      </g>
      % end
    </svg>
    <ol class="axis soft" aria-hidden="true">
      % for hour in hours[::3]:
      <li>{{hour['label']}}</li>
      % end
    </ol>
  </div>
  <details>
    <summary class="soft">{{legend}}</summary>
    <table class="grid">
      % heads('Hour', 'Received', 'Delivered', 'Failed')
      <tbody>
        % for hour in hours:
        <tr>
          <td>{{hour['label']}}</td>
          % for count in hour['counts']:
          <td class="num">{{count}}</td>
          % end
        </tr>
        % end
      </tbody>
    </table>
  </details>
</section>
% end
<section id="events">
  % if filtered:
  <h1>{{title}}</h1>
  % else:
  <h2>{{say('Events')}}</h2>
  % end
  % for label, choices in filters:
  <nav aria-label="{{label}}">
    <span class="soft">{{label}}</span>
    % for word, where, chosen in choices:
    <a href="{{where}}"{{!' aria-current="true"' if chosen else ''}}>{{word}}</a>
    % end
  </nav>
  % end
  % if rows:
  % listed(rows)
  <nav aria-label="{{say('Parts of the list')}}">
    <span class="soft">{{part}}</span>
    % for word, where in pages:
    <a href="{{where}}">{{word}}</a>
    % end
  </nav>
  % else:
  <p class="soft">{{nothing}}</p>
  % end
</section>
"""
)

TICKET = (
    PARTS
    + """
<section class="state {{tone}}">
  <h1>{{say('Ticket {ticket}', ticket=ticket)}}</h1>
  % if subject:
  <p{{!tongue(subject)}}>{{subject}}</p>
  % end
  % if mapping:
  <p>
    {{say('Request')}} <strong>{{mapping['request_id']}}</strong>
    % for name, value in mapping['kept'].items():
    <span>{{name}} <strong>{{value}}</strong></span>
    % end
    <small>
      {{since}}
    </small>
  </p>
  % else:
  <p>{{say('No request id yet.')}}</p>
  % end
  <form action="/confirm/map" method="get">
    <input type="hidden" name="ticket" value="{{ticket}}">
    <label for="request_id">{{say('Request id')}}</label>
    <input id="request_id" name="request_id" required maxlength="200">
    <button>{{say('Map by hand')}}</button>
  </form>
</section>
<section>
  <h2 id="line">{{say('Its events, in order')}}</h2>
  % if events:
  <table aria-labelledby="line">
    % heads('Received', 'Event', 'State', 'Attempts', 'Actions')
    <tbody>
      % for row in events:
      <tr>
        <td>
          % at(row['received'])
        </td>
        <td class="event">
          % event_link(row)
        </td>
        <td class="wide">
          % state_mark(row['state'], row['unclear'])
          {{row['waits'] or say.known(row['reason'])}}
        </td>
        <td>
          % for attempt in row['attempts']:
          <div>
            % at(attempt['at'])
            <small>
              {{say.known(attempt['reason'])}}, {{f"{attempt['duration'] or 0:.2f}"}} s
            </small>
          </div>
          % end
        </td>
        <td class="do">
          % buttons(row['offers'], ' class="link"')
        </td>
      </tr>
      % end
    </tbody>
  </table>
  % else:
  <p class="soft">{{say('None is kept any more.')}}</p>
  % end
</section>
% by_hand(acts)
"""
)

EVENT = (
    PARTS
    + """
% def whole(value, most=400):
  % if len(value) > most:
<details>
  <summary>{{value[:100]}} ({{say('{n} characters', n=len(value))}})</summary>
  <pre>{{value}}</pre>
</details>
  % else:
{{value}}
  % end
% end
% def request(sent):
<pre>{{sent['method']}} {{sent['url']}}
% for name, value in sent['headers'].items():
{{name}}: {{value}}
% end

{{sent['body']}}</pre>
% end
<section class="state {{tone}}">
  <h1>{{shape_of(event['state'])}} {{title}}: {{say.state(event['state'])}}</h1>
  % if event['reason']:
  <p><strong>{{say.known(event['reason'])}}</strong></p>
  % end
  <p>{{advice}}</p>
  % if offers:
  <div class="row">
    % buttons(offers)
  </div>
  % end
  <dl>
    <div>
      <dt>{{say('Ticket')}}</dt>
      <dd>
        % ticket_link(event)
        <small>
          % for word, number in neighbours:
          <a href="/events/{{number}}">{{word}}</a>
          % end
        </small>
      </dd>
    </div>
    <div>
      <dt>{{say('Kind')}}</dt>
      <dd>{{event['kind'] or say('none')}} <small>{{say('hook')}} {{event['hook']}}</small></dd>
    </div>
    <div>
      <dt>{{say('Received')}}</dt>
      <dd>
        % at(event['received'])
        <small>{{say('from {sender}', sender=event['sender'])}}, {{repaired}}</small>
      </dd>
    </div>
    <div>
      <dt>{{say('Request id')}}</dt>
      <dd>{{event['request_id'] or say('none yet')}}</dd>
    </div>
  </dl>
</section>
% if answer:
<section>
  <h2>{{say('The last answer')}} <small>{{say('in the words of the ITSM')}}</small></h2>
  <pre>{{answer}}</pre>
</section>
% end
<section>
  <h2>{{say('What came')}}</h2>
  <dl class="pairs">
    % for name, value in fields.items():
    <div>
      <dt>{{name}}</dt>
      <dd>
        % whole(value)
      </dd>
    </div>
    % end
  </dl>
  <details>
    <summary>{{say('Raw body')}} ({{say('{n} characters', n=len(raw))}})</summary>
    <pre>{{raw}}</pre>
  </details>
</section>
% if sent:
<section>
  <h2>{{say('What was sent')}} <small>{{sent['words']}}</small></h2>
  % request(sent)
</section>
% end
% if preview:
<section>
  <h2>{{say('What would be sent now')}}</h2>
  % if 'problem' in preview:
  <p>{{preview['problem']}}</p>
  % else:
  % request(preview)
  % end
</section>
% end
<section>
  <h2>{{say('All attempts')}}</h2>
  % if attempts:
  % history(attempts)
  % for earlier in before:
  <details>
    <summary>{{say('What was sent')}}: {{earlier['words']}}</summary>
    % request(earlier)
  </details>
  % end
  % else:
  <p class="soft">{{say('No attempt yet.')}}</p>
  % end
</section>
% by_hand(acts)
"""
)

SEARCH = (
    PARTS
    + """
<section id="events">
  <h1>{{title}}</h1>
  % if tickets:
  <ul>
    % for ticket in tickets:
    <li><a href="{{address(ticket)}}">{{ticket}}</a></li>
    % end
  </ul>
  % end
  % if rows:
  % listed(rows)
  % end
  % if not rows and not tickets:
  <p>{{asked}}</p>
  % end
</section>
"""
)

CONFIRM = """
<section class="state warn">
  <h1>{{question}}</h1>
  % for line in lines:
  <p>{{line}}</p>
  % end
  <form action="/act/{{verb}}" method="post">
    <input type="hidden" name="seal" value="{{seal}}">
    % for name, value in fields.items():
    <input type="hidden" name="{{name}}" value="{{value}}">
    % end
    % for name, label in blanks:
    <label for="{{name}}">{{label}}</label>
    <input id="{{name}}" name="{{name}}" required maxlength="200">
    % end
    <button>{{word}}</button>
    <a href="{{back}}">{{say('Leave it')}}</a>
  </form>
</section>
"""

PROBLEM = """
<section class="state warn">
  <h1>{{title}}</h1>
  <p>{{problem}}</p>
</section>
"""

_template = functools.lru_cache(maxsize=None)(bottle.SimpleTemplate)  # compiled when first shown


def _render(source: str, **named: Any) -> str:
    return str(_template(source).render(**named))


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


# ── Page: what a person sees in a browser ──────────────────────────────────────────────────────


# ── Page · how it is ───────────────────────────────────────────────────────────────────────────

ROWS = 50  # events on a page
CAUSES_SHOWN = 12  # and of each CAUSE_ROWS events
CAUSE_ROWS = 3
BACKLOG = 20  # events, from which it is said how fast they go
SHAPES = {"ok": "\u25cf", "warn": "\u25b2", "fail": "\u25a0", "": "\u25cb"}  # not colour alone
TONES = {"delivered": "ok", "held": "warn", "failed": "fail"}  # of states


class Headline(NamedTuple):
    """How it is: tone, in a few words, and one sentence that names what else is not right."""

    tone: str
    word: str
    sentence: str

    @property
    def shape(self) -> str:
        """What says the tone without a colour."""
        return SHAPES[self.tone]


def headline(config: Config, events: Events, away: int, say: Say) -> Headline:
    """Is all well? The worst first; last what may be nothing: `away` webhooks turned away."""
    wrong = [*troubles(config, events, HELD_AFTER, 0.0, say).values()]
    if away:
        word = say("{n} webhook was turned away|{n} webhooks were turned away", n=away)
        todo = say("In the last day; a helpdesk that does not repeat them has lost them.")
        wrong.append(Trouble("warn", word, todo))
    pending = events.counts["pending"]
    if wrong:
        others = [trouble.word for trouble in wrong[1:]]
        besides = say("Besides: {what}.", what=", ".join(others)) if others else ""
        return Headline(wrong[0].tone, wrong[0].word, f"{wrong[0].todo} {besides}".strip())
    if events.last_received() is None:
        hooks = ", ".join(hook.path for hook in config.hooks.values())
        return Headline("", say("Nothing came yet"), say("Webhooks go to {hooks}.", hooks=hooks))
    if pending:
        word = say("{n} event is on its way|{n} events are on their way", n=pending)
        return Headline("ok", word, say("All others are delivered. Nothing needs you."))
    return Headline("ok", say("All delivered"), say("Nothing needs you."))


Fact = tuple[str, str, str]  # its name, its value, and more of it


def _itsm_fact(config: Config, events: Events, say: Say) -> Fact:
    """Whether the ITSM answers."""
    now, itsm = time.time(), json.loads(events.file.fact("itsm") or "{}")
    last = events.file.counted("last_delivery") / 1000
    ago = say.ago(now - last) if last else ""
    more = say("last delivery {ago} ago", ago=ago) if last else say("no delivery yet")
    if not itsm:
        return "ITSM", say("answers") if last else say("not asked yet"), more
    value = say("refuses our credential" if itsm["why"] == "credential" else "does not answer")
    probe = max(0.0, events.pulse.next_probe - events.file.clock())
    since = say.when(itsm["since"], config.clock, now)
    phrase = "since {time}" if events.file.fact("paused") else "since {time}, next try in {ago}"
    return "ITSM", value, f"{say(phrase, time=since, ago=say.ago(probe))}; {more}"


def _waiting_fact(config: Config, events: Events, say: Say) -> Fact:
    """What is on its way to the ITSM; while a backlog drains, how fast."""
    number, oldest = events.counts["pending"], events.oldest("pending")
    more = ""
    if oldest:
        more = say("the oldest {ago}", ago=say.ago(time.time() - oldest["received"]))
    if (rate := events.pulse.rate()) and number >= BACKLOG and not events.file.fact("itsm"):
        left = say.ago(60 * number / rate)
        more += "; " + say("{rate} a minute, done in {ago}", rate=round(rate), ago=left)
    return say("On their way"), say("{n} event|{n} events", n=number), more


def facts_now(config: Config, events: Events, say: Say) -> list[Fact]:
    """What always stands there: the ITSM, the helpdesk, what is on its way."""
    last = events.last_received()
    came = say("{ago} ago", ago=say.ago(time.time() - last)) if last else say("nothing yet")
    helpdesk = say("Helpdesk"), came, say("last webhook") if last else ""
    waiting = _waiting_fact(config, events, say)
    return [_itsm_fact(config, events, say), helpdesk, waiting]


def hours_now(config: Config, events: Events, say: Say) -> list[dict[str, Any]]:
    """The last 24 hours as bars (paths of SVG), also those in which nothing happened."""
    first, names = int(time.time()) // 3600 - 23, ("received", "delivered", "failed")
    rows = events.file.hours(first)
    counts = [[rows.get(hour, {}).get(n, 0) for n in names] for hour in range(first, first + 24)]
    peak = max(1, *(count for row in counts for count in row))
    hours = []
    for place, row in enumerate(counts):
        high = [round(40 * row[0] / peak, 1), round(40 * row[1] / peak, 1)]
        low = round(11 * row[2] / peak, 1)
        left = 10 * place + 1
        bars = [
            f"M{left} 42v-{high[0]}h8v{high[0]}",
            f"M{left + 2} 42v-{high[1]}h4v{high[1]}",
            f"M{left} 44v{max(low, 2 * bool(row[2]))}h8V44",
        ]
        label = config.clock.local((first + place) * 3600.0).strftime("%H:00")
        words = (f"{count} {say(name)}" for count, name in zip(row, names, strict=True))
        bars_of = list(zip(names, bars, strict=True))
        hours.append({"label": label, "counts": row, "bars": bars_of, "words": ", ".join(words)})
    return hours


# ── Page · what can be done ────────────────────────────────────────────────────────────────────


class Offer(NamedTuple):
    """A button: its operation, what it sends along, its word, and its name for who hears it."""

    verb: str
    fields: Mapping[str, Any]
    word: str
    name: str


LARGE = 65536  # bytes of a body that is not read again only to know whether to offer a retry


def retriable(config: Config, events: Events, rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Of these events those that would go out again, or that are too large to say it at once."""
    settled = ("failed", "ignored", "dropped")
    may = [
        row
        for row in rows
        if row["state"] in settled or (row["state"] == "held" and row["may_have_happened"])
    ]
    large = {row["event"] for row in may if row["size"] > LARGE}
    news, _ = reread_all(config, events, [n for row in may if (n := row["event"]) not in large])
    return large | set(news).difference(events.refusals(news) if news else ())


def offers_of(row: Mapping[str, Any], can_retry: bool, say: Say) -> list[Offer]:
    """What can be done about an event, the least harm first."""
    event, unclear, offers = row["event"], unsure(row), list[Offer]()
    held = row["state"] == "held"
    open_still = (held and not unclear) or (unclear and row["opens"])
    if row["ticket"] and row["state"] in ("held", "failed") and open_still:
        name = say("Map ticket {ticket}", ticket=row["ticket"])
        offers.append(Offer("map", {"ticket": row["ticket"]}, say("Map"), name))
    if can_retry:
        name = say("Retry event {n}", n=event)
        offers.append(Offer("retry", {"event": event}, say("Retry"), name))
    if row["state"] in ("pending", "held", "failed"):
        offers.append(Offer("drop", {"event": event}, say("Drop"), say("Drop event {n}", n=event)))
    return offers


def _ending_soon(config: Config, events: Events, say: Say) -> list[dict[str, Any]]:
    """What will soon be given up, as a cause."""
    numbers = events.near_end(config.retry.give_up_after)
    rows = events.page(numbers=numbers[:CAUSE_ROWS], after=-1) if numbers else []
    if not rows:
        return []
    cause = {
        "cause": say("it will soon be given up"),
        "state": "pending",
        "events": len(numbers),
        "tickets": len(numbers),
        "advice": say("Mend what stands against them, or raise [retry] give_up_after."),
        "address": "/?state=pending#events",
        "rows": rows,
    }
    return [cause]


def _complete_row(row: dict[str, Any], events: Events, can_retry: set[int], say: Say) -> None:
    """Adds to an event of a cause what can be done, and how many wait for it."""
    row["offers"] = offers_of(row, row["event"] in can_retry, say)
    stands_for_all = row["ticket"] and (row["opens"] or row["cause"] == WAITS)
    number = len(events.behind(row["ticket"])) if stands_for_all else 0
    phrase = "{n} more waits for it|{n} more wait for it"
    row["behind"] = say(phrase, n=number) if number else ""


def needs_now(config: Config, events: Events, say: Say) -> tuple[list[dict[str, Any]], bool]:
    """What needs a person, by cause, each with its oldest events and what can be done.

    And whether there are more causes than these.
    """
    all_causes = causes_now(config, events, say, CAUSE_ROWS)
    causes = all_causes[:CAUSES_SHOWN]
    for cause in causes:
        cause["address"] = f"/?{urllib.parse.urlencode({'cause': cause['cause']})}#events"
    causes += _ending_soon(config, events, say)
    can_retry = retriable(config, events, [row for cause in causes for row in cause["rows"]])
    for cause in causes:
        first, number = cause["rows"][0], cause["events"]
        left = number - len(cause["rows"]) if number < MOST_COUNTED else number
        for row in cause["rows"]:
            _complete_row(row, events, can_retry, say)
        cause["unclear"] = unsure(first)
        cause["count"] = say("{n} ticket|{n} tickets", n=say.counted(cause["tickets"]))
        cause["more"] = say("{n} more of this reason", n=say.counted(left)) if left else ""
        name = say("Retry all {n}", n=say.counted(number))
        offer = Offer("retry", {"cause": cause["cause"]}, name, f"{name}: {cause['cause']}")
        together = first["event"] in can_retry and not cause["unclear"] and number > 1
        cause["offers"] = [offer] if together else []
    return causes, len(all_causes) > CAUSES_SHOWN


# ── Page · pages ───────────────────────────────────────────────────────────────────────────────


def language_of(accepted: str) -> str:
    """`ko` or `en`, whichever an Accept-Language (RFC 9110 12.5.4) likes more."""
    liking = {"ko": 0.0, "en": 0.0}
    for part in accepted.lower().split(","):
        match = re.match(r"\s*(ko|en)\b[^;]*(?:;\s*q=([0-9.]{1,5}))?\s*$", part)
        with contextlib.suppress(ValueError):
            if match:
                quality = float(match[2] or 1)
                liking[match[1]] = max(liking[match[1]], quality)
    return "ko" if liking["ko"] > liking["en"] else "en"


def ticket_address(ticket: str) -> str:
    """Where a ticket's page is, however it is named."""
    quoted = urllib.parse.quote(ticket, safe="")
    return f"/tickets/{quoted}" if ticket.strip(".") else f"/tickets?ticket={quoted}"


def redirect(where: str) -> bottle.HTTPResponse:
    """Leads a browser elsewhere by GET."""
    return reply(303, {}, Location=where, Cache_Control="no-store")


HANGUL = re.compile("[가-힣]")


def laid_out(text: str) -> str:
    """JSON with a line for each value, any other text as it is."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text


class Pages:
    """The status page and what its buttons do, with the same operations as the command line."""

    def __init__(self, door: Door) -> None:
        self.door, self.config, self.events = door, door.config, door.events
        self.seal = hmac.new(door.key.encode(), b"page", "sha256").hexdigest()
        self.notices: dict[str, str] = {}  # what actions did, until it was said once
        for path, page in (
            ("/", self.home),
            ("/events/<event>", self.event),
            ("/tickets/<ticket:path>", self.ticket),
            ("/tickets", self.ticket),
            ("/search", self.search),
            ("/confirm/<verb>", self.confirm),
        ):
            door.site.route(path, "GET", functools.partial(self.guarded, page))
        door.site.route(
            "/act/<verb>", "POST", functools.partial(self.guarded, self.act), by_head=self.by_head
        )
        door.as_page = self.problem

    @property
    def say(self) -> Say:
        """The language of who asks."""
        return Say(language_of(_header(bottle.request.environ, "Accept-Language")))

    def guarded(self, page: Callable[..., Any], **named: Any) -> bottle.HTTPResponse:
        """Lets a person in, and no other site; then the page. Raises Refused."""
        self.by_head(bottle.request.environ)
        try:
            return page(**named)
        except (Refused, FileError):
            raise
        except (Error, ValueError, KeyError) as error:
            return self.problem(404, str(error))

    def problem(self, status: int, why: str) -> bottle.HTTPResponse:
        """What went wrong, as a page."""
        phrases = {401: "Log in", 403: "Not for you", 404: "Not found", 503: "Not now"}
        title = self.say(phrases[status]) if status in phrases else self.say("That did not work")
        return self.page(title, PROBLEM, status=status, problem=self.say.known(why))

    def by_head(self, environ: Mapping[str, Any]) -> bool:
        """From the machine itself without a password where none is set; else only with it.

        Raises Refused; False: nothing that is too large is kept.
        """
        self.door.own_host(environ)
        password = self.config.server.admin_password
        if password:
            if not _same(_basic(_header(environ, "Authorization"))[1], password):
                raise Refused(401, "the page wants its password: see [server] admin_password")
        elif not from_this_machine(environ, self.config.server.trusted_proxy):
            raise Refused(403, "from another machine the page needs [server] admin_password")
        return False

    def page(
        self,
        title: str,
        template: str,
        status: int = 200,
        renews: bool = False,
        tab: str = "",
        **named: Any,
    ) -> bottle.HTTPResponse:
        """A whole page, with the headers that keep other sites and caches out.

        `tab`: what stands on the browser's tab, where that is not the title.
        """
        say, clock, now = self.say, self.config.clock, time.time()
        named |= {
            "say": say,
            "title": title,
            "address": ticket_address,
            "iso": lambda moment: iso(moment, clock),
            "when": lambda moment, seconds=False: say.when(moment, clock, now, seconds),
            "tongue": lambda text: ' lang="ko"' if HANGUL.search(text) else "",
            "shape_of": lambda state: SHAPES[TONES.get(state, "")],
            "tone_of": lambda state: f' class="{TONES[state]}"' if state in TONES else "",
        }
        query, time_of_day = bottle.request.query, clock.local(now).strftime("%H:%M:%S")
        text = _render(
            FRAME,
            say=say,
            title=f"{tab or title} - hd_itsm",
            style=STYLE,
            script=SCRIPT,
            body=_render(template, **named),
            notice=self.notices.pop(query.get("done", ""), ""),
            renews=renews,
            lists="rows" in named,
            now=time_of_day,
            lost=say(
                "Not reached since: this is how it was at {time}. It is asked every 10 s.",
                time=time_of_day,
            ),
            q=query.getunicode("q", ""),
        )
        policy = f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}"
        policy += "; connect-src 'self'; form-action 'self'; frame-ancestors 'none'"
        policy += "; base-uri 'none'"
        response = reply(status, text, Cache_Control="no-store", Content_Security_Policy=policy)
        response.set_header("Content-Type", "text/html; charset=utf-8")
        response.set_header("X-Content-Type-Options", "nosniff")
        response.set_header("Referrer-Policy", "same-origin")
        return response

    def home(self) -> bottle.HTTPResponse:
        """Is all well, what needs me, what happened? With a filter only the events that fit."""
        query, say = bottle.request.query, self.say
        chosen = {name: query.getunicode(name, "") for name in ("state", "kind", "cause")}
        if chosen["state"] not in ("", *STATES):
            raise Error(f"there is no state {chosen['state'][:40]!r}")
        places = (query.get(name, "") for name in ("before", "from"))
        before, first = (int(p) if re.fullmatch("[0-9]{1,15}", p) else 0 for p in places)
        listed = self.listed(chosen, before, max(first, 1))
        if not any(chosen.values()) and not before:
            return self.all_of_it(listed)
        what = [say.state(chosen["state"])] if chosen["state"] else []
        what += [say.known(chosen[name]) for name in ("kind", "cause") if chosen[name]]
        title = say("Events: {what}", what=", ".join(what) or say("all"))
        return self.page(
            title, HOME, renews=not before, filtered=True, causes=(), away=(), hours=(), **listed
        )

    def all_of_it(self, listed: Mapping[str, Any]) -> bottle.HTTPResponse:
        """The first page without a filter: how it is, what needs a person, the last day."""
        say, config, events = self.say, self.config, self.events
        away = turned_away(events)
        head = headline(config, events, sum(row["count"] for row in away), say)
        causes, further = needs_now(config, events, say)
        paused = events.file.fact("paused")
        verb, word = ("resume", say("Resume")) if paused else ("pause", say("Pause"))
        hours = hours_now(config, events, say)
        sums = [sum(hour["counts"][n] for hour in hours) for n in range(3)]
        phrase = "{received} received, {delivered} delivered, {failed} failed"
        return self.page(
            head.word,
            HOME,
            renews=True,
            tab=f"{head.shape} {head.word}",
            filtered=False,
            head=head,
            facts=facts_now(config, events, say),
            paused=float(paused) if paused else 0.0,
            pausing=Offer(verb, {}, word, word),
            causes=causes,
            further=further,
            needing=say("{n} reason|{n} reasons", n=len(causes)),
            away=away,
            hours=hours,
            legend=say(
                "Wide: received. Narrow, within: delivered. Below the line: failed. In numbers"
            ),
            day=say(phrase, received=sums[0], delivered=sums[1], failed=sums[2]),
            **listed,
        )

    def listed(self, chosen: Mapping[str, str], before: int, first: int) -> dict[str, Any]:
        """The list of events: those that fit, what else can be chosen, and the ways on.

        `first`: the place of the first row among all that fit.
        """
        say, counts = self.say, self.events.counts
        page = functools.partial(
            self.events.page, chosen["state"], kind=chosen["kind"], cause=chosen["cause"]
        )
        rows = page(before=before, limit=ROWS + 1)
        same = {name: value for name, value in chosen.items() if value}

        def where(**other: Any) -> str:
            query = {name: value for name, value in (same | other).items() if value}
            return f"/?{urllib.parse.urlencode(query)}#events" if query else "/#events"

        alone = set(same) <= {"state"}
        total = counts[chosen["state"]] if same else sum(counts[state] for state in STATES)
        last = first + min(len(rows), ROWS) - 1
        phrase = "{first} to {last} of {total}" if alone else "{first} to {last}"
        pages = []
        if before:
            pages.append((say("newest"), where()))
            newer = page(after=rows[0]["event"] if rows else before - 1, limit=ROWS)
            if newer:
                onward = {"before": newer[-1]["event"] + 1, "from": max(1, first - ROWS)}
                pages.append((say("newer"), where(**onward)))
        if len(rows) > ROWS:
            onward = {"before": rows[ROWS - 1]["event"], "from": first + ROWS}
            pages.append((say("older"), where(**onward)))
        states = [(say("all"), where(state="", cause=""), not chosen["state"])] + [
            (f"{say.state(s)} {counts[s]}", where(state=s, cause=""), s == chosen["state"])
            for s in STATES
        ]
        kinds = [(say("all"), where(kind=""), not chosen["kind"])] + [
            (kind, where(kind=kind), kind == chosen["kind"]) for kind in self.config.kinds
        ]
        return {
            "rows": rows[:ROWS],
            "filters": ((say("State"), states), (say("Kind"), kinds)),
            "part": say(phrase, first=first, last=last, total=total),
            "pages": pages,
            "nothing": say("No event fits." if same or before else "No event yet."),
        }

    def event_row(self, text: str) -> dict[str, Any]:
        """The event of that number. Raises Error where there is none."""
        row = self.events.show(event_number(text))
        if row is None:
            raise Error(f"there is no event {text}")
        return row

    def event(self, event: str) -> bottle.HTTPResponse:
        """One event: state and reason, what can be done, what was answered, what came."""
        say, row = self.say, self.event_row(event)
        number, fields = row["event"], json.loads(row["fields"])
        can_retry = number in retriable(self.config, self.events, [row])
        attempts = row["attempts"]
        answers = [attempt["answer"] for attempt in attempts if attempt["answer"]]
        requests, preview = self.requests(attempts), self.preview(row)
        sent = next((each for each in reversed(requests) if not each["asked"]), None)
        if sent and all(sent[name] == preview.get(name) for name in ("method", "url", "body")):
            preview = {}
        return self.page(
            say("Event {n}", n=number),
            EVENT,
            renews=row["state"] == "pending",
            tab=f"{SHAPES[TONES.get(row['state'], '')]} {say('Event {n}', n=number)}",
            event=row,
            tone=TONES.get(row["state"], ""),
            advice=self.advice(row),
            offers=offers_of(row, can_retry, say),
            neighbours=self.neighbours(row),
            attempts=attempts,
            answer=laid_out(answers[-1]) if answers else "",
            fields={name: as_text(value) for name, value in fields.items()},
            raw=raw_text(row["raw"]),
            repaired=row["repaired"] or say("not repaired"),
            sent=sent,
            before=[each for each in requests if each is not sent],
            preview=preview,
            acts=self.events.acts(number, row["ticket"]),
        )

    def requests(self, attempts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The requests that were sent, each once, with the attempt that began with it."""
        say = self.say
        return [
            {
                **json.loads(attempt["sent"]),
                "asked": attempt["asked"],
                "words": say("attempt {n}", n=attempt["attempt"])
                + (f", {say('look-up')} {attempt['asked']}" if attempt["asked"] else ""),
            }
            for attempt in attempts
            if attempt["sent"]
        ]

    def advice(self, row: Mapping[str, Any]) -> str:
        """What a person may do about an event, and what waits for it."""
        say = self.say
        words = [advice(row, say)]
        if row["state"] == "pending" and row["due"] is not None:
            due = time.time() + max(0.0, row["due"] - self.events.file.clock())
            when = say.when(due, self.config.clock, time.time(), seconds=True)
            words.append(say("Next try at {time}.", time=when))
        if row["state"] == "held" and row["cause"] is None and not row["may_have_happened"]:
            failed = self.events.page("failed", row["ticket"], limit=AT_ONCE)
            openings = [each["event"] for each in failed if each["opens"]]
            words += [say("waits for event {n}, which failed", n=n) + "." for n in openings[-1:]]
        if waiting := self.waiting(row):
            names = ", ".join(map(str, waiting[:20]))
            words.append(say("Waits for it: {events}.", events=names))
        return " ".join(filter(None, words))

    def waiting(self, row: Mapping[str, Any]) -> list[int]:
        """The events of its ticket that wait for this one."""
        if not row["ticket"] or row["state"] not in ("pending", "held", "failed"):
            return []
        if row["state"] == "failed" and not row["opens"]:
            return []
        line = self.events.line(row["ticket"], row["event"], 100)
        waiting = self.events.page(numbers=line, limit=len(line))
        return sorted(each["event"] for each in waiting if each["state"] in ("pending", "held"))

    def neighbours(self, row: Mapping[str, Any]) -> list[tuple[str, int]]:
        """The events before and after it in its ticket's line."""
        if not row["ticket"]:
            return []
        after = self.events.line(row["ticket"], row["event"], 1)
        before = self.events.before(row["event"])
        words = [(self.say("previous"), number) for number in before]
        return words + [(self.say("next"), number) for number in after]

    def preview(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The request as it would be sent now, or a problem."""
        kind = self.config.kinds.get(row["kind"])
        if kind is None:
            return {"problem": self.say("Nothing: it has no kind that is configured.")}
        fields = json.loads(row["fields"])
        request_id = row["request_id"] or (kind.unknown_id if kind.waits_for_id else None)
        scope = self.config.scope(
            fields,
            row["event"],
            str(row["ticket"]),
            row["received"],
            request_id,
            row["idempotency_key"],
            masked=True,
        )
        try:
            return kind.request.render(scope).as_json()
        except Untranslatable as error:
            why = str(error)
            return {"problem": self.say("Nothing: it cannot be translated: {why}", why=why)}

    def ticket(self, ticket: str = "") -> bottle.HTTPResponse:
        """A ticket's mapping and its events in their order, with what waits for what."""
        say, events = self.say, self.events
        ticket = ticket or bottle.request.query.getunicode("ticket", "")
        numbers, mapping = events.line(ticket)[-AT_ONCE:], events.mappings.get(ticket)
        if not numbers and mapping is None:
            raise Error(f"ticket {ticket} was never seen: no event and no mapping")
        rows = {row["event"]: row for row in events.page(numbers=numbers, limit=-1)}
        line = [rows[number] for number in numbers if number in rows]
        can_retry, ahead = retriable(self.config, events, line), dict[str, Any]()
        for row in line:
            row["unclear"] = unsure(row)
            row["attempts"] = events.attempts(row["event"])
            row["offers"] = offers_of(row, row["event"] in can_retry, say)
            row["waits"] = self.waits(row, ahead)
            if row["state"] in ("pending", "held") or (row["state"] == "failed" and row["opens"]):
                ahead = row
        tones = [TONES.get(row["state"], "") for row in line]
        since = ""
        if mapping:
            phrase = (
                "since {time}, by hand"
                if mapping["origin"] != "itsm"
                else "since {time}, by the ITSM"
            )
            moment = say.when(mapping["since"], self.config.clock, time.time())
            since = say(phrase, time=moment)
        return self.page(
            say("Ticket {ticket}", ticket=ticket),
            TICKET,
            ticket=ticket,
            subject=next((row["subject"] for row in line if row["subject"]), ""),
            tone=next(
                (tone for tone in ("fail", "warn") if tone in tones), "ok" if mapping else ""
            ),
            mapping=mapping,
            since=since,
            events=line,
            acts=events.acts(None, ticket),
        )

    def waits(self, row: Mapping[str, Any], ahead: Mapping[str, Any]) -> str:
        """What an event waits for, in words; `ahead`: the one before it that is not settled."""
        if row["state"] not in ("pending", "held") or not ahead or row["may_have_happened"]:
            return ""
        phrase = "waits for event {n}, which failed"
        if ahead["state"] != "failed":
            phrase = "waits for event {n}"
        return self.say(phrase, n=ahead["event"])

    def search(self) -> bottle.HTTPResponse:
        """To the ticket that was meant, or the events that may be meant."""
        say, text = self.say, bottle.request.query.getunicode("q", "").strip()
        tickets, numbers = self.events.find(text)
        if len(tickets) == 1 and not numbers:
            return redirect(ticket_address(tickets[0]))
        latest = self.events.latest_of(tickets)
        rows = self.events.page(numbers=[*numbers, *latest])
        listed = {row["ticket"] for row in rows}
        title = say("Nothing is called \u201c{text}\u201d", text=text)
        if rows or tickets:
            title = say("Found for \u201c{text}\u201d", text=text)
        return self.page(
            title,
            SEARCH,
            status=200 if rows or tickets else 404,
            rows=rows,
            asked=say(
                "Neither a ticket, a request id or an event, nor how an id begins or words of a"
                " subject."
            ),
            tickets=[ticket for ticket in tickets if ticket not in listed],
        )

    # ── Page · buttons ─────────────────────────────────────────────────────────────────────────

    def action(self, verb: str) -> Operation:
        """The operation behind a button. Raises Error where there is none."""
        operation = OPERATIONS.get(verb)
        if operation is None or not operation.button:
            raise Error(f"there is no action {verb}")
        return operation

    def confirm(self, verb: str) -> bottle.HTTPResponse:
        """Asks once, saying what the action will do, to what, and what follows."""
        operation, query, say = self.action(verb), bottle.request.query, self.say
        given = {name: query.getunicode(name, "") for name in operation.asks if name in query}
        back, blanks = "/", list[tuple[str, str]]()
        if verb in ("pause", "resume"):
            question, lines = self.about_deliveries(verb)
        elif verb == "map":
            ticket = operation.read({"request_id": "-", **given})["ticket"]
            back, (question, lines) = ticket_address(ticket), self.about_mapping(given)
            blanks = [] if "request_id" in given else [("request_id", say("Request id"))]
        elif given.get("cause"):
            question, lines = self.about_cause(given["cause"])
        else:
            row = self.event_row(given.get("event", ""))
            back, (question, lines) = f"/events/{row['event']}", self.about_event(verb, row)
            blanks = [("why", say("Why"))] if verb == "drop" else []
        return self.page(
            question,
            CONFIRM,
            question=question,
            lines=lines,
            verb=verb,
            word=say(verb.capitalize()),
            fields=given,
            blanks=blanks,
            back=back,
            seal=self.seal,
        )

    def about_deliveries(self, verb: str) -> tuple[str, list[str]]:
        """The question before deliveries stop or go on, and what follows."""
        waiting = self.say("{n} event|{n} events", n=self.events.counts["pending"])
        if verb == "resume":
            line = self.say("On their way then: {events}.", events=waiting)
            return self.say("Let deliveries go on?"), [line]
        line = self.say("Webhooks are still taken and wait; now {events}.", events=waiting)
        return self.say("Stop deliveries?"), [line]

    def about_mapping(self, given: Mapping[str, str]) -> tuple[str, list[str]]:
        """The question before a ticket is mapped by hand, and what follows."""
        say, ticket = self.say, given["ticket"]
        question = say("Map ticket {ticket} to which request?", ticket=ticket)
        if "request_id" in given:
            question = say("Map ticket {ticket} to request {request_id}?", **given)
        rows = self.events.page(ticket=ticket, limit=AT_ONCE)
        lines = [row["subject"] for row in rows if row["subject"]][:1]
        if mapping := self.events.mappings.get(ticket):
            request_id = mapping["request_id"]
            lines.append(say("Until now it is request {request_id}.", request_id=request_id))
        waiting = sorted(row["event"] for row in rows if row["state"] in ("pending", "held"))
        if waiting:
            names = ", ".join(map(str, waiting[:20]))
            lines.append(say("What waits for it goes out: {events}.", events=names))
        return question, lines

    def about_cause(self, cause: str) -> tuple[str, list[str]]:
        """The question before all events of a cause go out again. Raises Error for none."""
        say, causes = self.say, self.events.causes(time.time(), CAUSES, 1)
        of_it = next((each for each in causes if each["cause"] == cause), None)
        if of_it is None:
            raise Error("no event has this reason any more")
        tickets = say("{n} ticket|{n} tickets", n=say.counted(of_it["tickets"]))
        lines = [
            say.known(cause),
            say("They are translated with today's configuration and sent: {what}.", what=tickets),
        ]
        return say("Send {n} event again?|Send all {n} events again?", n=of_it["events"]), lines

    def about_event(self, verb: str, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The question before an event goes out again or is given up, and what follows."""
        say, number = self.say, row["event"]
        waiting = ", ".join(map(str, self.waiting(row)[:20]))
        ticket = (
            say("Ticket {ticket}", ticket=row["ticket"]) if row["ticket"] else say("no ticket")
        )
        lines = [f"{ticket} {row['subject']}".strip()]
        if row["reason"]:
            lines.append(f"{say.state(row['state'])}: {say.known(row['reason'])}")
        if verb == "retry":
            question = say("Send event {n} again?", n=number)
            lines.append(say("It is translated with today's configuration and sent."))
            phrase = "After it go: {events}."
        else:
            question = say("Give event {n} up?", n=number)
            lines.append(say("It is kept, but not sent."))
            phrase = "Then wait for a mapping of the ticket: {events}."
            phrase = phrase if row["opens"] else "After it go: {events}."
        return question, lines + ([say(phrase, events=waiting)] if waiting else [])

    def act(self, verb: str) -> bottle.HTTPResponse:
        """Carries an action out and says what it did."""
        environ, form = bottle.request.environ, bottle.request.forms
        self.own_page(environ, form.getunicode("seal", ""))
        operation, back = self.action(verb), "/"
        names = {"ticket", "request_id", "why", "cause"}
        names &= {each.key for each in operation.arguments}
        given: dict[str, Any] = {name: form.getunicode(name, "") for name in names}
        if "events" in {each.key for each in operation.arguments} and not given.get("cause"):
            given["events"] = [self.event_row(form.getunicode("event", ""))["event"]]
            back = f"/events/{given['events'][0]}"
        elif "ticket" in given:
            back = ticket_address(given["ticket"])
        done, refused = 0, list[str]()
        caller = self.door.caller(environ)
        known = {each.key for each in operation.arguments}
        by = {"by": f"{caller}, on the page"} if "by" in known else {}
        following: Mapping[str, Any] | None = {}
        while following is not None:
            arguments = operation.read({**given, **by, **following})
            result = operation.function(self.config, self.events, arguments)
            following = result.get("next")
            done += len(result.get("retried", ()))
            refused += [each["reason"] for each in result.get("refused", ())]
        self.door.wake()
        said = "; ".join(refused[:3]) or "done"
        log.info("%s %s from the page, by %s: %s", verb, given, caller, said)
        words = [self.done(verb, given, done)] if done or not refused else []
        words += [reason.partition(": --force")[0] for reason in refused[:3]]
        return redirect(self.with_notice(back, ". ".join(words)))

    def done(self, verb: str, given: Mapping[str, Any], done: int) -> str:
        """What an action did, in words."""
        say, event = self.say, given.get("events", [0])[0]
        if verb == "retry" and given.get("cause"):
            return say("{n} event is sent again|{n} events are sent again", n=done)
        if verb == "map":
            names = {name: given[name] for name in ("ticket", "request_id")}
            return say("Ticket {ticket} is request {request_id} now", **names)
        phrases = {
            "retry": "Event {n} is sent again",
            "drop": "Event {n} is given up",
            "pause": "Deliveries are paused",
            "resume": "Deliveries go on",
        }
        return say(phrases[verb], n=event)

    MOST_NOTICES = 100

    def with_notice(self, where: str, notice: str) -> str:
        """The address with what the page there says once."""
        token = secrets.token_hex(8)
        for old in list(self.notices)[: -self.MOST_NOTICES]:  # whose pages nobody opened
            self.notices.pop(old, None)
        self.notices[token] = notice
        return f"{where}{'&' if '?' in where else '?'}done={token}"

    def own_page(self, environ: Mapping[str, Any], seal: str) -> None:
        """Refuses a POST that does not come from a page of ours."""
        if by_another_site(environ):
            raise Refused(403, "this came from another site")
        if not hmac.compare_digest(seal.encode("utf-8", "replace"), self.seal.encode()):
            raise Refused(403, "this form is not of this program's run: open the page again")


# ── Server: Waitress, bounded ──────────────────────────────────────────────────────────────────

# Waitress as its settings make it. Each method of it that is replaced says which promise it buys.

REQUEST_TIME = 20  # seconds in which a request must have come in whole, and an answer gone out


class _Answer(waitress.task.WSGITask):  # type: ignore[misc]
    """What a request gets from a handler."""

    def start(self) -> None:
        """Buys: a stopping server says on each connection that its answer is the last."""
        super().start()
        if self.channel.server.stopping:
            self.set_close_on_finish()


class _Refusal(waitress.task.ErrorTask):  # type: ignore[misc]
    """What a request gets that comes to no handler."""

    def execute(self) -> None:
        """Buys: who is refused before a handler is asked is told so in JSON, and counted."""
        problem = self.request.error
        if isinstance(problem, Refused):
            environ = _Answer(self.channel, self.request).get_environment()
            answer = self.channel.server.door.refuse(problem, environ)
        else:
            answer = reply(500, {"error": INTERNAL})
        self.status, self.response_headers = answer.status_line, answer.headerlist
        self.set_close_on_finish()
        self.content_length = len(answer.body)
        self.write(answer.body)


class _Request(waitress.parser.HTTPRequestParser):  # type: ignore[misc]
    """A request coming in: judged by its head, and bounded in every part."""

    FRAMING = 4096  # bytes of a line between chunks, and of what follows the last one

    error: Any = None
    command = path = query = request_uri = ""  # as long as its head has not been read
    url_scheme = "http"
    environ: dict[str, Any] | None = None  # see handfuls
    taken = 0  # bytes of what was last received that belong to it
    judged = False
    keeps: bool | None = False  # see Door.by_head

    def __init__(self, connection: Any) -> None:
        super().__init__(connection.adj)
        self.connection, self.door = connection, connection.server.door

    def parse_header(self, header_plus: bytes) -> None:
        """Buys: of a length that is told in two ways nothing that follows is believed."""
        super().parse_header(header_plus)
        if "TRANSFER_ENCODING" in self.headers or (
            self.chunked and "CONTENT_LENGTH" in self.headers
        ):
            self.headers["CONNECTION"] = "close"  # RFC 9112 6.1 and 6.3

    def received(self, data: bytes) -> int:
        """Buys: one request at a time; what of `data` belongs to the next one stays unread."""
        self.taken = len(data)
        if self.error is None:
            try:
                self.taken = self.parse(data)
                if self.body_rcv is not None:
                    self.judge(len(self.body_rcv))
            except Refused as refused:
                self.cut(refused)
        return len(data)

    def parse(self, data: bytes) -> int:
        """Buys: none of its parser's exceptions gets out. How much of `data` belongs to it."""
        try:
            taken = int(super().received(data))
            if self.headers_finished and not self.completed:
                taken += super().received(data[taken:])
        except (MemoryError, OSError) as error:
            why = f"no room for the request now ({type(error).__name__})"
            raise Refused(503, why, Retry_After="30") from None
        except Exception:  # ValueError at least: "GET http://[", a length of 5,000 digits
            raise Refused(400, "this is no HTTP request") from None
        if self.error is not None:
            words = f"{self.error.reason}: {self.error.body}"
            raise Refused(self.error.code, words.partition('"')[0])  # it may quote a credential
        return taken

    def judge(self, size: int) -> None:
        """Buys: who is not let in sends no body, and no body or framing grows without end."""
        most = self.door.config.server.max_body
        large = max(size, self.content_length) > most
        if not self.judged and (large or not self.completed):
            self.judged = True
            self.keeps = self.door.by_head(_Answer(self.connection, self).get_environment())
        if self.keeps is None:
            self.cut()
        elif large:
            if not self.keeps:
                raise Refused(413, f"the body is over the {most} bytes of server.max_body")
            if self.completed or self.expect_continue or size >= BEGINNING:
                self.cut()
        elif self.chunked:
            longest = max(len(self.body_rcv.control_line), len(self.body_rcv.trailer))
            if longest > self.FRAMING or self.body_bytes_received > 8 * most + 65536:
                raise Refused(400, "the framing of the chunks has no end")

    def cut(self, refused: Refused | None = None) -> None:
        """Ends it before its end: what still comes is dropped, and the connection closed."""
        self.error, self.completed, self.expect_continue = refused, True, False
        self.headers["CONNECTION"] = "close"
        if self.chunked:
            self.headers["CONTENT_LENGTH"] = str(len(self.body_rcv))


class _Channel(waitress.channel.HTTPChannel):  # type: ignore[misc]
    """A connection that knows since when its request has been coming in."""

    task_class, error_task_class = _Answer, _Refusal
    connected: bool
    request: Any
    will_close: bool
    close_when_flushed: bool
    begun = 0.0  # when the first byte of the request came that is not whole (monotonic); or 0
    active = (0.0, 0.0)  # Waitress' last_activity (wall clock), and when it was met (monotonic)
    lingers = False  # whether it is an answer that ends it

    def parser_class(self, adj: Any) -> _Request:
        """Buys: a request knows whose it is."""
        return _Request(self)

    def recv(self, buffer_size: int) -> bytes:
        """Buys: one request at a time; what a client sends behind it waits in the system."""
        data: bytes = self.socket.recv(buffer_size, socket.MSG_PEEK)
        if not data:
            self.handle_close()
        return data

    def received(self, data: bytes) -> bool:
        """Buys: who drips a request is known, however often something comes."""
        self.begun = self.begun or time.monotonic()
        request = self.request = self.request or self.parser_class(self.adj)
        request.taken = 0
        taken = bool(super().received(data))
        if self.connected:
            self.socket.recv(request.taken)
        if request.completed and not request.empty:
            self.begun = 0.0
        return taken

    def service(self) -> None:
        """Buys: the watchdog hears that a thread was done with a request."""
        super().service()
        self.server.answered = time.monotonic()

    def handle_write(self) -> None:
        """Buys: the next one knows that an answer ends the connection."""
        self.lingers = self.lingers or self.close_when_flushed
        super().handle_write()

    def handle_close(self) -> None:
        """Buys: who sends on while it is refused, or behind its last request, reads our answer.

        Else its system would drop our answer for the reset that meets what it sends, and nobody
        there would learn the reason (RFC 9112 9.6). So its end closes first, or REQUEST_TIME.
        """
        if not (self.lingers and self.will_close):
            super().handle_close()
            return
        self.lingers = self.will_close = False
        self.begun, self.request = time.monotonic(), _Request(self)
        self.request.error = Refused(400, "nobody reads it")
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def overdue(self, now: float) -> bool:
        """Whether it is silent or drips its request for too long (`now`: monotonic)."""
        if self.active[0] != self.last_activity:
            self.active = self.last_activity, now
        silent = not self.requests and now - self.active[1] > REQUEST_TIME
        return silent or bool(self.begun and now - self.begun > REQUEST_TIME)


LINGER = 0.5  # seconds in which a stopping server still answers on open connections


class PlainServer(waitress.server.TcpWSGIServer):  # type: ignore[misc]
    """Waitress on a listening socket, with bounds that suit a small daemon beside a helpdesk."""

    channel_class = _Channel
    next_channel_cleanup = math.inf  # it goes by a clock that people set; `close_idle` does it
    stopping = False
    answered = 0.0  # when a thread was done with a request (monotonic)

    def __init__(self, door: Door, listener: socket.socket) -> None:
        self.door = door
        settings = waitress.adjustments.Adjustments(
            threads=door.threads,
            ident="",
            connection_limit=4000,
            max_request_header_size=16384,
            inbuf_overflow=door.config.server.max_body + 1,
            clear_untrusted_proxy_headers=False,  # client_address decides whom to believe
            asyncore_use_poll=True,
            log_socket_errors=False,
        )
        super().__init__(
            door.site,
            _sock=listener,
            adj=settings,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
        )

    def handle_accept(self) -> None:
        """Buys: without a free descriptor it waits calmly, and goes on where one is free."""
        before = len(self.active_channels)
        super().handle_accept()
        if len(self.active_channels) == before:
            time.sleep(0.05)  # or the loop would spin: the connection stays in the kernel's queue

    def turn(self, seconds: float) -> None:
        """One round of the loop; it ends with what comes, or after `seconds`."""
        waitress.wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)

    def stuck(self, now: float) -> float:
        """For how many seconds requests have been waiting while no thread was done with one."""
        if not self.task_dispatcher.queue:
            self.answered = now
        return now - self.answered

    def close_idle(self, now: float) -> None:
        """Closes connections on which nothing whole comes in or goes out (`now`: monotonic)."""
        for channel in list(self.active_channels.values()):
            if channel.overdue(now):
                channel.will_close = True

    def drain(self, stopped: float, now: float) -> bool:
        """Ends connections that owe no answer; True when none is left. Times are monotonic.

        For LINGER seconds each may still bring its request, and is told `Connection: close`; then
        only those are waited for whose request is under way.
        """
        for channel in list(self.active_channels.values()):
            owes = channel.requests or channel.total_outbufs_len
            coming = channel.request is not None and channel.request.error is None
            arriving = coming and now - channel.begun < 4 * LINGER
            if not owes and not arriving and now - stopped > LINGER:
                channel.will_close = True
        return not self.active_channels


# ── Server · handfuls: speed only ──────────────────────────────────────────────────────────────

# Webhooks that came in one round of the loop share a transaction and a thread: 0.8 of what a bare
# echo takes in, where each by itself reaches 0.25. Nothing else depends on it.


class _QuickAnswer(_Answer):
    wrote_header: bool

    def get_environment(self) -> dict[str, Any]:
        """A handful's are made beforehand."""
        if self.request.environ is None:
            self.request.environ = super().get_environment()
        return self.request.environ  # type: ignore[no-any-return]

    def write(self, data: bytes) -> None:
        """A short answer goes with its head in one piece."""
        if self.wrote_header or not data or len(data) != self.content_length:
            super().write(data)
            return
        head = self.build_response_header()
        self.wrote_header = True
        self.content_bytes_written = len(data)
        self.channel.write_soon(head + data)


class _QuickChannel(_Channel):
    task_class = _QuickAnswer


class _Handful:
    """Webhooks that came in one round of the loop: one transaction, and one thread answers them.

    Waitress would give each to a thread of its own; handing them from thread to thread would cost
    more than all that is done with them.
    """

    MOST, LARGEST = 16, 65536  # webhooks, and bytes of each: those behind it wait for a thread

    def __init__(self, server: Any) -> None:
        self.server = server
        self.connections: list[_QuickChannel] = []

    def joins(self, connection: _QuickChannel) -> bool:
        """Adds its request, where that is a webhook that delays the others by little."""
        request = connection.requests[0]
        if (
            request.error
            or request.command != "POST"
            or request.path not in self.server.door.hooks
            or "PREFER" in request.headers
            or (request.body_rcv is not None and len(request.body_rcv) > self.LARGEST)
        ):
            return False
        self.connections.append(connection)
        return True

    def service(self) -> None:
        """Stores all, then answers each; the loop is woken when all is done."""
        door, thread = self.server.door, threading.get_ident()
        requests = [(connection.requests[0], connection) for connection in self.connections]
        try:
            door.store_webhooks(
                [
                    (door.hooks[request.path], _QuickAnswer(at, request).get_environment())
                    for request, at in requests
                ]
            )
        finally:
            self.server.answering.add(thread)
            try:
                for connection in self.connections:
                    connection.service()
            finally:
                self.server.answering.discard(thread)
                self.server.pull_trigger()

    def cancel(self) -> None:
        """Ends the connections: the server is gone."""
        for connection in self.connections:
            connection.cancel()


class Server(PlainServer):
    """The server with handfuls."""

    PAUSE = 0.001  # seconds in which more webhooks may come in, while two threads answer others
    channel_class = _QuickChannel

    def __init__(self, door: Door, listener: socket.socket) -> None:
        self.coming = _Handful(self)  # of this round
        self.answering: set[int] = set()  # threads that answer a handful
        self.looping = 0  # the thread that runs the loop
        super().__init__(door, listener)

    def turn(self, seconds: float) -> None:
        """One round of the loop, whose handful then goes to a thread.

        While several are being answered it pauses a moment: the next ones are then more of a
        handful, which shares one commit.
        """
        self.looping = threading.get_ident()
        if self.task_dispatcher.active_count > 1:
            time.sleep(self.PAUSE)
        super().turn(seconds)
        self.hand_over()

    def hand_over(self) -> None:
        """Gives the handful to a thread, and begins the next one."""
        if self.coming.connections:
            handful, self.coming = self.coming, _Handful(self)
            super().add_task(handful)

    def add_task(self, task: _QuickChannel) -> None:
        """Lets a request be answered: webhooks at the end of this round, others at once."""
        if threading.get_ident() != self.looping or not self.coming.joins(task):
            super().add_task(task)
        elif len(self.coming.connections) == _Handful.MOST:
            self.hand_over()

    def pull_trigger(self) -> None:
        """Wakes the loop: for a handful once."""
        if threading.get_ident() not in self.answering:
            super().pull_trigger()


# ── Wire: one HTTP exchange, with a deadline ───────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from an attempt. `status` None: nothing did, and `error` says why."""

    status: int | None
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    error: str = ""  # why there is no answer, or not the whole of it
    sent: bool = True  # whether the other side may have seen the request
    framed: bool = True  # whether a length (or chunks) told where the body ends
    too_long: bool = False  # MAX_ANSWER bytes of it were read, and more would have come

    def message(self) -> Message:
        """It as paths read it; its body MISSING where it is no JSON."""
        if self.too_long:
            text = self.body.decode("utf-8", "replace")
            return Message(parse_beginning(text), self.headers)
        with contextlib.suppress(ValueError, Unreadable):
            return Message(parse_json(next(decode_body(self.body))[0]), self.headers)
        return Message(MISSING, self.headers, next(decode_body(self.body))[0])

    def words(self) -> str:
        """The beginning of what was said, as one line."""
        text = self.body.decode("utf-8", "replace")
        # cut where nobody looks: what a cut leaves of a secret is not masked
        return " ".join(text.split())[:8000]

    def is_html(self) -> bool:
        """Whether a page came instead of data: a login, a proxy, a notice before the JSON."""
        content_type = self.headers.get("content-type", "").lower()
        start = self.body.lstrip()[:9].lower()
        return "text/html" in content_type or (
            start.startswith(b"<") and not start.startswith(b"<?xml") and "xml" not in content_type
        )


class _Timed:
    """What a socket does to keep a deadline: each read and write gets the time that is left."""

    deadline = math.inf  # monotonic

    def settimeout(self, seconds: float | None) -> None:
        """Sets it, unless it is nearly so already: each time lets others run for a while."""
        before = self.gettimeout()  # type: ignore[attr-defined]
        if before is None or seconds is None or abs(seconds - before) > 0.02:
            super().settimeout(seconds)  # type: ignore[misc]

    def limit(self) -> None:
        """Raises TimeoutError where none is left."""
        if self.deadline < math.inf:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.settimeout(left)

    def recv_into(self, *arguments: Any) -> int:
        """Reads what is there, at least one byte."""
        self.limit()
        return super().recv_into(*arguments)  # type: ignore[misc, no-any-return]

    def recv(self, *arguments: Any) -> bytes:
        """Reads what is there, at least one byte."""
        self.limit()
        return super().recv(*arguments)  # type: ignore[misc, no-any-return]

    def send(self, *arguments: Any) -> int:
        """Writes what there is room for, at least one byte."""
        self.limit()
        return super().send(*arguments)  # type: ignore[misc, no-any-return]

    def sendall(self, *arguments: Any) -> None:
        """Writes it all."""
        self.limit()
        super().sendall(*arguments)  # type: ignore[misc]


class _Socket(_Timed, socket.socket):
    pass


class _TlsSocket(_Timed, ssl.SSLSocket):
    pass


class _Response(http.client.HTTPResponse):
    """An answer that passes over every interim one (RFC 9110 15.2), not 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 102 <= status < 200 else status, reason


class _Connection:
    """A connection of urllib3's over sockets that keep the deadline."""

    response_class = _Response
    deadline = math.inf
    sent = False  # whether the other side may have seen the request
    sock: Any
    host: str
    port: int
    _held: bytes | None = None  # of a request that is being put together

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.sockets: list[_Timed] = []

    def _new_conn(self) -> socket.socket:
        """Tries the addresses of the name in turn, each with its share of the time left."""
        problem: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        addresses = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            connected = _Socket(family, kind, protocol)
            self.sockets = [connected]
            left = self.deadline - time.monotonic()
            try:
                connected.settimeout(max(0.01, left / (len(addresses) - tried)))
                connected.connect(address)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected.deadline = self.deadline
                connected.limit()  # TLS takes over what is set here
                return connected
            except OSError as error:
                problem = error
                connected.close()
        raise problem

    def connect(self) -> None:
        """Connects, through the proxy if there is one, and by TLS where that is wanted."""
        super().connect()  # type: ignore[misc]
        self.sockets, layer = [], self.sock
        while layer is not None:  # TLS within TLS has the outer one inside
            if isinstance(layer, _Timed):
                self.sockets.append(layer)
            layer = getattr(layer, "socket", None)

    def exchange(self, request: Request, target: str, deadline: float) -> http.client.HTTPResponse:
        """The response to a request, its body unread.

        It is http.client's own: what urllib3 puts around it, we do not use.
        """
        self.deadline, self.sent = deadline, False
        if self.sock is None:
            self.timeout = max(0.01, deadline - time.monotonic())
            self.connect()
        for layer in self.sockets:
            layer.deadline = deadline
        self.sent, self._held = True, b""
        try:
            self.request(  # type: ignore[attr-defined]
                request.method,
                target,
                body=request.body or None,
                headers=request.headers,
            )
        finally:
            whole, self._held = self._held, None
        self.send(whole)
        return http.client.HTTPConnection.getresponse(self)  # type: ignore[arg-type]

    def send(self, data: Any) -> None:
        """Sends; head and body of a request in one piece, which halves what the system does."""
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held += data


class _HttpConnection(_Connection, urllib3.connection.HTTPConnection):  # type: ignore[misc]
    pass


class _HttpsConnection(_Connection, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


WORDS_FOR = {  # what http.client and urllib3 call a trouble -> what it is
    "RemoteDisconnected": "connection closed without an answer",
    "IncompleteRead": "connection closed in the middle",
    "BadStatusLine": "what came back is no HTTP",
    "InvalidHeader": "the head of its answer is broken",
    "ValueError": "its answer is broken",
    "UnknownProtocol": "what came back is no HTTP",
    "LineTooLong": "the head of its answer is too large",
    "HTTPException": "the head of its answer is too large",
    "LocationParseError": "the address is no URL",
    "UnicodeError": "the name in the address cannot be a host's",
    "UnicodeEncodeError": "a header holds letters that HTTP cannot carry",
}


def _transport_reason(error: BaseException) -> str:
    """A transport error in few words; its own text would carry the whole URL."""
    cause: BaseException = error
    while True:
        inner = [cause.__cause__, getattr(cause, "reason", None), *cause.args]
        causes = [inside for inside in inner if isinstance(inside, BaseException)]
        if not causes:
            break
        cause = causes[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = {
            62: "; it must name the host as a subjectAltName, its common name counts not",
            20: "; itsm.ca_file (PEM) must hold its authority",
            18: "; it is its own authority: name it in itsm.ca_file",
            19: "; itsm.ca_file (PEM) must hold its authority",
            10: "; have it renewed",
        }.get(cause.verify_code, "")
        return f"TLS certificate refused: {cause.verify_message}{remedy}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {(cause.reason or 'no agreement').replace('_', ' ').lower()}"
    if isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(cause, socket.gaierror):
        return f"name not found: {cause.strerror}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    if isinstance(cause, OSError) and (match := re.match(r"Tunnel .*: (\d{3})", str(cause))):
        hint = ": look at the login in itsm.proxy" if match[1] == "407" else ""
        return f"the proxy refuses with {match[1]}{hint}"
    return WORDS_FOR.get(type(cause).__name__, f"the exchange failed ({type(cause).__name__})")


class ClientCertificate(Error):
    """itsm.client_cert and client_key are no usable pair."""


def tls_context(itsm: ItsmOptions) -> ssl.SSLContext:
    """How the other side's certificate is verified, and ours is shown.

    Raises ClientCertificate; OSError, ssl.SSLError for itsm.ca_file.
    """
    context = ssl.create_default_context(cafile=itsm.ca_file or None)
    context.sslsocket_class = _TlsSocket
    if itsm.client_cert:

        def no_password() -> str:
            raise ClientCertificate("itsm.client_key is encrypted: give it without a passphrase")

        try:
            key = itsm.client_key or None
            context.load_cert_chain(itsm.client_cert, key, password=no_password)
        except (OSError, ssl.SSLError) as error:
            raise ClientCertificate(f"itsm.client_cert and client_key: {error}") from None
    return context


_parse_url = functools.lru_cache(maxsize=64)(urllib3.util.parse_url)


def inflate(encoding: str, body: bytes) -> bytes:
    """What a compressed body holds, at most a byte over MAX_ANSWER.

    Raises zlib.error; EOFError where it was cut, though its length may be as announced.
    """
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise zlib.error(f"encoding {encoding}")
    for bits in (47, -15):  # with either head; "deflate" also comes without one
        stream = zlib.decompressobj(bits)
        try:
            text = stream.decompress(body, MAX_ANSWER + 1)
        except zlib.error:
            continue
        if not stream.eof and len(text) <= MAX_ANSWER:
            raise EOFError
        return text
    raise zlib.error(encoding)


class Wire:
    """Connections to the other side, kept for the next request. Not shared between threads.

    They are used directly: urllib3's pools are made for many threads and hosts, and cost as much
    as the exchange itself.
    """

    MOST = 4  # connections kept, to different hosts

    def __init__(self, itsm: ItsmOptions) -> None:
        self.itsm = itsm
        self.connections: dict[tuple[Any, ...], Any] = {}

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        return tls_context(self.itsm)

    def exchange(self, request: Request, deadline: float, fresh: bool = False) -> Answer:
        """Makes one HTTP request; never raises for what the network or the other side does.

        It is over by `deadline` (monotonic). `fresh`: on a new connection, so that no idle one
        that was just closed spoils it.
        """
        if fresh:
            self.close()
        connection = None
        try:
            url = _parse_url(request.url)
            connection = self._connection(url)
            through_proxy = url.scheme == "http" and bool(self.itsm.proxy.reveal())
            if through_proxy and (login := self._proxy_login()):
                request = replace(request, headers={**request.headers, **login})
            target = url.url if through_proxy else url.request_uri
            return self._read(connection, connection.exchange(request, target, deadline))
        except (
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            ClientCertificate,
            OSError,
            ValueError,
        ) as error:
            sent = connection is not None and connection.sent
            self.close()
            reason = str(error) if isinstance(error, Error) else _transport_reason(error)
            return Answer(None, error=reason, sent=sent)

    def _read(self, connection: Any, response: http.client.HTTPResponse) -> Answer:
        """The answer, at most MAX_ANSWER bytes of it.

        The connection is used again only where it is known to have brought all of it. Raises
        InvalidHeader where it has two lengths.
        """
        error, body = "", b""
        named = {  # what goes on in a further line does so after a space (RFC 9112 5.2)
            name.lower(): " ".join(value.split()) if "\n" in value else value
            for name, value in response.headers.items()
        }
        told = ",".join(response.headers.get_all("content-length", ())).split(",")
        first, *others = {length.strip() for length in told}
        if others:
            raise urllib3.exceptions.InvalidHeader
        if response.length is None and not response.chunked and first.isdecimal():
            response.length = int(first)  # told twice, alike (RFC 9110 8.6)
        # as http.client reads it: what else stands there tells no end
        framed = response.chunked or response.length is not None
        more = response.status == 204 and named.get("content-length", "0") != "0"
        try:
            while response.length != 0 and len(body) <= MAX_ANSWER:
                piece = response.read(MAX_ANSWER + 1 - len(body))
                if not piece and response.length:
                    raise http.client.IncompleteRead(body, response.length)
                if not piece:
                    break
                body += piece
            body = inflate(named.get("content-encoding", "").strip().lower(), body)
            if len(body) > MAX_ANSWER:
                error = f"its answer is longer than {MAX_ANSWER} bytes"
        except EOFError:
            error = "its answer was cut before it was compressed"
        except zlib.error:
            error = "its answer is compressed, and broken or in a way that is not known here"
        except (http.client.HTTPException, OSError) as trouble:
            error = f"its answer was cut: {_transport_reason(trouble)}"
        if error or more or not framed:
            connection.close()
        response.close()  # or the connection would wait for more of it
        return Answer(
            response.status,
            named,
            body[:MAX_ANSWER],
            error,
            framed=framed,
            too_long=len(body) > MAX_ANSWER,
        )

    def close(self) -> None:
        """Closes all connections."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()

    def cut(self) -> None:
        """Wakes whoever reads from a connection, from another thread: closing would not."""
        for connection in list(self.connections.values()):
            for layer in list(connection.sockets):
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(layer, socket.SHUT_RDWR)

    def _connection(self, url: urllib3.util.Url) -> Any:
        """The connection for `url`, as good as new."""
        place = (url.scheme, url.host, url.port)
        connection = self.connections.get(place)
        if connection is None:
            if len(self.connections) == self.MOST:
                self.close()
            connection = self.connections[place] = self._new(url)
        elif not connection.is_closed and not connection.is_connected:
            connection.close()  # the other side hung up, or said more than it was asked
        return connection

    def _new(self, url: urllib3.util.Url) -> Any:
        """A connection to the host of `url`, or to the proxy on the way there."""
        proxy = self.itsm.proxy.reveal()
        hop = _parse_url(proxy) if proxy else url
        ports = {"https": 443, "http": 3128 if proxy else 80}
        named: dict[str, Any] = {}
        if "https" in (url.scheme, hop.scheme):
            named["ssl_context"] = self._context
        if proxy and hop.scheme == "https":
            named["proxy"] = hop
            named["proxy_config"] = urllib3.connection.ProxyConfig(
                self._context, False, None, None
            )
        kind = _HttpsConnection if named else _HttpConnection
        connection = kind(str(hop.host).strip("[]"), hop.port or ports[str(hop.scheme)], **named)
        if proxy and url.scheme == "https":
            host, port = str(url.host).strip("[]"), url.port or 443
            connection.set_tunnel(host, port, self._proxy_login(), str(hop.scheme))
        return connection

    def _proxy_login(self) -> dict[str, str]:
        login = urllib.parse.unquote(_parse_url(self.itsm.proxy.reveal()).auth or "")
        if not login:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


# ── Outcomes: what an answer means ─────────────────────────────────────────────────────────────


class Outcome(NamedTuple):
    """What an attempt meant: delivered, failed, later, credential or unclear."""

    name: str
    reason: str
    words: str = ""  # the ITSM's own, for people; may hold ticket text
    request_id: str = ""
    kept: Mapping[str, Any] = MappingProxyType({})  # further values of the answer
    retry_after: float = 0.0  # seconds the ITSM asked for
    may_have_happened: bool = False
    said: str = ""  # of its words those that are meant for people


SAYING = re.compile(r"(?i)mess?age|msg|error|detail|descr|reason|title|cause|text|fault|remark")
CODE = re.compile(r"(?i)(?:code|errno|number)$")


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and text of every leaf; what stands in a list has the list's key."""
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _leaves(branch, name)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _leaves(branch, key)
    elif isinstance(tree, str | int) and not isinstance(tree, bool):
        yield key, as_text(tree).strip()


def own_words(text: str) -> str:
    """What an ITSM says to people: message and code out of its JSON; any other text as it is."""
    try:
        leaves = [(key, said) for key, said in _leaves(json.loads(text)) if said]
    except (ValueError, RecursionError):
        return text
    said = [said for key, said in leaves if SAYING.search(key) and not CODE.search(key)]
    sentences = [each for each in said if " " in each] or said
    if not sentences:
        return text
    codes = [code for key, code in leaves if CODE.search(key) and code not in sentences]
    codes += [each for each in said if each not in sentences]
    told = "; ".join(dict.fromkeys(sentences[:3]))
    brief = ", ".join(dict.fromkeys(code for code in codes if len(code) < 40))
    return f"{told} ({brief})" if brief else told


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


def read_answer(rules: Sequence[Rule], answer: Answer, message: Message, now: float) -> Outcome:
    """What an answer means: the first rule's word, else that of ANSWERS. `now`: epoch seconds.

    What neither knows means "later". An answer that was cut is never a success.
    """
    if answer.status is None:
        name = "unclear" if answer.sent else "later"
        return Outcome(name, answer.error, may_have_happened=answer.sent)
    said, words = f"answered {answer.status}", answer.words()
    wait = retry_after(answer.headers.get("retry-after", ""), now)
    number = first_that_fits(rules, message, answer.status)
    if number and not (answer.error and rules[number - 1].result == "delivered"):
        name = rules[number - 1].result
        why = f"{said}, {name} by rule {number} of `answers`"
        return Outcome(name, why, words, retry_after=wait)
    name, happened = next(
        (row[2:] for row in ANSWERS if row[0] <= answer.status <= row[1]), UNHEARD_OF
    )
    if name != "delivered":
        return Outcome(name, said, words, retry_after=wait, may_have_happened=happened)
    if answer.error:
        return Outcome("unclear", f"{said}, but {answer.error}", words, may_have_happened=True)
    if message.body is MISSING and answer.is_html():
        reason = f"{said} with HTML instead of JSON: a login page or a proxy?"
        return Outcome("later", reason, words, may_have_happened=True)
    endless = message.body is MISSING or type(message.body) in (int, float)  # 12 of 123
    if endless and not answer.framed:
        reason = f"{said}, but the answer may have been cut"
        return Outcome("unclear", reason, words, may_have_happened=True)
    return Outcome("delivered", said, words)


LOCATION = parse_path("@header:Location")


def answered_at(path: Path, message: Message, match: re.Pattern[str] | None) -> list[Any]:
    """What stands at a path of an answer; of a header Location its last segment.

    Where a pattern is to choose of it, all of it. Raises ValueError for a Location that is no URL.
    """
    values = message.elements(path)
    if path != LOCATION or match is not None:
        return values
    urls = [urllib.parse.urlsplit(value).path.rstrip("/") for value in values]
    return [urllib.parse.unquote(url.split("/")[-1]) for url in urls]


def _taken(value: Any, match: re.Pattern[str] | None) -> Any:
    """A value that was found, or the part of it that is wanted; MISSING where it is none."""
    if match is not None:
        group = match.search(as_text(value))
        return group[1] if group else MISSING
    return value if isinstance(value, str | int | float) else MISSING


def read_ids(place: Field, message: Message) -> list[str]:
    """The ids that stand at a place; of a header Location its last segment.

    Raises ValueError for a Location that is no URL.
    """
    ids = [
        read_id(_taken(value, place.match))
        for path in place.paths
        for value in answered_at(path, message, place.match)
    ]
    return [text for text in ids if text]


def _with_request_id(kind: Kind, message: Message, outcome: Outcome) -> Outcome:
    """The outcome of an opening that was taken: its request id makes it delivered."""
    if ids := read_ids(kind.request_id, message):
        return outcome._replace(name="delivered", request_id=ids[0])
    if outcome.name != "delivered":
        return outcome
    if message.body is MISSING:
        reason = f"{outcome.reason} without JSON: it may have happened; `map` or `retry` decides"
        return outcome._replace(name="failed", reason=reason, may_have_happened=True)
    reason = f"{outcome.reason} {NO_ID}"
    return outcome._replace(name="failed", reason=reason)


def _kept_values(kind: Kind, message: Message) -> dict[str, Any]:
    """The further values that a kind keeps of an answer, those that are there."""

    def first_in(place: Field) -> Any:
        for path in place.paths:
            with contextlib.suppress(ValueError):
                for value in answered_at(path, message, place.match):
                    part = value if place.match is None else _taken(value, place.match)
                    if present(part):
                        return part
        return MISSING

    values = {name: first_in(place) for name, place in kind.keep.items()}
    return {
        name: value if isinstance(value, str | int | float) else as_text(value)
        for name, value in values.items()
        if present(value)
    }


def decide(kind: Kind, answer: Answer, now: float) -> Outcome:
    """What an answer to an event's own request means: rules, ANSWERS, what the kind asks.

    The one author of that; `now`: epoch seconds.
    """
    message = answer.message()
    outcome = read_answer(kind.answers, answer, message, now)
    if kind.keep:
        outcome = outcome._replace(kept=_kept_values(kind, message))
    taken = outcome.name == "delivered" or (answer.too_long and outcome.name == "unclear")
    if kind.opens and taken:
        try:
            return _with_request_id(kind, message, outcome)
        except ValueError:
            reason = f"{outcome.reason}, but its header Location is no address"
            return outcome._replace(name="unclear", reason=reason, may_have_happened=True)
    if outcome.may_have_happened and outcome.name == "later" and kind.when_unclear != "retry":
        return outcome._replace(name="unclear")
    return outcome


def _met(condition: Condition, path: Path, keys: tuple[Any, ...], message: Message) -> bool | None:
    """Whether a hit at `keys` of `path` holds a condition; None: there is nothing to compare.

    What the two paths have in common leads to the same element for both.
    """
    common = 0
    while common < min(len(path), len(condition.path)) and path[common] == condition.path[common]:
        common += 1
    elements = [
        element
        for others, element in locate(message.body, condition.path)
        if others[:common] == keys[:common]
    ]
    if not elements:
        return None
    return any(condition.accepts(element, message) for element in elements)


def _many(step: Step) -> bool:
    """Whether a step of a path chooses among the elements of a list."""
    return step.does in ("any", "where") or re.fullmatch("-?[0-9]+", step.name) is not None


NONE: Any = ()  # the body of an answer that says that there is none; JSON knows no tuple


def values_in(
    lookup: Lookup, message: Message, scope: Scope, strict: bool = False
) -> list[Any] | None:
    """What a look-up brought: texts, numbers; None where its answer is not understood.

    There is none where the list at its path is empty; that a path leads nowhere is no answer.
    `strict`: a hit that is no value is none either, nor is a body that is empty.
    Raises Untranslatable.
    """
    headers = [path for path in lookup.value.paths if path[0].does == "header"]
    if message.body is NONE and not headers:
        return []
    if message.body is MISSING and not message.text.strip() and not headers:
        return None if strict else []
    conditions, values, understood = lookup.conditions(scope), list[Any](), False
    for path in lookup.value.paths:
        if path[0].does in ("header", "body"):
            with contextlib.suppress(ValueError):
                values += answered_at(path, message, lookup.value.match)
            understood = understood or bool(values)
            continue
        last = max((n for n, step in enumerate(path) if _many(step)), default=-1)
        if last >= 0:
            lists = [element for _, element in locate(message.body, path[:last])]
            understood = understood or any(element in ([], {}, None) for element in lists)
        for keys, element in locate(message.body, path):
            understood = True
            met = [_met(condition, path, keys, message) for condition in conditions]
            if None in met:
                return None
            values += [element] if all(met) else []
    if not understood:
        return None
    taken = [_taken(value, lookup.value.match) for value in values]
    if strict and not all(map(read_id, taken)):
        return None
    return list(dict.fromkeys(value for value in taken if present(value)))


# ── Look-ups: questions to the ITSM and to login servers, and what they brought ────────────────


class Unanswered(Error):
    """A look-up that got no usable answer now; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Memory:
    """What look-ups brought, for as long as it is good; shared by the workers.

    `_changed` guards it, for moments only; who waits on it waits for the answer that another
    worker is being given, so that nothing is asked twice at the same time. No other lock is taken
    while it is held.
    """

    MOST = 10_000  # values

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._values: dict[Any, tuple[Any, float]] = {}  # -> the value, good until (monotonic)
        self._asked: set[Any] = set()  # what is being asked now
        self._hidden: dict[str, None] = {}  # texts that nobody may see, the latest last

    def recall(self, key: Any, deadline: float) -> Any:
        """The value, or MISSING: then the caller asks, and says so by `keep` or `give_up`.

        Raises TimeoutError.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                value, until = self._values.get(key, (MISSING, 0.0))
                if value is not MISSING and now < until:
                    return value
                if key not in self._asked:
                    self._asked.add(key)
                    return MISSING
                if now >= deadline:
                    raise TimeoutError
                self._changed.wait(deadline - now)

    def keep(self, key: Any, value: Any, seconds: float, hidden: bool) -> None:
        """Keeps a value that was asked for; `hidden`: it is a secret."""
        with self._changed:
            self._asked.discard(key)
            self._values.pop(key, None)
            if seconds > 0:
                self._values[key] = (value, time.monotonic() + seconds)
            while len(self._values) > self.MOST:
                del self._values[next(iter(self._values))]
            if hidden and len(as_text(value)) > 3:
                self._hidden.pop(as_text(value), None)
                self._hidden[as_text(value)] = None
            while len(self._hidden) > 20:
                del self._hidden[next(iter(self._hidden))]
            self._changed.notify_all()

    def give_up(self, key: Any) -> None:
        """The question got no answer: somebody else may ask it."""
        with self._changed:
            self._asked.discard(key)
            self._changed.notify_all()

    def forget(self, key: Any, value: Any) -> None:
        """The value was refused; unless another one is there already, it is asked for anew."""
        with self._changed:
            if self._values.get(key, (MISSING, 0.0))[0] == value:
                del self._values[key]

    def left(self, value: Any) -> float:
        """For how many seconds a value is still good; 0 where it is not kept."""
        untils = [until for kept, until in self._values.values() if kept == value]
        return max(0.0, max(untils, default=0.0) - time.monotonic())

    def mask(self, text: str) -> str:
        """`text` without the tokens that look-ups brought."""
        for hidden in list(self._hidden):
            text = text.replace(hidden, "***")
        return text


class Inquiry:
    """The questions of one attempt for one event, all within its deadline.

    `tell` makes an attempt of each answer: (when it began (epoch, monotonic), request, answer,
    outcome, look-up) -> None.
    """

    def __init__(
        self,
        wire: Wire,
        memory: Memory,
        deadline: float,
        tell: Callable[[tuple[float, float], Request, Answer, Outcome, str], None],
    ) -> None:
        self.wire, self.memory, self.deadline, self.tell = wire, memory, deadline, tell
        self._used: list[tuple[Any, Any]] = []  # what was remembered or asked: key, value

    def put(self, lookup: Lookup, request: Request) -> tuple[Outcome, Message]:
        """Asks; "delivered" means that it was answered, if only by 404: there is none."""
        began = (time.time(), time.monotonic())
        answer = self.wire.exchange(request, self.deadline)
        message = answer.message()
        outcome = read_answer(lookup.answers, answer, message, time.time())
        if answer.status == 404 and outcome.name == "later":
            outcome = Outcome("delivered", "answered 404")
            message = Message(NONE)
        elif answer.status == 204:
            message = message._replace(body=NONE)
        reason = f"look-up {lookup.name}: {outcome.reason}"
        name = "later" if outcome.name == "unclear" else outcome.name  # a question hurts nobody
        words = "" if name == "delivered" else outcome.words
        outcome = outcome._replace(name=name, reason=reason, words=words, may_have_happened=False)
        self.tell(began, request, answer, outcome, lookup.name)
        return outcome, message

    def insist(self, lookup: Lookup, scope: Scope) -> tuple[Outcome, Message]:
        """Asks; once more where a token that a look-up brought was refused.

        Raises Unanswered, Untranslatable.
        """
        outcome, message = self.put(lookup, lookup.request.render(scope))
        if outcome.name == "credential" and self.forget():
            outcome, message = self.put(lookup, lookup.request.render(scope))
        return outcome, message

    def values(
        self,
        lookup: Lookup,
        answered: tuple[Outcome, Message],
        scope: Scope,
        strict: bool = False,
    ) -> tuple[Any, Message]:
        """The values that were found and the answer; None where it is not understood.

        Raises Unanswered, Untranslatable.
        """
        outcome, message = answered
        if outcome.name in ("later", "credential"):
            raise Unanswered(outcome)
        if outcome.name == "failed":
            return None, message
        return values_in(lookup, message, scope, strict), message

    def ask(self, lookup: Lookup, scope: Scope) -> Any:
        """A look-up's value, remembered or asked for. Raises Unanswered, Untranslatable."""
        request = lookup.request.render(scope)
        key = (lookup.name, request.method, request.url, request.body)
        try:
            value = self.memory.recall(key, self.deadline)
        except TimeoutError:
            reason = f"look-up {lookup.name}: another attempt waits for it, too"
            raise Unanswered(Outcome("later", reason)) from None
        if value is MISSING:
            kept = False
            try:
                value, seconds = self._asked(lookup, request, scope)
                self.memory.keep(key, value, seconds, hidden=not lookup.of_a_value)
                kept = True
            finally:
                if not kept:
                    self.memory.give_up(key)
        self._used.append((key, value))
        return value

    def _asked(self, lookup: Lookup, request: Request, scope: Scope) -> tuple[Any, float]:
        """The value, and for how many seconds it is good."""
        values, message = self.values(lookup, self.put(lookup, request), scope)
        of = f" of {as_text(scope.fields['value'])[:60]!r}" if lookup.of_a_value else ""
        problem = ""
        if values is None:
            why = "was refused, or its answer leads nowhere: see its attempt"
            problem = f"look-up {lookup.name}{of} {why}"
        elif not values and lookup.otherwise is MISSING:
            problem = f"look-up {lookup.name}: there is none{of}"
        if problem and lookup.is_login(scope):
            name = "later" if message.body in (MISSING, NONE) else "credential"
            raise Unanswered(Outcome(name, problem))
        if problem:
            raise Untranslatable(problem)
        seconds = lookup.keep_for
        if isinstance(seconds, Field):
            told = _filter_number(seconds.read(message) or 0, "", scope) if values else 0
            seconds = 0.9 * float(told)
        return values[0] if values else lookup.otherwise, seconds

    def forget(self) -> bool:
        """After a refused credential: whether there is a value to be asked for anew."""
        for key, value in self._used:
            self.memory.forget(key, value)
        used, self._used = bool(self._used), []
        return used


# ── Delivery: due event to outcome; the only threads we start ──────────────────────────────────


# ── Delivery · the breaker ─────────────────────────────────────────────────────────────────────


class Breaker:
    """Whether the ITSM is up: three "later" for different tickets in a row say it is not.

    Then one probe at a time goes, after longer and longer waits; the first answer that takes or
    refuses a ticket opens the gates. A refused credential shuts them at once, and is tried again
    once a minute, or when another one is there. `now` is the service clock; the gate guards it.
    """

    PATIENCE = 60.0  # seconds between two probes with a credential that was refused

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

    def hear(self, outcome: Outcome, ticket: str, now: float) -> bool:
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
            self.late = [*(late for late in self.late if late != ticket), ticket][-3:]
            if self.why or len(self.late) == 3:
                self._shut(self.why or "down", outcome, now)
        return before != (self.why, self.reason)

    def _shut(self, why: str, outcome: Outcome, now: float) -> None:
        if self.why and now < self.next_probe:
            return  # an attempt that was under way when the gates closed
        self.why, self.reason = why, outcome.reason
        longest = min(self.longest, self.first * 2 ** min(self.probes, 20))
        delay = longest * (0.5 + self.jitter() / 2)
        if outcome.name == "credential":
            delay = self.PATIENCE
        self.next_probe = now + max(delay, outcome.retry_after)
        self.probes += 1


# ── Delivery · the gate ────────────────────────────────────────────────────────────────────────


class Gate:
    """Which event goes next, and when: the due events, the breaker, the workers that wait.

    `_changed` guards all of it and is held for moments only, never during SQL or HTTP; the file's
    lock is never taken while it is held. Workers without work wait on it. Who takes an event wakes
    one more where the page holds more; `wake`, a breaker that moved, `probe_now` and `stop` notify
    too, and `tick` for what becomes due by itself. `done` wakes nobody: its own worker looks next.
    """

    PAGE = 64  # due events read at a time: memory stays flat whatever the backlog
    IDLE = 60.0  # seconds after which a worker looks though nobody woke it

    def __init__(self, events: Events, breaker: Breaker) -> None:
        self.events, self.breaker = events, breaker
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._page: collections.deque[Event] = collections.deque()
        self._edits = 0  # of the events, when the page was read
        self._busy: set[str] = set()  # tickets in flight: taken, and not recorded yet
        self._reading = False  # whether a worker reads a page now
        self._fresh = True  # something may have become due since the last one was read
        self._look_at = 0.0  # monotonic; when something becomes due by itself

    def wake(self) -> None:
        """Something may be due. Cheap: only the first call since the last look wakes a worker.

        None where nothing may go: whoever changes that notifies.
        """
        with self._changed:
            if not self._fresh and self._open():
                self._fresh = True
                self._changed.notify()

    def stop(self) -> None:
        """Lets nothing through any more."""
        with self._changed:
            self.stopping.set()
            self._changed.notify_all()

    def take(self) -> Event | None:
        """The next event to deliver; waits for one. None: time to stop."""
        while True:
            with self._changed:
                while not self.stopping.is_set():
                    if event := self._next():
                        return event
                    wait = self._wait()
                    if wait <= 0:
                        break
                    self._changed.wait(wait)
                else:
                    return None
                self._reading, self._fresh = True, False
                busy, edits = frozenset(self._busy), self.events.edits
            self._read_page(busy, edits)

    def _next(self) -> Event | None:
        """The first of the page, where the breaker and the operator let it go."""
        if self._edits != self.events.edits:
            self._page.clear()  # a person changed something: what was read before is old
            self._fresh = True
        if not self._page or not self._open():
            return None
        event = self._page.popleft()
        self._busy.add(event.ticket)
        self.breaker.probing = event.ticket if self.breaker.why else ""
        if self._page and not self.breaker.why:
            self._changed.notify()
        return event

    def _open(self) -> bool:
        """Whether an event may go."""
        return not self._barred() and self.breaker.admits(self.events.file.clock())

    def _barred(self) -> bool:
        """Whether nothing may go: paused, or its outcome could not be recorded."""
        return bool(self.events.file.fact("paused") or self.events.file.broken)

    def _wait(self) -> float:
        """How long there is nothing to do, in seconds; 0: a page is to be read."""
        if self._reading:
            return self.IDLE
        if not self._open():
            self._fresh, self._look_at = False, 0.0  # to be read once something may go
            if self._barred() or self.breaker.probing:
                return self.IDLE
            return max(0.01, self.breaker.next_probe - self.events.file.clock())
        return 0.0 if self._fresh else max(0.0, self._look_at - time.monotonic())

    def _read_page(self, busy: frozenset[str], edits: int) -> None:
        """Reads what is due, without the tickets in flight.

        Nothing can be taken meanwhile, the page being empty; so `busy` covers what was in flight
        when the page was read.
        """
        page: list[Event] = []
        look_at = time.monotonic() + 1.0  # where that fails
        down = bool(self.breaker.why)
        try:
            now = self.events.file.clock()
            if down:  # a ticket that nobody tried yet tells most
                page = self.events.due(now, 1, busy, untried=True) or self.events.due(now, 1, busy)
            else:
                page = self.events.due(now, self.PAGE, busy)
            due = now if page else self.events.next_due(now)
            look_at = time.monotonic() + (self.IDLE if due is None else min(self.IDLE, due - now))
        except FileError as error:
            log.error("%s", error)
        finally:
            with self._changed:
                self._reading, self._edits, self._look_at = False, edits, look_at
                self._page.extend(page)

    def tick(self) -> None:
        """Wakes a worker for what has become due while those that would have looked are busy."""
        with self._changed:
            if not (self._page or self._reading) and time.monotonic() >= self._look_at:
                self._changed.notify()

    def done(self, ticket: str) -> None:
        """The attempt for the ticket is over and recorded: its next event may go."""
        with self._changed:
            self._busy.discard(ticket)
            if self.breaker.probing == ticket:
                self.breaker.probing = ""
            self._fresh = True

    def hear(self, outcome: Outcome, ticket: str) -> None:
        """Tells the breaker; when it opens, everybody may go."""
        with self._changed:
            if self.breaker.hear(outcome, ticket, self.events.file.clock()):
                self._changed.notify_all()
            self.events.pulse.next_probe = self.breaker.next_probe

    def probe_now(self) -> None:
        """Ends the wait for the next probe."""
        with self._changed:
            self.breaker.next_probe = 0.0
            self._changed.notify_all()


# ── Delivery · alerts ──────────────────────────────────────────────────────────────────────────


class Alerts:
    """Tells a chat address what needs a person: once when it begins, once when it is over.

    What was told is kept, so that a restart does not tell it again. `tell` may take seconds: it
    has a thread of its own and nothing waits for it.
    """

    PATIENCE = 5.0  # seconds for one text

    def __init__(self, config: Config, events: Events) -> None:
        self.config, self.events = config, events
        self.wire = Wire(ItsmOptions())

    def look(self) -> bool:
        """Tells what is new and what is over; False where it could not. Raises FileError."""
        after = self.config.alert.after
        wrong = troubles(self.config, self.events, after, after)
        now = {
            name: f"{trouble.word}. {trouble.todo}"
            for name, trouble in wrong.items()
            if name != WANTED
        }
        told: dict[str, str] = json.loads(self.events.file.fact("told") or "{}")
        lines = [text for name, text in now.items() if name not in told]
        lines += [f"over: {text}" for name, text in told.items() if name not in now]
        if not lines:
            return True
        where = f" {url}" if (url := self.config.server.public_url) else ""
        if not self.tell(f"hd_itsm on {socket.gethostname()}: {'; '.join(lines)}{where}"):
            return False
        self.events.file.keep_facts(told=json.dumps(now))
        return True

    def tell(self, text: str) -> bool:
        """Posts one text; whether it was taken."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        body = json.dumps({"text": text}).encode()
        request = Request("POST", self.config.alert.url.reveal(), headers, body)
        answer = self.wire.exchange(request, time.monotonic() + self.PATIENCE)
        if answer.status is not None and answer.status < 300:
            return True
        reason = f"answered {answer.status}" if answer.status else answer.error
        log.warning("the alert address does not take alerts (%s): %s", reason, text)
        return False


# ── Delivery · the workers ─────────────────────────────────────────────────────────────────────


class Result(NamedTuple):
    """What attempts were made for an event, and what they make of it."""

    attempts: tuple[Attempt, ...]
    verdict: Verdict


class Worker(threading.Thread):
    """A thread that attends to one event after the other, over a wire of its own."""

    def __init__(self, gate: Gate, wire: Wire, attend: Callable[[Worker, Event], None]) -> None:
        super().__init__(name="worker", daemon=True)
        self.gate, self.wire, self.attend = gate, wire, attend
        self.since: float | None = None  # monotonic; when it last showed life over an event

    def run(self) -> None:
        """Until the gate lets nothing through any more."""
        while (event := self.gate.take()) is not None:
            self.since = time.monotonic()
            try:
                self.attend(self, event)
            finally:
                self.since = None
                self.gate.done(event.ticket)


MAY_HAVE = "it may have happened; `map` or `retry` decides"


class Delivery:
    """Brings due events to the ITSM with a few worker threads, and watches over them."""

    def __init__(
        self, config: Config, events: Events, jitter: Callable[[], float] = random.random
    ) -> None:
        self.config, self.events, self.jitter = config, events, jitter
        self.memory = Memory()
        self.breaker = Breaker(config.retry.first, config.retry.probe, jitter)
        self.gate = Gate(events, self.breaker)
        self.wake = self.gate.wake
        self.fatal = ""  # why the process must end
        self._over = threading.Event()  # the workers have ended
        self._workers: list[Worker] = []
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._alerter = threading.Thread(target=self._alert, name="alert", daemon=True)
        self._retained = 0
        self._told = ("", "")  # the breaker as log and file have it
        self._telling = threading.Lock()  # guards it; the file's lock is taken while it is held

    def start(self) -> None:
        """Starts the threads; goes on where the last process ended."""
        kinds = self.config.kinds.items()
        self.events.adapt({name: (kind.opens, kind.waits_for_id) for name, kind in kinds})
        self.events.recover()
        itsm = json.loads(self.events.file.fact("itsm") or "{}")
        if itsm:
            self.breaker.why, self.breaker.reason = itsm["why"], itsm["reason"]
            self._told = (itsm["why"], itsm["reason"])
        for kind in self.config.kinds.values():
            if kind.find:
                due = self.events.file.clock() + kind.find_after
                self.events.postpone_unclear(kind.name, due)
        self._workers = [self._new_worker() for _ in range(self.config.itsm.workers)]
        self.events.pulse.beat = time.monotonic()
        self._watcher.start()
        if self.config.alert.url:
            self._alerter.start()

    def _new_worker(self) -> Worker:
        worker = Worker(self.gate, Wire(self.config.itsm), self.attend)
        worker.start()
        return worker

    def stop(self, seconds: float) -> None:
        """Starts nothing more and waits for what is in flight; after `seconds` that is cut."""
        deadline = time.monotonic() + seconds
        self.gate.stop()
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            worker.wire.cut()
        for worker in self._workers:
            worker.join(1.0)
        self._over.set()
        self._watcher.join(1.0)

    # ── Delivery · an attempt ──────────────────────────────────────────────────────────────────

    def attend(self, worker: Worker, event: Event) -> None:
        """Makes what attempts an event needs now, and records what they mean; whatever happens."""
        try:
            if (result := self.deliver(worker.wire, event)) is not None:
                self._record(worker, event, result)
        except FileError as error:
            log.error("event %d: %s", event.event, error)
            self.gate.stopping.wait(1.0)
        except Exception:
            log.exception("event %d: a fault of this program; it is tried again", event.event)
            self.events.postpone(event.event, self.events.file.clock() + 60)

    def _record(self, worker: Worker, event: Event, result: Result) -> None:
        """Where the disk is full the result waits for room: the request is not sent again."""
        while True:
            try:
                self.events.record(event, result.attempts, result.verdict)
                self._log(event, result)
                self._tell()  # not before: nothing that may fail stands before the record
                return
            except FileFull:
                worker.since = time.monotonic()
                if self.gate.stopping.wait(0.5):
                    return

    def deliver(self, wire: Wire, event: Event) -> Result | None:
        """Makes one attempt for an event; what it means for it. None: it may not go now."""
        kind = self.config.kinds.get(event.kind)
        if kind is None:
            return Result((), Verdict("failed", no_such_kind(event.kind)))
        attempts: list[Attempt] = []
        deadline = time.monotonic() + self.config.itsm.timeout
        tell = functools.partial(self._tell_attempt, attempts)
        inquiry = Inquiry(wire, self.memory, deadline, tell)
        scope = self.config.scope(
            event.fields,
            event.event,
            event.ticket,
            event.received,
            event.request_id,
            event.idempotency_key,
            kept=event.kept,
        )._replace(ask=inquiry.ask)
        verdict: Verdict | None
        try:
            if event.may_have_happened and kind.when_unclear != "retry":
                verdict = self._settle_unclear(inquiry, event, kind, scope)
            else:
                verdict = self._send(inquiry, event, kind, scope)
        except Untranslatable as error:
            verdict = Verdict("failed", f"cannot be translated: {error}")
        except Unanswered as error:
            verdict = self._judge(event, kind, error.outcome)
            verdict = verdict._replace(may_have_happened=bool(event.may_have_happened))
        return None if verdict is None else Result(tuple(attempts), verdict)

    def _send(self, inquiry: Inquiry, event: Event, kind: Kind, scope: Scope) -> Verdict | None:
        """Sends the request; once more where a token that a look-up brought was refused."""
        careful = kind.when_unclear != "retry"
        if careful and self.breaker.why == "down" and (silent := self._knock(inquiry, scope)):
            return self._judge(event, kind, silent)
        for again in (True, False):
            try:
                request = kind.request.render(scope)
                if careful and not self.events.begin(event, time.time(), self._as_sent(request)):
                    return None
                outcome = self._attempt(inquiry, event, kind, request)
            except Unanswered as error:
                outcome = error.outcome
            if outcome.name != "credential" or not again or not inquiry.forget():
                break
        if outcome.name == "delivered" and kind.verify is not None:
            scope = scope._replace(request_id=outcome.request_id or scope.request_id)
            outcome = self._verified(inquiry, kind.verify, scope, outcome)
        return self._judge(event, kind, outcome)

    def _attempt(self, inquiry: Inquiry, event: Event, kind: Kind, request: Request) -> Outcome:
        """Makes one HTTP request; what it meant, whatever happens after it was sent."""
        began = (time.time(), time.monotonic())
        fresh = kind.when_unclear != "retry"
        answer = inquiry.wire.exchange(request, inquiry.deadline, fresh)
        try:
            outcome = decide(kind, answer, time.time())
        except Exception:
            log.exception("event %d: a fault of this program over the answer", event.event)
            reason = "a fault of this program over the answer (see the log)"
            outcome = Outcome("unclear", reason, may_have_happened=True)
        if outcome.name != "delivered" or kind.verify:  # else nobody reads them as a reason
            outcome = outcome._replace(said=self._masked(own_words(outcome.words)))
        outcome = outcome._replace(words=self._masked(outcome.words))
        inquiry.tell(began, request, answer, outcome, "")
        return outcome

    def _masked(self, words: str) -> str:
        """Words of the ITSM without our secrets, cut to what is kept of them."""
        return self.memory.mask(self.config.mask(words))[:500]

    def _as_sent(self, request: Request) -> str:
        """A request as it is kept with its attempt."""
        return request.as_kept(lambda text: self.memory.mask(self.config.mask(text)))

    def _tell_attempt(
        self,
        attempts: list[Attempt],
        began: tuple[float, float],
        request: Request,
        answer: Answer,
        outcome: Outcome,
        asked: str,
    ) -> None:
        """Makes an attempt of an answer, and counts it."""
        seconds, words = time.monotonic() - began[1], self._masked(outcome.words)
        self.events.since_start.attempt(outcome.name, seconds)
        name, reason = outcome.name, outcome.reason
        sent = self._as_sent(request)
        attempts.append(
            Attempt(began[0], seconds, answer.status, name, reason, words, asked, sent)
        )

    def _verified(
        self, inquiry: Inquiry, lookup: Lookup, scope: Scope, outcome: Outcome
    ) -> Outcome:
        """The outcome of a 2xx, where the ITSM may have done nothing all the same.

        What was opened is named, for `map`: it is there, whatever else was not done.
        """
        opened = bool(outcome.request_id)
        taken = f"{outcome.reason} as {outcome.request_id}" if opened else outcome.reason
        conditions: Sequence[Condition] = ()
        try:
            conditions = lookup.conditions(scope)
            answered, message = inquiry.insist(lookup, scope)
        except Unanswered as error:
            answered, message = error.outcome, Message(None)
        except Untranslatable as error:  # after the request was sent: no fault of it
            answered, message = Outcome("failed", f"look-up {lookup.name}: {error}"), Message(None)
        if answered.name == "credential":  # not to be tried again at the pace of a retry
            self.gate.hear(answered, scope.ticket)
        if answered.name != "delivered":
            reason = f"{taken}, but nobody can say whether it was done: {answered.reason}"
            return outcome._replace(name="unclear", reason=reason, may_have_happened=True)
        for condition in conditions:
            if not condition.holds(message):
                there = ", ".join(as_text(value) for value in message.elements(condition.path))
                where = path_as_text(condition.path)
                words = self._masked(there or "not there")
                return outcome._replace(
                    name="failed",
                    reason=f"{taken}, but it was not done: {where} is",
                    words=words,
                    said="",
                    may_have_happened=opened,
                )
        return outcome

    def _knock(self, inquiry: Inquiry, scope: Scope) -> Outcome | None:
        """Why the ITSM is not there; None where it answers.

        While it is down no create is risked to find out. 501: it knows no GET, but is there.
        """
        request = self.config.knock.render(scope)
        answer = inquiry.wire.exchange(request, inquiry.deadline, fresh=True)
        if answer.status is None:
            return Outcome("later", answer.error)
        if answer.status < 500 or answer.status == 501:
            return None
        reason = f"answered {answer.status} to a GET that asks whether it is there"
        return Outcome("later", f"{reason} (itsm.check_url)")

    def _settle_unclear(self, inquiry: Inquiry, event: Event, kind: Kind, scope: Scope) -> Verdict:
        """An event that may have happened: asks the ITSM (`find`) or a person (`hold`)."""
        if kind.find is None or kind.when_unclear == "hold":
            reason = f"nobody can say whether it was done: {MAY_HAVE}"
            return Verdict("held", reason, may_have_happened=True)
        asked = f"look-up {kind.find.name}"
        try:
            values, _ = inquiry.values(
                kind.find, inquiry.insist(kind.find, scope), scope, strict=True
            )
        except Untranslatable as error:
            reason = f"{asked} cannot be translated: {error}: {MAY_HAVE}"
            return Verdict("held", reason, may_have_happened=True)
        self.gate.hear(Outcome("failed", ""), event.ticket)  # it answers
        if values is None:
            reason = f"{asked} was refused, or its answer leads nowhere: {MAY_HAVE}"
            return Verdict("held", reason, may_have_happened=True)
        ids = list(dict.fromkeys(map(read_id, values)))  # 9 is "9"
        if len(ids) == 1:
            reason = f"{asked}: it had happened"
            return self._delivered(kind, Outcome("delivered", reason, request_id=ids[0]))
        if not ids:
            due = self.events.file.clock()
            return Verdict("pending", f"{asked}: it did not happen", due=due)
        reason = f"{asked}: {len(ids)} requests: {MAY_HAVE}"
        return Verdict("held", reason, may_have_happened=True)

    # ── Delivery · the verdict ─────────────────────────────────────────────────────────────────

    def _delivered(self, kind: Kind, outcome: Outcome) -> Verdict:
        follows = self.config.kinds[kind.then] if kind.then else None
        return Verdict(
            "delivered",
            outcome.reason,
            request_id=outcome.request_id,
            kept=outcome.kept,
            then=kind.then,
            then_waits_for_id=bool(follows and follows.waits_for_id),
        )

    def _judge(self, event: Event, kind: Kind, outcome: Outcome) -> Verdict:
        """What becomes of the event: the breaker, the poison rule and patience have their say."""
        now = self.events.file.clock()
        if kind.elsewhere:  # what another host says tells nothing of the ITSM
            evidence = outcome.name == "credential"
            outcome = outcome._replace(name="later") if evidence else outcome
        else:
            evidence = outcome.name in ("later", "unclear") and self._evidence(event, now)
            if not evidence or self.breaker.why:  # else it speaks of the ticket, not of the ITSM
                self.gate.hear(outcome, event.ticket)
        words = outcome.said or outcome.words
        said = f"{outcome.reason}: {words}" if words else outcome.reason
        if outcome.name == "delivered":
            return self._delivered(kind, outcome)
        if outcome.name == "failed":
            return Verdict("failed", said, may_have_happened=outcome.may_have_happened)
        if outcome.name == "credential":
            return Verdict("pending", said, due=now, tries=event.tries)
        unclear = outcome.name == "unclear"
        if unclear and (kind.when_unclear == "hold" or outcome.request_id):  # it has opened one
            return Verdict("held", f"{said}: {MAY_HAVE}", may_have_happened=True)
        if now - event.born >= self.config.retry.give_up_after:
            reason = f"given up after [retry] give_up_after: {said}"
            return Verdict(
                "failed", reason, may_have_happened=unclear or bool(event.may_have_happened)
            )
        if unclear and kind.when_unclear == "find":
            due = now + kind.find_after
            return Verdict("pending", said, due=due, tries=event.tries, may_have_happened=True)
        if self.breaker.why and not kind.elsewhere:
            return Verdict("pending", said, due=now, tries=event.tries)
        return self._again(event, outcome, said, evidence, now)

    def _evidence(self, event: Event, now: float) -> bool:
        """Whether another ticket went through since this one failed, and not long ago."""
        others = self.breaker.success_of_another(event.ticket)
        return event.first_try is not None and max(event.first_try, now - EVIDENCE) <= others

    def _again(
        self, event: Event, outcome: Outcome, said: str, evidence: bool, now: float
    ) -> Verdict:
        """A later try: sooner or later by chance, or none any more for an event that is poison.

        Only tries count that failed while others went through: before such evidence there is one.
        """
        tries = event.tries + 1 if evidence else max(event.tries, 1)
        if tries >= self.config.retry.tries and evidence:
            return Verdict("failed", f"failed {tries} times while others went through: {said}")
        longest = min(
            self.config.retry.max, self.config.retry.first * 2 ** min(event.attempts, 30)
        )
        due = now + max(outcome.retry_after, longest * self.jitter())
        return Verdict("pending", said, due=due, tries=tries)

    def _log(self, event: Event, result: Result) -> None:
        named, state = (event.event, event.ticket, event.kind), result.verdict.state
        if not result.attempts:
            if state != "pending":
                reason = without_quotes(result.verdict.reason)
                log.warning("event %d ticket %s %s %s: %s", *named, state, reason)
            return
        last = len(result.attempts) - 1
        for position, attempt in enumerate(result.attempts):
            good = attempt.outcome == "delivered"  # the event, or only a question
            said, reason = (
                attempt.outcome if state == "pending" and not good else state,
                attempt.reason,
            )
            if attempt.asked:
                said = "answered" if good else attempt.outcome
                reason = without_quotes(result.verdict.reason) if position == last else reason
            log.log(
                logging.INFO if good else logging.WARNING,
                "event %d ticket %s %s attempt %d: %s (%s) in %.3f s",
                *named,
                event.attempts + 1 + position,
                said,
                reason,
                attempt.duration,
            )

    # ── Delivery · the watch ───────────────────────────────────────────────────────────────────

    def _alert(self) -> None:
        alerts, pause = Alerts(self.config, self.events), 1.0
        while not self._over.wait(pause):
            try:
                pause = 1.0 if alerts.look() else min(2 * pause, 300.0)
            except FileError as error:
                log.error("alerts: %s", error)
            except Exception:
                log.exception("alerts failed; they go on")

    def _watch(self) -> None:
        """Replaces dead workers, keeps house; four rounds a second."""
        turn = 0
        while not self._over.wait(0.25):
            try:
                self.watch(time.monotonic(), turn)
            except FileError as error:
                log.error("%s", error)
            except Exception:
                log.exception("the watch failed; it goes on")
            turn += 1

    def watch(self, now: float, turn: int) -> None:
        """One round; `now` is monotonic."""
        for number, worker in enumerate(self._workers):
            since = worker.since
            if since is not None and now - since > self.config.itsm.timeout + 60:
                self.fatal = "a worker hangs for a minute past its deadline"
            if not worker.is_alive() and not self.gate.stopping.is_set():
                log.critical("a worker died: a new one takes its place")
                self._workers[number] = self._new_worker()
        self.gate.tick()
        self._tell()
        if turn % 4 == 0:
            self.events.last_received()  # the file answers, or the beat stops here
            self.events.pulse.beat = now
            self.events.pulse.beats.append((now, self.events.pulse.delivered))
            self._credential_renewed()
        if turn % 40 == 0:
            self.events.file.keep_reserve()
            self.events.file.keep_clock()
            self._near_end(turn)
        if turn % 8 == 0:
            days = self.config.store.keep_days
            self._retained = self.events.retain(time.time() - days * 86400, self._retained)
            self.events.file.flush()

    def _tell(self) -> None:
        """Tells log and file when the gates closed or opened, or the reason is another."""
        with self._telling:
            why, reason = self.breaker.why, self.breaker.reason
            if (why, reason) != self._told:
                self._tell_itsm(why, reason)
                self._told = (why, reason)

    def _tell_itsm(self, why: str, reason: str) -> None:
        itsm = json.loads(self.events.file.fact("itsm") or "{}")
        if not why:
            log.info("the ITSM answers again")
        elif itsm.get("why") != why:
            what = "refuses our credential" if why == "credential" else "is down"
            log.error("the ITSM %s (%s): everything waits, probes go on", what, reason)
        fact = {"why": why, "reason": reason, "since": itsm.get("since", time.time())}
        self.events.file.keep_facts(itsm=json.dumps(fact) if why else "")

    def _credential_renewed(self) -> None:
        """Probes at once where the ITSM refuses our credential and its file has changed."""
        if self.breaker.why == "credential":
            with contextlib.suppress(OSError, UnicodeError):
                if self.config.credential.refresh():
                    self.gate.probe_now()

    def _near_end(self, turn: int) -> None:
        """Warns of events that will soon be given up, once an hour."""
        if turn % 14400 == 0:
            ending = self.events.near_end(self.config.retry.give_up_after)
            if ending:
                log.warning("%d events will soon be given up: see `status`", len(ending))


# ── Service: put together, beside systemd ──────────────────────────────────────────────────────


# ── Service · logging ──────────────────────────────────────────────────────────────────────────


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
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # what no line shows is not worked out
    logging.raiseExceptions = False  # a full disk under the log file is no reason to fail
    for name in ("urllib3", "waitress", "waitress.queue"):  # urllib3's DEBUG shows whole URLs
        logging.getLogger(name).setLevel(logging.ERROR)


# ── Service · the control file and who asks by it ──────────────────────────────────────────────


def control_path(store_path: str) -> str:
    """Where the running service says how it can be reached."""
    return store_path + ".control"


def write_control(path: str, address: tuple[str, int], key: str) -> None:
    """Writes the control file, 0600, in one step."""
    new = f"{path}.new.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    with os.fdopen(new_file(new), "w", encoding="utf-8") as file:
        json.dump({"host": address[0], "port": address[1], "key": key, "pid": os.getpid()}, file)
    os.replace(new, path)


def _proof_in(response: Any) -> bytes:
    return str(response.headers.get("HD-ITSM-Proof", "")).encode("utf-8", "replace")


class RunningService:
    """The running service as a command reaches it: by what stands in its control file.

    The port may be somebody else's by now. Each side proves that it has the key, which is never
    sent: the service before it learns what is asked, on the connection that is then used; the
    command for its request, the service for its answer.
    """

    PATIENCE = 10.0  # seconds in which it must prove itself
    LONGEST = 600.0  # seconds an operation may take, such as the copy of a large file
    STRANGER = "another program listens there"

    def __init__(self, control: Mapping[str, Any]) -> None:
        host = str(control["host"])
        self.host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.port, self.key = int(control["port"]), str(control["key"])
        self.pid = int(control["pid"])

    def lives(self) -> bool:
        """Whether its process is there, so that it may answer yet."""
        if os.name != "posix" or self.pid == os.getpid():  # elsewhere a signal 0 ends a process
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass  # another user's
        return True

    def ask(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        """The operation's result. Raises Error for its refusal, OSError where it is not there."""
        nonce, body = secrets.token_hex(16), json.dumps(arguments).encode()
        digest = hashlib.sha256(body).hexdigest()
        word = proof(self.key, "command", nonce, operation.name, digest)
        asked = Request("POST", "", {"HD-ITSM-Proof": f"{nonce} {digest} {word}"}, body)
        connection = _HttpConnection(self.host, self.port)
        try:
            self._meet(connection, nonce)
            deadline = time.monotonic() + self.LONGEST
            response = connection.exchange(asked, f"/control/{operation.name}", deadline)
            status, answer = response.status, response.read()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise OSError(_transport_reason(error)) from None
        finally:
            connection.close()
        digest = hashlib.sha256(answer).hexdigest()
        wanted = proof(self.key, "answer", nonce, str(status), digest)
        if not hmac.compare_digest(_proof_in(response), wanted.encode()):
            raise Error(f"what {self.host}:{self.port} answers ({status}) is not of our service")
        content = json.loads(answer)
        if status != 200:
            raise (WrongArgument if status == 400 else Error)(content["error"])
        return content["result"]  # type: ignore[no-any-return]

    def _meet(self, connection: Any, nonce: str) -> None:
        """Raises OSError for anybody but the service, and where the connection does not stay."""
        hello = Request("GET", "", {"HD-ITSM-Nonce": nonce})
        deadline = time.monotonic() + self.PATIENCE
        response = connection.exchange(hello, "/control/hello", deadline)
        whole = len(response.read(1000)) < 1000
        known = hmac.compare_digest(
            _proof_in(response), proof(self.key, "service", nonce).encode()
        )
        if not (whole and known and connection.sock):
            raise OSError(self.STRANGER)


def find_service(store_path: str) -> RunningService | None:
    """The running service of this file, None where none left its control file."""
    path = control_path(store_path)
    try:
        return RunningService(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except PermissionError:
        raise Error(f"{path}: not readable for you: run this as root") from None
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _user() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name
        return f"user {os.getuid()}" if os.name == "posix" else "somebody"


class Operator:
    """Has operations done: by the running service, or on the file itself where none runs."""

    def __init__(self, config: Config, creates: bool = False) -> None:
        self.config, self.creates = config, creates
        self._events: Events | None = None

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._events.file.close()

    def ask(self, name: str, /, **given: Any) -> dict[str, Any]:
        """An operation's result, its first part where there is more. Raises Error."""
        return next(self.parts(name, given))

    def parts(self, name: str, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of an operation's result, each asked for when it is wanted. Raises Error."""
        operation, more = OPERATIONS[name], dict(given)
        if BY in operation.arguments:
            more["by"] = f"{_user()}, by command"
        while True:
            part = self._carry_out(operation, operation.read(more))
            following = part.pop("next", None)
            yield part
            if not following:
                return
            more |= following

    def _carry_out(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        """By the service, else on the file. While a service starts, neither is there at first."""
        deadline = time.monotonic() + File.PATIENCE
        while self._events is None:
            service = find_service(self.config.store.path)
            control = control_path(self.config.store.path)
            trouble = f" (no {control} says how to reach it: restart the service)"
            if service is not None:
                try:
                    return service.ask(operation, arguments)
                except OSError as error:
                    trouble = f" (its service does not answer: {error})"
            late = time.monotonic() > deadline
            if service is not None and service.lives() and not late:
                time.sleep(0.05)  # it reloads or ends: the file is not ours to take
                continue
            try:
                self._events = Events(File(self.config.store.path, self.creates, patience=0.1))
            except FileInUse as error:
                if late:
                    raise FileInUse(f"{error}{trouble}") from None
        return operation.function(self.config, self._events, arguments)


# ── Service · sockets ──────────────────────────────────────────────────────────────────────────


OWN = "http"  # the name of a listening socket that this program made and systemd keeps


def inherited(environ: Environ, address: tuple[str, int]) -> socket.socket | None:
    """The listening socket that systemd or our former self kept for us (sd_listen_fds(3)).

    None where there is none, or only one for another address; that one is closed.
    """
    number = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not re.fullmatch("[0-9]{1,3}", number):
        return None
    ours = None
    for descriptor in range(3, 3 + int(number)):
        try:
            kept = socket.socket(fileno=descriptor)
        except OSError:
            continue  # no socket
        os.set_inheritable(descriptor, False)
        host, port = kept.getsockname()[:2] if kept.family != socket.AF_UNIX else ("", 0)
        fits = address[1] in (0, port) and address[0] in ("localhost", host)
        if ours is None and (fits or environ.get("LISTEN_FDNAMES") != OWN):
            ours = kept  # one that .socket made is as the administrator wants it
        else:
            kept.close()
    return ours


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
        what = error.strerror
        if error.errno == errno.EADDRINUSE:
            what = "another program has this address, if not an hd_itsm with another file"
        raise Error(f"cannot listen on {host}:{port}: {what}; see [server] listen") from None


# ── Service · systemd ──────────────────────────────────────────────────────────────────────────


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


def watchdog(environ: Environ) -> float:
    """Seconds after which systemd gives us up without a sign of life (sd_watchdog_enabled(3)).

    Infinite where it does not watch.
    """
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if re.fullmatch("[0-9]{1,19}", usec) and int(usec) else math.inf


# ── Service · source and bytecode ──────────────────────────────────────────────────────────────


def program() -> list[str]:
    """How this program was started, without its arguments: the interpreter and the file."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


_UNPACK = (  # its first word is for who reads a list of processes
    "'hd_itsm'; import marshal, sys; sys.path[:], sys.argv[:], sys.orig_argv[:], code ="
    " marshal.loads(open({}, 'rb').read()); exec(code)"
)


def leave_source() -> None:
    """Becomes the same program started from bytecode, where it was started as a source file.

    CPython keeps the syntax tree of the file that it was told to run until that ends: 17 MB of
    this one. The bytecode goes from memory to memory: there is no second copy on the disk that
    might be an old one, and the folder may be read-only. The pid stays, and with it what systemd
    bound to it. Returns where there is no syntax tree (installed, in a .pyz, with -m), and where
    it cannot be done.
    """
    outermost = sys._getframe()
    while outermost.f_back is not None:
        outermost = outermost.f_back
    from_file = outermost.f_globals is globals() and "__file__" in globals()  # -c has none
    if not from_file or not hasattr(os, "memfd_create"):
        return
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    with contextlib.suppress(OSError), open(os.memfd_create("hd_itsm", 0), "wb") as memory:
        memory.write(marshal.dumps((sys.path, sys.argv, sys.orig_argv, outermost.f_code)))
        memory.seek(0)
        unpack = _UNPACK.format(memory.fileno())
        os.execv(sys.executable, [sys.executable, *options, "-c", unpack, *sys.argv])


# ── Service · the daemon ───────────────────────────────────────────────────────────────────────


SIGNALS = {
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
}


class Service:
    """The running daemon: file, deliveries and web server put together, and its life in `run`.

    Signals only ask (`stop`, `reload`); the loop acts. What a reload has to wait for, a thread of
    its own waits for, while the loop goes on. Then the loop ends as for a stop, but the process
    becomes the new program.
    """

    def __init__(self, config: Config, environ: Environ, trial: Sequence[str] = ()) -> None:
        self.config, self.environ = config, environ
        self.trial = trial  # the command that tries new configuration and code out
        self.stopping = threading.Event()
        self.asked_to_reload = threading.Event()
        self.reloading = threading.Event()  # all is ready for the new program
        self._preparing = threading.Thread()  # the last reload's; this one was never started
        self.round = min(1.0, watchdog(environ) / 4)  # seconds that a round of the loop may take
        self._kept_house = self._told = 0.0  # when (monotonic)
        self.events = Events(File(config.store.path, create=True))
        try:
            address = config.server.listen
            self.inherited = inherited(environ, address)
            self.listener = self.inherited or listen(address)
            self.listener_name = environ.get("LISTEN_FDNAMES", "") if self.inherited else OWN
            self.address: tuple[str, int] = self.listener.getsockname()[:2]
            key = secrets.token_urlsafe(32)
            self.delivery = Delivery(config, self.events)
            door = Door(config, self.events, self.delivery.wake, key)
            Pages(door)
            self.server = Server(door, self.listener)
            write_control(control_path(self.events.file.path), self.address, key)
        except BaseException:
            self.events.file.close()
            raise

    @property
    def url(self) -> str:
        """Where the hooks are."""
        host, port = self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def stop(self, *signal_and_frame: object) -> None:
        """Asks for the end; safe in a signal handler and from any thread."""
        self.stopping.set()
        self.server.pull_trigger()

    def reload(self, *signal_and_frame: object) -> None:
        """Asks for new configuration and code (SIGHUP); safe in a signal handler."""
        self.asked_to_reload.set()
        self.server.pull_trigger()

    def run(self) -> int:
        """Serves until `stop`; the exit code. Does not return from a reload that works out."""
        self._start()
        while not (self.stopping.is_set() or self.reloading.is_set() or self._trouble()):
            self.server.turn(self.round)
            self._keep_house(time.monotonic())
        return self._end()

    # ── Service · start ────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        self.delivery.start()
        places = (self.url, self._target(), self.config.store.path)
        log.info("listening on %s, delivering to %s, keeping all in %s", *places)
        if not self.inherited:
            notify(self.environ, f"FDSTOREREMOVE=1\nFDNAME={OWN}")  # one for a former address
            notify(self.environ, f"FDSTORE=1\nFDNAME={OWN}", self.listener.fileno())
        notify(self.environ, f"READY=1\nSTATUS=listening on {self.url}")

    def _target(self) -> str:
        parts = urllib.parse.urlsplit(self.config.itsm.url)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "the ITSM"

    # ── Service · the loop ─────────────────────────────────────────────────────────────────────

    def _keep_house(self, now: float) -> None:
        """What is to be done now and then between two rounds."""
        if now - self._kept_house >= self.round:
            self._kept_house = now
            self.server.close_idle(now)
            self._feed(now)
        if now - self._told >= 10.0:
            self._told = now
            notify(self.environ, f"STATUS={self._counts()}")
        if self.asked_to_reload.is_set() and not self._preparing.is_alive():
            self._preparing = threading.Thread(target=self._prepare_reload, daemon=True)
            self._preparing.start()

    def _counts(self) -> str:
        counts = self.events.counts
        waiting = ", ".join(f"{counts[state]} {state}" for state in ("pending", "held", "failed"))
        refused = "; the last reload was refused" if self.events.pulse.reload else ""
        return f"listening on {self.url}; {waiting}{refused}"

    def _feed(self, now: float) -> None:
        """Feeds systemd's watchdog while intake, file and every worker showed life just now.

        Two rounds lie between two feedings at most: half of its patience.
        """
        alive = now - self.events.pulse.beat < 10 and self.server.stuck(now) < 10
        if alive and math.isfinite(watchdog(self.environ)):
            notify(self.environ, "WATCHDOG=1")

    def _trouble(self) -> str:
        """Why the process must end though nobody asked, or ""."""
        now = time.monotonic()
        if now - self.events.pulse.beat > 60:
            return "the watch over the deliveries is dead"
        if self.server.stuck(now) > 60:
            return "every thread of the web server hangs"
        return self.events.file.broken or self.delivery.fatal

    # ── Service · stop ─────────────────────────────────────────────────────────────────────────

    def _end(self) -> int:
        """Finishes the answers and attempts in flight and lets the file go; the exit code."""
        trouble = self._trouble()
        level = logging.CRITICAL if trouble else logging.INFO
        log.log(level, "stopping%s", trouble and f": {trouble}")
        if not self.reloading.is_set():
            notify(self.environ, "STOPPING=1")
        self._finish(self.config.server.stop_after)
        if self.reloading.is_set():
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one more waits for the new start
        anew = self.reloading.is_set() and not self.stopping.is_set() and not trouble
        if not anew:  # else commands wait for the new start, and do not take the file
            with contextlib.suppress(OSError):
                os.unlink(control_path(self.events.file.path))
        self.events.file.close()
        if anew:
            self._start_anew()
        self.listener.close()
        log.info("stopped")
        return 1 if trouble else 0

    def _finish(self, patience: float) -> None:
        """Takes no more connections, and waits so many seconds for what is under way."""
        began = time.monotonic()
        ending = threading.Thread(target=self._end_deliveries, args=(patience,), daemon=True)
        ending.start()
        self.server.stopping, self.server.accepting = True, False
        while not self.server.drain(began, now := time.monotonic()) and now - began < patience:
            self.server.turn(min(0.05, self.round))
            self._feed(now)
        self.server.task_dispatcher.shutdown(timeout=1)
        ending.join(max(0.1, patience + 2 - (time.monotonic() - began)))

    def _end_deliveries(self, patience: float) -> None:
        """Finishes what is in flight; who waits for anything else is answered then."""
        self.delivery.stop(patience)
        self.events.waiters.leave()

    # ── Service · reload ───────────────────────────────────────────────────────────────────────

    def _prepare_reload(self) -> None:
        """Ends the deliveries for a new start, where a trial run says that it will work.

        Webhooks are taken meanwhile, however long an attempt in flight takes to end.
        """
        while self.asked_to_reload.is_set():
            self.asked_to_reload.clear()
            self.events.pulse.reload = problem = self._tried()
        if problem:
            log.error("reload refused, the old configuration goes on: %s", problem)
            return
        log.info("reloading")
        usec = time.monotonic_ns() // 1000
        notify(self.environ, f"RELOADING=1\nMONOTONIC_USEC={usec}")
        self.delivery.stop(self.config.server.stop_after)
        self.reloading.set()
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
        said = (trial.stderr or trial.stdout).strip().removeprefix("hd_itsm: ")
        return "" if trial.returncode == 0 else said

    def _start_anew(self) -> None:
        """Becomes the new program, which finds the listening socket as systemd would hand it."""
        logging.shutdown()
        os.dup2(self.listener.fileno(), 3)
        os.set_inheritable(3, True)
        environ = {**self.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        environ["LISTEN_FDNAMES"] = self.listener_name
        command = [*program(), *sys.argv[1:]]
        try:
            os.execve(command[0], command, environ)
        except OSError as error:
            raise Error(f"cannot start anew: {command[0]}: {error.strerror}") from None


# ── Demo: the life of tickets against a practice ITSM ──────────────────────────────────────────


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
        return self.service.events.counts

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
        again = OPERATIONS["retry"]
        arguments = again.read({"events": [numbers["4184"]]})
        again.function(self.service.config, self.service.events, arguments)
        self.service.delivery.wake()
        self.until(lambda: self.counts()["delivered"] == 7)
        self.say("5. What the ITSM has on record now:")
        for request_id, steps in self.itsm.requests.items():
            self.say(f"   {request_id}: " + "; ".join(steps))
        self.say("Seven webhooks, seven requests; none lost, none doubled.")


# ── Commands: one function per command ─────────────────────────────────────────────────────────


# ── Commands · a command ───────────────────────────────────────────────────────────────────────


OVERRIDES = {  # options of the command line -> the configuration's key they override
    "config": "",
    "listen": "server.listen",
    "db": "store.path",
    "itsm_url": "itsm.url",
}


class Call:
    """A command as it was typed: its arguments, and what it may need to carry them out.

    `options`: what was given of OVERRIDES; `commands`: all that there are.
    """

    def __init__(
        self,
        arguments: Arguments,
        options: Mapping[str, str],
        as_json: bool,
        environ: Environ,
        commands: Mapping[str, Any],  # name -> Command
    ) -> None:
        self.arguments, self.options, self.environ = arguments, options, environ
        self.as_json, self.commands = as_json, commands
        self.say = ENGLISH if as_json else Say(language_of_terminal(environ))

    def config(self, complete: bool = False) -> Config:
        """The configuration; `complete` as for `load_config`. Raises ConfigError."""
        keys = {OVERRIDES[name]: value for name, value in self.options.items() if OVERRIDES[name]}
        path = find_config(self.options.get("config"), self.environ)
        return load_config(path, keys, self.environ, complete)

    def emit(self, result: Any, text: str) -> None:
        """Prints the one for programs or the other for people."""
        print(json.dumps(result, ensure_ascii=False, indent=2) if self.as_json else text)


@dataclass(frozen=True)
class Command:
    """What can be typed. `function` gives the exit code and raises Error."""

    name: str
    help: str
    function: Callable[[Call], int]
    arguments: tuple[Argument, ...] = ()
    one_of: tuple[str, ...] = ()
    prints: bool = True  # data, so that --json means something


def _progress(done: int, whole: int = 0) -> None:
    """How far long work is, on a terminal; `whole` 0: it is over when it ends."""
    if sys.stderr.isatty():
        ends = "\n" if done == whole else ""
        of = f" of {whole}" if whole else ""
        print(f"\r{done}{of}", end=ends, file=sys.stderr, flush=True)


def _print_list(head: Mapping[str, Any], key: str, items: Iterable[Any]) -> None:
    """Prints items as a list in JSON, each as it comes; with a head as the list `key` in that."""
    before = json.dumps(head, ensure_ascii=False)[:-1] + f", {json.dumps(key)}: " if head else ""
    print(before, end="")
    opening = "["
    for item in items:
        print(opening, json.dumps(item, ensure_ascii=False), sep="\n", end="")
        opening = ","
    print("[]" if opening == "[" else "\n]", end="}\n" if head else "\n")


def _joined(parts: Iterable[Mapping[str, Any]], told: bool = True) -> dict[str, Any]:
    """The whole of a result in parts: its lists joined, all else as the last part has it.

    `told`: how far it is, from the second part on.
    """
    whole: dict[str, Any] = {}
    done = number = 0
    for number, part in enumerate(parts):
        for key, value in part.items():
            if isinstance(value, list):
                done += len(value)
                whole.setdefault(key, []).extend(value)
            else:
                whole[key] = value
        if number and told:
            _progress(done)
    if number and told:
        _progress(done, done)
    return whole


def _print_parts(call: Call, operation: Operation, parts: Iterator[dict[str, Any]]) -> None:
    """Prints a result that may be long part by part, so that never all of it is in memory."""
    first, key = next(parts), operation.long
    if key not in first:
        call.emit(first, operation.as_text(first, call.say))
    elif call.as_json:
        rest = (part[key] for part in itertools.chain([first], parts))
        head = {name: value for name, value in first.items() if name != key}
        _print_list(head, key, itertools.chain.from_iterable(rest))
    else:
        for part in itertools.chain([first], parts):
            print(operation.as_text(part, call.say))


def run_operation(operation: Operation, call: Call) -> int:
    """A command that is an operation and nothing else."""
    with Operator(call.config(), operation.creates) as operator:
        language = call.say.language if LANGUAGE in operation.arguments else ""
        given = {**call.arguments, **({"language": language} if language else {})}
        parts = operator.parts(operation.name, given)
        if operation.long:
            _print_parts(call, operation, parts)
            return 0
        result = _joined(parts)
    call.emit(result, operation.as_text(result, call.say))
    return operation.exit_code(result)


# ── Commands · versions ────────────────────────────────────────────────────────────────────────

LAST_FIXES = {"bottle": "0.13.4", "waitress": "3.0.2", "urllib3": "2.8.0"}  # security


def ground() -> str:
    """What it runs on, but for the libraries."""
    python = f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"
    return f"hd_itsm {__version__}, {python}"


def libraries() -> dict[str, str]:
    """The version of each library, "" where it cannot be told."""
    versions = {}
    for name in LAST_FIXES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = getattr(sys.modules[name], "__version__", "")
    return versions


# ── Commands · recipes ─────────────────────────────────────────────────────────────────────────

HALVES = ("helpdesk", "itsm")  # of a configuration, and of the names of its recipes
FILL_IN = "  # FILL IN"
SOME_ITSM = "https://itsm.example.com"  # what its addresses begin with in all recipes
RECIPES_HEAD = """\
# Configuration of hd_itsm, made by `hd-itsm init {}`.
# Yours are the lines marked FILL IN, and the variables named by {{ env = }}. All other keys:
# `hd-itsm help configuration`. Often wanted:
#
# [server]
# listen = "0.0.0.0:8080"                   # for a helpdesk on another machine
#
# [store]
# path = "/var/lib/hd_itsm/hd_itsm.db"      # under systemd
"""


def recipes_folder() -> importlib.resources.abc.Traversable:
    """Where the recipes are: beside the source, or with the installed package or the .pyz.

    Raises Error.
    """
    beside = pathlib.Path(__file__).parent / "tests" / "recipes"
    if any(beside.glob("helpdesk-*.toml")):
        return beside
    try:
        return importlib.resources.files("hd_itsm_recipes")
    except ModuleNotFoundError:
        raise Error(
            "the recipes are not with this one file: they stand in tests/recipes of the source,"
            " and travel with the installed package and with hd_itsm.pyz"
        ) from None


def recipes(half: str) -> dict[str, str]:
    """The recipes of a half, by name. Raises Error."""
    start = f"{half}-"
    files = sorted(recipes_folder().iterdir(), key=lambda file: file.name)
    return {
        file.name.removeprefix(start).removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.startswith(start) and file.name.endswith(".toml")
    }


def title_of(text: str) -> str:
    """What a recipe is for: the beginning of its first line."""
    return text.partition("\n")[0].removeprefix("# ").partition(". Put one")[0]


def recipe(half: str, wanted: str) -> tuple[str, str]:
    """Name and text of the recipe of a half that is called so. Raises WrongArgument.

    A part of its name or of its title will do; of several the shortest name is meant.
    """
    known, word = recipes(half), wanted.lower()
    fitting = [name for name in known if word in name or word in title_of(known[name]).lower()]
    if not word or not fitting:
        what = f"no recipe {wanted!r}{_hint(word, known)}" if word else "is missing"
        raise WrongArgument(f"--{half}: {what}: {', '.join(known)}")
    name = word if word in known else min(fitting, key=len)
    return name, known[name]


def _is_yours(section: str, line: str) -> bool:
    """Whether a line of a recipe holds what only its administrator can know."""
    if line.startswith("#") or " = " not in line:
        return False
    listed = section == "values" or section.startswith("tables.")
    return "example.co" in line or (listed and not re.match(r'"\*"|.*\{ env = ', line))


def joined_recipes(halves: Sequence[tuple[str, str]], itsm_url: str = "") -> tuple[str, list[str]]:
    """Both recipes as one configuration, what is to be filled in marked; its variables.

    `itsm_url`: what all addresses of the ITSM begin with, where that is known.
    """
    options = " ".join(f"--{half} {name}" for half, (name, _) in zip(HALVES, halves, strict=True))
    lines, section = [RECIPES_HEAD.format(options)], ""
    joined = "\n".join(text for _, text in halves)
    for line in joined.replace(SOME_ITSM, itsm_url.rstrip("/") or SOME_ITSM).splitlines():
        section = header[1] if (header := re.match(r"\[([^\]]+)\]", line)) else section
        lines.append(line + FILL_IN if _is_yours(section, line) else line)
    text = "\n".join(lines) + "\n"
    variables = re.findall(r'(?m)^[^#\n]*?\{ env = "([^"]+)" \}', text)
    return text, list(dict.fromkeys(variables))


# ── Commands · serve and init ──────────────────────────────────────────────────────────────────


def command_serve(call: Call) -> int:
    """Runs in the foreground until SIGTERM or SIGINT."""
    config = call.config(complete=True)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # it waits until there is a loop
    leave_source()
    start_logging(config, call.environ)
    try:
        running = find_service(config.store.path)
        options = [f"--{name.replace('_', '-')}={text}" for name, text in call.options.items()]
        trial = [*program(), *options, "check", "--configuration"]
        service = Service(config, call.environ, trial)
    except FileInUse as error:
        who = f" (pid {running.pid})" if running else ""
        raise Error(f"cannot start: {error}{who}") from None
    except Error as error:
        raise Error(f"cannot start: {error}") from None
    for number in SIGNALS:
        reloads = number == getattr(signal, "SIGHUP", None)
        signal.signal(number, service.reload if reloads else service.stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for warning in config.warnings:
        log.warning("%s", warning)
    return service.run()


def _new_configuration(path: str, text: str) -> None:
    """Writes it, for nobody else to read: a token may be written into it. Raises Error."""
    try:
        with os.fdopen(new_file(path), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Error(f"{path} exists: it is left as it is; name another file") from None
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror}") from None


def command_init(call: Call) -> int:
    """Writes the sample configuration, or two recipes joined; never over a file."""
    path, itsm_url = call.arguments["file"], call.options.get("itsm_url", "")
    if itsm_url and not re.fullmatch(r"https?://[^\s/\"\\]+[^\s\"\\]*", itsm_url):
        raise WrongArgument(f"--itsm-url: {itsm_url!r} must be like {SOME_ITSM}")
    if call.arguments["helpdesk"] is None and call.arguments["itsm"] is None:
        sample = sample_config()
        _new_configuration(
            path, sample.replace(f"{SOME_ITSM}/api", itsm_url) if itsm_url else sample
        )
        print(f"wrote {path}: fill in itsm.url and itsm.authorization, then run `check`")
        return 0
    halves = [recipe(half, call.arguments[half] or "") for half in HALVES]
    text, variables = joined_recipes(halves, itsm_url)
    _new_configuration(path, text)
    print(f"wrote {path} of {' and '.join(name for name, _ in halves)}")
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith(FILL_IN):
            print(f"  fill in line {number}: {line.removesuffix(FILL_IN).strip()}")
    for name in variables:
        print(f"  set the variable {name} (under systemd in /etc/hd_itsm.env)")
    print("what to click in the products stands in the file too; then run `check`")
    return 0


# ── Commands · explain ─────────────────────────────────────────────────────────────────────────


def _inquiry(config: Config) -> Inquiry:
    """Asks look-ups outside of a delivery, within 10 s."""
    patience = min(10.0, config.itsm.timeout)
    wire = Wire(config.itsm)
    return Inquiry(wire, Memory(), time.monotonic() + patience, lambda *told: None)


class _Asked:
    """Look-ups on behalf of `explain`: told, and with an inquiry asked indeed."""

    def __init__(self, inquiry: Inquiry | None, values: Mapping[str, Any]) -> None:
        self.inquiry, self.values = inquiry, values  # secrets among them
        self.told: list[str] = []

    def ask(self, lookup: Lookup, scope: Scope) -> Any:
        """The value of a look-up, or what stands for it. Raises Unanswered, Untranslatable."""
        shown = lookup.request.render(scope._replace(ask=not_asked))
        question = f"{lookup.name}: {shown.method} {shown.url}"
        if self.inquiry is None:
            self.told.append(f"{question} (not asked: --ask does)")
            return not_asked(lookup, scope)
        try:
            value = self.inquiry.ask(lookup, scope._replace(values=self.values))
        except (Unanswered, Untranslatable) as error:
            self.told.append(f"{question} -> {error}")
            raise
        self.told.append(f"{question} -> {value if lookup.of_a_value else '***'}")
        return value


def _explain_request(
    config: Config, reading: Reading, explained: dict[str, Any], inquiry: Inquiry | None
) -> str:
    """Adds the request that would be sent; what stands against it, or ""."""
    kind = config.kinds[reading.kind]
    request_id, kept = None, None
    if kind.waits_for_id:
        with contextlib.suppress(Error), Operator(config) as operator:
            mapping = operator.ask("show", ticket=reading.ticket)["mapping"]
            request_id, kept = (
                (mapping["request_id"], mapping["kept"]) if mapping else (None, None)
            )
        if request_id is None:
            request_id = kind.unknown_id
            explained["note"] = (
                f"{request_id} stands for the id that the ITSM will have given the ticket"
            )
    key = "a UUID kept with the event"
    given = (reading.fields, 0, reading.ticket, time.time(), request_id, key)
    asked = _Asked(inquiry, config.scope(*given).values)
    scope = config.scope(*given, masked=True, kept=kept)._replace(ask=asked.ask)
    problem, rendered = "", dict[str, Any]()
    try:
        rendered = kind.request.render(scope).as_json()
    except (Untranslatable, Unanswered) as error:
        problem = f"cannot be translated: {error}"
    if asked.told:
        explained["look-ups"] = list(dict.fromkeys(asked.told))
    explained |= rendered
    explained["result"] = "would be sent"
    return problem


def explained_as_text(explained: Mapping[str, Any]) -> str:
    """What became of a webhook, a line for each thing."""
    lines = []
    for name, value in explained.items():
        if name in ("fields", "headers"):
            lines += [f"{name}:"] + [f"  {key}: {one_line(of)}" for key, of in value.items()]
        elif name == "look-ups":
            lines += ["look-ups:", *(f"  {one_line(told)}" for told in value)]
        elif name == "body":
            lines += ["body:", value]
        else:
            lines.append(f"{name}: {one_line(value) or '-'}")
    return "\n".join(lines)


def _webhook_in(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise WrongArgument(f"{path}: cannot be read: {error.strerror}") from None


def _explain_webhook(
    config: Config, hook: Hook, reading: Reading, inquiry: Inquiry | None
) -> dict[str, Any]:
    """What one webhook would become; look-ups are asked by an inquiry alone."""
    explained: dict[str, Any] = {"hook": hook.name, "repaired": reading.repaired}
    if hook.rules:
        explained["rule"] = reading.rule or None
    explained |= {"kind": reading.kind or None, "ticket": reading.ticket, "fields": reading.fields}
    if reading.stamp is not None:
        explained["order"] = reading.stamp
    problem = reading.problem
    if not problem and not reading.kind:
        explained["result"] = "ignored (200): no rule of the hook matches"
    elif not problem:
        problem = _explain_request(config, reading, explained, inquiry)
    if problem:
        explained["result"] = f"failed (400): {problem}"
    return explained


def command_explain(call: Call) -> int:
    """Shows what a webhook would become: repairs, rule, fields and the exact request."""
    config = call.config(complete=True)
    name = call.arguments["hook"].strip("/")
    hook = config.hooks.get(name) or next(
        (hook for hook in config.hooks.values() if hook.path.strip("/") == name), None
    )
    if hook is None:
        hooks = ", ".join(config.hooks)
        raise WrongArgument(f"no hook {name!r}{_hint(name, config.hooks)}: {hooks}")
    raw = _webhook_in(call.arguments["body"])
    pairs = [header.partition(":") for header in call.arguments["header"]]
    headers = {key.strip().lower(): value.strip() for key, _, value in pairs}
    if text := read_challenge(hook, raw, headers):
        call.emit({"hook": hook.name, "challenge": text}, f"a challenge: the answer is {text!r}")
        return 0
    _, readings = read_webhooks(hook, raw, headers, config.clock.zone)
    inquiry = _inquiry(config) if call.arguments["ask"] else None
    all_of_them = [_explain_webhook(config, hook, reading, inquiry) for reading in readings]
    text = "\n\n".join(map(explained_as_text, all_of_them))
    result = all_of_them[0] if len(all_of_them) == 1 else {"webhooks": all_of_them}
    call.emit(result, text)
    return int(any(each["result"].startswith("failed") for each in all_of_them))


# ── Commands · what needs a file of the caller ─────────────────────────────────────────────────


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
        raise WrongArgument(f"{path}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise WrongArgument(f"{path}: is no CSV in UTF-8: {error}") from None


def _in_slices(
    operator: Operator, name: str, key: str, rows: Sequence[Any], size: int
) -> Iterator[dict[str, Any]]:
    """The operation's results for so many rows at a time; with no rows there are none."""
    for start in range(0, len(rows), size):
        yield operator.ask(name, **{key: rows[start : start + size]})
        if len(rows) > size:
            _progress(min(start + size, len(rows)), len(rows))


def command_import(call: Call) -> int:
    """Reads mappings from a CSV file; a bad line refuses the whole file."""
    config, path = call.config(), call.arguments["file"]
    rows, problems, now = [], [], time.time()
    for number, row in _rows_of(path, ("ticket_id", "request_id", "timestamp", "keep")):
        try:
            since = row.get("timestamp")
            moment = parse_date(since, config.clock.zone).timestamp() if since else now
            ids = [id_of(row.get(name, "")) for name in ("ticket_id", "request_id")]
            rows.append([*ids, moment, read_kept(row.get("keep") or "{}")])
        except ValueError as error:
            problems.append(f"{path} line {number}: {error}")
    if problems:
        raise WrongArgument("\n".join(problems[:20]) + "\nnothing was imported")
    with Operator(config, OPERATIONS["import"].creates) as operator:
        for _ in _in_slices(operator, "import", "rows", rows, 1000):
            pass
    result = {"imported": len(rows)}
    call.emit(result, imported_as_text(result))
    return 0


def command_export(call: Call) -> int:
    """Prints all mappings as CSV (or JSON)."""
    config = call.config()
    keep = ",keep" if any(kind.keep for kind in config.kinds.values()) else ""
    header = f"ticket_id,request_id,timestamp{keep}\n"
    with Operator(config) as operator:
        parts = operator.parts("export", {})
        if call.as_json:
            _print_list({}, "", itertools.chain.from_iterable(p["mappings"] for p in parts))
            return 0
        for number, part in enumerate(parts):
            print(header if not number else "", end="")
            print(mappings_as_text(part), end="")
    return 0


def command_reconcile(call: Call) -> int:
    """Compares the helpdesk's list of tickets with what is known here; exit 1 for any gap."""
    path, rows = call.arguments["file"], []
    for number, row in _rows_of(path, ("ticket_id", "state")):
        try:
            rows.append([id_of(row.get("ticket_id")), row.get("state") or ""])
        except ValueError as error:
            raise WrongArgument(f"{path} line {number}: {error}") from None
    with Operator(call.config()) as operator:
        parts = _in_slices(operator, "reconcile", "tickets", rows, 500)
        result = _joined(parts, told=False)  # it tells it itself
    result = {name: [] for name in GAPS} | result | {"checked": len(rows)}
    call.emit(result, gaps_as_text(result))
    return OPERATIONS["reconcile"].exit_code(result)


def _open_copy(copy: str, store: str) -> int:
    """A descriptor of the copy that was made beside the file. Raises OSError, Error.

    Whoever runs the service may write there, and the command may be root's: what belongs to
    anybody else than the file itself or (where no service runs) us, a link or another name of
    something is not touched.
    """
    careful = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    handle = os.open(copy, os.O_RDONLY | careful)
    made = os.fstat(handle)
    owners = (os.stat(store).st_uid, os.geteuid() if os.name == "posix" else 0)
    if not stat.S_ISREG(made.st_mode) or made.st_nlink != 1 or made.st_uid not in owners:
        os.close(handle)
        raise Error(f"{copy} is not the copy that was asked for: it is left as it is")
    return handle


def _keep_copy(copy: int, target: str) -> None:
    """Brings a copy of the file to where it is wanted, in one step, over an older one."""
    handle, new = tempfile.mkstemp(prefix=".hd_itsm-", dir=os.path.dirname(target))  # 0600
    try:
        with os.fdopen(handle, "wb") as file, os.fdopen(os.dup(copy), "rb") as made:
            shutil.copyfileobj(made, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def command_backup(call: Call) -> int:
    """Copies the file, consistently, while the service runs or not; replaces an older copy."""
    config = call.config()
    target, store = os.path.abspath(call.arguments["file"]), os.path.abspath(config.store.path)
    if target in (store, f"{store}-wal", control_path(store)) or os.path.isdir(target):
        raise WrongArgument(f"{target}: name another file for the copy")
    name = secrets.token_hex(8)
    with Operator(config) as operator:
        result = {**operator.ask("backup", name=name), "file": target}
    copy = copy_path(store, name)
    try:
        handle = _open_copy(copy, store)
    except OSError as error:
        raise Error(f"{copy}: no copy was made: {error.strerror}") from None
    try:
        _keep_copy(handle, target)
    except OSError as error:
        raise Error(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(copy)
    call.emit(result, OPERATIONS["backup"].as_text(result, call.say))
    return 0


# ── Commands · demo ────────────────────────────────────────────────────────────────────────────


def command_demo(call: Call) -> int:
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


# ── Check: is everything right? ────────────────────────────────────────────────────────────────


# ── Check · our ground ─────────────────────────────────────────────────────────────────────────

Finding = tuple[str, str, str]


def _existing(path: str) -> str:
    """The path, or the nearest one above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _runs(config: Config) -> bool:
    """Whether a service runs on the file. Raises Error where that is no file of ours."""
    if not os.path.exists(config.store.path):
        return False
    with Operator(config) as operator:
        return bool(operator.ask("status")["running"])


def _check_store(config: Config) -> Finding:
    path = config.store.path
    if os.path.exists(path):
        try:
            running = _runs(config)
        except Error as error:
            return "wrong", "file", str(error)
        return "ok", "file", path + (", held by the running service" if running else "")
    folder = _existing(os.path.dirname(os.path.abspath(path)))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        return "wrong", "file", f"store.path: {folder} is not writable for this user"
    return "ok", "file", f"{path} will be made by the first start"


def _check_address(config: Config) -> Finding:
    host, port = config.server.listen
    try:
        if not _runs(config):
            listen((host, port)).close()
    except Error as error:
        words = f"{error}; `ss -ltnp` names it (systemd, where it keeps it for the next start)"
        return "wrong", "address", words
    return "ok", "address", f"{host}:{port}"


def _check_disk(config: Config) -> Finding:
    folder = _existing(os.path.dirname(os.path.abspath(config.store.path)))
    free = shutil.disk_usage(folder).free
    word = "ok" if free > 100 << 20 else "wrong"
    return (
        word,
        "disk",
        f"{free >> 20} MiB free in {folder}" + ("" if word == "ok" else ": make room"),
    )


def _check_modes(config: Config) -> list[Finding]:
    """Whether others may read or write what holds secrets or ticket texts."""
    store = os.path.abspath(config.store.path)
    paths = dict.fromkeys((store, f"{store}-wal", control_path(store)), "file")
    for secret in config.secrets:
        if secret.source in ("file", "credential"):
            paths[os.path.abspath(secret.name)] = "secret"
        elif secret.source == "text" and secret and config.source:
            paths[os.path.abspath(config.source)] = "secret"
    findings: list[Finding] = []
    for path, what in paths.items():
        with contextlib.suppress(OSError):
            mode = os.stat(path).st_mode if os.name == "posix" else 0
            may = ["read"] * bool(mode & 0o004) + ["write"] * bool(mode & 0o022)
            if may:
                words = f"{path}: others may {' and '.join(may)} it: `chmod go-w,o-r {path}`"
                findings.append(("wrong" if "write" in may else "look", what, words))
    return findings or [("ok", "secret", "nobody else may read or write what is to be kept")]


def _check_zone(config: Config) -> Finding:
    now = config.clock.local(time.time())
    return "ok", "zone", f"now is {now.isoformat(timespec='seconds')}; is that your clock?"


def _check_versions() -> list[Finding]:
    """Our ground: Python, SQLite and the three libraries with their last security fixes."""
    findings: list[Finding] = [("ok", "version", ground())]
    for name, version in libraries().items():
        numbers = [
            tuple(map(int, re.findall(r"[0-9]+", each)[:3]))
            for each in (version, LAST_FIXES[name])
        ]
        if not version or numbers[0] >= numbers[1]:
            findings.append(("ok", "version", f"{name} {version or 'of unknown version'}"))
        else:
            words = f"{name} {version} is older than its last security fix {LAST_FIXES[name]}:"
            words += " upgrade it, or see that your distribution mended it"
            findings.append(("look", "version", words))
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
        days += ": itsm.ca_file (PEM) must hold its authority"
    elif left < 30 * 86400:
        word, days = "wrong" if left <= 0 else "look", days + ": have it renewed"
    return [(word, "certificate", f"issued by {issuer or 'nobody known'}, {days}")]


SUSPICIOUS = {  # a status in answer to a GET -> what it may mean; of others their first digit
    3: "it leads elsewhere, and a delivery follows nowhere: put the right address into itsm.url",
    403: "the credential may lack rights, or this address may not call: ask its administrator",
    404: "the address may be wrong; or it knows no GET there: then name itsm.check_url",
    429: "it has enough of us for now, or of whoever shares our address or credential",
    5: "it has a trouble of its own, or a proxy before it: deliveries wait until it is over",
}


NONSENSE = "hd-itsm-check-0"  # a ticket that no ITSM knows


def _check_lookup(config: Config, lookup: Lookup) -> Finding:
    """A token is asked for; a question is put with a nonsense id, which must find nothing."""
    names = {part.name for part in lookup.placeholders}
    inquiry = _inquiry(config)
    fields = dict.fromkeys(names - {*COMPUTED, *config.values, *config.lookups}, NONSENSE)
    scope = config.scope(fields, 0, NONSENSE, time.time(), NONSENSE)._replace(ask=inquiry.ask)
    token = lookup.is_login(scope)
    if not token and lookup.request.method != "GET":
        return "ok", "look-up", f"{lookup.name} is not tried: it is a {lookup.request.method}"
    strict = any(kind.find is lookup for kind in config.kinds.values())
    try:
        if token:
            left = inquiry.memory.left(inquiry.ask(lookup, scope))
            until = config.clock.local(time.time() + left).strftime("%H:%M")
            good = f"good until {until}" if left else "asked for each request anew (keep_for)"
            return "ok", "look-up", f"{lookup.name} brought a value, {good}"
        values, _ = inquiry.values(lookup, inquiry.insist(lookup, scope), scope, strict)
    except Unanswered as error:
        return "wrong", "look-up", str(error)
    except Untranslatable as error:
        return ("wrong" if token else "look"), "look-up", f"{lookup.name}: {error}"
    if values is None:
        words = "is answered, but `value` leads nowhere in that answer for an unknown id"
        return "look", "look-up", f"{lookup.name} {words}: see that it is a list that may be empty"
    if values:
        words = f"finds {one_line(values[0])[:40]} for an id that nobody has"
        return "wrong", "look-up", f"{lookup.name} {words}: say in its `when` what a hit must hold"
    return "ok", "look-up", f"{lookup.name} finds nothing for an id that nobody has"


def _check_itsm(config: Config) -> list[Finding]:
    """Name, connection, TLS and any HTTP answer to a GET; what its clock says."""
    inquiry = _inquiry(config)
    scope = config.scope({}, 0, "", time.time(), None)._replace(ask=inquiry.ask)
    try:
        request = config.knock.render(scope)
    except (Unanswered, Untranslatable) as error:
        return [("wrong", "ITSM", f"it is not asked: {error}")]
    url = request.url
    answer = inquiry.wire.exchange(request, inquiry.deadline)
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
    meaning = SUSPICIOUS.get(answer.status) or SUSPICIOUS.get(answer.status // 100)
    findings.append(("look", "ITSM", f"{words}: {meaning}") if meaning else ("ok", "ITSM", words))
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


# ── Check · a test ticket ──────────────────────────────────────────────────────────────────────

TEST_FIELDS = {
    "subject": "hd_itsm test, please close",
    "contents": "A test of hd_itsm by `hd-itsm check --send`. Please close it.",
}


def _with(body: Any, path: Path, value: Any) -> Any:
    """`body` with a value where a path leads, and with what the path chooses by."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if step.does == "key" and not _many(step):
        members = dict(body) if isinstance(body, dict) else {}
        return {**members, step.name: _with(members.get(step.name), rest, value)}
    elements, place, first = list(body) if isinstance(body, list) else [], 0, dict[str, Any]()
    if step.does == "where":
        first = {step.name: step.value}
        fitting = (n for n, each in enumerate(elements) if each.get(step.name) == step.value)
        place = next(fitting, len(elements))
    elements += [first] if place == len(elements) else []
    elements[place] = _with(elements[place], rest, value)
    return elements


def _meets(wanted: Any) -> str:
    """A text that may be what a condition wants; whether it is, reading it tells."""
    if isinstance(wanted, re.Pattern):
        plain = re.sub(r"\(\?[a-z]+\)|\\s[*+]|[\^$*+?]", "", wanted.pattern)
        return plain.replace("[.]", ".").replace("\\.", ".")
    return wanted if isinstance(wanted, str) else "test"


def _made_up(hook: Hook, rule: Rule, names: Collection[str]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a webhook with these fields, such as a hook and its rule want it."""
    now = time.time()
    values = TEST_FIELDS | {"ticket_id": f"hd-itsm-test-{int(now)}", "date": str(int(now))}
    places = [
        (of.paths[0], values.get(name, "test"))
        for name, of in hook.fields.items()
        if of.paths and (name in names or name == "ticket_id")
    ]
    filled = [path for path, _ in places]
    for condition in rule.when:
        if condition.wanted[0] is not None or condition.path not in filled:
            places.append((condition.path, _meets(condition.wanted[0])))
    body, headers = dict[str, Any](), dict[str, str]()
    for path, value in places:
        if path[0].does == "header":
            headers[path[0].name] = value
        elif path[0].does != "body":
            body = _with(body, path, value)
    whole = body if hook.each is None else _with({} if hook.each else None, hook.each, [body])
    return COMPACT.encode(whole).encode(), headers


def trial_webhook(config: Config, given: str) -> tuple[Hook, bytes, dict[str, str]]:
    """A webhook that opens a request: hook, body, headers; made up, or of the file `given`."""
    yours_first = sorted(config.hooks.values(), key=lambda hook: hook.name in HOOKS)
    for hook in yours_first:
        for rule in hook.rules:
            if not config.kinds[rule.result].opens:
                continue
            raw, headers = _made_up(hook, rule, config.kinds[rule.result].names)
            raw = raw if given == "-" else _webhook_in(given)
            _, readings = read_webhooks(hook, raw, headers)
            kind = config.kinds.get(readings[0].kind)
            if kind and kind.opens and not readings[0].problem:
                return hook, raw, headers
    if given == "-":
        words = "none can be made up for your hooks; name a file with one of your helpdesk's"
        raise WrongArgument(f"--send: {words}")
    raise WrongArgument(f"--send: no hook makes {given} a ticket to open: `explain` says why")


@contextlib.contextmanager
def _way(config: Config, running: bool) -> Iterator[Callable[..., dict[str, Any]]]:
    """Has operations done by the running service; else by deliveries of a file of their own.

    What else waits in the file of a service that does not run is not to be delivered by this.
    """
    if running:
        with Operator(config) as operator:
            yield operator.ask
        return
    logging.basicConfig(level=logging.CRITICAL, force=True)
    with tempfile.TemporaryDirectory(prefix="hd_itsm-check-") as folder:
        store = replace(config.store, path=os.path.join(folder, "check.db"))
        alone = replace(config, store=store, alert=AlertOptions())
        events = Events(File(store.path, create=True))
        delivery = Delivery(alone, events)
        delivery.start()

        def ask(name: str, /, **given: Any) -> dict[str, Any]:
            result = OPERATIONS[name].function(alone, events, OPERATIONS[name].read(given))
            delivery.wake()
            return result

        try:
            yield ask
        finally:
            delivery.stop(config.server.stop_after)
            events.file.close()


def _said_of(event: Mapping[str, Any], waits: str) -> str:
    """What became of an event, in the ITSM's words where it has any."""
    attempt = event["attempts"][-1] if event["attempts"] else {"answer": "", "reason": waits}
    words = [event["reason"] or attempt["reason"], attempt["answer"] or ""]
    return ": ".join(one_line(each)[:300] for each in words if each)


def _check_sending(config: Config, given: str, running: bool) -> Finding:
    """Sends a test ticket the whole way, and says what came back and what to do with it."""
    hook, raw, headers = trial_webhook(config, given)
    began = time.monotonic()
    with _way(config, running) as ask:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        number = ask("send", hook=hook.name, body=raw.decode(), headers=lines)["event"]
        event = ask("show", event=number)
        while event["state"] == "pending" and time.monotonic() - began < config.itsm.timeout + 5:
            time.sleep(0.05)
            event = ask("show", event=number)
        status = ask("status")
    name = f"event {number}, ticket {event['ticket']}, by {hook.path}"
    if event["state"] == "delivered":
        took, here = (
            time.monotonic() - began,
            "; `forget` removes its texts here" if running else "",
        )
        words = f"delivered in {took:.1f} s; close request {event['request_id']} in the ITSM{here}"
        return "ok", "send", f"{name}: {words}"
    waits = "deliveries are paused: `resume`" if status["paused"] else status["itsm"]["reason"]
    then = "; then `retry` or `drop` that event" if running else ""
    return "wrong", "send", f"{name}: {event['state']}: {_said_of(event, waits)}{then}"


# ── Check · the command ────────────────────────────────────────────────────────────────────────


def command_check(call: Call) -> int:
    """Looks at everything that must be right before `serve` can work; sends no ticket."""
    config, address = call.config(complete=True), call.arguments["configuration"]
    findings: list[Finding] = [("ok", "configuration", config.source or "defaults")]
    if address is not None:
        if address != "-":
            _check_places(config, address)
        call.emit([], "the configuration is sound")
        return 0
    findings += [("look", "configuration", warning) for warning in config.warnings]
    findings += _check_versions()
    findings.append(store := _check_store(config))
    findings += [_check_address(config)] if store[0] == "ok" else []
    findings += [_check_disk(config), _check_log(config)]
    findings += [*_check_modes(config), _check_zone(config)]
    findings += _check_itsm(config)
    findings += [_check_lookup(config, lookup) for lookup in config.lookups.values()]
    findings += _check_fields(config)
    findings += _check_reach(config)
    if (body := call.arguments["send"]) is not None:
        if any(word == "wrong" for word, _, _ in findings):
            findings.append(("wrong", "send", "nothing was sent: mend what is wrong first"))
        else:
            findings.append(_check_sending(config, body, _runs(config)))
    rows = [{"result": word, "what": what, "found": found} for word, what, found in findings]
    said = [{call.say(key): call.say.known(row[key]) for key in row} for row in rows]
    call.emit(rows, as_table(said, [call.say(key) for key in ("result", "what", "found")]))
    return 1 if any(word == "wrong" for word, _, _ in findings) else 0


# ── Help: what is for looking up, from the tables that the program itself works by ─────────────


# ── Help · rows made from tables ───────────────────────────────────────────────────────────────

Commands = Mapping[str, Command]


def _options_of(name: str, table: type) -> str:
    """The keys of a table of options."""
    rows = [
        {
            "key": f"{name}.{key}",
            "default": as_toml(option.default) if option.default is not None else "none",
            "meaning": option.sentence,
        }
        for key, option in options_of(table).items()
    ]
    return f"{table.__doc__}\n\n{as_table(rows, ('key', 'default', 'meaning'))}\n"


def _sections(commands: Commands) -> str:
    return "\n".join(_options_of(name, table) for name, table in SECTIONS.items())


NAMED_TABLES: Mapping[str, type[Any]] = {
    "access.hmac": Signature,
    "hooks.NAME": HookOptions,
    "kinds.NAME": KindOptions,
    "lookups.NAME": LookupOptions,
}


def _named_tables(commands: Commands) -> str:
    return "\n".join(_options_of(name, table) for name, table in NAMED_TABLES.items())


def _built_in(commands: Commands) -> str:
    hooks = (f"POST /{name} -> {hook['kind']}" for name, hook in HOOKS.items())
    return f"Built in: {', '.join(hooks)}.\n"


EXAMPLE = Scope(
    fields={
        "subject": "Printer 🖨\nis <slow>",
        "contents": "<p>one</p><p>two</p>",
        "technician": "홍길동",
        "count": "5",
        "category": "",
        "date": "2026-11-23 오후 3:05:09",
    },
    values={},
    tables={"users": {"홍길동": "gdhong", "*": "{}"}},
    clock=Clock(timezone(timedelta(hours=9))),
    event=17,
    ticket="4182",
    received=1795586400.0,  # 2026-11-25 13:00 in that zone
    request_id="R-1",
    idempotency_key="5b0e7f0a-...",
)

COMPUTED_WORDS = {
    "request_id": "the ITSM's id of the ticket",
    "ticket_id": "the helpdesk's",
    "event": "its number",
    "received": "when the webhook came",
    "today": "that day",
    "expected_date": "that day and time.due_days",
    "hours": "whole hours from the field `date` to the receipt, never below 0",
    "minutes": "whole minutes of it",
    "idempotency_key": "a UUID kept with the event",
}

FILTERED = (  # a placeholder that shows a filter, what the filter does
    ("{technician|users}", "what the table [tables.users] says"),
    ("{hours|text}", "text instead of a number"),
    ("{count|number}", "a number instead of text"),
    ("{contents|html}", "HTML as plain text, its lines kept"),
    ("{subject|max:7}", "at most so many characters"),
    ("{technician|bytes:7}", "at most so many bytes of UTF-8, no character cut in two"),
    ("{date|date:%Y%m%d %H:%M}", "a date in this format, in time.zone"),
    ("{date|utc|date:%FT%TZ}", "the same moment in UTC"),
    ("{date|epoch}", "seconds since 1970"),
    ("{date|epoch_ms}", "milliseconds since 1970"),
    ("{subject|line}", "one line"),
    ("{subject|bmp}", "without emoji and what else lies beyond 16 bits"),
    ("{subject|xml}", "escaped for XML"),
    ("{subject|to_html}", "text with its line breaks as HTML"),
    ("{category|or:etc}", "this where it is missing, null or empty"),
    ("{category|or_null}", "null then"),
    ("{category|or_omit}", "the key, header or element is left out then"),
)


def _value(placeholder: str) -> str:
    value = parse_template(placeholder).render(EXAMPLE)
    return "(left out)" if value is OMIT else json.dumps(value, ensure_ascii=False)


def _placeholders(commands: Commands) -> str:
    rows = [
        {"placeholder": f"{{{name}}}", "like": _value(f"{{{name}}}"), "is": words}
        for name, words in COMPUTED_WORDS.items()
    ]
    return as_table(rows, ("placeholder", "like", "is")) + "\n"


def _filters(commands: Commands) -> str:
    rows = [{"like": like, "gives": _value(like), "is": words} for like, words in FILTERED]
    return as_table(rows, ("like", "gives", "is")) + "\n"


PATHS = (
    ("item.name", "key `name` in key `item`"),
    ("notes.0.text", "the first element of a list; -1 is the last"),
    ("item.team[role=assigned].name", "the element whose `role` is `assigned`"),
    ("custom.*.value", "any element, or any value of an object; of a field the first present one"),
    ("*", "any element of a list at the root"),
    ('"my.key"', "a key with a dot in it"),
    ("@header:NAME", "a header; of `Location` its last part"),
    ("@query:NAME", "a field of the query"),
    ("@body", "the whole of an answer: its text where it is no JSON"),
)


def _paths(commands: Commands) -> str:
    rows = [{"path": path, "means": words} for path, words in PATHS]
    return as_table(rows, ("path", "means")) + "\n"


def _answers_to_the_helpdesk(commands: Commands) -> str:
    rows = [{"answer": status, "when": words} for status, words in ANSWERED.items()]
    return as_table(rows, ("answer", "when")) + "\n"


def _statuses(commands: Commands) -> str:
    rows = [
        {
            "status": f"{first}" if first == last else f"{first} to {last}",
            "outcome": outcome,
            "may have happened": "yes" if happened and outcome != "delivered" else "",
        }
        for first, last, outcome, happened in ANSWERS
    ]
    rows.append({"status": "any other", "outcome": UNHEARD_OF[0], "may have happened": "yes"})
    return as_table(rows, ("status", "outcome", "may have happened")) + "\n"


JSON_HEAD = {"content-type": "application/json"}
ANSWER_CASES = (  # an answer, to a kind that opens or one that does not
    ("no answer, though the request was sent", True, Answer(None, error="timed out")),
    ("no connection", True, Answer(None, error="connection refused", sent=False)),
    (
        "2xx with a request id, to a kind that opens",
        True,
        Answer(200, JSON_HEAD, b'{"result": {"request_id": "R-1"}}'),
    ),
    ("2xx, JSON without a request id, to such a kind", True, Answer(200, JSON_HEAD, b"{}")),
    ("2xx, empty or plain text, to such a kind", True, Answer(200, {}, b"")),
    ("2xx, empty or plain text, to another kind", False, Answer(204, {}, b"")),
    ("2xx, HTML", True, Answer(200, {"content-type": "text/html"}, b"<html>")),
    ("2xx, no JSON, and no length that proves it whole", True, Answer(200, {}, b"", framed=False)),
    ("2xx, cut", True, Answer(200, JSON_HEAD, b'{"res', error="the answer was cut")),
)


def _cases(commands: Commands) -> str:
    kinds = load_config("", {}, {}, complete=False).kinds
    rows = []
    for words, opens, answer in ANSWER_CASES:
        outcome = decide(kinds["new" if opens else "assign"], answer, 0.0)
        rows.append({"answer": words, "outcome": outcome.name, "reason": outcome.reason})
    return as_table(rows, ("answer", "outcome", "reason")) + "\n"


def _recipes(commands: Commands) -> str:
    rows = [
        {"option": f"--{half} {name}", "for": title_of(text)}
        for half in HALVES
        for name, text in recipes(half).items()
    ]
    return as_table(rows, ("option", "for")) + "\n"


def _metrics(commands: Commands) -> str:
    rows = [
        {"metric": f"hd_itsm_{name}{f'{{{label}=}}' if label else ''}", "type": kind, "is": words}
        for name, kind, words, label in METRICS
    ]
    return as_table(rows, ("metric", "type", "is")) + "\n"


def usage(command: Command) -> str:
    """How a command is typed."""
    words = [command.name]
    for argument in filter(lambda each: each.help, command.arguments):
        word = argument.shown
        if argument.name.startswith("--") and argument.read is not read_flag:
            value = argument.metavar or argument.key.upper()
            word = f"{word} {value}" if argument.empty is None else f"{word} [{value}]"
        word += "..." if argument.many else ""
        words.append(word if argument.required else f"[{word}]")
    return " ".join([*words, "[--json]"] if command.prints else words)


def _commands(commands: Commands) -> str:
    lines = []
    for command in commands.values():
        lines += [usage(command), f"    {command.help}"]
        for argument in filter(lambda each: each.help, command.arguments):
            lines.append(f"    {argument.shown}: {argument.help}")
    return "\n".join(lines) + "\n"


# ── Help · what no table says ──────────────────────────────────────────────────────────────────

CONFIGURATION = """\
TOML. It is looked for at --config, $HD_ITSM_CONFIG, ./hd_itsm.toml, /etc/hd_itsm.toml, in this
order; --listen, --db and --itsm-url win over it. `init` writes a commented sample. Everything
has a default except itsm.url. A hook, kind or table that the file names replaces the built-in
one of that name whole (a [kinds.new] without `opens = true` opens nothing; `check` warns); all
else is merged key by key. Durations are seconds, or "90s", "15m", "12h", "7d". A secret is a
text, { file = "PATH" } (read again when it changes), { env = "NAME" }, or for systemd
{ credential = "NAME" }. A configuration that another user than you or root owns, or that others
may write, is not believed.
"""

SIGNATURES = """\
What means nothing together is an error. [hooks.NAME.access] has the keys of [access] and takes
its place.
"""

CONSTANTS = """\
[values] holds constants for templates ({item_id}), secrets included. [tables.users] is a filter
({technician|users}); its row "*" = "{}" serves what is not listed ({} is the value itself), and
without that row what is not listed fails, with the name in the reason. Numbers, true and false
keep their type. itsm.authorization, and headers of [itsm] that are secrets or have placeholders,
go to the host of itsm.url and to no other, and itsm.answers say what its answers mean: a kind or
look-up elsewhere names its own.

An example: one address, rules that choose the kind, the ticket in the URL, a second step.

[hooks.desk]
path = "/hook/desk"
fields = { ticket_id = "item.id", subject = ["item.title", "item.name"], contents = "item.text" }
rules = [
  { kind = "new", when = { event = "new" } },
  { kind = "resolve", when = { "item.status.id" = [5, 6] } },
]

[kinds.new]
opens = true
url = "https://itsm.example.com/requests"
request_id = "result.0.sys_id"
body = { title = "{subject|max:80}", text = "{contents|html|bytes:4000}", priority = 2 }
unclear = "find"
find = "request"

[lookups.request]
url = "https://itsm.example.com/requests?q={ticket_id}"
value = "result.*.sys_id"

[kinds.resolve]
method = "PATCH"
url = "https://itsm.example.com/requests/{request_id}"
body = { state = "resolved" }
then = "close"

[kinds.close]
method = "PATCH"
url = "https://itsm.example.com/requests/{request_id}"
body = { state = "closed" }
"""

TEMPLATES = """\
A template is the JSON to send, with {placeholders} in its texts; in URLs and headers, too. A
text that is exactly one placeholder keeps the value's type ("{hours}" becomes 5), anything else
becomes text. {{ and }} are literal braces. Values are never expanded again; in a URL they are
percent-encoded. A body that is a table is JSON, a text goes as it is (name the Content-Type in
`headers`). There are the fields of the hook, [values], the look-ups, and

"""

FILTERS_WORDS = """\
Filters follow a |, from left to right. The name of a look-up is one too: what the ITSM says. A
field that is missing and has none of the last three makes the event `failed` (400): nothing
goes out half-filled without your knowledge.

"""

FIELDS = """\
A field is a path, a list of paths (the first present one counts: not null, not empty, no mask
such as #subject# or {{ticket.title}} left in place), or a table: { path = "link", match =
"id=([0-9]+)" }, the first group of a regular expression. request_id and a look-up's `value` are
written alike. A text that holds JSON is looked into.

"""

RULES = """\
Rules stand in a list; the first that fits decides: a hook's say the `kind`, those of `answers`
what an answer `means` (delivered, failed, later, credential, unclear), whatever its `status`
unless one is named (404, "2xx", or a list). A rule fits when all conditions of `when` hold, and
not all of `unless`. A condition is a path and what must be there; values are compared as text:
5 is "5".

when = { event = "new" }                               # equal
when = { "item.status.id" = [5, 6] }                   # one of these
when = { "item.team[role=assigned].name" = "*" }       # present and not empty
when = { "@header:X-FreeScout-Event" = "~^convo[.]" }  # ~ regular expression, searched
when = { "ticket.owner" = "@body:ticket.agent" }       # equal to what is there
answers = [
    { means = "delivered", status = 400, when = { message = "~not valid for the current" } },
    { means = "credential", when = { code = 1 } },     # a wrong password under 200
    { means = "failed", status = "2xx", unless = { code = 0 } },
]
"""

LOOKUPS = """\
[lookups.NAME] is a question to the ITSM or to a login server, asked by the delivery before (for
`find` and `verify` after) the request that needs it, within the same deadline; `show` has it
among the event's attempts. An empty list at the path of `value`, and 404, mean "there is none".
An answer in which the path leads nowhere is not understood: the event is held (`find`) or
fails. A refused login waits like a refused credential, and so does a login (a look-up in which
nothing of the event stands) that brings nothing; a login server that is down waits like an ITSM
that is down. A request id that another ticket has is never taken: the event is held, and names
both.

What an answer brings besides the id is kept with the mapping (a kind's keep = { number =
"result.number" }) and names it in later templates as {number}; `show --ticket`, `export` and
`import` have it. `explain --ask` asks the look-ups of one webhook for real and says what each
gave; `check` asks for tokens, says until when they are good, and asks the others, where they are a
GET, for an id that nobody has: what is found then needs a `when`.

[itsm]
authorization = "Bearer {token}"   # a look-up alone; asked anew after a 401, and before it ends

[lookups.token]
method = "POST"
url = "https://login.example.com/oauth/token"
form = { grant_type = "client_credentials", client_id = "hd", client_secret = "{client_secret}" }
value = "access_token"
keep_for = "expires_in"

[lookups.user]                     # {writer|user}: a filter that asks; {value} stands before it
url = "https://itsm.example.com/users?email={value}"
value = "result.0.sys_id"
keep_for = "1h"
"""

READING = f"""\
The Content-Type is a hint, never a reason to refuse. What is no clean JSON in UTF-8 is repaired
where that is possible, and the event is marked `repaired`: CP949, the charset of the
Content-Type, control characters, JSON inside a JSON string or with HTML escapes, forms
(urlencoded, multipart), values without quotes, a comma too many, and texts pasted into the JSON
with their quotes and line breaks. Of repeated keys the first counts: put ticket_id first in
your template. XML, prose around JSON, a second object, an id that was cut off, nesting past
{MAX_DEPTH} levels and numbers of more than {MAX_DIGITS} digits are 400 and kept. An id is a
text of 1 to {MAX_ID} characters; 4182, "4182" and 4182.0 are one. Masks left in place
(##ticket.id##, {{Ticket.Id}}, #{{...}}, %ticket.id%) count as missing.

Duplicates. An event equal to its ticket's latest one, in kind and in every field that its kind
(or a kind `then` it) sends, is `ignored`; the latest is also one that no rule wanted: closed,
opened again, closed are three. So is a second opening of a ticket, unless the first failed (or
`again = "send"`). What was dropped, or failed before it was sent, makes no duplicate. A delivery
number in `webhook-id`, `Idempotency-Key` or the header named by `delivery_id` replaces the
comparison of fields where it is present; it counts within its ticket and kind. `delivery_id` may
be a path of the body, too; "none" is for a sender whose header says nothing.

Lists. `each = "events"` (or "*", where the body is the list) makes every element a webhook of its
own, up to 1000: stored in one transaction, answered together with all numbers and states. The
answer is 400 only where all of them failed; what is in the list of `HD-ITSM-State` is kept.
Desks. `desk = "facility"` keeps the tickets of two helpdesks apart that number theirs alike:
`show --ticket facility:17`, while {{ticket_id}} stays 17 and {{desk}} is there.
Order. `order = "updated_at"` (a number or a date) ignores what is older than the ticket's latest
event, but never an opening; without a value there is no order.
Trials. `challenge = "challenge"` (or "@query:validationToken", "@header:NAME") sends its text back
where it is present and the caller is admitted, and stores nothing. GET, HEAD and OPTIONS say what
the hook is.

Dates are read by time.date_formats, then as ISO 8601, as seconds or milliseconds since 1970,
and in these forms, all from 1990 to 2100; UTC, GMT, Z or an offset may stand behind any of
them, else time.zone is meant. 오전 and 오후 are AM and PM.
"""


def _date_formats(commands: Commands) -> str:
    return "\n".join(f"  {form}" for form in DATE_FORMATS) + "\n"


TO_THE_HELPDESK = """\
To the helpdesk. 404 (no such address) and 405 (not POST; GET, HEAD and OPTIONS say what the
hook is) store nothing either. What was turned away stands in `status` for a day.

"""

FROM_THE_ITSM = """\
From the ITSM. The first rule of `answers` that fits decides (`help paths`), whatever the status;
else the first of these lines. Redirects are not followed.

"""

OUTCOMES = """\
Of what is no clear yes or no:

"""

WAITING = f"""\
later       tried again after a random time up to retry.first, then twice that ... up to
            retry.max; Retry-After is honoured, up to {MAX_RETRY_AFTER / 3600:g} h
credential  everything waits: the credential is wrong, no ticket is; it is tried once a minute
failed      kept for a person
unclear     the request may have happened: the kind's `unclear` says what then. "retry" (the
            default) sends again, and a second request is possible; "hold" asks you: look in the
            ITSM, then `map` or `retry`; "find" asks the ITSM by the look-up named by `find`.
            With hold or find what is "later" above and may have happened is unclear as well,
            and no creation is sent twice without an answer

The ITSM is down after three "later" for different tickets in a row: then one probe at a time,
at most retry.probe apart; tries meanwhile count against no event, and the first success lets
all go. One ticket that always fails while others go through is `failed` after retry.tries;
otherwise an event is given up after retry.give_up_after, with a warning at 80 % of it.
A kind whose url leads to another host than itsm.url has no part in that: its outage delays its own
events, and a credential refused there makes them `failed` after retry.tries.
"""

RECIPES_WORDS = """\
hd-itsm init --helpdesk NAME --itsm NAME [--itsm-url https://YOURS]

writes a configuration of these two halves:

"""

PAGE_WORDS = """\
http://127.0.0.1:8080/ shows whether all is well, what needs you, and what happened;
/tickets/4182 and /events/17 show one ticket and one event. Its buttons are the commands. From
the machine itself it needs no password, unless server.admin_password is set; from elsewhere it
needs that one (Basic: put TLS in front). With the default server.listen look at it through

    ssh -L 8080:127.0.0.1:8080 SERVER
"""

MONITORING = """\
curl -f http://127.0.0.1:8080/health
    200 "ok"; 200 "warn": something needs you, deliveries are paused, or the oldest event waits
    longer than alert.after; 503 "fail": for over an hour, or the workers or the file are dead.
    It needs no credential.
hd-itsm status
    exit code 1 where a person is needed: failed events, events held for longer than a minute, a
    refused credential, an outage longer than alert.after, an event near its end, no room, a
    refused reload
[alert] url
    a chat is told once when something begins to need you, and once when it is over
/openapi.json
    the hooks as configured (OpenAPI 3.1)
journalctl -u hd_itsm
    the log, a line per attempt; journald bounds it by its own SystemMaxUse. log.file writes a
    file besides and rotates it itself (log.max_bytes, log.backups): it needs no logrotate.
/metrics
    for Prometheus (`help alerts` has rules, and a line for cron without it):

"""

SECURITY = """\
Who may post: on loopback everybody on the machine, unless [access] says otherwise. Any other
  listen without [access] is refused at the start. Tokens come as Bearer, X-Webhook-Token, Basic
  password, or ?token= if allowed (then it stands in others' logs too); two at once for a
  rotation. A helpdesk that signs its webhooks needs none: access.hmac.
TLS: towards the helpdesk none: beyond loopback put a reverse proxy in front, its address into
  server.trusted_proxy. Towards the ITSM always verified, by the system's authorities or
  itsm.ca_file.
Proxy: let it pass on the hooks' paths and nothing else, bound size and rate, and set
  X-Forwarded-For. One on this machine that sets no such header makes every caller look like
  this machine, to whom the page is open; one that sets only Forwarded or X-Real-IP makes every
  caller a stranger.
Trust: root, and the ITSM's answers as far as `help answers` says. A ticket's text is never
  executed, expanded or followed.
Secrets appear in no log, answer, error or output (`***`). A file that was emptied changes
  nothing: the last secret goes on and the log warns. `check` says where others may read a
  secret or the file, and what to type.
Commands reach the service over its own port. Both prove, without sending it, that they know the
  random key in hd_itsm.db.control (0600). `backup` removes the copy that it asked for and no
  other file.
Personal data: hd_itsm.db (0600) holds raw bodies, fields, and the beginning of the ITSM's
  answers for store.keep_days, failed and held ones until a person acts. `forget TICKET` removes
  a ticket's texts before that; ids, states and times stay, backups keep theirs. The log has no
  ticket text but at DEBUG.
/health is for everybody: counts, no ticket. /metrics and /openapi.json are for this machine,
  and from elsewhere for whoever may post or has the page's password. The page's buttons refuse
  other sites, and a loopback service refuses page and commands under a foreign Host (421).
The unit scores 1.1 in `systemd-analyze security` (0 is best, 10 worst).
"""

INSTALL = """\
One file beside a distribution's packages (Debian 13; no pip, updates come with the system):

    apt-get install python3-bottle python3-waitress python3-urllib3
    install -D -m 644 hd_itsm.py /opt/hd_itsm/hd_itsm.py
    printf '%s\\n' '#!/bin/sh' 'exec /usr/bin/python3 /opt/hd_itsm/hd_itsm.py "$@"' \\
        > /usr/local/bin/hd-itsm
    chmod 755 /usr/local/bin/hd-itsm

then README's steps from `hd-itsm init` on, and before `systemctl daemon-reload`:

    mkdir -p /etc/systemd/system/hd_itsm.service.d
    printf '%s\\n' '[Service]' ExecStart= \\
        'ExecStart=/usr/bin/python3 /opt/hd_itsm/hd_itsm.py --config /etc/hd_itsm.toml serve' \\
        > /etc/systemd/system/hd_itsm.service.d/one-file.conf

`ps` shows it as python3 -c 'hd_itsm'; ...: it goes on from bytecode, which takes 21 MB less
memory. hd_itsm.pyz (README has the line that makes it) takes the place of hd_itsm.py in these
lines, without the first: it needs Python 3.11 or newer and nothing else.

RHEL 8 and 9 (not tried there), instead of their python3, which is too old:

    dnf install python3.12
    python3.12 -m venv /opt/hd_itsm

SELinux needs only the right labels; `ausearch -m avc -ts recent` names what was denied:

    restorecon -RF /opt/hd_itsm /usr/local/bin /etc/hd_itsm.toml /etc/hd_itsm.token \\
        /etc/systemd/system

RHEL 8's systemd 239 knows no credentials: authorization = { env = "ITSM_AUTHORIZATION" }, and
that variable in /etc/hd_itsm.env.

A firewall must let a helpdesk on another machine through: `ufw allow 8080/tcp`, or

    firewall-cmd --permanent --add-port=8080/tcp && firewall-cmd --reload

A port below 1024 needs a reverse proxy or a socket forward in front. `help container` prints a
Containerfile, `help completion` what bash wants, `help man` the man page.
"""

UPGRADE = """\
As root. Upgrade, in a directory with the new version (one file: put it over the old one instead
of the second line):

    hd-itsm backup /root/hd_itsm.before.db
    /opt/hd_itsm/bin/pip install -q --upgrade .
    CREDENTIALS_DIRECTORY=/etc hd-itsm check
    systemctl reload hd_itsm
    journalctl -u hd_itsm -n 20

The reload tries the new version out before it takes over; no webhook is refused meanwhile.
Where hd_itsm.service is new as well: install it, systemctl daemon-reload, and restart instead
of reload. Rollback: the same with the old version. A file that a newer version has changed is
refused untouched; then restore the backup.

Backup while it runs: hd-itsm backup FILE. Do not copy hd_itsm.db yourself meanwhile: the newest
events are in hd_itsm.db-wal. Restore:

    systemctl stop hd_itsm
    rm -f /var/lib/hd_itsm/hd_itsm.db-wal
    cp FILE /var/lib/hd_itsm/hd_itsm.db
    chown --reference=/var/lib/hd_itsm/ /var/lib/hd_itsm/hd_itsm.db
    systemctl start hd_itsm

What was pending in the backup is sent again, even if it was delivered since. Where that would
hurt, `hd-itsm pause` before the last line; then look (`events --state pending`), `drop` what
the ITSM has, and `resume`. Tickets newer than the backup are missing: `reconcile` names them.

Every night: mkdir -p -m 700 /var/backups/hd_itsm, /etc/systemd/system/hd_itsm-backup.service
with

    [Unit]
    Description=A copy of what hd_itsm has stored
    # After a boot the service gets its file first.
    After=hd_itsm.service
    [Service]
    Type=oneshot
    ExecStart=/bin/sh -c 'exec /usr/local/bin/hd-itsm backup /var/backups/hd_itsm/$(date +%%a).db'
    # It is root, to reach the service's file, and may touch nothing but that and the copies.
    ProtectSystem=strict
    ReadWritePaths=/var/backups/hd_itsm -/var/lib/hd_itsm -/var/lib/private/hd_itsm
    CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_CHOWN
    NoNewPrivileges=yes
    ProtectHome=yes
    PrivateTmp=yes
    PrivateDevices=yes
    RestrictAddressFamilies=AF_INET AF_INET6
    UMask=0077

/etc/systemd/system/hd_itsm-backup.timer with

    [Timer]
    OnCalendar=03:30
    Persistent=true
    [Install]
    WantedBy=timers.target

then systemctl daemon-reload && systemctl enable --now hd_itsm-backup.timer. It keeps a copy for
each day of the week: take them to another machine. A failed one is in systemctl --failed.

Uninstall (the last line deletes all events and mappings; `export > mapping.csv` keeps the
mappings):

    systemctl disable --now hd_itsm
    systemctl disable --now hd_itsm-backup.timer # if you made one
    rm -rf /etc/systemd/system/hd_itsm-backup.* /etc/systemd/system/hd_itsm.service
    rm -rf /etc/systemd/system/hd_itsm.service.d /usr/local/bin/hd-itsm /opt/hd_itsm
    systemctl daemon-reload
    rm -f /etc/hd_itsm.toml /etc/hd_itsm.token /etc/hd_itsm.env
    rm -rf /var/lib/hd_itsm /var/lib/private/hd_itsm /var/log/hd_itsm /var/log/private/hd_itsm
"""

SYNOPSIS = "hd-itsm [--config FILE] [--listen HOST:PORT] [--db FILE] [--itsm-url URL] [COMMAND]"

EXIT_CODES = """\
Every command works with and without a running service, as root where it runs under systemd. Exit
codes: 0 fine, 1 a person is needed or something was refused, 2 usage or configuration. A `retry`
that would double or disorder a ticket is refused without --force.

"""


# ── Help · for shell and man ───────────────────────────────────────────────────────────────────

COMMON_OPTIONS = ("--config", "--listen", "--db", "--itsm-url", "--help")

COMPLETION = """\
# For bash: hd-itsm help completion > /etc/bash_completion.d/hd-itsm
_hd_itsm() {{
    local each words="{commands} --version"
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in
{cases}
        esac
    done
    COMPREPLY=($(compgen -W "$words {common}" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _hd_itsm hd-itsm
"""


def _completion(commands: Commands) -> str:
    cases = []
    for command in commands.values():
        words = [each.name for each in command.arguments if each.name.startswith("--")]
        words += ["--json"] if command.prints else []
        words += itertools.chain.from_iterable(each.words for each in command.arguments)
        cases.append(f"            {command.name}) words='{' '.join(words)}'; break ;;")
    common = " ".join(COMMON_OPTIONS)
    return COMPLETION.format(commands=" ".join(commands), cases="\n".join(cases), common=common)


def _roff(text: str) -> str:
    """A text as roff takes it: no line of it a request, no letter of it an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^(?=[.'])", "\\&", text)


def _man(commands: Commands) -> str:
    lines = [
        '.\\" hd-itsm help man > /usr/local/share/man/man1/hd-itsm.1',
        f'.TH HD\\-ITSM 1 "" "hd_itsm {__version__}"',
        ".nh",
        ".SH NAME",
        "hd\\-itsm \\- carries helpdesk tickets into an ITSM system",
        ".SH SYNOPSIS",
        _roff(SYNOPSIS),
        ".SH DESCRIPTION",
        _roff(EXIT_CODES.strip()),
        ".SH COMMANDS",
    ]
    for command in commands.values():
        lines += [".TP", f".B {_roff(usage(command))}", _roff(command.help)]
        for argument in filter(lambda each: each.help, command.arguments):
            lines += [".br", _roff(f"{argument.shown}: {argument.help}")]
    lines += [".SH FILES", _roff("./hd_itsm.toml, /etc/hd_itsm.toml, hd_itsm.db")]
    return "\n".join([*lines, ".SH SEE ALSO", _roff("hd-itsm help"), ""])


def _file_of(name: str) -> Callable[[Commands], str]:
    return lambda commands: recipes_folder().joinpath(name).read_text(encoding="utf-8")


# ── Help · the topics ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Topic:
    """What can be looked up: prose, and what is made from tables."""

    sentence: str
    parts: tuple[str | Callable[[Commands], str], ...]

    def text(self, commands: Commands) -> str:
        """The whole of it, for a terminal."""
        parts = (part if isinstance(part, str) else part(commands) for part in self.parts)
        return "".join(part if part.endswith("\n\n") else f"{part}\n" for part in parts).rstrip()


TOPICS = {
    "commands": Topic("every command and its arguments", (f"{SYNOPSIS}\n", EXIT_CODES, _commands)),
    "configuration": Topic(
        "every key, its default and its meaning",
        (CONFIGURATION, _sections, SIGNATURES, _named_tables, _built_in, CONSTANTS),
    ),
    "templates": Topic(
        "placeholders and filters", (TEMPLATES, _placeholders, FILTERS_WORDS, _filters)
    ),
    "paths": Topic("paths, rules and conditions", (FIELDS, _paths, RULES)),
    "lookups": Topic("questions to the ITSM before or after a request", (LOOKUPS,)),
    "reading": Topic("what is read and repaired, duplicates, dates", (READING, _date_formats)),
    "answers": Topic(
        "what we answer the helpdesk, and what the ITSM's answers mean",
        (
            *(TO_THE_HELPDESK, _answers_to_the_helpdesk, FROM_THE_ITSM, _statuses),
            *(OUTCOMES, _cases, WAITING),
        ),
    ),
    "monitoring": Topic("health, log, metrics, alerts", (MONITORING, _metrics)),
    "recipes": Topic("configurations for products", (RECIPES_WORDS, _recipes)),
    "page": Topic("the status page", (PAGE_WORDS,)),
    "security": Topic("who may do what, and who sees what", (SECURITY,)),
    "install": Topic("one file, .pyz, RHEL, firewall", (INSTALL,)),
    "upgrade": Topic("upgrade, rollback, backup, restore, uninstall", (UPGRADE,)),
    "alerts": Topic("rules for Prometheus, a line for cron", (_file_of("prometheus-alerts.yml"),)),
    "container": Topic("a Containerfile", (_file_of("Containerfile"),)),
    "completion": Topic("completion for bash", (_completion,)),
    "man": Topic("the man page, as roff", (_man,)),
}


def command_help(call: Call) -> int:
    """Prints what is known of a topic or a command; of none, which there are."""
    name = call.arguments["topic"]
    if name in TOPICS:
        print(TOPICS[name].text(call.commands))
    elif name in call.commands:
        print(_commands({name: call.commands[name]}), end="")
    elif name:
        known = ", ".join(TOPICS)
        raise WrongArgument(f"no topic {name!r}{_hint(name, [*TOPICS, *call.commands])}: {known}")
    else:
        rows = [{"topic": topic, "what": TOPICS[topic].sentence} for topic in TOPICS]
        print("hd-itsm help TOPIC; hd-itsm COMMAND --help\n")
        print(as_table(rows, ("topic", "what")))
    return 0


# ── Command line: the table of commands, the parser, main ──────────────────────────────────────


# ── Command line · the table ───────────────────────────────────────────────────────────────────


def _of_operation(name: str, function: Callable[[Call], int] | None = None) -> Command:
    """The command of an operation; `function` where it needs a file of the caller as well."""
    operation = OPERATIONS[name]
    return Command(
        name,
        operation.help,
        function or functools.partial(run_operation, operation),
        () if function else operation.arguments,
        operation.one_of,
    )


CSV_FILE = Argument("file", read_text, "in UTF-8", metavar="FILE.csv", required=True)

COMMANDS = {
    command.name: command
    for command in (
        Command("serve", "run in the foreground (the default)", command_serve, prints=False),
        Command(
            "demo",
            "the life of tickets against a practice ITSM; needs nothing",
            command_demo,
            prints=False,
        ),
        Command(
            "init",
            "write the sample configuration, or the one of two recipes joined",
            command_init,
            (
                Argument("file", read_text, "its name", metavar="FILE", default="hd_itsm.toml"),
                Argument("--helpdesk", read_text, "a recipe for yours; with --itsm"),
                Argument("--itsm", read_text, "a recipe for yours; `help recipes` lists them"),
            ),
            prints=False,
        ),
        Command(
            "check",
            "is everything right? Reaches the ITSM, and sends a ticket only with --send",
            command_check,
            (
                Argument(
                    "--configuration",
                    read_text,
                    "only the configuration; with the ADDRESS where the service listens now: also"
                    " whether a reload could have its file, log and address",
                    metavar="ADDRESS",
                    empty="-",
                ),
                Argument(
                    "--send",
                    read_text,
                    "open one test ticket in the ITSM, the whole way: made up, or BODY.json of"
                    " your helpdesk",
                    metavar="BODY.json",
                    empty="-",
                ),
            ),
        ),
        Command(
            "explain",
            "what would this webhook become? Sends and stores nothing",
            command_explain,
            (
                Argument("hook", read_text, "its name or path", metavar="HOOK", required=True),
                Argument("body", read_text, "a file; - for stdin", metavar="BODY", default="-"),
                Argument(
                    "--header", read_header, "of the webhook", metavar="NAME:VALUE", many=True
                ),
                Argument(
                    "--ask", read_flag, "ask the look-ups, and say what each gave", default=False
                ),
            ),
        ),
        *map(_of_operation, ("status", "events", "show", "retry", "drop", "map")),
        replace(_of_operation("import", command_import), arguments=(CSV_FILE,)),
        _of_operation("export", command_export),
        replace(
            _of_operation("backup", command_backup),
            arguments=(Argument("file", read_text, "the copy", metavar="FILE", required=True),),
        ),
        replace(_of_operation("reconcile", command_reconcile), arguments=(CSV_FILE,)),
        *map(_of_operation, ("forget", "pause", "resume")),
        Command(
            "help",
            "what is for looking up: keys, templates, answers, security, upgrade ...",
            command_help,
            (
                Argument(
                    *("topic", read_text, "none: the list of topics", "TOPIC"), words=tuple(TOPICS)
                ),
            ),
            prints=False,
        ),
    )
}


# ── Command line · the parser ──────────────────────────────────────────────────────────────────


def _typed(argument: Argument) -> Callable[[str], Any]:
    """`argument.read` as argparse wants it."""

    def read(text: str) -> Any:
        try:
            return argument.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _add_argument(parser: argparse.ArgumentParser, argument: Argument) -> None:
    option, named = argument.name.startswith("--"), dict[str, Any](help=argument.help)
    if argument.read is read_flag:
        parser.add_argument(argument.name, action="store_true", **named)
        return
    named |= {"type": _typed(argument), "metavar": argument.metavar or argument.key.upper()}
    if option:
        named["required"] = argument.required
        if argument.many:
            named["action"] = "append"
        elif argument.empty is not None:
            named |= {"nargs": "?", "const": argument.empty}
    elif argument.many:
        named["nargs"] = "+" if argument.required else "*"
    elif not argument.required:
        named["nargs"] = "?"
    parser.add_argument(argument.name, **named)


class _CommandParser(argparse.ArgumentParser):
    """A parser that says what is near a wrong command or option."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with 2."""
        wrong = re.search("invalid choice: '([^']*)'", message)
        if wrong:  # nothing else is a choice
            message = f"no command {wrong[1]!r}{_hint(wrong[1], COMMANDS)}: {', '.join(COMMANDS)}"
        super().error(message)

    def check_options(self, words: Iterable[str]) -> None:
        """Refuses an option that no command has, wherever it stands."""
        known = ["--help", "--version", "--json", *(f"--{n.replace('_', '-')}" for n in OVERRIDES)]
        for command in COMMANDS.values():
            known += [each.name for each in command.arguments if each.name.startswith("--")]
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if word.startswith("--") and not any(each.startswith(option) for each in known):
                self.error(f"no option {option}{_hint(option, known)}")


def _parser() -> _CommandParser:
    common = _CommandParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--config", metavar="FILE", help="the configuration (TOML)")
    common.add_argument("--listen", metavar="HOST:PORT", help="instead of server.listen")
    common.add_argument("--db", metavar="FILE", help="instead of store.path")
    common.add_argument("--itsm-url", metavar="URL", help="instead of itsm.url")
    parser = _CommandParser(
        prog="hd_itsm",
        parents=[common],
        description="Carries helpdesk tickets into an ITSM system. Without a command: serve.",
    )
    parser.add_argument("--version", action="store_true", help="of this program and its libraries")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS.values():
        added = commands.add_parser(
            command.name, help=command.help, description=command.help, parents=[common]
        )
        if command.prints:
            added.add_argument("--json", action="store_true", help="for programs")
        for argument in command.arguments:
            if argument.help:
                _add_argument(added, argument)
    return parser


# ── Command line · main ────────────────────────────────────────────────────────────────────────


def run(typed: argparse.Namespace, environ: Environ) -> int:
    """Carries a command out; its exit code. Raises Error."""
    if typed.version:
        print(", ".join([ground(), *map(" ".join, libraries().items())]))
        return 0
    command, given = COMMANDS[typed.command or "serve"], vars(typed)
    arguments = read_arguments(
        command.arguments,
        {each.key: given.get(each.key) for each in command.arguments},
        command.one_of,
    )
    options = {name: given[name] for name in OVERRIDES if name in given}
    as_json = given.get("json", False)
    return command.function(Call(arguments, options, as_json, environ, COMMANDS))


def main(argv: Sequence[str] | None = None) -> int:
    """The command `hd-itsm`: 0 fine, 1 a person is needed or the world is wrong, 2 usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser, words = _parser(), sys.argv[1:] if argv is None else argv
    parser.check_options(words)
    typed = parser.parse_args(words)
    try:
        code = run(typed, os.environ)
        sys.stdout.flush()  # a reader that has left is noticed here, where it is no error
        return code
    except Error as error:
        print(f"hd_itsm: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | WrongArgument) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
