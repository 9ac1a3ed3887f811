"""DeepLabV2 (Chen et al., TPAMI 2018) on a ResNet with output stride 8. Its parameters have the names that published
checkpoints use: conv1 bn1 layer1..layer4 layer5.conv2d_list.0..3."""
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.recompute import recomputed

EXPANSION = 4
DILATIONS = (6, 12, 18, 24)  # of the four parallel convolutions of the head
WEIGHT_STD = 0.01  # convolution weights start at N(0, WEIGHT_STD)


class Bottleneck(nn.Module):
    """A ResNet block of 1x1, 3x3 and 1x1 convolutions with a shortcut. The stride is that of the first 1x1, as in
    Caffe's ResNet."""

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, project: bool):
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, in_channels, h, w] -> [B, 4 channels, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)).add_(shortcut))


class Head(nn.Module):
    """The classifier: the sum of the first `branches` of four parallel dilated 3x3 convolutions with bias. The other
    branches exist, so that all files have the same names, but are unused and get no gradient."""

    def __init__(self, in_channels: int, num_classes: int, branches: int = len(DILATIONS)):
        super().__init__()
        self.branches = branches
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=d, dilation=d) for d in DILATIONS)
        self.conv2d_list[branches:].requires_grad_(False)  # else several processes would wait to learn who uses them

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in_channels, h, w] -> logits float32 (float64 for float64) [B, C, h, w].

        One matrix product computes the 9 taps of each convolution; their results are then shifted and added up. This is
        much faster than four convolutions with few output channels (`python -m bench head`).
        """
        used: list[Any] = list(self.conv2d_list)[:self.branches]
        convolved = viewed_taps if x.is_cuda else folded_taps
        return sum(convolved(x, [conv.weight for conv in used])) + sum(conv.bias for conv in used).view(-1, 1, 1)


def folded_taps(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """The head's convolutions, float [B, in, h, w] -> [B, C, h, w] each, their taps added up by F.fold. weights: [C,
    in, 3, 3] each; the first has the first dilation, and so on."""
    taps = [weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2) for weight in weights]
    products = F.conv2d(x, torch.cat(taps)[:, :, None, None]).flatten(2)
    # Half-precision terms are added up in float32.
    parts = products.to(torch.promote_types(products.dtype, torch.float32)).chunk(len(weights), dim=1)
    return [F.fold(part, x.shape[-2:], 3, dilation=d, padding=d) for part, d in zip(parts, DILATIONS)]


def viewed_taps(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """`folded_taps` on a GPU, whose F.fold searches (2 d + 1)^2 positions for the 9 taps of a pixel.

    The matrix product has a multiple of 8 rows, as tensor cores need it. Padded by d on all sides, tap (i, j) of a
    pixel lies i d rows and j d columns below and right of the pixel's place: a view that includes this in its steps
    from tap to tap has all taps of a pixel at one place, and is summed at once.
    """
    taps = torch.cat([weight.permute(0, 2, 3, 1).flatten(0, 2) for weight in weights])
    products = F.conv2d(x, F.pad(taps, (0, 0, 0, -len(taps) % 8))[:, :, None, None])[:, :len(taps)]
    wide = products.to(torch.promote_types(products.dtype, torch.float32), memory_format=torch.contiguous_format)
    (batch, _, height, width), channels, results = wide.shape, len(weights[0]), []
    for part, d in zip(wide.chunk(len(weights), dim=1), DILATIONS):
        padded = F.pad(part, (d, d, d, d)).contiguous()
        row, plane = padded.shape[-1], padded[0, 0].numel()
        aligned = padded.as_strided((batch, channels, 3, 3, height, width),
                                    (9 * channels * plane, 9 * plane, 3 * plane + d * row, plane + d, row, 1))
        results.append(aligned.sum((2, 3)))
    return results


class DeepLabV2(nn.Module):
    """The paper's segmentation network.

    layers: bottlenecks in each of the four stages, (3, 4, 23, 3) for ResNet-101. width: channels of the stem, 64 for
    ResNet-101; the four stages have 1, 2, 4 and 8 times width, and each block gives 4 times as many. head_branches: how
    many of the head's four convolutions are summed, 1 to 4. Convolution weights start at N(0, 0.01).

    checkpointing, an attribute: in training keep only the input of the stem and of the bottlenecks (of every second one
    in a deep stage), and compute the rest again in the backward pass; this needs less memory and one more forward pass.
    """

    def __init__(self, num_classes: int, layers: tuple[int, ...] = (3, 4, 23, 3), width: int = 64,
                 head_branches: int = len(DILATIONS)):
        super().__init__()
        self.checkpointing = False
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(width, width, layers[0])
        self.layer2 = _stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, layers[2], dilation=2)
        self.layer4 = _stage(width * 16, width * 8, layers[3], dilation=4)
        self.layer5 = Head(width * 32, num_classes, head_branches)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, WEIGHT_STD)

    def score_map(self, x: Tensor) -> Tensor:
        """Logits float [B, C, h, w] at output stride 8; x as in `forward`."""
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        # No random state is kept, as the network draws no random numbers.
        run = functools.partial(recomputed, preserve_rng_state=False) if again else _run
        x = run(self._stem, self.bn1, x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for part in _parts(stage):
                x = run(part, part, x)
        return self.layer5(x)

    def compile_blocks(self) -> list[Bottleneck]:
        """Compile each bottleneck with torch.compile, in place, and return all of them."""
        bottlenecks = [module for module in self.modules() if isinstance(module, Bottleneck)]
        for module in bottlenecks:
            module.compile(dynamic=False)  # a variant for each size: code for all sizes is slower
        return bottlenecks

    def _stem(self, x):
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Logits float [B, C, *size], upsampled bilinearly with aligned corners.

        x: float [B, 3, H, W], BGR in 0..255 minus the mean. size: (height, width) of the result, default that of x.
        """
        return F.interpolate(self.score_map(x), size or x.shape[-2:], mode="bilinear", align_corners=True)


def _parts(stage: nn.Sequential) -> list[nn.Sequential]:
    """Split a stage of n blocks into parts of s blocks. Checkpointing keeps n / s inputs and, of one part at a time,
    about four times an input's size for each block. The sum is smallest at s = sqrt(n / 4); Chen et al., 2016, choose
    sqrt(n), for equal sizes."""
    size = max(1, round(math.sqrt(len(stage) / 4)))
    return [stage[i: i + size] for i in range(0, len(stage), size)]


def _run(call, _owner, x):
    return call(x)


def _stage(in_channels: int, channels: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A stage of bottlenecks. The first has a projection shortcut, as its channels or its stride change."""
    first = Bottleneck(in_channels, channels, stride, dilation, project=True)
    rest = [Bottleneck(channels * EXPANSION, channels, 1, dilation, project=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
