"""Everything on a GPU, in one command: smoke test, study, retrain of the winner, benchmark, records.

    python scripts/gpu_study.py run                       all of it at full length; stopped, the same command goes on
    python scripts/gpu_study.py run --budget-s 900        within a quarter of an hour, without re-ranking
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
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

from gpu import packing
from study.command_line.parser import EXIT_FAILED, EXIT_INTERRUPTED, Parser, run_command
from study.errors import UserError
from study.machine.files import write_atomically
from study.machine.paths import REPOSITORY, RESULTS, RUNS

N_TRIALS = 50
N_TRAINING = 50_000
MOST_EPOCHS, LEAST_EPOCHS, MOST_SEEDS = 300, 30, 5
"""Of the retrain. A shorter one waits for a call that has more time: its length stays, and would be published."""
STUDY_SHARE, LEAST_STUDY_S = 0.28, 60.0
SMOKE_S, THROUGHPUT_S, PUBLISH_S, PACK_S = 105.0, 60.0, 25.0, 15.0
STUDY_FIXED_S = 40.0
"""Of a study beside its trials: imports, how many trials at once, the ends of the last ones, the report."""
RETRAIN_FIXED_S = 90.0
"""Of a retrain beside its steps: imports, capturing, compiling, the test curve, the bundle."""
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
CERTAIN = 0.9
"""Share of the measured rate that is counted on; a retrain on an H100 reached 0.99 of it."""
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


class NoTimeError(Exception):
    """Too little is left for a step that would be worth it: by so many seconds."""


def retrain_length(rate: float, seconds: float) -> tuple[int, int]:
    """(epochs, seeds) that fit `seconds` at `rate` images/s: one seed until it has its full length.

    Raises:
        NoTimeError: Not even a short one fits.
    """
    epochs = int(CERTAIN * rate * seconds / N_TRAINING)
    if epochs < LEAST_EPOCHS:
        raise NoTimeError(math.ceil(LEAST_EPOCHS * N_TRAINING / (CERTAIN * rate) - seconds))
    seeds = min(MOST_SEEDS, max(1, epochs // MOST_EPOCHS))
    return min(MOST_EPOCHS, epochs // seeds), seeds


def measured_rate(smoke: dict[str, Any]) -> float:
    """Images/s at which the default of `best`, or the winner, trains, loaders and all, by a smoke test."""
    rates = [smoke.get(name, {}).get("images_s") for name in ("rate best", "loaded best")]
    return min((rate for rate in rates if rate), default=ASSUMED_RATE)


# Steps


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between a real run and a dry one: options of each command, which come last and so prevail."""

    device: str = "cuda"
    trials: int = N_TRIALS
    study: str = ""
    rerank: str = ""
    retrain: str = ""
    throughput: str = "--images 20480 --samples 2"


TINY = Size(
    device="cpu",
    trials=3,
    study="--train-images 300 --val-images 200 --epochs 2 --jobs 1",
    rerank="--top 1 --train-images 300 --val-images 200 --epochs 1 --jobs 1",
    retrain="--train-images 300 --epochs 1 --seeds 1",
    throughput="--images 256 --samples 1",
)


@dataclasses.dataclass
class Call:
    """One call of `run`: where it works, when it ends, and what was done before.

    Attributes:
        folder: Of everything that is kept.
        results: Where records are published.
        size: Real or tiny.
        ends: On the monotonic clock; infinite without a budget.
        total_ends: The same for all calls together.
        state: What `state.json` holds: "dry" (whether all is tiny), "done" and "spent" (step -> seconds), "begun" (step
            -> command), "plan" (what was decided once; empty without a budget) and "spent_s" of all calls.
    """

    folder: Path
    results: Path
    size: Size
    ends: float
    total_ends: float
    state: dict[str, Any]

    @property
    def has_budget(self) -> bool:
        return not math.isinf(self.ends)

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.state["plan"]
        return plan

    def left(self) -> float:
        """Seconds of this call."""
        return self.ends - time.monotonic()

    def total_left(self) -> float:
        """Seconds of this call and those to come."""
        return self.total_ends - time.monotonic()

    def study_left(self) -> float:
        """Seconds of the study's share of all that is left when it begins."""
        if not self.has_budget:
            return math.inf
        if "study_s" not in self.plan:
            total = self.total_left()
            share = THROUGHPUT_S if total >= 10 * THROUGHPUT_S else 0.0
            self.plan.update(study_s=max(LEAST_STUDY_S, STUDY_SHARE * total), throughput_s=share)
        return float(self.plan["study_s"]) - float(self.state["spent"].get("study", 0.0))

    def rate(self, *names: str) -> float:
        """Images/s by the latest of these smoke tests that measured any."""
        found: dict[str, Any] = {}
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                found |= json.loads((self.folder / f"{name}.json").read_text())
        return measured_rate(found)

    def of(self, study: str) -> str:
        """The options that name a study."""
        return f"--study-name {study} --out {shlex.quote(str(self.folder / 'runs' / study))}"

    def save(self) -> None:
        write_atomically(self.folder / "state.json", json.dumps(self.state, indent=1) + "\n")


def study(call: Call) -> str:
    """A search, with a budget of trials that fit it."""
    if not call.has_budget:
        return f"{STUDY_RUN} {{size.study}}"
    seconds = call.study_left() - STUDY_FIXED_S
    if "trial" not in call.plan:  # a study keeps the fidelity that it was begun with
        call.plan["trial"] = trial_fidelity(call.rate("smoke"), seconds)
    epochs, images = call.plan["trial"]
    # No trial is begun that would be cut off.
    length = f"--epochs {epochs} --train-images {images} --timeout {max(1.0, seconds):.0f}"
    return f"{STUDY_RUN} {length} {{size.study}}"


def retrain(call: Call, name: str = "retrain", words: str = "{best}") -> str:
    """With a budget, a length that fits what is left of it, decided once: another length is another training."""
    command = f"-m study.retrain --device {{device}} {words}"
    if not call.has_budget or call.size.retrain:
        return f"{command} {{size.retrain}}"
    if name not in call.plan:
        kept = RETRAIN_FIXED_S + PUBLISH_S + GRACE_S
        kept += call.plan.get("throughput_s", 0.0) if name == "retrain" else 0.0
        call.plan[name] = retrain_length(call.rate("smoke", "pace"), call.total_left() - kept)
    epochs, seeds = call.plan[name]
    return f"{command} --epochs {epochs} --seeds {seeds} --jobs {seeds} {{size.retrain}}"


STUDY_RUN = "-m study.run --space best --trials {size.trials} --device {device} {best}"
PUBLISHING = "scripts/publish.py {best} --results {results}"
BENCHMARK = "scripts/benchmark.py {name} --device {{device}} --out {{results}}/benchmarks {words}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Names its log and its entries in the state.
        command: What Python is called with, a template; or what makes it.
        needs: A step that must have been run before, to its end or until it was cut off.
        most_s: It is cut off after so long where there is a budget.
        kept_s: Seconds of the call that it leaves for what comes after it.
        always: Whether it runs again whenever anything else has.
    """

    name: str
    command: str | Callable[[Call], str]
    needs: str | None = None
    most_s: float = math.inf
    kept_s: float = PUBLISH_S
    always: bool = False

    def words(self, call: Call) -> list[str]:
        """What Python is called with."""
        template = self.command if isinstance(self.command, str) else self.command(call)
        places = {
            "folder": shlex.quote(str(call.folder)),
            "results": shlex.quote(str(call.results)),
            "best": call.of("best"),
            "small": call.of("best-100k"),
            "cores": len(os.sched_getaffinity(0)),
        }
        return shlex.split(template.format(device=call.size.device, size=call.size, **places))


def bench(name: str, words: str = "", step: str | None = None, most_s: float = math.inf) -> Step:
    return Step(step or name, BENCHMARK.format(name=name, words=words), most_s=most_s)


def again(name: str, words: str, needs: str | None = None) -> Step:
    """Another retrain."""
    return Step(name, lambda call: retrain(call, name, words), needs)


def smoke(call: Call) -> str:
    budget = min(SMOKE_S, call.left() - LEAST_S)
    return f"scripts/gpu/smoke.py {{folder}}/smoke.json --device {{device}} --budget-s {budget:.0f}"


SMOKE = Step("smoke", smoke, most_s=SMOKE_S + GRACE_S, kept_s=0.0)
STUDY = Step("study", study)
RERANK = Step("rerank", "-m study.rerank --device {device} {best} {size.rerank}", "study")
# The study's winner may train slower than the space's default.
WINNER = "scripts/gpu/smoke.py {folder}/pace.json --device {device} --winner-of {folder}/runs/best"
PACE = Step("pace", f"{WINNER} --budget-s {SMOKE_S:.0f}", "study", most_s=80.0)
RETRAIN = Step("retrain", retrain, "study")
# The peer has as many loaders as there are cores.
THROUGHPUT = bench("throughput", "--workers {cores} {size.throughput}", most_s=1.5 * THROUGHPUT_S)
PUBLISH = Step("publish", PUBLISHING, "study", most_s=2 * PUBLISH_S, kept_s=0.0, always=True)
SAMPLERS = "scripts/experiments/samplers.py --space best --fuller-epochs 80 --runs {folder}/runs/samplers"
MORE = {
    step.name: step
    for step in (
        Step("tests", "-m pytest -q -m gpu tests/study/training/test_gpu.py"),
        bench("accuracy", "--before cpu --epochs 4", "same-as-cpu"),
        again("reference", "--reference {best}"),
        again("distilled", "--teacher {best}", "retrain"),
        again("yardstick", "--yardstick {best}", "retrain"),
        Step("study-100k", STUDY_RUN.replace("{best}", "--max-params 100000 {small} {size.study}")),
        again("retrain-100k", "{small}", "study-100k"),
        Step("publish-100k", PUBLISHING.replace("{best}", "{small}"), "study-100k", always=True),
        *map(bench, ("epoch", "trials-per-hour", "slots", "memory", "startup")),
        Step("samplers", SAMPLERS + " --results {results}/samplers"),
    )
}
"""What is worth its time once the rest is done: `--also`."""
NEVER_TINY = ("same-as-cpu", "epoch", "trials-per-hour", "slots", "memory", "startup", "samplers")
"""Those of them that have one size."""


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
        limit = min(step.most_s, call.left() - step.kept_s) if call.has_budget else math.inf
        if step is STUDY:
            if call.study_left() < LEAST_S:  # what it found so far is what is retrained
                continue
            limit = min(limit, call.study_left() + GRACE_S)
        if limit < LEAST_S:
            print(f"== {step.name}: no time left; the same command goes on", flush=True)
            code = EXIT_FAILED
            continue
        before = spent.get(step.name, 0.0)
        try:
            outcome = _run(call, step, limit, environment)
        except NoTimeError as error:
            print(f"== {step.name}: {error} s too few are left; a call that has them goes on", flush=True)
            code = EXIT_FAILED
            continue
        seconds, worked = spent[step.name] - before, True
        if step is SMOKE:
            _publish_smoke(call)
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


def _run(call: Call, step: Step, limit: float, environment: dict[str, str]) -> int:
    """The exit code of `step`, whose seconds are noted; it is asked to stop in time to have saved its state by `limit`.

    Raises:
        NoTimeError: It would not be worth it.
    """
    command = [sys.executable, *step.words(call)]
    call.state["begun"][step.name] = shlex.join(["python", *command[1:]])
    call.save()
    print(f"== {step.name}: {call.state['begun'][step.name]}", flush=True)
    started = time.monotonic()
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, **out)  # type: ignore[call-overload]
    # It outlives Ctrl-C, to pass on what the step says of it.
    echo = subprocess.Popen(["tee", "-i", "-a", str(call.folder / "logs" / f"{step.name}.log")], stdin=process.stdout)
    try:
        code: int = process.wait(None if math.isinf(limit) else limit - min(GRACE_S, limit / 4))
    except subprocess.TimeoutExpired:
        code = _stopped(process, min(GRACE_S, limit / 4))
    except KeyboardInterrupt:
        _stopped(process, GRACE_S)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever of it is left
        echo.wait()
        spent = call.state["spent"]
        spent[step.name] = spent.get(step.name, 0.0) + time.monotonic() - started
    return code


def _stopped(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Ends a step as Ctrl-C would, so that it saves what it has within `seconds`. Its exit code: it may just have
    finished."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return 0 if process.wait(seconds) == 0 else EXIT_INTERRUPTED
    return EXIT_INTERRUPTED


# Commands


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    _check(options)
    folder: Path = (options.folder or RUNS / ("gpu-dry" if options.dry_run else "gpu")).resolve()
    try:
        is_carried = packing.unpack_all(options.parts, folder)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except (OSError, packing.IncompleteError) as error:
        raise UserError(f"--folder {str(folder)!r} cannot be used: {error}.") from error
    call = _call(options, folder, started, is_carried)
    # Where it is not carried, the data set is found as everywhere else.
    ready = (folder / "data").is_dir() or not any((folder / "carried").glob("cifar10.pack.*"))
    steps = steps_of(call.has_budget, options.also) if ready else [SMOKE]
    if not ready:
        print("The data set is not here yet: only the smoke test runs. Call again with the other parts.", flush=True)

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = run_steps(call, steps, _environment(folder, is_carried))
    finally:
        call.state["spent_s"] += time.monotonic() - started
        call.save()
        if options.pack_to is not None:
            pieces = packing.pack_results(folder, options.pack_to, options.pack_mib)
            print(f"packed: {', '.join(piece.name for piece in pieces)} in {options.pack_to}", flush=True)
    return code if ready else EXIT_FAILED


def _publish_smoke(call: Call) -> None:
    """Puts what the smoke test found of a GPU among the records, under the card's name, unless more is there."""
    with contextlib.suppress(OSError, ValueError):
        text = (call.folder / "smoke.json").read_text()
        found = json.loads(text)
        if card := found.get("machine", {}).get("gpu"):
            file = call.results / "gpu" / f"{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or json.loads(file.read_text()).keys() <= found.keys():
                write_atomically(file, text)


def _check(options: argparse.Namespace) -> None:
    for name in ("budget_s", "total_s", "pack_mib"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0: {value:g}.")
    if options.total_s is not None and options.budget_s is None:
        raise UserError("--total-s, of all calls together, needs --budget-s, of this one.")
    if options.dry_run and (large := [name for name in NEVER_TINY if {name, "all"} & set(options.also)]):
        raise UserError(
            f"--dry-run is at a tiny size, which these have not: {', '.join(large)}. Leave them out of --also."
        )
    for place in options.parts:
        if not place.is_dir():
            raise UserError(f"--parts must name folders that prepare or --pack-to made: {str(place)!r} is none.")
    if (options.pack_to is None) != (options.pack_mib is None):
        raise UserError("--pack-mib and --pack-to go together: the size of the pieces, and where they go.")


def _call(options: argparse.Namespace, folder: Path, started: float, is_carried: bool) -> Call:
    state: dict[str, Any] = {"done": {}, "spent": {}, "begun": {}, "plan": {}, "spent_s": 0.0}
    with contextlib.suppress(OSError, ValueError):
        state |= json.loads((folder / "state.json").read_text())
    older = any("--device cpu" in command for command in state["begun"].values())  # of before it was noted
    if state.setdefault("dry", older if state["begun"] else options.dry_run) != options.dry_run:
        of = "a dry run" if state["dry"] else "a run at full size"
        raise UserError(f"--folder {str(folder)!r} holds {of}, which another cannot go on from. Name another.")
    ends = total_ends = math.inf
    if options.budget_s is not None:
        ends = started + options.budget_s - (PACK_S if options.pack_to is not None else 0.0)
        total = options.total_s - state["spent_s"] if options.total_s else options.budget_s
        total_ends = max(ends, started + total)
    results = options.results or (folder / "published" if options.dry_run or is_carried else RESULTS)
    return Call(folder, results.resolve(), TINY if options.dry_run else Size(), ends, total_ends, state)


def _environment(folder: Path, is_carried: bool) -> dict[str, str]:
    """Of every step. What was compiled and measured goes along with the folder."""
    paths = (str(folder / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
    found = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache" / "inductor")
    if is_carried:
        found["XDG_CACHE_HOME"] = str(folder / "cache")
    if (folder / "data").is_dir():
        found["STUDY_DATA"] = str(folder / "data")
    return os.environ | found


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, prog="python scripts/gpu_study.py", formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="what is not done yet")
    add = runs.add_argument
    places = "results/runs/gpu, of a dry run gpu-dry"
    add("--folder", type=Path, metavar="DIR", help=f"of everything (default: {places})")
    add("--results", type=Path, metavar="DIR", help="of what is published (default: results)")
    add("--budget-s", type=float, metavar="S", help="seconds of this call (default: no limit)")
    add("--total-s", type=float, metavar="S", help="of all calls together (default: this one's)")
    steps = (*MORE, "all")
    add("--also", nargs="+", default=[], choices=steps, metavar="STEP", help=f"if time is left: {', '.join(steps)}")
    add("--dry-run", action="store_true", help="everything at a tiny size on the CPU")
    add("--parts", type=Path, nargs="+", default=[], metavar="DIR", help="folders of pieces that arrived")
    add("--pack-to", type=Path, metavar="DIR", help="where the folder goes, in pieces")
    add("--pack-mib", type=float, metavar="N", help="size of a piece")
    prepares = commands.add_parser("prepare", help="pack data and packages for a machine without a network")
    add = prepares.add_argument
    add("parts", type=Path, metavar="PARTS", help="a new folder; it gets folders 1, 2, ...")
    add("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    add("--part-mib", type=float, default=60.0, metavar="N", help="most of the tree and a part (default: 60)")
    add("--python", default="3.12", metavar="X.Y", help="of that machine (default: 3.12)")
    add("--there", default=THERE, metavar="NAMES", help=f"packages it has (default: {THERE})")
    add("--no-packages", action="store_true", help="it has all of them")
    options = parser.parse_args(argv)
    if options.command == "run":
        return run(options)
    packages = None if options.no_packages else packing.needed_packages("small-cnn-study", options.there.split())
    packing.prepare(options.parts, options.part_mib, options.data, packages, options.python)
    return 0


if __name__ == "__main__":
    run_command(main)
