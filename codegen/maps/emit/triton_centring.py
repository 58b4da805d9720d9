"""Writes whose rows are centred before anything is computed of them: so Triton's kernels hold the fewest registers.

u of ln_silu takes its target less the target's mean, and its cotangents a row less what rounding left of its mean. Each
is a row of its own here, in place of a row and of numbers that correct what is computed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from codegen.maps.derive import COTANGENT, TARGET, Write, Z, pull_back
from codegen.maps.expression import WIDTH, ZERO, Expr, add, input_row, make, mul, power, total
from codegen.maps.lowering import Definition, Program, program
from codegen.maps.simplify import multiplied_out
from codegen.maps.traversal import nodes, replaced

_CENTRED_TARGET = input_row(f"centred_{TARGET.value}")


def code_program(write: Write, taken: Iterable[str]) -> Program:
    """The program of u.

    What rounding left of a mean stays a number here: a kernel that has `push_program` too would else hold the rows that
    both begin with from one to the other.
    """
    return _program({"u": _of_centred_target(write.u)}, {}, taken)


def push_program(write: Write, bilevel: bool, taken: Iterable[str]) -> Program:
    """The program of the cotangents of z, if `bilevel`, and of the target, from that of u."""
    outputs = {"dz": write.dz, "dtarget": write.da} if bilevel else {"dtarget": write.da}
    u = _of_centred_target(write.u)
    if bilevel and u is not write.u:
        (dz,) = pull_back(u, COTANGENT, [Z])
        outputs["dz"] = replaced(dz, lambda node: ZERO if node is total(_CENTRED_TARGET) else None)
    rows: dict[str, Expr] = {}

    def centred(row: Expr) -> Expr:
        name = "_".join(("centred", *sorted(row.inputs)))
        if rows.setdefault(name, _centred(row)) is not _centred(row):
            return _centred(row)  # Another row of these inputs has the name.
        return input_row(name)

    for change in (lambda node: _recentred(node, rows), lambda node: _less_mean(node, None, centred)):
        outputs = {name: replaced(x, change) for name, x in outputs.items()}
    return _program(outputs, rows, taken)


def _recentred(node: Expr, rows: dict[str, Expr]) -> Expr | None:
    """For a row less its mean, the same less its mean once more, which is then among `rows`."""
    if node.op != "named" or node.args[0].op != "add" or not _sums_to_nothing(node):
        return None
    name, once = str(node.value), f"{node.value}_once"
    rows |= {once: node.args[0], name: _centred(input_row(once))}
    return input_row(name)


def _of_centred_target(u: Expr) -> Expr:
    """u of the target less its mean, if it takes no other; u itself if it does."""
    changed = replaced(u, lambda node: _less_mean(node, TARGET, lambda row: _CENTRED_TARGET))
    # A mean of x y, y a row that sums to 0, takes the centred row in place of x as well.
    changed = replaced(changed, _beside_nothing) if changed is not u else u
    return u if str(TARGET.value) in changed.inputs else changed


def _program(outputs: Mapping[str, Expr], rows: Mapping[str, Expr], taken: Iterable[str]) -> Program:
    """The program of `outputs`, in which `rows` and the centred target are values of their own, called as they are."""
    mean = make("symbol", value=f"mean_{TARGET.value}")
    made = program({**outputs, **rows}, (*taken, str(mean.value)))
    definitions = [*made.definitions, *(Definition(name, made.outputs[name], row=True) for name in rows)]
    if _CENTRED_TARGET in nodes(*outputs.values()):
        definitions.append(Definition(str(mean.value), make("mean", (TARGET,)), row=False))
        definitions.append(Definition(str(_CENTRED_TARGET.value), add(TARGET, mul(-1, mean)), row=True))
    return Program(_in_order(definitions), {name: made.outputs[name] for name in outputs})


def _in_order(definitions: list[Definition]) -> tuple[Definition, ...]:
    """The same, each after those that it uses."""
    known = {each.name: each for each in definitions}
    placed: dict[str, Definition] = {}

    def place(each: Definition) -> None:
        for name in known:
            if name in each.uses and name not in placed:
                place(known[name])
        placed[each.name] = each

    for each in definitions:
        if each.name not in placed:
            place(each)
    return tuple(placed.values())


def _centred(row: Expr) -> Expr:
    return add(row, mul(-1, power(WIDTH, -1), total(row)))


def _less_mean(node: Expr, x: Expr | None, centred: Callable[[Expr], Expr]) -> Expr | None:
    """A sum that has c x - c mean x, c a scalar and x that row or any, with c times the centred x for both."""
    if node.op != "add" or not node.row:
        return None
    for term in node.args:
        factors = term.args if term.op == "mul" else (term,)
        row, scale = mul(*(f for f in factors if f.row)), [f for f in factors if not f.row]
        mean = mul(-1, *scale, power(WIDTH, -1), total(row))
        if term.row and mean in node.args and x in (None, row):
            return add(*(each for each in node.args if each not in (term, mean)), mul(*scale, centred(row)))
    return None


def _beside_nothing(node: Expr) -> Expr | None:
    """The sum of x y with the centred target for x, the target, if y sums to 0."""
    if node.op != "sum" or node.args[0].op != "mul" or TARGET not in node.args[0].args:
        return None
    rest = [factor for factor in node.args[0].args if factor is not TARGET]
    return total(mul(_CENTRED_TARGET, *rest)) if any(map(_sums_to_nothing, rest)) else None


def _sums_to_nothing(row: Expr) -> bool:
    return row.row and multiplied_out(total(row)) is ZERO
