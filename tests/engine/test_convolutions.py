"""The passes over convolutions, most of them off by default: what becomes of a step, and that it stays the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import decomposition
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastgat.config import BEYOND_CUDNN
from fastgat.engine.convolutions import convolution_relu_op, relu_gradient_op, wait_for_second_stream, weight_gradient
from fastgat.engine.graph import CONVOLUTION, CONVOLUTION_BACKWARD
from fastgat.engine.graph_passes import GraphPasses
from fastgat.methods import GAT, GradientPenalty, Method
from tests.support import Engine, compiled_by, largest_difference, minibatch, players, run_after

OPERATIONS = {
    convolution_relu_op._opoverload: "forward",
    relu_gradient_op._opoverload: "backward",
    weight_gradient._opoverload: "weights",
    wait_for_second_stream._opoverload: "joins",
    CONVOLUTION: "convolution",
    CONVOLUTION_BACKWARD: "convolution_backward",
}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Inductor takes the gradient by a bias out of a convolution's backward pass."""
    monkeypatch.setattr(decomposition, "is_gpu", lambda device: True)


def stepped(convolutions: str | None, method: Method, amp: bool = False) -> tuple[Engine, list[GraphModule]]:
    """A step of the method, run node by node as Inductor would be given it after the passes, or as it is written."""
    graphs: list[GraphModule] = []
    torch.manual_seed(0)
    torch._dynamo.reset()
    dtype, last = torch.float32 if amp else torch.float64, torch.channels_last
    classifier, generator = (
        network.to(dtype).to(memory_format=last)  # type: ignore[call-overload]  # torch's stub lacks it
        for network in players(dtype=torch.float32, width=8)
    )
    batches = [minibatch(dtype=torch.float32) for _ in range(method.minibatches())]
    batches = [batch._replace(images=batch.images.to(dtype).contiguous(memory_format=last)) for batch in batches]
    engine = Engine(
        method,
        classifier,
        generator,
        compiled=convolutions is not None,
        autocast=torch.bfloat16 if amp else None,
    )
    compiler = run_after(GraphPasses(convolutions or "cudnn"), graphs)
    backend = aot_autograd(fw_compiler=compiler, decompositions=decomposition.select_decomp_table())
    with compiled_by(backend):
        engine.step(batches)
    return engine, graphs


def counted(graphs: list[GraphModule]) -> Counter[str]:
    return Counter(OPERATIONS[node.target] for each in graphs for node in each.graph.nodes if node.target in OPERATIONS)


def gradients(engine: Engine) -> list[Tensor]:
    """Both players', as far as Adam's first moments show them after a step."""
    optimizers = (engine.state.get_submodule(f"{name}_optimizer.exp_avg") for name in ("classifier", "generator"))
    return [torch.cat([buffer.flatten().double() for buffer in moments.buffers()]) for moments in optimizers]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("schedule", "joins"), [("simultaneous", 1), ("alternating", 2)])
def test_a_step_stays_the_same(schedule: str, joins: int) -> None:
    """In float64, in which no convolution takes in its ReLU. `alternating` reads G's new weights in the same step."""
    engine, graphs = stepped("+".join(BEYOND_CUDNN), GAT(schedule=schedule, delta="fixed"))
    found = counted(graphs)
    assert {name: found[name] for name in ("forward", "backward", "weights", "joins")} == {
        "forward": 0,
        "backward": 6 + 6 + 7,  # ReLUs of F, clean and perturbed, and of G
        "weights": 7 + 7 + 8,
        "joins": joins,
    }
    written, _ = stepped(None, GAT(schedule=schedule, delta="fixed"))
    for ours, theirs in zip(gradients(engine), gradients(written), strict=True):
        assert (ours - theirs).norm() < 1e-10 * theirs.norm()
    for name in ("classifier", "generator"):
        assert largest_difference(engine.state.get_submodule(name), written.state.get_submodule(name)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("method", [GAT(delta="through"), GradientPenalty()], ids=lambda method: method.name)
def test_after_a_double_backward_pass_no_filter_is_as_large_as_an_image(method: Method) -> None:
    engine, graphs = stepped("cudnn", method)
    nodes = [node for each in graphs for node in each.graph.find_nodes(op="call_function", target=CONVOLUTION)]
    assert max(max(node.args[1].meta["val"].shape[2:]) for node in nodes) == 3
    written, _ = stepped(None, method)
    assert largest_difference(engine.state.classifier, written.state.classifier) < 1e-10


@pytest.mark.slow
def test_in_mixed_precision_convolutions_take_in_their_relus() -> None:
    """And the gradients are as near to float64's as PyTorch's own in bfloat16, within twice their error."""
    engine, graphs = stepped("forward+backward", GAT(delta="fixed"), amp=True)
    found = counted(graphs)
    # Not the two first layers, whose three channels are filled up on a GPU alone: F's, clean and perturbed, and G's.
    assert (found["forward"], found["convolution"]) == (19 - 3, 22 - 16)
    assert found["backward"] == 19
    fixed = GAT(delta="fixed")
    torchs, exact = stepped(None, fixed, amp=True)[0], stepped(None, fixed)[0]
    for ours, theirs, right in zip(*map(gradients, (engine, torchs, exact)), strict=True):
        assert (ours - right).norm() < 2 * (theirs - right).norm() < 0.2 * right.norm()


def two_layers(
    x: Tensor, weight: Tensor, bias: Tensor, head: Tensor, seed: Tensor, wanted: tuple[int, ...]
) -> list[Tensor]:
    def network(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(x, weight, bias, padding=1).relu(), head)

    result, pull = torch.func.vjp(network, x, weight, bias)[:2]
    return [result, *(pull(seed)[i] for i in wanted)]


@pytest.mark.parametrize(
    ("layout", "wanted", "found"),
    [
        (torch.channels_last, (0, 1, 2), {"backward": 1, "weights": 1, "joins": 1}),
        (torch.channels_last, (0, 2), {"backward": 1}),  # as G's first layer, whose images have no gradient
        (torch.channels_last, (0,), {}),  # as under batch norm the second backward pass: nobody sums what is masked
        (torch.contiguous_format, (0, 1, 2), {"weights": 1, "joins": 1}),
    ],
)
def test_what_has_a_reader_decides(layout: torch.memory_format, wanted: tuple[int, ...], found: dict[str, int]) -> None:
    shapes = (2, 8, 5, 6), (12, 8, 3, 3), (12,), (4, 12, 1, 1), (2, 4, 5, 6)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs = [value.contiguous(memory_format=layout) if value.dim() == 4 else value for value in inputs]
    table = decomposition.select_decomp_table()
    x, weight, bias, head, seed = inputs
    traced = make_fx(two_layers, decomposition_table=table, tracing_mode="fake")(x, weight, bias, head, seed, wanted)
    GraphPasses("forward+backward+stream")(traced.graph)
    traced.graph.lint()
    traced.recompile()
    left = counted([traced])
    assert {name: left[name] for name in ("backward", "weights", "joins") if left[name]} == found
    torch.testing.assert_close(
        traced(*inputs, wanted), two_layers(x, weight, bias, head, seed, wanted), rtol=1e-12, atol=1e-12
    )


def test_what_is_put_off_reads_what_it_would_have_read() -> None:
    """A tensor that an update reads is written in place before the update would be computed."""

    def update(x: Tensor, weight: Tensor, moment: Tensor, seed: Tensor) -> Tensor:
        pull = torch.func.vjp(lambda w: functional.conv2d(x, w), weight)[1]
        updated = moment - pull(seed)[0]
        moment.copy_(weight)
        return updated

    shapes = (2, 8, 5, 6), (4, 8, 1, 1), (4, 8, 1, 1), (2, 4, 5, 6)
    inputs = [torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last) for shape in shapes]
    traced = make_fx(update, tracing_mode="fake")(*map(torch.clone, inputs))
    GraphPasses("stream")(traced.graph)
    traced.graph.lint()
    traced.recompile()
    assert counted([traced])["joins"] == 1
    torch.testing.assert_close(traced(*map(torch.clone, inputs)), update(*map(torch.clone, inputs)))
