"""Training on the terminal: what runs on what, a progress bar, a line an epoch, the result."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastgat.engine.events import Callback, Compiled, Compiling, End, EpochEnd, Interval, Start
from fastgat.engine.selection import Collapse

NAMES = {
    "loss": ("loss", "{:.3f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "perturbed_accuracy": ("perturbed", "{:.1%}"),
    "perturbation_norm": ("|p|", "{:.3g}"),
}
"""The metrics that a person follows, with their short names and formats."""


class ConsoleProgress(Callback):
    """A live bar on a terminal; elsewhere (a log file) a line an epoch.

    `again`: options without which an interrupted run cannot be continued, beside where it is.
    """

    def __init__(self, console: Console, again: str = "") -> None:
        self.console, self.again = console, again
        self.output = Path()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=3600,  # steps may be reported minutes apart
            disable=not console.is_terminal,
        )
        self.epochs = 0
        self.skipped = 0

    def on_start(self, event: Start) -> None:
        self.epochs = event.epochs
        self.output = event.output
        self.describe(event.facts, event.output)
        if event.step:
            self._print(f"{'continues':11} after step {event.step} (epoch {event.epoch} of {event.epochs})")
        total = event.epochs * event.steps_per_epoch
        epoch = f"{event.epoch + 1}/{self.epochs}"
        self.bar.add_task("", total=total, completed=event.step, epoch=epoch, metrics="", rate="")
        self.bar.start()

    def on_compiling(self, event: Compiling) -> None:
        self._update(metrics="compiling the step (half a minute or more, the first time)")
        if not self.console.is_terminal:
            self._print(f"{'step':11} compiling (half a minute or more, the first time)")

    def on_compiled(self, event: Compiled) -> None:
        self._update(metrics="")
        if event.failure is not None:
            self._print(f"{'step':11} NOT compiled, and so slower: {event.failure}")
            return
        how = "compiled and captured as a CUDA graph" if event.captured else "compiled"
        self._print(f"{'step':11} {how} in {event.seconds:.1f} s")

    def on_interval(self, event: Interval) -> None:
        rate = f"{event.images_per_second:,.0f} images/s, {_waiting(event.data_wait)}"
        epoch, metrics = f"{event.epoch}/{self.epochs}", _described(event.metrics)
        self._update(completed=event.step, epoch=epoch, metrics=metrics, rate=rate)

    def on_epoch(self, event: EpochEnd) -> None:
        best = "  best so far" if event.best_epoch == event.epoch else ""
        self._print(
            f"epoch {event.epoch:>{len(str(self.epochs))}}/{self.epochs}  {_described(event.metrics)}  "
            f"validation {event.validation_accuracy:.1%}{_robust(event)}  {event.images_per_second:,.0f} images/s  "
            f"{event.seconds:.1f} s, {_waiting(event.data_wait)}{best}"
        )
        if event.collapse is not None:
            self._print(f"{'overfits':11} {_collapsed(event.collapse)}")
        if event.skipped.count > self.skipped:
            samples = "1 sample" if event.skipped.count == 1 else f"{event.skipped.count:,} samples"
            self._print(f"{'skipped':11} {samples} so far; the first: {event.skipped.first}")
        self.skipped = event.skipped.count

    def on_end(self, event: End) -> None:
        self.close()
        if event.summary is None:
            again = f"--output {shlex.quote(str(self.output))} --resume auto {self.again}".rstrip()
            self._print(f"{event.reason} after step {event.step}; continue with: {again}")
            return
        summary = event.summary
        self._print(f"{event.reason}: {summary['epochs']} epochs, {summary['images_per_second']:,.0f} images/s")
        if summary["best_epoch"] is not None:  # it is None where a run was stopped before its first epoch was done
            test, robust = summary["test_accuracy"], summary.get("validation_robust_accuracy")
            self._print(
                f"best epoch {summary['best_epoch']}: validation accuracy {summary['validation_accuracy']:.2%}"
                + (f", robust {robust:.2%}" if robust is not None else "")
                + (f", test accuracy {test:.2%}" if test is not None else "")
            )
        if summary.get("test_accuracies"):
            by_rule = (f"{rule} {value:.2%}" for rule, value in summary["test_accuracies"].items() if value is not None)
            self._print(f"test accuracy by the rule that picks the epoch: {', '.join(by_rule)}")
        self._print(f"the run is in {self.output}: curves.png, metrics.jsonl, best.safetensors")

    def close(self) -> None:
        """Take the bar off the terminal; needed where training ends by an error."""
        self.bar.stop()

    def describe(self, facts: dict[str, str], output: Path) -> None:
        """Print what runs on what, and where it goes."""
        for name, fact in {**facts, "output": output}.items():
            self._print(f"{name:11} {fact}")

    def _update(self, **shown: Any) -> None:
        self.bar.update(self.bar.task_ids[-1], **shown)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _robust(event: EpochEnd) -> str:
    if event.robust_seconds is None:
        return ""
    return f", robust {event.validation['validation_robust_accuracy']:.1%} ({event.robust_seconds:.1f} s)"


def _collapsed(collapse: Collapse) -> str:
    (robust, now), (training, trained) = collapse.robust, collapse.training
    return (
        f"catastrophically: robust accuracy fell from {robust:.1%} (epoch {collapse.best_epoch}) to {now:.1%}, while "
        f"accuracy on the perturbed images of training rose from {training:.1%} to {trained:.1%}; "
        "best-robust.safetensors holds the best epoch before that"
    )


def _waiting(share: float) -> str:
    return f"{share:.1%} waiting for data"


def _described(metrics: dict[str, float]) -> str:
    shown = ((*NAMES[name], value) for name, value in metrics.items() if name in NAMES)
    return "  ".join(f"{short} {form.format(value)}" for short, form, value in shown)
