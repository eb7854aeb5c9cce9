"""A robust ResNet-18 on a GPU: 30 epochs by N-FGSM and by PGD, against the textbook on the same card, then attacked.

    python bench/robust.py --data-dir DATA --out OUT --minutes 9

Every part is a command of fastgat's. One that does not finish in time is told to stop, and the same command goes on
from where it was. What is finished lies in OUT/robust.json as it comes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

sys.path.append(str(Path(__file__).parents[1]))  # behind an installed fastgat, which goes before this checkout's
from bench.gain import run

METHODS = ("n-fgsm", "pgd")
FORM = ["--batch-size", "128", "--amp", "--channels-last"]
TEXTBOOK, LIKE_FOR_LIKE = "textbook", "textbook, like for like"
PROFILES: dict[str, list[str]] = {TEXTBOOK: [], LIKE_FOR_LIKE: ["--like-for-like"]}
"""PyTorch as it comes, in float32; and in fastgat's number format and layout."""
ATTACKS = ("PGD-50 x 10", "AutoAttack")
CARD_FAILED = 3


def parts(out: Path) -> dict[Path, list[str]]:
    """The commands, most valuable first, each by the file that is there when it is done."""
    commands, compared = {}, {}
    for method in METHODS:
        folder = out / method
        profile = ["profile", "--method", method, "--classifier", "preactresnet18-bn", *FORM, "--json"]
        as_it_comes, like_for_like = ([*profile, *options] for options in PROFILES.values())
        commands[out / f"{method}, {TEXTBOOK}.json"] = as_it_comes
        compared[out / f"{method}, {LIKE_FOR_LIKE}.json"] = like_for_like
        train = ["train", "--recipe", f"{method}-cifar10", "--epochs", "30", "--lr-schedule", "cyclic", *FORM]
        commands[folder / "summary.json"] = [*train, "--select", "last", "--output", str(folder), "--resume", "auto"]
        attacks = ["--samples", "1000", "--steps", "50", "--restarts", "10", "--autoattack", "--no-generator"]
        commands[folder / "evaluation.json"] = ["evaluate", str(folder), *attacks]
    return commands | compared


@click.command()
@click.option("--out", type=Path, required=True, help="where runs and figures go")
@click.option("--data-dir", type=Path, help="folder of CIFAR-10")
@click.option("--minutes", type=float, default=9.0, show_default=True, help="when to stop, at a checkpoint")
def main(out: Path, data_dir: Path | None, minutes: float) -> None:
    """Time both sides, train, and attack what was trained; a second call goes on."""
    end = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    for done, command in parts(out).items():
        if done.exists():
            continue
        where = ["--data-dir", str(data_dir)] if data_dir and command[0] != "profile" else []
        part = out / "profile.part"
        with part.open("w") as file:
            output = file if command[0] == "profile" else None
            code = run([sys.executable, "-m", "fastgat", *command, *where], end - time.monotonic(), output)
        if code is None:
            click.echo(f"{' '.join(command)}: stopped after {minutes:g} minutes; the same command goes on")
            break
        if code == 0 and command[0] == "profile":
            part.replace(done)
        if code not in (0, CARD_FAILED):
            click.echo(f"{' '.join(command)}: ended with exit code {code}")
        (out / "robust.json").write_text(json.dumps(figures(out), indent=2) + "\n")
    click.echo(json.dumps(figures(out), indent=2))


def figures(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of each method so far."""
    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        row = found[method] = {}
        for name in PROFILES:
            if profile := _read(out / f"{method}, {name}.json"):
                row[f"images_per_second, {name}"] = profile["textbook"]["images_per_second"]
                row[f"speed-up over the {name}"] = profile["speedup"]
                row["device"] = profile["device"]
        if summary := _read(out / method / "summary.json"):
            row |= {key: summary[key] for key in ("seconds", "images_per_second", "epochs")}
        if evaluation := _read(out / method / "evaluation.json"):
            attacks = {attack["name"]: attack["accuracy"] for attack in evaluation["attacks"]}
            row |= {"clean accuracy": evaluation["accuracy"], **{name: attacks[name] for name in ATTACKS}}
    return found


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
