"""The compiled step: one graph, compiled once, equal to the step as it is written; and what happens where it cannot."""

from __future__ import annotations

import copy
import functools
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor

from fastgat.batch import Batch
from fastgat.config import RunConfig, TrainConfig
from fastgat.engine.events import Callback, Compiled
from fastgat.engine.graph_passes import GraphPasses
from fastgat.engine.optimizer import Adam
from fastgat.engine.random import seed_step
from fastgat.engine.ranks import ALONE
from fastgat.engine.step import (
    GPU_OPTIONS,
    OVERLAP,
    Captured,
    Stepper,
    as_one_graph,
    compile_errors_in_one_line,
    missing_compiler,
)
from fastgat.errors import CaptureError, CompileError
from fastgat.methods import (
    GAT,
    Baseline,
    Dropout,
    DropoutGAT,
    FastGradientL2,
    FastGradientLinf,
    Method,
    RandomPerturbation,
)
from fastgat.methods.players import Draws
from fastgat.models import Classifier, Generator
from tests.engine.small import At, Small, assert_same_weights, config, trainer, weights
from tests.support import (
    BatchNormNet,
    Engine,
    SmallClassifier,
    SmallGenerator,
    compiled_by,
    largest_difference,
    minibatch,
    players,
)

CPU = torch.device("cpu")
EXACT = 1e-10


def run_both(method: Method, classifier: nn.Module, generator: nn.Module, steps: int) -> tuple[Engine, Engine]:
    """Two engines on the same minibatches and draws, the first one compiled."""
    engines = tuple(Engine(method, classifier, generator, compiled=how) for how in (True, False))
    for number in range(steps):
        kind = method.kind(number)
        batches = [minibatch() for _ in range(method.minibatches(kind))]
        source = seed_step(0, number, CPU)
        draws = [method.draw(classifier, batch.images, source) for batch in batches]
        for engine in engines:
            engine.state.set_learning_rates(1 / (1 + number))
            engine.step(batches, draws, kind)
    return engines  # type: ignore[return-value]  # two of them


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(DropoutGAT(cg=0.3, dropout=0.4, schedule="paper", delta="fixed"), marks=pytest.mark.long),
        pytest.param(
            GAT(cg=0.3, alpha=0.7, schedule="alternating", generator_steps=2, delta="fixed"), marks=pytest.mark.long
        ),
        pytest.param(GAT(cg=0.3, schedule="simultaneous", generator_interval=2, delta="fixed"), marks=pytest.mark.long),
        GAT(cg=0.3, schedule="simultaneous", delta="fixed"),
        pytest.param(GAT(cg=0.3, delta="through"), marks=pytest.mark.long),
        pytest.param(FastGradientL2(epsilon=0.9), marks=pytest.mark.long),
    ],
    ids=lambda method: described(method),
)
def test_compiled_by_inductor_it_is_the_step_as_written(method: Method) -> None:
    classifier = players(dropout=method.classifier_dropout)[0] if method.classifier_dropout else SmallClassifier()
    with_compiler, without = run_both(method, classifier.double(), SmallGenerator().double(), steps=4)
    assert largest_difference(with_compiler.state.classifier, without.state.classifier) < EXACT
    if method.needs_generator:
        assert with_compiler.state.generator is not None
        assert without.state.generator is not None
        assert largest_difference(with_compiler.state.generator, without.state.generator) < EXACT
    for name, buffer in with_compiler.state.named_buffers():
        torch.testing.assert_close(buffer, without.state.get_buffer(name), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_by_inductor_the_paper_s_networks_too() -> None:
    compiled, written = run_both(GAT(cg=0.3, delta="fixed"), Classifier().double(), Generator().double(), steps=2)
    for player in ("classifier", "generator"):
        assert largest_difference(compiled.state.get_submodule(player), written.state.get_submodule(player)) < EXACT


@pytest.mark.slow
@pytest.mark.long
def test_compiled_bfloat16_is_as_near_to_float64_as_pytorch_s() -> None:
    """Both players' gradients, the paper's networks: its error is at most twice that of the step as written."""
    networks, batch = (Classifier(), Generator()), minibatch(dtype=torch.float32)
    exact = Engine(GAT(cg=0.3, delta="fixed"), *(copy.deepcopy(network).double() for network in networks))
    exact.step([Batch(batch.images.double(), batch.labels)])
    compiled, written = (
        Engine(GAT(cg=0.3, delta="fixed"), *networks, autocast=torch.bfloat16, compiled=compiled)
        for compiled in (True, False)
    )
    for engine in (compiled, written):
        engine.step([batch])
    for player in ("classifier", "generator"):
        truth, ours, pytorchs = (first_moments(engine, player) for engine in (exact, compiled, written))
        own_error = float((pytorchs - truth).norm())
        assert 0 < own_error < float(truth.norm()), "there is something left of it to compare"
        assert float((ours - truth).norm()) <= 2 * own_error


def first_moments(engine: Engine, player: str) -> torch.Tensor:
    """After one step, a tenth of the player's gradient, flat."""
    adam = engine.state.get_submodule(f"{player}_optimizer")
    assert isinstance(adam, Adam)
    return torch.cat([buffer.flatten() for buffer in adam.exp_avg.buffers()]).double()


def test_inductor_is_given_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def make(function: Any, **how: Any) -> Any:
        asked.append(how)
        return function

    monkeypatch.setattr(torch, "compile", make)
    step = functools.partial(lambda state: None, None)
    together: Any = SimpleNamespace(alone=False)
    for device in ("cpu", "cuda"):
        for ranks in (ALONE, together):
            as_one_graph(step, torch.device(device), ranks=ranks)
    for how in asked:
        assert how["fullgraph"] is True
        assert isinstance(how["options"].pop("post_grad_custom_pre_pass"), GraphPasses)
    assert [how["options"] for how in asked] == [{}, OVERLAP, GPU_OPTIONS, GPU_OPTIONS | OVERLAP]
    assert (GPU_OPTIONS | OVERLAP).keys() <= inductor.get_config_copy().keys()


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    """Counts the graphs that torch.compile makes, and runs them without Inductor."""
    counter = CompileCounter()
    with compiled_by(counter):
        yield counter


ALL: list[Method] = [
    Baseline(),
    Dropout(),
    RandomPerturbation(),
    FastGradientLinf(),
    FastGradientL2(),
    GAT(schedule="paper", delta="fixed"),
    GAT(schedule="paper", generator_steps=2, delta="fixed"),
    GAT(schedule="alternating", generator_steps=2, delta="fixed"),
    GAT(schedule="simultaneous", delta="fixed"),
    GAT(schedule="simultaneous", generator_interval=3),
    GAT(delta="through"),
    DropoutGAT(schedule="simultaneous", delta="fixed"),
]
CASES = [(method, False) for method in ALL] + [(FastGradientL2(), True), (GAT(schedule="simultaneous"), True)]


def described(value: object) -> str:
    return f"{value.name} {getattr(value, 'schedule', '')}" if isinstance(value, Method) else str(value)


@pytest.mark.parametrize(("method", "batch_norm"), CASES, ids=described)
def test_one_graph_for_each_kind_of_step_and_no_other_afterwards(
    method: Method, batch_norm: bool, counter: CompileCounter
) -> None:
    """A break in the graph would be an error by itself: `fullgraph=True`."""
    classifier, generator = players(dropout=method.classifier_dropout)
    if batch_norm:
        classifier = BatchNormNet().double()
    with_compiler, without = run_both(method, classifier, generator, steps=4)
    assert counter.frame_count == len(method.kinds)
    assert largest_difference(with_compiler.state.classifier, without.state.classifier) < EXACT


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_one_graph_too(autocast: torch.dtype, counter: CompileCounter) -> None:
    method = GAT(schedule="simultaneous")
    classifier, generator = players(dtype=torch.float32)
    engine = Engine(method, classifier, generator, autocast=autocast, compiled=True)
    for _ in range(3):
        engine.step([minibatch(dtype=torch.float32)])
    assert counter.frame_count == 1


def test_many_runs_in_one_process_do_not_share_a_limit(counter: CompileCounter) -> None:
    """torch.compile gives up on a function after eight versions of it."""
    for _ in range(10):
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        Engine(Baseline(), classifier.double(), compiled=True).step([minibatch()])
    assert counter.frame_count == 10


def test_preparing_leaves_the_state_and_randomness_as_they_were(counter: CompileCounter) -> None:
    method = DropoutGAT(schedule="simultaneous", generator_interval=2)
    classifier, generator = players(dropout=0.2)
    engine = Engine(method, classifier, generator)
    before = copy.deepcopy(engine.state.state_dict())
    stepper = Stepper(engine.state, method, compiled=True)
    batch = minibatch()
    draws = method.draw(classifier, batch.images, seed_step(0, 0, CPU))
    random = torch.get_rng_state()
    stepper.prepare([batch], [draws])
    assert torch.get_rng_state().equal(random)
    for name, tensor in engine.state.state_dict().items():
        assert tensor.equal(before[name]), name
    assert counter.frame_count == 2


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a torch.cuda without a GPU is asked for at each capture; a failed one fails at its end too."""
    asked: list[dict[str, Any]] = []

    @contextmanager
    def graph(_: object, **how: Any) -> Iterator[None]:
        asked.append(how)
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None

    cuda = MagicMock(stream=nullcontext, graph=graph, Stream=MagicMock(side_effect=lambda *_: MagicMock()))
    for name in ("current_stream", "set_stream", "Stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return asked


def test_every_kind_of_step_is_captured_on_one_stream_of_the_state_s_device(captures: list[dict[str, Any]]) -> None:
    method = GAT(generator_interval=2)
    stepper = Engine(method, SmallClassifier().double(), SmallGenerator().double(), compiled=True).stepper
    stepper.captured = True
    with compiled_by("eager"):
        stepper.prepare([minibatch()], [Draws()])
    first, second = captures
    assert first["stream"] is second["stream"]
    torch.cuda.Stream.assert_called_once_with(stepper.state.device)  # type: ignore[attr-defined]  # a mock


def test_a_failed_capture_is_explained_by_its_cause(captures: list[dict[str, Any]]) -> None:
    """Not by the end of the capture, which fails after it, nor by what was being handled before."""
    calls = iter(range(4))

    def step(*_: object) -> None:
        if next(calls) == 3:  # after the warm-up
            raise RuntimeError("the step asks the host")

    try:
        raise KeyError("something else")
    except KeyError:
        with (
            pytest.raises(CaptureError, match=r"^no: the step asks the host$"),
            compile_errors_in_one_line(CaptureError, "no: {}"),
        ):
            Captured(step, ([], []), MagicMock(device=torch.device("cpu")))
    assert len(captures) == 2, "torch's generator must be freed by another capture"


@pytest.mark.parametrize("kind", [AssertionError, IndexError])
def test_what_compiled_code_raises_is_one_line(kind: type[Exception]) -> None:
    with (
        pytest.raises(CompileError, match=r"^no: expected stride 9$"),
        compile_errors_in_one_line(CompileError, "no: {}"),
    ):
        raise kind("expected stride 9\nat line 3")


def test_a_rank_that_is_lost_is_no_failure_to_compile() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    with (
        pytest.raises(RuntimeError) as raised,
        compile_errors_in_one_line(CompileError, "the step cannot be compiled: {}"),
    ):
        raise lost
    assert raised.value is lost


class Unfit(nn.Module):
    """A classifier that trains, but that torch.compile cannot take in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.head(images.mean((2, 3)))


class Told(Callback):
    def __init__(self) -> None:
        self.events: list[Compiled] = []

    def on_compiled(self, event: Compiled) -> None:
        self.events.append(event)


def settings(compile: bool | None) -> RunConfig:
    return RunConfig(log_interval=2, device="cpu", deterministic=True, compile=compile)


def test_what_cannot_be_compiled_runs_as_written_and_says_so(tmp_path: Path) -> None:
    told = Told()
    trainer(config(tmp_path / "default", run=settings(None), epochs=1), Unfit, (told,)).fit()
    assert [event.failure is not None for event in told.events] == [True]
    assert "the step cannot be compiled" in str(told.events[0].failure)
    assert "\n" not in str(told.events[0].failure)
    assert "backend=" not in str(told.events[0].failure)
    trainer(config(tmp_path / "never", run=settings(False), epochs=1), Unfit).fit()
    assert_same_weights(tmp_path / "default", tmp_path / "never")


def test_what_cannot_be_compiled_though_it_must_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="the step cannot be compiled: "):
        trainer(config(tmp_path / "run", run=settings(True)), Unfit).fit()


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in str(missing_compiler(CPU))
    with pytest.raises(CompileError, match=r"--compile needs a C\+\+ compiler"):
        trainer(config(tmp_path / "asked", run=settings(True))).fit()
    loop = trainer(config(tmp_path / "default", run=settings(None))).prepare()
    assert "NOT compiled" in loop.facts["step"]
    assert not loop.stepper.compiled
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++" in str(missing_compiler(CPU))


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_resumed_is_the_run_undisturbed(tmp_path: Path) -> None:
    check_resumed(GAT(cg=0.1), tmp_path)


@pytest.mark.slow
def test_a_compiled_run_resumed_between_two_steps_of_the_generator(tmp_path: Path) -> None:
    with compiled_by("eager"):
        check_resumed(GAT(cg=0.1, generator_interval=3), tmp_path)


def check_resumed(method: GAT, tmp_path: Path) -> None:
    """Compiled, stopped in the middle of an epoch and resumed, a run ends with the weights of one undisturbed."""

    def settings_of(name: str, **changes: Any) -> TrainConfig:
        return config(tmp_path / name, method=method, run=settings(None), **changes)

    told = Told()
    trainer(settings_of("whole", epochs=2), Small, (told,), SmallGenerator).fit()
    assert told.events[0].failure is None
    stop = At(4, lambda: signal.raise_signal(signal.SIGTERM))
    trainer(settings_of("half", epochs=2), Small, (stop,), SmallGenerator).fit()
    assert weights(tmp_path / "half")["step"] == 5
    trainer(settings_of("half", epochs=2, resume="auto"), generator=SmallGenerator).fit()
    assert_same_weights(tmp_path / "whole", tmp_path / "half")


def test_what_must_be_compiled_time_and_again_says_why() -> None:
    stepper = Stepper(MagicMock(), Baseline())

    def again(*_: object) -> None:
        raise torch._dynamo.exc.FailOnRecompileLimitHit("the limit")

    stepper._steps["full"] = again
    with pytest.raises(CompileError, match="an attribute of a network changes from step to step"):
        stepper([], [])
