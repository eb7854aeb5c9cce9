"""Robust accuracy during training: it is PGD's, of always the same images, and decides which epoch is kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastgat import Trainer, load_classifier
from fastgat.attacks import PGD
from fastgat.batch import Batch
from fastgat.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from fastgat.engine import graph_passes, robust
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.engine.robust import RobustAccuracy, sample_images
from fastgat.engine.selection import Candidate, collapse
from fastgat.engine.state import TrainState
from fastgat.errors import ConfigError
from fastgat.experiments.cell import Cell
from fastgat.methods import GAT, METHODS, FGSMRandomStart, PGDTraining
from fastgat.randomness import point_in_ball
from tests.engine.small import At, Small, config, rows, trainer
from tests.support import BatchNormNet, compiled_by

ROBUST = ("fgsm-rs", "free", "n-fgsm", "pgd", "trades")


def validation(count: int = 30, sizes: Sequence[int] = (16, 14)) -> list[Batch]:
    source = torch.Generator().manual_seed(3)
    images, labels = torch.rand(count, 3, 8, 8, generator=source), torch.arange(count) % 10
    return [Batch(*part) for part in zip(images.split(list(sizes)), labels.split(list(sizes)), strict=True)]


def taught(batches: Sequence[Batch]) -> TrainState:
    """A classifier with batch norm that knows the images, so that an attack has something to take away."""
    torch.manual_seed(5)
    network = BatchNormNet()
    state = TrainState(network, None, OptimizerConfig(), ("loss",))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return state


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.01), ("l2", 0.1)])
def test_it_is_what_the_attack_leaves(
    norm: str, epsilon: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 out of 30 images, 7 at a time; the attack of `fastgat evaluate` from the same points finds as much."""
    monkeypatch.setattr(robust, "IMAGES", 20)
    batches = validation()
    state = taught(batches)
    measured = RobustAccuracy(state, (norm, epsilon), batches, batch_size=7, seed=1)
    if compiled:
        with compiled_by("aot_eager"):
            measured.prepare(captured=False)
    accuracy = measured({})
    assert state.classifier.training, "training goes on"
    assert (measured.samples, measured.seen) == (20, 30)
    chosen = sorted(each.number for each in sample_images(batches, 1, ALONE)[0])
    images, labels = (torch.cat(tensors)[chosen] for tensors in zip(*batches, strict=True))
    sources = {number: np.random.default_rng((1, robust.START, number)) for number in chosen}
    points = {number: point_in_ball(source, norm, epsilon, (3, 8, 8)) for number, source in sources.items()}
    starts = {number: torch.from_numpy(point) for number, point in points.items()}
    monkeypatch.setattr(PGD, "random_perturbation", lambda *given: torch.stack([starts[n] for n in given[2]]).float())
    attack = PGD(state.classifier, epsilon=epsilon, norm=norm, steps=10)
    perturbed = attack(images, labels, chosen)
    with torch.no_grad():
        network = state.classifier.eval()
        clean, left = ((network(x).argmax(1) == labels).float().mean().item() for x in (images, perturbed))
    assert accuracy == pytest.approx(left)
    assert 0 < accuracy < clean, "or nothing was seen"


def test_it_is_what_it_is_where_float16_would_overflow() -> None:
    batches = validation()
    state = taught(batches)
    in_float16 = TrainState(state.classifier, None, OptimizerConfig(), ("loss",), torch.float16)
    assert in_float16.loss_scale is not None
    in_float16.loss_scale.scale.fill_(2.0**20)
    whole, half = (RobustAccuracy(each, ("linf", 0.01), batches, 30, seed=1)({}) for each in (state, in_float16))
    assert whole < 1
    assert half == whole


def test_of_several_ranks_it_is_of_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has every third image, as loaders divide a data set."""
    monkeypatch.setattr(robust, "IMAGES", 10)
    whole = Batch(*map(torch.cat, zip(*validation(), strict=True)))
    found = [
        each
        for rank in range(3)
        for each in sample_images([Batch(*(tensor[rank::3] for tensor in whole))], 4, Ranks(rank, 3))[0]
    ]
    alone, seen = sample_images(validation(), 4, ALONE)
    assert seen == 30
    assert {each.number for each in sorted(found)[:10]} == {each.number for each in alone}
    for each in found:
        assert torch.equal(each.image, whole.images[each.number])
    assert {each.number for each in sample_images(validation(), 5, ALONE)[0]} != {each.number for each in alone}


HARD: dict[str, Any] = {
    "method": PGDTraining(epsilon=0.05, attack_steps=2, step_size=0.03),
    "epochs": 6,
    "optimizer": OptimizerConfig(lr=3e-2, ema=0.8),
}


def test_the_epoch_of_best_robust_accuracy_is_kept(tmp_path: Path) -> None:
    """With a moving average, and in two parts too."""
    whole, parts = config(tmp_path / "whole", **HARD), config(tmp_path / "parts", resume="auto", **HARD)
    summary = trainer(whole).fit().summary
    trainer(parts, callbacks=(At(20, lambda: os.kill(os.getpid(), signal.SIGTERM)),)).fit()
    trainer(parts).fit()
    epochs = rows(tmp_path / "whole", "epoch")
    for key in ("validation_robust_accuracy", "validation_robust_accuracy_unaveraged"):
        assert [row[key] for row in epochs] == [row[key] for row in rows(tmp_path / "parts", "epoch")]
        assert len({row[key] for row in epochs}) > 1, "or every epoch is the best"
        assert all(row["robust_seconds"] > 0 for row in epochs)
    best = max(epochs, key=lambda row: row["validation_robust_accuracy"])
    assert summary is not None
    assert (summary["select"], summary["best_epoch"]) == ("robust", best["epoch"])
    assert summary["validation_robust_accuracy"] == best["validation_robust_accuracy"]
    assert summary["collapsed_epoch"] is None
    for name in ("robust", "best"):
        networks = [load_classifier(tmp_path / run, checkpoint=name, classifier=Small()) for run in ("whole", "parts")]
        for one, other in zip(*(network.parameters() for network in networks), strict=True):
            assert torch.equal(one, other)
    unaveraged = load_classifier(tmp_path / "whole" / Candidate("robust", averaged=False).file, classifier=Small())
    assert not torch.equal(next(unaveraged.parameters()), next(networks[0].parameters()))


def test_the_attack_is_compiled_as_the_run_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the step has no convolution by Winograd, the attack has none either."""
    made, original = list[tuple[str, bool]](), graph_passes.GraphPasses

    def passes(convolutions: str, winograd: bool) -> graph_passes.GraphPasses:
        made.append((convolutions, winograd))
        return original(convolutions, winograd)

    monkeypatch.setattr(graph_passes, "GraphPasses", passes)
    run = RunConfig(device="cpu", compile=True, winograd=False)
    with compiled_by("aot_eager"):
        trainer(config(tmp_path / "run", **{**HARD, "epochs": 1, "run": run})).fit()
    assert made == [("cudnn", False)] * 2, "for the step, and for the attack"


def test_which_methods_go_by_it() -> None:
    assert tuple(sorted(name for name in METHODS if TrainConfig(method=name).rule == "robust")) == ROBUST
    assert TrainConfig(method="pgd", select="last").rule == "last"
    assert TrainConfig(method="n-fgsm").threat == ("linf", 8 / 255)
    assert TrainConfig(method="fg-l2", select="robust").threat == ("l2", 0.5)
    assert TrainConfig(method=GAT(), select="robust", select_epsilon="4/255").threat == ("linf", 4 / 255)  # type: ignore[arg-type]  # text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gat", "select": "robust"}, r"^select robust: gat has no epsilon in linf; give select_epsilon"),
        ({"method": "pgd", "select_norm": "l2"}, r"^select robust: pgd has no epsilon in l2; give select_epsilon"),
        ({"method": "pgd", "select": "loss", "select_epsilon": 0.1}, r"are for select robust, not loss$"),
        ({"method": "gat", "select_norm": "l2"}, r"are for select robust, not accuracy$"),
    ],
)
def test_what_cannot_be_judged_so_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize("said", [True, False])
def test_a_run_of_before_keeps_its_rule(said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pgd run whose settings say accuracy, or, being older, nothing, goes on by it where no rule is asked for."""
    settings = config(tmp_path / "run", **{**HARD, "epochs": 1})
    to_dict = TrainConfig.to_dict
    with monkeypatch.context() as earlier:
        earlier.setattr(PGDTraining, "select", "accuracy")
        if not said:
            earlier.setattr(TrainConfig, "to_dict", lambda c: {k: v for k, v in to_dict(c).items() if k != "select"})
        trainer(settings).fit()
    summary = trainer(replace(settings, epochs=2, resume="auto")).fit().summary
    assert summary is not None
    assert summary["select"] == "accuracy"


def test_cells_keep_their_names_and_meaning() -> None:
    by_accuracy = TrainConfig(method="pgd", select="accuracy")
    assert Cell(by_accuracy).name == "auto-pgd-seed0-8936c6c9", "as it was before there was the rule"
    assert Cell(TrainConfig(method="pgd")).name != Cell(by_accuracy).name
    assert Cell(TrainConfig(method="gat", select="accuracy")).name == Cell(TrainConfig(method="gat")).name


def history(robust: Sequence[float], training: Sequence[float], key: str = "") -> list[dict[str, float]]:
    return [
        {"epoch": epoch, f"validation_robust_accuracy{key}": accuracy, "perturbed_accuracy": trained}
        for epoch, (accuracy, trained) in enumerate(zip(robust, training, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("robust", "training", "epochs"),
    [
        ([0.2, 0.3, 0.4, 0.05, 0.01], [0.2, 0.3, 0.4, 0.7, 0.8], [4]),  # once, not in every epoch after
        ([0.4, 0.1, 0.3, 0.1], [0.4, 0.7, 0.5, 0.7], [2, 4]),  # it has come back in between
        ([0.2, 0.3, 0.4, 0.3, 0.25], [0.2, 0.3, 0.4, 0.6, 0.8], []),  # robust overfitting, which is slow
        ([0.4, 0.1], [0.4, 0.1], []),  # a network that has come apart
        ([0.1], [0.1], []),
        ([0.03, 0.0145], [0.1, 0.2], []),  # by chance
    ],
)
def test_a_collapse_is_seen_in_the_epoch_that_it_happens(
    robust: list[float], training: list[float], epochs: list[int]
) -> None:
    past = history(robust, training)
    assert [row["epoch"] for row in past if collapse(past[: int(row["epoch"])], 1000)] == epochs


def test_what_a_collapse_says() -> None:
    found = collapse(history([0.2, 0.4, 0.05], [0.3, 0.4, 0.9]), 1000)
    assert found == (2, (0.4, 0.05), (0.4, 0.9))
    averaged = [{**row, "validation_robust_accuracy": 0.4} for row in history([0.4, 0.1], [0.4, 0.9], "_unaveraged")]
    assert collapse(averaged, 1000) is not None, "the classifier's own, which its average follows later"
    assert collapse([{"epoch": 1}], 1000) is None


@pytest.mark.long
def test_a_step_that_is_too_large_collapses_and_the_epoch_before_is_kept(tmp_path: Path) -> None:
    """On digits, by a signed step of four times epsilon: training sees corners of the ball, and nothing between."""
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)]
    body = [each for layer in layers for each in (layer, nn.BatchNorm2d(32), nn.ReLU())]
    network = nn.Sequential(nn.AvgPool2d(4), *body, nn.Flatten(), nn.Linear(2048, 10))
    settings = TrainConfig(
        method=FGSMRandomStart(epsilon=0.2, overshoot=4),
        epochs=15,
        batch_size=32,
        output=tmp_path,
        data=DataConfig("digits"),
        optimizer=OptimizerConfig(lr=1e-2),
        run=RunConfig(compile=False, device="cpu"),
    )
    summary = Trainer(settings, classifier=network).fit().summary
    assert summary is not None
    epochs = rows(tmp_path, "epoch")
    assert summary["best_epoch"] < summary["collapsed_epoch"]
    after = epochs[summary["collapsed_epoch"] - 1]
    assert after["validation_robust_accuracy"] < summary["validation_robust_accuracy"] / 2
    assert after["perturbed_accuracy"] > epochs[summary["best_epoch"] - 1]["perturbed_accuracy"]
    assert len(epochs) == 15, "training goes on"
