"""The random draws of a step, a pure function of the seed and the step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastgat.batch import Batch
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.kernels.images import is_channels_last
from fastgat.methods.base import Method
from fastgat.methods.players import Draws
from fastgat.randomness import seed_torch

DRAWS = 2  # keeps the draws' seeds apart from those of the loaders' permutations (players 0 and 1)


def step_draws(
    method: Method, classifier: nn.Module, minibatches: Sequence[Batch], seed: int, step: int, ranks: Ranks = ALONE
) -> list[Draws]:
    """This rank's part of the random draws of a step, one for each of its minibatches."""
    source = seed_step(seed, step, minibatches[0].images.device, ranks.rank)
    if ranks.alone:
        return [method.draw(classifier, images, source) for images, _ in minibatches]
    part = ranks.part(ranks.count * len(minibatches[0].images))
    drawn = [method.draw(classifier, _whole(images, ranks.count), source) for images, _ in minibatches]
    return tree_map_only(Tensor, lambda tensor: tensor[part], drawn)


def _whole(images: Tensor, count: int) -> Tensor:
    """An empty tensor in the shape and layout of `count` such batches together: a pattern for draws."""
    layout = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    shape = (count * len(images), *images.shape[1:])
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout)


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
