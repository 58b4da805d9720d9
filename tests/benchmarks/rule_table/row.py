"""A row of the table of rules: what is known of one rule, as cells, and as targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from codegen.recurrence.forms import SQUARED, why_no_chunk_form
from codegen.rules import NAMED
from codegen.schedules.schedule import STALE
from tests.benchmarks.results.targets import Target
from tests.benchmarks.rule_table.careful import CAREFUL, why_no_careful_form
from tests.benchmarks.rule_table.forms import why_no_forms_at_once
from tests.benchmarks.rule_table.saved_parts import Saved
from tests.benchmarks.rule_table.saved_recall import Recalled
from tuner.duration import duration
from tuner.verify.check import OF_GRADIENTS, TOLERANCE

HEADS = (
    *("rule", "C", "form", "forward", "to eager", "to careful", "to compiled", "share"),
    *("chunk form", "its time", "its share"),
    *("decode", "decode to eager", "backward", "backward to eager"),
    *("error", "of gradients", "beside peer", "its gradients"),
)

MISSING, NONE = "missing", "none"
_NOT_RUN = "not run"

_SHARES = {"none": 0.6, "scalar": 0.6, "slot": 0.45, "channel": 0.45}
"""The least share of the ceiling of a chunk form, by its decay."""

_SHARE_OF_SYSTEMS = 0.45
"""That of chunk forms with a triangular system."""

_LEAST = {"eager": 20.0, "careful": 5.0, "compiled": 5.0}
_LEAST_OF_STEP = 5.0
_WALKS = ("recurrence", "recurrent", "eager")


@dataclass(frozen=True)
class RuleRow:
    """What is known of a rule.

    Attributes:
        rule, chunk: its name, and C of forward and backward.
        parts: by name, those that it has; None of those that were not measured.
        recall: None where no model was trained.
    """

    rule: str
    chunk: int
    parts: Mapping[str, Saved | None]
    recall: Recalled | None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return None not in self.parts.values() and self.recall is not None

    def cells(self, pairs: Sequence[int]) -> list[str]:
        """The row: every cell has a number, or says that it is missing, that there is none, or that it did not run."""
        forward = [self._time("forward"), *(self._ratio("forward", name) for name in ("eager", "careful", "compiled"))]
        forward.append(self._share("forward"))
        forward += [self._text("chunk form", "form"), self._time("chunk form"), self._share("chunk form")]
        errors = [self._error(part, kind) for part in ("oracle", "peer") for kind in ("outputs", "gradients")]
        beside = [text for part in ("decode", "backward") for text in (self._time(part), self._ratio(part, "eager"))]
        return [
            *(self.rule, str(self.chunk), self._text("forward", "form")),
            *(*forward, *beside, *errors, *(self._recalled(count) for count in pairs)),
            "; ".join(self.remarks()),
        ]

    def remarks(self) -> Iterator[str]:
        """What the rule cannot do, and what a reader must know of its numbers."""
        form = self.number("forward", "form")
        if isinstance(form, str) and form.partition(",")[0] in _WALKS:
            rule = NAMED[self.rule].rule
            reasons = why_no_forms_at_once(rule, self.chunk)
            alone = None not in reasons.values()
            # With z at the start of a chunk it is the stale form that lacks something.
            reason = reasons["chunks" if self.chunk == 1 else STALE]
            yield f"token by token: {reason}" if alone else "token by token is faster here than its other forms"
        if "peer" not in self.parts:
            yield "fla has no reference of it"
        else:
            why = why_no_careful_form(self.rule)
            if why is not None:
                yield why
        for part, saved in self.parts.items():
            if saved is not None and "remark" in saved.found:
                yield str(saved.found["remark"])
            elif saved is not None and part == "peer":
                yield f"peer {saved.found['reference']}"
        if self.recall is not None and self.recall.remark:
            yield self.recall.remark

    def targets(self) -> list[Target]:
        """What the numbers must reach; open where there is none."""
        tolerance = TOLERANCE["float32"]
        limits = {"outputs": tolerance, "gradients": OF_GRADIENTS * tolerance}
        found = [
            Target(f"{self.rule}, {kind} beside {part}", self._found(part, kind), limit, False, shown="{:.1e}".format)
            for part in ("oracle", "peer")
            for kind, limit in limits.items()
            if part in self.parts
        ]
        found += [
            Target(f"{self.rule}, forward", self._found("forward", name), least, True, name)
            for name, least in _LEAST.items()
            if self._has_baseline(name)
        ]
        found.append(Target(f"{self.rule}, decode", self._found("decode", "eager"), _LEAST_OF_STEP, True, "eager"))
        rule = NAMED[self.rule].rule
        if "chunk form" in self.parts:
            system = why_no_chunk_form(rule, self.chunk) is None and (rule.phi == SQUARED or rule.erase)
            least = _SHARE_OF_SYSTEMS if system else _SHARES[rule.decay]
            share, words = self._found("chunk form", "share"), f"{self.rule}, chunk form"
            found.append(Target(words, share, least, True, "of the ceiling", shown="{:.0%}".format))
        return found

    def number(self, part: str, name: str) -> float | str | None:
        """A number, or a name, of a part that was measured; None without it."""
        saved = self.parts.get(part)
        return None if saved is None else saved.found.get(name)

    def _has_baseline(self, name: str) -> bool:
        """Whether there is one; where a chunk form did not compile, the remark says why."""
        if name == "compiled":
            return self.number("forward", name) is not None
        return name == "eager" or self.rule in CAREFUL

    def _found(self, part: str, name: str) -> float | None:
        number = self.number(part, name)
        return None if number is None else float(number)

    def _absent(self, part: str) -> str:
        if part not in self.parts:
            return NONE
        saved = self.parts[part]
        if saved is None:
            return MISSING
        return NONE if "form" in saved.found else _NOT_RUN

    def _text(self, part: str, name: str) -> str:
        found = self.number(part, name)
        return self._absent(part) if found is None else str(found)

    def _time(self, part: str) -> str:
        seconds = self._found(part, "seconds")
        return self._absent(part) if seconds is None else duration(seconds)

    def _ratio(self, part: str, name: str) -> str:
        found = self._found(part, name)
        return self._absent(part) if found is None else f"{found:.1f}x"

    def _share(self, part: str) -> str:
        share = self._found(part, "share")
        return self._absent(part) if share is None else f"{share:.0%}"

    def _error(self, part: str, kind: str) -> str:
        error = self._found(part, kind)
        return self._absent(part) if error is None else f"{error:.0e}"

    def _recalled(self, count: int) -> str:
        if self.recall is None:
            return MISSING
        share = self.recall.accuracy.get(count)
        return NONE if share is None else f"{share:.2f}"
