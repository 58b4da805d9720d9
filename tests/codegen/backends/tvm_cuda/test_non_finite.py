"""TVM's kernels for CUDA, emulated on this CPU, where one head holds a number that is not finite."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from codegen.rule import Rule
from tests.codegen.backends.tvm_cuda.test_emulated import With
from tests.emulators.emulated_cuda import COMPILER
from tests.support.cases import non_finite
from tests.support.cases.kernels import Case
from tests.support.cases.non_finite import LENGTHS, batch, packed

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

# The norm of l2_silu has a floor, which NaN must pass.
RULE = Rule("l2_silu", link="l2_silu", out="l2_silu", phi_eps=1e-2, step_size="token")
SIZES = {"heads": 2, "dim_k": 5, "dim_v": 9, "slots": 6}
WHOLE = {"heads": 2, "dim_k": 16, "dim_v": 32, "slots": 16}
PADDING = pytest.mark.parametrize("sizes", [SIZES, WHOLE], ids=["padding", "no padding"])
MULTIPLY_ADDS = {"tile_tokens": 16}
TENSOR_CORES = {"tile_tokens": 16, "accumulators": 8, "dot_precision": "tf32x3"}
PRODUCTS = pytest.mark.parametrize("products", [MULTIPLY_ADDS, TENSOR_CORES], ids=["multiply-adds", "tensor cores"])


@PADDING
@pytest.mark.parametrize(
    ("name", "chunk", "products"),
    [
        pytest.param("l2_silu", 20, MULTIPLY_ADDS, id="l2_silu-20"),
        pytest.param("softmax", 20, MULTIPLY_ADDS, id="softmax-20"),
        pytest.param("l2_silu", 20, TENSOR_CORES, id="l2_silu-20-tensor cores"),
        pytest.param("l2_silu", 1, {}, id="l2_silu-1"),
    ],
)
def test_attention(name, chunk, products, sizes):
    rule = dataclasses.replace(RULE, phi=name, link=name, out=name)
    case = packed(Case(chunk=chunk, rule=rule, **sizes))
    non_finite.check_attention(With(**products), case, ("k", "log_decay"))


@PADDING
@pytest.mark.parametrize(("precision", "dtype"), [("tf32", "float16"), ("bf16", "bfloat16")])
def test_rounded_products(precision, dtype, sizes):
    """States that forget everything are compared with the oracle more closely than these are computed."""
    case = packed(Case(chunk=20, dtype=dtype, rule=RULE, **sizes))
    non_finite.check_attention(With(**TENSOR_CORES | {"dot_precision": precision}), case, ("v", "S_k"))


@PADDING
@PRODUCTS
def test_update(products, sizes):
    case = batch(Case("memory_update", 20, rule=RULE, **sizes | {"dim_v": sizes["dim_k"]}))
    non_finite.check_update(With(**products), case, ("k", "log_decay"))


@PADDING
@PRODUCTS
@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
def test_readout(operator, products, sizes):
    case = batch(Case(operator, 20, rule=RULE, **sizes | {"dim_v": sizes["dim_k"]}))
    non_finite.check_readout(With(**products), case, ("k", "codes", "log_decay"))


@PADDING
@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator, sizes):
    case = Case(operator, lengths=(1,) * len(LENGTHS), rule=RULE, **sizes)
    non_finite.check_step(With(), case, None if sizes is SIZES else ("k", "S_v"))
