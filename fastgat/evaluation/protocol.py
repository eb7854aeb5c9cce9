"""The whole evaluation of a network: curves, attacks at one epsilon, a fresh generator, the report card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgat.attacks import (
    APGD,
    PGD,
    Attack,
    AutoAttack,
    FastGradient,
    GeneratorAttack,
    GeneratorTraining,
    Noise,
    Square,
    train_generator,
)
from fastgat.attacks.autoattack import check_autoattack
from fastgat.attacks.base import NORMS
from fastgat.batch import Batch
from fastgat.data.loader import Loader
from fastgat.engine.device import tf32
from fastgat.errors import ConfigError
from fastgat.evaluation import card
from fastgat.evaluation.agreement import agreement, gradient_shares
from fastgat.evaluation.cache import Cache, batch_fingerprint
from fastgat.evaluation.examples import Example, examples
from fastgat.evaluation.outcomes import Outcomes, Steady, Subject, check_subjects, clean_outcomes, numbered, outcomes
from fastgat.evaluation.power import equal_power
from fastgat.evaluation.sweep import attack_sweep, fast_gradient_sweep
from fastgat.models import Generator
from fastgat.options import Options, option

CURVES = {
    "l2": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
    "linf": tuple(step / 255 for step in (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)),
}
"""The epsilons of the fast-gradient curves."""
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of epsilon at which PGD must find more and more."""
LADDER_STEPS = 20
EPSILON = {"linf": 8 / 255, "l2": 0.5}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationSettings(Options):
    """What a network is asked."""

    norm: str = option("linf", "of the threat model", choices=NORMS)
    epsilon: float | None = option(None, "its bound, in pixel units  [default: linf 8/255, l2 0.5]", at_least=0)
    steps: int = option(50, "gradient steps of PGD", at_least=1)
    restarts: int = option(10, "starts of PGD", at_least=2)
    apgd_steps: int = option(100, "steps of APGD", at_least=1)
    queries: int = option(5000, "of the Square attack", at_least=1)
    autoattack: bool = option(False, "run torchattacks' AutoAttack too (the extra autoattack)")
    seed: int = option(0, "of everything that is drawn", at_least=0)
    batch_size: int | None = option(None, "images at a time  [default: 64 on a CPU, 256 on a GPU]", at_least=1)

    @property
    def bound(self) -> float:
        return EPSILON[self.norm] if self.epsilon is None else self.epsilon


class Evaluation(NamedTuple):
    """`figures`: plain values, what evaluation.json holds. `examples`: some images, to be looked at."""

    figures: dict[str, Any]
    examples: list[Example]


@tf32(False)
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    settings: EvaluationSettings | None = None,
    *,
    name: str = "network",
    networks: Mapping[str, nn.Module] | None = None,
    sources: Mapping[str, nn.Module] | None = None,
    curve_batches: Iterable[Batch] | None = None,
    train: Loader | None = None,
    validation: Iterable[Batch] = (),
    generators: Iterable[GeneratorTraining] = (),
    cache: Cache | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Attack a classifier in every way that fastgat knows, without TF32, and say what to believe of the result.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K), float32; it comes back as it was.
        batches: of (images, labels) on the model's device, the same whenever they are iterated: a list, say.
        name: of the model, in figures.
        networks: others, whose curves stand beside the model's.
        sources: others, that perturbations are made on (transfer, indirect curves).
        curve_batches: for curves and equal power, which cost little; by default `batches`.
        train, validation, generators: images to train a fresh generator on, and its settings, one for each c_g.
        cache: where what is done is kept, so that an evaluation that was killed goes on.
        progress: told what is being done, and how many samples of how many.

    Raises ConfigError for networks, images or settings that do not fit, NonFiniteError for logits that are NaN.
    """
    settings = settings or EvaluationSettings()
    networks, sources, generators = dict(networks or {}), dict(sources or {}), list(generators)
    if shared := {name, *networks} & sources.keys() | {name} & networks.keys():
        raise ConfigError(f"{min(shared)!r} stands for several networks: give each a name of its own")
    batches = Steady(batches)
    run = _Run(Subject.of(name, model), batches, settings, cache or Cache(), progress)
    beside, transfers = ([Subject.of(*item) for item in others.items()] for others in (networks, sources))
    first, _ = next(numbered(batches))
    classes = check_subjects([run.subject, *beside, *transfers], first)
    if settings.autoattack:
        check_autoattack(classes)
    trained = {g.cg: run.generator(g, train, validation) for g in generators}
    at_hand = curve_batches or batches
    curves = run.curves({name: model, **networks}, sources, at_hand)
    found = run.attacks(transfers, {cg: generator for cg, (generator, _) in trained.items()})
    ladder = run.ladder()
    clean = clean_outcomes(run.subject, batches, run.cache)
    checks = [card.enough(clean), *run.checks(found, ladder, transfers)]
    rows = equal_power(run.subject, {cg: g for cg, (g, _) in trained.items()}, at_hand, run.cache)
    for row in rows:
        row.update(trained[row["cg"]][1])
    worst = card.worst_case(found)
    figures = {
        "network": name,
        "threat_model": {"norm": settings.norm, "epsilon": settings.bound, "clamped": True, "targeted": False},
        "settings": asdict(settings),
        "attacked_samples": len(clean),
        "clean_accuracy_of_attacked": float(clean.mean()),
        "worst_case_accuracy": float(worst.mean()),
        "attacks": [
            {"name": key, "accuracy": float(value.mean()), **run.described[key]} for key, value in found.items()
        ],
        "curve_samples": sum(len(batch.labels) for batch, _ in numbered(at_hand)),
        "curves": [*curves, ladder],
        "equal_power": rows,
        "card": [check._asdict() for check in checks],
        "verdict": card.overall(checks),
    }
    shown = ["fast gradient", f"PGD-{settings.steps}", *(key for key in found if key.startswith("generator"))][:3]
    return Evaluation(figures, examples(model, first, {key: run.made[key] for key in shown}))


class _Run:
    """One evaluation: what its parts share."""

    def __init__(
        self, subject: Subject, batches: Iterable[Batch], settings: EvaluationSettings, cache: Cache, progress: Progress
    ) -> None:
        self.subject, self.batches, self.settings, self.cache = subject, batches, settings, cache
        self.progress = progress
        self.samples = sum(len(batch.labels) for batch, _ in numbered(batches))
        self.described: dict[str, dict[str, Any]] = {}
        self.made: dict[str, Attack] = {}
        self.common: dict[str, Any] = {
            "norm": settings.norm,
            "epsilon": settings.bound,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
        }

    def outcomes(
        self, key: str, attack: Attack, among: Outcomes | None = None, made_on: Subject | None = None
    ) -> Outcomes:
        done = 0

        def report(samples: int) -> None:
            nonlocal done
            done += samples
            self.progress(key, done, self.samples)

        self.progress(key, 0, self.samples)
        self.described[key], self.made[key] = attack.settings(), attack
        return outcomes(self.subject, attack, self.batches, self.cache, among=among, made_on=made_on, progress=report)

    def attacks(self, sources: list[Subject], generators: Mapping[float, nn.Module]) -> dict[str, Outcomes]:
        """What stands under each attack at the threat model's epsilon."""
        model, s, common = self.subject.model, self.settings, self.common
        found: dict[str, Outcomes] = {}

        def run(key: str, attack: Attack, made_on: Subject | None = None) -> None:
            found[key] = self.outcomes(key, attack, made_on=made_on)

        run("noise, Gaussian", Noise(model, **common, distribution="gaussian"))
        run("noise, uniform", Noise(model, **common, distribution="uniform"))
        run("fast gradient", FastGradient(model, **common))
        for source in sources:
            run(f"transfer from {source.name}", PGD(source.model, **common, steps=s.steps), source)
        for cg, generator in generators.items():
            run(f"generator, c_g {cg:g}", GeneratorAttack(model, **common, generator=generator))
        one, half, rest = f"PGD-{s.steps}", s.restarts // 2, s.restarts - s.restarts // 2
        run(one, PGD(model, **common, steps=s.steps))
        run(f"PGD-{2 * s.steps}", PGD(model, **common, steps=2 * s.steps))
        more = found[one]
        if half > 1:
            attack = PGD(model, **common, steps=s.steps, restarts=half - 1, first_start=1)
            more = self.outcomes(f"{one} x {half}", attack, among=more)
        found[f"{one} x {half}"] = more
        last = PGD(model, **common, steps=s.steps, restarts=rest, first_start=half)
        found[f"{one} x {s.restarts}"] = self.outcomes(f"{one} x {s.restarts}", last, among=more)
        for key, starts in ((f"{one} x {half}", half), (f"{one} x {s.restarts}", s.restarts)):
            self.described[key] = PGD(model, **common, steps=s.steps, restarts=starts).settings()
        run("APGD-CE", APGD(model, **common, steps=s.apgd_steps))
        run("APGD-T", APGD(model, **common, steps=s.apgd_steps, loss="dlr-t"))
        run("Square", Square(model, **common, queries=s.queries))
        if s.autoattack:
            run("AutoAttack", AutoAttack(model, **common))
        return found

    def ladder(self) -> dict[str, Any]:
        """PGD's accuracy over multiples of epsilon, and at one that leaves nothing of an image."""
        first, _ = next(numbered(self.batches))
        most = 0.5 if self.settings.norm == "linf" else 0.25 * math.sqrt(first.images[0].numel())
        epsilons = sorted({0.0, *(factor * self.settings.bound for factor in LADDER), most})
        made = {**self.common, "steps": LADDER_STEPS}

        def attack(model: nn.Module, epsilon: float) -> Attack:
            return PGD(model, **(made | {"epsilon": epsilon}))

        total, done = self.samples * len(epsilons), 0

        def report(samples: int) -> None:
            nonlocal done
            done += samples
            self.progress(f"PGD-{LADDER_STEPS} over epsilon", done, total)

        named = {self.subject.name: self.subject.model}
        ((_, accuracies),) = attack_sweep(
            named, self.batches, epsilons, attack, cache=self.cache, progress=report
        ).items()
        curve = self._curve(f"PGD-{LADDER_STEPS}", self.settings.norm, epsilons, self.subject.name, None, accuracies)
        made_with = attack(self.subject.model, 0).settings()
        return {**curve, "settings": {key: value for key, value in made_with.items() if key != "epsilon"}}

    def curves(
        self, networks: Mapping[str, nn.Module], sources: Mapping[str, nn.Module], batches: Iterable[Batch]
    ) -> list[dict[str, Any]]:
        """Fast-gradient curves, direct and indirect, of every network."""
        found = []
        total = sum(len(batch.labels) for batch, _ in numbered(batches))
        for norm, epsilons in CURVES.items():
            for origins in (None, sources) if sources else (None,):
                done = 0

                def report(samples: int) -> None:
                    nonlocal done
                    done += samples
                    self.progress(f"fast gradient over epsilon, {norm}", done, total)  # noqa: B023  # called in this turn

                curves = fast_gradient_sweep(
                    networks, batches, epsilons, norm, sources=origins, cache=self.cache, progress=report
                )
                for (network, source), accuracies in curves.items():
                    made_on = None if source == network else source
                    found.append(self._curve("fast gradient", norm, epsilons, network, made_on, accuracies))
        return found

    def generator(
        self, training: GeneratorTraining, train: Loader | None, validation: Iterable[Batch]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A generator trained against the network, and how that went."""
        if train is None:
            raise ConfigError("generators are trained: pass train and validation images")
        what = f"training a generator, c_g {training.cg:g}"
        self.progress(what, 0, training.epochs)
        epoch = islice(train.stream(0), train.batches_per_epoch)
        seen = [batch_fingerprint(batch) for batch in (*epoch, *validation)]
        key = {"what": "generator", "network": self.subject.fingerprint, **asdict(training), "data": seen}
        first, _ = next(numbered(self.batches))

        def compute() -> tuple[nn.Module, dict[str, Any]]:
            trained = train_generator(
                self.subject.model,
                train,
                validation,
                training,
                progress=lambda epoch, loss: self.progress(what, epoch, training.epochs),
            )
            said = {
                "best_epoch": trained.best_epoch,
                "validation_losses": trained.validation_losses,
                "training": {**asdict(training), "batches_an_epoch": train.batches_per_epoch},
            }
            return trained.generator, said

        def build() -> nn.Module:
            with torch.random.fork_rng():
                return Generator(training.width, first.images.shape[1]).to(first.images)

        generator, said = self.cache.module(key, build, compute)
        self.progress(what, training.epochs, training.epochs)
        return generator, said

    def checks(
        self, found: Mapping[str, Outcomes], ladder: Mapping[str, Any], sources: list[Subject]
    ) -> list[card.Check]:
        s = self.settings
        one, half, most = f"PGD-{s.steps}", f"PGD-{s.steps} x {s.restarts // 2}", f"PGD-{s.steps} x {s.restarts}"
        twice = f"PGD-{2 * s.steps}"
        white = (most, found[most])
        masked = "gradients lead the attack astray: they are masked"
        checks = [
            card.stronger(
                "Iterative attacks are at least as strong as a single step",
                white, ("fast gradient", found["fast gradient"]), masked,
            ),
        ]  # fmt: skip
        weaker = "something that sees less finds more: gradients are masked"
        rivals = {
            "transfer from another network": [f"transfer from {source.name}" for source in sources],
            "noise": ["noise, Gaussian", "noise, uniform"],
            "a search without gradients (Square)": ["Square"],
            "a fresh generator": [key for key in found if key.startswith("generator")],
        }
        absent = {
            "transfer from another network": "no other network was given to make perturbations on (--source)",
            "a fresh generator": "no generator was trained (--cg)",
        }
        for rival, keys in rivals.items():
            line = f"White-box attacks are at least as strong as {rival}"
            if not keys:
                checks.append(card.not_checked(line, absent[rival]))
                continue
            best = min(keys, key=lambda key: found[key].mean())
            checks.append(card.stronger(line, white, (best, found[best]), weaker))
        epsilons, accuracies = ladder["epsilons"], ladder["accuracies"]
        checks += [
            card.falls(epsilons, accuracies, self.samples),
            card.vanishes(epsilons[-1], accuracies[-1], self.samples),
            card.settled(
                "Twice the steps find little more", (one, found[one]), (twice, found[twice]),
                "the attack has not converged: give it more --steps",
            ),
            card.settled(
                "Twice the restarts find little more", (half, found[half]), white,
                "the attack depends on luck: the loss is rugged, or it needs more --restarts",
            ),
            card.losses_agree(found[most], ("APGD-T", found["APGD-T"])),
        ]  # fmt: skip
        shares = gradient_shares(self.subject.model, (batch for batch, _ in numbered(self.batches)))
        checks.append(card.gradients(*shares))
        first, _ = next(numbered(self.batches))
        same = agreement(self.subject.model, first)
        checks.append(card.precisions(same.changed, same.missing, same.samples))
        return checks

    def _curve(
        self,
        attack: str,
        norm: str,
        epsilons: Iterable[float],
        network: str,
        source: str | None,
        accuracies: list[float],
    ) -> dict[str, Any]:
        return {
            "attack": attack,
            "norm": norm,
            "network": network,
            "source": source,
            "epsilons": list(epsilons),
            "accuracies": accuracies,
        }
