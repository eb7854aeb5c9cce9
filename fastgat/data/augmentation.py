"""Augmentation: where each output image lies in its source image, drawn per sample from the seeded stream.

The order is fixed: a part of the source is cut out and scaled to the output's size, shifted, mirrored, and a square of
it blackened. All of it is a table of whole numbers, nine a sample, which every loader executes in its own way.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgat.errors import ConfigError
from fastgat.options import Options, option

Uniforms = NDArray[np.float64]
"""(B, 7), or (B, 29) with --random-resized-crop, in [0, 1): the draws of each sample. The first seven are for
shifts, mirroring and holes (two are unused), the others an area and an aspect ratio for ten tries, and a place. One
augmentation does not change the draws of another."""
SHIFT, MIRROR, HOLE, FIRST_TRY = slice(2, 4), 4, slice(5, 7), 7
TRIES = 10

STREAM, CROP_STREAM = 1, 2  # tell these draws from others of the same seed

LOG_RATIO = math.log(4 / 3)  # random parts are between 3:4 and 4:3 of the output's shape, as is the custom


class Placement(NamedTuple):
    """What becomes of each sample of a batch, in pixels; all int32.

    Attributes:
        boxes: (B, 4), top, left, height and width of the part of the source that is scaled to the output.
        shifts: (B, 2), by how much the output's origin is moved, down and to the right; what it uncovers is black.
        flips: (B,), 1 where the output is mirrored.
        holes: (B, 2), top and left of the square that is blackened, which may reach beyond the edges.
    """

    boxes: NDArray[np.int32]
    shifts: NDArray[np.int32]
    flips: NDArray[np.int32]
    holes: NDArray[np.int32]

    def table(self) -> NDArray[np.int32]:
        """(B, 9): all columns, in the order of the attributes."""
        return np.column_stack(self)


@dataclass(frozen=True)
class Augmentation(Options):
    """How training images vary. Nothing does by default, as in the paper."""

    flip: bool = option(False, "mirror training images left to right, half of them")
    padded_crop: int | None = option(
        None, "shift training images by up to N pixels each way; what that uncovers is black", at_least=1
    )
    random_resized_crop: float | None = option(
        None,
        "train on a random part of each image, scaled to full size; X is the least share of its area",
        above=0,
        at_most=1,
    )
    cutout: int | None = option(
        None, "blacken a square of N pixels a side, anywhere in each training image", at_least=1
    )

    def check(self, height: int, width: int) -> None:
        """Raises ConfigError where it may leave nothing of images of this size."""
        for name, pixels in (("padded_crop", self.padded_crop), ("cutout", self.cutout)):
            if pixels is not None and pixels >= min(height, width):
                raise ConfigError(f"{name} {pixels} may leave nothing of images of {height} x {width} pixels")

    @property
    def active(self) -> bool:
        return self != Augmentation()

    @property
    def hole(self) -> int:
        """The side of the blackened square; 0 for none."""
        return self.cutout or 0

    def draw(self, seed: int, player: int, number: int, count: int) -> Uniforms:
        """The draws for batch `number` of a player's stream, `count` samples over all ranks."""
        drawn = np.random.default_rng((seed, player, number, STREAM)).random((count, FIRST_TRY))
        if self.random_resized_crop is None:
            return drawn
        crops = np.random.default_rng((seed, player, number, CROP_STREAM)).random((count, 2 * TRIES + 2))
        return np.concatenate([drawn, crops], axis=1)

    def place(self, uniforms: Uniforms | None, sizes: NDArray[np.int64], output: tuple[int, int]) -> Placement:
        """Samples of `sizes`, (B, 2) height and width, placed in images of size `output`; without draws, centred."""
        boxes, none = largest_boxes(sizes, output), np.zeros((len(sizes), 2), np.int32)
        if uniforms is None:
            return Placement(boxes, none, none[:, 0], none)
        shifts = holes = none
        if self.random_resized_crop is not None:
            boxes = random_boxes(uniforms[:, FIRST_TRY:], sizes, output, self.random_resized_crop)
        if self.padded_crop is not None:
            shifts = (uniforms[:, SHIFT] * (2 * self.padded_crop + 1)).astype(np.int32) - self.padded_crop
        if self.cutout is not None:
            holes = (uniforms[:, HOLE] * output).astype(np.int32) - self.cutout // 2
        flips = (uniforms[:, MIRROR] < 0.5) & self.flip
        return Placement(boxes, shifts, flips.astype(np.int32), holes)


def largest_boxes(sizes: NDArray[np.int64], output: tuple[int, int]) -> NDArray[np.int32]:
    """(B, 4): the largest part of each source, in its middle, that has the output's aspect ratio."""
    ratio = output[1] / output[0]
    height = np.minimum(sizes[:, 0], np.maximum(np.rint(sizes[:, 1] / ratio), 1))
    width = np.minimum(sizes[:, 1], np.maximum(np.rint(sizes[:, 0] * ratio), 1))
    boxes = np.column_stack([(sizes[:, 0] - height) // 2, (sizes[:, 1] - width) // 2, height, width])
    return boxes.astype(np.int32)


def random_boxes(draws: Uniforms, sizes: NDArray[np.int64], output: tuple[int, int], least: float) -> NDArray[np.int32]:
    """(B, 4): parts of random area (a share of at least `least`), aspect ratio and place, by torchvision's rule.

    `draws` is (B, 22). The first of ten tries that fits into the image is taken; where none does, the largest part in
    the middle whose aspect ratio is allowed.
    """
    rows, columns = sizes[:, :1], sizes[:, 1:]
    shape = output[1] / output[0]
    area = rows * columns * (least + (1 - least) * draws[:, : 2 * TRIES : 2])
    ratio = shape * np.exp(LOG_RATIO * (2 * draws[:, 1 : 2 * TRIES : 2] - 1))
    narrowest, widest = shape * math.exp(-LOG_RATIO), shape * math.exp(LOG_RATIO)
    # The last column is the fallback, which always fits.
    height = np.hstack([np.rint(np.sqrt(area / ratio)), np.minimum(rows, np.maximum(np.rint(columns / narrowest), 1))])
    width = np.hstack([np.rint(np.sqrt(area * ratio)), np.minimum(columns, np.maximum(np.rint(rows * widest), 1))])
    fits = (height >= 1) & (height <= rows) & (width >= 1) & (width <= columns)
    taken = fits.argmax(axis=1)[:, None]
    height, width = np.take_along_axis(height, taken, 1), np.take_along_axis(width, taken, 1)
    spare = np.hstack([rows - height, columns - width])
    corners = np.where(taken < TRIES, draws[:, 2 * TRIES :] * (spare + 1), spare // 2)
    return np.hstack([corners, height, width]).astype(np.int32)
