"""Maps as functions of eager PyTorch: generated source, over the last axis, in the type that it is given."""

from __future__ import annotations

import functools
import linecache
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from codegen.maps.derive import COTANGENT, pullback_of, value_of, write_of
from codegen.maps.emit.printer import Printer
from codegen.maps.expression import Expr
from codegen.maps.lowering import Definition, program, used
from codegen.maps.registry import Map

if TYPE_CHECKING:
    from torch import Tensor


def _call(name: str) -> Callable[..., str]:
    return lambda *args: f"torch.{name}({', '.join(args)})"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _choice(of_two: str, with_number: str) -> Callable[[str, str], str]:
    def written(x: str, y: str) -> str:
        if _is_number(x):
            x, y = y, x
        return f"torch.{with_number if _is_number(y) else of_two}({x}, {y})"

    return written


def _where(condition: str, x: str, y: str) -> str:
    if _is_number(x) and _is_number(y):
        # Two numbers alone would be rounded to torch's default type, whatever that of z.
        return f"torch.where({condition}, like.new_full((), {x}), {y})"
    return f"torch.where({condition}, {x}, {y})"


_PRINTER = Printer(
    functions={
        **{name: _call(name) for name in ("exp", "log", "sigmoid", "tanh", "abs", "sign", "sqrt", "rsqrt")},
        "max": _choice("maximum", "clamp_min"),
        "min": _choice("minimum", "clamp_max"),
        "where": _where,
        "power": lambda x, exponent: f"torch.pow({x}, {exponent})",
    },
    width="like.new_full((), like.shape[-1])",
)
_REDUCTIONS = {"sum": "sum", "mean": "mean", "max": "amax"}


def _line(definition: Definition) -> str:
    value = definition.value
    if definition.reduction:
        text = f"torch.{_REDUCTIONS[value.op]}({_PRINTER(value.args[0])}, dim=-1, keepdim=True)"
    else:
        text = _PRINTER(value)
    return f"    {definition.name} = {text}\n"


def _result(x: Expr) -> str:
    return _PRINTER(x) if x.row else f"torch.zeros_like(like) + {_PRINTER(x)}"


def _function(head: str, says: str, definitions: Iterable[Definition], results: str) -> str:
    body = "".join(map(_line, definitions)) + f"    return {results}\n"
    like = "ct" if "ct" in head else "z" if "z" in head.partition("(")[2] else "a"
    body = re.sub(r"\blike\b", like, body)
    return f'def {head}:\n    """{says}"""\n{body}'


def source(of: Map) -> str:
    """Functions `value` and `pull_back` of a map; of it and of a loss `write_gradient`, `prepare_write`, `push_write`.

    Numbers are the equations of docs/backward.md.
    """
    parts = [] if of.is_loss else [_value(of), _pull_back(of)]
    return "\n\n".join([f"# {of.name}\n\nimport torch\n", *parts, _write_gradient(of), *_push(of)])


def function(head: str, says: str, outputs: Mapping[str, Expr]) -> str:
    """A function of rows along the last axis that gives several expressions in them, in order."""
    made = program(dict(outputs), taken=("torch", "eps"))
    return _function(head, says, made.definitions, ", ".join(map(_result, made.outputs.values())))


def _value(of: Map) -> str:
    made = program({"y": value_of(of.expression)}, taken=("torch", "eps"))
    return _function("value(z, eps)", "y of z.", made.definitions, _result(made.outputs["y"]))


def _pull_back(of: Map) -> str:
    made = program({"dz": pullback_of(of.expression)}, taken=("torch", "eps"))
    result = _result(made.outputs["dz"])
    return _function("pull_back(z, ct, eps)", "J^T ct, J the Jacobian at z (B14).", made.definitions, result)


def _write_gradient(of: Map) -> str:
    made = program({"u": write_of(of.expression, of.is_loss).u}, taken=("torch", "eps"))
    result = _result(made.outputs["u"])
    return _function("write_gradient(z, a, eps)", "u, the gradient of the loss at z.", made.definitions, result)


def _push(of: Map) -> tuple[str, str]:
    write = write_of(of.expression, of.is_loss)
    made = program({"dz": write.dz, "da": write.da}, taken=("torch", "eps", "parts"), apart=COTANGENT)
    of_cotangent = _reached(made.definitions, {str(COTANGENT.value)})
    of_inputs = _reached(made.definitions, {"z", "a", str(COTANGENT.value)})
    # Numbers that follow from nothing are computed on both sides: parts have a number for each token.
    late = [each for each in made.definitions if each.name in of_cotangent or each.name not in of_inputs]
    early = [each for each in made.definitions if each.name not in of_cotangent]
    wanted = {name for each in late for name in each.uses}.union(*(used(out) for out in made.outputs.values()))
    parts = [each.name for each in early if each.name in wanted & of_inputs] + sorted(wanted & {"z", "a"})
    results = ", ".join(map(_result, made.outputs.values()))
    packed = "".join(f"{name}, " for name in parts).strip()
    unpacked = f"    {packed} = parts\n" if parts else ""
    push = _function("push_write(parts, ct, eps)", "The cotangents of z and a from that of u (B8, B9).", late, results)
    says, quote = '"""\n', "a from that of u (B8, B9)."
    push = push.replace(quote + says, quote + says + unpacked, 1)
    return _function("prepare_write(z, a, eps)", "What `push_write` needs.", early, f"({packed})"), push


def _reached(definitions: Iterable[Definition], inputs: set[str]) -> set[str]:
    """The names that are computed from some inputs."""
    found = set(inputs)
    for each in definitions:
        if each.uses & found:
            found.add(each.name)
    return found - inputs


@functools.cache
def functions(of: Map) -> Mapping[str, Callable[..., Any]]:
    """What `source` says, compiled; tracebacks show its lines."""
    import torch

    text = source(of)
    filename = f"<{of.key} in torch>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    found: dict[str, Any] = {"torch": torch}
    exec(compile(text, filename, "exec"), found)
    return found


def value(of: Map, z: Tensor, eps: float) -> Tensor:
    """y = phi(z) over the last axis."""
    y: Tensor = functions(of)["value"](z, eps)
    return y
