"""Faults on purpose, at full size: what is left when real runs are killed at any moment, or crowd one study.

    python scripts/experiments/faults.py kills   20 kills over a study of 50 trials under halving, three at once
    python scripts/experiments/faults.py chain   every command of a study killed again and again, then run to its end
    python scripts/experiments/faults.py crowd   500 quick trials by two runs of four workers each on one SQLite file
    scripts/postgres_study.sh -- python scripts/experiments/faults.py outage
                                                 the server stopped for half a minute, then the run suspended as long

Each writes results/faults/<name>.json, and fails if anything finished was lost or done twice. The tests do the same at
small size; results/README.md says which faults are tested where.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.command_line.parser import run_command
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY, RESULTS

SCRIPT = "experiments/faults.py"
CHECKPOINT_S = 0.05
TINY = ("--epochs", "6", "--train-images", "180", "--val-images", "100", "--device", "cpu")
LONG_S = 600.0
"""For a trial to begin on a busy machine."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("fault", choices=tuple(FAULTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults", metavar="DIR", help="(default: results/faults)")
    options = parser.parse_args(words)
    from study.machine.hardware import hardware, versions

    rng, started = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        out = Path(folder)
        found: dict[str, Any] = FAULTS[options.fault](out, rng)
    command = evidence.command_line(SCRIPT, words)
    record = {
        "command": f"scripts/postgres_study.sh -- {command}" if options.fault == "outage" else command,
        **found,
        "wall_s": round(time.monotonic() - started),
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
    evidence.write(options.out / f"{options.fault}.json", record)
    print({name: value for name, value in found.items() if name != "lost_s"}, flush=True)
    return 0


def block() -> str:
    """What results/README.md says of the runs at full size."""
    found = evidence.records(RESULTS / "faults")
    rows = []
    for name, record in found.items():
        what = {
            "kills": "{n_kills} kills (workers and everything in turns) over {n_trials} trials under halving, "
            "{n_jobs} at once",
            "chain": "run, rerank, retrain, report and publish killed {n_kills} times in all",
            "outage": "PostgreSQL stopped for {away_s} s in the middle, then the run suspended for as long",
            "crowd": "{n_trials} quick trials by {n_runs} runs of {n_jobs} workers on one SQLite file",
        }[name].format(**record)
        left = f"{record['n_finished']} finished, {record['n_twice']} twice, {record['n_running']} left running"
        seen = record.get("lost_s")
        lost = f"{max(seen):.1f} s (of {len(seen)} trials that had one)" if seen else ""
        rows.append(
            (what, left, record["integrity"], lost, evidence.machine(record["hardware"]), f"`{record['command']}`")
        )
    head = ("fault", "what is left", "database", "since the last checkpoint, at most", "machine", "command")
    return evidence.table(head, rows) if rows else evidence.NOTHING


# The faults


def kills(out: Path, rng: random.Random, n_trials: int = 50, n_kills: int = 20, n_jobs: int = 3) -> dict[str, Any]:
    """Kills workers and whole runs in turns, each a moment after a trial of theirs told an epoch, then lets one end."""
    options = ["--trials", str(n_trials), "--jobs", str(n_jobs), "--pruner", "halving", *TINY, "--out", str(out)]
    options += ["--checkpoint-every", str(CHECKPOINT_S)]
    lost_s: list[float] = []
    hits = 0
    for kill in range(n_kills):
        started = time.time()
        with running("study.run", *options) as process:
            n_begun = begun(out) if kill else 0
            wait_until(lambda process=process, n_begun=n_begun: process.poll() is not None or begun(out) > n_begun)
            time.sleep(rng.uniform(0.0, 1.5))
            lost_s += since_checkpoints(out, started)
            hits += process.poll() is None
            if kill % 2:
                end(process)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(youngest_child(process.pid), signal.SIGKILL)
                time.sleep(rng.uniform(0.0, 1.5))
                lost_s += since_checkpoints(out, started)
                end(process)
    finish("study.run", *options)
    return {"n_kills": hits, "n_jobs": n_jobs, "lost_s": lost_s, **left(out, n_trials)}


def chain(
    out: Path, rng: random.Random, n_kills: int = 4, longest_s: float = 12.0, n_trials: int = 6
) -> dict[str, Any]:
    """Kills every command of a study at any moment from its first second on, then runs it to its end. Report and
    publishing take a quarter as long as the others."""
    hits: Counter[str] = Counter()
    place = ("--out", str(out / "study"))
    fewer = ("--train-images", "180", "--device", "cpu", *place)
    commands = (
        ("-m", "study.run", "--trials", str(n_trials), "--checkpoint-every", str(CHECKPOINT_S), *TINY, *place),
        ("-m", "study.rerank", "--top", "1", "--epochs", "8", "--val-images", "100", *fewer),
        ("-m", "study.retrain", "--epochs", "6", "--seeds", "2", "--jobs", "2", *fewer),
        ("-m", "study.report", *place),
        ("scripts/publish.py", *place, "--name", "faults", "--results", str(out / "results")),
    )
    for words in commands:
        name, quick = words[1] if words[0] == "-m" else words[0], words[1] == "study.report" or words[0] != "-m"
        for _ in range(n_kills):
            with start(words) as process:
                try:
                    process.wait(rng.uniform(0.0, longest_s / 4 if quick else longest_s))
                except subprocess.TimeoutExpired:  # it had not ended before
                    hits[name] += 1
                end(process)
        finish(*words[1:] if words[0] == "-m" else words)
    from study.bundle.files import FILES, load_bundle

    load_bundle(out / "results" / "faults" / "best")  # published, which leaves out what can be made again
    bundle = load_bundle(out / "study" / "best")
    if len(bundle.metrics["seeds"]) != 2 or {file.name for file in bundle.folder.iterdir()} < set(FILES):
        raise StudyFailed(f"the bundle is not whole: {sorted(file.name for file in bundle.folder.iterdir())}")
    again = left(out / "study", 2, "dilated-rerank")  # one candidate, two settings
    return {"n_kills": hits.total(), "kills": dict(hits), "reranked": again, **left(out / "study", n_trials)}


def crowd(out: Path, rng: random.Random, n_trials: int = 500, n_runs: int = 2, n_jobs: int = 4) -> dict[str, Any]:
    """Several runs, each of several workers, on one file."""
    options = ["--trials", str(n_trials), "--jobs", str(n_jobs), "--out", str(out), "--device", "cpu"]
    options += ["--epochs", "1", "--train-images", "20", "--val-images", "10", "--sampler", "random"]
    finish("study.run", *options, "--trials", "1")  # both join the study that this makes
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running("study.run", *options)) for _ in range(n_runs)]
        for process in processes:
            if (code := process.wait()) != 0:
                raise StudyFailed(f"a run ended with code {code}: {said(process)}")
    return {"n_runs": n_runs, "n_jobs": n_jobs, **left(out, n_trials)}


def outage(out: Path, rng: random.Random, n_trials: int = 6, away_s: float = 30.0) -> dict[str, Any]:
    """Takes the server of $STORAGE away from a run, and then the run from the server."""
    url, stop, start_again = (os.environ.get(name, "") for name in ("STORAGE", "STORAGE_STOP", "STORAGE_START"))
    if not stop:
        raise UserError("outage needs a server that it may stop: scripts/postgres_study.sh -- COMMAND gives it one.")
    options = ["--trials", str(n_trials), "--jobs", "2", *TINY, "--train-images", "2000", "--out", str(out)]
    with running("study.run", *options, "--storage", url) as process:
        for n_begun in (1, 3):
            wait_until(lambda n=n_begun: process.poll() is not None or n_running(url) >= n)
            time.sleep(rng.uniform(0.0, 1.0))
            if n_begun == 1:
                subprocess.run(stop, shell=True, cwd="/", check=True, stdout=subprocess.DEVNULL)
            else:
                os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(away_s)
            if n_begun == 1:
                subprocess.run(start_again, shell=True, cwd="/", check=True, stdout=subprocess.DEVNULL)
            else:
                os.killpg(process.pid, signal.SIGCONT)
        if (code := process.wait()) != 0:
            raise StudyFailed(f"the run ended with code {code}: {said(process)}")
        told = "the storage does not answer" in all_said(process)
    return {"away_s": round(away_s), "was_told": told, **left(out, n_trials, url=url)}


def n_running(url: str) -> int:
    """Trials that were begun on a server, finished or not; 0 while it cannot be asked."""
    from study.storage.database import open_study, stored

    try:
        trials = open_study(url, "dilated").trials
    except (UserError, StudyFailed):  # not there yet
        return 0
    return sum(stored(trial, "candidate") is not None for trial in trials)


def left(out: Path, n_trials: int, name: str = "dilated", url: str | None = None) -> dict[str, Any]:
    """What the study holds.

    Raises:
        StudyFailed: Not exactly `n_trials` slots are finished, each once and with all its epochs.
    """
    from study.storage.database import finished_trials, first_step, open_study, stored

    trials = open_study(url or f"sqlite:///{out}/study.db", name)
    finished = finished_trials(trials)
    by_slot = Counter(trial.user_attrs["slot"] for trial in finished)
    integrity = "ok"
    if url is None:
        with contextlib.closing(sqlite3.connect(out / "study.db")) as connection:
            [(integrity,)] = connection.execute("PRAGMA integrity_check").fetchall()
    found = {
        "n_trials": n_trials,
        "n_finished": len(finished),
        "n_twice": sum(n > 1 for n in by_slot.values()),
        "n_running": sum(not trial.state.is_finished() for trial in trials.trials),
        "n_interrupted": sum(trial.state.name == "FAIL" for trial in trials.trials),
        "integrity": integrity,
    }
    first = first_step(trials)

    def has_gaps(trial: Any) -> bool:
        return sorted(trial.intermediate_values) != list(range(first, first + len(stored(trial, "curve"))))

    gaps = [trial.number for trial in finished if has_gaps(trial)]
    whole = sorted(by_slot) == list(range(n_trials)) and found["n_twice"] == found["n_running"] == 0
    if not whole or gaps or integrity != "ok":
        raise StudyFailed(f"not exactly what was asked for: {found}, trials with gaps: {gaps}")
    return found


FAULTS: dict[str, Callable[[Path, random.Random], dict[str, Any]]] = {
    "kills": kills,
    "chain": chain,
    "crowd": crowd,
    "outage": outage,
}


# Processes


@contextlib.contextmanager
def start(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of its own, which is gone at the end."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=output, stderr=output, text=True, start_new_session=True
        )
        process.output = output  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            end(process)


def running(module: str, *options: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return start(("-m", module, *options))


def finish(*words: str) -> None:
    """Runs a command to its end.

    Raises:
        StudyFailed: It ends otherwise than well.
    """
    with start(words if words[0].endswith(".py") else ("-m", *words)) as process:
        if (code := process.wait()) != 0:
            raise StudyFailed(f"{' '.join(words)} ended with code {code}: {said(process)}")


def all_said(process: subprocess.Popen[str]) -> str:
    output = process.output  # type: ignore[attr-defined]
    output.seek(0)
    return str(output.read())


def said(process: subprocess.Popen[str]) -> str:
    return " | ".join(all_said(process).strip().splitlines()[-3:])


def end(process: subprocess.Popen[str]) -> None:
    """Kills the command and all that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        if time.monotonic() > deadline:
            raise StudyFailed(f"nothing happened for {LONG_S:.0f} s")
        time.sleep(0.01)


def begun(out: Path) -> int:
    """Trials that have told an epoch, read without waiting for locks."""
    query = "SELECT count(DISTINCT trial_id) FROM trial_intermediate_values"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{out}/study.db?mode=ro", uri=True)) as connection:
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def since_checkpoints(out: Path, started: float) -> list[float]:
    """Seconds since the checkpoint of each trial that trains now was written: what a kill now costs it."""
    found = []
    for file in (out / "checkpoints" / "trials").glob("*.pt"):
        with contextlib.suppress(FileNotFoundError):
            written = file.stat().st_mtime
            if written > started:
                found.append(time.time() - written)
    return found


def youngest_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return max(map(int, children), default=pid)


if __name__ == "__main__":
    run_command(main)
