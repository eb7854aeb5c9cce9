"""A trained classifier in a format that other programs read, checked against its own logits before it is written."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.load import CHECKPOINTS, checkpoint_path, trained_classifier
from fastgat.errors import ConfigError, FastgatError
from fastgat.files import write_atomically
from fastgat.models import create_classifier
from fastgat.options import suggestion

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
"""Formats, and how their files end."""
ALLOWED = 1e-4
"""The largest difference of a logit, relative to the largest logit."""
SIDE = 32
"""Pixels a side where a run does not say."""
BATCHES = (1, 3)
"""Batch sizes that an exported classifier is tried at."""


@torch.random.fork_rng([])
def export(
    run: Path | str,
    format: str = "safetensors",
    output: Path | str | None = None,
    *,
    checkpoint: str = "best",
    image_size: int | None = None,
    classifier: nn.Module | str | None = None,
) -> Path:
    """Write the classifier of a run in another format; returns where.

    Args:
        run: a run folder or a checkpoint.
        format: "safetensors", the weights by their names with what is needed to build the network as metadata;
            "torch-export", a program that torch.export.load reads; "onnx". The programs take images (B, C, H, W) in
            [0, 1], float32, for any B, and return logits (B, K).
        output: the file; by default classifier.SUFFIX in the run folder.
        checkpoint: one of `fastgat.engine.load.CHECKPOINTS`.
        image_size: pixels a side of the images, for a program; by default those of the run.
        classifier: a module to load into, or "package.module:factory", as for `load_classifier`.

    Raises FastgatError if the run cannot be read, the classifier cannot be exported, or what was exported gives other
    logits; nothing is written then.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"unknown format {format!r}{suggestion(format, SUFFIXES)}")
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"unknown checkpoint {checkpoint!r}; known: {', '.join(CHECKPOINTS)}")
    source = checkpoint_path(run, checkpoint)
    tensors, header = load_checkpoint(source)
    module = trained_classifier(source, tensors, header, classifier=classifier)
    side = image_size or header["config"]["data"].get("image_size") or SIDE
    seeded = torch.Generator().manual_seed(0)
    batches = [torch.rand(size, header["model"]["in_channels"], side, side, generator=seeded) for size in BATCHES]
    target = Path(output) if output is not None else source.parent / f"classifier{SUFFIXES[format]}"
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: name the file to write")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        model = header["model"] | ({"classifier": None} if isinstance(classifier, nn.Module) else {})
        reread = EXPORTERS[format](module, model, batches[-1], made)
        check(module, reread, batches, format)
        write_atomically(target, made.read_bytes())
    return target


@torch.no_grad()
def check(classifier: nn.Module, exported: Callable[[Tensor], Tensor], batches: list[Tensor], format: str) -> None:
    """Raises FastgatError unless both give the same logits."""
    for images in batches:
        expected, found = classifier(images), exported(images)
        error = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30))
        if found.shape != expected.shape or not error <= ALLOWED:
            raise FastgatError(f"the {format} export gives other logits (relative difference {error:.3g}); not written")


def _safetensors(
    classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path
) -> Callable[[Tensor], Tensor]:
    # Copies: tensors that share memory (tied weights) are refused.
    tensors = {name: tensor.clone().contiguous() for name, tensor in classifier.state_dict().items()}
    safetensors.torch.save_file(tensors, path, {"fastgat.model": json.dumps(model)})
    if model["classifier"] is None:
        fresh = copy.deepcopy(classifier)  # of the user's own making: nothing here could build it
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    else:
        names = ("classifier", "num_classes", "in_channels", "dropout")
        fresh = create_classifier(*(model[name] for name in names))
    fresh.load_state_dict(safetensors.torch.load_file(path))
    return fresh.eval()


def _torch_export(
    classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path
) -> Callable[[Tensor], Tensor]:
    try:
        program = torch.export.export(classifier, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # noqa: BLE001  # whatever it is that torch cannot trace
        raise FastgatError(f"torch.export cannot take the classifier: {_first_line(error)}") from None
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise ConfigError(
                f"the onnx format needs `pip install 'fastgat-trainer[onnx]'` ({package} is missing)"
            ) from None
    try:
        with quiet("torch.onnx"):
            program = torch.onnx.export(
                classifier,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # noqa: BLE001  # whatever it is that torch cannot translate
        raise FastgatError(f"torch.onnx cannot take the classifier: {_first_line(error)}") from None
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))

    def logits(given: Tensor) -> Tensor:
        (found,) = session.run(None, {"images": given.numpy()})
        return torch.from_numpy(found)

    return logits


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep to itself what a library has to say of its own parts."""
    own = logging.getLogger(logger)
    level = own.level
    own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


EXPORTERS = {"safetensors": _safetensors, "torch-export": _torch_export, "onnx": _onnx}
