"""A loader on NVIDIA DALI: decoding, scaling and augmentation in its threads, or on the GPU, ahead of the step.

DALI is given the samples of each batch, and what is to be done with each, by a function of the batch's number. So a
stream can start anywhere, and it is the same on a CPU and on a GPU.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgat.batch import Batch
from fastgat.data.bad_samples import Rows
from fastgat.data.decoding import FLIPS, BadSampleError, decode, read_header, stored_boxes
from fastgat.data.loader import Readable, Request, Requests, SampledLoader
from fastgat.data.prefetch import prefetch
from fastgat.data.sampler import Sampler
from fastgat.data.sets import EncodedSet, Images, ImageSet
from fastgat.errors import DataError

INSTALL = "install fastgat-trainer[dali], or fastgat-trainer[dali-cuda13] for CUDA 13"

Work = dict[str, Any]
"""What DALI is given for one batch, by name: a contiguous array (B, ...), or a list of B arrays.

    images              encoded (bytes,), or pixels (H, W, C) or (C, H, W) uint8
    labels              int64
    starts, shapes      (2,) int32: the part of an image, as it is stored, that is wanted, and
    scaled              bool: whether it has another size than the output
    transposed          bool: whether an encoded image is stored with rows for columns, and
    stored_flips        (2,) int32: whether it is upside down, and mirrored
    shifts, flips       (2,) int32 and int32, and
    holes, hole_sizes   (2,) float32, as in a Placement; each where that is asked for
"""


class DaliLoader(SampledLoader):
    """Batches that DALI prepares with `threads` of its own.

    Raises DataError where DALI is missing, or is not for this machine's driver.
    """

    def __init__(self, images: Images, sampler: Sampler, *, threads: int = 1, **common: Any) -> None:
        if absent := missing():
            raise DataError(absent)
        super().__init__(images, sampler, **common)
        self.threads, self.output = threads, images.shape[:2]
        self.in_files, self.channels_last = isinstance(images, EncodedSet), self.layout == torch.channels_last
        # In memory, images are kept as they are wanted: DALI takes longer to transpose them than for anything else.
        self.axes = "HWC" if self.in_files or self.channels_last else "CHW"
        if isinstance(images, ImageSet):
            order = (0, 3, 1, 2) if self.axes == "CHW" else (0, 1, 2, 3)
            self.pixels = np.ascontiguousarray(images.images.transpose(order))
        self.by_pillow: set[int] = set()  # rows of sound images that DALI cannot decode

    def _batches(self, request: Requests, numbers: range, readable: Readable) -> Iterator[Batch]:
        """As the base says; after a batch with a sample that DALI cannot decode, DALI is started anew from there.

        Pillow decodes that sample from then on, if it can.
        """
        while numbers:
            with closing(prefetch(lambda number: self._work(request(number), readable), numbers)) as prepared:
                under_way: deque[int] = deque()
                given = _not_empty(zip(numbers, prepared, strict=False), under_way)
                first = next(given, None)
                if first is None:
                    return
                try:
                    for images, labels in self._run(chain([first], given), list(first)):
                        yield Batch(images, labels)
                        numbers = range(under_way.popleft() + 1, numbers.stop)
                    return
                except RuntimeError as error:
                    self._find_bad(request(under_way[0] if under_way else numbers.start)[0], error)

    def _work(self, request: Request, readable: Readable) -> Work:
        """What DALI is to do for a request; once its samples are read, `readable` tells which of them to take."""
        rows, uniforms = request
        images, facts = self._read(rows)
        kept, augmentation = readable(rows), self.sampler.augmentation
        work = {"images": images, "labels": self.images.labels[rows[kept]]}
        if self.in_files:
            work["images"] = [images[place] for place in kept]
        elif uniforms is None:
            return work
        sizes, orientations = facts[kept, :2], facts[kept, 2]
        drawn = None if uniforms is None else uniforms[kept]
        boxes, shifts, flips, holes = augmentation.place(drawn, sizes, self.output)
        if self.in_files:
            boxes = stored_boxes(boxes, sizes, orientations)
            work |= {"transposed": orientations >= 5, "stored_flips": FLIPS[orientations].astype(np.int32)}
        if self.in_files or augmentation.random_resized_crop is not None:
            starts, shapes = np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])
            work |= {"starts": starts, "shapes": shapes, "scaled": (shapes != self.output).any(1)}
        if drawn is not None and augmentation.padded_crop is not None:
            work["shifts"] = shifts
        if drawn is not None and augmentation.flip:
            work["flips"] = flips
        if drawn is not None and augmentation.hole:  # cut at the edges
            first, last = holes.clip(0), np.minimum(holes + augmentation.hole, self.output)
            work |= {"holes": first.astype(np.float32), "hole_sizes": (last - first).astype(np.float32)}
        return work

    def _read(self, rows: Rows) -> tuple[Any, NDArray[np.int64]]:
        """Pixels, or the files of `rows`, and (B, 3) their height, width and orientation.

        A bad sample is reported, and has nothing in its place.
        """
        facts = np.array([[*self.output, 1]]).repeat(len(rows), 0)
        if isinstance(self.images, ImageSet):
            return self.pixels[rows], facts
        images: list[Any] = []
        for place, row in enumerate(rows):
            try:
                raw = self.images.read(row)
                size, orientation, plain = read_header(raw, self.images.max_pixels)
                if not plain or row in self.by_pillow:
                    raw, orientation = _portable(decode(raw, self.images.max_pixels)), 1
                facts[place] = *size, orientation
                images.append(np.frombuffer(raw, np.uint8))
            except BadSampleError as error:
                self.skipped.report(row, self.images.name(row), error)
                images.append(None)
        return images, facts

    def _find_bad(self, rows: Rows, error: RuntimeError) -> None:
        """Find out which samples of a batch DALI could not decode; raises DataError if that is not what went wrong."""
        known, suspects = len(self.skipped) + len(self.by_pillow), ""
        if isinstance(self.images, EncodedSet):
            for row in rows[self.skipped.good_places(rows)]:
                try:
                    raw = self.images.read(row)
                    decode(raw, self.images.max_pixels)  # Pillow, which knows what is wrong
                    if not takes(raw):
                        self.by_pillow.add(int(row))
                except BadSampleError as flaw:
                    self.skipped.report(row, self.images.name(row), flaw)
            suspects = f", in one of {', '.join(self.images.name(row) for row in rows)}"
        if len(self.skipped) + len(self.by_pillow) == known:
            raise DataError(f"DALI: {reason(error)}{suspects}") from None

    def _run(self, source: Iterator[Work], names: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images, float32 in [0, 1], and labels on the device, for each Work of `source`, which has `names`.

        Raises DataError where DALI cannot run, RuntimeError for a sample that it cannot decode.
        """
        dali = load_dali()
        gpu = self.device.type == "cuda"

        def inputs() -> tuple[Any, ...]:
            work = next(source)
            return tuple(work[name] for name in names)

        @dali.pipeline_def(
            batch_size=self.sampler.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if gpu else None,
            enable_conditionals=True,
        )
        def graph() -> Any:
            layouts = [self.axes if name == "images" and not self.in_files else "" for name in names]
            given = dali.fn.external_source(source=inputs, num_outputs=len(names), batch=True, layout=layouts)
            return self._operations(dali, {name: given[i] for i, name in enumerate(names)}, "gpu" if gpu else "cpu")

        try:
            pipeline = graph()
            pipeline.build()
        except RuntimeError as error:
            raise DataError(f"DALI cannot run on {self.device}: {reason(error)} ({INSTALL})") from None
        outputs = dali.plugin.pytorch.DALIGenericIterator([pipeline], ["images", "labels"], auto_reset=False, size=-1)
        for (output,) in outputs:
            images = output["images"]
            yield images.permute(0, 3, 1, 2) if self.channels_last else images, output["labels"]

    def _operations(self, dali: Any, given: dict[str, Any], device: str) -> tuple[Any, Any]:
        """DALI's graph: decode, scale, shift, mirror, blacken, and divide by 255."""
        fn, images, labels = dali.fn, given["images"], given["labels"]
        if self.in_files:
            decoder = "mixed" if device == "gpu" else "cpu"
            part = {"axis_names": "HW", "device": decoder, "output_type": dali.types.RGB, "adjust_orientation": False}
            images = fn.decoders.image_slice(images, given["starts"], given["shapes"], **part)
        elif device == "gpu":
            images = images.gpu()
        if "scaled" in given:
            if not self.in_files:
                images = fn.slice(images, given["starts"], given["shapes"], axis_names="HW")
            images = _scaled(dali, images, given["scaled"], self.output)
        if self.in_files:
            images = _upright(dali, images, given["transposed"], given["stored_flips"])
        if "shifts" in given:
            pad = {"axis_names": "HW", "out_of_bounds_policy": "pad", "fill_values": 0}
            images = fn.slice(images, given["shifts"], list(self.output), **pad)
        if "flips" in given:
            images = fn.flip(images, horizontal=given["flips"])
        if "holes" in given:
            images = fn.erase(images, anchor=given["holes"], shape=given["hole_sizes"], axis_names="HW", fill_value=0)
        if not self.channels_last and self.axes == "HWC":
            images = fn.transpose(images, perm=[2, 0, 1])
        return images / 255.0, labels.gpu() if device == "gpu" else labels


def _portable(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) as a file that DALI decodes: a portable pixmap."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def _not_empty(numbered: Iterable[tuple[int, Work]], numbers: deque[int]) -> Iterator[Work]:
    """The batches that have a sample; their numbers are put down in `numbers`."""
    for number, work in numbered:
        if len(work["labels"]):
            numbers.append(number)
            yield work


def _scaled(dali: Any, images: Any, scaled: Any, output: tuple[int, int]) -> Any:
    """Those that need it scaled to `output`, the others left alone: scaling takes longer than decoding."""
    if scaled:  # noqa: SIM108  # DALI reads this as an operation on each sample
        result = dali.fn.resize(images, size=list(output), interp_type=dali.types.INTERP_TRIANGULAR)
    else:
        result = images
    return result


def _upright(dali: Any, images: Any, transposed: Any, flips: Any) -> Any:
    """Square images as they are to be seen, whichever way they are stored."""
    if transposed:  # noqa: SIM108  # DALI reads this as an operation on each sample
        result = dali.fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
    else:
        result = images
    return dali.fn.flip(result, vertical=flips[0], horizontal=flips[1])


def load_dali() -> Any:
    """DALI, with its plugin for PyTorch. Raises ImportError or OSError."""
    import nvidia.dali.plugin.pytorch

    return nvidia.dali


def missing() -> str | None:
    """Why DALI cannot be used in this process; None if it can."""
    try:
        load_dali()
    except (ImportError, OSError) as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        return f"DALI {why}: {INSTALL}"
    return None


def takes(raw: bytes) -> bool:
    """Whether DALI decodes an image."""
    dali = load_dali()

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def alone() -> Any:
        encoded = dali.fn.external_source(source=lambda: [np.frombuffer(raw, np.uint8)], batch=True)
        return dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB)

    pipeline = alone()
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def reason(error: BaseException) -> str:
    """The line of a DALI error that says what happened, out of its account of where."""
    told = str(error).split("encountered:")[-1]
    lines = [line.strip() for line in told.splitlines() if line.strip() and "Critical error" not in line]
    return lines[0].rstrip(".") if lines else type(error).__name__
