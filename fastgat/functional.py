"""Calling a module with other tensors in the places of its own, whatever its layers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Names = Mapping[str, tuple[str, ...]]


def places(module: nn.Module) -> Names:
    """Of each parameter and buffer, by its name in `named_parameters` or `named_buffers`, the names of all its places.

    A tensor that several layers share has a place in each; a layer that stands in a module under several names has its
    places under the first alone. (`functional_call` ties weights by every name: it puts two tensors into one place,
    and leaves the first of them there for good.)
    """
    found: dict[Tensor, list[str]] = {}
    for prefix, layer in module.named_modules():
        parameters = layer.named_parameters(prefix, recurse=False, remove_duplicate=False)
        buffers = layer.named_buffers(prefix, recurse=False, remove_duplicate=False)
        for name, tensor in (*parameters, *buffers):
            found.setdefault(tensor, []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def call(
    module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], names: Names | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """`module` of `inputs` with `tensors` in the places of its own, which come back unharmed.

    Args:
        tensors: parameters and buffers by their names in `named_parameters` and `named_buffers`; the module's own serve
            where there are none, and other names are passed over.
        names: the `places` of the module, for who has them already.

    Returns the output, and the tensors that are there afterwards: a module may put new ones in the place of buffers.
    """
    names = places(module) if names is None else names
    everywhere = {place: tensors[name] for name, own in names.items() if name in tensors for place in own}
    output = functional_call(module, everywhere, inputs, tie_weights=False)
    return output, {name: everywhere[name] for name in tensors if name in names}
