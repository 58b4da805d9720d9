"""The reference language model: blocks of a memory and a SwiGLU, with tied embeddings.

Source: arXiv 2512.23852, figure 1. Prefill runs on `trellis_attention`, decoding on `trellis_step`, or on
`memory_attention` and `memory_step` with another rule; the state that is carried between them has a constant size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codegen.errors import ShapeError
from codegen.layer import WEIGHTS
from codegen.scalars import whole_number
from trellis_ops.dispatch.resolve import device_of
from trellis_ops.lm.block import Block, draw_maps
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import applies
from trellis_ops.lm.decode.applies import Parts
from trellis_ops.lm.decode.captured import CapturedSteps
from trellis_ops.lm.decode.decoder import forget, fused_step
from trellis_ops.lm.decode.explanation import explain_step
from trellis_ops.lm.decode.packing import known_weights
from trellis_ops.lm.decode.run import run_of
from trellis_ops.lm.features import StateKind, carried, features, restored
from trellis_ops.lm.generation import GeneratingModel, check_int64, check_prompt
from trellis_ops.lm.norms import normed
from trellis_ops.lm.state import TrellisState
from trellis_ops.lm.state.rollback import kept_tokens, require_rollback
from trellis_ops.lm.vocabulary import embedded
from trellis_ops.lm.weights import model_file
from trellis_ops.lm.weights.undrawn import undrawn


class TrellisLM(GeneratingModel):
    """A language model whose state does not grow with the text.

    Args:
        config: sizes, rule and options. "auto" settings are resolved here, for torch's default device: make the model
            under `with torch.device("cuda")` to take the recommendation of the GPU. `self.config` is the resolved one.

    Attributes:
        decode_graph: whether `generate` replays a CUDA graph of a step for every token, see `captured_steps`.

    Example:
        >>> model = TrellisLM(TrellisConfig.preset("tiny"))
        >>> prompt = torch.tensor([list(b"Slots")])
        >>> logits, state = model(prompt)
        >>> model.generate(prompt, 3, temperature=0).shape
        torch.Size([1, 8])
    """

    decode_graph = False

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.config = config = config.resolved(device_of(torch.get_default_device()))
        self._kind = StateKind.of(config)
        self._decode_weights = WEIGHTS[0]
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew: linear maps from N(0, 1 / (4 fan_in)), those into the residual stream smaller."""
        draw_maps(self, self.config.layers)
        for block in self._blocks():
            block.mixer.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        state: TrellisState | None = None,
        *,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: int = 0,
        return_state: bool = True,
    ) -> tuple[Tensor, TrellisState | None]:
        """Logits of the next token after each token, and the state after the last.

        A sequence may be given in any pieces: the state returned goes on exactly where the piece ended, inside a chunk
        too, unless `decode="exact"`, where the chunks of a piece start with its first token. The state given is left
        as it was.

        Pass `return_state=False` for training: each layer is then one call of the operator, whereas a state to return
        costs a second call where T is no multiple of C. Gradients flow through a state at the start of a chunk
        (`positions` of 0), not through one inside a chunk, whose first tokens run one by one.

        Args:
            tokens: `[B, T]`, int64, each below `vocab_size`, padding too, T >= 1.
            state: where to go on, from an earlier call or `first_state`, with a row for each sequence; None starts
                sequences.
            attention_mask: `[B, T]`, bool or an integer type, 1 for tokens and 0 for padding on the left or on the
                right of them, of these tokens alone. A padded row gives what it gives alone; logits at padding are 0.
            cu_seqlens: `[N + 1]`, int32 or int64, offsets of N sequences packed into `[1, total]` tokens; nothing
                passes from one to the next, and the state has a row for each.
            logits_to_keep: n, to compute the logits of the last n of the T places only; 0 for all.
            return_state: whether to return the state.

        Returns:
            Logits `[B, T, vocab_size]`, or of the last n places, in the type of the weights, and the state or None.

        Raises:
            ShapeError, DtypeError, SizeError, DeviceMismatchError, StateError: tokens or a state that do not fit.
            MaskError: a mask with a hole, with a row without tokens, or beside `cu_seqlens`. SequenceError: offsets
                that do not describe the tokens.
            TokenError: a token outside the vocabulary; see `trellis_ops.lm.vocabulary.embedded` for GPUs.
            GradientError: a gradient is wanted from inside a chunk.
        """
        logits_to_keep = whole_number("logits_to_keep", logits_to_keep, least=0)
        options: Any = {"return_state": return_state, "kept": logits_to_keep}
        x, after = self._features(tokens, state, attention_mask, cu_seqlens, **options)
        return self._logits(x), after

    @torch.no_grad()
    def step(self, tokens: Tensor, state: TrellisState) -> Tensor:
        """Logits `[B, vocab_size]` after one more token `[B]`; moves `state` in place and has no gradient.

        The fast way to decode: nothing is copied but the chunk-start states, once per chunk. Equals `forward`. Rows
        may be at different positions. Up to 64 rows of a model of TRELLIS go through a kernel for each block on a CPU,
        and through a few on a GPU, see docs/decoding.md; `explain_step` says what a step runs.

        Raises:
            ShapeError, DtypeError: tokens that are not `[B]` int64 with the batch size of the state.
            TokenError: as `forward`; the state is left as it was. And what `forward` raises of a state.
        """
        if not isinstance(state, TrellisState) or state.fits is not self._kind:
            self._kind.check(state, self._blocks(), self.embedding.weight)
        if tokens.shape != (state.batch,):
            expected = f"[{state.batch}], the batch of the state"
            raise ShapeError(name="tokens", shape=list(tokens.shape), expected=expected)
        check_int64(tokens)
        x = embedded(self.embedding, tokens)
        logits = fused_step(self, self._decode_weights, x, state)
        if logits is None:
            begins = state.begins()
            for block, layer in zip(self._blocks(), state.layers, strict=True):
                x = block.step(x, layer, begins)
            logits = self._logits(x)
        state.advance(1, self._kind.period)
        return logits

    def _steps(self, state: TrellisState) -> Callable[[Tensor], Tensor]:
        if self.decode_graph:
            return self.captured_steps(state).step
        steps = super()._steps(state)
        if type(self).step is not TrellisLM.step or "step" in vars(self):
            return steps
        run = run_of(self, self._decode_weights, self.embedding, state, self._kind.period)
        return steps if run is None else run.step

    @property
    def decode_weights(self) -> str:
        """The type of the weights that `step`, `stream` and `generate` read: "float32", "bfloat16" or "int8".

        They are copies, packed for the kernels on CPUs alone: int8 with a scale for each output. The modules
        keep theirs, which prefill, training and decoding without those kernels read. Only "float32" gives what they do.

        Raises:
            UnknownMapError: another type is set.
        """
        return self._decode_weights

    @decode_weights.setter
    def decode_weights(self, weights: str) -> None:
        self._decode_weights = known_weights(weights)

    def step_parts(self) -> Parts:
        """What a step goes through, for the kernels that stand for it."""
        return Parts(self.config, self.blocks, (self.norm, self.embedding), (self, self.blocks))

    def explain_step(self, batch: int = 1) -> str:
        """What a step of `batch` rows runs, in words: kernels of whole blocks with their schedules, or why modules."""
        return explain_step(self, self._decode_weights, batch)

    def captured_steps(self, state: TrellisState) -> CapturedSteps:
        """Steps of the rows of `state`, which is left as it is, by one CUDA graph; see docs/decoding.md.

        Raises:
            ValueError: the model is on no CUDA device. And what `forward` raises of a state.
        """
        self._kind.check(state, self._blocks(), self.embedding.weight)
        return CapturedSteps(self, self._blocks(), state, self._kind.period)

    def first_state(self, batch: int) -> TrellisState:
        """The state before the first token of `batch` sequences."""
        batch = whole_number("batch", batch)
        return self._kind.state([block.mixer.first_state(batch, self.embedding.weight) for block in self._blocks()], 0)

    def checkpoint(self, state: TrellisState) -> TrellisState:
        """A copy of `state` for `rollback`; `forward` leaves the state that it was given, `step` does not.

        Raises:
            RollbackError: as `rollback`. And what `forward` raises of a state.
        """
        require_rollback(self.config)
        self._kind.check(state, self._blocks(), self.embedding.weight)
        return state.clone()

    @torch.no_grad()
    def rollback(self, checkpoint: TrellisState, tokens: Tensor, kept: Tensor) -> TrellisState:
        """The state of each row after the first `kept` of the `tokens` that it read from `checkpoint` on.

        As if the others had never been read: the kept ones are read again, all rows in one call without logits, which
        costs what `forward` costs of them. So speculative decoding verifies the tokens of a draft in one forward, and
        takes back those that are rejected, for each row another number:

        >>> model = TrellisLM(TrellisConfig.preset("tiny"))
        >>> _, state = model(torch.tensor([[1, 2], [3, 4]]))
        >>> draft = torch.tensor([[5, 6, 7], [8, 9, 10]])
        >>> logits, _ = model(draft, state)  # of each drafted token's next one
        >>> model.rollback(state, draft, kept=torch.tensor([3, 1])).positions
        tensor([5, 3])

        Args:
            checkpoint: the state before `tokens`, of `checkpoint` or as `forward` left it; it is left as it is.
            tokens: `[B, n]`, int64, what was read from there on; n >= 1.
            kept: `[B]`, int64, from 0 to n.

        Raises:
            RollbackError: `decode="exact"` beside chunks of several tokens.
            And what `forward` raises of tokens and of a state.
        """
        require_rollback(self.config)
        check_prompt(tokens)
        self._kind.check(checkpoint, self._blocks(), self.embedding.weight, tokens.shape[0])
        packed, offsets = kept_tokens(tokens, kept)
        if packed.shape[1] == 0:
            return checkpoint.clone()
        if packed.shape[1] == tokens.numel():
            return self._after(tokens, checkpoint)
        return self._after(packed, checkpoint, offsets)

    def carried(self, state: TrellisState) -> dict[str, Tensor]:
        """The tensors of a state at the start of a chunk, by name with the layer before; `restored` has it again."""
        return carried(self._blocks(), state)

    def restored(self, tensors: Mapping[str, Tensor]) -> TrellisState:
        """The state at the start of a chunk that `carried` took apart."""
        return restored(self._blocks(), self._kind, tensors)

    def count_parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and weights to one file that `load` reads; an old one stays until the new one is whole.

        Raises:
            FileWriteError, IrregularFileError: the file cannot be written.
        """
        model_file.save(self.config, self.state_dict(), Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], map_location: torch.device | str = "cpu") -> TrellisLM:
        """The model that `save` wrote; only data is read from the file, nothing in it is executed.

        Raises:
            ModelFileError: another file, or a damaged one. IrregularFileError, OSError: none that can be read.
        """
        config, weights = model_file.load(Path(path))
        with undrawn():
            model = cls(config)
        model_file.check_weights(Path(path), weights, model.state_dict())
        model.load_state_dict(weights, assign=True)
        return model.to(map_location)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrellisLM:
        """Move or cast the model; states that fitted it are looked at again, and what was packed of it is dropped."""
        forget(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._kind = StateKind.of(self.config)
        return self

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
        check_prompt(tokens)
        x, blocks = embedded(self.embedding, tokens), self._blocks()
        early = kept if 0 < kept < x.shape[1] and applies.ends_early(blocks[-1]) else 0
        options: Any = {"return_state": return_state, "kept": early}
        y, after = features(blocks, self._kind, x, state, attention_mask, cu_seqlens, **options)
        return y[:, -kept:], after

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(normed(self.norm, x), self.embedding.weight)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))
