"""Optuna studies: where they are stored, how one is named, what its trials say."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from codegen.backends import backend as compiler
from codegen.cache.ownership import make_private
from codegen.device import Device
from codegen.kernels.build import operator_digest
from codegen.render import generated_folder
from codegen.spec import Spec
from tuner.errors import StudyError
from tuner.policy import Policy
from tuner.space.space import Space
from tuner.studies.damaged_trials import Expected
from tuner.studies.owner import is_lost, this_process
from tuner.studies.shared_storage import HEARTBEAT_SECONDS, beat, beating_trials, one_at_a_time, try_again
from tuner.studies.storage import StudyStorage
from tuner.studies.storage_url import file_url, parsed_url, shown, without_secrets
from tuner.studies.telling import ended, fail
from tuning_db import Outcome
from tuning_db.regular_file import why_foreign

_BUSY_SECONDS = 60

_FULL = ("database or disk is full", "No space left", "disk I/O error", "could not extend file", "File too large")
"""What SQLite, PostgreSQL and the system say of a disk without room."""

_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What to install for a database driver whose package has another name than its module."""


@dataclass(frozen=True)
class StudyKey:
    """What a study is about; its trials can be compared only where all of this agrees.

    Attributes:
        spec, device: text keys.
        backend: the compiler.
        toolchain: its versions.
        template_digest: of every template that the operator may use.
        space_digest: of every schedule that may be tried.
        policy: how times are taken.
    """

    spec: str
    device: str
    backend: str
    toolchain: str
    template_digest: str
    space_digest: str
    policy: str

    def name(self) -> str:
        """The name of the Optuna study; readable in a dashboard, and unique."""
        return f"{self.spec.partition('/trellis(')[0]} {self.backend} {_digest(astuple(self))}"


def study_key(spec: Spec, backend: str, device: Device, space: Space, policy: Policy) -> StudyKey:
    """The key of the study that searches `space` for `spec`."""
    versions = compiler(backend).toolchain()
    return StudyKey(
        spec.key(),
        device.key(),
        backend,
        ", ".join(f"{package} {versions[package]}" for package in sorted(versions)),
        operator_digest(spec.problem, backend),
        _digest(sorted(space.schedules)),
        policy.name,
    )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def default_url() -> str:
    """The SQLite file in the user's cache folder."""
    return file_url(generated_folder().parent / "studies.db")


def open_storage(url: str, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> StudyStorage:
    """The Optuna storage at `url`, an SQLAlchemy URL; made if it is not there.

    What is no SQLite file is shared with other machines: it keeps a heartbeat of every running trial, and what a
    silent process was running is tried again. `postgresql://` takes the driver psycopg.

    Raises:
        StudyError: it cannot be opened, or holds something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = parsed_url(url)
    # Optuna fills a template that nobody here means.
    plain = url.replace("{", "{{").replace("}", "}}")
    try:
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            return _shared(plain.replace("postgresql://", "postgresql+psycopg://", 1), heartbeat_seconds)
        path = Path(parsed.database)
        if url == default_url():
            make_private(path.parent)  # The folder of the cache, whose kernels are run.
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        check_file(path, own=url == default_url())
        # Two processes that create the tables at once would trip over each other.
        with FileLock(f"{path}.lock", timeout=_BUSY_SECONDS):
            return StudyStorage(plain, engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}})
    except Exception as error:  # A driver may raise anything, and so may a database of something else.
        raise unusable(url, error) from (None if _quotes_secrets(error, url) else error)


def check_file(path: Path, *, own: bool) -> None:
    """Refuse what would hang whoever opens it and, if it must be one's `own`, what another user may have written.

    Raises:
        OSError: either.
    """
    for each in (path, Path(f"{path}.lock")):
        try:
            status = os.stat(each)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{each} is not a regular file")
        if own and (reason := why_foreign(status)):
            raise PermissionError(f"{each}: {reason}")


def unusable(url: str, error: BaseException) -> StudyError:
    """What to raise for the storage at `url`, which answered with `error`: with what its user can do about it."""
    advice = "give another with --storage"
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # Optuna's own text guesses that the data were invalid.
    if isinstance(error, ImportError):
        # Optuna's own text does not name what is missing; the error behind it does.
        error = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        module = error.name or ("psycopg" if url.startswith("postgresql") else None)
        package = f"its driver with .venv/bin/pip install '{_PACKAGES.get(module, module)}'" if module else "its driver"
        advice = f"install {package}, or {advice}"
    elif any(sign in str(error) for sign in _FULL):
        advice = f"make room on that disk, and run the same command again, or {advice}"
    elif url.startswith("sqlite:///"):
        advice += ", or move that one away"
    reason = getattr(error, "orig", None) or error
    text = str(reason).strip().partition("\n")[0] or type(reason).__name__
    return StudyError(url=shown(url), reason=without_secrets(text, url), advice=advice)


def _quotes_secrets(error: BaseException | None, url: str) -> bool:
    """Whether a traceback that shows `error`, and what it came from, would show a password."""
    while error is not None:
        if without_secrets(str(error), url) != str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _shared(url: str, heartbeat_seconds: int) -> StudyStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        settings: dict[str, Any] = {"pool_pre_ping": True}
        if url.startswith("postgresql+psycopg"):
            # A database in SQL_ASCII has no encoding of its own, and would answer in bytes.
            settings["connect_args"] = {"client_encoding": "utf8"}
        # Twice, since of two processes that make the tables at once one fails.
        with contextlib.suppress(sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            StudyStorage(url, engine_kwargs=dict(settings))
        return StudyStorage(
            url,
            engine_kwargs=settings,
            heartbeat_interval=heartbeat_seconds,
            heartbeat_stale_trial_callback=try_again,
        )


def open_study(
    storage: StudyStorage,
    key: StudyKey,
    sampler: optuna.samplers.BaseSampler,
    is_legal: Callable[[Mapping[str, Any]], bool],
) -> optuna.Study:
    """The study called `key.name()`, continued if it exists; trials that a dead process left running are failed.

    Its trials whose points are not legal do not count.
    """
    expected = Expected((StudyDirection.MINIMIZE,), is_legal)
    study = continued_study(storage, key.name(), sampler, expected)
    for name, value in asdict(key).items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)
    return study


def continued_study(
    storage: StudyStorage, name: str, sampler: optuna.samplers.BaseSampler, expected: Expected
) -> optuna.Study:
    """The study called `name`, made if there is none; trials that a dead process left running are failed."""
    with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):
        storage.create_new_study(expected.directions, name)
    storage.expect(name, expected)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    release_lost_trials(study, storage)
    return study


def take(study: optuna.Study, storage: RDBStorage, distributions: Mapping[str, BaseDistribution]) -> optuna.Trial:
    """The next trial, with this process's name on it before another process can see it."""
    while True:
        # One that others end at once, taking this process for dead, is none to run.
        with contextlib.suppress(UpdateFinishedTrialError), one_at_a_time(storage, study.study_name):
            trial = study.ask(dict(distributions))
            beat(storage, trial)
            trial.set_user_attr("owner", this_process())
            return trial


def release_lost_trials(study: optuna.Study, storage: RDBStorage) -> int:
    """Fail the trials that nobody runs any more, so that their points are tried again; how many there were.

    A trial without a name is lost at once where its process would hold the lock until the name is written.
    """
    lost = 0
    with one_at_a_time(storage, study.study_name) as alone:
        beating = beating_trials(storage)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner, started = trial.user_attrs.get("owner"), trial.datetime_start
            if (alone and owner is None) or is_lost(owner, started, datetime.now(), beats=trial._trial_id in beating):
                fail(study, trial.number)
                lost += 1
    return lost


def measured(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were right and timed, fastest first; a study of several objectives has none."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and len(trial.values) == 1]
    return sorted(done, key=lambda trial: trial.value or float("inf"))


def outcomes(trials: Sequence[FrozenTrial]) -> Counter[Outcome]:
    """How many trials ended how; those that were interrupted have no outcome."""
    return Counter(Outcome(trial.user_attrs["outcome"]) for trial in ended(trials))
