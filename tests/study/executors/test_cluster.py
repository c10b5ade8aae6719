"""Workers as actors of a real Ray cluster of three nodes, one of which is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from contract import ends, hear, trains_asks_and_is_used_again, work_of

from search_spaces.cost import CostModel
from study import rerank, retrain, run
from study.calibration.prices import Calibration, name_of
from study.command_line.options import ClusterOptions
from study.errors import UserError
from study.executors import worker
from study.executors.messages import Died, Ended, EpochEnded, Executor, Message, WorkerSetup
from study.executors.workplace import Workplace, workplace
from study.machine import cache
from study.machine.hardware import hardware, n_cores, resolve_device
from study.storage.database import FINISHED, open_study
from study.training.checkpoints import load_progress
from study.training.records import EpochRecord

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")
from study.executors import cluster  # noqa: E402 - which imports Ray

pytestmark = pytest.mark.slow
TINY = [
    "--train-images",
    "200",
    "--val-images",
    "100",
    "--epochs",
    "2",
    "--device",
    "cpu",
    "--checkpoint-every",
    "0.01",
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster whose head has no cores for workers, and two nodes with one each, which were measured before."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    there = {**hardware("cpu"), "n_cores": 1}
    cost = CostModel(1e-12, 1e-11, 1e-11, 1e-11, 1e-4, 1e-5, "cpu")
    cache.keep(name_of(there), Calibration("cpu", there, "float32", cost, 0.0).to_json())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def place(nodes: Any, made_cifar10: Path) -> Iterator[Workplace]:
    yield workplace(ClusterOptions(nodes.address, None, None), "auto")
    ray.shutdown()


@pytest.fixture
def executor(place: Workplace, made_cifar10: Path) -> Iterator[Executor]:
    found = place.executor(WorkerSetup(str(made_cifar10), 200, 100, "cpu", 1, 0.01))
    yield found
    found.close()


def test_a_cluster_is_a_place_like_this_machine(place: Workplace) -> None:
    assert (place.device, place.room(), place.cores(7)) == ("cpu", 2, 1)
    assert place.call(n_cores) == 1
    assert place.call(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="--device cuda needs a CUDA device"):
        place.call(resolve_device, "cuda")


def test_actors_train_ask_and_are_used_again(
    executor: Executor, place: Workplace, made_cifar10: Path, tmp_path: Path
) -> None:
    records = trains_asks_and_is_used_again(executor, tmp_path)
    told: list[EpochRecord] = []
    images = worker.images_of(WorkerSetup(str(made_cifar10), 200, 100, "cpu", 1, 1.0))
    worker.run(work_of(2, tmp_path / "here"), *images, lambda record: told.append(record) is None, 60.0)
    assert [(r.train_loss, r.val_loss) for r in told] == [(r.train_loss, r.val_loss) for r in records]


def test_a_lost_actor_leaves_its_checkpoint(executor: Any, tmp_path: Path) -> None:
    work = work_of(1, tmp_path, epochs=3, asks_after=(0, 1))
    executor.submit(work)
    hear(executor, len)
    executor.answer(1, True)
    hear(executor, len)  # two epochs are over, and it waits
    ray.kill(executor._at(1)[0].handle)
    [died] = hear(executor, ends())
    assert isinstance(died, Died)
    assert "the worker is lost" in died.reason
    progress = load_progress(work.checkpoint)
    assert progress is not None
    assert progress.epoch == 1
    executor.submit(dataclasses.replace(work, key=2, asks_after=frozenset()))
    *epochs, ended = hear(executor, ends())
    assert isinstance(ended, Ended)
    told = [message.record for message in epochs if isinstance(message, EpochEnded)]
    assert [record.epoch for record in told] == [0, 1, 2]
    assert told[0] == progress.records[0]  # told again, not trained again


def test_an_actor_that_cannot_start_is_heard_of(executor: Any, tmp_path: Path) -> None:
    executor._class = ray.remote(Broken)
    executor.submit(work_of(1, tmp_path))
    [died] = hear(executor, ends())
    assert isinstance(died, Died)
    assert (died.key, died.machine_lost) == (1, False)


class Broken:
    """Its machine does not have this file."""

    def __init__(self, *given: Any) -> None:
        pass

    def listen(self) -> list[Message]:
        return []


def test_closing_saves_what_is_trained(executor: Executor, tmp_path: Path) -> None:
    work = work_of(1, tmp_path, epochs=1000)
    executor.submit(work)
    hear(executor, len)
    executor.close()
    saved = load_progress(work.checkpoint)
    assert saved is not None
    assert saved.epoch >= 1


def test_a_study_survives_the_loss_of_a_machine(nodes: Any, made_cifar10: Path, tmp_path: Path) -> None:
    """Exactly as many finished trials as asked for, the lost machine's among them; then both are trained further."""
    out, lost = tmp_path / "study", nodes.add_node(num_cpus=1)
    where = ["--cluster", nodes.address, "--out", str(out)]
    begun = threading.Event()

    def lose() -> None:
        checkpoints = out / "checkpoints" / "trials"
        while not list(checkpoints.glob("*.pt")):
            time.sleep(0.01)
        begun.set()
        nodes.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=lose, daemon=True)
    killer.start()
    assert run.main(["--trials", "6", "--pruner", "none", *TINY, *where]) == 0
    killer.join(30)
    assert begun.is_set()
    study = open_study(f"sqlite:///{out / 'study.db'}", "dilated")
    finished_slots = [trial.user_attrs["slot"] for trial in study.trials if trial.state in FINISHED]
    assert sorted(finished_slots) == list(range(6))
    assert not [trial for trial in study.trials if not trial.state.is_finished()]

    few = ["--train-images", "200", "--val-images", "100", "--epochs", "3", "--device", "cpu"]
    assert rerank.main(["--top", "1", "--settings", "light", *few, *where]) == 0
    arguments = ["--reference", "--seeds", "2", "--train-images", "256", "--epochs", "2", "--device", "cpu"]
    assert retrain.main([*arguments, *where]) == 0
    assert json.loads((out / "reference" / "metrics.json").read_text())["seeds"] == [0, 1]
    assert len(list((out / "checkpoints").glob("*.snapshots/*.pt"))) == 2
    ended = [load_progress(file) for file in (out / "checkpoints").glob("*.pt")]
    assert [progress.epoch for progress in ended if progress is not None] == [2, 2]
    ray.shutdown()


@pytest.mark.parametrize("out", [None, "results/x", "{repository}/results/x"])
def test_the_study_must_outlive_the_job(out: str | None) -> None:
    from study.machine.paths import REPOSITORY

    given = [] if out is None else ["--out", out.format(repository=REPOSITORY)]
    with pytest.raises(UserError, match="--cluster needs an --out that outlives the job"):
        run.main(["--cluster", *given])


def test_no_cluster_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="Start a cluster with ray start --head"):
        run.main(["--cluster", "127.0.0.1:1", "--out", str(tmp_path)])


@pytest.mark.parametrize("failing", ["disk", "device"])
def test_a_training_that_cannot_begin_or_be_tidied_is_heard_of(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    if failing == "disk":
        monkeypatch.setattr(cluster.tempfile, "TemporaryDirectory", fail)
    else:
        monkeypatch.setattr(worker, "run", lambda work, *more: Ended(work.key, False, 1.0))
        monkeypatch.setattr(worker, "tidy", fail)
    actor = object.__new__(cluster._Worker)
    actor._setup, actor._images, actor._validation = WorkerSetup("", 200, 100, "cpu", 1, 1.0), None, None
    actor._said, actor._answers, actor._leave, actor._n_done = SimpleQueue(), SimpleQueue(), threading.Event(), 0
    actor.train(work_of(7, tmp_path), {}, {})
    (said,) = actor.listen()
    assert said.key == 7
    assert isinstance(said, Died if failing == "disk" else Ended)
    assert failing == "device" or "No space left" in said.reason
