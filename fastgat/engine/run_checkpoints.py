"""The checkpoints of a run folder, each of one moment and the same on all ranks.

The last and the best are whole, so that a run can go on from them. Beside them are the classifiers of the epochs that
other rules choose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgat.engine.checkpoint import (
    check_match,
    classifier_alone,
    classifier_tensors,
    load_checkpoint,
    save_checkpoint,
)
from fastgat.engine.position import Position
from fastgat.engine.random import random_state, restore_random_state
from fastgat.engine.state import TrainState
from fastgat.errors import CheckpointError, DataError, NonFiniteError
from fastgat.randomness import from_text, restore_generators

LAST, BEST = "last.safetensors", "best.safetensors"
SUMMARY = "summary.json"
"""The file that a run which has ended leaves beside them."""


class RunCheckpoints:
    """Saves `state` into `folder`, whole, by rank 0; `header` is what each says about the run beside its position."""

    def __init__(self, state: TrainState, folder: Path, header: dict[str, Any]) -> None:
        self.state, self.folder, self.header = state, folder, header

    def save(self, name: str, at: Position) -> None:
        """Write a checkpoint of this moment, unless its tensors have gone bad: then the one before stays.

        Raises NonFiniteError if they have, RankError if the ranks have come apart, OutputError if it cannot be written.
        """
        ranks = self.state.ranks
        if bad := dict.fromkeys(player for players in ranks.gather(self.state.not_finite()) for player in players):
            players = " and of the ".join(bad)
            raise NonFiniteError(f"a parameter of the {players} became NaN or infinite by step {at.step}")
        if not ranks.alone:
            ranks.check_same({f"the weights after step {at.step}": self.state.fingerprint()})
        random_tensors, random_plain = random_state(self.state.device)
        header = {**self.header, "position": vars(at), "random": random_plain}
        tensors = {**self.state.whole(), **random_tensors}
        ranks.from_first(lambda: save_checkpoint(self.folder / name, tensors, header))

    def keep_classifier(self, name: str, at: Position, *, averaged: bool) -> None:
        """Write the classifier of this moment alone, its moving average if `averaged` and there is one."""
        tensors = classifier_alone(self.state.whole(), averaged=averaged)
        header = {**self.header, "position": vars(at)}
        self.state.ranks.from_first(lambda: save_checkpoint(self.folder / name, tensors, header))

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any], steps_per_epoch: int) -> Position:
        """Bring state and random generators to where a checkpoint was; returns where that is.

        Raises CheckpointError if it is one of other networks or data.
        """
        state_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("random.")}
        state_tensors = self.state.completed(self.state.part_of(state_tensors))
        check_match(state_tensors, self.state)
        try:
            position = Position.read(header["position"])
            for each in position.passes.values():  # a loader restores them later: now is the time to fail
                restore_generators(each["states"])
                if "generator" in each:
                    torch.Generator().set_state(from_text(each["generator"]))
            restore_random_state(tensors, header["random"], self.state.device)
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"the checkpoint's header is not one of this version ({error})") from None
        if position.steps_per_epoch != steps_per_epoch:
            before = position.steps_per_epoch
            raise CheckpointError(f"the checkpoint had {before} batches an epoch, the data now have {steps_per_epoch}")
        self.state.load_state_dict(state_tensors)
        return position

    def initialise_folder(self, at: Position) -> None:
        """Make the folder hold a checkpoint of this moment, and the best one only if it is this run's."""
        if self.state.ranks.first:
            for part in self.folder.glob(".*.safetensors.*"):  # left behind by a kill within a write
                part.unlink(missing_ok=True)
        # A file may be of another epoch where the run was killed between the writing of a better one and of the last:
        # that epoch will be done again. Or the run goes on from another folder that had lost it.
        holds = self.state.ranks.from_first(lambda: {name: self._holds(name, at) for name in (BEST, *at.kept)})
        if not holds[BEST]:
            at.best_epoch, at.best_accuracy = None, -1.0
        at.kept = {name: epoch for name, epoch in at.kept.items() if holds[name]}
        self.save(LAST, at)

    def _holds(self, name: str, at: Position) -> bool:
        """Whether a file is there and of the epoch that it should be of."""
        if not (self.folder / name).exists():
            return False
        _, header = load_checkpoint(self.folder / name)
        then = header["position"]
        if name == BEST:
            return bool(then.get("best_epoch") == at.best_epoch)
        return bool(then.get("kept", {}).get(name) == at.kept[name])

    def classifier_in(self, name: str) -> dict[str, Tensor]:
        """The classifier's tensors in a file of the run, on the state's device."""
        tensors, _ = self.state.ranks.from_first(lambda: load_checkpoint(self.folder / name))
        classifier = classifier_tensors(tensors, self.state.classifier)
        return {name: tensor.to(self.state.device) for name, tensor in classifier.items()}

    def with_what_is_kept(self, error: DataError, at: Position | None = None) -> DataError:
        """The error, and what it has not cost: the run up to `at`, which is saved, or up to the last checkpoint."""
        kept = f"the run after step {at.step}" if at is not None else "the last checkpoint"
        return DataError(f"{error}; {self.folder / LAST} holds {kept}")
