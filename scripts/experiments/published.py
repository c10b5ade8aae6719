"""What is kept of a study: configuration, every trial, a picture, its networks; and what README files say of them."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evidence
import screenshot
from evidence import percent
from search_spaces import DEFAULT_SPACE
from study.bundle.card import CARD
from study.bundle.files import EXPORTS, FILES, MODEL, NUMBERS, WEIGHTS
from study.bundle.metrics import METRICS
from study.command_line.wording import for_all
from study.machine.paths import RESULTS

if TYPE_CHECKING:
    import optuna

TITLES = {
    "best": "best of the study `{study}`",
    "best-distilled": "the same, learning from a larger network besides",
    "reference": "reference network, our retrain",
    "yardstick": "published network of 97,530 parameters (it pools), trained as our best",
}
"""Bundles of a study, beside those of trials that were asked for."""
AS_PUBLISHED = ("reference network, as published", "88.70%", "175,696", "47", "18.6 M", "", "", "", "")
COLUMNS = (
    "trial", "slot", "attempt", "anchor", "state", "val_accuracy", "epochs_run", "params", "receptive_field",
    "receptive_field_with_pool", "macs", "n_dilated_reductions", "wall_s", "predicted_s", "candidate_id",
    "architecture_id", "training_seed", "repairs", "reason",
)  # fmt: skip


def publish(study: optuna.Study, run: Path, folder: Path) -> None:
    """Writes the record of `study`, whose folder is `run`, into `folder`."""
    from study.reporting.report import TRIALS, write_report
    from study.storage.database import stored

    trials, attrs = study.get_trials(deepcopy=False), study.user_attrs
    rows = [_row(trial) for trial in trials]
    reranked = _rerank(study)
    n_finished = sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows)
    older = evidence.read(folder / "study.json")
    record = {
        "command": " && ".join([*commands_of(study, run, n_finished), _publishing(study, folder)]),
        "study": study.study_name,
        **{key: attrs[key] for key in ("config", "target_accuracy", "hardware", "versions", "cost_model", "created")},
        "searching_s": searching_seconds(trials),
        "rerank": reranked,
        "trials": [
            {
                **row,
                "parameters": trial.params,
                "val_accuracy_by_epoch": _curve(trial),
                "candidate": stored(trial, "candidate"),
            }
            for row, trial in zip(rows, trials, strict=True)
        ],
    }
    evidence.write(folder / "study.json", record)
    html, markdown = write_report(study, run)
    for file in (markdown, run / TRIALS):
        shutil.copyfile(file, folder / file.name)
    if screenshot.browser() is not None:
        screenshot.take(html, folder / "report.png")
    elif older and older["created"] != attrs["created"]:
        (folder / "report.png").unlink(missing_ok=True)  # it shows another study
    draw_history(record, folder / "history.png")
    for name in bundles_in(folder):
        metrics = evidence.read(folder / name / METRICS)
        if "study" in metrics and metrics.get("study_created") != attrs["created"]:  # an earlier one of that name
            shutil.rmtree(folder / name)
    for name in bundles_in(run):
        _copy_bundle(run / name, folder / name)


def _copy_bundle(bundle: Path, published: Path) -> None:
    """Copies what is kept of a bundle, whole or not at all. How other formats of it do is measured where it is
    published: it stays, if the network does."""
    new = published.with_name(f".{published.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in kept_files(bundle):
        shutil.copyfile(bundle / name, new / name)
    _leave_out_places(new)
    if (published / EXPORTS).exists() and evidence.read(published / METRICS) == evidence.read(new / METRICS):
        shutil.copyfile(published / EXPORTS, new / EXPORTS)
    shutil.rmtree(published, ignore_errors=True)
    new.rename(published)


def _leave_out_places(bundle: Path) -> None:
    """From the command that made it, where that is told: in its metrics and on its card."""
    command = str(evidence.read(bundle / METRICS).get("command", ""))
    shorter = evidence.without_places(command)
    for file in (bundle / METRICS, bundle / CARD):
        if command and file.exists():
            old, new = (json.dumps(each)[1:-1] if file.suffix == ".json" else each for each in (command, shorter))
            file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def kept_files(bundle: Path) -> list[str]:
    """Of a published bundle, which stays small: `study.export` makes the program, and one form of the weights does."""
    left_out = {MODEL, *([WEIGHTS] if (bundle / NUMBERS).exists() else [])}
    return [name for name in FILES if name not in left_out and (bundle / name).exists()]


def bundles_in(folder: Path) -> list[str]:
    """Their names: those of `TITLES`, then those of trials that were asked for."""
    asked_for = [file.parent.name for file in folder.glob("trial-*[0-9]/metrics.json")]
    asked_for.sort(key=lambda name: (len(name), name))
    return [*(name for name in TITLES if (folder / name / "metrics.json").exists()), *asked_for]


def restored(record: dict[str, Any]) -> optuna.Study:
    """The study of a study.json, in memory, with its re-ranking: enough for its report where its database is gone.

    Of every hyperparameter only the values that were tried are known, so each is a choice between them.
    """
    import optuna

    from study.storage.database import storage_of
    from study.storage.reranked import origin, rerank_name

    def trial(row: dict[str, Any], choices: dict[str, list[Any]], **more: Any) -> optuna.trial.FrozenTrial:
        state = optuna.trial.TrialState[row.get("state", "COMPLETE")]
        return optuna.create_trial(
            state=state,
            value=row["val_accuracy"] if state == optuna.trial.TrialState.COMPLETE else None,
            params=row.get("parameters", {}),
            distributions={
                name: optuna.distributions.CategoricalDistribution(choices[name]) for name in row.get("parameters", {})
            },
            user_attrs={name: value for name, value in {**row, **more}.items() if value is not None},
            intermediate_values=dict(enumerate(row["val_accuracy_by_epoch"])),
        )

    study = optuna.create_study(study_name=record["study"], direction="maximize")
    for name in ("config", "target_accuracy", "hardware", "versions", "cost_model", "created"):
        study.set_user_attr(name, record[name])
    tried = [row["parameters"] for row in record["trials"]]
    names = {name for each in tried for name in each}
    choices = {name: list(dict.fromkeys(each[name] for each in tried if name in each)) for name in names}
    study.add_trials([trial(row, choices) for row in record["trials"]])
    if longer := record.get("rerank"):
        again = optuna.create_study(
            study_name=rerank_name(study.study_name), direction="maximize", storage=storage_of(study)
        )
        config = {**record["config"], "epochs": longer["epochs"], "train_images": longer["train_images"]}
        given = [{name: row[name] for name in ("trial", "setting") if name in row} for row in longer["trials"]]
        for name, value in {**origin(study), "config": config, "given": given}.items():
            again.set_user_attr(name, value)
        again.add_trials([trial(row, {}, slot=slot, candidate={}) for slot, row in enumerate(longer["trials"])])
    return study


def _publishing(study: optuna.Study, folder: Path) -> str:
    """What publishes `study` into `folder`."""
    named = [] if study.study_name == DEFAULT_SPACE else ["--study-name", study.study_name]
    name = [] if folder.name == study.study_name else ["--name", folder.name]
    return shlex.join(["python", "scripts/publish.py", *named, *name])


def commands_of(study: optuna.Study, run: Path, n_finished: int) -> list[str]:
    """What was typed to make the study in `run`; of a study from before that was kept, what repeats it today."""
    from study.reporting.facts import bundle_of
    from study.search.plan import DEFAULT_PRUNER, DEFAULT_SAMPLER
    from study.storage.database import config_of
    from study.storage.reranked import find_rerank

    config, longer, metrics = config_of(study), find_rerank(study), bundle_of(run) / METRICS
    repeat = f"python -m study.run --trials {n_finished}"
    for option, value, default in (
        ("--sampler", config.sampler, DEFAULT_SAMPLER),
        ("--pruner", config.pruner, DEFAULT_PRUNER),
    ):
        repeat += f" {option} {value}" * (value != default)
    found = list(study.user_attrs.get("commands", [repeat]))
    if longer is not None:
        found += longer.user_attrs.get("commands", ["python -m study.rerank"])
    if (trained := evidence.read(metrics)) is not None:
        found.append(trained.get("command", "python -m study.retrain"))
    return [evidence.without_places(each) for each in found]


def _rerank(study: optuna.Study) -> dict[str, Any] | None:
    """What the longer training of the best trials gave, best first."""
    from study.storage.database import config_of
    from study.storage.reranked import find_rerank, setting_of

    longer = find_rerank(study)
    if longer is None:
        return None
    config, trials, given = config_of(longer), longer.get_trials(deepcopy=False), longer.user_attrs["given"]
    complete = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: (-(t.value or 0.0), t.number))
    return {
        "epochs": config.epochs,
        "train_images": config.train_images,
        "searching_s": searching_seconds(trials),
        "trials": [
            {
                "trial": given[trial.user_attrs["slot"]]["trial"],
                "setting": setting_of(given[trial.user_attrs["slot"]]),
                "val_accuracy": trial.value,
                "val_accuracy_by_epoch": _curve(trial),
                "candidate_id": trial.user_attrs["candidate_id"],
            }
            for trial in complete
        ],
    }


def _row(trial: Any) -> dict[str, Any]:
    from study.reporting.facts import outcome
    from study.storage.database import stored

    curve = _curve(trial)
    return {
        **{name: stored(trial, name) for name in COLUMNS},
        "outcome": outcome(trial).value,
        "trial": trial.number,
        "state": trial.state.name,
        "val_accuracy": trial.value if trial.value is not None else (curve[-1] if curve else None),
        "epochs_run": len(curve),
    }


def _curve(trial: Any) -> list[float]:
    return [accuracy for _, accuracy in sorted(trial.intermediate_values.items())]


def searching_seconds(trials: Sequence[Any]) -> float:
    """Seconds in which at least one trial ran: pauses do not count, and trials at once count once. One that was killed
    ran for as long as its epochs took: its end was written down when somebody found it."""
    from study.reporting.facts import outcome, record_of
    from study.storage.outcome import Outcome

    spans = []
    for trial in trials:
        if trial.datetime_start and trial.datetime_complete:
            start, end = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
            if outcome(trial) == Outcome.INTERRUPTED:
                end = min(end, start + (record_of(trial).wall_s or 0.0))
            spans.append((start, end))
    seconds, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return seconds


def draw(record: dict[str, Any], file: Path) -> None:
    """The pictures of the study whose record is `file`, beside it: its trials, and its report's first screen."""
    from study.reporting.report import write_report

    draw_history(record, file.with_name("history.png"))
    if screenshot.browser() is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name in bundles_in(file.parent):
                shutil.copytree(file.parent / name, Path(folder) / name)
            html, _ = write_report(restored(record), Path(folder))
            screenshot.take(html, file.with_name("report.png"))


def draw_history(record: dict[str, Any], file: Path) -> None:
    """Trials in order with the best so far, and accuracy against parameters."""
    trials = [trial for trial in record["trials"] if trial["state"] in ("COMPLETE", "PRUNED")]
    best, steps = float("nan"), []
    points: dict[str, list[tuple[int, float, float]]] = {
        "pruned, when stopped": [], "complete, strided": [], "complete, dilated reduction": [],
    }  # fmt: skip
    for number, trial in enumerate(trials, 1):
        accuracy, kind = 100 * trial["val_accuracy"], "pruned, when stopped"
        if trial["state"] == "COMPLETE":
            best = accuracy if not accuracy <= best else best
            kind = "complete, dilated reduction" if trial["n_dilated_reductions"] else "complete, strided"
        points[kind].append((number, trial["params"] / 1000, accuracy))
        steps.append(best)
    figure, [left, right] = evidence.figure(10, 3.8, columns=2)
    for (label, found), style in zip(
        points.items(), (("#b8b8b8", "x"), ("#1f77b4", "o"), ("#d95f02", "D")), strict=True
    ):
        numbers, sizes, accuracies = zip(*found, strict=True) if found else ((), (), ())
        left.scatter(numbers, accuracies, c=style[0], marker=style[1], s=26, label=label)
        right.scatter(sizes, accuracies, c=style[0], marker=style[1], s=26)
    left.step(range(1, len(trials) + 1), steps, where="post", color="#444444", linewidth=1, label="best so far")
    left.set(xlabel="finished trial", ylabel="validation accuracy, %", title="Accuracy of the trials, in their order")
    right.set(xlabel="parameters, thousands", title="Accuracy against size")
    bound = record["config"]["limits"]["max_params"]
    right.axvline(bound / 1000, color="#888888", linestyle=":", linewidth=1, label=f"limit, {bound:,}")
    evidence.legend(figure, left, right)
    evidence.save(figure, file)


def lead(results: Path) -> str:
    """The study whose networks come first: the one searched on a GPU, once there is one."""
    return "best" if (results / "best" / "study.json").exists() else "dilated"


def headline(results: Path = RESULTS) -> str:
    """The table that README.md begins with."""
    head = ("network", "test accuracy", "parameters", "receptive field", "MACs", "epochs", "trained on", "time", "file")
    rows = []
    for study in dict.fromkeys((lead(results), *sorted(file.parent.name for file in results.glob("*/study.json")))):
        record = evidence.read(results / study / "study.json")
        anchors = {trial["trial"]: trial["anchor"] for trial in record["trials"]} if record else {}
        created = record.get("created") if record else None
        for bundle in bundles_in(results / study):
            m = evidence.read(results / study / bundle / "metrics.json")
            number = m.get("trial")
            default = "default of the space `{study}`, not searched for"
            is_default = anchors.get(number) == "default" and m.get("study_created") == created
            title = TITLES.get(bundle, default if is_default else f"trial {number} of `{{study}}`")
            n = len(m["seeds"])
            spread = "(1 seed)" if n == 1 else f"± {100 * m['test_accuracy_std']:.2f} ({n} seeds)"
            accuracy = f"**{percent(m['test_accuracy_mean'])}** {spread}"
            file = f"[metrics](results/{study}/{bundle}/metrics.json)"
            place = (str(m["epochs"]), evidence.machine(m["hardware"]), f"{m['wall_s'] / 60:.0f} min{for_all(n)}", file)
            rows.append((title.format(study=study), accuracy, *_sizes(m), *place))
    return evidence.table(head, [*rows, AS_PUBLISHED])


def _sizes(found: dict[str, Any]) -> tuple[str, str, str]:
    return f"{found['params']:,}", str(found["receptive_field"]), f"{found['macs'] / 1e6:.1f} M"


def exports_block(bundle: str, results: Path = RESULTS) -> str:
    """What results/README.md says of the formats that the network in `bundle` was exported to."""
    record = evidence.read(results / bundle / EXPORTS)
    if record is None:
        return evidence.NOTHING
    sizes = list(record["formats"][0]["latency_ms"])
    head = ("format", "size", "test accuracy", "answers as the network", *(f"ms for {n} at once" for n in sizes))
    rows = [
        (
            each["format"],
            f"{each['size_bytes'] / 2**10:,.0f} KiB",
            percent(each["accuracy"]),
            f"{each['same']:,} of {record['test_images']:,}",
            *(f"{each['latency_ms'][n]:.2f}" for n in sizes),
        )
        for each in record["formats"]
    ]
    made = f"{evidence.machine(record['hardware'])}, by {evidence.command_of(record)}."
    return f"{evidence.table(head, rows)}\n\n{made}"


def block(name: str, results: Path = RESULTS) -> str:
    """What results/README.md says of the published study `name`."""
    record = evidence.read(results / name / "study.json")
    if record is None:
        return evidence.NOTHING
    trials, config = record["trials"], record["config"]
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    finished = [trial for trial in trials if trial["state"] in ("COMPLETE", "PRUNED")]
    ended = Counter(trial.get("outcome", "failed") for trial in trials if trial["state"] == "FAIL")
    others = ", ".join(f"{n} {outcome}" for outcome, n in sorted({"failed": 0, **ended}.items()))
    text = (
        f"{len(complete)} trials complete, {len(finished) - len(complete)} pruned, {others}; "
        f"{sum(trial['epochs_run'] for trial in finished)} of {config['epochs'] * len(finished)} epochs spent; "
        f"{record['searching_s'] / 60:.0f} minutes on {evidence.machine(record['hardware'])}. Trials are short on "
        f"purpose ({config['epochs']} epochs of {config['train_images']:,} images): their accuracies rank candidates "
        "and say nothing about a full training."
    )
    ranked = sorted(complete, key=lambda trial: -trial["val_accuracy"])
    anchors = {trial["anchor"]: trial for trial in complete if trial["anchor"]}
    named = {
        "best": ranked[0],
        "best that reduces by a dilated convolution": next((t for t in ranked if t["n_dilated_reductions"]), None),
        "the space's default": anchors.get("default"),
        "the reference network": anchors.get("reference"),
    }
    rows = [
        (f"{title} (trial {trial['trial']})", percent(trial["val_accuracy"]), *_sizes(trial))
        for title, trial in named.items()
        if trial is not None
    ]
    text += "\n\n" + evidence.table(("trial", "validation accuracy", "parameters", "receptive field", "MACs"), rows)
    if longer := record.get("rerank"):
        names = [
            f"trial {each['trial']}" + (f" ({each['setting']})" if "setting" in each else "")
            for each in longer["trials"]
        ]
        accuracies = [percent(each["val_accuracy"]) for each in longer["trials"]]
        found = ", ".join(map(" ".join, zip(names, accuracies, strict=True)))
        text += (
            f"\n\nThe best of them trained again for {longer['epochs']} epochs of {longer['train_images']:,} images "
            f"({longer['searching_s'] / 60:.0f} minutes), on the same validation images: {found}."
        )
        first, trained = longer["trials"][0], evidence.read(results / name / "best" / METRICS) or {}
        if (trained.get("trial"), trained.get("reranked_setting")) == (first["trial"], first.get("setting")):
            text += " The first is the one retrained."
    return text
