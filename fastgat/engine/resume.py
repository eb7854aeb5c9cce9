"""Which checkpoint a run continues from, and whether it is the same run."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastgat.config import TrainConfig, identity
from fastgat.engine.checkpoint import FORMAT, load_checkpoint
from fastgat.engine.run_checkpoints import BEST, LAST, SUMMARY
from fastgat.errors import CheckpointError, ConfigError, DataError
from fastgat.files import read_file, write_atomically
from fastgat.options import home_path
from fastgat.typed import shown

SLIM = f"holds a finished run, of which only the classifier was kept ({BEST})"


class Checkpoint(NamedTuple):
    """A checkpoint that has been read: where from, its tensors and its header, and the time and size of its file."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]
    stamp: tuple[int, int] | None = None


def find_checkpoint(resume: str | None, output: Path | None, known: Checkpoint | None = None) -> Checkpoint | None:
    """The checkpoint to continue from, or None to start afresh. One that is `known` is read again if it has changed.

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
        path = home_path("resume", resume)
        path = path / LAST if path.is_dir() else path
        elsewhere = output is not None and output.resolve() != path.parent.resolve()
        if output is not None and elsewhere and (_exists(output / LAST) or _is_slim(output)):
            raise ConfigError(f"{output} holds another run already: choose another --output")
    stamp = _stamp(path)
    if known is not None and stamp is not None and (known.path, known.stamp) == (path, stamp):
        return known
    tensors, header = load_checkpoint(path)
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: made by an earlier fastgat (format {header['format']}): it can be evaluated, but not continued"
        )
    return Checkpoint(path, tensors, header, stamp)


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
    """The settings of a checkpoint's run; one that names no rule to pick the epoch is of before, and by accuracy.

    Raises ConfigError where they are not right.
    """
    return TrainConfig.from_dict({"select": "accuracy", **checkpoint.header["config"]}, str(checkpoint.path))


def check_same_run(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Raises CheckpointError, naming the first difference, if `config` would compute something else."""
    before, now = identity(settings_of(checkpoint)), identity(config)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            was, wanted = (shown(value) if value is not None else "unset" for value in (before.get(key), now.get(key)))
            raise CheckpointError(
                f"{checkpoint.path}: made with {key} = {was}, but now {wanted} is asked for; a run keeps its settings"
            )


def adopt_best(checkpoint: Checkpoint, output: Path) -> None:
    """Bring along to another folder what the run has kept of its best epochs."""
    before = checkpoint.path.parent
    if output.resolve() != before.resolve():
        for best in before.glob("best*.safetensors"):
            try:
                content = read_file(best)
            except OSError as error:
                raise CheckpointError(f"{best}: {error.strerror}") from None
            write_atomically(output / best.name, content)


def _is_slim(folder: Path) -> bool:
    """Whether a run has ended there that cannot be continued; one without a summary was killed as it began."""
    return _exists(folder / BEST) and _exists(folder / SUMMARY) and not _exists(folder / LAST)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def check_same_classes(path: Path, header: dict[str, Any], classes: Sequence[str]) -> None:
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
