"""Two residual networks for small images: `resnet18-compact` and `resnet18`.

Both take float images [B, 3, H, W] and return logits [B, num_classes], for any H and W (pooling is adaptive). Weights
come from torch's default initialisers and global generator, which ``cifar_ablate.models.build.build_model`` seeds.

Sources: `resnet18` is the ResNet-18 of kuangliu/pytorch-cifar. `resnet18-compact` follows the published layer table in
``tests/tables/cifar10_resnet18_readme.txt``: half the stem, a downsampling first stage, and bare 1x1 shortcuts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from cifar_ablate.fields import PositiveInt, Probability
from cifar_ablate.registry import MODELS

IMAGE_CHANNELS = 3


@MODELS.register("resnet18-compact")
def resnet18_compact(
    num_classes: int, image_size_px: int, *, width: PositiveInt = 32, dropout: Probability = 0.0
) -> nn.Module:
    """Compact ResNet-18: 11,154,890 parameters and 135.15 M multiply-adds per 32 px image by default.

    Args:
        num_classes: Length of the logits.
        image_size_px: Not used: any size of at least 1 px works; at 32 px the last feature map is 2x2.
        width: Channels of the stem; the four stages have 2, 4, 8 and 16 times as many.
        dropout: Probability of zeroing an activation after each BatchNorm inside the blocks; 0 adds no layer.
    """
    return CompactResNet(num_classes, width, dropout)


@MODELS.register("resnet18")
def resnet18(num_classes: int, image_size_px: int, *, width: PositiveInt = 64, dropout: Probability = 0.0) -> nn.Module:
    """ResNet-18 for small images: 11,173,962 parameters and 555.43 M multiply-adds per 32 px image by default.

    Args:
        num_classes: Length of the logits.
        image_size_px: Not used: any size of at least 1 px works; at 32 px the last feature map is 4x4.
        width: Channels of the stem and of the first stage; the next stages have 2, 4 and 8 times as many.
        dropout: Probability of zeroing an activation after each BatchNorm inside the blocks, shortcuts included and the
            stem's excluded; 0 adds no layer.
    """
    return ResNet(num_classes, width, dropout)


class CompactBlock(nn.Module):
    """[B, in, H, W] to [B, out, H / stride, W / stride]; a shortcut that changes the size is a bare 1x1 convolution.

    Layers are registered in the order of the published table (shortcut first), in which their weights are drawn.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if stride > 1 else None
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.drop1 = drop(dropout)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.drop2 = drop(dropout)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = through(x, self.shortcut)
        out = through(x, self.conv1, self.norm1, self.drop1, self.relu1)
        out = through(out, self.conv2, self.norm2, self.drop2)
        return through(out.add_(shortcut), self.relu2)  # in place: BatchNorm's backward pass needs its input alone


class CompactResNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]; every stage halves the size, the head is a 1x1 convolution."""

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(IMAGE_CHANNELS, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.stage1 = _stage(CompactBlock, width, 2 * width, 2, dropout)
        self.stage2 = _stage(CompactBlock, 2 * width, 4 * width, 2, dropout)
        self.stage3 = _stage(CompactBlock, 4 * width, 8 * width, 2, dropout)
        self.stage4 = _stage(CompactBlock, 8 * width, 16 * width, 2, dropout)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Conv2d(16 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = through(x, self.conv1, self.norm1, self.relu1)
        x = through(x, self.stage1, self.stage2, self.stage3, self.stage4)
        return torch.flatten(through(x, self.pool, self.head), 1)


class BasicBlock(nn.Module):
    """[B, in, H, W] to [B, out, H / stride, W / stride]; the shortcut is empty or a 1x1 convolution + BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.drop1 = drop(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.drop2 = drop(dropout)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))
            self.shortcut.extend([nn.Dropout(dropout)] if dropout > 0 else [])

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(through(x, self.conv1, self.norm1, self.drop1), inplace=True)
        out = through(out, self.conv2, self.norm2, self.drop2)
        return F.relu(out.add_(self.shortcut(x)), inplace=True)  # BatchNorm's backward pass needs its input alone


class ResNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]; the first stage keeps the size, the next three halve it."""

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(IMAGE_CHANNELS, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.stage1 = _stage(BasicBlock, width, width, 1, dropout)
        self.stage2 = _stage(BasicBlock, width, 2 * width, 2, dropout)
        self.stage3 = _stage(BasicBlock, 2 * width, 4 * width, 2, dropout)
        self.stage4 = _stage(BasicBlock, 4 * width, 8 * width, 2, dropout)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(through(x, self.conv1, self.norm1), inplace=True)
        x = through(x, self.stage1, self.stage2, self.stage3, self.stage4)
        return through(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), self.head)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias (a BatchNorm follows) that keeps the size at stride 1 and halves it at 2."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def drop(probability: float) -> nn.Dropout | None:
    """A Dropout, or None at probability 0; a layer of its own, so that weights have the same names either way."""
    return nn.Dropout(probability) if probability > 0 else None


def through(x: Tensor, *layers: nn.Module | None) -> Tensor:
    """Apply layers in turn; None is skipped."""
    for layer in layers:
        if layer is not None:
            x = layer(x)
    return x


def _stage(
    block: type[CompactBlock] | type[BasicBlock], in_channels: int, out_channels: int, stride: int, dropout: float
) -> nn.Sequential:
    """Two blocks; the first one changes size and channels."""
    return nn.Sequential(
        block(in_channels, out_channels, stride, dropout), block(out_channels, out_channels, 1, dropout)
    )
