"""A loader on NVIDIA DALI: decoding, scaling and augmentation in its threads, or on the GPU, ahead of the step.

DALI is given the samples of each batch, and what is to be done with each, by a function of the batch's number. So a
stream can start anywhere, and it is the same on a CPU and on a GPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgat.batch import Batch
from fastgat.data.ahead import ahead
from fastgat.data.bad_samples import Rows
from fastgat.data.dali_graph import Graph, Work, check_decodable, missing, reason
from fastgat.data.decoding import FLIPS, BadSampleError, decode, read_header, stored_boxes
from fastgat.data.loader import Request, SampledLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import EncodedSet, Images, ImageSet
from fastgat.errors import DataError


class DaliLoader(SampledLoader):
    """Batches that DALI prepares with `threads` of its own.

    Raises DataError where DALI is missing, or is not for this machine's driver.
    """

    def __init__(self, images: Images, sampler: Sampler, *, threads: int = 1, **common: Any) -> None:
        if absent := missing():
            raise DataError(absent)
        super().__init__(images, sampler, **common)
        in_files, channels_last = isinstance(images, EncodedSet), self.layout == torch.channels_last
        # In memory, images are kept as they are wanted: DALI takes longer to transpose them than for anything else.
        layout = "HWC" if in_files or channels_last else "CHW"
        self.graph = Graph(in_files, layout, channels_last, images.shape[:2], sampler.batch_size, threads, self.device)
        if isinstance(images, ImageSet):
            axes = (0, 3, 1, 2) if layout == "CHW" else (0, 1, 2, 3)
            self.pixels = np.ascontiguousarray(images.images.transpose(axes))

    def _batches(
        self, request: Callable[[int], Request], numbers: range, places: Callable[[Rows], Rows]
    ) -> Iterator[Batch]:
        """As the base says; after a batch with a sample that DALI cannot decode, DALI is started anew from there."""
        while numbers:
            with closing(ahead(lambda number: self._work(request(number), places), numbers)) as prepared:
                under_way: deque[int] = deque()
                given = _not_empty(zip(numbers, prepared, strict=False), under_way)
                first = next(given, None)
                if first is None:
                    return
                try:
                    for images, labels in self.graph.run(chain([first], given), list(first)):
                        yield Batch(images, labels)
                        numbers = range(under_way.popleft() + 1, numbers.stop)
                    return
                except RuntimeError as error:
                    self._find_bad(request(under_way[0] if under_way else numbers.start)[0], error)

    def _work(self, request: Request, places: Callable[[Rows], Rows]) -> Work:
        """What DALI is to do for a request; once its samples are read, `places` tells which of them to take."""
        rows, uniforms = request
        images, facts = self._read(rows)
        kept, augmentation = places(rows), self.sampler.augmentation
        work = {"images": images, "labels": self.images.labels[rows[kept]]}
        if self.graph.in_files:
            work["images"] = [images[place] for place in kept]
        elif uniforms is None:
            return work
        sizes, orientations = facts[kept, :2], facts[kept, 2]
        drawn = None if uniforms is None else uniforms[kept]
        boxes, shifts, flips, holes = augmentation.place(drawn, sizes, self.graph.output)
        if self.graph.in_files:
            boxes = stored_boxes(boxes, sizes, orientations)
            work |= {"transposed": orientations >= 5, "stored_flips": FLIPS[orientations].astype(np.int32)}
        if self.graph.in_files or augmentation.random_resized_crop is not None:
            starts, shapes = np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])
            work |= {"starts": starts, "shapes": shapes, "scaled": (shapes != self.graph.output).any(1)}
        if drawn is not None and augmentation.padded_crop is not None:
            work["shifts"] = shifts
        if drawn is not None and augmentation.flip:
            work["flips"] = flips
        if drawn is not None and augmentation.hole:  # cut at the edges
            first, last = holes.clip(0), np.minimum(holes + augmentation.hole, self.graph.output)
            work |= {"holes": first.astype(np.float32), "hole_sizes": (last - first).astype(np.float32)}
        return work

    def _read(self, rows: Rows) -> tuple[Any, NDArray[np.int64]]:
        """Pixels, or the files of `rows`, and (B, 3) their height, width and orientation.

        In place of a bad sample, which is taken note of, there is nothing.
        """
        facts = np.array([[*self.graph.output, 1]]).repeat(len(rows), 0)
        if isinstance(self.images, ImageSet):
            return self.pixels[rows], facts
        images: list[Any] = []
        for place, row in enumerate(rows):
            try:
                raw = self.images.read(row)
                size, orientation, plain = read_header(raw, self.images.max_pixels)
                if not plain:
                    raw, orientation = _portable(decode(raw, self.images.max_pixels)), 1
                facts[place] = *size, orientation
                images.append(np.frombuffer(raw, np.uint8))
            except BadSampleError as error:
                self.skipped.report(row, self.images.name(row), error)
                images.append(None)
        return images, facts

    def _find_bad(self, rows: Rows, error: RuntimeError) -> None:
        """Find out which samples of a batch DALI could not decode; raises DataError if that is not what went wrong."""
        known, suspects = len(self.skipped), ""
        if isinstance(self.images, EncodedSet):
            for row in rows[self.skipped.good_places(rows)]:
                try:
                    check_decodable(self.images.read(row), self.images.max_pixels)
                except BadSampleError as flaw:
                    self.skipped.report(row, self.images.name(row), flaw)
            suspects = f", in one of {', '.join(self.images.name(row) for row in rows)}"
        if len(self.skipped) == known:
            raise DataError(f"DALI: {reason(error)}{suspects}") from None


def _portable(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) as a file that DALI decodes: a portable pixmap."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def _not_empty(numbered: Iterable[tuple[int, Work]], numbers: deque[int]) -> Iterator[Work]:
    """The batches that have a sample; their numbers are put down in `numbers`."""
    for number, work in numbered:
        if len(work["labels"]):
            numbers.append(number)
            yield work
