"""What tests of loaders need of the machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastgat.data.dali import missing


@pytest.fixture(autouse=True)
def _dali(request: pytest.FixtureRequest) -> None:
    """Skips what has "dali" for its `name` where there is no DALI."""
    if getattr(request.node, "callspec", SimpleNamespace(params={})).params.get("name") == "dali" and missing():
        pytest.skip(str(missing()))


@pytest.fixture
def needs_dali() -> None:
    if missing():
        pytest.skip(str(missing()))
