"""What a finished run comes to, and a table of several: `python -m trellis_ops.train.summary runs/*`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trellis_ops.train.loop import Trainer


@dataclass(frozen=True)
class Summary:
    """The result of one run.

    Attributes:
        name: the mixer, with what is written for a memory.
        seed: of the run.
        parameters: of the model.
        steps, tokens: updates of the weights, and tokens they read at most.
        bits_per_byte: of all of the held-out text.
        seconds: time of the steps, without measurements.
        processes: how many trained.
    """

    name: str
    seed: int
    parameters: int
    steps: int
    tokens: int
    bits_per_byte: float
    seconds: float
    processes: int

    @classmethod
    def of(cls, trainer: Trainer, bits_per_byte: float, processes: int) -> Summary:
        """The result of a run that is done."""
        settings, config = trainer.settings, trainer.config
        memory = f"phi = {config.phi}, M = {config.slots}, C = {config.chunk}"
        return cls(
            name="softmax attention" if settings.mixer == "softmax" else memory,
            seed=settings.seed,
            parameters=trainer.parameters,
            steps=trainer.step,
            tokens=trainer.step * settings.batch * settings.length,
            bits_per_byte=bits_per_byte,
            seconds=trainer.seconds,
            processes=processes,
        )


def table(summaries: Sequence[Summary]) -> str:
    """A Markdown table, one line for each name and length of run, its seeds together."""
    lines = ["| model | parameters | steps | held-out bits per byte | by seed | time |", "|---|---|---|---|---|---|"]
    for name, steps in dict.fromkeys((each.name, each.steps) for each in summaries):
        runs = sorted((each for each in summaries if (each.name, each.steps) == (name, steps)), key=lambda x: x.seed)
        bits = [each.bits_per_byte for each in runs]
        spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
        seconds = statistics.mean(each.seconds for each in runs)
        by_seed = ", ".join(f"{each:.3f}" for each in bits)
        lines.append(
            f"| {name} | {runs[0].parameters:,} | {steps} | {statistics.mean(bits):.3f}{spread} | {by_seed} "
            f"| {seconds:.0f} s |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs in the folders given; those that are not done are named."""
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.train.summary", description="A table of finished runs, the seeds together."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that training wrote")
    files = [folder / "summary.json" for folder in parser.parse_args(arguments).folders]
    done = [Summary(**json.loads(file.read_text())) for file in files if file.exists()]
    print(table(done))
    for file in files:
        if not file.exists():
            print(f"not done: {file.parent}")


if __name__ == "__main__":
    main()
