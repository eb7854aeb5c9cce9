"""Questions about GAT's generator: how large it has to be, how often it has to learn, what it should be given."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from fastgat.config import ModelConfig
from fastgat.experiments import front, search
from fastgat.experiments.archive import Measured
from fastgat.experiments.attacked import attack_job, remark
from fastgat.experiments.cell import Cell
from fastgat.experiments.front import Variant
from fastgat.experiments.images import samples_remark
from fastgat.experiments.jobs import Job, Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import BySeed
from fastgat.experiments.store import RunStore
from fastgat.experiments.timing import costing, costs, kept
from fastgat.methods import GAT

PAPER_WIDTH = ModelConfig().generator_width
INPUTS = {"gradient": "Delta", "normalised": "Delta / ||Delta||", "with-image": "Delta and x"}


class GeneratorVariants(search.Searching):
    """Base: GAT with the c_g that was chosen, and its generator changed in one way: accuracy over the cost of a step.

    `reference` is the name of the paper's generator, `column` what the names tell.
    """

    chosen = ("gat",)
    extent = (*search.Searching.extent, "samples", "rounds")
    template = "generator"
    front = front
    reference: ClassVar[str]
    column: ClassVar[str]

    @abstractmethod
    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[str, Cell]:
        """The runs of one seed, by the name of what was changed."""

    def of_seed(self, plan: Plan, store: RunStore, seed: int) -> dict[str, Cell]:
        """The same; none as long as c_g has not been chosen."""
        method = search.chosen(plan, store, "gat")
        return self.variants(plan, method, seed) if isinstance(method, GAT) else {}

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [cell for seed in plan.seed_values for cell in self.of_seed(plan, store, seed).values()]

    def costings(self, plan: Plan) -> list[Measurement]:
        """The timings: generators of one width in one run. c_g does not matter to them."""
        widths: dict[int, list[Any]] = {}
        for cell in self.variants(plan, GAT(**plan.gat_options()), plan.base.seed).values():
            widths.setdefault(cell.config.model.generator_width, []).append(cell.config)
        return [costing(plan, configs) for configs in widths.values()]

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        return [*self.costings(self.plan(plan)), *super().jobs(plan, store)]

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        return [attack_job(plan, cell) for cell in self.cells(plan, store) if store.summary(cell) is not None]

    def measured(self, plan: Plan, store: RunStore) -> dict[str, Measured]:
        plan = self.plan(plan)
        configs = [cell.config for cell in self.of_seed(plan, store, plan.base.seed).values()]
        return {**super().measured(plan, store), **kept(store, "cost", configs)}

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        plan = self.plan(plan)
        method, timed = search.chosen(plan, store, "gat"), self.costings(plan)
        cells = {seed: self.of_seed(plan, store, seed) for seed in plan.seed_values}
        variants = [
            _variant(plan, store, name, [cells[seed][name] for seed in plan.seed_values], timed)
            for name in cells[plan.base.seed]
        ]
        found = [each for each in variants if each["costs"] or each["accuracies"]["test"]]
        return {"variants": found, "cg": method.cg} if found and isinstance(method, GAT) else None

    def remarks(self, plan: Plan) -> list[str]:
        shared = f"Every generator of `{self.name}` has the c_g that was chosen for the paper's."
        return [shared, remark(plan), *samples_remark(plan)]

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        from fastgat.experiments.plots import plot_front

        placed = [each for each in figures["variants"] if each["costs"] and each["accuracies"]["validation"]]
        return {self.name: plot_front(placed, self.column)} if placed else {}


class Capacity(GeneratorVariants):
    name = "capacity"
    title = "Capacity of the generator"
    reference = f"{PAPER_WIDTH}/1"
    column = "width / learns every n-th step"
    extent = (*GeneratorVariants.extent, "points")
    ignored = ("generator_width", "generator_interval")

    def plan(self, plan: Plan) -> Plan:
        """With the paper's generator in the runs that choose c_g."""
        method, model = plan.base.method, replace(plan.base.model, generator_width=PAPER_WIDTH)
        method = replace(method, generator_interval=1) if isinstance(method, GAT) else method
        return replace(plan, base=replace(plan.base, method=method, model=model))

    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[str, Cell]:
        return {
            f"{width}/{every}": plan.cell(
                replace(method, generator_interval=every), seed, model=replace(plan.base.model, generator_width=width)
            )
            for width, every in plan.generators
        }


class Inputs(GeneratorVariants):
    name = "inputs"
    title = "What the generator is given"
    reference = INPUTS["gradient"]
    column = "generator's input"

    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[str, Cell]:
        return {words: plan.cell(replace(method, generator_input=name), seed) for name, words in INPUTS.items()}


def _variant(plan: Plan, store: RunStore, name: str, cells: list[Cell], timed: list[Measurement]) -> Variant:
    """What is known of a generator, whose cells differ in their seeds."""
    accuracies: dict[str, BySeed] = {measure: {} for measure in front.MEASURES}
    norms: BySeed = {}
    for cell in cells:
        summary, seed = store.summary(cell), str(cell.seed)
        if summary is None:
            continue
        accuracies["validation"][seed] = summary["validation_accuracy"]
        accuracies["test"][seed] = summary["test_accuracy"]
        for measure, accuracy in (attack_job(plan, cell).figures(store) or {}).items():
            accuracies[measure][seed] = accuracy
        norm = {row["epoch"]: row.get("perturbation_norm") for row in store.epochs(cell)}.get(summary["best_epoch"])
        if norm is not None:
            norms[seed] = norm
    return Variant(name=name, accuracies=accuracies, norm=norms, costs=costs(store, cells[0].config, timed))
