"""What attacks of L2 norm 0.5 leave of one network: Figure 3's fast gradient, and the worst of stronger ones."""

from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

from fastgat.attacks import APGD, PGD, Square
from fastgat.engine.device import pick_device, tf32
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.inputs import Subject
from fastgat.evaluation.outcomes import outcomes
from fastgat.evaluation.sweep import fast_gradient_sweep
from fastgat.experiments.cell import Cell
from fastgat.experiments.images import load_images, test_batches
from fastgat.experiments.jobs import Advance, Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore

THREAT: dict[str, Any] = {"norm": "l2", "epsilon": 0.5}
WORST_CASE_IMAGES = 200  # test images of the worst case, at most
STEPS, QUERIES = 50, 1000  # of PGD and APGD; of Square


class AccuracyUnderAttack(TypedDict):
    """Accuracies: under fast gradient as in Figure 3, and the share of images that withstand every other attack."""

    fast_gradient: float
    worst_case: float


def remark(plan: Plan) -> str:
    """What the attacks are."""
    return (
        f"Attacks are of L2 norm {THREAT['epsilon']}. The worst case is that of PGD, APGD and targeted APGD of {STEPS} "
        f"steps and Square on {min(WORST_CASE_IMAGES, plan.samples or WORST_CASE_IMAGES)} test images, in [0, 1]; fast "
        "gradient is not clamped, as in Figure 3."
    )


def attack_job(plan: Plan, cell: Cell) -> Measurement:
    """The job that attacks a trained cell."""
    images = {"samples": plan.samples, "of seed": plan.base.seed, "worst case of": WORST_CASE_IMAGES}
    key = {"cell": cell.name, **THREAT, "steps": STEPS, "queries": QUERIES, **images}
    return Measurement("attacked", key, partial(_compute, plan, cell), AccuracyUnderAttack, plan.base.run.device)


@tf32(False)
def _compute(plan: Plan, cell: Cell, store: RunStore, advance: Advance) -> dict[str, Any]:
    device = pick_device(plan.base.run.device)
    subject, images = Subject(cell.name, store.classifier(cell, device)), load_images(plan)
    few = replace(plan, samples=min(WORST_CASE_IMAGES, plan.samples or WORST_CASE_IMAGES))
    curves = fast_gradient_sweep(
        {cell.name: subject}, test_batches(plan, images, device), (THREAT["epsilon"],), THREAT["norm"]
    )
    ((fast_gradient,),) = curves.values()
    attacks = (
        PGD(subject, **THREAT, steps=STEPS),
        APGD(subject, **THREAT, steps=STEPS),
        APGD(subject, **THREAT, steps=STEPS, loss="dlr-t"),
        Square(subject, **THREAT, queries=QUERIES),
    )
    batches, withstood = test_batches(few, images, device), None
    for number, attack in enumerate(attacks, 1):
        withstood = outcomes(subject, attack, batches, Cache(), among=withstood)
        advance(number / len(attacks))
    assert withstood is not None
    return {"fast_gradient": fast_gradient, "worst_case": float(withstood.mean())}
