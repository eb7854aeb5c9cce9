"""All passes over the graph of a compiled step, as Inductor takes them before it makes kernels of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from fastgat.engine.convolutions import PASSES
from fastgat.engine.device import multiplies_matrices
from fastgat.engine.graph import cast_inputs_at_once, drop_unused_gradients, pad_channels, restore_weight_gradients
from fastgat.engine.winograd import use_winograd
from fastgat.kernels import winograd

FILES = "graph_passes.py", "graph.py", "convolutions.py", "winograd.py"


class GraphPasses(CustomGraphPass):
    """Those of `engine/graph.py`, that of `engine/winograd.py`, and those that `convolutions` names.

    The operations that the last two put into a graph are registered by importing this module: a compiled graph that
    comes from Inductor's cache calls them too.
    """

    def __init__(self, convolutions: str = "cudnn", winograd: bool = True) -> None:
        self.convolutions, self.winograd = convolutions, winograd

    def __call__(self, graph: Graph) -> None:
        drop_unused_gradients(graph)
        restore_weight_gradients(graph)
        cast_inputs_at_once(graph)
        pad_channels(graph)
        if self.winograd:
            use_winograd(graph)
        if self.convolutions != "cudnn":
            for name in self.convolutions.split("+"):
                PASSES[name](graph)

    def uuid(self) -> Any:
        files = (*(str(Path(__file__).with_name(name)) for name in FILES), winograd.__file__)
        # The passes also depend on the CPU's registers and matrix units, and on the number of threads.
        cpu = torch.backends.cpu.get_cpu_capability(), multiplies_matrices(), torch.get_num_threads()
        return get_hash_for_files(files, f"{self.convolutions} {self.winograd} {cpu}")
