"""The compiled step on a GPU, as far as a machine without one can see it: Dynamo takes the whole step, its Triton
kernels launched at the joints, into one graph. Nothing of the graph is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GRAPHS = """
import collections, json, sys
sys.path.append(sys.argv[1])  # at its end: an installed fastgat comes first
import torch
import torch.utils._triton
from fastgat.engine.step import Stepper
from fastgat.kernels.backend import forced_kernels
from fastgat.methods import GAT, Baseline, DropoutGAT, FastGradientL2, RandomPerturbation
from tests.support import BatchNormNet, Engine, minibatch, players

torch.utils._triton.has_triton = lambda *_: True  # Dynamo looks for kernels only where there is a GPU
launches = []

def note(graph, inputs):
    names = collections.Counter(str(node.target) for node in graph.graph.nodes)
    launches.append(names["triton_kernel_wrapper_mutation"])
    values = [getattr(node, "meta", {}).get("example_value") for node in graph.graph.output_node().args[0]]
    return lambda *_: [None if value is None else torch.zeros(value.shape, dtype=value.dtype) for value in values]

compile = torch.compile
torch.compile = lambda function, options, **more: compile(function, backend=note, **more)
found = {}
for method in (
    Baseline(), FastGradientL2(), RandomPerturbation(), GAT(schedule="paper"), GAT(schedule="alternating"),
    GAT(schedule="simultaneous", generator_interval=2), DropoutGAT(schedule="simultaneous"),
):
    for batch_norm in (False, True):
        name = f"{method.name} {getattr(method, 'schedule', '')} {batch_norm}"
        if name not in json.loads(sys.argv[2]):
            continue
        launches.clear()
        classifier, generator = players(dropout=method.classifier_dropout, dtype=torch.float32)
        engine = Engine(method, BatchNormNet() if batch_norm else classifier, generator, autocast=torch.bfloat16)
        batches = [minibatch(dtype=torch.float32) for _ in range(method.minibatches())]
        draws = [method.draw(classifier, batch.images, torch.Generator()) for batch in batches]
        with forced_kernels():
            Stepper(engine.state, method, compiled=True).prepare(batches, draws)
        found[name] = list(launches)
print(json.dumps(found))
"""

LAUNCHES = {
    "baseline  False": [1],
    "fg-l2  False": [4],  # two losses, the normalised gradient, the perturbation
    "fg-l2  True": [4],
    "random  False": [4],
    "gat paper False": [8],
    "gat paper True": [8],
    "gat alternating False": [7],
    "gat alternating True": [7],
    "gat simultaneous False": [5, 4],  # two losses, Delta, x + p, dL/dz; the last only when G steps
    "gat simultaneous True": [5, 4],
    "dropout-gat simultaneous False": [5],
}
"""Kernels at the joints of each kind of step, without and with batch norm."""
SOME = ("fg-l2  False", "gat simultaneous False")


@pytest.mark.slow
@pytest.mark.offline
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels run")
@pytest.mark.parametrize("names", [SOME, pytest.param(tuple(LAUNCHES), marks=pytest.mark.long)], ids=["some", "all"])
def test_the_joints_of_a_method_are_kernels_in_one_graph(names: tuple[str, ...]) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", GRAPHS, str(Path(__file__).parents[2]), json.dumps(names)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: LAUNCHES[name] for name in names}
