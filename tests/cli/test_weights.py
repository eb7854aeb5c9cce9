"""Networks of others through the command line: files whose names, shapes and logits are defined here alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks import PGD
from fastgat.data.sets import DataSet, ImageSet
from tests.cli.conftest import Run
from tests.models.test_robust_networks import State, preact_resnet, wide_resnet

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def norm(name: str, channels: int) -> Shapes:
    return ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))


def preact_shapes() -> Shapes:
    """PreActResNet-18 with the batch norm before its pooling, as the N-FGSM code has it."""
    yield "conv1.weight", (64, 3, 3, 3)
    inputs = 64
    for layer, outputs in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            yield from norm(f"{name}.bn1", inputs)
            yield f"{name}.conv1.weight", (outputs, inputs, 3, 3)
            yield from norm(f"{name}.bn2", outputs)
            yield f"{name}.conv2.weight", (outputs, outputs, 3, 3)
            if inputs != outputs:
                yield f"{name}.shortcut.0.weight", (outputs, inputs, 1, 1)
            inputs = outputs
    yield from norm("bn", 512)
    yield from (("linear.weight", (10, 512)), ("linear.bias", (10,)))


def wide_shapes(blocks: int, width: int) -> Shapes:
    """WideResNet as the TRADES code has it."""
    yield "conv1.weight", (16, 3, 3, 3)
    inputs = 16
    for group, outputs in enumerate((16 * width, 32 * width, 64 * width), 1):
        for block in range(blocks):
            name = f"block{group}.layer.{block}"
            yield from norm(f"{name}.bn1", inputs)
            yield f"{name}.conv1.weight", (outputs, inputs, 3, 3)
            yield from norm(f"{name}.bn2", outputs)
            yield f"{name}.conv2.weight", (outputs, outputs, 3, 3)
            if inputs != outputs:
                yield f"{name}.convShortcut.weight", (outputs, inputs, 1, 1)
            inputs = outputs
    yield from norm("bn1", 64 * width)
    yield from (("fc.weight", (10, 64 * width)), ("fc.bias", (10,)))


def drawn(shapes: Shapes) -> State:
    """Weights under which the answers depend on the image."""
    source = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes:
        if len(shape) > 1:
            state[name] = torch.randn(shape, generator=source) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            state[name] = torch.rand(shape, generator=source) + 0.5
    return state


Logits = Callable[[State, Tensor], Tensor]
CASES: list[tuple[str, int, Shapes, Logits]] = [
    ("preactresnet18-bn", 11_172_170, preact_shapes(), lambda s, x: preact_resnet(s, x, late=False)),
    ("preactresnet18-v2-bn", 11_172_170, preact_shapes(), lambda s, x: preact_resnet(s, x, late=True)),
    ("wrn-28-10", 36_479_194, wide_shapes(4, 10), lambda s, x: wide_resnet(s, x, 4)),
    ("wrn-34-10", 46_160_474, wide_shapes(5, 10), lambda s, x: wide_resnet(s, x, 5)),
]


@pytest.mark.parametrize(
    ("name", "parameters", "shapes", "logits"),
    [pytest.param(*case, marks=[pytest.mark.long] * case[0].startswith("wrn"), id=case[0]) for case in CASES],
)
def test_a_file_of_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, parameters: int, shapes: Shapes, logits: Logits
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(6))
    data = DataSet("cifar10", images, images, images, tuple("abcdefghij"), "a test")
    monkeypatch.setattr("fastgat.evaluation.run.load_dataset", lambda *_, **__: data)
    state = drawn(shapes)
    assert sum(t.numel() for n, t in state.items() if "running" not in n) == parameters
    torch.save({"epoch": 76, "state_dict": {f"module.{key}": value for key, value in state.items()}}, "theirs.pth")
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    x = (torch.from_numpy(pixels) / 255 - mean) / std
    expected = logits(state, x.permute(0, 3, 1, 2))

    given = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4", "--dataset", "cifar10")
    result = run("evaluate", "--weights", "theirs.pth", "--classifier", name, *given, "--clean", "--output", "out")
    assert result.code == 0, result.err
    found = json.loads(Path("out", "evaluation-clean.json").read_text())
    loss = functional.cross_entropy(expected, torch.arange(6))
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((expected.argmax(1) == torch.arange(6)).float().mean()))
    assert float(expected.std(0).mean()) > 0.01, "the images must matter"


@pytest.mark.long
def test_autoattack_on_a_file_of_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full effort: as many images are left as PGD leaves of the network's definition here, or fewer."""
    state = drawn(preact_shapes())

    class Theirs(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return preact_resnet(state, (images - 0.5) / 0.25, late=False)

    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    labels = Theirs()(x).argmax(1)
    images = ImageSet(pixels, labels.numpy())
    data = DataSet("cifar10", images, images, images, tuple("abcdefghij"), "a test")
    monkeypatch.setattr("fastgat.evaluation.run.load_dataset", lambda *_, **__: data)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "theirs.pth")

    given = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--dataset", "cifar10")
    few = ("--samples", 3, "--steps", 1, "--restarts", 2, "--apgd-steps", 1, "--queries", 1, "--no-generator")
    network = ("--weights", "theirs.pth", "--classifier", "preactresnet18-bn", *given)
    result = run("evaluate", *network, "--autoattack", "--epsilon", "8/255", *few, "--output", "out")
    assert result.code in (0, 3), result.err
    found = json.loads(Path("out", "evaluation.json").read_text())
    assert found["clean_accuracy_of_attacked"] == 1
    (entry,) = (attack for attack in found["attacks"] if attack["name"] == "AutoAttack")
    assert (entry["steps"], entry["targets"], entry["queries"], entry["epsilon"]) == (100, 9, 5000, 8 / 255)
    perturbed = PGD(Theirs(), epsilon=8 / 255, steps=20)(x, labels)
    left = float((Theirs()(perturbed).argmax(1) == labels).float().mean())
    assert entry["accuracy"] <= left < 1
