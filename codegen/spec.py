"""What is computed, on what: Problem, Spec, and the one shape bucket that tuning and lookup share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from codegen.errors import DtypeError, SizeError, SpecKeyError, UnknownKernelError
from codegen.input_maps import InputMaps, input_maps_of_key
from codegen.layer import Layer, layer_of_key
from codegen.rule import STEP_SIZES, Rule
from codegen.rule_text import rule_of_key
from codegen.scalars import is_symbolic, whole_number

OPERATORS = (
    "trellis_attention",
    "memory_update",
    "memory_readout",
    "memory_readout_transposed",
    "trellis_step",
    "trellis_step_chunked",
)
"""The operators a spec can name.

`memory_readout` is o = S q, `memory_readout_transposed` is y = S^T r. `trellis_step` takes the inner gradient at the
current state (C = 1), `trellis_step_chunked` at chunk-start states that the caller keeps.
"""

CHUNKED_STEP = "memory_step_chunked"
POOL_OPERATOR = "memory_pool"
FAMILY_OPERATORS = ("memory_attention", "memory_step", CHUNKED_STEP, POOL_OPERATOR)
"""The operators of any rule, of as many tensors and states as its record says; those above are TRELLIS'.

A rule of one pass has as many slots as D_v. `memory_pool` moves states in a pool by the next tokens of each row.
"""

BLOCK_STEP, LOGITS_STEP = _WHOLE = ("block_step", "logits_step")
"""A decode step of a whole block of TRELLIS, in place, and of what makes logits of the last one: a norm and a map."""

NORM_STEP, MIXER_STEP, SWIGLU_STEP = BETWEEN_OPERATORS = ("norm_step", "mixer_step", "swiglu_step")
"""What stands between the matrix products of a block in a decode step whose products are torch's: a norm, all of the
token mixer from its projections to its output map, the product in a SwiGLU."""

LAYER_OPERATORS = (*_WHOLE, *BETWEEN_OPERATORS)
"""The operators of a block's decode step, and of parts of it, whose problems have a layer."""

INPUT_OPERATORS = ("memory_inputs", "memory_inputs_backward")
ROW_OPERATORS = ("swiglu_gate", "swiglu_gate_backward", "rms_norm", "rms_norm_backward", "add_rms_norm")
"""Their rows have no heads: H is how many numbers a row has."""

GLUE_OPERATORS = (*INPUT_OPERATORS, "gated_norm", "gated_norm_backward", *ROW_OPERATORS)
"""What stands between the products of a block for many tokens, on CPUs, with reverse passes."""

_ALL_OPERATORS = (*OPERATORS, *FAMILY_OPERATORS, *LAYER_OPERATORS, *GLUE_OPERATORS)

DIRECTIONS = ("forward", "backward", "backward_first_order")
"""`backward` is the gradient of the forward, `backward_first_order` the one that treats z as a constant inside u; both
include a forward that keeps what they need."""

DTYPES = ("float32", "bfloat16", "float16")
MAX_DIM = 256
MAX_SLOTS = 256
_SIZES = (
    *(("dim_k", MAX_DIM), ("dim_v", MAX_DIM), ("slots", MAX_SLOTS)),
    *((name, None) for name in ("batch", "tokens", "heads", "chunk")),
)
"""The fields of a problem that are numbers, each with the most that it may be."""

CHUNKS_AS_GIVEN = 1024
"""A chunk of up to so many tokens is compiled as it is given, however short the sequences are."""


@dataclass(frozen=True)
class Problem:
    """The sizes and types of one call.

    Attributes:
        operator: one of `OPERATORS`, `FAMILY_OPERATORS`, `LAYER_OPERATORS` or `GLUE_OPERATORS`.
        batch: B. Packed sequences count as B = 1 with `tokens` their total.
        tokens: T; 1 for a decode step.
        heads: H.
        dim_k: D_k, the width of q and k; for a single memory, the width of w.
        dim_v: D_v, the width of v and y; for a single memory, equal to `dim_k`.
        slots: M.
        chunk: C; 1 is the exact recurrence.
        dtype: type of q, k, v, target and y; states and gates are float32.
        direction: one of `DIRECTIONS`.
        layer: what stands around the memories, for `LAYER_OPERATORS` and for no other.
        inputs: how q, k and v come from projections, for `INPUT_OPERATORS` and for no other.

    Raises:
        UnknownKernelError, DtypeError, SizeError: a field outside its range; NumberTypeError: a size that is no int.
    """

    operator: str = "trellis_attention"
    batch: int = 1
    tokens: int = 4096
    heads: int = 8
    dim_k: int = 64
    dim_v: int = 64
    slots: int = 64
    chunk: int = 64
    dtype: str = "float32"
    direction: str = "forward"
    layer: Layer | None = None
    inputs: InputMaps | None = None

    def __post_init__(self) -> None:
        if self.operator not in _ALL_OPERATORS:
            raise UnknownKernelError(name=self.operator, known=", ".join(_ALL_OPERATORS))
        self._check_own("layer", self.operator in LAYER_OPERATORS, "a Layer")
        self._check_own("inputs", self.operator in INPUT_OPERATORS, "InputMaps")
        if self.direction not in DIRECTIONS:
            raise UnknownKernelError(name=self.direction, known=", ".join(DIRECTIONS))
        if self.dtype not in DTYPES:
            raise DtypeError(name="problem", dtype=self.dtype, expected=" or ".join(DTYPES))
        for name, most in _SIZES:
            value = getattr(self, name)
            # A symbolic size that were made an int would have torch.compile compile again for every other one.
            if not is_symbolic(value):
                object.__setattr__(self, name, whole_number(name, value, most))

    def _check_own(self, name: str, has: bool, expected: str) -> None:
        value = getattr(self, name)
        if has != (value is not None):
            raise SizeError(name=f"{name} of {self.operator}", value=value, expected=expected if has else "None")

    def key(self) -> str:
        """Stable text key."""
        own = "".join(f"/{each.key()}" for each in (self.layer, self.inputs) if each is not None)
        return (
            f"{self.operator}-{self.direction}/B{self.batch}-T{self.tokens}-H{self.heads}"
            f"/Dk{self.dim_k}-Dv{self.dim_v}-M{self.slots}-C{self.chunk}/{self.dtype}{own}"
        )


@dataclass(frozen=True)
class Spec:
    """Rule plus Problem: everything that decides the result of a call.

    Raises:
        TypeError: one of the two is something else.
    """

    rule: Rule
    problem: Problem

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule) or not isinstance(self.problem, Problem):
            raise TypeError(f"a Spec is made of a Rule and a Problem, not of {self.rule!r} and {self.problem!r}")

    def key(self) -> str:
        """Stable text key, the first half of a tuning record's identity."""
        return f"{self.problem.key()}/{self.rule.key()}"


_KEY = re.compile(
    r"(?P<operator>\w+)-(?P<direction>\w+)/B(?P<batch>\d+)-T(?P<tokens>\d+)-H(?P<heads>\d+)"
    r"/Dk(?P<dim_k>\d+)-Dv(?P<dim_v>\d+)-M(?P<slots>\d+)-C(?P<chunk>\d+)/(?P<dtype>\w+)(?:/(?P<layer>W[\w-]+))?"
    r"(?:/(?P<inputs>K[\w-]+))?"
    r"/(?P<rule>\w+\([^()]*\))"
)


_OWN: dict[str, Callable[[str], object]] = {"layer": layer_of_key, "inputs": input_maps_of_key}
"""Fields of a problem that only some operators have, each with what reads its key."""


def spec_of_key(key: str) -> Spec:
    """The spec whose `key()` this is.

    Raises:
        SpecKeyError: it is none of this version.

    Example:
        >>> spec_of_key(Spec(Rule(), Problem(tokens=7)).key()).problem.tokens
        7
    """
    found = _KEY.fullmatch(key) if isinstance(key, str) else None
    try:
        if found is not None:
            given: dict[str, Any] = found.groupdict()
            rule = rule_of_key(given.pop("rule"))
            for name, of_key in _OWN.items():
                own = given.pop(name)
                given |= {} if own is None else {name: of_key(own)}
            numbers = {name: int(value) for name, value in given.items() if isinstance(value, str) and value.isdigit()}
            spec = Spec(rule, Problem(**(given | numbers)))
            if spec.key() == key:
                return spec
    except (KeyError, TypeError, ValueError) as error:
        raise SpecKeyError(key=key, reason=str(error)) from error
    raise SpecKeyError(key=key, reason="it has another form")


def bucket(spec: Spec) -> Spec:
    """The representative of all specs that one tuned schedule serves.

    T is rounded up to a power of two; so is B x H, the number of independent programs, which is all that B and H
    decide about speed; of a layer, whose H is one of its sizes, B is. `phi_eps` and the layout of step_size do not
    change what is fast and are set to their defaults.

    Example:
        >>> bucket(Spec(Rule(phi_eps=1e-2), Problem(batch=3, heads=4, tokens=1000))).problem.key()
        'trellis_attention-forward/B1-T1024-H16/Dk64-Dv64-M64-C64/float32'
    """
    problem = replace(spec.problem, tokens=next_power_of_two(spec.problem.tokens))
    if problem.layer is None:
        problem = replace(problem, batch=1, heads=next_power_of_two(problem.batch * problem.heads))
    else:
        problem = of_rows(replace(problem, batch=next_power_of_two(problem.batch)))
    default = Rule()
    step_size = default.step_size if spec.rule.step_size in STEP_SIZES else spec.rule.step_size
    rule = replace(spec.rule, phi_eps=default.phi_eps, step_size=step_size)
    return Spec(rule, problem)


def of_rows(problem: Problem) -> Problem:
    """The problem of a layer with the states of a row in the row itself: it is as fast with them in pools.

    Example:
        >>> of_rows(Problem("block_step", layer=Layer(8, 8, pooled=True))).layer.pooled
        False
    """
    return problem if problem.layer is None else replace(problem, layer=replace(problem.layer, pooled=False))


def effective_chunk(chunk: int, tokens: int) -> int:
    """C as a kernel is compiled with it: one that gives the same result where sequences of T tokens are one chunk.

    The chunk of a kernel is a constant, and its offsets are 32-bit numbers. A C far above T is cut to a power of two
    of at least T and `CHUNKS_AS_GIVEN`, so that kernels are as few as the powers of two.

    Example:
        >>> [effective_chunk(chunk, tokens) for chunk, tokens in ((64, 5), (2500, 3000), (2**31, 37), (2**31, 3000))]
        [64, 2500, 1024, 4096]
    """
    longest = CHUNKS_AS_GIVEN
    while longest < chunk and longest < tokens:
        longest *= 2
    return min(chunk, longest)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()
