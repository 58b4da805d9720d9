"""How fast a core adds products of bfloat16 numbers beside those of float32 numbers, in registers.

What comes out bounds what a kernel could gain by bfloat16 operands:

    python -m tests.benchmarks.studies.kernels.bfloat16_dots
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from codegen.device import cpu

SOURCE = Path(__file__).with_suffix(".c")


def main(arguments: list[str] | None = None) -> None:
    """The command line: print what the probe measured.

    Raises:
        SystemExit: the processor has no instruction for it.
        subprocess.CalledProcessError: the C compiler refused the probe.
    """
    argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.kernels.bfloat16_dots", description=__doc__
    ).parse_args(arguments)
    flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    if "avx512_bf16" not in flags:
        raise SystemExit(f"{cpu().key()} has no AVX-512 BF16, so there is nothing to compare")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probe"
        compiler = os.environ.get("CC", "cc")
        optimised = ["-O3", "-funroll-all-loops", "-mavx512f", "-mavx512bf16"]
        subprocess.run([compiler, *optimised, "-o", program, SOURCE], check=True)
        print(cpu().key())
        print(subprocess.run([program], check=True, capture_output=True, text=True).stdout, end="")


if __name__ == "__main__":
    main()
