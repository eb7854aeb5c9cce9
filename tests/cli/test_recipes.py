"""Recipes: listed, overruled by files and options, and each of them trained for two steps on a few tiny images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastgat.cli.recipes import FOLDER, load_recipe
from fastgat.data.sets import DataSet, ImageSet
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.methods import Free
from tests.cli.conftest import Run

RECIPES = (
    "fgsm-rs-cifar10",
    "free-cifar10",
    "gat-cifar10",
    "n-fgsm-cifar10",
    "pgd-cifar10",
    "trades-cifar10",
    "trades-extra-cifar10",
)
WIDE = ("trades-cifar10", "trades-extra-cifar10")
"""Those with a WideResNet, which takes a while to make and to save."""


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 is eight images of 8 x 8 pixels to train, and one each to validate and to test."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(10))
    parts = images.take(np.arange(8)), images.take(np.array([8])), images.take(np.array([9]))
    data = DataSet("cifar10", *parts, tuple("abcdefghij"), "a test")
    monkeypatch.setattr("fastgat.trainer.feed.load_dataset", lambda *_: data)


def test_they_are_listed_with_what_they_say_of_themselves(run: Run) -> None:
    result = run("recipes")
    assert result.code == 0
    assert tuple(path.stem for path in sorted(FOLDER.glob("*.toml"))) == RECIPES
    for name in RECIPES:
        assert f"{name}  ({FOLDER / name}.toml)" in result.out
    for word in ("Source:", "Theirs:", "Here:"):
        assert result.out.count(f"{word}") == len(RECIPES)


def test_a_recipe_lies_below_the_file_and_the_file_below_options(run: Run) -> None:
    Path("mine.toml").write_text('[optimizer]\nlr = 0.05\nmomentum = 0.5\n[method]\nname = "pgd"\nattack_steps = 2\n')
    arguments = ("--recipe", "pgd-cifar10", "--config", "mine.toml", "--momentum", 0.7, "--print-config")
    result = run("train", *arguments)
    for line in ("lr = 0.05", "momentum = 0.7", "attack_steps = 2", "weight_decay = 0.0005", 'mean = "dataset"'):
        assert line in result.out
    other = run("train", "--recipe", "pgd-cifar10", "--method", "free", "--print-config")
    assert 'name = "free"' in other.out
    assert "attack_steps" not in other.out


def test_a_file_need_not_be_whole_by_itself(run: Run) -> None:
    """It lies between recipe and options, and only what the three are together must make sense."""
    Path("mine.toml").write_text("[method]\nattack_steps = 3\n[data]\nextra_fraction = 0.5\n")
    result = run("train", "--recipe", "pgd-cifar10", "--config", "mine.toml", "--extra-data", "x.npz", "--print-config")
    assert result.code == 0
    assert "attack_steps = 3" in result.out
    alone = run("train", "--config", "mine.toml", "--extra-data", "x.npz")
    assert alone.err.startswith("fastgat: error: mine.toml: method 'gat' has no option 'attack_steps'")
    other = run("train", "--recipe", "pgd-cifar10", "--config", "mine.toml", "--extra-data", "x.npz", "--lr", -1)
    assert other.err.startswith("fastgat: error: lr must be above 0")


@pytest.mark.usefixtures("few_images")
def test_a_milestone_that_no_epoch_reaches(run: Run) -> None:
    dry = ("--recipe", "trades-cifar10", "--classifier", "wrn-10-1", "--batch-size", 4, "--dry-run")
    assert "74: not reached in 74 epochs" in run("train", *dry, "--epochs", 74).out
    assert "not reached" not in run("train", *dry, "--epochs", 75).out
    assert "not reached" not in run("train", *dry, "--epochs", 2, "--lr-schedule", "cosine").out


def test_a_recipe_that_is_none(run: Run) -> None:
    result = run("train", "--recipe", "pgd-cifar")
    assert result.code == 2
    assert result.err == "fastgat: error: --recipe: no recipe 'pgd-cifar'; did you mean 'pgd-cifar10'?\n"


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *[pytest.param(name, (), marks=[pytest.mark.long] * (name in WIDE)) for name in RECIPES],
        *[(name, ("--classifier", "wrn-10-1")) for name in WIDE],
    ],
)
def test_two_steps(run: Run, name: str, changes: tuple[str, ...]) -> None:
    """Of the recipe as it is, but for the images, and where `changes` say so, its network."""
    few = ("--batch-size", 4, "--epochs", 8 if name == "free-cifar10" else 1, "--warmup-epochs", 0, "--no-compile")
    if name == "trades-extra-cifar10":
        missing = run("train", "--recipe", name)
        assert missing.err.endswith("extra_fraction is a share of extra_data: name that file, --extra-data FILE.npz\n")
        np.savez("extra.npz", image=np.zeros((3, 8, 8, 3), np.uint8), label=np.arange(3))
        changes = (*changes, "--extra-data", "extra.npz")
    result = run("train", "--recipe", name, *few, *changes, "--output", "run")
    assert result.code == 0, result.err
    assert json.loads(Path("run", "summary.json").read_text())["method"] == load_recipe(name)["method"]["name"]
    _, header = load_checkpoint(Path("run", "last.safetensors"))
    assert header["position"]["step"] == 2


@pytest.mark.usefixtures("few_images")
def test_free_counts_its_replays_as_epochs(run: Run) -> None:
    assert [Free(replays=4, divide_epochs=True).passes(epochs) for epochs in (1, 4, 5, 8)] == [1, 1, 2, 2]
    few = ("--dataset", "cifar10", "--batch-size", 4, "--no-compile", "--lr-schedule", "cosine")
    result = run("train", *few, "--method", "free", "--divide-epochs", "--epochs", 5, "--output", "run")
    assert result.code == 0, result.err
    assert json.loads(Path("run", "summary.json").read_text())["epochs"] == 2
    _, header = load_checkpoint(Path("run", "last.safetensors"))
    assert header["position"]["step"] == 4
