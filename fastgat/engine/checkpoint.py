"""Checkpoints: tensors in safetensors, everything else as JSON in the same file; written whole or not at all.

Nothing is unpickled. A file carries the version of its format and a checksum of its contents.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.engine.optimizer import buffer_name
from fastgat.errors import CheckpointError
from fastgat.files import write_atomically

FORMAT = 3
READABLE = (1, 2, 3)
"""Of format 1 the classifier can be read; the optimisers counted their updates in another way."""
RENAMED = {"classifier_adam.": "classifier_optimizer.", "generator_adam.": "generator_optimizer."}
"""What format 2 called otherwise; it is read as format 3."""
HEADER, CHECKSUM = "fastgat", "checksum"
CLASSIFIER, EMA, TRANSIENT = "classifier.", "ema.shadow.", "transient.classifier/"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and header to `path`; raises OutputError and leaves what was there if that fails."""
    # Copies: tensors that share memory (tied weights) are refused by safetensors.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **header})
    write_atomically(path, safetensors.torch.save(copies, {HEADER: text, CHECKSUM: _checksum(copies, text)}))


def classifier_alone(tensors: dict[str, Tensor], *, averaged: bool = True) -> dict[str, Tensor]:
    """Of a checkpoint's tensors the classifier's, its moving average where there is one and `averaged`."""
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith((CLASSIFIER, TRANSIENT))}
    if not averaged:
        return kept
    averages = {name: EMA + buffer_name(name.removeprefix(CLASSIFIER)) for name in kept}
    return {name: tensors.get(averages[name], tensor) for name, tensor in kept.items()}


def keep_classifier(path: Path) -> None:
    """Leave of a checkpoint the classifier alone: what it takes to evaluate it, not to continue."""
    tensors, header = load_checkpoint(path)
    save_checkpoint(path, classifier_alone(tensors), header)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the header of `path`.

    Raises CheckpointError if the file is missing, damaged, not fastgat's, or of another format version.
    """
    try:
        raw = path.read_bytes()
        tensors = safetensors.torch.load(raw)
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
        header = json.loads(metadata[HEADER]) if HEADER in metadata else None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a checkpoint of fastgat (a safetensors file without its header)")
    if header.get("format") not in READABLE:
        version = header.get("format", "unknown")
        raise CheckpointError(f"{path}: checkpoint format {version}, but this fastgat reads up to format {FORMAT}")
    if metadata.get(CHECKSUM) != _checksum(tensors, metadata[HEADER]):
        raise CheckpointError(f"{path}: damaged: its contents do not match their checksum")
    if header["format"] == 2:  # a version
        header["format"] = FORMAT
        for before, now in RENAMED.items():
            tensors = {name.replace(before, now, 1): tensor for name, tensor in tensors.items()}
    return tensors, header


def classifier_tensors(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `module`, a classifier, in a checkpoint: averages in place of what they average,
    and buffers that are not persistent too, where the checkpoint has them in that shape.

    A tied parameter appears once. Raises CheckpointError if the checkpoint is of another classifier.
    """
    own = {name.removeprefix(CLASSIFIER): tensor for name, tensor in tensors.items() if name.startswith(CLASSIFIER)}
    check_match(own, module)
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        flat = buffer_name(name)
        held = (tensors.get(place) for place in (EMA + flat, CLASSIFIER + name, TRANSIENT + flat))
        value = next((value for value in held if value is not None), None)
        if value is not None and value.shape == tensor.shape:
            found[name] = value
    return found


def check_match(tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Raises CheckpointError, naming the first difference, if these are not the tensors of `module`'s state."""
    expected = module.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise CheckpointError(f"the checkpoint is of another model: {name} is only in one of the two")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, here {tuple(expected[name].shape)}"
            raise CheckpointError(f"the checkpoint is of another model: {name} has shape {shapes}")


def _checksum(tensors: dict[str, Tensor], header: str) -> str:
    checksum = zlib.crc32(header.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return str(checksum)
