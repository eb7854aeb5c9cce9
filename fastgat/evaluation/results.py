"""The results of an evaluation, and their form in evaluation.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from fastgat.evaluation.card import Check
from fastgat.evaluation.settings import EvaluationSettings


@dataclass(frozen=True)
class CleanResult:
    """Clean accuracy and cross entropy of a run's network on a whole split, in float32, and where they come from."""

    checkpoint: str
    dataset: str
    split: str
    samples: int
    accuracy: float
    loss: float
    skipped_samples: int
    run: str
    other_runs: dict[str, str]
    run_settings: dict[str, Any]
    classes: list[str]
    environment: dict[str, Any]


@dataclass(frozen=True)
class AttackResult:
    """The accuracy that an attack leaves: the share of samples that are right both clean and attacked."""

    name: str
    accuracy: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Accuracy over epsilon; `source` is the network that perturbations were made on, None for the network itself."""

    attack: str
    norm: str
    network: str
    source: str | None
    epsilons: list[float]
    accuracies: list[float]
    settings: dict[str, Any]


@dataclass(frozen=True)
class EqualPower:
    """A generator against fast gradient at equal power: mean power, its root per pixel, and accuracy by attack."""

    cg: float
    power: float
    rms: float
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Robustness:
    """What the attacks on a network showed. `training`: how the generator of each c_g was trained."""

    network: str
    settings: EvaluationSettings
    attacked_samples: int
    clean_accuracy_of_attacked: float
    worst_case_accuracy: float
    attacks: list[AttackResult]
    curve_samples: int
    curves: list[Curve]
    equal_power: list[EqualPower]
    training: dict[float, dict[str, Any]]
    card: list[Check]
    verdict: str

    @property
    def figures(self) -> dict[str, Any]:
        """Plain values, as evaluation.json has them."""
        figures, s = asdict(self), self.settings
        training = figures.pop("training")
        figures["threat_model"] = {"norm": s.norm, "epsilon": s.bound, "clamped": True, "targeted": False}
        figures["attacks"] = [{**attack.pop("settings"), **attack} for attack in figures["attacks"]]
        figures["equal_power"] = [{**row, **training[row["cg"]]} for row in figures["equal_power"]]
        return figures


class PerturbedImage(NamedTuple):
    """A perturbed image (C, H, W), and the class that the network sees in it."""

    image: Tensor
    answer: int


class Example(NamedTuple):
    """An image (C, H, W) in [0, 1], its class, the network's answer, and the perturbed images by attack."""

    image: Tensor
    label: int
    answer: int
    perturbed: dict[str, PerturbedImage]


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation; `clean` is there for a run, `robustness` where the network was attacked."""

    clean: CleanResult | None = None
    robustness: Robustness | None = None
    examples: list[Example] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """The content of evaluation.json, plain values."""
        clean = asdict(self.clean) if self.clean else {}
        return clean | (self.robustness.figures if self.robustness else {})
