"""`import trellis_ops` brings in no compiler and no tuner, and makes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WRITE = """
import json, sys
import torch
from trellis_ops.lm.shipped import load_shipped
model = load_shipped("kjv-bytes")
model.generate(torch.tensor([list(b"In the")]), 2)
print(json.dumps(sorted(sys.modules)))
"""

LEARN = """
import json, sys
import torch
from trellis_ops import trellis_attention
given = [torch.ones(1, 4, 1, 3) for _ in range(4)] + [torch.zeros(1, 4, 1), torch.ones(1)]
leaves = [x.requires_grad_() for x in given]
trellis_attention(*leaves)[0].sum().backward()
print(json.dumps([sorted(sys.modules), all(x.grad is not None for x in leaves)]))
"""

IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import trellis_ops
print(json.dumps({
    "brought": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
    "modules": sorted(set(sys.modules) - before),
    "gpu": torch.cuda.is_initialized(),
}))
"""


def test_importing_brings_in_no_compiler_and_makes_nothing(tmp_path: Path) -> None:
    cache, database = tmp_path / "cache", tmp_path / "database"
    environment = {**os.environ, "TRELLIS_OPS_CACHE": str(cache), "TRELLIS_OPS_TUNING_DB": str(database)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert "trellis_ops" in found["brought"]
    assert not {"triton", "tvm", "tvm_ffi", "optuna", "jinja2", "tuner", "rich"}.intersection(found["brought"])
    assert not {"tokenizers", "safetensors", "matplotlib", "transformers"}.intersection(found["brought"])
    assert not {"trellis_ops.lm.train", "trellis_ops.lm.recall", "trellis_ops.lm.model"}.intersection(found["modules"])
    assert found["gpu"] is False
    assert not cache.exists()
    assert not database.exists()


def test_loading_a_model_and_writing_bring_in_no_compiler_of_torch() -> None:
    """It takes longer to import than all the rest; drawing weights on the meta device would."""
    environment = {**os.environ, "TRELLIS_OPS_IMPLEMENTATION": "eager"}
    done = subprocess.run(
        [sys.executable, "-c", WRITE], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = set(json.loads(done.stdout))
    assert "trellis_ops.lm.model" in found
    assert not {"torch._dynamo", "torch._inductor", "sympy", "transformers", "tvm"}.intersection(found)


def test_a_reverse_pass_brings_in_no_compiler_of_torch() -> None:
    """torch would import it at the first call of any operator that is registered in Python."""
    environment = {**os.environ, "TRELLIS_OPS_IMPLEMENTATION": "eager"}
    done = subprocess.run(
        [sys.executable, "-c", LEARN], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found, has_gradients = json.loads(done.stdout)
    assert has_gradients
    assert not {"torch._dynamo", "torch._inductor", "sympy", "tvm"}.intersection(found)
