from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

READ = """
import sys
import tuning_db
store = tuning_db.default_store()
store.devices(), store.records(), store.recommendation("cpu-x")
heavy = {"torch", "triton", "tvm", "optuna", "numpy", "codegen", "trellis_ops", "tuner", "filelock"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_and_reading_loads_neither_torch_nor_a_compiler_nor_the_lock(tmp_path: Path) -> None:
    environment = {**os.environ, "TRELLIS_OPS_TUNING_DB": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr == ""
