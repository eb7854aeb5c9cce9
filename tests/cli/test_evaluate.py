"""fastgat evaluate: a run's report on the command line, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastgat.attacks import AutoAttack
from fastgat.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.cli.conftest import Run, call
from tests.data.pictures import make_folder
from tests.support import made_once

TRAIN = (
    "train",
    "--dataset",
    "folder:images",
    "--method",
    "baseline",
    "--epochs",
    8,
    "--batch-size",
    8,
    "--no-compile",
)
FEW = ("--samples", 12, "--steps", 4, "--restarts", 2, "--apgd-steps", 4, "--queries", 20)
FAST = (*FEW, "--generator-images", 64, "--generator-epochs", 1)
WITHOUT_GENERATOR = (*FEW, "--no-generator")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        for part, each in (("train", 20), ("val", 4), ("test", 8)):
            make_folder(folder / "images" / part, each)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for seed in (0, 1):
                assert call(*TRAIN, "--seed", seed, "--output", f"seed{seed}") == 0

    return made_once(tmp_path_factory, "evaluated", make)


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/evaluation compares compiled networks; here a card says what it lacks."""
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_report(run: Run, runs: Path) -> None:
    one = runs / "seed0"
    arguments = ("evaluate", one, *FAST, "--source", runs / "seed1", "--cg", 0.5)
    first = run(*arguments)
    assert first.code in (0, 3)
    for line in (
        "test accuracy",
        "worst case",
        "report card",
        "transfer from seed1",
        "generator, c_g 0.5",
        "no-such-c",
    ):
        assert line in first.out
    figures = json.loads((one / "evaluation.json").read_text())
    assert figures["attacked_samples"] == 12
    assert (first.code == 3) == (figures["verdict"] == "FAIL")
    assert {"checkpoint", "dataset", "accuracy", "settings", "environment", "card", "curves"} <= figures.keys()
    assert figures["settings"]["seed"] == 0
    assert (one / "report.html").exists()
    kept = {path.name for path in (one / "evaluation-cache").iterdir()}
    again = run(*arguments)
    assert again.out == first.out
    assert {path.name for path in (one / "evaluation-cache").iterdir()} == kept
    assert {"run", "other_runs", "run_settings", "curve_samples"} <= figures.keys()
    assert figures["equal_power"][0]["training"]["epochs"] == 1
    fewer = run("evaluate", one, *WITHOUT_GENERATOR, "--samples", 2, "--fresh")
    assert fewer.code in (0, 3)
    assert not (one / "evaluation-power.png").exists()


@pytest.mark.long
def test_names_are_names(run: Run, runs: Path) -> None:
    """Not what rich and matplotlib take for markup; checkpoints are called by their folders."""
    odd, source = (runs / "seed0").rename(runs / "f[v2] a$_$b"), (runs / "seed1").rename(runs / "g[v2]$_$")
    arguments = (*WITHOUT_GENERATOR, "--source", source / "best.safetensors", "--output", runs / "out")
    result = run("evaluate", odd / "best.safetensors", *arguments)
    assert result.code in (0, 3), result.err
    figures = json.loads((runs / "out" / "evaluation.json").read_text())
    assert figures["network"] == "f[v2] a$_$b"
    assert "transfer from g[v2]$_$" in result.out


def test_a_failing_card_has_its_exit_code(run: Run, runs: Path) -> None:
    """The last layer's weights times a million: no gradient is left."""
    path = runs / "seed0" / "best.safetensors"
    tensors, header = load_checkpoint(path)
    for name in tensors:
        if name.startswith("classifier.conv7"):
            tensors[name] = tensors[name] * 1e6
    save_checkpoint(path, tensors, header)
    result = run("evaluate", runs / "seed0", *WITHOUT_GENERATOR, "--output", runs / "out")
    assert result.code == 3
    assert "FAIL" in result.out
    assert json.loads((runs / "out" / "evaluation.json").read_text())["verdict"] == "FAIL"
    assert not (runs / "seed0" / "evaluation.json").exists()


def test_clean(run: Run, runs: Path) -> None:
    result = run("evaluate", runs / "seed0", "--clean")
    assert result.code == 0
    assert json.loads((runs / "seed0" / "evaluation-clean.json").read_text())["samples"] == 24
    assert not (runs / "seed0" / "evaluation-cache").exists()


@pytest.mark.parametrize("arguments", [("--clean",), FAST])
def test_logits_that_are_nan(run: Run, runs: Path, arguments: tuple[object, ...]) -> None:
    path = runs / "seed0" / "best.safetensors"
    tensors, header = load_checkpoint(path)
    for name in tensors:
        if name.startswith("classifier.conv7"):
            tensors[name] = tensors[name] * torch.nan
    save_checkpoint(path, tensors, header)
    result = run("evaluate", runs / "seed0", *arguments)
    assert result.code == 1
    assert "the network returns logits that are NaN or infinite" in result.err
    assert result.err.count("\n") == 1
    assert not list((runs / "seed0").glob("evaluation*"))


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--epsilon", -0.1), "epsilon must be at least 0, got -0.1", 2),
        (("--epsilon", "8/0"), "epsilon must be a number", 2),
        (("--full", "--quick"), "--full attacks every image: leave out --quick", 2),
        (("--quick", "--samples", 9), "--quick attacks 100 images: leave out --samples", 2),
        (("--clean", "--samples", 9, "--full"), "--clean runs no attack: leave out --full, --samples", 2),
        (("--clean", "--source", "SELF"), ", --source", 2),
        (
            ("--no-generator", "--cg", 1),
            "trains no generator: leave out --generator-images, --generator-epochs, --cg",
            2,
        ),
        (("--classifier", "wrn-10-1"), "--classifier wrn-10-1: no run uses it; they use table1", 2),
        (("--cg", "x"), "cg must be a number", 2),
        (("--cg", -1), "cg must be at least 0", 2),
        (("--restarts", 1), "restarts must be at least 2, got 1", 2),
        (("--norm", "l1"), "Invalid value for '--norm'", 2),
        (("--source", "nowhere"), "nowhere: no such checkpoint", 1),
        (("--source", "SELF"), "is given twice, as RUN, --source or --network", 2),
        (("--source", "OTHER CLASSES"), "class 0 was zero in training, but is ants in the data", 1),
        (("--output", "/proc/nowhere"), "/proc/nowhere", 1),
    ],
)
def test_what_is_wrong_is_said(run: Run, runs: Path, arguments: tuple[object, ...], message: str, code: int) -> None:
    other = runs / "other"
    other.mkdir()
    tensors, header = load_checkpoint(runs / "seed1" / "best.safetensors")
    header["model"]["classes"] = ["zero", *header["model"]["classes"][1:]]
    save_checkpoint(other / "best.safetensors", tensors, header)
    named = {"SELF": runs / "seed0", "OTHER CLASSES": other}
    result = run("evaluate", runs / "seed0", *FAST, *(named.get(str(a), a) for a in arguments))
    assert message in result.err
    assert result.err.startswith("fastgat: error: ")
    assert result.err.count("\n") == 1
    assert result.code == code
    assert not (runs / "seed0" / "report.html").exists()
    assert not (runs / "seed0" / "evaluation.json").exists()


def test_a_checkpoint_without_a_classifier(run: Run, runs: Path) -> None:
    path = runs / "seed0" / "best.safetensors"
    tensors, header = load_checkpoint(path)
    save_checkpoint(path, {name: t for name, t in tensors.items() if not name.startswith("classifier.")}, header)
    result = run("evaluate", runs / "seed0", *FAST)
    assert result.code == 1
    assert "is only in one of the two" in result.err
    assert result.err.count("\n") == 1
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    assert "not a checkpoint of fastgat" in run("evaluate", runs / "seed0").err


@pytest.fixture
def foreign(runs: Path) -> Path:
    """The weights of seed0 as another code would have written them."""
    tensors, _ = load_checkpoint(runs / "seed0" / "best.safetensors")
    state = {n.replace("classifier.", "module."): t for n, t in tensors.items() if n.startswith("classifier.")}
    torch.save({"state_dict": state, "epoch": 8}, runs / "theirs.pth.tar")
    return runs / "theirs.pth.tar"


def test_weights_from_elsewhere(run: Run, runs: Path, foreign: Path) -> None:
    """A run's weights are judged alike under another name, and attacked as a run's are."""
    network = ("--weights", foreign, "--classifier", "table1", "--dataset", f"folder:{runs / 'images'}")
    few = ("--samples", 4, "--steps", 2, "--restarts", 2, "--apgd-steps", 2, "--queries", 5, "--no-generator")
    theirs = run("evaluate", *network, *few)
    assert theirs.code in (0, 3), theirs.err
    assert "theirs.pth.tar: taken from 'state_dict'" in theirs.out
    assert "theirs.pth.tar: module.* -> *  (14 tensors)" in theirs.out
    (kept,) = Path("runs").glob("evaluate-theirs.pth-*")
    assert (kept / "report.html").exists()
    assert run("evaluate", runs / "seed0", "--clean").code == 0
    assert (
        run("evaluate", *network, "--clean", "--mean", "0.5,0.5,0.5", "--std", "1,1,1", "--output", "other").code == 0
    )
    attacked, clean, other = (
        json.loads(path.read_text())
        for path in (
            kept / "evaluation.json",
            runs / "seed0" / "evaluation-clean.json",
            Path("other", "evaluation-clean.json"),
        )
    )
    for key in ("accuracy", "loss", "samples", "classes"):
        assert attacked[key] == clean[key], key
    assert attacked["attacked_samples"] == 4
    assert other["loss"] != clean["loss"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ((), "name a RUN, or --weights FILE with --classifier and --dataset", 2),
        (("RUN", "--weights", "FILE"), "name a RUN, or --weights FILE with --classifier and --dataset", 2),
        (("RUN", "--dataset", "digits"), "--dataset, --image-size, --mean and --std are for --weights alone", 2),
        (("RUN", "--image-size", "16"), "--dataset, --image-size, --mean and --std are for --weights alone", 2),
        (
            ("--weights", "FILE", *("--classifier", "table1", "--dataset", "digits", "--image-size", "16")),
            "image_size 16: digits has images of 32 x 32 pixels, and no others",
            2,
        ),
        (("--weights", "FILE", "--dataset", "IMAGES"), "needs --classifier: which network", 2),
        (("--weights", "FILE", "--classifier", "table1"), "needs --dataset: which images", 2),
        (
            ("--weights", "nowhere.pt", *("--classifier", "table1", "--dataset", "IMAGES")),
            "nowhere.pt: No such file",
            1,
        ),
        (
            ("--weights", "FILE", *("--classifier", "wrn-10-1", "--dataset", "IMAGES")),
            "missing block1.layer.0.bn1.weight (first of 38) and unexpected conv",
            1,
        ),
        (("--weights", "FILE", *("--classifier", "table1", "--dataset", "digits")), "has shape (3,", 1),
        (
            ("--weights", "FILE", *("--classifier", "table1", "--dataset", "IMAGES", "--checkpoint", "last")),
            "theirs.pth.tar is a checkpoint: --checkpoint last is for a run folder",
            2,
        ),
        (
            ("--weights", "FILE", *("--classifier", "table1", "--dataset", "IMAGES", "--changed-data")),
            "changed_data is for a run",
            2,
        ),
        (
            ("--weights", "FILE", *("--classifier", "table1", "--dataset", "IMAGES", "--mean", "dataset")),
            "no mean and std are usual for",
            2,
        ),
    ],
)
def test_weights_that_do_not_fit(
    run: Run, runs: Path, foreign: Path, arguments: tuple[str, ...], message: str, code: int
) -> None:
    named = {"RUN": runs / "seed0", "FILE": foreign, "IMAGES": f"folder:{runs / 'images'}"}
    result = run("evaluate", *(named.get(word, word) for word in arguments))
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.code == code
    assert not list(Path("runs").glob("evaluate-theirs*"))


def test_the_weights_of_a_run_by_another_rule(run: Run, runs: Path) -> None:
    """Of a run folder, `--checkpoint` says which."""
    network = ("--weights", runs / "seed0", "--classifier", "table1", "--dataset", f"folder:{runs / 'images'}")
    tensors, header = load_checkpoint(runs / "seed0" / "last.safetensors")
    tensors |= {name: torch.zeros_like(t) for name, t in tensors.items() if name.startswith("classifier.")}
    save_checkpoint(runs / "seed0" / "last.safetensors", tensors, header)
    last = run("evaluate", *network, "--clean", "--checkpoint", "last")
    assert last.out.startswith("last.safetensors: test accuracy"), last.err
    assert last.out != run("evaluate", *network, "--clean").out
    missing = run("evaluate", *network, "--clean", "--checkpoint", "robust")
    assert (missing.code, "best-robust.safetensors: no such checkpoint" in missing.err) == (1, True)


def test_only_autoattack(run: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(AutoAttack, steps=2, targets=1, queries=3)
    monkeypatch.setattr("fastgat.evaluation.protocol.AutoAttack", short)
    only = ("evaluate", runs / "seed0", "--only-autoattack", "--samples", 6)
    done = run(*only)
    assert done.code in (0, 3), done.err
    figures = json.loads((runs / "seed0" / "evaluation.json").read_text())
    assert [attack["name"] for attack in figures["attacks"]] == ["AutoAttack"]
    assert "AutoAttack" in done.out
    assert "fast gradient" not in done.out
    for other in (("--steps", 3), ("--cg", 1), ("--source", runs / "seed1"), ("--autoattack",)):
        refused = run(*only, *other)
        assert refused.code == 2
        assert f"--only-autoattack runs nothing else: leave out {other[0]}" in refused.err
