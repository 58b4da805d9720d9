"""Triton kernels compiled for GPUs that are not here."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest
import torch

from codegen.backends import backend
from codegen.backends.triton import compile as triton_backend
from codegen.backends.triton import launched
from codegen.device import NAMED, Device, cpu, named
from codegen.errors import BackendUnavailableError, CompileError
from codegen.kernels.build import build, parts
from codegen.kernels.declared import kernels_of
from codegen.layer import Layer
from codegen.render import TEMPLATES, Source, render
from codegen.rule import Rule
from codegen.rules import rule_named
from codegen.schedules import triton_between
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, variants_of
from codegen.schedules.schedule import VARIANTS
from codegen.schedules.triton import TritonSchedule
from codegen.spec import BETWEEN_OPERATORS, Problem, Spec

pytest.importorskip("triton")

SMALL = Problem(batch=1, tokens=1, heads=1, dim_k=16, dim_v=16, slots=12, chunk=16, dtype="bfloat16")
PARTS = [
    (operator, variant)
    for operator in VARIANTS
    for variant in variants_of(operator, "triton")
    if (operator, variant) != ("trellis_attention", "recurrent")
]
BACKWARDS = ("backward", "backward_split", "backward_chunks", "recurrence_backward", "chunks_backward")


def spec_of(operator: str, **sizes: object) -> Spec:
    layer = Layer(width=40, hidden=1500) if operator in BETWEEN_OPERATORS else None
    return Spec(Rule(), dataclasses.replace(SMALL, operator=operator, layer=layer, **sizes))


def schedule_of(variant: str, **settings: object) -> TritonSchedule:
    walks = ("recurrent", "recurrence", "recurrence_backward", "pool")
    precision = "ieee" if variant in (*walks, *triton_between.OF_BETWEEN) else "tf32"
    simple = TritonSchedule(variant, 16, num_warps=2, num_stages=1, dot_precision=precision)
    return dataclasses.replace(simple, **settings)


def sources(spec: Spec, schedule: TritonSchedule, device: Device) -> list[tuple[Source, Spec]]:
    assert why_illegal(spec, schedule, device) is None
    return [(render(kernel, part, schedule, device), part) for kernel, part in parts(spec, schedule)]


def test_nan_passes_the_floor_of_a_norm():
    """The interpreter's maximum keeps NaN either way, a GPU's only where it is told to; 1e-12 is 0f2B8CBCCC."""
    rule = Rule("l2_silu", link="l2_silu", out="l2_silu")
    spec, schedule, device = Spec(rule, spec_of("trellis_step").problem), schedule_of("recurrent"), named("sm_90")
    ((source, part),) = sources(spec, schedule, device)
    floors = re.findall(r"(max[.\w]*)\s.*0f2B8CBCCC", backend("triton").inspect(source, part, schedule, device)["ptx"])
    assert floors
    assert set(floors) == {"max.NaN.f32"}


@pytest.mark.parametrize(("operator", "variant"), PARTS)
def test_every_kernel_compiles_for_sm_90(operator, variant):
    spec, schedule, device = spec_of(operator), schedule_of(variant), named("sm_90")
    if variant in ("split_one_pass", "substitution_one_pass", "chunks", "stale_chunks"):
        rule = rule_named("kda") if variant == "chunks" else Rule("huber", passes=1)
        spec = Spec(rule, dataclasses.replace(spec.problem, slots=spec.problem.dim_v))
    if variant in ("substitution", "substitution_one_pass", "chunks"):
        spec = dataclasses.replace(spec, problem=dataclasses.replace(spec.problem, chunk=1))
    for source, part in sources(spec, schedule, device):
        stages = backend("triton").inspect(source, part, schedule, device)
        assert f".entry {source.kernel}(" in stages["ptx"]
        assert ".target sm_90a" in stages["ptx"]
        assert f"Function : {source.kernel}" in stages["asm"]
        assert "tt.func" in stages["ttir"]
        needs = backend("triton").resources(source, part, schedule, device)
        assert 0 < needs.registers <= 255
        assert needs.spill_bytes == 0
        assert 0 < needs.shared_bytes <= device.shared_bytes
        assert needs.code_bytes > 1000


@pytest.mark.parametrize(
    ("variant", "sizes", "settings", "direction"),
    [
        ("backward", {"chunk": 1}, {"checkpoint_spacing": 16}, "backward"),
        ("backward", {"chunk": 16}, {}, "backward_first_order"),
        ("backward_split", {"chunk": 16}, {}, "backward_first_order"),
        ("backward_split", {"chunk": 40, "dim_v": 24}, {"num_stages": 2, "checkpoint_spacing": 2}, "backward"),
    ],
)
def test_the_backwards_compile_for_sm_90(variant, sizes, settings, direction):
    """Some spill: docs/backward.md says how much."""
    spec, device = spec_of("trellis_attention", direction=direction, **sizes), named("sm_90")
    schedule = schedule_of(variant, **settings)
    for source, part in sources(spec, schedule, device):
        needs = backend("triton").resources(source, part, schedule, device)
        assert 0 < needs.registers <= 255
        assert needs.spill_bytes is not None
        assert 0 < needs.shared_bytes <= device.shared_bytes


@pytest.mark.parametrize("rule", [rule_named("gated_deltanet"), Rule("huber", decay="slot", momentum=True, window=3)])
def test_the_backward_of_any_rule_compiles_for_sm_90(rule):
    """The second has several states, a window and a loss; z is taken at the start of a chunk."""
    device = named("sm_90")
    spec = Spec(rule, dataclasses.replace(SMALL, operator="memory_attention", direction="backward", chunk=rule.window))
    schedule = default("triton", spec, device)
    for source, part in sources(spec, schedule, device):
        needs = backend("triton").resources(source, part, schedule, device)
        assert 0 < needs.registers <= 255
        assert needs.spill_bytes == 0
        assert 0 < needs.shared_bytes <= device.shared_bytes


def test_the_first_order_backward_of_whole_chunks_compiles_for_sm_90():
    """With 64 slots and channels, too, the walk back spills nothing; what gpu-check compiles is bilevel."""
    sizes = {"dim_k": 64, "dim_v": 64, "slots": 64}
    spec, device = spec_of("trellis_attention", direction="backward_first_order", chunk=64, **sizes), named("sm_90")
    schedule = dataclasses.replace(default("triton", spec, device), num_stages=2)
    assert schedule.variant == "backward_chunks"
    spilled = {}
    for source, part in sources(spec, schedule, device):
        needs = backend("triton").resources(source, part, schedule, device)
        assert 0 < needs.shared_bytes <= device.shared_bytes
        spilled[source.kernel] = needs.spill_bytes
    assert spilled["states_backward"] == 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("ieee", "float32"), ("tf32x3", "float32"), ("bf16x3", "float32"), ("tf32", "float16"), ("bf16", "bfloat16")],
)
def test_every_precision_compiles(precision, dtype):
    schedule, device = schedule_of("fused", dot_precision=precision), named("sm_90")
    ((source, part),) = sources(spec_of("trellis_attention", dtype=dtype), schedule, device)
    assert backend("triton").resources(source, part, schedule, device).registers > 0


def test_a_deeper_pipeline_takes_more_shared_memory():
    needs = []
    for stages in (1, 3):
        schedule, device = schedule_of("fused", num_stages=stages), named("sm_90")
        ((source, part),) = sources(spec_of("trellis_attention"), schedule, device)
        needs.append(backend("triton").resources(source, part, schedule, device).shared_bytes)
    assert needs[1] > needs[0]


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
@pytest.mark.parametrize("operator", ["trellis_attention", "trellis_step"])
def test_other_gpus(arch, operator):
    device = named(arch)
    spec = spec_of(operator, dtype="float32")
    schedule = default("triton", spec, device)
    for source, part in sources(spec, schedule, device):
        stages = backend("triton").inspect(source, part, schedule, device)
        assert arch in stages["amdgcn" if device.kind == "hip" else "ptx"]
        assert source.kernel in stages["asm"]
        needs = backend("triton").resources(source, part, schedule, device)
        assert needs.registers > 0
        assert needs.spill_bytes == 0
        assert needs.code_bytes > 1000


def test_the_default_schedule_of_the_paper_s_sizes_in_float16_spills_nothing():
    """Those of the other types are among what gpu-check compiles."""
    spec, device = Spec(Rule(), Problem(dtype="float16")), named("sm_90")
    schedule = default("triton", spec, device)
    for source, part in sources(spec, schedule, device):
        assert backend("triton").resources(source, part, schedule, device).spill_bytes == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_forward_substitution_with_the_paper_s_sizes_spills_nothing(arch):
    """On every GPU; gpu-check lets what is no default of sm_90 spill. These are the numbers of docs/gpu.md."""
    spec, device = Spec(Rule(), Problem(chunk=1, dtype="bfloat16")), named(arch)
    schedule = TritonSchedule("substitution", 16, 4, 1, "bf16", ptxas="blackwell" if arch == "sm_90" else "standard")
    for source, part in sources(spec, schedule, device):
        assert backend("triton").resources(source, part, schedule, device).spill_bytes == 0


def test_the_backward_of_tiles_with_the_paper_s_sizes_spills_nothing():
    problem = Problem("memory_attention", chunk=1, dtype="bfloat16", direction="backward")
    spec, device = Spec(rule_named("gated_deltanet"), problem), named("sm_90")
    schedule = TritonSchedule("chunks_backward", 16, 8, 1, "bf16", checkpoint_spacing=16)
    for source, part in sources(spec, schedule, device):
        assert backend("triton").resources(source, part, schedule, device).spill_bytes == 0


def test_no_cpu():
    device = cpu()
    spec = spec_of("trellis_step")
    schedule = schedule_of("recurrent")
    assert "TRITON_INTERPRET=1" in backend("triton").why_unavailable(device)
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET=1"):
        build(spec, schedule, device)
    ((source, part),) = sources(spec, schedule, device)
    with pytest.raises(BackendUnavailableError, match="sm_90"):
        backend("triton").inspect(source, part, schedule, device)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("r = link(apply(S_k, q))", "r = link(apply(S_k, v))"), ("import triton\n", "import triton_is_not_here\n")],
)
def test_a_source_that_does_not_compile(broken, reason, tmp_path):
    device, schedule = named("sm_90"), schedule_of("recurrent")
    ((source, part),) = sources(spec_of("trellis_step", dim_v=40), schedule, device)
    assert broken in source.text
    path = tmp_path / f"broken_{abs(hash(reason))}.py"
    bad = dataclasses.replace(source, path=path, text=source.text.replace(broken, reason))
    with pytest.raises(CompileError, match=str(path)):
        backend("triton").inspect(bad, part, schedule, device)


def test_a_schedule_chooses_its_assembler(monkeypatch):
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    versions = backend("triton").toolchain()
    spec = Spec(Rule(), Problem("trellis_step", tokens=1, chunk=1, dim_k=16, dim_v=16, slots=16, dtype="bfloat16"))
    made = {}
    for ptxas in ("standard", "blackwell"):
        schedule = schedule_of("recurrent", ptxas=ptxas)
        (source, part), *_ = sources(spec, schedule, NAMED["sm_90"])
        made[ptxas] = triton_backend._compiled(source, part, schedule, NAMED["sm_90"]).asm
        assert backend("triton").resources(source, part, schedule, NAMED["sm_90"]).registers > 0
    assert versions["ptxas"].partition(" ")[0] != versions["ptxas-blackwell"]
    # Triton writes PTX of the version that its assembler reads.
    said = {ptxas: re.search(r"^\.version (\S+)", asm["ptx"], re.MULTILINE).group(1) for ptxas, asm in made.items()}
    assert said["standard"] != said["blackwell"]
    assert made["standard"]["cubin"] != made["blackwell"]["cubin"]
    assert "TRITON_PTXAS_PATH" not in os.environ


def test_toolchain_names_triton_and_its_assembler():
    import triton

    toolchain = backend("triton").toolchain()
    assert toolchain["triton"] == triton.__version__
    assert toolchain["ptxas"][0].isdigit()
    assert "(bundled)" in toolchain["ptxas"] or "(TRITON_PTXAS_PATH)" in toolchain["ptxas"]


def test_every_kernel_is_covered():
    covered = {kernel for variant in (*(v for _, v in PARTS), *BACKWARDS) for kernel in kernels_of(variant, "triton")}
    assert covered == {path.name.removesuffix(".py.j2") for path in (TEMPLATES / "triton").rglob("*.py.j2")}


def test_a_kernel_for_amd_that_was_compiled_without_tensors_takes_no_long_ones():
    """No GPU of AMD is here: its backend is asked what it would compile, and tensors have no data."""
    from triton.backends.amd.compiler import HIPBackend
    from triton.runtime.jit import MockTensor

    short, long = (torch.empty(count, dtype=torch.int8, device="meta") for count in (2**31 - 1, 2**31))
    assert "S" in HIPBackend.get_tensor_specialization(MockTensor(torch.float32), align=True)
    for tensor in (short, long):
        specialised = "S" in HIPBackend.get_tensor_specialization(tensor, align=True)
        assert specialised is launched.are_short((4, tensor), 2**31 - 1)
    assert not launched.are_short((short, long[1:]), 2**31 - 1)


@pytest.mark.parametrize(
    ("kernel", "most"), [("trellis_fused", 88), ("keys_readout", 0), ("values_backward", 712), ("keys_backward", 600)]
)
def test_training_of_many_slots_spills_no_more_than_it_did(kernel, most):
    """Twice the slots of what registers hold; the order of the terms of a map decides some of it."""
    spec, device = Spec(Rule(), Problem(slots=128, dtype="bfloat16", direction="backward")), NAMED["sm_90"]
    schedule = default("triton", spec, device)
    part = dict(parts(spec, schedule))[kernel]
    needs = backend("triton").resources(render(kernel, part, schedule, device), part, schedule, device)
    assert needs.registers <= 255
    assert needs.spill_bytes <= most


def test_the_walk_back_of_gated_slots_spills_nothing():
    """Four matrices are held at once; what a compiler moves out of the loops would take their registers."""
    problem = Problem("memory_attention", chunk=1, dtype="bfloat16", direction="backward")
    spec, device = Spec(rule_named("gsa"), problem), NAMED["sm_90"]
    schedule = default("triton", spec, device)
    part = dict(parts(spec, schedule))["recurrence_backward"]
    source = render("recurrence_backward", part, schedule, device)
    assert backend("triton").resources(source, part, schedule, device).spill_bytes == 0
