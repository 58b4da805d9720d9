"""What the tuner and its worker processes say to each other; plain data that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.errors import TrellisError
from codegen.schedules.schedule import Schedule
from tuner.workers.limits import Limits


@dataclass(frozen=True)
class Setup:
    """What a worker is told first.

    Attributes:
        parent: process id of the tuner, without which a worker ends.
        templates: where kernels are rendered from.
        backends: the schedules of every backend that the tuner knows.
        limits: of which the worker sets that of memory itself.
    """

    parent: int
    templates: Path
    backends: tuple[type[Schedule], ...]
    limits: Limits


@dataclass(frozen=True)
class Ready:
    """A worker's first word.

    Attributes:
        resident_bytes: the memory that it has in use before any candidate.
        peak_bytes: what `tuner.workers.limits.peak_bytes` says then.
    """

    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Task:
    """Something to do: a function of `tuner.workers.worker.TASKS`, its arguments, and our environment variables."""

    name: str
    arguments: tuple[Any, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class Phase:
    """A worker begins with something else.

    Attributes:
        name: "compiling", "checking", "timing" or "checking again"; before "timing" it waits for a `GoOn`.
        share: how many times the limit of one candidate it may last.
        place: which candidate of several it is about.
        quiet: whether nothing else may use the processor.
    """

    name: str
    share: int = 1
    place: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class GoOn:
    """Nothing else runs on the machine on the tuner's account: times can be taken."""


@dataclass(frozen=True)
class Done:
    """The result of a task."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """A task raised what is not a candidate's fault.

    Attributes:
        text: the traceback.
        error: what was raised, if this project raised it on purpose.
    """

    text: str
    error: TrellisError | None
