"""Candidates that failed here before: told to a study without being tried again."""

from __future__ import annotations

import warnings

from codegen.backends import backend as compiler
from codegen.kernels.build import operator_digest
from codegen.spec import Spec, bucket
from tuner.session import Session
from tuner.space.legal import Settings
from tuner.workers.worker import Result
from tuning_db import Outcome, Record, TuningDatabaseError, settings_key, shortened, utc_now


class KnownFailures:
    """The failures of one spec in a session's database, keyed as winners are, and by toolchain and schedule.

    `make tune` tries again what failed once its templates or its compiler changed; `TRELLIS_OPS_TUNING_DB`'s folder
    `failures` may be deleted to try all again.
    """

    def __init__(self, spec: Spec, session: Session) -> None:
        self._spec, self._session = spec, session
        self._digest = operator_digest(spec.problem, session.backend)
        self._toolchain = compiler(session.backend).toolchain()
        self._known = session.store.failures.known(
            spec=spec.key(),
            device=session.device.key(),
            backend=session.backend,
            template_digest=self._digest,
            toolchain=self._toolchain,
        )

    def result(self, settings: Settings) -> Result | None:
        """What became of the candidate with these settings, if it failed before."""
        record = self._known.get(settings_key(settings))
        if record is None:
            return None
        return Result(record.outcome, f"known since {record.created[:10]}: {record.reason}")

    def note(self, settings: Settings, result: Result) -> None:
        """Remember a candidate that failed; one that was right is none of our concern."""
        if result.outcome is Outcome.ok:
            return
        failure = Record(
            spec=self._spec.key(),
            bucket=bucket(self._spec).key(),
            device=self._session.device.key(),
            backend=self._session.backend,
            template_digest=self._digest,
            schedule=dict(settings),
            outcome=result.outcome,
            reason=shortened(result.reason),
            toolchain=self._toolchain,
            created=utc_now(),
            source=shortened(self._session.source, 500),
        )
        try:
            self._session.store.failures.remember(failure)
        except TuningDatabaseError as error:
            warnings.warn(f"a failed candidate will be tried again: {error}", stacklevel=2)
