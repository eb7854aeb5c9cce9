"""curves.png: a picture of what the method measures, and of nothing else."""

from __future__ import annotations

import pytest

from fastgat.reporting.plots import draw_curves, literal, plot_curves, saved

BASELINE = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "validation_accuracy": 0.6, "validation_loss": 0.9}
GAT = {**BASELINE, "perturbed_accuracy": 0.4, "perturbation_norm": 0.1, "generator_loss": 0.5}


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_an_epoch_that_has_no_metrics_leaves_a_gap() -> None:
    """float16 has skipped all its steps."""
    skipped = {"epoch": 1, "validation_accuracy": 0.1, "validation_loss": 2.3}
    both, none = (size(draw_curves([skipped, *more])) for more in ([{**GAT, "epoch": 2}], []))
    assert both == size(draw_curves([GAT]))
    assert none[0] < both[0], "of what was never measured there is no panel"


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_panel_for_each_thing_measured(epochs: int) -> None:
    narrow, wide = (size(draw_curves([{**row, "epoch": e + 1} for e in range(epochs)])) for row in (BASELINE, GAT))
    assert narrow[1] == wide[1]
    assert wide[0] == pytest.approx(1.5 * narrow[0], abs=2)


def test_a_network_is_in_the_legend_whatever_it_is_called() -> None:
    curve = {"attack": "fast gradient", "norm": "l2", "source": None, "epsilons": [0, 1], "accuracies": [1.0, 0.5]}
    curves = [{**curve, "network": name} for name in ("_gat", "n\udcff", "a$b$")]
    figure = plot_curves(curves)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [literal(f"{each['network']}, fast gradient") for each in curves]
    assert saved(figure, "png").startswith(b"\x89PNG")
