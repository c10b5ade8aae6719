"""Numbers that cannot be meant are refused by the option that takes them."""

from __future__ import annotations

import argparse

import pytest

from study.command_line.numbers import above, at_least, between, fraction, whole_or_auto
from study.errors import UserError


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", action=at_least(1), default=50)
    parser.add_argument("--jobs", action=at_least(1), type=whole_or_auto)
    parser.add_argument("--seed", action=at_least(0))
    parser.add_argument("--train-images", action=between(10, 50_000))
    parser.add_argument("--max-epoch-s", action=above(0))
    parser.add_argument("--worker-gpus", action=above(0, "GPUs"))
    parser.add_argument("--target", action=fraction())
    return parser


def test_what_is_meant_is_kept(parser: argparse.ArgumentParser) -> None:
    options = parser.parse_args(["--jobs", "2", "--seed", "0", "--train-images", "10", "--max-epoch-s", "1e-9"])
    assert (options.trials, options.jobs, options.seed, options.train_images) == (50, 2, 0, 10)
    assert (options.max_epoch_s, options.target) == (1e-9, None)
    assert parser.parse_args(["--jobs", "auto"]).jobs is None
    assert parser.parse_args(["--target", "0.85"]).target == 0.85


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trials 0", "--trials must be at least 1: 0."),
        ("--jobs 0", "--jobs must be at least 1: 0."),
        ("--seed -1", "--seed must not be negative: -1."),
        ("--train-images 60000", "--train-images must be between 10 and 50,000: 60,000."),
        ("--worker-gpus 0", "--worker-gpus must be above 0 GPUs: 0."),
        ("--max-epoch-s 0", "--max-epoch-s must be above 0 seconds: 0."),
        ("--max-epoch-s nan", "--max-epoch-s must be above 0 seconds: nan."),
        ("--target 85", "--target is a fraction between 0 and 1: 85. For 85% write 0.85."),
        ("--target 1", "--target is a fraction between 0 and 1: 1."),
        ("--target nan", "--target is a fraction between 0 and 1: nan."),
    ],
)
def test_what_cannot_be_meant_is_refused(words: str, said: str, parser: argparse.ArgumentParser) -> None:
    with pytest.raises(UserError) as caught:
        parser.parse_args(words.split())
    assert str(caught.value) == said
