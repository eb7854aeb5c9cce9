"""The configuration of a run: nested frozen dataclasses, and TOML in and out.

The help texts are those of the command line; every value is checked when a dataclass is made, wherever it comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Self

import tomli_w

from fastgat.data import LOADERS
from fastgat.data import Augmentation as Augmentation
from fastgat.data.bad_samples import POLICIES
from fastgat.data.decoding import MAX_PIXELS
from fastgat.errors import ConfigError
from fastgat.methods import GAT, METHODS, Method, create_method
from fastgat.options import Options, check_unit, convert, declared, option, suggestion
from fastgat.typed import read_toml, shown, type_hints

EXTRA_FRACTION = 0.7
"""What Wang et al. (2023) take for a million extra images of CIFAR-10."""
BEYOND_CUDNN = ("forward", "backward", "stream")
CONVOLUTIONS = ("cudnn", *("+".join(names) for count in (1, 2, 3) for names in combinations(BEYOND_CUDNN, count)))


@dataclass(frozen=True)
class DataConfig(Options):
    """The data set, and how its images reach the step."""

    dataset: str = option(
        "auto", "data set: auto, cifar10, cifar100, digits, folder:PATH (class folders), or webdataset:PATTERN (tars)"
    )
    data_dir: Path | None = option(
        None, "folder that holds the data set  [default: $FASTGAT_DATA, else the user's cache]"
    )
    image_size: int | None = option(
        None, "pixels a side that the images of folder: and webdataset: are scaled to  [default: 32]", at_least=1
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "pixels of the largest image that is decoded; a larger one cannot be read",
        at_least=1,
        at_most=178_956_970,  # what Pillow decodes
    )
    split_seed: int = option(0, "seed of the split into train and validation", at_least=0, at_most=2**63 - 1)
    changed_data: bool = option(
        False, "continue although images have come or gone: those that are still there stay in their split"
    )
    train_images: int | None = option(None, "use only the first N images of the training split", at_least=1)
    extra_data: Path | None = option(
        None,
        "more training images: an .npz file of image, uint8 (N, H, W, C) in the data set's size, and label (N,); they "
        "are kept in memory",
    )
    extra_fraction: float | None = option(
        None, "share of each training batch that is drawn from them  [default: 0.7]", above=0, at_most=1
    )
    loader: str = option(
        "auto",
        "what feeds the step: dali, resident (all images as bytes on the device), torch (DataLoader with Pillow), or "
        "auto: resident for images in memory on a CPU, otherwise DALI where it is installed",
        choices=LOADERS,
    )
    workers: int | None = option(
        None,
        "threads of DALI, or processes of torch's DataLoader  [default: one a core for images in files, else none]",
        at_least=0,
        at_most=1024,
    )
    on_bad_sample: str = option(
        "error",
        "what becomes of an image that cannot be read: error, or skip (another of its batch takes its place)",
        choices=POLICIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_data is None and self.extra_fraction is not None:
            raise ConfigError("extra_fraction is a share of extra_data: name that file, --extra-data FILE.npz")
        if self.extra_data is not None and self.extra_fraction is None:
            object.__setattr__(self, "extra_fraction", EXTRA_FRACTION)


@dataclass(frozen=True)
class ModelConfig(Options):
    """The two networks."""

    classifier: str = option(
        "table1",
        "classifier: table1 (the paper's), preactresnet18, wrn-28-10, wrn-34-10 (or another wrn-DEPTH-WIDTH), a name "
        "from timm, or package.module:factory; preactresnet18-bn has a batch norm before its pooling, -v2 and -v2-bn "
        "shortcuts that start after the first batch norm",
    )
    mean: str | None = option(
        None,
        "mean of each channel, X,X,X, for a layer of the classifier that normalises its input; or dataset: mean and "
        "std as usual for cifar10 or cifar100",
    )
    std: str | None = option(None, "standard deviation of each channel, X,X,X, for that layer")
    init_from: Path | None = option(
        None, "start from these weights: a run, a checkpoint, a .safetensors file, or one that torch.save wrote"
    )
    generator_width: int = option(48, "channels of the generator's hidden layers", at_least=1)
    batch_norm: str = option(
        "both",
        "which forward passes the running statistics of the classifier's batch norm see: clean, perturbed, or both, "
        "as the paper's algorithm in plain PyTorch",
        choices=("clean", "perturbed", "both"),
    )


@dataclass(frozen=True)
class OptimizerConfig(Options):
    """The optimisers and their schedules; the generator's is always Adam."""

    optimizer: str = option("adam", "optimiser of the classifier", choices=("adam", "adamw", "sgd"))
    lr: float = option(1e-3, "learning rate of the classifier", above=0)
    generator_lr: float = option(1e-6, "learning rate of the generator", above=0)
    weight_decay: float | None = option(
        None, "weight decay of the classifier, decoupled in adamw  [default: adamw 0.01, otherwise 0]", at_least=0
    )
    decay_norm: bool = option(True, "weight decay of the weights and biases of layers of normalisation too")
    momentum: float = option(0.9, "momentum of sgd", at_least=0, below=1)
    nesterov: bool = option(False, "sgd with Nesterov's momentum")
    lr_schedule: str = option(
        "constant",
        "learning-rate schedule of both players; cyclic rises from 0 to --lr in half of the steps, and falls again",
        choices=("constant", "cosine", "one-cycle", "multistep", "cyclic"),
    )
    milestones: str | None = option(
        None,
        "epochs at which multistep lowers the learning rate, such as 75,90  [default: after 1/2 and 3/4 of all epochs]",
    )
    lr_decay: float = option(0.1, "factor on the learning rate at each milestone", above=0, at_most=1)
    warmup_epochs: float = option(
        0.0, "epochs in which the learning rate rises to its value, before cosine begins to fall", at_least=0
    )
    clip_grad: float | None = option(None, "clip each player's gradient to this global L2 norm", above=0)
    ema: float | None = option(
        None, "decay of an exponential moving average of the classifier, used for validation", above=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs and self.lr_schedule in ("one-cycle", "cyclic"):
            raise ConfigError(f"lr_schedule {self.lr_schedule!r} begins low by itself: leave out warmup_epochs")
        epochs = self.milestones_of(1)
        if epochs[0] <= 0 or any(b <= a for a, b in pairwise(epochs)):
            raise ConfigError(f"milestones must be above 0 and rise, such as 75,90; got {self.milestones!r}")

    @property
    def decay(self) -> float:
        """The weight decay, given or by default."""
        default = 0.01 if self.optimizer == "adamw" else 0.0
        return default if self.weight_decay is None else self.weight_decay

    def milestones_of(self, epochs: int) -> list[float]:
        """The milestones of a run of so many epochs."""
        if self.milestones is None:
            return [epochs / 2, epochs * 3 / 4]
        return [convert("a number of milestones", text, float) for text in self.milestones.split(",")]


@dataclass(frozen=True)
class PrecisionConfig(Options):
    """The number format and memory layout."""

    amp: bool = option(False, "automatic mixed precision")
    amp_dtype: str = option(
        "auto",
        "number format of --amp: bfloat16, float16 (with dynamic loss scaling, the generator in float32), or auto: "
        "bfloat16 but for a GPU without it",
        choices=("auto", "bfloat16", "float16"),
    )
    tf32: bool = option(False, "TF32 for float32 matrix products and convolutions on a GPU")
    channels_last: bool = option(False, "channels-last memory layout")


@dataclass(frozen=True)
class RunConfig(Options):
    """Where and how a run executes: device, compilation, reports, checkpoints, early stopping."""

    device: str = option("auto", "cpu, cuda, cuda:N, or auto: a GPU where there is one")
    compile: bool | None = option(
        None, "compile the training step; by default where there is a compiler  [default: yes, if possible]"
    )
    cuda_graph: bool = option(True, "on a GPU, replay the compiled step as one CUDA graph")
    convolutions: str = option(
        "cudnn",
        "on a GPU, what replaces parts of cuDNN's work in a compiled step, not measured yet: forward (bias and "
        "ReLU in the convolution's kernel), backward (a ReLU's mask and the bias's gradient in one kernel), stream "
        "(gradients by weights on a second stream), or several as in backward+stream",
        choices=CONVOLUTIONS,
    )
    winograd: bool = option(
        True,
        "on a CPU with channels last, compute the compiled step's 3 x 3 convolutions by Winograd's algorithm, with a "
        "quarter of the multiply-adds and in float32 about five times the rounding error; in bfloat16 not with AMX",
    )
    deterministic: bool = option(False, "only deterministic algorithms: the same run twice gives the same bits")
    log_interval: int = option(50, "steps between two reports", at_least=1)
    checkpoint_interval: int = option(1000, "steps between two checkpoints within an epoch", at_least=1)
    early_stopping: int | None = option(None, "stop after this many epochs without a better validation", at_least=1)
    tensorboard: bool = option(False, "also write TensorBoard event files into the run folder")


@dataclass(frozen=True)
class TrainConfig(Options):
    """Everything that defines a training run.

    `method` is a method object such as `fastgat.methods.GAT(cg=0.5)`, or the name of one with its default options.
    """

    method: Method | str = field(default_factory=GAT)
    epochs: int = option(30, "passes over the classifier's training images", at_least=1)
    batch_size: int = option(128, "images in a minibatch", at_least=1)
    seed: int = option(0, "seed of initialisation, data order and random draws", at_least=0, at_most=2**63 - 1)
    select: str | None = option(
        None,
        "which epoch best.safetensors, evaluate and export use: accuracy (best validation accuracy), loss (lowest "
        "validation loss), last, or robust (best accuracy of 1,000 validation images under PGD-10); a run keeps the "
        "first three, and with robust all four  [default: robust for "
        f"{', '.join(name for name, method in METHODS.items() if method.select == 'robust')}, otherwise accuracy]",
        choices=("accuracy", "loss", "last", "robust"),
    )
    select_epsilon: float | None = option(
        None, "size of the perturbations that select robust judges by  [default: the method's epsilon]", at_least=0
    )
    select_norm: str | None = option(
        None, "norm of that size  [default: the method's; linf where it has none]", choices=("linf", "l2")
    )
    output: Path | None = option(None, "run folder  [default: runs/TIME-DATASET-METHOD-seedSEED]")
    resume: str | None = option(None, "continue: auto (the run in --output, if any), a run folder, or a checkpoint")
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.method, str):
            object.__setattr__(self, "method", create_method(self.method))
        for name, kind in {"method": Method, **TABLES}.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} must be an object of {kind.__name__}, got {shown(getattr(self, name))}")
        if self.select == "last" and self.run.early_stopping is not None:
            raise ConfigError("early_stopping waits for a better epoch: select must be another rule than last")
        if self.rule == "robust":
            _ = self.threat
        elif (self.select_epsilon, self.select_norm) != (None, None):
            raise ConfigError(f"select_epsilon and select_norm are for select robust, not {self.rule}")
        if self.optimizer.warmup_epochs >= self.passes:
            raise ConfigError(f"warmup_epochs must be less than the {self.passes} epochs of the run")
        if self.resume == "auto" and self.output is None:
            raise ConfigError("resume 'auto' continues the run in --output: name that folder")

    @property
    def chosen_method(self) -> Method:
        """The method as an object, also where its name was given."""
        assert isinstance(self.method, Method)
        return self.method

    @property
    def passes(self) -> int:
        """Passes over the data: the epochs, unless the method divides them."""
        return self.chosen_method.passes(self.epochs)

    @property
    def rule(self) -> str:
        """The rule that picks the epoch: `select`, or the method's own."""
        return self.select or self.chosen_method.select

    @property
    def threat(self) -> tuple[str, float]:
        """Norm and epsilon of the perturbations that select robust judges by; raises ConfigError where none is said."""
        method = self.chosen_method
        norm = self.select_norm or method.norm
        of_method = getattr(method, "epsilon", None) if norm == method.norm else None
        epsilon = of_method if self.select_epsilon is None else self.select_epsilon
        if epsilon is None:
            raise ConfigError(
                f"select robust: {method.name} has no epsilon in {norm}; give select_epsilon, such as 8/255"
            )
        check_unit("select_epsilon", epsilon, norm)
        return norm, epsilon

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values as TOML has them: settings that are None are left out, paths are text."""
        method = {"name": self.chosen_method.name, **_plain(self.method)}
        tables = {name: _plain(getattr(self, name)) for name in TABLES}
        return {**_plain(self), "method": method, **tables}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_run(cls, values: Mapping[str, Any], where: str | None = None) -> Self:
        """The settings that a run has saved; where it was an earlier version, with what that left unsaid."""
        return cls.from_dict(of_run(values), where)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str | None = None) -> Self:
        """The inverse of `to_dict`; raises ConfigError, naming `where`, for unknown keys and bad values."""
        try:
            return cls(**_read(dict(values)))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from None


TABLES: dict[str, type] = {
    name: kind for name, kind in type_hints(TrainConfig).items() if isinstance(kind, type) and issubclass(kind, Options)
}
"""The settings that are tables of settings: their dataclasses."""


def load_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, `method = "NAME"` as a table too; raises ConfigError if it cannot be read."""
    try:
        values = read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    if isinstance(values.get("method"), str):
        values["method"] = {"name": values["method"]}
    return values


def of_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `TrainConfig.to_dict` returns them, with what earlier versions left unsaid: GAT held Delta fixed."""
    method = dict(values.get("method", {}))
    if method.get("name") in ("gat", "dropout-gat"):
        method = {"delta": "fixed", **method}
    return {**values, "method": method} if method else dict(values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables merged; `over` wins where both have a key.

    Another method than that of `base` takes none of its options along.
    """
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if not isinstance(value, Mapping) or not isinstance(below, Mapping):
            merged[key] = value
        elif key == "method" and value.get("name", _name(below)) != _name(below):
            merged[key] = dict(value)
        else:
            merged[key] = merge(below, value)
    return merged


def _name(method: Mapping[str, Any]) -> Any:
    return method.get("name", GAT.name)


def _read(values: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from nested tables."""
    method = _table(values.pop("method", {}), "method")
    name = method.pop("name", GAT.name)
    if not isinstance(name, str):
        raise ConfigError(f"method.name must be of type str, got {shown(name)}")
    arguments: dict[str, Any] = {"method": create_method(name, **method)}
    for table, kind in TABLES.items():
        content = _table(values.pop(table, {}), table)
        _check_keys(content, kind, f"{table}.")
        arguments[table] = kind(**content)
    _check_keys(values, TrainConfig, "")
    return arguments | values


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a table, got {shown(value)}")
    return dict(value)


def _check_keys(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {shown(prefix + key)}{suggestion(key, known)}")


def _plain(settings: Any) -> dict[str, Any]:
    values = {f.name: getattr(settings, f.name) for f in declared(settings)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items() if v is not None}
