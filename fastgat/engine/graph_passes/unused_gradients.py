"""Gradients that nobody reads are not computed."""

from __future__ import annotations

import operator

from torch.fx import Graph

from fastgat.engine.graph_passes.nodes import CONVOLUTION_BACKWARD


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
