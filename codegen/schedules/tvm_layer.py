"""TVM's schedules of the kernels that take a whole layer one token further, on CPUs.

`accumulators` decides how many rows a vector of weights serves from registers; `tile_tokens` has no meaning.
"""

from __future__ import annotations

from typing import TypeVar

from codegen.device import Device
from codegen.kernels.layer.layout import PANEL, layout_of
from codegen.layer import Layer
from codegen.schedules.tvm_fields import TvmFields
from codegen.spec import Spec

Kind = TypeVar("Kind", bound=TvmFields)

OF_LAYERS = ("block", "logits")
"""The variants of these kernels."""

_BYTES_PER_THREAD = 2**20
"""Of weights: reading fewer takes less time than waking a thread for each product does."""

_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_MOST_ROWS = 8

_DOTS = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""What multiplies pairs of 16-bit numbers and adds the two products, by float32 lanes of a vector on x86."""

_SUMS_OF_DIGITS = 2
"""Of each output, where inputs have two digits."""


def default(kind: type[Kind], spec: Spec, device: Device) -> Kind:
    """As many rows at once as are sure to fit registers; as many threads as have enough weights to read."""
    layer = spec.problem.layer
    assert layer is not None
    width = min(16, max(4, device.vector_bits // 32))
    most = 24 if device.vector_bits == 512 or device.arch == "aarch64" else 12
    fitting = [n for n in TvmFields.choices["accumulators"] if isinstance(n, int) and n <= most]
    accumulators = max(n for n in fitting if _is_whole(n, width) and n * width // PANEL <= _MOST_ROWS)
    size = layout_of(spec).numbers * _WEIGHT_BYTES[layer.weights]
    wanted = max(1, min(device.cores, size // _BYTES_PER_THREAD))
    threads = max(n for n in TvmFields.choices["threads"] if isinstance(n, int) and n <= wanted)
    variant = {"block_step": "block", "logits_step": "logits"}[spec.problem.operator]
    return kind(variant, width, width, accumulators, threads)


def why_illegal(schedule: TvmFields) -> str | None:
    """Why such a schedule cannot be, by its own fields, in one sentence; None if it can."""
    if schedule.tile_tokens != schedule.vector_width:
        return f"variant {schedule.variant!r} has no tile: tile_tokens must be the vector width"
    if not _is_whole(schedule.accumulators, schedule.vector_width):
        return f"{schedule.accumulators} accumulators are no whole rows of {PANEL} outputs"
    return None


def template_variables(schedule: TvmFields, spec: Spec, device: Device) -> dict[str, object]:
    """What the templates are given besides what all are."""
    assert spec.problem.layer is not None
    rows, dot = schedule.accumulators * schedule.vector_width // PANEL, _dot(schedule, spec.problem.layer, device)
    return {
        "rows": rows if dot is None else max(1, rows // _SUMS_OF_DIGITS),
        "panel": PANEL,
        "dealt": lambda panels: f"T.serial({panels} * worker // THREADS, {panels} * (worker + 1) // THREADS)",
        "dot": dot,
    }


def _dot(schedule: TvmFields, layer: Layer, device: Device) -> str | None:
    known = layer.weights == "int8" and device.arch.startswith("x86-64")
    return _DOTS.get(schedule.vector_width) if known else None


def _is_whole(accumulators: int, width: int) -> bool:
    return accumulators * width % PANEL == 0
