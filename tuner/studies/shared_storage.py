"""A study storage that processes on many machines share: who is alive, and who may ask for the next candidate.

Optuna beats for trials that `Study.optimize` runs. This tuner asks and tells, so it beats for its trials itself; what a
silent process was running is failed by the others and queued again (Optuna's `fail_stale_trials`).
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from tuner.space.sampler import MOST_DEATHS

HEARTBEAT_SECONDS = 30
"""How often a running trial says that it runs; after twice that in silence it counts as lost."""

MOST_WAITED = 30
"""Seconds that a process waits for another to take a point; a hundredth of that is usual."""

_LOCK_NOT_AVAILABLE = "55P03"


def is_shared(storage: RDBStorage) -> bool:
    """Whether the storage keeps heartbeats, as every storage does that is no file of this machine."""
    return storage.get_heartbeat_interval() is not None


def fail_silent_trials(study: optuna.Study, storage: RDBStorage) -> None:
    """Fail the trials of a shared storage that nobody beats for any more, and queue their points again."""
    if is_shared(storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)


def try_again(study: optuna.Study, failed: FrozenTrial) -> None:
    """Queue the point of a trial that was failed for its silence once more, unless that was done often enough."""
    failed.user_attrs.clear()  # Who ran it, and what came of it, is not true of the next.
    RetryHeartbeatStaleTrialCallback(max_retry=MOST_DEATHS - 1)(study, failed)


def beat(storage: RDBStorage, trial: optuna.Trial) -> None:
    """Say that `trial` runs, if the storage is shared."""
    if is_shared(storage):
        storage.record_heartbeat(trial._trial_id)


def beating_trials(storage: RDBStorage) -> frozenset[int]:
    """The trials of a shared storage whose silence would be noticed."""
    if not is_shared(storage):
        return frozenset()
    with storage.engine.connect() as connection:
        return frozenset(connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).scalars())


def others_run(study: optuna.Study, storage: RDBStorage) -> bool:
    """Whether a process elsewhere still works on a trial of a shared storage."""
    return is_shared(storage) and bool(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


@contextlib.contextmanager
def one_at_a_time(storage: RDBStorage, study_name: str) -> Iterator[bool]:
    """Within it this process alone, of all that share the storage, looks what is untried and takes it.

    A process that dies inside lets the next one in. For one that was stopped inside nobody waits longer than
    `MOST_WAITED`, and on a storage other than SQLite and PostgreSQL nobody waits at all: two processes may then take
    the same point, of which the search drops one. Yields whether this process is alone.
    """
    url = storage.engine.url
    if url.get_backend_name() == "sqlite" and url.database:
        lock = FileLock(f"{url.database}.lock", timeout=MOST_WAITED)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
    elif url.get_backend_name() == "postgresql":
        # The end of the connection's transaction frees the lock, however it comes about.
        with storage.engine.connect() as connection:
            yield _has_locked(connection, zlib.crc32(study_name.encode()))
    else:
        yield False


def _has_locked(connection: sqlalchemy.Connection, key: int) -> bool:
    try:
        connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{MOST_WAITED}s'"))
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    except sqlalchemy.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


class Heart:
    """Beats for the running trials of this process, on a thread of its own while it is entered."""

    def __init__(self, storage: RDBStorage) -> None:
        self._storage, self._ids = storage, frozenset[int]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        if is_shared(self._storage):
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat_for(self, trials: Iterable[optuna.Trial]) -> None:
        """Beat for `trials` from now on, once at once for those that are new."""
        ids = frozenset(trial._trial_id for trial in trials)
        if is_shared(self._storage):
            for new in ids - self._ids:
                self._storage.record_heartbeat(new)
        self._ids = ids

    def _beat(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        while not self._stop.wait(interval):
            for each in self._ids:
                # A beat that is missed is made up for by the next; a storage that is gone ends the search elsewhere.
                with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError):
                    self._storage.record_heartbeat(each)
