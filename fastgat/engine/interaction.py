"""Whether the samples of a batch influence each other inside a classifier, as in train-mode batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.engine.random import seed_torch
from fastgat.engine.state import has_batch_norm
from fastgat.functional import call


@torch.no_grad()
def samples_interact(classifier: nn.Module, images: Tensor) -> bool:
    """Whether what one image is given depends on the other: seen by exchanging the second of two, unless a layer of
    batch norm says so already. Nothing of the classifier changes.

    Args:
        images: (B, C, H, W) in [0, 1], B at least 1.
    """
    if has_batch_norm(classifier):
        return True
    first, second = images[:1], 1 - images[:1]
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        outputs = []
        for pair in (torch.cat([first, first]), torch.cat([first, second])):
            seed_torch(0, images.device)  # the same dropout masks for both pairs
            tensors = {name: t.clone() for name, t in (*classifier.named_parameters(), *classifier.named_buffers())}
            outputs.append(call(classifier, tensors, (pair,))[0][0])
    alone, beside = outputs
    return not torch.allclose(alone, beside, rtol=1e-4, atol=1e-6)
