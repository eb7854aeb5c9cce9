"""What does not fit, or goes wrong, ends in one line and keeps the last good checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgat import Trainer, load_classifier
from fastgat.config import DataConfig, OptimizerConfig, RunConfig
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.errors import ConfigError, DataError, FastgatError, NonFiniteError, OutputError
from fastgat.methods import GAT, TRADES, Baseline, Method, RandomPerturbation
from fastgat.models import Generator
from tests.engine.small import STEPS, At, Small, config, loader, trainer, weights

BAD: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": OptimizerConfig(lr=1e30)}, "classifier"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_loss_that_is_not_finite_names_player_and_step(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NonFiniteError, match=message):
        trainer(config(tmp_path / "run", **changes)).fit()
    tensors = weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in tensors.values()), "the last good checkpoint stays"


def test_the_generator_is_named_too(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run", method=GAT(cg=1e37)))
    assert isinstance(job.generator, Generator)
    nn.init.constant_(job.generator.body[-1].bias, 20.0)  # type: ignore[arg-type]  # saturated: no gradient
    with pytest.raises(NonFiniteError, match="the loss of the generator became NaN or infinite at step 1"):
        job.fit()


def test_a_checkpoint_is_not_overwritten_by_bad_weights(tmp_path: Path) -> None:
    """The loss of a step is that before its update: a bad update shows only at the save."""
    job = trainer(config(tmp_path / "run"))

    def spoil() -> None:
        assert job.classifier is not None
        job.classifier.get_parameter("conv.weight").data.fill_(torch.nan)

    job.callbacks = (At(4, spoil),)
    with pytest.raises(NonFiniteError, match="a parameter of the classifier became NaN or infinite by step 4"):
        job.fit()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors")[1]["position"]["step"] == 0


class Aliased(Small):
    """Its buffer is the memory of a weight, which it reads and does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", self.head.weight.detach())


class Views(Small):
    """Two buffers, one the first half of the other, which a forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("both", torch.zeros(2))
        self.register_buffer("first", self.get_buffer("both")[:1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.get_buffer("first").add_(1)
        return super().forward(images)


class Halves(Small):
    """A parameter that is a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Parameter(self.head.bias.data[:2])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Halves, "the parameters part and head.bias lie in the same memory: give them clones, or tie them"),
        (Aliased, "the buffer weight lies in the memory of the parameter head.weight: give it a clone"),
        (Views, "the buffers first and both lie in the same memory: give them clones"),
    ],
)
def test_memory_that_two_tensors_share(tmp_path: Path, network: type[nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(config(tmp_path / "run"), network).fit()


def test_a_generator_that_changes_its_input(tmp_path: Path) -> None:
    class Scaling(Generator):
        def forward(self, input_gradient: torch.Tensor, bounded: bool = True) -> torch.Tensor:
            return super().forward(input_gradient.mul_(100), bounded)

    job = trainer(config(tmp_path / "run"))
    job.generator = Scaling(4)
    with pytest.raises(ConfigError, match="the generator changes its input in place: it must work on a copy"):
        job.fit()


class Interleaved(Small):
    """Two buffers in one memory, without a common entry."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.zeros(4, 2)
        self.register_buffer("one", both[:, 0])
        self.register_buffer("other", both[:, 1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.get_buffer("one").add_(1)
        return super().forward(images)


def test_memory_in_which_two_tensors_lie_apart(tmp_path: Path) -> None:
    run = trainer(config(tmp_path / "run", epochs=1, method="baseline"), Interleaved).fit().output
    classifier = load_classifier(run, checkpoint="last", classifier=Interleaved())
    assert classifier.get_buffer("one").tolist() == [STEPS] * 4
    assert not classifier.get_buffer("other").any()


@pytest.mark.parametrize("method", [Baseline(), RandomPerturbation(), TRADES(attack_mode="eval")])
def test_images_stay_as_they_are_where_a_network_changes_its_input(tmp_path: Path, method: Method) -> None:
    class Erasing(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.mul_(0.5) if self.training else images)

    job = trainer(config(tmp_path / "run", method=method, epochs=1), Erasing)
    job.train_loader = batches = [(images, labels) for images, labels in loader(0)]
    before = [images.clone() for images, _ in batches]
    job.fit()
    assert all(images.equal(copy) for (images, _), copy in zip(batches, before, strict=True))


def test_a_frozen_parameter_may_be_infinite(tmp_path: Path) -> None:
    class Masked(Small):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, -torch.inf]), requires_grad=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + self.mask.clamp(min=-9)

    history = trainer(config(tmp_path / "run", epochs=1, method="baseline"), Masked).fit()
    assert history.summary is not None


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="run: cannot be made: Not a directory"):
        trainer(config(tmp_path / "file" / "run")).fit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_loader": loader(0)}, "give both"),
        ({"train_loader": loader(0), "validation_loader": loader(1)}, "need a classifier of your own"),
    ],
)
def test_half_a_choice_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(**arguments)


def test_a_classifier_of_another_shape_is_described(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must return logits \(B, K\), got \(2, 3, 8, 8\)"):
        trainer(config(tmp_path / "run"), classifier=lambda: nn.Conv2d(3, 3, 1)).fit()


def test_labels_beyond_the_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels from 0 to 3, but the classifier has classes 0\.\.2"):
        trainer(config(tmp_path / "run"), classifier=lambda: Small(3)).fit()


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(FastgatError, match="device 'cuda' asked for") as error:
        trainer(config(tmp_path / "run", run=RunConfig(device="cuda"))).fit()
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": Small(5), "generator": nn.Conv2d(3, 1, 1)}, r"generator must return .* got \(2, 1, 8, 8\) for"),
        ({"validation_loader": []}, "a loader is empty"),
        ({"train_loader": []}, "no full batch in an epoch|a loader is empty"),
        (
            {"train_loader": [(torch.rand(8, 1, 8, 8), torch.zeros(8).long())]},
            r"do not take images of shape \(2, 1, 8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_described(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"classifier": Small(), "train_loader": loader(0), "validation_loader": loader(1), **change}
    with pytest.raises(ConfigError, match=message):
        Trainer(config(tmp_path / "run"), **arguments).fit()


def test_a_classifier_of_too_few_classes_for_a_data_set(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", data=DataConfig(dataset="digits"))
    with pytest.raises(ConfigError, match="tells 3 classes apart, but the data have 10"):
        Trainer(settings, classifier=Small(3)).fit()


class Once:
    """A loader that can be iterated one time only."""

    def __init__(self) -> None:
        self.batches = iter(list(loader(0)))

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def test_a_loader_that_runs_dry_is_an_error(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run", method="baseline"))
    job.train_loader = Once()
    with pytest.raises(DataError, match=r"gave \d batches, but its length is 6"):
        job.fit()
