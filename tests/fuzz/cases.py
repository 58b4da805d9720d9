"""What a kernel is called with: sizes, values, layouts and wanted gradients, as plain data that prints as Python."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from codegen.recurrence.tensors import states, tensors
from codegen.rule import SOLVE
from codegen.spec import Problem
from tests.fuzz.kernels import Kernel
from tests.fuzz.layouts import LAYOUTS, VIEWS
from tests.fuzz.rules.drawn import MOST_TOKENS, STEPS, is_of_rule
from trellis_ops.tokens import Tokens

INPUTS = Tokens._fields
STATES = ("S_k", "S_v")

_INF = float("inf")
_LOG_DECAYS = (-0.02, 0.0, -1e-8, -5.0, -80.0, -_INF, -1.0, -20.0, -120.0, -1e-30)
_STEP_SIZES = (0.1, 0.0, 1.0, 1e-6, 8.0, 1e-30, 0.03)
_SCALES = (1.0, 1.0, 0.0, 1e-3, 10.0)
_STATE_SCALES = (1.0, None, 0.0, 1e-7, 100.0)


@dataclass(frozen=True)
class Case:
    """One call of one kernel.

    Attributes:
        kernel: what is called.
        lengths: tokens of each sequence; equal unless packed.
        packed: whether the sequences lie one after another in B = 1.
        heads: H.
        seed: of all numbers.
        log_decays, step_sizes: each token, or head, has one of these.
        scales: of the rows of q, of k and v, and of target; 1 is what a model has.
        state: scale of the initial states; None gives none.
        layouts: of q, k, v, target, log_decay, step_size and of each state, in turn.
        gate_type: type of log_decay and step_size.
        wanted: the inputs whose gradients are compared.
        cotangents: which of the outputs have one: "y", "states" or "both".
        aliased: of a chunked step, whether its gradient states are its states.
        autocast: whether the call is made under autocast to bfloat16.
    """

    kernel: Kernel
    lengths: tuple[int, ...] = (5,)
    packed: bool = False
    heads: int = 1
    seed: int = 0
    log_decays: tuple[float, ...] = (-0.02,)
    step_sizes: tuple[float, ...] = (0.1,)
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    state: float | None = 1.0
    layouts: tuple[str, ...] = ("contiguous",) * 8
    gate_type: str = "float32"
    wanted: tuple[str, ...] = ()
    cotangents: str = "both"
    aliased: str = "no"
    autocast: bool = False


def is_step(problem: Problem) -> bool:
    """Whether a call has one token of each sequence, and moves states in place."""
    return problem.operator.startswith("trellis_step") or problem.operator in STEPS


@st.composite
def cases(draw: st.DrawFn, kernel: Kernel, most_tokens: int = 90) -> Case:
    """Cases of `kernel`, with at most so many tokens in all sequences together."""
    problem = kernel.spec.problem
    step, of_rule = is_step(problem), is_of_rule(problem)
    most_tokens = min(most_tokens, MOST_TOKENS) if of_rule else most_tokens
    packed = problem.operator in ("trellis_attention", "memory_attention") and draw(st.booleans())
    lengths = (1,) * draw(st.integers(1, 4)) if step else _lengths(draw, problem.chunk, packed, most_tokens)
    layouts = [draw(_layout(LAYOUTS)) for _ in INPUTS]
    layouts += [draw(_layout(VIEWS if step else LAYOUTS)) for _ in STATES]
    state = draw(st.sampled_from(_STATE_SCALES))
    return Case(
        kernel,
        lengths,
        packed,
        heads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**16)),
        log_decays=tuple(draw(st.lists(_ends(_LOG_DECAYS, -6.0, 0.0), min_size=1, max_size=3))),
        step_sizes=tuple(draw(st.lists(_ends(_STEP_SIZES, 0.0, 2.0), min_size=1, max_size=2))),
        scales=tuple(draw(st.sampled_from(_SCALES)) for _ in range(3)),
        state=1.0 if step and state is None else state,
        layouts=tuple(layouts),
        gate_type=draw(st.sampled_from(("float32",) * 4 + ("float64", "bfloat16", "float16"))),
        wanted=_wanted(draw, kernel, state),
        cotangents=draw(st.sampled_from(("both", "y", "states"))),
        aliased=draw(st.sampled_from(("no", "no", "both"))) if step and not of_rule else "no",
        autocast=problem.dtype == "bfloat16" and draw(st.booleans()),
    )


def _lengths(draw: st.DrawFn, chunk: int, packed: bool, most: int) -> tuple[int, ...]:
    near = [n for n in (1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 1) if 1 <= n <= most // 2]
    length = st.sampled_from(near) | st.integers(1, most // 2)
    if not packed:
        each = draw(length)
        return (each,) * draw(st.integers(1, max(1, min(3, most // each))))
    lengths, left = [], most
    for _ in range(draw(st.integers(1, 5))):
        lengths.append(min(draw(length | st.just(0)), left))
        left -= lengths[-1]
        if left < 1:
            break
    return tuple(lengths) if sum(lengths) else (1,)


def _differentiable(kernel: Kernel, state: float | None) -> list[str]:
    rule = kernel.spec.rule
    if not is_of_rule(kernel.spec.problem):
        return [*INPUTS, *(() if state is None else STATES)]
    given = [each.name for each in tensors(rule) if each.name != "target" or rule.link != SOLVE]
    return [*given, *(() if state is None else states(rule))]


def _ends(values: tuple[float, ...], least: float, most: float) -> st.SearchStrategy[float]:
    return st.sampled_from(values) | st.floats(least, most, width=32, allow_subnormal=False)


def _layout(layouts: dict[str, object]) -> st.SearchStrategy[str]:
    return st.just("contiguous") | st.sampled_from(list(layouts))


def _wanted(draw: st.DrawFn, kernel: Kernel, state: float | None) -> tuple[str, ...]:
    problem = kernel.spec.problem
    if is_step(problem):
        return ()
    if problem.operator == "trellis_attention" or is_of_rule(problem):
        if problem.direction == "forward":
            return ()
        names = _differentiable(kernel, state)
        return tuple(draw(st.lists(st.sampled_from(names), min_size=1, unique=True).map(sorted)))
    if draw(st.booleans()):
        return ()
    if problem.operator == "memory_update":
        names = ["k", "target", "log_decay", "step_size", *(() if state is None else ("S_k",))]
    else:
        names = ["read", "k", "chunk_states", "codes", "log_decay", "step_size"]
    return tuple(draw(st.lists(st.sampled_from(names), min_size=1, unique=True).map(sorted)))
