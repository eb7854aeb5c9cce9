"""The whole evaluation of a network: curves, attacks at one epsilon, a fresh generator, the report card."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgat.attacks import APGD, PGD, Attack, AutoAttack, FastGradient, GeneratorAttack, Noise, Square
from fastgat.attacks.generator import GeneratorTraining, train_generator
from fastgat.batch import Batch
from fastgat.data.download import Progress
from fastgat.data.loader import Loader
from fastgat.data.registry import silent
from fastgat.engine.device import tf32
from fastgat.errors import ConfigError
from fastgat.evaluation import card
from fastgat.evaluation.agreement import SAMPLES, agreement, gradient_shares, repetition
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.fingerprint import batch_fingerprint
from fastgat.evaluation.inputs import Batches, Subject, as_subjects, check_classes
from fastgat.evaluation.outcomes import Example, Outcomes, clean_outcomes, examples, outcomes
from fastgat.evaluation.power import equal_power
from fastgat.evaluation.results import CURVE_EPSILONS, AttackResult, Curve, Evaluation, EvaluationSettings, Robustness
from fastgat.evaluation.sweep import attack_sweep, fast_gradient_sweep
from fastgat.models import Generator

LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)  # multiples of epsilon at which PGD must leave less and less
LADDER_STEPS = 20
SQUARE = "a search without gradients (Square)"
RIVALS = {
    "transfer": ("transfer from another network", "no other network was given to make perturbations on (--source)"),
    "noise": ("noise", ""),
    "Square": (SQUARE, ""),
    "generator": ("a fresh generator", "no generator was trained (--cg)"),
}
"""The kinds of attacks that white-box attacks must be as strong as: in words, and why there may be none."""
AS_STRONG = "White-box attacks are at least as strong as "
MASKED = "an attack that sees less finds more: gradients are masked"


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
    """Evaluate a classifier, without TF32: the attacks that `settings` asks for, curves, and a report card.

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

    With `settings.only_autoattack` there are no curves and no other attacks, so no `networks`, `sources`, `generators`.

    Raises ConfigError for networks, images or settings that do not fit; NonFiniteError for logits that are NaN or
    infinite, also under an attack.
    """
    settings, cache, generators = settings or EvaluationSettings(), cache or Cache(), list(generators)
    if settings.only_autoattack and (networks or sources or generators):
        raise ConfigError("only_autoattack runs nothing else: leave out other networks, sources and generators")
    _check_distinct([name, *(networks or {}), *(sources or {})], generators)
    images = Batches.of(batches)
    curve_images = Batches.of(curve_batches) if curve_batches else images
    (subject,), others, origins = (as_subjects(each, images.first) for each in ({name: model}, networks, sources))
    check_classes([subject, *others, *origins], images)

    evaluator = _Evaluator(subject, images, settings, cache, progress)
    fresh = {each.cg: evaluator.generator(each, train, validation) for each in generators}
    trained = {cg: generator for cg, (generator, _) in fresh.items()}
    curves = []
    if settings.only_autoattack:
        comparisons = [evaluator.square_finds_little_more(evaluator.autoattack())]
    else:
        curves = evaluator.curves([subject, *others], origins, curve_images)
        evaluator.attack_all(origins, trained)
        curves.append(evaluator.ladder())
        comparisons = list(evaluator.comparisons(curves[-1]))
    clean = clean_outcomes(subject, images, cache)
    checks = [card.enough_samples(clean), *comparisons, *evaluator.checks()]
    robustness = Robustness(
        network=name,
        settings=settings,
        attacked_samples=images.samples,
        clean_accuracy_of_attacked=float(clean.mean()),
        worst_case_accuracy=float(card.worst_case([run.right for run in evaluator.runs.values()]).mean()),
        attacks=[
            AttackResult(name, float(run.right.mean()), run.attack.settings()) for name, run in evaluator.runs.items()
        ],
        curve_samples=curve_images.samples if curves else 0,
        curves=curves,
        equal_power=equal_power(subject, trained, curve_images, cache),
        training={cg: facts for cg, (_, facts) in fresh.items()},
        card=checks,
        verdict=card.overall(checks),
    )
    return Evaluation(robustness=robustness, examples=evaluator.examples())


def _check_distinct(networks: Sequence[str], generators: Sequence[GeneratorTraining]) -> None:
    """Raises ConfigError where two networks have one name, or two generators one c_g as it is shown."""
    if shared := {name for name in networks if networks.count(name) > 1}:
        raise ConfigError(f"{min(shared)!r} stands for several networks: give each a name of its own")
    prices = [f"{each.cg:g}" for each in generators]
    if shared := {price for price in prices if prices.count(price) > 1}:
        raise ConfigError(f"several generators have c_g {min(shared)}: give each another, in its first six digits")


class AttackRun(NamedTuple):
    """An attack that has been run, and whether the network withstands it, by sample. `kind` is one of RIVALS, or ""."""

    attack: Attack
    right: Outcomes
    kind: str = ""


class _Evaluator:
    """The parts of an evaluation; it collects the attacks that were run on the network, by name."""

    def __init__(
        self, subject: Subject, batches: Batches, settings: EvaluationSettings, cache: Cache, progress: Progress
    ) -> None:
        self.subject, self.batches, self.settings = subject, batches, settings
        self.cache, self.progress = cache, progress
        self.runs: dict[str, AttackRun] = {}
        s = settings
        self.common: dict[str, Any] = {"norm": s.norm, "epsilon": s.bound, "seed": s.seed, "batch_size": s.batch_size}

    def generator(
        self, training: GeneratorTraining, train: Loader | None, validation: Iterable[Batch]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A generator trained against the network, and facts about its training."""
        if train is None:
            raise ConfigError("generators are trained: pass train and validation images")
        held_out = validation if isinstance(validation, Batches) else Batches(lambda: validation)
        epoch = map(batch_fingerprint, islice(train.stream(0), train.batches_per_epoch))
        key = {"what": "generator", "network": self.subject.digest, **asdict(training)}
        what = f"training a generator, c_g {training.cg:g}"

        def compute() -> tuple[nn.Module, dict[str, Any]]:
            generator, best_epoch, losses = train_generator(
                self.subject,
                train,
                held_out,
                training,
                progress=lambda done, _: self.progress(what, done, training.epochs),
            )
            settings = {**asdict(training), "batches_an_epoch": train.batches_per_epoch}
            return generator, {"best_epoch": best_epoch, "validation_losses": losses, "training": settings}

        def build() -> nn.Module:
            images = self.batches.first.images
            with torch.random.fork_rng():
                return Generator(training.width, images.shape[1]).to(images)

        self.progress(what, 0, training.epochs)
        result = self.cache.module({**key, "data": [*epoch, *held_out.digests]}, build, compute)
        self.progress(what, training.epochs, training.epochs)
        return result

    def curves(self, networks: Sequence[Subject], sources: Sequence[Subject], batches: Batches) -> list[Curve]:
        """Fast-gradient curves of every network, direct and from every source."""
        attacked, curves = {network.name: network for network in networks}, []
        for norm, epsilons in CURVE_EPSILONS.items():
            for origins in (None, {source.name: source for source in sources}) if sources else (None,):
                advance = partial(self.progress, f"fast gradient over epsilon, {norm}")
                swept = fast_gradient_sweep(
                    attacked, batches, epsilons, norm, sources=origins, cache=self.cache, progress=advance
                )
                for (name, source), accuracies in swept.items():
                    made_on = None if source == name else source
                    curve = Curve("fast gradient", norm, name, made_on, list(epsilons), accuracies, {"clamp": False})
                    curves.append(curve)
        return curves

    def attack(
        self,
        name: str,
        attack: Attack,
        kind: str = "",
        *,
        made_on: Subject | None = None,
        among: Outcomes | None = None,
    ) -> Outcomes:
        """The outcomes of one attack, which are noted under its name."""
        advance = partial(self.progress, name)
        right = outcomes(self.subject, attack, self.batches, self.cache, among=among, made_on=made_on, progress=advance)
        self.runs[name] = AttackRun(attack, right, kind)
        return right

    def attack_all(self, sources: Sequence[Subject], generators: Mapping[float, nn.Module]) -> None:
        """Every attack at the threat model's epsilon."""
        model, s, common = self.subject, self.settings, self.common
        self.attack("noise, Gaussian", Noise(model, **common, distribution="gaussian"), "noise")
        self.attack("noise, uniform", Noise(model, **common, distribution="uniform"), "noise")
        self.attack("fast gradient", FastGradient(model, **common))
        for source in sources:
            pgd = PGD(source, **common, steps=s.steps)
            self.attack(f"transfer from {source.name}", pgd, "transfer", made_on=source)
        for cg, generator in generators.items():
            self.attack(f"generator, c_g {cg:g}", GeneratorAttack(model, **common, generator=generator), "generator")
        self._attack_by_pgd()
        self.attack("APGD-CE", APGD(model, **common, steps=s.apgd_steps))
        self.attack("APGD-T", APGD(model, **common, steps=s.apgd_steps, loss="dlr-t"))
        self.attack("Square", Square(model, **common, queries=s.queries), "Square")
        if s.autoattack:
            self.autoattack()

    def _attack_by_pgd(self) -> None:
        """PGD with one start, with twice the steps, and with more starts, each of which goes on from the fewer ones."""
        name, pgd = f"PGD-{self.settings.steps}", PGD(self.subject, **self.common, steps=self.settings.steps)
        right, starts = self.attack(name, pgd), 1
        self.attack(f"PGD-{2 * pgd.steps}", replace(pgd, steps=2 * pgd.steps))
        for restarts in (self.settings.restarts // 2, self.settings.restarts):
            more = f"{name} x {restarts}"
            if restarts > starts:
                rest = replace(pgd, restarts=restarts - starts, first_start=starts)
                right, starts = self.attack(more, rest, among=right), restarts
            self.runs[more] = AttackRun(replace(pgd, restarts=restarts), right)

    def autoattack(self) -> Outcomes:
        """AutoAttack part by part, so that each is kept by itself and takes over what it shares with the others.

        Returns the outcomes before its last part, Square.
        """
        whole, right = AutoAttack(self.subject, **self.common), clean_outcomes(self.subject, self.batches, self.cache)
        for name, part in whole.parts().items():
            before = right
            if name in self.runs and self.runs[name].attack.settings() == part.settings():
                right = right & self.runs[name].right
            else:
                advance = partial(self.progress, f"AutoAttack, {name}")
                right = outcomes(self.subject, part, self.batches, self.cache, among=right, progress=advance)
        self.runs["AutoAttack"] = AttackRun(whole, right)
        return before

    def examples(self) -> list[Example]:
        """Pictures of what the main attacks make of a few images; none where AutoAttack alone was run."""
        generators = [name for name, run in self.runs.items() if run.kind == "generator"]
        shown = ["fast gradient", f"PGD-{self.settings.steps}", *generators][:3]
        attacks = {name: self.runs[name].attack for name in shown if name in self.runs}
        return examples(self.subject, self.batches.first, attacks) if attacks else []

    @property
    def large_epsilon(self) -> float:
        """One that leaves nothing of an image."""
        return 0.5 if self.settings.norm == "linf" else 0.25 * math.sqrt(self.batches.first.images[0].numel())

    def ladder(self) -> Curve:
        """PGD's accuracy over multiples of epsilon, and at one that leaves nothing of an image."""
        most = 1.0 if self.settings.norm == "linf" else math.inf  # images are in [0, 1]
        multiples = (min(factor * self.settings.bound, most) for factor in LADDER)
        epsilons = sorted({0.0, *multiples, self.large_epsilon})
        pgd, name = PGD(self.subject, **self.common, steps=LADDER_STEPS), f"PGD-{LADDER_STEPS}"
        ((_, accuracies),) = attack_sweep(
            {self.subject.name: self.subject},
            self.batches,
            epsilons,
            lambda model, epsilon: replace(pgd, epsilon=epsilon),
            cache=self.cache,
            progress=partial(self.progress, f"{name} over epsilon"),
        ).items()
        settings = {key: value for key, value in pgd.settings().items() if key != "epsilon"}
        return Curve(name, self.settings.norm, self.subject.name, None, epsilons, accuracies, settings)

    def square_finds_little_more(self, before: Outcomes) -> card.Check:
        """The line of the report card that holds AutoAttack's Square to the outcomes of its other parts."""
        others, every = ("APGD-CE, APGD-T, FAB-T", before), ("with Square", self.runs["AutoAttack"].right)
        return card.at_least_as_strong(AS_STRONG + SQUARE, others, every, MASKED)

    def comparisons(self, ladder: Curve) -> Iterator[card.Check]:
        """The lines of the report card that compare attacks."""

        def named(name: str) -> card.Named:
            return name, self.runs[name].right

        steps, restarts, samples = self.settings.steps, self.settings.restarts, self.batches.samples
        most = named(f"PGD-{steps} x {restarts}")
        yield card.at_least_as_strong(
            "Iterative attacks are at least as strong as a single step",
            most,
            named("fast gradient"),
            "gradients lead the attack astray: they are masked",
        )
        for kind, (rival, absent) in RIVALS.items():
            if names := [name for name, run in self.runs.items() if run.kind == kind]:
                best = named(min(names, key=lambda name: self.runs[name].right.mean()))
                yield card.at_least_as_strong(AS_STRONG + rival, most, best, MASKED)
            else:
                yield card.not_checked(AS_STRONG + rival, absent)
        yield card.monotone(ladder.epsilons, ladder.accuracies, samples)
        left = dict(zip(ladder.epsilons, ladder.accuracies, strict=True))[self.large_epsilon]
        yield card.zero_at_large_epsilon(self.large_epsilon, left, samples)
        yield card.at_least_as_strong(
            "Twice the steps find little more",
            named(f"PGD-{steps}"),
            named(f"PGD-{2 * steps}"),
            "the attack has not converged: give it more --steps",
            words="what {1} gains",
        )
        yield card.at_least_as_strong(
            "Twice the restarts find little more",
            named(f"PGD-{steps} x {restarts // 2}"),
            most,
            "the attack depends on luck: the loss is rugged, or it needs more --restarts",
            words="what {1} gains",
        )
        yield card.at_least_as_strong(
            "Attacks on the cross entropy find what attacks on the logits' differences find",
            ("PGD", most[1]),
            named("APGD-T"),
            "the cross entropy saturates (large logits), so that its gradient says nothing",
            card.SIMILAR,
            "what {1} finds more",
        )

    def checks(self) -> Iterator[card.Check]:
        """The lines of the report card about the network by itself."""
        some = self.batches.sample(SAMPLES)
        yield card.gradients_are_there(*gradient_shares(self.subject, self.batches))
        yield card.deterministic(*repetition(self.subject, some))
        if "AutoAttack" in self.runs:
            classes = self.subject.logits(self.batches.first.images[:1]).shape[1]
            yield card.enough_classes(classes, self.runs["AutoAttack"].attack.settings()["targets"])
        yield card.same_in_other_precisions(*agreement(self.subject, some))
