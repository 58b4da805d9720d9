"""How float32 operands enter a dot: what a device has, and what keeps too few bits of the inputs."""

from __future__ import annotations

from codegen.device import Device
from codegen.spec import Spec

_FIRST_WITH_TF32 = 80  # And with bfloat16.
_BITS_OF_OPERANDS = {"tf32": 11, "bf16": 8}
_BITS_OF_INPUTS = {"float32": 24, "float16": 11, "bfloat16": 8}
# The fastest that is right by a margin (docs/gpu.md has the errors); the first that the device has.
_USUAL_PRECISIONS = {"float32": ("tf32x3", "ieee"), "float16": ("tf32", "ieee"), "bfloat16": ("bf16", "tf32", "ieee")}


def dot_precisions(device: Device) -> tuple[str, ...]:
    """How float32 operands may enter a dot there; Triton's interpreter computes in float32 whatever it is told."""
    if device.kind == "hip":
        return ("ieee", "tf32", "bf16x3", "bf16") if device.arch == "gfx942" else ("ieee", "bf16x3", "bf16")
    if device.kind == "cpu":
        return ("ieee", "tf32x3", "tf32")
    if int(device.arch.removeprefix("sm_")) < _FIRST_WITH_TF32:
        return ("ieee",)
    return ("ieee", "tf32x3", "tf32", "bf16x3", "bf16")


def usual_precision(dtype: str, device: Device) -> str:
    """The precision of dots of inputs of that type where nothing better is known."""
    return next(each for each in _USUAL_PRECISIONS[dtype] if each in dot_precisions(device))


def why_too_few_bits(spec: Spec, precision: str) -> str | None:
    """Why dots of that precision lose what the inputs have, in one sentence; None if they do not."""
    bits = _BITS_OF_OPERANDS.get(precision)
    if bits is not None and bits < _BITS_OF_INPUTS[spec.problem.dtype]:
        return f"{precision} dots keep {bits} bits of each operand: too few for {spec.problem.dtype} inputs"
    return None
