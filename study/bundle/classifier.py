"""A bundle's network as other programs use it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from study.bundle.files import Bundle
from study.bundle.preprocessing import Preprocessing
from study.data.image_files import fitted, read_picture
from study.errors import StudyFailed
from study.model.network import Deployable


class Classifier(Deployable):
    """A trained network that knows its classes and its normalisation, in evaluation mode.

    Called with float images [N, 3, H, W], RGB in [0, 1], it gives logits [N, n_classes]. H and W are best those of
    `preprocess`. Its weights take no gradient; `requires_grad_()` lets them.

    Attributes:
        preprocessing: The normalisation, and how an image gets its size.
        classes: Their names, in the order of the logits.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.network, bundle.preprocessing.mean, bundle.preprocessing.std)
        self.preprocessing: Preprocessing = bundle.preprocessing
        self.eval().requires_grad_(False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.preprocessing.classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            raise TypeError(f"Images must be floating-point numbers in [0, 1], and are {x.dtype}: divide them by 255.")
        return super().forward(x)

    def preprocess(self, image: str | Path | Image.Image | BinaryIO | np.ndarray) -> torch.Tensor:
        """One image of any size as the network takes it: float32 [3, H, W], RGB in [0, 1], on the CPU.

        Args:
            image: A file, an opened file, an image of Pillow's, or an array, uint8 [H, W, 3], RGB. Whether a file or an
                image is grey, transparent or turned by its EXIF data is seen to. (An image that was loaded before no
                longer tells its file's depth: of a PNG of 2, 4 or 16 bits with a transparent colour give the file.)

        Raises:
            UnreadableImageError: It cannot be read.
            TypeError: It is something else.
        """
        size = self.preprocessing.image_size
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            pixels = fitted(image, size)
        elif not isinstance(image, np.ndarray) and (isinstance(image, (str, Path)) or hasattr(image, "read")):
            pixels = read_picture(Path(image) if isinstance(image, str) else image, size).pixels
        else:
            what = type(image).__name__
            if isinstance(image, (np.ndarray, torch.Tensor)):
                what = f"{image.dtype} {[*image.shape]}"
            raise TypeError(
                "preprocess takes the name of a file, an opened file, an image of Pillow's, or an array that is uint8 "
                f"[H, W, 3], RGB: this is {what}."
            )
        return torch.tensor(pixels).permute(2, 0, 1).float() / 255  # [H, W, 3] -> [3, H, W]


def most_likely(model: Classifier, pixels: np.ndarray, top: int) -> list[list[tuple[str, float]]]:
    """The `top` most likely classes of each image with their probabilities, the most likely one first.

    Args:
        model: What to ask.
        pixels: uint8 [N, H, W, 3], RGB, of any N but zero.
        top: How many; all of them if there are fewer.

    Raises:
        StudyFailed: The weights are finite, and what they compute is not.
    """
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255  # [N, H, W, 3] -> [N, 3, H, W]
    with torch.inference_mode():
        probabilities, labels = model(images).softmax(1).sort(dim=1, descending=True, stable=True)
    if not bool(probabilities.isfinite().all()):
        raise StudyFailed("The network answers with NaN: its weights are damaged. Get the bundle again.")
    names = model.classes
    return [
        [(names[label], probability) for label, probability in zip(order[:top], row[:top], strict=True)]
        for order, row in zip(labels.tolist(), probabilities.tolist(), strict=True)
    ]
