"""Weights from elsewhere: files as other codes write them, read into a network whose logits must then be theirs."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fastgat
from fastgat import TrainConfig, Trainer
from fastgat.config import DataConfig, ModelConfig, RunConfig
from fastgat.errors import CheckpointError
from fastgat.models import create_classifier

State = dict[str, Tensor]
NORMALIZATION = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(1)
    network = create_classifier("wrn-10-1", 4).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.uniform_(-1, 1)
    return network


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def with_unused(state: State) -> State:
    return {**state, **{n.replace("block1", "sub_block1"): t for n, t in state.items() if n.startswith("block1.")}}


FILES: dict[str, tuple[str, Callable[[State], Any], list[str]]] = {
    "plain": ("w.pt", lambda s: s, []),
    "safetensors": ("w.safetensors", lambda s: s, []),
    "nested": ("w.pth.tar", lambda s: {"epoch": 3, "state_dict": s, "optimizer": {}}, ["taken from 'state_dict'"]),
    "twice nested": (
        "w.pth",
        lambda s: {"model": {"net": s}, "ema": {}},
        ["taken from 'model'; 'ema' left alone", "taken from 'net'"],
    ),
    "DataParallel": ("w.pth", lambda s: prefixed(s, "module."), ["module.* -> *  (46 tensors)"]),
    "both wrappers": (
        "w.pth",
        lambda s: prefixed(s, "module._orig_mod."),
        ["module.* -> *  (46 tensors)", "_orig_mod.* -> *  (46 tensors)"],
    ),
    "averaged": (
        "w.pth",
        lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
        ["module.* -> *  (46 tensors)"],
    ),
    "in two wrappers": ("w.pth", lambda s: prefixed(s, "model.module."), ["model.module.* -> *  (46 tensors)"]),
    "beside what needs code": (
        "w.pth.tar",
        lambda s: {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "log": np.zeros(3), "state_dict": s},
        ["taken from 'state_dict'"],
    ),
    "under another key": ("w.pt", lambda s: {"epoch": 3, "student": s}, ["taken from 'student'"]),
    "safetensors by another name": ("w.pt", lambda s: safetensors.torch.save(s), []),
    "in a wrapper": ("w.pth", lambda s: prefixed(s, "backbone."), ["backbone.* -> *  (46 tensors)"]),
    "TRADES": (
        "w.pt",
        with_unused,
        ["sub_block1.* skipped  (12 tensors): no forward pass uses them"],
    ),
    "half": ("w.pt", lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, []),
    "before counters": ("w.pt", lambda s: {n: t for n, t in s.items() if "num_batches" not in n}, []),
}


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_files_of_others(theirs: nn.Module, tmp_path: Path, kind: str) -> None:
    name, form, notes = FILES[kind]
    path = write(tmp_path / name, form(theirs.state_dict()))
    network = create_classifier("wrn-10-1", 4).eval()
    assert fastgat.load_weights(network, path) == notes
    images = torch.rand(2, 3, 32, 32)
    allowed = 2e-2 if kind == "half" else 0
    torch.testing.assert_close(network(images), theirs(images), rtol=allowed, atol=allowed)


@pytest.mark.parametrize("wrapped", [False, True])
def test_with_a_normalization(theirs: nn.Module, tmp_path: Path, wrapped: bool) -> None:
    """The user gives the one of a file that has none; one in the file must be the same."""
    state = theirs.state_dict()
    if wrapped:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATION)
        state = {"0.mu": mean, "0.sigma": std, **prefixed(state, "1.")}
    path = write(tmp_path / "w.pt", state)
    network = create_classifier("wrn-10-1", 4, normalization=NORMALIZATION).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fastgat.load_weights(network, path)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION)
    torch.testing.assert_close(network(images), theirs((images - mean) / std))
    if wrapped:
        other = create_classifier("wrn-10-1", 4, normalization=((0.5,) * 3, (0.2, 0.3, 0.4)))
        with pytest.raises(CheckpointError, match=r"made with mean 0.4,0.5,0.6, not 0.5,0.5,0.5"):
            fastgat.load_weights(other, path)
        lost = write(tmp_path / "lost.pt", {**state, "0.mu": mean * torch.nan})
        with pytest.raises(CheckpointError, match="made with mean nan,nan,nan"):
            fastgat.load_weights(other, lost)
        with pytest.raises(CheckpointError, match=r"give --mean 0.4,0.5,0.6 --std 0.2,0.3,0.4"):
            fastgat.load_weights(create_classifier("wrn-10-1", 4), path)
    assert before.keys() == network.state_dict().keys()


@pytest.mark.parametrize("form", ["a run", "a state dict"])
def test_a_normalization_of_fastgat_s_own(tmp_path: Path, form: str) -> None:
    """Neither is it taken in place of the one that is given, nor is a checkpoint without it of another model."""
    mean, std = (",".join(map(str, values)) for values in NORMALIZATION)
    config = TrainConfig(
        method="baseline",
        epochs=1,
        batch_size=64,
        output=tmp_path / "run",
        data=DataConfig("digits", train_images=64),
        model=ModelConfig("wrn-10-1", mean=mean, std=std),
        run=RunConfig(compile=False),
    )
    path = Trainer(config).fit().output
    trained = fastgat.load_classifier(path)
    if form == "a state dict":
        path = write(tmp_path / "w.pt", trained.state_dict())
    same = create_classifier("wrn-10-1", 10, normalization=NORMALIZATION).eval()
    fastgat.load_weights(same, path)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(same(images), trained(images))
    with pytest.raises(CheckpointError, match=r"made with mean 0.4,0.5,0.6, not 0.5,0.5,0.5"):
        fastgat.load_weights(create_classifier("wrn-10-1", 10, normalization=((0.5,) * 3, (0.2, 0.3, 0.4))), path)
    with pytest.raises(CheckpointError, match=r"give --mean 0.4,0.5,0.6 --std 0.2,0.3,0.4"):
        fastgat.load_weights(create_classifier("wrn-10-1", 10), path)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def a_cycle() -> dict[str, Any]:
    cycle: dict[str, Any] = {}
    cycle["model"] = cycle
    return cycle


def compress(path: Path, state: State) -> None:
    """What torch.save wrote, packed: it may take a thousand times the memory that its size says."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content + bytes(1_000_000))


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


BAD: dict[str, tuple[str, Callable[[Path, State], object], str]] = {
    "absent": ("w.pt", lambda path, s: None, "No such file"),
    "a folder": ("w", lambda path, s: path.mkdir(), "no such checkpoint"),
    "a pipe": ("w.pt", lambda path, s: os.mkfifo(path), "not a regular file"),
    "empty": ("w.pt", lambda path, s: path.write_bytes(b""), "damaged, or not written by torch.save"),
    "text": ("w.pth", lambda path, s: path.write_text("hello"), "it begins with b'hello'$"),
    "a page": ("w.pth", lambda path, s: path.write_text("<!DOCTYPE html>"), "it begins with b'<!DOCTYPE html>'$"),
    "empty safetensors": ("w.safetensors", lambda path, s: path.write_bytes(b""), "damaged or not a safetensors file"),
    "code": ("w.pt", lambda path, s: path.write_bytes(pickled(Code())), "is code and is not run; save its state_dict"),
    "code in zip": ("w.pt", lambda path, s: torch.save(Code(), path), "is code and is not run"),
    "code beside": (
        "w.pt",
        lambda path, s: torch.save({"model": s, "c": Code()}, path),
        "is code and is not run",
    ),
    "filled in place": (
        "w.pt",
        lambda path, s: torch.save({"model": s, "log": defaultdict(list, a=[1])}, path),
        "needs collections.defaultdict to be read",
    ),
    "a module": (
        "w.pt",
        lambda path, s: torch.save({"model": nn.ReLU()}, path),
        "needs torch.nn.modules.activation.Re",
    ),
    "several networks": ("w.pt", lambda path, s: torch.save({"a": s, "b": s}, path), "several networks, 'a', 'b'"),
    "no tensors": ("w.pt", lambda path, s: torch.save({"model": {"epoch": 3}}, path), "holds no tensors by name"),
    "a tensor": ("w.pt", lambda path, s: torch.save(torch.zeros(3), path), "holds no tensors by name"),
    "a cycle": ("w.pt", lambda path, s: torch.save(a_cycle(), path), "holds no tensors by name"),
    "other network": (
        "w.pt",
        lambda path, s: torch.save({n.replace("fc.", "linear."): t for n, t in s.items()}, path),
        r"missing fc.weight \(first of 2\) and unexpected linear.weight \(first of 2\)",
    ),
    "a layer less": (
        "w.pt",
        lambda path, s: torch.save({n: t for n, t in s.items() if n != "fc.bias"}, path),
        "missing fc.bias$",
    ),
    "other classes": (
        "w.pt",
        lambda path, s: torch.save({**s, "fc.bias": torch.zeros(10)}, path),
        r"fc.bias has shape \(10,\), here \(4,\)",
    ),
    "integers": (
        "w.pt",
        lambda path, s: torch.save({**s, "fc.bias": torch.zeros(4, dtype=torch.int64)}, path),
        "fc.bias is of torch.int64",
    ),
    "sparse": ("w.pt", lambda path, s: torch.save({**s, "fc.bias": torch.zeros(4).to_sparse()}, path), "sparse_coo"),
    "compressed": ("w.pt", compress, "its contents are compressed"),
    "same names": ("w.pt", lambda path, s: torch.save({**s, "module.fc.bias": s["fc.bias"]}, path), "two of its"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_cannot_be_read(
    theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, make, message = BAD[kind]
    make(tmp_path / name, theirs.state_dict())
    network = create_classifier("wrn-10-1", 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as raised:
        fastgat.load_weights(network, tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_anywhere(theirs: nn.Module, tmp_path: Path, name: str) -> None:
    """Cut short: an error. With a byte changed: no other error than fastgat's, or weights that were read."""
    raw = write(tmp_path / name, theirs.state_dict()).read_bytes()
    network = create_classifier("wrn-10-1", 4)
    for cut in range(0, len(raw), len(raw) // 20):
        (tmp_path / name).write_bytes(raw[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            fastgat.load_weights(network, tmp_path / name)
    for at in range(0, min(len(raw), 4000), 97):
        (tmp_path / name).write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        with contextlib.suppress(CheckpointError):
            fastgat.load_weights(network, tmp_path / name)
