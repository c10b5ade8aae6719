"""Everything on a GPU, in one command: smoke test, study, retrain of the winner, benchmark, records.

    python scripts/gpu_study.py run                       all of it at full length; stopped, the same command goes on
    python scripts/gpu_study.py run --budget-s 900        the same within a quarter of an hour
    python scripts/gpu_study.py run --dry-run             at a tiny size, on the CPU

With a budget, the smoke test (scripts/gpu/smoke.py) says how fast the GPU trains, and the lengths of trials and
retrain follow from that; the study has a little over a quarter of the time, the retrain what is left, in one seed
until that has its full length. What it leaves lies in one folder: the study (runs/best), what is published
(published), a log for each step, state.json. It may be called any number of times, each with a budget of its own.

For a machine that has torch but no network:

    python scripts/gpu_study.py prepare PARTS             here: data and packages, in folders PARTS/1, PARTS/2, ...
    python scripts/gpu_study.py run --parts PARTS/1 ...   there, as they arrive; with --pack-mib 15 --pack-to OUT the
                                                          folder comes back in pieces, from which another call goes on

This file and scripts/gpu/packing.py need nothing but numpy and Pillow; the steps run in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu import packing
from study.command_line.parser import EXIT_FAILED, EXIT_INTERRUPTED, Parser, run_command
from study.errors import UserError
from study.machine.files import write_atomically
from study.machine.paths import REPOSITORY, RESULTS, RUNS

N_TRIALS = 50
N_TRAINING = 50_000
MOST_EPOCHS, MOST_SEEDS = 300, 5
"""Of the retrain."""
STUDY_SHARE, LEAST_STUDY_S = 0.28, 60.0
SMOKE_S, THROUGHPUT_S, PUBLISH_S = 90.0, 60.0, 25.0
STUDY_FIXED_S = 40.0
"""Of a study beside its trials: imports, how many trials at once, the ends of the last ones, the report."""
RETRAIN_FIXED_S = 90.0
"""Of a retrain beside its steps: imports, capturing, compiling, the test curve, the bundle."""
PACK_S = 15.0
GRACE_S = 20.0
"""A step that is cut off has so long to save what it has."""
LEAST_S = 8.0
"""No step is begun with less."""

FIDELITIES = ((4, 10_000), (4, 15_000), (6, 15_000), (8, 15_000), (8, 22_500), (8, 45_000), (16, 45_000))
"""(epochs, images) of a trial, ever longer."""
EPOCHS_RUN = 0.75
"""Share of all epochs that halving runs."""
TRIAL_S = 1.0
"""What a trial costs beside its epochs, with several at once."""
CERTAIN = 0.8
"""Share of the measured rate that is counted on."""
ASSUMED_RATE = 12_000.0
"""Images/s, where the smoke test could measure none."""

THERE = (
    "torch torchvision numpy scipy matplotlib pillow tqdm joblib opencv-python-headless pyyaml packaging narwhals "
    "jinja2 markupsafe setuptools"
)
"""Packages that a machine with torch has, as a rule."""


# Plans


def trial_fidelity(rate: float, seconds: float, n_trials: int = N_TRIALS) -> tuple[int, int]:
    """(epochs, images) of a trial, so that `n_trials` end within `seconds` at `rate` images/s, or the shortest."""
    images = CERTAIN * rate * max(0.0, seconds - TRIAL_S * n_trials) / (n_trials * EPOCHS_RUN)
    return [f for f in FIDELITIES if f[0] * f[1] <= images or f == FIDELITIES[0]][-1]


def retrain_length(rate: float, seconds: float) -> tuple[int, int]:
    """(epochs, seeds) that fit `seconds` at `rate` images/s: one seed until it has its full length."""
    epochs = int(CERTAIN * rate * seconds / N_TRAINING)
    seeds = min(MOST_SEEDS, max(1, epochs // MOST_EPOCHS))
    return max(1, min(MOST_EPOCHS, epochs // seeds)), seeds


def measured_rate(smoke: dict[str, Any]) -> float:
    """Images/s at which the default of `best`, or the winner, trains, loaders and all, by a smoke test."""
    rates = [smoke.get(name, {}).get("images_s") for name in ("rate best", "loaded best")]
    return min((rate for rate in rates if rate), default=ASSUMED_RATE)


# Steps


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between a real run and a dry one."""

    device: str = "cuda"
    trials: int = N_TRIALS
    study: tuple[str, ...] = ()
    rerank: tuple[str, ...] = ()
    retrain: tuple[str, ...] = ()
    throughput: tuple[str, ...] = ("--images", "20480", "--samples", "2")


TINY = Size(
    device="cpu",
    trials=3,
    study=("--train-images", "300", "--val-images", "200", "--epochs", "2", "--jobs", "1"),
    rerank=("--top", "2", "--train-images", "300", "--val-images", "200", "--epochs", "1", "--jobs", "1"),
    retrain=("--train-images", "300", "--epochs", "1", "--seeds", "1"),
    throughput=("--images", "256", "--samples", "1"),
)


@dataclasses.dataclass
class Call:
    """One call of `run`: where it works, when it ends, and what was done before.

    Attributes:
        folder: Of everything that is kept.
        results: Where records are published.
        size: Real or tiny.
        ends: On the monotonic clock; None without a budget.
        total_ends: The same for all calls together.
        state: What `state.json` holds: "done" and "spent" (step -> seconds), "begun" (step -> command), "plan" (what
            was decided once; empty without a budget) and "spent_s" of all calls.
    """

    folder: Path
    results: Path
    size: Size
    ends: float | None
    total_ends: float | None
    state: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.state["plan"]
        return plan

    def left(self) -> float:
        """Seconds of this call."""
        return math.inf if self.ends is None else self.ends - time.monotonic()

    def total_left(self) -> float:
        """Seconds of this call and those to come."""
        return math.inf if self.total_ends is None else self.total_ends - time.monotonic()

    def study_left(self) -> float:
        """Seconds of the study's share of all that is left when it begins."""
        if self.ends is None:
            return math.inf
        if "study_s" not in self.plan:
            total = self.total_left()
            share = THROUGHPUT_S if total >= 10 * THROUGHPUT_S else 0.0
            self.plan.update(study_s=max(LEAST_STUDY_S, STUDY_SHARE * total), throughput_s=share)
        return float(self.plan["study_s"]) - float(self.state["spent"].get("study", 0.0))

    def measured(self, name: str) -> dict[str, Any]:
        """What a smoke test wrote."""
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
            return found
        except (OSError, ValueError):
            return {}

    def study(self, name: str = "best") -> list[str]:
        """The options that name a study."""
        return ["--study-name", name, "--out", str(self.folder / "runs" / name)]

    def save(self) -> None:
        write_atomically(self.folder / "state.json", json.dumps(self.state, indent=1) + "\n")


Command = Callable[[Call], list[str]]
"""What Python is called with."""


def smoke(call: Call) -> list[str]:
    budget = min(SMOKE_S, call.left() - LEAST_S)
    return [
        *("scripts/gpu/smoke.py", str(call.folder / "smoke.json")),
        *("--device", call.size.device, "--budget-s", f"{budget:.0f}"),
    ]


def study(call: Call) -> list[str]:
    words = ["-m", "study.run", "--space", "best", "--trials", str(call.size.trials), "--device", call.size.device]
    if call.ends is not None:
        seconds = call.study_left() - STUDY_FIXED_S
        if "trial" not in call.plan:  # a study keeps the fidelity that it was begun with
            call.plan["trial"] = trial_fidelity(measured_rate(call.measured("smoke")), seconds)
        epochs, images = call.plan["trial"]
        # No trial is begun that would be cut off.
        words += ["--epochs", str(epochs), "--train-images", str(images), "--timeout", f"{max(1.0, seconds):.0f}"]
    return [*words, *call.study(), *call.size.study]


def rerank(call: Call) -> list[str]:
    return ["-m", "study.rerank", "--device", call.size.device, *call.study(), *call.size.rerank]


def pace(call: Call) -> list[str]:
    """How fast the study's winner trains: it may be slower than the space's default."""
    return [
        *("scripts/gpu/smoke.py", str(call.folder / "pace.json"), "--device", call.size.device),
        *("--winner-of", str(call.folder / "runs" / "best"), "--budget-s", f"{SMOKE_S:.0f}"),
    ]


def retrain(call: Call, *words: str, name: str = "retrain", study: str = "best") -> list[str]:
    """With a budget, a length that fits what is left of it, decided once: another length is another training."""
    length: list[str] = []
    if call.ends is not None:
        if name not in call.plan:
            kept = (
                RETRAIN_FIXED_S
                + PUBLISH_S
                + GRACE_S
                + (call.plan.get("throughput_s", 0.0) if name == "retrain" else 0.0)
            )
            measured = {**call.measured("smoke"), **call.measured("pace")}
            call.plan[name] = retrain_length(measured_rate(measured), call.total_left() - kept)
        epochs, seeds = call.plan[name]
        length = ["--epochs", str(epochs), "--seeds", str(seeds), "--jobs", str(seeds)]
    command = ["-m", "study.retrain", "--device", call.size.device]
    return [*command, *words, *length, *call.study(study), *call.size.retrain]


def publish(call: Call, study: str = "best") -> list[str]:
    return ["scripts/publish.py", *call.study(study), "--results", str(call.results)]


def bench(call: Call, name: str, *words: str) -> list[str]:
    command = ["scripts/benchmark.py", name, "--device", call.size.device]
    return [*command, "--out", str(call.results / "benchmarks"), *words]


def throughput(call: Call) -> list[str]:
    """The peer with as many loaders as there are cores."""
    return bench(call, "throughput", "--workers", str(len(os.sched_getaffinity(0))), *call.size.throughput)


def samplers(call: Call) -> list[str]:
    where = ["--runs", str(call.folder / "runs" / "samplers"), "--results", str(call.results / "samplers")]
    words = ["--space", "best", "--seeds", "3", "--trials", "30", "--fuller-epochs", "80"]
    return ["scripts/samplers.py", *words, *where]


def small_study(call: Call) -> list[str]:
    words = ["--space", "best", "--max-params", "100000", "--trials", str(call.size.trials)]
    return ["-m", "study.run", *words, "--device", call.size.device, *call.study("best-100k"), *call.size.study]


@dataclasses.dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Names its log and its entries in the state.
        command: What Python is called with.
        needs: A step that must have been run before, to its end or until it was cut off.
        most_s: It is cut off after so long where there is a budget.
        kept_s: Seconds of the call that it leaves for what comes after it.
        always: Whether it runs again whenever anything else has.
    """

    name: str
    command: Command
    needs: str | None = None
    most_s: float = math.inf
    kept_s: float = PUBLISH_S
    always: bool = False


SMOKE = Step("smoke", smoke, most_s=SMOKE_S + GRACE_S, kept_s=0.0)
STUDY = Step("study", study)
RERANK = Step("rerank", rerank, "study")
PACE = Step("pace", pace, "study", most_s=80.0)
RETRAIN = Step("retrain", retrain, "study")
THROUGHPUT = Step("throughput", throughput, most_s=1.5 * THROUGHPUT_S)
PUBLISH = Step("publish", publish, "study", most_s=2 * PUBLISH_S, kept_s=0.0, always=True)
MORE = {
    step.name: step
    for step in (
        Step("tests", lambda call: ["-m", "pytest", "-q", "-m", "gpu", "tests/study/training/test_gpu.py"]),
        Step("same-as-cpu", lambda call: ["scripts/same_as_cpu.py", "--device", call.size.device]),
        Step("reference", lambda call: retrain(call, "--reference", name="reference")),
        Step("distilled", lambda call: retrain(call, "--teacher", name="distilled"), "retrain"),
        Step("yardstick", lambda call: retrain(call, "--yardstick", name="yardstick"), "retrain"),
        Step("study-100k", small_study),
        Step("retrain-100k", lambda call: retrain(call, name="retrain-100k", study="best-100k"), "study-100k"),
        Step("publish-100k", lambda call: publish(call, "best-100k"), "study-100k", always=True),
        Step("epoch", lambda call: bench(call, "epoch", "--images", "45000")),
        Step("busy", lambda call: bench(call, "busy")),
        Step("busy-augmented", lambda call: bench(call, "busy", "--augment", "--images", "38400")),
        Step("trials-per-hour", lambda call: bench(call, "trials-per-hour")),
        Step("slots", lambda call: bench(call, "slots")),
        Step("memory", lambda call: bench(call, "memory")),
        Step("startup", lambda call: bench(call, "startup")),
        Step("samplers", samplers),
    )
}
"""What is worth its time once the rest is done: `--also`."""


def steps_of(budgeted: bool, also: Sequence[str]) -> list[Step]:
    """In order. With a budget, candidates are not trained again; how fast the winner trains is measured instead."""
    more = [MORE[name] for name in (MORE if "all" in also else also)]
    return [SMOKE, STUDY, PACE if budgeted else RERANK, RETRAIN, THROUGHPUT, *more, PUBLISH]


def run_steps(call: Call, steps: Sequence[Step], environment: dict[str, str]) -> int:
    """Runs what is not done yet. Returns an exit code: 0 when everything is done."""
    code, worked = 0, False
    done, spent, begun = (call.state[name] for name in ("done", "spent", "begun"))
    for step in steps:
        if step.name in done and not (step.always and worked):
            print(f"== {step.name}: done before, in {done[step.name]:.0f} s", flush=True)
            continue
        if step.needs is not None and step.needs not in begun:
            print(f"== {step.name}: waits for {step.needs}", flush=True)
            code = EXIT_FAILED
            continue
        limit = math.inf
        if call.ends is not None:
            limit = min(step.most_s, call.left() - step.kept_s)
        if step is STUDY and call.study_left() < LEAST_S:  # what it found so far is what is retrained
            continue
        if step is STUDY:
            limit = min(limit, call.study_left() + GRACE_S)
        if limit < LEAST_S:
            print(f"== {step.name}: no time left; the same command goes on", flush=True)
            code = EXIT_FAILED
            continue
        outcome, seconds = _run(call, step, limit, environment)
        worked = True
        spent[step.name] = spent.get(step.name, 0.0) + seconds
        if outcome == 0:
            done[step.name] = spent[step.name]
            print(f"== {step.name}: done in {spent[step.name]:.0f} s", flush=True)
        else:
            done.pop(step.name, None)
            code = EXIT_FAILED
            ended = "cut off" if outcome == EXIT_INTERRUPTED else f"FAILED with exit code {outcome}"
            print(f"== {step.name}: {ended} after {seconds:.0f} s; the same command goes on", flush=True)
            if outcome != EXIT_INTERRUPTED and step is not STUDY:  # what finished of a study can be retrained
                begun.pop(step.name)  # what needs it waits
        call.save()
    return code


def _run(call: Call, step: Step, limit: float, environment: dict[str, str]) -> tuple[int, float]:
    """The exit code and the seconds of `step`; it is asked to stop in time to have saved its state by `limit`."""
    command = [sys.executable, *step.command(call)]
    call.state["begun"][step.name] = shlex.join(["python", *command[1:]])
    call.save()
    print(f"== {step.name}: {call.state['begun'][step.name]}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    echo = subprocess.Popen(["tee", "-a", str(call.folder / "logs" / f"{step.name}.log")], stdin=process.stdout)
    try:
        code = process.wait(None if math.isinf(limit) else limit - min(GRACE_S, limit / 4))
    except subprocess.TimeoutExpired:
        code = _stopped(process)
    except KeyboardInterrupt:
        _stopped(process)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever of it is left
        echo.wait()
    return code, time.monotonic() - started


def _stopped(process: subprocess.Popen[bytes]) -> int:
    """Ends a step as Ctrl-C would, so that it saves what it has. Its exit code: it may just have finished."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        return 0 if process.wait(GRACE_S) == 0 else EXIT_INTERRUPTED
    except subprocess.TimeoutExpired:
        return EXIT_INTERRUPTED


# Commands


def prepare(options: argparse.Namespace) -> int:
    parts: Path = options.parts
    if parts.exists() and any(parts.iterdir()):
        raise UserError(f"PARTS must be a new or an empty folder: {str(parts)!r} has files. Name another.")
    room = int(options.part_mib * packing.MIB) - packing.tracked_bytes(REPOSITORY)
    if room < packing.MIB:
        tree = packing.tracked_bytes(REPOSITORY) / packing.MIB
        raise UserError(f"--part-mib must leave a MiB beside the {tree:.1f} MiB of the tree: {options.part_mib:g}.")
    from study.data.cifar10 import FOLDER, find_folder

    data = find_folder(options.data) / FOLDER
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts) as work:
        sizes = packing.parts(parts, room)
        if not options.no_packages:
            versions = packing.needed_packages("small-cnn-study", options.there.split())
            print("packages: " + " ".join(f"{name}=={version}" for name, version in versions.items()), flush=True)
            site = Path(work) / "packages"
            packing.download_packages(versions, options.python, site)
            # The dashboard's pages are for browsers.
            shutil.rmtree(site / "optuna_dashboard" / "public", ignore_errors=True)
            packing.pack_folder(site, Path(work) / "site.tar.xz")
            packing.cut(Path(work) / "site.tar.xz", sizes)
            sizes = packing.parts(parts, room)
        print(f"data: {data}", flush=True)
        packing.pack_cifar10(data, Path(work) / "cifar10.pack")
        packing.cut(Path(work) / "cifar10.pack", sizes)
    for part in sorted(path for path in parts.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in part.iterdir())
        print(f"{part}: {size / packing.MIB:.1f} MiB ({', '.join(sorted(file.name for file in part.iterdir()))})")
    return 0


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    _check(options)
    folder: Path = options.folder.resolve()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        ready = _received(options.parts, folder, environment)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except (OSError, packing.IncompleteError) as error:
        raise UserError(f"--folder {str(folder)!r} cannot be used: {error}.") from error
    call = _call(options, folder, started)
    steps = steps_of(call.ends is not None, options.also)
    if not ready:
        print("The data set is not here yet: only the smoke test runs. Call again with the other parts.", flush=True)
        steps = [SMOKE]

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = run_steps(call, steps, environment)
    finally:
        call.state["spent_s"] += time.monotonic() - started
        call.save()
        if options.pack_to is not None:
            pieces = pack_results(folder, options.pack_to, options.pack_mib)
            print(f"packed: {', '.join(piece.name for piece in pieces)} in {options.pack_to}", flush=True)
    return code if ready else EXIT_FAILED


def _check(options: argparse.Namespace) -> None:
    for name in ("budget_s", "total_s", "pack_mib"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0: {value:g}.")
    if options.total_s is not None and options.budget_s is None:
        raise UserError("--total-s, of all calls together, needs --budget-s, of this one.")
    unknown = [name for name in options.also if name not in (*MORE, "all")]
    if unknown:
        raise UserError(f"--also takes {', '.join(MORE)} or all: {', '.join(unknown)}.")
    for place in options.parts:
        if not place.is_dir():
            raise UserError(f"--parts must name folders that prepare or --pack-to made: {str(place)!r} is none.")
    if (options.pack_to is None) != (options.pack_mib is None):
        raise UserError("--pack-mib and --pack-to go together: the size of the pieces, and where they go.")


def _call(options: argparse.Namespace, folder: Path, started: float) -> Call:
    try:
        known = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        known = {}
    state = {"done": {}, "spent": {}, "begun": {}, "plan": {}, "spent_s": 0.0, **known}
    ends = total_ends = None
    if options.budget_s is not None:
        total = options.total_s or state["spent_s"] + options.budget_s
        ends = started + options.budget_s - (PACK_S if options.pack_to is not None else 0.0)
        total_ends = max(ends, started + total - state["spent_s"])
    results = options.results or (
        folder / "published" if options.dry_run or _is_carried(options.parts, folder) else RESULTS
    )
    return Call(folder, results.resolve(), TINY if options.dry_run else Size(), ends, total_ends, state)


def _received(places: Sequence[Path], folder: Path, environment: dict[str, str]) -> bool:
    """Unpacks what arrived. Returns whether the data set is here, or is to be found as everywhere else."""
    carried = folder / "carried"
    if places:
        packing.receive(places, carried)
    if carried.is_dir():
        if not packing.missing(carried, "results.tar") and not (folder / "state.json").exists():
            packing.unpack_folder(packing.joined(carried, "results.tar"), folder)
        if not packing.missing(carried, "site.tar.xz"):
            packing.unpack_folder(packing.joined(carried, "site.tar.xz"), folder / "site")
        if not packing.missing(carried, "cifar10.pack"):
            packing.unpack_cifar10(packing.joined(carried, "cifar10.pack"), folder / "data" / "cifar-10-batches-py")
    # What was compiled and measured goes along with the folder.
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache" / "inductor")
    if _is_carried(places, folder):
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
    paths = [str(folder / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if (folder / "data").is_dir():
        environment["STUDY_DATA"] = str(folder / "data")
        return True
    return not any(carried.glob("cifar10.pack.*")) if carried.is_dir() else True


def _is_carried(places: Sequence[Path], folder: Path) -> bool:
    """Whether this machine lives on what was carried to it, now or in an earlier call: all stays in the folder then."""
    return bool(places) or (folder / "data").is_dir() or (folder / "carried").is_dir()


def pack_results(folder: Path, target: Path, mib: float) -> list[Path]:
    """Everything of `folder` that cannot be had elsewhere, in pieces of at most `mib`; an older set is replaced."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        payload = Path(work) / "results.tar"
        # Not compressed: weights hardly shrink, and this is done when time is up.
        packing.pack_folder(folder, payload, lambda name: _is_left_out(folder, name), compress=False)
        for old in target.glob("results.tar.*"):
            old.unlink()
        return packing.cut(payload, iter(lambda: (target, int(mib * packing.MIB)), None))


def _is_left_out(folder: Path, name: str) -> bool:
    """What was carried here, what can be made again, and snapshots whose answers on the test images are kept."""
    if name.split("/")[0] in ("carried", "site", "data") or name.endswith("results.tar"):
        return True
    if name.startswith("cache/"):  # but for what was measured: the decoded data set and compiled kernels are large
        return not Path(name).match("cache/small-cnn-study/*.json")
    at = name.find(".snapshots/")
    return at >= 0 and (folder / f"{name[:at]}.npz").exists()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description=__doc__, prog="python scripts/gpu_study.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="what is not done yet")
    runs.add_argument(
        "--folder", type=Path, default=RUNS / "gpu", metavar="DIR", help="of everything (default: results/runs/gpu)"
    )
    runs.add_argument("--results", type=Path, metavar="DIR", help="of what is published (default: results)")
    runs.add_argument("--budget-s", type=float, metavar="S", help="seconds of this call (default: no limit)")
    runs.add_argument("--total-s", type=float, metavar="S", help="of all calls together (default: this one's)")
    runs.add_argument(
        "--also", nargs="+", default=[], metavar="STEP", help=f"if time is left: {', '.join(MORE)}, or all"
    )
    runs.add_argument("--dry-run", action="store_true", help="everything at a tiny size on the CPU")
    runs.add_argument("--parts", type=Path, nargs="+", default=[], metavar="DIR", help="folders of pieces that arrived")
    runs.add_argument("--pack-to", type=Path, metavar="DIR", help="where the folder goes, in pieces")
    runs.add_argument("--pack-mib", type=float, metavar="N", help="size of a piece")
    prepares = commands.add_parser("prepare", help="pack data and packages for a machine without a network")
    prepares.add_argument("parts", type=Path, metavar="PARTS", help="a new folder; it gets folders 1, 2, ...")
    prepares.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    prepares.add_argument(
        "--part-mib", type=float, default=60.0, metavar="N", help="most of the tree and a part (default: 60)"
    )
    prepares.add_argument("--python", default="3.12", metavar="X.Y", help="of that machine (default: 3.12)")
    prepares.add_argument("--there", default=THERE, metavar="NAMES", help=f"packages it has (default: {THERE})")
    prepares.add_argument("--no-packages", action="store_true", help="it has all of them")
    options = parser.parse_args(argv)
    return run(options) if options.command == "run" else prepare(options)


if __name__ == "__main__":
    run_command(main)
