"""Checkpoints: tensors in safetensors, everything else as JSON in the same file; written whole or not at all.

Nothing is unpickled, and every value of the header has the type that it must have. A file carries the version of its
format and a checksum of all its other bytes.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.engine.optimizer import buffer_name
from fastgat.engine.position import Position
from fastgat.errors import CheckpointError
from fastgat.files import read_file, write_atomically
from fastgat.typed import MAX_TEXT_BYTES, check_type, parse_json, shown

FORMAT = 4
READABLE = (1, 2, 3, 4)
"""Of format 1 the classifier can be read; the optimisers counted their updates in another way. Up to format 3 the
checksum is that of the tensors' values and fastgat's header."""
RENAMED = {"classifier_adam.": "classifier_optimizer.", "generator_adam.": "generator_optimizer."}
"""What format 2 called otherwise."""
HEADER, CHECKSUM, BLANK = "fastgat", "checksum", "00000000"
CLASSIFIER, EMA, TRANSIENT = "classifier.", "ema.shadow.", "transient.classifier/"


class ModelHeader(TypedDict):
    """The facts that build the classifier again; its name is None where it was not built by name.

    `image_size` is the height and width of the images that it was trained on, `normalization` the mean and the std of
    each channel, where the network was built with a layer for them.
    """

    classifier: str | None
    num_classes: int
    in_channels: int
    dropout: float
    classes: NotRequired[list[str] | None]  # headers of earlier versions lack these
    image_size: NotRequired[list[int]]
    normalization: NotRequired[list[list[float]] | None]


class Header(TypedDict):
    """The fields that every checkpoint of a run has; one that the run can continue from has `random` too."""

    config: dict[str, Any]
    model: ModelHeader
    position: Position


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and header to `path`; raises OutputError and leaves what was there if that fails."""
    # Copies: tensors that share memory (tied weights) are refused by safetensors.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **header})
    raw = safetensors.torch.save(copies, {HEADER: text, CHECKSUM: BLANK})
    write_atomically(path, raw.replace(_entry(BLANK), _entry(f"{zlib.crc32(raw):08x}"), 1))


def classifier_alone(tensors: dict[str, Tensor], *, averaged: bool = True) -> dict[str, Tensor]:
    """The classifier's tensors of a checkpoint: those of its moving average where there is one and `averaged`."""
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith((CLASSIFIER, TRANSIENT))}
    if not averaged:
        return kept
    averages = {name: EMA + buffer_name(name.removeprefix(CLASSIFIER)) for name in kept}
    return {name: tensors.get(averages[name], tensor) for name, tensor in kept.items()}


def keep_classifier(path: Path) -> None:
    """Cut a checkpoint down to its classifier: enough to evaluate it, not to continue."""
    tensors, header = load_checkpoint(path)
    save_checkpoint(path, classifier_alone(tensors), header)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the header of `path`.

    Raises CheckpointError if the file is missing, damaged, not fastgat's, or of another format version.
    """
    try:
        if int.from_bytes(read_file(path, length=8), "little") > MAX_TEXT_BYTES:  # before the rest is read
            raise ValueError("its header is too long")
        raw = read_file(path)
        tensors, metadata = parse_safetensors(raw)
        header = parse_json(metadata.get(HEADER, "null"))
        if header is not None:
            check_type(header, dict, "its header")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:  # by an odd dtype
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None
    if header is None:
        raise CheckpointError(f"{path}: not a checkpoint of fastgat (a safetensors file without its header)")
    version = header.get("format", "unknown")
    if version not in READABLE:
        raise CheckpointError(
            f"{path}: checkpoint format {shown(version)}, but this fastgat reads up to format {FORMAT}"
        )
    value = metadata.get(CHECKSUM, "")
    if value != (_checksum(raw, value) if version > 3 else _checksum_of_values(tensors, metadata[HEADER])):  # a version
        raise CheckpointError(f"{path}: damaged: its contents do not match their checksum")
    try:
        check_type(header, Header, "header")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if version == 2:
        for before, now in RENAMED.items():
            tensors = {name.replace(before, now, 1): tensor for name, tensor in tensors.items()}
    if version > 1:
        header["format"] = FORMAT
    return tensors, header


def parse_safetensors(raw: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and its metadata."""
    tensors = dict(sorted(safetensors.torch.load(raw).items()))  # safetensors has no fixed order
    return tensors, parse_json(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__") or {}


def classifier_tensors(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint for `module`, a classifier, by the names of its parameters and buffers.

    Averages come in place of what they average. Buffers that are not persistent come too, where they have that shape.

    A tied parameter appears once. Raises CheckpointError if the checkpoint is of another classifier.
    """
    saved = {name.removeprefix(CLASSIFIER): tensor for name, tensor in tensors.items() if name.startswith(CLASSIFIER)}
    check_match(saved, module)
    values = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        flat = buffer_name(name)
        held = (tensors.get(place) for place in (EMA + flat, CLASSIFIER + name, TRANSIENT + flat))
        value = next((value for value in held if value is not None), None)
        if value is not None and value.shape == tensor.shape:
            values[name] = value
    return values


def check_match(tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Raises CheckpointError, naming the first difference, if these are not the tensors of `module`'s state."""
    expected = module.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise CheckpointError(f"the checkpoint is of another model: {name} is only in one of the two")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, here {tuple(expected[name].shape)}"
            raise CheckpointError(f"the checkpoint is of another model: {name} has shape {shapes}")


def _entry(checksum: str) -> bytes:
    """The bytes of a checksum's entry in a file."""
    return f'"{CHECKSUM}":"{checksum}"'.encode(errors="replace")


def _checksum(raw: bytes, value: str) -> str:
    """The checksum of a whole file with a blank in the place of its own `value` (from format 4 on)."""
    end = 8 + int.from_bytes(raw[:8], "little")
    head = raw[:end].replace(_entry(value), _entry(BLANK), 1)
    return f"{zlib.crc32(memoryview(raw)[end:], zlib.crc32(head)):08x}"


def _checksum_of_values(tensors: dict[str, Tensor], header: str) -> str:
    """The checksum of formats 1 to 3."""
    checksum = zlib.crc32(header.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return str(checksum)
