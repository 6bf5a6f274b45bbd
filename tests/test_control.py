"""Between a command and the running service: who is believed, and who touches which file."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import hd_itsm
from faultlib import missing
from itsm import Itsm
from service import NONCE, Service, assignment, opening, proof, settings, with_notes

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path, itsm: Itsm) -> Iterator[Start]:
    """Starts a service before an ITSM, with these sections of configuration."""
    with ExitStack() as stack:

        def starter(**sections: Mapping[str, Any]) -> Service:
            return stack.enter_context(Service(tmp_path, with_notes(itsm.url, **sections)))

        yield starter


# ---- Who listens on the port -------------------------------------------------------------------

LIES = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nHD-ITSM-Pid: %d\r\n"
    b"HD-ITSM-Proof: " + b"0" * 64 + b"\r\nContent-Length: %d\r\n\r\n%s",
    b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nX: %d\r\nContent-Length: %d\r\n\r\n%s",
]
LIE = json.dumps({"result": {"imported": 1, "request_id": "R-LIE"}, "error": "a lie"}).encode()


@contextmanager
def stranger(pid: int, lie: bytes = LIES[0]) -> Iterator[tuple[int, bytearray]]:
    """Somebody who listens: the port, and all that is said to it; whatever is asked, it lies."""
    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with line:
                        line.settimeout(5)
                        with suppress(OSError):
                            while piece := line.recv(65536):
                                heard.extend(piece)
                                line.sendall(lie % (pid, len(LIE), LIE))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("lie", LIES, ids=["200", "400"])
def test_who_listens_on_the_port_learns_neither_key_nor_data_and_is_not_believed(
    start: Start, lie: bytes
) -> None:
    service = start()
    service.post("itsm_ass", assignment("HELD-9"))
    service.kill()  # its control file stays, and its port is anybody's
    control = service.control
    with stranger(control["pid"], lie) as (port, heard):
        (service.folder / "hd_itsm.db.control").write_text(json.dumps({**control, "port": port}))
        run = service.cli("map", "TICKET-7", "REQUEST-7")
        assert (run.code, run.err) == (0, "")
        assert service.cli("drop", 1, "--why", "GEHEIM").code == 0
        assert service.cli("export").out.splitlines()[1].startswith("TICKET-7,REQUEST-7,")
        assert service.show(1)["state"] == "dropped"
    assert len(heard) > 100
    for word in (control["key"], "TICKET-7", "REQUEST-7", "GEHEIM", "HELD-9"):
        assert word.encode() not in heard


@pytest.mark.slow
def test_a_silent_listener_does_not_keep_a_command_for_ever(start: Start) -> None:
    service = start()
    service.kill()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        told = json.dumps({**service.control, "port": deaf.getsockname()[1]})
        (service.folder / "hd_itsm.db.control").write_text(told)
        assert service.cli("status", timeout=30).code == 0


@contextmanager
def relay(port: int, change: Callable[[bytes, bool], bytes]) -> Iterator[int]:
    """Passes on what is said between a command and the service, changed (True: to the service)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def passing(source: socket.socket, target: socket.socket, asks: bool) -> None:
            with suppress(OSError):
                while piece := source.recv(1 << 20):
                    target.sendall(change(piece, asks))
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with line, socket.create_connection(("127.0.0.1", port)) as onward:
                        back = threading.Thread(target=passing, args=(onward, line, False))
                        back.start()
                        passing(line, onward, True)
                        back.join(10)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


CHANGED: dict[str, Callable[[bytes, bool], bytes]] = {
    "another request": lambda said, asks: said.replace(b"REQUEST-1", b"REQUEST-2"),
    "another operation": lambda said, asks: said.replace(b"/control/map", b"/control/drop"),
    "another answer": lambda said, asks: (
        said if asks else said.replace(b"REQUEST-1", b"REQUEST-2")
    ),
    "another status": lambda said, asks: (
        said.replace(b" 200 OK", b" 503 OK") if not asks else said
    ),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_nobody_between_command_and_service_can_change_what_is_said(
    start: Start, change: Callable[[bytes, bool], bytes]
) -> None:
    service = start()
    control, path = service.control, service.folder / "hd_itsm.db.control"
    with relay(service.port, lambda said, asks: said) as port:
        path.write_text(json.dumps({**control, "port": port}))
        assert service.cli("map", "TICKET-1", "REQUEST-0").code == 0  # it is passed on
    with relay(service.port, change) as port:
        path.write_text(json.dumps({**control, "port": port}))
        run = service.cli("map", "TICKET-1", "REQUEST-1")
        assert run.code == 1
        assert "REQUEST-2" not in run.out + run.err
        assert "REQUEST-1" not in run.out
    path.write_text(json.dumps(control))
    assert service.mappings()["TICKET-1"] in ("REQUEST-0", "REQUEST-1")


def test_the_service_says_nothing_that_would_do_as_a_commands_proof(start: Start) -> None:
    service = start()
    digest = sha256(b"{}").hexdigest()
    for nonce in (NONCE, f"command\n{NONCE}\npause\n{digest}", "", "x" * 32, "é"):
        headers = {"HD-ITSM-Nonce": nonce.replace("\n", " ").encode()}
        answer = service.request("GET", "/control/hello", headers=headers)
        word = answer.headers.get("HD-ITSM-Proof", "")
        if nonce == NONCE:
            assert word == proof(service.control["key"], "service", NONCE)
        else:
            assert (answer.status, word) == (400, "")
        said = {"HD-ITSM-Proof": f"{NONCE} {digest} {word}"}
        refused = service.request("POST", "/control/pause", b"{}", said)
        assert refused.status == 401
    assert service.status()["paused"] is None


# ---- Arguments ---------------------------------------------------------------------------------

WRONG: list[Any] = [None, True, -1, 1.5, "x" * 300, "\x00", [], [1], [[]], [None], {}, {"a": 1}]


def test_wrong_arguments_are_refused_with_words_whatever_their_type(start: Start) -> None:
    service = start()
    service.post("itsm_new", opening("A"), wait=10)
    refused = 0
    for operation in hd_itsm.OPERATIONS.values():
        if operation.name == "backup":
            continue  # it makes files
        for argument in operation.arguments:
            for wrong in WRONG:
                body = json.dumps({argument.key: wrong}).encode()
                answer = service.control_post(operation.name, body)
                assert answer.status in (200, 400, 422), (operation.name, body, answer)
                if answer.status == 400:
                    refused += 1
                    assert re.search(r"[a-z]{3}", answer.error)
    assert refused > 200
    answer = service.control_post("events", b'{"stat": "failed"}')
    assert (answer.status, answer.error) == (400, "no argument 'stat' (did you mean 'state'?)")
    assert "did you mean 'status'" in service.control_post("statu", b"{}").error


# ---- backup ------------------------------------------------------------------------------------


def test_a_backup_is_whole_for_nobody_else_to_read_and_leaves_nothing_beside_it(
    start: Start, tmp_path: Path
) -> None:
    service = start()
    service.post("itsm_new", opening("A"), wait=10)
    target = tmp_path / "kept" / "copy.db"
    target.parent.mkdir()
    for _ in range(2):  # the second one replaces the first
        run = service.cli("backup", target, "--json")
        assert run.code == 0, run
        assert run.json() == {"file": str(target), "bytes": target.stat().st_size}
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert [path.name for path in target.parent.iterdir()] == ["copy.db"]
    assert [path for path in tmp_path.iterdir() if ".new." in path.name] == []
    service.stop()
    other = tmp_path / "other"
    other.mkdir()
    target.rename(other / "hd_itsm.db")
    copied = Service(other, settings("http://127.0.0.1:9/"))
    assert copied.cli("export").out == service.cli("export").out


def test_root_copies_the_file_of_a_service_that_does_not_run_under_its_own_user(
    start: Start, tmp_path: Path
) -> None:
    if os.geteuid():
        missing("root, who can give files away")
    service = start()
    assert service.stop() == 0
    os.chown(service.database, 65534, 65534)
    run = service.cli("backup", tmp_path / "copy.db")
    assert (run.code, run.err) == (0, "")
    assert (tmp_path / "copy.db").stat().st_uid == 0
    assert service.database.stat().st_uid == 65534


@contextmanager
def impostor(key: str, make: Callable[[str], dict[str, Any]]) -> Iterator[int]:
    """Somebody who has the key and answers `backup` with what `make` gives for the copy's name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, body: bytes, word: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("HD-ITSM-Proof", word)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(b"{}", proof(key, "service", self.headers["HD-ITSM-Nonce"]))

        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            nonce = self.headers["HD-ITSM-Proof"].split()[0]
            body = json.dumps({"result": make(given["name"])}).encode()
            self.reply(body, proof(key, "answer", nonce, "200", sha256(body).hexdigest()))

        def log_message(self, *arguments: object) -> None:
            """Says nothing on its own."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)


def linked(copy: Path, victim: Path) -> None:
    """A link where the copy should be."""
    copy.symlink_to(victim)


def hard_linked(copy: Path, victim: Path) -> None:
    """Another name of the victim where the copy should be."""
    os.link(victim, copy)


def piped(copy: Path, victim: Path) -> None:
    """A pipe where the copy should be: opening it would wait."""
    os.mkfifo(copy)


def nothing(copy: Path, victim: Path) -> None:
    """Nothing."""


@pytest.mark.parametrize("make", [linked, hard_linked, piped, nothing])
def test_backup_copies_and_deletes_nothing_but_the_copy_that_it_asked_for(
    start: Start, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    service = start()
    service.kill()
    victim, target = tmp_path / "victim", tmp_path / "copy.db"
    victim.write_text("root:secret")

    def answer(name: str) -> dict[str, Any]:
        make(Path(f"{service.database}.new.{name}"), victim)
        return {"file": str(victim), "bytes": 11}

    control = service.control
    with impostor(control["key"], answer) as port:
        told = json.dumps({**control, "port": port, "host": "127.0.0.1"})
        (tmp_path / "hd_itsm.db.control").write_text(told)
        run = service.cli("backup", target, timeout=30)
    assert run.code == 1
    assert ".new." in run.err
    assert victim.read_text() == "root:secret"
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir() if "copy.db" in path.name] == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "abcdef12.db", "ABCDEF1234", "\u0663" * 8])
def test_the_service_makes_a_copy_nowhere_but_beside_its_file(start: Start, name: str) -> None:
    service = start()
    before = sorted(path.name for path in service.folder.rglob("*"))
    answer = service.control_post("backup", json.dumps({"name": name}).encode())
    assert answer.status == 400
    assert "hexadecimal" in answer.error or "missing" in answer.error
    assert sorted(path.name for path in service.folder.rglob("*")) == before
    assert not (service.folder.parent / "x").exists()


def test_backup_refuses_to_stand_in_the_place_of_the_file(start: Start) -> None:
    service = start()
    for name in ("hd_itsm.db", "hd_itsm.db-wal", "hd_itsm.db.control", "."):
        assert service.cli("backup", name).code == 2
    assert service.cli("backup", service.folder / "no-folder" / "copy.db").code == 1
    assert [path for path in service.folder.iterdir() if ".new." in path.name] == []
