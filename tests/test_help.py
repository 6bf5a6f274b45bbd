"""`hd-itsm help`: each topic against the tables that the program works by, and README beside it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hd_itsm
from faultlib import need
from rows import NAMED_OPTIONS, OPTIONS
from service import COMMAND, PROGRAM

HOME = PROGRAM.parent
README = (HOME / "README.md").read_text(encoding="utf-8")


def text(topic: str) -> str:
    """What `help TOPIC` prints."""
    return hd_itsm.TOPICS[topic].text(hd_itsm.COMMANDS)


def rows(topic: str) -> list[list[str]]:
    """The lines of a topic as cells, as `as_table` parts them."""
    return [re.split(r"  +", line.strip()) for line in text(topic).splitlines()]


def told(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the real command."""
    command = [*COMMAND, "help", *words]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_topic_and_prints_each() -> None:
    code, listed, _ = told()
    assert code == 0
    assert re.findall(r"^([a-z]+)  ", listed, re.MULTILINE)[1:] == list(hd_itsm.TOPICS)
    code, said, _ = told("answers")
    assert (code, said.rstrip()) == (0, text("answers"))


def test_an_unknown_topic_gets_a_hint_and_the_list_and_a_command_its_own_lines() -> None:
    code, _, said = told("configuraton")
    assert code == 2
    assert "did you mean 'configuration'?" in said
    assert all(topic in said for topic in hd_itsm.TOPICS)
    code, said, _ = told("retry")
    assert code == 0
    assert said.startswith("retry [EVENT...] ")
    assert "--dry-run: only count" in said


def test_every_option_stands_in_help_with_its_default_and_sentence() -> None:
    shown = {row[0]: row for row in rows("configuration")}
    sections = {"hooks", "kinds", "lookups"}
    for row in [*OPTIONS, *NAMED_OPTIONS]:
        name = f"{row.section}.NAME.{row.key}" if row.section in sections else row.name
        default = "none" if row.option.default is None else hd_itsm.as_toml(row.option.default)
        assert shown[name] == [name, default, row.option.sentence]
    keys = {name for name in shown if re.fullmatch(r"[a-z]+\.(NAME\.)?[a-z_]+", name)}
    assert len(keys) == len(OPTIONS) + len(NAMED_OPTIONS)


def test_every_filter_and_every_computed_placeholder_stands_in_help_with_what_it_gives() -> None:
    used = [name for like, _ in hd_itsm.FILTERED for name in re.findall(r"\|([a-z_]+)", like)]
    assert set(used) == set(hd_itsm.FILTERS) | set(hd_itsm.EXAMPLE.tables)
    assert set(hd_itsm.COMPUTED_WORDS) == set(hd_itsm.COMPUTED)
    shown = {row[0]: row[1] for row in rows("templates") if len(row) == 3}
    assert shown["{technician|users}"] == '"gdhong"'
    assert shown["{hours|text}"] == '"47"'
    assert shown["{hours}"] == "47"
    assert shown["{category|or_omit}"] == "(left out)"
    assert len(shown) == len(hd_itsm.FILTERED) + len(hd_itsm.COMPUTED) + 2  # and two headings


def test_every_path_in_help_is_a_path() -> None:
    for path, _ in hd_itsm.PATHS:
        assert hd_itsm.parse_path(path)
    steps = {step.does for path, _ in hd_itsm.PATHS for step in hd_itsm.parse_path(path)}
    assert steps == {"key", "any", "where", "header", "body"}


def test_every_answer_and_outcome_stands_in_help() -> None:
    said = text("answers")
    for status, words in hd_itsm.ANSWERED.items():
        assert [status, words] in rows("answers")
    for first, last, outcome, _ in hd_itsm.ANSWERS:
        status = str(first) if first == last else f"{first} to {last}"
        assert any(row[:2] == [status, outcome] for row in rows("answers")), status
    for outcome in ("delivered", "failed", "later", "credential", "unclear"):
        assert outcome in said
    for answer, outcome in (
        ("no answer, though the request was sent", "unclear"),
        ("2xx with a request id, to a kind that opens", "delivered"),
        ("2xx, JSON without a request id, to such a kind", "failed"),
        ("2xx, HTML", "later"),
    ):
        assert any(row[:2] == [answer, outcome] for row in rows("answers")), answer


def test_every_command_and_argument_stands_in_help() -> None:
    said = text("commands")
    for command in hd_itsm.COMMANDS.values():
        assert f"\n{hd_itsm.usage(command)}\n    {command.help}\n" in said
        for argument in command.arguments:
            assert not argument.help or f"    {argument.shown}: {argument.help}" in said
    for operation in hd_itsm.OPERATIONS.values():
        assert operation.help in said


def test_every_metric_and_date_format_stands_in_help() -> None:
    for name, _, words, _ in hd_itsm.METRICS:
        assert re.search(rf"hd_itsm_{name}\b.*{re.escape(words)}", text("monitoring"))
    for form in hd_itsm.DATE_FORMATS:
        assert f"  {form}" in text("reading").splitlines()


def test_the_example_configurations_of_help_load(tmp_path: Path) -> None:
    lookups = text("lookups")
    for sample in (
        text("configuration").partition("a second step.\n")[2],
        lookups[lookups.index("[itsm]") :] + "\n[values]\nclient_secret = 'x'\n",
    ):
        file = tmp_path / "hd_itsm.toml"
        file.write_text(sample, encoding="utf-8")
        assert hd_itsm.load_config(str(file), {}, {}, complete=False)


@pytest.mark.parametrize("topic", list(hd_itsm.TOPICS))
def test_what_help_names_of_keys_commands_and_topics_is_there(topic: str) -> None:
    said = text(topic)
    sections = "|".join(hd_itsm.SECTIONS)
    names = set(re.findall(rf"(?<![\w./-])(?:{sections})\.[a-z_]+\b(?![/(])", said))
    assert names - {row.name for row in OPTIONS} - {"itsm.example"} == set()
    for named in re.findall(r"`help ([a-z]+)`", said):
        assert named in hd_itsm.TOPICS
    for named in re.findall(r"hd-itsm ([a-z]+)\b", said):
        assert named in hd_itsm.COMMANDS


def test_what_readme_names_of_keys_commands_and_topics_is_there() -> None:
    for named in re.findall(r"hd-itsm help ([a-z]+)", README):
        assert named in hd_itsm.TOPICS
    listed = README[README.index("`hd-itsm help TOPIC`") : README.index("## Try it now")]
    assert set(re.findall(r"`([a-z]+)`", listed)) == set(hd_itsm.TOPICS)
    for named in re.findall(r"hd-itsm ([a-z]+)\b", README):
        assert named in hd_itsm.COMMANDS
    known = {row.name for row in OPTIONS}
    sections = "|".join(hd_itsm.SECTIONS)
    for named in re.findall(rf"`((?:{sections})\.[a-z_]+)`", README):
        assert named in known | {"itsm.urll"}, named


def anchor(heading: str) -> str:
    """The address of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("file", ["README.md", "tests/recipes/README.md"])
def test_every_link_leads_somewhere(file: str) -> None:
    page = HOME / file
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, mark = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        assert not mark or mark in map(anchor, headings), target


def sentences(words: str) -> set[str]:
    """The sentences of some length in a text, without what only sets them."""
    plain = re.sub(r"```.*?```|[`*]", "", words, flags=re.DOTALL)
    parts = re.split(r"(?<=[.:;])\s+|\n\n|\n- |\|", re.sub(r"\n(?![\n-])", " ", plain))
    return {part.strip() for part in parts if len(part.strip()) > 45}


def test_readme_is_short_and_no_sentence_stands_twice() -> None:
    assert len(README.splitlines()) <= 350
    assert "unclear" in README
    for topic in hd_itsm.TOPICS:
        assert sentences(README) & sentences(text(topic)) == set(), topic
    assert sentences("It is one sentence, and it is long enough to be seen.\n\nShort.") == {
        "It is one sentence, and it is long enough to be seen."
    }


def test_the_commands_of_help_run_on_the_file_as_well() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "help", "page"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout.rstrip()) == (0, text("page"))


def completed(*words: str) -> set[str]:
    """What bash offers after these words, the last of which is being typed."""
    typed = " ".join(f"'{word}'" for word in ("hd-itsm", *words))
    script = f"{text('completion')}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}\n_hd_itsm\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    bash = need("bash", "bash")
    command = [bash, "--norc", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_their_options_states_and_topics() -> None:
    assert set(hd_itsm.COMMANDS) < completed("")
    assert completed("re") == {"retry", "reconcile", "resume"}
    assert completed("--config", "x.toml", "retry", "--r") == {"--reason"}
    assert completed("events", "--state", "fa") == {"failed"}
    assert completed("help", "") > set(hd_itsm.TOPICS)
    assert completed("help", "retry", "ans") == {"answers"}


def test_the_man_page_is_roff_without_a_fault_and_holds_every_command(tmp_path: Path) -> None:
    page = tmp_path / "hd-itsm.1"
    page.write_text(text("man"), encoding="utf-8")
    command = [need("groff", "groff"), "-man", "-ww", "-Tascii", "-P-cbou", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    shown = " ".join(done.stdout.split())
    for command_ in hd_itsm.COMMANDS.values():
        assert " ".join(hd_itsm.usage(command_).split()) in shown
        assert command_.help in shown


def test_the_alert_rules_name_metrics_that_there_are() -> None:
    rules = text("alerts")
    named = set(re.findall(r"\bhd_itsm_[a-z_]+", "\n".join(re.findall(r"expr: (.*)", rules))))
    assert named - {f"hd_itsm_{name}" for name, *_ in hd_itsm.METRICS} == set()
    assert len(named) >= 5


def test_the_containerfile_builds_from_what_there_is() -> None:
    script = text("container")
    assert "COPY . /src" in script
    assert script.rstrip().endswith('CMD ["serve"]')
    (health,) = re.findall(r"HEALTHCHECK CMD (\[.*\])", script)
    ast.parse(json.loads(health)[2])
