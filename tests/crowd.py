"""Copies of what the program wrote: of its file, and of the tickets in it."""

from __future__ import annotations

import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path


def multiply(path: Path, times: int, ticket_id: str = "", **columns: str) -> None:
    """Makes of all events in the file, whatever their columns, those of `times` more tickets.

    `ticket_id`: is replaced in fields and bodies too; `columns`: SQL for further ones of events.
    """
    ours, theirs = f"'\"{ticket_id}\"'", f"'\"{ticket_id}-' || n || '\"'"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA synchronous = OFF")
        file.execute("BEGIN")
        last = file.execute("SELECT max(event) FROM events").fetchone()[0]
        named = {
            "event": f"event + {last} * n",
            "ticket": "ticket || '-' || n",
        }
        made = {
            "events": {
                **named,
                "rank": f"rank + {last} * n",
                "idempotency_key": "lower(hex(randomblob(16)))",
                "digest": "randomblob(32)",
                **({"fields": f"replace(fields, {ours}, {theirs})"} if ticket_id else {}),
                **columns,
            },
            "tickets": {
                "ticket": named["ticket"],
                "latest": f"latest + {last} * n",
                "head": f"head + {last} * n",
                "request_id": "request_id || '-' || n",
            },
            "attempts": {"event": named["event"]},
        }
        if ticket_id:
            raw = f"replace(CAST(raw AS TEXT), {ours}, {theirs})"
            made["events"].setdefault("raw", f"CAST({raw} AS BLOB)")
        for table, changed in made.items():
            names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            assert set(changed) <= set(names), f"the table {table} is not what it was"
            values = ", ".join(changed.get(name, name) for name in names)
            file.execute(f"CREATE TEMP TABLE copied AS SELECT * FROM {table}")
            file.execute(
                "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
                f" WHERE n < {times}) INSERT INTO {table} SELECT {values} FROM numbers, copied"
            )
            file.execute("DROP TABLE copied")
        counts = file.execute("SELECT state, count(*) FROM events GROUP BY state").fetchall()
        for name, count in [*counts, ("events", last * (times + 1))]:
            row = "UPDATE counts SET count = ? WHERE hour = 0 AND name = ?"
            assert file.execute(row, (count, name)).rowcount == 1
        file.execute("COMMIT")


def image(path: Path, folder: Path) -> Path:
    """What a power cut would leave of the file: a copy of it and its log.

    It is made by another process, since closing the file in this one would drop its locks.
    """
    target = Path(tempfile.mkdtemp(dir=folder))
    parts = [str(part) for part in (path, Path(f"{path}-wal")) if part.exists()]
    subprocess.run(["cp", *parts, str(target)], check=True, timeout=60)
    return target / path.name
