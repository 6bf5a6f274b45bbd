"""What people read, in English and in Korean: both halves of each phrase, and who reads which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hd_itsm
from hd_itsm import KOREAN, Say, language_of
from itsm import Itsm, reply
from phrases import phrases
from service import Service, opening, settings

SOURCE = Path(hd_itsm.__file__).read_text(encoding="utf-8")
HANGUL = re.compile("[가-힣]")


def test_every_phrase_has_its_korean_half_and_no_half_is_alone() -> None:
    said = phrases(SOURCE)
    assert sorted(said - set(KOREAN)) == []
    assert sorted(set(KOREAN) - said) == []
    assert len(said) > 150


@pytest.mark.parametrize(
    "source",
    [
        'say("New words")',
        'self.say("New words", n=1)',
        'phrase = "New words"',
        'T = """\n% if a:\n{{say(\'New words\')}}"""',
        'T = """\n% heads(\'New words\', \'State\')"""',
    ],
)
def test_control_a_phrase_without_its_other_half_is_found(source: str) -> None:
    assert "New words" in phrases(source) - set(KOREAN)


def test_both_halves_say_the_same_values_and_the_korean_one_is_korean() -> None:
    def names(text: str) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", text))

    wrong = [one for one, other in KOREAN.items() if names(one) != names(other)]
    assert wrong == []
    mute = [one for one, other in KOREAN.items() if not HANGUL.search(other)]
    assert sorted(mute) == ["{first} to {last}", "{n} or more"]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("*", "en"),
        ("ko", "ko"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", "ko"),
        ("en-US,en;q=0.9,ko;q=0.8", "en"),
        ("de,ko;q=0.5", "ko"),
        ("fr-CH, fr;q=0.9", "en"),
        ("ko;q=0", "en"),
        ("KO-kr", "ko"),
        ("korean, kok", "en"),
        ("ko;q=x,,;;", "en"),
    ],
)
def test_the_language_is_korean_where_the_browser_likes_it_more(
    accepted: str, language: str
) -> None:
    assert language_of(accepted) == language


def test_a_reason_of_ours_is_said_in_korean_and_the_itsms_words_in_it_stay() -> None:
    say = Say("ko")
    assert say.known("answered 422: unknown user kim") == "응답 422: unknown user kim"
    reason = "no answer in time: it may have happened; `map` or `retry` decides"
    assert say.known(reason).startswith("제한 시간 안에 응답 없음: 이미")
    assert say.known("something else") == "something else"
    assert Say().known("answered 422: x") == "answered 422: x"


def test_the_page_speaks_the_language_of_the_browser(tmp_path: Path) -> None:
    words = {"result": {"code": "E1042", "message": "unknown user 홍길동"}}
    with Itsm(reply(422, json=words)) as itsm, Service(tmp_path, settings(itsm.url)) as service:
        sent = opening("4182", subject="Printer", category="OA", contents="It jams.")
        event = service.post("itsm_new", sent, wait=5).event
        found = {}
        for language in ("ko", "en", "de"):
            headers = {"Accept-Language": language}
            for path in ("/", f"/events/{event}", "/tickets/4182", f"/confirm/drop?event={event}"):
                answer = service.request("GET", path, headers=headers)
                assert answer.status == 200
                found[language, path] = answer.body.decode()
        for (language, path), page in found.items():
            main = re.sub("홍길동|없음", "", page[page.index("<main") :])  # not words of ours
            assert f'<html lang="{"ko" if language == "ko" else "en"}">' in page
            assert bool(re.search("[가-힣]", main)) == (language == "ko"), path
        korean = found["ko", "/"]
        assert "확인할 티켓 1건" in korean
        assert "응답 422: unknown user 홍길동 (E1042)" in korean
        assert "failed 실패" in korean
        assert "다시 보내기" in korean


def test_the_terminal_speaks_korean_by_its_locale_and_json_and_log_stay_english(
    tmp_path: Path,
) -> None:
    words = {"result": {"code": "E1042", "message": "unknown user kim"}}
    with Itsm(reply(422, json=words)) as itsm, Service(tmp_path, settings(itsm.url)) as service:
        event = service.post("itsm_new", opening("4182"), wait=5).event
        plain = service.cli("status").out
        raw = [service.cli("status", "--json").json(), service.cli("show", event, "--json").json()]
        assert "needs you      1 ticket needs you" in plain
        korean = {"LC_ALL": "", "LC_MESSAGES": "ko_KR.UTF-8", "LANG": "C.UTF-8"}
        status = service.cli("status", environ=korean).out
        shown = service.cli("show", event, environ=korean).out
        assert "확인할 것      확인할 티켓 1건." in status
        assert "1 x failed 실패: 응답 422: unknown user kim (E1042)" in status
        assert "hd-itsm retry --reason 'answered 422: unknown user kim (E1042)'" in status
        assert "이벤트 1: failed 실패 (응답 422" in shown
        assert "할 일      ITSM이나 설정을 고친 뒤 다시 보내세요." in shown
        english = [
            service.cli("status", "--json", environ=korean).json(),
            service.cli("show", event, "--json", environ=korean).json(),
        ]
        assert english[0]["needs"] == raw[0]["needs"]
        assert english[1] == raw[1]
        other = {**korean, "LC_ALL": "en_US.UTF-8"}
        assert "needs you" in service.cli("status", environ=other).out
        assert not HANGUL.search(service.log)


def test_check_speaks_korean_and_its_json_english(tmp_path: Path) -> None:
    korean = {"LC_MESSAGES": "ko_KR.UTF-8"}
    with Itsm() as itsm:
        with Service(tmp_path, settings(itsm.url)) as service:
            lines = service.cli("check", environ=korean).out.splitlines()
            plain = [service.cli("check", "--json", environ=e).json() for e in (korean, {})]
        itsm.stop()
        lines += service.cli("check", environ=korean).out.splitlines()
        for rows in plain:
            assert not HANGUL.search(str(rows))
    assert lines[0].split() == ["결과", "항목", "내용"]
    names = ("hd_itsm", "bottle", "waitress", "urllib3", "127.0.0.1:0")  # and nothing more
    values = [line for line in lines if not any(f" {name}" in line for name in names)]
    assert [line for line in values if not HANGUL.search(line.split("  ", 2)[-1])] == []
    assert any("연결 거부" in line and "방화벽" in line for line in lines)


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "C", "LC_ALL": "ko_KR.eucKR"}, "ko"),
        ({"LANG": "kok_IN"}, "en"),
    ],
)
def test_the_variables_of_the_terminal_go_in_the_order_of_posix(
    environ: dict[str, str], language: str
) -> None:
    assert hd_itsm.language_of_terminal(environ) == language
