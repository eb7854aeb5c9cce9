"""Results kept on disk: an evaluation that was killed goes on where it was."""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from fastgat.engine.checkpoint import parse_safetensors
from fastgat.files import read_file
from fastgat.store import Key, Store, key_digest, key_text

FORMAT = 8  # part of every key: bump it to invalidate stored results, when what is stored or how it is computed changes


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
                tensors, metadata = parse_safetensors(read_file(self.folder / filename))
                if metadata["key"] == text:
                    module = build()
                    module.load_state_dict(tensors)
                    return module.eval(), json.loads(metadata["facts"])
        module, facts = compute()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
        self.save_file(filename, safetensors.torch.save(tensors, {"key": text, "facts": json.dumps(facts)}))
        return module, facts


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) in (int, float) for number in value)
