"""Offline compilation: what it reports is so, and what is over budget fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("elftools")

from tests.kernels import offline  # it compiles with Triton

pytestmark = pytest.mark.offline

GOOD = {"registers": 32, "shared": 0, "spills": 0, "fp64": 0, "load": 16, "store": 16, "wide": True}
BUDGET = {"registers": 64, "shared": 128}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 65}, "65 registers, budget 64"),
        ({"shared": 129}, "129 bytes of shared memory, budget 128"),
        ({"spills": 1}, "1 spills, none allowed"),
        ({"fp64": 2}, "2 fp64, none allowed"),
        ({"load": 8}, "loads of 8 bytes at most, not 16"),
        ({"store": 4}, "stores of 4 bytes at most, not 16"),
        ({"wide_addresses": False}, "no 64-bit offsets"),
    ],
)
def test_what_is_over_budget_is_named(change: dict[str, Any], message: str) -> None:
    row = {**GOOD, "wide_addresses": True}
    assert offline.failures(row, BUDGET) == []
    assert offline.failures({**row, **change}, BUDGET) == [message]


def test_narrow_accesses_are_allowed_where_the_layout_demands_them() -> None:
    assert offline.failures({**GOOD, "wide_addresses": True, "wide": False, "load": 2}, BUDGET) == []


@pytest.mark.parametrize(
    ("suffix", "width"), [(".128", 16), (".128.CONSTANT", 16), (".64", 8), ("", 4), (".U16", 2), (".U8.CONSTANT", 1)]
)
def test_widths_of_instructions(suffix: str, width: int) -> None:
    assert offline._width(suffix) == width


def test_every_kernel_has_a_budget() -> None:
    budgets = tomllib.loads(offline.BUDGETS.read_text())
    kernels = "input_gradient", "perturbation", "perturbation_gradient", "cross_entropy_row", "projected_step"
    assert set(budgets) == {*kernels, "image_batch", "relu_gradient", "convolution_relu"}


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import offline
from fastgat.kernels.backend import triton

launch = next(offline.record(case) for case in offline.cases() if case.name == "l2-bf16")
source = offline.specialised(launch)
target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
sources = [
    triton.compiler.ASTSource(source.fn, source.signature, source.constants, attributes)
    for attributes in (source.attrs, {})
]
kernels = [triton.compile(each, target=target, options=launch.options) for each in sources]
print(*(each["load"] for each in offline.resources(kernels, 90)))
"""


def test_arguments_are_specialised_as_the_launcher_would(tmp_path: Path) -> None:
    """Without their divisibility the same kernel loads two bytes at a time."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, Path(offline.__file__).parent],
        env={**environment, "TRITON_DEFAULT_FP_FUSION": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["16", "2"]
