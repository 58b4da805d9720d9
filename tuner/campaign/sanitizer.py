"""The second stage: NVIDIA's compute-sanitizer on one small case of each kernel."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from codegen.device import Device
from codegen.program import build
from codegen.schedule import Schedule, from_settings
from codegen.spec import Spec, spec_of_key
from tuner.campaign.correctness import kernels_to_check
from tuner.campaign.ledger import Entry
from tuner.campaign.plan import Campaign

TOOLS = ("memcheck", "racecheck")
_NAME = "compute-sanitizer"
_TIMEOUT = 240.0
_TAIL = 600


def why_left_out(device: Device) -> str | None:
    """Why the sanitizer cannot run, in one sentence; None if it can."""
    if device.kind != "cuda":
        return f"{_NAME} examines NVIDIA's GPUs only"
    return None if shutil.which(_NAME) else f"{_NAME} is not on the PATH; it comes with the CUDA toolkit"


def sanitize_all(campaign: Campaign) -> Iterator[Entry]:
    """Examine what was not examined yet, as far as the time goes."""
    for (named, schedule), tool in itertools.product(kernels_to_check(campaign), TOOLS):
        name, state = f"{tool} {named.name} {schedule.key()}", campaign.state_of(named.spec)
        known = campaign.ledger.find("sanitizer", name, state)
        if known is not None:
            yield known
        elif campaign.left_for("sanitizer") > 0:
            ok, text = examined(tool, named.spec, schedule)
            yield campaign.ledger.add(Entry(stage="sanitizer", name=name, state=state, ok=ok, text=text))


def examined(tool: str, spec: Spec, schedule: Schedule) -> tuple[bool, str]:
    """Whether `tool` finds nothing wrong, and what it said last."""
    settings = msgspec.json.encode(schedule.settings()).decode()
    python = [sys.executable, "-m", "tuner.campaign.sanitizer", spec.key(), schedule.backend, settings]
    command = [_NAME, "--tool", tool, "--error-exitcode", "9", *python]
    # Torch's caching allocator would hide what lies beyond a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=environment)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {_TIMEOUT:g} s"
    said = (done.stdout + done.stderr).strip()
    return done.returncode == 0, said[-_TAIL:]


def main(spec_key: str, backend: str, settings: str) -> None:
    """Run one small case of a program once; the sanitizer watches."""
    from tuner.available import device_here
    from tuner.check import check_inputs
    from tuner.launch import bind

    device, spec = device_here("cuda"), spec_of_key(spec_key)
    small = replace(spec, problem=replace(spec.problem, batch=1, heads=2))
    schedule = from_settings(backend, msgspec.json.decode(settings))
    bind(build(small, schedule, device), check_inputs(small, device)).outputs_of_run()


if __name__ == "__main__":
    main(*sys.argv[1:])
