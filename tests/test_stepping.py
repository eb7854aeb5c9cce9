"""fastgat's step in a loop of one's own, held to the textbook and to the Trainer's engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import fastgat
from fastgat import textbook
from fastgat.config import OptimizerConfig, PrecisionConfig
from fastgat.engine import graph_passes
from fastgat.errors import CheckpointError, ConfigError, NonFiniteError
from fastgat.methods import GAT, Free
from fastgat.models import Classifier, Generator
from tests.support import (
    BatchNormNet,
    Pair,
    Probabilities,
    SmallClassifier,
    SmallGenerator,
    compiled_by,
    largest_difference,
    minibatch,
    players,
)

EXACT = 1e-10
FAST = OptimizerConfig(lr=1e-3, generator_lr=1e-3)


@pytest.mark.parametrize("schedule", ["paper", "alternating", "simultaneous"])
def test_it_is_the_textbook_step_for_step(schedule: str) -> None:
    classifier, generator = players()
    ours, theirs = copy.deepcopy(classifier), copy.deepcopy(generator)
    method = GAT(cg=0.3, schedule=schedule)
    step = fastgat.compile_step(ours, method, generator=theirs, optimizer=FAST, compile=False)
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3) for module in (classifier, generator)]
    for _ in range(5):
        batch, other = minibatch(), minibatch()
        step(*batch, generator_batches=[other] if schedule == "paper" else [])
        before = copy.deepcopy(generator)
        textbook.generator_step(classifier, generator, optimizers[1], other if schedule == "paper" else batch, 0.3)
        textbook.classifier_step(
            classifier, before if schedule == "simultaneous" else generator, optimizers[0], batch, 0.5
        )
        assert largest_difference(ours, classifier) < EXACT
        assert largest_difference(theirs, generator) < EXACT
    assert step.steps == 5
    assert step.metrics().keys() == set(method.metrics)
    assert ours is step.classifier


@pytest.mark.slow
def test_three_lines_compiled() -> None:
    classifier = BatchNormNet(classes=5)
    step = fastgat.compile_step(classifier, generator=SmallGenerator(), optimizer=OptimizerConfig(lr=1e-2))
    images, labels = torch.rand(16, 3, 12, 12), torch.arange(16) % 5
    with compiled_by("aot_eager"):
        step(images, labels)
    first = step.metrics()["loss"]
    for _ in range(30):
        step(images, labels)
    assert step.metrics()["accuracy"] > 0
    step(images, labels)
    assert step.metrics()["loss"] < first


def test_convolutions_are_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, passes = list[bool](), graph_passes.GraphPasses

    def recorded(convolutions: str, winograd: bool) -> graph_passes.GraphPasses:
        made.append(winograd)
        return passes(convolutions, winograd)

    monkeypatch.setattr(graph_passes, "GraphPasses", recorded)
    with compiled_by("aot_eager"):
        fastgat.compile_step(BatchNormNet(), "baseline", winograd=False)(*minibatch_of(torch.rand(4, 3, 8, 8)))
    assert made == [False]


class Volume(nn.Module):
    """A network with weights of four and of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep, self.head = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3), nn.Linear(2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.flat(images)[:, None]).mean((2, 3, 4)))


def test_channels_last_beside_other_dimensions() -> None:
    network, precision = Volume(), PrecisionConfig(channels_last=True)
    step = fastgat.compile_step(network, "baseline", precision=precision, compile=False)
    step(*minibatch_of(torch.rand(4, 3, 8, 8)))
    assert network.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.deep.weight.is_contiguous()


def test_the_generator_is_table_1_s_unless_one_is_given() -> None:
    for generator, expected in ((None, Generator), (SmallGenerator(), SmallGenerator)):
        step = fastgat.compile_step(BatchNormNet(), generator=generator, compile=False)
        step(*minibatch_of(torch.rand(4, 3, 8, 8)))
        assert isinstance(step.generator, expected)


def test_random_state_is_the_loops() -> None:
    step = fastgat.compile_step(Classifier(), "random", compile=False)
    for _ in range(2):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        step(*minibatch_of(torch.full((4, 3, 8, 8), 0.5)))
        assert torch.get_rng_state().equal(before)


def minibatch_of(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images, torch.arange(len(images))


def test_images_of_any_size_and_number_of_channels() -> None:
    classifier = Classifier(4, in_channels=2)
    step = fastgat.compile_step(classifier, GAT(generator_input="with-image"), compile=False)
    step(torch.rand(3, 2, 9, 14), torch.tensor([0, 1, 3]))
    assert step.metrics()["perturbation_norm"] > 0


def test_its_state_goes_on_elsewhere() -> None:
    batches = [minibatch(dtype=torch.float32) for _ in range(6)]
    classifier = Classifier()
    whole = fastgat.compile_step(copy.deepcopy(classifier), Free(replays=2), compile=False)
    first = fastgat.compile_step(copy.deepcopy(classifier), Free(replays=2), compile=False)
    for batch in batches[:3]:
        whole(*batch)
        first(*batch)
    state = copy.deepcopy(first.state_dict())
    later = fastgat.compile_step(Classifier(), Free(replays=2), compile=False)
    later.load_state_dict(state)
    for batch in batches[3:]:
        whole(*batch)
        later(*batch)
    assert later.steps == 6
    assert largest_difference(whole.classifier, later.classifier) == 0


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_factor_that_makes_no_sense(factor: float) -> None:
    with pytest.raises(ConfigError, match="must be at least 0"):
        fastgat.compile_step(Classifier(), compile=False).scale_learning_rates(factor)


def test_learning_rates_are_the_loops() -> None:
    classifier, batch = Classifier(), minibatch(dtype=torch.float32)
    step = fastgat.compile_step(classifier, "baseline", compile=False)
    step(*batch)
    before = copy.deepcopy(classifier)
    step.scale_learning_rates(0.0)
    step(*batch)
    assert largest_difference(classifier, before) == 0
    at_rest = copy.deepcopy(step.state_dict())
    step.scale_learning_rates(1.0)
    step(*batch)
    moved = largest_difference(classifier, before)
    assert moved > 0
    step.load_state_dict(at_rest)
    step(*batch)
    assert largest_difference(classifier, before) == 0, "the scale is part of the state"
    step.scale_learning_rates(1.0)
    step(*batch)
    assert largest_difference(classifier, before) > 0


def test_a_loop_may_evaluate_in_between() -> None:
    classifier = BatchNormNet()
    frozen = BatchNormNet()
    frozen.norm.eval()
    for network, counted in ((classifier, 3), (frozen, 0)):
        step = fastgat.compile_step(network, "baseline", compile=False)
        for _ in range(3):
            step(*minibatch(dtype=torch.float32))
            network.eval()
        assert not network.training
        assert int(network.norm.num_batches_tracked or 0) == counted
        assert step.metrics().keys() == {"loss", "accuracy"}
        assert step.metrics() == {}


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("method", [GAT(), "pgd"])
def test_a_loop_s_mixed_precision_stays_the_loop_s(method: Any, amp: bool) -> None:
    """Casts of weights that are kept for the length of the loop's context would be those of the first step."""
    moments = []
    for around in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        torch.manual_seed(0)
        precision = PrecisionConfig(amp=amp, amp_dtype="bfloat16")
        generator = Generator(4) if isinstance(method, GAT) else None
        step = fastgat.compile_step(SmallClassifier(), method, generator=generator, precision=precision, compile=False)
        with around:
            for _ in range(2):
                step(*minibatch(dtype=torch.float32))
        moments.append({k: v for k, v in step.state_dict()["tensors"].items() if "exp_avg." in k})
    assert moments[0]
    torch.testing.assert_close(moments[0], moments[1], rtol=0, atol=0)


def test_a_state_stays_what_it_was() -> None:
    classifier = SmallClassifier()
    step = fastgat.compile_step(classifier, "baseline", compile=False)
    batch = minibatch(dtype=torch.float32)
    step(*batch)
    saved, before = step.state_dict(), copy.deepcopy(classifier)
    step(*batch)
    step.load_state_dict(saved)
    assert largest_difference(classifier, before) == 0


def test_a_choice_of_passes_wants_running_statistics() -> None:
    for network in (SmallClassifier(), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), SmallClassifier())):
        step = fastgat.compile_step(network, GAT(), generator=Generator(4), batch_norm="clean", compile=False)
        with pytest.raises(ConfigError, match="batch_norm 'clean': the classifier has no running statistics to update"):
            step(*minibatch(dtype=torch.float32))


def test_players_that_share_what_they_train() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    norm = nn.BatchNorm2d(3, affine=False)
    for layer, name in ((shared, "0.weight|0.bias"), (norm, "0.running_mean|0.running_var|0.num_batches_tracked")):
        classifier = nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 10))
        generator = nn.Sequential(layer, nn.Conv2d(3, 3, 1))
        step = fastgat.compile_step(classifier, GAT(), generator=generator, compile=False)
        with pytest.raises(ConfigError, match=f"the generator shares ({name}) with the classifier"):
            step(*minibatch(dtype=torch.float32))
    frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
    classifier = nn.Sequential(frozen, nn.Flatten(), nn.Linear(192, 10))
    generator = nn.Sequential(frozen, nn.Conv2d(3, 3, 1))
    fastgat.compile_step(classifier, GAT(), generator=generator, compile=False)(*minibatch(dtype=torch.float32))


def test_the_state_of_another_step() -> None:
    step = fastgat.compile_step(Classifier(), "baseline", compile=False)
    with pytest.raises(ConfigError, match="take a step first"):
        step.state_dict()
    step(*minibatch(dtype=torch.float32))
    state = step.state_dict()
    other = fastgat.compile_step(BatchNormNet(), "baseline", compile=False)
    other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="another model"):
        other(*minibatch(dtype=torch.float32))
    later = fastgat.compile_step(Classifier(), "baseline", compile=False)
    later.load_state_dict(state)
    step(*minibatch(dtype=torch.float32))
    assert later.state_dict()["tensors"]["step"] == 1, "not what the other has become since"


def test_float16_that_overflows_at_any_scale() -> None:
    classifier, batch = Classifier(), minibatch(dtype=torch.float32)
    step = fastgat.compile_step(
        classifier, "baseline", precision=PrecisionConfig(amp=True, amp_dtype="float16"), compile=False
    )
    step(*batch)
    with torch.no_grad():
        next(classifier.parameters()).fill_(float("nan"))
    for _ in range(26):
        step(*batch)
    with pytest.raises(NonFiniteError, match="overflow float16 at any loss scale"):
        step.metrics()


class InPlace(Probabilities):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images.sub_(0.5))


class Failing(Probabilities):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Input height doesn't match model")


def spoilt(how: Callable[[torch.Tensor], Any]) -> nn.Module:
    """A linear classifier of images of 8 x 8, after something was done to its weights."""
    layer = nn.Linear(192, 10)
    network = nn.Sequential(nn.Flatten(), layer)
    weight = how(layer.weight)
    if isinstance(weight, nn.Parameter):
        layer.weight = weight
        network.forward = lambda images: images.flatten(1) @ layer.weight.T.real  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": Probabilities()}, "returns probabilities"),
        ({"classifier": torch.flatten}, r"the classifier must be a torch\.nn\.Module, got <built-in"),
        ({"classifier": InPlace()}, "changes its input in place"),
        ({"classifier": nn.Flatten(0)}, r"must return logits \(B, K\)"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Softplus())}, "the classifier has no trainable parameters"),
        ({"generator": Generator().requires_grad_(False)}, "the generator has no trainable parameters"),
        ({"classifier": Classifier(in_channels=1)}, "do not take images of shape"),
        ({"generator": Generator(channels=3, in_channels=6)}, "do not take images of shape"),
        ({"generator": nn.Conv2d(3, 1, 1)}, "must return perturbations of the images' shape"),
        ({"method": "gta"}, "did you mean 'gat'"),
        ({"method": "baseline", "generator": Generator()}, "has no generator"),
        ({"method": "pgd", "batch_norm": "clean"}, "batch_norm is a choice of passes, and method 'pgd' has one"),
        ({"optimizer": OptimizerConfig(lr_schedule="cosine")}, "no learning-rate schedule"),
        ({"optimizer": "sgd"}, "optimizer must be an object of OptimizerConfig, got 'sgd'"),
        ({"method": GAT}, "method must be an object of Method, got"),
        ({"batch_norm": "none"}, "unknown value 'none'"),
        ({"optimizer": OptimizerConfig(ema=0.9)}, "no moving average"),
        ({"generator": Pair()}, "must return perturbations of the images' shape, got tuple"),
        ({"classifier": Failing()}, "do not take images of shape .*: Input height doesn't match"),
        ({"classifier": spoilt(lambda weight: weight.register_hook(torch.zeros_like))}, "1.weight has a hook on its"),
        ({"classifier": spoilt(lambda w: w.register_post_accumulate_grad_hook(id))}, "1.weight has a hook on its"),
        ({"classifier": spoilt(lambda weight: nn.Parameter(weight[:1].expand(10, -1)))}, "1.weight is expanded"),
        ({"classifier": spoilt(lambda weight: nn.Parameter(weight.to(torch.complex64)))}, "1.weight is complex"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict[str, Any], message: str) -> None:
    batch = minibatch(dtype=torch.float32)
    with pytest.raises(ConfigError, match=message):
        fastgat.compile_step(**{"classifier": Classifier(), "compile": False, **arguments})(*batch)


def test_a_batch_that_is_not_like_the_first() -> None:
    classifier = Classifier()
    step = fastgat.compile_step(classifier, "baseline", compile=False)
    images, labels = minibatch(dtype=torch.float32)
    step(images, labels)
    with pytest.raises(ConfigError, match="leave a smaller last batch out"):
        step(images[:2], labels[:2])
    with pytest.raises(ConfigError, match=r"is made for images of torch\.float32, got torch\.bfloat16"):
        step(images.bfloat16(), labels)
    with pytest.raises(ConfigError, match="an empty batch"):
        step(images[:0], labels[:0])
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"outside of torch\.inference_mode"):
        step(images, labels)
    with pytest.raises(ConfigError, match="takes 0 generator_batches, got 1"):
        step(images, labels, generator_batches=[(images, labels)])
    with pytest.raises(ConfigError, match="expected 4 integer labels, one class an image"):
        step(images, labels.float())
    with pytest.raises(ConfigError, match=r"^the labels are on meta, the images on cpu: bring them together$"):
        step(images, labels.to("meta"))
    for wrong in (255 * images, images * float("nan")):
        with pytest.raises(ConfigError, match=r"they must lie in \[0, 1\]"):
            step(wrong, labels)
    with torch.no_grad():
        next(classifier.parameters()).fill_(float("nan"))
    step(images, labels)
    with pytest.raises(NonFiniteError, match="classifier became NaN or infinite at step 2"):
        step.metrics()


def test_minibatches_of_the_generator_are_like_the_classifier_s_from_the_first_step_on() -> None:
    step = fastgat.compile_step(SmallClassifier(), GAT(schedule="paper"), generator=SmallGenerator(), compile=False)
    images, labels = minibatch(dtype=torch.float32)
    with pytest.raises(ConfigError, match="leave a smaller last batch out"):
        step(images, labels, generator_batches=[(images[:1], labels[:1])])
    step(images, labels, generator_batches=[(images, labels)])


def test_what_is_trainable_stays_so() -> None:
    classifier = SmallClassifier()
    name = next(name for name, _ in classifier.named_parameters())
    step = fastgat.compile_step(classifier, "baseline", compile=False)
    batch = minibatch(dtype=torch.float32)
    step(*batch)
    classifier.get_parameter(name).requires_grad_(False)
    with pytest.raises(ConfigError, match=f"{name} of the classifier was frozen after the first step"):
        step(*batch)
    again = fastgat.compile_step(classifier, "baseline", compile=False)
    again(*batch)
    classifier.get_parameter(name).requires_grad_(True)
    with pytest.raises(ConfigError, match=f"{name} of the classifier was made trainable after the first step"):
        again(*batch)


def test_mixed_precision_and_channels_last() -> None:
    step = fastgat.compile_step(Classifier(), precision=PrecisionConfig(amp=True, channels_last=True), compile=False)
    step(*minibatch(dtype=torch.float32))
    assert step.metrics()["loss"] > 0
    assert step.classifier.conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]  # Table 1's


class Counting(nn.Module):
    """With buffers that torch cannot write like others: a 0-d float64, and one that `expand` has made."""

    seen: torch.Tensor
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(0.5).expand(192))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = self.seen + images.detach().double().mean()
        logits: torch.Tensor = self.head(images.flatten(1) - self.mean)
        return logits


@pytest.mark.slow
def test_every_buffer_is_written_by_inductor() -> None:
    """Which forgets a 0-d float64 of a CPU."""
    batch, seen = minibatch(dtype=torch.float32), []
    for compiled in (False, True):
        classifier = Counting()
        step = fastgat.compile_step(classifier, "baseline", compile=compiled)
        for _ in range(3):
            step(*batch)
        seen.append(float(classifier.seen))
        assert classifier.mean.equal(torch.full((192,), 0.5))
    assert seen[0] == pytest.approx(3 * float(batch[0].mean()), rel=1e-6)
    assert seen[1] == pytest.approx(seen[0], rel=1e-6)
