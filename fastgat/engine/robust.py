"""Robust accuracy during training: some validation images, always the same, under PGD-10, compiled as the step is.

    p <- project(p + epsilon/4 d), ten times,    d = sign(dJ/dx) or dJ/dx / ||dJ/dx||_2

from a random point of the ball. epsilon/4 is 2.5 epsilon / steps (Madry et al. 2018), as in `fastgat.attacks.PGD`. The
classifier is in eval mode, in the number format of training, but for float16: where its gradients overflow, training
skips a step, and an attack would find nothing. The seed and an image's number decide whether it is attacked and from
where, whatever the number of ranks.
"""

import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastgat.batch import Batch
from fastgat.config import RunConfig
from fastgat.engine.optimizer import trainable_parameters
from fastgat.engine.ranks import Ranks
from fastgat.engine.state import TrainState
from fastgat.engine.step import DEFAULT, Step, compile_and_capture
from fastgat.functional import in_eval_mode, tensor_paths
from fastgat.kernels.dual_loss import sample_loss
from fastgat.kernels.images import per_sample
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.projected_step import projected_step
from fastgat.methods.players import Draws, Network, Tensors, classify
from fastgat.randomness import point_in_ball

IMAGES, STEPS = 1000, 10
CHOICE, START = 3, 4
"""Keep the choice of images and their starts apart from what else a seed decides (`fastgat.engine.random.DRAWS`)."""


class SampledImage(NamedTuple):
    """A validation image, number `number` of its set, that may be attacked: those with the smallest random keys are."""

    key: float
    number: int
    image: Tensor
    label: Tensor


class RobustAccuracy:
    """The robust accuracy of the classifier of `state`, or of its moving average; the images stay on the device.

    Args:
        threat: norm ("linf" or "l2") and epsilon.
        validation: this rank's batches of all validation images, in order.
        batch_size: the most images at a time.

    Attributes:
        samples, seen: how many images are attacked, of how many, over all ranks.
    """

    def __init__(
        self, state: TrainState, threat: tuple[str, float], validation: Iterable[Batch], batch_size: int, seed: int
    ) -> None:
        self.state, (self.norm, self.epsilon), self.seed = state, threat, seed
        mine, seen = state.ranks.agree(lambda: sample_images(validation, seed, state.ranks))
        keys = sorted(key for keys in state.ranks.gather([each.key for each in mine]) for key in keys)
        self.samples, self.seen = min(IMAGES, len(keys)), sum(state.ranks.gather(seen))
        mine = sorted((each for each in mine if each.key <= keys[self.samples - 1]), key=lambda each: each.number)
        self._mine = len(mine)
        size = math.ceil(len(mine) / math.ceil(len(mine) / batch_size)) if mine else 1
        filled = [mine[i % len(mine)] for i in range(math.ceil(len(mine) / size) * size)]
        self._parts = [self._part(filled[first : first + size]) for first in range(0, len(filled), size)]
        classifier = state.classifier
        parameters, buffers = trainable_parameters(classifier), dict(classifier.named_buffers())
        self._tensors = {name: tensor.detach().clone() for name, tensor in {**parameters, **buffers}.items()}
        self.network = Network(
            "classifier",
            classifier,
            {name: self._tensors[name] for name in parameters},
            {name: self._tensors[name] for name in buffers},
            tensor_paths(classifier),
            state.autocast if state.autocast != torch.float16 else None,
        )
        if self._parts:
            self.p = torch.zeros_like(self._parts[0][1])
            self.correct = torch.zeros(size, dtype=torch.bool, device=state.device)
        self._step: Step = functools.partial(ascend, self)

    def prepare(self, run: RunConfig = DEFAULT, *, captured: bool) -> None:
        """Compile the attack's step as `run` has it, and capture it.

        Raises CompileError or CaptureError where that is impossible.
        """
        if self._parts:
            device = self.state.device
            stream = torch.cuda.Stream(device) if captured else None
            with torch.no_grad(), in_eval_mode(self.state.classifier):
                self._step = compile_and_capture(self._step, ([self._parts[0][0]], []), device, run, stream=stream)

    @torch.no_grad()
    def __call__(self, parameters: Tensors) -> float:
        """The share of right answers, with `parameters` in place of the classifier's own; all ranks call it."""
        own = {**dict(self.state.classifier.named_parameters()), **dict(self.state.classifier.named_buffers())}
        for name, tensor in self._tensors.items():
            tensor.copy_(parameters.get(name, own[name]))
        with in_eval_mode(self.state.classifier):
            correct = [self._attack(*part) for part in self._parts]
        right = int(torch.cat(correct)[: self._mine].sum()) if correct else 0
        return sum(self.state.ranks.gather(right)) / max(self.samples, 1)

    def _attack(self, batch: Batch, start: Tensor) -> Tensor:
        """Whether the answer is right after the last step, (B,)."""
        self.p.copy_(start)
        for _ in range(STEPS + 1):  # each scores the point that the one before has reached
            self._step([batch], [])
        return self.correct.clone()

    def _part(self, chosen: Sequence[SampledImage]) -> tuple[Batch, Tensor]:
        """A batch of images, and their first perturbations."""
        images, labels = torch.stack([each.image for each in chosen]), torch.stack([each.label for each in chosen])
        sources = [np.random.default_rng((self.seed, START, each.number)) for each in chosen]
        starts = [point_in_ball(source, self.norm, self.epsilon, tuple(images.shape[1:])) for source in sources]
        layout = suggest_memory_format(chosen[0].image[None])
        start = torch.from_numpy(np.stack(starts)).to(images)
        images, start = (tensor.contiguous(memory_format=layout) for tensor in (images, start))
        return Batch(images, labels), torch.clamp(start, -images, 1 - images)

    def pgd_step(self, images: Tensor, p: Tensor, gradient: Tensor) -> Tensor:
        """p after a step uphill, in the ball, and x + p in [0, 1]."""
        size = 2.5 * self.epsilon / STEPS
        if self.norm == "linf":
            return projected_step(images, p, gradient, size=size, epsilon=self.epsilon)
        p = p + input_gradient(gradient, "l2", epsilon=size).value
        norm = per_sample(p.flatten(1).norm(dim=1))
        return torch.clamp(p * (self.epsilon / norm.clamp(min=1e-12)).clamp(max=1), -images, 1 - images)


def sample_images(validation: Iterable[Batch], seed: int, ranks: Ranks) -> tuple[list[SampledImage], int]:
    """Of this rank's images those with the least keys, at most IMAGES, and how many there are in all.

    Image i of rank r of R is number i R + r, as loaders divide a data set.
    """
    source, seen = np.random.default_rng((seed, CHOICE)), 0
    kept: list[tuple[float, SampledImage]] = []  # a heap, the largest key first
    for images, labels in validation:
        keys = source.random(ranks.count * len(labels))[ranks.rank :: ranks.count].tolist()
        for key, image, label in zip(keys, images, labels, strict=True):
            if len(kept) < IMAGES or -key > kept[0][0]:
                # Copies: the batch that an image is of need not stay.
                heapq.heappush(kept, (-key, SampledImage(key, ranks.count * seen + ranks.rank, image.clone(), label)))
                if len(kept) > IMAGES:
                    heapq.heappop(kept)
            seen += 1
    return [chosen for _, chosen in kept], seen


def ascend(attack: RobustAccuracy, batches: Sequence[Batch], draws: Sequence[Draws]) -> None:
    """One step of PGD in place: moves `attack.p`, and says in `attack.correct` which answers were right before."""
    ((images, labels),) = batches
    z, vjp, _ = classify(attack.network, images + attack.p, wrt="images")
    here = sample_loss(z, labels)
    (gradient,) = vjp(here.gradient)
    attack.correct.copy_(here.correct & (z < torch.inf).all(1))  # a NaN is no answer
    attack.p.copy_(attack.pgd_step(images, attack.p, gradient.nan_to_num()))
