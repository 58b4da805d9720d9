"""Every TVM kernel, compiled and run on this CPU, against the oracle in float64."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from codegen.backends import backend
from codegen.device import NAMED, cpu
from codegen.errors import CompileError
from codegen.kernels.build import build, parts
from codegen.kernels.operator import CompiledOperator
from codegen.render import render
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec
from tests.emulators.assembly import ProductLoop, product_loops
from tests.support.cases.kernels import Case, check_attention, check_readout, check_step, check_update

SILU = Rule("silu", link="silu")
CHUNKED = ("fused", "pair", "split")
# A tile of these variants ends with its chunk: it is no longer than the chunk, or the shortest there is.
SMALL_TILES = ((1, 4), (16, 16), (20, 16), (64, 16))


class With:
    """Builds specs with the default schedule, changed as told."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def __call__(self, spec: Spec) -> CompiledOperator:
        untiled = {"accumulators": 4} if self.changes.get("variant") == "recurrent" else {}
        schedule = dataclasses.replace(default("tvm", spec, cpu()), **untiled, **self.changes)
        if untiled:
            schedule = dataclasses.replace(schedule, tile_tokens=schedule.vector_width)
        return build(spec, schedule, cpu())


def tiled(variant: str, tile: int) -> With:
    """The variant with tiles of `tile` tokens, in the widest vectors that this machine has and the tile fills."""
    return With(variant=variant, tile_tokens=tile, vector_width=min(tile, cpu().vector_bits // 32))


# All variants have their maps from the same macros.
@pytest.mark.parametrize(
    ("phi", "variant", "dim_k", "dim_v", "slots"),
    [
        ("identity", "fused", 1, 1, 1),
        ("silu", "fused", 3, 40, 2),
        ("ln_silu", "fused", 33, 5, 17),
        ("l2_silu", "fused", 64, 64, 64),
        ("softmax", "fused", 80, 96, 48),
        ("ln_silu", "pair", 3, 40, 2),
        ("softmax", "pair", 33, 5, 17),
        ("silu", "split", 1, 1, 1),
        ("l2_silu", "split", 80, 96, 48),
        ("ln_silu", "fused", 20, 12, 18),
        ("softmax", "pair", 20, 12, 18),
        ("l2_silu", "split", 20, 12, 18),
    ],
)
def test_every_write_map_and_size(phi, variant, dim_k, dim_v, slots):
    rule = Rule(phi, phi_eps=1e-2)
    check_attention(tiled(variant, 8), Case(dim_k=dim_k, dim_v=dim_v, slots=slots, rule=rule))


def test_every_map_has_a_write():
    assert {"identity", "silu", "ln_silu", "l2_silu", "softmax"} == set(MAPS)


@pytest.mark.parametrize(
    ("name", "variant"),
    [*((name, "fused") for name in MAPS if name != "identity"), ("softmax", "pair"), ("ln_silu", "split")],
)
def test_every_readout_map(name, variant):
    check_attention(With(variant=variant), Case(rule=Rule("identity", link=name, out=name)))


@pytest.mark.parametrize("phi", MAPS)
@pytest.mark.parametrize("step_size", ["head", "token"])
def test_recurrent(phi, step_size):
    rule = Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size=step_size)
    check_attention(With(variant="recurrent"), Case(chunk=1, lengths=(9, 9), rule=rule))


@pytest.mark.parametrize(
    ("chunk", "tile", "variant"),
    [
        *((chunk, tile, "fused") for chunk, tile in [(1, 4), (16, 16), (33, 8), (70, 64), (2**30, 16)]),
        *((chunk, tile, "pair") for chunk, tile in [(2, 8), (70, 64)]),
        *((chunk, tile, "split") for chunk, tile in [(33, 8), (2**30, 16)]),
    ],
)
def test_every_chunk_and_tile(chunk, tile, variant):
    check_attention(tiled(variant, tile), Case(chunk=chunk, lengths=(7,) if chunk < 16 else (67,)))


# Both variants meet every tile and every map; all three with each other would be 36 kernels.
@pytest.mark.parametrize(
    ("chunk", "tile", "variant", "phi"),
    [
        (1, 16, "fused", "softmax"),
        (1, 16, "pair", "ln_silu"),
        (3, 16, "fused", "ln_silu"),
        (3, 16, "pair", "softmax"),
        (16, 64, "pair", "identity"),
        (24, 64, "fused", "ln_silu"),
        (20, 32, "fused", "identity"),
    ],
)
def test_tiles_that_span_chunks(chunk, tile, variant, phi):
    case = Case(chunk=chunk, lengths=(41, 67, 1, 16), packed=True, rule=Rule(phi, phi_eps=1e-2, step_size="token"))
    check_attention(tiled(variant, tile), case)


def test_strong_forgetting_in_tiles_that_span_chunks():
    for chunk, phi in ((3, "ln_silu"), (8, "identity")):
        case = Case(chunk=chunk, lengths=(67,), rule=Rule(phi, phi_eps=1e-2, step_size="token"))
        inputs = case.inputs()
        inputs.log_decay[:, ::3] = float("-inf")
        inputs.log_decay[:, 1::3] = -40.0
        check_attention(tiled("fused", 16), case, inputs)


@pytest.mark.parametrize(("width", "accumulators"), [(4, 4), (8, 12), (16, 4), (16, 12)])
def test_every_vector_width(width, accumulators):
    if width * 32 > cpu().vector_bits:
        pytest.skip(f"{cpu().arch} has {cpu().vector_bits}-bit vectors")
    check_attention(With(vector_width=width, tile_tokens=16, accumulators=accumulators), Case())
    check_attention(With(variant="recurrent", vector_width=width), Case(chunk=1, lengths=(5,)))


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [*((variant, "bfloat16") for variant in (*CHUNKED, "recurrent")), ("fused", "float16"), ("recurrent", "float16")],
)
def test_half_precision_inputs_and_a_step_size_per_token(variant, dtype):
    rule = Rule(phi_eps=1e-2, step_size="token")
    check_attention(With(variant=variant), Case(chunk=1 if variant == "recurrent" else 20, dtype=dtype, rule=rule))


@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(1, 1, 1), (33, 5, 17), (64, 64, 64), (80, 130, 48)])
def test_sizes_of_the_recurrent_variant(dim_k, dim_v, slots):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check_attention(With(variant="recurrent"), Case(chunk=1, lengths=(5,), rule=SILU, **sizes))


@pytest.mark.parametrize("chunk", [1, 64])
def test_the_largest_sizes(chunk):
    sizes = {"dim_k": 256, "dim_v": 256, "slots": 256, "heads": 1}
    check_attention(With(), Case(chunk=chunk, lengths=(5,) if chunk == 1 else (70,), **sizes))


def test_step_size_per_token():
    check_attention(With(), Case(chunk=20, rule=Rule(phi_eps=1e-2, step_size="token")))


@pytest.mark.parametrize("variant", [*CHUNKED, "recurrent"])
def test_packed_sequences(variant):
    chunk = 1 if variant == "recurrent" else 20
    check_attention(With(variant=variant), Case(chunk=chunk, lengths=(41, 0, 1, 20, 5), packed=True))


@pytest.mark.parametrize("variant", [*CHUNKED, "recurrent"])
def test_forgetting_everything(variant):
    case = Case(chunk=1 if variant == "recurrent" else 20)
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check_attention(With(variant=variant), case, inputs)


def test_zero_state():
    case = Case()
    check_attention(With(), case, case.inputs(state="zero"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("heads", [1, 5])
def test_programs_that_threads_do_not_divide(threads, heads):
    if threads > cpu().cores:
        pytest.skip(f"{cpu().cores} core")
    check_attention(With(threads=threads), Case(heads=heads, lengths=(21, 21, 21)))


def test_inputs_that_no_vector_is_aligned_to():
    case = Case(dim_k=16, dim_v=16, slots=16)
    inputs = case.inputs()

    def shifted(x: torch.Tensor) -> torch.Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    check_attention(With(), case, inputs.map(shifted))


@pytest.mark.parametrize(("chunk", "tile"), SMALL_TILES)
def test_update(chunk, tile):
    check_update(tiled("update", tile), Case("memory_update", chunk, lengths=(47, 47), dim_v=20))


@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
@pytest.mark.parametrize(
    ("chunk", "tile", "dtype"), [(1, 4, "float32"), (16, 16, "bfloat16"), (20, 16, "float32"), (64, 16, "bfloat16")]
)
def test_readout(chunk, tile, dtype, operator):
    check_readout(tiled("readout", tile), Case(operator, chunk, lengths=(47, 47), dim_v=20, dtype=dtype))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step(operator, dtype):
    check_step(With(), Case(operator, lengths=(1, 1, 1), dtype=dtype))


# Of the others `loops_of_forward` compiles attention.
@pytest.mark.parametrize(
    ("arch", "operator"),
    [
        ("x86-64-v2", "trellis_attention"),
        *((arch, "trellis_step") for arch in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")),
    ],
)
def test_kernels_compile_for_cpus_that_are_not_here(arch, operator):
    device, compiler = NAMED[arch], backend("tvm")
    spec = Case(operator, dim_k=64, dim_v=64, slots=64, chunk=64).spec
    schedule = default("tvm", spec, device)
    ((kernel, part),) = parts(spec, schedule)
    source = render(kernel, part, schedule, device)
    text = compiler.inspect(source, part, schedule, device)["asm"]
    assert {"x86-64-v2": "mulps", "x86-64-v3": "ymm", "x86-64-v4": "zmm", "aarch64": "fmla"}[arch] in text
    assert "expf" not in text or operator == "trellis_step"
    assert compiler.resources(source, part, schedule, device).code_bytes > 1000


def loops_of_forward(arch: str, dim: int, **changes: object) -> list[ProductLoop]:
    """The product loops of the forward kernel that this machine would have by default, its schedule changed as told."""
    spec, device = Case(dim_k=dim, dim_v=dim, slots=dim, chunk=64).spec, NAMED[arch]
    schedule = dataclasses.replace(default("tvm", spec, device), **changes)
    source = render("trellis_fused", spec, schedule, device)
    return product_loops(backend("tvm").inspect(source, spec, schedule, device)["asm"])


@pytest.mark.parametrize("arch", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_product_loops_keep_everything_in_registers(arch, dim):
    loops = loops_of_forward(arch, dim)
    assert len(loops) > 10
    assert [loop for loop in loops if loop.stack_accesses] == []


@pytest.mark.parametrize("dim", [16, 64, 256])
def test_product_loops_of_neon_read_few_operands_from_the_stack(dim):
    # LLVM unrolls a product whose depth is a tile, takes the loads of its 64 vectors out of the loop over rows, and
    # has 32 registers: the others are read from the stack, as they would have been from their buffer.
    loops = loops_of_forward("aarch64", dim)
    assert len(loops) >= 10
    for loop in loops:
        assert loop.stack_accesses <= loop.multiply_adds / 2
        assert loop.stack_stores <= loop.multiply_adds / 32
        assert not loop.stack_accesses or loop.multiply_adds >= 256


def test_sums_that_do_not_fit_are_seen_on_the_stack():
    loops = loops_of_forward("x86-64-v3", 64, accumulators=12)
    assert any(loop.stack_stores for loop in loops)


@pytest.mark.parametrize(
    ("operator", "dim"), [("trellis_attention", 48), ("trellis_attention", 112), ("trellis_step", 80)]
)
def test_products_sum_in_vectors_that_processors_have(operator, dim):
    device = NAMED["x86-64-v4"]
    spec = Case(operator, dim_k=dim, dim_v=dim, slots=dim, chunk=64).spec
    schedule = default("tvm", spec, device)
    ((kernel, part),) = parts(spec, schedule)
    text = backend("tvm").inspect(render(kernel, part, schedule, device), part, schedule, device)["llir"]
    lanes = {int(count) for count in re.findall(r"<(\d+) x float>", text)}
    # LLVM takes a vector of 48 lanes apart, and the kernel is ten times slower.
    assert schedule.vector_width in lanes
    assert all(count & (count - 1) == 0 for count in lanes)


def test_a_source_that_does_not_parse_is_a_compile_error(tmp_path):
    spec = Case().spec
    schedule = default("tvm", spec, cpu())
    text = "from tvm.script import tirx as T\nthis is not Python\n"
    source = dataclasses.replace(render("trellis_fused", spec, schedule, cpu()), text=text, path=tmp_path / "broken.py")
    with pytest.raises(CompileError, match=r"broken\.py"):
        backend("tvm").compile(source, spec, schedule, cpu())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vector_width": 32}, "vectors"),
        ({"tile_tokens": 24}, "multiple"),
        ({"variant": "split", "tile_tokens": 64}, "exceeds the chunk"),
        ({"accumulators": 32}, "accumulators"),
        ({"threads": 4096}, "cores"),
        ({"variant": "recurrent"}, "chunk 1"),
        ({"variant": "step"}, "no variant"),
    ],
)
def test_illegal_schedules_say_why(changes, reason):
    schedule = TvmSchedule("fused", tile_tokens=32, vector_width=16, accumulators=16, threads=1)
    illegal = why_illegal(Case(chunk=20).spec, dataclasses.replace(schedule, **changes), NAMED["x86-64-v4"])
    assert illegal is not None
    assert reason in illegal
