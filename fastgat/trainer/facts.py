"""The first lines of a run, and of its environment.json: data, networks, device."""

import torch
from torch import nn

from fastgat.config import TrainConfig
from fastgat.data.sets import some_of
from fastgat.engine.device import device_name, has_fast_bfloat16
from fastgat.engine.state import TrainState
from fastgat.trainer.feed import Feed

SECOND_BACKWARD = {True: "a second backward pass through it keeps Delta exact", False: "its gradients are the batch's"}
"""The backward pass under batch norm, with a generator and without."""


def run_facts(
    config: TrainConfig, feed: Feed, state: TrainState, *, own: bool, weights: str | None, uncompiled: str | None
) -> dict[str, str]:
    """What a run says of itself at its start, a line each by topic.

    `own`: the classifier is the user's. `weights`: where its first weights came from. `uncompiled`: why the step is not
    compiled, or None.
    """
    facts = {
        "data set": feed.description,
        "chosen": feed.reason,
        "classes": some_of(feed.classes),
        "loader": feed.loader + _augmentation(config),
        "method": _method(config, own),
        "networks": _networks(config, state, own),
        "device": _device(config, state),
    }
    late = [m for m in config.optimizer.milestones_of(config.passes) if m >= config.passes]
    if config.optimizer.lr_schedule == "multistep" and late:
        named = ", ".join(f"{epoch:g}" for epoch in late)
        facts["milestones"] = f"{named}: not reached in {config.passes} epochs; the learning rate stays higher"
    if feed.passed_over:
        facts["passed over"] = feed.passed_over
    if not state.ranks.alone:
        share = state.ranks.share_of(config.batch_size)
        facts["ranks"] = f"{state.ranks.count}, with {share} images of each batch each"
    if weights is not None:
        facts["weights"] = weights
    if uncompiled is not None:
        facts["step"] = uncompiled
    return facts


def _method(config: TrainConfig, own: bool) -> str:
    method, hidden = config.chosen_method, {"name", "dropout"} if own else {"name"}
    settings = [f"{key} {value}" for key, value in config.to_dict()["method"].items() if key not in hidden]
    if own and method.classifier_dropout:
        settings.append("dropout as your classifier has it")
    return ", ".join([method.name, *settings])


def _networks(config: TrainConfig, state: TrainState, own: bool) -> str:
    name = type(state.classifier).__name__ if own else config.model.classifier
    networks = f"classifier {name} with {_size(state.classifier)} parameters"
    if state.generator is not None:
        networks += f", generator with {_size(state.generator)}"
    if config.model.mean is not None:
        networks += ", input normalised inside"
    resting = sum(not layer.training for layer in state.classifier.modules() if not list(layer.children()))
    if resting:
        networks += f"; {resting} layers of the classifier are in eval mode and stay so"
    if config.model.batch_norm != "both" and not state.has_statistics:
        networks += f"; --batch-norm {config.model.batch_norm} has no effect: the classifier has no running statistics"
    if state.interacts:
        networks += f"; samples interact in the classifier: {SECOND_BACKWARD[config.chosen_method.needs_generator]}"
    return networks


def _device(config: TrainConfig, state: TrainState) -> str:
    numbers = "float32"
    if state.autocast is not None:
        numbers = f"{str(state.autocast).removeprefix('torch.')} (automatic mixed precision)"
        if state.autocast == torch.bfloat16 and not has_fast_bfloat16(state.device):
            numbers += ", which this device has no instructions for: it is faster without --amp"
    layout = "channels last" if config.precision.channels_last else "channels first"
    return f"{device_name(state.device)}; {numbers}, {layout}"


def _augmentation(config: TrainConfig) -> str:
    given = {key: value for key, value in config.to_dict()["augmentation"].items() if value is not False}
    words = ", ".join(key if value is True else f"{key} {value}" for key, value in given.items())
    return f"; augmented: {words.replace('_', ' ')}" if given else ""


def _size(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"
