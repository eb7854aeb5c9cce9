"""What is changed in the graph of a compiled step before Inductor makes kernels of it; its result stays the same."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
CAST = torch.ops.prims.convert_element_type.default
COPY_ALL = torch.ops.aten._foreach_copy.default


class GraphPasses(CustomGraphPass):
    """All of this file's."""

    def __call__(self, graph: Graph) -> None:
        drop_unused_gradients(graph)
        cast_inputs_at_once(graph)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def drop_unused_gradients(graph: Graph) -> None:
    """Narrow the output mask of every convolution's backward pass to the gradients that have a reader.

    `torch.func.vjp` pulls back to all arguments of its function at once. Where a method takes a second pull-back for
    the images alone, as GAT does under batch norm, each convolution's gradient by its weights comes with it: one
    operator computes both, so removing dead code cannot take half of it away. Its mask of what to compute can.
    """
    for node in graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        readers = [user for user in node.users if user.target is operator.getitem]
        if len(readers) < len(node.users):
            continue  # somebody takes the gradients as a whole
        for reader in readers:
            if not reader.users:
                graph.erase_node(reader)
        used = {reader.args[1] for reader in readers if reader.users}
        *arguments, mask = node.args
        assert isinstance(mask, list | tuple)
        node.args = (*arguments, [bool(wanted) and i in used for i, wanted in enumerate(mask)])
        if isinstance(values := node.meta.get("val"), tuple | list):
            node.meta["val"] = tuple(value if i in used else None for i, value in enumerate(values))


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
    together = [cast for (source, _), cast in casts.items() if _is_large(source.meta["val"], cast.meta["val"])]
    if len(together) < 2:
        return
    sources = [cast.args[0] for cast in together]
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        # The casts say the dtypes of the copies, and are never computed.
        copies = graph.call_function(COPY_ALL, (together, sources))
    copies.meta["val"] = [cast.meta["val"] for cast in together]
    for cast in together:
        copies.prepend(cast)
    with graph.inserting_before(copies.next):
        for i, cast in enumerate(together):
            copy = graph.call_function(operator.getitem, (copies, i))
            copy.meta["val"] = cast.meta["val"]
            cast.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copies)


def _is_large(source: Tensor, cast: Tensor) -> bool:
    """Whether a cast on a GPU is of what a convolution or a product reads, in a narrower dtype."""
    return source.is_cuda and source.dim() > 1 and source.is_floating_point() and cast.itemsize < source.itemsize
