"""What the passes share: operators, and nodes that know the shape, dtype and layout of their values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

CONVOLUTION = torch.ops.aten.convolution.default
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


def value_of(node: Any) -> Tensor:
    """The tensor, without its data, that a node stands for."""
    assert isinstance(node, Node)
    value: Tensor = node.meta["val"]
    return value


def call(graph: Graph, target: Any, *arguments: Any, **options: Any) -> Node:
    """A new node at the place where `graph` inserts."""
    node = graph.call_function(target, arguments, options)
    node.meta["val"] = target(*map_arg(arguments, lambda argument: argument.meta["val"]), **options)
    return node


def is_plain(images: Any, weight: Any, transposed: Any, groups: Any) -> bool:
    """Whether a convolution on a GPU is one of images in 16 bits, channels last, and neither grouped nor transposed."""
    value = value_of(weight)
    if transposed or groups != 1 or value.dim() != 4 or not value.is_cuda or value.itemsize != 2:
        return False
    return value_of(images).is_contiguous(memory_format=torch.channels_last)
