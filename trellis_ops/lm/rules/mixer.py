"""The token mixer of any rule: what the rule takes beside q, k and v, and its memories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.rules.generic import is_linear_in_v, sources
from trellis_ops.lm.rules.inputs import FEATURES, UNIT_FEATURES, RuleInputs, Tensors
from trellis_ops.lm.rules.named import rule_inputs
from trellis_ops.lm.rules.preparations import OFFSETS
from trellis_ops.lm.rules.source import Projection, as_is
from trellis_ops.lm.sequences import Layout, Pooled
from trellis_ops.lm.sequences.parts import Index, Steps
from trellis_ops.lm.state.layer_state import RuleLayerState, state_dtype, wide
from trellis_ops.lm.token_mixer import TokenMixer, keep_start, put_rows, started
from trellis_ops.memory import memory_attention, memory_step
from trellis_ops.memory_states import chunk_start

Shapes = dict[str, tuple[int, ...]]

_FIRST_VALUES = (0.0, 0.0, -math.inf)
"""Of memories, of what is kept from a chunk's start, and of what preparations carry, before the first token."""


class RuleMixer(TokenMixer[RuleLayerState]):
    """Mixes tokens through the memory of any rule, `[B, T, width]` to `[B, T, width]`."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the taps and the first state; set gates and step sizes to where they start."""
        super().reset_parameters()
        for each in self.made.values():
            cast("Projection", each).reset_parameters()
        for first in self.first.values():
            first.normal_(std=first.shape[-1] ** -0.5)

    def gates(self) -> list[nn.Module | nn.Parameter]:
        """What makes each tensor of the rule that has not the type of q."""
        return [each for each in self.made.values() if not cast("Projection", each).source.is_input]

    def first_state(self, batch: int, like: Tensor) -> RuleLayerState:
        """The state before the first token, on the device of `like` and with its type for the convolutions' tail."""
        memories, starts, prepared = (
            {name: like.new_full(shape, value, dtype=state_dtype(like.dtype)) for name, shape in group.items()}
            for group, value in zip(_state_groups(self.config, batch), _FIRST_VALUES, strict=True)
        )
        memories |= {name: each.clone() for name, each in self._first_memories(batch).items()}
        return RuleLayerState(memories, starts, prepared, like.new_zeros(_tail(self.config, batch)))

    def state_shapes(self, batch: int) -> Shapes:
        """The tensors of a layer's state by name, with their shapes."""
        return rule_state_shapes(self.config, batch)

    def carried(self, state: RuleLayerState) -> dict[str, Tensor]:
        """The memories, what the preparation carries, and the tail."""
        return {**state.memories, **state.prepared, "tail": state.tail}

    def restored(self, tensors: Mapping[str, Tensor]) -> RuleLayerState:
        """The state at the start of a chunk that `carried` took apart."""
        memories = {name: tensors[name] for name in states(self.rule)}
        prepared = {name: tensors[name] for name in self.inputs.prepared}
        return RuleLayerState(memories, self._starts(memories), prepared, tensors["tail"])

    def has_length_one(self) -> tuple[bool, bool]:
        """Whether q and k, and whether v, are divided by their length as soon as they are made."""
        normalize = self.config.normalize_qkv
        # Those of other features are divided by their length behind them.
        return normalize and FEATURES[self.inputs.features] is as_is, normalize and not self._is_linear_in_v

    def _add_inputs(self) -> None:
        config = self.config
        assert config.rule is not None
        self.rule: Rule = config.record
        self.inputs: RuleInputs = rule_inputs(config.rule)
        # Looked up once, as torch.compile would follow how a rule's program is made.
        self._start_names = tuple(used_chunk_states(self.rule, True)) if config.keeps_starts else ()
        self._sizes = _sizes(config)
        self._is_linear_in_v = is_linear_in_v(self.rule)
        self._per_head = {each.name for each in tensors(self.rule) if each.per == HEAD}
        needed = sources(self.rule, self.inputs, config.init_decay, config.init_step_size)
        self.made = nn.ModuleDict(
            {name: Projection(each, config.width, config.heads, self._sizes) for name, each in needed.items()}
        )
        learned = [name for name in states(self.rule) if name.startswith("S")]
        shapes = {name: (config.heads, *(self._sizes[axis] for axis in states(self.rule)[name])) for name in learned}
        self.first = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()} if config.starts_learned else {}
        )

    def _mix_alone(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        start = self.first_state(layout.batch, x)
        made = self._made(x, q, k, v, start.prepared, layout)
        first = start.memories if self.first else None
        y, _ = self._attend(made, first, self._offsets(layout), return_memories=False)
        return self.inputs.finish(y, made)

    def _mix_one(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: RuleLayerState, begins: bool | Tensor
    ) -> Tensor:
        made = self._made(x, q, k, v, state.prepared)
        for name, tensor in state.prepared.items():
            tensor.copy_(made[name])
        y = [self._step(made, (slice(None), t), state, begins) for t in range(self.inputs.substeps)]
        return self.inputs.finish(torch.stack(y, 1), made)[:, 0]

    def _mix_pooled(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, pools: Mapping[str, Tensor], sequences: Pooled
    ) -> Tensor:
        prepared = {name: sequences.load(pools[name], _FIRST_VALUES[-1]) for name in self.inputs.prepared}
        made = self._made(x, q, k, v, prepared, sequences.layout)
        for name in prepared:
            sequences.store(pools[name], made[name])
        substeps, offsets = self.inputs.substeps, self._offsets(sequences.layout)
        memories = tuple(pools[name] for name in states(self.rule))
        rest: dict[str, Any] = {
            "rule": self.rule,
            "chunk_state": tuple(pools[name] for name in self._start_names) or None,
            "chunk_size": self.config.chunk if self._start_names else 1,
            "state_indices": sequences.state_indices,
            "positions": sequences.positions if substeps == 1 else sequences.positions * substeps,
            "first_state": self._first_state() if self.first and sequences.fresh is not None else None,
        }
        if offsets is None and substeps == 1:
            given = self._arguments(self._each(made, (slice(None), 0)))
            return self.inputs.finish(memory_step(**given, state=memories, **rest).unsqueeze(1), made)
        y, _ = memory_attention(**self._arguments(made), initial_state=memories, cu_seqlens=offsets, **rest)
        return self.inputs.finish(y, made)

    def _carry(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: RuleLayerState, layout: Layout) -> Tensor:
        """y `[B, T, H, D_v]` of pieces of sequences, moving `state`.

        Three parts: tokens one by one to the end of the chunk that a row is in, whole chunks at once, and the rest,
        whose start states are kept because its chunk may go on; one by one too, where they are sums of its writes.
        """
        made = self._made(x, q, k, v, state.prepared, layout)
        state.prepared = {name: made[name] for name in state.prepared}
        if not self.config.keeps_starts:
            return self.inputs.finish(self._attend_and_move(made, state, self._offsets(layout)), made)
        stepwise = any(name.startswith("A") for name in state.starts)
        found: list[Tensor] = []
        for part in layout.parts(stepwise):
            if isinstance(part, Steps):
                found += [layout.as_tokens(y) for y in self._step_each(made, state, part)]
                continue
            self._keep_starts(state, part.begins)
            found.append(self._attend_and_move(self._each(made, part.tokens), state, part.cu_seqlens))
        return self.inputs.finish(layout.joined(found, stepwise), made)

    def _step_each(self, made: Tensors, state: RuleLayerState, steps: Steps) -> list[Tensor]:
        rows = steps.rows
        part = state if rows is None else state.each(lambda tensor: tensor.index_select(0, rows))
        begins = [steps.begins, *(False for _ in steps.tokens[1:])]
        pairs = zip(steps.tokens, begins, strict=True)
        found = [self._step(made, index, part, first) for index, first in pairs]
        if rows is not None:
            put_rows(state, rows, part)
        return found

    def _keep_starts(self, state: RuleLayerState, begins: bool | Tensor) -> None:
        """Keep what is read from the start of a chunk in rows where one begins now."""
        if begins is False:
            return
        now = self._starts(state.memories)
        if isinstance(begins, Tensor):
            now = {name: started(state.starts[name], each, begins) for name, each in now.items()}
        state.starts = now

    def _made(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, prepared: Mapping[str, Tensor], layout: Layout | None = None
    ) -> Tensors:
        """All tensors of the rule by name, and what the preparation carries on; x is `[B, T, width]`."""
        features = FEATURES[self.inputs.features]
        q, k = features(q), features(k)
        unit_keys, _ = self.has_length_one()
        if self.config.normalize_qkv and self.inputs.features in UNIT_FEATURES and not unit_keys:
            q, k = self._unit(q), self._unit(k)
        made: Tensors = {"q": q, "k": k, "v": v, **prepared}
        made |= {name: each(x) for name, each in self.made.items()}
        made |= self._prepared(made, layout)
        # Under autocast some of these are wider than others; the operators want one type for all inputs.
        inputs = {each.name for each in tensors(self.rule) if each.is_input}
        return {name: each.to(v.dtype) if name in inputs else each for name, each in made.items()}

    def _prepared(self, made: Tensors, layout: Layout | None) -> Tensors:
        """What the preparation makes; one that carries something from token to token is told of packed sequences."""
        packed = None if layout is None else layout.cu_seqlens
        return self.inputs.make(made if packed is None or not self.inputs.prepared else {**made, OFFSETS: packed})

    def _offsets(self, layout: Layout) -> Tensor | None:
        """Of packed sequences, in tokens of the rule."""
        return None if layout.cu_seqlens is None else layout.cu_seqlens * self.inputs.substeps

    def _arguments(self, made: Tensors) -> dict[str, Any]:
        """Of a call of the operators: the tensors of the rule, those that are one left out."""
        given: dict[str, Any] = {each.name: made[each.name] for each in tensors(self.rule) if each.name in made}
        if self.rule.erase:
            given["erase"] = given.pop("erase_a"), given.pop("erase_b")
        return given

    def _each(self, made: Tensors, index: Index) -> Tensors:
        """The tokens at `index` of the rule's tensors; what a head has holds for all of them."""
        given = {each.name for each in tensors(self.rule)} & made.keys()
        return {name: made[name] if name in self._per_head else made[name][index] for name in given}

    def _attend_and_move(self, made: Tensors, state: RuleLayerState, cu_seqlens: Tensor | None) -> Tensor:
        y, state.memories = self._attend(made, state.memories, cu_seqlens, return_memories=True)
        return y

    def _attend(
        self, made: Tensors, first: Tensors | None, cu_seqlens: Tensor | None, *, return_memories: bool
    ) -> tuple[Tensor, Tensors]:
        y, after = memory_attention(
            **self._arguments(made),
            rule=self.rule,
            chunk_size=self.config.chunk,
            initial_state=None if first is None else tuple(first[name] for name in states(self.rule)),
            output_final_state=return_memories,
            cu_seqlens=cu_seqlens,
            outer_gradient=self.config.outer_gradient,
        )
        return y, {} if after is None else dict(zip(states(self.rule), after, strict=True))

    def _step(self, made: Tensors, index: Index, state: RuleLayerState, begins: bool | Tensor) -> Tensor:
        """y `[B, H, D_v]` of one token, moving the tensors of `state` in place."""
        if state.starts and begins is not False:
            for name, tensor in self._starts(state.memories).items():
                keep_start(state.starts[name], tensor, begins)
        return memory_step(
            **self._arguments(self._each(made, index)),
            rule=self.rule,
            state=tuple(state.memories[name] for name in states(self.rule)),
            chunk_state=tuple(state.starts.values()) if state.starts else None,
        )

    def _starts(self, memories: Tensors) -> Tensors:
        """What is kept from the start of a chunk that begins at `memories`."""
        if not self._start_names:
            return {}
        found = chunk_start(self.rule, tuple(memories[name] for name in states(self.rule)))
        return dict(zip(self._start_names, found, strict=True))

    def _first_state(self) -> tuple[Tensor, ...]:
        """The memories of one sequence before its first token, without an axis of sequences."""
        first = self.first_state(1, self.to_v.weight)
        return tuple(memory[0] for memory in first.memories.values())

    def _first_memories(self, batch: int) -> Tensors:
        """The memories that start from a parameter."""
        wider = {name: wide(each) for name, each in self.first.items()}
        return {name: each.expand(batch, *each.shape) for name, each in wider.items()}


def rule_state_shapes(config: TrellisConfig, batch: int) -> Shapes:
    """The tensors that a layer of a rule carries by name, with their shapes; of a resolved configuration."""
    memories, starts, prepared = _state_groups(config, batch)
    return {**memories, **starts, **prepared, "tail": _tail(config, batch)}


def _state_groups(config: TrellisConfig, batch: int) -> tuple[Shapes, Shapes, Shapes]:
    """Shapes of the memories, of what is kept from a chunk's start, and of what the preparation carries."""
    assert config.rule is not None
    rule, sizes = config.record, _sizes(config)
    groups = (
        states(rule),
        used_chunk_states(rule, True) if config.keeps_starts else {},
        rule_inputs(config.rule).prepared,
    )
    memories, starts, prepared = (
        {name: (batch, config.heads, *(sizes[axis] for axis in axes)) for name, axes in group.items()}
        for group in groups
    )
    return memories, starts, prepared


def _sizes(config: TrellisConfig) -> dict[str, int]:
    dim_k, dim_v = config.key_width // config.heads, config.value_width // config.heads
    return {"dim_k": dim_k, "dim_v": dim_v, "slots": config.slots, "window": config.record.window - 1}


def _tail(config: TrellisConfig, batch: int) -> tuple[int, ...]:
    return batch, config.conv_width - 1, config.key_width
