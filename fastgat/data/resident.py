"""A loader that keeps a whole image set as uint8 on the training device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastgat.data.batch import Batch
from fastgat.data.sets import ImageSet


class ResidentLoader:
    """Batches of float images in [0, 1], gathered from memory.

    Batch `i` of a stream is a pure function of (seed, player, i): each epoch of each player has its own permutation.
    `workers` threads prepare as many batches ahead; the batches are the same for every number of them.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pixels = torch.from_numpy(np.ascontiguousarray(images.images)).permute(0, 3, 1, 2)
        self.images = pixels.to(device).contiguous(memory_format=layout)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.layout = layout
        self._permutations: dict[int, tuple[int, Tensor]] = {}

    @property
    def batches_per_epoch(self) -> int:
        return len(self.labels) // self.batch_size

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        if not self.workers:
            while True:
                yield self._batch(player, start)
                start += 1
        with ThreadPoolExecutor(self.workers, thread_name_prefix="fastgat-loader") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                while True:
                    while len(ahead) < self.workers:
                        ahead.append(pool.submit(self._batch, player, start))
                        start += 1
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def once(self) -> Iterator[Batch]:
        for first in range(0, len(self.labels), self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield Batch(self._scaled(self.images[rows]), self.labels[rows])

    def _batch(self, player: int, number: int) -> Batch:
        epoch, position = divmod(number, self.batches_per_epoch)
        rows = self._permutation(player, epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return Batch(self._scaled(self.images[rows]), self.labels[rows])

    def _scaled(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=self.layout).float().div_(255)

    def _permutation(self, player: int, epoch: int) -> Tensor:
        known, order = self._permutations.get(player, (-1, self.labels))
        if known != epoch:
            order = torch.from_numpy(np.random.default_rng((self.seed, player, epoch)).permutation(len(self.labels)))
            if self.labels.is_cuda:
                order = order.pin_memory()  # so that nothing waits for the copy
            order = order.to(self.labels.device, non_blocking=True)
            self._permutations[player] = (epoch, order)
        return order
