"""The peer of the throughput benchmark: how a notebook trains the reference network.

A per-image Dataset, albumentations with Normalize and ToTensorV2, a DataLoader, float32, NCHW, torch's
defaults for everything else. Imports nothing of `study`, so that none of its settings help or hinder.

    python scripts/notebook_peer.py DATA --images 6400 --workers 2      prints images per second
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn
from torchvision.datasets import CIFAR10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Separable(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, channels, 1))


def reference_network() -> nn.Module:
    """The reference network written by hand, 175,696 parameters."""

    def unit(conv: nn.Module, channels: int) -> list[nn.Module]:
        return [conv, nn.BatchNorm2d(channels), nn.ReLU()]

    def conv(inputs: int, outputs: int, **options: Any) -> list[nn.Module]:
        return unit(nn.Conv2d(inputs, outputs, 3, bias=False, **options), outputs)

    return nn.Sequential(
        *conv(3, 16, padding=1), *conv(16, 16, padding=1), *conv(16, 16, padding=1), *conv(16, 16, dilation=8),
        *conv(16, 32, padding=1), *conv(32, 32, padding=1), *unit(Separable(32), 32), *conv(32, 64, dilation=4),
        *conv(64, 64, padding=1), *conv(64, 64, padding=1), *conv(64, 64, padding=1), *conv(64, 32), *conv(32, 16),
        nn.AvgPool2d(4), nn.Conv2d(16, 10, 1, bias=False), nn.Flatten(),
    )  # fmt: skip


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, data: str, n_images: int) -> None:
        self.base = CIFAR10(data, train=True)
        self.n_images = n_images
        self.transform = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.Affine(
                    translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), rotate=(-10, 10),
                    border_mode=cv2.BORDER_REFLECT_101, p=0.5,
                ),
                A.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=(8, 8), hole_width_range=(8, 8),
                    fill=tuple(round(255 * value) for value in MEAN), p=0.5,
                ),
                A.Normalize(MEAN, STD),
                ToTensorV2(),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, index: int) -> Any:
        image, label = self.base[index]
        return self.transform(image=np.array(image))["image"], label


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    images = Images(options.data, options.images)
    loader = torch.utils.data.DataLoader(
        images,
        batch_size=128,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    network = reference_network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loss_function = nn.CrossEntropyLoss()
    for _ in range(2):  # the first epoch warms up
        started, seen = time.perf_counter(), 0
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = loss_function(network(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
            seen += len(labels)
        seconds = time.perf_counter() - started
    print(seen / seconds)


if __name__ == "__main__":
    main()
