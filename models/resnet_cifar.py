"""The ResNet for small images of He et al. 2016 (arXiv 1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grown = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, ceil(h / stride), ceil(w / stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th pixel, with channels of zeros before and after the old ones."""
        before = self.grown // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.grown - before)) if self.grown else x


class ResNetCifar(nn.Module):
    """Three stages of `depth` blocks with 16, 32 and 64 channels; 6 * depth + 2 layers.

    Takes normalised images (B, 3, h, w) of any size and gives logits (B, classes).
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 16, 1), nn.BatchNorm2d(16)
        self.layer1 = _stage(depth, 16, 16, 1)
        self.layer2 = _stage(depth, 16, 32, 2)
        self.layer3 = _stage(depth, 32, 64, 2)
        self.fc = nn.Linear(64, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(depth: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(depth - 1)))


def resnet20(classes: int) -> ResNetCifar:
    """ResNet-20: 268,336 weights in 20 layers, 269,722 parameters at 10 classes."""
    return ResNetCifar(3, classes)
