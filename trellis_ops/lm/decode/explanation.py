"""What a decode step runs, in words."""

from __future__ import annotations

from codegen.scalars import whole_number
from codegen.spec import next_power_of_two
from trellis_ops.dispatch.layer import resolved
from trellis_ops.lm.decode import applies
from trellis_ops.lm.decode.decoder import Model, packed_type
from trellis_ops.lm.decode.specs import block_spec, logits_spec


def explain_step(model: Model, weights: str, batch: int) -> str:
    """A line for each kernel of a step of `batch` rows, or the reason why the model's modules compute it.

    Raises:
        SizeError: `batch` is no positive number.
    """
    batch = whole_number("batch", batch)
    parts = model.step_parts()
    reason = applies.why_not_model(parts) or applies.why_not_call()
    if batch > applies.MOST_ROWS:
        reason = reason or f"the kernels take at most {applies.MOST_ROWS} rows, not {batch}"
    if reason is not None:
        return f"modules: {reason}"
    lines = []
    kernels = (block_spec,) if parts.output is None else (block_spec, logits_spec)
    for spec in (each(parts.config, next_power_of_two(batch), packed_type(parts, weights)) for each in kernels):
        found = resolved(spec)
        if found.schedule is None:
            return f"modules: {'; '.join(found.notes)}"
        notes = "".join(f"; {note}" for note in found.notes)
        lines.append(f"{spec.problem.operator}: {found.schedule.key()}, {found.origin}{notes}")
    return "\n".join(lines)
