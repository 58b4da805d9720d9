"""Whether each row of a call has a slot of its own, and a position that can be counted; reads both tensors."""

from __future__ import annotations

from torch import Tensor

from codegen.errors import PoolError
from codegen.limits.extent import MOST

SKIPPED = -1
"""The slot of a row that only pads a call."""


def check_rows(state_indices: Tensor, positions: Tensor, capacity: int, tokens: int) -> None:
    """Refuse slots that the pool lacks or that two rows share, and positions that are none.

    Args:
        state_indices, positions: of the call.
        capacity: how many slots the pool has.
        tokens: of the call.

    Raises:
        PoolError: with the first slot or position that is wrong.
    """
    slots = state_indices.tolist()
    live = [slot for slot in slots if slot != SKIPPED]
    if not live:
        return
    if min(live) < 0 or max(live) >= capacity:
        wrong = next(slot for slot in live if not 0 <= slot < capacity)
        raise PoolError(
            name="state_indices",
            problem="names a slot that the pool lacks",
            value=wrong,
            expected=f"0 to {capacity - 1}, or {SKIPPED} to skip the row",
        )
    if len(set(live)) < len(live):
        twice = next(slot for place, slot in enumerate(live) if slot in live[:place])
        raise PoolError(
            name="state_indices", problem="names a slot twice", value=twice, expected="a slot of its own for each row"
        )
    most = MOST - tokens
    for slot, position in zip(slots, positions.tolist(), strict=True):
        if slot != SKIPPED and not 0 <= position <= most:
            raise PoolError(name="positions", problem="has no count of tokens", value=position, expected=f"0 to {most}")
