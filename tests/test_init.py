"""`hd-itsm init`: two recipes joined into one configuration."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import hd_itsm
from service import COMMAND, HERE

PAIRS = list(itertools.product(hd_itsm.recipes("helpdesk"), hd_itsm.recipes("itsm")))


def init(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the real command, run in a folder."""
    done = subprocess.run(
        [*COMMAND, "init", *words],
        cwd=folder,
        env={"PYTHONPATH": str(HERE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


def test_init_joins_two_recipes_and_tells_what_is_to_be_filled_in(tmp_path: Path) -> None:
    code, said, _ = init(tmp_path, "--helpdesk", "zammad", "--itsm", "servicenow")
    assert code == 0
    assert said.startswith("wrote hd_itsm.toml of zammad and servicenow-table\n")
    file = tmp_path / "hd_itsm.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    lines = file.read_text(encoding="utf-8").splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("# FILL IN")]
    assert marked == [int(number) for number in re.findall(r"fill in line ([0-9]+):", said)]
    filled = "".join(lines[number - 1] for number in marked)
    for word in ("itsm.example.com", "assignment_group", "close_code"):
        assert word in filled
    assert re.findall(r"variable ([A-Z_]+)", said) == ["HELPDESK_SECRET", "ITSM_AUTHORIZATION"]


def test_the_address_of_the_itsm_stands_in_every_line_where_it_is_told(tmp_path: Path) -> None:
    base = "http://itsm.test:8443/base"
    words = ("--helpdesk", "zammad", "--itsm", "servicenow", "--itsm-url", f"{base}/")
    code, said, _ = init(tmp_path, *words)
    assert code == 0
    file = tmp_path / "hd_itsm.toml"
    assert "itsm.example.com" not in file.read_text(encoding="utf-8")
    assert "url" not in said
    config = hd_itsm.load_config(str(file), {}, {}, complete=False)
    assert config.itsm.url == f"{base}/api/now/table/incident"
    assert init(tmp_path, "alone.toml", "--itsm-url", base)[0] == 0
    alone = hd_itsm.load_config(str(tmp_path / "alone.toml"), {}, {}, complete=False)
    assert alone.itsm.url == base
    code, _, said = init(tmp_path, "bad.toml", *words[:-1], "nowhere")
    assert code == 2
    assert "must be like https://itsm.example.com" in said


def test_init_writes_over_no_file_and_without_recipes_the_sample(tmp_path: Path) -> None:
    file = tmp_path / "hd_itsm.toml"
    file.write_text("# mine\n")
    code, _, said = init(tmp_path, "--helpdesk", "zammad", "--itsm", "itop")
    assert code == 1
    assert "it is left as it is" in said
    assert file.read_text() == "# mine\n"
    assert init(tmp_path, "other.toml")[0] == 0
    assert (tmp_path / "other.toml").read_text(encoding="utf-8") == hd_itsm.sample_config()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--helpdesk", "zamad", "--itsm", "itop"), "did you mean 'zammad'?"),
        (("--helpdesk", "zammad", "--itsm", "itpo"), "did you mean 'itop'?"),
        (("--helpdesk", "zammad"), "--itsm: is missing: bmc-helix, "),
        (("--itsm", "znuny"), "--helpdesk: is missing: chatwoot, "),
    ],
)
def test_a_recipe_that_is_not_there_gets_a_hint_and_the_list(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    code, _, said = init(tmp_path, *words)
    assert code == 2
    assert told in said
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_recipes_holds_each_of_them_once() -> None:
    listed = (HERE / "recipes" / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"\]\(((?:helpdesk|itsm)-[a-z-]+\.toml)\)", listed)
    names = [f"{half}-{name}.toml" for half in hd_itsm.HALVES for name in hd_itsm.recipes(half)]
    assert sorted(files) == sorted(names)


def test_a_part_of_a_name_or_of_a_title_will_do() -> None:
    assert hd_itsm.recipe("itsm", "otrs")[0] == "znuny"
    assert hd_itsm.recipe("itsm", "Request Tracker")[0] == "sentences"
    assert hd_itsm.recipe("itsm", "servicenow-importset")[0] == "servicenow-importset"


@pytest.mark.parametrize(("helpdesk", "itsm"), PAIRS, ids=lambda name: str(name))
def test_what_is_marked_changes_nothing_and_every_variable_is_told(
    helpdesk: str, itsm: str, tmp_path: Path
) -> None:
    halves = [hd_itsm.recipe("helpdesk", helpdesk), hd_itsm.recipe("itsm", itsm)]
    text, variables = hd_itsm.joined_recipes(halves)
    assert tomllib.loads(text) == tomllib.loads("\n".join(recipe for _, recipe in halves))
    file = tmp_path / "hd_itsm.toml"
    file.write_text(text, encoding="utf-8")
    config = hd_itsm.load_config(str(file), {}, {}, complete=False)
    needed = {secret.name for secret in config.secrets if secret.source == "env"}
    assert set(variables) == needed
    assert config.itsm.url in "".join(
        line for line in text.splitlines() if line.endswith("# FILL IN")
    )
