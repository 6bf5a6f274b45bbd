"""The house rules of hd_itsm.py that a machine can check, each with a control that shows it can."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import hd_itsm
from rows import NAMED_OPTIONS, OPTIONS, Row, flat

SOURCE = Path(hd_itsm.__file__)
ROOMS = (
    "Tables",
    "Reading",
    "Fields",
    "Translation",
    "Readers",
    "Options",
    "Configuration",
    "File",
    "Records",
    "Mappings",
    "Questions",
    "Events",
    "Words",
    "Status",
    "Judging",
    "Operations",
    "Door",
    "Look",
    "Page",
    "Server",
    "Wire",
    "Outcomes",
    "Look-ups",
    "Delivery",
    "Service",
    "Demo",
    "Commands",
    "Check",
    "Help",
    "Command line",
)
MOST_CODE = 50  # lines of a function
MOST_ROOM = 900  # lines of a room
MOST_COLUMNS = 99

Named = ast.FunctionDef | ast.ClassDef


# ---- What the source says ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> str:
    return SOURCE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(text: str) -> ast.Module:
    return ast.parse(text)


def names_of(node: ast.stmt) -> list[str]:
    """What a statement at the top of a module defines."""
    if isinstance(node, Named):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [
        name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
    ]


def pointing_down(tree: ast.Module) -> list[str]:
    """Uses, in a function or class of the module, of a name that is defined further down."""
    places: dict[str, int] = {}
    for node in tree.body:
        for name in names_of(node):
            places.setdefault(name, node.lineno)
    return sorted(
        {
            f"{top.name} -> {node.id}"
            for top in tree.body
            if isinstance(top, Named)
            for node in ast.walk(top)
            if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and places.get(node.id, 0) > (top.end_lineno or 0)
        }
    )


@cache
def banners(text: str) -> dict[str, int]:
    """The rooms, by the word in their banner, with its line."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"# ── ([A-Z][a-z]+(?:[ -][a-z]+)?): .*─{3}", line):
            found[match[1]] = number
    return found


def room_of(text: str, line: int) -> str:
    """The room that a line is in; "" for the front door."""
    return max(
        ((number, name) for name, number in banners(text).items() if number <= line),
        default=(0, ""),
    )[1]


SQL = re.compile(
    r"\b(?:SELECT\s.*\bFROM|INSERT\s+(?:OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(?:TABLE|INDEX)|PRAGMA\s+\w|BEGIN\s+IMMEDIATE|VACUUM)\b",
    re.DOTALL,
)


def docstrings(tree: ast.Module) -> set[int]:
    """The identities of the nodes that are docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def sql_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Where SQL is written, run, or its module named, with what it is."""
    passed_over = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in passed_over:
            if isinstance(node.value, str) and SQL.search(node.value):
                yield node.lineno, node.value.strip()[:60]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("execute", "executemany", "executescript"):
                yield node.lineno, f".{node.func.attr}()"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named = f"{node.value.id}.{node.attr}"
            if node.value.id == "sqlite3" and not node.attr.startswith("sqlite_version"):
                yield node.lineno, named


def code_lines(text: str, node: ast.AST) -> int:
    """Lines of a function that are neither blank nor comment nor docstring."""
    assert isinstance(node, ast.FunctionDef)
    lines = text.splitlines()
    counted = set(range(node.lineno, (node.end_lineno or 0) + 1))
    for inner in ast.walk(node):
        if isinstance(inner, Named) and ast.get_docstring(inner, clean=False) is not None:
            doc = inner.body[0]
            counted -= set(range(doc.lineno, (doc.end_lineno or 0) + 1))
    return sum(1 for n in counted if lines[n - 1].strip() and lines[n - 1].strip()[0] != "#")


def long_functions(text: str, tree: ast.Module) -> dict[str, int]:
    """Functions of too many lines."""
    lengths = {
        n.name: code_lines(text, n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
    }
    return {name: length for name, length in lengths.items() if length > MOST_CODE}


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods of public classes without a docstring."""
    found = []
    for top in tree.body:
        inner = top.body if isinstance(top, ast.ClassDef) else []
        for node in (top, *inner):
            if not isinstance(node, Named):
                continue
            public = not node.name.startswith("_") and getattr(top, "name", "_")[0] != "_"
            if public and not ast.get_docstring(node):
                found.append(
                    node.name if node is top else f"{getattr(top, 'name', '')}.{node.name}"
                )
    return found


def test_names_point_up(tree: ast.Module) -> None:
    assert pointing_down(tree) == []


def test_a_name_that_points_down_would_be_seen() -> None:
    source = (
        "def one() -> int:\n    return two() + HALF\n\ndef two() -> int:\n    return 2\nHALF = 1\n"
    )
    assert pointing_down(ast.parse(source)) == ["one -> HALF", "one -> two"]


def test_the_rooms_stand_in_the_order_in_which_data_flows(text: str) -> None:
    assert tuple(banners(text)) == ROOMS


def test_sql_is_written_in_the_rooms_of_the_file_alone(text: str, tree: ast.Module) -> None:
    places = list(sql_in(tree))
    rooms = ("File", "Mappings", "Questions", "Events")
    outside = [f"{line}: {what}" for line, what in places if room_of(text, line) not in rooms]
    assert outside == []
    assert len(places) > 20


def test_sql_in_another_room_would_be_seen() -> None:
    source = '''
def one(db):
    """SELECT x FROM a docstring is none."""
    sqlite3.connect("x").execute("SELECT 1 FROM t")
    return f"DELETE FROM {db}"
'''
    assert {what for _, what in sql_in(ast.parse(source))} == {
        "sqlite3.connect",
        ".execute()",
        "SELECT 1 FROM t",
        "DELETE FROM",
    }


def test_receiving_and_delivering_do_not_know_each_other(text: str, tree: ast.Module) -> None:
    defined = {name: room_of(text, node.lineno) for node in tree.body for name in names_of(node)}
    receiving = ("Door", "Look", "Page")
    met = [
        f"{room_of(text, top.lineno)}: {getattr(top, 'name', '')} -> {node.id}"
        for top in tree.body
        for node in ast.walk(top)
        if isinstance(node, ast.Name)
        and (
            (room_of(text, top.lineno) in receiving and defined.get(node.id) == "Delivery")
            or (room_of(text, top.lineno) == "Delivery" and defined.get(node.id) in receiving)
        )
    ]
    assert met == []


def test_nothing_is_caught_without_saying_what(tree: ast.Module) -> None:
    bare = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_no_function_changes_the_module(tree: ast.Module) -> None:
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)] == []


def test_every_public_name_says_what_it_is(tree: ast.Module) -> None:
    assert undocumented(tree) == []


def test_a_silent_public_name_would_be_seen() -> None:
    source = "class One:\n    def two(self): ...\n    def _three(self): ...\ndef four(): ...\n"
    assert undocumented(ast.parse(source)) == ["One", "One.two", "four"]


def test_every_line_fits_the_page(text: str) -> None:
    long = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > MOST_COLUMNS]
    assert long == []


def test_every_function_fits_a_screen(text: str, tree: ast.Module) -> None:
    assert long_functions(text, tree) == {}


def test_a_long_function_would_be_seen() -> None:
    body = '    """A docstring\n\n    of some lines."""\n' + "    # why\n    one()\n\n" * (
        MOST_CODE - 1
    )
    for more, found in (("", {}), ("    one()\n", {"long": MOST_CODE + 1})):
        source = f"def long():\n{body}{more}"
        assert long_functions(source, ast.parse(source)) == found


def test_no_room_is_too_big(text: str) -> None:
    starts = [*banners(text).values(), len(text.splitlines()) + 1]
    sizes = {
        room: end - start
        for room, start, end in zip(banners(text), starts, starts[1:], strict=False)
    }
    assert {room: size for room, size in sizes.items() if size > MOST_ROOM} == {}


def test_no_comment_names_a_line_number(text: str) -> None:
    """Line numbers in comments are wrong after the next change."""
    with SOURCE.open("rb") as file:
        comments = [
            token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT
        ]
    numbered = [c.string for c in comments if re.search(r"\b[Ll]ines? [0-9]{2,}", c.string)]
    assert numbered == []
    assert comments


# ---- What importing it does --------------------------------------------------------------------

WATCHED_IMPORT = """
import ast, importlib, os, random, sys, time
path, name = sys.argv[1:]
sys.dont_write_bytecode = True
for node in ast.walk(ast.parse(open(path, encoding="utf-8").read())):  # others' imports: not ours
    for needed in ([n.name for n in node.names] if isinstance(node, ast.Import) else
                   [node.module] if isinstance(node, ast.ImportFrom) else []):
        importlib.import_module(needed)
sys.path.insert(0, os.path.dirname(path))
done = []

def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".py", ".pyc")) and "r" in str(arguments[1]):
        return
    if event == "open" and str(arguments[0]) in sys.path:
        return
    if event.split(".")[0] in ("open", "socket", "_thread", "sqlite3", "subprocess", "shutil",
                               "tempfile", "glob") or event in (
            "os.putenv", "os.unsetenv", "os.mkdir", "os.remove", "os.rename", "os.link", "os.fork",
            "os.chmod", "os.system", "os.posix_spawn", "os.exec", "os.truncate", "os.chdir"):
        done.append(f"{event} {arguments[:1]}")

class Environment(dict):
    def touched(self, *arguments, **named):
        done.append("environment")
        return {}
    __getitem__ = get = __contains__ = __iter__ = items = keys = copy = touched

def tripwire(name, function):
    def called(*arguments, **named):
        done.append(name)
        return function(*arguments, **named)
    return called

import _thread, threading
started = tripwire("thread", _thread.start_new_thread)
_thread.start_new_thread = threading._start_new_thread = started
for module, functions in ((time, ("time", "monotonic", "sleep", "perf_counter")),
                          (random, ("random", "uniform")), (os, ("urandom",))):
    for function in functions:
        setattr(module, function,
                tripwire(f"{module.__name__}.{function}", getattr(module, function)))
os.environ, os.getenv = Environment(), tripwire("environment", os.getenv)
sys.addaudithook(hook)
importlib.import_module(name)
watching, done = done, []
print("\\n".join(watching))
"""


def import_effects(path: Path) -> list[str]:
    """What importing the module at `path` does beside being read, in an interpreter of its own."""
    watched = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT, str(path), path.stem],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return watched.stdout.split("\n")[:-1] if watched.stdout.strip() else []


def test_importing_it_does_nothing() -> None:
    assert import_effects(SOURCE) == []


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("import os; os.environ.get('HOME')", "environment"),
        ("import os; os.environ['HOME']", "environment"),
        ("import os; os.getenv('HOME')", "environment"),
        ("import socket; socket.socket().close()", "socket.__new__"),
        ("import threading; threading.Thread(target=str).start()", "thread"),
        ("open('/etc/hostname', 'rb').close()", "open ('/etc/hostname',)"),
        ("import sqlite3; sqlite3.connect(':memory:')", "sqlite3.connect"),
        ("import time; time.time()", "time.time"),
        ("import random; random.random()", "random.random"),
        ("import tempfile; tempfile.mkdtemp()", "tempfile.mkdtemp"),
    ],
)
def test_an_import_that_does_something_would_be_seen(
    statement: str, seen: str, tmp_path: Path
) -> None:
    module = tmp_path / "busy.py"
    module.write_text(f"{statement}\n")
    assert any(effect.startswith(seen) for effect in import_effects(module))


def test_a_second_import_is_independent_of_the_first() -> None:
    """No state in the module that two services in one process would share by accident."""
    spec = importlib.util.spec_from_file_location("hd_itsm_again", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = again
    try:
        spec.loader.exec_module(again)
    finally:
        del sys.modules[spec.name]
    assert again.KINDS == hd_itsm.KINDS
    assert again.KINDS is not hd_itsm.KINDS


# ---- What the tables name ----------------------------------------------------------------------


@pytest.mark.parametrize("row", [*OPTIONS, *NAMED_OPTIONS], ids=lambda row: row.name)
def test_an_option_is_read_by_its_reader_and_has_a_sentence(row: Row) -> None:
    row.option.read(row.option.default)
    assert row.option.sentence.strip()


def test_the_outcomes_in_the_answers_are_the_ones_decide_knows() -> None:
    outcomes = {"delivered", "failed", "later", "credential", "unclear"}
    assert {name for _, _, name, _ in hd_itsm.ANSWERS} <= outcomes
    assert all(100 <= first <= last <= 599 for first, last, _, _ in hd_itsm.ANSWERS)


def test_the_built_in_hooks_lead_to_built_in_kinds() -> None:
    assert {hook["kind"] for hook in hd_itsm.HOOKS.values()} <= set(hd_itsm.KINDS)


# ---- What the owner is told --------------------------------------------------------------------


def plain(config: hd_itsm.Config) -> dict[str, Any]:
    """Options as they can be compared: secrets revealed, without those every installation sets."""
    return {
        key: value.reveal() if isinstance(value, hd_itsm.Secret) else value
        for key, value in flat(config).items()
        if key not in ("itsm.url", "itsm.authorization")
    }


def test_the_sample_configuration_loads_and_changes_nothing(tmp_path: Path) -> None:
    sample = tmp_path / "hd_itsm.toml"
    sample.write_text(hd_itsm.sample_config(), encoding="utf-8")
    loaded = hd_itsm.load_config(str(sample), {}, {}, complete=False)
    assert plain(loaded) == plain(hd_itsm.load_config("", {}, {}, complete=False))
    assert set(loaded.kinds) == set(hd_itsm.KINDS)
    assert set(loaded.hooks) == set(hd_itsm.HOOKS)


def test_every_example_of_the_sample_configuration_loads(tmp_path: Path) -> None:
    """What an administrator gets who takes away every mark of a comment before a key."""
    text = re.sub(r"^# (?=[a-z_]+ = )", "", hd_itsm.sample_config(), flags=re.MULTILINE)
    for section in ("tables.users", "hooks.itsm_new", "kinds.assign"):
        text = text.replace(f"# [{section}]", f"[{section}]")
    text = re.sub(r'^# (?="[^"]+" = )', "", text, flags=re.MULTILINE)
    sample = tmp_path / "hd_itsm.toml"
    sample.write_text(text, encoding="utf-8")
    loaded = hd_itsm.load_config(str(sample), {}, {}, complete=False)
    assert loaded.itsm.url == "https://itsm.example.com/api"
    assert loaded.tables["users"]["홍길동"] == "gdhong"


def test_the_sample_shows_every_option_once() -> None:
    sample = hd_itsm.sample_config()
    section, found = "", []
    for line in sample.splitlines():
        if match := re.fullmatch(r"\[([a-z]+)\].*", line):
            section = match[1]
        elif match := re.match(r"(?:# )?([a-z_]+) = ", line):
            found.append(f"{section}.{match[1]}")
    expected = [row.name for row in OPTIONS]
    shown = [key for key in found if key in set(expected)]
    by_section = list(hd_itsm.SECTIONS)
    assert shown == sorted(expected, key=lambda key: by_section.index(key.split(".")[0]))
