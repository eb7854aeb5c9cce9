"""Evaluate the classifier of a run folder on the data set that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastgat.config import TrainConfig
from fastgat.data import choose, create_loader, load_dataset
from fastgat.engine.accuracy import score
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.device import pick_device
from fastgat.engine.files import write_atomically
from fastgat.engine.load import checkpoint_path, trained_classifier
from fastgat.engine.resume import check_same_classes
from fastgat.errors import DataError


def evaluate_run(
    run: Path,
    checkpoint: str = "best",
    split: str = "test",
    *,
    data_dir: Path | None = None,
    batch_size: int = 256,
    device: str = "auto",
    on_bad_sample: str = "error",
) -> dict[str, Any]:
    """Clean accuracy and cross entropy, in float32 and eval mode.

    Args:
        run: a run folder or a checkpoint.
        checkpoint: "best" or "last" of a run folder.
        split: "test", or the run's own "validation" images.
        data_dir: the folder of the data set, where it is not that of the training.
        on_bad_sample: error, or skip images that cannot be read.

    Raises FastgatError if the checkpoint or the data are not as they must be.
    """
    path = checkpoint_path(run, checkpoint)
    on = pick_device(device)
    tensors, header = load_checkpoint(path)
    classifier = trained_classifier(path, tensors, header).to(on)
    data = TrainConfig.from_dict(header["config"], str(path)).data
    images = load_dataset(data.dataset, data_dir or data.data_dir, data.split_seed, image_size=data.image_size)
    part = {"test": images.test, "validation": images.validation}[split]
    if not len(part):
        raise DataError(f"{images.name} has no {split} images; --split validation has some")
    check_same_classes(path, header, images.classes)
    loader = create_loader(choose("auto", part, on).name, part, batch_size, device=on, on_bad_sample=on_bad_sample)
    result = score(classifier, loader.once())
    return {
        "checkpoint": path.name,
        "dataset": data.dataset,
        "split": split,
        "samples": result.samples,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "skipped_samples": len(loader.skipped),
    }


def write_evaluation(run: Path, content: dict[str, Any]) -> None:
    """Keep the figures in evaluation.json, in the run folder (or beside the checkpoint) `run`."""
    folder = run if run.is_dir() else run.parent
    write_atomically(folder / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())
