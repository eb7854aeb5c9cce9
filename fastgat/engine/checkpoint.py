"""Checkpoints: tensors in safetensors, everything else as JSON in the same file; written whole or not at all.

Nothing is unpickled. A file carries the version of its format and a checksum of its tensors.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastgat.engine.files import write_atomically
from fastgat.errors import CheckpointError

FORMAT = 1
HEADER = "fastgat"
CLASSIFIER, EMA = "classifier.", "ema.shadow."


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and header to `path`; raises OutputError and leaves what was there if that fails."""
    # Copies: tensors that share memory (tied weights) are refused by safetensors.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "checksum": _checksum(copies), **header}
    write_atomically(path, safetensors.torch.save(copies, {HEADER: json.dumps(header)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the header of `path`.

    Raises CheckpointError if the file is missing, damaged, not fastgat's, or of another format version.
    """
    try:
        raw = path.read_bytes()
        tensors = safetensors.torch.load(raw)
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None
    if HEADER not in metadata:
        raise CheckpointError(f"{path}: not a checkpoint of fastgat (a safetensors file without its header)")
    header = json.loads(metadata[HEADER])
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {header['format']}, but this fastgat reads format {FORMAT} only"
        )
    if header["checksum"] != _checksum(tensors):
        raise CheckpointError(f"{path}: damaged: its tensors do not match their checksum")
    return tensors, header


def classifier_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's parameters and buffers in a checkpoint, the moving averages in place of what they average."""
    averages = {
        name.removeprefix(EMA).replace("/", "."): tensor for name, tensor in tensors.items() if name.startswith(EMA)
    }
    own = {name.removeprefix(CLASSIFIER): tensor for name, tensor in tensors.items() if name.startswith(CLASSIFIER)}
    return own | averages


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
