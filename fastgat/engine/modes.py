"""Train and eval mode, module by module: a frozen layer of batch norm stays frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(*networks: nn.Module | None) -> Iterator[None]:
    """Within, every module is in eval mode; afterwards each is in the mode that it was in."""
    present = [network for network in networks if network is not None]
    modules = [module for network in present for module in network.modules()]
    before = [(module, module.training) for module in modules if hasattr(module, "training")]  # frozen TorchScript
    try:
        for network in present:
            network.eval()
        yield
    finally:
        for module, mode in before:
            module.training = mode
