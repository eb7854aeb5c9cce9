"""The study of the paper's gain, in the order of worth, in pieces that end in time:

    python bench/gain.py images-10000 images-45000 cifar100 --data-dir DATA --out OUT --jobs 4 --minutes 8

Every part is a `fastgat reproduce` or `fastgat search` of its own. A part that does not finish in time is told to stop;
the same command goes on from where it was. What is finished lies in OUT as it comes: pages and results.json.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import click

COMMON = ["--batch-size", "128", "--ema", "0.999", "--amp", "--channels-last"]
GIVEN = ["--grid", "dropout=0.5", "--grid", "fg-l2=0.25"]
"""As all-convolutional networks had dropout, and the epsilon that an earlier search chose."""
READINGS = ["reproduce", "readings", *COMMON, *GIVEN, "--keep-whole"]
STOPPING = 45
"""Seconds in which a command that was told to stop writes its checkpoints; then it is killed."""
SHARED = {"seeds": "images-45000"}
"""The parts that go on in another's folder, so that its runs are not trained again."""
FEW = ["--train-images", "10000"]


def parts(cg: float, cg_fixed: float, penalty: float, epochs: int = 100) -> dict[str, list[list[str]]]:
    """The commands of each part, by its name. All but `epochs` is what the first part has chosen."""
    long = ["--epochs", str(epochs)]
    search = ["search", *COMMON, "--dataset", "cifar10", *long]
    chosen = [f"gat-fixed={cg_fixed}", f"gat={cg}", f"gradient-penalty={penalty}"]
    tried = ["gat-fixed=0.3,1,3", "gat=0.3,1,3", "gradient-penalty=0.03,0.1,0.3"]
    smaller = ["gat-fixed=0.3", "gat=0.1,0.3", f"gradient-penalty={penalty}"]  # CIFAR-100 has a smaller F_y
    one, searched, hundred = ([*READINGS, *(f"--grid={grid}" for grid in each)] for each in (chosen, tried, smaller))
    return {
        "images-10000": [[*searched, *FEW, "--epochs", "200", "--seeds", "3"]],
        "images-45000": [[*one, *long, "--seeds", "1"]],
        "cifar100": [[*hundred, "--dataset", "cifar100", *long, "--seeds", "1"]],
        "seeds": [[*one, *long, "--seeds", "3"]],
        "front": [["reproduce", "capacity", "inputs", *COMMON, "--grid", f"gat={cg}", *FEW, *long]],
        "other-readings": [
            [*search, "--method", "gat", "--cg", str(cg), "--over", "schedule=paper,simultaneous"],
            [*search, "--method", "gat", "--cg", str(cg), "--over", "alpha=0.3,0.5,0.7"],
            [*search, "--method", "gat", "--cg", "0.1", "--over", "delta=fixed,through", "--epochs", "200"],
        ],
    }


@click.command()
@click.argument("names", nargs=-1, metavar="[PART]...")
@click.option("--out", type=Path, required=True, help="where runs and pages go")
@click.option("--data-dir", type=Path, help="folder of the data sets")
@click.option("--jobs", type=int, default=1, show_default=True, help="processes that train side by side")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="when to stop, at a checkpoint")
@click.option("--cg", type=float, default=1.0, show_default=True, help="c_g, where it is not searched")
@click.option("--cg-fixed", type=float, default=1.0, show_default=True, help="the same with Delta fixed")
@click.option("--penalty", type=float, default=0.03, show_default=True, help="weight of the gradient penalty, likewise")
@click.option(
    "--epochs", type=int, default=100, show_default=True, help="but for images-10000; readings of more go on from fewer"
)
def main(
    names: tuple[str, ...],
    out: Path,
    data_dir: Path | None,
    jobs: int,
    minutes: float,
    cg: float,
    cg_fixed: float,
    penalty: float,
    epochs: int,
) -> None:
    """Run PARTs of the study: images-10000, images-45000, cifar100, seeds, front, other-readings; by default all."""
    known = parts(cg, cg_fixed, penalty, epochs)
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no part {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    end = time.monotonic() + 60 * minutes
    for name in names or known:
        for number, command in enumerate(known[name]):
            folder = out / (SHARED.get(name, name) if not number else f"{name}-{number + 1}")
            where = ["--out", str(folder), "--jobs", str(jobs), *(["--data-dir", str(data_dir)] if data_dir else [])]
            whole = [sys.executable, "-m", "fastgat", *command, *where]
            code = run(whole, end - time.monotonic())
            if code is None:
                if command[0] == "reproduce":  # a page of what is finished
                    run([*whole, "--collect-only"], STOPPING)
                click.echo(f"{name}: stopped after {minutes:g} minutes; the same command goes on")
                return
            click.echo(f"{name}: {'finished' if code == 0 else f'ended with exit code {code}'}")


def run(command: list[str], seconds: float, output: TextIO | None = None) -> int | None:
    """The exit code of a command, whose output goes to `output`; None where it had to be stopped, at a checkpoint, when
    its time was up."""
    if seconds <= 0:
        return None
    process = subprocess.Popen(command, stdout=output)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPPING)
        except subprocess.TimeoutExpired:  # in the middle of compiling, say
            process.kill()
            process.wait()
        return None


if __name__ == "__main__":
    main()
