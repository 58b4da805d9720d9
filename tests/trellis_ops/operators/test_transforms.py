"""Transforms of torch.func, and forward mode: the derivatives of autograd, or an error that says what to do."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from codegen.errors import GradientError, TransformError
from codegen.rule import MAPS, Rule
from codegen.rule_text import rule_text
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from tests.trellis_ops.test_memory import DELTA
from tests.trellis_ops.test_memory import call as case_of
from trellis_ops import memory_attention, memory_readout, memory_update, reference, trellis_attention, trellis_step

SETTINGS = {"phi_eps": 1e-2, "chunk_size": 16}
FORWARD = pytest.mark.parametrize("name", ["trellis_attention", "packed", "memory_update", "memory_readout"])
X = make_inputs(2, 19, 2, 4, 4, 3)
ONE = make_inputs(1, 19, 2, 4, 4, 3)


def attend(q, implementation=None):
    return trellis_attention(q, *X.args[1:], **SETTINGS, initial_state=X.initial_state, implementation=implementation)[
        0
    ]


def attend_packed(q, implementation=None):
    options = {**SETTINGS, "cu_seqlens": torch.tensor([0, 2, 19]), "implementation": implementation}
    return trellis_attention(q, *ONE.args[1:], **options)[0]


def write_and_read(k, implementation=None):
    options = {"chunk_size": 4, "implementation": implementation}
    states, codes, _ = memory_update(k, *X.args[3:], phi_eps=1e-2, **options)
    return memory_readout(X.q, k, states, codes, X.log_decay, X.step_size, **options)


WRITTEN = memory_update(X.k, *X.args[3:], phi_eps=1e-2, chunk_size=4, implementation="eager")[:2]


def read(q, implementation=None):
    return memory_readout(q, X.k, *WRITTEN, X.log_decay, X.step_size, chunk_size=4, implementation=implementation)


FUNCTIONS = {
    "trellis_attention": (attend, X.q),
    "packed": (attend_packed, ONE.q),
    "memory_update": (write_and_read, X.k),
    "memory_readout": (read, X.q),
}


def energy(name, implementation=None):
    function, x = FUNCTIONS[name]
    return (lambda x: function(x, implementation).square().sum()), x


def by_autograd(name):
    function, x = energy(name)
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


@FORWARD
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_the_gradient_of_torch_func_is_that_of_autograd(name, implementation):
    function, x = energy(name, implementation)
    assert_close(grad(function)(x), by_autograd(name), 1e-4)
    _, pull_back = torch.func.vjp(function, x)
    assert_close(pull_back(torch.tensor(2.0))[0], 2 * by_autograd(name), 1e-4)


@pytest.mark.parametrize("implementation", [None, "eager"])
def test_jacobians_and_gradients_of_every_sample_are_those_of_autograd(implementation):
    jacobian = jacrev(lambda q: attend(q, implementation).sum((1, 2, 3)))(X.q)
    expected = torch.autograd.functional.jacobian(lambda q: attend(q).sum((1, 2, 3)), X.q)
    assert_close(jacobian, expected, 1e-4)

    def of_sample(step_size, *sample):
        tokens = (x[None] for x in sample)
        return trellis_attention(*tokens, step_size, **SETTINGS, implementation=implementation)[0].square().sum()

    each = vmap(grad(of_sample), in_dims=(None, 0, 0, 0, 0, 0))(X.step_size, *X.args[:5])
    for index in range(2):
        step_size = X.step_size.clone().requires_grad_()
        of_sample(step_size, *(x[index] for x in X.args[:5])).backward()
        assert_close(each[index], step_size.grad, 1e-4)


@FORWARD
@pytest.mark.parametrize("implementation", [None, "tvm"])
def test_forward_mode_is_refused_rather_than_zero(name, implementation):
    function, x = energy(name, implementation)
    with pytest.raises(TransformError, match=r'forward-mode .* give implementation="eager"'):
        jvp(function, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(TransformError, match="forward-mode"):
        function(forward_ad.make_dual(x, x))
    with forward_ad.dual_level(), pytest.raises(TransformError, match="forward-mode"):
        function(forward_ad.make_dual(x.clone().requires_grad_(), x))


OPERATORS = {
    "attention": (X.args, lambda *t: torch.ops.trellis_ops.attention(*t, *_NO_STATES, *_MAPS, 16, "bilevel", None)),
    "attention_kept": (
        X.args,
        lambda *t: torch.ops.trellis_ops.attention_kept(*t, *_NO_STATES, *_MAPS, 16, "bilevel", "tvm"),
    ),
    "update": ((X.k, *X.args[3:]), lambda *t: torch.ops.trellis_ops.update(*t, None, "ln_silu", 1e-2, 4, None)),
    "readout": (
        (X.q, X.k, *WRITTEN, X.log_decay, X.step_size),
        lambda *t: torch.ops.trellis_ops.readout(*t, 4, False, None),
    ),
    "step": (
        (*X.token(0), *X.initial_state),
        lambda *t: torch.ops.trellis_ops.step(*t[:6], *(s.clone() for s in t[6:]), None, None, *_MAPS, None),
    ),
}
_MAPS, _NO_STATES = ("ln_silu", "ln_silu", "identity", 1e-2), (None, None, None)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_registered_operator_refuses_dual_numbers(name):
    tensors, operator = OPERATORS[name]
    operator(*tensors)
    for x in tensors:
        with forward_ad.dual_level():
            given = [forward_ad.make_dual(t, t) if t is x else t for t in tensors]
            with pytest.raises(TransformError, match=r"the registered operator of .* forward-mode"):
                operator(*given)
        with pytest.raises(TransformError, match=r"the registered operator of .* forward-mode"):
            jvp(lambda *t, x=x: operator(*(t[0] if each is x else each for each in tensors)), (x,), (x,))


def test_a_registered_reverse_pass_refuses_dual_numbers():
    leaf = X.q.clone().requires_grad_()
    y = attend(leaf)
    with forward_ad.dual_level(), pytest.raises(TransformError, match="the registered operator of trellis_attention"):
        torch.autograd.grad(y, leaf, forward_ad.make_dual(X.v, X.v))


def test_registered_operators_of_any_rule_refuse_tangents_of_torch_func():
    _, initial, given, _ = case_of(DELTA)
    token = [x if x.ndim == 1 else x[:, 0].contiguous() for x in given.values()]

    def attend(x):
        others = [x, *list(given.values())[1:]]
        return torch.ops.trellis_ops.memory_attention(others, [], None, rule_text(DELTA), 1, "bilevel", False, None)[0]

    def step(x):
        state = [s.clone() for s in initial]
        return torch.ops.trellis_ops.memory_step([x, *token[1:]], state, [], rule_text(DELTA), None)

    for function, (x, *_) in ((attend, list(given.values())), (step, token)):
        with pytest.raises(TransformError, match=r"the registered operator of memory_\w+ .*forward-mode"):
            jvp(function, (x,), (x,))


def test_registered_operators_of_any_rule_and_their_reverse_passes_refuse_dual_numbers():
    named, initial, given, _ = case_of(DELTA)
    token = [x if x.ndim == 1 else x[:, 0].contiguous() for x in given.values()]
    leaf = named.pop("q").clone().requires_grad_()
    y = memory_attention(leaf, **named)[0]
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(x, x) for x in given.values()]
        with pytest.raises(TransformError):
            torch.ops.trellis_ops.memory_attention(dual, [], None, rule_text(DELTA), 1, "bilevel", False, None)
        dual_token, state = [forward_ad.make_dual(x, x) for x in token], [x.clone() for x in initial]
        with pytest.raises(TransformError):
            torch.ops.trellis_ops.memory_step(dual_token, state, [], rule_text(DELTA), None)
        cotangent = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
        with pytest.raises(TransformError):
            torch.autograd.grad(y, leaf, cotangent)


@FORWARD
def test_forward_mode_of_eager_is_right(name):
    function, x = energy(name, "eager")
    along = by_autograd(name)
    expected = along.square().sum()
    assert_close(jvp(function, (x,), (along,))[1], expected, 1e-4)
    with forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(function(forward_ad.make_dual(x, along))).tangent, expected, 1e-4)


def test_second_derivatives_are_those_of_eager_or_refused():
    function, x = energy("trellis_attention", "eager")
    matrix = hessian(function)(x)
    assert_close(matrix, jacfwd(grad(function))(x), 1e-4)
    change = 1e-2 * x
    expected = grad(function)(x + change) - grad(function)(x - change)
    assert_close(2 * torch.tensordot(matrix, change, 4), expected, 1e-2)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(energy("trellis_attention")[0](leaf), leaf, create_graph=True)
    with pytest.raises(GradientError, match=r"the gradient of trellis_attention has no gradient: .*torch.func"):
        first.sum().backward()


@FORWARD
def test_a_kernel_that_is_asked_for_says_what_to_use_instead(name):
    function, x = energy(name, "tvm")
    with pytest.raises(TransformError, match="give implementation=\"eager\" or None in place of 'tvm'"):
        grad(function)(x)


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_mapped_calls_without_a_derivative_run_on_what_is_asked_for(implementation):
    several = torch.stack([X.q, 2 * X.q])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vmap(lambda q: attend(q, implementation))(several)
    assert_close(mapped, torch.stack([attend(q, implementation) for q in several]), 1e-5)
    leaf = X.q.clone().requires_grad_()
    y, incoming = attend(leaf, implementation), torch.stack([X.v, -2 * X.v])
    pulled = vmap(lambda cotangent: torch.autograd.grad(y, leaf, cotangent, retain_graph=True)[0])(incoming)
    assert_close(
        pulled,
        torch.stack([torch.autograd.grad(y, leaf, cotangent, retain_graph=True)[0] for cotangent in incoming]),
        1e-5,
    )


@pytest.mark.parametrize("implementation", [None, "eager", "tvm"])
def test_a_step_is_refused_by_every_transform(implementation):
    token, state = X.token(0), X.initial_state

    def step(q, *states):
        return trellis_step(q, *token[1:], states or tuple(s.clone() for s in state), implementation=implementation)

    with pytest.raises(GradientError, match="trellis_step has no gradient"):
        grad(lambda q: step(q).sum())(token[0])
    for call in (
        lambda: jvp(step, (token[0],), (token[0],)),
        lambda: vmap(step)(*(torch.stack([x, x]) for x in (token[0], *state))),
        lambda: grad(lambda q: vmap(step)(*(torch.stack([x, x]) for x in (q, *state))).sum())(token[0]),
    ):
        with pytest.raises(TransformError, match="trellis_step does not run under"):
            call()
    with forward_ad.dual_level(), pytest.raises(TransformError, match="trellis_step does not run under"):
        step(forward_ad.make_dual(token[0], token[0]))


def test_a_step_within_a_transform_that_needs_no_gradient_of_it_runs():
    token = X.token(0)

    def scaled(q):
        with torch.no_grad():
            y = trellis_step(q.clone(), *token[1:], tuple(s.clone() for s in X.initial_state))
        return (q * y).sum()

    y = trellis_step(*token, tuple(s.clone() for s in X.initial_state))
    assert_close(grad(scaled)(token[0]), y, 1e-5)


def test_transforms_within_a_compiled_graph():
    function, x = energy("trellis_attention")
    compiled = torch.compile(grad(function), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), by_autograd("trellis_attention"), 1e-4)
    with pytest.raises(TransformError, match="does not run under forward-mode differentiation"):
        torch.compile(lambda x: jvp(function, (x,), (x,))[1], backend="aot_eager")(x)


def test_a_second_derivative_is_right_though_a_compiler_is_asked_for_it():
    """It is refused while torch traces, which then runs it as it stands."""
    function, x = energy("trellis_attention")
    twice = grad(lambda x: grad(function)(x).sum())
    assert_close(torch.compile(twice, backend="aot_eager")(x), twice(x), 1e-4)


@pytest.mark.parametrize("phi", MAPS)
def test_second_derivatives_are_those_of_the_oracle(phi):
    """ATen's double backward of a layer norm cannot be differentiated again: mean and deviation are constants to it."""
    x = make_inputs(1, 3, 1, 3, 3, 3, dtype=torch.float64)
    rule = Rule(phi, link=phi, phi_eps=0.1)

    def of_eager(k):
        options = {"phi": phi, "link": phi, "phi_eps": 0.1, "chunk_size": 2, "implementation": "eager"}
        y, _ = trellis_attention(x.q, k, *x.args[2:], initial_state=x.initial_state, **options)
        return y.pow(2).sum()

    def of_oracle(k):
        y, _ = reference.attention(x.q, k, *x.args[2:], rule=rule, chunk_size=2, initial_state=x.initial_state)
        return y.pow(2).sum()

    expected = torch.autograd.functional.hessian(of_oracle, x.k)
    assert_close(torch.func.hessian(of_eager)(x.k), expected, 1e-9)
    assert_close(torch.func.jacrev(torch.func.jacrev(of_eager))(x.k), expected, 1e-9)
