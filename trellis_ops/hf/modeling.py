"""The reference model as a model of transformers: its blocks, its forward, and its logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from codegen.layer import WEIGHTS
from trellis_ops.hf.cache.names import CACHE_NAME, take_cache
from trellis_ops.hf.cache.state import TrellisCache, require_cache
from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.errors import InputError
from trellis_ops.hf.generation import TrellisGeneration
from trellis_ops.hf.inputs import check_kept, check_unpacked, checked_shape, held, kept, sample_starts, token_mask
from trellis_ops.hf.pretrained import TrellisPreTrainedModel, gate_names
from trellis_ops.hf.reading import read
from trellis_ops.lm.block import Block, draw_maps
from trellis_ops.lm.decode.applies import Parts
from trellis_ops.lm.decode.decoder import forget, fused_blocks
from trellis_ops.lm.decode.explanation import explain_step
from trellis_ops.lm.decode.packing import known_weights
from trellis_ops.lm.features import StateKind
from trellis_ops.lm.state import AnyLayerState, TrellisState
from trellis_ops.lm.vocabulary import embedded


class TrellisBlock(GradientCheckpointingLayer, Block):
    """A `Block`, whose forward transformers may run again in the backward."""


class TrellisModel(TrellisPreTrainedModel):
    """Tokens to the normalised output of the last block; see `TrellisForCausalLM`."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = ["lm_head.weight"]

    def __init__(self, config: TrellisHFConfig) -> None:
        super().__init__(config)
        of_lm = config.to_trellis()
        self.kind: StateKind = StateKind.of(of_lm)
        self._decode_weights = WEIGHTS[0]
        self.embedding = nn.Embedding(of_lm.vocab_size, of_lm.width)
        self.blocks = nn.ModuleList(TrellisBlock(of_lm) for _ in range(of_lm.layers))
        self.norm = nn.RMSNorm(of_lm.width, eps=of_lm.norm_eps)
        draw_maps(self, of_lm.layers)
        for block in self._blocks():
            block.mixer.reset_parameters()
        # Read by from_pretrained and, of this module, by the model around it.
        self._keep_in_fp32_modules_strict = gate_names(self.blocks)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another embedding in its place."""
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: TrellisCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: TrellisCache | None = None,
        cache_params: TrellisCache | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Read tokens, going on from a cache or starting sequences; see `TrellisForCausalLM.forward`."""
        given = take_cache({"cache": cache, "past_key_values": past_key_values, "cache_params": cache_params})
        if given is not None:
            require_cache(given, self.kind.config)
        seen = 0 if given is None else given.get_seq_length()
        batch, length = checked_shape(input_ids, inputs_embeds, self.config.hidden_size)
        mask = token_mask(attention_mask, batch, length, seen)
        packed = None
        if mask is None and not seen:
            packed = sample_starts(position_ids, seq_idx, cu_seq_lens_q, batch, length)
        else:
            others = {"seq_idx": seq_idx, "cu_seq_lens_q": cu_seq_lens_q}
            check_unpacked(position_ids, others, mask, batch, length)
        x = self._embedded(input_ids, mask) if inputs_embeds is None else inputs_embeds
        moved = self._cache_to_move(given, use_cache, packed)
        every = _asked(output_hidden_states, self.config.output_hidden_states)
        if moved is None:
            outputs, _ = self._advance(x, mask, None, packed, every=every, return_state=False)
            outputs = tuple(held(each, mask, None) for each in outputs)
        else:
            state = moved.follow(x.device)
            if state is not None and state.fits is not self.kind:
                self.kind.check(state, self._blocks(), x, batch)
            advance = functools.partial(self._advance, packed=None, every=every, return_state=True)
            outputs = moved.read(x, mask, advance)
        x = self.norm(outputs[-1])
        found = {"last_hidden_state": x, CACHE_NAME: moved, "hidden_states": (*outputs[:-1], x) if every else None}
        if _asked(return_dict, self.config.return_dict):
            return BaseModelOutputWithPast(**found)
        return tuple(each for each in found.values() if each is not None)

    def _embedded(self, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        assert input_ids is not None
        # A token of padding may stand behind the vocabulary.
        return embedded(self.embedding, input_ids if mask is None else input_ids.masked_fill(~mask, 0))

    def _cache_to_move(
        self, given: TrellisCache | None, use_cache: bool | None, packed: Tensor | None
    ) -> TrellisCache | None:
        recomputed = self.training and any(block.gradient_checkpointing for block in self._blocks())
        if given is None and _asked(use_cache, self.config.use_cache and not self.training and packed is None):
            given = None if recomputed else TrellisCache(self.config)
        if given is not None and packed is not None:
            problem = "samples packed into one row have no cache; give use_cache=False"
            raise InputError(name="use_cache", problem=problem)
        return given

    def _advance(
        self,
        x: Tensor,
        mask: Tensor | None,
        state: TrellisState | None,
        packed: Tensor | None,
        *,
        every: bool,
        return_state: bool,
    ) -> tuple[tuple[Tensor, ...], TrellisState | None]:
        """The output of the last block, or x and the output of every block, and the state after them."""
        groups = [[block] for block in self._blocks()] if every else [self._blocks()]
        outputs, after = [x] if every else [], None
        layers: list[AnyLayerState] = []
        fused = None if every else functools.partial(fused_blocks, self, self._decode_weights)
        for index, group in enumerate(groups):
            own = state
            if every and state is not None:
                own = TrellisState((state.layers[index],), state.place, state.rule, state.period)
            x, after = read(group, self.kind, x, own, mask, packed, return_state=return_state, fused=fused)
            outputs.append(x)
            layers += [] if after is None else after.layers
        # A step has moved `state` itself, whose tensors kernels hold for the next one.
        return tuple(outputs), self.kind.state(layers, after.place) if every and after is not None else after

    @property
    def decode_weights(self) -> str:
        """The type of the weights of blocks that a token alone reads; see `TrellisLM.decode_weights`."""
        return self._decode_weights

    @decode_weights.setter
    def decode_weights(self, weights: str) -> None:
        self._decode_weights = known_weights(weights)

    def step_parts(self) -> Parts:
        """What a step goes through, for the kernels that stand for it: the blocks."""
        return Parts(self.kind.config, self.blocks, None, (self, self.blocks))

    def first_state(self, batch: int) -> TrellisState:
        """The state before the first token of `batch` sequences."""
        like = self.embedding.weight
        return self.kind.state([block.mixer.first_state(batch, like) for block in self._blocks()], 0)

    def explain_step(self, batch: int = 1) -> str:
        """What the blocks run for one token of `batch` rows: a kernel with its schedule, or why their modules."""
        return explain_step(self, self._decode_weights, batch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrellisModel:
        """Move or cast the model; states that fitted it are looked at again, and what was packed of it is dropped."""
        forget(self)
        super()._apply(fn, recurse)
        self.kind = StateKind.of(self.kind.config)
        return self

    def _blocks(self) -> list[TrellisBlock]:
        return cast("list[TrellisBlock]", list(self.blocks))


class TrellisForCausalLM(TrellisPreTrainedModel, TrellisGeneration, GenerationMixin):
    """The reference language model in transformers; its logits are those of `TrellisLM` with the same weights.

    Args:
        config: sizes, rule and options.

    Example:
        >>> model = TrellisForCausalLM(TrellisHFConfig.from_trellis(TrellisConfig.preset("tiny")))
        >>> model.generate(torch.tensor([list(b"Slots")]), max_new_tokens=3, do_sample=False).shape
        torch.Size([1, 8])
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embedding.weight"}

    def __init__(self, config: TrellisHFConfig) -> None:
        super().__init__(config)
        self.model = TrellisModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        draw_maps(self.lm_head, config.num_hidden_layers)
        self.post_init()

    @property
    def decode_weights(self) -> str:
        """The type of the weights of blocks that a token alone reads; see `TrellisLM.decode_weights`."""
        return self.model.decode_weights

    @decode_weights.setter
    def decode_weights(self, weights: str) -> None:
        self.model.decode_weights = weights

    def explain_step(self, batch: int = 1) -> str:
        """See `TrellisModel.explain_step`; the last norm and `lm_head` are modules."""
        return self.model.explain_step(batch)

    def first_state(self, batch: int) -> TrellisState:
        """The state before the first token of `batch` sequences."""
        return self.model.first_state(batch)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: TrellisState) -> Tensor:
        """Logits `[B, vocab_size]` after one more token `[B]`, moving `state` in place, as `generate` takes a token."""
        cache = TrellisCache.after(self.config, state, 0)
        logits: Tensor = self(tokens[:, None], cache=cache).logits
        assert cache.state is not None
        # Another one where blocks are read one by one, or as modules.
        state.layers, state.place = cache.state.layers, cache.state.place
        return logits[:, 0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: TrellisCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: TrellisCache | None = None,
        cache_params: TrellisCache | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the next token after each token, and the loss of `labels`.

        A row of a batch gives what it gives alone, whatever padding stands before its tokens or after them; a position
        of padding has the logits of the token before it.

        Args:
            input_ids: `[B, T]`, int64.
            attention_mask: `[B, T]`, 1 for tokens and 0 for padding before or after the tokens of a row; or with the
                columns before them of all that the cache has read.
            position_ids, seq_idx, cu_seq_lens_q: where samples begin that were packed into rows; see
                `trellis_ops.hf.inputs.sample_starts`. Beside padding or a cache there are none.
            cache, past_key_values, cache_params: a `TrellisCache` to go on from, which is moved, by any of its names.
            inputs_embeds: embeddings `[B, T, width]` in the place of tokens.
            labels: int64, as many as logits; the token at t is compared with the logits at t - 1, -100 does not count.
            use_cache: whether to return a cache where none is given; None is the configuration's choice outside of
                training.
            output_hidden_states: whether to return the embeddings and what each block made.
            return_dict: whether to return an object rather than a tuple.
            logits_to_keep: only the logits of so many last positions, 0 for all, or those of these positions.
            others: for the loss, as `num_items_in_batch`.

        Raises:
            ShapeError, DtypeError, SizeError, TokenError, MaskError: tokens, labels or masks that do not fit; a mask
                with padding between tokens.
            InputError: inputs that contradict each other. ForeignCacheError: another cache.
            CacheUseError, StateError, ShapeError, DtypeError, DeviceMismatchError: a cache of another model.
            GradientError: a gradient is wanted from inside a chunk.
        """
        given = take_cache({"cache": cache, "past_key_values": past_key_values, "cache_params": cache_params})
        check_kept(labels, logits_to_keep, input_ids if inputs_embeds is None else inputs_embeds)
        if isinstance(given, TrellisCache) and isinstance(logits_to_keep, int):
            given.allow_crop(logits_to_keep)
        read = self.model(
            input_ids,
            attention_mask,
            position_ids,
            given,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            cu_seq_lens_q=cu_seq_lens_q,
            seq_idx=seq_idx,
            return_dict=True,
        )
        logits = self.lm_head(kept(read.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others)
        found = {"loss": loss, "logits": logits, CACHE_NAME: read.get(CACHE_NAME), "hidden_states": read.hidden_states}
        if _asked(return_dict, self.config.return_dict):
            return CausalLMOutputWithPast(**found)
        return tuple(each for each in found.values() if each is not None)


def _asked(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given
