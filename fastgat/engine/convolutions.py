"""Passes over the convolutions of a compiled step on a GPU that are off until somebody has measured them there.

Each uses an operation of its own, which Inductor calls as it is; on a CPU it computes the same in plain torch.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch.fx import Graph, Node

from fastgat.engine.graph import ALIGNED, CAST, CONVOLUTION, CONVOLUTION_BACKWARD, add_node, fake_tensor
from fastgat.kernels.backend import accumulation_dtype
from fastgat.kernels.convolution_relu import convolution_relu, convolution_relu_reference
from fastgat.kernels.images import is_channels_last
from fastgat.kernels.relu_gradient import parts, relu_gradient

RELU = torch.ops.aten.relu.default
WHERE = torch.ops.aten.where.self
LESS_OR_EQUAL = torch.ops.aten.le.Scalar
SUM = torch.ops.aten.sum.dim_IntList
ALL_BUT_CHANNELS = [0, 2, 3]
EXPAND = torch.ops.aten.expand.default
FULL = torch.ops.aten.full.default
SCALAR = torch.ops.aten.scalar_tensor.default
ZEROS = torch.ops.aten.zeros.default


@torch.library.custom_op("fastgat::convolution_relu", mutates_args=())
def convolution_relu_op(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """`convolution_relu` as one operation of a graph."""
    return convolution_relu(x, weight, bias, stride, padding)


convolution_relu_op.register_fake(convolution_relu_reference)


def fuse_relus(graph: Graph) -> None:
    """Compute each convolution whose sum only a ReLU reads with it and the bias in one kernel, `convolution_relu`.

    It takes plain 16-bit convolutions of channels-last images whose channels are a multiple of 8.
    """
    for node in graph.find_nodes(op="call_function", target=RELU):
        (source,) = node.args
        if not (_is_of(source, CONVOLUTION) and len(source.users) == 1):
            continue
        x, weight, bias, stride, padding, dilation, transposed, _, groups = source.args
        if bias is None or transposed or groups != 1 or set(dilation) != {1} or len({*stride}) + len({*padding}) > 2:
            continue
        if _is_of(bias, CAST):
            bias = bias.args[0]  # the kernel casts as it reads
        images = fake_tensor(x)
        if images.itemsize == 2 and images.shape[1] % ALIGNED == 0 and is_channels_last(images):
            with graph.inserting_before(node):
                new = add_node(graph, convolution_relu_op._opoverload, x, weight, bias, stride[0], padding[0])
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            graph.erase_node(source)


@torch.library.custom_op("fastgat::relu_gradient", mutates_args=())
def relu_gradient_op(d_y: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`relu_gradient` as one operation of a graph."""
    value, sums = relu_gradient(d_y, y)
    return value, sums


@relu_gradient_op.register_fake
def _(d_y: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(d_y), d_y.new_empty((parts(d_y), d_y.shape[1]), dtype=accumulation_dtype(d_y.dtype))


def fuse_bias_gradients(graph: Graph) -> None:
    """Take the mask of a ReLU and the gradient of the bias before it in one kernel, `relu_gradient`.

    Inductor writes the masked gradient first and reads it again to sum it, in two stages. The second one is left to it:
    a few hundred rows, with what reads their sum. This pass takes what a convolution's backward pass gives, channels
    last; another gradient is better masked by the kernel that computes it.
    """
    for node in graph.find_nodes(op="call_function", target=WHERE):
        mask, zero, d_y = node.args
        sums = [
            user
            for user in node.users
            if user.target is SUM and user.args[1:] == (ALL_BUT_CHANNELS,) and not user.kwargs
        ]
        if not (sums and _is_zero(zero) and _is_of(mask, LESS_OR_EQUAL) and mask.args[1] == 0 and _is_of_images(d_y)):
            continue
        with graph.inserting_before(node):
            both = add_node(graph, relu_gradient_op._opoverload, d_y, mask.args[0])
            value, sums_of_parts = (add_node(graph, operator.getitem, both, i) for i in range(2))
            total = add_node(graph, SUM, sums_of_parts, [0])
            for user in sums:
                user.replace_all_uses_with(add_node(graph, CAST, total, fake_tensor(user).dtype))
                graph.erase_node(user)
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _is_of(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.target is target


def _is_zero(node: Any) -> bool:
    """Whether a node is a constant tensor of zeros, spread out over a shape or not."""
    if isinstance(node, Node) and node.target is EXPAND:
        node = node.args[0]
    if not isinstance(node, Node):
        return False
    return node.target is ZEROS or (node.target in (FULL, SCALAR) and bool(node.args[-1] == 0))


def _is_of_images(node: Any) -> bool:
    """Whether a node is the gradient of channels-last images that a convolution's backward pass gives."""
    if not (_is_of(node, operator.getitem) and _is_of(node.args[0], CONVOLUTION_BACKWARD) and node.args[1] == 0):
        return False
    return is_channels_last(fake_tensor(node))


@torch.library.custom_op("fastgat::weight_gradient", mutates_args=())
def weight_gradient(
    grad_output: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A convolution's gradient by its weight, while a CUDA graph is captured on a second stream."""
    with _on_second_stream(grad_output):
        return _weight_gradient(grad_output, images, weight, stride, padding, dilation, groups)


@weight_gradient.register_fake
def _weight_gradient(grad_output: Tensor, images: Tensor, weight: Tensor, *conv_args: Any) -> Tensor:
    *window, groups = conv_args
    mask = [False, True, False]
    gradients = CONVOLUTION_BACKWARD(grad_output, images, weight, None, *window, False, [0, 0], groups, mask)
    return gradients[1]  # type: ignore[no-any-return, unused-ignore]


@torch.library.custom_op("fastgat::wait_for_second_stream", mutates_args=())
def wait_for_second_stream(gradients: list[Tensor], read: list[Tensor]) -> list[Tensor]:
    """Copies of gradients from the second stream, for which the first one waits.

    Args:
        read: what they were computed from, so that nothing else gets its memory before.
    """
    if _is_captured(gradients[0]):
        torch.cuda.current_stream().wait_stream(_second_stream(gradients[0].device))
    copies = [torch.empty_like(gradient) for gradient in gradients]
    torch._foreach_copy_(copies, gradients)
    return copies


wait_for_second_stream.register_fake(lambda gradients, read: [torch.empty_like(gradient) for gradient in gradients])


def _is_captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _on_second_stream(tensor: Tensor) -> Iterator[None]:
    """Launch on the second stream what follows so far; outside a capture, as when cuDNN times algorithms, in line."""
    if not _is_captured(tensor):
        yield
        return
    stream = _second_stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def overlap_weight_gradients(graph: Graph) -> None:
    """Compute gradients by weights beside those by images, and wait for them where an update first needs them.

    torch computes both in one operation, one after the other; nothing but the update reads the former. What depends on
    them is put off until a convolution or a kernel of our own needs it, something is written in place, or the end.
    """
    started: list[Node] = []
    deferred: list[Node] = []
    for node in list(graph.nodes):
        depends = not {*started, *deferred}.isdisjoint(node.all_input_nodes)
        if started and (_writes(node) or (depends and not _can_wait(node))):
            _join(graph, node, started, deferred)
            started, deferred = [], []
        elif depends:
            deferred.append(node)
        if _is_of(node, CONVOLUTION_BACKWARD) and (gradient := _split(graph, node)):
            started.append(gradient)


def _writes(node: Node) -> bool:
    """Whether a node writes in place, perhaps what one that is put off has yet to read."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _can_wait(node: Node) -> bool:
    """Whether a node that depends on a gradient may be computed later."""
    heavy = CONVOLUTION, CONVOLUTION_BACKWARD, triton_kernel_wrapper_functional
    return node.op == "call_function" and node.target not in heavy and not node.is_impure()


def _split(graph: Graph, node: Node) -> Node | None:
    """The gradient by the weight as an operation of its own, where it has a reader and the convolution is plain."""
    grad_output, images, weight, _, stride, padding, dilation, transposed, _, groups, mask = node.args
    reader = next((user for user in node.users if user.target is operator.getitem and user.args[1] == 1), None)
    if reader is None or transposed or fake_tensor(weight).dim() != 4:
        return None
    with graph.inserting_before(node):
        gradient = add_node(
            graph, weight_gradient._opoverload, grad_output, images, weight, stride, padding, dilation, groups
        )
    reader.replace_all_uses_with(gradient)
    graph.erase_node(reader)
    by_images, _, by_bias = cast(list[bool], mask)
    node.args = (*node.args[:-1], [by_images, False, by_bias])
    if not node.users:
        graph.erase_node(node)
    return gradient


def _join(graph: Graph, place: Node, started: list[Node], deferred: list[Node]) -> None:
    """Before `place`, wait for gradients; what was put off follows."""
    read = dict.fromkeys(source for gradient in started for source in gradient.args[:2])
    with graph.inserting_before(place):
        copies = add_node(graph, wait_for_second_stream._opoverload, started, list(read))
        for i, gradient in enumerate(started):
            copy = add_node(graph, operator.getitem, copies, i)
            gradient.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copies)
    for node in deferred:
        place.prepend(node)


PASSES = {"forward": fuse_relus, "backward": fuse_bias_gradients, "stream": overlap_weight_gradients}
"""By their names in `RunConfig.convolutions`, in the order in which they are taken."""
