"""The global random generators of python and numpy, and torch's on the CPU, as plain values that JSON holds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

STATE_LENGTH = 624
"""Words of the state of numpy's Mersenne Twister."""


def generator_states() -> dict[str, Any]:
    """The states of the three generators."""
    numbers = np.random.get_state(legacy=False)
    numbers["state"]["key"] = numbers["state"]["key"].tolist()
    return {"python": random.getstate(), "numpy": numbers, "torch": as_text(torch.get_rng_state())}


def restore_generators(states: dict[str, Any]) -> None:
    """Put the generators whose states are given back to them.

    Raises LookupError, TypeError, ValueError, RuntimeError or OverflowError for states that cannot be.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if not 0 <= states["numpy"]["state"]["pos"] <= STATE_LENGTH:  # where numpy would read other memory
        raise ValueError("numpy's generator cannot be in such a state")
    np.random.set_state(states["numpy"])
    if "torch" in states:
        torch.set_rng_state(from_text(states["torch"]))


def as_text(state: torch.Tensor) -> str:
    """The state of one of torch's generators in hexadecimal digits."""
    return state.numpy().tobytes().hex()


def from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
