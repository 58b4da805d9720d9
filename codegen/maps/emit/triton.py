"""Maps as Triton functions over the last axis of a tile or vector; numbers are the equations of docs/backward.md.

An axis is what templates/triton/parts/tile.j2 calls one: a name, a size, and the power of two that pads it. Padding
holds zeros in z, target and cotangents, and in what these functions return.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from codegen.maps.derive import pullback_of, value_of, write_of
from codegen.maps.emit.masks import masked_names
from codegen.maps.emit.printer import Printer
from codegen.maps.emit.triton_centring import code_program, push_program
from codegen.maps.expression import Expr
from codegen.maps.folding import folded
from codegen.maps.lowering import Definition, Program, program
from codegen.maps.registry import find

Axis = Mapping[str, Any]

_HEAD = "\n\n@triton.jit\n"
_TARGET = {"a": "target"}
_NAMES = ("tl", "triton", "target", "M", "D_k", "D_v", "D", "LOG2_E", "mean", "tanh", "code")

_FUNCTIONS: Mapping[str, Callable[..., str]] = {
    "exp": lambda x: f"tl.exp({x})",
    "log": lambda x: f"tl.log({x})",
    "sigmoid": lambda x: f"1 / (1 + tl.exp2({_factor(x)} * -LOG2_E))",
    "tanh": lambda x: f"tanh_of({x})",
    "sqrt": lambda x: f"tl.sqrt({x})",
    "rsqrt": lambda x: f"1 / tl.sqrt({x})",
    "abs": lambda x: f"tl.abs({x})",
    "sign": lambda x: f"(tl.where({x} > 0, 1.0, 0.0) - tl.where({x} < 0, 1.0, 0.0))",
    # Left alone, both drop a NaN.
    "max": lambda x, y: f"tl.maximum({x}, {y}, propagate_nan=tl.PropagateNan.ALL)",
    "min": lambda x, y: f"tl.minimum({x}, {y}, propagate_nan=tl.PropagateNan.ALL)",
    "where": lambda condition, x, y: f"tl.where({condition}, {x}, {y})",
    "power": lambda x, exponent: f"tl.exp2({exponent} * tl.log2({x}))",
}

_TANH = '''

@triton.jit
def tanh_of(x):
    """tanh(x), near 0 by its series: the quotient would lose its digits there."""
    size, square = tl.abs(x), x * x
    weight = tl.exp2(size * (-2 * LOG2_E))
    far = (1 - weight) / (1 + weight)
    near = size * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    value = tl.where(size < 0.3, near, far)
    return tl.where(x < 0, -value, value)
'''
_MEAN = '''

@triton.jit
def mean(x, WIDTH: tl.constexpr):
    """Mean over the last axis; its padding holds zeros."""
    return tl.sum(x, axis=-1, keep_dims=True) / WIDTH
'''


def _factor(text: str) -> str:
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def constants(phi: str, readouts: Iterable[str], phi_eps: float, readout_eps: float) -> str:
    """The constants that the functions below read; `phi` is "none" where nothing is written."""
    return constants_in(_write_text(phi) + "".join(map(_readout_text, readouts)), phi_eps, readout_eps)


def constants_in(text: str, phi_eps: float, readout_eps: float) -> str:
    """The constants that a text of such functions reads."""
    lines = ""
    if re.search(r"LOG2_E|tanh_of", text):
        lines += "LOG2_E = tl.constexpr(1.4426950408889634)  # a GPU has an instruction for powers of two\n"
    if "PHI_EPS" in text:
        lines += f"PHI_EPS = tl.constexpr({phi_eps})\n"
    if "READOUT_EPS" in text:
        lines += f"READOUT_EPS = tl.constexpr({readout_eps})\n"
    return lines


def helpers(used: Iterable[str]) -> str:
    """What the functions of these maps call; "none" is no map."""
    return helpers_in("".join(_write_text(name) + _readout_text(name) for name in used))


def helpers_in(text: str) -> str:
    """What a text of such functions calls."""
    return (_MEAN if "mean(" in text else "") + (_TANH if "tanh_of(" in text else "")


_ANY_AXIS: Axis = {"name": "M", "size": 1, "pad": 1}


@functools.cache
def _write_text(phi: str) -> str:
    return "" if phi == "none" else code(phi, _ANY_AXIS) + push(phi, _ANY_AXIS, bilevel=True)


@functools.cache
def _readout_text(name: str) -> str:
    if name == "none" or find(name).is_loss:
        return ""
    return readout("map", name, _ANY_AXIS) + pull("map", name, _ANY_AXIS)


def code(phi: str, axis: Axis, target_once: bool = True) -> str:
    """`code(z, target)`: u, the code of one write; `code(z, target, gain)` of a loss with a gain.

    With `target_once` the target less its mean is one row where u takes both. Most kernels hold fewer registers so.
    """
    of = find(phi)
    given = {**_TARGET, **({"g": _ROLES["g"]} if of.takes_gain else {})}
    write, taken = write_of(of.expression, of.is_loss), (*_NAMES, *given.values())
    made = code_program(write, taken) if target_once else program({"u": write.u}, taken)
    if of.is_loss:
        says = f"u, the gradient at z of the loss {of.name} over the slots."
    else:
        says = f"u = J^T (phi(z) - target), phi = {of.name} over the slots, J its Jacobian at z."
    head = f"code({', '.join(('z', *given.values()))})"
    # push_code begins with the same terms: added up in another order, no row of them is held in registers until then.
    return _function(head, says, made, axis, "PHI_EPS", given, scalars_last=True)


def readout(name: str, of: str, axis: Axis) -> str:
    """A function called `name` that applies a map; nothing for the identity."""
    if of == "identity":
        return ""
    made = program({"y": value_of(find(of).expression)}, _NAMES)
    return _function(f"{name}(z)", f"{find(of).name} over the last axis.", made, axis, "READOUT_EPS")


def pull(name: str, of: str, axis: Axis) -> str:
    """A function pull_<name>(z, e), the pullback of a map that reads; nothing for the identity."""
    if of == "identity":
        return ""
    made = program({"pulled": pullback_of(find(of).expression)}, (*_NAMES, "e"))
    says = f"J^T e, J the Jacobian at z of {find(of).name} over the last axis (B14)."
    return _function(f"pull_{name}(z, e)", says, made, axis, "READOUT_EPS", {"ct": "e"})


def push(phi: str, axis: Axis, bilevel: bool) -> str:
    """`push_code(z, target, du)`: what a code's cotangent does to the target and, if `bilevel`, to z."""
    of = find(phi)
    write = write_of(of.expression, of.is_loss)
    if bilevel:
        says = f"dz and dtarget, phi = {of.name} over the slots (B8, B9)."
    else:
        says = f"dtarget, phi = {of.name} over the slots, with z held constant (B8)."
    made = push_program(write, bilevel, (*_NAMES, "du"))
    return _function("push_code(z, target, du)", says, made, axis, "PHI_EPS", _TARGET | {"ct": "du"})


def of_rows(name: str, says: str, outputs: Mapping[str, Expr], roles: Iterable[str], axis: Axis, eps: str) -> str:
    """A function called `name` of rows in these roles, z, a, g or ct, that gives all outputs."""
    names = {role: _ROLES[role] for role in roles}
    made = program(outputs, (*_NAMES, *names.values()))
    like = next(iter(names.values()))
    return _function(f"{name}({', '.join(names.values())})", says, made, axis, eps, names, like)


_ROLES = {"z": "z", **_TARGET, "g": "gain", "ct": "cotangent"}
_NUMBERS = {"dz": "(B9)", "dtarget": "(B8)"}


def _function(
    head: str,
    says: str,
    made: Program,
    axis: Axis,
    eps: str,
    renamed: Mapping[str, str] | None = None,
    like: str = "z",
    scalars_last: bool = False,
) -> str:
    """The text of a function; a result that is one number gets the shape of the row called `like`."""
    names = renamed or {}

    def leaf(x: Expr) -> str:
        return names.get(str(x.value), str(x.value))

    printer = Printer(_FUNCTIONS, leaf, _number, axis["name"], eps, scalars_last=scalars_last)
    padded = axis["size"] != axis["pad"]
    masked = masked_names(made, ("z", "a", "g", "ct")) if padded else frozenset()
    lines = [_line(each, printer, axis, each.name in masked, like) for each in made.definitions]
    results = []
    for name, value in made.outputs.items():
        text = _real(_shaped(value, printer, like), axis) if name in masked else _shaped(value, printer, like)
        if len(made.outputs) > 1:
            lines += [*([f"# {_NUMBERS[name]}"] if "dtarget" in made.outputs else []), f"{name} = {text}"]
        results.append(name if len(made.outputs) > 1 else text)
    lines = [f'"""{says}"""', *lines, f"return {', '.join(results)}"]
    body = "".join(f"    {part}\n" for line in lines for part in folded(line, 4))
    return f"{_HEAD}def {head}:\n{body}"


def _shaped(value: Expr, printer: Printer, like: str) -> str:
    return printer(value) if value.row else f"0 * {like} + {printer(value)}"


def _number(x: float) -> str:
    return str(int(x)) if x == int(x) and abs(x) < 1e6 else repr(x)


def _line(each: Definition, printer: Printer, axis: Axis, masked: bool, like: str) -> str:
    if not each.reduction:
        text = printer(each.value)
        return f"{each.name} = {_real(text, axis) if masked else text}"
    (row,) = each.value.args
    text = _shaped(row, printer, like)
    if each.value.op == "max":
        text = _real(text, axis, 'float("-inf")') if axis["size"] != axis["pad"] else text
        return f"{each.name} = tl.max({text}, axis=-1, keep_dims=True)"
    text = _real(text, axis) if masked else text
    if each.value.op == "mean":
        return f"{each.name} = mean({text}, {axis['name']})"
    return f"{each.name} = tl.sum({text}, axis=-1, keep_dims=True)"


def _real(value: str, axis: Axis, other: str = "0.0") -> str:
    """The value, with `other` in the padding."""
    return f"tl.where(tl.arange(0, {axis['name']}_PAD) < {axis['name']}, {value}, {other})"
