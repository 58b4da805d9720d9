"""The maps and inner losses that rules can name: those that come along, and what users define."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Callable

from codegen.errors import MapTextError, UnknownMapError
from codegen.maps.acceptance import check_expression, check_name, refusals
from codegen.maps.expression import Expr, input_row, of, total, where
from codegen.maps.functions import abs, l2_norm, layer_norm, silu, softmax
from codegen.maps.text import parsed, text

_DEFINITION = re.compile(
    r"\s*(?P<name>\w+)\s*\(\s*z\s*(?P<target>,\s*a\s*(?P<gain>,\s*g\s*)?)?\)\s*=(?P<text>[^=].*)", re.DOTALL
)


class Map(str):
    """A map phi(z), or an inner loss of z, its target a and perhaps a gain g: a text that says all of it.

    It goes wherever the name of a map goes. The text of one that comes along is its name; that of another is its
    definition, such as "cubic(z) = z ** 3", from which any process makes the same map again.

    Attributes:
        name: what it is called.
        expression: y = phi(z), or the loss.
        is_loss: which of the two.
    """

    name: str
    expression: Expr
    is_loss: bool

    def __new__(cls, name: str, expression: Expr, is_loss: bool = False, built_in: bool = False) -> Map:
        """See `define` and `define_loss`.

        Raises:
            TypeError: the name is no str.
            MapTextError: it is none.
        """
        check_name(name)
        definition = f"{name}({', '.join(_inputs_of(expression, is_loss))}) = {text(expression)}"
        made = super().__new__(cls, name if built_in else definition)
        made.name, made.expression, made.is_loss = name, expression, is_loss
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return (find, (str(self),))

    @property
    def takes_gain(self) -> bool:
        """Whether it is a loss with a gain g, a row that all tokens of a head share."""
        return "g" in self.expression.inputs

    @property
    def formula(self) -> str:
        """The text of its expression."""
        return text(self.expression)

    @property
    def key(self) -> str:
        """Its name, and unless it comes along a digest of its formula: equal formulas give equal keys anywhere."""
        if self == self.name:
            return self.name
        return f"{self.name}@{hashlib.sha256(self.formula.encode()).hexdigest()[:10]}"


def _inputs_of(expression: Expr, is_loss: bool) -> tuple[str, ...]:
    """The rows that a definition names before its formula."""
    return ("z", "a", "g")[: 3 if "g" in expression.inputs else 2] if is_loss else ("z",)


def _built_in(name: str, expression: Expr, is_loss: bool = False) -> Map:
    return Map(name, expression, is_loss, built_in=True)


_Z, _A, _G = input_row("z"), input_row("a"), input_row("g")

MAPS: dict[str, Map] = {
    made.name: made
    for made in (
        _built_in("identity", _Z),
        _built_in("silu", silu(_Z)),
        _built_in("ln_silu", layer_norm(silu(_Z))),
        _built_in("l2_silu", l2_norm(silu(_Z))),
        _built_in("softmax", softmax(_Z)),
    )
}
"""Every map that comes along, by name. A map acts on the last axis; `eps` is the rule's `phi_eps` or `READOUT_EPS`."""

LOSSES: dict[str, Map] = {
    made.name: made
    for made in (
        _built_in("hebbian", -total(_Z * _A), is_loss=True),
        _built_in("huber", total(where(abs(_Z - _A) <= 1, 0.5 * (_Z - _A) ** 2, abs(_Z - _A) - 0.5)), is_loss=True),
        _built_in("smooth_l3", total(((_Z - _A) ** 2 + 1e-4) ** 1.5) / 3, is_loss=True),
        _built_in("layer_norm_gain", 0.5 * total((layer_norm(_Z) * _G - _A) ** 2), is_loss=True),
    )
}
"""Every inner loss that comes along, by name: of z, the target a and, if it names one, a gain g."""

_DEFINED: dict[str, Map] = {}
_TAKEN = "a map that comes along has this name"


def define(name: str, formula: Callable[[Expr], Expr]) -> Map:
    """A map from its formula, known by its name from now on.

    Args:
        name: an ASCII identifier of Python that no map which comes along has; a later map of that name takes its place.
        formula: y of z, a row, by the functions of `codegen.maps`.

    Raises:
        TypeError: the name is no str, the formula no function, or a part of it neither a number nor an expression.
        MapTextError: the name is none, the formula gives no row or no finite numbers, its text would be refused, or it
            or a derivative of it has a constant beyond the range of float32.

    Example:
        >>> from codegen.maps import define, tanh
        >>> define("gelu_tanh", lambda z: 0.5 * z * (1 + tanh(0.7978845608 * (z + 0.044715 * z**3)))).name
        'gelu_tanh'
    """
    with refusals(name):
        y = _formed(name, formula, _Z)
        if not y.row:
            raise MapTextError(text=name, reason=f"its formula {y!r} is one number, and must be one for each slot")
        return _registered(name, y, is_loss=False)


def define_loss(name: str, formula: Callable[..., Expr]) -> Map:
    """An inner loss from its formula, to be given as phi: u is its gradient at z.

    Args:
        name: as in `define`.
        formula: the loss of z, of its target a and, if it has a third argument, of a gain g that all tokens of a head
            share; a row is summed.

    Raises:
        TypeError, MapTextError: as in `define`, but a loss may give one number.

    Example:
        >>> from codegen.maps import abs, define_loss, where
        >>> huber = define_loss("huber_loss", lambda z, a: where(abs(z - a) <= 1, 0.5 * (z - a) ** 2, abs(z - a) - 0.5))
        >>> huber.is_loss
        True
    """
    with refusals(name):
        loss = _formed(name, formula, *(_Z, _A, _G)[: 3 if _takes_three(formula) else 2])
        return _registered(name, total(loss) if loss.row else loss, is_loss=True)


def _takes_three(formula: Callable[..., Expr]) -> bool:
    try:
        parameters = inspect.signature(formula).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters) >= 3


def _formed(name: str, formula: Callable[..., Expr], *rows: Expr) -> Expr:
    """What a user's formula gives for its rows."""
    check_name(name)
    if not callable(formula):
        raise TypeError(f"the formula of {name} is a function such as lambda z: z ** 3, not {formula!r}")
    return of(formula(*rows))


def _registered(name: str, expression: Expr, is_loss: bool) -> Map:
    if name in MAPS or name in LOSSES:
        raise MapTextError(text=name, reason=_TAKEN)
    made = unnamed(name, expression, is_loss)
    _DEFINED[name] = made
    return made


def unnamed(name: str, expression: Expr, is_loss: bool = False, *, checks: bool = True) -> Map:
    """A map, or a loss, that is known by its definition and its key; what has its bare name keeps that.

    Args:
        name, expression, is_loss: of the map.
        checks: whether to refuse what kernels could not compute. It takes 50 ms to derive all of a normalised row,
            which what is made on import, and checked by a test, does not take.

    Raises:
        TypeError, MapTextError: as in `define`.
    """
    check_name(name)
    if checks:
        check_expression(name, expression, is_loss)
    made = Map(name, expression, is_loss)
    for each in (str(made), made.key):
        _DEFINED[each] = made
    return made


def find(name: str | Map) -> Map:
    """The map of that name, definition or key.

    Raises:
        MapTextError: it looks like a definition and is none.
        KeyError: nothing has that name or key in this process.
    """
    if isinstance(name, Map):
        return name
    found = MAPS.get(name) or LOSSES.get(name) or _DEFINED.get(name)
    if found is not None:
        return found
    definition = _DEFINITION.fullmatch(name)
    if definition is None:
        raise KeyError(name)
    is_loss = definition["target"] is not None
    rows = ("z", "a", "g")[: 1 + is_loss + (definition["gain"] is not None)]
    expression = parsed(definition["text"], rows)
    if not is_loss and not expression.row:
        raise MapTextError(text=name, reason="it gives one number, and must give one for each slot")
    if is_loss and expression.row:
        expression = total(expression)
    if definition["name"] in MAPS:
        raise MapTextError(text=name, reason=_TAKEN)
    with refusals(name):
        made = unnamed(definition["name"], expression, is_loss)
    # Whoever reads a definition, as of a tuning record, may not take a user's name away.
    _DEFINED.setdefault(made.name, made)
    _DEFINED[name] = made
    return made


def named_map(role: str, name: object) -> Map:
    """The map that a rule has in a role.

    Raises:
        UnknownMapError: nothing has that name, or a loss is to read.
    """
    found = None
    if isinstance(name, str | Map):
        with contextlib.suppress(KeyError):
            found = find(name)
    if found is None or (found.is_loss and role != "phi"):
        known = [
            *MAPS,
            *(LOSSES if role == "phi" else ()),
            *(each for each, made in _DEFINED.items() if each == made.name and not made.is_loss),
        ]
        raise UnknownMapError(role=role, name=name, known=", ".join(known)) from None
    return found
