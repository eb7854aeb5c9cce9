"""Calling a module with other tensors in the places of its own, or in eval mode; it is as it was afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fastgat.errors import ConfigError

Modes = list[tuple[nn.Module, bool]]
TensorPaths = Mapping[str, tuple[str, ...]]


def tensor_paths(module: nn.Module) -> TensorPaths:
    """The names of all places of each parameter and buffer, by its name in `named_parameters` or `named_buffers`.

    A tensor that several layers share has a place in each; a layer that stands in a module under several names has its
    places under the first alone. (torch's own tying would name the one slot of such a layer twice, and put the
    replacement back there in the end, not the original.)

    Raises ConfigError where a tensor is a parameter and a buffer at once.
    """
    parameters: dict[Tensor, list[str]] = {}
    buffers: dict[Tensor, list[str]] = {}
    for prefix, layer in module.named_modules():
        for places_of, tensors in ((parameters, layer._parameters), (buffers, layer._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    places_of.setdefault(tensor, []).append(f"{prefix}.{name}" if prefix else name)
    for tensor in parameters.keys() & buffers.keys():
        raise ConfigError(
            f"{parameters[tensor][0]} is a parameter, and the same tensor is the buffer {buffers[tensor][0]}"
        )
    return {names[0]: tuple(names) for names in (*parameters.values(), *buffers.values())}


def call(
    module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], where: TensorPaths | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """`module` of `inputs` with `tensors` in the places of its own; the module's own are put back afterwards.

    Args:
        tensors: parameters and buffers by their names in `named_parameters` and `named_buffers`; where there is none,
            the module's own serves.
        where: the `tensor_paths` of the module, for callers that have them already.

    Returns the output, and `tensors` as the module left them: it may have put another tensor in the place of a buffer.
    Raises ConfigError for a name that is not one of the module's.
    """
    where = tensor_paths(module) if where is None else where
    for name in tensors:
        if name not in where:
            raise ConfigError(f"{type(module).__name__} has no {name}, or did not have it when its training began")
    everywhere = {place: tensor for name, tensor in tensors.items() for place in where[name]}
    output = functional_call(module, everywhere, inputs, tie_weights=False)
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()  # of an autocast of the module's own: see mixed_precision
    return output, {name: everywhere[name] for name in tensors}


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context of mixed precision in `dtype`, or in none (None), whatever autocast is around.

    It keeps no casts of weights: torch forgets them at the end of the outermost context, when they may have changed.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


@contextmanager
def parametrizations_uncached() -> Iterator[None]:
    """A context in which each pass computes parametrized weights from its own parameters, as weight norm's.

    Inside `torch.nn.utils.parametrize.cached` every pass would take the weights of the first.
    """
    before, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = before


@contextmanager
def in_eval_mode(*networks: nn.Module | None) -> Iterator[None]:
    """A context in which every module is in eval mode; afterwards each is in its mode of before."""
    with modes_kept(*networks):
        for network in networks:
            if network is not None:
                with suppress(NotImplementedError):  # of a program that torch.export made: it has no other mode
                    network.eval()
        yield


def has_lazy_layers(module: nn.Module) -> bool:
    """Whether layers of the module take their sizes from its first batch, which it has not seen yet."""
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def size_lazy_layers(module: nn.Module, channels: int, image_size: Sequence[int]) -> None:
    """Give layers that take their sizes from the first batch those of images (B, C, H, W)."""
    if has_lazy_layers(module):
        with torch.no_grad(), in_eval_mode(module):
            module(torch.zeros(1, channels, *image_size))


@contextmanager
def buffers_kept(*networks: nn.Module) -> Iterator[None]:
    """A context after which every dense buffer is the one of before, with its values, whatever a forward pass does."""
    before = [
        (module, name, buffer, buffer.clone())
        for network in networks
        for module in network.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer) and buffer.layout is torch.strided
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                module._buffers[name] = buffer
                if not buffer.is_meta and not same_bits(
                    buffer, values
                ):  # a write would spoil backward passes that are to come
                    buffer.copy_(values)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors of one shape and dtype are equal, where NaN equals itself."""
    bits = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


@contextmanager
def modes_kept(*networks: nn.Module | None) -> Iterator[None]:
    """A context after which every module is in its mode of before."""
    before = modes(*networks)
    try:
        yield
    finally:
        set_modes(before)


def modes(*networks: nn.Module | None) -> Modes:
    """The modules of some networks, and whether each is in train mode; frozen TorchScript has no mode."""
    modules = [module for network in networks if network is not None for module in network.modules()]
    return [(module, module.training) for module in modules if hasattr(module, "training")]


def set_modes(modes: Modes) -> None:
    """Put modules back into the modes that `modes` has returned."""
    for module, mode in modes:
        module.training = mode
