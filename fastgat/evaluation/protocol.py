"""The whole evaluation of a network: curves, attacks at one epsilon, a fresh generator, the report card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

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
from fastgat.batch import Batch
from fastgat.data.loader import Loader
from fastgat.data.registry import silent
from fastgat.data.store import Progress
from fastgat.engine.device import tf32
from fastgat.errors import ConfigError
from fastgat.evaluation import card
from fastgat.evaluation.agreement import agreement, gradient_shares
from fastgat.evaluation.batches import Batches
from fastgat.evaluation.cache import Cache, batch_fingerprint
from fastgat.evaluation.examples import examples
from fastgat.evaluation.outcomes import Outcomes, clean_outcomes, outcomes
from fastgat.evaluation.power import equal_power
from fastgat.evaluation.results import AttackResult, Curve, Evaluation, Robustness
from fastgat.evaluation.settings import CURVES, EvaluationSettings
from fastgat.evaluation.subject import Subject, count_classes, subjects
from fastgat.evaluation.sweep import attack_curves, fast_gradient_curves, pair
from fastgat.models import Generator

LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of epsilon at which PGD must leave less and less."""
LADDER_STEPS = 20


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
    progress: Progress = silent,
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
        cache: where results are kept, so that an evaluation that was killed goes on.
        progress: told what is being done, and how many samples of how many.

    Raises ConfigError for networks, images or settings that do not fit, NonFiniteError for logits that are NaN.
    """
    settings, cache, generators = settings or EvaluationSettings(), cache or Cache(), list(generators)
    names = [name, *(networks or {}), *(sources or {})]
    if shared := {other for other in names if names.count(other) > 1}:
        raise ConfigError(f"{min(shared)!r} stands for several networks: give each a name of its own")
    if generators and train is None:
        raise ConfigError("generators are trained: pass train and validation images")
    images = Batches.of(batches)
    curve_images = Batches.of(curve_batches) if curve_batches else images
    subject, others, origins = Subject.of(name, model), subjects(networks), subjects(sources)
    classes = count_classes([subject, *others, *origins], images.first)
    if settings.autoattack:
        check_autoattack(classes)

    trained = _generators(subject, generators, train, validation, cache, progress) if train is not None else {}
    by_cg = {cg: generator for cg, (generator, _) in trained.items()}
    curves = _curves([subject, *others], origins, curve_images, cache, progress)
    attacker = _Attacker(subject, images, settings, cache, progress)
    attacker.run_all(origins, by_cg)
    ladder = attacker.ladder()
    clean = clean_outcomes(subject, images, cache)
    shown = [
        "fast gradient",
        f"PGD-{settings.steps}",
        *(key for key in attacker.attacks if key.startswith("generator")),
    ]
    return Evaluation(
        robustness=Robustness(
            network=name,
            settings=settings,
            attacked_samples=images.samples,
            clean_accuracy=float(clean.mean()),
            worst_case_accuracy=float(card.worst_case(attacker.outcomes).mean()),
            attacks=attacker.results(),
            curve_samples=curve_images.samples,
            curves=[*curves, ladder],
            equal_power=equal_power(subject, by_cg, curve_images, cache),
            training={cg: facts for cg, (_, facts) in trained.items()},
            card=[card.enough(clean), *_checks(attacker, ladder, origins)],
        ),
        examples=examples(subject, images.first, {key: attacker.attacks[key] for key in shown[:3]}),
    )


def _counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """A function that adds up samples and reports them as progress."""
    done = 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        progress(what, done, total)

    advance(0)
    return advance


def _generators(
    subject: Subject,
    trainings: Sequence[GeneratorTraining],
    train: Loader,
    validation: Iterable[Batch],
    cache: Cache,
    progress: Progress,
) -> dict[float, tuple[nn.Module, dict[str, Any]]]:
    """A generator trained against the network for each c_g, and facts about its training."""
    if not trainings:
        return {}
    held_out = validation if isinstance(validation, Batches) else Batches(lambda: validation)
    epoch = list(map(batch_fingerprint, islice(train.stream(0), train.batches_per_epoch)))

    def trained(training: GeneratorTraining) -> tuple[nn.Module, dict[str, Any]]:
        what = f"training a generator, c_g {training.cg:g}"

        def compute() -> tuple[nn.Module, dict[str, Any]]:
            generator, best_epoch, losses = train_generator(
                subject.model, train, held_out, training, progress=lambda done, _: progress(what, done, training.epochs)
            )
            settings = {**asdict(training), "batches_an_epoch": train.batches_per_epoch}
            return generator, {"best_epoch": best_epoch, "validation_losses": losses, "training": settings}

        def build() -> nn.Module:
            images = next(iter(held_out)).images
            with torch.random.fork_rng():
                return Generator(training.width, images.shape[1]).to(images)

        progress(what, 0, training.epochs)
        data = [*epoch, *held_out.digests]
        key = {"what": "generator", "network": subject.digest, **asdict(training), "data": data}
        generator_and_facts = cache.module(key, build, compute)
        progress(what, training.epochs, training.epochs)
        return generator_and_facts

    return {training.cg: trained(training) for training in trainings}


def _curves(
    networks: Sequence[Subject], sources: Sequence[Subject], batches: Batches, cache: Cache, progress: Progress
) -> list[Curve]:
    """Fast-gradient curves of every network, direct and from every source."""
    curves = []
    for norm, epsilons in CURVES.items():
        for origins in (None, sources) if sources else (None,):
            advance = _counting(progress, f"fast gradient over epsilon, {norm}", batches.samples)
            swept = fast_gradient_curves(pair(networks, origins), batches, epsilons, norm, cache, advance)
            for (network, source), accuracies in swept.items():
                made_on = None if source == network else source
                curve = Curve("fast gradient", norm, network, made_on, list(epsilons), accuracies, {"clamp": False})
                curves.append(curve)
    return curves


class _Attacker:
    """The attacks on one network, and their outcomes, by name."""

    def __init__(
        self, subject: Subject, batches: Batches, settings: EvaluationSettings, cache: Cache, progress: Progress
    ) -> None:
        self.subject, self.batches, self.settings, self.cache = subject, batches, settings, cache
        self.progress = progress
        self.attacks: dict[str, Attack] = {}
        self.outcomes: dict[str, Outcomes] = {}
        self.common: dict[str, Any] = {
            "norm": settings.norm,
            "epsilon": settings.bound,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
        }

    def run(
        self, name: str, attack: Attack, *, made_on: Subject | None = None, among: Outcomes | None = None
    ) -> Outcomes:
        advance = _counting(self.progress, name, self.batches.samples)
        self.attacks[name] = attack
        self.outcomes[name] = outcomes(
            self.subject, attack, self.batches, self.cache, among=among, made_on=made_on, progress=advance
        )
        return self.outcomes[name]

    def run_all(self, sources: Sequence[Subject], generators: Mapping[float, nn.Module]) -> None:
        """Every attack at the threat model's epsilon."""
        model, s, common = self.subject.model, self.settings, self.common
        self.run("noise, Gaussian", Noise(model, **common, distribution="gaussian"))
        self.run("noise, uniform", Noise(model, **common, distribution="uniform"))
        self.run("fast gradient", FastGradient(model, **common))
        for source in sources:
            self.run(f"transfer from {source.name}", PGD(source.model, **common, steps=s.steps), made_on=source)
        for cg, generator in generators.items():
            self.run(f"generator, c_g {cg:g}", GeneratorAttack(model, **common, generator=generator))
        self._run_pgd()
        self.run("APGD-CE", APGD(model, **common, steps=s.apgd_steps))
        self.run("APGD-T", APGD(model, **common, steps=s.apgd_steps, loss="dlr-t"))
        self.run("Square", Square(model, **common, queries=s.queries))
        if s.autoattack:
            self.run("AutoAttack", AutoAttack(model, **common))

    def _run_pgd(self) -> None:
        """PGD with one start, with twice the steps, and with more starts, each of which goes on from the fewer ones."""
        s, name = self.settings, f"PGD-{self.settings.steps}"
        pgd = PGD(self.subject.model, **self.common, steps=s.steps)
        resisting = self.run(name, pgd)
        self.run(f"PGD-{2 * s.steps}", replace(pgd, steps=2 * s.steps))
        starts = 1
        for restarts in (s.restarts // 2, s.restarts):
            if restarts > starts:
                rest = replace(pgd, restarts=restarts - starts, first_start=starts)
                resisting = self.run(f"{name} x {restarts}", rest, among=resisting)
            self.outcomes[f"{name} x {restarts}"] = resisting
            self.attacks[f"{name} x {restarts}"] = replace(pgd, restarts=restarts)
            starts = restarts

    def ladder(self) -> Curve:
        """PGD's accuracy over multiples of epsilon, and at one that leaves nothing of an image."""
        pixels = self.batches.first.images[0].numel()
        largest = 0.5 if self.settings.norm == "linf" else 0.25 * math.sqrt(pixels)
        epsilons = sorted({0.0, *(factor * self.settings.bound for factor in LADDER), largest})
        name, total = f"PGD-{LADDER_STEPS}", self.batches.samples * len(epsilons)
        pgd = PGD(self.subject.model, **self.common, steps=LADDER_STEPS)
        ((_, accuracies),) = attack_curves(
            [(self.subject, self.subject)],
            self.batches,
            epsilons,
            lambda model, epsilon: replace(pgd, epsilon=epsilon),
            self.cache,
            _counting(self.progress, f"{name} over epsilon", total),
        ).items()
        settings = {key: value for key, value in pgd.settings().items() if key != "epsilon"}
        return Curve(name, self.settings.norm, self.subject.name, None, epsilons, accuracies, settings)

    def results(self) -> list[AttackResult]:
        return [
            AttackResult(name, float(kept.mean()), self.attacks[name].settings())
            for name, kept in self.outcomes.items()
        ]


def _checks(attacker: _Attacker, ladder: Curve, sources: Sequence[Subject]) -> list[card.Check]:
    s, images, kept = attacker.settings, attacker.batches, attacker.outcomes
    one, twice = f"PGD-{s.steps}", f"PGD-{2 * s.steps}"
    half, most = f"{one} x {s.restarts // 2}", f"{one} x {s.restarts}"
    rivals = {
        "transfer from another network": [f"transfer from {source.name}" for source in sources],
        "noise": ["noise, Gaussian", "noise, uniform"],
        "a search without gradients (Square)": ["Square"],
        "a fresh generator": [name for name in kept if name.startswith("generator")],
    }
    absent = {
        "transfer from another network": "no other network was given to make perturbations on (--source)",
        "a fresh generator": "no generator was trained (--cg)",
    }
    checks = [
        card.stronger(
            "Iterative attacks are at least as strong as a single step",
            (most, kept[most]),
            ("fast gradient", kept["fast gradient"]),
            "gradients lead the attack astray: they are masked",
        )
    ]
    for rival, names in rivals.items():
        line = f"White-box attacks are at least as strong as {rival}"
        if names:
            best = min(names, key=lambda name: kept[name].mean())
            meaning = "something that sees less finds more: gradients are masked"
            checks.append(card.stronger(line, (most, kept[most]), (best, kept[best]), meaning))
        else:
            checks.append(card.not_checked(line, absent[rival]))
    same = agreement(attacker.subject, images.first)
    return [
        *checks,
        card.falls(ladder.epsilons, ladder.accuracies, images.samples),
        card.vanishes(ladder.epsilons[-1], ladder.accuracies[-1], images.samples),
        card.converged(
            "Twice the steps find little more",
            (one, kept[one]),
            (twice, kept[twice]),
            "the attack has not converged: give it more --steps",
        ),
        card.converged(
            "Twice the restarts find little more",
            (half, kept[half]),
            (most, kept[most]),
            "the attack depends on luck: the loss is rugged, or it needs more --restarts",
        ),
        card.losses_agree(("PGD", kept[most]), ("APGD-T", kept["APGD-T"])),
        card.gradients(*gradient_shares(attacker.subject, images)),
        card.precisions(same.changed, same.missing, same.samples),
    ]
