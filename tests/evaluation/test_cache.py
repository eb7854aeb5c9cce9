"""The cache: what was computed is not computed again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastgat.batch import Batch
from fastgat.evaluation.cache import Cache, batch_fingerprint, model_fingerprint


def never() -> list[int]:
    raise AssertionError("computed again")


def test_numbers_are_kept(tmp_path: Path) -> None:
    assert Cache(tmp_path / "a" / "b").numbers({"x": 1}, lambda: [1, 0]) == [1, 0]
    assert Cache(tmp_path / "a" / "b").numbers({"x": 1}, never) == [1, 0]
    assert Cache(tmp_path / "a" / "b").numbers({"x": 2}, lambda: [5]) == [5]
    assert Cache().numbers({"x": 1}, lambda: [3]) == [3]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "another", "value": [9]}', '{"value": [9]}'])
def test_what_is_damaged_is_computed_anew(tmp_path: Path, damage: str) -> None:
    Cache(tmp_path).numbers({"x": 1}, lambda: [1])
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert Cache(tmp_path).numbers({"x": 1}, lambda: [2]) == [2]
    assert Cache(tmp_path).numbers({"x": 1}, never) == [2]


def test_a_fresh_cache_keeps_what_is_its_own(tmp_path: Path) -> None:
    Cache(tmp_path).numbers({"x": 1}, lambda: [1])
    fresh = Cache(tmp_path, fresh=True)
    assert fresh.numbers({"x": 1}, lambda: [2]) == [2]
    assert fresh.numbers({"x": 1}, never) == [2]
    assert Cache(tmp_path).numbers({"x": 1}, never) == [2]


def test_modules_are_kept(tmp_path: Path) -> None:
    made = nn.Linear(3, 2)
    first, said = Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (made, {"loss": [0.5]}))
    assert first is made
    again, said_again = Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (nn.Linear(3, 2), None))
    assert said == said_again == {"loss": [0.5]}
    assert again is not made
    assert again.weight.equal(made.weight)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    other = nn.Linear(3, 2)
    assert Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (other, None))[0] is other


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_fingerprints_tell_networks_and_images_apart() -> None:
    layer = nn.Linear(4, 2)
    model = nn.Sequential(nn.Flatten(), layer)
    before = model_fingerprint(model)
    assert before == model_fingerprint(model)
    assert before != model_fingerprint(nn.Sequential(*model, nn.ReLU()))
    with torch.no_grad():
        layer.weight[0, 0] += 1e-6
    assert before != model_fingerprint(model)
    assert model_fingerprint(model.train()) == model_fingerprint(model.eval())

    class Times(nn.Module):
        def __init__(self, factor: float, shift: float) -> None:
            super().__init__()
            self.factor = factor
            self.register_buffer("shift", torch.tensor(shift), persistent=False)

    frozen = [torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval())) for _ in range(2)]  # no parameters are left
    assert model_fingerprint(frozen[0]) == model_fingerprint(frozen[0])
    assert model_fingerprint(frozen[0]) != model_fingerprint(frozen[1])
    prints = {model_fingerprint(Times(*numbers)) for numbers in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0))}
    assert len(prints) == 3
    batch = Batch(torch.rand(2, 3, 4, 4), torch.arange(2))
    assert batch_fingerprint(batch) == batch_fingerprint(Batch(batch.images.clone(), batch.labels))
    assert batch_fingerprint(batch) != batch_fingerprint(Batch(batch.images, batch.labels.flip(0)))
    assert batch_fingerprint(batch) == batch_fingerprint(
        Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels)
    )
