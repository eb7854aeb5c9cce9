"""The committed result pages, written again from the results.json files in bench/results.

    python bench/pages.py [--folder docs/reproduction]

Each page of `fastgat reproduce` carries its command; this runs it with --collect-only on the folder that holds its
results. `what-the-kept-runs-say.md` sets the kept runs side by side, by three rules that pick an epoch.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from fastgat.experiments.archive import Archive, Row
from fastgat.experiments.paper import FAST_GRADIENT, METHODS
from fastgat.experiments.search import PARAMETERS
from fastgat.experiments.spread import escaped, percent, points
from fastgat.files import write_atomically
from fastgat.methods import create_method

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs" / "reproduction"
EARLIER = {
    "cifar10-45000-images-60-epochs": "reproduce-cifar10-45000x60",
    "cifar10-45000-images": "reproduce-cifar10-45000x25",
    "cifar10-10000-images": "reproduce-cifar10-10000x45",
    "cifar10": "reproduce-cifar10-2500x40",
    "cifar10-80-epochs": "reproduce-cifar10-2500x80",
}
"""The folder of results of each page that `what-the-kept-runs-say.md` reads: nothing was trained for it."""
PAGES = EARLIER | {
    "cifar10-2500-images-readings": "reproduce-readings-cifar10-2500x40",
    "cifar10-10000-images-readings": "reproduce-readings-cifar10-10000x40",
    "cifar10-45000-images-readings": "reproduce-readings-cifar10-45000x25",
    "cifar10-2500-images-capacity": "reproduce-capacity-cifar10-2500x40",
    "cifar10-10000-images-capacity": "reproduce-capacity-cifar10-10000x40",
    "cifar100-2500-images": "reproduce-cifar100-2500x40",
    "cifar100-10000-images-readings": "reproduce-readings-cifar100-10000x40",
}
"""The folder of results of each page."""
KEPT, INTRODUCTION = "what-the-kept-runs-say.md", ROOT / "bench" / "kept_runs.md"
LAST = 10
"""Epochs at the end of a run whose mean is shown."""
RULES: dict[str, Callable[[list[Row]], Row]] = {
    "best validation accuracy": lambda rows: max(rows, key=lambda row: row["validation_accuracy"]),
    "lowest validation loss": lambda rows: min(rows, key=lambda row: row["validation_loss"]),
    "last epoch": lambda rows: rows[-1],
}
AVERAGE, PLAIN = "moving average", "none"


class Run(NamedTuple):
    """A kept run: its accuracies by rule, as fractions; what is not known is left out."""

    method: str
    setting: str
    seed: int
    weights: str
    validation: dict[str, float]
    test: float


def runs(folder: Path) -> Iterator[Run]:
    """The runs in a folder of results; one that trained with a moving average counts a second time without it."""
    archive = Archive.read(folder)
    for name, cell in archive.cells.items():
        settings, summary, rows = cell["settings"], cell["summary"], archive.epochs[name]
        assert summary is not None
        known = settings["method.name"], _setting(settings), settings["seed"]
        validation = {rule: pick(rows)["validation_accuracy"] for rule, pick in RULES.items()}
        validation["mean"] = statistics.mean(row["validation_accuracy"] for row in rows[-LAST:])
        averaged = "optimizer.ema" in settings
        yield Run(*known, AVERAGE if averaged else PLAIN, validation, summary["test_accuracy"])
        if averaged and "unaveraged" in cell:
            plain = [row["validation_accuracy_unaveraged"] for row in rows]
            first, _, last = RULES
            validation = {first: max(plain), last: plain[-1], "mean": statistics.mean(plain[-LAST:])}
            yield Run(*known, PLAIN, validation, cell["unaveraged"]["test_accuracy"])


def _setting(settings: dict[str, Any]) -> str:
    """What was chosen for a run: the method's parameter, dropout rate, the generator's learning rate, a derivative
    through Delta."""
    method = create_method(settings["method.name"])
    names = sorted({PARAMETERS.get(settings["method.name"], ""), "dropout"} & vars(method).keys())
    values = {name: settings.get(f"method.{name}", getattr(method, name)) for name in names}
    if "optimizer.generator_lr" in settings:
        values["generator's learning rate"] = settings["optimizer.generator_lr"]
    through = ["through Delta"] if settings.get("method.delta") == "through" else []
    return ", ".join([*(f"{name} {value:.3g}" for name, value in values.items()), *through])


def of_each_method(kept: list[Run]) -> dict[str, list[Run]]:
    """The runs of each method, with one setting: of several the one of most seeds, then the best on validation."""
    settings: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in kept:
        settings[run.method][run.setting].append(run)
    first = next(iter(RULES))

    def rank(group: list[Run]) -> tuple[int, float]:
        return len(group), statistics.mean(run.validation[first] for run in group)

    return {name: max(settings[name].values(), key=rank) for name in METHODS if name in settings}


def section(title: str, page: str, kept: list[Run]) -> str:
    """The tables of one experiment."""
    columns = [*RULES, "mean"]
    heads = "best accuracy", "lowest loss", "last epoch", f"mean of the last {LAST}"
    header = "test, best accuracy", *(f"validation, {head}" for head in heads)
    text = f"## {title}\n\n[Its page]({page}.md).\n"
    for weights in dict.fromkeys(run.weights for run in kept):
        chosen = of_each_method([run for run in kept if run.weights == weights])
        rows, margins = [], []
        for method, group in chosen.items():
            validation = ([run.validation[column] for run in group if column in run.validation] for column in columns)
            test = percent(run.test for run in group)
            rows.append([method, group[0].setting or "-", str(len(group)), test, *map(percent, validation)])
        for method in ("gat", "dropout-gat"):
            for over in ("baseline", "fast gradient"):
                cells = [_margin(chosen, method, over, column) for column in ("test", *columns)]
                if any(cell != "-" for cell in cells):
                    margins.append([f"{method} over {'the baseline' if over == 'baseline' else over}", *cells])
        text += f"\n### Average of the weights: {weights}\n\n"
        text += table(("method", "setting", "n", *header), rows)
        if margins:
            text += "\n" + table(
                ("margin, points", "test, best accuracy", *(f"validation, {h}" for h in heads)), margins
            )
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a | in a cell stands for itself."""
    lines = ["| " + " | ".join(map(escaped, cells)) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def _margin(chosen: dict[str, list[Run]], method: str, over: str, column: str) -> str:
    """How far `method` is over the baseline, or over whichever fast gradient is better on validation, in `column`."""

    def value(run: Run) -> float | None:
        return run.test if column == "test" else run.validation.get(column)

    judge = next(iter(RULES)) if column == "test" else column
    names = [name for name in (FAST_GRADIENT if over == "fast gradient" else (over,)) if name in chosen]
    names = [name for name in names if judge in chosen[name][0].validation]
    if method not in chosen or not names:
        return "-"
    best = max(names, key=lambda name: statistics.mean(run.validation[judge] for run in chosen[name]))
    theirs = {run.seed: value(run) for run in chosen[best]}
    pairs = [(value(run), theirs.get(run.seed)) for run in chosen[method]]
    differences = [ours - other for ours, other in pairs if ours is not None and other is not None]
    return points(differences)


def kept_runs() -> str:
    """The page that sets the kept runs side by side."""
    text = [INTRODUCTION.read_text() + "\n```console\npython bench/pages.py\n```\n"]
    for page, folder in EARLIER.items():
        size, _, epochs = folder.removeprefix("reproduce-cifar10-").partition("x")
        title = f"CIFAR-10, {int(size):,} images, {epochs} epochs"
        text.append(section(title, page, list(runs(RESULTS / folder))))
    return "\n".join(text)


def command(page: Path) -> list[str]:
    """The arguments of the command that a page carries."""
    return shlex.split(page.read_text().split("```console\n", 1)[1].split("\n", 1)[0])[1:]


@click.command()
@click.option("--folder", type=Path, default=DOCS, help="where the pages go")
def main(folder: Path) -> None:
    """Write every committed result page again."""
    for page, results in PAGES.items():
        place = ("--out", RESULTS / results, "--page", folder / f"{page}.md")
        arguments = [*command(DOCS / f"{page}.md"), "--collect-only", *map(str, place)]
        subprocess.run([sys.executable, "-m", "fastgat", *arguments], check=True, stdout=subprocess.DEVNULL)
    write_atomically(folder / KEPT, kept_runs().encode())


if __name__ == "__main__":
    main()
