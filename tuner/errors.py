"""One class per failure of the tuner that its user can do something about, with the message on the class."""

from __future__ import annotations

from codegen.errors import TrellisError


class BudgetError(TrellisError, ValueError):
    """A budget that is neither seconds nor a number of trials."""

    message = "budget {text!r} is not one; write seconds as 60s, minutes as 5m, or a number of trials as 40"


class StudyError(TrellisError, RuntimeError):
    """A study storage that cannot be opened, or holds something else."""

    message = "cannot use the study storage {url}: {reason}; {advice}"


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


class PolicyError(TrellisError, ValueError):
    """A name of no timing policy for a device."""

    message = "{name!r} is no timing policy for {device}; choose one of: {known}"


class ThrottledError(TrellisError, RuntimeError):
    """A device that is too hot, or short of power, to be measured."""

    message = "{device} was throttled by heat or power in {discarded} rounds of samples; let it cool, then try again"


class ExchangeError(TrellisError, ValueError):
    """A folder without a single record that can be read."""

    message = "{folder} holds no tuning records; name a folder that `python -m tuner export` wrote"


class CandidateFileError(TrellisError, ValueError):
    """A file that is no list of candidates."""

    message = "{path} is no list of candidates: {problem}; make it again with `python -m tuner tune --offline`"


class OfflineDeviceError(TrellisError, ValueError):
    """A device whose candidates are not prepared elsewhere."""

    message = "candidates for {device} are timed where they are compiled; --offline takes a GPU: {known}"


class NoGpuError(TrellisError, RuntimeError):
    """A GPU run on a machine where torch sees no GPU."""

    message = "torch sees no GPU here, only {device}; run this where one is, or tune for this CPU with `make tune`"


class GpuRunInUseError(TrellisError, RuntimeError):
    """Two GPU runs into one folder."""

    message = "another GPU run writes to {folder}; wait until it ends, or give --folder another one"


class ReportFileError(TrellisError, OSError):
    """A place where the report cannot be written."""

    message = "cannot write the report to {path}: {reason}; name another place with --file"


class MissingGpuError(TrellisError, RuntimeError):
    """A GPU that was asked for, where torch sees none."""

    message = "no GPU was found for device {name!r}: {reason}; name cpu, or a GPU by its architecture as in sm_90"
