"""The pass that gives the 3 x 3 convolutions of a compiled step on a CPU to the kernel by Winograd's algorithm."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fastgat.engine.device import multiplies_matrices
from fastgat.engine.graph import CONVOLUTION, CONVOLUTION_BACKWARD, add_node, fake_tensor
from fastgat.kernels import winograd
from fastgat.kernels.images import is_channels_last

TILES = 48  # the least number of tiles for each thread: two blocks of the kernel's
CHANNELS = 48  # the least number of channels and of filters in bfloat16
SCRATCH = 2**26  # floats of scratch memory, at most, that gradients by weights may need


@torch.library.custom_op("fastgat::winograd", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """`winograd.convolution` as one operation of a graph; so are the next two."""
    return winograd.convolution(x, weight, bias, padding)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    return winograd.convolution_reference(x, weight, bias, padding).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("fastgat::winograd_input_gradient", mutates_args=())
def input_gradient(grad_output: Tensor, weight: Tensor, padding: int) -> Tensor:
    return winograd.input_gradient(grad_output, weight, padding)


@input_gradient.register_fake
def _(grad_output: Tensor, weight: Tensor, padding: int) -> Tensor:
    gradient = winograd.input_gradient_reference(grad_output, weight, padding)
    return gradient.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("fastgat::winograd_parameter_gradients", mutates_args=())
def parameter_gradients(grad_output: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    return winograd.parameter_gradients(grad_output, x, weight, padding)


@parameter_gradients.register_fake
def _(grad_output: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(len(weight))


def use_winograd(graph: Graph) -> None:
    """Replace the convolutions that the kernel computes faster than oneDNN, and their backward passes."""
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION):
        x, weight, bias, *window = node.args
        if _pays(x, weight, window):
            with graph.inserting_before(node):
                new = add_node(graph, convolution._opoverload, x, weight, bias, _padding(window))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        _, x, weight, _, *window, _ = node.args
        if _pays(x, weight, window) and all(user.target is operator.getitem for user in node.users):
            _replace_backward(graph, node)


def _replace_backward(graph: Graph, node: Node) -> None:
    grad_output, x, weight, _, *window, _ = node.args
    readers = {cast(int, reader.args[1]): reader for reader in node.users}
    with graph.inserting_before(node):
        if 0 in readers:
            new = add_node(graph, input_gradient._opoverload, grad_output, weight, _padding(window))
            readers[0].replace_all_uses_with(new)
        if 1 in readers and winograd.gradients_scratch(fake_tensor(weight)) <= SCRATCH:  # and the bias's with it
            both = add_node(graph, parameter_gradients._opoverload, grad_output, x, weight, _padding(window))
            for i in readers.keys() & {1, 2}:
                readers[i].replace_all_uses_with(add_node(graph, operator.getitem, both, i - 1))
    left = {i for i, reader in readers.items() if reader.users}
    for i in readers.keys() - left:
        graph.erase_node(readers[i])
    if left:
        node.args = (*node.args[:-1], [i in left for i in range(3)])
    else:
        graph.erase_node(node)


def _padding(window: Any) -> int:
    """That of a convolution whose sides have the same."""
    return cast(int, window[1][0])


def _pays(x: Any, weight: Any, window: Any) -> bool:
    """Whether the kernel takes a convolution, and is faster.

    oneDNN's is faster where transforming the weights takes most of the time, since there are many channels and few
    tiles of 4 x 4 pixels, where there are too few tiles for all threads, and where images must change their layout.
    In bfloat16 it is also faster with few channels, since it multiplies two numbers where the kernel multiplies one,
    and with AMX, where it multiplies sixteen.
    """
    stride, padding, dilation, transposed, _, groups = window
    images, filters = fake_tensor(x), fake_tensor(weight)
    if transposed or groups != 1 or {*stride, *dilation} != {1} or len({*padding}) != 1 or not is_channels_last(images):
        return False
    channels = filters.shape[:2]
    if images.dtype == torch.bfloat16:
        if multiplies_matrices() or min(channels) < CHANNELS:
            return False
        enough = 8.0 * max(channels)
    else:
        enough = max(channels) / 2
    down, across = (-(-(size + 2 * padding[0] - 2) // 4) for size in images.shape[2:])
    tiles = len(images) * down * across
    return tiles >= max(enough, TILES * torch.get_num_threads()) and winograd.takes(images, filters, padding[0])
