"""A real PostgreSQL server in a temporary folder, on a free port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.free_port import free_port

DEBIAN = Path("/usr/lib/postgresql")
_START_SECONDS = 60


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, those of Debian's newest version first; None where there is none."""
    installed = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    found = [str(path) for path in installed] or [shutil.which("initdb")]
    return None if found[0] is None else Path(found[0]).parent


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of an empty database, served by programs in `folder`."""
    home = Path(tempfile.mkdtemp(prefix="trellis-postgresql-"))
    # PostgreSQL refuses to run as root.
    user = _ordinary_user() if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(home, user)
    data, port = home / "data", free_port()
    initdb = [folder / "initdb", "-D", data, "-U", "tuner", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"]
    postgres = [folder / "postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", home, "-F"]
    log = home.with_suffix(".log")
    with open(log, "wb") as output:
        common = {"cwd": home, "stdout": output, "stderr": subprocess.STDOUT}
        subprocess.run(_as(user, initdb), check=True, **common)
        running = subprocess.Popen(_as(user, postgres), **common)
    try:
        _wait(running, folder / "pg_isready", port, log)
        yield f"postgresql://tuner@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGINT)  # Its fast shutdown, which waits for no client.
        running.wait(timeout=_START_SECONDS)
        shutil.rmtree(home, ignore_errors=True)
        log.unlink()


def _ordinary_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


# Not by Popen's `user`, which forks: for a process as large as pytest's, memory that a small machine does not have.
_AS_USER = "import os, pwd, sys; os.setuid(pwd.getpwnam(sys.argv[1]).pw_uid); os.execv(sys.argv[2], sys.argv[2:])"


def _as(user: str | None, command: Sequence[object]) -> list[str]:
    own = list(map(str, command))
    return own if user is None else [sys.executable, "-c", _AS_USER, user, *own]


def _wait(running: subprocess.Popen[bytes], is_ready: Path, port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while subprocess.run([str(is_ready), "-q", "-h", "127.0.0.1", "-p", str(port)], check=False).returncode != 0:
        if running.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")
        time.sleep(0.1)
