"""Leaves the thorough cases out of a run, unless it is asked for them; one that is named runs in any case."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.thorough.cases import ALL, Cases
from tests.thorough.interpreted import INTERPRETED
from tests.thorough.others import OTHERS
from tests.thorough.trellis_ops import TRELLIS_OPS
from tests.thorough.triton import TRITON
from tests.thorough.tvm import TVM
from tests.thorough.tvm_cuda import TVM_CUDA

THOROUGH: Cases = TRITON | TVM | TVM_CUDA | INTERPRETED | TRELLIS_OPS | OTHERS


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the cases of tests/thorough/ too")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the thorough cases, unless they are asked for.

    Raises:
        pytest.UsageError: a case that is listed is no case of its file.
    """
    # What failed last is collected alone, and runs again whatever it is.
    if _names_a_test(config.args) or config.getoption("lf", False):
        return
    _require_all({item.nodeid for item in items})
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if _is_thorough(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_thorough(item)]


def _names_a_test(arguments: Sequence[str]) -> bool:
    return any("::" in each for each in arguments)


def _require_all(found: set[str]) -> None:
    collected = {each.partition("::")[0] for each in found}
    for path in THOROUGH.keys() & collected:
        for test, cases in THOROUGH[path].items():
            name = f"{path}::{test}"
            for case in cases:
                if not any(each == f"{name}[{case}]" or (not case and each.startswith(name)) for each in found):
                    raise pytest.UsageError(f"tests/thorough/ names {name}[{case}], which is no test; correct it there")


def _is_thorough(item: pytest.Item) -> bool:
    path, _, name = item.nodeid.partition("::")
    test, _, case = name.partition("[")
    cases = THOROUGH.get(path, {}).get(test, ())
    return cases == ALL or case.removesuffix("]") in cases
