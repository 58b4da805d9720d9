"""Optuna studies: where they are stored, how one is named, what its trials say."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from pathlib import Path

import optuna
import sqlalchemy.exc
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from codegen.backends import backend as compiler
from codegen.device import Device
from codegen.kernels.build import operator_digest
from codegen.render import generated_folder
from codegen.spec import Spec
from tuner.errors import StudyError
from tuner.owner import is_lost, this_process
from tuner.policy import Policy
from tuner.sampler import MOST_DEATHS
from tuner.shared_storage import HEARTBEAT_SECONDS, one_at_a_time
from tuner.space import Space
from tuning_db import Outcome

_BUSY_SECONDS = 60

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
    return f"sqlite:///{generated_folder().parent / 'studies.db'}"


def open_storage(url: str, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> RDBStorage:
    """The Optuna storage at `url`, an SQLAlchemy URL; made if it is not there.

    What is no SQLite file is shared with other machines: it keeps a heartbeat of every running trial, and what a
    silent process was running is tried again. `postgresql://` takes the driver psycopg.

    Raises:
        StudyError: it cannot be opened, or holds something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = {}
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    try:
        if path is None:
            return _shared(url.replace("postgresql://", "postgresql+psycopg://", 1), heartbeat_seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = {"connect_args": {"timeout": _BUSY_SECONDS}}
        # Two processes that create the tables at once would trip over each other.
        with FileLock(f"{path}.lock", timeout=_BUSY_SECONDS):
            return RDBStorage(url, engine_kwargs=arguments)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ImportError, RuntimeError) as error:
        raise unusable(url, error) from error


def unusable(url: str, error: Exception) -> StudyError:
    """What to raise for the storage at `url`, which answered with `error`: with what its user can do about it."""
    advice = "give another with --storage"
    if isinstance(error, ImportError):
        # Optuna's own text does not name what is missing; the error behind it does.
        error = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        module = error.name or ("psycopg" if url.startswith("postgresql") else None)
        package = f"its driver with .venv/bin/pip install '{_PACKAGES.get(module, module)}'" if module else "its driver"
        advice = f"install {package}, or {advice}"
    elif url.startswith("sqlite:///"):
        advice += ", or move that one away"
    return StudyError(url=shown(url), reason=str(error).partition("\n")[0], advice=advice)


def shown(url: str) -> str:
    """`url` without the password in it, to be printed and stored; any other text as it is."""
    return re.sub(r"(?<=://)([^:@/\s]*):[^@/\s]*@", r"\1:***@", url)


def _shared(url: str, heartbeat_seconds: int) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        retry = RetryHeartbeatStaleTrialCallback(max_retry=MOST_DEATHS - 1)
        # Twice, since of two processes that make the tables at once one fails.
        with contextlib.suppress(sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            RDBStorage(url)
        return RDBStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=heartbeat_seconds,
            heartbeat_stale_trial_callback=retry,
        )


def open_study(storage: RDBStorage, key: StudyKey, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """The study called `key.name()`, continued if it exists; trials that a dead process left running are failed."""
    study = optuna.create_study(
        storage=storage, study_name=key.name(), sampler=sampler, direction="minimize", load_if_exists=True
    )
    for name, value in asdict(key).items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)
    release_lost_trials(study, storage)
    return study


def take(study: optuna.Study, storage: RDBStorage, distributions: Mapping[str, BaseDistribution]) -> optuna.Trial:
    """The next trial, with this process's name on it before another process can see it."""
    with one_at_a_time(storage, study.study_name):
        trial = study.ask(dict(distributions))
        trial.set_user_attr("owner", this_process())
    return trial


def release_lost_trials(study: optuna.Study, storage: RDBStorage) -> int:
    """Fail the trials that nobody runs any more, so that their points are tried again; how many there were.

    A trial without a name is lost at once where its process would hold the lock until the name is written.
    """
    lost = 0
    with one_at_a_time(storage, study.study_name) as alone:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner, started = trial.user_attrs.get("owner"), trial.datetime_start
            if (alone and owner is None) or is_lost(owner, started, datetime.now()):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                lost += 1
    return lost


def measured(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were right and timed, fastest first."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(done, key=lambda trial: trial.value or float("inf"))


def outcomes(trials: Sequence[FrozenTrial]) -> Counter[Outcome]:
    """How many trials ended how; those that were interrupted have no outcome."""
    return Counter(Outcome(trial.user_attrs["outcome"]) for trial in trials if "outcome" in trial.user_attrs)
