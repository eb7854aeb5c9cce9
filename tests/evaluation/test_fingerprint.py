"""Fingerprints: what may change a network's answers changes its digest, and nothing else does."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.evaluation.fingerprint import batch_fingerprint, code_fingerprint, model_fingerprint
from fastgat.models import Classifier

FACTOR = 1.0


def doubled(x: Tensor) -> Tensor:
    return 2 * x


class With(nn.Module):
    """A network with an attribute, `own`, beside a tensor that is no parameter."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own, self.shift = own, torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        return doubled(images) * FACTOR


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


@pytest.mark.parametrize("value", [(1.0, 2.0), [1.0, 2.0], {"a": 2.0}])
def test_values_of_a_class(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = With(1)
    monkeypatch.setattr(With, "scale", (1.0, 1.0), raising=False)
    before = model_fingerprint(network)
    monkeypatch.setattr(With, "scale", value)
    assert model_fingerprint(network) != before


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_frozen_programs() -> None:
    frozen = [torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval())) for _ in range(2)]  # no parameters are left
    assert model_fingerprint(frozen[0]) == model_fingerprint(frozen[0])
    assert model_fingerprint(frozen[0]) != model_fingerprint(frozen[1])


def closing_over(value: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * value


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (1.0, 2.0),
        ([1, torch.zeros(2)], [1, torch.ones(2)]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (np.zeros(3), np.ones(3)),
        (torch.sigmoid, torch.zeros_like),
        (nn.functional.relu, nn.functional.gelu),
        (lambda x: x, lambda x: x + 1),
        (lambda x, by=1: x * by, lambda x, by=2: x * by),
        (closing_over(1.0), closing_over(2.0)),
        (functools.partial(torch.mul, other=1), functools.partial(torch.mul, other=2)),
        ([nn.Linear(2, 2)], [nn.Linear(2, 2)]),
        (Batch(torch.zeros(1), torch.zeros(1)), Batch(torch.ones(1), torch.zeros(1))),
    ],
    ids=[
        *("number", "list", "dictionary", "set", "array", "torch's function", "torch's other function", "function"),
        *("default", "closure", "partial", "unregistered layer", "named tuple"),
    ],
)
def test_attributes(own: Any, other: Any) -> None:
    assert model_fingerprint(With(own)) == model_fingerprint(With(own))
    assert model_fingerprint(With(own)) != model_fingerprint(With(other))


def test_an_attribute_that_cannot_be_described_is_never_the_same() -> None:
    network = With(threading.Lock())
    assert model_fingerprint(network) != model_fingerprint(network)


def test_hooks_and_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    network = With(None)
    network.own = [network]  # a circle
    before = model_fingerprint(network)
    hook = network.register_forward_hook(lambda module, inputs, output: output * 2)
    assert model_fingerprint(network) != before
    hook.remove()
    assert model_fingerprint(network) == before
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 2)
    assert model_fingerprint(network) != before
    hook.remove()
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)
    assert model_fingerprint(network) != before
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "doubled", lambda x: 3 * x)
    assert model_fingerprint(network) != before


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


SCALES = [1.0]


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * SCALES[0]


def test_a_global_list() -> None:
    before = model_fingerprint(Scaled())
    SCALES[0] = 2.0
    assert model_fingerprint(Scaled()) != before
    SCALES[0] = 1.0
    assert model_fingerprint(Scaled()) == before
