"""The options of the configuration as rows, and what a configuration holds of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import hd_itsm


class Row(NamedTuple):
    """One key: [section] key = default."""

    section: str
    key: str
    option: hd_itsm.Option

    @property
    def name(self) -> str:
        """Its full key."""
        return f"{self.section}.{self.key}"


def _rows(section: str, table: type) -> list[Row]:
    return [Row(section, key, option) for key, option in hd_itsm.options_of(table).items()]


OPTIONS = [row for section, table in hd_itsm.SECTIONS.items() for row in _rows(section, table)]
NAMED_OPTIONS = [
    *_rows("hooks", hd_itsm.HookOptions),
    *_rows("kinds", hd_itsm.KindOptions),
    *_rows("lookups", hd_itsm.LookupOptions),
]


def flat(config: hd_itsm.Config) -> dict[str, Any]:
    """Full key -> value of every option of the sections."""
    return {
        f"{section}.{one.name}": getattr(getattr(config, section), one.name)
        for section in hd_itsm.SECTIONS
        for one in fields(getattr(config, section))
    }
