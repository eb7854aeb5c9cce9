"""Image batch: x_b = q[rows_b] / 255, placed, from a data set of bytes to float32 images in one pass.

    x[b, c, i, j] = [inside] [not in the hole] q[rows_b, c, top + u(i + dy), left + v(j' + dx)] / 255,
    j' = W - 1 - j where mirrored, else j,    u(y) = clamp((y + 1/2) height / H - 1/2, 0, height - 1), v alike

with bilinear interpolation between the four nearest pixels, none where a part of full size is taken. A row of the
placement is (top, left, height, width, dy, dx, mirrored, hole top, hole left), in pixels.
"""

from __future__ import annotations

import torch
from fastgat.kernels.backend import runs_kernel, tl, triton
from fastgat.kernels.images import dense, launch, layout
from torch import Tensor

COLUMNS = 9


def image_batch_reference(pixels: Tensor, rows: Tensor, placement: Tensor | None, hole: int, resize: bool) -> Tensor:
    images = pixels.permute(0, 2, 3, 1)
    if placement is None:
        stored = images if images.is_contiguous() else pixels
        batch = unit_scaled(stored.index_select(0, rows))
        return batch.permute(0, 3, 1, 2) if stored is images else batch
    full_height, full_width = images.shape[1:3]
    top, left, height, width, dy, dx, flip, hole_top, hole_left = (column[:, None] for column in placement.T)
    i, j = (torch.arange(n, device=pixels.device)[None] for n in (full_height, full_width))
    y, x = i + dy, torch.where(flip > 0, full_width - 1 - j, j) + dx
    inside = ((y >= 0) & (y < full_height))[:, :, None] & ((x >= 0) & (x < full_width))[:, None, :]
    in_hole = _within(i, hole_top, hole)[:, :, None] & _within(j, hole_left, hole)[:, None, :]
    y, x = _taps(y, top, height, full_height, resize), _taps(x, left, width, full_width, resize)
    value = torch.zeros((), device=pixels.device)
    for at_y, weight_y in y:
        for at_x, weight_x in x:
            tap = images[rows[:, None, None], at_y[:, :, None], at_x[:, None, :]].to(torch.float32)
            value = value + tap * (weight_y[:, :, None] * weight_x[:, None, :])[..., None]
    value = torch.where((inside & ~in_hole)[..., None], unit_scaled(value), 0.0)
    return value.permute(0, 3, 1, 2).contiguous(memory_format=layout(pixels))


def unit_scaled(pixels: Tensor) -> Tensor:
    """pixels / 255 in float32, rounded as a division is: by a number, torch multiplies with 1 / 255 on a GPU."""
    return pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def _within(position: Tensor, first: Tensor, length: int) -> Tensor:
    return (position >= first) & (position < first + length)


def _taps(position: Tensor, first: Tensor, length: Tensor, size: int, resize: bool) -> list[tuple[Tensor, Tensor]]:
    """The source pixels of output positions (B, n) along one axis, and their weights."""
    if not resize:
        return [(position.clamp(0, size - 1), torch.ones(position.shape, device=position.device))]
    scale = length.float() / torch.full((), float(size), device=length.device)
    at = ((position + 0.5) * scale - 0.5).clamp(min=0).minimum(length - 1.0)
    low = at.long()
    weight = at - low
    return [(first + low, 1 - weight), (first + (low + 1).minimum(length - 1), weight)]


@triton.jit
def _source(position, first, length, size):
    """The two source pixels of an output position along one axis, and the weight of the second."""
    at = (position.to(tl.float32) + 0.5) * (length.to(tl.float32) / tl.cast(size, tl.float32)) - 0.5
    at = tl.minimum(tl.maximum(at, 0.0), (length - 1).to(tl.float32))
    low = at.to(tl.int32)
    return first + low, first + tl.minimum(low + 1, length - 1), at - low.to(tl.float32)


@triton.jit
def _image_batch_kernel(
    pixels_ptr,
    rows_ptr,
    placement_ptr,
    images_ptr,
    elements,
    channels,
    height,
    width,
    hole,
    PLACED: tl.constexpr,
    RESIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    pixels_ptr += tl.load(rows_ptr + sample) * elements
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    if PLACED:
        if CHANNELS_LAST:
            place, pixels_ptr, x_stride = index // channels, pixels_ptr + index % channels, channels
        else:
            place, pixels_ptr, x_stride = index % (height * width), pixels_ptr + index - index % (height * width), 1
        i, j, y_stride = place // width, place % width, width * x_stride
        placement_ptr += sample * 9
        top, left = tl.load(placement_ptr), tl.load(placement_ptr + 1)
        box_height, box_width = tl.load(placement_ptr + 2), tl.load(placement_ptr + 3)
        y = i + tl.load(placement_ptr + 4)
        x = tl.where(tl.load(placement_ptr + 6) > 0, width - 1 - j, j) + tl.load(placement_ptr + 5)
        hole_top, hole_left = tl.load(placement_ptr + 7), tl.load(placement_ptr + 8)
        seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        seen &= (i < hole_top) | (i >= hole_top + hole) | (j < hole_left) | (j >= hole_left + hole)
        if RESIZE:
            y0, y1, weight_y = _source(y, top, box_height, height)
            x0, x1, weight_x = _source(x, left, box_width, width)
            upper, lower = pixels_ptr + y0 * y_stride, pixels_ptr + y1 * y_stride
            value = (1 - weight_y) * (
                (1 - weight_x) * tl.load(upper + x0 * x_stride, seen, other=0).to(tl.float32)
                + weight_x * tl.load(upper + x1 * x_stride, seen, other=0).to(tl.float32)
            ) + weight_y * (
                (1 - weight_x) * tl.load(lower + x0 * x_stride, seen, other=0).to(tl.float32)
                + weight_x * tl.load(lower + x1 * x_stride, seen, other=0).to(tl.float32)
            )
        else:
            value = tl.load(pixels_ptr + y * y_stride + x * x_stride, seen, other=0).to(tl.float32)
    else:
        value = tl.load(pixels_ptr + index, inside, other=0).to(tl.float32)
    # Rounded as PyTorch divides: a product with 1 / 255 is another number for half of the bytes.
    value = tl.div_rn(value, tl.full((BLOCK,), 255.0, tl.float32))
    tl.store(images_ptr + sample * elements + index, value, inside)


def image_batch(
    pixels: Tensor, rows: Tensor, placement: Tensor | None = None, *, hole: int = 0, resize: bool = True
) -> Tensor:
    """The samples `rows` of a data set as a batch of images in [0, 1].

    Args:
        pixels: q, the data set, (N, C, H, W) uint8, dense in either layout.
        rows: (B,) int64, each in [0, N); this is not checked.
        placement: (B, 9) int32, how each sample is placed; None for as it is.
        hole: the side of the blackened squares; 0 for none.
        resize: whether some part is of another size than its image; without, `placement` must say so of none.

    Returns (B, C, H, W), float32, in the layout of `pixels`. All tensors must be on one device.

    Raises ValueError for another dtype of `pixels` or another shape of `placement`.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise ValueError(f"expected a data set (N, C, H, W) of uint8, got {tuple(pixels.shape)} of {pixels.dtype}")
    if placement is not None and placement.shape != (len(rows), COLUMNS):
        raise ValueError(f"expected a placement ({len(rows)}, {COLUMNS}), got {tuple(placement.shape)}")
    if not runs_kernel(pixels):
        return image_batch_reference(pixels, rows, placement, hole, resize)
    (pixels,) = dense(pixels)
    size, memory = pixels.shape[1:], layout(pixels)
    images = torch.empty((len(rows), *size), dtype=torch.float32, device=pixels.device, memory_format=memory)
    pointers = pixels, rows.contiguous(), placement.contiguous() if placement is not None else rows, images
    constants = {"PLACED": placement is not None, "RESIZE": resize, "CHANNELS_LAST": memory == torch.channels_last}
    # A placed element takes many registers, so that a thread has only the four of one store.
    block, each = (1024, 4) if placement is not None else (4096, 16)
    launch(_image_batch_kernel, images, *pointers, size.numel(), *size, hole, **constants, block=block, each=each)
    return images
