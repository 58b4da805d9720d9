"""What torch knows of the registered operators is what the signatures of their kernels declare."""

from __future__ import annotations

import inspect

import pytest
import torch

import trellis_ops
from codegen.kernels.arguments import IN_PLACE, READ, WRITTEN
from codegen.kernels.signatures import operator_arguments
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from trellis_ops.calls import arguments
from trellis_ops.dispatch import launch
from trellis_ops.operators import registered
from trellis_ops.operators.schemas import ATTENTION, ATTENTION_KEPT, OPERATORS, READOUT, STEP, UPDATE
from trellis_ops.tokens import Tokens

EVERY = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


def schema_of(name: str) -> torch.FunctionSchema:
    return getattr(torch.ops.trellis_ops, name).default._schema


def tensors_of(schema: torch.FunctionSchema) -> dict[str, torch.Argument]:
    return {each.name: each for each in schema.arguments if "Tensor" in str(each.type)}


def declared(operator, access: str, direction: str = "forward") -> set[str]:
    specs = [Spec(Rule(), Problem(name, direction=direction)) for name in operator.serves]
    return {each.name for spec in specs for each in operator_arguments(spec) if each.access == access}


@EVERY
def test_a_schema_names_exactly_the_declared_tensors(operator):
    offsets = {"cu_seqlens"} if operator.function == "trellis_attention" else set()
    given = tensors_of(schema_of(operator.name))
    assert set(given) == declared(operator, READ) | declared(operator, IN_PLACE) | offsets
    assert len(schema_of(operator.name).returns) == len(operator.results + operator.kept)


@EVERY
def test_what_is_mutated_is_marked(operator):
    given = tensors_of(schema_of(operator.name))
    marked = {name for name, each in given.items() if each.alias_info is not None and each.alias_info.is_write}
    assert marked == ({"S_k", "S_v", "G_k", "G_v"} if operator is STEP else set())
    if operator is STEP:
        assert declared(operator, IN_PLACE) <= marked
        assert len({str(given[name].alias_info.before_set) for name in marked}) == len(marked)


@EVERY
def test_what_is_not_moved_in_place_is_a_result(operator):
    results = declared(operator, WRITTEN) | (declared(operator, IN_PLACE) if operator is not STEP else set())
    assert set(operator.results) == results
    assert operator.kept == (("chunk_states_k", "chunk_states_v") if operator is ATTENTION_KEPT else ())


@pytest.mark.parametrize("operator", [ATTENTION, ATTENTION_KEPT, UPDATE, READOUT], ids=lambda operator: operator.name)
def test_a_reverse_pass_takes_cotangents_and_what_the_call_was_given_and_kept(operator):
    reverse = schema_of(f"{operator.name}_backward")
    tensors = {f"d{name}" for name in operator.results} | set(tensors_of(schema_of(operator.name)))
    assert set(tensors_of(reverse)) == tensors | set(operator.kept)
    assert tuple(each.name for each in reverse.arguments) == operator.reverse_names
    if operator is ATTENTION_KEPT:
        backward = declared(operator, READ, "backward") | declared(operator, IN_PLACE, "backward")
        assert backward | declared(operator, WRITTEN, "backward") >= tensors - {"cu_seqlens"}


def test_the_schemas_of_a_step_and_of_a_readout():
    assert STEP.schema == (
        "(Tensor q, Tensor k, Tensor v, Tensor target, Tensor log_decay, Tensor step_size, Tensor(a!) S_k,"
        " Tensor(b!) S_v, Tensor(c!)? G_k, Tensor(d!)? G_v, str phi, str link, str out, float phi_eps,"
        " str? implementation) -> Tensor"
    )
    assert READOUT.reverse_schema == (
        "(Tensor dy, int[] wanted, Tensor read, Tensor w, Tensor chunk_states, Tensor codes, Tensor log_decay,"
        " Tensor step_size, int chunk_size, bool transpose, str? implementation) -> Tensor[]"
    )


@pytest.mark.parametrize(
    ("operator", "run", "request_of"),
    [
        (ATTENTION, registered.run_attention, registered.attention_request),
        (ATTENTION_KEPT, registered.run_attention, registered.attention_request),
        (UPDATE, registered.run_update, registered.update_request),
        (READOUT, registered.run_readout, arguments.readout_request),
        (STEP, registered.run_step, registered.step_request),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_what_runs_an_operator_takes_its_arguments_in_their_order(operator, run, request_of):
    assert tuple(inspect.signature(run).parameters) == operator.names
    assert (*inspect.signature(request_of).parameters, "implementation") == operator.names


@EVERY
def test_what_users_call_a_tensor_is_a_parameter_of_the_public_function(operator):
    public = set(inspect.signature(getattr(trellis_ops, operator.function)).parameters)
    states = {"S_k", "S_v"} if operator is STEP else set()
    assert {each.public.partition("'")[0] for each in operator.tensors} - states <= public
    assert set(operator.settings) <= public


def test_the_tokens_of_attention_are_what_its_kernels_read():
    assert set(Tokens._fields) == declared(ATTENTION, READ)
    launched = inspect.signature(launch.attention).parameters
    assert set(launched) - {"operator", "sequences"} == declared(ATTENTION, READ) | declared(ATTENTION, IN_PLACE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", [ATTENTION, ATTENTION_KEPT, UPDATE, READOUT, STEP], ids=lambda each: each.name)
def test_results_without_data_are_like_those_with_data(operator, dtype):
    x = make_inputs(2, 11, 3, 8, 6, 5, dtype=dtype)
    states = torch.float64 if dtype == torch.float64 else torch.float32
    named = dict(zip(Tokens._fields, x.token(0) if operator is STEP else x.args, strict=True))
    named |= {"S_k": x.initial_state[0].to(states), "S_v": x.initial_state[1].to(states), "cu_seqlens": None}
    named |= {"w": x.k, "S": named["S_k"], "G_k": None, "G_v": None, "read": x.q}
    named |= {"chunk_states": torch.zeros(2, 3, 3, 5, 8, dtype=states), "codes": torch.zeros(2, 11, 3, 5, dtype=states)}
    named |= {"phi": "silu", "link": "silu", "out": "identity", "phi_eps": 1e-2, "chunk_size": 4, "transpose": False}
    named |= {"outer_gradient": "bilevel", "implementation": "eager"}
    given = [named[name] for name in operator.names]
    registered = getattr(torch.ops.trellis_ops, operator.name)
    without = registered(*(each.to("meta") if isinstance(each, torch.Tensor) else each for each in given))
    found = registered(*given)
    for one, other in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (without, found)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert one.device.type == "meta"
