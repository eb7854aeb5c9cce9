"""What only a GPU can show of the engine: the captured step, its synchronisations, its launches, its layout."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph

from fastgat.batch import Batch
from fastgat.config import OptimizerConfig, RunConfig
from fastgat.data.loaders import create_loader
from fastgat.data.sets import ImageSet
from fastgat.engine.device import tf32
from fastgat.engine.graph import PAD, pad_channels
from fastgat.engine.graph_passes import GraphPasses
from fastgat.engine.random import seed_step
from fastgat.engine.robust import RobustAccuracy
from fastgat.engine.state import TrainState
from fastgat.engine.step import Captured, Stepper, compile_errors_in_one_line
from fastgat.errors import CaptureError, CompileError
from fastgat.methods import (
    GAT,
    TRADES,
    DropoutGAT,
    FastGradientL2,
    FGSMRandomStart,
    Free,
    GradientPenalty,
    Method,
    RandomPerturbation,
)
from fastgat.methods.players import Draws
from fastgat.models import Classifier, Generator
from tests.engine.small import Small
from tests.support import SmallClassifier, SmallGenerator

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

# Small networks where they serve: of `make gpu`'s ten minutes, compiling takes the most.
METHODS: list[Method] = [
    GAT(schedule="paper", delta="fixed"),
    GAT(schedule="alternating", delta="fixed"),
    GAT(schedule="simultaneous", delta="fixed"),
    DropoutGAT(schedule="simultaneous", generator_interval=2),
    GAT(delta="through"),
    FastGradientL2(),
    GradientPenalty(),
    RandomPerturbation(),
]
CUDA = torch.device("cuda", 0)


def name_of(method: Method) -> str:
    return " ".join([method.name, *(getattr(method, option, "") for option in ("schedule", "delta"))])


def classifier_for(method: Method) -> nn.Module:
    torch.manual_seed(0)
    dropout = method.classifier_dropout
    return Classifier(dropout=dropout) if dropout else SmallClassifier()


def state_for(
    method: Method,
    classifier: nn.Module | None = None,
    generator: nn.Module | None = None,
    autocast: torch.dtype | None = torch.bfloat16,
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  # frozen
) -> TrainState:
    torch.manual_seed(0)
    networks = [
        network.to(CUDA).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        for network in (classifier or Classifier(dropout=method.classifier_dropout), generator or Generator(16))
    ]
    player = networks[1] if method.needs_generator else None
    memory = torch.zeros_like(batches_of(1)[0].images) if method.remembers else None
    return TrainState(networks[0], player, optimizer, method.metrics, autocast, memory=memory)


def batches_of(count: int, classes: int = 10) -> list[Batch]:
    images = torch.rand(count, 64, 3, 32, 32, device=CUDA)
    labels = torch.randint(classes, (count, 64), device=CUDA)
    return [Batch(x.contiguous(memory_format=torch.channels_last), y) for x, y in zip(images, labels, strict=True)]


def run(stepper: Stepper, steps: int, sources: list[Batch]) -> None:
    """Steps as the loop takes them, each with its own draws."""
    stream = itertools.cycle(sources)
    method, state = stepper.method, stepper.state
    for number in range(steps):
        kind = method.kind(number)
        batches = [next(stream) for _ in range(method.minibatches(kind))]
        source = seed_step(0, number, CUDA)
        draws = [method.draw(state.classifier, batch.images, source) for batch in batches]
        state.set_learning_rates(1 / (1 + number))
        stepper(batches, draws, kind)


def prepared(stepper: Stepper, sources: list[Batch]) -> Stepper:
    batches = sources[: stepper.method.minibatches()]
    source = seed_step(0, 0, CUDA)
    draws = [stepper.method.draw(stepper.state.classifier, batch.images, source) for batch in batches]
    stepper.prepare(batches, draws)
    return stepper


@pytest.fixture(autouse=True)
def _same_algorithms() -> Iterator[None]:
    """cuDNN's weight gradients differ from call to call otherwise, and Adam makes much of the sign of a tiny one."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def assert_same_learning(one: TrainState, other: TrainState, allowed: float) -> None:
    """Both players' first moments, which are gradients, agree to a relative error; and so do the metrics."""
    for name in ("classifier_optimizer", "generator_optimizer"):
        if getattr(one, name) is None:
            continue
        ours, theirs = (
            torch.cat([buffer.flatten() for buffer in getattr(state, name).exp_avg.buffers()]).double()
            for state in (one, other)
        )
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm() / theirs.norm()) < allowed, name
    torch.testing.assert_close(one.metrics.totals, other.metrics.totals, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("method", [*METHODS, Free(replays=2)], ids=name_of)
def test_replayed_it_is_the_compiled_step(method: Method) -> None:
    sources, states = batches_of(4), []
    torch.cuda.graph.default_capture_stream = None
    for cuda_graph in (True, False):
        state = state_for(method, classifier_for(method), SmallGenerator(3))
        stepper = prepared(Stepper(state, method, RunConfig(cuda_graph=cuda_graph), compiled=True), sources)
        assert stepper.captured is cuda_graph
        run(stepper, 4, sources)
        states.append(state)
    assert int(states[0].step) == 4
    assert torch.cuda.graph.default_capture_stream is None, "its device would be that of the process's first capture"
    assert_same_learning(states[0], states[1], allowed=1e-2)


def test_batch_norm_and_sgd_are_replayed() -> None:
    """As robust training has them: weights and running statistics are those of the compiled step."""
    method, sources, tensors = TRADES(attack_steps=2), batches_of(4), []
    settings = OptimizerConfig("sgd", lr=0.01, weight_decay=5e-4)
    for cuda_graph in (True, False):
        layers = [nn.Conv2d(3, 16, 3, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)]
        torch.manual_seed(0)
        for layer in layers:
            getattr(layer, "reset_parameters", lambda: None)()
        state = state_for(method, nn.Sequential(*layers), optimizer=settings)
        run(prepared(Stepper(state, method, RunConfig(cuda_graph=cuda_graph), compiled=True), sources), 4, sources)
        tensors.append(dict(state.classifier.state_dict()))
    for name, replayed in tensors[0].items():
        torch.testing.assert_close(replayed, tensors[1][name], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_compiled_it_is_the_step_as_written(method: Method) -> None:
    """In float32: kernels in one graph against kernels launched one by one."""
    sources, states = batches_of(4), []
    with tf32(False):
        for compiled in (True, False):
            state = state_for(method, classifier_for(method), SmallGenerator(3), autocast=None)
            run(prepared(Stepper(state, method, compiled=compiled), sources), 1, sources)
            states.append(state)
    assert_same_learning(states[0], states[1], allowed=1e-3)


def test_in_mixed_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images and classes are filled up to the channels that tensor cores take, and cuDNN's algorithms timed."""
    torch.backends.cudnn.deterministic = False
    padded, search = [], []

    def watched(graph: Graph) -> None:
        pad_channels(graph)
        padded.extend(graph.find_nodes(op="call_function", target=PAD))
        search.append(torch.backends.cudnn.benchmark)

    monkeypatch.setattr("fastgat.engine.graph_passes.pad_channels", watched)
    monkeypatch.setattr(GraphPasses, "uuid", lambda self: None)  # Inductor's cache is not asked
    method, sources, states = GAT(schedule="simultaneous"), batches_of(4), []
    for compiled in (True, False):
        state = state_for(method)
        run(prepared(Stepper(state, method, compiled=compiled), sources), 1, sources)
        states.append(state)
    assert padded
    assert search == [True]
    assert_same_learning(states[0], states[1], allowed=2e-2)


@pytest.mark.parametrize("threat", [("linf", 5e-4), ("l2", 0.01)])
def test_robust_accuracy_is_replayed(threat: tuple[str, float]) -> None:
    """As one graph a step of the attack, and after the weights have changed too."""
    state = state_for(FGSMRandomStart(), SmallClassifier(), autocast=None)
    images, bias = torch.rand(40, 3, 32, 32, device=CUDA), dict(state.classifier.named_parameters())["head.bias"]
    with torch.no_grad():
        bias.sub_(state.classifier(images).mean(0))  # so that answers differ
        labels = state.classifier(images).argmax(1)
    written, replayed = (RobustAccuracy(state, threat, [Batch(images, labels)], 16, 0) for _ in range(2))
    replayed.prepare(captured=True)
    assert 0 < written({}) < 1
    for change in (0.0, 0.01):
        bias.data[0] += change
        assert replayed({}) == pytest.approx(written({}), abs=0.03)  # an image at the edge


def test_dropout_of_a_layers_own_is_drawn_afresh_in_every_replay() -> None:
    """And is a function of seed and step, as everywhere."""
    method, sources = FastGradientL2(), batches_of(1, classes=4)
    state = state_for(method, Small())
    stepper = prepared(Stepper(state, method, compiled=True), sources)
    start, losses = copy.deepcopy(state.state_dict()), []
    for number in (0, 1, 0):
        state.load_state_dict(start)
        seed_step(0, number, CUDA)
        stepper(sources, [method.draw(state.classifier, sources[0].images, seed_step(0, number, CUDA))])
        losses.append(float(state.metrics.totals[0]))
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_nothing_waits_for_the_device_between_two_reports() -> None:
    method = DropoutGAT(schedule="simultaneous", generator_interval=2)
    images = torch.randint(256, (512, 32, 32, 3), dtype=torch.uint8).numpy()
    data = ImageSet(images, torch.randint(10, (512,)).numpy())
    loader = create_loader("resident", data, 64, device=CUDA, channels_last=True)
    state = state_for(method, classifier_for(method), SmallGenerator(3))
    stream = loader.stream(0)
    stepper = prepared(Stepper(state, method, compiled=True), [next(stream)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(6):
            batch = next(stream)
            draws = method.draw(state.classifier, batch.images, seed_step(0, number, CUDA))
            state.set_learning_rates(1 / (1 + number))
            stepper([batch], [draws], method.kind(number))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.metrics.read()[1] == 6


def test_a_step_is_one_launch_and_converts_no_layout() -> None:
    method, sources = GAT(schedule="simultaneous"), batches_of(1)
    stepper = prepared(Stepper(state_for(method), method, compiled=True), sources)
    run(stepper, 3, sources)
    torch.cuda.synchronize()
    with torch.profiler.profile(acc_events=True) as recorded:
        run(stepper, 1, sources)
        torch.cuda.synchronize()
    names = [event.name for event in recorded.events() or []]
    assert sum(name == "cudaGraphLaunch" for name in names) == 1
    conversions = ("nchwToNhwc", "nhwcToNchw", "AddPadding")
    assert not [name for name in names if any(conversion in name for conversion in conversions)]


class Breaks(nn.Module):
    """A classifier that breaks the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.head(images.mean((2, 3)))


def test_what_cannot_be_compiled_fails_loudly() -> None:
    method = FastGradientL2()
    stepper = Stepper(state_for(method, Breaks()), method, compiled=True)
    with pytest.raises(CompileError, match="cannot be"):
        prepared(stepper, batches_of(1))


def test_what_cannot_be_captured_fails_loudly_and_leaves_stream_and_generator_as_they_were() -> None:
    """A step that asks the host while it is being captured."""
    here = torch.cuda.current_stream()
    x = torch.ones(1, device=CUDA)
    inputs = batches_of(1), [Draws()]

    def asks(batches: object, draws: object) -> None:
        x.fill_(x.item())

    with (
        pytest.raises(CaptureError, match="cannot be captured"),
        compile_errors_in_one_line(CaptureError, "cannot be captured: {}"),
    ):
        Captured(asks, inputs, torch.cuda.Stream())
    assert torch.cuda.current_stream() == here
    torch.rand(1, device=CUDA)


def test_float16_in_a_graph() -> None:
    method, sources = GAT(schedule="simultaneous"), batches_of(1)
    state = state_for(method, classifier_for(method), SmallGenerator(3), autocast=torch.float16)
    run(prepared(Stepper(state, method, compiled=True), sources), 5, sources)
    assert state.loss_scale is not None
    assert int(state.loss_scale.skipped) < 5
    assert state.not_finite() == []
