"""Which settings decide what a run computes, and which have no effect beside the others."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from fastgat.config import RunConfig, TrainConfig
from fastgat.data.registry import CUSTOM


def deciding_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, flat; the others may change when it is continued."""
    feeding = {
        f"data.{name}" for name in ("data_dir", "loader", "workers", "on_bad_sample", "max_pixels", "changed_data")
    }
    free = {"output", "resume", *feeding, *(f"run.{f.name}" for f in fields(RunConfig))}
    if config.optimizer.lr_schedule == "constant":  # the others stretch over all epochs
        free.add("epochs")
    if ":" not in config.data.dataset:  # it has a size of its own
        free.add("data.image_size")
    if config.data.dataset == CUSTOM:  # the loader has its own
        free.add("batch_size")
    free |= idle(config).keys() - {"precision.tf32"}  # a run may go on on another device
    settings = {key: value for key, value in flatten(config.to_dict() | {"select": config.rule}) if key not in free}
    if config.rule == "robust" and config.threat[0] == config.chosen_method.norm:  # the method's own, said or not
        settings.pop("select_norm", None)
        if config.select_epsilon == getattr(config.method, "epsilon", None):
            settings.pop("select_epsilon", None)
    if config.data.extra_data is not None:  # it may lie elsewhere; checkpoints keep the sum of its content
        settings["data.extra_data"] = config.data.extra_data.name
    return settings


def idle(config: TrainConfig) -> dict[str, str]:
    """The settings that have no effect beside the others, as "table.key", each with what it is for."""
    reasons, method = {}, config.chosen_method
    if not config.precision.amp:
        reasons["precision.amp_dtype"] = "it is for --amp"
    if config.optimizer.lr_schedule != "multistep":
        reasons |= dict.fromkeys(("optimizer.milestones", "optimizer.lr_decay"), "it is for --lr-schedule multistep")
    if config.optimizer.optimizer != "sgd":
        reasons |= dict.fromkeys(("optimizer.momentum", "optimizer.nesterov"), "it is for --optimizer sgd")
    if not config.optimizer.decay:
        reasons["optimizer.decay_norm"] = "there is no weight decay"
    if not method.needs_generator:
        none = f"method {method.name!r} has no generator"
        reasons |= dict.fromkeys(("optimizer.generator_lr", "model.generator_width"), none)
    if not method.clean_and_perturbed:
        reasons["model.batch_norm"] = f"method {method.name!r} trains on one kind of forward pass"
    if config.run.device == "cpu":
        reasons |= dict.fromkeys(("run.cuda_graph", "run.convolutions", "precision.tf32"), "it is for a GPU")
    if config.run.device.startswith("cuda"):
        reasons["run.winograd"] = "it is for a CPU"
    if not config.precision.channels_last:
        reasons["run.winograd"] = "it is for --channels-last"
    if config.run.compile is False:
        reasons |= dict.fromkeys(("run.convolutions", "run.winograd"), "it is for the compiled step")
    if config.data.loader == "resident":
        reasons["data.workers"] = "the resident loader has none"
    if config.data.dataset == "digits":
        reasons["data.data_dir"] = "digits are part of fastgat"
    if ":" not in config.data.dataset:
        of_files = ("data.max_pixels", "data.on_bad_sample", "data.changed_data")
        reasons |= dict.fromkeys(of_files, "it is for images in files: folder:PATH or webdataset:PATTERN")
    return reasons


def idle_beside_own(config: TrainConfig, *, classifier: bool, generator: bool, loaders: bool) -> dict[str, str]:
    """The settings that were given and have no effect beside networks or loaders of the user's own, as `idle`."""
    given, default = (dict(flatten(each.to_dict())) for each in (config, TrainConfig()))
    reasons = {}
    if classifier:
        reasons["model.classifier"] = "the run has a classifier of your own"
    if generator:
        reasons["model.generator_width"] = "the run has a generator of your own"
    if loaders:
        of_data_sets = [key for key in given if key.partition(".")[0] in ("data", "augmentation")]
        reasons |= dict.fromkeys(of_data_sets, "the run has loaders of your own, whose batches are taken as they are")
        if config.data.dataset == CUSTOM:  # as the settings of such a run say
            del reasons["data.dataset"]
    return {key: reason for key, reason in reasons.items() if key in given and given[key] != default.get(key)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("table.key", value) for each setting of nested tables."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
