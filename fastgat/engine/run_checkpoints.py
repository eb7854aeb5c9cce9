"""The checkpoints of a run folder: finding the one to continue from, comparing runs, writing and restoring.

The last and the best are whole, so that a run can go on from them. Beside them are the classifiers of the epochs that
other rules choose.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgat.config import TrainConfig
from fastgat.deciding import deciding_settings
from fastgat.engine.checkpoint import FORMAT, classifier_alone, classifier_tensors, load_checkpoint, save_checkpoint
from fastgat.engine.position import Position
from fastgat.engine.state import TrainState
from fastgat.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from fastgat.files import read_file, write_atomically
from fastgat.options import home_path
from fastgat.randomness import from_text, random_state, restore_generators, restore_random_state
from fastgat.typed import shown

LAST, BEST = "last.safetensors", "best.safetensors"
SUMMARY = "summary.json"  # the file that a run which has ended leaves beside them
SLIM = f"holds a finished run, of which only the classifier was kept ({BEST})"


class Checkpoint(NamedTuple):
    """A checkpoint that has been read: where from, its tensors and its header."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]


def run_folder(resume: str | None, output: Path | None) -> Path | None:
    """The folder of the run that is asked for; None for a new run without a name, or where there is no checkpoint."""
    if output is not None or not resume or resume == "auto":
        return output
    path = _file(resume)
    return path.parent if _exists(path) else None


def _file(resume: str) -> Path:
    """The checkpoint that `resume` names by itself or by its run folder."""
    path = home_path("resume", resume)
    return path / LAST if path.is_dir() else path


def find_checkpoint(resume: str | None, output: Path | None) -> Checkpoint | None:
    """The checkpoint to continue from, or None to start afresh.

    Raises ConfigError where a fresh start would write over a run, CheckpointError where there is nothing to continue.
    """
    if resume is None:
        if output is not None and _exists(output / LAST):
            raise ConfigError(
                f"{output} already holds a run: continue it with --resume auto, or choose another --output"
            )
        if output is not None and _is_slim(output):
            raise ConfigError(f"{output} {SLIM}: choose another --output")
        return None
    if resume == "auto":
        assert output is not None
        path = output / LAST
        if not _exists(path):
            if _is_slim(output):
                raise CheckpointError(f"{output} {SLIM}: it can be evaluated, but not continued")
            return None
    else:
        if not resume:
            raise ConfigError("resume must be auto, a run folder or a checkpoint, got ''")
        path = _file(resume)
        elsewhere = output is not None and output.resolve() != path.parent.resolve()
        if output is not None and elsewhere and (_exists(output / LAST) or _is_slim(output)):
            raise ConfigError(f"{output} holds another run already: choose another --output")
    tensors, header = load_checkpoint(path)
    if "random" not in header:
        raise CheckpointError(f"{path}: holds a classifier alone: it can be evaluated, but not continued; {LAST} can")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: made by an earlier fastgat (format {header['format']}): it can be evaluated, but not continued"
        )
    checkpoint = Checkpoint(path, tensors, header)
    if path.name != LAST and (output is None or not elsewhere):
        _check_latest(checkpoint)
    return checkpoint


def _check_latest(checkpoint: Checkpoint) -> None:
    """Raises ConfigError where going on from a checkpoint would write over a later one, a whole LAST beside it."""
    last = checkpoint.path.parent / LAST
    try:
        later = step_of(Checkpoint(last, *load_checkpoint(last)))
    except CheckpointError:  # missing or damaged: nothing is lost with it
        return
    step = step_of(checkpoint)
    if later > step:
        raise ConfigError(
            f"{checkpoint.path} is of step {step}, and {LAST} beside it of step {later}, which would be lost: name "
            "another --output"
        )


def step_of(checkpoint: Checkpoint) -> int:
    """The number of steps that the run had done; raises CheckpointError where the header does not say so."""
    step = checkpoint.header.get("position", {}).get("step")
    if not isinstance(step, int) or step < 0:
        raise CheckpointError(f"{checkpoint.path}: its header does not say after which step it was written")
    return step


def after_restart(resume: str | None, output: Path | None, restarted: bool) -> str | None:
    """The checkpoint to ask for after torchrun has started a run again, which may have got further than `resume`."""
    return "auto" if restarted and output is not None and _exists(output / LAST) else resume


def settings_of(checkpoint: Checkpoint) -> TrainConfig:
    """The settings of a checkpoint's run. Earlier versions name no rule that picks the epoch: theirs was accuracy.

    Raises ConfigError for settings that are not valid.
    """
    return TrainConfig.from_run({"select": "accuracy", **checkpoint.header["config"]}, str(checkpoint.path))


def check_same_run(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Raises CheckpointError, naming the first difference, if `config` would compute something else.

    Where the user's own images lie does not count: `Identity.check` compares which they are.
    """
    before, now = (_placeless(deciding_settings(each)) for each in (settings_of(checkpoint), config))
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key != "method.name", key)):
        if before.get(key) != now.get(key):
            was, wanted = (shown(value) if value is not None else "unset" for value in (before.get(key), now.get(key)))
            raise CheckpointError(
                f"{checkpoint.path}: made with {key} = {was}, but now {wanted} is asked for; a run keeps its settings"
            )


def _placeless(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the places of the user's own images."""
    settings = {**settings, "data.dataset": re.sub(r"(?<=:).*", "", settings["data.dataset"], flags=re.DOTALL)}
    return settings | ({"data.extra_data": "a file"} if "data.extra_data" in settings else {})


def check_not_past(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Raises ConfigError where the run has gone on for longer than the epochs that `config` asks for."""
    position = checkpoint.header["position"]
    done, into = divmod(step_of(checkpoint), position.get("steps_per_epoch") or 1)
    if done + bool(into) > config.passes:
        how_far = f"is in epoch {done + 1}" if into else f"has done {done} epochs"
        raise ConfigError(f"{checkpoint.path}: the run {how_far} already, more than {config.passes}")


def adopt_best(checkpoint: Checkpoint, output: Path) -> None:
    """Copy the classifiers of the best epochs into another folder, where the run goes on."""
    before = checkpoint.path.parent
    if output.resolve() != before.resolve():
        for best in before.glob("best*.safetensors"):
            try:
                content = read_file(best)
            except OSError as error:
                raise CheckpointError(f"{best}: {error.strerror}") from None
            write_atomically(output / best.name, content)


def _is_slim(folder: Path) -> bool:
    """Whether the folder holds a finished run that cannot be continued; one without a summary was killed early."""
    return _exists(folder / BEST) and _exists(folder / SUMMARY) and not _exists(folder / LAST)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def check_same_classes(path: Path, header: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raises DataError if the data now have other classes than those that the checkpoint's classifier has learnt."""
    learnt = header["model"].get("classes")
    if learnt is None:
        return
    learnt = [unicodedata.normalize("NFC", str(name)) for name in learnt]  # earlier versions kept a Mac's form
    if learnt == list(classes):
        return
    pairs = itertools.zip_longest(learnt, classes)
    number, (before, now) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise DataError(f"{path}: class {number} was {before or 'none'} in training, but is {now or 'none'} in the data")


class RunCheckpoints:
    """Writes checkpoints of `state` into `folder`, by rank 0; `header` is what each says besides its position."""

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
        tensors = {**self.state.gathered_state_dict(), **random_tensors}
        ranks.from_first(lambda: save_checkpoint(self.folder / name, tensors, header))

    def keep_classifier(self, name: str, at: Position, *, averaged: bool) -> None:
        """Write the classifier of this moment alone, its moving average if `averaged` and there is one."""
        tensors = classifier_alone(self.state.gathered_state_dict(), averaged=averaged)
        header = {**self.header, "position": vars(at)}
        self.state.ranks.from_first(lambda: save_checkpoint(self.folder / name, tensors, header))

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any], steps_per_epoch: int) -> Position:
        """Bring state and random generators back to a checkpoint's; returns its position.

        Raises CheckpointError if it is one of other networks or data.
        """
        state_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("random.")}
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
        self.state.load_state_dict(self.state.local_state_dict(state_tensors))
        return position

    def initialise_folder(self, at: Position, *, finished: bool = False) -> None:
        """Write a checkpoint of this moment, and forget a best file that is not of this run.

        Raises CheckpointError where a `finished` run has lost its best one: no epoch could take its place.
        """
        if self.state.ranks.first:
            stale = [*self.folder.glob(".*.safetensors.*")]  # a kill within a write left them
            if not at.step:
                stale += self.folder.glob("best*.safetensors")  # of a run whose last checkpoint is gone
            for file in stale:
                file.unlink(missing_ok=True)
        # A run killed between writing a best file and last.safetensors repeats that epoch, so its best file is too new.
        # A run that goes on from another folder may find none.
        holds = self.state.ranks.from_first(lambda: {name: self._holds(name, at) for name in (BEST, *at.kept)})
        if not holds[BEST]:
            if finished and at.epochs:
                raise CheckpointError(
                    f"{self.folder}: {BEST} is lost, and all epochs are done: ask for more --epochs, or evaluate the "
                    "run with another --checkpoint, such as last"
                )
            at.best_epoch, at.best_accuracy = None, -1.0
        at.kept = {name: epoch for name, epoch in at.kept.items() if holds[name]}
        if self.state.ranks.first:
            for file in self.folder.glob("best-*.safetensors"):
                if file.name not in at.kept:  # of no epoch of this run, as far as it has come
                    file.unlink()
        self.save(LAST, at)

    def _holds(self, name: str, at: Position) -> bool:
        """Whether a file exists and is of the epoch that `at` says."""
        if not (self.folder / name).exists():
            return False
        try:
            _, header = load_checkpoint(self.folder / name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete it to go on without") from None
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
        """The error, with what is saved: the run up to `at`, or up to the last checkpoint."""
        kept = f"the run after step {at.step}" if at is not None else "the last checkpoint"
        return DataError(f"{error}; {self.folder / LAST} holds {kept}")
