"""AutoAttack and its four attacks against torchattacks', and against the authors' code: what is left, and the time.

    pip install --no-deps torchattacks
    python bench/autoattack.py --json FILE [--original FOLDER] [--network NAME] [--norm NORM] [--attack NAME]

Three small networks on the handwritten digits: undefended, trained by GAT, and by PGD. Each attack is given all images
that the network gets right; what none of the four fools is AutoAttack's figure. FOLDER is a checkout of the repository
fra31/auto-attack, the authors' code. Perturbed images are judged here: one outside the threat model fools nobody. The
sides take turns, in one thread; their seconds are processor time, which other programs change little.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

import fastgat
from fastgat.attacks import AutoAttack
from fastgat.attacks.base import correct
from fastgat.config import OptimizerConfig
from fastgat.data import create_loader
from fastgat.data.digits import DIGITS
from fastgat.data.registry import silent
from fastgat.engine.device import keep_freed_memory
from fastgat.methods import create_method
from fastgat.models import Generator
from fastgat.reporting.environment import environment

NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "undefended": ("baseline", {}, {"linf": 0.02, "l2": 0.7}),
    "GAT": ("gat", {"cg": 0.02, "delta": "fixed"}, {"linf": 0.07, "l2": 2.3}),
    "PGD": ("pgd", {"epsilon": 0.1, "step_size": 0.025}, {"linf": 0.14, "l2": 2.5}),
}
"""By name: the method, its options, and the epsilons of the attacks, at which about half of the images are left."""
TRAINING_STEPS = 300
NORMS = {"linf": "Linf", "l2": "L2"}
SLACK = 1e-5
"""By which share of epsilon rounding may exceed it."""
ATTACKS = ("APGD-CE", "APGD-T", "FAB-T", "Square")
Attacks = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


class Threat(NamedTuple):
    """The norm of the perturbation, and its bound."""

    norm: str
    epsilon: float


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)), default=list(NETWORKS))
@click.option("--norm", "norms", multiple=True, type=click.Choice(list(NORMS)), default=list(NORMS))
@click.option("--attack", "names", multiple=True, type=click.Choice(ATTACKS), default=ATTACKS)
@click.option("--samples", type=click.IntRange(1, 360), default=200, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True)
@click.option("--queries", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--original", type=Path, help="a checkout of the authors' code, to be run as well")
@click.option("--json", "output", type=Path, help="add the figures to those in this file, after each network and norm")
def main(
    networks: tuple[str, ...],
    norms: tuple[str, ...],
    names: tuple[str, ...],
    samples: int,
    original: Path | None,
    output: Path | None,
    **effort: int,
) -> None:
    """Run the attacks of each side on each network, in both norms."""
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    for network in networks:
        model, images, labels = trained(network, samples)
        right = correct(model(images), labels)
        x, y = images[right], labels[right]
        for norm in norms:
            threat = Threat(norm, NETWORKS[network][2][norm])
            sides = {"fastgat": ours(model, threat, **effort)}
            sides["torchattacks"] = torchattacks_attacks(model, threat, **effort)
            if original is not None:
                sides["original"] = original_attacks(original, model, threat, **effort)
            rows = compared(model, x, y, threat, names, sides)
            for name, row in rows.items():
                click.echo(f"{network:10} {norm:4} {name:8} " + "  ".join(f"{k} {v}" for k, v in row.items()))
            if output is not None:
                result = {"network": network, "samples": samples, "right": len(y), **threat._asdict(), **effort}
                before = json.loads(output.read_text())["results"] if output.exists() else []
                content = {"results": [*before, {**result, "attacks": rows}], "environment": environment()}
                output.write_text(json.dumps(content, indent=2) + "\n")


def trained(network: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network in eval mode, and test images (N, 3, 32, 32) with their labels."""
    method, options, _ = NETWORKS[network]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )
    step = fastgat.compile_step(
        model,
        create_method(method, **options),
        generator=Generator(width=8) if method == "gat" else None,
        optimizer=OptimizerConfig(lr=2e-3, generator_lr=1e-3),
        compile=False,
    )
    data = DIGITS.load(None, 0, silent)
    for images, labels in islice(create_loader("resident", data.train, 64).stream(0), TRAINING_STEPS):
        step(images, labels)
    images, labels = next(create_loader("resident", data.test, samples).once())
    return model.eval().requires_grad_(False), images, labels


def ours(model: nn.Module, threat: Threat, steps: int, queries: int, seed: int) -> Attacks:
    """fastgat's."""
    return AutoAttack(model, **threat._asdict(), steps=steps, queries=queries, seed=seed).parts()


def torchattacks_attacks(model: nn.Module, threat: Threat, steps: int, queries: int, seed: int) -> Attacks:
    """torchattacks', with the effort of the standard version: its own AutoAttack takes 10 steps."""
    import torchattacks

    common = {"norm": NORMS[threat.norm], "eps": threat.epsilon, "seed": seed}
    return {
        "APGD-CE": torchattacks.APGD(model, **common, steps=steps),
        "APGD-T": torchattacks.APGDT(model, **common, steps=steps, n_classes=10),
        "FAB-T": torchattacks.FAB(model, **common, steps=steps, multi_targeted=True, n_classes=10),
        "Square": torchattacks.Square(model, **common, n_queries=queries),
    }


def original_attacks(folder: Path, model: nn.Module, threat: Threat, steps: int, queries: int, seed: int) -> Attacks:
    """The authors'."""
    sys.path.insert(0, str(folder))
    from autoattack import AutoAttack as Original

    def attack(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        common = {"norm": NORMS[threat.norm], "eps": threat.epsilon, "seed": seed, "device": "cpu", "verbose": False}
        whole = Original(model, **common, version="custom", attacks_to_run=[name.lower()])
        whole.apgd.n_restarts = whole.fab.n_restarts = 1
        whole.apgd.n_iter = whole.apgd_targeted.n_iter = whole.fab.n_iter = steps
        whole.square.n_queries = queries
        run: Callable[[Tensor, Tensor], Tensor] = whole.run_standard_evaluation
        return run

    return {name: attack(name) for name in ATTACKS}


def compared(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, names: Sequence[str], sides: Mapping[str, Attacks]
) -> dict[str, dict[str, Any]]:
    """By attack: how many images each side leaves right, how many only one side fools, and seconds."""
    rows: dict[str, dict[str, Any]] = {}
    every = {side: torch.ones_like(y, dtype=torch.bool) for side in sides}
    for name in names:
        left, seconds = {}, {}
        for side, attacks in sides.items():
            began = time.process_time()
            perturbed = attacks[name](x.clone(), y.clone())
            seconds[side] = round(time.process_time() - began, 2)
            left[side] = stands(model, x, y, perturbed, threat)
            every[side] &= left[side]
        rows[name] = {**differences(left), "seconds": seconds}
    return {**rows, "all": differences(every)} if set(names) == set(ATTACKS) else rows


def differences(left: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many images each side leaves right, and how many of two sides only one fools."""
    own, others = left["fastgat"], {side: right for side, right in left.items() if side != "fastgat"}
    return {
        "left": {side: int(right.sum()) for side, right in left.items()},
        "fooled by it, not by fastgat": {side: int((own & ~right).sum()) for side, right in others.items()},
        "fooled by fastgat, not by it": {side: int((right & ~own).sum()) for side, right in others.items()},
    }


def stands(model: nn.Module, x: Tensor, y: Tensor, perturbed: Tensor, threat: Threat) -> Tensor:
    """Which images the model still gets right; one outside the threat model counts as not perturbed."""
    p = (perturbed.double() - x.double()).flatten(1)
    size = p.abs().amax(1) if threat.norm == "linf" else p.norm(dim=1)
    allowed = (size <= threat.epsilon * (1 + SLACK)) & ((perturbed >= 0) & (perturbed <= 1)).flatten(1).all(1)
    return correct(model(torch.where(allowed[:, None, None, None], perturbed, x)), y)


if __name__ == "__main__":
    main()
