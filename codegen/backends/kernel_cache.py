"""Compiled kernels on disk, shared by all processes of a user.

An entry is one file, named by the kernel and by a digest of everything that decides its code. The name is formed
without rendering and without a compiler, so that a process which finds its kernels imports neither. Behind the library
stands a digest of its bytes: what is cut short or damaged is not loaded, for that could end the process, but made
again. Files appear by renaming, so nobody sees half of one; a lock keeps two processes from compiling the same kernel
at the same time. What was not used for the longest time goes when the folder is full.

A folder that cannot be written costs time, never a result: it is said once, and kernels are compiled for this process
alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codegen.errors import SizeError
from codegen.render import cache_folder
from codegen.whole_imports import whole_imports

VARIABLE = "TRELLIS_OPS_CACHE_MEGABYTES"
DEFAULT_MEGABYTES = 256.0

_SUFFIX = ".so"
_UNFINISHED = ".tmp"
_SEAL = b"trellis-ops kernel"
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size
_PATIENCE_SECONDS = 120.0
_UNFINISHED_SECONDS = 3600.0


class KernelCacheWarning(UserWarning):
    """Compiled kernels cannot be kept, so that every process compiles its own."""


@dataclass(frozen=True)
class Entry:
    """The place of one kernel.

    Attributes:
        path: the file that holds it, if it is there.
    """

    path: Path

    def find(self) -> Path | None:
        """The library, if it is there and whole; it is then the one used last."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        if not _is_sealed(content):
            return None
        # Whoever may read but not write cannot say that the entry is in use; it is no less right for that.
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return self.path

    def store(self, export: Callable[[Path], None]) -> Path | None:
        """Keep the library that `export` writes; None, and a warning, if that is not possible."""
        unfinished = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(_UNFINISHED + _SUFFIX, self.path.stem, self.path.parent)
            os.close(handle)
            unfinished = Path(name)
            export(unfinished)
            with unfinished.open("ab") as file:
                file.write(_seal(unfinished.read_bytes()))
            os.replace(unfinished, self.path)
            _evict(self.path)
        except (OSError, RuntimeError) as error:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
            _say_once(f"compiled kernels cannot be kept in {self.path.parent}: {_one_line(error)}")
            return None
        return self.path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with this entry, as far as other processes are concerned; without a lock where none can be had."""
        with whole_imports():
            from filelock import FileLock

        # A few locks for all entries, so that they need not be cleared away.
        lock = FileLock(self.path.parent / "locks" / f"{self.path.stem[-2:]}.lock", timeout=_PATIENCE_SECONDS)
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            # Without it two processes may compile the same kernel, and the second file replaces the first.
            _say_once(f"compiled kernels cannot be locked in {self.path.parent}: {_one_line(error)}")
            yield
            return
        try:
            yield
        finally:
            lock.release()


def entry(kernel: str, parts: tuple[str, ...]) -> Entry | None:
    """The place of the kernel that `parts`, which must name all that decides its code, describe; None if turned off."""
    if _limit_bytes() == 0:
        return None
    digest = hashlib.sha256("\0".join((kernel, *parts)).encode()).hexdigest()[:32]
    return Entry(kernels_folder() / f"{kernel}_{digest}{_SUFFIX}")


def kernels_folder() -> Path:
    """Where compiled kernels live, beside the generated sources."""
    return cache_folder() / "kernels"


def _is_sealed(content: bytes) -> bool:
    return content[-_SEAL_BYTES:] == _seal(content[:-_SEAL_BYTES])


def _seal(content: bytes) -> bytes:
    return _SEAL + hashlib.sha256(content).digest()


def _evict(kept: Path) -> None:
    """Remove what was not used for the longest time until the rest fits, and what dead processes left unfinished."""
    now, entries = time.time(), []
    for path in kept.parent.glob(f"*{_SUFFIX}"):
        # Another process may remove it first.
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            if not path.name.endswith(_UNFINISHED + _SUFFIX):
                entries.append((path == kept, facts.st_mtime, facts.st_size, path))
            elif now - facts.st_mtime > _UNFINISHED_SECONDS:
                path.unlink()
    total = sum(size for _, _, size, _ in entries)
    for newest, _, size, path in sorted(entries):
        if newest or total <= _limit_bytes():
            break
        path.unlink(missing_ok=True)
        total -= size


def _limit_bytes() -> int:
    text = os.environ.get(VARIABLE, "")
    try:
        megabytes = float(text) if text else DEFAULT_MEGABYTES
    except ValueError:
        megabytes = -1.0
    if not 0 <= megabytes < float("inf"):
        raise SizeError(name=VARIABLE, value=repr(text), expected="a number of megabytes, or 0 to keep no kernels")
    return int(megabytes * 1e6)


@functools.cache
def _say_once(what: str) -> None:
    warnings.warn(f"{what}; every process compiles its own until that is mended", KernelCacheWarning, stacklevel=2)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
