"""Re-rank: train the best candidates of a study longer, and rank them anew.

    python -m study.rerank --top 8 --epochs 80

Short trials find good candidates; which of the best is the very best, they cannot tell. The re-ranking is a
study of its own, `<study-name>-rerank`, in the same storage, and never counts among the trials of the search.
It is stopped and resumed as a search is. `study.retrain` prefers its winner.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.candidate import Candidate
from search_spaces.training_dimensions import lengthened
from study.errors import Parser, UserError, run_command
from study.paths import run_dir
from study.run import Given, Run, jobs_option, new_study

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from study.calibration import Calibration

FIDELITY = {
    # device: (candidates, epochs); on all images that are not for validation
    "cpu": (4, 8),
    "cuda": (8, 80),
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    for name in ("top", "epochs", "jobs"):
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name} must be at least 1: {value}.")
    from study.calibration import resolve_device
    from study.options import storage_url, study_name
    from study.storage import open_study

    url, name = storage_url(options), study_name(options)
    source = open_study(url, name)
    top = FIDELITY[resolve_device(options.device)][0]
    return _Rerank(options, url, source, best_candidates(source, options.top, top), run_dir(name, options.out)).run()


def rerank_name(study_name: str) -> str:
    """Name of the study that re-ranks the candidates of another."""
    return f"{study_name}-rerank"


def find_rerank(study: optuna.Study) -> optuna.Study | None:
    """The re-ranking of `study`, if it has a finished trial."""
    import optuna

    name = rerank_name(study.study_name)
    if name not in optuna.get_all_study_names(study._storage):
        return None
    found = optuna.load_study(study_name=name, storage=study._storage)
    complete = found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return found if complete and "given" in found.user_attrs else None


def best_candidates(study: optuna.Study, asked: int | None, default: int) -> list[FrozenTrial]:
    """The `asked` best complete trials of different candidates, else as many as there are up to `default`.

    Raises:
        UserError: There are fewer than asked for, or none.
    """
    from study.storage import best_trial

    best_trial(study)  # refuses a study without any
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    different = list({trial.user_attrs["candidate_id"]: trial for trial in reversed(complete)}.values())[::-1]
    if asked is not None and asked > len(different):
        raise UserError(f"--top must not exceed the {len(different)} complete trials of {study.study_name!r}: {asked}.")
    return different[: asked or default]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.rerank",
        description="Train the best candidates of a study longer and rank them anew; study.retrain then prefers the "
        "winner. Omitted options of an existing re-ranking take its stored values.",
    )
    from study.options import add_study_options

    add_study_options(parser)
    (cpu_top, cpu_epochs), (top, epochs) = FIDELITY["cpu"], FIDELITY["cuda"]
    parser.add_argument(
        "--top", type=int, metavar="N", help=f"candidates (default: {cpu_top} on a CPU, {top} on a GPU)"
    )
    parser.add_argument("--epochs", type=int, help=f"(default: {cpu_epochs} on a CPU, {epochs} on a GPU)")
    parser.add_argument("--train-images", type=int, metavar="N", help="(default: all 45,000 that do not validate)")
    parser.add_argument("--val-images", type=int, metavar="N", help="(default: 5,000)")
    parser.add_argument("--timeout", type=float, metavar="S", help="start no training after S seconds (default: none)")
    parser.add_argument("--jobs", type=jobs_option, default="auto", metavar="N", help="at once (default: auto)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    return parser


class _Rerank(Run):
    """A run whose slots are the best candidates of another study."""

    def __init__(
        self, options: argparse.Namespace, url: str, source: optuna.Study, best: Sequence[FrozenTrial], out: Path
    ) -> None:
        nothing = ("space", "seed", "pruner", "sampler", "precision", "target_accuracy")
        for name in (*nothing, "max_params", "min_receptive_field", "max_macs", "max_epoch_s"):
            setattr(options, name, None)  # those are the source's
        super().__init__(options, url, rerank_name(source.study_name), out / "rerank")
        self.source = source
        self.best = best
        options.trials = len(best)

    def _descriptions(self, n_images: int) -> list[dict[str, Any]]:
        """The candidates, augmented as their `n_images` images with repetitions ask for."""
        found = []
        for trial in self.best:
            candidate = Candidate.from_json(trial.user_attrs["candidate"])
            candidate = dataclasses.replace(candidate, augmentation=lengthened(candidate.augmentation, n_images))
            description = {"name": f"trial {trial.number}", "trial": trial.number, "params": trial.params}
            found.append({**description, "candidate": candidate.to_json()})
        return found

    def _existing(self) -> tuple[optuna.Study, optuna.storages.RDBStorage] | None:
        from study.storage import config_of

        found = super()._existing()
        if found is None:
            return None
        study = found[0]
        config, known = config_of(study), study.user_attrs["given"]
        # What was begun stays; a larger --top adds the next best.
        numbers = {given["trial"] for given in known}
        wanted = max(len(known), self.options.top or 0)
        best = self._descriptions(config.epochs * config.train_images)
        added = [given for given in best if given["trial"] not in numbers][: wanted - len(known)]
        if added:
            study.set_user_attr("given", known + added)
        self.options.trials = len(known) + len(added)
        return found

    def _create(self, device: str, calibration: Calibration) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
        from study.data import N_SEARCH, N_VALIDATION
        from study.storage import config_of

        options, source = self.options, config_of(self.source)
        config = dataclasses.replace(
            source,
            epochs=options.epochs or FIDELITY[device][1],
            train_images=options.train_images or N_SEARCH,
            val_images=options.val_images or N_VALIDATION,
            pruner="none",
            sampler="random",
            precision=calibration.precision,
            limits=dataclasses.replace(source.limits, max_epoch_s=None),  # it was for shorter epochs
        )
        given = self._descriptions(config.epochs * config.train_images)
        more = {"rerank_of": self.source.study_name, "given": given}
        return new_study(self.url, self.name, config, calibration, self.source.user_attrs["target_accuracy"], **more)

    def _given(self, study: optuna.Study) -> list[Given] | None:
        given: list[dict[str, Any]] = study.user_attrs["given"]
        return [Given(each["name"], each["params"], each["candidate"]) for each in given]

    def _retrained_name(self) -> str:
        return self.source.study_name


if __name__ == "__main__":
    run_command(main)
