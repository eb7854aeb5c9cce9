"""The whole evaluation of a network: figures, cache, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fastgat.attacks import PGD, Attack, AutoAttack, GeneratorTraining
from fastgat.batch import Batch
from fastgat.data import IterableLoader
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.evaluation import Cache, EvaluationSettings, attack_sweep, evaluate, write_report
from fastgat.evaluation.inputs import Batches, Subject
from fastgat.evaluation.outcomes import clean_outcomes, outcomes
from fastgat.evaluation.power import equal_power
from tests.attacks.victim import Victim, accuracy
from tests.evaluation.masked import Stairs

SETTINGS = EvaluationSettings(norm="l2", epsilon=0.6, steps=4, restarts=2, apgd_steps=4, queries=20)


def batches(victim: Victim, count: int = 40, size: int = 40) -> list[Batch]:
    parts = zip(victim.images[:count].split(size), victim.labels[:count].split(size), strict=True)
    return [Batch(*part) for part in parts]


def without_environment(figures: dict[str, Any]) -> Any:
    return json.loads(json.dumps(figures))


def test_figures_repeat_and_agree_with_attacks(victim: Victim) -> None:
    one, again = (evaluate(victim.model, batches(victim), SETTINGS).figures for _ in range(2))
    assert without_environment(one) == without_environment(again)
    found = {attack["name"]: attack["accuracy"] for attack in one["attacks"]}
    attack = PGD(victim.model, norm="l2", epsilon=0.6, steps=4)
    perturbed = attack(victim.images[:40], victim.labels[:40])
    clean = victim.model(victim.images[:40]).argmax(1) == victim.labels[:40]
    both = clean & (victim.model(perturbed).argmax(1) == victim.labels[:40])
    assert found["PGD-4"] == pytest.approx(float(both.float().mean()))
    assert one["worst_case_accuracy"] <= min(found.values())
    assert one["clean_accuracy_of_attacked"] == pytest.approx(accuracy(victim, victim.images[:40]))
    assert one["curves"][-1]["accuracies"][0] == one["clean_accuracy_of_attacked"]  # epsilon 0
    assert {curve["attack"] for curve in one["curves"]} == {"fast gradient", "PGD-4", "PGD-20"} - {"PGD-4"}


@pytest.mark.slow
@pytest.mark.long
def test_the_batch_size_does_not_matter(victim: Victim) -> None:
    one, many = (evaluate(victim.model, batches(victim, 40, size), SETTINGS).figures for size in (40, 13))
    for a, b in zip(one["attacks"], many["attacks"], strict=True):
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.026), a["name"]  # one sample may round away


def test_what_was_done_is_not_done_again(victim: Victim, tmp_path: Path) -> None:
    calls = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = victim.model

        def forward(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            logits: Tensor = self.model(images)
            return logits

    model, given = Counted(), Batches.of(batches(victim, 40, 20))
    attack = PGD(model, epsilon=0.03, steps=5)
    subject = Subject("f", model)
    first = outcomes(subject, attack, given, Cache(tmp_path))
    some = len(calls)
    assert outcomes(subject, attack, given, Cache(tmp_path)).tolist() == first.tolist()
    assert len(calls) == some
    more = Batches.of(batches(victim, 60, 20))  # the first batches are those from before
    assert outcomes(subject, attack, more, Cache(tmp_path))[:40].tolist() == first.tolist()
    assert some < len(calls) < 2 * some
    outcomes(subject, PGD(model, epsilon=0.04, steps=5), given, Cache(tmp_path))
    assert len(calls) > 2 * some


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_evaluation_goes_on(victim: Victim, tmp_path: Path) -> None:
    expected = evaluate(victim.model, batches(victim), SETTINGS).figures

    def stop(what: str, done: int, total: int) -> None:
        if what == "APGD-CE":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(victim.model, batches(victim), SETTINGS, cache=Cache(tmp_path), progress=stop)
    kept = len(list(tmp_path.iterdir()))
    assert kept > 5
    resumed = evaluate(victim.model, batches(victim), SETTINGS, cache=Cache(tmp_path)).figures
    assert without_environment(resumed) == without_environment(expected)


def test_a_second_evaluation_attacks_nothing(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = IterableLoader(list(zip(victim.images[100:].split(20), victim.labels[100:].split(20), strict=True)), 10)
    given: dict[str, Any] = {
        "train": train,
        "validation": batches(victim),
        "generators": [GeneratorTraining(width=4, epochs=1)],
        "sources": {"h": copy.deepcopy(victim.model)},
    }
    first = evaluate(victim.model, batches(victim), SETTINGS, **given, cache=Cache(tmp_path)).figures

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("computed again")

    for place in (
        "fastgat.evaluation.protocol.train_generator",
        "fastgat.evaluation.sweep.loss_gradient",
        "fastgat.evaluation.power.generated",
        "fastgat.attacks.apgd.APGD.perturb",
        "fastgat.attacks.square.Square.perturb",
        "fastgat.attacks.noise.Noise.perturb",
    ):
        monkeypatch.setattr(place, never)
    again = evaluate(victim.model, batches(victim), SETTINGS, **given, cache=Cache(tmp_path)).figures
    assert without_environment(again) == without_environment(first)


@pytest.mark.slow
@pytest.mark.long
def test_autoattack_is_kept_part_by_part(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(AutoAttack, steps=4, targets=12, queries=20)  # APGD-CE and Square are those of SETTINGS
    monkeypatch.setattr("fastgat.evaluation.protocol.AutoAttack", short)
    settings, told = replace(SETTINGS, autoattack=True), set()

    def stop(what: str, done: int, total: int) -> None:
        told.add(what)
        if what == "AutoAttack, FAB-T" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(victim.model, batches(victim), settings, cache=Cache(tmp_path), progress=stop)
    assert {what for what in told if what.startswith("AutoAttack")} == {"AutoAttack, APGD-T", "AutoAttack, FAB-T"}
    monkeypatch.delattr("fastgat.attacks.fab.FAB._step")
    figures = evaluate(victim.model, batches(victim), settings, cache=Cache(tmp_path)).figures
    (entry,) = (attack for attack in figures["attacks"] if attack["name"] == "AutoAttack")
    monkeypatch.undo()
    for size in (None, 7):
        alone = short(victim.model, norm="l2", epsilon=0.6, batch_size=size)(victim.images[:40], victim.labels[:40])
        assert entry["accuracy"] == pytest.approx(accuracy(victim, alone))
    assert 0.1 < entry["accuracy"] < figures["clean_accuracy_of_attacked"]
    assert (entry["steps"], entry["targets"], entry["queries"]) == (4, 12, 20)
    (line,) = (line for line in figures["card"] if "wrong classes" in line["name"])
    assert (line["verdict"], line["figures"]) == ("WARN", {"wrong classes": 9, "aimed at": 12})


@pytest.mark.parametrize(
    ("mask", "verdict"), [(nn.Sequential, "PASS"), pytest.param(Stairs, "FAIL", marks=pytest.mark.long)]
)
def test_autoattack_and_nothing_else(
    victim: Victim, mask: Any, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgat.evaluation.protocol.AutoAttack", partial(AutoAttack, steps=4, targets=2, queries=500))
    model, settings = mask(victim.model), replace(SETTINGS, norm="linf", epsilon=0.06, only_autoattack=True)
    result = evaluate(model.eval(), batches(victim), settings)
    figures = result.figures
    (entry,) = figures["attacks"]
    alone = AutoAttack(model, epsilon=0.06, steps=4, targets=2, queries=500)(victim.images[:40], victim.labels[:40])
    left = (model(alone).argmax(1) == victim.labels[:40]).float().mean()
    assert (entry["name"], entry["accuracy"]) == ("AutoAttack", pytest.approx(float(left)))
    assert figures["worst_case_accuracy"] == entry["accuracy"] < figures["clean_accuracy_of_attacked"]
    assert figures["curves"] == figures["equal_power"] == []
    (line,) = (line for line in figures["card"] if "Square" in line["name"])
    assert line["verdict"] == verdict, line["figures"]
    assert line["figures"]["with Square"] == entry["accuracy"]
    written = {path.name for path in write_report(tmp_path, result)}
    assert written == {"evaluation.json", "report.html"}
    others: list[dict[str, Any]] = [{"networks": {"h": model}}, {"sources": {"h": model}}]
    for given in (*others, {"generators": [GeneratorTraining()]}):
        with pytest.raises(ConfigError, match="runs nothing else"):
            evaluate(model, batches(victim), settings, **given)


def test_autoattack_is_the_standard_version() -> None:
    parts = {
        name: attack.settings() for name, attack in AutoAttack(nn.Identity(), epsilon=0.1, norm="l2").parts().items()
    }
    assert list(parts) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert all((part["epsilon"], part["norm"]) == (0.1, "l2") for part in parts.values())
    assert [parts[name]["steps"] for name in ("APGD-CE", "APGD-T", "FAB-T")] == [100] * 3
    assert [parts[name]["loss"] for name in ("APGD-CE", "APGD-T")] == ["ce", "dlr-t"]
    assert [parts[name]["targets"] for name in ("APGD-T", "FAB-T")] == [9, 9]
    assert [parts[name]["restarts"] for name in ("APGD-CE", "APGD-T")] == [1] * 2
    assert parts["Square"]["queries"] == 5000


def test_the_matrix_is_network_by_source(victim: Victim) -> None:
    other = copy.deepcopy(victim.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))

    def attack(model: nn.Module, epsilon: float) -> Attack:
        return PGD(model, epsilon=epsilon, steps=4)

    curves = attack_sweep(
        {"f": victim.model, "g": other}, batches(victim), [0, 0.03], attack, sources={"f": victim.model}
    )
    assert curves.keys() == {("f", "f"), ("g", "f")}
    assert curves["f", "f"][1] <= curves["g", "f"][1]
    assert curves["f", "f"][0] == pytest.approx(accuracy(victim, victim.images[:40]))
    figures = evaluate(
        victim.model, batches(victim), SETTINGS, name="f", networks={"g": other}, sources={"h": other}
    ).figures
    pairs = {(curve["network"], curve["source"]) for curve in figures["curves"]}
    assert pairs == {("f", None), ("g", None), ("f", "h"), ("g", "h")}


def test_power_is_equal(victim: Victim) -> None:
    """By hand: what each side adds has the power that it is to have, and the accuracies are those of the sums."""

    class Uneven(nn.Module):
        """Against the probability, but a column off, and eight times stronger for some samples than for others."""

        def forward(self, delta: Tensor) -> Tensor:
            size = torch.where(delta[:, :1, :1, :1] > 0, 1.6, 0.2)
            return -size * functional.normalize(delta.roll(1, 3).flatten(1)).view_as(delta)

    generator = Uneven()
    subject, cache = Subject("f", victim.model), Cache()
    (row,) = equal_power(subject, {0.5: generator}, batches(victim, 100, 30), cache)
    x, y = victim.images[:100], victim.labels[:100]
    x_ = x.clone().requires_grad_()
    own = victim.model(x_).softmax(1).gather(1, y[:, None]).sum()
    (delta,) = torch.autograd.grad(own, x_)
    with torch.no_grad():
        p = generator(delta)
        norms = p.flatten(1).norm(dim=1)
        assert row.power == pytest.approx(float(norms.square().mean()), rel=1e-4)
        mean = norms.square().mean().sqrt().expand(len(norms))
        l2, linf = delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1), delta.sign() / 3072**0.5
        moves = {"generator": p}
        for amount, length in (("per sample", norms), ("on average", mean)):
            for name, unit in (("fg-l2", l2), ("fg-linf", linf)):
                step = -unit * length.view(-1, 1, 1, 1)  # against the probability, along the loss
                assert step.flatten(1).norm(dim=1).tolist() == pytest.approx(length.tolist(), rel=1e-3)
                moves[f"{name} {amount}"] = step
        expected = {name: float((victim.model(x + p).argmax(1) == y).float().mean()) for name, p in moves.items()}
    assert row.accuracy == pytest.approx(expected, abs=0.011)  # one sample may round away
    assert abs(expected["fg-l2 per sample"] - expected["fg-l2 on average"]) > 0.03  # neither can stand for the other
    assert row.cg == 0.5


def test_nan_under_a_generator_s_power_ends_an_evaluation(victim: Victim) -> None:
    class Bounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            return logits.where((images.abs() < 5).flatten(1).all(1)[:, None], torch.nan)

    class Strong(nn.Module):
        def forward(self, delta: Tensor) -> Tensor:
            return torch.full_like(delta, 10.0)

    with pytest.raises(NonFiniteError, match="f returns logits that are NaN or infinite under perturbations"):
        equal_power(Subject("f", Bounded()), {1.0: Strong()}, batches(victim, 20, 20), Cache())


def test_images_of_inference_mode_and_an_empty_batch(victim: Victim) -> None:
    settings = EvaluationSettings(steps=2, restarts=2, apgd_steps=2, queries=5)
    (batch,) = batches(victim, 20, 20)
    with torch.inference_mode():
        made_there = [Batch(*(tensor[part].clone() for tensor in batch)) for part in (slice(0), slice(20))]
    ours, theirs = (evaluate(victim.model, given, settings).robustness for given in (made_there, [batch]))
    assert ours is not None
    assert theirs is not None
    assert [attack.accuracy for attack in ours.attacks] == [attack.accuracy for attack in theirs.attacks]


def test_a_report_is_whole(victim: Victim, tmp_path: Path) -> None:
    train = IterableLoader(list(zip(victim.images[100:].split(20), victim.labels[100:].split(20), strict=True)), 10)
    result = evaluate(
        victim.model,
        batches(victim),
        SETTINGS,
        name="<f>",
        train=train,
        validation=batches(victim),
        generators=[GeneratorTraining(cg=cg, width=4, epochs=1) for cg in (0.1, 1)],
    )
    written = {path.name for path in write_report(tmp_path / "out", result)}
    images = {f"evaluation-{name}.{kind}" for name in ("curves", "power", "pictures") for kind in ("png", "svg")}
    assert written == images | {"evaluation.json", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;f&gt;" in page
    assert "<f>" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="evaluation' not in page
    for check in result.figures["card"]:
        assert check["name"].split("'")[0] in page
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["equal_power"][0]["cg"] == 0.1


def test_the_model_comes_back_as_it_was(victim: Victim) -> None:
    model = copy.deepcopy(victim.model).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    evaluate(model, batches(victim, 10), SETTINGS)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)


@pytest.mark.slow
@pytest.mark.long
def test_a_network_in_place_and_short_labels_change_nothing(victim: Victim) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = victim.model

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images.mul_(0.5))
            return logits

    class Halved(InPlace):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images * 0.5)
            return logits

    given = batches(victim, 20)
    short = [Batch(images.clone(), labels.to(torch.uint8)) for images, labels in given]
    train = IterableLoader(list(zip(victim.images[100:].split(20), victim.labels[100:].split(20), strict=True)), 10)
    figures = [
        evaluate(model, some, SETTINGS, train=train, validation=some, generators=[GeneratorTraining(width=4, epochs=1)])
        for model, some in ((InPlace(), short), (Halved(), given))
    ]
    assert figures[0].figures == figures[1].figures
    assert all(a.images.equal(b.images) for a, b in zip(given, short, strict=True))


def test_what_is_wrong_is_said(victim: Victim) -> None:
    class NaN(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10] * torch.nan

    class Late(nn.Module):
        """NaN for some images only, and not for the first."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            return logits.where((images != images.max()).flatten(1).all(1)[:, None] | (len(images) < 3), torch.nan)

    given = batches(victim, 10)
    samples = TensorDataset(victim.images[:10], victim.labels[:10])
    shuffled: Any = DataLoader(samples, batch_size=5, shuffle=True)
    hundred = nn.Sequential(nn.Flatten(), nn.Linear(3072, 100))
    for error, message, call in (
        (ConfigError, "epsilon must be at least 0", lambda: EvaluationSettings(epsilon=-0.1)),
        (ConfigError, "epsilon must be at most 1 in linf", lambda: EvaluationSettings(epsilon=8)),
        (ConfigError, "pixels from", lambda: evaluate(victim.model, [Batch(given[0].images * 2, given[0].labels)])),
        (ConfigError, "returns probabilities", lambda: evaluate(nn.Sequential(victim.model, nn.Softmax(1)), given)),
        (NonFiniteError, "NaN or infinite", lambda: evaluate(NaN(), given)),
        (
            NonFiniteError,
            "network returns logits that are NaN",
            lambda: clean_outcomes(Subject("network", Late()), Batches.of(given), Cache()),
        ),
        (
            ConfigError,
            "h has 100 classes, but network has 10",
            lambda: evaluate(victim.model, given, sources={"h": hundred}),
        ),
        (ConfigError, "do not take images", lambda: evaluate(nn.Linear(3, 10), given)),
        (ConfigError, "read several times", lambda: evaluate(victim.model, iter(given))),
        (ConfigError, "no images", lambda: evaluate(victim.model, [])),
        (ConfigError, "not the same each time", lambda: evaluate(victim.model, shuffled)),
        (
            ConfigError,
            "pass train and validation images",
            lambda: evaluate(victim.model, given, generators=[GeneratorTraining()]),
        ),
        (
            ConfigError,
            "'network' stands for several",
            lambda: evaluate(victim.model, given, sources={"network": victim.model}),
        ),
        (
            ConfigError,
            "several generators have c_g 0.3",
            lambda: evaluate(victim.model, given, generators=[GeneratorTraining(cg=cg) for cg in (0.3, 1, 0.3)]),
        ),
        (
            ConfigError,
            "several generators have c_g 1:",
            lambda: evaluate(victim.model, given, generators=[GeneratorTraining(cg=cg) for cg in (1, 1.0000001)]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_logits_that_are_nan_under_an_attack_are_an_error(victim: Victim) -> None:
    class Fragile(nn.Module):
        """NaN for images that are not among its own."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            apart = (images.detach().flatten(1)[:, None] - victim.images[:10].flatten(1)).abs().amax(2).amin(1)
            return logits.where((apart < 1e-3)[:, None], torch.nan)

    given, subject = Batches.of(batches(victim, 10)), Subject("f", Fragile())
    assert clean_outcomes(subject, given, Cache()).any()
    with pytest.raises(NonFiniteError, match=r"f returns logits that are NaN or infinite under PGD, epsilon 0\.05"):
        outcomes(subject, PGD(subject, epsilon=0.05, steps=2), given, Cache())


def test_kept_results_of_a_network_that_has_changed_unseen_are_not_used(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgat.evaluation.protocol.AutoAttack", partial(AutoAttack, steps=2, targets=1, queries=2))
    monkeypatch.setattr("fastgat.evaluation.agreement.missing_compiler", lambda device: "a compiler")
    scale = tmp_path / "scale"

    class Scaled(nn.Module):
        """It reads what its images are multiplied by from a file."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images * float(scale.read_text()))
            return logits

    settings = replace(SETTINGS, only_autoattack=True)
    scale.write_text("1")
    first = evaluate(Scaled(), batches(victim), settings, cache=Cache(tmp_path / "kept")).figures
    scale.write_text("0.1")
    found = evaluate(Scaled(), batches(victim), settings, cache=Cache(tmp_path / "kept")).figures
    assert without_environment(found) == without_environment(evaluate(Scaled(), batches(victim), settings).figures)
    assert found["worst_case_accuracy"] != first["worst_case_accuracy"]


def test_clean_outcomes_are_the_clean_answers(victim: Victim) -> None:
    right = clean_outcomes(Subject("f", victim.model), Batches.of(batches(victim, 40, 11)), Cache())
    assert right.tolist() == (victim.model(victim.images[:40]).argmax(1) == victim.labels[:40]).tolist()


def test_multiples_of_epsilon_end_where_images_do(victim: Victim) -> None:
    """0.3 is what digits are attacked by; four times that is more than there is."""
    settings = replace(SETTINGS, norm="linf", epsilon=0.3)
    found = evaluate(victim.model, batches(victim), settings).figures
    ladder = found["curves"][-1]
    assert ladder["epsilons"] == [0.0, 0.075, 0.15, 0.3, 0.5, 0.6, 1.0]
    (large,) = (line for line in found["card"] if line["name"] == "Accuracy reaches 0 at a large epsilon")
    assert large["figures"] == {"PGD, epsilon 0.5": ladder["accuracies"][4]}


@pytest.mark.slow
@pytest.mark.long
def test_it_is_float32_whatever_is_around_it(victim: Victim) -> None:
    plain = evaluate(victim.model, batches(victim), SETTINGS).figures
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(victim.model, batches(victim), SETTINGS).figures
    assert without_environment(found) == without_environment(plain)
