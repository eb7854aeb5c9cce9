"""Evaluations on disk: evaluation.json, plots, pictures and report.html, in a run's folder."""

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from fastgat.evaluation.outcomes import Example
from fastgat.evaluation.results import Evaluation
from fastgat.files import make_folder, write_atomically
from fastgat.reporting.page import render_report
from fastgat.reporting.plots import Picture, draw_sheet, magnified, plot_curves, plot_power, saved

PLOTS = ("curves", "power", "pictures")
KINDS = ("png", "svg")


def write_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write everything, and return what was written; clean accuracy alone goes to evaluation-clean.json.

    Plots of an earlier report that this one does not have are removed. Raises OutputError where the folder cannot be
    written.
    """
    figures = evaluation.figures
    attacked = evaluation.robustness is not None
    files: dict[str, bytes] = {}
    if attacked:
        plots = {}
        if figures["curves"]:
            plots["curves"] = plot_curves(figures["curves"])
        if figures["equal_power"]:
            plots["power"] = plot_power(figures["equal_power"])
        if evaluation.examples:
            plots["pictures"] = draw_sheet(_rows(evaluation.examples, figures.get("classes")))
        files = {f"evaluation-{name}.{kind}": saved(plot, kind) for name, plot in plots.items() for kind in KINDS}
        embedded = {name: files[f"evaluation-{name}.png"] for name in plots}
        files["report.html"] = render_report(figures, embedded).encode(errors="backslashreplace")
    name = "evaluation.json" if attacked else "evaluation-clean.json"
    files[name] = (json.dumps(figures, indent=2, default=str) + "\n").encode()
    make_folder(folder)
    for name, content in files.items():
        write_atomically(folder / name, content)
    if attacked:
        for name in (f"evaluation-{plot}.{kind}" for plot in PLOTS for kind in KINDS):
            if name not in files:
                (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


def _rows(examples: list[Example], classes: list[str] | None) -> list[tuple[str, list[Picture]]]:
    """The rows of the sheet: clean images, then each attack's perturbations and perturbed images."""

    def answered(image: Tensor, answer: int, label: int) -> Picture:
        return Picture(_pixels(image), classes[answer] if classes else str(answer), answer != label)

    rows = [("clean", [answered(e.image, e.answer, e.label) for e in examples])]
    for attack in examples[0].perturbed:
        perturbed = [(e, *e.perturbed[attack]) for e in examples]
        grown = [magnified(_pixels(image - e.image)) for e, image, _ in perturbed]
        rows.append((f"{attack}:\nperturbation", [Picture(image, f"x {factor:.0f}") for image, factor in grown]))
        rows.append((f"{attack}:\nperturbed", [answered(image, answer, e.label) for e, image, answer in perturbed]))
    return rows


def _pixels(image: Tensor) -> np.ndarray:
    """An image (C, H, W) as one to look at, (H, W, 3) or (H, W, 1): of 2 or more than 3 channels their mean."""
    image = image.float() if len(image) == 3 else image.float().mean(0, keepdim=True)
    return image.permute(1, 2, 0).numpy()
