"""Export of a trained classifier for other programs, compared with the classifier before the file gets its name."""

import contextlib
import importlib.util
import io
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgat.config import TrainConfig
from fastgat.contract import network_errors_in_one_line
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.load import CHECKPOINTS, checkpoint_path, trained_classifier, untrained_classifier
from fastgat.errors import ConfigError, FastgatError, first_line
from fastgat.files import write_atomically, writing
from fastgat.functional import same_bits
from fastgat.options import suggestion
from fastgat.typed import shown

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}  # formats, and how their files end
ALLOWED = 1e-4  # the largest difference of a logit, relative to the largest logit
SIDE, LARGEST = 32, 8192  # pixels a side where a run does not say, and at most
BATCHES = (1, 3)  # batch sizes that an exported classifier is tried at
RUN_FILES = (
    *("best*.safetensors", "last.safetensors", "config.toml", "environment.json", "metrics.jsonl", "summary.json"),
    *("curves.png", "images.json.gz", "evaluation*.json", "evaluation*.png", "evaluation*.svg", "report.html", ".lock"),
    *("events.out.*", "code.json", "diverged.json", ".whole"),
)
"""What a run folder holds besides exports."""
Exported = Callable[[list[Tensor]], list[Tensor]]
"""From batches of images to the logits that what was exported gives for them."""


@torch.random.fork_rng([])
def export(
    run: Path | str,
    format: str = "safetensors",
    output: Path | str | None = None,
    *,
    checkpoint: str = "best",
    image_size: int | tuple[int, int] | None = None,
    classifier: nn.Module | str | None = None,
) -> Path:
    """Write the classifier of a run in another format, and return the path.

    Args:
        run: a run folder or a checkpoint.
        format: "safetensors", the weights by their names with what is needed to build the network as metadata;
            "torch-export", a program that torch.export.load reads; "onnx". The programs take images (B, C, H, W) in
            [0, 1], float32, for any B, and return logits (B, K).
        output: the file; by default classifier.SUFFIX in the run folder. Beside it lies FILE.data for an onnx program
            that is too large for one file.
        checkpoint: one of `fastgat.engine.load.CHECKPOINTS`.
        image_size: pixels a side of the images, or their height and width, that a program takes and that logits are
            compared on; by default as in training.
        classifier: a module to load into, or "package.module:factory", as for `load_classifier`.

    Raises ConfigError for an `output` that is a file of a run; FastgatError if the run cannot be read, the classifier
    cannot be exported, or what was exported gives other logits; nothing is written then.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"unknown format {format!r}{suggestion(format, SUFFIXES)}")
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"unknown checkpoint {checkpoint!r}; known: {', '.join(CHECKPOINTS)}")
    source = checkpoint_path(run, checkpoint)
    tensors, header = load_checkpoint(source)
    untrained = untrained_classifier(source, header, classifier)
    new = {name: buffer.clone() for name, buffer in untrained.named_buffers() if buffer.layout is torch.strided}
    module = trained_classifier(source, tensors, header, classifier=untrained)
    size = image_size or header["model"].get("image_size")
    if not size:  # of an older checkpoint
        size = TrainConfig.from_dict(header["config"], str(source)).data.image_size or SIDE
    sides = list(size) if isinstance(size, tuple | list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
        raise ConfigError(f"image_size must be one or two numbers of 1 to {LARGEST} pixels, got {shown(size)}")
    seeded = torch.Generator().manual_seed(0)
    batches = [torch.rand(count, header["model"]["in_channels"], *sides, generator=seeded) for count in BATCHES]
    with torch.no_grad(), network_errors_in_one_line(batches[-1]):
        module(batches[-1])
    target = Path(output) if output is not None else source.parent / f"classifier{SUFFIXES[format]}"
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: name the file to write")
    _check_free(target, source)
    model = header["model"] | ({"classifier": None} if isinstance(classifier, nn.Module) else {})
    # Beside the target, so that what is read back is what then gets its name, with the files that belong to it.
    with writing(target), tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        made = Path(folder) / "made" / target.name
        made.parent.mkdir()
        if format == "safetensors":
            _check_persistent(module, new)
        check(module, EXPORTERS[format](module, model, batches[-1], made), batches, format)
        for file in sorted(made.parent.iterdir(), reverse=True):  # data before the program that refers to them
            file.replace(target.with_name(file.name))
    return target


def _check_persistent(classifier: nn.Module, new: dict[str, Tensor]) -> None:
    """Raises FastgatError for a buffer that a state_dict leaves out, and that in a new classifier is another."""
    kept = classifier.state_dict().keys()
    for name, buffer in classifier.named_buffers():
        if name not in kept and name in new and not same_bits(buffer, new[name]):
            raise FastgatError(
                f"the buffer {name} is not persistent: no state_dict has it, and training has changed it; choose "
                "another format; not written"
            )


def _check_free(target: Path, source: Path) -> None:
    """Raises ConfigError where the export would overwrite its own source, or another file of a run."""
    folder = target.parent.resolve()
    in_a_run = folder == source.parent.resolve() or (folder / "config.toml").is_file()
    if target.resolve() == source.resolve() or (in_a_run and any(map(target.match, RUN_FILES))):
        raise ConfigError(f"{target} is a file of the run: choose another --output")


@torch.no_grad()
def check(classifier: nn.Module, exported: Exported, batches: list[Tensor], format: str) -> None:
    """Raises FastgatError unless both give the same logits."""
    for images, actual in zip(batches, exported(batches), strict=True):
        expected = classifier(images)
        error = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))
        if actual.shape != expected.shape or not error <= ALLOWED:
            raise FastgatError(f"the {format} export gives other logits (relative difference {error:.3g}); not written")


def run_program(format: str, program: str, batches: str, logits: str) -> None:
    """Write the logits that an exported program gives for batches of images, from file to file."""
    run = _load_program(format, program)
    with torch.no_grad():
        answers = {name: run(images).contiguous() for name, images in safetensors.torch.load_file(batches).items()}
    safetensors.torch.save_file(answers, logits)


def _load_program(format: str, program: str) -> Callable[[Tensor], Tensor]:
    if format == "torch-export":
        return torch.export.load(program).module()
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(program)

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def _read_back(format: str, path: Path) -> Exported:
    """The program in `path`, loaded and run by a fresh process, to which this one has left nothing but the file."""

    def exported(batches: list[Tensor]) -> list[Tensor]:
        given, logits = (path.parent.parent / f"{name}.safetensors" for name in ("images", "logits"))
        write_atomically(given, safetensors.torch.save({str(i): images for i, images in enumerate(batches)}))
        code = "import sys; from fastgat.export import run_program; run_program(*sys.argv[1:])"
        command = [sys.executable, "-c", code, format, str(path), str(given), str(logits)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise FastgatError(f"the {format} export cannot be read back: {lines[-1]}; not written")
        answers = safetensors.torch.load(logits.read_bytes())
        return [answers[str(i)] for i in range(len(batches))]

    return exported


def _safetensors(classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path) -> Exported:
    # Copies: tensors that share memory (tied weights) are refused.
    tensors = {name: tensor.clone().contiguous() for name, tensor in classifier.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, {"fastgat.model": json.dumps(model)}))
    reread = safetensors.torch.load(path.read_bytes())
    if reread.keys() != tensors.keys():
        raise FastgatError("the safetensors export has other tensors; not written")
    return lambda batches: [torch.func.functional_call(classifier, reread, given) for given in batches]


def _torch_export(classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path) -> Exported:
    with quiet(), traced_by("torch.export"):
        program = torch.export.export(classifier, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        content = io.BytesIO()  # torch's own writer aborts the process where the disk is full
        torch.export.save(program, content)
    write_atomically(path, content.getvalue())
    return _read_back("torch-export", path)


def _onnx(classifier: nn.Module, model: dict[str, Any], images: Tensor, path: Path) -> Exported:
    if missing := [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]:
        raise ConfigError(f"the onnx format needs `pip install 'fastgat-trainer[onnx]'` ({missing[0]} is missing)")
    with quiet(), traced_by("torch.onnx"):
        program = torch.onnx.export(
            classifier,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
    program.save(path)
    return _read_back("onnx", path)


@contextlib.contextmanager
def traced_by(library: str) -> Iterator[None]:
    """Turn whatever keeps a library from taking a classifier into one line, with the cause that it names, if any."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        raise FastgatError(f"{library} cannot take the classifier: {first_line(error.__cause__ or error)}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, and what libraries log about themselves and about what they then raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


EXPORTERS = {"safetensors": _safetensors, "torch-export": _torch_export, "onnx": _onnx}
