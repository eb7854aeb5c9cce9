"""PGD, FGSM-RS, N-FGSM, Free and TRADES against their plain eager forms, step for step in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgat import textbook
from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.methods import TRADES, Adversarial, FGSMRandomStart, Free, Method, NoisyFGSM, PGDTraining, create_method
from fastgat.methods.players import Draws
from tests.support import (
    DOUBLE,
    BatchNormNet,
    Engine,
    SmallClassifier,
    compiled_by,
    largest_difference,
    minibatch,
    players,
)

STEPS = 10
EXACT = 1e-10
EPSILON = 0.05


def drawn(engine: Engine, images: Tensor, seed: int) -> tuple[Draws, Tensor]:
    draws = engine.method.draw(engine.state.classifier, images, torch.Generator().manual_seed(seed))
    assert draws.noise is not None
    return draws, draws.noise


BALL: list[tuple[Adversarial, dict[str, float]]] = [
    (PGDTraining(epsilon=EPSILON, attack_steps=3, step_size=0.02), {"start": EPSILON, "size": 0.02, "steps": 3}),
    (FGSMRandomStart(epsilon=EPSILON), {"start": EPSILON, "size": 1.25 * EPSILON}),
    (NoisyFGSM(epsilon=EPSILON), {"start": 2 * EPSILON, "size": EPSILON, "project": False}),
]


@pytest.mark.parametrize(("method", "settings"), BALL, ids=lambda value: getattr(value, "name", ""))
def test_in_the_ball(method: Adversarial, settings: dict[str, float]) -> None:
    classifier, _ = players()
    engine, optimizer = Engine(method, classifier), torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for number in range(STEPS):
        batch = minibatch()
        draws, noise = drawn(engine, batch.images, number)
        metrics = engine.step([batch], [draws])
        loss = textbook.ball_step(classifier, optimizer, batch, noise, EPSILON, **settings)  # type: ignore[arg-type]  # a mixed dictionary
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
        assert metrics.keys() == set(method.metrics)
        assert largest_difference(engine.state.classifier, classifier) < EXACT


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_trades(mode: str, compiled: bool) -> None:
    """Under batch norm, for which the attack's mode decides."""
    method = TRADES(epsilon=EPSILON, attack_steps=3, step_size=0.02, beta=4.0, attack_mode=mode)
    classifier = BatchNormNet().double()
    engine = Engine(method, classifier, compiled=compiled)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    with compiled_by("aot_eager"):
        for number in range(4):
            batch = minibatch()
            draws, noise = drawn(engine, batch.images, number)
            metrics = engine.step([batch], [draws])
            loss = textbook.trades_step(
                classifier, optimizer, batch, noise, EPSILON, 0.02, 3, 4.0, attack_in_eval_mode=mode == "eval"
            )
            assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
            assert largest_difference(engine.state.classifier, classifier) < EXACT
            assert all(module.training for module in engine.state.classifier.modules())
    if mode == "eval":  # in train mode the textbook's attack moves them too
        for name, buffer in engine.state.classifier.named_buffers():
            torch.testing.assert_close(buffer, classifier.get_buffer(name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["baseline", "n-fgsm", "trades"])
def test_label_smoothing_is_torchs(name: str, compiled: bool) -> None:
    """In the loss that F learns from; the attack's labels are not smoothed."""
    method = create_method(name, label_smoothing=0.3)
    classifier = SmallClassifier().to(DOUBLE)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    with compiled_by("aot_eager"):
        engine = Engine(method, classifier, compiled=compiled)
        for number in range(3):
            batch = minibatch()
            if name == "baseline":
                draws = Draws()
                loss = textbook.baseline_step(classifier, optimizer, batch, label_smoothing=0.3)
            else:
                draws, noise = drawn(engine, batch.images, number)
                if isinstance(method, NoisyFGSM):
                    loss = textbook.ball_step(
                        classifier,
                        optimizer,
                        batch,
                        noise,
                        method.epsilon,
                        start=method.ascent.start,
                        size=method.ascent.size,
                        project=False,
                        label_smoothing=0.3,
                    )
                else:
                    assert isinstance(method, TRADES)
                    attack = noise, method.epsilon, method.step_size, method.attack_steps
                    loss = textbook.trades_step(classifier, optimizer, batch, *attack, method.beta, 0.3)
            metrics = engine.step([batch], [draws])
            assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
            assert largest_difference(engine.state.classifier, classifier) < EXACT


@pytest.mark.parametrize("name", ["gat", "dropout-gat", "free", "gradient-penalty", "fg-l2"])
def test_label_smoothing_only_where_it_is_not_the_attacks(name: str) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' has no option 'label_smoothing' .it belongs to baseline"):
        create_method(name, label_smoothing=0.1)


def test_free_carries_its_perturbation_on() -> None:
    classifier, _ = players()
    memory = torch.zeros(4, 3, 8, 8, dtype=DOUBLE)
    engine = Engine(Free(epsilon=EPSILON, replays=3), classifier, memory=memory.clone())
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(STEPS):
        batch = minibatch()
        metrics = engine.step([batch])
        losses = textbook.free_step(classifier, optimizer, batch, memory, EPSILON, 3)
        assert metrics["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)
        assert engine.state.memory is not None
        torch.testing.assert_close(engine.state.memory, memory, rtol=0, atol=1e-12)
        assert largest_difference(engine.state.classifier, classifier) < EXACT
    assert memory.abs().max() == pytest.approx(EPSILON)
    assert "memory" in engine.state.state_dict(), "or a run could not be continued exactly"


@pytest.mark.parametrize("method", [BALL[0][0], TRADES(epsilon=EPSILON, attack_steps=2)], ids=lambda m: m.name)
def test_only_the_passes_that_train_count_in_running_statistics(method: Adversarial | TRADES) -> None:
    engine = Engine(method, BatchNormNet().double())
    batch = minibatch()
    engine.step([batch], [drawn(engine, batch.images, 0)[0]])
    counted = int(engine.state.classifier.get_buffer("norm.num_batches_tracked"))
    assert counted == (2 if isinstance(method, TRADES) else 1)


def test_perturbed_images_stay_images_and_in_the_ball() -> None:
    classifier, _ = players()
    method = PGDTraining(epsilon=EPSILON, attack_steps=4, step_size=0.03)
    engine, batch = Engine(method, classifier), minibatch(16)
    _, noise = drawn(engine, batch.images, 0)
    p = method.attack(engine.state.players().classifier, batch, noise)
    assert p.abs().max() <= EPSILON
    assert float((batch.images + p).min()) >= 0
    assert float((batch.images + p).max()) <= 1
    assert (p.abs() == EPSILON).double().mean() > 0.5, "most pixels reach the edge"


def test_a_gradient_that_overflows_where_the_image_is_cut_spoils_nothing() -> None:
    """inf * 0 would be NaN, and stay in the perturbation for good."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((10, 192), 1e30, dtype=torch.float32))
            with torch.no_grad():
                self.weight[1:] = 0

        def forward(self, images: Tensor) -> Tensor:
            return (images.flatten(1) * 1e20) @ self.weight.T

    images = torch.zeros(2, 3, 8, 8)
    memory = torch.full_like(images, -0.1)
    engine = Engine(Free(epsilon=EPSILON, replays=1), Steep(), memory=memory)
    engine.stepper([Batch(images, torch.tensor([1, 2]))], [Draws()], "full")
    assert engine.state.memory is not None
    assert engine.state.memory.isfinite().all()


IN_A_BALL = (
    PGDTraining(attack_steps=2),
    FGSMRandomStart(),
    NoisyFGSM(),
    Free(replays=2),
    TRADES(attack_steps=2),
)
INDUCTOR = pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.long])


@pytest.mark.parametrize("method", IN_A_BALL, ids=lambda method: method.name)
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_one_graph(method: Method, backend: str) -> None:
    """The whole step is a graph, and updates of weights between its passes stay where they are."""
    batch = minibatch()
    memory = torch.zeros_like(batch.images) if method.remembers else None
    written, compiled = (
        Engine(method, SmallClassifier().double(), memory=None if memory is None else memory.clone(), compiled=how)
        for how in (False, True)
    )
    compiled.state.load_state_dict(written.state.state_dict())
    with compiled_by(backend):
        for number in range(3):
            draws = method.draw(written.state.classifier, batch.images, torch.Generator().manual_seed(number))
            written.step([batch], [draws])
            compiled.step([batch], [draws])
    for (name, ours), theirs in zip(compiled.state.named_buffers(), written.state.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)
    assert largest_difference(compiled.state.classifier, written.state.classifier) < EXACT


def test_what_is_cut_is_told_from_the_sum_whatever_it_rounds_to() -> None:
    """A compiled step may keep the sum x + delta in float32, where it is not what x' in bfloat16 is."""
    images = torch.full((1, 3, 8, 8), 0.5, dtype=torch.bfloat16)
    memory = torch.full_like(images, 0.01)
    assert (images + memory).float().ne(images.float() + memory.float()).all()
    engine = Engine(Free(epsilon=0.1, replays=1), SmallClassifier().bfloat16(), memory=memory.clone())
    wide_memory = memory.float()  # as Inductor has it: sums are not rounded
    engine.state.memory = wide_memory
    engine.stepper([Batch(images, torch.tensor([1]))], [Draws()], "full")
    assert (wide_memory != memory.float()).float().mean() > 0.5
