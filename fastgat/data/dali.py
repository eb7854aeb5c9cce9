"""A loader on NVIDIA DALI: decoding, scaling and augmentation in its threads, or on the GPU, ahead of the step.

DALI is given the samples of each batch, and what is to be done with each, by a function of the batch's number; nothing
is drawn or ordered within it. So a stream can start anywhere, and it is the same on a CPU and on a GPU.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastgat.data.augmentation import Placement, Uniforms
from fastgat.data.bad_samples import BadSamples
from fastgat.data.batch import Batch
from fastgat.data.decoding import BadSampleError, decode, size_of
from fastgat.data.encoded import EncodedSet
from fastgat.data.sampler import Rows, Sampler
from fastgat.data.sets import Images, ImageSet
from fastgat.errors import DataError

READ_AHEAD = 4
"""Batches whose files are being read while others are decoded."""

INSTALL = "install fastgat-trainer[dali], or fastgat-trainer[dali-cuda13] for CUDA 13"


class Work(dict[str, Any]):
    """What DALI is given for one batch, by name: an array (B, ...), or a list of B arrays, each."""


def missing() -> str | None:
    """Why DALI cannot be used in this process; None if it can."""
    try:
        _dali()
    except (ImportError, OSError) as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        return f"DALI {reason}: {INSTALL}"
    return None


def _dali() -> Any:
    """DALI's modules; its decoders are told to leave the telling of errors to us."""
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "0")
    names = {"fn": "nvidia.dali.fn", "types": "nvidia.dali.types", "pytorch": "nvidia.dali.plugin.pytorch"}
    modules = {short: importlib.import_module(name) for short, name in names.items()}
    return SimpleNamespace(pipeline_def=importlib.import_module("nvidia.dali").pipeline_def, **modules)


class DaliLoader:
    """Batches of float32 images in [0, 1] on the training device.

    Args:
        images: in memory, or in files that DALI decodes.
        sampler: which samples are in which batch.
        threads: DALI's own.
        bad: samples that are not to be used, added to as they are found.

    Raises DataError where DALI is missing, or is not for this machine's driver.
    """

    def __init__(
        self,
        images: Images,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        threads: int = 1,
        bad: BadSamples | None = None,
    ) -> None:
        if reason := missing():
            raise DataError(reason)
        self.images, self.sampler, self.device = images, sampler, torch.device(device)
        self.channels_last, self.threads, self.bad = channels_last, threads, bad if bad is not None else BadSamples()
        self.output = images.shape[:2]

    @property
    def batches_per_epoch(self) -> int:
        return self.sampler.batches_per_epoch

    @property
    def skipped(self) -> BadSamples:
        return self.bad

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        def rows(number: int) -> Rows:
            return self.sampler.rows(player, start + number)

        def uniforms(number: int) -> Uniforms | None:
            return self.sampler.uniforms(player, start + number)

        return self._batches(rows, uniforms, keep_full=True)

    def once(self) -> Iterator[Batch]:
        everything = list(self.sampler.in_order())
        return self._batches(everything.__getitem__, lambda number: None, keep_full=False, count=len(everything))

    def _batches(
        self,
        rows: Callable[[int], Rows],
        uniforms: Callable[[int], Uniforms | None],
        *,
        keep_full: bool,
        count: int | None = None,
    ) -> Iterator[Batch]:
        """Batches 0, 1, ... of the samples `rows`, past those that cannot be decoded."""
        number = 0
        while count is None or number < count:
            with closing(_Ahead(lambda n: self._work(rows(n), uniforms(n), keep_full), number, count)) as ahead:
                try:
                    for output in self._pipeline(ahead):
                        yield self._batch(output)
                        number += 1
                except RuntimeError as error:
                    self._find_bad(rows(number), error)

    def _batch(self, output: dict[str, torch.Tensor]) -> Batch:
        images = output["images"].permute(0, 3, 1, 2) if self.channels_last else output["images"]
        return Batch(images, output["labels"])

    def _work(self, rows: Rows, uniforms: Uniforms | None, keep_full: bool) -> Work:
        """What DALI needs for the samples `rows`; the bad ones among them are replaced, or left out."""
        read = self._gather(rows) if isinstance(self.images, ImageSet) else self._read(rows)
        places = self.bad.substitutes(rows) if keep_full else np.flatnonzero(np.isin(rows, self.bad.good(rows)))
        sizes = np.array([read.sizes[place] for place in places]).reshape(-1, 2)
        drawn = None if uniforms is None else uniforms[places]
        augmentation = self.sampler.augmentation
        placement = augmentation.place(drawn, sizes, self.output)
        images = read.images if len(places) == len(rows) and not len(self.bad) else [read.images[i] for i in places]
        work = Work(images=images, labels=self.images.labels[rows[places]])
        if isinstance(self.images, EncodedSet) or (drawn is not None and augmentation.random_resized_crop is not None):
            work |= {
                "starts": placement.boxes[:, :2],
                "shapes": placement.boxes[:, 2:],
                "scaled": (placement.boxes[:, 2:] != self.output).any(1),
            }
        return work if drawn is None else Work(work | self._moves(placement))

    def _moves(self, placement: Placement) -> dict[str, Any]:
        """Shifts, flips and holes, of those that there are; holes cut at the edges."""
        augmentation, moves = self.sampler.augmentation, {}
        if augmentation.padded_crop is not None:
            moves["shifts"] = placement.shifts
        if augmentation.flip:
            moves["flips"] = placement.flips
        if augmentation.hole:
            first = placement.holes.clip(0)
            moves["holes"] = first.astype(np.float32)
            moves["hole_sizes"] = (np.minimum(placement.holes + augmentation.hole, self.output) - first).astype(
                np.float32
            )
        return moves

    def _gather(self, rows: Rows) -> SimpleNamespace:
        assert isinstance(self.images, ImageSet)
        return SimpleNamespace(images=self.images.images[rows], sizes=np.array([self.output]).repeat(len(rows), 0))

    def _read(self, rows: Rows) -> SimpleNamespace:
        """The files of `rows` and the sizes of their images; nothing for a bad one, which is taken note of."""
        assert isinstance(self.images, EncodedSet)
        images: list[Any] = []
        sizes = []
        for row in rows:
            try:
                raw = self.images.read(row)
                sizes.append(size_of(raw, self.images.name(row)))
                images.append(np.frombuffer(raw, np.uint8))
            except BadSampleError as error:
                self.bad.report(row, str(error))
                sizes.append((0, 0))
                images.append(None)
        return SimpleNamespace(images=images, sizes=sizes)

    def _pipeline(self, ahead: _Ahead) -> Iterator[dict[str, torch.Tensor]]:
        """Runs DALI over the work of `ahead`."""
        dali = _dali()
        first = ahead.peek()
        gpu = self.device.type == "cuda"
        names = list(first)

        def source() -> tuple[Any, ...]:
            work = next(ahead)
            return tuple(_dense(work[name]) for name in names)

        @dali.pipeline_def(
            batch_size=self.sampler.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if gpu else None,
            enable_conditionals=True,
        )
        def graph() -> Any:
            given = dali.fn.external_source(
                source=source,
                num_outputs=len(names),
                batch=True,
                layout=["HWC" if name == "images" and isinstance(self.images, ImageSet) else "" for name in names],
            )
            return self._graph(dali, {name: given[i] for i, name in enumerate(names)}, "gpu" if gpu else "cpu")

        try:
            pipeline = graph()
            pipeline.build()
        except RuntimeError as error:
            raise DataError(f"DALI cannot run on {self.device}: {_reason(error)} ({INSTALL})") from None
        outputs = dali.pytorch.DALIGenericIterator([pipeline], ["images", "labels"], auto_reset=False, size=-1)
        for (output,) in outputs:
            yield output

    def _graph(self, dali: Any, given: dict[str, Any], device: str) -> tuple[Any, Any]:
        """DALI's operations on one batch: what `augmentation.place` says, then the scaling to [0, 1]."""
        fn, types = dali.fn, dali.types
        images = given["images"]
        if isinstance(self.images, EncodedSet):
            decoder = "mixed" if device == "gpu" else "cpu"
            images = fn.decoders.image_slice(
                images, given["starts"], given["shapes"], axis_names="HW", device=decoder, output_type=types.RGB
            )
        elif device == "gpu":
            images = images.gpu()
        if "scaled" in given:
            if isinstance(self.images, ImageSet):
                images = fn.slice(images, given["starts"], given["shapes"], axis_names="HW")
            images = _scaled(fn, types, images, given["scaled"], self.output)
        if "shifts" in given:
            images = fn.slice(
                images,
                given["shifts"],
                list(self.output),
                axis_names="HW",
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        if "flips" in given:
            images = fn.flip(images, horizontal=given["flips"])
        if "holes" in given:
            images = fn.erase(images, anchor=given["holes"], shape=given["hole_sizes"], axis_names="HW", fill_value=0)
        if not self.channels_last:
            images = fn.transpose(images, perm=[2, 0, 1])
        labels = given["labels"].gpu() if device == "gpu" else given["labels"]
        return images / 255.0, labels

    def _find_bad(self, rows: Rows, error: RuntimeError) -> None:
        """Find out which samples of a batch DALI could not decode; raises DataError if that is not what went wrong."""
        found = False
        if isinstance(self.images, EncodedSet):
            for row in self.bad.good(rows):
                if reason := _undecodable(self.images.read(row), self.images.name(row)):
                    self.bad.report(row, reason)
                    found = True
        if not found:
            raise DataError(f"DALI: {_reason(error)}") from None


def _scaled(fn: Any, types: Any, images: Any, scaled: Any, output: tuple[int, int]) -> Any:
    """Those that need it scaled to `output`, the others left alone: scaling takes longer than decoding."""
    if scaled:  # noqa: SIM108  # DALI reads this as an operation on each sample
        result = fn.resize(images, size=list(output), interp_type=types.INTERP_TRIANGULAR)
    else:
        result = images
    return result


def _dense(values: Any) -> Any:
    return np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values


def _undecodable(raw: bytes, name: str) -> str | None:
    """Why one image cannot be decoded, in Pillow's words where it has any; None if DALI can."""
    try:
        decode(raw, name)
    except BadSampleError as error:
        return str(error)
    dali = _dali()

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def alone() -> Any:
        encoded = dali.fn.external_source(source=lambda: [np.frombuffer(raw, np.uint8)], batch=True)
        return dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB)

    pipeline = alone()
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError:
        return f"{name}: cannot be decoded by DALI"
    return None


def _reason(error: BaseException) -> str:
    """The line of a DALI error that says what happened, out of its account of where."""
    told = str(error).split("encountered:")[-1]
    lines = [line.strip() for line in told.splitlines() if line.strip() and "Critical error" not in line]
    return lines[0].rstrip(".") if lines else type(error).__name__


class _Ahead:
    """The results of `work(first)`, `work(first + 1)`, ..., prepared by threads a few numbers ahead."""

    def __init__(self, work: Callable[[int], Work], first: int, count: int | None) -> None:
        self.work, self.number, self.count = work, first, count
        self.threads = ThreadPoolExecutor(min(READ_AHEAD, os.cpu_count() or 1), thread_name_prefix="fastgat-reader")
        self.waiting: deque[Future[Work]] = deque()

    def peek(self) -> Work:
        self._fill()
        return self.waiting[0].result()

    def __next__(self) -> Work:
        self._fill()
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft().result()

    def _fill(self) -> None:
        while len(self.waiting) < READ_AHEAD and (self.count is None or self.number < self.count):
            self.waiting.append(self.threads.submit(self.work, self.number))
            self.number += 1

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
