"""The report card: masked gradients fail on the lines that are about them, an undefended network on none."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import AutoAttack, GeneratorTraining
from fastgat.batch import Batch
from fastgat.data import IterableLoader
from fastgat.evaluation import EvaluationSettings, card, evaluate, write_report
from fastgat.evaluation.agreement import agreement, repetition
from fastgat.evaluation.inputs import Subject
from tests.attacks.victim import Victim
from tests.evaluation.masked import Loud, Stairs

SETTINGS = EvaluationSettings(epsilon=0.06, steps=10, restarts=4, apgd_steps=15, queries=150)
TRANSFER = "White-box attacks are at least as strong as transfer from another network"
SQUARE = "White-box attacks are at least as strong as a search without gradients (Square)"
VANISHES = "Accuracy reaches 0 at a large epsilon"
LOSSES = "Attacks on the cross entropy find what attacks on the logits' differences find"
CLASSES = "There are as many wrong classes as AutoAttack aims at"
GRADIENT = "The input gradient is there and finite"


def verdicts(victim: Victim, model: nn.Module) -> tuple[str, dict[str, str]]:
    batches = [Batch(victim.images[:60], victim.labels[:60])]
    train = IterableLoader(list(zip(victim.images[100:].split(20), victim.labels[100:].split(20), strict=True)), 10)
    figures = evaluate(
        model,
        batches,
        SETTINGS,
        sources={"twin": victim.model} if model is not victim.model else {"twin": Loud(victim.model)},
        train=train,
        validation=batches,
        generators=[GeneratorTraining(width=4, epochs=1)],
    ).figures
    return figures["verdict"], {check["name"]: check["verdict"] for check in figures["card"]}


def test_an_undefended_network_passes(victim: Victim) -> None:
    verdict, lines = verdicts(victim, victim.model)
    assert verdict == "PASS", lines
    assert CLASSES not in lines
    assert set(lines.values()) == {"PASS"}


@pytest.mark.parametrize(
    ("mask", "failing"),
    [
        (Loud, {TRANSFER, SQUARE, VANISHES, LOSSES, GRADIENT}),
        pytest.param(Stairs, {TRANSFER, SQUARE, VANISHES, GRADIENT}, marks=pytest.mark.long),
    ],
)
def test_masked_gradients_fail(victim: Victim, mask: Any, failing: set[str]) -> None:
    verdict, lines = verdicts(victim, mask(victim.model))
    assert verdict == "FAIL"
    assert {name for name, line in lines.items() if line == "FAIL"} == failing


def outcome(right: int, of: int = 1000) -> np.ndarray:
    return np.arange(of) < right


@pytest.mark.parametrize(
    ("strong", "verdict"), [(500, "PASS"), (510, "PASS"), (511, "WARN"), (530, "WARN"), (531, "FAIL")]
)
def test_limits(strong: int, verdict: str) -> None:
    assert card.at_least_as_strong("", ("a", outcome(strong)), ("b", outcome(500)), "").verdict == verdict
    assert card.at_least_as_strong("", ("a", outcome(strong)), ("b", outcome(500)), "").verdict == verdict


def test_few_samples_do_not_fail_by_one() -> None:
    one, three, four = (
        card.at_least_as_strong("", ("a", outcome(5 + n, 20)), ("b", outcome(5, 20)), "") for n in (1, 3, 4)
    )
    assert (one.verdict, three.verdict, four.verdict) == ("PASS", "WARN", "FAIL")


def test_gradients_precisions_and_epsilons() -> None:
    assert card.gradients_are_there(0.0, 0.0, 0.3, 1000).verdict == "PASS"
    assert card.gradients_are_there(0.05, 0.0, 0.3, 1000).verdict == "WARN"
    assert card.gradients_are_there(0.2, 0.0, 0.3, 1000).verdict == "FAIL"
    assert card.gradients_are_there(0.0, 0.001, 0.3, 1000).verdict == "FAIL"
    assert card.same_in_other_precisions({"compiled": 0.0}, {}, 100).verdict == "PASS"
    assert card.same_in_other_precisions({"compiled": 0.2}, {}, 100).verdict == "FAIL"
    assert card.same_in_other_precisions({}, {"compiled": "needs a compiler"}, 100).verdict == "WARN"
    assert card.monotone([0, 1, 2], [0.9, 0.5, 0.1], 1000).verdict == "PASS"
    assert card.monotone([0, 1, 2], [0.9, 0.5, 0.6], 1000).verdict == "FAIL"
    assert card.monotone([0, 1, 2, 3, 4], [0.9, 0.5, 0.509, 0.518, 0.527], 1000).verdict == "WARN"
    assert card.monotone([0, 1, 2, 3, 4, 5], [0.9, 0.5, 0.51, 0.52, 0.53, 0.54], 1000).verdict == "FAIL"
    assert card.zero_at_large_epsilon(0.5, 0.0, 1000).verdict == "PASS"
    assert card.zero_at_large_epsilon(0.5, 0.06, 1000).verdict == "FAIL"


class Noisy(nn.Module):
    """A network that adds noise to its images."""

    def __init__(self, model: nn.Module, size: float) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images + self.size * torch.randn_like(images))
        return logits


class Moody(Noisy):
    """A network that answers other classes in every fourth pass."""

    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.model(images)
        return logits.roll(int(self.passes % 4 == 0), 1)


@pytest.mark.parametrize(
    ("kind", "size", "verdict"),
    [(Noisy, 0.0, "PASS"), (Noisy, 0.01, "WARN"), (Noisy, 1.0, "FAIL"), (Moody, 0.0, "FAIL")],
)
def test_a_random_network_is_said_to_be_one(victim: Victim, kind: type[Noisy], size: float, verdict: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = Batch(victim.images[:100], victim.labels[:100])
        check = card.deterministic(*repetition(Subject("f", kind(victim.model, size)), batch))
    assert check.verdict == verdict


def test_batches_of_any_size_judge_by_as_many_samples(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that a single batch of three could only warn of."""
    monkeypatch.setattr("fastgat.evaluation.protocol.AutoAttack", partial(AutoAttack, steps=1, targets=1, queries=1))
    monkeypatch.setattr("fastgat.evaluation.agreement.missing_compiler", lambda device: "a compiler")

    class Precise(nn.Module):
        """It answers otherwise in mixed precision."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            return -logits if torch.is_autocast_enabled("cpu") else logits

    settings = EvaluationSettings(epsilon=0.06, only_autoattack=True)
    for model, name in ((Noisy(victim.model, 1.0), "answers alike"), (Precise(), "mixed-precision")):
        for size in (1, 3, 40):
            parts = zip(victim.images[:40].split(size), victim.labels[:40].split(size), strict=True)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                figures = evaluate(model, [Batch(*part) for part in parts], settings).figures
            (line,) = (line for line in figures["card"] if name in line["name"])
            assert line["verdict"] == "FAIL", (name, size, line["figures"])


class ByPosition(Noisy):
    """A network whose noise is that of an image's place in the pass."""

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        logits: Tensor = self.model(images + self.size * noise)
        return logits


class ByMean(Noisy):
    """A network that centres its images by the mean of the pass, as batch statistics do."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images - 2 * self.size * images.mean((0, 2, 3), keepdim=True))
        return logits


@pytest.mark.parametrize("count", [4, 9, 100, 150])
@pytest.mark.parametrize("kind", [ByPosition, ByMean])
def test_answers_that_depend_on_the_images_beside_them(victim: Victim, kind: type[Noisy], count: int) -> None:
    batch = Batch(victim.images[:count], victim.labels[:count])
    check = card.deterministic(*repetition(Subject("f", kind(victim.model, 0.5)), batch))
    assert check.verdict != "PASS"
    assert check.figures["logits changed"] == "yes"
    assert "images beside it" in check.meaning


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3, 17, 150])
def test_rounding_is_no_dependence(victim: Victim, dtype: torch.dtype, count: int) -> None:
    batch = Batch(victim.images[:count].to(dtype), victim.labels[:count])
    model = copy.deepcopy(victim.model).to(dtype)
    assert card.deterministic(*repetition(Subject("f", model), batch)).verdict == "PASS"


@pytest.mark.parametrize(("classes", "verdict"), [(3, "WARN"), (9, "WARN"), (10, "PASS")])
def test_too_few_classes_for_autoattack_are_said_to_be(classes: int, verdict: str) -> None:
    assert card.enough_classes(classes, 9).verdict == verdict


def test_too_few_samples_are_said_to_be() -> None:
    assert card.enough_samples(outcome(20)).verdict == "PASS"
    assert card.enough_samples(outcome(19)).verdict == "WARN"


def test_the_worst_case_is_per_example() -> None:
    found = [np.array([True, False, True, True]), np.array([True, True, False, True])]
    assert card.worst_case(found).tolist() == [True, False, False, True]


def test_a_form_that_fails_is_told(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.evaluation.agreement.missing_compiler", lambda device: "a compiler")

    class Float32(nn.Module):
        """It takes no other dtype."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            return torch.zeros(len(logits), logits.shape[1]).index_add(1, torch.arange(logits.shape[1]), logits)

    changed, missing, _ = agreement(Subject("f", Float32()), Batch(victim.images[:4], victim.labels[:4]))
    assert not changed
    assert missing["bfloat16"].startswith("fails: index_add_(): ")


def test_a_ninth_network_of_a_process_is_compiled_too(victim: Victim) -> None:
    class Flips(nn.Module):
        """It answers otherwise where it is compiled."""

        def __init__(self, side: int) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * side * side, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.linear(images.flatten(1))
            return -logits if torch.compiler.is_compiling() else logits

    for side in range(4, 14):
        batch = Batch(victim.images[:2, :, :side, :side], victim.labels[:2])
        changed, _, _ = agreement(Subject("f", Flips(side)), batch)
        assert changed["compiled"] == 1, side


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_number_of_channels_are_shown(channels: int, tmp_path: Path) -> None:
    images, labels = torch.rand(4, channels, 8, 8), torch.arange(4) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 3))
    settings = EvaluationSettings(epsilon=0.1, steps=1, restarts=2, apgd_steps=1, queries=1)
    with torch.inference_mode():
        result = evaluate(model, [Batch(images, labels)], settings)
    assert tmp_path / "evaluation-pictures.png" in write_report(tmp_path, result)
