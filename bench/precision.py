"""What mixed precision rounds off in the step of a trained GAT pair.

    python bench/precision.py RUN --json FILE

RUN is a run folder of GAT with Table 1's networks, or a checkpoint that holds both. bfloat16 against float32, on
minibatches of training images, in the passes of the schedule `simultaneous`: Delta (below (7)) and G(Delta) of each
image; both networks' gradients of (10) and (9), for each minibatch and for all of them together; the loss (9) and how
many perturbed images F gets right. A relative error is the norm of the difference over the norm. Beside those of a
minibatch's gradients stands how far they are from the gradient of all minibatches for want of images.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import click
import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.config import DataConfig, TrainConfig
from fastgat.data import create_loader, load_dataset
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.device import device_name, pick_device, tf32
from fastgat.engine.load import checkpoint_path
from fastgat.functional import tensor_paths
from fastgat.methods import GAT
from fastgat.methods.players import Draws, Network, Players, Tensors
from fastgat.models import Classifier, Generator
from fastgat.reporting.environment import environment

BATCH = 128
QUANTILES = (0.05, 0.5, 0.95)
SMALLEST = 1e-3
"""Of the longest Delta of a minibatch: of images with a shorter one there is nothing to tell, F is certain of them."""

PLAYERS = ("classifier", "generator")
IMAGES, GRADIENTS = ("Delta", "G(Delta)"), ("gradient of F", "gradient of G")
MEANS = ("perturbed accuracy", "generator loss")


@click.command()
@click.argument("run", type=Path)
@click.option("--batches", type=click.IntRange(2), default=64, show_default=True, help=f"of {BATCH} images")
@click.option("--data-dir", type=Path, help="folder that holds the data set")
@click.option("--json", "output", type=Path)
def main(run: Path, batches: int, data_dir: Path | None, output: Path | None) -> None:
    """Compare Delta, G(Delta) and gradients in bfloat16 with those in float32."""
    device, path = pick_device("auto"), checkpoint_path(run)
    method, players, data = trained(path, device)
    images = load_dataset(data.dataset, data_dir, data.split_seed).train
    loader = create_loader("resident", images, BATCH, device=device, channels_last=True)
    with tf32(False):  # or a GPU's float32 convolutions would round too
        errors, means = compared(method, players, islice(loader.stream(0), batches))
    for name, (low, median, high) in errors.items():
        click.echo(f"{name:34} relative error {median:.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else ""))
    for name, value in means.items():
        click.echo(f"{name:34} {value:.5f}")
    if output is not None:
        content = {"run": path.parent.name, "images": batches * BATCH, "device": device_name(device)}
        content |= {"quantiles": QUANTILES, "relative_errors": errors, "means": means}
        output.write_text(json.dumps({**content, "environment": environment()}, indent=2) + "\n")


def compared(
    method: GAT, players: Players, batches: Iterable[Batch]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Relative errors at QUANTILES, and means over all images, by name."""
    errors: dict[str, list[Tensor]] = defaultdict(list)
    gradients: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    means: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        exact, rounded = (passed(method, players, batch, dtype) for dtype in (None, torch.bfloat16))
        lengths = exact["Delta"].norm(dim=1)
        told = lengths > SMALLEST * lengths.max()
        for name in IMAGES:
            errors[name].append(relative(rounded[name][told], exact[name][told]))
        for kind, step in (("float32", exact), ("bfloat16", rounded)):
            for name in GRADIENTS:
                gradients[name, kind].append(step[name])
            for name in MEANS:
                means[f"{name}, {kind}"].append(float(step[name]))
    shares = {name: quantiles(torch.cat(each)) for name, each in errors.items()}
    for name in GRADIENTS:
        ours, theirs = (torch.stack(gradients[name, kind]) for kind in ("bfloat16", "float32"))
        whole = theirs.mean(0, keepdim=True)
        shares[name] = quantiles(relative(ours, theirs))
        shares[f"{name}, for want of images"] = quantiles(relative(theirs, whole))
        shares[f"{name}, all together"] = quantiles(relative(ours.mean(0, keepdim=True), whole))
    return shares, {name: statistics.mean(each) for name, each in means.items()}


def trained(path: Path, device: torch.device) -> tuple[GAT, Players, DataConfig]:
    """The method, both networks as they were trained, without averages, and what they were trained on."""
    tensors, header = load_checkpoint(path)
    config = TrainConfig.from_run(header["config"], str(path))
    if not isinstance(config.method, GAT):
        raise click.ClickException(f"{path}: trained by {header['config']['method']['name']}, which has no generator")
    if header["model"]["classifier"] != "table1":
        raise click.ClickException(f"{path}: its classifier is not that of Table 1")
    channels = header["model"]["in_channels"]
    classifier = Classifier(header["model"]["num_classes"], channels)
    generator = Generator(config.model.generator_width, channels, config.method.generator_channels(channels))
    players = []
    for name, module in zip(PLAYERS, (classifier, generator), strict=True):
        weights = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if not weights:
            raise click.ClickException(f"{path}: the {name} is no longer in it")
        module.load_state_dict(weights)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        parameters = {key: value.detach() for key, value in module.named_parameters()}
        players.append(Network(name, module, parameters, dict(module.named_buffers()), tensor_paths(module)))
    return config.method, Players(players[0], players[1]), config.data


@torch.no_grad()
def passed(method: GAT, players: Players, batch: Batch, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What a simultaneous step computes on a minibatch with networks in `dtype`; an image is a row."""
    assert players.generator is not None
    players = Players(players.classifier._replace(autocast=dtype), players.generator._replace(autocast=dtype))
    clean, _ = method.clean_pass(players, batch, Draws())
    images, *_ = method.perturb(players, clean.delta, batch.images)
    perturbed, _ = method.perturbed_pass(players, clean.delta, batch, Draws(), clean.loss.loss)
    metrics = method.step_metrics(clean, perturbed)
    return {
        "Delta": clean.delta.flatten(1).float(),
        "G(Delta)": (images - batch.images).flatten(1).float(),
        "gradient of F": flat(method.classifier_gradients(clean, perturbed)),
        "gradient of G": flat(method.generator_gradients(perturbed)),
        "perturbed accuracy": metrics["perturbed_accuracy"],
        "generator loss": metrics["generator_loss"].mean(),
    }


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([value.flatten().float() for value in tensors.values()])


def quantiles(values: Tensor) -> list[float]:
    levels: list[float] = values.quantile(values.new_tensor(QUANTILES)).tolist()
    return levels


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """||ours - theirs|| / ||theirs|| of each row."""
    return (ours - theirs).norm(dim=1) / theirs.norm(dim=1)


if __name__ == "__main__":
    main()
