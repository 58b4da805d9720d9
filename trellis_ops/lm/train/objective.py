"""A model with its loss and what it carries from window to window, as one module that processes can share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codegen.errors import SizeError
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.lanes import IGNORED, Batch
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.softmax import SoftmaxLM

Carried = dict[str, Tensor]
"""What a model carries, by name; the first axis of every tensor is the lane."""

LanguageModel = TrellisLM | SoftmaxLM


def build_model(config: TrellisConfig, settings: Settings) -> LanguageModel:
    """The model that `settings.mixer` names, its weights drawn from torch's generator.

    Raises:
        SizeError: windows that end inside a chunk, where no gradient can pass.
    """
    if settings.mixer == "softmax":
        return SoftmaxLM(config, settings.length)
    model = TrellisLM(config)
    own = model.config
    # Chunks begin anew with each window, which changes nothing where a rule reads no state from their start.
    chunk = own.chunk if own.rule is None or own.keeps_starts or own.decode == "exact" else 1
    if settings.length % chunk:
        expected = f"a multiple of the chunk size {chunk}, for windows to carry a state across"
        raise SizeError(name="length", value=settings.length, expected=expected)
    return model


class Objective(nn.Module):
    """Windows to the sum of their losses.

    It is one module, because data parallelism acts when a module is called: the first state is a parameter that must
    be read within that call.

    Args:
        model: what predicts.
        dtype: type of the products under autocast; None is the type of the weights.
    """

    def __init__(self, model: LanguageModel, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, batch: Batch, carried: Carried | None) -> tuple[Tensor, Carried]:
        """The loss in nats, summed over the targets that count, and what is carried on, cut off from the graph.

        Args:
            batch: windows; lanes marked fresh start from the model's first state.
            carried: what this returned for the window before; None starts all lanes.
        """
        first = self.first(len(batch.fresh))
        begin = first if carried is None else _restart(batch.fresh, first, carried)
        with torch.autocast(batch.tokens.device.type, self.dtype, enabled=self.dtype is not None):
            logits, after = self._read(batch.tokens, begin)
        flat = logits.flatten(0, 1).float()
        loss = F.cross_entropy(flat, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, {name: tensor.detach() for name, tensor in after.items()}

    def first(self, lanes: int) -> Carried:
        """What so many lanes start from."""
        if isinstance(self.model, SoftmaxLM):
            return self.model.first_state(lanes)
        return self.model.carried(self.model.first_state(lanes))

    def _read(self, tokens: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        if isinstance(self.model, SoftmaxLM):
            logits, cache = self.model(tokens, carried)
            return logits, cache
        logits, state = self.model(tokens, self.model.restored(carried))
        return logits, self.model.carried(state)


def _restart(fresh: Tensor, first: Carried, carried: Carried) -> Carried:
    return {
        name: torch.where(fresh.view(-1, *(1,) * (start.ndim - 1)), start, carried[name])
        for name, start in first.items()
    }
