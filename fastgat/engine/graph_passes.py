"""All passes over the graph of a compiled step, as Inductor takes them before it makes kernels of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from fastgat.engine.graph import cast_inputs_at_once, drop_unused_gradients, pad_channels


class GraphPasses(CustomGraphPass):
    """Those of `engine/graph.py`, then those of `engine/convolutions.py` that `convolutions` names."""

    def __init__(self, convolutions: str = "cudnn") -> None:
        self.convolutions = convolutions

    def __call__(self, graph: Graph) -> None:
        drop_unused_gradients(graph)
        cast_inputs_at_once(graph)
        pad_channels(graph)
        if self.convolutions != "cudnn":
            from fastgat.engine.convolutions import PASSES  # registers operations

            for name in self.convolutions.split("+"):
                PASSES[name](graph)

    def uuid(self) -> Any:
        names = "graph_passes.py", "graph.py", "convolutions.py"
        return get_hash_for_files(tuple(str(Path(__file__).with_name(name)) for name in names), self.convolutions)
