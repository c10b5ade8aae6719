"""Publish a study: copy what is worth keeping from results/runs/<study>/ to results/<name>/.

    python scripts/publish.py                          the default study -> results/dilated/
    python scripts/publish.py --study-name S --name N  another one
    python scripts/publish.py --readme                 only rewrite the result blocks of the README files

Published are `study.json` (configuration and every trial), `trials.csv`, `history.png`, `report.md` and
the bundles of the best trial, the reference network and the yardstick. The figures of README.md, results/README.md
and search_spaces/README.md come from these files.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.machine.paths import REPOSITORY, RESULTS, run_dir

READMES = tuple(REPOSITORY / folder / "README.md" for folder in ("", "results", "search_spaces"))
"""The files with blocks between `<!-- results:NAME -->` and `<!-- end -->`."""
THIRD = "halving, rung 1, factor 4"
"""What halving was for trials of 6 epochs before it waited for half of them."""
BUNDLES = ("best", "best-distilled", "reference", "yardstick")
OTHERS = (
    ("best-distilled", "the same, learning from a larger network besides"),
    ("reference", "reference network, our retrain"),
    ("yardstick", "published network of 97,530 parameters (it pools), trained as our best"),
)
PUBLISHED_REFERENCE_ACCURACY = 0.887
"""Test accuracy that the reference network was published with."""

COLUMNS = (
    "trial", "slot", "attempt", "anchor", "state", "val_accuracy", "epochs_run", "params", "receptive_field",
    "receptive_field_with_pool", "macs", "n_dilated_reductions", "wall_s", "predicted_s", "candidate_id",
    "architecture_id", "training_seed", "repairs", "reason",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description=__doc__, prog="python scripts/publish.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from study.command_line.options import add_study_options, storage_url, study_name
    from study.storage.database import open_study

    add_study_options(parser)
    parser.add_argument("--name", help="folder in results/ (default: the study's name)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="another folder; README files are left alone then"
    )
    parser.add_argument("--readme", action="store_true", help="only rewrite the result blocks of the README files")
    options = parser.parse_args(argv)
    if not options.readme:
        name = study_name(options)
        study = open_study(storage_url(options), name)
        folder = options.results / (options.name or name)
        if folder.resolve() == (RESULTS / "runs").resolve():
            raise UserError("--name must not be 'runs': unpublished studies live there. Choose another.")
        publish(study, run_dir(name, options.out), folder)
        print(f"Published to {folder}")
    if options.results.resolve() == RESULTS.resolve():
        for readme in READMES:
            text = rewritten(readme)
            if text != readme.read_text():
                readme.write_text(text)
                print(f"Rewrote the result blocks of {readme}")
    return 0


def publish(study: Any, run: Path, folder: Path) -> None:
    """Writes the record of `study`, whose folder is `run`, into `folder`."""
    from study.reporting.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(trial) for trial in study.get_trials(deepcopy=False)]
    reranked = _rerank(study)
    record = {
        "command": "python -m study.run --trials "
        f"{sum(row['state'] in ('COMPLETE', 'PRUNED') for row in rows)} && "
        f"{'python -m study.rerank && ' if reranked else ''}python -m study.retrain && python scripts/publish.py",
        "study": study.study_name,
        "config": study.user_attrs["config"],
        "target_accuracy": study.user_attrs["target_accuracy"],
        "hardware": study.user_attrs["hardware"],
        "versions": study.user_attrs["versions"],
        "cost_model": study.user_attrs["cost_model"],
        "created": study.user_attrs["created"],
        "searching_s": searching_seconds(study.get_trials(deepcopy=False)),
        "rerank": reranked,
        "trials": [
            {
                **row,
                "parameters": trial.params,
                "val_accuracy_by_epoch": [trial.intermediate_values[e] for e in sorted(trial.intermediate_values)],
                "candidate": trial.user_attrs.get("candidate"),
            }
            for row, trial in zip(rows, study.get_trials(deepcopy=False), strict=True)
        ],
    }
    (folder / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "repairs": "; ".join(row["repairs"] or ())} for row in rows)
    _, markdown = write_report(study, run)
    shutil.copyfile(markdown, folder / "report.md")
    draw_history(record, folder / "history.png")
    for name in BUNDLES:
        if (run / name / "metrics.json").exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(run / name, folder / name)


def _rerank(study: Any) -> dict[str, Any] | None:
    """What the longer training of the best trials gave, best first."""
    from study.storage.database import config_of
    from study.storage.reranked import find_rerank

    longer = find_rerank(study)
    if longer is None:
        return None
    config, trials = config_of(longer), longer.get_trials(deepcopy=False)
    complete = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: (-(t.value or 0.0), t.number))
    return {
        "epochs": config.epochs,
        "train_images": config.train_images,
        "searching_s": searching_seconds(trials),
        "trials": [
            {
                "trial": longer.user_attrs["given"][t.user_attrs["slot"]]["trial"],
                "val_accuracy": t.value,
                "val_accuracy_by_epoch": [t.intermediate_values[e] for e in sorted(t.intermediate_values)],
                "candidate_id": t.user_attrs["candidate_id"],
            }
            for t in complete
        ],
    }


def _row(trial: Any) -> dict[str, Any]:
    attrs, values = trial.user_attrs, trial.intermediate_values
    known = {name: attrs.get(name) for name in COLUMNS}
    return {
        **known,
        "trial": trial.number,
        "state": trial.state.name,
        "val_accuracy": trial.value if trial.value is not None else (values[max(values)] if values else None),
        "epochs_run": len(values),
    }


def searching_seconds(trials: Sequence[Any]) -> float:
    """Seconds in which at least one trial ran: pauses do not count, and trials at once count once."""
    spans = sorted(
        (trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
        for trial in trials
        if trial.datetime_start and trial.datetime_complete
    )
    seconds, reached = 0.0, float("-inf")
    for start, end in spans:
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return seconds


def draw_history(record: dict[str, Any], file: Path) -> None:
    """Trials in order with the best so far, and accuracy against parameters."""
    from matplotlib.figure import Figure

    trials = [trial for trial in record["trials"] if trial["state"] in ("COMPLETE", "PRUNED")]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    kinds = {
        "pruned": ("#b8b8b8", "x", [t for t in trials if t["state"] == "PRUNED"]),
        "complete, strided": ("#1f77b4", "o", [t for t in complete if not t["n_dilated_reductions"]]),
        "complete, dilated reduction": ("#d95f02", "D", [t for t in complete if t["n_dilated_reductions"]]),
    }
    order = {trial["trial"]: index + 1 for index, trial in enumerate(trials)}
    for label, (colour, marker, chosen) in kinds.items():
        accuracy = [100 * trial["val_accuracy"] for trial in chosen]
        left.scatter([order[t["trial"]] for t in chosen], accuracy, c=colour, marker=marker, s=26, label=label)
        right.scatter([trial["params"] / 1000 for trial in chosen], accuracy, c=colour, marker=marker, s=26)
    best, steps = 0.0, []
    for trial in trials:
        if trial["state"] == "COMPLETE":
            best = max(best, trial["val_accuracy"])
        steps.append(100 * best if best else float("nan"))
    left.step(range(1, len(trials) + 1), steps, where="post", color="#444444", linewidth=1, label="best so far")
    left.set(xlabel="finished trial", ylabel="validation accuracy, %", title="Search")
    right.set(xlabel="parameters, thousands", title="Size against accuracy")
    right.axvline(record["config"]["limits"]["max_params"] / 1000, color="#888888", linestyle=":", linewidth=1)
    left.legend(fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def rewritten(readme: Path) -> str:
    """The text of `readme` with every block made anew from the files in results/."""

    def block(found: re.Match[str]) -> str:
        text = re.sub(r"(?<=\]\()results/[^)]*", link, readme_block(found["name"]))
        return f"<!-- results:{found['name']} -->\n{text}\n<!-- end -->"

    def link(found: re.Match[str]) -> str:
        """A block names files from the repository's root; a link starts from the file that it stands in."""
        return os.path.relpath(REPOSITORY / found[0], readme.parent)

    return re.sub(r"<!-- results:(?P<name>\S+) -->.*?<!-- end -->", block, readme.read_text(), flags=re.DOTALL)


def readme_block(name: str) -> str:
    """The block `name`, from the files in results/.

    Raises:
        KeyError: No block has that name.
    """
    return BLOCKS[name]()


def _load(*parts: str) -> Any:
    file = RESULTS.joinpath(*parts)
    return json.loads(file.read_text()) if file.exists() else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _accuracy(metrics: dict[str, Any]) -> str:
    n = len(metrics["seeds"])
    if n == 1:
        return f"**{_percent(metrics['test_accuracy_mean'])}** (1 seed)"
    return f"**{_percent(metrics['test_accuracy_mean'])}** ± {100 * metrics['test_accuracy_std']:.2f} ({n} seeds)"


def _machine(hardware: dict[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{hardware['n_cores']} cores of {hardware['cpu']}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lead() -> str:
    """The study that the READMEs tell of: the one searched on a GPU, once there is one."""
    return "best" if (RESULTS / "best" / "study.json").exists() else "dilated"


def _headline() -> str:
    head = ("network", "test accuracy", "parameters", "receptive field", "MACs", "epochs", "trained on", "time", "file")
    rows = []
    for study in dict.fromkeys((_lead(), *sorted(file.parent.name for file in RESULTS.glob("*/study.json")))):
        for bundle, title in (("best", f"best of the study `{study}`"), *OTHERS):
            m = _load(study, bundle, "metrics.json")
            if m is None:
                continue
            sizes = (f"{m['params']:,}", str(m["receptive_field"]), f"{m['macs'] / 1e6:.1f} M", str(m["epochs"]))
            place = (
                _machine(m["hardware"]),
                f"{m['wall_s'] / 60:.0f} min",
                f"[metrics](results/{study}/{bundle}/metrics.json)",
            )
            rows.append((title, _accuracy(m), *sizes, *place))
    published = _percent(PUBLISHED_REFERENCE_ACCURACY)
    rows.append(("reference network, as published", published, "175,696", "47", "18.6 M", "", "", "", ""))
    return _table(head, rows)


def _study() -> str:
    record = _load(_lead(), "study.json")
    trials, config = record["trials"], record["config"]
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    pruned = [trial for trial in trials if trial["state"] == "PRUNED"]
    n_failed = sum(trial["state"] == "FAIL" for trial in trials)
    spent = sum(trial["epochs_run"] for trial in complete + pruned)
    possible = config["epochs"] * len(complete + pruned)
    minutes = record["searching_s"] / 60
    anchors = {trial["anchor"]: trial for trial in complete if trial["anchor"]}
    best = max(complete, key=lambda trial: trial["val_accuracy"])
    dilated = max((t for t in complete if t["n_dilated_reductions"]), key=lambda t: t["val_accuracy"], default=None)
    text = (
        f"{len(complete)} trials complete, {len(pruned)} pruned, {n_failed} failed; {spent} of {possible} epochs "
        f"spent; {minutes:.0f} minutes on {_machine(record['hardware'])}. Trials are short on purpose "
        f"({config['epochs']} epochs of {config['train_images']:,} images): their accuracies rank candidates and say "
        "nothing about a full training."
    )
    named = [("best", best), ("best that reduces by a dilated convolution", dilated)]
    named += [("the space's default", anchors.get("default")), ("the reference network", anchors.get("reference"))]
    rows = [
        (
            f"{title} (trial {trial['trial']})",
            _percent(trial["val_accuracy"]),
            f"{trial['params']:,}",
            str(trial["receptive_field"]),
            f"{trial['macs'] / 1e6:.1f} M",
        )
        for title, trial in named
        if trial is not None
    ]
    table = _table(("trial", "validation accuracy", "parameters", "receptive field", "MACs"), rows)
    longer = record.get("rerank")
    if longer:
        found = ", ".join(f"trial {each['trial']} {_percent(each['val_accuracy'])}" for each in longer["trials"])
        table += (
            f"\n\nThe best of them trained again for {longer['epochs']} epochs of {longer['train_images']:,} images "
            f"({longer['searching_s'] / 60:.0f} minutes), on the same validation images: {found}. The first is "
            "the one retrained."
        )
    return f"{text}\n\n{table}"


def _benchmarks() -> str:
    rows = []
    for file in sorted((RESULTS / "benchmarks").rglob("*.json"), key=lambda file: (file.name, file.parent)):
        b = json.loads(file.read_text())
        sides = [f"{_spread(b[side])} {b['unit']}" if side in b else "" for side in ("ours", "peer")]
        # The title of a row about accuracy has the paired difference, which a ratio of medians would only blur.
        ratio = f"**{b['ratio']:.2f}**" if "ratio" in b and "loss" not in b else ""
        trend = b.get("trend_rss_mib")
        title = b["title"] + (f"; {trend['slope_mib_per_trial']:+.2f} MiB a trial" if trend else "")
        rows.append((title, *sides, ratio, b["goal"] or "", _machine(b["hardware"]), f"`{b['command']}`"))
    return _table(("benchmark", "ours", "peer", "ratio", "goal", "machine", "command"), rows)


def _spread(side: dict[str, Any]) -> str:
    """Median and range, with as many digits as they deserve."""

    def shown(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    return f"{shown(side['median'])} ({shown(side['min'])} to {shown(side['max'])})"


def _fidelity() -> str:
    found = [json.loads(file.read_text()) for file in sorted((RESULTS / "fidelity").glob("*.json"))]
    return "\n\n".join(_fidelity_of(each) for each in found if each["spearman"] is not None) or "Not measured yet."


def _fidelity_of(found: dict[str, Any]) -> str:
    short, fuller = (f"{found[k]['epochs']} epochs of {found[k]['train_images']:,} images" for k in ("short", "fuller"))
    low, high = found["spearman_interval_95"]
    return (
        f"Spearman's rank correlation between the validation accuracy of trials ({short}) and that of a fuller "
        f"training of the same candidates ({fuller}): **{found['spearman']:.2f}** over "
        f"{len(found['candidates'])} candidates (95% bootstrap interval {low:.2f} to {high:.2f}; `{found['command']}`)."
    )


def _first_open(tables: Sequence[str], summary: str) -> str:
    """The first of `tables` as it is, the others folded away."""
    folded = (f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>" for table in tables[1:])
    return "\n\n".join([tables[0], *folded])


def _pruners() -> str:
    tables = [_pruners_of(file) for file in sorted((RESULTS / "pruners").glob("*.json"))]
    return _first_open(tables, "The same for other candidates, or shorter trials") if tables else "Not measured yet."


def _pruners_of(file: Path) -> str:
    from study.search.plan import PRUNERS

    found = json.loads(file.read_text())
    rows = []
    for row in found["settings"]:
        names = [row["name"], *row["same_as"]]
        if found["winner"] not in names and not set(names) & {*PRUNERS, THIRD}:
            continue
        low, high = row["regret_interval_95"]
        rows.append(
            (
                f"**{row['name']}**" if found["winner"] in names else row["name"],
                f"{row['epochs_share']:.0%}",
                f"{100 * row['regret']:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                f"{row['kept_best']:.0%}",
                f"{100 * row['budget_val_accuracy']:.2f}%",
            )
        )
    head = ("pruner", "epochs spent", "points lost (95%)", "kept the best trial", "best within half of all epochs")
    recorded = found["recorded_with"]
    return (
        f"{_table(head, rows)}\n\n{found['n_curves']} whole curves of {found['epochs']} epochs of "
        f"{recorded['train_images']:,} images (`--sampler {recorded['sampler']}`), replayed in {found['replays']} "
        f"random orders each. Of {len(found['settings'])} settings: those that have a name, the former default, and in "
        f"bold the cheapest that loses at most {100 * found['max_regret']:.1f} points (`{found['command']}`)."
    )


def _samplers() -> str:
    files = sorted((RESULTS / "samplers").glob("*.json"))
    if not files:
        return "Not measured yet."
    from samplers import markdown

    parts = []
    for file in files:
        found = json.loads(file.read_text())
        config, fuller = found["config"], found["fuller"]
        parts.append(
            f"{markdown(found)}\n\nSpace `{found['space']}`, means over studies, with the range "
            f"([best so far against epochs](results/samplers/{file.stem}.png)). Trials of {config['epochs']} epochs of "
            f"{config['train_images']:,} images, {config['val_images']:,} to validate on; the best of each study "
            f"trained again for {fuller['epochs']} epochs of {fuller['train_images'] or 45_000:,} "
            f"(`{found['command']}`)."
        )
    return "\n\n".join(parts)


def _replays() -> str:
    files = [
        file
        for file in sorted((RESULTS / "replays").glob("*.json"), key=lambda file: len(file.stem))
        if not file.stem.endswith("-table")
    ]
    if not files:
        return "Not measured yet."
    tables = [_replays_of(file.stem, json.loads(file.read_text())) for file in files]
    return _first_open(tables, "The same on a surrogate of fewer, longer trials")


def _whole_studies() -> str:
    """Studies without pruning whose best trials were trained again: what their samplers found."""
    from samplers import SAMPLERS

    found = _load("replays", "dilated-15000-table.json")
    if found is None:
        return "Not measured yet."
    studies, values = found["studies"], defaultdict(list)
    for trial in found["trials"]:
        values[trial["candidate_id"]].append((trial["study"], trial["curve"][-1]))
    [default_id] = {trial["candidate_id"] for trial in found["trials"] if trial["anchor"] == "default"}
    default = [value for _, value in values[default_id]]
    searches = {name: study for name, study in studies.items() if "rerank_of" not in study}
    rows = []
    for name, study in searches.items():
        sampled = [t for t in found["trials"] if t["study"] == name and t["anchor"] is None]
        best = max(sampled, key=lambda trial: trial["curve"][-1])
        again = [v for of, v in values[best["candidate_id"]] if studies[of].get("rerank_of") == name]
        better = sum(trial["curve"][-1] > statistics.mean(default) for trial in sampled)
        rows.append(
            (
                SAMPLERS[study["sampler"]].removesuffix(", pruned"),
                str(len(sampled)),
                _percent(statistics.median(trial["curve"][-1] for trial in sampled)),
                _percent(best["curve"][-1]),
                _percent(again[0]) if again else "",
                f"{better} of {len(sampled)}",
            )
        )
    config = found["config"]
    folders = " ".join(f"results/runs/{name}" for name in searches)
    mean, low, high = (_percent(of(default)) for of in (statistics.mean, min, max))
    commands = [
        f"python -m study.rerank --study-name {study['rerank_of']} --top {study['complete']} "
        f"--epochs {config['epochs']} --train-images {config['train_images']}"
        if "rerank_of" in study
        else f"python -m study.run --trials {study['complete']} --pruner {study['pruner']} "
        f"--sampler {study['sampler']} --seed {study['seed']} --study-name {name}"
        for name, study in studies.items()
    ]
    head = ("sampler", "trials", "median of them", "best of them", "trained again", "better than the default")
    return (
        f"{_table(head, rows)}\n\nSpace `dilated`, {config['epochs']} epochs of {config['train_images']:,} images, "
        f"validated on {config['val_images']:,}, not pruned, anchors not counted. The space's default has {mean} "
        f"(mean of {len(default)} trainings, {low} to {high}). [All trials](results/replays/dilated-15000-table.json), "
        f"made by {', '.join(f'`{command}`' for command in commands)} "
        f"and `python scripts/replays.py --collect {folders} --name dilated-15000`."
    )


def _replays_of(name: str, found: dict[str, Any]) -> str:
    from replays import markdown

    config, quality, third, whole = found["config"], found["surrogate"], found["budget"] // 3, found["budget"]
    trials = f"{quality['n_trials']} trials of {config['epochs']} epochs of {config['train_images']:,} images"
    rank, upper = quality["spearman"], quality["spearman_of_upper_half"]
    return (
        f"{markdown(found)}\n\nMean of the surrogate's own accuracy, without noise, of the trial that looks best after "
        f"{third} and {whole} epochs ([all along](results/replays/{name}.png)); intervals are over replays on one "
        "surrogate. It "
        f"was fitted to {trials} ({quality['n_candidates']} candidates). On candidates that it was not fitted to, its "
        f"ranking has a Spearman correlation of {rank:.2f} with the recorded one ({upper:.2f} in the better half), its "
        f"median error is {quality['median_error_points']:.1f} points; one standard deviation between seeds is "
        f"{quality['noise_points_at_best']:.1f} points at the best, from {quality['noise_degrees_of_freedom']} repeats "
        f"(`{found['command']}`)."
    )


def _audit() -> str:
    rows = []
    for file in sorted((RESULTS / "audit").glob("*.json")):
        a = json.loads(file.read_text())
        share = a["params_share"]
        rows.append(
            (
                f"{a['space']}, < {a['limits']['max_params']:,} parameters",
                f"{a['n']:,}",
                str(a["n_infeasible"]),
                f"{100 * a['distinct']:.1f}%",
                f"{share['min']:.2f} to {share['max']:.2f}",
                f"{100 * a['repaired']:.1f}%",
                # Only `dilated` chooses between this and strided reductions.
                f"{100 * a['decoded']['dilated reduction']:.1f}%" if "dilated reduction" in a["decoded"] else "",
            )
        )
    head = ("space, limit", "samples", "infeasible", "distinct", "share of budget", "repaired", "dilated reduction")
    return _table(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": _headline,
    "study": _study,
    "benchmarks": _benchmarks,
    "fidelity": _fidelity,
    "pruners": _pruners,
    "audit": _audit,
    "samplers": _samplers,
    "replays": _replays,
    "whole-studies": _whole_studies,
}
"""What makes each block."""


if __name__ == "__main__":
    run_command(main)
