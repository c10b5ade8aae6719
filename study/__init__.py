"""The study: search, retrain, report, predict, export and describe small CIFAR-10 networks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from study.bundle.classifier import Classifier

# albumentations asks a server for its newest version on import unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait for each other spin for a moment, then sleep. Sleeping at once costs a third of the
# throughput (a training step has hundreds of such moments); spinning on takes the cores from a neighbour
# that has work for them. Read when torch's OpenMP runtime loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
# oneDNN keeps its kernels for 1,024 shapes; a study meets new ones in every trial. A network needs about 100.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def load(bundle: str | os.PathLike[str]) -> Classifier:
    """A trained network, ready to use: a `torch.nn.Module` in evaluation mode with its normalisation inside.

        model = study.load("results/best/trial-0")
        image = model.preprocess("photo.jpg")             # float32 [3, 32, 32], RGB in [0, 1]
        model.classes[model(image[None]).argmax()]        # logits [N, n_classes] of images [N, 3, 32, 32]

    Nothing of the bundle is run, whoever made it.

    Args:
        bundle: Folder written by `python -m study.retrain`.

    Raises:
        study.errors.UserError: The folder or a file is missing, damaged, or does not fit the others.
    """
    from pathlib import Path

    from study.bundle.classifier import Classifier
    from study.bundle.files import load_bundle

    return Classifier(load_bundle(Path(bundle)))
