"""Twenty steps of every method in float64, eager, give the losses that they gave when the fixture was written.

    python tests/methods/test_same_step.py      adds the cases that the fixture lacks

Weights, images and noise come from whole numbers alone, so that no random generator can change them. The networks are
smooth: the sign of a gradient must not hang on its rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.functional import tensor_paths
from fastgat.methods import METHODS
from fastgat.methods.players import Draws, Network, Players

FIXTURE = Path(__file__).parent / "fixtures" / "losses.json"
STEPS, SAMPLES, SIDE, CLASSES = 20, 4, 6, 5
RATE = {"classifier": 0.5, "generator": 0.5}

CASES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "dropout": {"dropout": 0.25},
    "random": {},
    "fg-linf": {},
    "fg-l2": {},
    "gat paper": {"schedule": "paper", "cg": 0.3, "generator_steps": 2, "delta": "fixed"},
    "gat alternating": {"schedule": "alternating", "cg": 0.3, "generator_input": "with-image", "delta": "fixed"},
    "gat simultaneous": {"schedule": "simultaneous", "cg": 0.3, "delta": "fixed"},
    "gat normalised": {"schedule": "simultaneous", "cg": 0.3, "generator_input": "normalised", "delta": "fixed"},
    "gat resting": {"schedule": "paper", "cg": 0.3, "generator_interval": 2, "delta": "fixed"},
    "gat through": {"schedule": "alternating", "cg": 0.3, "delta": "through"},
    "dropout-gat": {"dropout": 0.25, "cg": 0.3, "delta": "fixed"},
    "pgd": {"attack_steps": 3},
    "fgsm-rs": {},
    "n-fgsm": {},
    "free": {"replays": 3},
    "trades": {"attack_steps": 3},
    "gradient-penalty": {"penalty": 0.3},
}


def numbers(seed: int, *shape: int) -> Tensor:
    """Evenly spread in [0, 1), float64, by a hash of whole numbers."""
    h = torch.arange(torch.Size(shape).numel()) + 7919 * seed
    for _ in range(2):
        h = (h ^ (h >> 16)) * 0x45D9F3B % 2**32
    return ((h ^ (h >> 16)).double() / 2**32).view(shape)


class Classifier(nn.Module):
    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.head = nn.Linear(4 * 9, CLASSES)

    def forward(self, images: Tensor, masks: tuple[Tensor, ...] = ()) -> Tensor:
        x = self.norm(self.conv(images)).tanh()
        for mask in masks:
            x = x * mask / 0.75
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


class Generator(nn.Module):
    ends_in_tanh = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, delta: Tensor, bounded: bool = True) -> Tensor:
        z = self.last((10 * self.first(delta)).tanh())
        return z.tanh() if bounded else z


def network(name: str, module: nn.Module, seed: int, interacts: bool = False) -> Network:
    module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(numbers(seed + number, *parameter.shape) - 0.5)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return Network(name, module, parameters, dict(module.named_buffers()), tensor_paths(module), interacts=interacts)


def draws_of(seed: int, noise: bool, dropout: bool) -> Draws:
    clean, perturbed = ((numbers(seed + i, SAMPLES, 4, SIDE, SIDE) >= 0.25,) if dropout else () for i in (0, 1))
    return Draws(clean, perturbed, 2 * numbers(seed + 2, SAMPLES, 3, SIDE, SIDE) - 1 if noise else None)


def update(
    players: Players, *, classifier: dict[str, Tensor] | None = None, generator: dict[str, Tensor] | None = None
) -> Players:
    """Plain gradient descent."""
    for name, gradients in (("classifier", classifier), ("generator", generator)):
        if gradients is not None:
            player = getattr(players, name)
            stepped = {key: p - RATE[name] * gradients[key] for key, p in player.parameters.items()}
            players = players._replace(**{name: player._replace(parameters=stepped)})
    return players


def losses(case: str, batch_norm: bool) -> dict[str, list[float]]:
    method = METHODS[case.split()[0]](**CASES[case])
    classifier = network("classifier", Classifier(batch_norm), 1, interacts=batch_norm)
    players = Players(
        classifier,
        network("generator", Generator(method.generator_channels(3)), 100) if method.needs_generator else None,
        torch.zeros(SAMPLES, 3, SIDE, SIDE, dtype=torch.float64) if method.remembers else None,
    )
    result: dict[str, list[float]] = {}
    for step in range(STEPS):
        kind = method.kind(step)
        count = method.minibatches(kind)
        seeds = [1000 + 100 * step + 10 * i for i in range(count)]
        batches = [Batch(numbers(s, SAMPLES, 3, SIDE, SIDE), (CLASSES * numbers(s + 5, SAMPLES)).long()) for s in seeds]
        noise = case in ("random", "pgd", "fgsm-rs", "n-fgsm", "trades")
        draws = [draws_of(s + 6, noise, bool(method.classifier_dropout)) for s in seeds]
        with torch.no_grad():
            players, metrics = method.step(players, batches, draws, update, kind)
        for name in ("loss", "generator_loss", "perturbation_norm"):
            if name in metrics:
                result.setdefault(name, []).append(float(metrics[name]))
    return result


@pytest.mark.parametrize("norm", ["plain", "batch norm"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_before(case: str, norm: str) -> None:
    expected = json.loads(FIXTURE.read_text())[f"{case}, {norm}"]
    found = losses(case, norm == "batch norm")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-9), name


def write() -> None:
    known = json.loads(FIXTURE.read_text()) if FIXTURE.exists() else {}
    for case in CASES:
        for norm in ("plain", "batch norm"):
            known.setdefault(f"{case}, {norm}", losses(case, norm == "batch norm"))
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in known.items())
    FIXTURE.write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    write()
