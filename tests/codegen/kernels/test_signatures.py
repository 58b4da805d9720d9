"""The declared arguments of kernels: what templates, pointer types and buffers are made from."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from codegen.device import NAMED, Device, cpu
from codegen.errors import UnknownKernelError
from codegen.kernels import exact_update, rule_arguments
from codegen.kernels.arguments import AXES, IN_PLACE, READ, WRITTEN
from codegen.kernels.build import parts
from codegen.kernels.declared import kernel_arguments, launches_of, operator_arguments
from codegen.kernels.launches import LAUNCHES
from codegen.kernels.pool.arguments import CAPACITY, FIRST_HEADS, STRIDE, pooled
from codegen.kernels.signatures import KERNELS, OPERATORS, TENSORS
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default, variants_of
from codegen.spec import DIRECTIONS, POOL_OPERATOR, Problem, Spec
from codegen.spec import OPERATORS as NAMES_OF_OPERATORS

OFFSETS = {"cu_seqlens", "chunk_offsets", "most_chunks"}
NUMBERS = {"wanted", "segments"}
BACKENDS = {"tvm": cpu(), "triton": NAMED["sm_90"]}


def cases() -> list[tuple[Spec, str, str]]:
    """Every operator, direction, backend and variant that there is."""
    return [
        (Spec(Rule(), Problem(operator, chunk=1 if "step" in operator else 64, direction=direction)), backend, variant)
        for operator in (*NAMES_OF_OPERATORS, POOL_OPERATOR)
        for direction in DIRECTIONS
        for backend in BACKENDS
        for variant in variants_of(operator, backend, direction)
    ]


def named(case: tuple[Spec, str, str]) -> str:
    spec, backend, variant = case
    return f"{spec.problem.operator}-{spec.problem.direction}-{backend}-{variant}"


def test_every_operator_and_every_kernel_is_declared_and_launched():
    assert set(OPERATORS) == set(NAMES_OF_OPERATORS)
    exact = exact_update.VARIANTS
    launched = {launch.kernel for launches in (*LAUNCHES.values(), *exact.values()) for launch in launches}
    assert launched | {"trellis_update"} == {*KERNELS, *rule_arguments.KERNELS, exact_update.KERNEL}
    used = {name for groups in (*KERNELS.values(), *OPERATORS.values()) for group in groups for name in group.names}
    assert used == set(TENSORS)
    assert {axis for axes, _ in TENSORS.values() for axis in axes.split()} <= set(AXES)


def test_a_kernel_without_a_declaration_is_refused():
    with pytest.raises(UnknownKernelError, match="no_such_kernel"):
        kernel_arguments("no_such_kernel", Spec(Rule(), Problem()), default("tvm", Spec(Rule(), Problem()), cpu()))


@pytest.mark.parametrize("case", cases(), ids=named)
def test_what_a_kernel_reads_was_given_or_written_before(case):
    spec, backend, variant = case
    device: Device = BACKENDS[backend]
    schedule = replace(default(backend, spec, device), variant=variant)
    known = OFFSETS | NUMBERS | {CAPACITY, FIRST_HEADS, *(f"{name}{STRIDE}" for name in pooled(spec))}
    known |= {each.name for each in operator_arguments(spec) if each.access in (READ, IN_PLACE)}
    written = set()
    for launch in launches_of(variant, backend):
        for argument in kernel_arguments(launch.kernel, launch.spec_of(spec), schedule):
            name = launch.buffer_of(argument.name)
            if argument.access != WRITTEN:
                assert name in known, f"{launch.kernel} reads {name}, which nothing has written"
        for argument in kernel_arguments(launch.kernel, launch.spec_of(spec), schedule):
            if argument.access != READ:
                known.add(launch.buffer_of(argument.name))
                written.add(launch.buffer_of(argument.name))
    results = {each.name for each in operator_arguments(spec) if each.access != READ}
    assert results <= written, f"nothing writes {results - written}"


@pytest.mark.parametrize("case", cases(), ids=named)
def test_the_source_of_a_kernel_has_its_declared_parameters(case):
    spec, backend, variant = case
    schedule = replace(default(backend, spec, BACKENDS[backend]), variant=variant)
    for kernel, part in dict.fromkeys(parts(spec, schedule)):
        tree = ast.parse(render(kernel, part, schedule, BACKENDS[backend]).text)
        (function,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == kernel)
        given = [parameter.arg for parameter in function.args.args]
        declared = [each.name for each in kernel_arguments(kernel, part, schedule)]
        bare = [name.removesuffix("_ptr") if backend == "triton" else name.removesuffix("_") for name in given]
        assert bare == ([*declared, "H"] if backend == "triton" else ["programs", *declared])


@pytest.mark.parametrize("case", [case for case in cases() if case[1] == "triton"], ids=named)
def test_the_first_argument_of_a_kernel_of_triton_says_how_many_heads_there_are(case):
    spec, backend, variant = case
    schedule = replace(default(backend, spec, BACKENDS[backend]), variant=variant)
    for kernel, part in parts(spec, schedule):
        first, *_ = kernel_arguments(kernel, part, schedule)
        assert first.axes[:2] == ("tokens", "heads")
