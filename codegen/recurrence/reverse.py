"""The reverse of a token's program: reverse mode over sums of products and row maps.

The cotangent of x is called dx. Of a state it is the one after the token, until it is moved to the one before. What the
reverse reads of the forward is computed again from the states before the token; the states after it are given.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from codegen.maps import registry
from codegen.maps.derive import write_of
from codegen.maps.expression import ZERO
from codegen.recurrence import program as p
from codegen.recurrence.of_rule import token_program, used_chunk_states
from codegen.recurrence.order import ordered_for_moves
from codegen.recurrence.program import Builder, Call, Program, Sum, Term
from codegen.recurrence.tensors import KEEP, PUT, states
from codegen.rule import Rule

AFTER = "_after"
"""What the name of a state after the token ends in, where it is given."""


def cotangent(name: str) -> str:
    """What the cotangent of a value is called."""
    return f"d{name}"


@functools.cache
def reverse_program(rule: Rule, chunked: bool, bilevel: bool) -> Program:
    """What one token does to cotangents; arguments as of `token_program`.

    Given are the token's tensors, the states before it and after it (the latter's names end in `AFTER`), dy and the
    cotangents of the states; it moves the latter and gives those of the token's tensors. `bilevel` differentiates
    through z; otherwise z is a constant inside u.
    """
    forward = token_program(rule, chunked)
    made = _Reverse(rule, chunked, bilevel, _with_states_given(forward))
    return made.program()


def _with_states_given(forward: Program) -> Program:
    """The forward, with states after the token given by name."""
    names = {value: f"{state}{AFTER}" for state, value in forward.moved.items()}

    def renamed(each: p.Statement) -> p.Statement:
        if isinstance(each, Sum):
            terms = (Term(tuple(names.get(x, x) for x in term.factors), term.sign) for term in each.terms)
            return Sum(names.get(each.name, each.name), tuple(terms), each.says)
        return replace(each, inputs=tuple(names.get(x, x) for x in each.inputs))

    axes = {names.get(name, name): each for name, each in forward.axes.items()}
    moved = {state: names[value] for state, value in forward.moved.items()}
    statements = tuple(map(renamed, forward.statements))
    return Program(axes, statements, moved, forward.results, forward.detached)


class _Reverse:
    def __init__(self, rule: Rule, chunked: bool, bilevel: bool, forward: Program) -> None:
        self.bilevel, self.forward = bilevel, forward
        self.held = {*states(rule), *used_chunk_states(rule, chunked)}
        self.build = Builder(dict(forward.axes))
        self.terms: dict[str, list[Term]] = {}
        self.moved: dict[str, str] = {}

    def program(self) -> Program:
        """The statements of the reverse, after those of the forward that they need."""
        for name in (*self.held, "y"):
            self.build.give(**{cotangent(name): self.forward.axes[name]})
        for state in self.held:
            # What is not moved by the token has its cotangent added to.
            self._add(self.forward.moved.get(state, state), Term((cotangent(state),)))
        self._add("y", Term((cotangent("y"),)))
        for each in reversed(self.forward.statements):
            self._statement(each)
        given = [name for name in self.forward.given if name not in (KEEP, PUT) and not name.endswith(AFTER)]
        results = [self._given(name) for name in given if name not in self.held]
        for state in sorted(self.held):
            self.moved[cotangent(state)] = self._before(state)
        after = set(self.forward.moved.values())
        again = [each for each in self.forward.statements if not after & set(each.outputs)]
        whole = Program(self.build.axes, (*again, *self.build.statements), self.moved, tuple(results))
        return ordered_for_moves(whole.reduced((*self.moved.values(), *results)))

    def _add(self, name: str, term: Term) -> None:
        self.terms.setdefault(name, []).append(term)

    def _given(self, name: str) -> str:
        """The cotangent of a tensor of the token, as a value of that name."""
        return self._sum(cotangent(name), name)

    def _before(self, state: str) -> str:
        """The cotangent of a state before the token."""
        terms = self.terms.get(state, [])
        if terms == [Term((cotangent(state),))]:
            return cotangent(state)
        return self._sum(f"{cotangent(state)}_before", state)

    def _sum(self, name: str, of: str) -> str:
        terms = tuple(self.terms.get(of, ()))
        return self.build.sum(name, self.forward.axes[of], *terms, says=f"the cotangent of {of}")

    def _incoming(self, name: str) -> str | None:
        """The cotangent of a value whose users have all been seen; None if nothing depends on it."""
        terms = self.terms.get(name, [])
        if not terms:
            return None
        if len(terms) == 1 and terms[0].sign == 1 and len(terms[0].factors) == 1:
            (factor,) = terms[0].factors
            if self.build.axes[factor] == self.forward.axes[name]:
                return factor
        return self._sum(cotangent(name), name)

    def _statement(self, each: p.Statement) -> None:
        if isinstance(each, Call):
            found = self._incoming(each.outputs[0])
            if found is not None:
                self._call(each, found)
            return
        incoming = self._incoming(each.name)
        for term in each.terms if incoming is not None else ():
            for place, factor in enumerate(term.factors):
                if factor not in (KEEP, PUT) and not (factor.endswith(AFTER) and factor not in self._made):
                    others = (*term.factors[:place], *term.factors[place + 1 :])
                    self._add(factor, Term((*others, str(incoming)), term.sign))

    @functools.cached_property
    def _made(self) -> set[str]:
        return {name for each in self.forward.statements for name in each.outputs}

    def _call(self, each: Call, incoming: str) -> None:
        getattr(self, f"_of_{each.function}")(each, incoming)

    def _of_code(self, each: Call, du: str) -> None:
        made = registry.find(each.of)
        write = write_of(made.expression, made.is_loss)
        wanted = {"z": write.dz, "a": write.da, "g": write.dg}
        outputs, gives, targets = dict[str, p.Axes](), list[str](), list[str]()
        for role, name in zip(each.roles, each.inputs, strict=True):
            if wanted[role] is not ZERO and (self.bilevel or role != "z" or name not in self.forward.detached):
                outputs[f"{cotangent(name)}_of_{each.outputs[0]}"] = self.forward.axes[name]
                gives.append(f"d{role}")
                targets.append(name)
        if not outputs:
            return
        used = {str(x) for give in gives for x in wanted[give[1:]].inputs} - {"ct"}
        roles = tuple(role for role in each.roles if role in used)
        inputs = tuple(name for role, name in zip(each.roles, each.inputs, strict=True) if role in used)
        says = f"the cotangents of {', '.join(targets)} from that of {each.outputs[0]}"
        self._called(p.PUSH, outputs, (*inputs, du), each, says, (*roles, "ct"), tuple(gives))
        for name, value in zip(targets, outputs, strict=True):
            self._add(name, Term((value,)))

    def _of_apply(self, each: Call, dy: str) -> None:
        (z,) = each.inputs
        name = f"{cotangent(z)}_of_{each.outputs[0]}"
        says = f"J^T {dy}, J the Jacobian at {z}"
        self._called(p.PULL, {name: self.forward.axes[z]}, (z, dy), each, says, ("z", "ct"), ("dz",))
        self._add(z, Term((name,)))

    def _called(
        self,
        function: str,
        outputs: dict[str, p.Axes],
        inputs: tuple[str, ...],
        of: Call,
        says: str,
        roles: tuple[str, ...],
        gives: tuple[str, ...],
    ) -> None:
        self.build.call(function, outputs, inputs, of.axis, of.of, of.eps, says, roles, gives)

    def _of_gate(self, each: Call, incoming: str) -> None:
        self._add(each.inputs[0], Term((each.outputs[0], incoming)))

    def _of_reciprocal(self, each: Call, incoming: str) -> None:
        self._add(each.inputs[0], Term((each.outputs[0], each.outputs[0], incoming), -1))

    def _of_cast(self, each: Call, incoming: str) -> None:
        self._add(each.inputs[0], Term((self._cast(incoming, each.inputs[0]),)))

    def _cast(self, name: str, like: str) -> str:
        made = f"{name}_as_{like}"
        self.build.call(p.CAST, {made: self.forward.axes[like]}, (name,), says=f"{name} along the other axis")
        return made

    def _of_solve(self, each: Call, dx: str) -> None:
        """x = (S + diag(l))^-1 b, S symmetric: db = (S + diag(l))^-1 dx, dS = -db x^T, dl = -db x."""
        (x,), (state, regulariser, b) = each.outputs, each.inputs
        db = f"{cotangent(b)}_solved"
        axes = self.forward.axes[b]
        self.build.call(
            p.SOLVE, {db: axes}, (state, regulariser, dx), axes[0], says="(S_k + diag(regulariser)) db = dx"
        )
        self._add(b, Term((db,)))
        self._add(state, Term((db, x), -1))
        self._add(regulariser, Term((self._cast(db, x), x), -1))
