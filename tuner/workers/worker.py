"""What a worker process does for the tuner: a candidate from settings to a result, compiled, checked, then timed.

This is the one place where exceptions of a candidate are caught. What goes in and what comes out is plain data. Each
task tells the tuner, by `enter`, what it begins with, so that the tuner knows how long to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from codegen.device import Device
from codegen.errors import BackendUnavailableError, IllegalScheduleError, ScheduleFieldError, TrellisError
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.registry import from_settings
from codegen.spec import Spec
from tuner.errors import ThrottledError
from tuner.measure.baselines.baseline import time_compiled, time_eager
from tuner.measure.ceiling import Ceiling, ceiling_of
from tuner.measure.gpu_timing import copies_past_cache
from tuner.measure.measure import measure
from tuner.measure.side_by_side import SideBySide, side_by_side
from tuner.measure.timed import Timed, Timing
from tuner.policy import policy_for
from tuner.verify.check import check, check_inputs
from tuner.verify.inputs.trellis import Inputs, rotated_inputs, timing_inputs
from tuner.verify.launch import Launch, bind
from tuner.workers.available import backend_for, device_here
from tuner.workers.messages import Phase
from tuner.workers.pinning import Pinning
from tuning_db import Outcome, shortened

if TYPE_CHECKING:
    from tuner.space.legal import Settings

NOISY = 0.25
"""A candidate whose spread exceeds this is timed once more, for longer."""

_ROUNDS = 30
_REASON = 500
_BASELINE_SHARE = 10
_MEMORY = ("MemoryError", "DefaultCPUAllocator", "out of memory", "bad_alloc", "Cannot allocate memory")

_PINNING = Pinning()

Enter = Callable[[Phase], None]


@dataclass(frozen=True)
class Candidate:
    """What to try.

    Attributes:
        spec, device: what for.
        backend, settings: the schedule, as a tuning record stores it.
        policy: name of the timing policy; that of the device unless given.
        seconds: about how long to time it.
    """

    spec: Spec
    device: Device
    backend: str
    settings: Settings
    policy: str | None = None
    seconds: float = 0.2


@dataclass(frozen=True)
class Finals:
    """Candidates of one device and spec to be timed in turn, for about `seconds` and at most `rounds` rounds."""

    candidates: tuple[Candidate, ...]
    seconds: float
    rounds: int


@dataclass(frozen=True)
class Result:
    """What became of a candidate.

    Attributes:
        outcome: only `ok` can win.
        reason: why not ok.
        seconds: median of one call; None unless it was right.
        spread: relative spread of `seconds`.
        errors: relative error of each output, as far as they were compared.
        compile_seconds: from template to kernel.
    """

    outcome: Outcome
    reason: str = ""
    seconds: float | None = None
    spread: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class Ready:
    """A candidate that was right, ready to be timed at the full size of its spec.

    Attributes:
        program: its kernels.
        launch: they on the inputs of the timing.
        others: they on more inputs, so that together they pass a GPU's cache; none on a CPU.
        outputs: what they wrote there before any timing, to be written again after it.
    """

    program: CompiledOperator
    launch: Launch
    others: tuple[Launch, ...]
    outputs: dict[str, torch.Tensor]

    def timed(self) -> Timed:
        """The call to time."""
        launches = (self.launch, *self.others)

        def reset() -> None:
            for launch in launches:
                launch.reset_states()

        return Timed(self.launch.run, reset, tuple(other.run for other in self.others))

    def again(self) -> tuple[Outcome, str]:
        """The verdict after the timing: the same bits at full size on poisoned buffers, and right as before."""
        now = self.launch.outputs_of_run()
        unequal = [name for name, tensor in now.items() if not torch.equal(tensor, self.outputs[name])]
        if unequal:
            return Outcome.unstable, f"before and after it was timed, runs differ in {', '.join(unequal)}"
        checked = check(self.program, self.program.spec)
        return checked.outcome, f"after it was timed: {checked.reason}"


def compile_ahead(enter: Enter, candidate: Candidate) -> Result:
    """Compile `candidate`, so that the worker that measures finds it in the disk cache; ok if that went well."""
    enter(Phase("compiling"))
    return _built(candidate)[0]


def evaluate(enter: Enter, candidate: Candidate) -> Result:
    """Compile, check and time `candidate`; whatever it does wrong becomes the result's outcome and reason."""
    result, ready = _prepared(enter, candidate)
    if ready is None:
        return result
    try:
        enter(Phase("timing", share=5, quiet=_is_shared(candidate.device)))
        with _PINNING.in_place():
            timing = _time(ready.timed(), candidate)
        enter(Phase("checking again"))
        outcome, reason = ready.again()
    except ThrottledError:
        raise  # No fault of the candidate.
    except Exception as error:
        return replace(result, outcome=_outcome(error), reason=_said(error))
    if outcome is not Outcome.ok:
        return replace(result, outcome=outcome, reason=shortened(reason, _REASON))
    return replace(result, seconds=timing.seconds, spread=timing.spread)


def finals(enter: Enter, asked: Finals) -> dict[int, Timing]:
    """Check the candidates once more, time them in turn, and check them again; by place, those that were right.

    What won in an earlier run, or under another version of a compiler, is thereby checked by this one.
    """
    prepared = {place: _prepared(enter, each, place)[1] for place, each in enumerate(asked.candidates)}
    right = {place: ready for place, ready in prepared.items() if ready is not None}
    if not right:
        return {}
    device = asked.candidates[0].device
    enter(Phase("timing", share=5 * len(right), quiet=_is_shared(device)))
    calls = {str(place): ready.timed() for place, ready in right.items()}
    policy = policy_for(device, asked.candidates[0].policy)
    with _PINNING.in_place():
        timings = measure(calls, device, seconds=asked.seconds, rounds=asked.rounds, settle=True, policy=policy)
    for place, ready in list(right.items()):
        enter(Phase("checking again", place=place))
        if ready.again()[0] is not Outcome.ok:
            del right[place]
    return {place: timings[str(place)] for place in right}


def _eager(enter: Enter, spec: Spec, device: Device) -> Timing:
    # Its thousands of launches take a core that compiling would take too, also beside a GPU.
    enter(Phase("timing", share=_BASELINE_SHARE, quiet=True))
    return time_eager(spec, device)


def _compiled(enter: Enter, spec: Spec, device: Device) -> Timing:
    enter(Phase("timing", share=_BASELINE_SHARE, quiet=True))
    return time_compiled(spec, device)


def _side_by_side(enter: Enter, candidate: Candidate, seconds: float, ready: frozenset[str]) -> SideBySide:
    enter(Phase("timing", share=_BASELINE_SHARE, quiet=True))
    given = (candidate.spec, candidate.device, candidate.backend, dict(candidate.settings))
    return side_by_side(*given, seconds, ready)


def _ceiling(enter: Enter, device: Device, dtype: str, moved: int) -> Ceiling:
    enter(Phase("timing", quiet=_is_shared(device)))
    return ceiling_of(device, dtype, moved)


def _device(enter: Enter, name: str | None) -> Device:
    return device_here(name)


def _backend(enter: Enter, device: Device, wanted: str | None) -> str:
    return backend_for(device, wanted)


TASKS: dict[str, Callable[..., Any]] = {
    "compile": compile_ahead,
    "evaluate": evaluate,
    "finals": finals,
    "eager": _eager,
    "compiled": _compiled,
    "side_by_side": _side_by_side,
    "ceiling": _ceiling,
    "device": _device,
    "backend": _backend,
}
"""What a worker can be asked for, by name; each is called with `enter` and the arguments of its task."""


def _is_shared(device: Device) -> bool:
    # Compiling uses the very cores that a CPU's kernels are timed on.
    return device.kind == "cpu"


def _built(candidate: Candidate) -> tuple[Result, CompiledOperator | None]:
    started = time.perf_counter()
    try:
        schedule = from_settings(candidate.backend, dict(candidate.settings))
        program = build(candidate.spec, schedule, candidate.device)
    except (IllegalScheduleError, ScheduleFieldError) as error:
        return Result(Outcome.illegal, _said(error)), None
    except BackendUnavailableError:
        raise
    except Exception as error:
        outcome = Outcome.out_of_memory if _is_of_memory(error) else Outcome.compile_error
        return Result(outcome, _said(error), compile_seconds=time.perf_counter() - started), None
    return Result(Outcome.ok, compile_seconds=time.perf_counter() - started), program


def _prepared(enter: Enter, candidate: Candidate, place: int = 0) -> tuple[Result, Ready | None]:
    """The candidate compiled and checked: what came of it, and if it was right what can be timed."""
    enter(Phase("compiling", place=place))
    built, program = _built(candidate)
    if program is None:
        return built, None
    enter(Phase("checking", place=place))
    try:
        # The first run starts the threads; what the check needs besides starts others.
        _PINNING.started_by(bind(program, check_inputs(candidate.spec, candidate.device)).run)
        checked = check(program, candidate.spec)
        result = replace(built, outcome=checked.outcome, reason=checked.reason, errors=checked.errors)
        if checked.outcome is not Outcome.ok:
            return result, None
        launch = bind(program, timing_inputs(candidate.spec, candidate.device))
        others = tuple(bind(program, inputs) for inputs in rotated(candidate.spec, candidate.device))
        return result, Ready(program, launch, others, launch.outputs_of_run())
    except Exception as error:
        return replace(built, outcome=_outcome(error), reason=_said(error)), None


def rotated(spec: Spec, device: Device) -> tuple[Inputs, ...]:
    """As many more inputs of a timing as it takes to pass a GPU's cache; none for a CPU."""
    if device.kind == "cpu":
        return ()
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = copies_past_cache(timing_inputs(spec, device).bytes(), cache)
    return rotated_inputs(spec, device, copies)


def _time(call: Timed, candidate: Candidate) -> Timing:
    device, policy = candidate.device, policy_for(candidate.device, candidate.policy)
    seconds = candidate.seconds
    timing = measure({"it": call}, device, seconds=seconds, rounds=_ROUNDS, settle=True, policy=policy)["it"]
    if timing.spread <= NOISY:
        return timing
    return measure({"it": call}, device, seconds=4 * seconds, rounds=4 * _ROUNDS, settle=True, policy=policy)["it"]


def _outcome(error: Exception) -> Outcome:
    return Outcome.out_of_memory if _is_of_memory(error) else Outcome.launch_error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in _MEMORY)


def _said(error: Exception) -> str:
    known = isinstance(error, TrellisError)
    return shortened(str(error) if known else f"{type(error).__name__}: {error}", _REASON)
