"""Evaluate the classifier of a run folder on the data set that it was trained on."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgat.attacks import GeneratorTraining
from fastgat.config import DataConfig, TrainConfig
from fastgat.data import DataSet, Images, Loader, create_loader, load_dataset
from fastgat.data.bad_samples import POLICIES
from fastgat.data.download import Progress
from fastgat.data.identity import Identity, split_rule
from fastgat.data.registry import CUSTOM, silent, users_images
from fastgat.engine.accuracy import score
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.device import pick_device, tf32
from fastgat.engine.load import CHECKPOINTS, checkpoint_path, trained_classifier
from fastgat.engine.run_checkpoints import BEST, check_same_classes
from fastgat.engine.weights import load_weights
from fastgat.errors import ConfigError, DataError, NonFiniteError
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.inputs import Batches, random_subset
from fastgat.evaluation.protocol import evaluate
from fastgat.evaluation.results import CleanResult, Evaluation, EvaluationSettings
from fastgat.functional import size_lazy_layers
from fastgat.models import create_classifier, normalization
from fastgat.options import Options, option
from fastgat.reporting.environment import environment

DEFAULT_SAMPLES = 100  # samples to attack where all of them would take too long
BLOCK = 256  # samples that are read, and whose results are kept, together
CURVE_SAMPLES = 1000  # the least number of samples for curves, which cost little
VALIDATION_SAMPLES = 256  # samples that decide when a generator's training stops


@dataclass(frozen=True)
class RunSettings(Options):
    """Which network of a run is evaluated, and on which images."""

    checkpoint: str = option(
        "best",
        "checkpoint of the run: best, by its --select; accuracy, loss or robust, of the epoch of the highest "
        "validation accuracy, the lowest validation loss or the highest robust accuracy; last",
        choices=tuple(CHECKPOINTS),
    )
    split: str = option("test", "which images", choices=("test", "validation"))
    data_dir: Path | None = option(
        None,
        "where the images are now: the data set's folder, or PATH or PATTERN without folder: or webdataset:  "
        "[default: as in training]",
    )
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")
    on_bad_sample: str = option("error", "what becomes of an image that cannot be read", choices=POLICIES)
    changed_data: bool = option(False, "evaluate even if images were added or removed since training")
    weights: Path | None = option(
        None,
        "in place of RUN, weights from elsewhere: a .safetensors file, or one that torch.save wrote, with --classifier "
        "and --dataset",
    )
    dataset: str | None = option(None, "data set for --weights, as fastgat train takes it")
    mean: str | None = option(
        None, "for --weights, mean of each channel in the network's normalisation of its input, X,X,X, or dataset"
    )
    std: str | None = option(None, "for --weights, standard deviation of each channel, X,X,X")
    image_size: int | None = option(
        None,
        "for --weights, pixels a side that images of folder: or webdataset: are scaled to  [default: 32]",
        at_least=1,
    )
    samples: int | None = option(DEFAULT_SAMPLES, "images to attack", at_least=1)
    generator_images: int = option(1000, "images to train a fresh generator on, at most", at_least=64)
    generator_epochs: int = option(4, "passes over them, at most", at_least=1)


class LoadedRun(NamedTuple):
    """A run's classifier on its device, and where it came from."""

    path: Path
    classifier: nn.Module
    header: dict[str, Any]
    data: DataConfig
    notes: Sequence[str] = ()


class RunData:
    """The images that a network is evaluated on.

    With the `header` of its checkpoint at `path` they must be those of its run. Raises ConfigError or DataError where
    they are not, or cannot be had.
    """

    def __init__(
        self,
        path: Path,
        data: DataConfig,
        settings: RunSettings,
        batch_size: int,
        device: torch.device,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.batch_size, self.device = settings, batch_size, device
        self.name, folder = data.dataset, settings.data_dir or data.data_dir
        if self.name == CUSTOM:
            raise ConfigError(
                f"{path}: was trained on loaders of one's own, which no checkpoint has: evaluate its classifier "
                "in Python, with fastgat.evaluation.evaluate"
            )
        if self.name == "digits" and settings.data_dir is not None:
            raise ConfigError("data_dir has no effect: digits are part of fastgat")
        if users_images(self.name) is not None:
            folder = None
            if settings.data_dir:
                self.name = f"{self.name.partition(':')[0]}:{settings.data_dir}"
        rule = split_rule(header)
        self.images: DataSet[Images] = load_dataset(
            self.name, folder, data.split_seed, image_size=data.image_size, max_pixels=data.max_pixels, rule=rule
        )
        self.name = self.images.name if self.name == "auto" else self.name
        self.part = {"test": self.images.test, "validation": self.images.validation}[settings.split]
        if not len(self.part):
            raise DataError(f"{self.images.name} has no {settings.split} images: try --split validation")
        if header is not None:
            check_same_classes(path, header, self.images.classes)
            if identity := Identity.of(self.images, rule):
                identity.check(path, header, changed=settings.changed_data)

    def loader(self, images: Images, batch_size: int | None = None) -> Loader:
        """A loader of `images` on the device."""
        size, policy = batch_size or self.batch_size, self.settings.on_bad_sample
        return create_loader("auto", images, size, device=self.device, on_bad_sample=policy)

    def subset(self, images: Images, count: int | None, seed: int) -> Batches:
        """`count` of `images`, chosen at random by `seed`, or all of them (None)."""
        return Batches(self.loader(random_subset(images, count, seed)).once)


def load_run(run: Path, checkpoint: str, device: torch.device, classifiers: Collection[str] = ()) -> LoadedRun:
    """Raises CheckpointError where there is no such checkpoint, no classifier in it, or a factory that is not named."""
    path = checkpoint_path(run, checkpoint)
    tensors, header = load_checkpoint(path)
    classifier = trained_classifier(path, tensors, header, classifier=classifiers).to(device)
    return LoadedRun(path, classifier, header, TrainConfig.from_dict(header["config"], str(path)).data)


def load_foreign(
    settings: RunSettings, classifiers: Collection[str], batch_size: int, device: torch.device
) -> tuple[LoadedRun, RunData]:
    """The network whose weights are in `settings.weights`, and the images to evaluate it on.

    Raises CheckpointError where they cannot be read or do not fit, ConfigError where the settings do not say enough.
    """
    path = settings.weights
    assert path is not None
    if not classifiers or settings.dataset is None:
        missing = "--dataset: which images to evaluate it on" if classifiers else "--classifier: which network it is of"
        raise ConfigError(f"--weights needs {missing}")
    data = DataConfig(dataset=settings.dataset, image_size=settings.image_size)
    if settings.changed_data:
        raise ConfigError("changed_data is for a run, whose checkpoint lists its images; --weights has no such list")
    if path.is_dir() or settings.checkpoint != "best":
        path = checkpoint_path(path, settings.checkpoint)
    images = RunData(path, data, settings, batch_size, device)
    normalise = normalization(settings.mean, settings.std, images.images.name)
    name, (*image_size, channels) = next(iter(classifiers)), images.images.train.shape
    classifier = create_classifier(name, len(images.images.classes), channels, normalization=normalise)
    size_lazy_layers(classifier, channels, image_size)
    notes = load_weights(classifier, path)
    return LoadedRun(path, classifier.to(device).eval(), {"model": {"classifier": name}}, data, notes), images


def evaluate_clean(loaded: LoadedRun, others: dict[str, LoadedRun], data: RunData, progress: Progress) -> CleanResult:
    """Clean accuracy and cross entropy on the whole split. Raises NonFiniteError where that is NaN or infinite."""
    settings, loader = data.settings, data.loader(data.part)
    progress("clean images", 0, len(data.part))
    with tf32(False):
        accuracy, loss, samples = score(loaded.classifier, loader.once())
    progress("clean images", len(data.part), len(data.part))
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{loaded.path}: the cross entropy of its {settings.split} images is {loss}: the network returns logits "
            "that are NaN or infinite, and its answers mean nothing"
        )
    return CleanResult(
        checkpoint=loaded.path.name,
        dataset=data.name,
        split=settings.split,
        samples=samples,
        accuracy=accuracy,
        loss=loss,
        skipped_samples=len(loader.skipped),
        run=str(loaded.path),
        other_runs={name: str(other.path) for name, other in others.items()},
        run_settings={k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        classes=list(data.images.classes),
        environment=environment(),
        weights=list(loaded.notes),
    )


def evaluate_run(
    run: Path | str | None,
    settings: RunSettings | None = None,
    attacks: EvaluationSettings | None = None,
    *,
    sources: Sequence[Path | str] = (),
    networks: Sequence[Path | str] = (),
    classifiers: Collection[str] = (),
    cgs: Sequence[float] = (1.0,),
    clean_only: bool = False,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a trained classifier: clean accuracy, and what attacks leave of it.

    Args:
        run: a run folder or a checkpoint; None where `settings.weights` names a file of weights from elsewhere.
        sources, networks: other runs, as in `evaluate`.
        classifiers: factories ("package.module:factory") that these runs may name and that may be imported; for weights
            from elsewhere, first the name of their classifier.
        cgs: c_g of each generator that is trained against the classifier.
        clean_only: its accuracy on clean images, and nothing else.

    Raises FastgatError if checkpoints, data or settings are not as they must be.
    """
    settings, attacks = settings or RunSettings(), attacks or EvaluationSettings()
    run = None if run is None else Path(run)
    origins, more = ([Path(path) for path in paths] for paths in (sources, networks))
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    seed, count = attacks.seed, settings.samples
    generators = [GeneratorTraining(cg=cg, epochs=settings.generator_epochs, seed=seed) for cg in cgs]
    device = pick_device(settings.device)
    loaded, data = _load(run, settings, classifiers, attacks.batch_size or BLOCK, device)
    names = _names(settings.weights or run or loaded.path, origins, more)
    others = {
        name: load_run(path, settings.checkpoint if path.is_dir() else "best", device, classifiers)
        for name, path in zip(names[1:], (*origins, *more), strict=True)
    }
    for other in others.values():
        check_same_classes(other.path, other.header, data.images.classes)
    _check_named(classifiers, [loaded, *others.values()])
    clean = evaluate_clean(loaded, others, data, progress)
    if clean_only:
        return Evaluation(clean)
    modules = [(name, other.classifier) for name, other in others.items()]
    training = random_subset(data.images.train, settings.generator_images, seed)
    attacked = evaluate(
        loaded.classifier,
        data.subset(data.part, count, seed),
        attacks,
        name=names[0],
        networks=dict(modules[len(origins) :]),
        sources=dict(modules[: len(origins)]),
        curve_batches=data.subset(data.part, None if count is None else max(count, CURVE_SAMPLES), seed),
        train=data.loader(training, min(64, len(training))),
        validation=data.subset(data.images.validation, VALIDATION_SAMPLES, seed),
        generators=generators,
        cache=cache,
        progress=progress,
    )
    return Evaluation(clean, attacked.robustness, attacked.examples)


def _load(
    run: Path | None, settings: RunSettings, classifiers: Collection[str], batch_size: int, device: torch.device
) -> tuple[LoadedRun, RunData]:
    """The network of a run, or of `settings.weights`, and the images to evaluate it on."""
    if settings.weights is not None:
        if run is not None:
            raise ConfigError("name a run, or weights from elsewhere, not both")
        return load_foreign(settings, classifiers, batch_size, device)
    if run is None or {settings.dataset, settings.mean, settings.std, settings.image_size} != {None}:
        raise ConfigError("give a RUN or --weights; --dataset, --image-size, --mean and --std are for --weights alone")
    loaded = load_run(run, settings.checkpoint, device, classifiers)
    return loaded, RunData(loaded.path, loaded.data, settings, batch_size, device, loaded.header)


def _check_named(classifiers: Collection[str], runs: Sequence[LoadedRun]) -> None:
    """Raises ConfigError where a classifier is named that none of the runs has, unless one has a classifier unnamed."""
    used = [run.header["model"].get("classifier") for run in runs]
    if None not in used and (others := [name for name in classifiers if name not in used]):
        raise ConfigError(f"--classifier {others[0]}: no run uses it; they use {', '.join(dict.fromkeys(used))}")


def _names(run: Path, sources: Sequence[Path], networks: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell it from the others.

    Raises ConfigError for a run that is given twice.
    """
    places, lengths = [], []
    for path in (run, *sources, *networks):
        is_file, place = not path.is_dir(), path.resolve()
        is_best = is_file and place.name == BEST
        places.append(place.parent if is_best else place.with_suffix("") if is_file else place)
        lengths.append(2 if is_file and not is_best else 1)
        if places.count(places[-1]) > 1:
            raise ConfigError(f"{path} is given twice, as RUN, --source or --network")
    while True:
        names = ["/".join(place.parts[-length:]) for place, length in zip(places, lengths, strict=True)]
        if len(set(names)) == len(names):
            return names
        lengths = [length + (names.count(name) > 1) for name, length in zip(names, lengths, strict=True)]
