"""Convolutions of as many channels as tensor cores take at once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch._prims_common import suggest_memory_format
from torch.fx import Graph, Node

from fastgat.engine.graph_passes.nodes import CONVOLUTION, CONVOLUTION_BACKWARD, call, is_plain, value_of

ALIGNED = 8
"""Channels of 16 bits: the 16 bytes to which a kernel for tensor cores wants each pixel aligned."""
PAD = torch.ops.aten.constant_pad_nd.default


def pad_channels(graph: Graph) -> None:
    """Fill the channels of 16-bit convolutions on a GPU up to a multiple of 8 with zeros, and drop what comes of them.

    For other numbers, as an image's three or a data set's ten classes, cuDNN has only slow kernels, or converts to TF32
    and back. Of the backward pass, too: its zeros are those of weights and images, so all else stays as it is.
    """
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION):
        _pad_forward(graph, node)
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        if all(user.target is operator.getitem for user in node.users):  # nobody takes the gradients as a whole
            _pad_backward(graph, node)


def _pad_forward(graph: Graph, node: Node) -> None:
    images, weight, bias, *how = node.args
    filters, channels = _lacking(images, weight, how)
    if not (filters or channels):
        return
    with graph.inserting_before(node):
        operands = _padded(graph, images, 0, channels), _padded(graph, weight, filters, channels)
        bias = bias if bias is None else _padded(graph, bias, filters)
        _replace(graph, node, call(graph, CONVOLUTION, *operands, bias, *how))


def _pad_backward(graph: Graph, node: Node) -> None:
    seed, images, weight, sizes, *how, mask = node.args
    filters, channels = _lacking(images, weight, how)
    if not (filters or channels):
        return
    if sizes is not None:  # of the bias
        sizes = [size + filters for size in cast(list[int], sizes)]
    with graph.inserting_before(node):
        operands = (
            _padded(graph, seed, 0, filters),
            _padded(graph, images, 0, channels),
            _padded(graph, weight, filters, channels),
        )
        padded = call(graph, CONVOLUTION_BACKWARD, *operands, sizes, *how, mask)
        for reader in list(node.users):
            _replace(graph, reader, call(graph, operator.getitem, padded, reader.args[1]))
    graph.erase_node(node)


def _lacking(images: Any, weight: Any, how: Sequence[Any]) -> tuple[int, int]:
    """How many filters and channels a convolution lacks of full ones."""
    *_, transposed, _, groups = how
    if not is_plain(images, weight, transposed, groups):
        return 0, 0
    filters, channels = value_of(weight).shape[:2]
    return -filters % ALIGNED, -channels % ALIGNED


def _padded(graph: Graph, node: Any, *amounts: int) -> Node:
    """`node` with so many zeros at the end of each of its first dimensions; the same one each time it is asked for."""
    assert isinstance(node, Node)
    if not any(amounts):
        return node
    pairs = [(0, amount) for amount in amounts] + [(0, 0)] * (value_of(node).dim() - len(amounts))
    last_first = [end for pair in reversed(pairs) for end in pair]
    for user in node.users:
        if user.target is PAD and user.args[1] == last_first:
            return user
    place = node.next
    while place.op == "placeholder":
        place = place.next
    with graph.inserting_before(place):
        return call(graph, PAD, node, last_first)


def _replace(graph: Graph, node: Node, padded: Node) -> None:
    """Let those who read `node` read that part of `padded`, as dense as it was."""
    value, part = value_of(node), padded
    for dimension, size in enumerate(value.shape):
        if value_of(part).shape[dimension] > size:
            part = call(graph, torch.ops.aten.slice.Tensor, part, dimension, 0, size)
    if part is not padded:
        # For kernels of our own, which read memory as it lay; Inductor's see through the copy.
        part = call(graph, torch.ops.aten.clone.default, part, memory_format=suggest_memory_format(value))
    node.replace_all_uses_with(part)
    graph.erase_node(node)
