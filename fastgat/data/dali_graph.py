"""DALI's operations on a batch: decode, scale, shift, mirror, blacken, and the scaling to [0, 1].

What is to be done with each sample comes in from outside; DALI draws nothing and orders nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastgat.data.decoding import BadSampleError, decode
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


@dataclass(frozen=True)
class Graph:
    """The graph of DALI's operations for one kind of input and output.

    Attributes:
        in_files: whether images come encoded.
        layout: of those that do not: HWC or CHW.
        channels_last: of the result.
        output: height and width of the result.
    """

    in_files: bool
    layout: str
    channels_last: bool
    output: tuple[int, int]
    batch_size: int
    threads: int
    device: torch.device

    def run(self, source: Iterator[Work], names: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images, float32 in [0, 1], and labels on the device, for each Work of `source`, which has `names`.

        Raises DataError where DALI cannot run, RuntimeError for a sample that it cannot decode.
        """
        dali = load_dali()
        gpu = self.device.type == "cuda"

        def inputs() -> tuple[Any, ...]:
            work = next(source)
            return tuple(work[name] for name in names)

        @dali.pipeline_def(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if gpu else None,
            enable_conditionals=True,
        )
        def graph() -> Any:
            layouts = [self.layout if name == "images" and not self.in_files else "" for name in names]
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
        if not self.channels_last and self.layout == "HWC":
            images = fn.transpose(images, perm=[2, 0, 1])
        return images / 255.0, labels.gpu() if device == "gpu" else labels


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


def check_decodable(raw: bytes, max_pixels: int) -> None:
    """Raises BadSampleError if Pillow, which knows why, or DALI cannot decode an image."""
    decode(raw, max_pixels)
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
        raise BadSampleError("cannot be decoded by DALI") from None


def reason(error: BaseException) -> str:
    """The line of a DALI error that says what happened, out of its account of where."""
    told = str(error).split("encountered:")[-1]
    lines = [line.strip() for line in told.splitlines() if line.strip() and "Critical error" not in line]
    return lines[0].rstrip(".") if lines else type(error).__name__
