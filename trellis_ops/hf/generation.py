"""What `generate` needs beside a forward: a cache of this project, and no token that is read twice or left out."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from trellis_ops.hf.cache.names import CACHE_NAME, take_cache
from trellis_ops.hf.cache.state import TrellisCache, require_cache
from trellis_ops.hf.cache.stored import stored_cache
from trellis_ops.hf.errors import CacheUseError, InputError
from trellis_ops.lm.sequences.arranged import checked_mask, mask_of_bools
from trellis_ops.lm.state.prefixes import PrefixStore
from trellis_ops.lm.state.rollback import require_rollback

_OWN_CACHES = (None, "dynamic", "dynamic_full")
"""Values of `cache_implementation` that ask for no cache but the model's own."""


class TrellisGeneration(GenerationMixin):
    """`generate` with a `TrellisCache`: greedy, sampled, by beams, assisted, in pieces, or going on from a cache."""

    def generate(self, *arguments: Any, prefix_store: PrefixStore | None = None, **others: Any) -> Any:
        """See `GenerationMixin.generate`; the cache may be given by any of its names.

        Args:
            arguments, others: as there.
            prefix_store: where the states of prompts are found and kept, see `trellis_ops.serve.store`; each row goes
                on from its longest stored prefix. It excludes a cache and padding.

        Raises:
            InputError: `prefix_store` beside one of them, or for something other than `input_ids`.
            MaskError: a prompt without a token, or with padding between its tokens.
            CacheUseError: a cache of other rows, or one that this search cannot go on from.
            RollbackError: assisted decoding with a model that reads other pieces of a text as another text.
        """
        cache = take_cache(others)
        if prefix_store is not None:
            cache = self._stored(prefix_store, cache, arguments, others)
        return super().generate(*arguments, **others, **({} if cache is None else {CACHE_NAME: cache}))

    def _stored(
        self, store: PrefixStore, cache: Any, arguments: tuple[Any, ...], others: dict[str, Any]
    ) -> TrellisCache:
        mask = others.get("attention_mask")
        if cache is not None or (mask is not None and not bool(mask.all())):
            what = "padding" if cache is None else "a cache"
            problem = f"a store knows whole prompts from their beginning; leave out {what}, or the store"
            raise InputError(name="prefix_store", problem=problem)
        given = (*arguments[:1], others.get("inputs"), others.get("input_ids"))
        prompt = next((each for each in given if each is not None), None)
        return stored_cache(self.model, self.config, prompt, store)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        *arguments: Any,
        **others: Any,
    ) -> None:
        asked = generation_config.cache_implementation
        if asked not in _OWN_CACHES:
            advice = "leave it out: a state of constant size needs no other cache"
            problem = f"cache_implementation={asked!r} is for keys and values that grow"
            raise CacheUseError(problem=problem, advice=advice)
        cache = model_kwargs.get(CACHE_NAME)
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            require_rollback(self.config.to_trellis())
        if cache is None or (isinstance(cache, TrellisCache) and not cache.get_seq_length()):
            _check_prompts(model_kwargs.get("attention_mask"), batch_size)
        if cache is not None:
            require_cache(cache, self.model.kind.config)
            _check_rows(cache, batch_size, generation_config)
            self._check_warm(cache, generation_mode)
            cache._is_user_defined = True
        elif generation_config.use_cache is not False:
            cache = model_kwargs[CACHE_NAME] = TrellisCache(self.config)
        if cache is not None and getattr(generation_config, "is_assistant", False):
            cache.activate_past_recording()

    def _check_warm(self, cache: TrellisCache, generation_mode: GenerationMode) -> None:
        # transformers feeds the whole prompt to a cache that has read it, where it checks candidates.
        if generation_mode == GenerationMode.ASSISTED_GENERATION and cache.get_seq_length():
            advice = "give the prompt without the cache, or generate without assistance"
            raise CacheUseError(problem="assisted decoding cannot go on from a cache", advice=advice)

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *arguments: Any,
        **others: Any,
    ) -> Any:
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length():
            _check_unread(input_ids, generation_config, model_kwargs, cache)
            times, rest = divmod(input_ids.shape[0], cache.batch_size)
            if times > 1 and not rest:
                # Rows of a prompt stand side by side in beams, and the cache was made of the prompt.
                cache.batch_repeat_interleave(times)
            if CACHE_NAME != "cache" and generation_config.prefill_chunk_size is not None:
                # Versions with the older name feed what was read again, where they feed in pieces.
                generation_config = copy.copy(generation_config)
                generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, model_kwargs, *arguments, **others)


def _check_prompts(mask: Tensor | None, batch_size: int) -> None:
    """Raise where a prompt has no token, as what follows nothing is no text, or where padding stands in it.

    Pieces of a prompt would not show it.

    Args:
        mask: `[B * n, T]`, n rows side by side for each of the `batch_size` = B prompts; None for no padding.
    """
    if mask is not None and mask.ndim == 2:
        of_prompts = mask_of_bools(mask[:: max(1, mask.shape[0] // batch_size)])
        checked_mask(of_prompts, *of_prompts.shape)


def _check_rows(cache: TrellisCache, batch_size: int, generation_config: GenerationConfig) -> None:
    """Raise unless a cache that has read something has a row for each prompt, or for each row of the search."""
    several = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    if cache.is_initialized and cache.batch_size not in (batch_size, batch_size * several):
        advice = "its batch_repeat_interleave and batch_select_indices make one for each prompt"
        raise CacheUseError(problem=f"the cache has {cache.batch_size} rows for {batch_size} prompts", advice=advice)


def _check_unread(
    input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any], cache: TrellisCache
) -> None:
    """Raise unless the prompt goes on where the cache ends; transformers would read all of it again."""
    mask = model_kwargs.get("attention_mask")
    length = getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1]
    given = input_ids.shape[1]
    if "inputs_embeds" in model_kwargs and model_kwargs["inputs_embeds"] is not None:
        given = length = model_kwargs["inputs_embeds"].shape[1]
    if length == given and given <= cache.get_seq_length():
        problem = f"the cache has read {cache.get_seq_length()} positions, and the prompt has {given}"
        advice = "give the whole text with at least one more token, or the new tokens with the mask of the whole text"
        raise CacheUseError(problem=problem, advice=advice)
