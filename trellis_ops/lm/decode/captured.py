"""Decode steps on a GPU that are captured once, as one CUDA graph, and replayed for every token.

Python takes longer to launch the kernels of a step than a GPU to run them. A graph launches all of them at once; what
changes from token to token, the tokens, positions and states, lies in memory that it reads and writes in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from codegen.errors import DtypeError, ShapeError
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import between
from trellis_ops.lm.decode.applies import Parts
from trellis_ops.lm.sequences import Pooled, Rows
from trellis_ops.lm.state import TrellisState


class Model(Protocol):
    """What of a model a step goes through."""

    config: TrellisConfig
    embedding: nn.Embedding
    norm: nn.RMSNorm

    def step_parts(self) -> Parts:
        """What a step goes through now."""


class CapturedSteps:
    """Decode steps of a model for the rows of a state, by a graph that is captured here.

    It runs the kernels of `trellis_ops.lm.decode.between` where they may stand for the modules, and else the modules.
    The graph reads the model's weights where they lie, or copies of them: a model that has changed needs another one.
    The state that is given is left as it was.

    Args:
        model: on a CUDA device; any rule.
        blocks: its blocks.
        state: where the rows stand.
        period: tokens of a chunk, 1 where none are kept.

    Raises:
        ValueError: a model that is not on a CUDA device.
    """

    @torch.no_grad()
    def __init__(self, model: Model, blocks: list[Block], state: TrellisState, period: int) -> None:
        device = model.embedding.weight.device
        self._model, self._blocks, self._state, self._period = model, blocks, state.clone(), period
        self._tokens = torch.zeros(state.batch, dtype=torch.int64, device=device)
        # A position of 0 would begin a sequence, whatever it has read; chunks begin at the multiples of C.
        positions = (state.positions + period).to(device, torch.int32)
        rows = Rows(state.batch, 1, 0, 1)
        self._sequences = Pooled(torch.arange(state.batch, device=device), positions, None, rows)
        self._pools = [
            {name: pool for name, pool in layer.tensors().items() if pool.numel()} for layer in self._state.layers
        ]
        self._moves = self._by_kernels(state.batch)
        # What is captured is not run, but compiling its kernels is a run before it.
        kept = [tensor.clone() for tensor in self._moved()]
        self._replay = cuda_graph(self._run, device)
        for tensor, before in zip(self._moved(), kept, strict=True):
            tensor.copy_(before)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[B, vocab_size]` after one more token `[B]`, int64; as `TrellisLM.step`.

        Raises:
            ShapeError, DtypeError: tokens of another shape or type.
        """
        if tokens.shape != self._tokens.shape:
            rows = self._tokens.shape[0]
            raise ShapeError(name="tokens", shape=list(tokens.shape), expected=f"[{rows}], the rows that are captured")
        if tokens.dtype != torch.int64:
            raise DtypeError(name="tokens", dtype=tokens.dtype, expected="torch.int64")
        self._tokens.copy_(tokens)
        logits = self._replay().clone()
        self._state.advance(1, self._period)
        return logits

    def state(self) -> TrellisState:
        """A copy of the state after the tokens so far."""
        return self._state.clone()

    def _by_kernels(self, batch: int) -> Callable[[Tensor], Tensor] | None:
        """What makes logits of the embeddings of tokens by kernels; None where the modules have to."""
        like = self._model.embedding.weight.detach()[:1].expand(batch, -1)
        found = between.ready(self._model, like) if between.serve(like.device) else None
        if found is None:
            return None
        weights, kernels = found
        states = [weights.states_of(index, pools, batch) for index, pools in enumerate(self._pools)]
        if not all(states):
            return None

        def logits_of(x: Tensor) -> Tensor:
            where = weights.where(self._sequences.positions)
            for index, state in enumerate(states):
                weights.step_block(kernels, index, x, where, state)
            return weights.logits_of(kernels, x)

        return logits_of

    @torch.no_grad()
    def _run(self) -> Tensor:
        x = self._model.embedding(self._tokens)
        logits: Tensor = self._by_modules(x) if self._moves is None else self._moves(x)
        self._sequences.positions.add_(1)
        return logits

    def _by_modules(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for block, pools in zip(self._blocks, self._pools, strict=True):
            x = block.pooled(x, pools, self._sequences)
        return nn.functional.linear(self._model.norm(x[:, 0]), self._model.embedding.weight)

    def _moved(self) -> list[Tensor]:
        return [self._sequences.positions, *(pool for pools in self._pools for pool in pools.values())]


def cuda_graph(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A CUDA graph of `run`, which is called once before, so that its kernels are compiled; its result is one tensor.

    Raises:
        ValueError: another device than one of CUDA.
        RuntimeError: `run` does what no graph can hold, such as waiting for the device.
    """
    if device.type != "cuda":
        raise ValueError(f"the model is on {device}, but a CUDA graph needs a CUDA device; use step there")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            found = run()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay
