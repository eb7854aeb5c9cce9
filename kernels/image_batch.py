"""Image batch: x_b = q[rows_b] / 255, placed, from a data set of bytes to the step's dtype and layout in one pass.

    x[b, c, i, j] = [inside] [not in the hole] q[rows_b, c, top + u(i + dy), left + v(j' + dx)] / 255,
    j' = W - 1 - j where mirrored, else j,    u(y) = clamp((y + 1/2) height / H - 1/2, 0, height - 1), v alike

with bilinear interpolation between the four nearest pixels, none where a part of full size is taken. A row of the
placement is (top, left, height, width, dy, dx, mirrored, hole top, hole left), in pixels.
"""

from __future__ import annotations

import torch
from fastgat.kernels.backend import launching_on, runs_kernel, tl, triton
from fastgat.kernels.images import ImageLaunch, Walk, image_offsets, layout
from torch import Tensor

COLUMNS = 9


def image_batch_reference(
    pixels: Tensor, rows: Tensor, placement: Tensor | None, hole: int, resize: bool, dtype: torch.dtype
) -> Tensor:
    images = pixels.permute(0, 2, 3, 1)
    if placement is None:
        dense = images if images.is_contiguous() else pixels
        batch = unit_scaled(dense.index_select(0, rows)).to(dtype)
        return batch.permute(0, 3, 1, 2) if dense is images else batch
    size = torch.tensor(images.shape[1:3], device=pixels.device)
    top, left, height, width, dy, dx, flip, hole_top, hole_left = (column[:, None] for column in placement.T)
    i, j = (torch.arange(int(n), device=pixels.device)[None] for n in size)
    y, x = i + dy, torch.where(flip > 0, size[1] - 1 - j, j) + dx
    inside = ((y >= 0) & (y < size[0]))[:, :, None] & ((x >= 0) & (x < size[1]))[:, None, :]
    in_hole = _within(i, hole_top, hole)[:, :, None] & _within(j, hole_left, hole)[:, None, :]
    y, x = _taps(y, top, height, size[0], resize), _taps(x, left, width, size[1], resize)
    value = torch.zeros((), device=pixels.device)
    for at_y, weight_y in y:
        for at_x, weight_x in x:
            tap = images[rows[:, None, None], at_y[:, :, None], at_x[:, None, :]].to(torch.float32)
            value = value + tap * (weight_y[:, :, None] * weight_x[:, None, :])[..., None]
    value = torch.where((inside & ~in_hole)[..., None], unit_scaled(value), 0.0)
    return value.to(dtype).permute(0, 3, 1, 2).contiguous(memory_format=layout(pixels))


def unit_scaled(pixels: Tensor) -> Tensor:
    """pixels / 255 in float32, rounded as a division is: by a number, torch multiplies with 1 / 255 on a GPU."""
    return pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def _within(position: Tensor, first: Tensor, length: int) -> Tensor:
    return (position >= first) & (position < first + length)


def _taps(position: Tensor, first: Tensor, length: Tensor, size: Tensor, resize: bool) -> list[tuple[Tensor, Tensor]]:
    """The source pixels of output positions (B, n) along one axis, and their weights."""
    if not resize:
        return [(position.clamp(min=0).minimum(size - 1), torch.ones(position.shape, device=position.device))]
    at = ((position + 0.5) * (length.float() / size.float()) - 0.5).clamp(min=0).minimum(length - 1.0)
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
    pixels,
    rows,
    placement,
    images,
    elements,
    pixels_stride,
    height,
    width,
    middle,
    inner,
    pixels_outer,
    pixels_middle,
    pixels_inner,
    hole,
    PLACED: tl.constexpr,
    RESIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    pixels += tl.load(rows + sample) * pixels_stride
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    if PLACED:
        row = index // inner
        # (i, j, c) in a walk over channels-last images, (c, i, j) otherwise; height and width are spelt out, since
        # which of the walk's sizes they are depends on that.
        if CHANNELS_LAST:
            i, j, channel = row // middle, row % middle, (index % inner) * pixels_inner
            stride_i, stride_j = pixels_outer, pixels_middle
        else:
            channel, i, j = (row // middle) * pixels_outer, row % middle, index % inner
            stride_i, stride_j = pixels_middle, pixels_inner
        placement += sample * 9
        top, left, box_height, box_width = (
            tl.load(placement),
            tl.load(placement + 1),
            tl.load(placement + 2),
            tl.load(placement + 3),
        )
        hole_top, hole_left = tl.load(placement + 7), tl.load(placement + 8)
        x = tl.where(tl.load(placement + 6) > 0, width - 1 - j, j) + tl.load(placement + 5)
        y = i + tl.load(placement + 4)
        seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        seen &= (i < hole_top) | (i >= hole_top + hole) | (j < hole_left) | (j >= hole_left + hole)
        if RESIZE:
            y0, y1, weight_y = _source(y, top, box_height, height)
            x0, x1, weight_x = _source(x, left, box_width, width)
            upper, lower = pixels + channel + y0 * stride_i, pixels + channel + y1 * stride_i
            value = (1 - weight_y) * (
                (1 - weight_x) * tl.load(upper + x0 * stride_j, seen, other=0).to(tl.float32)
                + weight_x * tl.load(upper + x1 * stride_j, seen, other=0).to(tl.float32)
            ) + weight_y * (
                (1 - weight_x) * tl.load(lower + x0 * stride_j, seen, other=0).to(tl.float32)
                + weight_x * tl.load(lower + x1 * stride_j, seen, other=0).to(tl.float32)
            )
        else:
            value = tl.load(pixels + channel + y * stride_i + x * stride_j, seen, other=0).to(tl.float32)
    else:
        at = image_offsets(index, middle, inner, pixels_outer, pixels_middle, pixels_inner, DENSE)
        value = tl.load(pixels + at, inside, other=0).to(tl.float32)
    # Rounded as PyTorch divides: a product with 1 / 255 is another number for half of the bytes.
    value = tl.div_rn(value, tl.full((BLOCK,), 255.0, tl.float32))
    tl.store(images + sample * elements + index, value.to(images.dtype.element_ty), inside)


def launch_for(elements: int, placed: bool) -> ImageLaunch:
    """Blocks of an image; a placed element takes many registers, so that a thread has only the four of one store."""
    if not placed:
        return ImageLaunch.for_elements(elements)
    block = min(max(triton.next_power_of_2(elements), 128), 1024)
    return ImageLaunch(block, warps=block // 128)


def image_batch_kernel(
    pixels: Tensor, rows: Tensor, placement: Tensor | None, hole: int, resize: bool, dtype: torch.dtype
) -> Tensor:
    _, channels, height, width = pixels.shape
    images = torch.empty(
        (len(rows), channels, height, width), dtype=dtype, device=pixels.device, memory_format=layout(pixels)
    )
    elements = pixels[0:1].numel()
    if not len(rows) or not elements:
        return images
    walk, launch = Walk.over(images), launch_for(elements, placed=placement is not None)
    with launching_on(pixels):
        _image_batch_kernel[(len(rows), triton.cdiv(elements, launch.block))](
            pixels,
            rows.contiguous(),
            placement.contiguous() if placement is not None else rows,
            images,
            elements,
            pixels.stride(0),
            height,
            width,
            *walk.sizes[1:],
            *walk.strides(pixels),
            hole,
            PLACED=placement is not None,
            RESIZE=resize,
            CHANNELS_LAST=walk.order == (2, 3, 1),
            DENSE=walk.is_dense(pixels),
            BLOCK=launch.block,
            num_warps=launch.warps,
        )
    return images


def image_batch(
    pixels: Tensor,
    rows: Tensor,
    placement: Tensor | None = None,
    *,
    hole: int = 0,
    resize: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The samples `rows` of a data set as a batch of images in [0, 1].

    Args:
        pixels: q, the data set, (N, C, H, W) uint8, dense in either layout.
        rows: (B,) int64, each in [0, N); this is not checked.
        placement: (B, 9) int32, how each sample is placed; None for as it is.
        hole: the side of the blackened squares; 0 for none.
        resize: whether some part is of another size than its image; without, `placement` must say so of none.
        dtype: of the result: float32, bfloat16 or float16.

    Returns (B, C, H, W) in the layout of `pixels`. All tensors must be on one device.

    Raises ValueError for another dtype of `pixels` or another shape of `placement`.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise ValueError(f"expected a data set (N, C, H, W) of uint8, got {tuple(pixels.shape)} of {pixels.dtype}")
    if placement is not None and placement.shape != (len(rows), COLUMNS):
        raise ValueError(f"expected a placement ({len(rows)}, {COLUMNS}), got {tuple(placement.shape)}")
    run = image_batch_kernel if runs_kernel(pixels) else image_batch_reference
    return run(pixels, rows, placement, hole, resize, dtype)
