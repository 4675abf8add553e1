from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delaygrad.models.resnet import BasicBlock, resnet


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"), [(8, 75_290), (20, 269_722), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_number_as_counted_by_hand(depth: int, expected: int) -> None:
    n = (depth - 2) // 6
    stem = 3 * 3 * 3 * 16 + 2 * 16
    group1 = n * (2 * 9 * 16 * 16 + 4 * 16)
    group2 = 9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32 + n * 4 * 32
    group3 = 9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64 + n * 4 * 64
    by_hand = stem + group1 + group2 + group3 + 64 * 10 + 10
    assert by_hand == 97_216 * n - 22_576 + 65 * 10 == expected
    assert num_parameters(resnet(depth, num_classes=10)) == expected


def test_blocks_lie_flat_under_stable_names() -> None:
    model = resnet(14, num_classes=10)
    assert type(model) is nn.Sequential
    assert [name for name, _ in model.named_children()] == [
        *("conv", "bn", "relu"),
        *("group1_block1", "group1_block2"),
        *("group2_block1", "group2_block2"),
        *("group3_block1", "group3_block2"),
        *("pool", "flatten", "classifier"),
    ]
    assert list(dict(model.group2_block1.named_parameters())) == [
        *("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")
    ]


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8), (3, 31), (1, 1)])
def test_images_of_any_size_are_taken(channels: int, size: int) -> None:
    model = resnet(8, num_classes=7, in_channels=channels)
    images = torch.randn(2, channels, size, size)
    assert model(images).shape == (2, 7)


def test_groups_halve_the_image_and_double_the_channels() -> None:
    shapes = []
    x = torch.randn(2, 3, 32, 32)
    for layer in resnet(8, num_classes=10):
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[2:7] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (64, 1, 1)]


def test_shortcut_is_average_pooling_and_zero_channels() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # with bn2 at its start, only the shortcut is left
    x = torch.randn(2, 16, 8, 8)
    pooled = F.avg_pool2d(x, kernel_size=1, stride=2)
    expected = F.relu(torch.cat([pooled, pooled * 0], dim=1))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_block_leaves_its_input_alone() -> None:
    x = torch.randn(2, 16, 8, 8)
    before = x.clone()
    BasicBlock(16, 16, stride=1)(x)
    assert torch.equal(x, before)


def test_cut_anywhere_gives_the_same_gradients() -> None:
    whole = resnet(8, num_classes=10, in_channels=1)
    images, targets = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 5, 9])
    expected = copy.deepcopy(whole)
    F.cross_entropy(expected(images), targets).backward()
    for cut in range(1, len(whole)):
        model = copy.deepcopy(whole)
        activation = model[:cut](images)
        received = activation.detach().requires_grad_()
        F.cross_entropy(model[cut:](received), targets).backward()
        activation.backward(received.grad)
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_initialisation_is_that_of_the_paper_code() -> None:
    model = resnet(20, num_classes=1000)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (9 * module.out_channels))
            assert abs(module.weight.std() / std - 1) < 0.1
            assert abs(module.weight.mean()) < 4 * std / math.sqrt(module.weight.numel())
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert abs(model.classifier.weight.std() / math.sqrt(2 / 64) - 1) < 0.02


@pytest.mark.parametrize(
    ("depth", "remedy"),
    [
        (2, "the smallest is 8"),
        (-4, "the smallest is 8"),
        (18, r"depth: 18, not 6n \+ 2\); use 14 or 20"),
        (57, "use 56 or 62"),
        (111, "use 110 or 116"),
    ],
)
def test_impossible_depth_names_the_nearest(depth: int, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        resnet(depth, num_classes=10)
