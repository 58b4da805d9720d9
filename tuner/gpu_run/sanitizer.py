"""The second stage: NVIDIA's compute-sanitizer on one small case of each kernel, those that TVM exported included."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from codegen.device import Device
from codegen.kernels.build import build
from codegen.kernels.exports.exported import operator_of_export
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Value
from codegen.spec import Spec, spec_of_key
from tuner.gpu_run.correctness import kernels_to_check
from tuner.gpu_run.exported import exports_for, state_of_export
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.processes.own_process import own_process

TOOLS = ("memcheck", "racecheck")
_NAME = "compute-sanitizer"
_LEAST_SECONDS = 5.0
_TAIL = 600

# Starting torch under the sanitizer takes longer than a kernel does, and leaves all cores but one idle.
_TOGETHER = 4
_MOST_PROCESSES = 14


@dataclass(frozen=True)
class Case:
    """An operator to be examined by one of `TOOLS`, how another process finds it, and where the finding goes."""

    tool: str
    name: str
    state: str
    operator: Described | Exported


class Described(msgspec.Struct, frozen=True, tag=True):
    """An operator that is built: key of its spec, backend, settings of its schedule."""

    spec: str
    backend: str
    settings: dict[str, Value]


class Exported(msgspec.Struct, frozen=True, tag=True):
    """An operator that TVM exported into a folder."""

    folder: str


def why_left_out(device: Device) -> str | None:
    """Why the sanitizer cannot run, in one sentence; None if it can."""
    if device.kind != "cuda":
        return f"{_NAME} examines NVIDIA's GPUs only"
    return None if shutil.which(_NAME) else f"{_NAME} is not on the PATH; it comes with the CUDA toolkit"


def sanitize_all(run: GpuRun) -> Iterator[Entry]:
    """Examine what was not examined yet, several kernels in one process, as far as the time goes.

    Where a process finds something, its kernels are examined again one by one.
    """
    todo: dict[str, list[Case]] = {tool: [] for tool in TOOLS}
    for case in _cases(run):
        known = run.ledger.find("sanitizer", case.name, case.state)
        if known is not None:
            yield known
        else:
            todo[case.tool].append(case)
    by_tool = [[cases[at : at + _TOGETHER] for at in range(0, len(cases), _TOGETHER)] for cases in todo.values()]
    # In turn, so that no tool is left out where the time is short.
    groups = [group for both in itertools.zip_longest(*by_tool) for group in both if group]
    with ThreadPoolExecutor(max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) - 2))) as pool:
        for done in as_completed([pool.submit(_examined_in_time, run, group) for group in groups]):
            yield from map(run.ledger.add, done.result())


def _cases(run: GpuRun) -> Iterator[Case]:
    kernels = kernels_to_check(run)
    for tool in TOOLS:
        for named, schedule in kernels:
            name = f"{tool} {named.name} {schedule.key()}"
            described = Described(named.spec.key(), schedule.backend, schedule.settings())
            yield Case(tool, name, run.state_of(named.spec), described)
        for folder in exports_for(run.device):
            yield Case(tool, f"{tool} exported {folder.name}", state_of_export(folder), Exported(str(folder)))


def _examined_in_time(run: GpuRun, group: Sequence[Case]) -> list[Entry]:
    """Findings about a group; none where the time was up before there was one."""
    left = run.left_for("sanitizer")
    if left < _LEAST_SECONDS:
        return []
    ok, text = examined(group, left)
    if ok is None:
        return []
    if not ok and len(group) > 1:
        return [entry for case in group for entry in _examined_in_time(run, [case])]
    return [Entry(stage="sanitizer", name=case.name, state=case.state, ok=ok, text=text) for case in group]


def examined(group: Sequence[Case], timeout: float) -> tuple[bool | None, str]:
    """Whether the tool finds nothing wrong with kernels, None if it was not ready in time; and what it said last."""
    operators = msgspec.json.encode([case.operator for case in group]).decode()
    python = own_process("tuner.gpu_run.sanitizer", operators)
    command = [_NAME, "--tool", group[0].tool, "--error-exitcode", "9", *python]
    # Torch's caching allocator would hide what lies beyond a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        command, stdout=pipe, stderr=both, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # What the tool has started would use the card further on.
            os.killpg(process.pid, signal.SIGKILL)
            return None, f"no answer within {timeout:.0f} s"
    return process.returncode == 0, said.strip()[-_TAIL:]


def main(operators: str) -> None:
    """Run one small case of each operator once; the sanitizer watches."""
    from tuner.verify.check import check_inputs
    from tuner.verify.launch import bind
    from tuner.workers.available import device_here

    device = device_here("cuda")
    for each in msgspec.json.decode(operators, type=list[Described | Exported]):
        operator = _operator(each, device)
        bind(operator, check_inputs(_small(operator.spec), device)).outputs_of_run()


def _operator(each: Described | Exported, device: Device) -> CompiledOperator:
    if isinstance(each, Exported):
        return operator_of_export(Path(each.folder))
    return build(_small(spec_of_key(each.spec)), from_settings(each.backend, dict(each.settings)), device)


def _small(spec: Spec) -> Spec:
    return replace(spec, problem=replace(spec.problem, batch=1, heads=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
