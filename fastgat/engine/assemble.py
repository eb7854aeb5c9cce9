"""A trainable state: networks that fit the images, tried once in the mode and at the shape of training."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from fastgat.batch import Batch
from fastgat.config import OptimizerConfig, PrecisionConfig
from fastgat.contract import check_labels, checked_logits, network_errors_in_one_line, shape_of
from fastgat.engine.device import autocast_dtype
from fastgat.engine.optimizer import trainable_parameters
from fastgat.engine.random import step_draws
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.engine.state import TrainState, has_batch_norm, unchanged
from fastgat.errors import ConfigError
from fastgat.functional import buffers_kept, call, in_eval_mode
from fastgat.methods.base import Method
from fastgat.methods.players import Network, Players
from fastgat.randomness import seed_torch

Named = Iterable[tuple[str, Tensor]]


def assemble(
    method: Method,
    classifier: nn.Module,
    generator: nn.Module | None,
    batch: Batch,
    *,
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    statistics: str = "both",
    num_classes: int | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """The state that trains these networks by `method`, on each of the ranks alike, with rank 0's weights.

    Args:
        classifier, generator: on the device of `batch`; they stay the same objects.
        batch: one of those to come.
        statistics: which forward passes change the classifier's buffers: "clean", "perturbed" or "both".
        num_classes: of the data, where it is known.

    Raises ConfigError, naming the cause, where the networks do not fit the images, or cannot be trained on them, and
    RankError where ranks have different networks.
    """
    players = [module for module in (classifier, generator) if module is not None]

    def probe() -> tuple[int, bool]:
        _check_memory(*players)
        for module in players:
            restore_train_mode(module)
            _unfold_buffers(module)
            if precision.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        classes = check_networks(classifier, generator, batch.images, method, num_classes)
        check_labels(batch.labels, classes)
        return classes, samples_interact(classifier, batch.images)

    def build() -> TrainState:
        state = TrainState(
            classifier,
            generator,
            optimizer,
            method.metrics,
            autocast_dtype(precision.amp_dtype, batch.images.device) if precision.amp else None,
            interacts=interacts,
            statistics=statistics,
            memory=torch.zeros_like(batch.images) if method.remembers else None,
            ranks=ranks,
        )
        state.num_classes = classes
        state.has_statistics = try_step(state, method, batch)
        return state

    classes, here = ranks.agree(probe)
    interacts = any(ranks.gather(here))
    state = ranks.agree(build)
    ranks.check_same({"number format": str(state.autocast), "their networks": state.structure()})
    ranks.broadcast([*state.parameters(), *state.buffers()])
    return state


def restore_train_mode(network: nn.Module) -> None:
    """Put a network into train mode of which every layer with parameters is in eval mode, as pretrained ones come.

    Where some of these layers are in train mode, the others were frozen on purpose: all modes stay.
    """
    if not any(module.training for module in network.modules() if module._parameters):
        network.train()


@torch.no_grad()
def check_networks(
    classifier: nn.Module,
    generator: nn.Module | None,
    images: Tensor | None,
    method: Method | None = None,
    num_classes: int | None = None,
) -> int:
    """The number of classes that the classifier tells apart, learnt from two images in eval mode.

    `method` says what the generator is given; by default something like the images. `images` are those of a batch;
    None is an empty loader.

    Raises ConfigError where the networks do not fit the images, or each other, or the number of classes, where the
    classifier changes its input, and where it returns probabilities.
    """
    if images is None:
        raise ConfigError("a loader is empty: it must yield at least one batch")
    for module in (classifier, generator):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ConfigError(f"give the network inside {type(module).__name__} (its .module): torchrun starts ranks")
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError("a ScriptModule cannot be trained here: give the nn.Module that it was made from")
        if module is not None:
            _check_parameters(module)
    ours, theirs = (_trained(module) if module is not None else {} for module in (classifier, generator))
    if shared := ours.keys() & theirs.keys():
        name = min(ours[address] for address in shared)
        raise ConfigError(f"the generator shares {name} with the classifier: each player trains tensors of its own")
    images = images[:2]
    players = [module for module in (classifier, generator) if module is not None]
    with in_eval_mode(*players), buffers_kept(*players):
        logits = checked_logits(classifier, images, num_classes)
        with network_errors_in_one_line(images):
            feed = method.generator_feed(images, images) if method is not None else images
            perturbation = generator(feed) if generator is not None else images
    if not isinstance(perturbation, Tensor) or perturbation.shape != images.shape:
        shapes = f"{shape_of(perturbation)} for {shape_of(images)}"
        raise ConfigError(f"the generator must return perturbations of the images' shape, got {shapes}")
    return logits.shape[1]


def _unfold_buffers(network: nn.Module) -> None:
    """Make buffers that `expand` has made contiguous, since a step writes them in place."""
    unfolded: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_expanded(buffer):
                module._buffers[name] = unfolded.setdefault(buffer, buffer.clone(memory_format=torch.contiguous_format))


def _check_memory(*networks: nn.Module) -> None:
    """Raises ConfigError for a buffer in the memory of a parameter that learns: a step would undo what it learns."""
    learning = [item for network in networks for item in trainable_parameters(network).items()]
    for name, other in _overlaps([item for network in networks for item in network.named_buffers()], learning):
        raise ConfigError(f"the buffer {name} lies in the memory of the parameter {other}: give it a clone")


def _overlaps(some: Named, others: Named) -> Iterator[tuple[str, str]]:
    """The names of two different tensors that share an entry's memory, one of each kind."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in others:
        by_storage.setdefault(_storage(tensor), []).append((name, tensor))
    for name, tensor in some:
        storage = _storage(tensor)
        for other_name, other in by_storage.get(storage, ()) if storage else ():
            if other is not tensor and bool(torch.isin(_places(tensor), _places(other)).any()):
                yield name, other_name


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 where it has none yet, or is sparse."""
    return 0 if is_lazy(tensor) or tensor.layout is not torch.strided else tensor.untyped_storage().data_ptr()


def _places(tensor: Tensor) -> Tensor:
    """Where a tensor's entries lie in its storage, in bytes."""
    places = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + stride * torch.arange(size)
    return places.flatten() * tensor.element_size()


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several entries share one place in memory; one that has no size yet has none that do."""
    return not is_lazy(tensor) and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _check_parameters(module: nn.Module) -> None:
    """Raises ConfigError for parameters that a step would train in another way than torch, or not at all."""
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(f"{name} has a hook on its gradient, which a step does not call: remove the hook")
        if _is_expanded(parameter) and parameter.requires_grad:
            raise ConfigError(f"{name} is expanded, so that entries of it are one number: train its clone")
        if parameter.is_complex() and parameter.requires_grad:
            raise ConfigError(
                f"{name} is complex, which the optimisers here do not train: freeze it, or hold it as reals"
            )


def _trained(module: nn.Module) -> dict[int, str]:
    """What training changes in a module, by identity: trainable parameters, and statistics of batch norm."""
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, _NormBase) and layer.training}
    statistics = {f"{name}.{own}": buffer for name, layer in norms.items() for own, buffer in layer.named_buffers()}
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {id(tensor): name for name, tensor in (parameters | statistics).items()}


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
    for name, other in _overlaps([(name, own[name]) for name in changed], own.items()):
        raise ConfigError(f"the buffers {name} and {other} lie in the same memory: give them clones")
    return bool(changed)


def forget(players: Players, **gradients: Any) -> Players:
    """The update that applies no gradients (`fastgat.methods.players.Update`)."""
    return players
