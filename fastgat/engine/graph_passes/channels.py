"""Convolutions of as many channels as tensor cores take at once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch._prims_common import suggest_memory_format
from torch.fx import Graph, Node

from fastgat.engine.graph_passes.nodes import CONVOLUTION, CONVOLUTION_BACKWARD, call, value_of

ALIGNED = 8
"""Channels of 16 bits: the 16 bytes to which a kernel for tensor cores wants each pixel aligned."""
PAD = torch.ops.aten.constant_pad_nd.default


def pad_channels(graph: Graph) -> None:
    """Fill the channels of 16-bit convolutions on a GPU up to a multiple of 8 with zeros, and drop what comes of them.

    For other numbers, as an image's three or a data set's ten classes, cuDNN has only slow kernels, or converts to TF32
    and back. The same in the backward pass. Zeros meet zeros, of images in weights, so all else stays as it is. Images
    must lie channels last, and convolutions be neither grouped nor transposed.
    """
    if torch.version.hip is not None:
        return
    padding = _Padding(graph)
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION):
        padding.forward(node)
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        if node.users and all(user.target is operator.getitem for user in node.users):  # none takes them as a whole
            padding.backward(node)


class _Padding:
    """Of the convolutions of one graph, which share what is filled up."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.padded: dict[tuple[Node, tuple[int, ...]], Node] = {}

    def forward(self, node: Node) -> None:
        images, weight, bias, *how = node.args
        filters, channels = _lacking(images, weight, how)
        if not (filters or channels):
            return
        with self.graph.inserting_before(node):
            operands = self._pad(images, 0, channels), self._pad(weight, filters, channels)
            bias = bias if bias is None else self._pad(bias, filters)
            self._replace(node, call(self.graph, CONVOLUTION, *operands, bias, *how))

    def backward(self, node: Node) -> None:
        seed, images, weight, sizes, *how, mask = node.args
        filters, channels = _lacking(images, weight, how)
        if not (filters or channels):
            return
        if sizes is not None:  # of the bias
            sizes = [size + filters for size in cast(list[int], sizes)]
        with self.graph.inserting_before(node):
            operands = (
                self._pad(seed, 0, filters),
                self._pad(images, 0, channels),
                self._pad(weight, filters, channels),
            )
            gradients = call(self.graph, CONVOLUTION_BACKWARD, *operands, sizes, *how, mask)
            for reader in list(node.users):
                self._replace(reader, call(self.graph, operator.getitem, gradients, reader.args[1]))
        self.graph.erase_node(node)

    def _pad(self, node: Any, *amounts: int) -> Node:
        """`node` with so many zeros at the end of each of its first dimensions."""
        assert isinstance(node, Node)
        if not any(amounts):
            return node
        if (node, amounts) not in self.padded:
            pairs = [(0, amount) for amount in amounts] + [(0, 0)] * (value_of(node).dim() - len(amounts))
            place = node.next  # before all that read it
            while place.op == "placeholder":
                place = place.next
            with self.graph.inserting_before(place):
                last_first = [end for pair in reversed(pairs) for end in pair]
                self.padded[node, amounts] = call(self.graph, PAD, node, last_first)
        return self.padded[node, amounts]

    def _replace(self, node: Node, padded: Node) -> None:
        """Let those who read `node` read that part of `padded`, as dense as it was."""
        value, part = value_of(node), padded
        for dimension, size in enumerate(value.shape):
            if value_of(part).shape[dimension] > size:
                part = call(self.graph, torch.ops.aten.slice.Tensor, part, dimension, 0, size)
        if part is not padded:
            # For kernels of our own, which read memory as it lay; Inductor's see through the copy.
            part = call(self.graph, torch.ops.aten.clone.default, part, memory_format=suggest_memory_format(value))
        node.replace_all_uses_with(part)
        self.graph.erase_node(node)


def _lacking(images: Any, weight: Any, how: Sequence[Any]) -> tuple[int, int]:
    """How many filters and channels a convolution lacks of full ones; none where it is of another kind."""
    *_, transposed, _, groups = how
    value, given = value_of(weight), value_of(images)
    if transposed or groups != 1 or value.dim() != 4 or not value.is_cuda or value.itemsize != 2:
        return 0, 0
    if given.is_contiguous() or not given.is_contiguous(memory_format=torch.channels_last):
        return 0, 0
    filters, channels = value.shape[:2]
    return -filters % ALIGNED, -channels % ALIGNED
