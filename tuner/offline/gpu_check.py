"""What GPU kernels need, said by their compilers, without a GPU: every default, every shipped winner, and a sample.

    python -m tuner gpu-check

A default or a shipped winner that does not compile or does not fit fails the check: it would be run as it is. So does
one that spills, where the project answers for its speed: shipped winners, and on `TUNED_FOR` the defaults of the
workload and of some rules of the family, and the kernels of TVM. What a default would be of a variant that none has is
judged as a default.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

from codegen.backends import Resources, backend
from codegen.device import NAMED, Device
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest, parts
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import first_choice, from_settings, unchosen
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec, spec_of_key
from trellis_ops.specs.workload import NamedSpec, load_workload
from tuner.errors import NoScheduleError
from tuner.offline.family_specs import family_specs
from tuner.offline.occupancy import occupancy
from tuner.offline.offline import examine, why_pruned
from tuner.space.legal import first_of_variants, legal_schedules
from tuner.workload import DEFAULT_FILE
from tuning_db import Store

DEVICES = ("sm_80", "sm_90", "gfx942")
"""What is compiled for unless asked otherwise."""

SAMPLE = 4
"""Schedules of each spec and device beside the default, and as many other variants at most."""

_BY_TVM = ("update", "readout", "readout_transposed", "prefill", "prefill-f32", "decode")

TUNED_FOR = "sm_90"
"""The architecture that defaults have been measured on; those for others were chosen by what compilers say."""

DEFAULT, OTHER, SHIPPED, SAMPLED = "default", "other default", "shipped", "sample"
_BY_STRICTNESS = (DEFAULT, SHIPPED, OTHER, SAMPLED)


@dataclass(frozen=True)
class Job:
    """One schedule to compile, and what it is: `DEFAULT`, `OTHER`, `SHIPPED` or `SAMPLED`."""

    name: str
    spec: Spec
    schedule: Schedule
    device: Device
    role: str


@dataclass(frozen=True)
class Checked:
    """What compiling showed of one kernel of a job.

    Attributes:
        job: what was compiled.
        kernel: name of the template.
        needs: what the compiler says; None if the job does not compile.
        occupancy: share of the warps that a multiprocessor can hold; None where that is not known.
        fault: why it must not be run as it is; None if nothing speaks against it.
        seconds: that compiling all kernels of the job took.
    """

    job: Job
    kernel: str
    needs: Resources | None
    occupancy: float | None
    fault: str | None
    seconds: float

    @property
    def fails(self) -> bool:
        """Whether this is a fault of what would be run as it is."""
        return self.fault is not None and self.job.role != SAMPLED


def specs() -> tuple[NamedSpec, ...]:
    """The GPU workload, and what else every template is for: both types, larger states, single memories.

    Specs that differ in B, T and H alone have the same kernels: only the first of them is listed.
    """
    listed = load_workload(DEFAULT_FILE, "cuda")
    exact = [
        replace(each, name=f"{each.name}-f32", spec=_changed(each.spec, dtype="float32"))
        for each in listed
        if each.spec.problem.operator == "trellis_attention"
    ]
    large = [
        replace(each, name=f"{each.name}-m128", spec=_changed(each.spec, slots=128))
        for each in listed
        if _is_long(each)
    ]
    single = [
        NamedSpec(operator.replace("memory_", ""), Spec(Rule(), Problem(operator, dtype="bfloat16")))
        for operator in ("memory_update", "memory_readout", "memory_readout_transposed")
    ]
    by_kernels: dict[Spec, NamedSpec] = {}
    for each in (*listed, *exact, *large, *single):
        by_kernels.setdefault(_changed(each.spec, batch=1, tokens=1, heads=1), each)
    return tuple(by_kernels.values())


def jobs(devices: Sequence[str], sample: int, store: Store) -> Iterator[Job]:
    """Everything to compile, each once in its strictest role; the kernels of TVM for sm_90 only."""
    seen = set()
    found = itertools.chain.from_iterable(_of_device(NAMED[name], sample, store) for name in devices)
    for job in sorted(found, key=lambda job: _BY_STRICTNESS.index(job.role)):
        key = (job.spec.key(), job.schedule.key(), job.device.arch)
        if key not in seen:
            seen.add(key)
            yield job


def check(todo: Sequence[Job], processes: int) -> Iterator[Checked]:
    """Compile `todo` in so many processes; results as they come."""
    # Triton and LLVM hold state that a fork would copy in the middle of something.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(check_one, job) for job in todo]):
            yield from done.result()


def check_one(job: Job) -> list[Checked]:
    """Compile the kernels of one job here."""
    if backend(job.schedule.backend).why_no_resources(job.device) is not None:
        return _compiled_to_source(job)
    examined = examine(job.spec, job.schedule, job.device)
    if not examined.kernels:
        return [Checked(job, job.schedule.variant, None, None, examined.reason, examined.seconds)]
    return [
        Checked(
            job,
            kernel,
            needs,
            occupancy(needs, job.schedule, job.device),
            _fault(job, kernel, needs),
            examined.seconds,
        )
        for kernel, needs in examined.kernels
    ]


def _fault(job: Job, kernel: str, needs: Resources) -> str | None:
    """A sample may spill a little, as a search would still measure it; what is shipped may not spill at all."""
    if job.role in (DEFAULT, SHIPPED) and needs.spill_bytes:
        return f"{kernel} spills {needs.spill_bytes} bytes per thread"
    if job.role == OTHER:
        needs = replace(needs, spill_bytes=0)
    return why_pruned(kernel, needs, job.schedule, job.device)


def _compiled_to_source(job: Job) -> list[Checked]:
    """As far as a compiler goes that lacks what would say something about registers."""
    started, done = time.monotonic(), []
    compiler = backend(job.schedule.backend)
    for kernel, part in parts(job.spec, job.schedule):
        fault = None
        try:
            compiler.inspect(render(kernel, part, job.schedule, job.device), part, job.schedule, job.device)
        except TrellisError as error:
            fault = f"does not compile: {error}"
        done.append(Checked(job, kernel, None, None, fault, time.monotonic() - started))
    return done


def _of_device(device: Device, sample: int, store: Store) -> Iterator[Job]:
    family = family_specs()
    answered = (*load_workload(DEFAULT_FILE, "cuda"), *family)
    for named in (*specs(), *family):
        try:
            first, *others = legal_schedules(named.spec, first_choice(device), device)
        except NoScheduleError:
            continue  # No schedule is legal for it there, and none would be run.
        tuned = device.arch == TUNED_FOR and named in answered
        of_variants = unchosen(first_choice(device), named.spec, device)
        for schedule in (first, *(each for each in of_variants if each in others)):
            yield Job(named.name, named.spec, schedule, device, DEFAULT if tuned else OTHER)
        for schedule in first_of_variants((first, *others))[1 : 1 + sample]:
            yield Job(named.name, named.spec, schedule, device, SAMPLED)
        for schedule in random.Random(0).sample(others, min(sample, len(others))):
            yield Job(named.name, named.spec, schedule, device, SAMPLED)
    yield from _shipped(device, store)
    if device.arch == "sm_90":
        yield from _of_tvm(device, sample)


def _of_tvm(device: Device, sample: int) -> Iterator[Job]:
    """What has TVM templates for CUDA: the operators of one memory, a long attention of both types, and a step."""
    for named in specs():
        if named.name not in _BY_TVM:
            continue
        first, *others = legal_schedules(named.spec, "tvm", device)
        yield Job(named.name, named.spec, first, device, DEFAULT)
        for schedule in random.Random(0).sample(others, min(sample, len(others))):
            yield Job(named.name, named.spec, schedule, device, SAMPLED)


def _shipped(device: Device, store: Store) -> Iterator[Job]:
    for record in store.records(device.name, "shipped"):
        try:
            spec = spec_of_key(record.spec)
            schedule = from_settings(record.backend, dict(record.schedule))
        except TrellisError as error:
            warnings.warn(f"a shipped winner of {device.name} is not checked: {error}", stacklevel=2)
            continue
        current = record.template_digest == operator_digest(spec.problem, record.backend)
        if current and why_illegal(spec, schedule, device) is None:
            yield Job("shipped", spec, schedule, device, SHIPPED)


def _is_long(named: NamedSpec) -> bool:
    problem = named.spec.problem
    return problem.operator == "trellis_attention" and problem.chunk == 64


def _changed(spec: Spec, **changes: object) -> Spec:
    return replace(spec, problem=replace(spec.problem, **changes))  # type: ignore[arg-type]
