"""`python -m codegen show`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codegen import __main__ as command_line
from codegen.device import named
from codegen.kernels import exact_update
from codegen.kernels.rule_arguments import CHUNKS, STALE
from codegen.render import KERNELS, TEMPLATES, render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec

ROOT = Path(__file__).parent.parent.parent


def show(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    assert command_line.main(["show", *shlex.split(arguments)]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    assert command_line.main(["show", *shlex.split(arguments)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_prints_the_source_that_would_be_compiled(capsys):
    spec, device = Spec(Rule(), Problem(batch=1, tokens=1, heads=1, dim_k=32, dim_v=32, slots=24)), named("sm_90")
    schedule = replace(default("triton", spec, device), variant="fused")
    source = render("trellis_fused", spec, schedule, device)
    assert show(capsys, "trellis_fused --backend triton --slots 24 --dim 32") == source.text


ARCHITECTURES = {"triton": "sm_90", "tvm": "x86-64-v3", "tvm_cuda": "sm_90"}


@pytest.mark.parametrize(
    ("kernel", "folder"),
    [
        (kernel, folder)
        for kernel in KERNELS
        for folder in ARCHITECTURES
        if any((TEMPLATES / folder).rglob(f"{kernel}.py.j2"))
    ],
)
def test_the_header_s_command_prints_the_same_again(capsys, kernel, folder):
    options = "--dim-k 24 --dim-v 24 --slots 20 --chunk 20 --dtype bfloat16 --phi l2_silu --step-size token"
    if kernel in CHUNKS:
        options = "--dim-k 24 --dim-v 40 --chunk 1 --dtype bfloat16 --rule gated_deltanet"
    if kernel == STALE:
        options = "--dim-k 24 --dim-v 40 --chunk 16 --dtype bfloat16 --rule yaad"
    options += " --chunk 1" if kernel == exact_update.KERNEL else ""
    if folder == "triton" and kernel in (exact_update.KERNEL, "memory_chunks_backward"):
        options += " --set dot_precision=bf16"  # The default is a walk, which has no products.
    backend, _, _ = folder.partition("_")
    text = show(capsys, f"{kernel} --backend {backend} --device {ARCHITECTURES[folder]} {options}")
    (path,) = (TEMPLATES / folder).rglob(f"{kernel}.py.j2")
    assert f"templates/{path.relative_to(TEMPLATES)}" in text
    (again,) = (line for line in text.splitlines() if line.startswith("# again"))
    command = again.removeprefix("# again").strip()
    assert command.startswith("python -m codegen show ")
    assert show(capsys, command.removeprefix("python -m codegen show ")) == text


def test_the_header_s_command_has_a_user_s_maps_as_a_shell_takes_them(capsys):
    maps = "--phi 'shown(z, a) = abs(z - a) ** 3' --link 'leaky_shown(z) = max(z, 0) + 0.1 * z' --out silu"
    text = show(capsys, f"memory_step --backend tvm --device x86-64-v3 {maps}")
    (again,) = (line for line in text.splitlines() if line.startswith("# again"))
    command = f"{sys.executable} {again.removeprefix('# again').strip().removeprefix('python ')}"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True).stdout == text


@pytest.mark.parametrize("kernel", ["recurrence", "recurrence_backward"])
@pytest.mark.parametrize("rule", ["gated_deltanet", "lattice", '{"decay": "slot", "step_size": "token"}'])
def test_a_rule_by_name_or_fields(capsys, rule, kernel):
    options = f"{kernel} --rule {shlex.quote(rule)} --dim 16 --slots 16 --chunk 1"
    text = show(capsys, options)
    assert "/rule(phi=" in text
    (again,) = (line for line in text.splitlines() if line.startswith("# again"))
    command = f"{sys.executable} {again.removeprefix('# again').strip().removeprefix('python ')}"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True).stdout == text


def test_without_a_kernel_it_is_that_of_any_rule(capsys):
    assert show(capsys, "--rule yaad --dim 16") == show(capsys, "recurrence --rule yaad --dim 16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--rule nothing", "rule='nothing' is no known rule; give a Rule, or choose one of: trellis, linear"),
        ("--rule '{\"decays\": 1}'", "rule field decays=1: there is no such field"),
        ("--rule gla --phi softmax", "it is the whole rule; leave out --phi"),
    ],
)
def test_what_is_no_rule_is_said(capsys, options, words):
    assert words in refusal(capsys, f"recurrence {options}")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--phi nothing", "argument --phi: phi='nothing' is no known map; choose one of: identity, silu"),
        ("--link 'wrong(z) = sinh(z)'", "sinh(z)' is no map or loss: sinh of 1 arguments is no function of a map"),
        ("--out 'loss_read(z, a) = z * a'", "argument --out: out='loss_read(z, a) = z * a' is no known map"),
    ],
)
def test_what_is_no_map_is_said_by_its_option(capsys, option, words):
    with pytest.raises(SystemExit) as stopped:
        show(capsys, f"memory_step {option}")
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_update_of_a_split_program_can_be_shown(capsys):
    schedule = "--set variant=split --set tile_rows=32"
    assert "variant=split,tile_rows=32" in show(capsys, f"memory_update --operator memory_update {schedule}")


@pytest.mark.parametrize(
    ("kernel", "backend", "other"), [("keys_readout", "tvm", "triton"), ("trellis_pair", "triton", "tvm")]
)
def test_a_kernel_of_the_other_backend_is_not_called_unknown(capsys, kernel, backend, other):
    said = refusal(capsys, f"{kernel} --backend {backend}")
    assert f"{backend} has no kernel '{kernel}', {other} has; give --backend {other}, or choose one of: " in said
    assert "trellis_fused (what" in said or "trellis_update (what" in said
    assert "unknown" not in said


def test_what_the_compiler_made_of_it(capsys):
    pytest.importorskip("triton")
    kernel = "memory_step --slots 16 --dim 16"
    assert ".entry memory_step(" in show(capsys, f"{kernel} --ptx")
    assert "Function : memory_step" in show(capsys, f"{kernel} --asm")
    assert "ttg.num-warps" in show(capsys, f"{kernel} --stage ttgir")
    names = [line.split()[0] for line in show(capsys, f"{kernel} --resources").splitlines()]
    assert names == ["registers", "spill_bytes", "shared_bytes", "code_bytes", "mma", "wgmma"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trellis_fused --slots 0", "slots=0"),
        ("trellis_fused --dim-k 0", "dim_k=0"),
        ("trellis_fused --phi-eps -1", "phi_eps=-1.0"),
        ("trellis_fused --device sm_1", "sm_1"),
        ("trellis_fused --device=", "'' is no known device"),
        ("trellis_fused --set tile_rows=17", "tile_rows=17"),
        ("trellis_fused --set colour=red", "colour"),
        ("trellis_fused --set tile_rows=64 --chunk 16", "exceeds the chunk of 16"),
        ("trellis_fused --operator trellis_step", "memory_step"),
        ("memory_step --device here --ptx", "name one, such as sm_90"),
        ("memory_step --stage poetry", "ttir, ttgir, llir, ptx, asm"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, words):
    message = refusal(capsys, arguments)
    assert words in message
    assert message.startswith("error: ") and message.count("\n") == 1


def test_every_flag_has_help():
    parser = command_line._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for action in commands.choices["show"]._actions:
        assert action.help, action.option_strings


def test_a_reader_may_stop_early():
    pytest.importorskip("triton")
    show_much = f"{sys.executable} -m codegen show memory_step --slots 16 --dim 16 --asm"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {show_much} | head -c 1"], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")
