"""Results kept on disk: an evaluation that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.store import Key, Store, key_digest, key_text

PLAIN = (bool, int, float, str, bytes, tuple, list, type(None), torch.dtype)
FORMAT = 4
"""Part of every key: bump it to invalidate stored results, when what is stored or how it is computed changes."""


class Cache(Store):
    """A keyed store of numbers and of trained modules; without a folder, nothing is kept.

    An entry that is damaged, or was made for another key, counts as absent; with `fresh`, also one from before.
    """

    def numbers(self, key: Key, compute: Callable[[], Sequence[float]]) -> list[Any]:
        """The numbers that `compute` returned for this key, now or earlier."""
        return self.remember({"format": FORMAT, **key}, lambda: list(compute()), _are_numbers)

    def module(self, key: Key, build: Callable[[], nn.Module], compute: Callable[[], tuple[nn.Module, Any]]) -> Any:
        """A trained module with facts about it (plain values), from `compute`, or loaded into `build()`."""
        key = {"format": FORMAT, **key}
        filename, text = f"{key_digest(key)}.safetensors", key_text(key)
        if self.folder is not None and self.usable(filename):
            with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
                path = self.folder / filename
                with safetensors.safe_open(path, "pt") as file:
                    metadata = file.metadata()
                if metadata["key"] == text:
                    module = build()
                    module.load_state_dict(safetensors.torch.load_file(path))
                    return module.eval(), json.loads(metadata["facts"])
        module, facts = compute()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
        self.save_file(filename, safetensors.torch.save(tensors, {"key": text, "facts": json.dumps(facts)}))
        return module, facts


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) in (int, float) for number in value)


def model_fingerprint(model: nn.Module) -> str:
    """A digest of a module: structure, parameters, buffers, plain attributes of all submodules, kind of device.

    It ignores train or eval mode, and cannot see what `forward` takes from elsewhere, a global variable say.
    """
    digest = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}".encode())
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(module.save_to_buffer())  # its code holds constants, once frozen all weights
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
