"""Rounds of fuzzing, each of one kernel; in a process of its own, which a wrong kernel may end.

    python -m tests.fuzz.rounds SEED FIRST COUNT EXAMPLES MINUTES

A round is decided by the seed and its number. What it is about to run lies in the folder of examples until it is done,
so that what ended the process is known; what was wrong stays there, as a script that runs it again.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.cases import Case, cases
from tests.fuzz.checks import check
from tests.fuzz.kernels import KINDS, Kernel, chosen, draw_kernel
from tests.fuzz.rules.drawn import KINDS as OF_RULES
from tuning_db import TuningDatabaseWarning

FOLDER = Path(".hypothesis") / "fuzz"

INTERPRETING = "TRITON_INTERPRET"
"""The variable that makes Triton interpret; it is read when Triton is imported."""

SCRIPT = """\
# {reason}
# Run it from the project's folder: {variables}PYTHONPATH=. .venv/bin/python {path}
from math import inf

from tests.fuzz.cases import Case
from tests.fuzz.checks import check
from tests.fuzz.kernels import Kernel, Problem, Rule, Spec, TritonSchedule, TvmSchedule, chosen

case = {case!r}
with chosen(case.kernel):
    check(case)
"""

_EVERY = (*KINDS, *OF_RULES)

# With the phase that explains, a failure takes several times as long as without.
_PHASES = (Phase.generate, Phase.target, Phase.shrink)


def backend() -> str:
    """The backend that this process can run on a CPU: Triton only interprets, or does not."""
    return "triton" if os.environ.get(INTERPRETING) == "1" else "tvm"


def kernel_of(first_seed: int, number: int) -> Kernel:
    """What round `number` compiles; one of every kind in turn, those with a gradient less often."""
    drawn = random.Random(f"{first_seed} {number}")
    kind = _EVERY[number % len(_EVERY)]
    return draw_kernel(drawn, kind, backend(), own_choice=drawn.random() < 0.4)


def run_round(first_seed: int, number: int, examples: int) -> str | None:
    """What was wrong in a round, None if nothing was; the smallest example is then in the folder."""
    kernel = kernel_of(first_seed, number)
    running, last = FOLDER / f"running-{os.getpid()}.py", None
    most_tokens = 24 if kernel.backend == "triton" else 90

    @seed(first_seed + number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases(kernel, most_tokens))
    def every_case_is_right(case: Case) -> None:
        nonlocal last
        last = case
        write_script(running, case, "This ended its process.")
        check(case)

    try:
        with chosen(kernel):
            every_case_is_right()
    except Exception as error:
        reason = "".join(traceback.format_exception_only(error)).strip().partition("\n")[0]
        assert last is not None
        path = FOLDER / f"{first_seed}-{number}.py"
        write_script(path, last, reason)
        return f"{reason}\n{path} runs it again: {last!r}"
    finally:
        running.unlink(missing_ok=True)
    return None


def write_script(path: Path, case: Case, reason: str) -> None:
    """A script that checks `case`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    variables = f"{INTERPRETING}=1 " if case.kernel.backend == "triton" else ""
    path.write_text(SCRIPT.format(reason=reason, variables=variables, path=path, case=case))


def main(first_seed: int, first: int, count: int, examples: int, minutes: float) -> int:
    """Run rounds until they or the time are over; the exit status is 1 if anything was wrong."""
    warnings.simplefilter("ignore", TuningDatabaseWarning)
    end, failed = time.monotonic() + 60 * minutes, False
    for number in range(first, first + count):
        if time.monotonic() > end:
            break
        wrong = run_round(first_seed, number, examples)
        kernel = kernel_of(first_seed, number)
        chosen = f"its own choice of {kernel.backend}" if kernel.schedule is None else kernel.schedule.key()
        print(f"round {number}: {'WRONG' if wrong else 'right'}, {kernel.spec.key()}, {chosen}", flush=True)
        if wrong:
            print(wrong, flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:5]), float(sys.argv[5])))
