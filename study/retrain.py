"""Retrain the best trial on all training images, test it once, and write the bundle.

    python -m study.retrain                     the study's best trial -> results/runs/<study>/best/
    python -m study.retrain --trial 12          another trial          -> .../trial-12/
    python -m study.retrain --reference         the reference network  -> .../reference/
    python -m study.retrain --yardstick         a published network by the best trial's recipe -> .../yardstick/
    python -m study.retrain --teacher           the best trial learns from a larger network -> .../best-distilled/
    python -m study.retrain --evaluate BUNDLE   tests a shipped bundle again

No test image is loaded before the last optimizer step of the last seed. The last epoch is reported,
not the best one; the test curve is drawn afterwards from kept snapshots, and nothing chooses from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from search_spaces.teacher import TEACHER
from search_spaces.yardstick import YARDSTICK
from study.command_line.numbers import at_least, fraction
from study.command_line.options import add_study_options, add_training_options, by_device, cluster_of, place_of
from study.command_line.parser import Parser, run_command
from study.command_line.waiting import say_first
from study.errors import UserError
from study.retraining.plan import SEEDS, RetrainPlan
from study.storage.config import DEFAULT_TARGET, RETRAIN_EPOCHS

OF_TRAINING = (
    *("epochs", "seeds", "jobs", "train_images", "augmentation", "teacher", "teacher_epochs", "target_accuracy"),
    *("cluster", "worker_cpus", "worker_gpus", "space", "storage", "study_name", "out"),
)
"""Options that say what to train, how and where, or what the result is measured by."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.evaluate is not None:
        parser.refuse_beside("--evaluate", options, OF_TRAINING)
    if options.teacher_epochs is not None and not options.teacher:
        raise UserError(f"--teacher-epochs {options.teacher_epochs} needs --teacher.")
    if options.evaluate is not None:
        say_first(f"Testing the bundle {options.evaluate} again")
        from study.retraining.testing import evaluate_bundle

        return evaluate_bundle(Path(options.evaluate), options.data, options.device)
    chosen = "the best trial" if options.trial is None else f"trial {options.trial}"
    what = "the reference network" if options.reference else "the published network" if options.yardstick else chosen
    say_first(f"Retraining: {what}, in {place_of(options).out}")
    from study.retraining.retraining import retrain

    return retrain(_plan(options, argv))


def _plan(options: argparse.Namespace, argv: Sequence[str] | None) -> RetrainPlan:
    from study.storage.commands import command_of

    place = place_of(options)
    return RetrainPlan(
        url=place.url,
        name=place.name,
        out=place.out,
        what="reference" if options.reference else "yardstick" if options.yardstick else "best",
        trial=options.trial,
        epochs=options.epochs,
        n_seeds=options.seeds,
        jobs=options.jobs,
        device=options.device,
        data=options.data,
        n_train=options.train_images,
        augmentation=options.augmentation,
        teacher=options.teacher,
        teacher_epochs=options.teacher_epochs,
        target_accuracy=options.target_accuracy,
        cluster=cluster_of(options),
        command=command_of("study.retrain", argv, options.storage),
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m study.retrain",
        description="Retrain the best trial on all training images, test it once, write the bundle.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--trial", type=int, metavar="N", help="this trial instead of the best one")
    what.add_argument("--reference", action="store_true", help="the reference network; needs no study")
    what.add_argument(
        "--yardstick",
        action="store_true",
        help=f"the published network of {YARDSTICK.architecture.params:,} parameters, trained as the best trial is (it "
        "pools, so it is no candidate)",
    )
    what.add_argument("--evaluate", metavar="BUNDLE", help="test a bundle again and compare with its record")
    parser.add_argument("--epochs", action=at_least(1), help=f"(default: {by_device(**RETRAIN_EPOCHS)})")
    parser.add_argument("--seeds", action=at_least(1), help=f"(default: {by_device(**SEEDS)})")
    add_training_options(parser, "seeds")
    parser.add_argument(
        "--train-images", action=at_least(1), help="so many only, of every class, for a trial run (default: all)"
    )
    parser.add_argument(
        "--augmentation",
        choices=("lengthened", "stored"),
        default="lengthened",
        help="raise the strengths of the trial, or of the re-ranking's winner, for the longer training, on a CPU with "
        "smaller images first, or leave all as it was (default: lengthened)",
    )
    parser.add_argument(
        "--teacher",
        action="store_true",
        help=f"first train a larger network of {TEACHER.architecture.params:,} parameters on the same images, then "
        "learn from it",
    )
    parser.add_argument("--teacher-epochs", action=at_least(1), help="(default: as many as --epochs)")
    target = f"test accuracy to pass, a fraction (default: the study's, else {DEFAULT_TARGET:g} for CIFAR-10)"
    parser.add_argument("--target-accuracy", action=fraction(), help=target)
    add_study_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main, resumes=True)
