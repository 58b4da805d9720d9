"""Continuing prompts token by token, by any model that reads tokens into a state and steps on from it."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from codegen.errors import DtypeError, ShapeError
from codegen.scalars import whole_number
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.sampling import Sampling
from trellis_ops.lm.sequences.arranged import last_tokens
from trellis_ops.lm.state import TrellisState
from trellis_ops.lm.state.prefixes import PrefixStore, stored_start

P = ParamSpec("P")
R = TypeVar("R")


def _with_arguments_of(other: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Make a function that hands its arguments on to another have the signature of that one."""

    def decorated(function: Callable[..., R]) -> Callable[P, R]:
        returns = inspect.signature(function).return_annotation
        signature = inspect.signature(other).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorated


class GeneratingModel(nn.Module):
    """The part of a language model that writes.

    Attributes:
        config: the resolved configuration.
    """

    config: TrellisConfig

    @torch.no_grad()
    def _begun(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        state: TrellisState | None = None,
        prefix_store: PrefixStore | None = None,
        attention_mask: Tensor | None = None,
        top_p: float | None = None,
    ) -> tuple[Tensor, TrellisState, int, Sampling]:
        """The logits and the state after the prompt, how many tokens to write, and how to draw them."""
        sampling = Sampling(temperature, top_k, generator, top_p)
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=0)
        x, after = self._prompt_features(tokens, state, prefix_store, attention_mask)
        return self._logits(x), after, max_new_tokens, sampling

    @_with_arguments_of(_begun)
    def stream(self, *arguments: Any, **options: Any) -> Iterator[Tensor]:
        """Yield new tokens `[B]` one at a time; the arguments, the errors and the draws are those of `generate`.

        Stop iterating to stop early. Errors are raised here, not at the first token.
        """
        logits, state, count, sampling = self._begun(*arguments, **options)
        # Whoever takes the tokens may change the model, and whether gradients are recorded, between them.
        return _streamed(logits, functools.partial(self.step, state=state), count, sampling)

    @_with_arguments_of(_begun)
    def generate(self, tokens: Tensor, *others: Any, **options: Any) -> Tensor:
        """Continue `tokens [B, T]` by `max_new_tokens` tokens, with a state of constant size.

        Args:
            tokens: the prompt, `[B, T]`, int64, T >= 1.
            max_new_tokens: how many tokens to add; 0 or more.
            temperature: logits are divided by it; 0 takes the likeliest token.
            top_k: only this many of the likeliest tokens can be drawn.
            generator: source of randomness, on the device of the model.
            state: where the prompt goes on; it is left as it was.
            prefix_store: where the states of prompts are found and kept, see `trellis_ops.serve.store`; each row goes
                on from its longest stored prefix. It excludes `state`, whose tokens no store can know, and
                `attention_mask`.
            attention_mask: `[B, T]`, as `forward` takes it, for prompts of unequal length.
            top_p: only the fewest of the likeliest tokens that add up to this probability can be drawn.

        Returns:
            `[B, T + max_new_tokens]`, the prompt first, with its padding where it is.

        Raises:
            SizeError: a count or temperature out of range; and what `forward` raises.
            ValueError: `prefix_store` beside `state` or `attention_mask`.
        """
        logits, state, count, sampling = self._begun(tokens, *others, **options)
        with torch.no_grad():
            new = list(_written(logits, self._steps(state), count, sampling))
        return torch.cat([tokens, torch.stack(new, 1)], 1) if new else tokens.clone()

    def _steps(self, state: TrellisState) -> Callable[[Tensor], Tensor]:
        """`step` on a state that is nobody else's, for tokens between which nobody can change the model."""
        return functools.partial(self.step, state=state)

    def _prompt_features(
        self,
        tokens: Tensor,
        state: TrellisState | None,
        prefix_store: PrefixStore | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, TrellisState]:
        """Features of the last token of each prompt, and the state after it."""
        start = 0
        if prefix_store is not None:
            if state is not None or attention_mask is not None:
                other = "attention_mask" if state is None else "state"
                raise ValueError(f"give {other} or prefix_store: a store knows whole prompts from their beginning")
            check_prompt(tokens)
            start, state = stored_start(self, tokens, prefix_store, self._after)
        kept = 1 if attention_mask is None else 0
        x, after = self._features(tokens[:, start:], state, attention_mask, return_state=True, kept=kept)
        assert after is not None
        return last_tokens(x, attention_mask), after

    def _after(self, tokens: Tensor, state: TrellisState | None, cu_seqlens: Tensor | None = None) -> TrellisState:
        _, after = self._features(tokens, state, cu_seqlens=cu_seqlens, return_state=True, kept=1)
        assert after is not None
        return after

    @abstractmethod
    def carried(self, state: TrellisState) -> dict[str, Tensor]:
        """The tensors of a state at the start of a chunk, by name."""

    @abstractmethod
    def restored(self, tensors: Mapping[str, Tensor]) -> TrellisState:
        """The state at the start of a chunk that `carried` took apart."""

    @abstractmethod
    def step(self, tokens: Tensor, state: TrellisState) -> Tensor:
        """Logits `[B, vocab_size]` after one more token `[B]`, moving `state` in place."""

    @abstractmethod
    def _features(
        self,
        tokens: Tensor,
        state: TrellisState | None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        return_state: bool,
        kept: int = 0,
    ) -> tuple[Tensor, TrellisState | None]:
        """What the last norm reads of tokens `[B, T]`, `[B, T, width]`, and the state after them.

        Of the last `kept` of the T places only, 0 for all.
        """

    @abstractmethod
    def _logits(self, x: Tensor) -> Tensor:
        """Logits `[..., vocab_size]` of features `[..., width]`."""


def _written(logits: Tensor, step: Callable[[Tensor], Tensor], count: int, sampling: Sampling) -> Iterator[Tensor]:
    for index in range(count):
        drawn = sampling.draw(logits)
        yield drawn
        if index + 1 < count:
            logits = step(drawn)


@torch.no_grad()
def _streamed(logits: Tensor, step: Callable[[Tensor], Tensor], count: int, sampling: Sampling) -> Iterator[Tensor]:
    yield from _written(logits, step, count, sampling)


def check_prompt(tokens: Tensor) -> None:
    """Raise a ShapeError or a DtypeError unless tokens are `[B, T]` int64 with T >= 1."""
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ShapeError(name="tokens", shape=list(tokens.shape), expected="[B, T] with B >= 1 and T >= 1")
    check_int64(tokens)


def check_int64(tokens: Tensor) -> None:
    """Raise a DtypeError unless tokens are int64."""
    if tokens.dtype != torch.int64:
        raise DtypeError(name="tokens", dtype=tokens.dtype, expected="torch.int64")
