# SPDX-License-Identifier: Apache-2.0
"""Convolutions of every geometry, transposed ones, pooling and resampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .base import N, Net, TorchCase, par


def headed(*body: nn.Module, channels: int, outputs: int = 3) -> nn.Module:
    """Body, mean over space, linear head."""
    return Net(
        lambda m, x: m.head(torch.tanh(m.body(x)).flatten(2).mean(-1)),
        body=nn.Sequential(*body),
        head=nn.Linear(channels, outputs),
    )


def conv2d(*args, **kwargs):
    return lambda: headed(nn.Conv2d(*args, **kwargs), channels=args[1])


def two_scales(m, x):
    small = F.conv2d(F.avg_pool2d(x, 2), m.kernel, padding=1)
    return torch.tanh(F.conv2d(x, m.kernel, padding=1)).mean((2, 3)) + small.amax((2, 3))


def standardized(m, x):
    w = m.kernel
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, w, m.bias).flatten(1)


CASES = [
    TorchCase("conv1d", lambda: headed(nn.Conv1d(2, 4, 3, padding=1), channels=4), (2, 7)),
    TorchCase("conv2d", conv2d(2, 4, 3), (2, 5, 5)),
    TorchCase("conv2d-no-bias", conv2d(2, 4, 3, bias=False), (2, 5, 5)),
    TorchCase("conv2d-square", conv2d(N, N, 1), (N, N, N)),
    TorchCase("conv2d-one-by-one", conv2d(3, 4, 1), (3, 4, 3)),
    TorchCase(
        "conv3d",
        lambda: headed(nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 0)), channels=3),
        (2, 3, 4, 3),
    ),
    TorchCase(
        "conv1d-stride-dilation",
        lambda: headed(nn.Conv1d(2, 4, 3, stride=2, dilation=2, padding=3), channels=4),
        (2, 11),
    ),
    TorchCase(
        "conv2d-stride-dilation",
        conv2d(2, 4, (3, 2), stride=(2, 3), dilation=(1, 2), padding=(2, 1)),
        (2, 7, 8),
    ),
    TorchCase(
        "conv2d-leftover", conv2d(2, 3, 3, stride=3), (2, 8, 7), notes="the last rows are not read"
    ),
    TorchCase("conv2d-groups", conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 4)),
    TorchCase("conv2d-depthwise", conv2d(4, 8, 3, groups=4), (4, 4, 5)),
    TorchCase("conv1d-groups", lambda: headed(nn.Conv1d(4, 6, 3, groups=2), channels=6), (4, 6)),
    TorchCase("conv2d-same", conv2d(2, 4, 3, padding="same"), (2, 5, 4)),
    TorchCase(
        "conv2d-same-even",
        conv2d(2, 4, (2, 4), padding="same"),
        (2, 5, 6),
        notes="more padding on one side",
    ),
    TorchCase("conv2d-same-dilated", conv2d(2, 4, 3, padding="same", dilation=2), (2, 6, 6)),
    TorchCase("conv2d-valid", conv2d(2, 4, 3, padding="valid"), (2, 5, 5)),
    TorchCase("conv2d-circular", conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
    TorchCase("conv2d-reflect", conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 5, 4)),
    TorchCase("conv2d-replicate", conv2d(2, 4, 3, padding=2, padding_mode="replicate"), (2, 5, 4)),
    TorchCase(
        "conv1d-same-circular",
        lambda: headed(nn.Conv1d(2, 4, 4, padding="same", padding_mode="circular"), channels=4),
        (2, 7),
    ),
    TorchCase(
        "conv-transpose1d",
        lambda: headed(nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), channels=4),
        (3, 5),
    ),
    TorchCase(
        "conv-transpose2d", lambda: headed(nn.ConvTranspose2d(3, 4, 3), channels=4), (3, 3, 4)
    ),
    TorchCase(
        "conv-transpose2d-everything",
        lambda: headed(
            nn.ConvTranspose2d(
                4, 6, (3, 2), stride=2, padding=1, output_padding=1, groups=2, dilation=(1, 2)
            ),
            channels=6,
        ),
        (4, 3, 4),
    ),
    TorchCase(
        "conv-transpose3d",
        lambda: headed(nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), channels=3),
        (2, 2, 2, 3),
    ),
    TorchCase(
        "cnn",
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (1, 6, 6),
    ),
    TorchCase(
        "fully-convolutional",
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2)),
        (2, 4, 4),
        notes="outputs of rank 4",
    ),
    TorchCase(
        "global-pool-head",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        ),
        (2, 5, 5),
        notes="separable cotangents",
    ),
    TorchCase(
        "max-pool-head",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        ),
        (2, 5, 5),
    ),
    TorchCase(
        "upsampling",
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3),
            nn.Upsample(scale_factor=2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 3, 3),
    ),
    TorchCase(
        "pixel-shuffle",
        lambda: headed(nn.Conv2d(2, 8, 2), nn.PixelShuffle(2), nn.Conv2d(2, 3, 2), channels=3),
        (2, 3, 3),
    ),
    TorchCase(
        "residual-block",
        lambda: Net(
            lambda m, x: m.head(
                torch.relu(m.skip(x) + m.second(torch.relu(m.first(x)))).mean((2, 3))
            ),
            first=nn.Conv2d(2, 4, 3, stride=2, padding=1),
            second=nn.Conv2d(4, 4, 3, padding=1),
            skip=nn.Conv2d(2, 4, 1, stride=2),
            head=nn.Linear(4, 3),
        ),
        (2, 5, 5),
    ),
    TorchCase(
        "squeeze-and-excitation",
        lambda: Net(
            lambda m, x: _squeezed(m, torch.relu(m.conv(x))),
            conv=nn.Conv2d(2, 4, 2),
            down=nn.Linear(4, 2),
            up=nn.Linear(2, 4),
            head=nn.Linear(4, 2),
        ),
        (2, 4, 4),
    ),
    TorchCase("kernel-across-scales", lambda: Net(two_scales, kernel=par(3, 2, 3, 3)), (2, 6, 6)),
    TorchCase(
        "conv-used-twice",
        lambda: Net(
            lambda m, x: m.conv(torch.tanh(m.conv(x))).mean((2, 3)),
            conv=nn.Conv2d(3, 3, 3, padding=1),
        ),
        (3, 4, 4),
    ),
    TorchCase(
        "weight-standardized-conv",
        lambda: Net(standardized, kernel=par(3, 2, 2, 2), bias=par(3)),
        (2, 3, 3),
    ),
    TorchCase(
        "unfold-and-matmul",
        lambda: Net(
            lambda m, x: torch.tanh(m.kernel @ F.unfold(x, 2, stride=2) + m.bias[:, None]).sum(-1),
            kernel=par(3, 8),
            bias=par(3),
        ),
        (2, 4, 4),
    ),
    TorchCase(
        "frames-folded-into-the-batch",
        lambda: Net(
            lambda m, x: m.conv(x.flatten(0, 1)).unflatten(0, (-1, 3)).tanh().mean((1, 3, 4)),
            conv=nn.Conv2d(2, 3, 2),
        ),
        (3, 2, 3, 3),
        notes="rows (n, frame)",
    ),
    TorchCase(
        "channels-last",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 2, 4, 4).to(memory_format=torch.channels_last),
    ),
    TorchCase(
        "conv2d-no-padding-one-output",
        lambda: nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(0)),
        (2, 3, 3),
        notes="outputs (N,)",
    ),
]


def _squeezed(m, y):
    scale = torch.sigmoid(m.up(torch.relu(m.down(y.mean((2, 3))))))
    return m.head((y * scale[:, :, None, None]).mean((2, 3)))
