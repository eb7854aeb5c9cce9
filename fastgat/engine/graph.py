"""Passes over the graph of a compiled step; its result stays the same."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fastgat.kernels.images import is_channels_last

CONVOLUTION = torch.ops.aten.convolution.default
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
CAST = torch.ops.prims.convert_element_type.default
COPY_ALL = torch.ops.aten._foreach_copy.default
ALIGNED = 8  # channels of 16 bits: the 16 bytes to which a kernel for tensor cores wants each pixel aligned
PAD = torch.ops.aten.constant_pad_nd.default
PERMUTE = torch.ops.aten.permute.default
SLICE = torch.ops.aten.slice.Tensor
TRANSPOSE = torch.ops.aten.transpose.int


def drop_unused_gradients(graph: Graph) -> None:
    """Narrow the output mask of every convolution's backward pass to the gradients that have a reader.

    `torch.func.vjp` gives the gradients by all arguments of its function at once. Where a method makes a second
    backward pass for the images alone, as GAT does under batch norm, each convolution's gradient by its weights comes
    with it: one operator computes both, so removing dead code cannot take half of it away. Its mask of what to compute
    can.
    """
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        readers = [user for user in node.users if user.target is operator.getitem]
        if len(readers) < len(node.users):
            continue  # somebody takes the gradients as a whole
        used = {reader.args[1] for reader in readers}
        *arguments, mask = node.args
        assert isinstance(mask, list | tuple)
        node.args = (*arguments, [bool(wanted) and i in used for i, wanted in enumerate(mask)])
        if isinstance(values := node.meta.get("val"), tuple | list):
            node.meta["val"] = tuple(value if i in used else None for i, value in enumerate(values))


def restore_weight_gradients(graph: Graph) -> None:
    """Compute the gradients by weights of a double backward pass as such.

    PyTorch writes them as a convolution, with samples in the place of channels and the gradient by the output in that
    of filters. Those are as large as images, for which libraries have no good kernel, and where the stride is 2 there
    are a row and a column of results too many. The images of such a convolution also meet the weight itself, in the
    pass that goes on to the next layer, which tells its shape.
    """
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION):
        images, grad_output, bias, dilation, padding, stride, *rest = node.args
        if bias is not None or rest != [False, [0, 0], 1] or not (_swaps(images) and _swaps(grad_output)):
            continue
        images, grad_output = images.args[0], grad_output.args[0]
        window = stride, padding, dilation, *rest
        weight = _convolved_with(images, window, fake_tensor(grad_output).shape)
        result = None if weight is None else _narrowed(node, fake_tensor(weight).shape)
        if result is None:
            continue
        with graph.inserting_before(node):
            arguments = grad_output, images, weight, None, *window, [False, True, False]
            gradients = add_node(graph, CONVOLUTION_BACKWARD, *arguments)
            result.replace_all_uses_with(add_node(graph, operator.getitem, gradients, 1))
    graph.eliminate_dead_code()


def _convolved_with(images: Node, window: Sequence[Any], shape: torch.Size) -> Node | None:
    """The weight of a convolution of `images` whose result has this shape."""
    for reader in images.users:
        same = reader.target is CONVOLUTION and (reader.args[0], reader.args[3:]) == (images, window)
        if same and fake_tensor(reader).shape == shape:
            return cast(Node, reader.args[1])
    return None


def _swaps(node: Any) -> bool:
    """Whether a node is a tensor of four dimensions with the first two swapped."""
    if not isinstance(node, Node):
        return False
    return (node.target, node.args[1:]) in ((PERMUTE, ([1, 0, 2, 3],)), (TRANSPOSE, (0, 1)))


def _narrowed(node: Node, shape: torch.Size) -> Node | None:
    """What alone becomes of `node`, if that is to swap its first two dimensions and to cut it off to this shape."""
    result = node
    while len(result.users) == 1:
        (result,) = result.users
        if result is next(iter(node.users)):
            if not _swaps(result):
                return None
        elif result.target is not SLICE or result.args[2] != 0 or result.args[4:]:
            return None
        if fake_tensor(result).shape == shape:
            return result
    return None


def cast_inputs_at_once(graph: Graph) -> None:
    """Cast each weight that a step is given to the dtype of mixed precision once, and on a GPU all of them in one
    kernel, with the images.

    Autocast casts a weight at every call of its layer: twice where a classifier sees clean and perturbed images. Biases
    are left to the kernels that add them, which cast as they read, and so are masks.
    """
    casts: dict[tuple[Any, Any], Node] = {}
    for node in graph.find_nodes(op="call_function", target=CAST):
        source, dtype = node.args
        assert isinstance(source, Node)
        if source.op != "placeholder":  # inputs change at the graph's end alone
            continue
        first = casts.setdefault((source, dtype), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    together = [node for node in casts.values() if _is_large(node)]
    if len(together) < 2:
        return
    sources = [node.args[0] for node in together]
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        # The casts say the dtypes of the copies, and are never computed.
        copies = graph.call_function(COPY_ALL, (together, sources))
    copies.meta["val"] = [node.meta["val"] for node in together]
    for node in together:
        copies.prepend(node)
    with graph.inserting_before(copies.next):
        for i, node in enumerate(together):
            copy = graph.call_function(operator.getitem, (copies, i))
            copy.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copies)


def _is_large(node: Node) -> bool:
    """Whether a cast on a GPU, to a narrower dtype, is of what a convolution or a product reads."""
    source, narrow = fake_tensor(node.args[0]), fake_tensor(node)
    return source.is_cuda and source.dim() > 1 and source.is_floating_point() and narrow.itemsize < source.itemsize


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
    """Pads the convolutions of one graph; those with the same operand share its padded form."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.padded: dict[tuple[Node, tuple[int, ...]], Node] = {}

    def forward(self, node: Node) -> None:
        images, weight, bias, *conv_args = node.args
        filters, channels = _missing_channels(images, weight, conv_args)
        if not (filters or channels):
            return
        with self.graph.inserting_before(node):
            operands = self._pad(images, 0, channels), self._pad(weight, filters, channels)
            bias = bias if bias is None else self._pad(bias, filters)
            self._replace(node, add_node(self.graph, CONVOLUTION, *operands, bias, *conv_args))

    def backward(self, node: Node) -> None:
        grad_output, images, weight, sizes, *conv_args, mask = node.args
        filters, channels = _missing_channels(images, weight, conv_args)
        if not (filters or channels):
            return
        if sizes is not None:  # of the bias
            sizes = [size + filters for size in cast(list[int], sizes)]
        with self.graph.inserting_before(node):
            operands = (
                self._pad(grad_output, 0, filters),
                self._pad(images, 0, channels),
                self._pad(weight, filters, channels),
            )
            gradients = add_node(self.graph, CONVOLUTION_BACKWARD, *operands, sizes, *conv_args, mask)
            for reader in list(node.users):
                self._replace(reader, add_node(self.graph, operator.getitem, gradients, reader.args[1]))
        self.graph.erase_node(node)

    def _pad(self, node: Any, *amounts: int) -> Node:
        """`node` with so many zeros at the end of each of its first dimensions."""
        assert isinstance(node, Node)
        if not any(amounts):
            return node
        if (node, amounts) not in self.padded:
            pairs = [(0, amount) for amount in amounts] + [(0, 0)] * (fake_tensor(node).dim() - len(amounts))
            place = node.next  # before all that read it
            while place.op == "placeholder":
                place = place.next
            with self.graph.inserting_before(place):
                last_first = [end for pair in reversed(pairs) for end in pair]
                self.padded[node, amounts] = add_node(self.graph, PAD, node, last_first)
        return self.padded[node, amounts]

    def _replace(self, node: Node, padded: Node) -> None:
        """Let those who read `node` read that part of `padded`, as dense as it was."""
        value, part = fake_tensor(node), padded
        for dimension, size in enumerate(value.shape):
            if fake_tensor(part).shape[dimension] > size:
                part = add_node(self.graph, SLICE, part, dimension, 0, size)
        if part is not padded:
            # For kernels of our own, which read memory as it lay; Inductor's see through the copy.
            part = add_node(self.graph, torch.ops.aten.clone.default, part, memory_format=suggest_memory_format(value))
        node.replace_all_uses_with(part)
        self.graph.erase_node(node)


def _missing_channels(images: Any, weight: Any, conv_args: Sequence[Any]) -> tuple[int, int]:
    """How many filters and channels a convolution lacks of full ones; none where it is of another kind."""
    *_, transposed, _, groups = conv_args
    value, images_value = fake_tensor(weight), fake_tensor(images)
    if transposed or groups != 1 or value.dim() != 4 or not value.is_cuda or value.itemsize != 2:
        return 0, 0
    if not is_channels_last(images_value):
        return 0, 0
    filters, channels = value.shape[:2]
    return -filters % ALIGNED, -channels % ALIGNED


def fake_tensor(node: Any) -> Tensor:
    """The tensor, without its data, that a node stands for."""
    assert isinstance(node, Node)
    return node.meta["val"]


def add_node(graph: Graph, target: Any, *arguments: Any, **options: Any) -> Node:
    """A new node at the place where `graph` inserts."""
    node = graph.call_function(target, arguments, options)
    node.meta["val"] = target(*map_arg(arguments, lambda argument: argument.meta["val"]), **options)
    return node
