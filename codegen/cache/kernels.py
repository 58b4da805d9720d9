"""Compiled kernels on disk, shared by all processes of a user.

An entry is one file, named by the kernel and by a digest of everything that decides its code. The name is formed
without rendering and without a compiler, so that a process which finds its kernels imports neither. Behind the library
stands a seal of its name and bytes: what is cut short, damaged or renamed is not loaded, for that could end the
process, but made again. Files appear by renaming, so nobody sees half of one; a lock keeps two processes from compiling
the same kernel at the same time. What was not used for the longest time goes when the folder is full.

A kernel is machine code, and loading one runs it. Nothing is loaded that another user than this one and root owns or
may write to, or that lies below such a folder (`codegen.cache.ownership`). Where a key is named
(TRELLIS_OPS_CACHE_KEY_FILE), seals are made with it, and its holders may share a folder that all of them write to.

A folder that cannot be written, or is not trusted, costs time, never a result: it is said once, and kernels are
compiled for this process alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import itertools
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from codegen.cache.folder import cache_folder, say_exposed
from codegen.cache.key import FaultyKeyError, cache_key
from codegen.cache.ownership import make_own, make_private, read_own, read_regular, why_exposed, write_own
from codegen.cache.process_folder import process_folder
from codegen.errors import SizeError
from codegen.interruption.whole_imports import whole_imports

VARIABLE = "TRELLIS_OPS_CACHE_MEGABYTES"
DEFAULT_MEGABYTES = 256.0

_SUFFIX = ".so"
_UNFINISHED = ".tmp"
_SEAL = b"trellis-ops kernel"
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size
_MOST_BYTES = 2**28
_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.05
_UNFINISHED_SECONDS = 3600.0

_copies = itertools.count()
_locks: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()
"""Files that are locked, or about to be."""


class KernelCacheWarning(UserWarning):
    """Compiled kernels cannot be kept, so that every process compiles its own."""


@dataclass(frozen=True)
class Entry:
    """The place of one kernel.

    Attributes:
        path: the file that holds it, if it is there.
        key: what it is sealed with; None for a plain digest, in a folder that nobody else may write to.
    """

    path: Path
    key: bytes | None = field(default=None, repr=False)

    def content(self) -> bytes | None:
        """What was kept, if it is there and whole; it is then what was used last."""
        content = self._library()
        if content is not None:
            # Whoever may read but not write cannot say that the entry is in use; it is no less right for that.
            with contextlib.suppress(OSError):
                os.utime(self.path)
        return content

    def find(self) -> Path | None:
        """The library, if it is there and whole, to be loaded at once; it is then the one used last."""
        library = self.content()
        if library is None:
            return None
        if self.key is None or why_exposed(self.path) is None:
            return self.path
        # By the time that it is loaded, another holder of the folder may have put something else there.
        try:
            copy = process_folder() / f"{self.path.stem}-{next(_copies)}{_SUFFIX}"
            write_own(copy, library)
        except OSError as error:
            _say_once(f"compiled kernels cannot be copied to where they are loaded from: {_one_line(error)}")
            return None
        return copy

    def store(self, export: Callable[[Path], object]) -> Path | None:
        """Keep the library that `export` writes; None, and a warning, if that is not possible."""
        folder = self.path.parent
        try:
            exposed = make_own(folder)
            if exposed is not None and self.key is None:
                say_exposed(exposed)
                return None
            with tempfile.TemporaryDirectory() as private:
                made = Path(private) / self.path.name
                export(made)
                library = made.read_bytes()
            write_own(self.path, library + self._seal(library))
            _evict(self.path)
        except (OSError, RuntimeError) as error:
            _say_once(f"compiled kernels cannot be kept in {folder}: {_one_line(error)}")
            return None
        return self.path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with this entry, as far as other processes are concerned; without a lock where none can be had."""
        # A file object, unlike a number, is closed and so unlocked whatever ends this, Ctrl-C at any step included.
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._lock())
            except (OSError, NotImplementedError) as error:
                # Without it two processes may compile the same kernel, and the second file replaces the first.
                _say_once(f"compiled kernels cannot be locked in {self.path.parent}: {_one_line(error)}")
            yield

    def _library(self) -> bytes | None:
        try:
            read = read_regular if self.key is not None else read_own
            content = read(self.path, _MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _say_once(f"{self.path} is not used: {error.strerror or error}", "it is made again")
            return None
        library, found = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        return library if hmac.compare_digest(found, self._seal(library)) else None

    def _seal(self, library: bytes) -> bytes:
        return seal(self.path.name, library, self.key)

    def _lock(self) -> IO[bytes]:
        # A few locks for all entries, so that they need not be cleared away; each user's own where several share.
        owner = "" if self.key is None else f"-{os.getuid()}"
        path = self.path.parent / f"locks{owner}" / f"{self.path.stem[-2:]}.lock"
        make_private(path.parent)
        return _locked_file(path)


def entry(kernel: str, parts: tuple[str, ...]) -> Entry | None:
    """The place of the kernel that `parts`, which must name all that decides its code, describe.

    None if the cache is turned off, or is one that others may write to, which is said once.
    """
    if _limit_bytes() == 0:
        return None
    try:
        key = cache_key()
    except FaultyKeyError as error:
        _say_once(str(error))
        return None
    if key is None and (exposed := why_exposed(kernels_folder())) is not None:
        say_exposed(exposed)
        return None
    # Files sealed in another way have other names, so that neither is in the other's way.
    named = (kernel, *parts) if key is None else (kernel, *parts, seal("", b"", key).hex())
    digest = hashlib.sha256("\0".join(named).encode()).hexdigest()[:32]
    return Entry(kernels_folder() / f"{kernel}_{digest}{_SUFFIX}", key)


def kernels_folder() -> Path:
    """Where compiled kernels live, beside the generated sources."""
    return cache_folder() / "kernels"


def seal(name: str, library: bytes, key: bytes | None) -> bytes:
    """What stands behind a library in the file called `name`: a digest, or with a key an HMAC, by SHA-256."""
    content = name.encode() + b"\0" + library
    return _SEAL + (hashlib.sha256(content).digest() if key is None else hmac.digest(key, content, "sha256"))


def _locked_file(path: Path) -> IO[bytes]:
    """The file at `path`, locked until it is closed.

    Raises:
        TimeoutError: another process had it for too long.
        OSError, NotImplementedError: it cannot be made or locked.
    """
    try:
        with whole_imports():
            import fcntl
    except ImportError as error:
        raise NotImplementedError("this system has no locks of files") from error
    until = time.monotonic() + _PATIENCE_SECONDS
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open for as long as the lock is held
    _locks.add(file)
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{path} was locked by another process for {_PATIENCE_SECONDS:g} s") from None
                time.sleep(_LOOK_SECONDS)
    except BaseException:
        file.close()
        raise


def _let_go() -> None:
    # A lock is that of the open file, which a child has too: unless it closes it, nobody gets the lock while it lives.
    for file in list(_locks):
        file.close()


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(after_in_child=_let_go)


def _evict(kept: Path) -> None:
    """Remove what was not used for the longest time until the rest fits, and what dead processes left unfinished."""
    now, entries = time.time(), []
    for path in kept.parent.glob(f"*{_SUFFIX}"):
        # Another process may remove it first, and another user's file may not be ours to remove.
        with contextlib.suppress(OSError):
            facts = path.stat()
            if not path.name.endswith(_UNFINISHED + _SUFFIX):
                entries.append((path == kept, facts.st_mtime, facts.st_size, path))
            elif now - facts.st_mtime > _UNFINISHED_SECONDS:
                path.unlink()
    total = sum(size for _, _, size, _ in entries)
    for newest, _, size, path in sorted(entries):
        if newest or total <= _limit_bytes():
            break
        with contextlib.suppress(OSError):
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
def _say_once(what: str, so: str = "every process compiles its own until that is mended") -> None:
    warnings.warn(f"{what}; {so}", KernelCacheWarning, stacklevel=2)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
