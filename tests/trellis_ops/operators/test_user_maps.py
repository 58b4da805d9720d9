"""Maps and losses that a user defines, on eager PyTorch and on TVM's kernels: forward, both gradients, decoding."""

from __future__ import annotations

import pickle
from operator import attrgetter

import pytest
import torch

from codegen.errors import MapTextError, UnknownMapError
from codegen.maps import MAPS, Map, define, define_loss, find, mean, tanh
from codegen.rule import Rule
from codegen.spec import Problem, Spec, bucket, spec_of_key
from tests.codegen.backends.tvm.test_backward import check
from tests.codegen.backends.tvm.test_forward import With
from tests.support.cases.kernels import Case, check_attention, check_step
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import assert_close
from tests.support.user_maps import CUBIC, GELU, HUBER, NAMES, RMS_SILU, WRITES
from trellis_ops import reference, trellis_attention, trellis_step
from trellis_ops.eager import backward
from trellis_ops.eager import forward as eager

writes = pytest.mark.parametrize("write", WRITES, ids=NAMES)


def rule_of(write: str) -> Rule:
    """One that reads by user's maps as well."""
    return Rule(write, link=RMS_SILU, out=GELU, phi_eps=1e-2, step_size="token")


def gradients(x: Inputs, implementation: object, **options: object) -> list[torch.Tensor]:
    y, states = implementation.attention(*x.args, initial_state=x.initial_state, **options)
    generator = torch.Generator().manual_seed(0)
    incoming = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, *states)]
    return [y, *states, *torch.autograd.grad((y, *states), x.tensors, incoming)]


def check_eager(x: Inputs, options: dict[str, object]) -> None:
    """By autograd and by the eager reverse pass, in float64."""
    expected = gradients(x, reference, **options)
    for one, other in zip(gradients(x, eager, **options), expected, strict=True):
        assert_close(one, other, 1e-9)
    generator = torch.Generator().manual_seed(0)
    incoming = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in expected[:3]]
    plain = x.map(torch.Tensor.detach)
    tokens, of_states = backward.attention(
        *plain.args, incoming[0], (incoming[1], incoming[2]), initial_state=plain.initial_state, **options
    )
    for one, other in zip((*tokens, *of_states), expected[3:], strict=True):
        assert_close(one, other, 1e-9)


@pytest.mark.parametrize("state", ["zero", "random"])
@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@writes
def test_eager(write: str, outer_gradient: str, state: str) -> None:
    x = make_inputs(1, 11, 2, 6, 5, 7, dtype=torch.float64, step_size="token", state=state).leaves()
    options = {"rule": rule_of(write), "chunk_size": 4, "outer_gradient": outer_gradient}
    check_eager(x, options)


@writes
def test_kernels_of_tvm(write: str) -> None:
    """Forward and backward with tokens in the lanes, and decoding with slots in the lanes."""
    case = Case(chunk=16, lengths=(21, 21), rule=rule_of(write))
    check(case)
    check_step(With(), Case("trellis_step", lengths=(1, 1, 1), rule=case.rule))


@pytest.mark.parametrize("write", [RMS_SILU, HUBER], ids=attrgetter("name"))
def test_first_order_gradients_of_tvm(write: str) -> None:
    case = Case(chunk=16, lengths=(21, 21), rule=rule_of(write))
    check(case, "first_order", case.inputs(state="zero"))


@pytest.mark.parametrize("write", [RMS_SILU, CUBIC], ids=attrgetter("name"))
def test_kernels_of_tvm_whose_chunks_share_a_tile(write: str) -> None:
    """Slots in the lanes of a backward, the last vector padded: a row with a sum over slots, and a loss."""
    check(Case(chunk=3, lengths=(20,), heads=1, rule=rule_of(write)))


def test_at_the_kinks_of_a_loss() -> None:
    """From a zero state with targets at 0, 1 and -1, where huber changes, and its derivative does."""
    case = Case(chunk=16, lengths=(16, 16), rule=Rule(HUBER, link=GELU))
    inputs = case.inputs(state="zero")
    inputs.target.copy_(torch.tensor([0.0, 1.0, -1.0]).repeat(6))
    check(case, inputs=inputs)
    check_attention(With(), case, inputs)


@pytest.mark.parametrize("exponent", [9, 16, 33, 64, -9])
def test_a_whole_power_of_a_negative_number_is_a_number(exponent: int) -> None:
    """Written as a product, whatever the exponent: by way of the logarithm it would be none."""
    power = define(f"power_{abs(exponent)}{'_below' * (exponent < 0)}", lambda z: z**exponent)
    z = torch.tensor([-1.5, -1.0, -0.75, 0.5, 1.25])
    state = (torch.diag(z).expand(1, 1, 5, 5).clone(), torch.eye(5).expand(1, 1, 5, 5).clone())
    ones, none = torch.ones(1, 1, 5), (torch.zeros(1, 1), torch.zeros(1))
    for implementation in ("eager", "tvm"):
        moved = tuple(s.clone() for s in state)
        y = trellis_step(
            ones, ones, ones, ones, *none, moved, phi="identity", link=power, implementation=implementation
        )
        assert_close(y.flatten(), z.double() ** exponent, 1e-5)


FLAT = [
    define_loss("hebbian_loss", lambda z, a: -z * a),
    define_loss("of_the_mean", lambda z, a: mean(z) ** 2 * mean(a)),
    define_loss("of_means", lambda z, a: -z * mean(a)),
]


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("loss", FLAT, ids=attrgetter("name"))
def test_losses_whose_derivatives_hold_no_z_or_one_number_for_all_slots(loss: Map, chunk: int) -> None:
    formulas = {
        "hebbian_loss": lambda z, a: -z * a,
        "of_the_mean": _squared_mean,
        "of_means": lambda z, a: -z * _mean(a),
    }
    reference.define_loss(loss.name, lambda z, a, epsilon: formulas[loss.name](z, a))
    x = make_inputs(1, 18, 2, 6, 5, 7, dtype=torch.float64, step_size="token", state="random").leaves()
    options = {"rule": Rule(loss, link="identity", step_size="token"), "chunk_size": chunk, "outer_gradient": "bilevel"}
    check_eager(x, options)
    check(Case(chunk=chunk, lengths=(18,), heads=1, rule=options["rule"]))


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=-1, keepdim=True)


def _squared_mean(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """One number for the row, shared out among its slots: the oracle sums over them."""
    return (_mean(z) ** 2 * _mean(a)).expand_as(z) / z.shape[-1]


def test_operators_take_a_map_and_its_text() -> None:
    x = make_inputs(1, 20, 2, 20, 12, 18).leaves()
    options = {"chunk_size": 16, "initial_state": x.initial_state, "output_final_state": True}
    y, state = trellis_attention(*x.args, phi=HUBER, link=GELU, **options)
    again, _ = trellis_attention(*x.args, phi=str(HUBER), link=GELU.key, **options)
    by_name, _ = trellis_attention(*x.args, phi="huber_loss", link="gelu_tanh", implementation="eager", **options)
    assert torch.equal(y, again)
    assert_close(by_name, y, 1e-5)
    (y.sum() + state[0].sum()).backward()
    assert x.q.grad is not None
    token = [t.detach() for t in x.token(0)]
    states = tuple(s.detach().clone() for s in x.initial_state)
    expected, _ = reference.step(*token, states, rule=Rule(HUBER, link=GELU))
    assert_close(trellis_step(*token, states, phi=HUBER, link=GELU), expected, 1e-5)


def test_a_rule_with_a_users_map_is_data() -> None:
    rule = rule_of(HUBER)
    spec = Spec(rule, Problem(tokens=7))
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert spec_of_key(spec.key()) == spec
    assert spec_of_key(bucket(spec).key()).rule.phi == rule.phi
    assert Rule("huber_loss") == Rule(HUBER) == Rule(str(HUBER)) == Rule(HUBER.key)
    assert len(rule.key()) < 200


def test_equal_formulas_have_equal_keys() -> None:
    one = define("same", lambda z: z * tanh(z) + 1.0)
    other = define("same", lambda z: 1 + tanh(z) * z)
    assert (one, one.key) == (other, other.key)
    assert define("same", lambda z: z * tanh(z) + 2).key != one.key
    assert find("same(z) = 1 + tanh(z)*z").key == one.key


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f(z) = __import__('os')", "nothing that a map is made of"),
        ("f(z) = z.real", "nothing that a map is made of"),
        ("f(z) = z ** z", "no number"),
        ("f(z) = z * 9**9**9", "the exponent 387420489 is beyond 64"),
        ("f(z) = z * ((9**64)**64)**64", "beyond the range of float32"),
        ("f(z) = sinh(z)", "no function of a map"),
        ("f(z) = a * z", "nothing that a map is made of"),
        ("f(z) = (", "never closed"),
        ("f(z) = sum(z)", "one for each slot"),
        ("f(z) = z * 1e999", "finite"),
        ("silu(z) = z", "comes along"),
    ],
)
def test_a_text_that_is_no_map_says_why(text: str, reason: str) -> None:
    with pytest.raises(MapTextError, match=reason):
        Rule(text)


def test_what_no_map_is_called_and_a_loss_that_reads_are_refused() -> None:
    with pytest.raises(UnknownMapError, match="choose one of: identity"):
        Rule("nothing")
    with pytest.raises(UnknownMapError, match="link"):
        Rule(link=HUBER)
    with pytest.raises(MapTextError, match="comes along"):
        define("silu", lambda z: z)
    with pytest.raises(MapTextError, match="one for each slot"):
        define("constant", lambda z: 3)
    with pytest.raises(TypeError, match="where"):
        define_loss("truth", lambda z, a: z if z > a else a)


def test_a_key_of_a_map_that_is_not_defined_here_says_so() -> None:
    key = Spec(Rule(GELU), Problem()).key().replace("gelu_tanh", "gelu_of_yore")
    with pytest.raises(ValueError, match="gelu_of_yore"):
        spec_of_key(key)


def test_the_text_of_every_map_is_read_back() -> None:
    for of in (*MAPS.values(), *WRITES):
        arguments = "z, a" if of.is_loss else "z"
        assert find(f"again({arguments}) = {of.formula}").expression is of.expression
