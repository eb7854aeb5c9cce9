"""Fingerprints: what may change a network's answers changes its digest, and nothing else does."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.evaluation.fingerprint import batch_fingerprint, code_fingerprint, model_fingerprint
from fastgat.evaluation.inputs import Subject
from fastgat.models import Classifier


class With(nn.Module):
    """A network with an attribute, `own`, beside a tensor that is no parameter."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own, self.shift = own, torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_tensors_and_structure() -> None:
    layer = nn.Linear(4, 2)
    model = nn.Sequential(nn.Flatten(), layer)
    before = model_fingerprint(model)
    assert before == model_fingerprint(model)
    assert before != model_fingerprint(nn.Sequential(*model, nn.ReLU()))
    with torch.no_grad():
        layer.weight[0, 0] += 1e-6
    assert before != model_fingerprint(model)
    assert model_fingerprint(model.train()) == model_fingerprint(model.eval())
    shifted = With(1)
    before = model_fingerprint(shifted)
    shifted.shift += 1
    assert model_fingerprint(shifted) != before


def test_where_a_shared_layer_stands() -> None:
    """A layer that is used twice, or weights that two layers share, are not the same network as once."""
    first, shared, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    once = nn.Sequential(first, shared, last)
    assert model_fingerprint(once) != model_fingerprint(nn.Sequential(first, shared, last, shared))
    digests = set()
    for other in (0, 1):
        network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        for layer in network:
            nn.init.eye_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        network[2].weight = network[other].weight
        digests.add(model_fingerprint(network))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (1.0, 2.0),
        (1, 1.0),
        ([1, torch.zeros(2)], [1, torch.ones(2)]),
        ([[1], 2], [[1, 2]]),
        ({"a": [1], "b": 2}, {"a": [1, "b", 2]}),
        ({1, 2}, {1, 3}),
        (np.zeros(3), np.ones(3)),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (torch.ones(2, dtype=torch.cfloat).conj(), 1j * torch.ones(2)),
    ],
)
def test_plain_attributes(own: Any, other: Any) -> None:
    assert model_fingerprint(With(own)) == model_fingerprint(With(own))
    assert model_fingerprint(With(own)) != model_fingerprint(With(other))


class Settings:
    """An object of the user's, which may hold itself."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.itself, self.lock = threshold, self, threading.Lock()

    def above(self, x: float) -> bool:
        return x > self.threshold


@pytest.mark.parametrize(
    "made",
    [
        lambda value: types.SimpleNamespace(threshold=value),
        lambda value: {"settings": [Settings(value), threading.Lock()]},
        lambda value: partial(torch.clamp, max=value),
        lambda value: Settings(value).above,
        lambda value: [nn.Threshold(value, 0.0)],
        lambda value: lambda x: x > value,
    ],
    ids=["namespace", "object in containers", "partial", "method", "layer in a list", "closure"],
)
def test_what_is_plain_in_an_attribute(made: Callable[[float], Any]) -> None:
    assert model_fingerprint(With(made(0.5))) == model_fingerprint(With(made(0.5)))
    assert model_fingerprint(With(made(0.5))) != model_fingerprint(With(made(0.25)))


def test_the_mode_of_a_layer_in_a_list_does_not_count() -> None:
    layers = [With(1).train(), With(1).eval()]
    assert len({model_fingerprint(With([layer])) for layer in layers}) == 1


def test_what_shows_in_noisy_images_alone() -> None:
    """As in a network that treats otherwise what looks attacked."""

    class Detector(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rough = (images.diff(dim=3).abs().mean((1, 2, 3)) > LIMIT[0]).to(images.dtype)
            return images.mean((2, 3)) * (1 + rough[:, None])

    probe, digests = Batch(torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)), set()
    for LIMIT[0] in (0.01, 1.0):
        digests.add(Subject("f", Detector(), probe).digest)
    assert len(digests) == 2


LIMIT = [1.0]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors() -> None:
    halves, wholes = (torch.quantize_per_tensor(torch.ones(2) * scale, scale, 0, torch.qint8) for scale in (0.5, 1.0))
    assert halves.int_repr().equal(wholes.int_repr())
    assert model_fingerprint(With(halves)) != model_fingerprint(With(wholes))


def test_an_attribute_that_is_not_plain_is_left_to_the_answers() -> None:
    network = With(threading.Lock())
    assert model_fingerprint(network) == model_fingerprint(With(threading.Lock())) != model_fingerprint(With(1))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_frozen_programs() -> None:
    frozen = [torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval())) for _ in range(2)]  # no parameters are left
    assert model_fingerprint(frozen[0]) == model_fingerprint(frozen[0])
    assert model_fingerprint(frozen[0]) != model_fingerprint(frozen[1])


def test_the_code_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file, too: a helper there may be reached in ways that are not seen."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    digests = []
    for factor in (1, 2):
        (tmp_path / "some_network.py").write_text(
            f"from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return x * {factor}\n"
        )
        sys.modules.pop("some_network", None)
        importlib.invalidate_caches()
        digests.append(model_fingerprint(importlib.import_module("some_network").Net()))
    sys.modules.pop("some_network")
    assert digests[0] != digests[1]


def test_another_process_finds_the_same() -> None:
    program = (
        "import torch; from fastgat.models import Classifier; from fastgat.evaluation.fingerprint import "
        "model_fingerprint; torch.manual_seed(3); print(model_fingerprint(Classifier()))"
    )
    torch.manual_seed(3)
    ours = model_fingerprint(Classifier())
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.split() == [ours]


def test_images() -> None:
    batch = Batch(torch.rand(2, 3, 4, 4), torch.arange(2))
    assert batch_fingerprint(batch) == batch_fingerprint(Batch(batch.images.clone(), batch.labels))
    assert batch_fingerprint(batch) != batch_fingerprint(Batch(batch.images, batch.labels.flip(0)))
    assert batch_fingerprint(batch) == batch_fingerprint(
        Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels)
    )


def test_the_code_that_a_file_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files lie between."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    files = {
        "a_network": "from torch import nn\nimport between\n"
        "class Net(nn.Module):\n    def forward(self, x):\n        return between.act(x)\n",
        "between": "import behind\ndef act(x):\n    return behind.act(x)\n",
    }
    for name, code in files.items():
        (tmp_path / f"{name}.py").write_text(code)
    digests = []
    for factor in (1, 2, 2):
        (tmp_path / "behind.py").write_text(f"def act(x):\n    return x * {factor}\n")
        for name in (*files, "behind"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        digests.append(model_fingerprint(importlib.import_module("a_network").Net()))
    for name in (*files, "behind"):
        sys.modules.pop(name)
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize(
    ("network", "helper"),
    [
        (
            "try:\n    from ..no import package\nexcept ImportError:\n    from helper import act as forward",
            "act = ({}).__add__",
        ),
        ("from helper import WIDTH\ndef forward(x):\n    return WIDTH * x", "WIDTH = {}"),
        ("def forward(x):\n    import helper\n    return helper.act(x)", "def act(x):\n    return {} * x"),
        (
            "import functools\nfrom helper import act\nforward = functools.partial(act, 1)",
            "def act(x, y):\n    return {} * y",
        ),
        (
            "from helper import act\nforward = act",
            "from functools import cache\n@cache\ndef act(x):\n    return {} * x",
        ),
    ],
    ids=["after one that fails", "a value", "in a function", "partial", "cached"],
)
def test_whatever_a_file_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, helper: str) -> None:
    """Before the import has run, and after."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "a_factory.py").write_text(network)
    digests = []
    for factor in (1, 2):
        (tmp_path / "helper.py").write_text(helper.format(factor))
        for name in ("a_factory", "helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        forward = importlib.import_module("a_factory").forward
        digests.append(code_fingerprint("a_factory"))
        forward(1)
        assert code_fingerprint("a_factory") == digests[-1]
    for name in ("a_factory", "helper"):
        sys.modules.pop(name)
    assert digests[0] != digests[1]


def test_a_package_whose_parts_are_imported_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_nets").mkdir()
    (tmp_path / "some_nets" / "__init__.py").write_text(
        "def build():\n    from .layers import WIDTH\n    return WIDTH\n"
    )
    (tmp_path / "some_nets" / "layers.py").write_text("WIDTH = 3\n")
    package = importlib.import_module("some_nets")
    before = code_fingerprint("some_nets")
    assert package.build() == 3
    assert code_fingerprint("some_nets") == before
    (tmp_path / "some_nets" / "layers.py").write_text("WIDTH = 4\n")
    assert code_fingerprint("some_nets") != before
    for name in ("some_nets", "some_nets.layers"):
        sys.modules.pop(name)


def closing_over(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


FACTOR = 1.0
SCALES = [1.0]
SETTINGS = types.SimpleNamespace(factor=1.0)


class Times(torch.autograd.Function):
    """x, and any multiple of its gradient."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] * Times.factor


class Depends(nn.Module):
    """A linear network whose answers, or their gradient, depend on values from all over."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)
        self.own: Callable[[Tensor], Tensor] = closing_over(1.0)
        self.layers: list[nn.Module] = [nn.Identity()]

    def forward(self, images: Tensor) -> Tensor:
        x = Times.apply(images.flatten(1) * FACTOR * SCALES[0] * SETTINGS.factor * self.factor)
        return self.linear(self.layers[0](self.own(x)))


def doubles_what_comes_out(patch: pytest.MonkeyPatch, network: Depends) -> None:
    network.linear.register_forward_hook(lambda module, inputs, output: output * 2)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Depends], object]] = {
    "a global number": lambda patch, network: patch.setattr(sys.modules[__name__], "FACTOR", 2.0),
    "a global list": lambda patch, network: patch.setattr(sys.modules[__name__], "SCALES", [2.0]),
    "a global object": lambda patch, network: patch.setattr(SETTINGS, "factor", 2.0),
    "a class": lambda patch, network: patch.setattr(Depends, "factor", 2.0),
    "a closure": lambda patch, network: setattr(network, "own", closing_over(2.0)),
    "a layer in a list": lambda patch, network: network.layers.__setitem__(0, nn.Tanh()),
    "a hook": doubles_what_comes_out,
    "a gradient": lambda patch, network: patch.setattr(Times, "factor", -1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_the_answers(
    change: Callable[[pytest.MonkeyPatch, Depends], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, probe = Depends(), Batch(torch.rand(40, 3, 2, 2), torch.arange(40) % 4)
    before = Subject("f", network, probe).digest
    assert Subject("f", network.train(), probe).digest == before
    assert Subject("f", network, Batch(probe.images[:20], probe.labels[:20])).digest == before, (
        "more images are no other"
    )
    change(monkeypatch, network)
    assert Subject("f", network, probe).digest != before
