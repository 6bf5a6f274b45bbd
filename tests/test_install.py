"""The ways to install: README's own lines, tried; a distribution's versions; the unit.

What needs pip's index, or a tool, is skipped without it, with the reason; where CI is set it fails.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

import hd_itsm
from faultlib import missing, need
from itsm import Itsm
from service import PROGRAM, Service, opening, settings, ticket

HOME = PROGRAM.parent
SOURCES = ("hd_itsm.py", "pyproject.toml", "README.md")
RECIPES = "tests/recipes"
UNIT = HOME / "hd_itsm.service"
DEBIAN_13 = ("bottle==0.13.2", "waitress==3.0.2", "urllib3==2.3.0")
NEWEST = ("bottle", "waitress", "urllib3")
CLEAN = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
PIP = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RETRIES": "1"}
OFFLINE = re.compile(
    r"No matching distribution|Temporary failure|NewConnectionError|ConnectTimeout"
)


def pip(*words: str, cwd: Path, shell: str = "", seconds: float = 150) -> None:
    """Runs pip, or a shell line with pip in it; the test ends where the index cannot be reached."""
    kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    command = ["sh", "-c", shell] if shell else [sys.executable, "-m", "pip", *words]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **PIP, **kept},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode and OFFLINE.search(done.stderr):
        missing(f"pip's index: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr


def sources(folder: Path) -> Path:
    """A copy of what a build needs: it leaves nothing here, and nothing left here gets into it."""
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(HOME / name, folder / name)
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HOME / RECIPES, folder / RECIPES, ignore=left_out)
    return folder


def demo(command: list[str], folder: Path) -> None:
    """Runs the demo in an empty folder; it must come to its last line and leave nothing behind."""
    folder.mkdir()
    done = subprocess.run(
        [*command, "demo"], cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("none lost, none doubled."), done.stdout
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


# ---- One file with everything inside -----------------------------------------------------------


def readme_line(*words: str) -> str:
    """The only indented line of README's code blocks that has all of these words."""
    lines = (HOME / "README.md").read_text(encoding="utf-8").split("\n")
    found = [one.strip() for one in lines if one[:4] == "    " and all(w in one for w in words)]
    assert len(found) == 1, (words, found)
    return found[0]


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hd_itsm.pyz, built by README's line."""
    folder = sources(tmp_path_factory.mktemp("pyz") / "source")
    line = readme_line("zipapp", "hd_itsm.pyz")
    assert line.count("python3 ") >= 2
    pip(cwd=folder, shell=re.sub(r"(?<![/\w])python3 ", f"{sys.executable} ", line))
    return folder / "hd_itsm.pyz"


def test_the_one_file_runs_in_an_empty_folder_without_any_package(
    pyz: Path, tmp_path: Path
) -> None:
    # -I -S: no environment, no site-packages
    demo([sys.executable, "-I", "-S", str(pyz)], tmp_path / "empty")


def test_control_without_its_packages_the_program_does_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(PROGRAM), "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No module named" in done.stderr


def test_the_one_file_holds_the_program_as_it_is_and_nothing_compiled(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as file:
        names = file.namelist()
        assert file.read("hd_itsm.py") == PROGRAM.read_bytes()
    tops = {name.split("/")[0] for name in names}
    assert {"bottle.py", "waitress", "urllib3", "__main__.py"} <= tops
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


@pytest.mark.slow
def test_the_one_file_serves_and_reloads(pyz: Path, tmp_path: Path) -> None:
    alone = [sys.executable, "-I", "-S", str(pyz)]  # no environment, no site-packages
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url), command=alone) as service:
        assert service.post("itsm_new", opening(ticket()), wait=10).state == "delivered"
        service.reload()
        assert service.post("itsm_new", opening(ticket()), wait=10).state == "delivered"
        assert service.cli("status").code == 0


def test_the_one_file_checks(pyz: Path, tmp_path: Path) -> None:
    with Itsm() as itsm:
        (tmp_path / "hd_itsm.toml").write_text(settings(itsm.url))
        checked(["-I", "-S", str(pyz)], sys.executable, tmp_path)


def initialised(command: list[str], folder: Path) -> None:
    """A recipe of each half, joined by this program, is what the source's own are."""
    folder.mkdir()
    words = ["init", "joined.toml", "--helpdesk", "zammad", "--itsm", "servicenow"]
    done = subprocess.run(
        [*command, *words], cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    halves = ("helpdesk-zammad", "itsm-servicenow-table")
    texts = [(HOME / RECIPES / f"{name}.toml").read_text(encoding="utf-8") for name in halves]
    joined = (folder / "joined.toml").read_text(encoding="utf-8")
    assert tomllib.loads(joined) == tomllib.loads("\n".join(texts))


def test_the_one_file_has_the_recipes_with_it(pyz: Path, tmp_path: Path) -> None:
    initialised([sys.executable, "-I", "-S", str(pyz)], tmp_path / "empty")


def test_the_bare_file_says_where_the_recipes_are(tmp_path: Path) -> None:
    shutil.copy(PROGRAM, tmp_path)
    alone = "sys.modules['hd_itsm_recipes'] = None"  # where the package is installed, too
    run = f"import runpy, sys; {alone}; runpy.run_path('hd_itsm.py', run_name='__main__')"
    program = [sys.executable, "-P", "-c", run]
    for words in (["init", "--helpdesk", "zammad", "--itsm", "itop"], ["help", "recipes"]):
        done = subprocess.run(
            [*program, *words],
            cwd=tmp_path,
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert "tests/recipes of the source" in done.stderr
        assert "hd_itsm.pyz" in done.stderr
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".toml"] == []


def test_the_lines_of_help_for_one_file_make_a_command_and_a_drop_in(tmp_path: Path) -> None:
    text = hd_itsm.TOPICS["install"].text(hd_itsm.COMMANDS)
    blocks = re.findall(r"(?m)(?:^    .*\n)+", text)
    shell = "".join(block for block in blocks if "/opt/hd_itsm/hd_itsm.py" in block)
    shell = shell.replace("apt-get install ", "true ").replace("/usr/bin/python3", sys.executable)
    for folder in ("/opt/", "/etc/", "/usr/local/bin/"):
        (tmp_path / folder[1:]).mkdir(parents=True)
        shell = shell.replace(f"{folder}", f"{tmp_path}{folder}")
    subprocess.run(["sh", "-eu", "-c", shell], cwd=HOME, check=True, timeout=30)
    command = tmp_path / "usr/local/bin/hd-itsm"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("hd_itsm "), done.stderr
    (drop_in,) = (tmp_path / "etc/systemd/system/hd_itsm.service.d").iterdir()
    program = f"{sys.executable} {tmp_path}/opt/hd_itsm/hd_itsm.py"
    assert drop_in.read_text() == (
        f"[Service]\nExecStart=\nExecStart={program} --config {tmp_path}/etc/hd_itsm.toml serve\n"
    )


def checked(program: list[str], python: str, folder: Path) -> str:
    """`check` in a folder, which must find nothing wrong; what it prints."""
    done = subprocess.run(
        [python, *program, "check"],
        cwd=folder,
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# ---- Beside other versions ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=[DEBIAN_13, NEWEST], ids=["debian13", "newest"])
def venv(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """An environment with these versions, and nothing else."""
    wanted: tuple[str, ...] = request.param
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=60)
    python = folder / "bin" / "python"
    pip(cwd=folder, shell=f"{python} -m pip install -q {' '.join(wanted)}")
    yield python
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_bare_file_runs_beside_these_versions(venv: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(PROGRAM, bare)
    program = str(bare / "hd_itsm.py")
    demo([str(venv), "-I", "-W", "error::DeprecationWarning", program], tmp_path / "empty")
    with Itsm() as itsm:
        (tmp_path / "hd_itsm.toml").write_text(settings(itsm.url))
        said = checked(["-I", program], str(venv), tmp_path)
    script = "import bottle, urllib3; print(bottle.__version__, urllib3.__version__)"
    versions = subprocess.run([venv, "-c", script], capture_output=True, text=True, check=True)
    for name, version in zip(("bottle", "urllib3"), versions.stdout.split(), strict=True):
        assert f"{name} {version}" in said


# ---- pip, and the two lists of what is needed --------------------------------------------------


@pytest.mark.slow
def test_pip_install_gives_the_command(tmp_path: Path) -> None:
    folder = sources(tmp_path / "source")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=60)
    pip(cwd=folder, shell=f"{tmp_path}/venv/bin/python -m pip install -q .")
    command = tmp_path / "venv" / "bin" / "hd-itsm"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30)
    version = re.findall(r'^__version__ = "(.+)"$', PROGRAM.read_text(encoding="utf-8"), re.M)[0]
    assert done.returncode == 0
    assert re.fullmatch(
        rf"hd_itsm {version}, Python [0-9.]+, SQLite [0-9.]+"
        r", bottle [0-9.]+, waitress [0-9.]+, urllib3 [0-9.]+\n",
        done.stdout,
    )
    demo([str(command)], tmp_path / "empty")
    initialised([str(command)], tmp_path / "joined")


def inline_metadata(text: str) -> dict[str, object]:
    """The `# /// script` block, read as PEP 723 says."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    found = [one for one in re.finditer(pattern, text) if one["type"] == "script"]
    assert len(found) == 1
    rows = found[0]["content"].splitlines(keepends=True)
    return tomllib.loads("".join(row[2:] if row.startswith("# ") else row[1:] for row in rows))


def test_the_inline_metadata_asks_for_what_the_project_asks_for() -> None:
    script = inline_metadata(PROGRAM.read_text(encoding="utf-8"))
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert script["dependencies"] == project["dependencies"]
    assert script["requires-python"] == project["requires-python"]
    names = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}
    assert names == {"bottle", "waitress", "urllib3"}


def test_every_import_is_the_standard_librarys_or_one_of_the_three() -> None:
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"))
    imported = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"bottle", "waitress", "urllib3"}


# ---- SQLite 3.26 -------------------------------------------------------------------------------

# What came after 3.26, or needs an extension that a distribution's 3.26 may lack.
TOO_NEW = {
    "RETURNING (3.35)": r"\bRETURNING\b",
    "STRICT (3.37)": r"\)\s*(WITHOUT ROWID\s*,\s*)?STRICT\b",
    "UPDATE FROM (3.33)": r"\bUPDATE\s+\w+\s+SET\b(?:(?!\bWHERE\b|\bSELECT\b).)*\bFROM\b",
    "DROP COLUMN (3.35)": r"\bDROP\s+COLUMN\b",
    "generated columns (3.31)": r"\bGENERATED\s+ALWAYS\b|\bAS\s*\([^)]*\)\s*(STORED|VIRTUAL)\b",
    "NULLS FIRST (3.30)": r"\bNULLS\s+(FIRST|LAST)\b",
    "FILTER (3.30)": r"\bFILTER\s*\(",
    "GROUPS, EXCLUDE (3.28)": r"\bGROUPS\s+BETWEEN\b|\bEXCLUDE\s+(NO|CURRENT|GROUP|TIES)\b",
    "MATERIALIZED (3.35)": r"\bMATERIALIZED\b",
    "IS DISTINCT FROM (3.39)": r"\bIS\s+(NOT\s+)?DISTINCT\s+FROM\b",
    "RIGHT, FULL JOIN (3.39)": r"\b(RIGHT|FULL)\s+(OUTER\s+)?JOIN\b",
    "VACUUM INTO (3.27)": r"\bVACUUM\s+(\w+\s+)?INTO\b",
    "functions": r"\b(iif|unixepoch|timediff|format|concat|concat_ws|string_agg|octet_length|sign"
    r"|ceil|floor|ln|log|pow|sqrt|json\w*|jsonb\w*)\s*\(",
    "-> (3.38)": r"->",
    "two ON CONFLICT clauses (3.35)": r"\bON\s+CONFLICT\b.*\bON\s+CONFLICT\b",
    "true and false as names of columns": r"\bIS\s+(NOT\s+)?(TRUE|FALSE)\s*\(",
}
VERB = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|CREATE|ALTER|DROP|WITH|BEGIN|VACUUM|EXPLAIN)\s"
)


def statements(text: str) -> list[str]:
    """Every text in the source that begins as a statement of SQL, f-strings with `x` filled in."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    cleaned = (re.sub(r"--[^\n]*", "", one) for one in found if VERB.match(one))
    return [
        re.sub(r"\s+", " ", part) for one in cleaned for part in one.split(";") if part.strip()
    ]


def too_new(text: str) -> list[str]:
    """What of the SQL in a source SQLite 3.26 would not understand."""
    return [
        f"{what}: {statement}"
        for statement in statements(text)
        for what, pattern in TOO_NEW.items()
        if re.search(pattern, statement, re.IGNORECASE)
    ]


def test_the_sql_is_one_that_sqlite_3_26_understands() -> None:
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(statements(text)) > 40  # it looks at something
    assert too_new(text) == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO a VALUES (1) RETURNING x",
        "CREATE TABLE a (b TEXT) STRICT",
        "CREATE TABLE a (b TEXT PRIMARY KEY) WITHOUT ROWID, STRICT",
        "UPDATE a SET b = c.d FROM c WHERE c.e = a.e",
        "SELECT count(*) FILTER (WHERE a) FROM b",
        "SELECT json_extract(a, '$.b') FROM c",
        "SELECT a ->> 'b' FROM c",
        "SELECT iif(a, 1, 2) FROM b",
    ],
)
def test_control_newer_sql_is_found(statement: str) -> None:
    assert too_new(f"x = {statement!r}") != []


def test_control_the_sql_of_today_is_not_found() -> None:
    sql = "UPDATE a SET b = (SELECT c FROM d WHERE d.e = a.e) WHERE f IN (SELECT g FROM h)"
    assert too_new(f"x = {sql!r}") == []


def test_the_file_itself_needs_no_newer_sqlite(tmp_path: Path) -> None:
    with Itsm() as itsm, Service(tmp_path, settings(itsm.url)) as service:
        service.post("itsm_new", opening(ticket()), wait=10)
        database = service.database
    with closing(sqlite3.connect(database)) as file:
        made = [
            str(row[0]) for row in file.execute("SELECT sql FROM sqlite_master WHERE sql > ''")
        ]
    assert len(made) > 5
    assert too_new("\n".join(f"x{number} = {sql!r}" for number, sql in enumerate(made))) == []


# ---- The unit ----------------------------------------------------------------------------------


def complaints(folder: Path, text: str, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """What systemd says of a unit, and all it says: it reads the machine's other units too, whose
    faults are not ours. Each line about a unit names it."""
    tool = need("systemd-analyze", "systemd")
    unit = folder / "hd_itsm.service"
    unit.write_text(text)
    done = subprocess.run(
        [tool, "verify", unit],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    return [row for row in said.splitlines() if unit.name in row], said


def neighbour(folder: Path) -> dict[str, str]:
    """An environment in which the machine has another program's unit, with a fault."""
    wanted = folder / "units" / "basic.target.wants"
    wanted.mkdir(parents=True)
    broken = folder / "units" / "neighbour.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nNonsense=yes\n")
    (wanted / broken.name).symlink_to(broken)
    return {"SYSTEMD_UNIT_PATH": f"{folder}/units:"}  # and the usual folders after it


def test_systemd_finds_nothing_wrong_with_the_unit_whatever_else_is_wrong_on_the_machine(
    tmp_path: Path,
) -> None:
    text = UNIT.read_text(encoding="utf-8")
    command = "/opt/hd_itsm/bin/hd-itsm"
    assert command in text
    text = text.replace(command, "/bin/true")  # as if installed
    ours, all_of_it = complaints(tmp_path, text, neighbour(tmp_path))
    assert ours == []
    assert "neighbour.service" in all_of_it


@pytest.mark.parametrize(
    "unit",
    [
        "[Service]\nExecStart=/bin/true\nProtectHomes=yes\n",
        "[Service]\nExecStart=/no/such/program\n",
        "[Unit]\nDescription=nothing to start\n",
    ],
)
def test_control_systemd_names_the_unit_that_is_wrong(unit: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, unit, neighbour(tmp_path))[0] != []


def test_the_units_exposure_is_1_2_or_lower() -> None:
    tool = need("systemd-analyze", "systemd")
    command = [tool, "security", "--offline=true", "--threshold=12", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_each_line_of_the_unit_has_its_reason() -> None:
    """A comment stands over it, or over the group of lines that it belongs to."""
    text = UNIT.read_text(encoding="utf-8")
    for group in re.split(r"\n\s*\n|\n(?=#)", text):
        rows = [row for row in group.split("\n") if row]
        if rows and not rows[0].startswith(("#", "[")):
            pytest.fail(f"no reason over: {rows}")
