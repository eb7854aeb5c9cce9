"""What only a GPU can show: sizes beyond 32 bits and beyond a grid's other dimensions, captured launches."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.dual_loss import sample_loss
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_more_than_65535_samples() -> None:
    gradient = torch.randn(70_001, 3, 4, 4, device="cuda")
    eta = input_gradient(gradient, "l2", epsilon=0.5).value
    torch.testing.assert_close(eta.flatten(1).norm(dim=1), torch.full((70_001,), 0.5, device="cuda"))
    ones = torch.ones_like(gradient)
    d_z = perturbation_gradient(gradient, gradient, ones, ones[:, 0, 0, 0])
    p = gradient.tanh()
    torch.testing.assert_close(d_z, (1 - p * p) * (1 + 2 * p), rtol=1e-5, atol=1e-6)
    logits, labels = torch.randn(70_001, 10, device="cuda"), torch.randint(10, (70_001,), device="cuda")
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(sample_loss(logits, labels).loss, expected, rtol=1e-5, atol=1e-6)


def test_more_than_2_to_the_31_elements() -> None:
    side, batch = 512, 2_800
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of GPU memory")
    x = torch.zeros(batch, 3, side, side, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[-1, :, 0, :4] = 1.0
    result = input_gradient(x, "l2", epsilon=1.0)
    assert (result.zeros < 1).nonzero().tolist() == [[batch - 1]]
    assert float(result.value[-1].float().norm()) == pytest.approx(1, rel=1e-2)
    assert float(perturbation(x, x, tanh=False).perturbed[-1, 0, 0, 0]) == 2.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_the_device_of_their_tensors() -> None:
    with torch.cuda.device(0):
        x = torch.rand(4, 3, 8, 8, device="cuda:1")
        norms = input_gradient(x, "l2", epsilon=0.5).value.flatten(1).norm(dim=1)
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5))


def test_launches_can_be_captured() -> None:
    x, z = (torch.rand(8, 3, 32, 32, device="cuda") for _ in range(2))
    loss = torch.rand(8, device="cuda")
    perturbation(x, z, tanh=False), input_gradient(x, "probability", loss=loss)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = perturbation(x, z, tanh=False).perturbed, input_gradient(x, "probability", loss=loss).value
    x.uniform_()
    graph.replay()
    torch.testing.assert_close(captured[0], x + z)
    torch.testing.assert_close(captured[1], -x * loss.neg().exp().view(-1, 1, 1, 1))
