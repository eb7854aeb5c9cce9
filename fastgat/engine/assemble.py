"""A trainable state: networks that fit the images, tried once in the mode and at the shape of training."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.contract import check_labels
from fastgat.engine.checks import check_memory, check_networks, is_expanded
from fastgat.engine.device import autocast_dtype
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.engine.state import TrainState
from fastgat.engine.trial import samples_interact, try_step


def assemble(
    config: TrainConfig,
    classifier: nn.Module,
    generator: nn.Module | None,
    batch: Batch,
    *,
    num_classes: int | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """The state that trains these networks as `config` says, on each of the ranks alike, with rank 0's weights.

    Args:
        classifier, generator: on the device of `batch`; they stay the same objects.
        batch: one of those to come.
        num_classes: of the data, where it is known.

    Raises ConfigError, naming the cause, where the networks do not fit the images, or cannot be trained on them, and
    RankError where ranks have different networks.
    """
    method, precision = config.chosen_method, config.precision
    players = [module for module in (classifier, generator) if module is not None]

    def probe() -> tuple[int, bool]:
        check_memory(*players)
        for module in players:
            restore_train_mode(module)
            _unfold_buffers(module)
            if precision.channels_last:
                to_channels_last(module)
        classes = check_networks(classifier, generator, batch.images, method, num_classes)
        check_labels(batch.labels, classes)
        return classes, samples_interact(classifier, batch.images)

    def build() -> TrainState:
        state = TrainState(
            classifier,
            generator,
            config.optimizer,
            method.metrics,
            autocast_dtype(precision.amp_dtype, batch.images.device) if precision.amp else None,
            interacts=interacts,
            statistics=config.model.batch_norm,
            memory=torch.zeros_like(batch.images) if method.remembers else None,
            ranks=ranks,
        )
        state.num_classes = classes
        state.has_statistics = try_step(state, method, batch)
        return state

    classes, here = ranks.agree(probe)
    interacts = any(ranks.gather(here))
    state = ranks.agree(build)
    ranks.check_same({"number format": str(state.autocast), "their networks": state.structure()})
    ranks.broadcast([*state.parameters(), *state.buffers()])
    return state


def restore_train_mode(network: nn.Module) -> None:
    """Put a network into train mode of which every layer with parameters is in eval mode, as pretrained ones come.

    Where some of these layers are in train mode, the others were frozen on purpose: all modes stay.
    """
    if not any(module.training for module in network.modules() if module._parameters):
        network.train()


def to_channels_last(network: nn.Module) -> None:
    """Turn the tensors of four dimensions; `Module.to` would raise RuntimeError at a weight of Conv3d."""
    for tensor in (*network.parameters(), *network.buffers()):
        if not is_lazy(tensor) and tensor.layout is torch.strided and tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def _unfold_buffers(network: nn.Module) -> None:
    """Make buffers that `expand` has made contiguous, since a step writes them in place."""
    unfolded: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and is_expanded(buffer):
                module._buffers[name] = unfolded.setdefault(buffer, buffer.clone(memory_format=torch.contiguous_format))
