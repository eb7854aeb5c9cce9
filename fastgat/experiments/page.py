"""The result page: every experiment's figures beside the paper's, how they were made, and what differs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgat.engine.files import write_atomically
from fastgat.errors import OutputError
from fastgat.experiments import paper, search
from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Training
from fastgat.experiments.markdown import table
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import Store
from fastgat.methods import GAT
from fastgat.reporting.plots import saved


def collect(experiments: Sequence[Experiment], plan: Plan, store: Store) -> dict[str, Any]:
    """What is there: figures by experiment, and the runs that they come from."""
    figures = {each.name: found for each in experiments if (found := each.collect(plan, store)) is not None}
    return {"dataset": plan.dataset, "figures": figures, "runs": _runs(experiments, plan, store)}


def sections(experiments: Sequence[Experiment], plan: Plan, results: dict[str, Any]) -> dict[str, str]:
    """Each experiment's section, by title, as Markdown."""
    found = results["figures"]
    return {each.title: each.section(plan, found[each.name]) for each in experiments if each.name in found}


def write_page(
    path: Path, experiments: Sequence[Experiment], plan: Plan, results: dict[str, Any], command: str
) -> list[Path]:
    """Write the page at `path`, the plots into a folder called like it, and the figures beside it as JSON."""
    plots = path.with_suffix("")
    try:
        plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{plots}: cannot be made: {error.strerror}") from None
    text = [f"# The paper's experiments on {plan.dataset}\n"]
    text.append(f"```console\n{command}\n```\n")
    written = []
    for each in experiments:
        figures = results["figures"].get(each.name)
        if figures is None:
            continue
        text.append(f"## {each.title}\n\n{each.section(plan, figures)}")
        for name, figure in each.plots(figures).items():
            picture = plots / f"{name}.png"
            write_atomically(picture, saved(figure, "png"))
            written.append(picture)
            text.append(f"![{name}]({plots.name}/{picture.name})\n")
    text.append(f"## How it was run\n\n{_account(plan, results['runs'])}")
    text.append("## What differs from the paper\n\n" + "".join(f"- {line}\n" for line in deviations(plan)))
    numbers = plots / "results.json"
    write_atomically(numbers, (json.dumps({"command": command, **results}, indent=2) + "\n").encode())
    write_atomically(path, "\n".join(text).encode())
    return [path, numbers, *written]


def _runs(experiments: Sequence[Experiment], plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The finished runs behind the figures: summary, settings and what each ran on."""
    jobs = {job.name: job for each in experiments for job in each.jobs(plan, store)}
    runs = []
    for name, job in sorted(jobs.items()):
        if not isinstance(job, Training) or (summary := store.summary(job.cell)) is None:
            continue
        environment = store.environment(job.cell)
        packages = environment.get("packages", {})
        device = f"{environment.get('device', 'unknown')}; torch {packages.get('torch', 'unknown')}"
        if not environment.get("gpus"):
            device += f", {environment.get('cpu_capability', 'unknown')}"
        runs.append({"name": name, "device": device, "python": environment.get("python"), **summary})
    return runs


def _account(plan: Plan, runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "No run has been finished yet.\n"
    by_device = defaultdict(list)
    for run in runs:
        by_device[run["device"]].append(run)
    rows = [
        [device, str(len(own)), f"{sum(run['seconds'] for run in own) / 3600:.2f}"] for device, own in by_device.items()
    ]
    seeds = f"{plan.numbers.start} to {plan.numbers.stop - 1}" if plan.seeds > 1 else str(plan.base.seed)
    base = plan.base
    return (
        f"Seeds {seeds}; {base.epochs} epochs, batch {base.batch_size}, learning rates {base.optimizer.lr:g} "
        f"(classifier) and {base.optimizer.generator_lr:g} (generator); the checkpoint of the best validation epoch "
        "is tested.\n\n" + table(("machine", "runs", "hours of training"), rows)
    )


def deviations(plan: Plan) -> list[str]:
    """What the paper did otherwise, and what it does not say and was decided here."""
    base, lines = plan.base, []
    if plan.dataset not in paper.TABLE2:
        lines.append(f"{plan.dataset} is not a data set of the paper.")
    elif not plan.comparable and base.data.train_images is not None:
        lines.append(
            f"{base.data.train_images:,} of the {paper.TRAIN_IMAGES:,} training images: accuracies are lower, and "
            "overfitting sets in earlier."
        )
    if plan.seeds != paper.INITIALISATIONS:
        lines.append(f"{plan.seeds} initialisations; the paper has {paper.INITIALISATIONS}.")
    schedule = plan.gat_options().get("schedule", GAT.schedule)
    if schedule != "paper":
        lines.append(
            f"Schedule `{schedule}`: one minibatch for both players; Algorithm 1 takes one for each step "
            "(`--schedule paper`)."
        )
    if base.optimizer.generator_lr != 1e-6:
        lines.append(f"The generator's learning rate is {base.optimizer.generator_lr:g}; the paper's is 1e-06.")
    if base.optimizer.lr != 1e-3:
        lines.append(f"The classifier's learning rate is {base.optimizer.lr:g}; the paper's is 0.001.")
    if base.model.classifier != "table1":
        lines.append(f"The classifier is {base.model.classifier}, not Table 1's.")
    if base.model.generator_width != 48:
        lines.append(f"The generator's width is {base.model.generator_width}; Table 1's is 48.")
    if base.precision.amp:
        lines.append("Automatic mixed precision; the paper, as far as it says, float32.")
    if base.to_dict()["augmentation"] != type(base)().to_dict()["augmentation"]:
        lines.append("Images are augmented; the paper's are not.")
    lines.append(f"The paper does not give its batch size or epochs: here {base.batch_size} and {base.epochs}.")
    searched = [name for name in search.PARAMETERS if len(search.grid(plan, name) or ()) > 1]
    fixed = [name for name in search.PARAMETERS if name not in searched]
    if searched:
        lines.append(
            f"It does not give c_g, epsilon, dropout rate or noise power: of {', '.join(searched)} the value was "
            f"chosen by validation accuracy, {plan.search_seeds} run(s) of {plan.search_epochs or base.epochs} epochs "
            "for each."
        )
    if fixed:
        lines.append(f"Of {', '.join(fixed)} the value was given, not searched.")
    lines.append("Dropout acts behind the two strided convolutions; the paper does not say where.")
    if plan.samples is not None:
        lines.append(f"The figures are on {plan.samples:,} test images, chosen at random.")
    return lines
