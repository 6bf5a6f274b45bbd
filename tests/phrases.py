"""The phrases that the program says to people, as they stand in its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import hd_itsm

IN_TEMPLATE = re.compile(r"\bsay\((?:'([^']*)'|\"([^\"]*)\")")
LISTED = re.compile(r"% (?:heads\(|for name in \()([^)]*)\)")


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from _texts(value)


def _said(node: ast.AST) -> Iterator[str]:
    """What is said by a call of `say`, or is named a phrase for one."""
    if isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        of_itself = name == "self" and isinstance(node.func, ast.Name)
        if name == "say" or of_itself:
            yield from _texts(node.args[0])
    elif isinstance(node, ast.Assign):
        names = {getattr(target, "id", "") for target in node.targets}
        if names & {"phrase", "phrases"}:
            yield from _texts(node.value)


def in_templates(text: str) -> set[str]:
    """The phrases of a template."""
    found = {one or other for one, other in IN_TEMPLATE.findall(text)}
    for listed in LISTED.findall(text):
        found |= set(re.findall(r"'([^']*)'", listed))
    return found


def phrases(source: str) -> set[str]:
    """Every phrase that a program with this source says."""
    found = {*hd_itsm.REASONS, *hd_itsm.FINDINGS} | {*hd_itsm.STATES, "unclear", "received"}
    found |= {*hd_itsm.SHOWN.values()}
    found |= {name.capitalize() for name, each in hd_itsm.OPERATIONS.items() if each.button}
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "_Demo"]
    for node in ast.walk(tree):
        found |= set(_said(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "% " in node.value:
            found |= in_templates(node.value)
    return found
