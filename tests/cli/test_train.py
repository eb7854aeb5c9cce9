"""fastgat train, evaluate, data and info as a person types them, on digits and a narrow generator."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

import fastgat
from fastgat.errors import FastgatError
from tests.cli.conftest import Run

QUICK = (
    "--dataset",
    "digits",
    "--train-images",
    "64",
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--generator-width",
    "4",
    "--no-compile",
)
BASE = (
    "train",
    "--dataset",
    "digits",
    "--train-images",
    "64",
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--method",
    "baseline",
    "--no-compile",
)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the baseline."""
    from fastgat import TrainConfig, Trainer
    from fastgat.config import DataConfig, RunConfig

    folder = tmp_path_factory.mktemp("runs") / "baseline"
    settings = TrainConfig(
        method="baseline",
        epochs=1,
        batch_size=16,
        output=folder,
        data=DataConfig(dataset="digits", train_images=64),
        run=RunConfig(compile=False),
    )
    Trainer(settings).fit()
    return folder


@pytest.mark.parametrize(
    "method", ["gat", *(pytest.param(name, marks=pytest.mark.long) for name in ("dropout-gat", "baseline"))]
)
def test_a_run_from_start_to_end(run: Run, method: str, tmp_path: Path) -> None:
    small = ("--compile", "--classifier", "tests.support:SmallClassifier")
    quick = [*QUICK, "--channels-last"] if "gat" in method else [*QUICK[:-3], *small]
    if method == "gat":
        quick.append("--amp")
    result = run("train", *quick, "--method", method, "--output", "out")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "digits: 64 / 180 / 360 images" in result.out
    assert "epoch 1/1" in result.out
    assert "test accuracy" in result.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] == method
    assert summary["dataset"] == "digits"


def test_the_default_output_tells_when_what_and_how(run: Run, tmp_path: Path) -> None:
    assert run(*BASE).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-digits-baseline-seed0")


def test_auto_names_the_data_set_and_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from fastgat.data import registry
    from fastgat.data.cifar import CIFAR10

    nowhere = replace(CIFAR10, url="https://nowhere.invalid/cifar-10-python.tar.gz")
    monkeypatch.setattr(registry, "CIFAR10", nowhere)
    result = run("train", "--dry-run", "--generator-width", 4)
    assert result.code == 0, result.err
    assert "for want of CIFAR-10: " in result.out
    assert "cannot be downloaded" in result.out


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("train", *QUICK, "--output", "out", "--dry-run")
    assert result.code == 0
    assert "would run   4 steps, 4 an epoch" in result.out
    assert not (tmp_path / "out").exists()


def test_a_choice_of_passes_without_running_statistics_is_told(run: Run) -> None:
    result = run("train", "--dataset", "digits", "--no-compile", "--batch-norm", "clean", "--dry-run")
    assert result.code == 0
    assert "--batch-norm clean has no effect: the classifier has no running statistics" in " ".join(result.out.split())


def test_print_config_is_a_configuration_file(run: Run, tmp_path: Path) -> None:
    first = run("train", "--method", "fg-linf", "--epsilon", "8/255", "--lr", "3e-4", "--print-config")
    values = tomllib.loads(first.out)
    assert values["method"] == {"name": "fg-linf", "alpha": 0.5, "epsilon": 8 / 255, "clamp": False}
    assert values["optimizer"]["lr"] == 3e-4
    (tmp_path / "settings.toml").write_text(first.out)
    assert run("train", "--config", "settings.toml", "--print-config").out == first.out


def test_the_command_line_goes_over_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        'method = "gat"\nseed = 5\n[optimizer]\nlr = 0.5\n[precision]\namp = true\n'
    )
    values = tomllib.loads(run("train", "--config", "settings.toml", "--seed", 6, "--cg", 2, "--print-config").out)
    assert (values["seed"], values["optimizer"]["lr"], values["method"]["cg"]) == (6, 0.5, 2.0)
    assert tomllib.loads(run("train", "--config", "settings.toml", "--no-amp", "--print-config").out)["precision"] == {
        "amp": False,
        "amp_dtype": "auto",
        "tf32": False,
        "channels_last": False,
    }


def test_another_method_takes_none_of_the_file_s_options_along(run: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[method]\nname = "gat"\ncg = 3.0\n')
    values = tomllib.loads(run("train", "--config", "settings.toml", "--method", "fg-l2", "--print-config").out)
    assert values["method"] == {"name": "fg-l2", "alpha": 0.5, "epsilon": 0.5, "clamp": False}


def test_a_run_goes_on_with_its_own_settings(run: Run, tmp_path: Path) -> None:
    assert run(*BASE, "--seed", 3, "--output", "out").code == 0
    result = run("train", "--resume", "auto", "--output", "out", "--epochs", 2)
    assert result.code == 0, result.err
    assert "continues   after step 4 (epoch 1 of 2)" in result.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["method"], summary["seed"], summary["epochs"]) == ("baseline", 3, 2)
    assert run("train", "--resume", "out", "--epochs", 3).code == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["epochs"] == 3


def test_a_copied_run_goes_on_where_it_lies(run: Run, tmp_path: Path) -> None:
    assert run(*BASE, "--output", "out").code == 0
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    before = (tmp_path / "out" / "last.safetensors").read_bytes()
    assert run("train", "--resume", "copy", "--epochs", 2).code == 0
    assert json.loads((tmp_path / "copy" / "summary.json").read_text())["epochs"] == 2
    assert (tmp_path / "out" / "last.safetensors").read_bytes() == before
    elsewhere = run("train", "--resume", "out", "--output", "new", "--epochs", 2)
    assert elsewhere.code == 0, elsewhere.err
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["test_accuracy"] is not None
    taken = run("train", "--resume", "out", "--output", "copy", "--epochs", 3)
    assert taken.code == 2
    assert "copy holds another run already" in taken.err


def test_resume_and_method_may_stand_in_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('resume = "auto"\n[method]\ncg = 3.0\n')
    printed = run("train", "--config", "settings.toml", "--output", "out", "--method", "gat", "--print-config")
    assert tomllib.loads(printed.out)["method"]["cg"] == 3.0


def test_resume_auto_starts_afresh_where_there_is_no_run(run: Run, tmp_path: Path) -> None:
    assert run(*BASE, "--output", "new", "--resume", "auto").code == 0
    assert (tmp_path / "new" / "summary.json").exists()


def test_tensorboard_files(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert run(*BASE, "--output", "out", "--tensorboard").code == 0
    (events,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert b"validation/accuracy" in events.read_bytes()


def test_evaluate_repeats_the_run_s_own_figures(run: Run, baseline: Path) -> None:
    summary = json.loads((baseline / "summary.json").read_text())
    result = run("evaluate", baseline, "--clean")
    assert result.code == 0, result.err
    evaluation = json.loads((baseline / "evaluation-clean.json").read_text())
    assert evaluation["samples"] == 360
    # The run judged under mixed precision, the evaluation judges in float32.
    assert evaluation["accuracy"] == pytest.approx(summary["test_accuracy"], abs=0.02)
    assert f"{evaluation['accuracy']:.2%}" in result.out
    assert run("evaluate", baseline, "--clean", "--split", "validation", "--checkpoint", "last").code == 0
    refused = run("evaluate", Path(baseline) / "best.safetensors", "--clean", "--checkpoint", "last")
    assert (refused.code, "is a checkpoint: --checkpoint last is for a run folder" in refused.err) == (2, True)
    assert json.loads((baseline / "evaluation-clean.json").read_text())["samples"] == 180


def test_load_classifier_gives_a_plain_module(baseline: Path) -> None:
    classifier = fastgat.load_classifier(baseline)
    assert not classifier.training
    assert classifier(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(FastgatError, match="no such checkpoint"):
        fastgat.load_classifier(baseline.parent)


def test_info(run: Run) -> None:
    result = run("info")
    assert result.code == 0
    assert "gat" in result.out
    content = json.loads(run("info", "--json").out)
    assert content["packages"]["torch"] == torch.__version__
    assert content["datasets"]["cifar10"] is None


def test_data_commands(run: Run, tmp_path: Path) -> None:
    listed = run("data", "list")
    assert listed.code == 0
    assert "not on this machine" in listed.out
    assert run("data", "verify").out.startswith("digits:")
    assert run("data", "fetch", "digits").code == 0
    missing = run("data", "verify", "cifar10")
    assert missing.code == 1
    assert missing.err == "fastgat: error: cifar10 is not on this machine: run `fastgat data fetch cifar10`\n"


def test_no_command_shows_the_help(run: Run) -> None:
    for arguments in ((), ("data",)):
        result = run(*arguments)
        assert result.code == 2
        assert result.err.startswith("Usage: fastgat")
        assert result.err.count("\n") > 5


def test_version_and_help(run: Run) -> None:
    assert run("--version").out.startswith("fastgat, version ")
    assert "train" in run("--help").out


def test_a_network_by_name_with_its_normalization_and_weights_to_start_from(run: Run, tmp_path: Path) -> None:
    """What a run has learnt can be loaded, and is what another run starts from."""
    network = ("--classifier", "wrn-10-1", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    first = run(*BASE, *network, "--output", "first")
    assert first.code == 0, first.err
    assert "input normalised inside" in first.out
    classifier = fastgat.load_classifier("first", checkpoint="last")
    assert classifier.get_buffer("normalize.std").flatten().tolist() == [0.25] * 3
    torch.save({"model": classifier.get_submodule("model").state_dict()}, "theirs.pt")
    for source in ("theirs.pt", "first"):
        second = run(*BASE, *network, "--init-from", source, "--lr", "1e-30", "--output", f"from-{source}")
        assert second.code == 0, second.err
        again = fastgat.load_classifier(f"from-{source}", checkpoint="last")
        for (name, tensor), other in zip(classifier.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(tensor, other), name
    on = run("train", "--resume", "from-theirs.pt", "--epochs", 2)
    assert on.code == 0, on.err
    wrong = run(*BASE, "--init-from", "theirs.pt", "--output", "wrong")
    assert wrong.code == 1
    assert "theirs.pt: not the weights of this network: missing conv1.bias" in wrong.err
    assert wrong.err.count("\n") == 1
