"""Numbers, flags, names and pairs that a call is given: taken for what they are, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codegen.errors import ImplementationError, NumberTypeError, RuleError, SizeError, SpecKeyError, UnknownMapError
from codegen.rule import Rule
from codegen.spec import Problem, Spec, spec_of_key
from tests.support.inputs import make_inputs
from trellis_ops import explain, memory_readout, memory_update, trellis_attention, trellis_step
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.sampling import Sampling

X = make_inputs(1, 6, 2, 8, 6, 5)
GATES = (X.log_decay, X.step_size)
PARTS = memory_update(X.k, X.target, *GATES, phi="silu", chunk_size=4, implementation="eager")[:2]


def attention(**options):
    return trellis_attention(*X.args, **{"phi": "silu", "implementation": "eager"} | options)


def attention_with_gradient(**options):
    return trellis_attention(*X.leaves().args, **{"phi": "silu", "implementation": "eager"} | options)


def explained(**options):
    return explain(trellis_attention, *X.args, **{"phi": "silu", "implementation": "eager"} | options)


def update(**options):
    return memory_update(X.k, X.target, *GATES, **{"phi": "silu", "implementation": "eager"} | options)


def readout(**options):
    return memory_readout(X.q, X.k, *PARTS, *GATES, **{"chunk_size": 4, "implementation": "eager"} | options)


def step(**options):
    state = tuple(s.clone() for s in X.initial_state)
    return trellis_step(*X.token(0), **{"state": state, "phi": "silu", "implementation": "eager"} | options)


ATTENTIONS = [attention, attention_with_gradient, explained]


@pytest.mark.parametrize("operator", [*ATTENTIONS, update, readout])
@pytest.mark.parametrize("chunk", [4.0, True, np.True_, "4", None, torch.tensor(4), float("nan"), [4]], ids=repr)
def test_a_chunk_size_that_is_no_int(operator, chunk):
    # A plan for the int that it equals is known by now.
    operator(chunk_size=4)
    if operator is not readout:
        operator(chunk_size=1)
    with pytest.raises(NumberTypeError, match=r"chunk_size=.* is of type .*; expected an int of at least 1"):
        operator(chunk_size=chunk)
    assert issubclass(NumberTypeError, TypeError) and issubclass(NumberTypeError, SizeError)


@pytest.mark.parametrize("operator", [*ATTENTIONS, update, step])
@pytest.mark.parametrize("phi_eps", [True, "1e-2", None, torch.tensor(1e-2), 1j], ids=repr)
def test_an_epsilon_that_is_no_number(operator, phi_eps):
    operator(phi_eps=1.0)
    with pytest.raises(NumberTypeError, match=r"phi_eps=.* is of type"):
        operator(phi_eps=phi_eps)


@pytest.mark.parametrize("operator", [*ATTENTIONS, update, step])
@pytest.mark.parametrize("phi_eps", [1e39, 1e-39, 0, -1.0, float("nan"), float("inf"), 10**400])
def test_an_epsilon_that_float32_does_not_hold(operator, phi_eps):
    with pytest.raises(SizeError, match=r"phi_eps=.*expected a positive finite number"):
        operator(phi_eps=phi_eps)


def test_numbers_of_numpy_are_taken():
    for operator in (attention, attention_with_gradient):
        expected, _ = operator(chunk_size=4, phi_eps=0.5)
        found, _ = operator(chunk_size=np.int32(4), phi_eps=np.float32(0.5))
        assert torch.equal(found, expected)
    assert torch.equal(update(chunk_size=np.int64(4), phi_eps=np.float64(0.5))[1], update(chunk_size=4, phi_eps=0.5)[1])
    assert torch.equal(readout(chunk_size=np.int64(4)), readout())
    assert torch.equal(step(phi_eps=1), step(phi_eps=np.int64(1)))
    assert explained(chunk_size=np.int64(4), phi_eps=np.float32(0.5)) == explained(chunk_size=4, phi_eps=0.5)


@pytest.mark.parametrize("operator", ATTENTIONS)
@pytest.mark.parametrize("value", [1, "no", None, torch.tensor(True)], ids=repr)
def test_a_flag_that_is_no_bool(operator, value):
    with pytest.raises(TypeError, match=r"output_final_state is .* must be True or False"):
        operator(output_final_state=value)
    with pytest.raises(TypeError, match=r"transpose is .* must be True or False"):
        readout(transpose=value)
    with pytest.raises(TypeError, match=r"transpose is .* must be True or False"):
        explain(memory_readout, X.q, X.k, *PARTS, *GATES, chunk_size=4, transpose=value)


@pytest.mark.parametrize("operator", [*ATTENTIONS, update, step])
@pytest.mark.parametrize("name", [["silu"], None, 3], ids=repr)
def test_a_map_that_is_no_name(operator, name):
    with pytest.raises((UnknownMapError, TypeError), match="phi"):
        operator(phi=name)


@pytest.mark.parametrize("operator", [*ATTENTIONS, update, readout, step])
@pytest.mark.parametrize("name", ["", 0, False, ["eager"], "cuda"], ids=repr)
def test_an_implementation_that_there_is_not(operator, name):
    with pytest.raises((ImplementationError, TypeError), match="implementation"):
        operator(implementation=name)


@pytest.mark.parametrize("operator", ATTENTIONS)
@pytest.mark.parametrize("name", [["bilevel"], None, 3], ids=repr)
def test_an_outer_gradient_that_there_is_not(operator, name):
    with pytest.raises((ValueError, TypeError), match="outer_gradient"):
        operator(outer_gradient=name)


S_K, S_V = X.initial_state
NO_PAIRS = [
    ((S_K,), "of length 1"),
    ((S_K, S_V, S_V), "of length 3"),
    ((), "of length 0"),
    (S_K, "a Tensor"),
    (torch.stack([S_K, S_K]), "a Tensor"),
    ({"S_k": S_K, "S_v": S_V}, "a dict"),
    (7, "a int"),
]


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize("operator", ATTENTIONS)
@pytest.mark.parametrize(
    ("pair", "part"), [((S_K, None), "S_v is None"), ((None, S_V), "S_k is None"), ((S_K, 3), "S_v")]
)
def test_half_an_initial_state(operator, implementation, pair, part):
    with pytest.raises(TypeError, match=f"initial_state's {part}"):
        operator(initial_state=pair, implementation=implementation)


@pytest.mark.parametrize(
    ("pair", "part"), [((S_K, None), "S_v is None"), ((None, S_V), "S_k is None"), ((S_K, 3), "S_v")]
)
def test_half_a_state_of_a_step(pair, part):
    with pytest.raises(TypeError, match=part):
        step(state=pair)
    with pytest.raises(TypeError, match=f"gradient_state's {part}"):
        step(gradient_state=pair)


@pytest.mark.parametrize(("pair", "words"), NO_PAIRS)
def test_what_is_no_pair_of_states(pair, words):
    for operator in ATTENTIONS:
        with pytest.raises(TypeError, match=f"initial_state is {words}, but must be a pair"):
            operator(initial_state=pair)
    for name in ("state", "gradient_state"):
        with pytest.raises(TypeError, match=f"{name} is {words}, but must be a pair"):
            step(**{name: pair})
    if not isinstance(pair, torch.Tensor):
        with pytest.raises(TypeError, match="initial_state is"):
            update(initial_state=pair)


def test_lists_are_pairs():
    assert torch.equal(attention(initial_state=[S_K, S_V])[0], attention(initial_state=(S_K, S_V))[0])
    assert torch.equal(step(state=[S_K.clone(), S_V.clone()]), step())
    assert torch.equal(step(gradient_state=[S_K, S_V]), step(gradient_state=(S_K, S_V)))


@pytest.mark.parametrize("operator", ATTENTIONS)
def test_offsets_that_are_no_tensor(operator):
    with pytest.raises(TypeError, match=r"cu_seqlens is \[0, 6\]"):
        operator(cu_seqlens=[0, 6])


@pytest.mark.parametrize("name", ["batch", "tokens", "heads", "dim_k", "dim_v", "slots", "chunk"])
@pytest.mark.parametrize("value", [2.0, True, "2", None, float("nan"), torch.tensor(2)], ids=repr)
def test_a_problem_is_made_of_ints(name, value):
    with pytest.raises(NumberTypeError, match=f"{name}=.* is of type"):
        Problem(**{name: value})
    with pytest.raises(SizeError, match=f"{name}=0"):
        Problem(**{name: 0})
    assert repr(Problem(**{name: np.int64(2)})) == repr(Problem(**{name: 2}))


def test_a_rule_and_a_spec():
    assert repr(Rule(phi_eps=np.float32(0.5))) == repr(Rule(phi_eps=0.5))
    assert Rule(phi_eps=1).key() == Rule(phi_eps=1.0).key()
    with pytest.raises(NumberTypeError, match="phi_eps"):
        Rule(phi_eps="1")
    for name in (["silu"], None, 3):
        with pytest.raises(UnknownMapError, match="link="):
            Rule(link=name)
        with pytest.raises(RuleError, match="step_size="):
            Rule(step_size=name)
    for rule, problem in ((Problem(), Rule()), (None, Problem()), (Rule(), "x")):
        with pytest.raises(TypeError, match="a Spec is made of a Rule and a Problem"):
            Spec(rule, problem)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("T4096", "T4096.0"),
        ("T4096", "T-1"),
        ("T4096", "T" + "9" * 5000),
        ("M64", "M0"),
        ("1e-06", "nan"),
        ("1e-06", "1e39"),
    ],
)
def test_a_key_that_names_no_spec(old, new):
    key = Spec(Rule(), Problem()).key()
    assert spec_of_key(key).key() == key
    with pytest.raises(SpecKeyError):
        spec_of_key(key.replace(old, new))


@pytest.mark.parametrize("key", [None, 3, b"trellis"])
def test_a_key_that_is_no_text(key):
    with pytest.raises(SpecKeyError, match="no key of a spec"):
        spec_of_key(key)


@pytest.mark.parametrize(
    "name", ["phi_eps", "mlp_ratio", "norm_eps", "init_step_size", "init_decay", "latency_budget_us"]
)
@pytest.mark.parametrize("value", [True, "1", float("nan"), torch.tensor(0.5)], ids=repr)
def test_a_configuration_is_made_of_numbers(name, value):
    with pytest.raises(SizeError, match=f"{name}="):
        TrellisConfig(**{name: value})
    assert type(getattr(TrellisConfig(**{name: np.float32(0.5)}), name)) is float


def test_a_configuration_takes_ints_of_numpy():
    config = TrellisConfig(num_slots=np.int64(8), layers=np.int32(2), dim_v=np.int64(64))
    assert config == TrellisConfig(num_slots=8, layers=2, dim_v=64)
    assert all(type(value) is int for value in (config.num_slots, config.layers, config.dim_v))


@pytest.mark.parametrize("value", [2.0, True, "2"], ids=repr)
def test_counts_of_the_model(value):
    model = TrellisLM(TrellisConfig(vocab_size=8, layers=1, width=8, heads=2, num_slots=4, chunk_size=4))
    prompt = torch.tensor([[1, 2]])
    with pytest.raises(SizeError, match="batch="):
        model.first_state(value)
    with pytest.raises(SizeError, match="max_new_tokens="):
        model.generate(prompt, value)
    with pytest.raises(SizeError, match="top_k="):
        Sampling(top_k=value)
    state = model.first_state(np.int64(1))
    state.place, state.fits = value, None
    with pytest.raises(SizeError, match=r"state\.place="):
        model(prompt, state)
