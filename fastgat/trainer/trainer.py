"""Trainer: from a configuration to a finished run folder."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgat.config import TrainConfig
from fastgat.data.download import Progress
from fastgat.data.identity import Identity, split_rule
from fastgat.data.registry import silent
from fastgat.deciding import deciding_settings, flatten, idle_beside_own
from fastgat.engine.assemble import assemble
from fastgat.engine.checks import check_networks
from fastgat.engine.device import pick_device, tf32
from fastgat.engine.events import Callback
from fastgat.engine.loop import Loop
from fastgat.engine.ranks import Ranks, check_restarts, connected
from fastgat.engine.run_checkpoints import (
    Checkpoint,
    after_restart,
    check_not_past,
    check_same_classes,
    check_same_run,
    find_checkpoint,
    run_folder,
    settings_of,
    step_of,
)
from fastgat.engine.step import Stepper, missing_compiler
from fastgat.errors import CompileError, ConfigError, DataError, DeviceError
from fastgat.functional import mixed_precision, parametrizations_uncached
from fastgat.processes import local_rank, restarted
from fastgat.randomness import seeded
from fastgat.reporting.early_stopping import EarlyStopping
from fastgat.reporting.run_folder import RunFolder
from fastgat.reporting.tensorboard import TensorBoard
from fastgat.trainer.facts import run_facts
from fastgat.trainer.feed import Feed, dataset_feed, own_feed
from fastgat.trainer.held_folder import HeldFolder
from fastgat.trainer.networks import Networks, make_networks, model_header


@dataclass(frozen=True)
class History:
    """The result of a run: a dictionary an epoch, the contents of summary.json (None if interrupted), its folder."""

    epochs: list[dict[str, Any]]
    summary: dict[str, Any] | None
    output: Path


PER_RANK_SETTINGS = ("output", "resume", "data")
"""Settings in which ranks may differ: where things are. What the data are is compared otherwise."""


class Trainer:
    """Trains a classifier as `config` says, into a run folder.

        history = Trainer(TrainConfig(method="gat", epochs=5)).fit()

    Args:
        config: everything that defines the run; by default GAT on CIFAR-10, or on digits where there is none.
        classifier: a module of your own, images (B, C, H, W) in [0, 1] -> logits (B, K); it is trained in place. Its
            dropout, if any, is its own: the rate of a method with dropout is not applied to it. Layers of it that are
            in eval mode, as frozen batch norm is, stay so, unless every layer with weights is.
        generator: a module of your own, input gradients (B, C, H, W) -> perturbations of that shape, trained in place.
        train_loader, validation_loader: sized iterables of (images, labels) instead of a data set; they need a
            classifier of your own, whose output tells the number of classes.
        callbacks: listeners to the run's events, beside the run folder's.
        progress: told how far the reading of data has come.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        classifier: nn.Module | None = None,
        generator: nn.Module | None = None,
        train_loader: Iterable[Any] | None = None,
        validation_loader: Iterable[Any] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: Progress = silent,
    ) -> None:
        if (train_loader is None) != (validation_loader is None):
            raise ConfigError("give both train_loader and validation_loader, or neither")
        if train_loader is not None and classifier is None:
            raise ConfigError("loaders of your own need a classifier of your own")
        self.config = config or TrainConfig()
        self.method = self.config.chosen_method
        if generator is not None and not self.method.needs_generator:
            raise ConfigError(f"method {self.method.name!r} has no generator")
        own = {"classifier": classifier is not None, "generator": generator is not None}
        if overruled := idle_beside_own(self.config, **own, loaders=train_loader is not None):
            name, reason = next(iter(overruled.items()))
            raise ConfigError(f"{name} has no effect: {reason}")
        self.classifier, self.generator = classifier, generator
        self.train_loader, self.validation_loader = train_loader, validation_loader
        self.callbacks, self.progress = tuple(callbacks), progress
        self._checkpoint: Checkpoint | None = None

    def fit(self) -> History:
        """Train to the end, or until a signal, and write the run folder; as one of several ranks under torchrun.

        Raises FastgatError with a one-line reason; the last good checkpoint stays.
        """
        config = self.config
        check_restarts(config.output)
        device = pick_device(config.run.device, local_rank())
        with (
            seeded(config.seed, device, config.run.deterministic),
            tf32(config.precision.tf32),
            mixed_precision(device, None),  # a caller's; the step has its own
            parametrizations_uncached(),
            connected(device) as ranks,
            HeldFolder() as held,
        ):
            # Before its checkpoint is read: from here on nobody else writes in its folder.
            ranks.from_first(lambda: held.lock(run_folder(config.resume, config.output)))
            loop, images = self._prepare(device, ranks, held.claim)
            ranks.from_first(lambda: held.open(loop.folder, self._checkpoint, images))
            summary = loop.run()
            loop.stepper.release()
        return History(loop.position.epochs, summary, loop.folder)

    def prepare(self) -> Loop:
        """Everything short of training: data, device, networks and checkpoint, in place; nothing is written.

        Raises FastgatError where one of them is not as it must be.
        """
        device = pick_device(self.config.run.device, local_rank())
        with connected(device) as ranks:
            return self._prepare(device, ranks, lambda folders: next(f for f in folders if not f.exists()))[0]

    def _prepare(
        self, device: torch.device, ranks: Ranks, choose_folder: Callable[[Iterable[Path]], Path]
    ) -> tuple[Loop, Identity | None]:
        """The loop, and the identity of its images (None for CIFAR and loaders of one's own).

        `choose_folder` picks the folder of a new run among possible names.
        """
        self._check_same_settings(device, ranks)
        self._checkpoint = checkpoint = self._find_checkpoint(ranks)
        feed = self._agreed_feed(device, ranks)
        start = step_of(checkpoint) if checkpoint is not None else 0
        sample, batches = ranks.agree(lambda: feed.training_batches(start))
        ranks.check_same({"the shape of their batches": tuple(sample.images.shape)})
        networks = ranks.agree(lambda: self._networks(feed, device, ranks))
        players = networks.classifier, networks.generator
        state = assemble(self.config, *players, sample, num_classes=feed.num_classes, ranks=ranks)
        config = self._resolved_config(feed, ranks, choose_folder)
        assert config.output is not None
        compiled, why_not = self._all_ranks_compile(device, ranks)
        own = self.classifier is not None
        loop = Loop(
            Stepper(state, self.method, config.run, compiled=compiled),
            config,
            feed.train,
            feed.validation,
            feed.test,
            sample=sample,
            batches=batches,
            folder=config.output,
            header={
                "config": config.to_dict(),
                "model": model_header(config.model, self.method, feed, sample.images.shape[2:], own=own),
                "data": feed.identity.record() if feed.identity else None,
                "extra_data": feed.extra,
            },
            facts=run_facts(config, feed, state, own=own, weights=networks.weights, uncompiled=why_not),
            callbacks=[RunFolder(config.output, config), *self._optional_callbacks(config.output), *self.callbacks],
        )
        if checkpoint is not None:
            ranks.agree(lambda: self._restore(loop, checkpoint, config, feed))
        return loop, feed.identity

    def _check_same_settings(self, device: torch.device, ranks: Ranks) -> None:
        """Raises RankError where other ranks run something else."""
        asked = {
            key: value
            for key, value in flatten(self.config.to_dict())
            if key.partition(".")[0] not in PER_RANK_SETTINGS
        }
        versions = {"torch": torch.__version__, "fastgat": version("fastgat-trainer")}
        ranks.check_same({**deciding_settings(self.config), **asked, **versions, "their kind of device": device.type})

    def _find_checkpoint(self, ranks: Ranks) -> Checkpoint | None:
        """The one to go on from, as rank 0 finds it."""
        resume, folder = self.config.resume, self.config.output
        again = any(ranks.gather(restarted()))
        return ranks.from_first(lambda: find_checkpoint(after_restart(resume, folder, again), folder))

    def _agreed_feed(self, device: torch.device, ranks: Ranks) -> Feed:
        """The data, the same on every rank, with at least one full batch."""
        size = self.config.batch_size
        feed = ranks.local_first(lambda: self._feed(ranks.share_of(size), device, ranks))
        ranks.check_same({"their data": feed.fingerprint, "batches an epoch": feed.train.batches_per_epoch})
        if not feed.train.batches_per_epoch:
            raise ConfigError(f"no full batch in an epoch: batch_size {size} is larger than the training set")
        return feed

    def _networks(self, feed: Feed, device: torch.device, ranks: Ranks) -> Networks:
        """The players, on their device, tried on images of the validation set."""
        own, fresh = (self.classifier, self.generator), self._checkpoint is None
        networks = make_networks(self.config.model, self.method, feed, device, own, fresh=fresh)
        batch = next(feed.validation.once(), None)
        if batch is not None or ranks.alone:  # if this rank has any
            images = batch.images if batch is not None else None
            check_networks(networks.classifier, networks.generator, images, self.method, feed.num_classes)
        return networks

    def _resolved_config(
        self, feed: Feed, ranks: Ranks, choose_folder: Callable[[Iterable[Path]], Path]
    ) -> TrainConfig:
        """The settings with what they left open: data set, folder, and the rule that picks an epoch."""
        given, checkpoint = self.config, self._checkpoint
        size = given.batch_size if feed.sample is None else len(feed.sample.labels) * ranks.count
        return replace(
            given,
            batch_size=size,
            data=replace(given.data, dataset=feed.name, changed_data=False),
            output=ranks.from_first(lambda: self._folder(feed, choose_folder)),
            select=given.select or (settings_of(checkpoint).select if checkpoint else given.rule),
            resume=None,
        )

    def _folder(self, feed: Feed, choose_folder: Callable[[Iterable[Path]], Path]) -> Path:
        """The one asked for, or that of the run which goes on, or a new one."""
        resumed = self._checkpoint.path.parent if self._checkpoint is not None else None
        names = new_folders(feed.name, self.method.name, self.config.seed)
        return self.config.output or resumed or choose_folder(names)

    def _all_ranks_compile(self, device: torch.device, ranks: Ranks) -> tuple[bool, str | None]:
        """Whether all ranks compile the step; where they do not, and nobody asked for that, why."""
        compiled, why_not = ranks.agree(lambda: whether_to_compile(self.config.run.compile, device))
        if not all(ranks.gather(compiled)):
            return False, why_not or "NOT compiled, as another rank cannot"
        return compiled, why_not

    def _restore(self, loop: Loop, checkpoint: Checkpoint, config: TrainConfig, feed: Feed) -> None:
        check_same_run(checkpoint, config)
        check_not_past(checkpoint, config)
        check_same_classes(checkpoint.path, checkpoint.header, feed.classes)
        if feed.identity is not None:
            feed.identity.check(checkpoint.path, checkpoint.header, changed=self.config.data.changed_data)
        if checkpoint.header.get("extra_data") != feed.extra:
            raise DataError(f"{checkpoint.path}: what {config.data.extra_data} holds has changed since it was made")
        loop.restore(checkpoint.tensors, checkpoint.header)

    def _feed(self, share: int, device: torch.device, ranks: Ranks) -> Feed:
        config = self.config
        if self.train_loader is not None and self.validation_loader is not None:
            assert self.classifier is not None
            channels_last = config.precision.channels_last
            return own_feed(self.classifier, self.train_loader, self.validation_loader, device, channels_last)
        rule = split_rule(None if self._checkpoint is None else self._checkpoint.header)
        return dataset_feed(config, share, device, ranks, self.progress, rule)

    def _optional_callbacks(self, output: Path) -> Iterator[Callback]:
        if self.config.run.early_stopping is not None:
            yield EarlyStopping(self.config.run.early_stopping)
        if self.config.run.tensorboard:
            yield TensorBoard(output)


def new_folders(dataset: str, method: str, seed: int) -> Iterator[Path]:
    """Folders in runs/ for a new run, named by the time and what it is; one of them is free."""
    short = re.sub(r"[^\w.-]+", "-", Path(dataset.partition(":")[2]).name or dataset)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{short}-{method}-seed{seed}"
    return (Path("runs") / (name + suffix) for suffix in ("", *(f"-{n}" for n in range(2, 1000))))


def whether_to_compile(wanted: bool | None, device: torch.device) -> tuple[bool, str | None]:
    """Whether to compile the step; where not, and nobody asked for that, why.

    Raises DeviceError or CompileError where the compiler that is needed is not installed.
    """
    missing = missing_compiler(device)
    if missing is not None and device.type == "cuda":
        raise DeviceError(f"Triton needs {missing}, for its kernels on a GPU; none is installed")
    if wanted is False:
        return False, "not compiled, as asked for"
    if missing is None:
        return True, None
    if wanted:
        raise CompileError(f"--compile needs {missing}; none is installed")
    return False, f"NOT compiled, and so slower: that needs {missing}; none is installed"
