"""Table 1 of the paper."""

from __future__ import annotations

import pytest
import torch

from fastgat.models import Classifier, Generator


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("classes", "parameters"), [(10, 240_058), (100, 240_058 + 90 * 97)])
def test_classifier_has_the_papers_size(classes: int, parameters: int) -> None:
    assert size(Classifier(num_classes=classes)) == parameters


def test_generator_has_the_papers_size() -> None:
    assert size(Generator()) == 107_763


def test_shapes() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert Classifier(num_classes=7)(images).shape == (2, 7)
    assert Classifier(in_channels=1)(images[:, :1]).shape == (2, 10)
    assert Generator(width=5, channels=1)(images[:, :1]).shape == (2, 1, 32, 32)


def test_the_last_map_is_8_by_8_and_has_no_relu() -> None:
    classifier = Classifier()
    maps = []
    classifier.conv7.register_forward_hook(lambda module, inputs, output: maps.append(output))
    logits = classifier(torch.rand(64, 3, 32, 32))
    assert maps[0].shape[2:] == (8, 8)
    torch.testing.assert_close(logits, maps[0].mean((2, 3)))
    assert (logits < 0).any(), "a ReLU before the softmax would leave no negative logit"


def test_relu_stands_between_all_other_layers() -> None:
    """Negating the input of the last layer must not merely negate the output: each hidden layer is rectified."""
    classifier = Classifier()
    for name in ("conv2", "conv3", "conv4", "conv5", "conv6", "conv7"):
        inputs = []
        handle = getattr(classifier, name).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))  # noqa: B023  # called within the loop
        classifier(torch.rand(2, 3, 32, 32))
        handle.remove()
        assert inputs[0].min() == 0, f"the input of {name} is rectified"


def test_generator_is_bounded_and_starts_small_for_small_gradients() -> None:
    generator = Generator()
    assert generator(1e3 * torch.randn(2, 3, 8, 8)).abs().max() <= 1
    assert generator(torch.zeros(2, 3, 8, 8)).abs().max() == 0


@pytest.mark.parametrize("module", [Classifier(), Generator()])
def test_xavier_initialisation(module: torch.nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            outputs, inputs, height, width = layer.weight.shape
            bound = (6 / ((inputs + outputs) * height * width)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.bias is not None
            assert not layer.bias.any()


def test_dropout_masks_are_an_input() -> None:
    classifier, images = Classifier(dropout=0.5), torch.rand(2, 3, 32, 32)
    masks = classifier.draw_masks(images, torch.Generator().manual_seed(1))
    assert [mask.shape for mask in masks] == [(2, 48, 16, 16), (2, 96, 8, 8)]
    torch.testing.assert_close(classifier(images, masks), classifier(images, masks))
    assert not classifier(images).equal(classifier(images)), "train mode draws its own"
    classifier.eval()
    assert classifier(images).equal(classifier(images)), "eval mode drops nothing"


def test_dropout_keeps_the_mean() -> None:
    classifier, images = Classifier(dropout=0.3), torch.ones(64, 3, 32, 32)
    masks = classifier.draw_masks(images)
    kept = classifier._drop(torch.ones(64, 48, 16, 16), masks[0])
    assert abs(float(kept.mean()) - 1) < 0.01


def test_masks_fit_odd_images() -> None:
    classifier, images = Classifier(dropout=0.5), torch.rand(1, 3, 9, 13)
    assert classifier(images, classifier.draw_masks(images)).shape == (1, 10)
