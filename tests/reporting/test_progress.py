"""What a person sees: the bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastgat.engine.events import End, EpochEnd, Interval, Start
from fastgat.engine.selection import Collapse
from fastgat.reporting.progress import ConsoleProgress
from fastgat.reporting.transfer import TransferBar


def stop(reason: str) -> None:
    raise AssertionError(reason)


def start(step: int = 0) -> Start:
    return Start(step, step // 10, 3, 10, None, [], {"data set": "digits: 9 images"}, Path("out"), stop)


METRICS = {"loss": 1.25, "accuracy": 0.5, "perturbation_norm": 0.123, "zero_gradients": 0.0}
VALIDATION = {"validation_accuracy": 0.625, "validation_loss": 1.5}
EPOCH = EpochEnd(10, 1, METRICS, VALIDATION, 1, 2345.6, 12.34, 0.0123, stop)
SUMMARY = {"epochs": 3, "images_per_second": 1000.0, "best_epoch": 2, "validation_accuracy": 0.7, "test_accuracy": 0.68}


def shown(terminal: bool, *events: object, again: str = "") -> str:
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, force_terminal=terminal, width=200), again)
    listeners: dict[type, Any] = {
        Start: progress.on_start,
        Interval: progress.on_interval,
        EpochEnd: progress.on_epoch,
        End: progress.on_end,
    }
    for event in events:
        listeners[type(event)](event)
        progress.bar.refresh()
    progress.close()
    return out.getvalue()


def test_a_log_gets_a_line_an_epoch() -> None:
    text = shown(False, start(), Interval(5, 1, METRICS, 900.0, 0.25), EPOCH, End(30, "all epochs done", SUMMARY))
    assert text.splitlines() == [
        "data set    digits: 9 images",
        "output      out",
        "epoch 1/3  loss 1.250  accuracy 50.0%  |p| 0.123  validation 62.5%  2,346 images/s  "
        "12.3 s, 1.2% waiting for data  best so far",
        "all epochs done: 3 epochs, 1,000 images/s",
        "best epoch 2: validation accuracy 70.00%, test accuracy 68.00%",
        "the run is in out: curves.png, metrics.jsonl, best.safetensors",
    ]


def test_a_collapse_is_one_line_of_its_epoch() -> None:
    validation = {**VALIDATION, "validation_robust_accuracy": 0.03}
    collapse = Collapse(4, (0.4, 0.03), (0.45, 0.9))
    event = replace(EPOCH, epoch=5, best_epoch=4, validation=validation, robust_seconds=2.34, collapse=collapse)
    summary = {**SUMMARY, "validation_robust_accuracy": 0.4}
    lines = shown(False, start(), event, End(50, "all epochs done", summary)).splitlines()
    assert "validation 62.5%, robust 3.0% (2.3 s)  2,346 images/s" in lines[2]
    assert lines[3] == (
        "overfits    catastrophically: robust accuracy fell from 40.0% (epoch 4) to 3.0%, while accuracy on the "
        "perturbed images of training rose from 45.0% to 90.0%; best-robust.safetensors holds the best epoch "
        "before that"
    )
    assert "best epoch 2: validation accuracy 70.00%, robust 40.00%, test accuracy 68.00%" in lines


def test_a_terminal_gets_a_bar_with_the_metrics() -> None:
    text = shown(True, start(), Interval(5, 1, METRICS, 900.0, 0.25))
    assert "5/30 steps" in text
    assert "900 images/s" in text
    assert "|p| 0.123" in text


def test_an_interrupted_run_says_how_to_go_on() -> None:
    text = shown(False, start(4), End(7, "interrupted by SIGTERM", None), again="--classifier a:b")
    assert "continues   after step 4 (epoch 0 of 3)" in text
    assert "interrupted by SIGTERM after step 7; continue with: --output out --resume auto --classifier a:b" in text


def test_a_download_of_unknown_size_has_one_bar() -> None:
    bar = TransferBar(Console(file=io.StringIO(), force_terminal=True))
    for done in (10, 20, 30):
        bar("downloading", done, 0)
    assert len(bar._bars) == 1
    bar("downloading", 40, 40)
    assert not bar._bars
    bar.close()
