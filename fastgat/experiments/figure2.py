"""Figure 2: a generator trained against the baseline, beside fast gradient of the same power."""

from dataclasses import asdict
from functools import partial
from typing import Any, TypedDict

from fastgat.attacks import GeneratorTraining, train_generator
from fastgat.engine.device import pick_device, tf32
from fastgat.engine.step import missing_compiler
from fastgat.errors import CompileError
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.inputs import Batches, Subject, random_subset
from fastgat.evaluation.power import PERTURBATIONS, equal_power
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.images import load_images, loader, samples_remark, test_batches
from fastgat.experiments.jobs import Advance, Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.methods import Baseline
from fastgat.reporting.plots import plot_power

CGS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""c_g of each generator: the paper draws a curve over the power, and does not say at which."""
GENERATOR_BATCH = 64


class _Row(TypedDict):
    """The figures of a measurement."""

    cg: float
    power: float
    accuracy: dict[str, float]
    epochs: int
    best_epoch: int


class Figure2(Experiment):
    name = "figure2"
    title = "Figure 2: a generator against fast gradient at equal power"
    extent = ("samples", "generator_images", "generator_epochs")
    sides = PERTURBATIONS

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [_baseline(plan)]

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        return _measurements(plan) if store.summary(_baseline(plan)) else []

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows = [figures for each in _measurements(plan) if (figures := each.figures(store)) is not None]
        return {"rows": rows, "samples": plan.samples} if rows else None

    def remarks(self, plan: Plan) -> list[str]:
        count, training = min(plan.generator_images or plan.train_images, plan.train_images), GeneratorTraining()
        return [
            f"Figure 2's generators train on {count:,} images at batch {GENERATOR_BATCH}, learning rate "
            f"{training.lr:g}, until {training.patience} passes bring no lower validation loss, "
            f"{plan.generator_epochs} at most; the paper does not say how its were trained.",
            *samples_remark(plan),
        ]

    def stronger(self, rows: list[dict[str, Any]], side: str) -> int:
        """The number of values of c_g at which the generator leaves less accuracy than fast gradient on `side`."""
        return sum(row["accuracy"]["generator"] < row["accuracy"][side] for row in rows)

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        return {"figure2": plot_power(figures["rows"])}


def _baseline(plan: Plan) -> Cell:
    return plan.cell(Baseline(), plan.base.seed)


def _measurements(plan: Plan) -> list[Measurement]:
    extent = {"images": plan.generator_images, "epochs": plan.generator_epochs, "samples": plan.samples}
    device = plan.base.run.device
    key = {"cell": _baseline(plan).name, "width": plan.base.model.generator_width, **extent}
    return [Measurement("figure2", {**key, "cg": cg}, partial(_compute, plan, cg), _Row, device) for cg in CGS]


@tf32(False)
def _compute(plan: Plan, cg: float, store: RunStore, advance: Advance) -> dict[str, Any]:
    device = pick_device(plan.base.run.device)
    classifier = store.classifier(_baseline(plan), device)
    images, seed = load_images(plan), plan.base.seed
    train = random_subset(images.train, plan.generator_images, seed)
    training = GeneratorTraining(cg=cg, width=plan.base.model.generator_width, epochs=plan.generator_epochs, seed=seed)
    train_it = partial(
        train_generator,
        classifier,
        loader(train, device, min(GENERATOR_BATCH, len(train)), seed),
        Batches(loader(random_subset(images.validation, plan.generator_images, seed), device).once),
        training,
        progress=lambda epoch, loss: advance(epoch / training.epochs),
    )
    compile_ = plan.base.run.compile
    try:
        trained = train_it(compiled=compile_ is not False and missing_compiler(device) is None)
    except CompileError:
        if compile_:
            raise
        trained = train_it(compiled=False)  # as its classifier was, whose training has said so
    batches = test_batches(plan, images, device)
    (row,) = equal_power(Subject("baseline", classifier), {cg: trained.generator}, batches, Cache())
    losses = trained.validation_losses
    return {**asdict(row), "best_epoch": trained.best_epoch, "epochs": len(losses), "validation_losses": losses}
