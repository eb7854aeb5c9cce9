"""Checkpoints: whole, versioned, without pickles."""

from __future__ import annotations

import errno
import json
import os
import random
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastgat import load_classifier
from fastgat.config import OptimizerConfig
from fastgat.engine import checkpoint
from fastgat.engine.checkpoint import keep_classifier, load_checkpoint, save_checkpoint
from fastgat.errors import CheckpointError, OutputError
from tests.engine.small import Small, config, trainer

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c/d": torch.tensor(3), "bf": torch.ones(3).bfloat16()}
HEADER = {
    "config": {},
    "model": {"classifier": None, "num_classes": 4, "in_channels": 3, "dropout": 0.0},
    "position": {"step": 7},
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    shared = torch.rand(3)
    save_checkpoint(path, {**TENSORS, "e": shared, "f": shared}, HEADER)
    tensors, header = load_checkpoint(path)
    assert header["position"] == {"step": 7}
    for name, tensor in TENSORS.items():
        assert tensors[name].equal(tensor)
        assert tensors[name].dtype == tensor.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_tensors_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """As safetensors reads them the order changes from one reading to the next, and with it what errors name first."""
    names = [f"tensor{number}" for number in range(8)]
    save_checkpoint(tmp_path / "x.safetensors", {name: torch.zeros(1) for name in reversed(names)}, HEADER)
    assert list(load_checkpoint(tmp_path / "x.safetensors")[0]) == names


def test_a_layout_of_channels_last_survives(tmp_path: Path) -> None:
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "x", {"image": image}, HEADER)
    assert load_checkpoint(tmp_path / "x")[0]["image"].equal(image)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing: No such file"):
        load_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_half_a_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "half"
    save_checkpoint(path, TENSORS, HEADER)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="half: damaged or not a checkpoint"):
        load_checkpoint(path)


def test_an_altered_tensor(tmp_path: Path) -> None:
    path = tmp_path / "altered"
    save_checkpoint(path, TENSORS, HEADER)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load_checkpoint(path)


def test_an_altered_header(tmp_path: Path) -> None:
    path = tmp_path / "altered"
    save_checkpoint(path, TENSORS, HEADER)
    path.write_bytes(path.read_bytes().replace(b'step\\": 7', b'step\\": 0'))
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load_checkpoint(path)


def test_every_bit_of_the_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "altered"
    save_checkpoint(path, TENSORS, HEADER)
    content = path.read_bytes()
    source = random.Random(0)
    for place in range(8 + int.from_bytes(content[:8], "little")):
        altered = bytearray(content)
        altered[place] ^= 1 << source.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "value",
    [
        *(
            '{"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}',
            '{"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}',
        ),
        *('{"dtype": 7, "shape": [1], "data_offsets": [0, 4]}', '{"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}'),
        *(f'{{"dtype": "F32", "shape": [{2**62}, {2**62}], "data_offsets": [0, 4]}}', "3", "null", "[]"),
        *(f'{{"dtype": "F32", "shape": [{10**30}], "data_offsets": [0, 4]}}', '{"dtype": "F32"}', "9" * 5000),
        *('{"dtype": "F32", "shape": [1], "data_offsets": []}', "[" * 100_000 + "]" * 100_000),
    ],
    ids=lambda value: value[:60],
)
def test_a_header_of_safetensors_that_cannot_be(tmp_path: Path, value: str) -> None:
    text = f'{{"a": {value}}}'.encode()
    path = tmp_path / "odd"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match=r"odd: (damaged|not a checkpoint)"):
        load_checkpoint(path)


def test_another_program_s_file(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a checkpoint of fastgat"):
        load_checkpoint(tmp_path / "other")


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    save_checkpoint(tmp_path / "old", TENSORS, HEADER)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="checkpoint format 0, but this fastgat reads up to format 4"):
        load_checkpoint(tmp_path / "old")


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, HEADER)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"last\.safetensors: cannot be written: No space left on device"):
        save_checkpoint(path, TENSORS, {**HEADER, "position": {}})
    assert load_checkpoint(path)[1]["position"] == HEADER["position"]
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_earlier_formats_are_read(tmp_path: Path, version: int) -> None:
    """Their checksum is over the values alone; the optimisers had other names in format 2."""
    names = ("classifier_adam.exp_avg.w", "generator_adam.updates", "step")
    tensors = {name: torch.ones(2) for name in names}
    text = json.dumps({"format": version, **HEADER})
    checksum = zlib.crc32(text.encode())
    for name in sorted(names):
        checksum = zlib.crc32(tensors[name].numpy().tobytes(), checksum)
    safetensors.torch.save_file(tensors, tmp_path / "old.safetensors", {"fastgat": text, "checksum": str(checksum)})
    found, header = load_checkpoint(tmp_path / "old.safetensors")
    new = {"classifier_optimizer.exp_avg.w", "generator_optimizer.updates", "step"}
    assert set(found) == (new if version == 2 else set(names))
    assert header["format"] == (1 if version == 1 else checkpoint.FORMAT)


def test_what_is_kept_of_a_finished_run_is_its_classifier(tmp_path: Path) -> None:
    """The average, where there is one, in place of what it averages; doing it twice changes nothing more."""
    trainer(config(tmp_path / "run", epochs=1, optimizer=OptimizerConfig(ema=0.9))).fit()
    best = tmp_path / "run" / "best.safetensors"
    before = load_classifier(tmp_path / "run", classifier=Small()).state_dict()
    raw = load_checkpoint(best)[0]
    assert any(not tensor.equal(raw[f"classifier.{name}"]) for name, tensor in before.items())
    for _ in range(2):
        keep_classifier(best)
        assert load_checkpoint(best)[0].keys() == {f"classifier.{name}" for name in before}
        after = load_classifier(tmp_path / "run", classifier=Small()).state_dict()
        assert all(tensor.equal(before[name]) for name, tensor in after.items())
