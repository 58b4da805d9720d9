"""What a finished run comes to, and a table of several: `python -m trellis_ops.lm.train.summary runs/*`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.errors import TrellisError
from trellis_ops.files import regular_file
from trellis_ops.lm.train.errors import CheckpointError

if TYPE_CHECKING:
    from trellis_ops.lm.train.loop import Trainer


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
        text: the fingerprint of the text that was fitted, as tokens; empty in a summary of an older version.
        sources: the files and folders it was read from.
    """

    name: str
    seed: int
    parameters: int
    steps: int
    tokens: int
    bits_per_byte: float
    seconds: float
    processes: int
    text: str = ""
    sources: str = ""

    @classmethod
    def of(cls, trainer: Trainer, bits_per_byte: float, processes: int, sources: Sequence[Path]) -> Summary:
        """The result of a run that is done, with what it read."""
        settings, config = trainer.settings, trainer.config
        kind = f"phi = {config.phi}" if config.rule is None else config.rule
        slots = f", M = {config.slots}" if config.record.passes == 2 else ""
        memory = f"{kind}{slots}, C = {config.chunk}"
        return cls(
            name="softmax attention" if settings.mixer == "softmax" else memory,
            seed=settings.seed,
            parameters=trainer.parameters,
            steps=trainer.step,
            tokens=trainer.step * settings.batch * settings.length,
            bits_per_byte=bits_per_byte,
            seconds=trainer.seconds,
            processes=processes,
            text=trainer.text,
            sources=", ".join(map(str, sources)),
        )

    @classmethod
    def read(cls, path: Path) -> Summary:
        """The summary in `path`.

        Raises:
            CheckpointError: another file, or a damaged one. IrregularFileError, OSError: none that can be read.
        """
        try:
            content = json.loads(regular_file.read_bytes(path))
            summary = cls(**content)
        except (ValueError, TypeError, RecursionError) as error:
            problem = f"this is no summary of a run ({error}); run the same command of training again to write it anew"
            raise CheckpointError(path=path, problem=problem) from error
        for field in fields(cls):
            value = getattr(summary, field.name)
            if type(value).__name__ != field.type and not (field.type == "float" and type(value) is int):
                problem = f"{field.name} is {value!r:.80}, expected {field.type}"
                raise CheckpointError(path=path, problem=problem)
        return summary

    def text_name(self) -> str:
        """The text as one reads it; the fingerprint tells apart what one name held at two times."""
        return f"{self.sources} ({self.text[:8]})" if self.text else "a text that is not on record"


def table(summaries: Sequence[Summary]) -> str:
    """A Markdown table, one line for each name, length of run and text, its seeds together.

    Which text it was is said where there are several: their bits per byte cannot be compared.
    """
    several = len({each.text for each in summaries}) > 1
    lines = ["| model | parameters | steps | held-out bits per byte | by seed | time |", "|---|---|---|---|---|---|"]
    for name, steps, text in dict.fromkeys(map(_row, summaries)):
        runs = sorted((each for each in summaries if _row(each) == (name, steps, text)), key=lambda x: x.seed)
        bits = [each.bits_per_byte for each in runs]
        spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
        seconds = statistics.mean(each.seconds for each in runs)
        by_seed = ", ".join(f"{each:.3f}" for each in bits)
        model = f"{name}, on {runs[0].text_name()}" if several else name
        lines.append(
            f"| {model} | {runs[0].parameters:,} | {steps} | {statistics.mean(bits):.3f}{spread} | {by_seed} "
            f"| {seconds:.0f} s |"
        )
    return "\n".join(lines)


def _row(summary: Summary) -> tuple[str, int, str]:
    return summary.name, summary.steps, summary.text


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs in the folders given; those that are not done are named."""
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.lm.train.summary", description="A table of finished runs, the seeds together."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that training wrote")
    files = [folder / "summary.json" for folder in parser.parse_args(arguments).folders]
    try:
        print(table([Summary.read(file) for file in files if file.exists()]))
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    for file in files:
        if not file.exists():
            print(f"not done: {file.parent}")


if __name__ == "__main__":
    main()
