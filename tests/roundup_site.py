"""A real ITSM on loopback: a Roundup tracker of its classic template, in one folder.

    python tests/roundup_site.py prepare FOLDER         # the tracker, its people; once
    python tests/roundup_site.py serve FOLDER ADDRESS   # "serving on http://127.0.0.1:PORT" on stdout

ADDRESS is what the tracker takes itself to be reached at: it compares the header Origin with it.
Nothing of Roundup is replaced; what is set is what its manual says must be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import roundup.admin
import roundup.configuration
import roundup.instance
import roundup.password
from roundup.cgi.wsgi_handler import RequestDispatcher
from waitress import create_server

PEOPLE = ("hd_itsm", "dlee", "sora")  # their passwords are their names


def prepare(folder: Path) -> None:
    """The tracker, and in it the people."""
    known = "tracker_web=http://127.0.0.1/,mail_domain=example.com,mail_host=127.0.0.1"
    quick = "password_pbkdf2_default_rounds=1000"  # else a log-in takes 0.1 s
    settings = f"{known},{quick},mail_debug={folder}/mail"  # mail goes into a file
    tool = roundup.admin.AdminTool()
    tool.do_install(str(folder), ["install", "classic", "sqlite", settings])
    tool.do_initialise(str(folder), ["initialise", "admin"])
    tracker = roundup.instance.open(str(folder))
    db = tracker.open("admin")
    for name in PEOPLE:
        password = roundup.password.Password(name, config=tracker.config)
        db.user.create(
            username=name, password=password, address=f"{name}@example.com", roles="User"
        )
    db.commit()
    db.close()


def serve(folder: Path, address: str) -> None:
    """Until the process is ended."""
    config = roundup.configuration.CoreConfig(str(folder))
    config["TRACKER_WEB"] = f"{address}/"
    config.save()
    server = create_server(RequestDispatcher(str(folder)), host="127.0.0.1", port=0, threads=4)
    print(f"serving on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


if __name__ == "__main__":
    os.umask(0o077)
    commands: dict[str, Callable[..., Any]] = {"prepare": prepare, "serve": serve}
    commands[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
