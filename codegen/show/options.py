"""The options of `python -m codegen show`."""

from __future__ import annotations

import argparse
from functools import partial

from codegen.device import NAMED
from codegen.errors import MapTextError, UnknownMapError
from codegen.input_maps import InputMaps, input_maps_of_key
from codegen.layer import Layer, layer_of_key
from codegen.maps.registry import named_map
from codegen.render import KERNELS
from codegen.rule import MAPS, STEP_SIZES, Rule
from codegen.schedules.registry import SCHEDULES, backends
from codegen.spec import (
    DIRECTIONS,
    DTYPES,
    FAMILY_OPERATORS,
    GLUE_OPERATORS,
    INPUT_OPERATORS,
    LAYER_OPERATORS,
    OPERATORS,
    Problem,
)

ALL_OPERATORS = (*OPERATORS, *FAMILY_OPERATORS, *LAYER_OPERATORS, *GLUE_OPERATORS)
"""Those that a kernel may be a part of."""

OF_ANY_RULE = "recurrence"
"""The kernel that is shown unless one is named."""

LAYER = Layer(768, 2048)
"""What stands around the memories of a layer's kernel unless it is given."""


def add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    show = commands.add_parser(
        "show",
        help="print a generated kernel",
        description="Print the source of a kernel with its header, or what its compiler made of it.",
    )
    show.add_argument(
        "kernel",
        nargs="?",
        choices=KERNELS,
        default=OF_ANY_RULE,
        help="template to render (default: %(default)s, which any rule has)",
    )
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
    show.add_argument("--operator", choices=ALL_OPERATORS, help="operator it is part of (default: the kernel's own)")
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
        help=f"the sizes around the memories, for {of_layers} (default: {LAYER.key()})",
    )
    show.add_argument(
        "--inputs",
        metavar="KEY",
        type=_inputs,
        help=f"taps, and what has length one, for {' and '.join(INPUT_OPERATORS)} (default: {InputMaps().key()})",
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
        raise argparse.ArgumentTypeError(f"{error}; one is {LAYER.key()}") from error


def _inputs(key: str) -> InputMaps:
    try:
        return input_maps_of_key(key)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{error}; one is {InputMaps().key()}") from error


def _map(role: str, name: str) -> str:
    try:
        return str(named_map(role, name))
    except (MapTextError, UnknownMapError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
