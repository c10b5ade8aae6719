"""The data set, its split, and augmented batches of it."""

from study.data.cifar10 import MEAN, STD

__all__ = ["MEAN", "STD"]
