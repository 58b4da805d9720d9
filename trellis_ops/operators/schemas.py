"""The arguments of the registered operators: tensors as `codegen.kernels.signatures` declares them, then settings.

Schemas, those of the reverse passes, and the names of results follow. No setting has a default: torch leaves out
arguments that equal one, and defaults are for the public functions to have.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from codegen.kernels.arguments import IN_PLACE, WRITTEN, Argument
from codegen.kernels.signatures import MOVES_STATES, operator_arguments
from codegen.rule import Rule
from codegen.spec import Problem, Spec

_OF_RULE = {each.name: str(each.type) for each in fields(Rule)}
_SETTINGS = {**_OF_RULE, "chunk_size": "int", "outer_gradient": "str", "transpose": "bool", "implementation": "str?"}
"""The type of every setting, as a schema has it."""


@dataclass(frozen=True)
class TensorArgument:
    """A tensor that a registered operator takes.

    Attributes:
        name: as the signatures call it.
        optional: whether it may be None.
        mutated: whether the schema says that it is written.
        public: what users call it.
    """

    name: str
    optional: bool
    mutated: bool
    public: str


@dataclass(frozen=True)
class Call:
    """The arguments of one call by name.

    Attributes:
        tensors: in the order of the schema; None where the call has none.
        settings: in the order of the schema, without the implementation.
        implementation: which is forced; None for the best that is known.
    """

    tensors: dict[str, Any]
    settings: dict[str, Any]
    implementation: str | None

    @property
    def rule(self) -> Rule:
        """The rule that the settings are those of."""
        return Rule(**{name: value for name, value in self.settings.items() if name in _OF_RULE})


@dataclass(frozen=True)
class Operator:
    """A registered operator.

    Attributes:
        name: `trellis_ops::name`, as torch knows it.
        function: the public function that it serves.
        serves: the operators of `signatures.OPERATORS` that it may be compiled as.
        settings: its settings in order, but for the implementation, which every operator has.
        seen_as: what users call a tensor, where that is another name.
        packed: whether it takes the offsets of packed sequences.
        keeps: whether it returns, besides its results, what its reverse pass reads again.
        said_to_move: arguments that it only reads, and whose schema says that they are written.
    """

    name: str
    function: str
    serves: tuple[str, ...]
    settings: tuple[str, ...]
    seen_as: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False
    keeps: bool = False
    said_to_move: tuple[str, ...] = ()

    @property
    def moves_states(self) -> bool:
        """Whether states that kernels write in place are arguments that it writes, and no results."""
        return all(name in MOVES_STATES for name in self.serves)

    @functools.cached_property
    def tensors(self) -> tuple[TensorArgument, ...]:
        """Its tensors in order; optional are initial states, and those that not all that it serves have."""
        declared = [{each.name: each for each in _declared(name) if each.access != WRITTEN} for name in self.serves]
        every = {name: argument for arguments in declared for name, argument in arguments.items()}
        found = []
        for name, argument in every.items():
            in_place = argument.access == IN_PLACE
            everywhere = all(name in arguments for arguments in declared)
            optional = not everywhere or (in_place and not self.moves_states)
            mutated = (in_place and self.moves_states) or name in self.said_to_move
            found.append(TensorArgument(name, optional, mutated, self.seen_as.get(name, name)))
        if self.packed:
            found.append(TensorArgument("cu_seqlens", optional=True, mutated=False, public="cu_seqlens"))
        return tuple(found)

    @functools.cached_property
    def results(self) -> tuple[str, ...]:
        """Names of what it returns: all that kernels write, and after it the final states unless it moves them."""
        declared = {each.name: each for name in self.serves for each in _declared(name)}
        written = tuple(name for name, each in declared.items() if each.access == WRITTEN)
        moved = tuple(name for name, each in declared.items() if each.access == IN_PLACE)
        return written if self.moves_states else written + moved

    @functools.cached_property
    def kept(self) -> tuple[str, ...]:
        """Names of what it returns for its reverse pass."""
        if not self.keeps:
            return ()
        written = [each for name in self.serves for each in _declared(name, "backward") if each.access == WRITTEN]
        return tuple(each.name for each in written if each.name not in self.results and each.cotangent_of is None)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Its arguments in order."""
        return (*(each.name for each in self.tensors), *self.settings, "implementation")

    @functools.cached_property
    def reverse_names(self) -> tuple[str, ...]:
        """The arguments of its reverse pass: cotangents, numbers of wanted gradients, tensors, the kept, settings."""
        tensors = (*(each.name for each in self.tensors), *self.kept)
        return (*self._cotangents(), "wanted", *tensors, *self.settings, "implementation")

    @property
    def schema(self) -> str:
        """Its schema, as torch.library takes it."""
        results = ["Tensor"] * len(self.results + self.kept)
        returned = f"({', '.join(results)})" if len(results) > 1 else "Tensor"
        return f"({', '.join(self._tensors() + self._settings())}) -> {returned}"

    @property
    def reverse_schema(self) -> str:
        """The schema of its reverse pass, which returns the wanted gradients in their order."""
        cotangents, kept = ([f"Tensor {name}" for name in names] for names in (self._cotangents(), self.kept))
        arguments = [*cotangents, "int[] wanted", *self._tensors(), *kept, *self._settings()]
        return f"({', '.join(arguments)}) -> Tensor[]"

    def _tensors(self) -> list[str]:
        letters = iter(string.ascii_lowercase)
        return [
            f"Tensor{f'({next(letters)}!)' if each.mutated else ''}{'?' if each.optional else ''} {each.name}"
            for each in self.tensors
        ]

    def _settings(self) -> list[str]:
        return [f"{_SETTINGS[name]} {name}" for name in (*self.settings, "implementation")]

    def _cotangents(self) -> list[str]:
        return [f"d{name}" for name in self.results]

    def names_of(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Names of the arguments that the schema has at these places."""
        return tuple(self.names[number] for number in numbers)

    def call_of(self, arguments: tuple[Any, ...]) -> Call:
        """Its flat arguments by name."""
        return self.call_of_named(dict(zip(self.names, arguments, strict=True)))

    def call_of_named(self, named: Mapping[str, Any]) -> Call:
        """The same of arguments by name, and whatever else is among them."""
        tensors = {each.name: named[each.name] for each in self.tensors}
        return Call(tensors, {name: named[name] for name in self.settings}, named["implementation"])


def _declared(operator: str, direction: str = "forward") -> tuple[Argument, ...]:
    return operator_arguments(Spec(Rule(), Problem(operator, direction=direction)))


_OF_INITIAL_STATE = {"S_k": "initial_state's S_k", "S_v": "initial_state's S_v"}
_OF_ATTENTION = ("phi", "link", "out", "phi_eps", "chunk_size", "outer_gradient")

ATTENTION = Operator(
    "attention", "trellis_attention", ("trellis_attention",), _OF_ATTENTION, _OF_INITIAL_STATE, packed=True
)
ATTENTION_KEPT = Operator(
    "attention_kept",
    "trellis_attention",
    ("trellis_attention",),
    _OF_ATTENTION,
    _OF_INITIAL_STATE,
    packed=True,
    keeps=True,
)
UPDATE = Operator(
    "update", "memory_update", ("memory_update",), ("phi", "phi_eps", "chunk_size"), {"S": "initial_state"}
)
READOUT = Operator(
    "readout", "memory_readout", ("memory_readout", "memory_readout_transposed"), ("chunk_size", "transpose")
)
# G_k and G_v are only read, and yet declared as written: Inductor takes a copy of a graph input for the input itself,
# though an operator writes it. Seen with torch 2.13 (`remove_noop_ops` in torch/_inductor/fx_passes/post_grad.py), and
# reported of 2.14 as pytorch/pytorch#198131 and #198031. This gives y = x + 2 s and g = 2 s, not x + s and s:
#
#     @torch.library.custom_op("demo::move", mutates_args=("s",))
#     def move(x: Tensor, s: Tensor, g: Tensor) -> Tensor:
#         s.mul_(2.0)
#         return x + g
#
#     move.register_fake(lambda x, s, g: torch.empty_like(x))
#
#     @torch.compile
#     def f(x, s, g):
#         assert s.shape[0] == 4  # makes s the first input, so that its new value is stored before g reads the old one
#         g.copy_(s)
#         return move(x, s, g)  # runs as move(x, s, s)
#
# Two arguments that are both written it never gives the same memory, and stores each from what the operator left.
STEP = Operator(
    "step",
    "trellis_step",
    ("trellis_step", "trellis_step_chunked"),
    ("phi", "link", "out", "phi_eps"),
    {"G_k": "gradient_state's S_k", "G_v": "gradient_state's S_v"},
    said_to_move=("G_k", "G_v"),
)
OPERATORS = (ATTENTION, ATTENTION_KEPT, UPDATE, READOUT, STEP)
"""Every registered operator that is no reverse pass."""
