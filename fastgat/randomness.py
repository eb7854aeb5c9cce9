"""Random draws: points of a ball; seeding the global generators of python, numpy and torch, and their states."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

STATE_LENGTH = 624  # words of the state of numpy's Mersenne Twister


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`, which `torch.random.fork_rng([device])` puts back.

    `torch.manual_seed` would seed those of every device.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index].manual_seed(seed)


def point_in_ball(source: np.random.Generator, norm: str, epsilon: float, shape: tuple[int, ...]) -> np.ndarray:
    """A point of the L-inf or L2 ball of radius `epsilon` around 0, uniform in it, float64."""
    if norm == "linf":
        return source.uniform(-epsilon, epsilon, shape)
    direction = source.standard_normal(shape)
    radius = source.random() ** (1 / direction.size)
    return epsilon * radius * direction / np.linalg.norm(direction)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device, deterministic: bool) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch, and put them back as they were at the end.

    With `deterministic`, torch refuses algorithms that do not repeat themselves.
    """
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy's global generator is the one that other code uses
        seed_torch(seed, device)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            if deterministic:  # a second's imports, whatever is asked for
                torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
            random.setstate(before[0])
            np.random.set_state(before[1])


def generator_states() -> dict[str, Any]:
    """The states of python's, numpy's and torch's generator on the CPU, as values that JSON holds."""
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


def as_text(state: Tensor) -> str:
    """The state of one of torch's generators in hexadecimal digits."""
    return state.numpy().tobytes().hex()


def from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


RandomState = tuple[dict[str, Tensor], dict[str, Any]]


def random_state(device: torch.device) -> RandomState:
    """The global generators' states: torch's as tensors, python's and numpy's as plain values."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    states = generator_states()
    del states["torch"]
    return tensors, states


@contextlib.contextmanager
def replayed(before: RandomState, device: torch.device) -> Iterator[None]:
    """A context in which the draws that followed the state `before` are repeated; afterwards the state is as it was."""
    now = random_state(device)
    restore_random_state(*before, device)
    try:
        yield
    finally:
        restore_random_state(*now, device)


def restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any], device: torch.device) -> None:
    """Put the global generators back to the states that `random_state` has returned."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    restore_generators(plain)
