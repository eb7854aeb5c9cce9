"""Adam against torch.optim.Adam."""

from __future__ import annotations

import copy

import pytest
import torch

from fastgat.engine.adam import Adam, trainable_parameters
from tests.support import players


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_torchs_adam(dtype: torch.dtype) -> None:
    module, _ = players(dtype=dtype)
    twin = copy.deepcopy(module)
    ours, torchs = (
        Adam(module, 1e-3),
        torch.optim.Adam(twin.parameters(), lr=1e-3),
    )
    for _ in range(5):
        gradients = {name: torch.randn_like(p) for name, p in module.named_parameters()}
        for name, parameter in twin.named_parameters():
            parameter.grad = gradients[name].clone()
        with torch.no_grad():
            ours.update(dict(trainable_parameters(module)), gradients)
        torchs.step()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=1e-9)


def test_all_of_its_state_is_in_its_state_dict() -> None:
    module, _ = players()
    names = {name.split(".")[0] for name in Adam(module, 1e-3).state_dict()}
    assert names == {"learning_rate", "exp_avg", "exp_avg_sq", "updates"}
