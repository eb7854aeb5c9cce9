"""A trained classifier from a run folder or a checkpoint."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.engine.checkpoint import classifier_tensors, load_checkpoint
from fastgat.engine.device import pick_device
from fastgat.engine.run_checkpoints import BEST, LAST
from fastgat.engine.selection import candidates
from fastgat.errors import CheckpointError, ConfigError
from fastgat.functional import size_lazy_layers
from fastgat.models import create_classifier, is_factory

CHECKPOINTS = {"best": BEST, "last": LAST, **{each.rule: each.file for each in candidates(False, robust=True)}}
"""The files of a run folder by what they are called: as `--select` chose, or by the rule that chose them."""

SIZES = 1 << 17  # the most classes or channels that a checkpoint may ask a classifier for


def checkpoint_path(run: Path | str, checkpoint: str = "best") -> Path:
    """The path of a run's checkpoint file, by its name in CHECKPOINTS; `run` may also be a checkpoint file.

    Raises CheckpointError if there is none, ConfigError for another name, and for any where `run` is a file.
    """
    path = Path(run)
    try:
        if checkpoint not in CHECKPOINTS:
            raise ConfigError(f"checkpoint must be {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
        if path.is_dir():
            path /= CHECKPOINTS[checkpoint]
        elif path.is_file() and checkpoint != "best":
            raise ConfigError(f"{path} is a checkpoint: --checkpoint {checkpoint} is for a run folder")
        exists = path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if not exists:
        raise CheckpointError(f"{path}: no such checkpoint")
    return path


def load_classifier(
    run: Path | str,
    *,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    classifier: nn.Module | str | None = None,
) -> nn.Module:
    """The classifier that a run trained, in eval mode: images (B, C, H, W) in [0, 1] -> logits (B, K).

    Args:
        run: a run folder or a checkpoint file.
        checkpoint: "best" (as the run's `select` has it), "accuracy", "loss", "robust" (the epoch of best validation
            accuracy, of lowest validation loss, of best robust accuracy) or "last".
        classifier: a module to load into, or "package.module:factory". Needed where the run was not trained with a
            built-in name: code that a checkpoint names is imported only where the caller names it too.

    Raises CheckpointError if the file is missing, damaged, or of another model, ConfigError for a `checkpoint` that
    there is not, or where `run` is a file, DeviceError for a device that this machine lacks.
    """
    path = checkpoint_path(run, checkpoint)
    if not torch.cuda.is_available():
        pick_device(str(device))  # which says what this machine lacks
    return trained_classifier(path, *load_checkpoint(path), classifier=classifier).to(device)


def trained_classifier(
    path: Path,
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    *,
    classifier: nn.Module | str | Collection[str] | None = None,
) -> nn.Module:
    """The classifier in a checkpoint that was read from `path`, in eval mode; as `load_classifier`.

    `classifier` may also be several names, where several checkpoints share them.
    """
    module = untrained_classifier(path, header, classifier)
    try:
        saved = classifier_tensors(tensors, module)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in saved:
                tensor.copy_(saved[name])
    return module.eval()


def untrained_classifier(
    path: Path, header: dict[str, Any], classifier: nn.Module | str | Collection[str] | None
) -> nn.Module:
    """The module that is given, or a new one as the header asks for it; of a factory only if the user names it."""
    model = header["model"]
    sizes = (model["num_classes"], model["in_channels"])
    if not (all(1 <= size <= SIZES for size in sizes) and 0 <= model["dropout"] < 1):
        raise CheckpointError(f"{path}: no classifier has {sizes[0]} classes, {sizes[1]} channels and such a dropout")
    if isinstance(classifier, nn.Module):
        return classifier
    if isinstance(classifier, type):
        raise ConfigError(f"classifier must be a module or a name, got the class {classifier.__name__}")
    name, named = model["classifier"], [classifier] if isinstance(classifier, str) else list(classifier or ())
    if isinstance(name, str) and not is_factory(name) and isinstance(classifier, str) and classifier != name:
        raise ConfigError(f"{path}: its classifier is {name!r}, not {classifier!r}")
    if name is None:
        if len(named) != 1:
            raise CheckpointError(
                f"{path}: the run trained a classifier of its own; pass one like it as `classifier`, or name the "
                "factory that makes it: --classifier package.module:factory"
            )
        (name,) = named
    elif is_factory(name) and name not in named:
        raise CheckpointError(
            f"{path}: asks to import and call {name!r}, which may run any code; if you trust it, say so: "
            f"--classifier {shlex.quote(name)}, in Python classifier={name!r}"
        )
    normalization = model.get("normalization")
    if normalization is not None and len(normalization) != 2:
        raise CheckpointError(f"{path}: its normalization is not a mean and a std")
    made = create_classifier(name, model["num_classes"], model["in_channels"], model["dropout"], normalization)
    if model.get("image_size"):
        size_lazy_layers(made, model["in_channels"], model["image_size"])
    return made
