"""Classifiers by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastgat.errors import ConfigError
from fastgat.models import Classifier, Normalize, create_classifier, normalization


def test_table1_by_name() -> None:
    classifier = create_classifier("table1", num_classes=3, dropout=0.25)
    assert isinstance(classifier, Classifier)
    assert classifier.conv7.out_channels == 3
    assert classifier.dropout == 0.25


def test_without_timm_a_foreign_name_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"'resnet18'.*table1.*pip install timm"):
        create_classifier("resnet18", num_classes=10)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A stand-in that records what it is asked for."""
    made: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        made.append((name, options))
        model = nn.Identity()
        model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}  # type: ignore[assignment]  # as timm's have
        return model

    stub = SimpleNamespace(
        is_model=lambda name: name == "resnet18",
        list_models=lambda: ["resnet18", "resnet34"],
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", stub)
    return made


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_timm_builds_its_own(timm: list[tuple[str, dict[str, Any]]], name: str) -> None:
    classifier = create_classifier(name, num_classes=7, in_channels=1, dropout=0.1)
    assert timm == [("resnet18", {"num_classes": 7, "in_chans": 1, "drop_rate": 0.1})]
    images = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(classifier(images), (images - 0.2) / 0.6)


def test_what_timm_makes_has_its_normalisation_inside(timm: list[tuple[str, dict[str, Any]]]) -> None:
    classifier = create_classifier("resnet18", num_classes=7)
    images = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(classifier(images), (images - mean) / std)
    assert {"normalize.mean", "normalize.std"} == set(classifier.state_dict())


def test_an_unknown_name_names_the_nearest(timm: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match=r"'resnet19'; did you mean 'resnet18'\?"):
        create_classifier("resnet19", num_classes=10)
    assert not timm


OWN = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))

def anything(**options):
    module = nn.Identity()
    module.options = options
    return module

def strict(num_classes, depth):
    return nn.Identity()

def none():
    return None

def lazy(num_classes):
    from my_sibling import Net
    return Net()

def lost(num_classes):
    import my_missing

def bad(num_classes):
    raise ValueError("no such width")

def leaves(num_classes):
    raise SystemExit(0)

text = "no function"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(OWN)
    (tmp_path / "my_broken.py").write_text("def small(:")
    (tmp_path / "my_sibling.py").write_text("from torch.nn import Identity as Net")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_networks", "my_sibling"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_factory_of_ones_own(own: None) -> None:
    assert create_classifier("my_networks:small", num_classes=4)(torch.rand(2, 3, 4, 4)).shape == (2, 4)
    made = create_classifier("my_networks:anything", num_classes=4, in_channels=1, dropout=0.3)
    assert made.options == {"num_classes": 4, "in_channels": 1, "dropout": 0.3}
    assert isinstance(create_classifier("torch.nn:Identity", num_classes=4), nn.Identity)
    before = [path for path in sys.path if path not in ("", str(Path.cwd()))]  # as the installed command has it
    sys.path[:] = before
    assert isinstance(create_classifier("my_networks:lazy", num_classes=4), nn.Identity)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_network:small", "no module called 'my_network'"),
        ("my_networks:smal", "no attribute 'smal'"),
        ("my_networks:text", "cannot be called"),
        ("my_networks:strict", "missing 1 required positional argument: 'depth'"),
        ("my_networks:none", "made a NoneType, not a torch.nn.Module"),
        ("my_networks:lost", "No module named 'my_missing'"),
        ("my_networks:bad", "'my_networks:bad': ValueError: no such width"),
        ("my_networks:leaves", "'my_networks:leaves': SystemExit: 0"),
        ("builtins:dict", "no signature found"),
        (":small", "Empty module name"),
        ("my_broken:small", "invalid syntax"),
    ],
)
def test_a_factory_that_is_none(own: None, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_classifier(name, num_classes=4)


def test_dropout_is_not_left_out_silently(own: None) -> None:
    with pytest.raises(ConfigError, match="needs a factory that takes `dropout`"):
        create_classifier("my_networks:small", num_classes=4, dropout=0.2)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))])
def test_a_normalisation_that_is_none(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="for each channel"):
        Normalize(mean, std)


def test_a_normalization_is_the_first_layer() -> None:
    torch.manual_seed(0)
    classifier = create_classifier("wrn-10-1", 4, normalization=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))).eval()
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(classifier(images), classifier.get_submodule("model")((images - mean) / std))


def test_a_normalization_is_not_applied_twice(timm: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match="'resnet18' has a normalisation of its own"):
        create_classifier("resnet18", 4, normalization=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    with pytest.raises(ConfigError, match="mean has 3 values, but the images have 1 channels"):
        create_classifier("table1", 4, in_channels=1, normalization=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))


def test_options_of_normalization() -> None:
    assert normalization(None, None, "digits") is None
    assert normalization("0.1,0.2", "1,2", "digits") == ((0.1, 0.2), (1, 2))
    assert normalization("dataset", None, "cifar100") == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ("0.5,0.5,0.5", None, "mean and std belong together"),
        (None, "1", "mean and std belong together"),
        ("0.5,x", "1,1", "mean must be a number for each channel"),
        ("0.5,nan", "1,1", "must be finite"),
        ("125.3,123,113.9", "63,62.1,66.7", "of pixels in \\[0, 1\\]"),
        ("dataset", "1", "leave out std"),
        ("dataset", None, "no mean and std are usual for digits"),
    ],
)
def test_options_that_are_no_normalization(mean: str | None, std: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        normalization(mean, std, "digits")
