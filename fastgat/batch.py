"""A minibatch: what loaders yield, and what steps, attacks and evaluations take."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images (B, C, H, W), floating point in [0, 1], and labels (B,) int64, on one device."""

    images: Tensor
    labels: Tensor
