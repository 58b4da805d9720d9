"""A real Redis server on a free port, which keeps nothing on the disk."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.support.free_port import free_port

PROGRAM = shutil.which("redis-server")
WHY_NOT = "redis-server is not installed: apt-get install redis-server"
_START_SECONDS = 60


@dataclass
class Server:
    """A running server.

    Attributes:
        port: of this machine.
        process: which ends with the test.
    """

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(timeout=_START_SECONDS)


@contextmanager
def server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """An empty server; `options` as on its command line."""
    assert PROGRAM is not None
    port = port or free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with open(folder / "redis.log", "ab") as log:
        process = subprocess.Popen([PROGRAM, *settings, *options], stdout=log, stderr=log)
    running = Server(port, process)
    try:
        _wait(running, folder / "redis.log")
        yield running
    finally:
        running.kill()


def _wait(running: Server, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with running.client() as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError as error:
                if running.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Redis did not start: {log.read_text()}") from error
                time.sleep(0.02)
