"""The peer of the trials-per-hour benchmark: how a plain Optuna script searches.

In the manner of Optuna's PyTorch example: one process, a per-image Dataset with albumentations' Normalize
and ToTensorV2, a DataLoader, float32, NCHW, plain modules, Optuna's defaults on sqlite. What it trains is
read from a file, so that both sides train the same candidates; nothing is pruned, for the same reason.
Imports nothing of `study` or `search_spaces`, so that none of their settings help or hinder.

    python scripts/benchmarks/peers/optuna_peer.py DATA --candidates candidates.json --storage sqlite:///peer.db
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import optuna
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn
from torchvision.datasets import CIFAR10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

CONV = {"kind", "out_channels", "kernel", "stride", "dilation", "padded", "separable", "bias", "norm", "activation"}
AUGMENTATION = {
    "flip_p", "crop_padding", "affine_p", "shift_frac", "scale_frac", "rotate_deg", "dropout_p", "dropout_hole",
}  # fmt: skip
OPTIMISATION = {"lr", "batch_size", "momentum", "weight_decay", "label_smoothing", "warmup_frac", "optimizer"}


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + x)


def known(data: Mapping[str, Any], fields: set[str]) -> None:
    """Refuses what would otherwise be left out in silence.

    Raises:
        ValueError: `data` has a field beside `fields`.
    """
    if unknown := sorted(set(data) - fields):
        raise ValueError(f"This script can read {sorted(fields)} of a candidate: it also has {unknown}.")


def convolution(inputs: int, layer: Mapping[str, Any]) -> nn.Sequential:
    """One convolution unit of a candidate."""
    known(layer, CONV)
    outputs, kernel, dilation, bias = (layer[key] for key in ("out_channels", "kernel", "dilation", "bias"))
    padding = dilation * (kernel - 1) // 2 if layer["padded"] else 0
    separable = layer["separable"]
    modules: list[nn.Module] = [
        nn.Conv2d(
            inputs, inputs if separable else outputs, kernel, layer["stride"], padding, dilation,
            groups=inputs if separable else 1, bias=bias,
        )
    ]  # fmt: skip
    if separable:
        modules.append(nn.Conv2d(inputs, outputs, 1, bias=bias))
    if layer["norm"]:
        modules.append(nn.BatchNorm2d(outputs))
    if layer["activation"]:
        modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def define_model(architecture: Mapping[str, Any]) -> nn.Sequential:
    """The network of a candidate: images [N, 3, 32, 32] -> logits [N, 10].

    Raises:
        ValueError: It uses something that this script cannot build.
    """
    known(architecture, {"version", "in_channels", "image_size", "n_classes", "layers"})
    channels = architecture["in_channels"]
    modules: list[nn.Module] = []
    for layer in architecture["layers"]:
        if layer["kind"] == "residual":
            known(layer, {"kind", "body"})
            modules.append(Residual(nn.Sequential(*(convolution(channels, unit) for unit in layer["body"]))))
        else:
            modules.append(convolution(channels, layer))
            channels = layer["out_channels"]
    classifier = nn.Conv2d(channels, architecture["n_classes"], 1, bias=False)
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), classifier, nn.Flatten())


def training_transform(a: Mapping[str, Any]) -> A.Compose:
    known(a, AUGMENTATION)
    transforms: list[Any] = []
    if a["affine_p"]:
        shift, scale, angle = a["shift_frac"], a["scale_frac"], a["rotate_deg"]
        transforms.append(
            A.Affine(
                translate_percent=(-shift, shift), scale=(1 - scale, 1 + scale), rotate=(-angle, angle),
                border_mode=cv2.BORDER_REFLECT_101, p=a["affine_p"],
            )
        )  # fmt: skip
    if a["dropout_p"]:
        hole, fill = (a["dropout_hole"], a["dropout_hole"]), tuple(round(255 * value) for value in MEAN)
        transforms.append(A.CoarseDropout((1, 1), hole, hole, fill, p=a["dropout_p"]))
    if a["crop_padding"]:
        transforms += [A.Pad(a["crop_padding"], border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(32, 32)]
    if a["flip_p"]:
        transforms.append(A.HorizontalFlip(p=a["flip_p"]))
    return A.Compose([*transforms, A.Normalize(MEAN, STD), ToTensorV2()])


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """`rows` of the training images, each decoded, augmented and normalised when it is asked for."""

    def __init__(self, base: CIFAR10, rows: range, transform: A.Compose) -> None:
        self.base, self.rows, self.transform = base, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        image, label = self.base[self.rows[index]]
        return self.transform(image=np.array(image))["image"], label


def loader(images: Images, batch_size: int, options: argparse.Namespace, shuffle: bool) -> Any:
    """Batches of `images`; shuffled ones are trained on, without an incomplete last one."""
    pin = options.device != "cpu"
    return torch.utils.data.DataLoader(
        images, batch_size, shuffle, num_workers=options.workers, drop_last=shuffle, pin_memory=pin
    )


def objective(trial: optuna.Trial, options: argparse.Namespace, candidates: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy of the candidate that the trial names."""
    candidate, device = candidates[trial.suggest_int("index", 0, len(candidates) - 1)], torch.device(options.device)
    known(candidate, {"architecture", "augmentation", "optimisation"})
    o = candidate["optimisation"]
    known(o, OPTIMISATION)
    model = define_model(candidate["architecture"]).to(device)
    trial.set_user_attr("params", sum(parameter.numel() for parameter in model.parameters()))
    base, n_train = CIFAR10(options.data, train=True), options.train_images
    augmented = Images(base, range(n_train), training_transform(candidate["augmentation"]))
    plain = Images(
        base, range(n_train, n_train + options.val_images), A.Compose([A.Normalize(MEAN, STD), ToTensorV2()])
    )
    batch_size = min(o["batch_size"], n_train)
    training, validation = loader(augmented, batch_size, options, True), loader(plain, batch_size, options, False)
    optimizer: torch.optim.Optimizer
    if o.get("optimizer", "sgd") == "sgd":
        peak = o["lr"] * o["batch_size"] / 128
        how = {"momentum": o["momentum"], "nesterov": o["momentum"] > 0, "weight_decay": o["weight_decay"]}
        optimizer = torch.optim.SGD(model.parameters(), peak, **how)
    else:  # no such script has Muon; AdamW takes less time, which is in the peer's favour
        peak = o["lr"] * (o["batch_size"] / 128) ** 0.5
        optimizer = torch.optim.AdamW(model.parameters(), peak, weight_decay=o["weight_decay"])
    shape = {"total_steps": options.epochs * len(training), "pct_start": o["warmup_frac"], "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, **shape)
    loss_function = nn.CrossEntropyLoss(label_smoothing=o["label_smoothing"])
    accuracy = 0.0
    for epoch in range(options.epochs):
        model.train()
        for images, labels in training:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss_function(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, validation, device)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def evaluate(model: nn.Module, validation: Any, device: torch.device) -> float:
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in validation:
            predicted = model(images.to(device)).argmax(1)
            correct += (predicted == labels.to(device)).sum().item()
    return correct / len(validation.dataset)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every peer."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("data", help="folder with cifar-10-batches-py")
    found.add_argument("--workers", type=int, default=2)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return found


def main() -> None:
    found = parser(__doc__)
    found.add_argument("--candidates", type=Path, required=True, help="JSON list of what study.run stores per trial")
    found.add_argument("--storage", required=True, metavar="URL")
    found.add_argument("--epochs", type=int, default=2)
    found.add_argument("--train-images", type=int, default=10_000)
    found.add_argument("--val-images", type=int, default=2_000)
    options = found.parse_args()
    candidates = json.loads(options.candidates.read_text())
    pruner = optuna.pruners.NopPruner()  # the default one could prune the sixth trial
    study = optuna.create_study(study_name="peer", storage=options.storage, direction="maximize", pruner=pruner)
    for index in range(len(candidates)):
        study.enqueue_trial({"index": index})
    study.optimize(lambda trial: objective(trial, options, candidates), n_trials=len(candidates))


if __name__ == "__main__":
    main()
