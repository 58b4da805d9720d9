"""What a call of a public operator costs beyond its kernel, once the first call has resolved it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from codegen.device import Device, cpu
from codegen.kernels.build import build
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.benchmarks.results.comparison import without_records
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Overhead, Results
from tests.benchmarks.subjects.calls import Subject, subject
from trellis_ops import explain, forget
from trellis_ops.dispatch import resolve
from tuner.duration import duration
from tuner.measure.measure import measure
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import Inputs, sequences_of
from tuner.verify.launch import bind

LIMITS = {"trellis_step": 10e-6, "trellis_attention": 30e-6}
"""A step's kernel may take no longer than that itself; attention has a whole prompt behind it."""

_TINY = {"batch": 1, "tokens": 1, "heads": 1, "dim_k": 8, "dim_v": 8, "slots": 8, "chunk": 1}


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls resolve to the default schedule on the calling thread: waking another costs as much as a tiny kernel."""

    def serial(backend: str, spec: Spec, device: Device) -> object:
        return default(backend, spec, device).within_threads(1, device)

    monkeypatch.setattr(resolve, "default", serial)
    forget()
    with without_records():
        yield
    forget()


@pytest.mark.parametrize("operator", LIMITS)
def test_call_overhead(operator: str, one_thread: None, results: Results, replay: Replay) -> None:
    spec = Spec(Rule(), Problem(operator, **_TINY))
    bound = subject(spec, torch.device("cpu"))
    found = explain(bound.operator.function, *bound.operator.args, **bound.operator.kwargs)
    if found.schedule is None:
        replay.skip("; ".join(found.notes))
    run_kernel, reset = _kernel(spec, bound)
    # Not `bound.operator`, whose own call is none of the operator's.
    call, args, kwargs = bound.operator.function, bound.operator.args, bound.operator.kwargs
    with torch.no_grad():
        timings = measure(
            {"operator": Timed(lambda: call(*args, **kwargs), bound.reset), "kernel": Timed(run_kernel, reset)},
            cpu(),
            seconds=3.0,
            rounds=1000,
        )
    pairs = zip(timings["operator"].samples, timings["kernel"].samples, strict=True)
    samples = tuple(whole - part for whole, part in pairs)
    kernel = timings["kernel"].seconds
    remark = f"the kernel alone {duration(kernel)}"
    results.overheads.append(Overhead(f"call of {operator} beyond its kernel", samples, LIMITS[operator], remark))
    replay("what a call costs beyond its kernel", samples, kernel_seconds=kernel)


def _kernel(spec: Spec, bound: Subject) -> tuple[Callable[[], None], Callable[[], None]]:
    """The program that the operator runs, on buffers that are there already; and what puts its states back."""
    inputs, p = bound.inputs, spec.problem
    first = inputs.initial_state
    assert first is not None
    names = ("q", "k", "v", "target", "log_decay")
    rows = {name: getattr(inputs, name).flatten(0, 1) for name in names}
    tensors = {**rows, "step_size": inputs.step_size, "S_k": first[0], "S_v": first[1]}
    lengths = (p.tokens,) * p.batch
    flat = Inputs(lengths, sequences_of(lengths, p.chunk, torch.device("cpu")), tensors)
    launch = bind(build(spec, resolve.default("tvm", spec, cpu()), cpu()), flat)
    return launch.run, launch.reset_states
