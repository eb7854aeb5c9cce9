"""What networks must be so that a step can train them: they fit the images, and each tensor has memory of its own."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from fastgat.contract import check_perturbation, checked_logits, network_errors_in_one_line
from fastgat.engine.optimizer import trainable_parameters
from fastgat.errors import ConfigError
from fastgat.functional import buffers_kept, in_eval_mode
from fastgat.methods.base import Method

Named = Iterable[tuple[str, Tensor]]


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

    Raises ConfigError where the networks do not fit the images, or each other, or the number of classes, where one of
    them changes its input, and where the classifier returns probabilities.
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
    if generator is not None:
        check_nothing_shared(classifier, generator)
    images = images[:2]
    players = [module for module in (classifier, generator) if module is not None]
    with in_eval_mode(*players), buffers_kept(*players):
        logits = checked_logits(classifier, images, num_classes)
        feed = (method.generator_feed(images, images) if method is not None else images).clone()
        before = feed.clone()
        with network_errors_in_one_line(images):
            perturbation = generator(feed) if generator is not None else images
        if not torch.equal(feed, before):
            raise ConfigError("the generator changes its input in place: it must work on a copy")
    check_perturbation(perturbation, images)
    return logits.shape[1]


def check_nothing_shared(classifier: nn.Module, generator: nn.Module) -> None:
    """Raises ConfigError for a tensor that both players would train."""
    ours, theirs = _trained(classifier), _trained(generator)
    if shared := ours.keys() & theirs.keys():
        name = min(ours[address] for address in shared)
        raise ConfigError(f"the generator shares {name} with the classifier: each player trains tensors of its own")


def check_memory(*networks: nn.Module) -> None:
    """Raises ConfigError for a parameter that learns and has memory in common with a buffer, or with another.

    A step writes each of them back as a whole, and would undo what the other has become.
    """
    learning = [item for network in networks for item in trainable_parameters(network).items()]
    for name, other in overlaps([item for network in networks for item in network.named_buffers()], learning):
        raise ConfigError(f"the buffer {name} lies in the memory of the parameter {other}: give it a clone")
    for name, other in overlaps(learning, learning):
        raise ConfigError(f"the parameters {name} and {other} lie in the same memory: give them clones, or tie them")


def overlaps(some: Named, others: Named) -> Iterator[tuple[str, str]]:
    """The names of two different tensors that share an entry's memory, one of each kind."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in others:
        by_storage.setdefault(_storage(tensor), []).append((name, tensor))
    for name, tensor in some:
        storage = _storage(tensor)
        for other_name, other in by_storage.get(storage, ()) if storage else ():
            if other is not tensor and bool(torch.isin(_addresses(tensor), _addresses(other)).any()):
                yield name, other_name


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 where it has none yet, or is sparse."""
    return 0 if is_lazy(tensor) or tensor.layout is not torch.strided else tensor.untyped_storage().data_ptr()


def _addresses(tensor: Tensor) -> Tensor:
    """Where a tensor's entries lie in its storage, in bytes."""
    offsets = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + stride * torch.arange(size)
    return offsets.flatten() * tensor.element_size()


def is_expanded(tensor: Tensor) -> bool:
    """Whether several entries share one place in memory; one that has no size yet has none that do."""
    return not is_lazy(tensor) and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _check_parameters(module: nn.Module) -> None:
    """Raises ConfigError for parameters that a step would train in another way than torch, or not at all."""
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(f"{name} has a hook on its gradient, which a step does not call: remove the hook")
        if is_expanded(parameter) and parameter.requires_grad:
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
