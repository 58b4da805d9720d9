"""The state of a model as transformers' `Cache`: of constant size, and moved as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from trellis_ops.hf.cache.past import Past
from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.errors import CacheUseError, ForeignCacheError
from trellis_ops.hf.inputs import held
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.state import AnyLayerState, TrellisState
from trellis_ops.lm.state.rollback import require_rollback

Advance = Callable[[Tensor, Tensor | None, TrellisState | None], tuple[tuple[Tensor, ...], TrellisState | None]]


class TrellisCache(Cache):
    """What a `TrellisForCausalLM` carries from call to call: a `TrellisState` that every forward moves.

    It is given to `forward` and `generate` as `cache`, or by the older names `past_key_values` and `cache_params`.
    `copy.deepcopy` makes one to go on from twice. `crop` takes back tokens once `activate_past_recording` was called,
    which assisted decoding does: they are read again, from a state that was kept, with the next tokens.

    Args:
        config: that of the model.

    Attributes:
        state: the state after all tokens, but for those that a `crop` left to be read again; None before the first.
        last: the last block's output for the last token of each row, `[B, 1, width]`, which a row that a call gives
            padding alone keeps.
    """

    def __init__(self, config: TrellisHFConfig) -> None:
        super().__init__(layers=[TrellisCacheLayer(self, index) for index in range(config.num_hidden_layers)])
        self.state: TrellisState | None = None
        self.last: Tensor | None = None
        self.past: Past | None = None
        self._of_lm = config.to_trellis()
        self._replayed = max(self._of_lm.chunk, 64)
        self._seen = 0

    @classmethod
    def after(cls, config: TrellisHFConfig, state: TrellisState | None, count: int) -> TrellisCache:
        """That of a state which holds the first `count` tokens of every row; it is moved by the first token alone."""
        made = cls(config)
        made.state, made._seen = state, count
        return made

    def check_model(self, config: TrellisConfig) -> None:
        """Raise unless it was made for a model whose states are of the same kind as those of `config`.

        Raises:
            CacheUseError: what differs, by name.
        """
        if self._of_lm is config or self._of_lm == config:
            return
        for name, found, expected in zip(_OF_A_STATE, _kind(self._of_lm), _kind(config), strict=True):
            if found != expected:
                problem = f"the cache is of another model, with {name} {found!r} in the place of {expected!r}"
                raise CacheUseError(problem=problem, advice="leave it out to start one")
        self._of_lm = config

    def follow(self, device: torch.device) -> TrellisState | None:
        """The state before the next token, on a device where all of the cache is moved."""
        if self.state is not None and self.state.layers[0].tail.device != device:
            self.to(device)
        return self.state

    def read(self, x: Tensor, mask: Tensor | None, advance: Advance) -> tuple[Tensor, ...]:
        """What `advance` makes of more positions, moving the state; where it raises, the cache is left as it was.

        Args:
            x: embeddings, `[B, T, width]`.
            mask: which of them are tokens, `[B, T]` bool; None for all.
            advance: makes of such inputs and the state before them outputs, `[B, T, width]` each, and the state after.
        """
        before = self.state, self.last, None if self.past is None else self.past.copy()
        try:
            return self._read_all(x, mask, advance)
        except BaseException:
            self.state, self.last, self.past = before
            raise

    def _read_all(self, x: Tensor, mask: Tensor | None, advance: Advance) -> tuple[Tensor, ...]:
        again = 0
        if self.past is not None:
            x, mask, again = self.past.begin(x, mask)
        cut = max(0, x.shape[1] - self.past.replayed) if self.past is not None else 0
        parts = [self._read(x[:, :cut], mask if mask is None else mask[:, :cut], advance)] if cut else []
        if self.past is not None:
            if cut:
                self.past.forget()
            self.past.record(self.state, x[:, cut:], mask if mask is None else mask[:, cut:])
        parts.append(self._read(x[:, cut:], mask if mask is None else mask[:, cut:], advance))
        self._seen += x.shape[1] - again
        return tuple(torch.cat(each, 1)[:, again:] for each in zip(*parts, strict=True))

    def _read(self, x: Tensor, mask: Tensor | None, advance: Advance) -> tuple[Tensor, ...]:
        outputs, self.state = advance(x, mask, self.state)
        last = held(outputs[-1], mask, self.last)
        # A copy, so that the outputs of a long text can be freed.
        self.last = last[:, -1:].clone()
        return (*(held(each, mask, None) for each in outputs[:-1]), last)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions were read, padding included: what `generate` need not feed again."""
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: a state reads any number of tokens."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of a mask over all positions."""
        return self._seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether anything was read."""
        return self._seen > 0

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first token."""
        return -1 if self.state is None else self.state.batch

    @property
    def is_initialized(self) -> bool:
        """Whether there is a state."""
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        """False: `generate` compiles no forward around a cache whose positions are numbers of Python."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can take back tokens."""
        return self.past is not None

    @property
    def is_sliding(self) -> list[bool]:
        """Of no layer."""
        return [False] * len(self.layers)

    @property
    def is_linear(self) -> list[bool]:
        """False, unlike layers of transformers with a state: these know how many positions they have read."""
        return [False] * len(self.layers)

    def nbytes(self) -> int:
        """Bytes of the state, 0 before the first token."""
        return 0 if self.state is None else self.state.nbytes()

    def activate_past_recording(self) -> None:
        """Keep what `crop` needs from now on: a second state and the inputs since, at least `C` and 64 tokens.

        Raises:
            RollbackError: the model reads other pieces of a text as another text.
        """
        require_rollback(self._of_lm)
        if self.past is None:
            self.past = Past(self._replayed)

    def allow_crop(self, count: int) -> None:
        """Keep what taking back `count` positions needs, where anything is recorded."""
        if self.past is not None:
            self.past.replayed = max(self.past.replayed, count)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` positions; 0 says that none so far will be taken back.

        Raises:
            CacheUseError: a positive number, more than was recorded, or no recording.
        """
        if self.past is None:
            advice = "call activate_past_recording() before the tokens that may be taken back"
            raise CacheUseError(problem="crop takes back tokens that this cache has not recorded", advice=advice)
        if tokens_to_remove > 0:
            advice = "give minus the number of tokens to take back"
            raise CacheUseError(problem=f"crop was given {tokens_to_remove}", advice=advice)
        if tokens_to_remove < 0:
            self.state = self.past.crop(-tokens_to_remove)
            self._seen += tokens_to_remove
        else:
            self.past.forget()

    def reset(self) -> None:
        """Forget all tokens."""
        self.state, self.last, self._seen = None, None, 0
        if self.past is not None:
            self.past = Past(self._replayed)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put row `beam_idx[i]` into row i, as beam search goes on."""
        self._rows(lambda state: state.reorder(beam_idx.long()), lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, in a row."""
        self._rows(lambda state: state.repeat(repeats), lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._rows(lambda state: state.select(indices.long()), lambda x: x.index_select(0, indices.to(x.device)))

    def to(self, device: torch.device | str) -> TrellisCache:
        """Move the tensors to a device; the same cache."""
        self._rows(lambda state: state.to(device), lambda x: x.to(device))
        return self

    def offload(self, layer_idx: int = 0, only_non_sliding: bool = True) -> None:
        """Move the tensors of all layers to the CPU, until `prefetch` or the next forward brings them back."""
        self.to("cpu")

    def prefetch(self, layer_idx: int = 0, only_non_sliding: bool = True) -> None:
        """Nothing: the next forward brings the tensors to the device of the model."""

    def _rows(self, of_state: Callable[[TrellisState], TrellisState], of_tensor: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = of_state(self.state)
        if self.last is not None:
            self.last = of_tensor(self.last)
        if self.past is not None:
            self.past.rows(of_state, of_tensor)


class TrellisCacheLayer(LinearAttentionCacheLayerMixin, CacheLayerMixin):
    """One layer of a `TrellisCache` as transformers looks at it; it is moved with all others, by the cache."""

    is_compileable = False
    is_croppable = False

    def __init__(self, cache: TrellisCache, index: int) -> None:
        super().__init__()
        self._cache = cache
        self._index = index

    @property
    def state(self) -> AnyLayerState | None:
        """The layer's part of the state."""
        return None if self._cache.state is None else self._cache.state.layers[self._index]

    def get_seq_length(self) -> int:
        """See `TrellisCache.get_seq_length`."""
        return self._cache.get_seq_length()

    def get_max_length(self) -> int:
        """See `TrellisCache.get_max_length`."""
        return self._cache.get_max_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See `TrellisCache.get_mask_sizes`."""
        return self._cache.get_mask_sizes(query_length)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        advice = "call the method of the cache, and let the model's forward move it"
        raise CacheUseError(problem="a layer of a TrellisCache is not moved by itself", advice=advice)

    lazy_initialization = update = update_conv_state = update_recurrent_state = _refuse
    reset = reorder_cache = batch_repeat_interleave = batch_select_indices = crop = offload = prefetch = _refuse


def require_cache(cache: object, config: TrellisConfig) -> None:
    """Raise unless it is a `TrellisCache` for a model of this configuration.

    Raises:
        ForeignCacheError: another cache. CacheUseError: that of another model.
    """
    if not isinstance(cache, TrellisCache):
        raise ForeignCacheError(kind=type(cache).__name__)
    cache.check_model(config)


_OF_A_STATE = ("layers", "chunk_size", "decode", "rule")
"""What tells states apart that may have the same shapes."""


def _kind(config: TrellisConfig) -> tuple[object, ...]:
    return config.layers, config.chunk, config.decode, config.record.key()
