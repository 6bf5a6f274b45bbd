"""How the tests are run: on several processes, within time limits, and alike on every machine.

`pytest` runs what a newcomer needs to see: every room, in three minutes on two cores. What is slow
(kill loops, power cuts, fuzzing, the search for secrets, a browser, systemd's patience, ways to
install) is marked `slow`;
`pytest -m ""` runs that too, and so does a test that is called by its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from itsm import Itsm
from service import Service, Start, end_all, with_notes

LONG_LIMIT = 300  # seconds a slow test may take; for the others see pyproject.toml
MOST_WORKERS = 8

# What of the environment would change what the program does or says
FOREIGN = (
    "HD_ITSM_CONFIG",
    "PYTHON",
    "LISTEN_",
    "NOTIFY_",
    "WATCHDOG_",
    "CREDENTIALS_",
    "LC_",
    "LANG",
)
OURS = ("PYTHONPYCACHEPREFIX",)


def named(config: pytest.Config) -> bool:
    """Whether somebody asks for certain tests, not for files or all."""
    return any("::" in one for one in config.args)


def pytest_configure(config: pytest.Config) -> None:
    os.umask(0o022)  # a configuration that others may write is not believed
    for name in list(os.environ):
        if name.startswith(FOREIGN) and name not in OURS:
            del os.environ[name]
    os.environ["LANG"] = "C.UTF-8"
    if named(config):
        config.option.markexpr = ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """More than there are cores, as the tests wait for a third of their time."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 0 if named(config) else min(cores + 1, MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_LIMIT))


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture
def itsm() -> Iterator[Itsm]:
    """An ITSM that takes everything."""
    with Itsm() as stand_in:
        yield stand_in


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service before an ITSM, with POST /note and these sections of configuration."""
    with ExitStack() as stack:

        def starter(
            itsm_url: str, environ: Mapping[str, str] | None = None, **sections: Mapping[str, Any]
        ) -> Service:
            text = with_notes(itsm_url, **sections)
            return stack.enter_context(Service(tmp_path, text, environ or {}))

        yield starter
