"""Real storages in temporary folders, and specs so small that a kernel compiles in a fraction of a second."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from codegen import render
from codegen.device import cpu
from codegen.kernels import build as builder
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tuner.budget import Budget
from tuner.search.progress import SearchProgress
from tuner.search.study import StudySession
from tuner.studies.studies import open_storage
from tuner.workers.pool import Workers
from tuning_db import Store

STEP = Spec(Rule(), Problem("trellis_step", tokens=1, heads=2, dim_k=8, dim_v=8, slots=8, chunk=1))
TRAIN = Spec(Rule(), Problem(tokens=32, heads=2, dim_k=8, dim_v=8, slots=8, chunk=16, direction="backward"))
UPDATE = Spec(Rule(), Problem("memory_update", tokens=32, heads=2, dim_k=8, dim_v=8, slots=8, chunk=8))

FINAL_SECONDS = 0.2
"""How long the finals of one spec last here: which candidate wins is no matter."""


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of a run keep compiled kernels, so that each is compiled once."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kernels"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Path) -> None:
    """No test sees, or changes, what its user has; studies and records are its own."""
    keep_in(tmp_path, kernels, monkeypatch)


def keep_in(folder: Path, kernels: Path, patch: pytest.MonkeyPatch) -> None:
    """Have all that is kept lie in `folder`, but for what is in `kernels`."""
    (folder / "cache").mkdir()
    (folder / "cache" / "kernels").symlink_to(kernels)
    patch.setenv("TRELLIS_OPS_CACHE", str(folder / "cache"))
    patch.setenv("TRELLIS_OPS_TUNING_DB", str(folder / "tuning_db"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "tuning_db", tmp_path / "shipped")


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Processes for the tests of all files, since each takes seconds to start: one compiles, others check and time."""
    with Workers(compilers=1) as started:
        yield started


@pytest.fixture
def shared_workers(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test runs in this process have the processes of all files, which none of them ends."""
    monkeypatch.setattr("tuner.cli.Workers", lambda: contextlib.nullcontext(workers))
    monkeypatch.setattr("tuner.cli.StudySession", functools.partial(StudySession, final_seconds=FINAL_SECONDS))


@pytest.fixture
def session(tmp_path: Path, workers: Workers) -> StudySession:
    return session_in(tmp_path, workers)


def session_in(folder: Path, workers: Workers) -> StudySession:
    store = Store(folder / "tuning_db", folder / "shipped")
    storage = open_storage(f"sqlite:///{folder / 'studies.db'}")
    return StudySession(cpu(), "tvm", store, Budget(trials=3), workers, final_seconds=FINAL_SECONDS, storage=storage)


@pytest.fixture
def progress() -> Iterator[SearchProgress]:
    with SearchProgress(Console(quiet=True)) as shown:
        yield shown


@pytest.fixture
def templates(tmp_path: Path) -> Iterator[Path]:
    """A copy of the templates that a test may break; what is compiled from it is forgotten afterwards."""
    copy = tmp_path / "templates"
    shutil.copytree(render.TEMPLATES, copy)
    with rendered_from(copy):
        yield copy


@contextlib.contextmanager
def rendered_from(folder: Path) -> Iterator[None]:
    """Kernels of the templates in `folder`, none of which was made before or is found afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "TEMPLATES", folder)
        _forget()
        yield
    _forget()


def _forget() -> None:
    render._environment.cache_clear()
    render.template_digest.cache_clear()
    builder._build.cache_clear()
