"""Fields to a request: every type and every byte kept, and no text that leads anywhere else."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hd_itsm import (
    FILTERS,
    MISSING,
    Clock,
    Request,
    RequestTemplate,
    Scope,
    Untranslatable,
    html_to_text,
    local_zone,
    parse_template,
    parse_tree,
)
from test_reading import assert_linear, texts, trees

SEOUL = timezone(timedelta(hours=9))
RECEIVED = datetime(2026, 11, 23, 15, 30, 0, tzinfo=UTC)  # in Seoul it is half past midnight
NOTHING: Mapping[str, Any] = {}

quick = settings(max_examples=200, deadline=None)


def scope(
    fields: Mapping[str, Any] = NOTHING,
    *,
    values: Mapping[str, Any] = NOTHING,
    tables: Mapping[str, Mapping[str, str]] = NOTHING,
    zone: Any = SEOUL,
    due_days: int = 7,
    formats: tuple[str, ...] = (),
    received: datetime = RECEIVED,
    request_id: str | None = "R-1",
    ticket: str = "4182",
) -> Scope:
    """What an event's placeholders may name."""
    clock = Clock(zone, due_days, formats)
    at = received.timestamp()
    return Scope(fields, values, tables, clock, 17, ticket, at, request_id)


def request_to(
    body: Any = None,
    url: str = "https://itsm.example.com/api",
    method: str = "POST",
    headers: Mapping[str, str] = NOTHING,
    form: Mapping[str, Any] = NOTHING,
    encoding: str = "utf-8",
) -> RequestTemplate:
    """A request with `body` to `url`."""
    return RequestTemplate(
        method=method,
        url=parse_template(url),
        headers={name: parse_template(text) for name, text in headers.items()},
        body=parse_tree({} if body is None else body),
        form={name: parse_tree(content) for name, content in form.items()},
        encoding=encoding,
    )


def sent(template: str, fields: Mapping[str, Any] = NOTHING, **more: Any) -> Any:
    """What the ITSM finds in the JSON where `template` stands."""
    request = request_to({"x": template}).render(scope(fields, **more))
    return json.loads(request.body)["x"]


def url_of(template: str, fields: Mapping[str, Any] = NOTHING, **more: Any) -> str:
    """The address that `template` becomes."""
    return request_to(url=template).render(scope(fields, **more)).url


# ---- Types and texts ---------------------------------------------------------------------------

ODD = [
    "{writer}", "{{writer}}", "{x.__class__}", "{0}", "{", "}", "%s", "%(a)s", "%", "${jndi:x}",
    "홍길동", "뷁", "😀\u200d\U0001f469", "\u202eabc", "a\r\nb\tc", "\x1b[31m", "\\n", "\\", "'",
    '"',
    "9223372036854775808", "007", "1e5", "null", "true", "yes", "NaN", " padded ",
    "<b>&amp;</b>", "'; DROP TABLE x;--", "$x",
    "\ufeff", "\u2028", "é", "e\u0301", "", "{writer|html}", "#technician", "~x", "*",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_text_arrives_byte_for_byte(text: str) -> None:
    body = {"alone": "{subject}", "within": "a {subject} b", "deep": [{"x": "{subject}"}]}
    request = request_to(body).render(scope({"subject": text, "writer": "must not appear"}))
    found = json.loads(request.body.decode("utf-8"))
    assert found == {"alone": text, "within": f"a {text} b", "deep": [{"x": text}]}
    assert b"must not appear" not in request.body


@quick
@given(texts)
def test_any_text_arrives_byte_for_byte_alone_and_within_another(text: str) -> None:
    fields = {"a": text, "b": "{a}"}
    assert sent("{a}", fields) == text
    assert sent("<{a}{b}{a}>", fields) == f"<{text}{{a}}{text}>"


@quick
@given(trees)
@example(2**63)
@example(10**99)
@example(0.1)
@example([1, "1", 1.0, None, True])
def test_a_leaf_that_is_one_placeholder_keeps_the_json_type(value: Any) -> None:
    found = sent("{a}", {"a": value})
    assert json.dumps(found) == json.dumps(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"), (5.0, "5"), (5.5, "5.5"), (2**63, "9223372036854775808"), (True, "true"),
        (False, "false"), (None, ""), ("007", "007"), ([1, "가"], '[1,"가"]'),
        ({"a": 1}, '{"a":1}'),
    ],
)  # fmt: skip
def test_within_a_text_a_value_is_text(value: Any, text: str) -> None:
    assert sent("<{a}>", {"a": value}) == f"<{text}>"
    assert sent("{a|text}", {"a": value}) == text


def test_literals_of_the_template_keep_their_type_and_place() -> None:
    body = {"n": 2, "f": 1.5, "t": True, "l": [1, "{a}", [{"x": "{a}"}]], "o": {}, "e": []}
    found = json.loads(request_to(body).render(scope({"a": "v"})).body)
    assert found == {"n": 2, "f": 1.5, "t": True, "l": [1, "v", [{"x": "v"}]], "o": {}, "e": []}
    assert list(found) == list(body)


def test_keys_of_the_body_are_no_templates() -> None:
    found = json.loads(request_to({"{a}": "{a}"}).render(scope({"a": "v"})).body)
    assert found == {"{a}": "v"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{a}}", "{a}"),
        ("{{{a}}}", "{v}"),
        ("{{", "{"),
        ("}}", "}"),
        ("{{}}", "{}"),
        ("{{{{a}}}}", "{{a}}"),
        ("{a}{a}", "vv"),
        ("", ""),
    ],
)
def test_doubled_braces_are_literal_ones(template: str, text: str) -> None:
    assert sent(template, {"a": "v"}) == text


@pytest.mark.parametrize(
    "template", ["{", "}", "{a", "a}", "{a}}", "{{a}", "{}", "{|text}", "{a{b}}"]
)
def test_a_template_with_a_single_brace_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"[{}]"):
        parse_template(template)


def test_the_body_is_utf_8_without_escapes_and_says_so() -> None:
    request = request_to({"x": "{a}"}).render(scope({"a": "가😀"}))
    assert request.body == '{"x":"가😀"}'.encode()
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"


def test_the_fields_of_a_form_carry_texts_and_json() -> None:
    form = {"json_data": {"x": "{a}"}, "who": "{a}", "list": ["{a}"]}
    text = "가 & b=c+d%20\n{}"
    request = request_to(form=form).render(scope({"a": text}))
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    pairs = urllib.parse.parse_qsl(request.body.decode("ascii"), strict_parsing=True)
    assert [name for name, _ in pairs] == ["json_data", "who", "list"]
    assert json.loads(pairs[0][1]) == {"x": text}
    assert pairs[1][1] == text
    assert json.loads(pairs[2][1]) == [text]


def test_a_text_is_sent_as_it_stands_with_the_content_type_that_is_given() -> None:
    xml = {"content-type": "application/xml"}
    request = request_to("<subject>{a}</subject>", headers=xml).render(scope({"a": "가"}))
    assert request.body == "<subject>가</subject>".encode()
    assert request.headers == {"content-type": "application/xml"}


def test_a_request_may_be_in_the_encoding_that_the_receiver_wants() -> None:
    fields = {"a": "가😀"}
    text = request_to("{a}", encoding="cp949").render(scope(fields))
    assert text.body == "가?".encode("cp949")
    assert text.headers["Content-Type"] == "text/plain; charset=cp949"
    form = request_to(form={"x": "{a}"}, encoding="cp949").render(scope({"a": "가"}))
    assert form.body == b"x=%B0%A1"
    whole = request_to({"x": "{a}"}, encoding="cp949").render(scope(fields))
    assert json.loads(whole.body.decode("cp949")) == {"x": "가😀"}


def test_without_a_body_nothing_is_sent_and_no_type_is_told() -> None:
    request = RequestTemplate("POST", parse_template(BASE)).render(scope())
    assert (request.body, request.headers) == (b"", {})


@pytest.mark.parametrize(
    "ticket", ["1/../../x", "1\\..\\x", "../x", "..", ".", "..;", "1/..;a=b/x"]
)
def test_no_id_leads_to_another_endpoint_however_often_it_is_decoded(ticket: str) -> None:
    with pytest.raises(Untranslatable, match="elsewhere"):
        url_of(f"{BASE}/{{ticket_id}}/notes", ticket=ticket)


# ---- What placeholders may name ----------------------------------------------------------------


def test_fields_come_before_constants_and_computed_values_before_both() -> None:
    values = {"a": "constant", "b": "constant", "event": "constant"}
    more: dict[str, Any] = {"values": values}
    fields = {"a": "field", "event": "field"}
    assert sent("{a} {b} {event}", fields, **more) == "field constant 17"


def test_a_ticket_is_named_to_the_itsm_without_its_desk() -> None:
    fields = {"ticket_id": "17", "desk": "it"}
    assert sent("{ticket_id} {desk}", fields, ticket="it:17") == "17 it"


def test_the_names_of_an_event() -> None:
    template = "{request_id} {ticket_id} {event} {received} {today} {expected_date}"
    words = "R-1 4182 17 2026-11-24T00:30:00+09:00 2026-11-24 2026-12-01"
    assert sent(template) == words
    assert sent("{event}") == 17


def test_a_constant_keeps_its_type() -> None:
    assert sent("{priority}", values={"priority": 2}) == 2
    assert sent("{flag}", values={"flag": True}) is True


@pytest.mark.parametrize(
    ("zone", "today", "expected"),
    [("+09:00", "2026-11-24", "2026-12-01"), ("-05:00", "2026-11-23", "2026-11-30"),
     ("UTC", "2026-11-23", "2026-11-30"), ("Asia/Seoul", "2026-11-24", "2026-12-01"),
     ("+0530", "2026-11-23", "2026-11-30")],
)  # fmt: skip
def test_days_are_those_of_the_zone(zone: str, today: str, expected: str) -> None:
    assert sent("{today} {expected_date}", zone=local_zone(zone)) == f"{today} {expected}"


def test_the_zone_local_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for name, today in (("Asia/Seoul", "2026-11-24"), ("America/New_York", "2026-11-23")):
            monkeypatch.setenv("TZ", name)
            time.tzset()
            assert sent("{today}", zone=local_zone("local")) == today
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "name", ["Asia/Soul", "", "../etc/passwd", "/etc/passwd", "+9", "9", "+25:00"]
)
def test_a_zone_that_is_none_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        local_zone(name)


@pytest.mark.parametrize(
    ("days", "expected"), [(0, "2026-11-24"), (-1, "2026-11-23"), (100, "2027-03-04")]
)
def test_due_days_are_added_to_the_day_of_receipt(days: int, expected: str) -> None:
    assert sent("{expected_date}", due_days=days) == expected


@pytest.mark.parametrize(
    ("opened", "hours", "minutes"),
    [
        ("2026-11-23T15:30:00Z", 0, 0),
        ("2026-11-23T14:30:01Z", 0, 59),
        ("2026-11-23T14:30:00Z", 1, 60),
        ("2026-11-23T10:29:59Z", 5, 300),
        ("2026-11-24 00:30:00", 0, 0),  # in the zone
        ("2026-11-23 15:05:09", 9, 564),
        ("2026-11-23 오후 3:05:09", 9, 564),
        (1795448999, 0, 0),
        ("2026-11-23T15:30:01Z", 0, 0),  # after its receipt: never below 0
        ("2027-01-01", 0, 0),
        ("2025-11-23T15:30:00Z", 8760, 525600),
    ],
)
def test_hours_are_whole_and_never_below_0(opened: Any, hours: int, minutes: int) -> None:
    fields = {"date": opened}
    if opened == 1795448999:
        fields = {"date": int(RECEIVED.timestamp()) - 1}
    assert (sent("{hours}", fields), sent("{minutes}", fields)) == (hours, minutes)
    assert sent("{hours|text}", fields) == str(hours)


def test_hours_count_to_the_receipt_and_not_to_now() -> None:
    long_ago = datetime(2001, 1, 1, 12, tzinfo=UTC)
    assert sent("{hours}", {"date": "2001-01-01T10:00:00Z"}, received=long_ago) == 2


def test_own_date_formats_count_for_hours() -> None:
    fields = {"date": "23.11.2026 10:30"}
    assert sent("{hours}", fields, formats=("%d.%m.%Y %H:%M",)) == 14
    with pytest.raises(Untranslatable, match="date"):
        sent("{hours}", fields)


@pytest.mark.parametrize("value", [None, "", "#date#", MISSING])
def test_hours_without_a_date_are_an_error_or_the_default(value: Any) -> None:
    fields = {} if value is MISSING else {"date": value}
    with pytest.raises(Untranslatable, match="date"):
        sent("{hours}", fields)
    assert sent("{hours|or:0|text}", fields) == "0"


@quick
@given(trees, st.sampled_from(["{hours}", "{minutes}", "{date|date:%Y%m%d}", "{date|date:%H:%M}"]))
@example("0001-01-01T00:00:00+14:00", "{date|date:%Y%m%d}")
@example("9999-12-31T23:59:59-14:00", "{date|date:%Y%m%d}")
@example("0001-01-01T00:00:00+14:00", "{hours}")
@example("9999-12-31T23:59:59-14:00", "{minutes}")
def test_any_date_is_translated_or_untranslatable(value: Any, template: str) -> None:
    for zone in (SEOUL, timezone(timedelta(hours=-12)), None):
        try:
            sent(template, {"date": value}, zone=zone)
        except Untranslatable:
            continue


@pytest.mark.parametrize("days", [3650, -3650])
def test_a_far_expected_date_is_no_crash(days: int) -> None:
    assert len(sent("{expected_date}", due_days=days)) == 10


# ---- Filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "value", "result"),
    [
        ("{a|number}", "5", 5),
        ("{a|number}", " 007 ", 7),
        ("{a|number}", "-12", -12),
        ("{a|number}", "1.50", 1.5),
        ("{a|number}", "9223372036854775808", 2**63),
        ("{a|number}", 2**63, 2**63),
        ("{a|number}", 1.5, 1.5),
        ("{a|max:3}", "가나다라", "가나다"),
        ("{a|max:3}", "가", "가"),
        ("{a|max:3}", 12345, "123"),
        ("{a|max:0}", "abc", ""),
        ("{a|bytes:6}", "가나다라", "가나"),
        ("{a|bytes:7}", "가나다라", "가나"),
        ("{a|bytes:8}", "가나다라", "가나"),
        ("{a|bytes:2}", "가나", ""),
        ("{a|bytes:5}", "a😀b", "a😀"),
        ("{a|bytes:4}", "a😀b", "a"),
        ("{a|html}", "<p>a &amp; b</p><p>c</p>", "a & b\nc"),
        ("{a|date:%Y%m%d}", "2026-11-23T15:05:09Z", "20261124"),
        ("{a|date:%Y년 %m월 %d일 %H:%M}", "2026-11-23T06:05:09Z", "2026년 11월 23일 15:05"),
        ("{a|date:%d.%m.%Y}", 1795413909, "23.11.2026"),
        ("{a|or:x}", "", "x"),
        ("{a|or:x}", None, "x"),
        ("{a|or:x}", "#mask#", "x"),
        ("{a|or:x}", [], "x"),
        ("{a|or:x}", 0, 0),
        ("{a|or:x}", False, False),
        ("{a|or:x}", "y", "y"),
        ("{a|or:}", None, ""),
        ("{a|or:a:b, c}", None, "a:b, c"),
        ("{a|or:(제목 없음)}", "", "(제목 없음)"),
        ("{b|or:x}", "", "x"),
        ("{b|or:5|number}", "", 5),
        ("{b|html|or:-}", "", "-"),
        ("{a|html|or:-}", "<p> </p>", "-"),
        ("{a|or:가나다|max:2}", "", "가나"),
        ("{a|max:2|or:x}", "", "x"),
        ("{a|html|max:3|text}", "<b>가나다라</b>", "가나다"),
        ("{a|text|number}", 5, 5),
        ("{ a | max:2 }", "abc", "ab"),
    ],
)
def test_a_filter(template: str, value: Any, result: Any) -> None:
    found = sent(template, {"a": value})
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    "value", ["", "x", "5 h", "1_000", "٣", "0x10", "NaN", "1e5", "--1", True, None, []]
)
def test_what_is_no_number_is_untranslatable(value: Any) -> None:
    with pytest.raises(Untranslatable):
        sent("{a|number}", {"a": value})


@pytest.mark.parametrize("value", ["", "yesterday", "2026-02-30", True, [], "9" * 30])
def test_what_is_no_date_is_untranslatable(value: Any) -> None:
    with pytest.raises(Untranslatable):
        sent("{a|date:%Y}", {"a": value})


def test_100_000_korean_letters_fit_into_4000_bytes() -> None:
    text = "".join(chr(0xAC00 + number % 11172) for number in range(100_000))
    found = sent("{a|html|bytes:4000}", {"a": text})
    assert found == text[:1333]
    assert len(found.encode("utf-8")) == 3999


@quick
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 60))
def test_bytes_cuts_at_the_last_character_that_fits(text: str, most: int) -> None:
    found = sent(f"{{a|bytes:{most}}}", {"a": text})
    assert text.startswith(found)
    assert len(found.encode()) <= most
    assert found == text or len(text[: len(found) + 1].encode()) > most


def test_every_filter_is_tested_here() -> None:
    assert set(FILTERS) == {
        *("text", "number", "html", "max", "bytes", "date", "or", "utc", "epoch", "epoch_ms"),
        *("line", "bmp", "xml", "to_html", "or_null", "or_omit"),
    }


# ---- Tables ------------------------------------------------------------------------------------

USERS = {"홍길동": "gdhong", "5": "five", "brace": "{}", "": "nobody"}


@pytest.mark.parametrize(
    ("template", "value", "result"),
    [
        ("{a|users}", "홍길동", "gdhong"),
        ("{a|users}", 5, "five"),
        ("{a|users}", "brace", "{}"),
        ("{a|users}", "kim", "kim@example.com"),
        ("{a|users}", "{}", "{}@example.com"),
        ("{a|users}", "{writer}", "{writer}@example.com"),
        ("{a|users|max:2}", "홍길동", "gd"),
        ("{a|max:3|users}", "홍길동 과장", "gdhong"),
        ("{a|or:홍길동|users}", None, "gdhong"),
        ("<{a|users}>", "홍길동", "<gdhong>"),
    ],
)
def test_a_table_is_a_filter(template: str, value: Any, result: str) -> None:
    tables = {"users": {**USERS, "*": "{}@example.com"}}
    assert sent(template, {"a": value}, tables=tables) == result


def test_what_a_table_without_a_star_does_not_list_is_untranslatable_and_named() -> None:
    with pytest.raises(Untranslatable, match=r"kim.*users"):
        sent("{a|users}", {"a": "kim"}, tables={"users": USERS})


def test_a_star_as_the_value_is_no_wildcard() -> None:
    assert sent("{a|users}", {"a": "*"}, tables={"users": {"*": "{}@x"}}) == "*@x"


# ---- What cannot be translated -----------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["{subject}", "a {subject} b", "{subject|max:5}", "{subject|html}"]
)
def test_a_missing_field_without_a_default_is_untranslatable_and_named(template: str) -> None:
    with pytest.raises(Untranslatable, match="subject"):
        sent(template, {"other": 1})


def test_a_missing_field_behind_a_table_is_untranslatable_and_named() -> None:
    with pytest.raises(Untranslatable, match="technician"):
        sent("{technician|users}", {}, tables={"users": {"*": "{}"}})


def test_a_missing_request_id_is_untranslatable_and_named() -> None:
    with pytest.raises(Untranslatable, match="request_id"):
        sent("{request_id}", request_id=None)
    assert sent("{request_id|or:none}", request_id=None) == "none"


# ---- Addresses ---------------------------------------------------------------------------------

BASE = "https://itsm.example.com/api/requests"


@pytest.mark.parametrize(
    ("request_id", "path"),
    [
        ("R-1", "R-1"),
        ("a/b", "a%2Fb"),
        ("a?b", "a%3Fb"),
        ("a#b", "a%23b"),
        ("a b", "a%20b"),
        ("a+b", "a%2Bb"),
        ("%2e%2e", "%252e%252e"),
        ("a%2fb", "a%252fb"),
        ("..a", "..a"),
        ("...", "..."),
        ("//evil.example.com", "%2F%2Fevil.example.com"),
        ("@evil.example.com", "%40evil.example.com"),
        ("a;b=c", "a%3Bb%3Dc"),
        ("가", "%EA%B0%80"),
        ("😀", "%F0%9F%98%80"),
        ("a\r\nX: y", "a%0D%0AX%3A%20y"),
        ("{request_id}", "%7Brequest_id%7D"),
    ],
)
def test_a_value_in_the_address_is_percent_encoded(request_id: str, path: str) -> None:
    assert url_of(f"{BASE}/{{request_id}}/close", request_id=request_id) == f"{BASE}/{path}/close"
    query = url_of(f"{BASE}?q={{request_id}}&n=1", request_id=request_id)
    assert query == f"{BASE}?q={path}&n=1"


@pytest.mark.parametrize("value", [".", ".."])
@pytest.mark.parametrize("template", ["/{a}", "/{a}/close", "/x/{a}?q=1", "/{a}#x"])
def test_dots_alone_as_a_segment_are_untranslatable(template: str, value: str) -> None:
    with pytest.raises(Untranslatable, match="segment"):
        url_of(BASE + template, {"a": value})


@pytest.mark.parametrize(
    ("template", "fields"),
    [("/{a}{b}", {"a": ".", "b": "."}), ("/.{a}/x", {"a": "."}), ("/{a}./x", {"a": ""}),
     ("/%2e{a}", {"a": "."}), ("/{a}/x", {"a": ""})],
)  # fmt: skip
def test_no_combination_of_values_leads_elsewhere(template: str, fields: dict[str, Any]) -> None:
    with pytest.raises(Untranslatable):
        url_of(BASE + template, fields)


def test_dots_in_the_query_are_just_text() -> None:
    assert url_of(f"{BASE}?q={{a}}", {"a": ".."}) == f"{BASE}?q=.."


@quick
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example("..")
@example("x/../../y")
@example("\\\\evil")
@example("?x#y")
def test_no_text_reaches_another_address(text: str) -> None:
    template = f"{BASE}/{{a}}/close?q={{a}}"
    try:
        url = url_of(template, {"a": text})
    except Untranslatable:
        segments = {segment.partition(";")[0] for segment in re.split(r"[/\\]", text)}
        assert not text or {".", ".."} & segments
        return
    parts = urllib.parse.urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "itsm.example.com", "")
    first, last = "/api/requests/", "/close"
    assert parts.path.startswith(first)
    assert parts.path.endswith(last)
    segment = parts.path[len(first) : -len(last)]
    assert "/" not in segment
    assert urllib.parse.unquote(segment) == text
    assert urllib.parse.parse_qs(parts.query, keep_blank_values=True) == {"q": [text]}
    assert url.isascii()


def test_filters_and_defaults_serve_in_addresses_too() -> None:
    tables = {"users": {"*": "u/{}"}}
    url = url_of(f"{BASE}/{{a|users}}/{{b|or:none}}/{{event}}", {"a": "x"}, tables=tables)
    assert url == f"{BASE}/u%2Fx/none/17"


@pytest.mark.parametrize(
    ("template", "fields", "value"),
    [
        ("{a|utc|date:%Y-%m-%d %H:%M}", {"a": "2026-11-23T15:05:09+09:00"}, "2026-11-23 06:05"),
        ("{a|date:%Y-%m-%d %H:%M}", {"a": "2026-11-23T06:05:09Z"}, "2026-11-23 15:05"),
        ("{a|utc}", {"a": "2026-11-23T15:05:09+09:00"}, "2026-11-23T06:05:09+00:00"),
        ("{a|epoch}", {"a": "2026-11-23T15:05:09+09:00"}, 1795413909),
        ("{a|epoch_ms}", {"a": "2026-11-23T15:05:09.250+09:00"}, 1795413909250),
        ("{a|utc|epoch}", {"a": "2026-11-23T15:05:09+09:00"}, 1795413909),
        ("{a|line}", {"a": " one\r\n\ttwo\u2028three "}, "one two three"),
        ("{a|bmp}", {"a": "가😀나\U0001f469\u200d"}, "가나\u200d"),
        ("{a|xml}", {"a": "<a b='c'>&\"\x0b]]>"}, "&lt;a b=&#x27;c&#x27;&gt;&amp;&quot;]]&gt;"),
        ("{a|to_html}", {"a": "1 < 2\nthree & 'four'"}, "1 &lt; 2<br>three &amp; 'four'"),
        ("{a|or_null}", {}, None),
        ("{a|or_null}", {"a": ""}, None),
        ("{a|or_null}", {"a": 0}, 0),
        ("{a|text|or_null}", {"a": "x"}, "x"),
    ],
)
def test_further_filters(template: str, fields: dict[str, Any], value: Any) -> None:
    assert sent(template, fields) == value


def test_what_is_missing_may_be_left_out_with_its_key() -> None:
    body = {"a": "{a|or_omit}", "b": ["{a|or_omit}", "x"], "c": {"d": "{b|or_omit}"}}
    headers = {"X-A": "{a|or_omit}", "X-B": "{b|or_omit}"}
    request = request_to(body, headers=headers).render(scope({"b": "here"}))
    assert json.loads(request.body) == {"b": ["x"], "c": {"d": "here"}}
    assert {name for name in request.headers if name.startswith("X-")} == {"X-B"}


def test_the_values_of_a_table_keep_their_type() -> None:
    tables = {"levels": {"high": 1, "vip": True, "low": "three", "*": 9}}
    for text, value in (("high", 1), ("vip", True), ("low", "three"), ("?", 9)):
        assert sent("{a|levels}", {"a": text}, tables=tables) == value


# ---- Headers -----------------------------------------------------------------------------------


def headers_of(template: str, fields: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request whose X-Text is `template`."""
    return dict(request_to(headers={"X-Text": template}).render(scope(fields)).headers)


def test_a_header_may_hold_placeholders() -> None:
    assert headers_of("t={a}", {"a": "x"})["X-Text"] == "t=x"


def test_a_header_carries_other_letters_as_utf_8() -> None:
    text = headers_of("{a}", {"a": "가"})["X-Text"]
    assert text.encode("latin-1").decode("utf-8") == "가"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "a\x7fb", "a\x1bb", "\u2028"])
def test_a_header_with_control_characters_is_untranslatable(value: str) -> None:
    with pytest.raises(Untranslatable, match="X-Text"):
        headers_of("{a}", {"a": value})


# ---- HTML to text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("plain 텍스트", "plain 텍스트"),
        ("첫 줄\n둘째 줄", "첫 줄\n둘째 줄"),
        ("3 < 5 && 7 > 6", "3 < 5 && 7 > 6"),
        ("a &lt;b&gt; &amp;amp; &#44032; &#xAC00; &nbsp;c", "a <b> &amp; 가 가 \u00a0c"),
        ("<p>첫 줄</p><p>둘째 줄</p>", "첫 줄\n둘째 줄"),
        ("<div>오류</div>\n<div>코드</div>", "오류\n코드"),
        ("a<br>b<br/>c<BR />d", "a\nb\nc\nd"),
        ("<b>굵은</b> <i>글</i>씨", "굵은 글씨"),
        ("<ul><li>하나</li><li>둘</li></ul>", "- 하나\n- 둘"),
        ("<p>목록</p><ol><li>하나<li>둘</ol>끝", "목록\n- 하나\n- 둘\n끝"),
        ('<a href="https://h/x?a=1&amp;b=2">여기</a>', "여기 (https://h/x?a=1&b=2)"),
        ('<a href="https://h/x">https://h/x</a>', "https://h/x"),
        ("<a href='https://h/x'>a</a><a href=https://h/y>b</a>", "a (https://h/x)b (https://h/y)"),
        ('<a href="#top">top</a>', "top"),
        ('<a href="javascript:alert(1)">x</a>', "x"),
        (
            "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>",
            "a\tb\nc\td",
        ),
        ("<pre>a\n  b\n</pre>", "a\n  b"),
        ("<p>a\n   b\t c</p>", "a b c"),
        ("x<script>alert('<p>')</script>y", "xy"),
        ("<style>p { color: red }</style><p>a</p>", "a"),
        ("<head><title>t</title></head><body>a</body>", "a"),
        ("a<!-- <p>comment</p> -->b", "ab"),
        ('<p title="a > b">c</p>', "c"),
        ("<!DOCTYPE html><html><body><p>a</p></body></html>", "a"),
        ("<p></p><p></p><p></p>a", "a"),
        ("<p>a</p>\n\n\n\n<p>b</p>", "a\nb"),
        ("&nbsp;", ""),
        ("", ""),
        ("<", "<"),
        ("a < b", "a < b"),
        ("<img src=x onerror=alert(1)>a", "a"),
    ],
)
def test_html_becomes_text(html: str, text: str) -> None:
    found = html_to_text(html)
    assert found.replace("\u00a0", " ").strip() == text.replace("\u00a0", " ").strip()


@quick
@given(st.lists(st.sampled_from(["가", "b", "1", ".", "-"]), min_size=1).map("".join))
def test_the_words_inside_tags_are_kept(words: str) -> None:
    for html in (f"<p>{words}</p>", f"<div><b>{words}</b></div>", f"<td>{words}", f"{words}<br>"):
        assert html_to_text(html) == words


html_pieces = st.sampled_from(
    ["<p>", "</p>", "<br>", "<a href='x'>", "</a>", "<li>", "<script>", "</script>", "<!--", "-->",
     "<![CDATA[", "]]>", "<!", "<?", "<", ">", '"', "'", "&", "&#", "&#99999999;", "&#x110000;",
     "&lt;", "<pre>", "</pre>", "<td>", "가", " ", "\n", "<a href=", "&#" + "9" * 5000 + ";",
     "&#xd800;", "\0"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(html_pieces, max_size=12).map("".join))
def test_any_html_is_text_that_can_be_sent(html: str) -> None:
    html_to_text(html).encode("utf-8")


HOSTILE_HTML: dict[str, Callable[[int], str]] = {
    piece: (lambda size, piece=piece: piece * (size // len(piece)))  # type: ignore[misc]
    for piece in (
        "<", "<a ", "<a", "<a href=", "<a href='", '<a href="', "<!--", "<![", "<!", "<?", "</",
        "<p", "<p>", "</p>", "<br>", "<li>", "<a href=x>", "<a href=x>y</a>", "<a><a>", "<script>",
        "<style>", "<script", "</script", "&", "&#", "&#9", "&amp;", "&amp", "<p title='",
        "<p title=\"'", "\"'>", "-->", "--", "\n", " ", " \n", "<pre>\n", "<td>", "</td>", "가",
        "<head>", ">", "<b>\n\n\n", "<a href = ", "<!-->", "<p>\t", "&#9;",
    )
}  # fmt: skip
HOSTILE_HTML["one long reference"] = lambda size: "&#" + "9" * size
HOSTILE_HTML["one long tag"] = lambda size: "<a " + "x" * size + ">b"
HOSTILE_HTML["one long address"] = lambda size: f'<a href="{"x" * size}">b</a>'
HOSTILE_HTML["spaces in a tag"] = lambda size: "<a href" + " " * size + "=x>b</a>"
HOSTILE_HTML["spaces before a closing tag"] = lambda size: "<p>a" + " " * size + "</p>"
HOSTILE_HTML["blank lines"] = lambda size: "<pre>a" + "\n \n" * (size // 3) + "b</pre>"


@pytest.mark.parametrize("name", HOSTILE_HTML)
def test_time_grows_with_the_size_of_hostile_html_and_no_faster(name: str) -> None:
    assert_linear(html_to_text, HOSTILE_HTML[name], (1 << 12, 1 << 14, 1 << 16, 1 << 18))


def test_no_markup_is_left() -> None:
    html = "<div class=x><style>b{}</style><p>a<span>b</span></p><img src='y'><hr></div>"
    assert html_to_text(html) == "ab"


# ---- The whole ---------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    elif isinstance(value, str):
        yield value


@quick
@given(st.dictionaries(st.sampled_from("abcdef"), trees, max_size=6), st.data())
def test_any_fields_give_a_request_that_can_be_sent(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    filters = st.sampled_from(
        ["", "|text", "|number", "|html", "|max:3", "|bytes:5", "|date:%Y", "|or:x", "|users"]
    )
    template = "".join(
        f"{{{name}{data.draw(filters)}{data.draw(filters)}}}"
        for name in data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3))
    )
    assume(all("\0" not in text for text in leaves(fields)))
    one = request_to({"x": template}, url=f"{BASE}/x{template}", headers={"X-T": template})
    try:
        request = one.render(scope(fields, tables={"users": {"*": "<{}>"}}))
    except Untranslatable as error:
        assert str(error)  # noqa: PT017
        return
    json.loads(request.body.decode("utf-8"))
    assert request.url.isascii()
    for name, text in request.headers.items():
        assert name
        text.encode("latin-1")


@pytest.mark.parametrize(
    "name",
    ["Ocp-Apim-Subscription-Key", "X-Access-Key", "X-Session-Id", "apikey", "PRIVATE-TOKEN"],
)
def test_a_header_whose_name_tells_a_credential_is_masked(name: str) -> None:
    request = Request("GET", "https://h/", {name: "s3cret", "X-Issue-Key": "A-1"}, b"")
    assert request.as_json()["headers"] == {name: "***", "X-Issue-Key": "A-1"}


@pytest.mark.parametrize("name", ["password", "PASSWD", "pa\u017fsword", "to\u212aen", "apiKey"])
def test_of_what_was_sent_a_secret_is_not_kept_that_its_name_tells(name: str) -> None:
    body = json.dumps({name: "s3cret-word"}, ensure_ascii=False).encode()
    assert "s3cret-word" not in Request("POST", "/", body=body).as_kept(str)
