"""A convolution, its bias and its ReLU as one operator, which cuDNN has in one kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fastgat.engine.graph_passes.nodes import CONVOLUTION, call, is_plain, value_of

NAME = "fastgat::convolution_relu"
CUDNN_CONVOLUTION_RELU = torch.ops.aten.cudnn_convolution_relu.default


def convolution_relu(
    images: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """relu(convolution(images, weight) + bias): (B, C, H, W), (F, C, h, w) and (F,) of one dtype -> (B, F, H', W')."""
    if images.is_cuda:
        return CUDNN_CONVOLUTION_RELU(images, weight, bias, stride, padding, dilation, 1)
    return _convolution(images, weight, bias, stride, padding, dilation).relu()


def _convolution(
    images: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    result: Tensor = CONVOLUTION(images, weight, bias, stride, padding, dilation, False, [0, 0], 1)
    return result


if not hasattr(torch.ops.fastgat, "convolution_relu"):  # already defined where this module is reloaded
    torch.library.define(
        NAME, "(Tensor images, Tensor weight, Tensor bias, int[] stride, int[] padding, int[] dilation) -> Tensor"
    )
    torch.library.impl(NAME, ("CPU", "CUDA"), convolution_relu)
    torch.library.register_fake(NAME, _convolution)

CONVOLUTION_RELU = torch.ops.fastgat.convolution_relu.default


def fuse_relus(graph: Graph) -> None:
    """Take bias and ReLU into each 16-bit convolution on a GPU that has both, and that nobody reads before its ReLU.

    As a kernel of their own they read and write all of its result again.
    """
    if torch.version.hip is not None or not torch.backends.cudnn.enabled:
        return
    for relu in graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        node = relu.args[0]
        if not isinstance(node, Node) or node.target is not CONVOLUTION or len(node.users) > 1:
            continue
        images, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
        if bias is None or not is_plain(images, weight, transposed, groups):
            continue
        if value_of(bias).dtype != value_of(weight).dtype:
            continue
        with graph.inserting_before(relu):
            fused = call(graph, CONVOLUTION_RELU, images, weight, bias, stride, padding, dilation)
        relu.replace_all_uses_with(fused)
        graph.erase_node(relu)
        graph.erase_node(node)
