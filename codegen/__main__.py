"""The command line of the compiler.

`python -m codegen show KERNEL` prints a generated source, or what became of it; `python -m codegen arguments` says what
every kernel is called with; `python -m codegen clean-cache` removes what can be generated again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
from dataclasses import fields, replace
from functools import partial

from codegen.backends import Resources, backend
from codegen.cache.kernels import kernels_folder
from codegen.device import NAMED, Device, named
from codegen.errors import (
    IllegalScheduleError,
    KernelOfBackendError,
    MapTextError,
    RuleError,
    TrellisError,
    UnknownKernelError,
    UnknownMapError,
    UnknownStageError,
)
from codegen.kernels import exact_update
from codegen.kernels.declared import is_of_a_backward, kernels_of
from codegen.kernels.rule_arguments import CHUNKS
from codegen.layer import Layer, layer_of_key
from codegen.maps.registry import named_map
from codegen.render import KERNELS, Source, generated_folder, render
from codegen.rule import MAPS, STEP_SIZES, Rule
from codegen.rule_text import rule_of_text
from codegen.rules import rule_named
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, backends, default, from_settings, kind_of, variants_of
from codegen.schedules.schedule import Schedule
from codegen.spec import DIRECTIONS, DTYPES, FAMILY_OPERATORS, LAYER_OPERATORS, OPERATORS, Problem, Spec
from codegen.tables.arguments import arguments_table, tensors_table
from codegen.tables.rules import field_table, named_table

_OPERATORS = (*OPERATORS, *FAMILY_OPERATORS, *LAYER_OPERATORS)
_LAYER = Layer(768, 2048)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(_COMMANDS[options.command](options).rstrip("\n"), flush=True)
    except TrellisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough; without this Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codegen", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "clean-cache",
        help="remove generated sources and compiled kernels",
        description="Remove generated sources and compiled kernels; studies and tuning records stay.",
    )
    commands.add_parser(
        "arguments",
        help="print what every kernel is called with",
        description="Print the declared arguments of every kernel, and the shapes and types of their names.",
    )
    commands.add_parser(
        "rules",
        help="print the fields of a rule, and the rules that have a name",
        description="Print the fields of a rule, and the rules that have a name, as docs/rules.md has them.",
    )
    _add_show(commands)
    return parser


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = commands.add_parser(
        "show",
        help="print a generated kernel",
        description="Print the source of a kernel with its header, or what its compiler made of it.",
    )
    show.add_argument("kernel", choices=KERNELS, help="template to render")
    show.add_argument(
        "--backend", choices=backends(), default="triton", help="compiler to render for (default: %(default)s)"
    )
    _add_problem(show)
    _add_rule(show)
    usual = ", ".join(f"{kind.shown_for} for {name}" for name, kind in SCHEDULES.items())
    show.add_argument("--device", help=f"'here' for this machine's CPU, or {', '.join(NAMED)} (default: {usual})")
    show.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the schedule, instead of its default; may be repeated",
    )
    output = show.add_mutually_exclusive_group()
    output.add_argument("--ptx", dest="stage", action="store_const", const="ptx", help="print the PTX")
    output.add_argument("--asm", dest="stage", action="store_const", const="asm", help="print the machine's assembly")
    output.add_argument("--stage", metavar="NAME", help="print this stage of the compiler, such as ttgir or llvm")
    output.add_argument("--resources", action="store_true", help="print registers, spills, shared memory, code size")


def _add_problem(show: argparse.ArgumentParser) -> None:
    problem = Problem()
    show.add_argument("--operator", choices=_OPERATORS, help="operator it is part of (default: the kernel's own)")
    show.add_argument("--direction", choices=DIRECTIONS, help="which way (default: the kernel's own)")
    show.add_argument("--dim", type=int, metavar="D", help="both head dimensions at once")
    show.add_argument("--dim-k", type=int, metavar="D", help=f"width of q and k (default: {problem.dim_k})")
    show.add_argument("--dim-v", type=int, metavar="D", help=f"width of v and y (default: {problem.dim_v})")
    show.add_argument(
        "--slots", type=int, metavar="M", default=problem.slots, help="memory slots (default: %(default)s)"
    )
    chunk = f"chunk size (default: {problem.chunk}; 1 for kernels of any rule)"
    show.add_argument("--chunk", type=int, metavar="C", help=chunk)
    show.add_argument(
        "--dtype", choices=DTYPES, default=problem.dtype, help="type of the inputs (default: %(default)s)"
    )
    of_layers = " and ".join(LAYER_OPERATORS)
    show.add_argument(
        "--heads", type=int, metavar="H", default=1, help=f"heads, for {of_layers} (default: %(default)s)"
    )
    show.add_argument(
        "--layer",
        metavar="KEY",
        type=_layer,
        help=f"the sizes around the memories, for {of_layers} (default: {_LAYER.key()})",
    )


def _add_rule(show: argparse.ArgumentParser) -> None:
    rule = Rule()
    show.add_argument(
        "--rule",
        metavar="RULE",
        help="the whole rule, instead of the options below: a name such as gated_deltanet, or a JSON object of fields",
    )
    maps = f"{', '.join(MAPS)}, or a text such as 'cubic(z) = z ** 3'"
    show.add_argument(
        "--phi",
        metavar="MAP",
        type=partial(_map, "phi"),
        default=rule.phi,
        help=f"write map or inner loss: {maps} (default: %(default)s)",
    )
    show.add_argument("--phi-eps", type=float, default=rule.phi_eps, help="its epsilon (default: %(default)s)")
    for role, name, says in (
        ("link", rule.link, "map between the passes"),
        ("out", rule.out, "map of the last readout"),
    ):
        show.add_argument(
            f"--{role}", metavar="MAP", type=partial(_map, role), default=name, help=f"{says} (default: %(default)s)"
        )
    show.add_argument(
        "--step-size", choices=STEP_SIZES, default=rule.step_size, help="step_size per (default: %(default)s)"
    )


def _layer(key: str) -> Layer:
    try:
        return layer_of_key(key)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{error}; one is {_LAYER.key()}") from error


def _map(role: str, name: str) -> str:
    try:
        return str(named_map(role, name))
    except (MapTextError, UnknownMapError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _show(options: argparse.Namespace) -> str:
    spec = _spec(options)
    device = named(kind_of(options.backend).shown_for if options.device is None else options.device)
    schedule = _schedule(options, spec, device)
    source = render(options.kernel, spec, schedule, device)
    if options.stage:
        return _stage(options.stage, source, spec, schedule, device)
    if options.resources:
        return _table(backend(schedule.backend).resources(source, spec, schedule, device))
    return source.text


def _clean_cache(options: argparse.Namespace) -> str:
    lines = []
    for folder in (generated_folder(), kernels_folder()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        if folder.exists():
            shutil.rmtree(folder)
        lines.append(f"{folder}: {len(sizes)} files removed, {sum(sizes) / 1e6:.1f} MB")
    return "\n".join(lines)


def _arguments(options: argparse.Namespace) -> str:
    return f"{arguments_table()}\n\n{tensors_table()}"


def _rules(options: argparse.Namespace) -> str:
    return f"{field_table()}\n\n{named_table()}"


_COMMANDS = {"arguments": _arguments, "rules": _rules, "show": _show, "clean-cache": _clean_cache}


def _spec(options: argparse.Namespace) -> Spec:
    rule = _rule(options)
    dim = Problem().dim_k if options.dim is None else options.dim
    dim_v = dim if options.dim_v is None else options.dim_v
    operator = options.operator or _operator_of(options.kernel, rule)
    usual_chunk = 1 if operator in FAMILY_OPERATORS or options.kernel == exact_update.KERNEL else Problem().chunk
    problem = Problem(
        operator=operator,
        batch=1,
        # The default for few tokens is a walk, whose settings need not suit tiles.
        tokens=Problem().tokens if options.kernel in CHUNKS else 1,
        heads=options.heads if operator in LAYER_OPERATORS else 1,
        dim_k=dim if options.dim_k is None else options.dim_k,
        dim_v=dim_v,
        slots=options.slots if rule.passes == 2 else dim_v,
        chunk=usual_chunk if options.chunk is None else options.chunk,
        dtype=options.dtype,
        direction=options.direction or ("backward" if is_of_a_backward(options.kernel) else "forward"),
        layer=(options.layer or _LAYER) if operator in LAYER_OPERATORS else None,
    )
    return Spec(rule, problem)


def _rule(options: argparse.Namespace) -> Rule:
    by_options = Rule(options.phi, options.link, options.out, options.phi_eps, options.step_size)
    if options.rule is None:
        return by_options
    if by_options != Rule():
        reason = "it is the whole rule; leave out --phi, --phi-eps, --link, --out and --step-size"
        raise RuleError(field="rule", value=options.rule, reason=reason)
    return rule_of_text(options.rule) if options.rule.lstrip().startswith("{") else rule_named(options.rule)


def _schedule(options: argparse.Namespace, spec: Spec, device: Device) -> Schedule:
    own = _variants_with(options.kernel, options.backend, spec.problem)
    if not own:
        raise _no_kernel(options.kernel, options.backend, spec.problem)
    settings: dict[str, object] = {**default(options.backend, spec, device).settings(), "variant": own[0]}
    for assignment in options.set:
        name, _, value = assignment.partition("=")
        settings[name] = int(value) if value.isdecimal() else value
    schedule = from_settings(options.backend, settings)
    # memory_update as a part of "split" is rendered for its own operator, so the variant may be another's.
    reason = why_illegal(spec, replace(schedule, variant=own[0]), device)
    if reason is not None:
        raise IllegalScheduleError(schedule=schedule.key(), spec=spec.key(), reason=reason)
    return schedule


def _operator_of(kernel: str, rule: Rule) -> str:
    """The kernel's own operator, if attention is not the only one that launches it; TRELLIS' for its rules."""
    if kernel == exact_update.KERNEL and rule.is_trellis:
        return "trellis_attention"
    for operator in _OPERATORS:
        kinds = itertools.product(backends(), DIRECTIONS)
        variants = {(variant, name) for name, way in kinds for variant in variants_of(operator, name, way)}
        launched = {each for variant, name in variants for each in kernels_of(variant, name)}
        if operator != "trellis_attention" and kernel in launched:
            return operator
    return "trellis_attention"


def _variants_with(kernel: str, backend_name: str, problem: Problem) -> list[str]:
    variants = variants_of(problem.operator, backend_name, problem.direction)
    return [variant for variant in variants if kernel in kernels_of(variant, backend_name)]


def _no_kernel(kernel: str, backend_name: str, problem: Problem) -> TrellisError:
    """The error that says who has the kernel, if another backend does, and what this one has instead."""
    variants = variants_of(problem.operator, backend_name, problem.direction)
    has = sorted({each for variant in variants for each in kernels_of(variant, backend_name)})
    known = f"{', '.join(has)} (what {backend_name} has for {problem.operator}, {problem.direction})"
    other = next((name for name in backends() if _variants_with(kernel, name, problem)), None)
    if other is None:
        return UnknownKernelError(name=kernel, known=known)
    return KernelOfBackendError(name=kernel, backend=backend_name, other=other, known=known)


def _stage(name: str, source: Source, spec: Spec, schedule: Schedule, device: Device) -> str:
    stages = backend(schedule.backend).inspect(source, spec, schedule, device)
    if name not in stages:
        raise UnknownStageError(name=name, backend=schedule.backend, device=device.arch, known=", ".join(stages))
    return stages[name]


def _table(resources: Resources) -> str:
    values = ((field.name, getattr(resources, field.name)) for field in fields(resources))
    return "\n".join(f"{name:13} {'unknown' if value is None else value}" for name, value in values)


if __name__ == "__main__":
    sys.exit(main())
