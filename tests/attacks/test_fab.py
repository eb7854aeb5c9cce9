"""FAB's projection against general solvers, and its distances against those that a linear network has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from fastgat.attacks import FAB

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def shortest_way(norm: str, point: np.ndarray, w: np.ndarray, value: float) -> float | None:
    """The distance to {z: value + <w, z - point> = 0} within [0, 1], by a solver; None where the box is too small."""
    n, bounds = len(point), [(-p, 1 - p) for p in point]
    linear = linprog(
        np.r_[np.zeros(n), 1],
        A_ub=np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]]),
        b_ub=np.zeros(2 * n),
        A_eq=[np.r_[w, 0]],
        b_eq=[-value],
        bounds=[*bounds, (0, None)],
    )
    if linear.status == 2:
        return None
    if norm == "linf":
        return float(linear.fun)
    quadratic = minimize(
        lambda p: p @ p,
        linear.x[:n],
        jac=lambda p: 2 * p,
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda p: value + w @ p, "jac": lambda p: w},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return float(quadratic.fun) ** 0.5


@norms
def test_the_projection_is_the_shortest_way_within_the_box(norm: str) -> None:
    source = torch.Generator().manual_seed(0)
    points, w = torch.rand(2, 20, 1, 3, 4, dtype=torch.float64, generator=source)
    points[:, :, 0] = points[:, :, 0].round()  # pixels that are on a side of the box
    w = w - 0.5
    w[:, :, 1, 1] = 0
    value = 2 * torch.randn(20, dtype=torch.float64, generator=source)
    ways = FAB(nn.Identity(), norm=norm)._to_hyperplane(points, w, value)
    assert (points + ways).min() >= 0
    assert (points + ways).max() <= 1
    unreached = 0
    for point, normal, offset, way in zip(points, w, value.tolist(), ways, strict=True):
        p, n, d = (tensor.flatten().numpy() for tensor in (point, normal, way))
        shortest = shortest_way(norm, p, n, offset)
        if shortest is None:
            unreached += 1
            farthest = np.where(n * offset < 0, 1 - p, -p)
            np.testing.assert_allclose(d[n != 0], farthest[n != 0], atol=1e-12)
        else:
            assert abs(offset + n @ d) < 1e-9
            length = abs(d).max() if norm == "linf" else np.linalg.norm(d)
            assert length == pytest.approx(shortest, abs=1e-6)
    assert 0 < unreached < 10


def test_an_entry_at_a_side_of_the_box_stays_there_where_nothing_is_left_to_go() -> None:
    points, w = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[1.0, 1e-4]]]])
    way = FAB(nn.Identity(), norm="l2")._to_hyperplane(points, w, torch.tensor([-0.5]))
    assert way.flatten().tolist() == pytest.approx([0.5, 0.5e-4])


class Linear(nn.Module):
    """Logits that are linear in the pixels: the distance to a boundary is that to a hyperplane."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(5, 48, generator=source))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


@norms
def test_distances_to_the_boundaries_of_a_linear_network(norm: str) -> None:
    """Without a box the nearest boundary is at |z_y - z_t| / ||w_y - w_t||, in the dual norm."""
    model, images = Linear(), torch.rand(80, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(images)
        labels = logits.argmax(1)
        apart = model.weight[labels][:, None] - model.weight
        length = apart.abs().sum(2) if norm == "linf" else apart.norm(dim=2)
        gaps = logits.gather(1, labels[:, None]) - logits
        distance = (gaps / length).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = float(distance.median())
    attack = FAB(model, epsilon=epsilon, norm=norm, clamp=False, steps=30)
    with torch.no_grad():
        fooled = model(attack(images, labels)).argmax(1) != labels
    assert fooled[distance < 0.99 * epsilon].all()
    assert not fooled[distance > 1.01 * epsilon].any()


@norms
def test_a_step_without_a_box_is_the_papers(norm: str) -> None:
    """To the hyperplane w.z + b = 0 it is -(w.z + b) sign(w) / ||w||_1 from z, or -(w.z + b) w / ||w||^2."""
    model, source = Linear().double(), torch.Generator().manual_seed(3)
    x, last = torch.rand(2, 6, 3, 4, 4, dtype=torch.float64, generator=source)
    labels, targets = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 2])
    w = (model.weight[targets] - model.weight[labels]).detach()
    unit = w.sign() / w.abs().sum(1, keepdim=True) if norm == "linf" else w / w.square().sum(1, keepdim=True)
    order = torch.inf if norm == "linf" else 2
    ways = [-(w * z.flatten(1)).sum(1, keepdim=True) * unit for z in (last, x)]
    near, far = (way.norm(order, dim=1, keepdim=True) for way in ways)
    alpha = (near / (near + far)).clamp(max=0.1)
    expected = (1 - alpha) * (last.flatten(1) + 1.05 * ways[0]) + alpha * (x.flatten(1) + 1.05 * ways[1])
    step = FAB(model, norm=norm, clamp=False)._step(x, last, labels, targets)
    torch.testing.assert_close(step.flatten(1), expected)
