"""Exported classifiers give the logits of the trained one, read back by programs that know nothing of fastgat."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import fastgat.export
from fastgat import TrainConfig, Trainer, load_classifier, load_weights
from fastgat.config import DataConfig, ModelConfig, RunConfig
from fastgat.errors import ConfigError, FastgatError
from fastgat.evaluation import RunSettings, evaluate_run
from fastgat.export import export
from fastgat.models import Classifier
from tests.engine.small import Small, config, trainer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    data, run = DataConfig(dataset="digits", train_images=64), RunConfig(compile=False, device="cpu")
    Trainer(TrainConfig(method="baseline", epochs=1, batch_size=32, data=data, run=run, output=folder)).fit()
    return folder


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32)


def test_weights(run_folder: Path, tmp_path: Path) -> None:
    path = export(run_folder, output=tmp_path / "weights.safetensors")
    classifier = Classifier()
    classifier.load_state_dict(safetensors.torch.load_file(path))
    given = images()
    torch.testing.assert_close(classifier.eval()(given), load_classifier(run_folder)(given))
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["fastgat.model"])["num_classes"] == 10


class Shifted(Small):
    """Adds a running mean of its logits, which no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        logits = super().forward(given)
        if self.training:
            self.get_buffer("shift").lerp_(logits.detach().mean(0), 0.1)
        return logits + self.get_buffer("shift")


def test_weights_that_lack_what_training_has_changed_are_not_written(tmp_path: Path) -> None:
    run = trainer(config(tmp_path / "run", method="baseline", epochs=1), Shifted).fit().output
    with pytest.raises(FastgatError, match="the buffer shift is not persistent: no state_dict has it"):
        export(run, classifier=Shifted(), image_size=8)
    assert not list(run.glob("classifier*"))


def sized_later(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3, stride=4), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_factory_whose_layers_take_their_sizes_from_the_images(tmp_path: Path) -> None:
    own = "tests.test_export:sized_later"
    settings = TrainConfig(
        method="baseline",
        epochs=1,
        batch_size=32,
        data=DataConfig(dataset="digits", train_images=64),
        model=ModelConfig(classifier=own),
        run=RunConfig(compile=False, device="cpu"),
        output=tmp_path / "run",
    )
    run = Trainer(settings).fit().output
    weights = safetensors.torch.load_file(export(run, classifier=own))
    trained = load_classifier(run, classifier=own)
    assert weights.keys() == trained.state_dict().keys()
    assert all(tensor.equal(weights[name]) for name, tensor in trained.state_dict().items())
    with pytest.raises(ConfigError, match=r"do not take images of shape \(3, 3, 40, 40\): mat1 and mat2"):
        export(run, classifier=own, image_size=40, output=tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()
    with pytest.raises(ConfigError, match="take their sizes from its first batch"):
        load_weights(sized_later(10), run)
    again = replace(settings, model=ModelConfig(classifier=own, init_from=run), output=tmp_path / "again")
    assert Trainer(again).fit().summary is not None
    elsewhere = RunSettings(weights=tmp_path / "run" / "classifier.safetensors", dataset="digits", device="cpu")
    (evaluated, plain) = (
        evaluate_run(*given, classifiers=own, clean_only=True).clean for given in ((None, elsewhere), (str(run),))
    )
    assert evaluated is not None
    assert plain is not None
    assert evaluated.accuracy == plain.accuracy


@pytest.mark.slow
def test_a_program(run_folder: Path) -> None:
    path = export(run_folder, "torch-export")
    assert path == run_folder / "classifier.pt2"
    program = torch.export.load(path).module()
    for count in (1, 7):
        given = images(count)
        torch.testing.assert_close(program(given), load_classifier(run_folder)(given), rtol=1e-4, atol=1e-5)


def test_a_program_that_a_fresh_process_cannot_read_is_not_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(classifier: nn.Module, model: object, given: torch.Tensor, path: Path) -> fastgat.export.Exported:
        path.write_bytes(b"no program")
        return fastgat.export._read_back("torch-export", path)

    monkeypatch.setitem(fastgat.export.EXPORTERS, "torch-export", broken)
    with pytest.raises(FastgatError, match="the torch-export export cannot be read back: "):
        export(run_folder, "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from onnx.reference import ReferenceEvaluator

    path = export(run_folder, "onnx", tmp_path / "classifier.onnx")
    given = images(7)
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": given.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), load_classifier(run_folder)(given), rtol=1e-4, atol=1e-5)


def test_what_gives_other_logits_is_not_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(classifier: nn.Module, model: object, given: torch.Tensor, path: Path) -> fastgat.export.Exported:
        path.write_bytes(b"wrong")
        return lambda batches: [Classifier().eval()(images) for images in batches]

    monkeypatch.setitem(fastgat.export.EXPORTERS, "safetensors", wrong)
    with pytest.raises(FastgatError, match="other logits"):
        export(run_folder, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_ones_own_cannot_be_built_here(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run"), Small).fit()
    with pytest.raises(FastgatError, match="a classifier of its own"):
        export(tmp_path / "run")
    path = export(tmp_path / "run", classifier=Small())
    fresh = Small()
    fresh.load_state_dict(safetensors.torch.load_file(path))
    given = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fresh.eval()(given), load_classifier(tmp_path / "run", classifier=Small())(given))


class Flat(nn.Module):
    """Takes images of 4 x 6 pixels and no others; its weight is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.weight_norm(nn.Linear(3 * 4 * 6, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


def flat_run(folder: Path) -> Path:
    loader = [(torch.rand(2, 3, 4, 6), torch.tensor([0, 3]))]
    settings = config(folder, method="baseline", epochs=1)
    Trainer(settings, classifier=Flat(), train_loader=loader, validation_loader=loader).fit()
    return folder


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_images_of_the_shape_of_training(tmp_path: Path) -> None:
    run = flat_run(tmp_path / "run")
    path = export(run, classifier=Flat())
    fresh = Flat()
    fresh.load_state_dict(safetensors.torch.load_file(path))
    given = torch.rand(2, 3, 4, 6)
    torch.testing.assert_close(fresh.eval()(given), load_classifier(run, classifier=Flat())(given))
    for sides in ((4,), (0, 6), 10**6):
        with pytest.raises(ConfigError, match="image_size must be one or two numbers"):
            export(run, classifier=Flat(), image_size=sides)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.slow
def test_a_program_too_large_for_one_file(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pytest.importorskip("torch.onnx._internal.exporter._onnx_program", reason="another torch")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 1000)
    path = export(run_folder, "onnx", tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    onnx.checker.check_model(onnx.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_full_disk(run_folder: Path, tmp_path: Path, format: str) -> None:
    """A limit of the operating system, in a process of its own; what was there stays."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    target = tmp_path / "out"
    target.write_text("before")
    done = subprocess.run(
        [sys.executable, "-m", "fastgat", "export", run_folder, "--format", format, "--output", target],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be written: File too large" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onxx"}, "did you mean 'onnx'"),
        ({"checkpoint": "bset"}, "unknown checkpoint 'bset'"),
        ({"output": "."}, "is a folder"),
        ({"image_size": "32"}, "one or two numbers of 1 to 8192 pixels, got '32'"),
        ({"image_size": (32.0, 32)}, "one or two numbers of 1 to 8192 pixels"),
        ({"image_size": True}, "one or two numbers of 1 to 8192 pixels, got True"),
        ({"output": "RUN/last.safetensors"}, "is a file of the run"),
        ({"output": "RUN/best-accuracy.safetensors"}, "is a file of the run"),
        ({"output": "RUN/metrics.jsonl"}, "is a file of the run"),
        ({"output": "RUN/evaluation-pictures.png"}, "is a file of the run"),
    ],
)
def test_what_makes_no_sense(run_folder: Path, arguments: dict[str, Any], message: str) -> None:
    if "output" in arguments:
        arguments = {"output": arguments["output"].replace("RUN", str(run_folder))}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=message):
        export(run_folder, **arguments)
    export(run_folder)
    assert torch.get_rng_state().equal(before)
