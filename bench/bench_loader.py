"""What feeds the step: each loader alone, in images a second, and a training step with its loader.

    pytest bench/bench_loader.py --benchmark-only

The opponent is torch's DataLoader with Pillow as people write it: an image a call, Pillow in the middle, float tensors
collated; without worker processes and with one a core. A round is a number of batches, after as many that fill queues.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader, Dataset

from bench.conftest import DEVICE
from fastgat import TrainConfig
from fastgat.config import DataConfig, PrecisionConfig
from fastgat.data import Augmentation, EncodedSet, Images, ImageSet, create_loader
from fastgat.data.folder import Folder
from fastgat.data.registry import silent
from fastgat.methods import GAT
from fastgat.processes import cores
from fastgat.profiling.profile import feeding
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Fed, Worker, fed_steps, prepare

BATCH = 128
ROUNDS = 7
AUGMENTATIONS = {
    "plain": Augmentation(),
    "augmented": Augmentation(flip=True, padded_crop=4),
}
SIDES = ["dataloader-0", f"dataloader-{cores()}", "torch", "resident", "dali"]


class PerImage(Dataset[tuple[torch.Tensor, int]]):
    """The opponent: what a tutorial's data set does with one image."""

    def __init__(self, images: Images, augmented: bool) -> None:
        self.images, self.augmented = images, augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        if isinstance(self.images, ImageSet):
            image = Image.fromarray(self.images.images[row])
        else:
            image = Image.open(io.BytesIO(self.images.read(row))).convert("RGB")
            if image.size != (self.images.size, self.images.size):
                side = min(image.size)
                left, top = (image.width - side) / 2, (image.height - side) / 2
                box = (left, top, left + side, top + side)
                image = image.resize((self.images.size,) * 2, Image.Resampling.BILINEAR, box)
        if self.augmented:
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            dx, dy = torch.randint(-4, 5, (2,)).tolist()
            image = image.transform(image.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().div(255), int(self.images.labels[row])


def batches_of(side: str, images: Images, augmentation: Augmentation, batch: int) -> Iterator[torch.Tensor]:
    """Endless image batches of a side."""
    if side.startswith("dataloader"):
        workers = int(side.rpartition("-")[2])
        opponent = DataLoader(
            PerImage(images, augmentation.active),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        while True:
            for pixels, labels in opponent:
                labels.to(DEVICE)
                yield pixels.to(DEVICE)
    loader = create_loader(side, images, batch, augmentation=augmentation, device=DEVICE)
    yield from (batch.images for batch in loader.stream(0))


def time_side(
    benchmark: BenchmarkFixture, side: str, images: Images, augmentation: Augmentation, batch: int, count: int
) -> None:
    """A round is `count` batches, counted once they are on the device."""
    batches = batches_of(side, images, augmentation, batch)
    if not augmentation.active and not side.startswith("dataloader"):
        check(next(batches), side, images, batch)

    def take() -> None:
        for _ in islice(batches, count):
            pass
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(take, rounds=ROUNDS, warmup_rounds=1)
    assert benchmark.stats is not None
    rate = count * batch / benchmark.stats.stats.median
    benchmark.extra_info |= {"images/s": round(rate), "batch": batch, "torch": torch.__version__, "cores": cores()}


def check(first: torch.Tensor, side: str, images: Images, batch: int) -> None:
    """The batch is the right one, to the bit where nothing is scaled."""
    torch_loader = create_loader("torch", images, batch, workers=0)
    expected = next(iter(torch_loader.stream(0))).images
    torch.testing.assert_close(first.cpu(), expected, rtol=0, atol=0 if isinstance(images, ImageSet) else 0.1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def bench_cifar(benchmark: BenchmarkFixture, augmentation: Augmentation, side: str) -> None:
    """Images of CIFAR's size and number, in memory."""
    source = np.random.default_rng(0)
    images = ImageSet(source.integers(0, 256, (45_000, 32, 32, 3), np.uint8), source.integers(0, 10, 45_000))
    count = 20 if "dataloader" in side or side == "torch" else 200
    time_side(benchmark, side, images, augmentation, BATCH, count)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], EncodedSet]:
    """A folder of 512 JPEGs of a given size, noise as smooth as photographs compress (about 1 bit a pixel)."""
    made: dict[int, Path] = {}

    def make(size: int) -> EncodedSet:
        if size not in made:
            made[size] = tmp_path_factory.mktemp(f"photographs-{size}")
            source = np.random.default_rng(size)
            for name in ("a", "b"):
                (made[size] / name).mkdir()
                for i in range(256):
                    coarse = Image.fromarray(source.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
                    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
                    grainy = (smooth + source.normal(0, 4, (size, size, 1))).clip(0, 255).astype(np.uint8)
                    Image.fromarray(grainy).save(made[size] / name / f"{i:03}.jpg", quality=90)
        return Folder(made[size], 224).load(0, silent).train

    return make


@pytest.mark.parametrize("side", [side for side in SIDES if side != "resident"])
@pytest.mark.parametrize("size", [224, 320], ids=["224", "320-to-224"])
def bench_jpeg(benchmark: BenchmarkFixture, photographs: Callable[[int], EncodedSet], size: int, side: str) -> None:
    """Decoding alone, and with scaling, to 224 x 224."""
    time_side(benchmark, side, photographs(size), Augmentation(), 64, 7)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def bench_fed_step(benchmark: BenchmarkFixture, loader: str) -> None:
    """A GAT step with its loader over the step on a preloaded batch, in turns; a round is ten steps of each."""
    precision = PrecisionConfig(amp=True, channels_last=True)
    method, data = GAT(delta="fixed"), DataConfig(loader=loader)
    config = TrainConfig(method=method, batch_size=BATCH, data=data, precision=precision)
    with Worker(Spec("fastgat", config)) as worker:
        worker.ask(prepare)
        rounds: list[Fed] = []
        benchmark.pedantic(lambda: rounds.append(worker.ask(fed_steps, 10)), rounds=6, warmup_rounds=1)
    benchmark.extra_info |= feeding(rounds[1:])
