"""What a run is judged by: validation by every rule at the end of an epoch, test accuracy at the end of the run."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastgat.config import TrainConfig
from fastgat.data.loader import Loader
from fastgat.engine.accuracy import Score, score
from fastgat.engine.position import Position
from fastgat.engine.robust import IMAGES, RobustAccuracy
from fastgat.engine.run_checkpoints import BEST, RunCheckpoints
from fastgat.engine.selection import (
    Candidate,
    Collapse,
    best_row,
    collapse,
    mean_of_last,
    rules,
    suffix,
    validation_key,
)
from fastgat.engine.state import TrainState
from fastgat.methods.players import Tensors
from fastgat.randomness import random_state, restore_random_state


class Validator:
    """Judges the classifier of `state`, and its moving average where there is one; all ranks call it alike.

    Attributes:
        averaged: (True, False) with a moving average: the average, which decides, and then the plain weights;
            otherwise (True,).
        robust: measures robust accuracy, once images were chosen for it.
    """

    def __init__(self, state: TrainState, config: TrainConfig, validation_loader: Loader, test_loader: Loader | None):
        self.state, self.config = state, config
        self.validation_loader, self.test_loader = validation_loader, test_loader
        self.averaged = (True, False) if state.ema is not None else (True,)
        self.robust: RobustAccuracy | None = None

    def sample_images(self) -> str:
        """Have robust accuracy measured from now on; returns what a run says of it at its start."""
        config, share = self.config, self.state.ranks.share_of(self.config.batch_size)
        before = random_state(self.state.device)
        robust = RobustAccuracy(self.state, config.threat, self.validation_loader.once(), share, config.seed)
        restore_random_state(*before, self.state.device)  # a loader of one's own draws, once more in a resumed run
        self.robust = robust
        images = f"{robust.samples:,} of {robust.seen:,}" if robust.seen > IMAGES else f"all {robust.seen:,}"
        attack = f"PGD-10, {robust.norm}, epsilon {robust.epsilon:.4g}"
        return f"robust: accuracy of {images} validation images under {attack}"

    def validation(self) -> dict[str, float]:
        """Validation accuracy and loss, as an epoch's row has them."""
        scores = {averaged: self._score(self.validation_loader, self._tensors(averaged)) for averaged in self.averaged}
        return {
            validation_key(measure, averaged): getattr(result, measure)
            for averaged, result in scores.items()
            for measure in ("accuracy", "loss")
        }

    def robust_validation(self) -> dict[str, float]:
        """Robust accuracy, as an epoch's row has it; nothing where it is not measured."""
        if self.robust is None:
            return {}
        return {validation_key("robust_accuracy", each): self.robust(self._tensors(each)) for each in self.averaged}

    def collapse(self, rows: Sequence[dict[str, Any]]) -> Collapse | None:
        """The collapse of robust accuracy in the last of these epochs, where it is measured."""
        return collapse(rows, self.robust.samples) if self.robust is not None else None

    def summary(self, at: Position, checkpoints: RunCheckpoints) -> dict[str, Any]:
        """The part of summary.json on accuracy; the test images are looked at here and nowhere else."""
        tests = {}
        if self.test_loader is not None:
            tests = {each: self._tested(self.test_loader, at, checkpoints, averaged=each) for each in self.averaged}
        robust = {}
        if self.robust is not None:
            collapsed = (row["epoch"] for row in at.epochs if self.collapse(at.epochs[: row["epoch"]]))
            best = (at.row(at.best_epoch) or {}).get(validation_key("robust_accuracy"))
            robust = {"validation_robust_accuracy": best, "collapsed_epoch": next(collapsed, None)}
        return {
            "select": self.config.rule,
            "best_epoch": at.best_epoch,
            "validation_accuracy": at.best_accuracy if at.best_epoch is not None else None,
            **robust,
            "test_accuracy": tests[True][self.config.rule] if tests else None,
            **{"test_accuracies" + suffix(each): tests.get(each) for each in self.averaged},
            **{"last_validation_accuracy" + suffix(each): mean_of_last(at.epochs, each) for each in self.averaged},
        }

    def _tested(
        self, test_loader: Loader, at: Position, checkpoints: RunCheckpoints, *, averaged: bool
    ) -> dict[str, float | None]:
        """Test accuracy of the epoch that each rule chooses; None where its classifier was not kept."""
        by_epoch: dict[int, float] = {}
        accuracies: dict[str, float | None] = {}
        for rule in rules(self.robust is not None):
            candidate = Candidate(rule, averaged)
            best = best_row(candidate, at.epochs)
            epoch = best["epoch"] if best is not None else None
            tensors: dict[str, Tensor] | None = None
            if averaged and rule == self.config.rule:  # the run's own choice; an earlier one's file may have been lost
                epoch = at.best_epoch
                tensors = checkpoints.classifier_in(BEST) if epoch is not None else None
            elif rule == "last":
                tensors = self._tensors(averaged)
            elif epoch is not None and at.kept.get(candidate.file) == epoch:
                tensors = checkpoints.classifier_in(candidate.file)
            if tensors is None or epoch is None:
                accuracies[rule] = None
                continue
            if epoch not in by_epoch:
                by_epoch[epoch] = self._score(test_loader, tensors).accuracy
            accuracies[rule] = by_epoch[epoch]
        return accuracies

    def _tensors(self, averaged: bool) -> Tensors:
        """What is put in place of the classifier's own tensors."""
        return self.state.evaluation_parameters() if averaged else {}

    def _score(self, loader: Loader, tensors: Tensors) -> Score:
        state = self.state
        return score(state.classifier, loader.once(), tensors, state.autocast, state.ranks)
