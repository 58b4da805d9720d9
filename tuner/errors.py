"""One class per failure of the tuner that its user can do something about, with the message on the class."""

from __future__ import annotations

from codegen.errors import TrellisError


class WorkloadError(TrellisError, ValueError):
    """A workload file, or a spec typed on the command line, that does not describe specs."""

    message = "{source}: {problem}"


class BudgetError(TrellisError, ValueError):
    """A budget that is neither seconds nor a number of trials."""

    message = "budget {text!r} is not one; write seconds as 60s, minutes as 5m, or a number of trials as 40"


class StudyError(TrellisError, RuntimeError):
    """A study storage that cannot be opened, or holds something else."""

    message = "cannot use the study storage {url}: {reason}; give another with --storage, or move that one away"


class NoBackendError(TrellisError, RuntimeError):
    """A device for which no backend can run kernels here."""

    message = "nothing can be tuned on {device}: {reasons}"


class NoScheduleError(TrellisError, ValueError):
    """A spec for which a backend has no legal schedule on a device."""

    message = "backend {backend} has no legal schedule of {spec} for {device}: {reason}"


class NothingMeasuredError(TrellisError, RuntimeError):
    """A study without a single candidate that was right."""

    message = "no candidate for {spec} was right: {reasons}"


class WorkerError(TrellisError, RuntimeError):
    """A worker process that cannot do what no candidate is to blame for."""

    message = "the worker process for {task!r} did not do it: {reason}"
