"""Figures that have been computed before, on disk: an evaluation that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.errors import OutputError
from fastgat.files import write_atomically

PLAIN = (bool, int, float, str, bytes, tuple, list, type(None), torch.dtype)
FORMAT = 3
"""Of what is stored, and of how it is computed: another number makes everything anew."""

Key = Mapping[str, Any]


class Cache:
    """One small file an entry, named by a digest of its key; without a folder, nothing is kept.

    A file that is damaged, or was made for another key, counts as absent; with `fresh`, also one from before.
    """

    def __init__(self, folder: Path | None = None, *, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh
        self._own: set[Path] = set()

    def numbers(self, key: Key, compute: Callable[[], Sequence[int]]) -> list[int]:
        """What `compute` returned for this key, now or earlier."""
        path, text = self._place(key, "json")
        if path is not None and self._counts(path):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                content = json.loads(path.read_bytes())
                if content["key"] == text:
                    return [int(value) for value in content["values"]]
        values = [int(value) for value in compute()]
        if path is not None:
            self._keep(path, json.dumps({"key": text, "values": values}).encode())
        return values

    def module(self, key: Key, build: Callable[[], nn.Module], compute: Callable[[], tuple[nn.Module, Any]]) -> Any:
        """A trained module and what is to be said of it (plain values), from `compute` or loaded into `build()`."""
        path, text = self._place(key, "safetensors")
        if path is not None and self._counts(path):
            with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
                with safetensors.safe_open(path, "pt") as file:
                    metadata = file.metadata()
                if metadata["key"] == text:
                    module = build()
                    module.load_state_dict(safetensors.torch.load_file(path))
                    return module.eval(), json.loads(metadata["said"])
        module, said = compute()
        if path is not None:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
            self._keep(path, safetensors.torch.save(tensors, {"key": text, "said": json.dumps(said)}))
        return module, said

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made: {error.strerror}") from None
        write_atomically(path, content)
        self._own.add(path)

    def _counts(self, path: Path) -> bool:
        return not self.fresh or path in self._own

    def _place(self, key: Key, suffix: str) -> tuple[Path | None, str]:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        if self.folder is None:
            return None, text
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.{suffix}", text


def model_fingerprint(model: nn.Module) -> str:
    """A digest of a module's structure, all its parameters and buffers, the plain values among its submodules'
    attributes (but for the train or eval mode), and the kind of device that it is on. What a `forward` computes beside
    these, from a global variable, say, it cannot see."""
    digest = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}".encode())
        for attribute, value in sorted(vars(module).items()):
            if isinstance(value, Tensor):
                digest.update(attribute.encode())
                _add(digest, value)
            elif attribute != "training" and isinstance(value, PLAIN):
                digest.update(f"{attribute} {value!r}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.device.type}".encode())
        _add(digest, tensor)
    return digest.hexdigest()[:32]


def batch_fingerprint(batch: Batch) -> str:
    """A digest of the images and labels of a batch."""
    digest = hashlib.sha256()
    for tensor in batch:
        _add(digest, tensor)
    return digest.hexdigest()[:32]


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
