"""A prompt whose beginning was read before: where a model takes the state of a stored prefix, and hands new ones over.

States are stored at the starts of chunks, where nothing is kept of a chunk; `TrellisLM.carried` names their tensors.
`trellis_ops.serve.store` has a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.state.model_state import TrellisState


class StatefulModel(Protocol):
    """What a store asks of a model; `TrellisLM` has it."""

    @property
    def config(self) -> TrellisConfig:
        """The resolved configuration."""

    def carried(self, state: TrellisState) -> dict[str, Tensor]:
        """The tensors of a state at the start of a chunk, by name; their first axis is the batch."""

    def restored(self, tensors: Mapping[str, Tensor]) -> TrellisState:
        """The state at the start of a chunk that `carried` took apart."""

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""

    def state_dict(self) -> dict[str, Any]:
        """The weights by name."""


class PrefixLookup(Protocol):
    """What a store has of one prompt, and which states of it the store would keep."""

    @property
    def found(self) -> int:
        """Tokens of the longest stored prefix: a multiple of C below the length of the prompt, 0 for none."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its state as `StatefulModel.carried` names it, of batch 1 and nobody else's; empty where `found` is 0."""

    @property
    def wanted(self) -> Sequence[int]:
        """Lengths whose states the store would keep: multiples of C above `found` and below the prompt's, ascending."""

    def save(self, length: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state after the first `length` tokens; a store that cannot says so and raises nothing."""


class PrefixStore(Protocol):
    """Where states of prefixes are found and kept, on behalf of one tenant."""

    def lookup(self, model: StatefulModel, tokens: Tensor) -> PrefixLookup:
        """What is stored of the prompt `tokens [T]` for `model`."""


Advance = Callable[[Tensor, TrellisState | None], TrellisState]
"""The state after tokens `[B, T]`, going on from a state or starting a sequence."""


@torch.no_grad()
def stored_start(
    model: StatefulModel, tokens: Tensor, store: PrefixStore, advance: Advance
) -> tuple[int, TrellisState | None]:
    """The state of prompts near their end, from stored prefixes as far as there are any.

    What lies between a stored prefix and that state is read, and the states that the store wants are handed over. Rows
    whose stored prefixes have one length are read together.

    Args:
        model: reads the prompts.
        tokens: `[B, T]`, int64.
        store: where to look and to save.
        advance: how `model` reads.

    Returns:
        How many tokens the state holds, a multiple of C below T, and the state of batch B; or 0 and None.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    lookups = [store.lookup(model, row) for row in tokens]
    for row, each in enumerate(lookups):
        groups.setdefault((each.found, tuple(each.wanted)), []).append(row)
    # Rows that part here meet again at the last start of a chunk.
    found, wanted = next(iter(groups))
    end = (
        max((found, *wanted)) if len(groups) == 1 else (tokens.shape[1] - 1) // model.config.chunk * model.config.chunk
    )
    if end == 0:
        return 0, None
    states = [_read(model, tokens[rows, :end], [lookups[row] for row in rows], advance) for rows in groups.values()]
    order = torch.tensor([row for rows in groups.values() for row in rows], device=tokens.device).argsort()
    joined = {name: torch.cat([state[name] for state in states])[order] for name in states[0]}
    return end, model.restored(joined)


def _read(model: StatefulModel, tokens: Tensor, lookups: Sequence[PrefixLookup], advance: Advance) -> dict[str, Tensor]:
    """The tensors of the state after `tokens [B, T]`, whose rows have stored prefixes of one length."""
    at, wanted = lookups[0].found, lookups[0].wanted
    names = lookups[0].tensors
    carried = {name: torch.cat([each.tensors[name] for each in lookups]).to(tokens.device) for name in names}
    for stop in sorted({*wanted, tokens.shape[1]} - {at}):
        carried = model.carried(advance(tokens[:, at:stop], model.restored(carried) if at else None))
        if stop in wanted:
            for row, each in enumerate(lookups):
                each.save(stop, {name: tensor[row : row + 1] for name, tensor in carried.items()})
        at = stop
    return carried
