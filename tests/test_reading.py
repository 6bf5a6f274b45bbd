"""Bytes to fields: what a body means, however damaged it is, and what it can never do."""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import time
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import hd_itsm
from hd_itsm import MISSING, Field, Hook, Reading, Unreadable, parse_date, parse_path, read_body
from itsm import Itsm, Received
from service import PAYLOADS, Service, opening, sample
from service import settings as service_settings

T = TypeVar("T")

SEOUL = timezone(timedelta(hours=9))
OPENING = ("ticket_id", "writer", "category", "subject", "contents")
KNOWN = frozenset(OPENING)
BUILT_IN = hd_itsm.load_config("", {}, {}, complete=False).hooks
NO_HEADERS: Mapping[str, str] = {}

quick = settings(max_examples=150, deadline=None)
slow_data = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


def read(body: str | bytes, hook: Hook | str = "itsm_new", **headers: str) -> Reading:
    """What a webhook says; header names in lower case, `_` for `-`."""
    raw = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return hd_itsm.read_webhooks(BUILT_IN[hook] if isinstance(hook, str) else hook, raw, named)[1][
        0
    ]


def hook_of(folder: Path, toml: str, name: str = "x") -> Hook:
    """The hook `name` of a configuration."""
    path = folder / "hook.toml"
    path.write_text(toml, encoding="utf-8")
    return hd_itsm.load_config(str(path), {}, {}, complete=False).hooks[name]


def dumped(value: Any) -> bytes:
    """JSON as most helpdesks write it."""
    return json.dumps(value, ensure_ascii=False).encode()


# ---- How time grows ----------------------------------------------------------------------------

FLOOR = 0.02  # seconds; what is quicker says nothing about growth


def took(work: Callable[[T], object], given_now: T) -> float:
    """The processor time of `work`, of this thread alone."""
    began = time.thread_time()
    work(given_now)
    return time.thread_time() - began


def assert_linear(
    work: Callable[[T], object],
    made: Callable[[int], T],
    sizes: tuple[int, ...] = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20),
) -> None:
    """Four times the input takes some four times as long. Squared growth would take 16 times.

    On a busy machine one measurement may mislead, not three of the one and the other.
    """
    before = math.inf
    for size in sizes:
        whole = took(work, made(size))
        for _ in range(2):
            if whole > 10 * max(before, FLOOR):
                before = min(before, took(work, made(size // 4)))
                whole = min(whole, took(work, made(size)))
        told = f"{size} bytes: {whole:.3f} s, a quarter of it: {before:.3f} s"
        assert whole <= 10 * max(before, FLOOR), told
        before = whole


def test_the_measure_of_growth_finds_a_quadratic_one() -> None:
    def squared(text: str) -> int:
        return sum(1 for _ in text for _ in text)

    with pytest.raises(AssertionError, match="a quarter"):
        assert_linear(squared, lambda size: "<" * size, (1 << 8, 1 << 10, 1 << 12))


# ---- Whole JSON --------------------------------------------------------------------------------


def storable(text: str) -> str:
    """`text` as it may be kept: no NUL, no lone surrogate."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return "".join(
        "\ufffd" if sign == "\0" or unicodedata.category(sign) == "Cs" else sign for sign in whole
    )


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**99) + 1, 10**99 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)
objects = st.dictionaries(texts, trees, max_size=5)


@quick
@given(objects, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]))
def test_any_json_object_is_read_as_it_is_and_counts_as_whole(
    given_object: dict[str, Any], ascii_only: bool, encoding: str
) -> None:
    raw = json.dumps(given_object, ensure_ascii=ascii_only).encode(encoding)
    found, repaired = read_body(raw, KNOWN)
    assert found == given_object
    assert json.dumps(found) == json.dumps(given_object)  # 1, 1.0 and true are equal in Python
    assert repaired == ""


@quick
@given(st.text(max_size=20))
@example("\ud800")
@example("\ud800A")
@example("\udc00\ud800")
@example("\ud83d\ude00")
@example("\ufeff\0")
def test_nul_and_lone_surrogates_become_replacement_characters(text: str) -> None:
    found, _ = read_body(json.dumps({"subject": text}).encode(), KNOWN)
    assert found == {"subject": storable(text)}
    found["subject"].encode()  # what no store and no ITSM would take is gone


def test_nul_and_surrogates_are_replaced_in_keys_and_deep_inside_too() -> None:
    found, _ = read_body(b'{"a\\u0000": [{"b": ["\\udfff", 1]}]}', KNOWN)
    assert found == {"a\ufffd": [{"b": ["\ufffd", 1]}]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"ticket_id":"4183","ticket_id":"1"}',
        b'{"ticket_id":"4183","subject":"a","ticket_id":"1","ticket_id":"2"}',
        b'{"ticket_id":"4183","ticket_id":null}',
    ],
)
def test_of_repeated_keys_the_first_wins(body: bytes) -> None:
    assert read(body).ticket == "4183"


def test_of_repeated_keys_the_first_wins_in_nested_objects_too() -> None:
    found, _ = read_body(b'{"a": {"b": 1, "b": 2, "c": [{"d": 3, "d": 4}]}}', KNOWN)
    assert found == {"a": {"b": 1, "c": [{"d": 3}]}}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
@pytest.mark.parametrize("place", ['"x": {}', '"x": [1, {}]', '"x": {{"y": {}}}'])
def test_numbers_that_json_does_not_know_are_refused(number: str, place: str) -> None:
    with pytest.raises(Unreadable):
        read_body(('{"ticket_id": "1", ' + place.format(number) + "}").encode(), KNOWN)


@pytest.mark.parametrize("digits", ["9" * 100, "-" + "9" * 100, "1" + "0" * 99])
def test_a_number_of_100_digits_is_read(digits: str) -> None:
    found, _ = read_body(f'{{"x": {digits}}}'.encode(), KNOWN)
    assert found == {"x": int(digits)}


@pytest.mark.parametrize("digits", ["9" * 101, "-" + "9" * 101, "9" * 5000, "0." + "1" * 5000])
def test_a_number_of_more_than_100_digits_is_refused(digits: str) -> None:
    with pytest.raises(Unreadable):
        read_body(f'{{"ticket_id": "1", "x": {digits}}}'.encode(), KNOWN)


def nested(levels: int, leaf: str = "1") -> bytes:
    """An object of so many levels, itself counted."""
    return f'{{"x": {"[" * (levels - 1)}{leaf}{"]" * (levels - 1)}}}'.encode()


@pytest.mark.parametrize("leaf", ["1", ""])
def test_a_hundred_levels_are_read_and_one_more_is_refused(leaf: str) -> None:
    read_body(nested(100, leaf), KNOWN)
    with pytest.raises(Unreadable, match="nest"):
        read_body(nested(101, leaf), KNOWN)


@pytest.mark.parametrize("levels", [1_000, 20_000, 200_000])
@pytest.mark.parametrize(
    "body",
    [
        lambda n: b'{"a":' * n + b"1" + b"}" * n,
        lambda n: b'{"a":' * n,
        lambda n: b"[" * n + b"]" * n,
        lambda n: b"[" * n,
        lambda n: b"{" * n,
        lambda n: b"payload=" + b'{"a":' * n + b"}" * n,
        lambda n: json.dumps("[" * n + "]" * n).encode(),
    ],
)
def test_deep_nesting_is_refused_in_every_disguise(
    body: Callable[[int], bytes], levels: int
) -> None:
    with pytest.raises(Unreadable):
        read_body(body(levels), KNOWN)


@pytest.mark.parametrize("levels", [1_000, 20_000, 200_000])
@pytest.mark.parametrize("piece", [b"[", b"{", b'{"y":', b'[{"contents":'])
def test_deep_nesting_behind_a_damaged_text_is_text_or_refused(piece: bytes, levels: int) -> None:
    try:
        found, _ = read_body(b'{"ticket_id":"1","subject":"a "b"","x":' + piece * levels, KNOWN)
    except Unreadable:
        return
    assert found["ticket_id"] == "1"


@pytest.mark.parametrize("brackets", ["[" * 5000, "{" * 5000, '[{"' * 5000])
def test_brackets_inside_a_text_are_no_nesting(brackets: str) -> None:
    assert read(dumped({"ticket_id": "1", "subject": brackets})).fields["subject"] == brackets


@pytest.mark.parametrize(
    "body",
    [b"", b" \r\n", b"null", b"12", b"true", b'"text"', b"[]", b'[{"ticket_id": "1"}]', b"hello"],
)
def test_what_is_no_json_object_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_body(body, KNOWN)


# ---- Encodings ---------------------------------------------------------------------------------

KOREAN = {"ticket_id": "4184", "writer": "홍길똥", "subject": "펲햏 뷁 첨부가 열리지 않음"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_encodings_need_no_repair(encoding: str) -> None:
    raw = json.dumps(KOREAN, ensure_ascii=False).encode(encoding)
    assert read_body(raw, KNOWN) == (KOREAN, "")


def test_undeclared_cp949_gives_the_right_text_even_outside_euc_kr() -> None:
    raw = json.dumps(KOREAN, ensure_ascii=False).encode("cp949")
    with pytest.raises(UnicodeDecodeError):
        raw.decode("euc_kr")
    found, repaired = read_body(raw, KNOWN)
    assert found == KOREAN
    assert repaired


def test_damaged_cp949_is_recovered_with_the_right_text() -> None:
    text = '{"ticket_id":"4184","subject":"뷁 "용지" 걸림","contents":"첫 줄\n둘째 \\줄"}'
    found, repaired = read_body(text.encode("cp949"), KNOWN)
    assert found == {
        "ticket_id": "4184",
        "subject": '뷁 "용지" 걸림',
        "contents": "첫 줄\n둘째 \\줄",
    }
    assert repaired


def test_damaged_utf16_is_recovered_too() -> None:
    text = '{"ticket_id":"4184","subject":"뷁 "용지" 걸림"}'
    found, _ = read_body(text.encode("utf-16"), KNOWN)
    assert found == {"ticket_id": "4184", "subject": '뷁 "용지" 걸림'}


def test_bytes_of_no_encoding_are_no_crash() -> None:
    for raw in (b'{"ticket_id":"1","subject":"\xff\xfe\x80"}', b"\xff\xfe{", b"\x00\x00\xfe\xff"):
        try:
            found, repaired = read_body(raw, KNOWN)
        except Unreadable:
            continue
        assert repaired
        assert found["ticket_id"] == "1"


# ---- The further steps -------------------------------------------------------------------------

OBJECT = {"ticket_id": "4182", "subject": '3층 "복합기" & <b>', "contents": "a\nb \\ c"}


@pytest.mark.parametrize("control", ["\n", "\r\n", "\t", "\x0b", "\x1b", "\x01"])
def test_control_characters_inside_strings_are_allowed(control: str) -> None:
    found, repaired = read_body(f'{{"ticket_id":"1","subject":"a{control}b"}}'.encode(), KNOWN)
    assert found == {"ticket_id": "1", "subject": f"a{control}b"}
    assert repaired


def test_a_raw_nul_inside_a_string_becomes_a_replacement_character() -> None:
    found, repaired = read_body(b'{"ticket_id":"1","subject":"a\0b"}', KNOWN)
    assert found == {"ticket_id": "1", "subject": "a\ufffdb"}
    assert repaired


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_json_string_that_holds_json_is_laid_open(ascii_only: bool) -> None:
    raw = json.dumps(json.dumps(OBJECT, ensure_ascii=ascii_only), ensure_ascii=ascii_only)
    found, repaired = read_body(raw.encode(), KNOWN)
    assert found == OBJECT
    assert repaired


@pytest.mark.parametrize("quote", ["&quot;", "&#34;"])
def test_an_html_escaped_body_is_laid_open(quote: str) -> None:
    text = json.dumps({"ticket_id": "4182", "subject": "R & D"}, ensure_ascii=False)
    escaped = text.replace("&", "&amp;").replace('"', quote)
    found, repaired = read_body(escaped.encode(), KNOWN)
    assert found == {"ticket_id": "4182", "subject": "R & D"}
    assert repaired


def test_html_entities_in_the_text_of_a_whole_body_stay_as_they_are() -> None:
    text = {"ticket_id": "1", "subject": "&quot;a&quot; &lt;b&gt;"}
    assert read_body(dumped(text), KNOWN) == (text, "")


def test_html_entities_in_the_text_of_a_damaged_body_stay_as_they_are() -> None:
    text = '<a href="x">&quot;a&quot; &lt;script&gt;</a>'
    found, _ = read_body(f'{{"ticket_id":"1","contents":"{text}"}}'.encode(), KNOWN)
    assert found == {"ticket_id": "1", "contents": text}


@pytest.mark.parametrize("entity", ["&#" + "9" * 5000 + ";", "&#x" + "f" * 5000 + ";", "&#0;"])
def test_an_endless_character_reference_in_an_escaped_body_is_no_crash(entity: str) -> None:
    raw = f"{{&quot;ticket_id&quot;:&quot;1&quot;,&quot;subject&quot;:&quot;{entity}&quot;}}"
    try:
        found, _ = read_body(raw.encode(), KNOWN)
    except Unreadable:
        return
    assert found["ticket_id"] == "1"


@pytest.mark.parametrize(
    ("body", "content_type", "repaired"),
    [
        ('{"ticket_id":"4182","writer":"가"}'.encode(), "text/plain", ""),
        ('{"ticket_id":"4182","writer":"가"}'.encode("cp949"), "", "cp949"),
        (
            '{"ticket_id":"4182","writer":"ü"}'.encode("latin-1"),
            "a/b; charset=latin1",
            "iso8859-1",
        ),
        (b'{"ticket_id":"4182","writer":"a\nb"}', "", "control characters"),
        (rb'"{\"ticket_id\":\"4182\"}"', "", "JSON within a string"),
        (b"{&quot;ticket_id&quot;:&quot;4182&quot;}", "", "HTML escapes"),
        (b"ticket_id=4182&writer=kim", "application/json", "form body"),
        (b'payload={"ticket_id":"4182"}', "", "form body"),
        (b'{"ticket_id":4182,"status": Open,}', "", "values without quotes"),
        (b'{"ticket_id":"4182","writer":"a "b" c"}', "", "cut at the known keys"),
        (
            '{&quot;ticket_id&quot;:4182,&quot;writer&quot;:&quot;"가" \\&quot;}'.encode("cp949"),
            "",
            "cp949, HTML escapes, cut at the known keys",
        ),
    ],
)
def test_the_first_repair_that_yields_an_object_wins_and_is_named(
    body: bytes, content_type: str, repaired: str
) -> None:
    reading = read(body, content_type=content_type)
    assert (reading.ticket, reading.repaired, reading.problem) == ("4182", repaired, "")


# ---- What only holds JSON somewhere ------------------------------------------------------------

QUOTED = '{"ticket_id":"4182","technician":"x"}'
ELSEWHERE = {
    "XML": f"<?xml version='1.0'?><ticket><id>9003</id><note>{QUOTED}</note></ticket>",
    "XML that looks like a form": f"<note>a=1&ticket_id=4182&technician=x {QUOTED}</note>",
    "HTML": f"<!DOCTYPE html><p>{QUOTED}</p>",
    "escaped JSON in HTML": "<p>{&quot;ticket_id&quot;:&quot;4182&quot;}</p>",
    "prose": f"Ticket 9003 was assigned. {QUOTED}",
    "prose with a link": "https://help.example.com/?a=b&ticket_id=4182&technician=x",
    "prose with a form": "Dear team,\nplease see ticket_id=4182&technician=x",
    "a mail": f"Subject: x\r\n\r\n> {QUOTED}",
    "Markdown": f"```json\n{QUOTED}\n```",
    "a mask before JSON": f"{{code}}{QUOTED}{{code}}",
    "quotes around JSON": f'"{QUOTED}"',
    "brackets": f"[see {QUOTED}",
    "JSON behind other JSON": f'{{"id":"9003"}}{QUOTED}',
    "JSON in a text that was cut": f'{{"id":"9003","note":"see {QUOTED.replace(chr(34), "&quot;")}',
    "escaped JSON in a text that was cut": f'{{"id":"9003","note":{json.dumps(QUOTED)[:-1]}',
    "a form within a JSON string": '"ticket_id=4182&technician=x"',
    "a form that holds another": "note=ticket_id%3D4182%26technician%3Dx&a=b",
}


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data; boundary=X"]
)
def test_what_only_holds_json_somewhere_chooses_no_ticket(name: str, content_type: str) -> None:
    reading = read(ELSEWHERE[name], "itsm_ass", content_type=content_type)
    assert (reading.ticket, "technician" in reading.fields) == ("", False)
    assert reading.problem
    if "XML" in name or "HTML" in name:
        assert "the body is XML or HTML: " in reading.problem


@pytest.mark.parametrize("first", ['"kim"', '"k "i" m"', "kim"])
@pytest.mark.parametrize("between", ["", "\n", " , "])
@pytest.mark.parametrize(
    "second",
    [
        '{"ticket_id":"9","technician":"x"}',
        '{"technician":"x","ticket_id":"9"}',
        '{"technician":"a "b" c","ticket_id":"9"}',
        '{ "ticket_id" : 9 }',
    ],
)
def test_two_objects_in_a_row_are_refused(first: str, between: str, second: str) -> None:
    reading = read(f'{{"ticket_id":"4182","technician":{first}}}{between}{second}', "itsm_ass")
    assert (reading.ticket, reading.fields) == ("", {})
    assert reading.problem


@pytest.mark.parametrize("rest", [" thank you", "<!-- 4 ms -->", ";", '{"a":1}', "[1]", "\nid=5"])
def test_what_follows_the_object_is_refused_and_said(rest: str) -> None:
    reading = read(f'{{"ticket_id":"4182","technician":"kim"}}{rest}', "itsm_ass")
    assert (reading.ticket, reading.problem) == (
        "",
        "the body goes on after its JSON object: a webhook is one object",
    )


# ---- Charsets that the request declares --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        ("Müller", "ISO-8859-1"),
        ("Größe é", '"windows-1252"'),
        ("日本語", "Shift_JIS"),
        ("Ω", "iso-8859-7"),
    ],
)
def test_the_charset_that_a_content_type_names_is_used_after_utf8_and_cp949(
    text: str, charset: str
) -> None:
    name = charset.strip('"')
    for declared in (
        f"application/json; charset={charset}",
        f"text/x;a=b ;Charset = {charset};c=d",
    ):
        raw = json.dumps({"ticket_id": "1", "technician": text}, ensure_ascii=False).encode(name)
        assert read(raw, "itsm_ass", content_type=declared).fields["technician"] == text
        form = f"ticket_id=1&technician={urllib.parse.quote(text, encoding=name)}"
        assert read(form, "itsm_ass", content_type=declared).fields["technician"] == text
    assert read(dumped(KOREAN), content_type=f"a/b; charset={charset}").fields == KOREAN
    raw = json.dumps(KOREAN, ensure_ascii=False).encode("cp949")
    assert read(raw, content_type=f"a/b; charset={charset}").fields == KOREAN


@pytest.mark.parametrize(
    "charset",
    [
        "",
        "x",
        "utf-8",
        "zlib",
        "hex",
        "rot13",
        "idna",
        "punycode",
        "unicode_escape",
        "utf-7",
        "a" * 99,
    ],
)
def test_a_charset_that_is_none_is_no_crash_and_changes_nothing(charset: str) -> None:
    declared = f"application/json; charset={charset}"
    raw = b'{"ticket_id":"1","technician":"\\u0022+AD0- \xff"'
    reading = read(raw + b"}", "itsm_ass", content_type=declared)
    assert reading.fields["technician"] == '"+AD0- \ufffd'
    assert read(raw + b',"ticket_id":', "itsm_ass", content_type=declared).ticket == "1"


# ---- Multipart ---------------------------------------------------------------------------------

Fields = list[tuple[str, str | bytes]]


def multipart(
    fields: Fields,
    boundary: str = "----WebKitFormBoundary7MA4",
    newline: str = "\r\n",
    end: str = "--",
) -> bytes:
    """A body of such parts: what stands behind `form-data; ` in the head, and the content."""
    out = b""
    for head, content in fields:
        lines = f"--{boundary}", f"Content-Disposition: form-data; {head}", "", ""
        out += newline.join(lines).encode()
        out += (content.encode() if isinstance(content, str) else content) + newline.encode()
    return out + f"--{boundary}{end}{newline}".encode()


def in_multipart(name: str) -> str:
    """The Content-Type of such a body."""
    return f"multipart/form-data; boundary={name}"


ASSIGNMENT: Fields = [
    ('name="ticket_id"', "9003"),
    ('name="note"', f"see {QUOTED} and --X and ticket_id=4182"),
    ('name="technician"', "김도현\r\n둘째 줄"),
]


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("boundary", ["X", "----WebKitFormBoundary7MA4", "=_a'b(c)+d/e?f", "a b"])
@pytest.mark.parametrize("declared", ['"{}"', "nonsense", ""])
def test_multipart_is_read_as_multipart(declared: str, boundary: str, newline: str) -> None:
    content_type = in_multipart(declared.format(boundary)) if declared else "application/json"
    raw = multipart(ASSIGNMENT, boundary, newline)
    reading = read(raw, "itsm_ass", content_type=content_type)
    assert (reading.ticket, reading.problem) == ("9003", "")
    assert reading.fields["technician"] == "김도현\r\n둘째 줄"
    assert reading.repaired


def test_what_stands_around_the_parts_is_nothing() -> None:
    raw = b"--Y\r\n" + QUOTED.encode() + b"\r\n" + multipart(ASSIGNMENT, "X") + QUOTED.encode()
    reading = read(raw, "itsm_ass", content_type=in_multipart("X"))
    assert (reading.ticket, reading.fields["technician"][:3]) == ("9003", "김도현")


@pytest.mark.parametrize("start", ["", "\r\n", '{"ticket_id":'])
def test_a_boundary_counts_as_a_whole_line_only(start: str) -> None:
    inner = f"{start}--Xy\r\n--X y\r\nx--X\r\n--X-\r\nContent-Disposition: form-data; name=a"
    raw = multipart([('name="ticket_id"', "1"), ('name="technician"', inner)], "X")
    assert read(raw, "itsm_ass", content_type=in_multipart("X")).fields["technician"] == inner


@pytest.mark.parametrize(
    "head",
    [
        'name="ticket_id"; filename="a.txt"',
        'filename="x; name=ticket_id"; name="file"',
        "name=ticket_id; filename*=UTF-8''a.json",
        'name="a"; filename=""',
        'title="ticket_id"',
        "",
        'name=""',
        'name="ticket_id' + "x" * 5000,
    ],
)
def test_a_file_is_no_field_and_neither_is_what_has_no_name(head: str) -> None:
    raw = multipart([(head, "4182"), (head, QUOTED), ('name="technician"', "kim")])
    reading = read(raw, "itsm_ass")
    assert (reading.ticket, reading.fields["technician"]) == ("", "kim")
    raw = multipart([(head, b"\x89PNG\xff\xfe\0"), ('name="ticket_id"', "1")])
    assert read(raw, "itsm_ass").ticket == "1"


def test_of_repeated_parts_the_first_wins() -> None:
    fields: Fields = [('name="ticket_id"', "1"), ("name=ticket_id", "2")]
    assert read(multipart(fields), "itsm_ass").ticket == "1"


def test_a_part_that_holds_json_is_laid_open_unless_the_form_names_a_known_key() -> None:
    damaged = QUOTED.replace("x", 'a "b" c')
    for inner, technician in ((QUOTED, "x"), (damaged, 'a "b" c')):
        reading = read(multipart([('name="payload"', inner), ("name=a", "b")]), "itsm_ass")
        assert (reading.ticket, reading.fields["technician"]) == ("4182", technician)
    trusted = multipart([('name="payload"', QUOTED), ("name=technician", "kim")])
    assert read(trusted, "itsm_ass").ticket == ""


@pytest.mark.parametrize("charset", ["cp949", "utf-8", "iso-8859-7"])
def test_the_charset_of_a_form_in_parts_is_found_or_believed(charset: str) -> None:
    text = "Ωμέγα" if charset == "iso-8859-7" else "홍길똥 뷁"
    head = 'name="technician"'
    fields: Fields = [("name=ticket_id", "1"), (head, text.encode(charset))]
    declared = f"multipart/form-data; charset={charset}; boundary=X"
    assert (
        read(multipart(fields, "X"), "itsm_ass", content_type=declared).fields["technician"]
        == text
    )
    fields[1] = (f"{head}\r\nContent-Type: text/plain; charset={charset}", text.encode(charset))
    fields.append(("name=subject", "뷁"))
    assert read(multipart(fields), "itsm_ass").fields["technician"] == text


def test_a_part_is_decoded_as_its_head_says() -> None:
    head = "name=technician\r\nContent-Transfer-Encoding: "
    for how, content in (
        ("base64", "6rmA\r\n64+E\r\n7ZiE"),
        ("quoted-printable", "=EA=B9=80도=\r\n현"),
    ):
        raw = multipart([("name=ticket_id", "1"), (head + how, content)])
        assert read(raw, "itsm_ass").fields["technician"] == "김도현"


# ---- Forms -------------------------------------------------------------------------------------


def test_a_form_body_is_decoded() -> None:
    raw = b"ticket_id=4182&subject=%EB%B3%B5%ED%95%A9%EA%B8%B0+%26+a%3Db&contents=&writer=kim"
    found, repaired = read_body(raw, KNOWN)
    expected = {"ticket_id": "4182", "subject": "복합기 & a=b", "contents": "", "writer": "kim"}
    assert found == expected
    assert repaired


def test_a_form_keeps_the_fields_that_no_path_names() -> None:
    found, _ = read_body(b"ticket_id=4182&other=1", KNOWN)
    assert found == {"ticket_id": "4182", "other": "1"}


def test_of_repeated_form_fields_the_first_wins() -> None:
    assert read(b"ticket_id=4183&subject=a&ticket_id=1").ticket == "4183"
    assert read(b"ticket_id=4183&subject=a & b&ticket_id=1").ticket == "4183"


def test_a_form_field_that_holds_json_is_laid_open() -> None:
    text = json.dumps(OBJECT)
    encoded = "".join(f"%{byte:02X}" for byte in text.encode())
    assert read_body(f"payload={encoded}".encode(), KNOWN)[0] == OBJECT
    assert read_body(f"a=1&payload={encoded}&b=2".encode(), KNOWN)[0] == OBJECT


def test_a_form_field_that_holds_json_with_an_ampersand_unencoded_is_laid_open() -> None:
    text = '{"ticket_id":"4182","subject":"a & b=c","contents":"x"}'
    found, repaired = read_body(f"payload={text}".encode(), KNOWN)
    assert found == {"ticket_id": "4182", "subject": "a & b=c", "contents": "x"}
    assert repaired


@pytest.mark.parametrize(
    "body",
    [
        b"ticket_id=4182&subject=%7B%22ticket_id%22%3A%221%22%7D&contents=c",
        b'ticket_id=4182&subject={"ticket_id":"1"}&contents=c d',
        'ticket_id=4182&subject=가&contents={"ticket_id":"1","subject":"x"}'.encode(),
    ],
)
def test_json_that_a_requester_types_into_a_form_field_takes_over_nothing(body: bytes) -> None:
    assert read(body).ticket == "4182"


def test_text_pasted_unencoded_into_a_form_is_cut_at_the_known_keys_and_taken_as_it_stands() -> (
    None
):
    hook = hd_itsm.load_config("", {}, {}, complete=False).hooks["itsm_new"]
    raw = "ticket_id=4182&subject=50% 할인+%20 & a=b&contents=첫 줄\n둘째 = &x=1&category=OA".encode()
    found, repaired = read_body(raw, hook.known)
    assert found == {
        "ticket_id": "4182",
        "subject": "50% 할인+%20 & a=b",
        "contents": "첫 줄\n둘째 = &x=1",
        "category": "OA",
    }
    assert repaired


@pytest.mark.parametrize(
    ("body", "technician"),
    [
        (
            b"ticket_id=4182&technician=%C8%AB%B1%E6%8C%CB",
            b"\xc8\xab\xb1\xe6\x8c\xcb".decode("cp949"),
        ),
        (b"%74icket_id=4182&technician=%c8%ab%b1%e6%b5%bf&%C0%CC%B8%A7=x", "홍길동"),
        (b"ticket_id=4182&technician=a=b%20c==", "a=b c=="),
        (b"ticket_id=4182&technician=kim%20l&", "kim l"),
        (b"&ticket_id=4182&&technician=kim%20l\r\n", "kim l"),
        (b"ticket_id=4182&technician=50%25", "50%"),
    ],
)
def test_an_encoded_form_is_decoded_in_the_charset_that_fits_it(
    body: bytes, technician: str
) -> None:
    reading = read(body.lstrip(b"&"), "itsm_ass")
    assert (reading.ticket, reading.fields["technician"]) == ("4182", technician)


@pytest.mark.parametrize(
    ("body", "technician"),
    [
        ("ticket_id=4182&note=a b & c&technician=kim", "kim"),
        ("note=가 나&ticket_id=4182&technician=kim&x=1", "kim"),
        ("ticket_id=4182&technician=김 도현&note=a & b", "김 도현&note=a & b"),
        ("ticket_id=4182&technician=&note=a b", ""),
    ],
)
def test_a_word_in_an_unencoded_form_ends_where_a_field_follows(
    body: str, technician: str
) -> None:
    reading = read(body, "itsm_ass")
    assert (reading.ticket, reading.fields["technician"]) == ("4182", technician)


def test_a_form_of_very_many_fields_is_no_crash() -> None:
    body = b"ticket_id=4182&" + b"&".join(b"a%d=1" % number for number in range(5000))
    try:
        found, _ = read_body(body, KNOWN)
    except Unreadable:
        return
    assert found["ticket_id"] == "4182"


form_pieces = st.sampled_from(["&", "=", "%", "%41", "+", "a", " ", "\n", '"', "{", "&x=", "가"])
form_texts = st.lists(form_pieces | texts, max_size=8).map(lambda parts: "가 " + "".join(parts))


def form_keys_in(text: str, keys: tuple[str, ...]) -> bool:
    return any(f"{key}=" in text for key in keys)


@slow_data
@given(form_texts, form_texts, form_texts)
def test_any_text_pasted_into_a_form_is_recovered_exactly(
    writer: str, subject: str, contents: str
) -> None:
    assume(not form_keys_in(writer, ("category", "subject", "contents")))
    assume(not form_keys_in(subject, ("category", "contents")))
    body = f"ticket_id=4182&writer={writer}&subject={subject}&contents={contents}"
    assume(not form_keys_in(contents, ("category",)))
    found, repaired = read_body(body.encode(), KNOWN)
    expected = {"ticket_id": "4182", "writer": writer, "subject": subject, "contents": contents}
    assert found == expected
    assert repaired


# ---- Text pasted unescaped into a JSON template ------------------------------------------------

pieces = st.sampled_from(
    [
        *('"', "\\", "\n", "\r\n", "{", "}", "[", "]", ",", ":", "'", " ", "\t", "a", "1", "가"),
        *('"}', '",', '","', '":"', '\\"', "\\\\", '"]', "true", "null", "😀", "-1.5e3", "//"),
        *(
            '"x":"y"',
            '","x":"y',
            '{"a": "b"}',
            '"ticket_id":"1"',
            "&quot;",
            "&amp;",
            "C:\\temp\\n",
        ),
        *('<a href="b">', "#ticketId#", "{{x}}", "{writer}", "%s", "\u2028", "\u202e", "\x1b"),
    ]
)
pasted = st.lists(pieces | texts, max_size=8).map("".join)

FLAT = (
    '{"ticket_id":"4182","writer":"%s","category":"%s","subject":"%s","contents":"%s"}',
    '{"ticket_id": "4182", "writer": "%s", "category": "%s", "subject": "%s", "contents": "%s"}',
    '{\r\n  "ticket_id" : 4182,\r\n  "writer" : "%s",\r\n  "category" : "%s",\r\n'
    '  "subject" : "%s",\r\n  "contents" : "%s"\r\n}\r\n',
)
NESTED = (
    '{"ticket":{"id":418,"title":"%s","customer":{"email":"%s"}},"article":{"body":"%s"}}',
    '{"article":{"body":"%s"}, "ticket":{"customer":{"email":"%s"},"title":"%s"},"id":"418"}',
    '{\n "data": [{"title": "%s"}],\n "body": "%s",\n "x": {"email": "%s" }\n}',
)
NESTED_KNOWN = frozenset(
    ("ticket", "id", "title", "customer", "email", "article", "body", "data", "x")
)


def values_in(value: Any) -> Iterator[Any]:
    """Every leaf, in order."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from values_in(one)
    else:
        yield value


def holds_json(text: str) -> bool:
    """Whether the first steps would take it: JSON, control characters inside strings allowed."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def keys_in(template: str, known: frozenset[str]) -> list[str]:
    """The known keys of a template, as they follow each other."""
    return [key for key in re.findall(r'"(\w+)"\s*:', template) if key in known]


def innocent(template: str, known: frozenset[str], given_texts: tuple[str, ...]) -> bool:
    """Whether no text holds a known key that is still to come at its place."""
    for number, text in enumerate(given_texts):
        left = template.split("%s")[number]
        before = keys_in("%s".join(template.split("%s")[: number + 1]), known)
        assert left
        if any(f'"{key}"' in text for key in known - set(before)):
            return False
        # What reads as the end of its own value and a further member of the template, with a key
        # that no path names, cannot be told from one.
        members = re.findall(r'"[\s\]}]*,[\s,\[{]*"([^"\\]*)"[\s\[\]{}]*:', text)
        if [key for key in members if key not in known or template in NESTED]:
            return False
        # Nor what reads as the end of the object and a further one: that is refused.
        further = re.findall(r'("?)[\s\]}]*\}[\s,]*\{[\s,]*"([^"\\]*)"\s*:', text)
        if [key for quote, key in further if quote or key in known]:
            return False
    return True


def assert_recovered(template: str, known: frozenset[str], given_texts: tuple[str, ...]) -> None:
    """Whether the texts come out of the damaged template as they went in."""
    body = template % given_texts
    assume(innocent(template, known, given_texts))
    assume(not holds_json(body))
    found, repaired = read_body(body.encode(), known)
    got = [value for value in values_in(found) if value not in ("4182", 4182, 418, "418")]
    wanted = [text for text in given_texts if text not in ("4182", "418")]
    assert got == wanted, body
    assert repaired


@slow_data
@given(st.sampled_from(FLAT), st.tuples(pasted, pasted, pasted, pasted))
@example(FLAT[0], ("kim", "OA", '용지 "걸림"', "첫 줄\n\\\\fs01\\temp\\scan"))
@example(FLAT[0], ("kim", "OA", 'Error "500"', 'a "b" c'))
@example(FLAT[0], ("kim", "OA", 'Monitore 17" 19"', 'a "b" c'))
@example(FLAT[0], ("kim", "OA", "x", '"'))
@example(FLAT[0], ("kim", "OA", "x\\", "ends with a backslash\\"))
@example(FLAT[0], ("kim", "OA", 'says "yes", "no": 1', 'a "b" c'))
@example(FLAT[0], ("kim", "OA", 'x","ticket_id":"1', 'a "b" c'))
@example(FLAT[1], ("kim", "OA", '{"status": "x", "items": [1, 2]}', '{"a": "b"}'))
@example(FLAT[2], ("kim", "OA", '"}', '"quoted"'))
def test_any_text_pasted_into_a_flat_template_is_recovered_exactly(
    template: str, given_texts: tuple[str, str, str, str]
) -> None:
    assert_recovered(template, KNOWN, given_texts)


@slow_data
@given(st.sampled_from(NESTED), st.tuples(pasted, pasted, pasted))
@example(NESTED[0], ('용지 "걸림"', "C:\\Users", "a\nb"))
@example(NESTED[0], ('a "b"}}', '"}', '"}}'))
@example(NESTED[1], ('a "b"}}', '"}', '"}}'))
@example(NESTED[2], ('a "b"}]', '"}', '"}}'))
@example(NESTED[0], ("\\u00", "\\", "\\x"))
def test_any_text_pasted_into_a_nested_template_is_recovered_exactly(
    template: str, given_texts: tuple[str, str, str]
) -> None:
    assert_recovered(template, NESTED_KNOWN, given_texts)


def test_nested_recovery_keeps_the_structure() -> None:
    body = NESTED[0] % ('C:\\Users "a"', "kim@example.com", "첫 줄\n\\둘째")
    assert read_body(body.encode(), NESTED_KNOWN)[0] == {
        "ticket": {"id": 418, "title": 'C:\\Users "a"', "customer": {"email": "kim@example.com"}},
        "article": {"body": "첫 줄\n\\둘째"},
    }


def test_recovery_keeps_the_types_of_other_values() -> None:
    body = '{"ticket_id":4182,"urgent":true,"subject":"a "b" c","score":1.5,"contents":null}'
    found, _ = read_body(body.encode(), KNOWN)
    assert found["ticket_id"] == 4182
    assert found["subject"].startswith('a "b" c')
    assert found["contents"] is None


def test_recovered_text_is_taken_as_it_stands_without_json_escapes() -> None:
    found, _ = read_body(
        rb'{"ticket_id":"1","subject":"a "b" \n \u0041 \\ \"","contents":"c"}', KNOWN
    )
    assert found["subject"] == r'a "b" \n \u0041 \\ \"'
    assert found["contents"] == "c"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"ticket_id":4182,"status": Open, "priority": Medium,"technician":"kim"}', {}),
        ('{"ticket_id":"4182","technician":"kim",}', {}),
        ('{,"ticket_id":"4182",,"technician":"kim" , , }', {}),
        ('{"ticket_id":"4182","tags":[a, "b",],"technician":"kim"}', {}),
        ('{"status": ,"ticket_id": 4182 ,"technician": kim}', {}),
        ('{"ticket_id": 4182,"technician":"a\\n\\"b\\" \\uac00","at": 2026-11-23 15:05:09}',
         {"technician": 'a\n"b" 가'}),
        ('{"ticket_id": INC-4182, "technician": Park Ji-min\n}',
         {"ticket_id": "INC-4182", "technician": "Park Ji-min"}),
        ('{"ticket_id":007,"technician": CORP\\kim }', {"ticket_id": "007", "technician": r"CORP\kim"}),
        ('{"ticket_id": 4182, "technician": kim, lee and "park" }',
         {"technician": 'kim, lee and "park"'}),
        ('{"ticket_id":4182,"subject":"a "b"","status": Open,"technician":"kim"}', {}),
        ('{"subject":"a "b"","x": In Progress,"ticket_id":4182,"technician": {"a": "b" } }',
         {"technician": {"a": "b"}}),
        ('{"ticket_id":4182,"technician": true,"x": Open}', {"technician": True}),
        ('{"ticket_id":4182,"technician": null,"x": Open}', {"technician": None}),
    ],
)  # fmt: skip
def test_values_without_quotes_and_commas_too_many_are_recovered(
    body: str, fields: dict[str, Any]
) -> None:
    reading = read(body, "itsm_ass")
    assert reading.problem == ""
    assert reading.fields == {"ticket_id": "4182", "technician": "kim", **fields}


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", "9" * 101, "[" * 101 + "]" * 101])
def test_what_json_may_not_hold_it_may_not_hold_beside_a_value_without_quotes(value: str) -> None:
    with pytest.raises(Unreadable):
        read_body(f'{{"ticket_id":"1","status": Open,"x":{value}}}'.encode(), KNOWN)


@pytest.mark.parametrize("other", ["subject", "note", "x y"])
@pytest.mark.parametrize(
    "text", ['a "b" c', 'a", b', "\\", '{"level": "x", "n": 1}', '"', 'a"}', "}{"]
)
@pytest.mark.parametrize("where", ["before", "between", "behind"])
def test_a_damaged_text_that_no_path_names_damages_nothing_else(
    where: str, text: str, other: str
) -> None:
    members = ['"ticket_id":"4182"', '"technician":"kim"']
    members.insert(["before", "between", "behind"].index(where), f'"{other}":"{text}"')
    reading = read("{" + ",".join(members) + "}", "itsm_ass")
    assert reading.fields == {"ticket_id": "4182", "technician": "kim"}


@pytest.mark.parametrize(
    "note",
    ['see "ticket_id":"1" there', ', "ticket_id": "1", "technician": "x"', '{"ticket_id":"1"} "',
     QUOTED, f"{QUOTED},{QUOTED}", 'a "b", "c": 1 "ticket_id":"1"', "{&quot;ticket_id&quot;:1}"],
)  # fmt: skip
@pytest.mark.parametrize("template", [
    '{"note":"%s","ticket_id":"9003","technician":"kim"}',
    '{"ticket_id":"9003","note":"%s","technician":"kim"}',
    '{"ticket_id":"9003","technician":"kim","note":"%s"}',
])  # fmt: skip
def test_json_in_a_text_before_the_id_makes_no_other_id_of_it(template: str, note: str) -> None:
    assert read(template % note, "itsm_ass").ticket in ("", "9003")


# ---- A body that was cut -----------------------------------------------------------------------

CUT: dict[str, bytes] = {
    "JSON": dumped({"technician": '가나다 \\ "', "ticket_id": "4182"}),
    "a number last": dumped({"technician": "김", "ticket_id": 4182}),
    "escaped": json.dumps({"technician": '김 "', "ticket_id": "4182"}).encode(),
    "pasted": b'{"technician":"a "b" c","x":{"y":["z"]},"ticket_id":"4182"}',
    "without quotes": b'{"x": Open, "technician":  kim, "ticket_id": 4182 }',
    "HTML": b"{&quot;technician&quot;:&quot;a&quot;,&quot;ticket_id&quot;:4182}",
    "within a string": json.dumps(json.dumps({"ticket_id": "4182"})).encode(),
    "CP949": '{"technician":"홍길똥","ticket_id":"4182"}'.encode("cp949"),
    "UTF-16": '{"technician":"홍길똥","ticket_id":"4182"}'.encode("utf-16"),
    "multipart": multipart([*ASSIGNMENT[1:], ("name=ticket_id", "4182")], "X"),
    "a form": b"technician=%ea%b0%80&ticket_id=4182",
    "a raw form": b"technician=a b&ticket_id=4182",
    "JSON in a form": b"x=" + urllib.parse.quote(QUOTED).encode(),
}


@pytest.mark.parametrize("name", CUT)
def test_a_body_cut_anywhere_has_its_whole_id_or_none(name: str) -> None:
    raw = CUT[name]
    length = str(len(raw))
    whole = read(raw, "itsm_ass", content_length=length)
    assert (whole.ticket, whole.problem) == ("4182", "")
    for size in range(len(raw)):
        reading = read(raw[:size], "itsm_ass", content_length=length)
        assert reading.ticket in ("", "4182"), raw[:size]
        for key, text in reading.fields.items() if reading.ticket else ():
            assert text == whole.fields[key] or text.endswith("\ufffd"), (raw[:size], key)


@pytest.mark.parametrize(
    "row", ["zammad-created.txt", "glpi11-created.txt", "django-helpdesk-created.txt"]
)
def test_a_sample_cut_anywhere_has_its_whole_id_or_none(row: str, tmp_path: Path) -> None:
    hook = hook_of(
        tmp_path,
        "[hooks.x]\nkind = 'new'\nfields = { ticket_id = ['ticket.id', 'item.id'] }\n"
        "[kinds.new]\nopens = true\nbody = { a = '{ticket_id}' }",
    )
    raw = sample(row).body
    whole = read(raw, hook).ticket
    assert whole
    assert {read(raw[:size], hook).ticket for size in range(len(raw))} == {"", whole}


def test_an_id_within_a_text_is_none_where_the_text_was_cut_or_damaged_beside_it() -> None:
    link = '{"attachments":[{"title_link":"https://h/tickets.php?id=4182#top"}]}'
    field = Field((parse_path("attachments.0.title_link"),), re.compile(r"id=(\d+)"))
    known = frozenset(("attachments", "title_link"))
    ids = {
        field.read(hd_itsm.Message(read_body(link[:size].encode(), known)[0]))
        for size in range(60, len(link) + 1)
    }
    assert ids == {MISSING, "4182"}
    damaged = {"attachments": [{"title_link": "id=\ufffd41"}]}
    assert field.read(hd_itsm.Message(damaged)) is MISSING


@pytest.mark.parametrize("cut", ["", "}", '"', '"}', "\r\n", '", ', '"}}'])
def test_missing_and_surplus_closers_are_forgiven(cut: str) -> None:
    body = '{"ticket_id":"4182","subject":"a "b" c","contents":"the end' + cut
    found, repaired = read_body(body.encode(), KNOWN)
    assert (found["ticket_id"], found["subject"]) == ("4182", 'a "b" c')
    assert found["contents"].startswith("the end")
    assert repaired


def test_json_pasted_into_a_text_stays_a_text() -> None:
    log = '{"level": "error", "items": [{"id": 1}, {"id": 2}], "ticket": null}'
    body = f'{{"ticket_id":"4182","subject":"log","contents":"{log}"}}'
    assert read_body(body.encode(), KNOWN)[0] == {
        "ticket_id": "4182",
        "subject": "log",
        "contents": log,
    }


@pytest.mark.parametrize(
    "typed",
    [
        '","ticket_id":"1',
        'a "b" ","ticket_id":"1","writer":"ceo',
        '"},"ticket_id":"1"} "x',
        '\n"ticket_id" : "1", "',
        '"ticket_id":1,"ticket_id":2,"',
    ],
)
@pytest.mark.parametrize("place", ["subject", "contents"])
def test_keys_that_a_requester_types_never_replace_the_trusted_ones(
    typed: str, place: str
) -> None:
    fields = {"subject": "s", "contents": "c", place: typed}
    body = (
        f'{{"ticket_id":"4183","writer":"박지민","category":"기타",'
        f'"subject":"{fields["subject"]}","contents":"{fields["contents"]}"}}'
    )
    reading = read(body)
    assert reading.ticket == "4183"
    assert reading.fields["writer"] == "박지민"


def test_only_the_keys_that_the_hook_names_cut() -> None:
    body = '{"ticket_id":"1","subject":"a "b" c","technician":"kim"}'
    assert read_body(body.encode(), frozenset(("ticket_id", "subject")))[0]["ticket_id"] == "1"
    found, _ = read_body(body.encode(), frozenset(("ticket_id", "subject", "technician")))
    assert found == {"ticket_id": "1", "subject": 'a "b" c', "technician": "kim"}


def test_every_key_in_a_path_of_the_hook_is_known(tmp_path: Path) -> None:
    hook = hook_of(
        tmp_path,
        "[hooks.x]\nfields = { ticket_id = 'a.b.0.\"c d\"', t = ['e[role=x].f', 'g.*.h'] }\n"
        "rules = [{ kind = 'new', when = { 'i.j' = 'new' } }]\n"
        "[kinds.new]\nopens = true\nbody = { a = '{ticket_id}' }",
    )
    assert {"a", "b", "c d", "e", "f", "g", "h", "i", "j"} <= hook.known


# ---- Whatever a requester writes: the ticket is the one at its place, or none ------------------

DECOY = '{"ticket_id":"666","technician":"x"}'
DECOYS = [
    *(
        DECOY,
        f"[{DECOY}]",
        DECOY[1:-1],
        f'","ticket_id":"666",{DECOY}',
        f'"}}{DECOY}',
        f"\n{DECOY}\n",
    ),
    *(json.dumps(DECOY), json.dumps(DECOY)[1:-1], DECOY.replace('"', "&quot;"), "ticket_id: 666"),
    *("ticket_id=666&technician=x", "&ticket_id=666&technician=x", "<ticket_id>666</ticket_id>"),
    *('"ticket_id": 666', ',"ticket_id":666,', urllib.parse.quote(DECOY), "payload=" + DECOY),
    multipart([("name=ticket_id", "666"), ("name=technician", "x")], "B").decode(),
]
notes = st.lists(st.sampled_from(DECOYS) | pieces | texts, max_size=5).map("".join)
Carrier = Callable[[str], bytes]
ID_FIRST: dict[str, Carrier] = {
    "JSON": lambda note: dumped({"ticket_id": "9003", "note": note, "technician": "kim"}),
    "a template": lambda note: f'{{"ticket_id":"9003","note":"{note}","technician":"k"}}'.encode(),
    "a template without quotes": lambda note: (
        f'{{"ticket_id": 9003,"x": Open, "technician":"{note}","y": 1}}'.encode()
    ),
    "a raw form": lambda note: f"ticket_id=9003&technician=a b&note={note}".encode(),
    "multipart": lambda note: multipart([("name=ticket_id", "9003"), ("name=note", note)]),
    "HTML escapes": lambda note: html.escape(
        f'{{"ticket_id":"9003","note":{json.dumps(note)},"technician":"kim"}}'
    ).encode(),
}
ELSEWHERE_TOO: dict[str, Carrier] = {
    "JSON": lambda note: dumped({"note": note, "technician": "kim", "ticket_id": "9003"}),
    "JSON in a string": lambda note: dumped(dumped({"note": note, "ticket_id": 9003}).decode()),
    "a form": lambda note: urllib.parse.urlencode({"note": note, "ticket_id": "9003"}).encode(),
    "a form with JSON": lambda note: (
        b"x=" + urllib.parse.quote(json.dumps({"note": note, "ticket_id": 9003})).encode()
    ),
    "multipart": lambda note: multipart([("name=note", note), ("name=ticket_id", "9003")]),
    "a file": lambda note: multipart([('name=a; filename="ticket_id"', note), ("name=b", "c")]),
    "XML": lambda note: f"<a><ticket_id>9003</ticket_id><note>{note}</note></a>".encode(),
    "prose": lambda note: f"A note: {note}".encode(),
    "a list": lambda note: dumped([{"note": note, "ticket_id": "9003"}]),
}


@slow_data
@given(st.sampled_from([*ID_FIRST.values(), *ELSEWHERE_TOO.values()]), notes, st.integers(0))
def test_what_a_text_holds_chooses_no_ticket_wherever_the_body_ends(
    carrier: Carrier, note: str, size: int
) -> None:
    raw = carrier(note)
    for end in (len(raw), size % len(raw)):
        reading = read(raw[:end], "itsm_ass", content_length=str(len(raw)))
        assert reading.ticket in ("", "9003"), raw[:end]


@slow_data
@given(st.sampled_from(list(ID_FIRST.values())), notes, st.data())
def test_what_a_text_holds_chooses_no_ticket_however_the_body_is_damaged_behind_the_id(
    carrier: Carrier, note: str, data: st.DataObject
) -> None:
    raw = carrier(note)
    behind = raw.index(b"9003") + len(b"9003&quot;")
    at = data.draw(st.integers(behind, len(raw)))
    gone = data.draw(st.integers(0, 3))
    more = data.draw(st.sampled_from(["", *DECOYS, '"', "\\", "}", ",", "&", "\n", "{"]))
    damaged = raw[:at] + more.encode() + raw[at + gone :]
    assert read(damaged, "itsm_ass").ticket in ("", "9003"), damaged


# ---- Whatever bytes come -----------------------------------------------------------------------

byte_pieces = st.sampled_from(
    [
        *(b'{"ticket_id":"1",', b'"subject":"', b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":"),
        *(b"ticket_id=1&", b"subject=", b"&", b"=", b"%", b"%00", b"%ff", b"&quot;", b"&#34;"),
        *(b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\0", b"\xed\xa0\x80", b"\x80", b"\xc8\xab"),
        *(b"&#99999999999;", b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"9" * 101, b"-", b"\n"),
        *(b"&#" + b"9" * 5000 + b";", b"a=1&" * 1001, b"[" * 2000, '"contents":"가'.encode()),
    ]
)
any_bytes = st.binary(max_size=60) | st.lists(
    byte_pieces | st.binary(max_size=4), max_size=12
).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(
    any_bytes, st.sampled_from([KNOWN, NESTED_KNOWN, frozenset(), frozenset(('a"b', "*", "("))])
)
def test_any_bytes_are_an_object_that_can_be_kept_or_unreadable(
    raw: bytes, known: frozenset[str]
) -> None:
    try:
        found, repaired = read_body(raw, known)
    except Unreadable:
        return
    assert isinstance(found, dict)
    assert isinstance(repaired, str)
    for text in values_in(found):
        if isinstance(text, str):
            assert text == storable(text)


@settings(max_examples=200, deadline=None)
@given(any_bytes)
def test_any_bytes_are_read_by_every_built_in_hook(raw: bytes) -> None:
    for name in BUILT_IN:
        reading = read(raw, name)
        assert bool(reading.ticket) is not bool(reading.problem)


def repeated(piece: str, before: str = "", after: str = "") -> Callable[[int], bytes]:
    """Bodies of a size, made of one piece over and over."""
    return lambda size: (before + piece * (size // len(piece.encode())) + after).encode()


START = '{"ticket_id":"1","subject":"a "b" '
HOSTILE: dict[str, Callable[[int], bytes]] = {
    "text": repeated("가나다 ", START, '"}'),
    "quotes": repeated('"', START),
    "quotes and spaces": repeated('" ', START),
    "quotes and commas": repeated('",', START),
    "quotes and colons": repeated('":"', START),
    "backslashes": repeated("\\", START),
    "escaped quotes": repeated('\\"', START),
    "escaped quotes after no quote": repeated('\\"', '{"ticket_id": x"'),
    "escaped quotes before the keys": repeated('\\"', '{"x":"', ',"ticket_id":"1","subject":1}'),
    "open braces in text": repeated("{", START),
    "closers": repeated("}", START),
    "closers and quotes": repeated('"}', START),
    "spaces": repeated(" ", START),
    "spaces before": repeated(" ", "", '{"ticket_id":"1","subject":"a "b""}'),
    "spaces after a key": repeated(" ", '{"ticket_id":"1","subject"', "x"),
    "spaces after a colon": repeated(" ", '{"ticket_id":"1","subject":', '"a "b"'),
    "line breaks": repeated("\n", START, '"}'),
    "known keys": repeated('"subject":"', START),
    "known keys in order": repeated('"subject":"x","contents":"y",', START),
    "unknown keys": repeated('"x":"y",', START),
    "digits": repeated("1", START + '","contents":'),
    "digits and quotes": repeated('1"', START),
    "words": repeated("true", '{"ticket_id":"1","subject":"a "b"","contents":'),
    "minus signs": repeated("-", '{"ticket_id":"1","subject":"a "b"","contents":'),
    "entities": repeated("&quot;", "{"),
    "numeric entities": repeated("&#", "{&quot;"),
    "a long numeric entity": repeated("9", "{&quot;a&#"),
    "ampersands": repeated("&", "ticket_id=1&subject= "),
    "equals signs": repeated("=", "ticket_id=1&subject= "),
    "form keys": repeated("&subject=", "ticket_id=1 "),
    "form fields": repeated("a=b&", "ticket_id=1&"),
    "percent signs": repeated("%", "ticket_id=1&subject="),
    "percent codes": repeated("%EA", "ticket_id=1&subject="),
    "no equals sign": repeated("a"),
    "open braces": repeated("{"),
    "open lists": repeated("["),
    "objects": repeated('{"a":'),
    "a string": repeated('\\"', '"'),
    "strings": repeated('"a"'),
    "nothing but quotes": repeated('"'),
    "JSON within a string": repeated('\\"{', '"', '"'),
    "commas": repeated(",", START),
    "commas and spaces": repeated(", ", START),
    "commas before the keys": repeated(",", "{", '"ticket_id":1}'),
    "colons": repeated(": ", START, '","contents":1}'),
    "colons and quotes": repeated(':"', START, '","contents":1}'),
    "a list": repeated('"a",', START, '","contents":1}'),
    "members and a known key": repeated('"x":y,"contents":', START),
    "members of a list and a known key": repeated('"x","y",1,"contents":', START),
    "keys of nested objects": repeated('"x":{', START, '","contents":1}'),
    "ends of objects": repeated('"},{"', START),
    "further objects": repeated('}{"ticket_id"', START),
    "values without quotes": repeated('"x": y ,', '{"ticket_id":1,', '"z":"a "b""}'),
    "a value without quotes": repeated("a ", '{"ticket_id":1,"subject": '),
    "values that are not there": repeated('"x":,', "{"),
    "text behind the object": repeated('"}', '{"ticket_id":1}'),
    "keys with line breaks": repeated('\n"contents"\n:', START),
    "parts": repeated("--X\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n"),
    "boundaries": repeated("--X\r\n", "--X\r\nA: b\r\n"),
    "boundaries and spaces": repeated("\n--X ", "--X\nA: b\n\n"),
    "spaces behind a boundary": repeated(" ", "--X\nA: b\n\n\n--X", "x"),
    "a head": repeated("A: b\r\n", "--X\r\n"),
    "names in a head": repeated(';name="', "--X\r\nContent-Disposition: form-data"),
    "line breaks in parts": repeated("\r\n", "--X\r\nA: b\r\n"),
}
NESTED_START = '{"ticket":{"id":1,"title":"a "b" '
HOSTILE |= {
    f"nested {name}": repeated(piece, NESTED_START, end)
    for name, piece, end in (
        ("members and a key", '"x":1,"title":1,"body":', ""),
        ("members", '"id":1,"title":"x",', '"},"body":1}'),
        ("members of a broken chain", 'y","id":1,"email":', ""),
        ("objects", '{"id":"x"},', '"},"body":1}'),
        ("closers", '"},{"id":', ""),
    )
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_size_of_a_hostile_body_and_no_faster(name: str) -> None:
    def attempt(raw: bytes) -> None:
        try:
            read_body(raw, NESTED_KNOWN if name.startswith("nested ") else KNOWN)
        except Unreadable:
            return

    assert_linear(attempt, HOSTILE[name])


@pytest.mark.parametrize("piece", ["#", "##", "#a", "{{", "{{a.", "%a.", "{a.", "@{", " ", "a.b"])
def test_time_grows_with_the_size_of_a_hostile_value_and_no_faster(piece: str) -> None:
    def attempt(text: str) -> None:
        hd_itsm.present(text)
        hd_itsm.read_ticket(text)
        with contextlib.suppress(ValueError):
            parse_date(text, SEOUL, ("%d.%m.%Y",))

    assert_linear(attempt, lambda size: piece * (size // len(piece)))


@pytest.mark.parametrize("piece", [";", "; charset", "; charset=", '; boundary="', ";\t", "a"])
def test_time_grows_with_the_size_of_a_hostile_content_type_and_no_faster(piece: str) -> None:
    def attempt(declared: str) -> None:
        assert read(multipart(ASSIGNMENT), "itsm_ass", content_type=declared).ticket == "9003"

    assert_linear(attempt, lambda size: piece * (size // len(piece)), (1 << 10, 1 << 12, 1 << 14))


# ---- Ids and masks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ticket"),
    [
        ("4182", "4182"),
        ("4182.0", "4182.0"),
        (r'"4182"', "4182"),
        (r'"INC-4182/a"', "INC-4182/a"),
        (r'"007"', "007"),
        (r'"티켓 1"', "티켓 1"),
        ("0", "0"),
        ("-5", "-5"),
        ("9223372036854775808", "9223372036854775808"),
        (f'"{"a" * 200}"', "a" * 200),
    ],
)
def test_ids_are_text(value: str, ticket: str) -> None:
    wanted = "4182" if value == "4182.0" else ticket
    reading = read(f'{{"ticket_id": {value}}}')
    assert (reading.ticket, reading.problem, reading.kind) == (wanted, "", "new")


@pytest.mark.parametrize(
    "value",
    [
        *("null", '""', "true", "false", "[]", "{}", '["1"]', '{"id": 1}'),
        *('"NULL"', '"Undefined"', '"NaN"', '"[object Object]"', '"<%= id %>"'),
        *('"undefined"', '"null"', '"None"', '" null "', '"$id"', '"${id}"', '" %s"', '"%{id}"'),
        *('"%service.Id"', '"{id}"', '"{Ticket.TicketId}"', '"##ticket.id##"', '"{{1.id}}"'),
        *(
            f'"{"a" * 201}"',
            '"a\\nb"',
            '"a\\u0000"',
            '"\\u001b[1m"',
            '"\\u007f"',
        ),
        *('"#ticketId#"', '"{{ticket.id}}"', '"#{ticket.id}"'),
    ],
)
def test_what_is_no_id_is_a_problem_that_names_the_hook(value: str) -> None:
    reading = read(f'{{"ticket_id": {value}, "subject": "x"}}')
    assert reading.ticket == ""
    assert "itsm_new" in reading.problem


@pytest.mark.parametrize(
    "ticket", ["undefined-1", "%2e%2e", "none", "nullable", "5$", "100%", "#4182", "a{b}", "@5"]
)
def test_an_id_that_only_looks_like_none_is_one(ticket: str) -> None:
    assert read(dumped({"ticket_id": ticket})).ticket == ticket


def test_a_body_without_the_id_is_a_problem() -> None:
    assert read('{"subject": "x"}').problem
    assert read(b"not JSON").problem


MASKS = [
    *("#technician#", "#기술자#", "##ticket.id##", "##lang.ticket.id##"),
    *("{{ticket.assignee.email}}", "{{ x }}", "{{1.id}}", "{{12.data.id}}"),
    *(
        "#{ticket.owner}",
        "#{x}",
        "#{ticket.x / no such method}",
        "#{7*7}",
        "@{triggerBody()?['id']}",
    ),
    *("{Ticket.TicketId}", "{ticket.owner.name}", "%service.Id%", "%a.b.c%"),
]
TEXTS = [
    *("{{7*7}}", "{{7}}", "{{7.7}}", "{{}}", "{{x}} {{y}}", "a {{x}}", "{{x}", "{{ a b }}"),
    *("a #x#", "#x# ", "#x y#", "# #", "##", "#a", "##x##", "##a.b#", "#5#"),
    *("{x}", "{writer}", "{x.__class__}", "{3.14}", "{a.b} c", "{}", "{'a': 1}"),
    *(
        "%s",
        "%d%%",
        "100%",
        "%TEMP%",
        "%a.b",
        "% a.b %",
        "${jndi:x}",
        "#{a} and #{b}",
        "@kim",
        "$5",
    ),
]


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_left_in_place_counts_as_missing(mask: str) -> None:
    reading = read(dumped({"ticket_id": "1", "technician": mask}), "itsm_ass")
    assert "technician" not in reading.fields


@pytest.mark.parametrize("text", TEXTS)
def test_what_only_looks_like_a_mask_is_text(text: str) -> None:
    reading = read(dumped({"ticket_id": "1", "technician": text}), "itsm_ass")
    assert reading.fields["technician"] == text


def test_a_mask_at_the_first_path_lets_the_next_one_serve() -> None:
    reading = read(dumped({"ticket_id": "1", "data": "#date#", "date": "2026-11-23"}), "itsm_com")
    assert reading.fields["date"] == "2026-11-23"


# ---- Paths and fields --------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "a": {"b": {"c": 1}, "empty": "", "null": None, "d.e": "dotted", "0": "zero"},
    "list": [{"x": 1}, {"x": 2, "y": "two"}, {"x": 3}],
    "team": [
        {"role": "requester", "name": "kim"},
        {"role": "assigned", "name": "lee"},
        {"role": "assigned", "name": "oh"},
        {"role": 5, "name": "five"},
    ],
    "objects": {"UserRequest::15": {"key": "15"}, "other": {"nokey": 1}},
    "nested": [[1, 2], [3, [4]]],
}


def at(path: str | list[str], body: Any = BODY, match: str = "") -> Any:
    """What a field at `path` finds."""
    paths = tuple(parse_path(one) for one in ([path] if isinstance(path, str) else path))
    return Field(paths, re.compile(match) if match else None).read(hd_itsm.Message(body))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.b.c", 1),
        ("a.b", {"c": 1}),
        ("a.0", "zero"),
        ('a."d.e"', "dotted"),
        ('"a"."b"."c"', 1),
        ("list.0.x", 1),
        ("list.-1.x", 3),
        ("list.-3.x", 1),
        ("list.*.y", "two"),
        ("list.*.x", 1),
        ("team[role=assigned].name", "lee"),
        ("team[role=requester].name", "kim"),
        ("team[role=5].name", "five"),
        ("objects.*.key", "15"),
        ("nested.1.1.0", 4),
        ("a.null", None),
        ("a.empty", ""),
    ],
)
def test_a_path_finds(path: str, value: Any) -> None:
    assert at(path) == value


@pytest.mark.parametrize(
    "path",
    ["x", "a.x", "a.b.c.d", "list.3", "list.-4", "list.x", "list.0.0", "team[role=x].name",
     "objects.*.x", "a.b.c.0", "list.99999999999999999999", "a[b=1]"],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_missing(path: str) -> None:
    assert at(path) is MISSING


def test_of_a_list_of_paths_the_first_present_wins() -> None:
    assert at(["x", "a.null", "a.empty", "a.b.c", "list.0.x"]) == 1
    assert at(["x", "a.null"]) is None
    assert at(["x", "y"]) is MISSING


def test_a_star_skips_what_is_empty() -> None:
    assert at("*.v", [{"v": None}, {"v": ""}, {"v": []}, {"v": "found"}]) == "found"


def test_false_and_zero_are_present() -> None:
    assert at(["no", "yes"], {"no": False, "yes": 1}) is False
    assert at(["no", "yes"], {"no": 0, "yes": 1}) == 0


def test_match_takes_the_first_group() -> None:
    link = {"attachments": [{"title_link": "https://h/tickets.php?id=418#x"}]}
    assert at("attachments.0.title_link", link, r"id=(\d+)") == "418"
    assert at("attachments.0.title_link", link, r"nr=(\d+)") is MISSING
    assert at("x", {"x": 4182}, r"(\d\d)$") == "82"
    assert at("y", {"x": 4182}, r"(\d\d)$") is MISSING


@pytest.mark.parametrize("path", ["", "a..b", "a.", "a[", "a[x]", "[x=1]", 'a."', "a]b"])
def test_a_path_that_cannot_be_read_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        parse_path(path)


# ---- Rules -------------------------------------------------------------------------------------


def rules(folder: Path, *whens: str) -> Hook:
    """A hook whose rule n gives the kind k<n>."""
    lines = [f"{{ kind = 'k{n}', when = {when} }}" for n, when in enumerate(whens, 1)]
    kinds = [f"[kinds.k{n}]\nbody = {{ t = '{{ticket_id}}' }}" for n in range(1, len(whens) + 1)]
    hook = "[hooks.x]\nfields = { ticket_id = 'id' }\nrules = [" + ", ".join(lines) + "]"
    return hook_of(folder, "\n".join([hook, *kinds]))


@pytest.mark.parametrize(
    ("when", "body", "holds"),
    [
        ("{ s = 'new' }", {"s": "new"}, True),
        ("{ s = 'new' }", {"s": "newer"}, False),
        ("{ s = 'new' }", {}, False),
        ("{ s = 5 }", {"s": "5"}, True),
        ("{ s = '5' }", {"s": 5}, True),
        ("{ s = [5, 6] }", {"s": 6}, True),
        ("{ s = [5, 6] }", {"s": 7}, False),
        ("{ s = '*' }", {"s": "x"}, True),
        ("{ s = '*' }", {"s": 0}, True),
        ("{ s = '*' }", {"s": ""}, False),
        ("{ s = '*' }", {"s": None}, False),
        ("{ s = '*' }", {"s": []}, False),
        ("{ s = '*' }", {}, False),
        ("{ s = '*' }", {"s": "#technician#"}, False),
        ("{ s = '~^(?!-$).' }", {"s": "-"}, False),
        ("{ s = '~^(?!-$).' }", {"s": "kim"}, True),
        ("{ s = '~ACTION' }", {"s": "x action y"}, False),
        ("{ s = '~(?i)ACTION' }", {"s": "x action y"}, True),
        ("{ s = ['a', '~^b'] }", {"s": "bc"}, True),
        ("{ 's.*' = 'b' }", {"s": ["a", "b"]}, True),
        ("{ 's[r=a].n' = '*' }", {"s": [{"r": "b", "n": 1}, {"r": "a", "n": None}]}, False),
        ("{ 's[r=a].n' = '*' }", {"s": [{"r": "a", "n": None}, {"r": "a", "n": 2}]}, True),
        ("{ s = true }", {"s": True}, True),
        ("{ s = true }", {"s": "true"}, True),
        ("{ s = 'a', t = 'b' }", {"s": "a"}, False),
        ("{ s = 'a', t = 'b' }", {"s": "a", "t": "b"}, True),
    ],
)
def test_a_condition(tmp_path: Path, when: str, body: dict[str, Any], holds: bool) -> None:
    reading = read(dumped({"id": 1, **body}), rules(tmp_path, when))
    assert (reading.kind, reading.ticket, reading.problem) == ("k1" if holds else "", "1", "")


def test_the_first_rule_that_holds_decides(tmp_path: Path) -> None:
    hook = rules(tmp_path, "{ a = 1 }", "{ b = 1 }", "{ b = '*' }")
    kinds = [read(dumped({"id": 1, **body}), hook).kind for body in ({"a": 1, "b": 1}, {"b": 1})]
    assert kinds == ["k1", "k2"]
    assert read(dumped({"id": 1, "b": 2}), hook).kind == "k3"


def test_a_condition_on_a_header_reads_the_header_whatever_its_case(tmp_path: Path) -> None:
    hook = rules(tmp_path, "{ '@header:X-FreeScout-Event' = 'convo.created' }")
    assert read(dumped({"id": 1}), hook, x_freescout_event="convo.created").kind == "k1"
    assert read(dumped({"id": 1}), hook, x_freescout_event="convo.status").kind == ""
    assert read(dumped({"id": 1, "X-FreeScout-Event": "convo.created"}), hook).kind == ""


def test_a_body_that_no_rule_takes_is_no_problem_even_without_an_id(tmp_path: Path) -> None:
    reading = read(b'{"event": "ping"}', rules(tmp_path, "{ s = 'new' }"))
    assert (reading.kind, reading.problem) == ("", "")


# ---- Dates -------------------------------------------------------------------------------------

MOMENT = datetime(2026, 11, 23, 15, 5, 9, tzinfo=SEOUL)


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23T15:05:09+09:00",
        "2026-11-23T06:05:09Z",
        "2026-11-23T06:05:09.000Z",
        "2026-11-23 15:05:09",
        "2026-11-23T15:05:09",
        "20261123T150509",
        "20261123T150509+0900",
        "2026-W48-1T15:05:09",
        1795413909,
        1795413909.0,
        1795413909000,
        "1795413909",
        "1795413909000",
        "11/23/2026 3:05:09 PM",
        "11/23/2026 03:05:09 PM",
        "11/23/2026 3:05:09\u202fPM",
        "11/23/2026 3:05:09\u00a0PM",
        "11/23/2026 15:05:09",
        "2026-11-23 오후 3:05:09",
        "2026-11-23 오후 03:05:09",
        "2026-11-23 PM 3:05:09",
        "2026. 11. 23. 오후 3:05:09",
        "2026.\u00a011.\u00a023. 오후\u202f3:05:09",
        "  2026-11-23T15:05:09+09:00 ",
        "1795413909.0",
        "Mon, 23 Nov 2026 15:05:09 +0900",
        "Mon, 23 Nov 2026 06:05:09 -0000",
        "23 Nov 2026 06:05:09 GMT",
        "Mon, 23 Nov 2026 15:05:09 +0900 (KST)",
    ],
)
def test_a_date_is_read(value: Any) -> None:
    assert parse_date(value, SEOUL) == MOMENT


ZONES = [
    " UTC",
    "UTC",
    " GMT",
    "Z",
    " Z",
    " utc",
    " +00:00",
    "+0000",
    " +00",
    " GMT+0000",
    " UTC+0",
]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "2026-11-23 15:05:09",
            "2026-11-23T15:05:09",
            "2026-11-23 15:05:09.000",
            "20261123T150509",
        ),
        *("11/23/2026 3:05:09 PM", "11/23/2026 15:05:09", "2026-11-23 오후 3:05:09"),
        *("2026. 11. 23. 오후 3:05:09", "2026-11-23 PM 3:05:09", "Mon, 23 Nov 2026 15:05:09"),
        "23.11.26 15:05:09",
    ],
)
def test_a_zone_behind_any_form_of_a_date_counts(text: str, zone: str) -> None:
    formats = ("%d.%m.%y %H:%M:%S",)
    assert parse_date(text, SEOUL, formats) == MOMENT
    assert parse_date(text + zone, SEOUL, formats) == MOMENT.replace(tzinfo=UTC)
    west = timezone(timedelta(hours=-3, minutes=-30))
    assert parse_date(f"{text} -03:30", SEOUL, formats) == MOMENT.replace(tzinfo=west)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("2026-11-23 15:05:09 UTC", "%Y-%m-%d %H:%M:%S %Z"),
        ("2026-11-23 15:05:09 UTC", "%Y-%m-%d %H:%M:%S UTC"),
        ("2026-11-23 15:05:09 GMT", "%Y-%m-%d %H:%M:%S"),
        ("Mon Nov 23 15:05:09 UTC 2026", "%a %b %d %H:%M:%S %Z %Y"),
    ],
)
def test_the_word_for_a_zone_counts_whatever_the_format_makes_of_it(text: str, form: str) -> None:
    assert parse_date(text, SEOUL, (form,)) == MOMENT.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "form", "moment"),
    [
        ("202611270258", "%Y%m%d%H%M", datetime(2026, 11, 27, 2, 58, tzinfo=SEOUL)),
        (202611270258, "%Y%m%d%H%M", datetime(2026, 11, 27, 2, 58, tzinfo=SEOUL)),
        ("1795413909", "%Y%m%d%H%M", MOMENT),  # else in the year 1795
        ("05/06/2026 10:00 UTC", "%d/%m/%Y %H:%M", datetime(2026, 6, 5, 10, tzinfo=UTC)),
        ("15:05 11-12-13", "%H:%M %d-%m-%y", datetime(2013, 12, 11, 15, 5, tzinfo=SEOUL)),
        ("20261123", "%d", datetime(2026, 11, 23, tzinfo=SEOUL)),
    ],
)
def test_the_configured_formats_come_first_and_only_plausible_moments_are_dates(
    value: Any, form: str, moment: datetime
) -> None:
    assert parse_date(value, SEOUL, (form,)) == moment


@pytest.mark.parametrize(
    ("value", "hour"),
    [
        ("2026-11-23 오전 12:05:09", 0),
        ("2026-11-23 오후 12:05:09", 12),
        ("11/23/2026 12:05:09 AM", 0),
        ("11/23/2026 12:05:09 PM", 12),
        ("2026-11-23 오전 3:05:09", 3),
    ],
)
def test_midnight_and_noon_are_told_apart(value: str, hour: int) -> None:
    assert parse_date(value, SEOUL) == MOMENT.replace(hour=hour)


def test_a_day_alone_is_its_beginning_in_the_zone() -> None:
    assert parse_date("2026-11-23", SEOUL) == datetime(2026, 11, 23, tzinfo=SEOUL)


def test_milliseconds_are_kept() -> None:
    moment = datetime(2026, 11, 23, 6, 5, 9, 282000, tzinfo=UTC)
    assert parse_date("2026-11-23T06:05:09.282Z", SEOUL) == moment
    assert parse_date(1795413909282, SEOUL) == moment


@quick
@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.timezones())
    | st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from(["T", " "]),
    st.sampled_from(["seconds", "milliseconds", "microseconds"]),
)
def test_iso_8601_is_read_as_python_writes_it(moment: datetime, mark: str, unit: str) -> None:
    text = moment.isoformat(mark, unit)
    wanted = datetime.fromisoformat(text)
    assert parse_date(text, SEOUL) == (wanted if wanted.tzinfo else wanted.replace(tzinfo=SEOUL))


def test_formats_of_the_configuration_are_read_before_the_built_in_ones() -> None:
    formats = ("%d/%m/%Y %H:%M:%S", "%d.%m.%Y %H:%M")
    assert parse_date("05/06/2026 10:00:00", SEOUL, formats).date() == date(2026, 6, 5)
    assert parse_date("23.11.2026 15:05", SEOUL, formats) == MOMENT.replace(second=0)
    assert parse_date("05/06/2026 10:00:00", SEOUL).date() == date(2026, 5, 6)


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "2026-02-30", "13/13/2026 1:00:00 PM", "0", "4182", True, None, [], {},
     "9" * 30, 10**40, -(10**40), 1e300, "2026-11-23T25:00:00", "#date#",
     "\ud800", "2026-11-23 오후", 631151999, 4133980800, 631151999999, "202611270258",
     "0001-01-01T00:00:00", "15:05", "UTC", "2026-11-23 15:05:09 +25:00",
     "2026-11-23 15:05:09" + " " * 1000 + "UTC", "5" * 100_000, "(" * 100_000],
)  # fmt: skip
def test_what_is_no_date_is_a_value_error_and_nothing_else(value: Any) -> None:
    with pytest.raises(ValueError, match="date"):
        parse_date(value, SEOUL)


@quick
@given(trees)
def test_any_value_is_a_date_or_a_value_error(value: Any) -> None:
    for zone in (SEOUL, None):
        try:
            moment = parse_date(value, zone)
        except ValueError:
            continue
        assert moment.tzinfo is not None


def test_the_dates_of_the_samples_are_all_the_same_moment() -> None:
    for name in ("original-closed.json", "jitbit-closed-date-ko.json", "jitbit-closed-date-us.txt",
                 "jitbit-closed-date-invariant.json", "jitbit-closed-form.txt"):  # fmt: skip
        reading = read(sample(name).body, "itsm_com")
        assert parse_date(reading.fields["date"], SEOUL) == MOMENT, name


# ---- Samples -----------------------------------------------------------------------------------

MANIFEST: list[dict[str, Any]] = json.loads((PAYLOADS / "_manifest.json").read_text("utf-8"))[
    "files"
]


def test_the_manifest_lists_exactly_the_samples() -> None:
    there = {path.name for path in PAYLOADS.iterdir() if path.suffix in (".txt", ".json")}
    assert {row["file"] for row in MANIFEST} == there - {"_manifest.json"}


@pytest.mark.parametrize("row", MANIFEST, ids=lambda row: str(row["file"]))
def test_a_sample_is_read_and_marked_where_it_was_repaired(row: dict[str, Any]) -> None:
    known = KNOWN | {"technician", "data", "date", "body"}
    found, repaired = read_body(sample(row["file"]).body, known, lists=True)
    assert bool(repaired) is (row["parse"] != "json")
    assert row["ticket_id"] in json.dumps(found)


def test_damaged_samples_give_the_text_that_was_typed() -> None:
    quotes = read(sample("jitbit-created-broken-quotes.txt").body)
    assert quotes.fields["subject"] == '3층 복합기 "용지 걸림" 반복 발생'
    assert quotes.fields["contents"].split("\n")[-1].endswith(r"\\fs01\temp\scan 입니다.")
    korean = read(sample("jitbit-created-cp949.txt").body)
    assert (korean.ticket, korean.fields["writer"]) == ("4184", "홍길똥")
    injected = read(sample("jitbit-created-injection.txt").body)
    assert (injected.ticket, injected.fields["writer"]) == ("4183", "박지민")


# ---- At the door -------------------------------------------------------------------------------

SECRET_TEXT = "본문의 비밀"


def bad(value: str) -> bytes:
    return f'{{"ticket_id": "X", "subject": "{SECRET_TEXT}", "x": {value}}}'.encode()


REFUSED: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a number": b"12",
    "a list": b"[1]",
    "no id": dumped({"subject": SECRET_TEXT}),
    **{
        f"id {value}": f'{{"ticket_id": {value}, "subject": "{SECRET_TEXT}"}}'.encode()
        for value in ("null", '""', "{}", "[]", "true", f'"{"a" * 201}"', '"a\\nb"', '"\\u001b"')
    },
    **{f"{levels} levels": bad("[" * levels + "]" * levels) for levels in (1000, 20_000, 200_000)},
    "5000 digits": bad("9" * 5000),
    **{word: bad(word) for word in ("NaN", "Infinity", "1e400")},
    "5000 digits in an entity": b"{&quot;x&quot;:&#" + b"9" * 5000 + b";}",
    "5000 form fields": b"a=1&" * 5000,
    "XML": f"<a>{SECRET_TEXT}<b>{QUOTED}</b></a>".encode(),
    "prose": f"{SECRET_TEXT}: {QUOTED}".encode(),
    "two objects": f'{QUOTED}{{"ticket_id":"5","subject":"{SECRET_TEXT}"}}'.encode(),
    "multipart without an id": multipart([("name=subject", SECRET_TEXT), ("name=note", QUOTED)]),
    "an id that was cut": f'{{"subject":"{SECRET_TEXT}","ticket_id":"41'.encode(),
    "a mask": dumped({"ticket_id": "##ticket.id##", "subject": SECRET_TEXT}),
}


@pytest.fixture(scope="module")
def itsm() -> Iterator[Itsm]:
    with Itsm() as itsm:
        yield itsm


@pytest.fixture(scope="module")
def service(itsm: Itsm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("door")
    fields = {"ticket_id": "@query:id", "technician": "@header:X-Who"}
    around = {"kind": "assign", "fields": fields}
    with Service(folder, service_settings(itsm.url, hooks__around=around)) as service:
        yield service


def test_fields_of_the_query_and_of_the_head_are_read(service: Service) -> None:
    reply = service.post("around?a=1&id=%ED%8B%B0-1&id=2", "{}", {"X-Who": "김도현".encode()})
    assert (reply.status, reply.state) == (200, "held")
    event = service.show(reply.event)
    assert (event["ticket"], event["fields"]["technician"]) == ("티-1", "김도현")


def test_refused_bodies_get_400_and_are_kept_and_good_ones_go_on(service: Service) -> None:
    answers: dict[str, int] = {}
    events: dict[int, bytes] = {}
    for name, body in REFUSED.items():
        reply = service.post("itsm_new", body)
        answers[name] = reply.status
        if reply.status == 400:
            assert reply.json()["error"]
            assert reply.json()["event"] == reply.event
            events[reply.event] = body
    good = service.post("itsm_new", opening("after-the-bad"), wait=10)
    assert answers == dict.fromkeys(REFUSED, 400)
    assert (good.status, good.state) == (200, "delivered")
    kept = {row["event"]: row for row in service.events("--state", "failed")}
    assert set(kept) == set(events)
    for number, row in kept.items():
        assert row["reason"], number
    for number in list(events)[:5]:
        assert service.show(number)["raw"] == events[number].decode()
    for number in events:
        assert len(service.lines(f"event {number} ")) == 1
    assert SECRET_TEXT not in service.log
    assert all(line.isprintable() for line in service.log.split("\n"))


BY_CONTENT_TYPE = {
    "application/json; charset=iso-8859-1": '{"ticket_id":"T","technician":"Müller"}'.encode(
        "latin-1"
    ),
    "multipart/form-data; boundary=X": b"a preamble\n"
    + multipart([("name=technician", "Müller"), ("name=ticket_id", "T")], "X"),
}


@pytest.mark.parametrize("declared", BY_CONTENT_TYPE)
def test_a_body_is_read_by_its_content_type_when_it_comes_when_retried_and_when_explained(
    service: Service, tmp_path: Path, declared: str
) -> None:
    raw = BY_CONTENT_TYPE[declared].replace(b"T", declared[:5].encode())
    reply = service.post("itsm_ass", raw, {"Content-Type": declared})
    assert (reply.status, reply.state) == (200, "held")
    for again in (False, True):
        if again:
            assert service.cli("drop", reply.event, "--why", "to read it anew").code == 0
            assert service.cli("retry", reply.event).code == 0
        event = service.show(reply.event)
        assert (event["ticket"], event["fields"]["technician"]) == (declared[:5], "Müller")
        assert event["repaired"]
    (tmp_path / "body").write_bytes(raw)
    run = service.cli(
        *("explain", "itsm_ass", str(tmp_path / "body"), "--header", f"Content-Type: {declared}"),
        "--json",
    )
    assert run.json()["fields"] == event["fields"]


def test_an_unreadable_body_repeated_gets_the_same_number(service: Service) -> None:
    first, second = (service.post("itsm_new", b"twice unreadable") for _ in range(2))
    assert (first.status, second.status) == (400, 400)
    assert first.event == second.event


ODD_TEXTS = {
    "lone surrogate": ("\\ud800 x", "\ufffd x"),
    "NUL": ("a\\u0000b", "a\ufffdb"),
    "ESC": ("\\u001b[31m red", "\x1b[31m red"),
    "newline": ("a\\r\\nb - 2026 - ERROR - forged", "a\r\nb - 2026 - ERROR - forged"),
    "right to left": ("\\u202eabc\\u2066", "\u202eabc\u2066"),
    "sql": ("'; DROP TABLE events; --", "'; DROP TABLE events; --"),
    "template": ("{{7*7}} {x.__class__} {writer} %s %(a)s ${jndi:x}",) * 2,
    "html": ("<script>alert(1)</script>",) * 2,
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_reach_the_itsm_byte_for_byte(service: Service, itsm: Itsm, name: str) -> None:
    written, meant = ODD_TEXTS[name]
    ticket = f"odd-{name.replace(' ', '-')}"
    body = "".join(f',"{key}":"{written}"' for key in OPENING[1:])
    reply = service.post("itsm_new", f'{{"ticket_id":"{ticket}"{body}}}', wait=10)
    assert (reply.status, reply.state) == (200, "delivered")
    sent = received_of(itsm, ticket, service).json()
    for key in ("req_user_id", "reg_user_id", "request_purpose", "title", "contents"):
        assert sent[key] == meant, key
    assert all(line.isprintable() for line in service.log.split("\n"))


def received_of(itsm: Itsm, ticket: str, service: Service) -> Received:
    """The request that a ticket became: found by the id that the ITSM gave it."""
    request_id = service.mappings()[ticket]
    return next(one.received for one in itsm.created if one.request_id == request_id)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("cp949", "application/json"),
        ("cp949", "application/json; charset=utf-8"),
        ("utf-8", "application/json; charset=euc-kr"),
        ("utf-8-sig", "text/plain"),
        ("utf-16", "application/json"),
        ("utf-8", "image/png"),
    ],
)
def test_the_declared_encoding_is_a_hint_at_most(
    service: Service, itsm: Itsm, encoding: str, declared: str
) -> None:
    ticket = f"enc-{encoding}-{len(declared)}"
    body = json.dumps(opening(ticket, subject="뷁 햏"), ensure_ascii=False).encode(encoding)
    reply = service.post("itsm_new", body, {"Content-Type": declared}, wait=10)
    assert (reply.status, reply.state) == (200, "delivered")
    sent = received_of(itsm, ticket, service).json()
    assert (sent["title"], sent["contents"]) == ("뷁 햏", "용지가 걸립니다.")


def test_a_megabyte_of_damage_is_answered(service: Service) -> None:
    text = 'a "b" \\ ' * 110_000
    body = f'{{"ticket_id":"big","writer":"w","category":"c","subject":"s","contents":"{text}"}}'
    reply = service.post("itsm_new", body, wait=20)
    assert (reply.status, reply.state) == (200, "delivered")
