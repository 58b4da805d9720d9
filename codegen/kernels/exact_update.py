"""The kernel that updates memories with z at each token, by forward substitution: its arguments, and its variants.

It is declared apart from the other kernels, so that a word about it would make none of their winners stale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from codegen.kernels import signatures
from codegen.kernels.arguments import Argument
from codegen.kernels.launches import CHUNKS, HEADS, MEMORIES, Launch
from codegen.recurrence.forms import WHOLE_CHUNK
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

KERNEL = "exact_update"
"""Its name, and that of its template."""


@dataclass(frozen=True)
class ExactLaunch(Launch):
    """A launch that has z at each token, and states at the starts of longer chunks than the rule's of one token."""

    def spec_of(self, spec: Spec) -> Spec:
        """The spec that the kernel is rendered for: of the update all that the operator computes."""
        if self.kernel == KERNEL:
            return spec
        made = super().spec_of(spec)
        return replace(made, problem=replace(made.problem, chunk=WHOLE_CHUNK))


def _followed_by_readouts(update_grid: str, memory: str | None = None) -> tuple[Launch, ...]:
    return ExactLaunch(KERNEL, update_grid, memory=memory), ExactLaunch("memory_readout", CHUNKS, memory=memory)


VARIANTS = {
    "substitution": _followed_by_readouts(MEMORIES),
    "substitution_one_pass": _followed_by_readouts(HEADS, memory="only"),
}
"""The launches of each variant in order."""


def kernel_arguments(spec: Spec, schedule: Schedule) -> tuple[Argument, ...]:
    """The arguments of the kernel in order."""
    return signatures.kernel_arguments(counterpart(spec), spec, schedule)


def counterpart(spec: Spec) -> str:
    """The kernel that takes z at the start of a chunk, and has the same arguments.

    A rule of one pass has as many slots as D_v: its w is k, its target v.
    """
    return "trellis_update" if spec.problem.operator == "trellis_attention" else "memory_update"
