"""Square: the published schedule, and ties."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.attacks import Square
from fastgat.attacks.base import correct


class Tied(nn.Module):
    """Two classes that are alike until an image is bright enough for the second."""

    def forward(self, images: Tensor) -> Tensor:
        second = (images.mean((1, 2, 3)) - 0.51).clamp(min=0)
        return torch.stack([torch.zeros_like(second), second], 1)


def test_square_goes_on_where_two_classes_are_alike() -> None:
    """The answer is the first of them, and it is right."""
    labels = torch.zeros(4, dtype=torch.int64)
    moved = Square(Tied(), epsilon=0.1, queries=200)(torch.full((4, 3, 8, 8), 0.5), labels)
    assert not correct(Tied()(moved), labels).any()


def test_the_windows_shrink_as_published() -> None:
    """Of what share of the image they are, of 10,000 queries."""
    halved = {10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 201: 3, 500: 3, 501: 4, 1000: 4, 1001: 5, 2000: 5, 2001: 6}
    halved |= {4000: 6, 4001: 7, 6000: 7, 6001: 8, 8000: 8, 8001: 9}
    for queries in (10_000, 20_000):
        attack = Square(nn.Flatten(), queries=queries)
        for query, times in halved.items():
            assert attack._share(query * queries // 10_000) == 0.8 / 2**times, query
