"""Square attack (Andriushchenko et al. 2020): random search with square windows, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgat.attacks.base import Attack, correct, l2_norm
from fastgat.options import option

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share of the image that a window covers is halved."""
FIRST_SHARE = 0.8  # of the image that the first windows cover
START = 0  # in a seed, as in those of attacks that start several times
WINDOWS = 2**32  # in the place of a sample's number in a seed: no sample has it


@dataclass(frozen=True)
class Square(Attack):
    """Algorithm 1 of Andriushchenko et al., with the proposals of Algorithm 2 (linf) and 3 (l2).

    A proposal is kept where it lowers the margin z_y - max z_k, or where the model errs there; a sample that the model
    gets wrong is left alone. Each query has one window and one choice of signs for all samples.
    """

    queries: int = option(5000, "forward passes", at_least=1)

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        result, (_, right) = images.clone(), self._judge(images, labels)
        left = right.nonzero().flatten()
        if len(left):
            result[left] = self._search(images[left], labels[left], numbers[left.cpu().numpy()])
        return result

    def _search(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        """The best point of each sample that is found."""
        source = np.random.default_rng((self.seed, START, WINDOWS))
        propose = self._propose_linf if self.norm == "linf" else self._propose_l2
        best = self.projection(images)(images + self._start(images, numbers))
        lowest, right = self._judge(best, labels)
        rows, x, y, point = torch.arange(len(images), device=images.device), images, labels, best.clone()
        for query in range(self.queries):
            seed = int(source.integers(2**63))
            left = right.nonzero().flatten()
            if len(left) < len(rows):
                best[rows] = point
                rows, x, y, point, lowest, right = (each[left] for each in (rows, x, y, point, lowest, right))
            if not len(rows):
                break
            proposal = propose(x, point, self._share(query), np.random.default_rng(seed))
            margin, still = self._judge(proposal, y)
            better = ((margin < lowest) | ~still).nonzero().flatten()
            point[better], lowest[better], right[better] = proposal[better], margin[better], still[better]
        best[rows] = point
        return best

    def _judge(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margin z_y - max z_k, k != y, and whether the answer is right; where it is 0, that is up to `argmax`."""
        logits = self.model(x)
        true = logits.gather(1, labels[:, None]).flatten()
        return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1), correct(logits, labels)

    def _share(self, query: int) -> float:
        """The share of the image that a window of this query covers."""
        at = query * 10_000 // self.queries
        return FIRST_SHARE / 2 ** sum(at > bound for bound in HALVED_AT)

    def _start(self, images: Tensor, numbers: np.ndarray) -> Tensor:
        """The first perturbation. linf: vertical stripes of +-eps; l2: a grid of five by five bumps, of norm eps."""
        channels, height, width = images.shape[1:]
        sources = [np.random.default_rng((self.seed, START, int(number))) for number in numbers]
        if self.norm == "linf":
            stripes = [_signs(source, (channels, 1, width)) for source in sources]
            return self.epsilon * torch.from_numpy(np.stack(stripes)).to(images.device, images.dtype)
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        bumps = np.zeros((len(numbers), channels, height, width))
        for row in range(rows):
            for column in range(columns):
                signs = np.stack([_signs(source, (channels, 1, 1)) for source in sources])
                at = np.s_[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                bumps[at] = signs * _bump(side, transposed=bool((row + column) % 2))
        start = torch.from_numpy(bumps)
        return (self.epsilon * start / l2_norm(start)).to(images.device, images.dtype)

    def _propose_linf(self, images: Tensor, best: Tensor, share: float, source: np.random.Generator) -> Tensor:
        """The proposal for linf: a window of +-eps, one sign a channel."""
        channels, height, width = images.shape[1:]
        side = min(max(round((share * height * width) ** 0.5), 1), height, width)
        rows, columns = _window(source, side, height, width)
        signs = torch.from_numpy(_signs(source, (channels, 1, 1))).to(images.device, images.dtype)
        proposal = best.clone()
        proposal[:, :, rows, columns] = self.add(images[:, :, rows, columns], self.epsilon * signs)
        return proposal

    def _propose_l2(self, images: Tensor, best: Tensor, share: float, source: np.random.Generator) -> Tensor:
        """The proposal for l2: a bump in one window, which takes its norm from the perturbation in another."""
        channels, height, width = images.shape[1:]
        side = max(round((share * height * width) ** 0.5), 3)
        side = min(side + (side + 1) % 2, height, width)
        here, there = (_window(source, side, height, width) for _ in range(2))
        bump = _bump(side, transposed=bool(source.integers(2))) * _signs(source, (channels, 1, 1))
        perturbation = best - images
        unused = (self.epsilon**2 - l2_norm(perturbation) ** 2).clamp(min=0)
        old = perturbation[:, :, *here]
        added = torch.from_numpy(bump).to(images.device, images.dtype) + old / _norms(old).clamp(min=1e-12)
        both = torch.zeros(height, width, dtype=torch.bool, device=images.device)
        both[here], both[there] = True, True
        available = (unused / channels + _norms(perturbation * both) ** 2).sqrt()
        perturbation[:, :, *there] = 0
        perturbation[:, :, *here] = added / _norms(added).clamp(min=1e-12) * available
        perturbation *= self.epsilon / l2_norm(perturbation).clamp(min=1e-12)
        return self.add(images, perturbation)


def _signs(source: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return source.integers(0, 2, shape) * 2.0 - 1


def _window(source: np.random.Generator, side: int, height: int, width: int) -> tuple[slice, slice]:
    row, column = (int(source.integers(0, size - side + 1)) for size in (height, width))
    return slice(row, row + side), slice(column, column + side)


def _norms(window: Tensor) -> Tensor:
    """The L2 norm of each channel, (B, C, 1, 1)."""
    return window.flatten(2).norm(dim=2)[:, :, None, None]


def _bump(side: int, transposed: bool) -> np.ndarray:
    """Two pyramids side by side, one negative, of L2 norm 1 together: equation (2) of Andriushchenko et al."""
    bump = np.concatenate([_pyramid(side // 2, side), -_pyramid(side - side // 2, side)])
    return (bump.T if transposed else bump) / np.linalg.norm(bump)


def _pyramid(height: int, width: int) -> np.ndarray:
    """At each place the sum of 1 / k^2 over the nested rectangles, all around the middle, that hold it."""
    levels = np.cumsum(1.0 / np.arange(max(height, width) // 2 + 1, 0, -1) ** 2)[::-1]
    away = np.maximum.outer(abs(np.arange(height) - height // 2), abs(np.arange(width) - width // 2))
    return levels[away]
