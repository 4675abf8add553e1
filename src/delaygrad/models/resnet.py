"""The residual network for CIFAR that the decoupled-training papers train.

References:
    He et al., CVPR 2016, arXiv:1512.03385, Section 4.2: the architecture.
    Huo et al., ICML 2018, arXiv:1804.10574, and its code, slowbull/DDG ``models/resnet_ddg.py``:
    option-A shortcuts by average pooling, and the initialisation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delaygrad.models.sizes import require_positive

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_STEM_CHANNELS = 16
_GROUPS = ((16, 1), (32, 2), (64, 2))  # (channels, stride of the group's first block)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A).

    Where the block halves the image, the shortcut takes every second pixel (an average pool of
    kernel 1 and stride 2) and appends zero channels. The ReLUs are in place; the block's input is
    left alone, so a cut before it is safe.

    Args:
        in_channels: channels of the input, ≥ 1.
        out_channels: channels of the output, ≥ in_channels.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(self._shortcut(x) + out, inplace=True)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return x


def resnet(depth: int, *, num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Build the CIFAR ResNet of depth 6n + 2: ResNet-8, 20, 56, 110, ...

    The children are ``conv, bn, relu, group1_block1, …, group3_block<n>, pool, flatten,
    classifier``: 3n + 6 of them, so that the network can be cut between any two blocks. For three
    input channels and C classes it has 97216·n − 22576 + 65·C parameters.

    Args:
        depth: layers with weights, 6n + 2 with n ≥ 1.
        num_classes: outputs.
        in_channels: channels of the images, which may have any size.
    Returns:
        (B, in_channels, H, W) float32 -> (B, num_classes) logits.
    Raises:
        ValueError: the depth is not 6n + 2, or another number is below 1.
    Example:
        >>> model = resnet(20, num_classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        269722

    References:
        Initialisation as in the DDG code: convolutions N(0, 2/(k·k·out)), the Linear weight by
        ``kaiming_normal_``, both after He et al., ICCV 2015, arXiv:1502.01852, Section 2.2; the
        Linear bias by PyTorch's default; BatchNorm 1 and 0.
        Differs: none.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    num_blocks = _blocks_per_group(depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, _STEM_CHANNELS, 3, padding=1, bias=False)
    layers["bn"] = nn.BatchNorm2d(_STEM_CHANNELS)
    layers["relu"] = nn.ReLU()  # not in place: a stage may begin here
    channels = _STEM_CHANNELS
    for group, (out_channels, first_stride) in enumerate(_GROUPS, start=1):
        for block in range(1, num_blocks + 1):
            stride = first_stride if block == 1 else 1
            layers[f"group{group}_block{block}"] = BasicBlock(channels, out_channels, stride)
            channels = out_channels
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    model = nn.Sequential(layers)
    _initialise(model)
    return model


def _blocks_per_group(depth: int) -> int:
    """Solve depth = 6n + 2 for n."""
    num_blocks, remainder = divmod(depth - 2, 6)
    if num_blocks < 1:
        raise ValueError(f"impossible ResNet depth (depth: {depth}); the smallest is 8")
    if remainder:
        below = 6 * num_blocks + 2
        raise ValueError(
            f"impossible ResNet depth (depth: {depth}, not 6n + 2); use {below} or {below + 6}"
        )
    return num_blocks


def _initialise(model: nn.Sequential) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def to_channels_last(network: NetworkT) -> NetworkT:
    """Keep the weights of convolutions as NHWC in memory, in place; return the network."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return network
