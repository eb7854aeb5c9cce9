"""Networks tried before anything is written: do samples interact in the classifier, and can a step be computed?"""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.contract import network_errors_in_one_line
from fastgat.engine.checks import overlaps
from fastgat.engine.random import step_draws
from fastgat.engine.state import TrainState, has_batch_norm, unchanged
from fastgat.errors import CompileError, ConfigError
from fastgat.functional import buffers_kept, call
from fastgat.methods.base import Method
from fastgat.methods.double_backward import autograd_nodes, twice_differentiable
from fastgat.methods.players import Network, Players
from fastgat.randomness import seed_torch


@torch.no_grad()
def samples_interact(classifier: nn.Module, images: Tensor) -> bool:
    """Whether the output for one image depends on the other images of its batch, as in train-mode batch norm.

    Where no layer of batch norm says so already, all images but one are exchanged, and its output is compared; once
    more with noise on the parameters, since a head of zeros, say, would hide it. Nothing of the classifier changes.

    Args:
        images: (B, C, H, W) in [0, 1], B at least 1: a batch of training's size, as parts of a batch may have
            statistics of their own.
    """
    if has_batch_norm(classifier):
        return True
    images = torch.cat([images, images]) if len(images) == 1 else images
    kept = len(images) // 2
    others = (images < 0.5).to(images.dtype)  # as far from each as an image can be, also where it is grey
    others[kept] = images[kept]
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        for noisy in (False, True):
            outputs = []
            for batch in (images, others):
                seed_torch(int(noisy), images.device)  # the same noise, and the same dropout masks, for both batches
                parameters = {name: _noisy(p) if noisy else p.clone() for name, p in classifier.named_parameters()}
                buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
                with network_errors_in_one_line(images, "train on"):
                    outputs.append(call(classifier, parameters | buffers, (batch.clone(),))[0])
            if not isinstance(outputs[0], Tensor):
                return False  # a tuple in train mode: `try_step` says so
            with_its_own, with_others = (output.to(torch.float64) for output in outputs)
            spread = (with_its_own - with_its_own.mean(0)).abs().amax()
            tolerance = float((1e-4 * spread + 1e-6 * with_its_own.abs().amax()).nan_to_num())
            if not torch.allclose(with_its_own[kept], with_others[kept], rtol=0, atol=tolerance, equal_nan=noisy):
                return True
    return False


def _noisy(parameter: Tensor) -> Tensor:
    """A parameter with noise as large as its entries differ, and no less than a fresh layer's weights."""
    if not parameter.is_floating_point():
        return parameter.clone()
    fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1
    least = parameter.new_tensor(0.1 / math.sqrt(fan_in))
    spread = parameter.std() if parameter.numel() > 1 else least
    return parameter + torch.randn_like(parameter) * torch.maximum(spread, least)


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
            after, _ = method.step(players, batches, draws, no_update)
        changes = _changes_buffers(players.classifier, after.classifier)
        if players.generator is not None and after.generator is not None:
            _changes_buffers(players.generator, after.generator)
    if batch.images.is_cuda:
        torch.cuda.empty_cache()
    return changes


@torch.enable_grad()
def check_second_derivatives_compile(classifier: nn.Module, images: Tensor) -> None:
    """Raises CompileError where a forward pass of the classifier contains a torch.autograd.Function.

    torch.compile leaves its second derivative out, without a word. It changes torch's random state.
    """
    with twice_differentiable(), buffers_kept(classifier):
        logits = classifier(images.clone())
    for node in autograd_nodes(logits):
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and not function.__module__.startswith("fastgat."):
            raise CompileError(
                f"the step cannot be compiled: {function.__name__} is a torch.autograd.Function, whose second "
                "derivative torch.compile leaves out and this method needs; gat with delta fixed does not"
            )


def _changes_buffers(before: Network, after: Network) -> bool:
    """Whether a step changes a buffer; raises ConfigError where that one shares memory with another."""
    changed = [name for name, buffer in after.buffers.items() if not torch.equal(buffer, before.buffers[name])]
    own = dict(before.module.named_buffers())
    for name, other in overlaps([(name, own[name]) for name in changed], own.items()):
        raise ConfigError(f"the buffers {name} and {other} lie in the same memory: give them clones")
    return bool(changed)


def no_update(players: Players, **gradients: Any) -> Players:
    """The update that applies no gradients (`fastgat.methods.players.Update`)."""
    return players
