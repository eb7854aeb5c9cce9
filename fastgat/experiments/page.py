"""The result page: every experiment's figures beside the paper's, how they were made, and what differs."""

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from fastgat.errors import ConfigError, DataError, FastgatError
from fastgat.experiments import paper, search
from fastgat.experiments.archive import KeptRun, Measured
from fastgat.experiments.base import Experiment, rendered
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Training
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import FOLDERS, RunStore
from fastgat.files import make_folder, write_atomically
from fastgat.methods import GAT
from fastgat.reporting.plots import saved
from fastgat.store import as_json
from fastgat.typed import shown

RUN_BY_RUN = (
    *("diverged", "validation_accuracy", "test_accuracy", "best_epoch"),
    *("epochs", "seconds", "images_per_second"),
)
"""What results.json tells of each run."""


def check_page(path: Path, runs: Path) -> None:
    """Raises ConfigError unless the page and its folder of plots can have their names, beside the folder of `runs`."""
    if path.suffix != ".md" or path.is_dir():
        raise ConfigError(f"--page names a Markdown file, such as results.md; got {str(path)!r}")
    folder = path.with_suffix("")
    if folder.resolve() in (runs.resolve(), *(runs.resolve() / name for name in FOLDERS)):
        raise ConfigError(f"--page {path} keeps its plots and figures in {folder}, where the runs are")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--page {path} keeps its plots in a folder {folder}, and a file has that name")


def collect(experiments: Sequence[Experiment], plan: Plan, store: RunStore) -> dict[str, Any]:
    """The results so far: figures by experiment, and the runs and measurements that they come from."""
    collected = {each.name: each.collect(plan, store) for each in experiments}
    figures = {name: numbers for name, numbers in collected.items() if numbers is not None}
    jobs = {job.name: job for each in experiments for job in each.jobs(plan, store)}
    runs = [run for job in jobs.values() if isinstance(job, Training) and (run := _run(store, job.cell)) is not None]
    contents = {name: content for each in experiments for name, content in each.measured(plan, store).items()}
    measured = [
        {"name": name, **{key: content.get(key) for key in ("diverged", "seconds")}, **_machine(content)}
        for name, content in contents.items()
    ]
    return {"dataset": plan.dataset, "figures": figures, "runs": runs, "measured": measured}


@contextlib.contextmanager
def usable_figures(folder: Path) -> Iterator[None]:
    """Raises DataError where a page cannot be made of the figures in `folder`, whose form only experiments know."""
    try:
        yield
    except FastgatError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise DataError(f"{folder}: holds figures that fastgat cannot have written ({shown(error)})") from error


def sections(experiments: Sequence[Experiment], plan: Plan, results: dict[str, Any]) -> dict[str, str]:
    """Each experiment's section, by title, as Markdown; then how it was made, and what differs from the paper."""
    figures = results["figures"]
    text = {each.title: each.section(plan, figures[each.name]) for each in experiments if each.name in figures}
    text["How it was run"] = _account(plan, results)
    ran = {run["method"] for run in results["runs"]}
    text["What differs from the paper"] = "".join(f"{line}\n" for line in deviations(plan, experiments, ran))
    return text


def write_page(
    path: Path, experiments: Sequence[Experiment], plan: Plan, results: dict[str, Any], command: str
) -> list[Path]:
    """Write the page at `path`, the plots into a folder called like it, and the figures beside them as JSON."""
    folder = path.with_suffix("")
    make_folder(folder)
    pictures: dict[str, list[Path]] = defaultdict(list)
    for each in (each for each in experiments if each.name in results["figures"]):
        for name, figure in each.plots(results["figures"][each.name]).items():
            pictures[each.title].append(folder / f"{name}.png")
            write_atomically(folder / f"{name}.png", saved(figure, "png"))
    text = sections(experiments, plan, results)
    page = rendered("page", dataset=plan.dataset, command=command, sections=text, pictures=pictures)
    numbers = folder / "results.json"
    write_atomically(numbers, as_json({"command": command, **results}))
    write_atomically(path, page.encode())
    return [path, numbers, *(picture for each in pictures.values() for picture in each)]


def _run(store: RunStore, cell: Cell) -> dict[str, Any] | None:
    """The outcome and machine of a finished run."""
    run = store.run(cell)
    if run is None:
        return None
    outcome = run["summary"] or {"diverged": run["diverged"]}
    told = {key: value for key, value in outcome.items() if key in RUN_BY_RUN}
    method = cell.config.to_dict()["method"]["name"]
    return {"name": cell.name, "method": method, "seed": cell.seed, **told, **_machine(run)}


def _machine(kept: KeptRun | Measured) -> dict[str, str]:
    """The machine and versions of a run or measurement, in words."""
    environment = kept.get("environment", {})
    packages, gpus = environment.get("packages", {}), environment.get("gpus")
    cpu = f"{environment.get('cpus', 'unknown')} CPUs, {environment.get('cpu_capability', 'unknown')}"
    device = environment.get("device") or (", ".join(gpus) if gpus else cpu)
    fastgat, torch = (packages.get(package, "unknown") for package in ("fastgat-trainer", "torch"))
    device = device if gpus or device == cpu else f"{device}; {cpu}"
    return {"device": device, "versions": f"fastgat {fastgat}, torch {torch}"}


def _account(plan: Plan, results: dict[str, Any]) -> str:
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for what, each in (("training", results["runs"]), ("figures", results["measured"])):
        for one in each:
            seconds[what, one["device"], one["versions"]].append(one.get("seconds") or 0.0)
    diverged = [one for one in (*results["runs"], *results["measured"]) if one.get("diverged")]
    return rendered("account", plan=plan, seconds=seconds, diverged=diverged)


def deviations(plan: Plan, experiments: Sequence[Experiment], ran: Collection[str]) -> list[str]:
    """Lines on what differs from the paper and what it leaves open. Of searches, those of the methods that `ran` are
    told."""
    chosen = {name for each in experiments for name in each.chosen if search.READINGS.get(name, (name,))[0] in ran}
    grids = {name: search.grid(plan, name) for name in search.PARAMETERS if name in chosen}
    text = rendered(
        "deviations",
        plan=plan,
        paper=paper,
        gat=plan.base.method if isinstance(plan.base.method, GAT) else GAT(),
        tried={name: len(values) for name, values in grids.items() if values is not None},
        remarks=[line for each in experiments for line in each.remarks(plan)],
    )
    return list(dict.fromkeys(text.splitlines()))
