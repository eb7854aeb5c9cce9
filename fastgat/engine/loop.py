"""The training loop: steps, validation, events. It can stop and go on at any step, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.data import IterableLoader
from fastgat.data.loader import Loader
from fastgat.engine.average import AverageStatistics
from fastgat.engine.events import Callback, Compiled, Compiling, End, EpochEnd, Interval, Skipped, Start
from fastgat.engine.interrupts import Interrupts
from fastgat.engine.optimizer import learning_rate_factor
from fastgat.engine.position import Position
from fastgat.engine.random import step_draws
from fastgat.engine.ranks import Ranks, connection_error
from fastgat.engine.reduction import synchronised_batch_norm
from fastgat.engine.run_checkpoints import BEST, LAST, RunCheckpoints
from fastgat.engine.selection import Candidate, best_row, candidates
from fastgat.engine.state import TrainState
from fastgat.engine.step import Stepper
from fastgat.engine.validation import Validator
from fastgat.errors import CaptureError, CompileError, DataError, NonFiniteError
from fastgat.functional import modes_kept
from fastgat.methods.base import Method
from fastgat.methods.players import Draws

GRACE_SECONDS = 5.0  # how long to wait for torch to report a dead worker, once its connection was seen to close


@dataclass
class Pace:
    """Since the last report: when it was, the seconds spent waiting for data, the images the classifier learnt from."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0


class Loop:
    """Trains the players in `state` by `method`, on each of the state's ranks alike; rank 0 writes and reports.

    Args:
        stepper: takes the steps.
        sample: a training batch like those to come.
        batches: the classifier's, from the step on at which the run begins.
        header: what every checkpoint says about the run beside its position (configuration, versions).
        folder: where checkpoints go.
        facts: what the Start event tells its listeners.
    """

    def __init__(
        self,
        stepper: Stepper,
        config: TrainConfig,
        train_loader: Loader,
        validation_loader: Loader,
        test_loader: Loader | None = None,
        *,
        sample: Batch,
        batches: Iterator[Batch],
        folder: Path,
        header: dict[str, Any],
        facts: dict[str, str],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.stepper, self.config = stepper, config
        self.state: TrainState = stepper.state
        self.method: Method = stepper.method
        self.ranks: Ranks = self.state.ranks
        self.train_loader, self.validation_loader, self.test_loader = train_loader, validation_loader, test_loader
        self.sample, self.batches = sample, batches
        self.folder, self.facts, self.callbacks = folder, facts, list(callbacks)
        self.checkpoints = RunCheckpoints(self.state, folder, header)
        self.validator = Validator(self.state, config, validation_loader, test_loader)
        self.steps_per_epoch = train_loader.batches_per_epoch
        images = len(sample.labels) * self.ranks.count  # which a loader of one's own decides, not `batch_size`
        self.average_statistics = AverageStatistics(self.state, self.method, images, self.steps_per_epoch)
        self.position = Position(steps_per_epoch=self.steps_per_epoch)
        if isinstance(train_loader, IterableLoader):
            self.position.passes = train_loader.passes
        self.total_steps = config.passes * self.steps_per_epoch
        self._stop_reason: str | None = None
        self._signal: str | None = None
        self._pace = Pace()

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises CheckpointError if it is one of other networks or data."""
        self.position = self.checkpoints.restore(tensors, header, self.steps_per_epoch)
        if isinstance(self.train_loader, IterableLoader):
            self.train_loader.continued, self.train_loader.passes = self.position.passes, dict(self.position.passes)
            self.position.passes = self.train_loader.passes

    def run(self) -> dict[str, Any] | None:
        """Train until the configured number of epochs, a callback's wish, or a signal; ends on a checkpoint.

        Returns the contents of summary.json, or None if a signal came first.
        """
        with self._lost_in_one_line(), synchronised_batch_norm(self.ranks, self.state.classifier, self.state.generator):
            return self._run()

    @contextmanager
    def _lost_in_one_line(self) -> Iterator[None]:
        """Another rank, or a DataLoader's worker, that has gone: RankError or DataError, with what is kept.

        A step may be half done, and nothing is saved: torch hears of these wherever the process happens to be.
        """
        kept = f"{self.folder / LAST} holds the last checkpoint"
        try:
            try:
                yield
            except ConnectionResetError as error:  # by a worker that is gone, which torch says later, from a signal
                time.sleep(GRACE_SECONDS)
                raise RuntimeError(
                    f"DataLoader worker, or a connection, has died ({error.strerror or error})"
                ) from None
        except RuntimeError as error:
            lost = None if self.ranks.alone else connection_error(error, f"; {kept}: continue with --resume auto")
            if lost is not None:
                raise lost from None
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(f"{error} (--workers 0 needs no worker); {kept}") from None

    def _run(self) -> dict[str, Any] | None:
        at = self.position
        with Interrupts() as interrupts:
            best_epoch = at.best_epoch
            self.checkpoints.initialise_folder(at, finished=len(at.epochs) >= self.config.passes)
            if best_epoch != at.best_epoch:
                self.facts["best epoch"] = (
                    f"was {best_epoch}, but {BEST} no longer holds it: the best of the epochs to come takes its place"
                )
            if self.config.rule == "robust":
                self.facts["selection"] = self.validator.sample_images()
            self._notify(lambda callback: callback.on_start(self._start()))
            self._poll_signals(interrupts)
            if not self._signal:
                self._compile()
            generator_batches = self.train_loader.stream(1, self.method.generator_position(at.step))
            if at.epoch_steps and at.step % self.steps_per_epoch == 0:
                self._finish_epoch()  # whose validation could not be read when the run was here before
            self._poll_signals(interrupts)
            while at.step < self.total_steps and not self._stop_reason and not self._signal:
                if self._train_to_epoch_end(generator_batches, interrupts):
                    self._finish_epoch()
                    self._poll_signals(interrupts)
            self.ranks.end_votes()
            finished = at.step >= self.total_steps or self._stop_reason is not None
            summary = self._summary() if finished else None
            reason = self._stop_reason or ("all epochs done" if finished else f"interrupted by {self._signal}")
            self._notify(lambda callback: callback.on_end(End(at.step, reason, summary)))
        return summary

    def _poll_signals(self, interrupts: Interrupts) -> None:
        """Take note of a signal that a rank has received; the ranks take note of it at the same step."""
        number = self.ranks.vote(signal.Signals[interrupts.received] if interrupts.received else 0)
        if number:
            self._signal = signal.Signals(number).name

    def _notify(self, event: Callable[[Callback], None]) -> None:
        """Notify the callbacks of rank 0; a stop that one asks for holds for every rank.

        One that evaluates the networks may leave them in eval mode: their modes stay what they were.
        """

        def tell() -> str | None:
            with modes_kept(self.state.classifier, self.state.generator):
                for callback in self.callbacks:
                    event(callback)
            return self._stop_reason

        self._stop_reason = self.ranks.from_first(tell)

    def _compile(self) -> None:
        """Compile the step, on a batch of the kind to come, before the clock of the training runs."""
        if not self.stepper.compiled:
            return
        self._notify(lambda callback: callback.on_compiling(Compiling()))
        began, failure = time.perf_counter(), None
        with torch.random.fork_rng([self.state.device] if self.state.device.type == "cuda" else []):
            batches = [self.sample] * self.method.minibatches()
            try:
                self.stepper.prepare(batches, self.draws(batches))
                if self.validator.robust is not None:
                    self.validator.robust.prepare(self.stepper.run, captured=self.stepper.captured)
            except CompileError as error:
                if self.config.run.compile or isinstance(error, CaptureError) or not self.ranks.alone:
                    raise  # with other ranks too: they may be in the compiled step by now
                failure = str(error)
                self.stepper.give_up_compiling()
        event = Compiled(time.perf_counter() - began, self.stepper.captured, failure)
        self._notify(lambda callback: callback.on_compiled(event))

    def _train_to_epoch_end(self, generator_batches: Iterator[Batch], interrupts: Interrupts) -> bool:
        """Steps until the epoch is complete (True), or a signal has come and its checkpoint is written (False)."""
        at, run = self.position, self.config.run
        epoch_end = (at.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        self._pace = Pace()
        while at.step < epoch_end:
            unreadable = None
            try:
                self._step(generator_batches)
            except DataError as error:
                if not self.ranks.alone:  # the others are in the step already: nothing can be saved with them
                    raise self.checkpoints.with_what_is_kept(error) from None
                unreadable = error
            self._poll_signals(interrupts)
            save = self._signal or unreadable or at.step % run.checkpoint_interval == 0
            if save or at.step == epoch_end or at.step % run.log_interval == 0:
                self._end_interval(epoch_end // self.steps_per_epoch)
            if save and at.step < epoch_end:
                self._skipped()  # which the checkpoint keeps
                self.checkpoints.save(LAST, at)
                if unreadable:
                    raise self.checkpoints.with_what_is_kept(unreadable, at)
                if self._signal:
                    return False
        return True

    def _end_interval(self, epoch: int) -> None:
        """Add the steps since the last report to the epoch, and report them where there are any."""
        at = self.position
        sums, steps = self.state.metrics.read()
        self.state.check_loss_scale()
        pace, self._pace = self._pace, Pace()
        seconds = self._pace.began - pace.began
        metrics = at.add(sums, steps, seconds, pace.waited, pace.images)
        if pace.images:
            event = Interval(at.step, epoch, metrics, pace.images / seconds, pace.waited / seconds)
            self._notify(lambda callback: callback.on_interval(event))

    def _step(self, generator_batches: Iterator[Batch]) -> None:
        """One training step."""
        at, state, config = self.position, self.state, self.config
        state.check_trainable(may_freeze=True)  # a callback may have changed them
        state.set_learning_rates(learning_rate_factor(config.optimizer, at.step, config.passes, self.steps_per_epoch))
        kind = self.method.kind(at.step)
        began = time.perf_counter()
        minibatches = [next(generator_batches) for _ in range(self.method.minibatches(kind) - 1)]
        minibatches.append(next(self.batches))
        self._pace.waited += time.perf_counter() - began
        draws = self.draws(minibatches)
        self.stepper(minibatches, draws, kind)
        self.average_statistics.after(at.step, minibatches, draws, kind)
        at.step += 1
        self._pace.images += len(minibatches[-1].labels) * self.ranks.count

    def draws(self, minibatches: Sequence[Batch]) -> list[Draws]:
        """The random draws of the next step, one for each of its minibatches."""
        step, state = self.position.step, self.state
        return step_draws(self.method, state.classifier, minibatches, self.config.seed, step, self.ranks)

    def _finish_epoch(self) -> None:
        """Validate, save, report. The best is saved first, so that the last never refers to one that does not exist."""
        at = self.position
        epoch = at.step // self.steps_per_epoch
        began = time.perf_counter()
        validation, robust_seconds = self._validate()
        metrics, seconds = at.epoch_means(), at.epoch_seconds
        rate, waited = at.epoch_images / seconds, at.epoch_waited / seconds
        at.start_epoch()
        at.seconds += seconds + time.perf_counter() - began
        better, is_best = self._choose(epoch, validation)
        assert at.best_epoch is not None
        event = EpochEnd(
            step=at.step,
            epoch=epoch,
            metrics=metrics,
            validation=validation,
            best_epoch=at.best_epoch,
            images_per_second=rate,
            seconds=seconds,
            data_wait=waited,
            skipped=self._skipped(),
            stop=self._request_stop,
            robust_seconds=robust_seconds,
            collapse=self.validator.collapse([*at.epochs, {"epoch": epoch, **metrics, **validation}]),
        )
        at.epochs.append(event.row())
        for candidate in better:
            self.checkpoints.keep_classifier(candidate.file, at, averaged=candidate.averaged)
        if is_best:
            self.checkpoints.save(BEST, at)
        self.checkpoints.save(LAST, at)
        self._notify(lambda callback: callback.on_epoch(event))

    def _validate(self) -> tuple[dict[str, float], float | None]:
        """The epoch's validation, and the seconds that robust accuracy took, where it is measured.

        Raises DataError, after a checkpoint, where an image cannot be read; NonFiniteError for a loss that is none.
        """
        at = self.position
        try:
            validation = self.validator.validation()
        except DataError as error:
            self.checkpoints.save(LAST, at)
            raise self.checkpoints.with_what_is_kept(error, at) from None
        if not abs(validation["validation_loss"]) < float("inf"):
            raise NonFiniteError(f"the validation loss of the classifier became NaN or infinite after step {at.step}")
        validated = time.perf_counter()
        validation |= self.validator.robust_validation()
        return validation, time.perf_counter() - validated if self.validator.robust is not None else None

    def _choose(self, epoch: int, validation: dict[str, float]) -> tuple[list[Candidate], bool]:
        """Record what this epoch is the best of: the candidates it improves on, and whether it is the run's best.

        A candidate whose file is lost, or that an earlier version did not keep, has none until a better epoch comes.
        """
        at = self.position
        every = candidates(self.state.ema is not None, self.validator.robust is not None)
        better = [each for each in every if each.better(validation, best_row(each, at.epochs))]
        is_best = Candidate(self.config.rule).better(validation, at.row(at.best_epoch))
        if is_best:
            at.best_epoch, at.best_accuracy = epoch, validation["validation_accuracy"]
        at.kept |= {candidate.file: epoch for candidate in better}
        return better, is_best

    def _skipped(self) -> Skipped:
        """The samples that could not be read, since the run began."""
        loaders = [self.train_loader, self.validation_loader, self.test_loader]
        mine = [reason for loader in loaders if loader for reason in loader.skipped.reasons.values()]
        now = [reason for each in self.ranks.gather(mine) for reason in each]
        known = self.position.skipped
        known += [reason for reason in dict.fromkeys(now) if reason not in known]
        return Skipped(len(known), known[0] if known else None)

    def _summary(self) -> dict[str, Any]:
        """The contents of summary.json."""
        at = self.position
        try:
            accuracy = self.validator.summary(at, self.checkpoints)
        except DataError as error:
            raise self.checkpoints.with_what_is_kept(error, at) from None
        return {
            "method": self.method.name,
            "dataset": self.config.data.dataset,
            "seed": self.config.seed,
            "epochs": len(at.epochs),
            **accuracy,
            "images_per_second": at.mean_rate(),
            "seconds": at.seconds,
            "skipped_samples": self._skipped().count,
        }

    def _start(self) -> Start:
        at = self.position
        return Start(
            at.step,
            at.step // self.steps_per_epoch,
            self.config.passes,
            self.steps_per_epoch,
            at.best_epoch,
            self.position.epochs,
            self.facts,
            self.folder,
            self._request_stop,
        )

    def _request_stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
