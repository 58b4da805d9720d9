"""TVM's runtime without its compiler: how it is loaded, and how its threads keep out of the way of others.

What a call needs is a small library (`libtvm_runtime`) and the package tvm_ffi. The compiler, `import tvm`, takes a
second to import and is left to those who compile.

TVM keeps one pool of threads for each thread that calls it; `thread_owners` keeps them few. How each is configured:

- *No pinning.* Left alone, the first call binds the calling thread, and every thread that torch makes later, to the
  first cores: TVM_BIND_THREADS=0.
- *No spinning.* Left alone, idle workers spin for a tenth of a second: TVM_THREAD_POOL_SPIN_COUNT=1000.
- *As many as the schedule says.* A pool has a thread for every core, so that any number up to it may be asked for at
  any time; `limit_workers` says how many of them the next kernel wakes.
- *Safe after a fork.* The workers do not exist in the child, and a kernel would wait for them for ever. There, the
  thread that forked runs kernels alone; threads that the child makes have whole pools of their own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

from codegen.backends.tvm import thread_owners
from codegen.device import cpu
from codegen.interruption.collection import without_collection
from codegen.interruption.whole_imports import whole_imports

_ANY_CORES = 1
"""What TVM calls kBig: all cores, where they are alike; cores are not told apart, as nothing is bound."""


_ASKED_EVERY = 16


class _Workers(threading.local):
    """The pool of the thread that looks.

    Attributes:
        count: how many workers a kernel wakes, itself included.
        owns: whether it may have one.
        asked: how often it would have liked to have one.
        forked: whether it came through a fork.
    """

    count = 0
    owns = False
    asked = 0
    forked = False


_workers = _Workers()


@functools.cache
def load() -> Any:
    """The package tvm_ffi, with TVM's runtime behind it.

    Raises:
        ImportError: apache-tvm or apache-tvm-ffi is not installed.
        OSError: the runtime is there but cannot be loaded.
        Exception: whatever else a broken package raises; `why_broken` says it in words.
    """
    configure_threads()
    with whole_imports(), without_collection():
        import tvm_ffi

        library = _library()
        if library is None:
            import tvm  # noqa: F401
        else:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
        os.register_at_fork(after_in_child=_run_alone)
    return tvm_ffi


@functools.cache
def why_broken() -> str | None:
    """What keeps TVM's runtime, where it is installed, from being loaded; None if it can be, and then it is."""
    try:
        load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
        return f"TVM's runtime cannot be loaded ({said}); install apache-tvm and apache-tvm-ffi again"
    return None


def compiler() -> Any:
    """The package tvm, which compiles.

    Raises:
        Exception: whatever a broken package raises.
    """
    load()
    with whole_imports(), without_collection():
        import tvm
    return tvm


def configure_threads() -> None:
    """Set what the pools read when they are made, unless the user has set it."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(cpu().cores))
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")


def limit_workers(count: int) -> bool:
    """Let the kernels that this thread calls wake `count` threads, itself included, and no more.

    False if it has no pool and should have none now: its kernels are for `thread_owners.lend`.
    """
    if count == _workers.count:
        return True
    if not _workers.forked:
        if not _workers.owns and not _may_own():
            return False
        _configure()(_ANY_CORES, count)
    _workers.count = count
    return True


def own_pool() -> None:
    """Let the calling thread have a pool, whatever others have."""
    _workers.owns = True


def _may_own() -> bool:
    _workers.asked += 1
    # Asking costs as much as a short kernel, and the answer seldom changes.
    if _workers.asked % _ASKED_EVERY == 1:
        _workers.owns = thread_owners.may_own()
    return _workers.owns


@functools.cache
def _configure() -> Any:
    return load().get_global_func("runtime.config_threadpool")


def _run_alone() -> None:
    thread_owners.forget_threads()
    _workers.forked = True
    # One named core, of which nothing but the number is used, is how TVM is told to stay on the calling thread.
    _configure()(_ANY_CORES, 1, ["0"])


def _library() -> Path | None:
    # Where the wheel has it; other builds are found by `import tvm`.
    found = importlib.util.find_spec("tvm")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted((Path(folder) / "lib").glob("libtvm_runtime.*")):
            if path.suffix in (".so", ".dylib", ".dll"):
                return path
    return None
