"""The ResNet for small images of He et al. 2016 (arXiv 1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv3x3


class Shortcut(nn.Module):
    """The shortcut without parameters, option A of the paper.

    Takes every `stride`-th pixel and puts channels of zeros before and after the old ones.
    """

    def __init__(self, stride: int, more_channels: int) -> None:
        super().__init__()
        self.stride, self.more_channels = stride, more_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, channels + more, ceil(h / stride), ceil(w / stride))."""
        before = self.more_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.more_channels - before))


class ResNetCifar(nn.Module):
    """Three stages of `depth` blocks with 16, 32 and 64 channels; 6 * depth + 2 layers.

    Takes normalised images (B, 3, h, w) of any size and gives logits (B, classes).
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 16), nn.BatchNorm2d(16)
        self.layer1 = _stage(depth, 16, 16, 1)
        self.layer2 = _stage(depth, 16, 32, 2)
        self.layer3 = _stage(depth, 32, 64, 2)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(depth: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = Shortcut(stride, outputs - inputs) if stride > 1 else None
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(depth - 1)))


def resnet20(classes: int) -> ResNetCifar:
    """ResNet-20: 268,336 weights in 20 layers, 269,722 parameters at 10 classes."""
    return ResNetCifar(3, classes)
