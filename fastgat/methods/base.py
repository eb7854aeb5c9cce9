"""What a method is: hyperparameters, and a pure function from players, minibatches and draws to gradients.

A new method is one file: a frozen dataclass derived from Method or OnePlayer, registered in `fastgat.methods`. Its
fields, declared with `option`, become options of the command line and keys of the `[method]` table by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.batch import Batch
from fastgat.kernels.dual_loss import SampleLoss, sample_loss
from fastgat.methods.players import Draws, Masks, Metrics, Network, Players, Tensors, Update
from fastgat.options import Options, check_unit, option


@dataclass(frozen=True)
class Method(Options):
    """Base of the methods.

    Class attributes:
        name: the name on the command line.
        needs_generator: whether the method trains a generator.
        clean_and_perturbed: whether F learns from a clean and a perturbed pass, of which `--batch-norm` may pick one.
        remembers: whether steps hand on a perturbation like a minibatch, `Players.memory`, zero at first.
        metrics: the names of the 0-d tensors that `step` returns.
        norm: that of its epsilon, if it has one: "linf" or "l2".
        select: the rule that picks the epoch of its runs, unless another is asked for.
    """

    name: ClassVar[str]
    needs_generator: ClassVar[bool] = False
    clean_and_perturbed: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]]
    norm: ClassVar[str] = "linf"
    select: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("epsilon", getattr(self, "epsilon", 0), self.norm)

    @property
    def differentiates_twice(self) -> bool:
        """Whether F's gradient by its images is differentiated by its parameters."""
        return False

    @property
    def period(self) -> int:
        """The kinds of step repeat every `period` steps."""
        return 1

    def passes(self, epochs: int) -> int:
        """How many passes over the data a run of so many epochs makes."""
        return epochs

    def kind(self, step: int) -> str:
        """The kind of step number `step`, from 0: "full", or "resting" where the generator sits it out."""
        return "full" if step % self.period == 0 else "resting"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of step that there are."""
        return ("full", "resting") if self.period > 1 else ("full",)

    @property
    def generator_minibatches(self) -> int:
        """How many minibatches a full step takes from the generator's own stream, before the classifier's one."""
        return 0

    def minibatches(self, kind: str = "full") -> int:
        """How many minibatches a step of `kind` takes, the classifier's one last."""
        return 1 + (self.generator_minibatches if kind == "full" else 0)

    def generator_position(self, step: int) -> int:
        """How many minibatches the steps before number `step` have taken from the generator's own stream."""
        return -(-step // self.period) * self.generator_minibatches

    def generator_channels(self, channels: int) -> int:
        """The channels that the generator is given for images of `channels`."""
        return channels

    def generator_feed(self, delta: Tensor, images: Tensor) -> Tensor:
        """What the generator is given, (B, generator_channels, H, W), from Delta and x."""
        return delta

    @property
    def classifier_dropout(self) -> float:
        """The dropout rate that the classifier must be built with: the option `dropout`, where the method has it."""
        return getattr(self, "dropout", 0.0)

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        """The random draws for one minibatch like `images`, from `source`."""
        return Draws()

    def step(
        self, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update, kind: str = "full"
    ) -> tuple[Players, Metrics]:
        """One training step: gradients of this method, applied through `update`.

        `minibatches` are the generator's ones, in a full step, followed by the classifier's, `draws` one for each.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OnePlayer(Method):
    """A method that trains the classifier alone, on one minibatch a step."""

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        """F's gradients of the mean loss, metrics, and F's buffers afterwards."""
        raise NotImplementedError

    def step(
        self, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update, kind: str = "full"
    ) -> tuple[Players, Metrics]:
        (minibatch,), (draw,) = minibatches, draws
        gradients, metrics, buffers = self.gradients(players.classifier, minibatch, draw)
        players = players._replace(classifier=players.classifier._replace(buffers=buffers))
        return update(players, classifier=gradients), metrics


def alpha_option() -> Any:
    return option(0.5, "weight of the clean loss in (2), (4) and (10)", at_least=0, at_most=1)


def epsilon_option(default: float) -> Any:
    return option(default, "size of the perturbation in its norm, pixels in [0, 1]", at_least=0)


def clamp_option() -> Any:
    return option(False, "keep perturbed images in [0, 1]; the paper does not")


def label_smoothing_option() -> Any:
    return option(
        0.0,
        "label smoothing of the training loss; the attack uses the plain labels",
        at_least=0,
        below=1,
    )


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> SampleLoss:
    """As `sample_loss`, of (1 - s) J plus s times the mean of -log F_k over the classes, s the smoothing."""
    plain = sample_loss(logits, labels)
    if not smoothing:
        return plain
    one_hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    gradient = plain.gradient + smoothing * (one_hot - 1 / logits.shape[1])
    label_logit = logits.gather(1, labels[:, None]).squeeze(1)
    return plain._replace(loss=plain.loss + smoothing * (label_logit - logits.mean(1)), gradient=gradient)


def dropout_option() -> Any:
    return option(0.2, "dropout rate of the classifier", above=0, below=1)


def dropout_masks(classifier: nn.Module, images: Tensor, source: torch.Generator) -> Masks:
    """Masks for a classifier that takes them as an input; others draw from torch's global generator by themselves."""
    draw_masks = getattr(classifier, "draw_masks", None)
    return draw_masks(images, source) if draw_masks else ()
