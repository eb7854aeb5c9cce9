"""image_batch: reads the bytes of B samples, and writes them as float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from fastgat.kernels.image_batch import image_batch, image_batch_reference

from bench.conftest import DEVICE, INPUT_SETS
from fastgat.data.augmentation import Augmentation

AUGMENTATIONS = {
    "plain": Augmentation(),
    "moved": Augmentation(flip=True, padded_crop=4, cutout=8),
    "resized": Augmentation(flip=True, random_resized_crop=0.25),
}


@pytest.mark.parametrize("batch", [128, 1024])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def bench_image_batch(measure: Callable[..., None], augmentation: Augmentation, batch: int) -> None:
    pixels = torch.randint(256, (8192, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    resize = augmentation.random_resized_crop is not None
    inputs = []
    for number in range(INPUT_SETS):
        rows = torch.randint(len(pixels), (batch,), device=DEVICE)
        uniforms = augmentation.draw(0, 0, number, batch) if augmentation.active else None
        table = augmentation.place(uniforms, np.full((batch, 2), 32), (32, 32)).table()
        inputs.append((pixels, rows, torch.from_numpy(table).to(DEVICE) if augmentation.active else None))
    reference = partial(image_batch_reference, hole=augmentation.hole, resize=resize)
    kernel = partial(image_batch, hole=augmentation.hole, resize=resize)
    measure(reference, kernel, inputs, moved=batch * 3 * 32 * 32 * 5)
