"""What is changed in the graph of a compiled step before Inductor makes kernels of it; its result stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from fastgat.engine.graph_passes.casts import cast_inputs_at_once
from fastgat.engine.graph_passes.channels import pad_channels
from fastgat.engine.graph_passes.unused_gradients import drop_unused_gradients
from fastgat.engine.graph_passes.zero_convolutions import drop_zero_convolutions


class GraphPasses(CustomGraphPass):
    """All of this package's."""

    def __call__(self, graph: Graph) -> None:
        drop_unused_gradients(graph)
        drop_zero_convolutions(graph)
        cast_inputs_at_once(graph)
        pad_channels(graph)

    def uuid(self) -> Any:
        return get_hash_for_files(tuple(sorted(map(str, Path(__file__).parent.glob("*.py")))))
