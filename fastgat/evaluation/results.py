"""The settings of an evaluation, and its results, with their form in evaluation.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fastgat.attacks.base import NORMS
from fastgat.evaluation.card import Check
from fastgat.evaluation.outcomes import Example
from fastgat.options import Options, check_unit, option

EPSILON = {"linf": 8 / 255, "l2": 0.5}
CURVE_EPSILONS = {
    "l2": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
    "linf": tuple(step / 255 for step in (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)),
}
"""The epsilons of the fast-gradient curves."""


@dataclass(frozen=True)
class EvaluationSettings(Options):
    """The threat model, and how hard the attacks try."""

    norm: str = option("linf", "norm of the perturbations", choices=NORMS)
    epsilon: float | None = option(None, "their bound, in pixel units  [default: linf 8/255, l2 0.5]", at_least=0)
    steps: int = option(50, "gradient steps of PGD", at_least=1)
    restarts: int = option(10, "starts of PGD", at_least=2)
    apgd_steps: int = option(100, "steps of APGD", at_least=1)
    queries: int = option(5000, "queries of the Square attack", at_least=1)
    autoattack: bool = option(False, "run AutoAttack too, the standard version (APGD-CE, APGD-T, FAB-T, Square)")
    only_autoattack: bool = option(False, "AutoAttack and nothing else: no curves, no other attacks, no generator")
    seed: int = option(0, "seed of all random draws", at_least=0)
    batch_size: int | None = option(None, "images at a time  [default: 64 on a CPU, 256 on a GPU]", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("epsilon", self.bound, self.norm)

    @property
    def bound(self) -> float:
        """Epsilon, or the default of the norm."""
        return EPSILON[self.norm] if self.epsilon is None else self.epsilon


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
    weights: list[str] = field(default_factory=list)
    """What was done to the names of weights from elsewhere."""


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
        if s.only_autoattack:
            for idle in ("steps", "restarts", "apgd_steps", "queries", "autoattack"):  # it has its own
                del figures["settings"][idle]
        figures["threat_model"] = {"norm": s.norm, "epsilon": s.bound, "clamped": True, "targeted": False}
        figures["attacks"] = [{**attack.pop("settings"), **attack} for attack in figures["attacks"]]
        figures["equal_power"] = [{**row, **training[row["cg"]]} for row in figures["equal_power"]]
        return figures


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
