"""PGD: its starts, half precision, inference mode and TorchScript."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastgat.attacks import PGD
from tests.attacks.victim import Victim, accuracy


def test_restarts_keep_what_fools(victim: Victim) -> None:
    one, five = (
        accuracy(victim, PGD(victim.model, epsilon=0.04, steps=3, restarts=n)(victim.images, victim.labels))
        for n in (1, 5)
    )
    assert five <= one


def test_starts_can_be_gone_on_with(victim: Victim) -> None:
    settings: dict[str, Any] = {"epsilon": 0.03, "steps": 3}
    x, y = victim.images, victim.labels
    four = PGD(victim.model, restarts=4, **settings)(x, y)
    first = PGD(victim.model, restarts=1, **settings)(x, y)
    with torch.no_grad():
        left = (victim.model(first).argmax(1) == y).nonzero().flatten()
    rest = PGD(victim.model, restarts=3, first_start=1, **settings)(x[left], y[left], left.tolist())
    with torch.no_grad():
        stand = (victim.model(rest).argmax(1) == y[left]).sum()
    assert 0 < int(stand) < len(left) < len(y)
    assert int(stand) == round(accuracy(victim, four) * len(y))


def test_float16_under_mixed_precision() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).half(), torch.rand(3, 3, 4, 4).half()
    with torch.autocast("cpu", torch.bfloat16):
        perturbed = PGD(model, epsilon=0.1, steps=2)(images, torch.arange(3))
    assert perturbed.dtype == torch.float16
    assert not perturbed.equal(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inference_mode_and_torchscript_attack_alike(victim: Victim) -> None:
    x, y = victim.images[:4], victim.labels[:4]
    expected = PGD(victim.model, steps=2)(x, y)
    with torch.inference_mode():
        assert PGD(victim.model, steps=2)(x.clone(), y.clone()).equal(expected)
    frozen = torch.jit.freeze(torch.jit.script(victim.model))
    assert ((PGD(frozen, steps=2)(x, y) - expected).abs() > 1e-5).float().mean() < 1e-3
