"""Networks that answer in eval mode and are another matter in training: tried before anything is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastgat
from fastgat.config import OptimizerConfig
from fastgat.errors import ConfigError
from fastgat.methods import GAT, GradientPenalty, Method, PGDTraining
from fastgat.models import normalized
from tests.engine.small import config, trainer
from tests.support import SmallGenerator, largest_difference


def body(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more
    ).append(nn.Linear(8, 4))


class Wrapped(nn.Module):
    """A network in a shell of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, images: Tensor) -> Any:
        return self.body(images)


class Auxiliary(Wrapped):
    """As inception_v3: a tuple in train mode."""

    def forward(self, images: Tensor) -> Any:
        logits = self.body(images)
        return (logits, logits) if self.training else logits


class Checkpointed(Wrapped):
    """As timm's set_grad_checkpointing."""

    def forward(self, images: Tensor) -> Any:
        return checkpoint(self.body, images, use_reentrant=False) if self.training else self.body(images)


class Hooked(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.body[0].register_full_backward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.seen += 1


class OldStyle(torch.autograd.Function):
    """As the memory-efficient swish of EfficientNet-PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Scaled(Wrapped):
    def forward(self, images: Tensor) -> Any:
        return OldStyle.apply(self.body(images))


def script() -> nn.Module:
    return torch.jit.script(body())


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (Auxiliary, r"must return logits \(B, K\) in train mode too, got tuple"),
        (lambda: nn.DataParallel(body()), r"the network inside DataParallel \(its \.module\)"),
        (lambda: nn.Sequential(nn.ReLU(inplace=True), body()), "changes its input in place"),
        (lambda: body(nn.Unflatten(1, (8, 1)), nn.Flatten(), nn.BatchNorm1d(9)), "do not take images of shape"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(tmp_path: Path, classifier: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(config(tmp_path / "run", method="baseline"), classifier).fit()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message):
        fastgat.compile_step(classifier(), "baseline", compile=False)(torch.rand(4, 3, 8, 8), torch.arange(4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_module_says_what_to_give_instead() -> None:
    with pytest.raises(ConfigError, match=r"give the nn\.Module that"):
        fastgat.compile_step(script(), "baseline", compile=False)(torch.rand(4, 3, 8, 8), torch.arange(4))


def test_batch_norm_on_one_value_is_seen_at_the_shape_of_training() -> None:
    step = fastgat.compile_step(body(nn.BatchNorm1d(8)), "baseline", compile=False)
    with pytest.raises(ConfigError, match=r"train on images of shape \(1, 3, 8, 8\): Expected more than 1 value"):
        step(torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # where only weights have gradients
@pytest.mark.parametrize(
    ("method", "statistics"),
    [
        *((GAT(delta=delta), statistics) for delta in ("fixed", "through") for statistics in ("both", "perturbed")),
        *((method, "both") for method in (PGDTraining(), GradientPenalty())),
    ],
    ids=lambda value: getattr(value, "delta", value.name) if isinstance(value, Method) else value,
)
@pytest.mark.parametrize("kind", [Checkpointed, Hooked])
def test_checkpointing_and_backward_hooks_change_nothing(kind: type[Wrapped], method: Method, statistics: str) -> None:
    """Of weights and of batch norm's statistics: a second forward pass must leave no trace."""
    plain = Wrapped().double()
    other = kind().double()
    other.load_state_dict(plain.state_dict())
    generator = SmallGenerator().double() if method.needs_generator else None
    images, labels = torch.rand(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    for network, own in ((plain, generator), (other, copy.deepcopy(generator))):
        step = fastgat.compile_step(
            network, method, generator=own, batch_norm=statistics, optimizer=OptimizerConfig(lr=1e-2), compile=False
        )
        for _ in range(2):
            step(images, labels)
    assert largest_difference(plain, other) < 1e-12
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(buffer, plain.get_buffer(name))
    if isinstance(other, Hooked):
        assert other.seen > 2


@pytest.mark.parametrize("method", ["baseline", "gradient-penalty"])
def test_functions_of_autograd_in_the_old_style(method: str) -> None:
    step = fastgat.compile_step(Scaled(), method, compile=False)
    step(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert step.metrics()["loss"] > 0


def test_lazy_layers_get_their_sizes() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    step = fastgat.compile_step(network, "baseline", compile=False)
    step(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert step.metrics()["loss"] > 0


MEAN = STD = (0.5, 0.5, 0.5)


def half_frozen() -> nn.Module:
    network = body()
    network[1].eval()
    return network


@pytest.mark.parametrize(
    ("network", "counts"),
    [
        (lambda: body().eval(), True),
        (lambda: normalized(body().eval(), MEAN, STD), True),
        (lambda: nn.Sequential(nn.Identity(), body().eval()), True),
        (half_frozen, False),
        (lambda: normalized(half_frozen(), MEAN, STD), False),
        (lambda: nn.Sequential(body().eval(), nn.Linear(4, 4)), False),
    ],
    ids=["pretrained", "normalized", "wrapped", "frozen batch norm", "normalized frozen batch norm", "a new head"],
)
@pytest.mark.parametrize("entrance", ["trainer", "step"])
def test_modes_are_asked_of_the_layers_with_weights(tmp_path: Path, network: Any, counts: bool, entrance: str) -> None:
    """Where all of them are in eval mode they are trained; else those in eval mode stay so."""
    classifier = network()
    norm = next(layer for layer in classifier.modules() if isinstance(layer, nn.BatchNorm2d))
    if entrance == "trainer":
        trainer(config(tmp_path / "run", method="baseline", epochs=1), lambda: classifier).fit()
    else:
        fastgat.compile_step(classifier, "baseline", compile=False)(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert (int(norm.num_batches_tracked or 0) > 0) is counts
