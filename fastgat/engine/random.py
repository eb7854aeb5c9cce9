"""Randomness: seeds, the draws of a step, and the state of every generator for a checkpoint."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastgat.batch import Batch
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.methods.base import Method
from fastgat.methods.players import Draws
from fastgat.randomness import generator_states, restore_generators

DRAWS = 2
"""Keeps the draws' seeds apart from those of the loaders' permutations (players 0 and 1)."""


def step_draws(
    method: Method, classifier: nn.Module, minibatches: Sequence[Batch], seed: int, step: int, ranks: Ranks = ALONE
) -> list[Draws]:
    """The random draws of a step, one for each of its minibatches: this rank's part of those for the whole ones."""
    source = seed_step(seed, step, minibatches[0].images.device, ranks.rank)
    if ranks.alone:
        return [method.draw(classifier, images, source) for images, _ in minibatches]
    part = ranks.part(ranks.count * len(minibatches[0].images))
    drawn = [method.draw(classifier, _whole(images, ranks.count), source) for images, _ in minibatches]
    return tree_map_only(Tensor, lambda tensor: tensor[part], drawn)


def _whole(images: Tensor, count: int) -> Tensor:
    """An empty tensor like `count` such batches together, which nobody has written to: a pattern for draws."""
    last = images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)  # dimensions
    layout = torch.channels_last if last and not images.is_contiguous() else torch.contiguous_format
    shape = (count * len(images), *images.shape[1:])
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`, which `torch.random.fork_rng([device])` puts back.

    `torch.manual_seed` would seed those of every device.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index].manual_seed(seed)


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> torch.Generator:
    """Make all of a step's randomness a pure function of the seed and the step.

    Seeds torch's global generators, for modules that draw by themselves (nn.Dropout), whatever loaders or callbacks
    have drawn in between; ranks draw different numbers from those. Returns the source of the draws that are inputs of
    the step, which is the same for all ranks.
    """
    source, _ = np.random.SeedSequence((seed, DRAWS, step)).generate_state(2, np.uint64) >> np.uint64(1)
    of_rank = (seed, DRAWS, step, rank) if rank else (seed, DRAWS, step)
    _, rest = np.random.SeedSequence(of_rank).generate_state(2, np.uint64) >> np.uint64(1)
    seed_torch(int(rest), device)
    return torch.Generator(device).manual_seed(int(source))


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
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
            random.setstate(before[0])
            np.random.set_state(before[1])


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators' states: torch's as tensors, python's and numpy's as plain values."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    states = generator_states()
    return tensors, {"python": states["python"], "numpy": states["numpy"]}


def restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    restore_generators(plain)
