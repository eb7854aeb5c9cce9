"""Recipes: listed, overruled by files and options, and each of them trained for two steps on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgat.cli.recipes import FOLDER, load_recipe
from fastgat.config import TrainConfig
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.methods import Free
from tests.cli.conftest import Run

RECIPES = ("fgsm-rs-cifar10", "free-cifar10", "gat-cifar10", "n-fgsm-cifar10", "pgd-cifar10", "trades-cifar10")
TINY: dict[str, tuple[object, ...]] = {
    "table1": ("--generator-width", 2),
    "preactresnet18-bn": ("--classifier", "wrn-10-1"),
    "wrn-34-10": ("--classifier", "wrn-10-1"),
}


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


def test_a_recipe_that_is_none(run: Run) -> None:
    result = run("train", "--recipe", "pgd-cifar")
    assert result.code == 2
    assert result.err == "fastgat: error: --recipe: no recipe 'pgd-cifar'; did you mean 'pgd-cifar10'?\n"


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(run: Run, name: str) -> None:
    """On digits; the recipe's own network, method and schedule are what is printed."""
    config = TrainConfig.from_dict(load_recipe(name))
    smaller = TINY[config.model.classifier]
    if config.model.mean is not None:
        smaller = (*smaller, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    few = ("--dataset", "digits", "--train-images", 8, "--batch-size", 4, "--epochs", 1, "--no-compile")
    result = run("train", "--recipe", name, *few, *smaller, "--output", "run")
    assert result.code == 0, result.err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["method"] == name.removesuffix("-cifar10")
    rows = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("step") == 2 for row in rows)


def test_free_counts_its_replays_as_epochs(run: Run) -> None:
    assert [Free(replays=4, divide_epochs=True).passes(epochs) for epochs in (1, 4, 5, 8)] == [1, 1, 2, 2]
    few = ("--dataset", "digits", "--train-images", 8, "--batch-size", 4, "--no-compile", "--lr-schedule", "cosine")
    result = run("train", *few, "--method", "free", "--divide-epochs", "--epochs", 5, "--output", "run")
    assert result.code == 0, result.err
    assert json.loads(Path("run", "summary.json").read_text())["epochs"] == 2
    _, header = load_checkpoint(Path("run", "last.safetensors"))
    assert header["position"]["step"] == 4
