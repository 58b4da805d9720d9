"""The console scripts: each does what `python -m` does with the module it stands for, wherever it is started."""

from __future__ import annotations

import runpy

from trellis_ops.own_packages import require_own


def tune() -> None:
    """`trellis-tune`: `python -m tuner`."""
    _run("tuner")


def codegen() -> None:
    """`trellis-codegen`: `python -m codegen`."""
    _run("codegen")


def train() -> None:
    """`trellis-train`: `python -m trellis_ops.lm.train`."""
    _run("trellis_ops.lm.train")


def generate() -> None:
    """`trellis-generate`: `python -m trellis_ops.generate`."""
    _run("trellis_ops.generate")


def _run(module: str) -> None:
    require_own(module.partition(".")[0])
    runpy.run_module(module, run_name="__main__", alter_sys=True)
