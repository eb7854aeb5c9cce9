"""The command line is frozen: an option that goes, changes its name or its default breaks people's scripts."""

from __future__ import annotations

import collections
import dataclasses
import typing

import pytest

from fastgat.cli.options import settings
from fastgat.cli.train import train
from fastgat.methods import METHODS
from fastgat.options import convert

FROZEN = {
    "--method": None,
    "--alpha": 0.5,
    "--cg": 1.0,
    "--epsilon": {
        "random": 0.5,
        "fg-linf": 2 / 255,
        "fg-l2": 0.5,
        **dict.fromkeys(("pgd", "fgsm-rs", "n-fgsm", "free", "trades"), 8 / 255),
    },
    "--attack-steps": {"pgd": 7, "trades": 10},
    "--step-size": {"pgd": 2 / 255, "trades": 2 / 255},
    "--overshoot": 1.25,
    "--noise-factor": 2.0,
    "--replays": 4,
    "--divide-epochs": False,
    "--beta": 6.0,
    "--attack-mode": "train",
    "--label-smoothing": 0.0,
    "--generator-steps": 1,
    "--generator-interval": 1,
    "--generator-input": {"gat": "gradient", "dropout-gat": "gradient"},
    "--schedule": "simultaneous",
    "--delta": {"gat": "through", "dropout-gat": "through"},
    "--clamp": dict.fromkeys(("random", "fg-linf", "fg-l2", "gat", "dropout-gat"), False),
    "--penalty": 0.1,
    "--dropout": 0.2,
    "--epochs": 30,
    "--batch-size": 128,
    "--seed": 0,
    "--select": None,
    "--select-epsilon": None,
    "--select-norm": None,
    "--output": None,
    "--resume": None,
    "--dataset": "auto",
    "--data-dir": None,
    "--image-size": None,
    "--max-pixels": 64_000_000,
    "--split-seed": 0,
    "--changed-data": False,
    "--train-images": None,
    "--extra-data": None,
    "--extra-fraction": None,
    "--loader": "auto",
    "--workers": None,
    "--on-bad-sample": "error",
    "--flip": False,
    "--padded-crop": None,
    "--random-resized-crop": None,
    "--cutout": None,
    "--classifier": "table1",
    "--mean": None,
    "--std": None,
    "--init-from": None,
    "--generator-width": 48,
    "--batch-norm": "both",
    "--lr": 1e-3,
    "--optimizer": "adam",
    "--weight-decay": None,
    "--decay-norm": True,
    "--momentum": 0.9,
    "--nesterov": False,
    "--generator-lr": 1e-6,
    "--lr-schedule": "constant",
    "--milestones": None,
    "--lr-decay": 0.1,
    "--warmup-epochs": 0.0,
    "--clip-grad": None,
    "--ema": None,
    "--amp": False,
    "--amp-dtype": "auto",
    "--tf32": False,
    "--channels-last": False,
    "--device": "auto",
    "--compile": None,
    "--cuda-graph": True,
    "--convolutions": "cudnn",
    "--winograd": True,
    "--deterministic": False,
    "--log-interval": 50,
    "--checkpoint-interval": 1000,
    "--early-stopping": None,
    "--tensorboard": False,
    "--config": None,
    "--recipe": None,
    "--print-config": False,
    "--dry-run": False,
}


def test_names_and_defaults() -> None:
    shown = {option.opts[0] for option in train.params}
    assert shown == set(FROZEN)
    for setting in settings():
        default = FROZEN[setting.flag]
        if isinstance(default, dict):
            for name, value in default.items():
                assert METHODS[name].__dataclass_fields__[setting.field.name].default == value
        else:
            assert setting.field.default == default, setting.flag


def test_a_name_means_one_thing() -> None:
    """Options are flat, tables are not: two tables must not have fields of one name."""
    counts = collections.Counter(setting.field.name for setting in settings())
    assert max(counts.values()) == 1


def test_methods_agree_on_what_an_option_means() -> None:
    texts: dict[str, set[object]] = collections.defaultdict(set)
    for method in METHODS.values():
        for field in dataclasses.fields(method):
            texts[field.name].add((field.metadata["constraint"], typing.get_type_hints(method)[field.name]))
    assert {name: len(kinds) for name, kinds in texts.items()} == dict.fromkeys(texts, 1)


@pytest.mark.parametrize("text", ["8/255", "8.0/255", "8./255.", " 8 / 255 "])
def test_fractions_as_other_code_writes_them(text: str) -> None:
    assert convert("epsilon", text, float) == 8 / 255
