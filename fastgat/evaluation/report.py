"""Evaluations on disk: evaluation.json, plots, pictures and report.html, in a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastgat.errors import OutputError
from fastgat.evaluation.examples import Example
from fastgat.evaluation.protocol import Evaluation
from fastgat.files import write_atomically
from fastgat.reporting.page import render_report
from fastgat.reporting.pictures import Picture, draw_sheet, magnified
from fastgat.reporting.plots import plot_curves, plot_power, saved


def write_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write everything, and return what was written; clean figures alone go to evaluation-clean.json.

    Plots of an earlier report that this one does not have are removed. Raises OutputError where the folder cannot be
    written.
    """
    figures = evaluation.figures
    files: dict[str, bytes] = {}
    if "card" in figures:
        plots = {"curves": plot_curves(figures["curves"])}
        if figures["equal_power"]:
            plots["power"] = plot_power(figures["equal_power"])
        if evaluation.examples:
            plots["pictures"] = draw_sheet(_rows(evaluation.examples, figures.get("classes")))
        drawn = {name: {kind: saved(plot, kind) for kind in ("png", "svg")} for name, plot in plots.items()}
        files = {f"evaluation-{name}.{kind}": image for name, kinds in drawn.items() for kind, image in kinds.items()}
        files["report.html"] = render_report(figures, {name: kinds["png"] for name, kinds in drawn.items()}).encode()
    name = "evaluation.json" if "card" in figures else "evaluation-clean.json"
    files[name] = (json.dumps(figures, indent=2, default=str) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from None
    for name, content in files.items():
        write_atomically(folder / name, content)
    if "card" in figures:
        for kind in ("png", "svg"):
            for plot in ("curves", "power", "pictures"):
                if (stale := f"evaluation-{plot}.{kind}") not in files:
                    (folder / stale).unlink(missing_ok=True)
    return [folder / name for name in files]


def _rows(examples: list[Example], classes: list[str] | None) -> list[tuple[str, list[Picture]]]:
    def name(label: int) -> str:
        return classes[label] if classes else str(label)

    def pixels(image: Any) -> np.ndarray:
        array: np.ndarray = image.float().permute(1, 2, 0).numpy()
        return array

    rows = [("clean", [Picture(pixels(e.image), name(e.answer), e.answer != e.label) for e in examples])]
    for attack in examples[0].moved:
        grown = [magnified(pixels(e.moved[attack].image - e.image)) for e in examples]
        rows.append((f"{attack}:\nperturbation", [Picture(image, f"x {factor:.0f}") for image, factor in grown]))
        moved = [(e.moved[attack], e.label) for e in examples]
        seen = [Picture(pixels(found.image), name(found.answer), found.answer != label) for found, label in moved]
        rows.append((f"{attack}:\nperturbed", seen))
    return rows
