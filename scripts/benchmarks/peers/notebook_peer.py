"""The peer of the throughput benchmark: how a notebook trains a network, the reference one.

A per-image Dataset, albumentations with Normalize and ToTensorV2, a DataLoader, float32, NCHW, torch's defaults for
everything else. Imports nothing of `study`, so that none of its settings help or hinder.

    python scripts/benchmarks/peers/notebook_peer.py DATA --candidate candidate.json --images 6400

prints images per second.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torchvision.datasets import CIFAR10

from benchmarks.peers.optuna_peer import Images, define_model, loader, parser, training_transform


def main() -> None:
    found = parser(__doc__)
    found.add_argument("--candidate", type=Path, required=True, help="JSON of network and augmentation")
    found.add_argument("--images", type=int, default=6400)
    options = found.parse_args()
    candidate, device = json.loads(options.candidate.read_text()), torch.device(options.device)
    images = Images(
        CIFAR10(options.data, train=True), range(options.images), training_transform(candidate["augmentation"])
    )
    batches = loader(images, 128, options, shuffle=True)
    network = define_model(candidate["architecture"]).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loss_function = nn.CrossEntropyLoss()
    seconds = 0.0
    for _ in range(2):  # the first epoch warms up
        started = time.perf_counter()
        for batch, labels in batches:
            optimizer.zero_grad()
            loss = loss_function(network(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
        seconds = time.perf_counter() - started
    print(len(batches) * 128 / seconds)


if __name__ == "__main__":
    main()
