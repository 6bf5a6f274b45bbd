"""What the fault tests break, and how they judge what came of it.

    need("strace", "strace")                                   # else skipped; in CI it fails
    with Rig(folder, bookkept(itsm.url), wrap=injected("fdatasync", "signal=KILL:when=3")) as rig:
        book = Book()                                           # what the helpdesk was promised
        pour(rig, book, ["T1"], steps=3)                        # each step until it is answered 200
        assert judge(book, itsm.requests, cuts=1) == []         # against what the ITSM saw

Every check is a function that returns its findings; a test asserts that there are none, and its
control that the same check finds something in a program of `sabotaged`, which is the real one with
a few lines that break one promise.
"""

from __future__ import annotations

import glob
import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import pytest

from itsm import Received
from service import (
    COMMAND,
    NO_HEADERS,
    PATIENCE,
    PROGRAM,
    Reply,
    Service,
    assignment,
    opening,
    settings,
    until,
)

WORKERS = 4

# ---- What the machine must have ----------------------------------------------------------------


def missing(what: str) -> NoReturn:
    """Ends a test that lacks a tool: it is skipped, but where CI is set it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"missing here: {what}")
    pytest.skip(f"missing here: {what}")


def need(tool: str, package: str) -> str:
    """The path of a program; else the test ends, naming the Debian package that has it."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    return path or missing(f"{tool} (Debian package {package})")


def need_faketime() -> str:
    """The path of the library that shifts the clock of one process."""
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found[0] if found else missing("libfaketimeMT.so.1 (Debian package libfaketime)")


def set_clock(clock: Path, seconds: int) -> None:
    """Shifts it from now on; at once, since libfaketime ends a process that meets half a file."""
    new = clock.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.replace(clock)


@cache
def _mounting() -> str:
    """Why no disk can be mounted here, or ""."""
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode:
        return f"the right to mount (root, CAP_SYS_ADMIN): {done.stderr.strip()}"
    return "" if glob.glob("/dev/loop[0-9]*") else "loop devices (/dev/loop0)"


def need_mounts() -> None:
    """Skips, also in CI, where the machine does not let us mount: no package can mend that."""
    for tool, package in (("unshare", "util-linux"), ("nsenter", "util-linux")):
        need(tool, package)
    need("mkfs.ext4", "e2fsprogs")
    if lacking := _mounting():
        pytest.skip(f"missing here: {lacking}")


@cache
def _tracing() -> str:
    """Why no process can be traced here, or ""."""
    command = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stderr.strip() if done.returncode or done.stderr else ""


def need_strace() -> None:
    """Skips, also in CI, where the machine does not let us trace."""
    need("strace", "strace")
    if lacking := _tracing():
        pytest.skip(f"missing here: the right to trace (ptrace): {lacking}")


def injected(calls: str, fault: str) -> list[str]:
    """Runs a command with a fault in the system calls `calls` (names that do not exist are let
    be); the command keeps the process id that was started."""
    names = ",".join(f"?{name}" for name in calls.split(","))
    quiet = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"]  # its filter misses the first thread
    return [*quiet, "-e", f"trace={names}", "-e", f"inject={names}:{fault}"]


@contextmanager
def attached(pid: int, *options: str) -> Iterator[None]:
    """strace on all threads of a running process, while inside."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _traced(pid) or tracer.poll() is not None, "strace is attached")
        assert tracer.poll() in (None, 0), "strace ended at once"
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


def _traced(pid: int) -> bool:
    """Whether every thread of the process has a tracer."""
    try:
        texts = [Path(name).read_text() for name in glob.glob(f"/proc/{pid}/task/*/status")]
    except OSError:  # a thread has just ended
        return False
    return bool(texts) and not any("TracerPid:\t0\n" in text for text in texts)


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes of memory of a process (VmRSS now, VmHWM the most, VmSize its address space)."""
    text = Path(f"/proc/{pid}/status").read_text()
    row = next(row for row in text.splitlines() if row.startswith(what + ":"))
    return int(row.split()[1]) * 1024


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- Disks -------------------------------------------------------------------------------------


class Disk:
    """A small file system at `place`, in a mount namespace of its own; gone after `with`.

    Only commands with the prefix `inside` see it.
    """

    def __init__(self, folder: Path, kind: str = "ext4", megabytes: int = 32, block: int = 4096):
        self.place = folder / "disk"
        self.place.mkdir()
        self._image = folder / "disk.img"
        self._options = ["-t", kind]
        if kind == "tmpfs":
            self._options += ["-o", f"size={megabytes}m,mode=0700", "none"]
        else:
            with self._image.open("wb") as file:
                file.truncate(megabytes << 20)
            make = [need("mkfs.ext4", "e2fsprogs"), "-q", "-F", "-b", str(block), str(self._image)]
            subprocess.run(make, check=True, capture_output=True, timeout=30)
            self._options += ["-o", "loop", str(self._image)]

    def __enter__(self) -> Disk:
        holder = ["unshare", "--mount", "--propagation", "private", "cat"]
        self._holder = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        ours = os.readlink("/proc/self/ns/mnt")
        until(lambda: os.readlink(f"/proc/{self._holder.pid}/ns/mnt") != ours, "it is apart")
        try:
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *problem: object) -> None:
        with suppress(subprocess.CalledProcessError):
            self.unmount()
        self._holder.kill()
        self._holder.wait(10)
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._image.unlink(missing_ok=True)

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to see the disk."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def run(self, *command: str) -> str:
        """Runs a command that sees the disk."""
        done = subprocess.run(
            [*self.inside, *command], check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout

    def mount(self) -> None:
        """Mounts it (again)."""
        self.run("mount", *self._options, str(self.place))

    def unmount(self) -> None:
        """Takes it away; nothing may use it any more."""
        self.run("umount", str(self.place))

    def cut_power(self) -> None:
        """From now on it takes and gives nothing; what was not synced is lost (FS_IOC_SHUTDOWN
        without a flush of the log). `unmount` and `mount` are the reboot.

        `freeze` who writes there first: an fdatasync under way while ext4 shuts down may return 0
        for what is lost (a bare file shows it, one time in four), as no cut of the power would.
        """
        code = (
            "import fcntl, os, struct, sys;"
            "fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))"
        )
        self.run(sys.executable, "-c", code, str(self.place))

    def fill(self) -> None:
        """Leaves no byte of room."""
        code = (
            "import os, sys\n"
            "file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)\n"
            "size = 1 << 20\n"
            "while size:\n"
            "    try: os.write(file, b'x' * size)\n"
            "    except OSError: size //= 2\n"
            "try: os.fsync(file)\n"
            "except OSError: pass\n"
        )
        self.run(sys.executable, "-c", code, str(self.place / "filler"))

    def make_room(self) -> None:
        """Takes away what `fill` wrote."""
        self.run("rm", str(self.place / "filler"))


# ---- The program -------------------------------------------------------------------------------

MAIN = '\nif __name__ == "__main__":'

SABOTAGE = {
    # the commit is not brought to the disk
    "unsynced": """
class _Unsynced(sqlite3.Connection):
    def execute(self, sql, *more):
        if sql.upper().startswith("PRAGMA SYNCHRONOUS"):
            super().execute("PRAGMA synchronous = NORMAL")
            sql = "SELECT 2"
        return super().execute(sql, *more)
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Unsynced)
""",
    # the webhook is answered before its commit
    "early": """
class _Early(sqlite3.Connection):
    last = 0.0
    def execute(self, sql, *more):
        if sql == "COMMIT" and time.monotonic() - self.last < 0.3:
            return super().execute("SELECT 1")
        if sql == "COMMIT":
            self.last = time.monotonic()
        if sql.startswith("BEGIN") and self.in_transaction:
            return super().execute("SELECT 1")
        return super().execute(sql, *more)
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Early)
""",
    # an event is delivered before it is sent
    "marked": """
_attempt = Delivery._attempt
def _marked(self, inquiry, event, *rest, **named):
    self.events.record(event, (), Verdict("delivered", "marked before it was sent"))
    time.sleep(0.05)
    return _attempt(self, inquiry, event, *rest, **named)
Delivery._attempt = _marked
""",
    # everything is sent twice
    "twice": """
_exchange = Wire.exchange
def _twice(self, *rest, **named):
    _exchange(self, *rest, **named)
    return _exchange(self, *rest, **named)
Wire.exchange = _twice
""",
    # the last of a ticket's line goes first
    "backwards": """
class _Backwards(sqlite3.Connection):
    def execute(self, sql, *more):
        sql = sql.replace("ORDER BY rank, event", "ORDER BY rank DESC, event DESC")
        return super().execute(sql, *more)
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Backwards)
""",
    # errors of the disk are passed over in silence
    "hushed": """
class _Hushed(sqlite3.Connection):
    def execute(self, sql, *more):
        try:
            return super().execute(sql, *more)
        except sqlite3.OperationalError:
            if self.in_transaction:
                super().execute("ROLLBACK")
            return super().execute("SELECT 1")
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Hushed)
""",
    # nothing is set aside for a full disk
    "no reserve": """
File.keep_reserve = lambda self: None
""",
    # waiting goes by the clock on the wall
    "wall clock": """
File.clock = lambda self: time.time()
""",
    # a file that is refused is replaced by a new one
    "anew": """
_init = File.__init__
def _anew(self, path, *rest, **named):
    try:
        _init(self, path, *rest, **named)
    except FileError:
        os.replace(path, path + ".bad")
        _init(self, path, *rest, **named)
File.__init__ = _anew
""",
    # the file is not held alone
    "shared": """
class _Shared(sqlite3.Connection):
    def execute(self, sql, *more):
        if "locking_mode" in sql:
            sql = "PRAGMA locking_mode = NORMAL"
        return super().execute(sql.replace("BEGIN EXCLUSIVE", "BEGIN"), *more)
sqlite3.connect = functools.partial(sqlite3.connect, factory=_Shared)
""",
    # nobody looks after the workers
    "unwatched": """
Delivery.watch = lambda self, now, turn: setattr(self.events.pulse, "beat", now)
""",
    # only half of the file is copied
    "torn": """
def _torn(self, path):
    with open(self.path, "rb") as source, open(path, "wb") as copy:
        return copy.write(source.read(os.stat(self.path).st_size // 2))
File.backup = _torn
""",
    # what was told is forgotten
    "forgetful": """
_keep_facts = File.keep_facts
def _forgetful(self, **facts):
    facts.pop("told", None)
    _keep_facts(self, **facts)
File.keep_facts = _forgetful
""",
}


# libfaketime may hand a deadline that has just gone by to the kernel as a wait below zero
FAKETIME_MENDED = """
_sleep = time.sleep
def _slept(seconds):
    try:
        _sleep(seconds)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
time.sleep = _slept
"""


def sabotaged(folder: Path, *names: str, code: str = "") -> Path:
    """A copy of the program with these faults of SABOTAGE, or with some other lines."""
    top, main, rest = PROGRAM.read_text(encoding="utf-8").partition(MAIN)
    assert main, "the last lines of the program are not what they were"
    path = folder / "sabotaged.py"
    lines = [*(SABOTAGE[name] for name in names), code]
    path.write_text(top + "\n" + "\n".join(lines) + main + rest, encoding="utf-8")
    return path


class Rig(Service):
    """A Service whose program and way to be started may be others than the usual."""

    def __init__(
        self,
        folder: Path,
        config: str,
        program: Path = PROGRAM,
        wrap: Sequence[str] = (),
        environ: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(folder, config, environ)
        self.program = program
        self.wrap = list(wrap)
        self.token = token_of(config)

    def launch(self) -> None:
        """Starts it and does not wait."""
        self.command = self._wrapped(self.wrap, [sys.executable, str(self.program)])
        super().launch()

    @property
    def tool(self) -> Sequence[str]:
        """The program as it is, in the place where the file is."""
        return self._wrapped(self.wrap[:2] if self.wrap[:1] == ["nsenter"] else [], COMMAND)

    def _wrapped(self, wrap: Sequence[str], words: Sequence[str]) -> list[str]:
        if "nsenter" not in wrap:
            return [*wrap, *words]
        # a mount namespace begins at /: back to the folder
        return [*wrap, "env", f"--chdir={self.folder}", *words]

    def freeze(self) -> None:
        """Stops every thread where it is; system calls under way come to their end."""
        self.signal(signal.SIGSTOP)

        def still() -> bool:
            stats = [Path(name).read_text() for name in glob.glob(f"/proc/{self.pid}/task/*/stat")]
            return all(text.rpartition(")")[2].split()[0] in "Tt" for text in stats)

        until(still, "it stands still")

    def refused(self) -> tuple[int, str]:
        """Starts it, which must not work: exit code and what it said."""
        self.launch()
        if self.ready():
            self.kill()
            return -signal.SIGKILL, "it listens"
        return self.wait(), self.log[self._begun :]

    def step(self, ticket_id: str, step: int, timeout: float = 10.0) -> Reply:
        """Posts a step of a ticket: its opening, then assignments."""
        name, body = ("itsm_ass", assignment(ticket_id, str(step)))
        if step == 0:
            name, body = ("itsm_new", opening(ticket_id, subject="0"))
        return self.post(name, body, {"X-Webhook-Token": self.token}, timeout=timeout)


# ---- The books ---------------------------------------------------------------------------------

_TOKEN = "books-of-"


def bookkept(itsm_url: str, **sections: Mapping[str, Any]) -> str:
    """A configuration under which every request names its ticket and step.

    It admits only a helpdesk with the token of this very configuration: a port that is free after
    a kill may be another program's a moment later.
    """
    kept: dict[str, Mapping[str, Any]] = {
        "access": {"token": f"{_TOKEN}{os.urandom(8).hex()}"},
        "kinds__new": {
            "opens": True,
            "body": {"code": "000", "ticket": "{ticket_id}", "step": "{subject}"},
        },
        "kinds__assign": {
            "body": {
                "code": "020",
                "request_id": "{request_id}",
                "ticket": "{ticket_id}",
                "step": "{technician}",
            }
        },
    }
    return settings(itsm_url, **{**kept, **sections})


def token_of(config: str) -> str:
    """The token of a configuration of `bookkept`."""
    start = config.find(_TOKEN)
    return config[start : start + len(_TOKEN) + 16] if start >= 0 else ""


class Book:
    """What the helpdesk was promised: steps of tickets that were answered 200, and other answers.

    Lists are appended to by many threads, which needs no lock.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[str, int]] = []
        self.refused: list[Reply] = []
        self.stopped = threading.Event()
        self.deadline = monotonic() + 4 * PATIENCE


def pour(rig: Rig, book: Book, tickets: Iterable[str], steps: int) -> None:
    """A helpdesk with patience: sends each step of each ticket until it is answered 200.

    It ends at the end of a ticket once `book.stopped` is set.
    """
    for name in tickets:
        for step in range(steps):
            send(rig, book, name, step)
        if book.stopped.is_set():
            return


def send(rig: Rig, book: Book, name: str, step: int) -> None:
    """Sends one step until it is answered 200."""
    while True:
        assert monotonic() < book.deadline, f"{name} {step} is not taken"
        try:
            reply = rig.step(name, step)
        except (OSError, http.client.HTTPException):
            book.stopped.wait(0.02)  # it is down: the helpdesk tries again a little later
            continue
        if reply.status == 200:
            book.kept.append((name, step))
            return
        assert reply.status == 503, reply
        assert "Retry-After" in reply.headers, reply
        book.refused.append(reply)
        book.stopped.wait(0.02)


def judge(
    kept: Iterable[tuple[str, int]],
    requests: Iterable[Received],
    cuts: int,
    workers: int = WORKERS,
) -> list[str]:
    """What is wrong with what the ITSM saw: lost, disordered, repeated or misnamed steps.

    After each cut (a kill, a power loss) the attempts in flight may be repeated, nothing else.
    """
    seen: dict[str, list[int]] = defaultdict(list)
    named: dict[str, list[str]] = defaultdict(list)
    total = 0
    for received in requests:
        body = received.json()
        seen[body["ticket"]].append(int(body["step"]))
        total += 1
        if "request_id" in body:
            named[body["ticket"]].append(body["request_id"])
    promised = set(kept)
    there = {(name, step) for name, steps in seen.items() for step in steps}
    findings = [f"lost: {name} step {step}" for name, step in sorted(promised - there)]
    for name, steps in seen.items():
        if steps != sorted(steps):
            findings.append(f"disordered: {name} came as {steps}")
        if any(steps.count(step) > 1 + cuts for step in steps):
            findings.append(f"repeated: {name} came as {steps} with {cuts} cuts")
        if len(set(named[name])) > 1 + cuts:
            findings.append(f"misnamed: {name} under {named[name]}")
    if total - len(there) > cuts * workers:
        findings.append(f"repeated: {total - len(there)} requests with {cuts} cuts")
    return findings


def kinds_of(findings: Iterable[str]) -> set[str]:
    """The first words of findings."""
    return {one.split(":")[0] for one in findings}
