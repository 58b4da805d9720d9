"""What a decode step runs, in words."""

from __future__ import annotations

from codegen.scalars import whole_number
from codegen.spec import Spec, next_power_of_two
from trellis_ops.dispatch.layer import resolved
from trellis_ops.glue import why_not_call
from trellis_ops.lm.decode import applies, between
from trellis_ops.lm.decode.applies import Model, Parts
from trellis_ops.lm.decode.decoder import packed_type
from trellis_ops.lm.decode.specs import block_spec, logits_spec


def explain_step(model: Model, weights: str, batch: int) -> str:
    """A line for each kernel of a step of `batch` rows, or the reason why the model's modules compute it.

    Raises:
        SizeError: `batch` is no positive number.
    """
    batch = whole_number("batch", batch)
    parts = model.step_parts()
    device = parts.device
    is_between = between.serve(device)
    why_not_model = between.why_not_model if is_between else applies.why_not_model
    reason = why_not_model(parts) or why_not_call(device.type)
    if batch > applies.MOST_ROWS:
        reason = reason or f"the kernels take at most {applies.MOST_ROWS} rows, not {batch}"
    if reason is not None:
        return f"modules: {reason}"
    lines = []
    for spec in _specs(parts, weights, next_power_of_two(batch), is_between):
        found = resolved(spec, device)
        if found.schedule is None:
            return f"modules: {'; '.join(found.notes)}"
        notes = "".join(f"; {note}" for note in found.notes)
        lines.append(f"{spec.problem.operator}: {found.schedule.key()}, {found.origin}{notes}")
    return "\n".join(lines)


def _specs(parts: Parts, weights: str, rows: int, is_between: bool) -> list[Spec]:
    if is_between:
        return between.specs_of(parts.config, rows, *parts.map_types())
    kernels = (block_spec,) if parts.output is None else (block_spec, logits_spec)
    return [each(parts.config, rows, packed_type(parts, weights)) for each in kernels]
