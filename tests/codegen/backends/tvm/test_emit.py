"""What TVM's kernels for CPUs are made of, each by itself against PyTorch, at sizes that no vector divides."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from codegen.backends.tvm.executable import compiler
from codegen.kernels.launches import GRADIENTS
from tests.support.relative_error import assert_close

SIZES = {"slots": 7, "chunk": 8, "tokens": 8, "width": 4, "accumulators": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def emit() -> Callable[[str], Any]:
    """A module of codegen.backends.tvm.emit by its name; they import TVM."""
    compiler()
    return lambda name: importlib.import_module(f"codegen.backends.tvm.emit.{name}")


def run(statements: Callable[..., None], *tensors: torch.Tensor) -> None:
    """Compile what `statements` emits for buffers of these shapes, and run it on the tensors."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder.ir import ir_module
    from tvm.tirx.script import builder as T

    with IRBuilder() as made:
        with ir_module(), T.prim_func():
            T.func_name("emitted")
            shapes = [tuple(each.shape) for each in tensors]
            statements(*(T.arg(f"x{i}", T.buffer(shape, "float32")) for i, shape in enumerate(shapes)))
        module = made.get()
    compiler().compile(module, target="llvm")["emitted"](*tensors)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(7, 5, 8), (1, 3, 20), (6, 1, 36)])
@pytest.mark.parametrize("terms", [1, 2])
def test_products(emit, rows, depth, columns, terms):
    products, tile = emit("products"), emit("tile").Tile(**SIZES)
    left, right, scale = torch.randn(rows, depth), torch.randn(depth, columns), torch.randn(rows, columns)
    found = torch.full((rows, columns), float("nan"))

    def statements(a, b, c, to):
        from tvm.script import tirx as T

        term = (depth, lambda m, i: a[m, i], lambda i, j: b[i, j])
        more = (lambda m, j: c[m, j], term) if terms == 2 else ()
        products.product(tile, rows, columns, term, lambda m, j, x: T.buffer_store(to, x, [m, j]), *more)

    run(statements, left, right, scale, found)
    expected = left.double() @ right.double()
    assert_close(found, expected * (1 + scale.double()) if terms == 2 else expected, 1e-6)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_transposes(emit, width):
    tile = emit("tile").Tile(**SIZES | {"width": width})
    rows, to = torch.randn(2 * width, 3 * width), torch.full((3 * width, 2 * width), float("nan"))
    run(lambda rows, to: emit("transpose").transpose(tile, to, rows), rows, to)
    assert torch.equal(to, rows.T)


@pytest.mark.parametrize(
    ("walk", "shape"), [("Lanes", (7, 8)), ("Token", (2, 4)), ("Slots", (8, 1))], ids=lambda value: str(value)
)
def test_sums_along_a_row(emit, walk, shape):
    walks, vectors, features = emit("walks"), emit("vectors"), 7
    along = walks.Lanes(4, 0, 2) if walk == "Lanes" else getattr(walks, walk)(4)
    x, found = torch.rand(shape), torch.full((8 if walk == "Lanes" else 1,), float("nan"))

    def statements(x, to):
        from tvm.script import tirx as T

        def of_vector(b):
            (total,) = along.zeros(1)
            along.sweep(b, features, lambda m, t, lane, real: vectors.add(total, lane, real(x[m, t])))
            along.total(total)
            if walk == "Lanes":
                along.each_lane(b, lambda t, lane: T.buffer_store(to, total[lane], [t]))
            else:
                T.buffer_store(to, total[0], [0])

        along.each_vector(of_vector)

    run(statements, x, found)
    assert_close(found, x.double().sum(0) if walk == "Lanes" else x.flatten()[:features].double().sum()[None], 1e-6)


FUNCTIONS = {"exp": torch.exp, "sigmoid": torch.sigmoid, "tanh_of": torch.tanh, "sign_of": torch.sign}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_number(emit, name):
    function, x = getattr(emit("expressions"), name), torch.cat([torch.linspace(-8, 8, 998), torch.tensor([0.0, 1e-3])])
    found = torch.full_like(x, float("nan"))

    def statements(x, to):
        from tvm.script import tirx as T

        with T.serial(1000) as i:
            T.buffer_store(to, function(x[i]), [i])

    run(statements, x, found)
    expected = FUNCTIONS[name](x.double())
    assert ((found - expected).abs() <= 1e-6 * expected.abs()).all()


def test_a_forget_gate_forgets_everything_and_keeps_nan(emit):
    x, found = torch.tensor([0.0, -float("inf"), -90.0, 90.0, float("nan")]), torch.zeros(5)

    def statements(x, to):
        from tvm.script import tirx as T

        with T.serial(5) as i:
            T.buffer_store(to, emit("expressions").forget_gate(x[i]), [i])

    run(statements, x, found)
    assert found[:4].tolist() == [1.0, 0.0, 0.0, float("inf")]
    assert found[4].isnan()


def test_a_bit_of_the_gradients_that_are_wanted_is_its_place_among_all(emit):
    wanted = emit("backward.wanted")
    assert [getattr(wanted, name.upper()) for name in GRADIENTS] == [1 << place for place in range(len(GRADIENTS))]
