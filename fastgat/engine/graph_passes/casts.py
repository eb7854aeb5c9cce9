"""Autocast's casts of what a step is given: once each, and on a GPU in one kernel."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from fastgat.engine.graph_passes.nodes import value_of

CAST = torch.ops.prims.convert_element_type.default
COPY_ALL = torch.ops.aten._foreach_copy.default


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
    together = [cast for cast in casts.values() if _is_large(cast)]
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


def _is_large(cast: Node) -> bool:
    """Whether a cast on a GPU, to a narrower dtype, is of what a convolution or a product reads."""
    source, narrow = value_of(cast.args[0]), value_of(cast)
    return source.is_cuda and source.dim() > 1 and source.is_floating_point() and narrow.itemsize < source.itemsize
