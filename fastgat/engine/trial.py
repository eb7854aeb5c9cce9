"""Networks tried before anything is written: do samples interact in the classifier, and can a step be computed?"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.contract import network_errors_in_one_line
from fastgat.engine.checks import overlaps
from fastgat.engine.random import step_draws
from fastgat.engine.state import TrainState, has_batch_norm, unchanged
from fastgat.errors import ConfigError
from fastgat.functional import call
from fastgat.methods.base import Method
from fastgat.methods.players import Network, Players
from fastgat.randomness import seed_torch


@torch.no_grad()
def samples_interact(classifier: nn.Module, images: Tensor) -> bool:
    """Whether the output for one image depends on the other images of its batch, as in train-mode batch norm.

    Where no layer of batch norm says so already, the second of two images is exchanged; once more with noise on the
    parameters, since a head of zeros, say, would hide it. Nothing of the classifier changes.

    Args:
        images: (B, C, H, W) in [0, 1], B at least 1.
    """
    if has_batch_norm(classifier):
        return True
    first = images[:1]
    other = (first < 0.5).to(first.dtype)  # as far from the first as an image can be, also where that is grey
    pairs = torch.cat([first, first]), torch.cat([first, other])
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        for noisy in (False, True):
            outputs = []
            for pair in pairs:
                seed_torch(0, images.device)  # the same noise, and the same dropout masks, for both pairs
                parameters = {name: _noisy(p) if noisy else p.clone() for name, p in classifier.named_parameters()}
                buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
                with network_errors_in_one_line(images, "train on"):
                    outputs.append(call(classifier, parameters | buffers, (pair,))[0])
            alone, beside = outputs
            if not isinstance(alone, Tensor):
                return False  # a tuple in train mode: `try_step` says so
            if not torch.allclose(alone[0], beside[0], rtol=1e-4, atol=1e-6, equal_nan=noisy):
                return True
    return False


def _noisy(parameter: Tensor) -> Tensor:
    """A parameter with noise as large as its entries differ, or of 0.1."""
    if not parameter.is_floating_point():
        return parameter.clone()
    spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
    return parameter + torch.randn_like(parameter) * torch.where(spread > 0, spread, 0.1)


@torch.no_grad()
def try_step(state: TrainState, method: Method, batch: Batch) -> bool:
    """Compute one step's gradients, uncompiled, and forget them. Whether its forward passes change a buffer of F.

    Raises ConfigError where the networks fail in it.
    """
    players = state.players()
    if not state.ranks.alone:  # a single value is enough for batch norm over all ranks, which is not at work here
        batch = Batch(*(torch.cat([tensor, tensor]) for tensor in batch))
        if players.memory is not None:
            players = players._replace(memory=torch.cat([players.memory, players.memory]))
    batches = [batch] * method.minibatches()
    changes = True
    with unchanged(state), suppress(torch.OutOfMemoryError):  # the compiled step may need less memory
        draws = step_draws(method, state.classifier, batches, 0, 0)
        with network_errors_in_one_line(batch.images, "train on"):
            after, _ = method.step(players, batches, draws, forget)
        changes = _changes_buffers(players.classifier, after.classifier)
        if players.generator is not None and after.generator is not None:
            _changes_buffers(players.generator, after.generator)
    if batch.images.is_cuda:
        torch.cuda.empty_cache()
    return changes


def _changes_buffers(before: Network, after: Network) -> bool:
    """Whether a step changes a buffer; raises ConfigError where that one shares memory with another."""
    changed = [name for name, buffer in after.buffers.items() if not torch.equal(buffer, before.buffers[name])]
    own = dict(before.module.named_buffers())
    for name, other in overlaps([(name, own[name]) for name in changed], own.items()):
        raise ConfigError(f"the buffers {name} and {other} lie in the same memory: give them clones")
    return bool(changed)


def forget(players: Players, **gradients: Any) -> Players:
    """The update that applies no gradients (`fastgat.methods.players.Update`)."""
    return players
