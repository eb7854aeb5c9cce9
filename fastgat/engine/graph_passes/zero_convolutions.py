"""Convolutions by a weight of zeros are not computed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from fastgat.engine.graph_passes.nodes import CONVOLUTION, CONVOLUTION_BACKWARD

ADD = torch.ops.aten.add.Tensor
EXPAND = torch.ops.aten.expand.default
FULL = torch.ops.aten.full.default
ZEROS = torch.ops.aten.zeros.default


def drop_zero_convolutions(graph: Graph) -> None:
    """Leave out what a convolution by zeros adds, and what its backward pass adds to the gradient of its input.

    The forward-mode derivative of a convolution is the sum of one of its input's tangent and one by its weight's
    tangent. Where a step takes a slope along an image, weights have none, and torch computes the second with zeros:
    a third of the forward and a fifth of the backward pass of that slope.
    """
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION):
        _, weight, bias, *_ = node.args
        if _is_zero(weight) and (bias is None or _is_zero(bias)):
            _add_nothing(node)
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        if _is_zero(node.args[2]):
            for reader in list(node.users):
                if reader.target is operator.getitem and reader.args[1] == 0:
                    _add_nothing(reader)
    graph.eliminate_dead_code()


def _is_zero(node: Any) -> bool:
    """Whether a node is a constant tensor of zeros, spread out over a shape or not."""
    if isinstance(node, Node) and node.target is EXPAND:
        node = node.args[0]
    return isinstance(node, Node) and (node.target is ZEROS or (node.target is FULL and node.args[1] == 0))


def _add_nothing(node: Node) -> None:
    """Replace each sum that `node` is a term of by the other term."""
    for user in list(node.users):
        if user.target is ADD and not user.kwargs:
            (other,) = [term for term in user.args if term is not node] or [None]
            if isinstance(other, Node) and other.meta["val"].shape == user.meta["val"].shape:
                user.replace_all_uses_with(other)
                user.graph.erase_node(user)
