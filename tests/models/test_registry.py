"""Classifiers by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastgat.errors import ConfigError
from fastgat.models import Classifier, create_classifier


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
    stub = SimpleNamespace(
        is_model=lambda name: name == "resnet18",
        list_models=lambda: ["resnet18", "resnet34"],
        create_model=lambda name, **options: made.append((name, options)),
    )
    monkeypatch.setitem(sys.modules, "timm", stub)
    return made


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_timm_builds_its_own(timm: list[tuple[str, dict[str, Any]]], name: str) -> None:
    create_classifier(name, num_classes=7, in_channels=1, dropout=0.1)
    assert timm == [("resnet18", {"num_classes": 7, "in_chans": 1, "drop_rate": 0.1})]


def test_an_unknown_name_names_the_nearest(timm: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match=r"'resnet19'; did you mean 'resnet18'\?"):
        create_classifier("resnet19", num_classes=10)
    assert not timm
