"""What a data set is to everything that trains, tests or draws."""

from __future__ import annotations

from dataclasses import dataclass

MOST_VALIDATION = 5_000
Colours = tuple[float, float, float]
"""Of red, green and blue."""


@dataclass(frozen=True)
class DataSet:
    """Labelled images of 32x32 pixels: some to search and train on, some to test on.

    Attributes:
        name: For people.
        classes: Their names, in the order of the labels.
        mean, std: Of the training images, per channel, in [0, 1].
        n_train, n_test: Images.
        digest: Beginning of the SHA-256 of the training images, their labels and the classes; empty for CIFAR-10,
            whose files are checked.
        mirrored: Whether a mirrored image is still one of its class: not where classes are characters.
        source: What `study.data.opening` finds it by.
    """

    name: str
    classes: tuple[str, ...]
    mean: Colours
    std: Colours
    n_train: int
    n_test: int
    digest: str = ""
    mirrored: bool = True
    source: str = ""

    @property
    def n_validation(self) -> int:
        """Training images that a search validates on: a tenth, but no more than are enough, and one of each class."""
        return min(MOST_VALIDATION, max(len(self.classes), self.n_train // 10))

    @property
    def n_search(self) -> int:
        """Training images that a search trains on, at most."""
        return self.n_train - self.n_validation

    @property
    def fingerprint(self) -> str:
        """What tells it from others, in a line."""
        counts = f"{len(self.classes)} classes, {self.n_train:,} + {self.n_test:,} images"
        return f"{self.name}: {counts}, {self.digest}" if self.digest else self.name
