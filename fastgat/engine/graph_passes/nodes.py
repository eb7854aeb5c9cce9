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
