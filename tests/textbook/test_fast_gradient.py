"""Equations (1) and (3) against finite differences."""

from __future__ import annotations

import torch
from torch.nn import functional

from fastgat.textbook.standard import fast_gradient
from tests.support import minibatch, numerical_gradient, players


@torch.no_grad()
def test_directions_match_the_numerical_gradient_of_the_loss() -> None:
    classifier, _ = players()
    x, y = minibatch(size=2, side=4)
    gradient = numerical_gradient(lambda at: functional.cross_entropy(classifier(at), y, reduction="sum"), x)
    with torch.enable_grad():
        linf = fast_gradient(classifier, x, y, 0.1, "linf")
        l2 = fast_gradient(classifier, x, y, 0.1, "l2")
    clear = gradient.abs() > 1e-7
    torch.testing.assert_close(linf[clear], 0.1 * gradient.sign()[clear])
    expected = 0.1 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(l2, expected, rtol=1e-6, atol=1e-9)


def test_norms_are_per_sample_and_a_sample_without_gradient_gets_none() -> None:
    classifier, _ = players()
    x, y = minibatch(size=3)
    torch.testing.assert_close(
        fast_gradient(classifier, x, y, 0.25, "l2").flatten(1).norm(dim=1), torch.full((3,), 0.25, dtype=x.dtype)
    )
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    for norm in ("l2", "linf"):
        assert not fast_gradient(classifier, x, y, 0.25, norm).any()
