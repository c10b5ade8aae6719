"""Testing finished seeds and shipped bundles. Test images are loaded here and nowhere else."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from study.bundle.files import load_bundle
from study.bundle.metrics import LATENCY_BATCHES
from study.command_line.wording import percent, printable
from study.data.cifar10 import Images
from study.data.dataset import Colours
from study.data.folders import digest_of
from study.data.opening import load_test, open_data_of
from study.errors import UserError, first_line
from study.machine.files import DamagedFileError, read_arrays, replaced, unwritten, what_is
from study.machine.hardware import hardware, resolve_device, use_no_more_threads, versions
from study.machine.timing import timed
from study.retraining.seeds import Seed
from study.training.checkpoints import finished

SAME_HARDWARE, OTHER_HARDWARE = 0.0, 0.0005
"""How far a bundle's accuracy may be from the recorded one, the first by the same versions of torch and the rest."""
_LATENCY_S = 0.5
"""For each of `LATENCY_BATCHES`."""


def evaluate_bundle(folder: Path, data: str | None, device: str) -> int:
    """Tests a bundle again. Returns 0 if it gives the recorded accuracy, 1 otherwise."""
    from study.training.evaluation import accuracy, evaluate

    bundle = load_bundle(folder)
    recorded, of = bundle.metrics.get("test_accuracy_shipped"), bundle.preprocessing
    if recorded is None:
        raise UserError(f"The metrics.json of {str(folder)!r} records no test_accuracy_shipped to compare with.")
    device = resolve_device(device)
    test = load_test(open_data_of(of.classes, of.image_size, data).source)
    other = bundle.metrics.get("test_digest") not in (None, digest_of(test.pixels, test.labels, test.of.classes))
    # Normalised as the bundle says: training images that came since do not change what the network takes.
    mean, std = (cast(Colours, each) for each in (of.mean, of.std))
    test = dataclasses.replace(test, of=dataclasses.replace(test.of, mean=mean, std=std))
    use_no_more_threads()
    _, logits = evaluate(bundle.network.to(device), test, device)
    found = accuracy(logits, test.labels)
    same = (hardware(device), versions()) == tuple(bundle.metrics.get(name) for name in ("hardware", "versions"))
    tolerance = SAME_HARDWARE if same else OTHER_HARDWARE
    agrees = abs(found - recorded) <= tolerance + 1e-12
    print(f"Test accuracy {percent(found, 2)} on {len(test):,} images; recorded {percent(recorded, 2)}.")
    if other:
        print(
            "These are other images than it was tested on. Some may be among those that it was trained on: a folder "
            "without test/ is split anew when its files change."
        )
    print(f"{'The same' if agrees else 'NOT the same'} (allowed difference {tolerance:g}).")
    return 0 if agrees else 1


@dataclass(frozen=True)
class Tested:
    """A finished seed on the test images."""

    network: Any
    loss: float
    accuracy: float
    logits: np.ndarray
    curve: list[dict[str, Any]]
    wall_s: float
    compiled: bool


def test_seed(seed: Seed, test: Images) -> Tested:
    """Tests a finished seed; a repeated call reads the stored logits instead of testing again."""
    from study.model.network import build, use_native_depthwise
    from study.training.evaluation import accuracy, evaluate

    config, progress = seed.config, finished(seed.file, seed.candidate, seed.config)
    device = _tested_on(seed)
    network = use_native_depthwise(build(seed.candidate.architecture), config.native_depthwise)
    states = {**progress.snapshots, config.epochs - 1: progress.ema}  # the last snapshot is the final state
    # Of the user's folder test images may have been put right meanwhile.
    epochs, digest = sorted(states), digest_of(test.pixels, test.labels, test.of.classes)
    stored = _stored(seed.tested, epochs, digest, len(test), network.classifier.out_channels)
    if stored is None:
        found = []
        for epoch in epochs:
            network.load_state_dict(states[epoch])
            loss, logits = evaluate(network.to(device).eval(), test, device)
            found.append((loss, accuracy(logits, test.labels)))
        losses, accuracies = np.array(found).T
        stored = losses, accuracies, logits.astype(np.float32)
        arrays = {"losses": losses, "accuracies": accuracies, "logits": stored[2]}
        try:
            with replaced(seed.tested, lasting=True) as temporary, temporary.open("wb") as stream:
                np.savez(stream, epochs=np.array(epochs), images=np.array(digest), **arrays)
        except OSError as error:
            raise unwritten(f"What the test gave, {str(seed.tested)!r},", error, "Allow writing there.") from error
    curve = [{**dataclasses.asdict(record), "test_loss": None, "test_accuracy": None} for record in progress.records]
    for epoch, loss, right in zip(epochs, *stored[:2], strict=True):
        curve[epoch] |= {"test_loss": float(loss), "test_accuracy": float(right)}
    network.load_state_dict(progress.ema)
    return Tested(
        network=network.cpu().eval(),
        loss=curve[-1]["test_loss"],
        accuracy=curve[-1]["test_accuracy"],
        logits=stored[2],
        curve=curve,
        wall_s=sum(record.wall_s for record in progress.records),
        compiled=bool(progress.compiled),
    )


def _tested_on(seed: Seed) -> str:
    return "cpu" if seed.config.device == "cpu" else resolve_device("auto")  # a cluster's GPUs are elsewhere


def latencies(network: Any, seed: Seed) -> dict[str, dict[str, float]]:
    """Milliseconds that `network`, of `seed`, takes for one batch in float32: the median of repeated runs.

    Returns:
        By device (this machine's CPU, and the GPU that a seed of a GPU is tested on), then by images of the batch.
    """
    import torch

    from study.model.network import folded, use_native_depthwise

    found: dict[str, dict[str, float]] = {}
    side = seed.candidate.architecture.image_size
    for where in dict.fromkeys(("cpu", _tested_on(seed))):
        model = use_native_depthwise(folded(network).to(where), frozenset())  # as whoever loads the bundle has it
        for n in LATENCY_BATCHES:
            images = torch.rand(n, 3, side, side, device=where).contiguous(memory_format=torch.channels_last)

            def run(model: Any = model, images: Any = images, where: str = where) -> None:
                model(images)
                if where != "cpu":
                    torch.cuda.synchronize()

            with torch.inference_mode():
                seconds = timed(run, _LATENCY_S)
            found.setdefault(where, {})[str(n)] = round(1000 * statistics.median(seconds), 4)
    return found


def _stored(
    file: Path, epochs: list[int], digest: str, n_images: int, n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Losses [E], accuracies [E] and the last epoch's logits [N, n_classes] that an earlier call stored; None if none
    did, or they cannot be read."""
    if what_is(file) == "does not exist":
        return None
    try:
        saved = read_arrays(file)
        losses, accuracies, logits = saved["losses"], saved["accuracies"], saved["logits"]
        shapes = [losses.shape, accuracies.shape, logits.shape]
        expected = [(len(epochs),), (len(epochs),), (n_images, n_classes)]
        if saved["epochs"].tolist() != epochs or shapes != expected or logits.dtype != np.float32:
            raise ValueError("it is of another test")
        if str(saved["images"]) != digest:
            raise ValueError("it is of other test images")
        return losses, accuracies, logits
    except (DamagedFileError, KeyError, ValueError) as error:
        print(f"{printable(file.name)} cannot be read ({first_line(error)}): this seed is tested again", flush=True)
        return None
