"""Ten thousand hostile inputs end well or in one line: `python -m pytest -m slow tests/study/test_fuzz.py`.

What may come of an input: it is taken, or refused by the error that its reader names. Everything else is a bug, and
Hypothesis shrinks the input that shows it. The same inputs in every run.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from safetensors.torch import save_file

from search_spaces.architecture import Architecture, Branch, Branches, Conv, Gated, Residual
from search_spaces.candidate import Candidate
from search_spaces.cost import CostModel
from search_spaces.fields import DescriptionError
from study import describe, predict, report, rerank, retrain, run
from study.bundle.files import describe_bundle, load_bundle
from study.bundle.preprocessing import Preprocessing
from study.data.image_files import UnreadableImageError, read_image
from study.errors import UserError
from study.machine.paths import RESULTS
from study.model.network import build
from study.reporting.page import to_markdown
from study.reporting.report import build_page
from study.storage.config import StudyConfig
from study.storage.database import config_of, hide_password, open_storage, sqlite_file

pytestmark = pytest.mark.slow

N_INPUTS = {
    "candidates": 1_900,
    "described": 500,
    "configurations": 1_800,
    "weights": 600,
    "metrics": 400,
    "preprocessing": 300,
    "images": 2_100,
    "urls": 1_000,
    "storages": 200,
    "databases": 100,
    "attributes": 100,
    "options": 1_000,
}
"""Cheap ones many, dear ones few."""

CANDIDATE = Candidate(
    Architecture(
        (
            Conv(4, stride=2),
            Residual((Conv(4, dilation=2), Gated(4, 3)), scaled="body", times=2),
            Branches((Branch(1), Branch(3))),
            Conv(6, kernel=2, stride=2, separable=False, norm_type="layer"),
        )
    )
)
METRICS = {"test_accuracy": [0.5], "test_accuracy_shipped": 0.5, "shipped_seed": 0, "hardware": {"device": "cpu"}}
CONFIG = StudyConfig("dilated", 1, 2, 200, 100, 0, "halving", "anchored", "float32")

HOSTILE: Sequence[Any] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 64, 4096, -5, 2**31, 2**63, 2**64, 10**300, 10**4200, 0.5, -0.0, 1e308,
    1e-308, float("nan"), float("inf"), float("-inf"), "", "batch", "residual", "\ud800", "\0", "../../x", "x" * 300,
    [], {}, [[]], [1, 2], {"kind": "residual"}, {"kind": "conv", "out_channels": 4}, [{}] * 2000,
)  # fmt: skip

Edit = tuple[int, str, Any]
edits = st.lists(
    st.tuples(
        st.integers(0, 200), st.sampled_from(("set", "drop", "rename", "double", "nest")), st.sampled_from(HOSTILE)
    ),
    min_size=1,
    max_size=3,
)
"""Of a JSON document: which place, what is done there, with which value."""
damages = st.tuples(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0, 2))
"""Of a file: bytes at parts of its length, and where it ends."""


def fuzz(part: str, *inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Calls the decorated function with as many inputs as `N_INPUTS` says."""

    def call(check: Callable[..., None]) -> None:
        count = 0

        def counted(values: tuple[Any, ...]) -> None:
            nonlocal count
            count += 1
            check(*values)

        chosen = settings(
            max_examples=N_INPUTS[part],
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        chosen(given(values=st.tuples(*inputs))(counted))()
        assert count >= N_INPUTS[part]

    return call


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside `node`."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


def edited(document: Any, changes: Sequence[Edit]) -> Any:
    document = copy.deepcopy(document)
    for index, action, value in changes:
        found = list(places(document))
        if not found:
            break
        node, key = found[index % len(found)]
        if action == "set" or (action == "rename" and not isinstance(node, dict)):
            node[key] = copy.deepcopy(value)
        elif action == "drop":
            del node[key]
        elif action == "rename":
            node[str(value)[:50]] = node.pop(key)
        elif action == "double":
            node[key] = [node[key], copy.deepcopy(node[key])]
        else:
            node[key] = {"body": node[key]}
    return document


def damaged(content: bytes, damage: tuple[list[tuple[float, int]], float]) -> bytes:
    changed = bytearray(content)
    changes, end = damage
    for place, value in changes:
        changed[min(len(changed) - 1, int(place * len(changed)))] = value
    return bytes(changed[: int(end * len(changed))])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of hostile inputs lead into an empty folder, and Hypothesis writes there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("study.machine.paths.RUNS", tmp_path / "runs")
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "no data"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    set_hypothesis_home_dir(tmp_path / "hypothesis")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    state = build(CANDIDATE.architecture, seed=3).state_dict()
    torch.save(state, folder / "weights.pt")
    save_file(state, folder / "weights.safetensors")
    return folder


def test_there_are_ten_thousand() -> None:
    assert sum(N_INPUTS.values()) == 10_000


def test_candidates() -> None:
    @fuzz("candidates", edits)
    def _(changes: list[Edit]) -> None:
        with suppress(DescriptionError):
            candidate = Candidate.from_json(edited(CANDIDATE.to_json(), changes))
            assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_what_is_described(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @fuzz("described", edits, st.booleans())
    def _(changes: list[Edit], as_json: bool) -> None:
        text = json.dumps(edited(CANDIDATE.to_json(), changes))
        (bundle / "candidate.json").write_text(text)
        refused(lambda: describe.main([str(bundle), *["--json"] * as_json]))
        capsys.readouterr()


def test_configurations() -> None:
    @fuzz("configurations", edits)
    def _(changes: list[Edit]) -> None:
        stored = {"config": edited(CONFIG.to_json(), changes)}
        study = cast(optuna.Study, SimpleNamespace(study_name="made", user_attrs=stored))
        refused(lambda: config_of(study))


def test_weights(bundle: Path) -> None:
    safe, older = bundle / "weights.safetensors", bundle / "weights.pt"
    whole = {file: file.read_bytes() for file in (safe, older)}
    head = 8 + int.from_bytes(whole[safe][:8], "little")  # of the safe form, whose rest is numbers

    @fuzz("weights", damages, st.booleans(), st.booleans())
    def _(damage: Any, is_safe: bool, in_head: bool) -> None:
        file = safe if is_safe else older
        safe.unlink(missing_ok=True)
        end = head if is_safe and in_head else len(whole[file])
        file.write_bytes(damaged(whole[file][:end], damage) + whole[file][end:])
        refused(lambda: load_bundle(bundle))


def test_metrics_and_bytes_of_json(bundle: Path) -> None:
    """All that a retrain writes there; a model card is made of it."""
    whole = json.loads((RESULTS / "best" / "trial-0" / "metrics.json").read_text())

    @fuzz("metrics", edits, damages, st.booleans())
    def _(changes: list[Edit], damage: Any, as_bytes: bool) -> None:
        content = json.dumps(edited(whole, changes)).encode()
        (bundle / "metrics.json").write_bytes(damaged(content, damage) if as_bytes else content)
        refused(lambda: describe_bundle(load_bundle(bundle)))


def test_preprocessing(bundle: Path) -> None:
    whole = json.loads(Preprocessing().to_text())

    @fuzz("preprocessing", edits, damages, st.booleans())
    def _(changes: list[Edit], damage: Any, as_bytes: bool) -> None:
        content = json.dumps(edited(whole, changes)).encode()
        (bundle / "config.json").write_bytes(damaged(content, damage) if as_bytes else content)
        refused(lambda: load_bundle(bundle))


def test_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    files = []
    for kind, modes in {
        "PNG": ("RGB", "RGBA", "P", "LA", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "GIF": ("P",),
        "TIFF": ("RGB", "CMYK", "F", "I", "LAB", "I;16"),
        "BMP": ("RGB", "P", "1"),
        "WEBP": ("RGB",),
    }.items():
        for mode in modes:
            stream = io.BytesIO()
            source = pixels.convert("L") if mode in ("LA", "F", "I", "I;16") else pixels
            source.convert(mode).save(stream, kind)
            files.append(stream.getvalue())

    @fuzz("images", st.sampled_from(files), damages)
    def _(content: bytes, damage: Any) -> None:
        (tmp_path / "image").write_bytes(damaged(content, damage))
        with suppress(UnreadableImageError):
            assert read_image(tmp_path / "image", 32).shape == (32, 32, 3)


PARTS = st.sampled_from(
    ("sqlite", "postgresql+psycopg", "mysql", "oracle", "redis", "", "://", ":///", "//", "/", "@", ":", "?", "#",
     "%00", "%", "\0", "\ud800", "user", "secret", "127.0.0.1", "[::1", "1", "99999999", "study.db", ":memory:", "..x",
     "file:a", "mode=ro", "uri=true", "timeout=x", "check_same_thread=0", "&", "=", " ", "\n", "x" * 300)
)  # fmt: skip
urls = st.one_of(
    st.lists(PARTS, max_size=8).map("".join),
    st.lists(PARTS, max_size=4).map(lambda words: "sqlite:///" + "".join(words)),
)


def test_urls() -> None:
    @fuzz("urls", urls)
    def _(url: str) -> None:
        hide_password(url)
        sqlite_file(url)


def test_storages() -> None:
    @fuzz("storages", urls.filter(lambda url: "sqlite:////" not in url))
    def _(url: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused(lambda: report.main(["--storage", url]))


def test_databases(tmp_path: Path) -> None:
    file = tmp_path / "whole.db"
    storage = open_storage(f"sqlite:///{file}")
    study = optuna.create_study(study_name="made", storage=storage, direction="maximize")
    study.set_user_attr("config", CONFIG.to_json())
    storage.engine.dispose()
    whole = file.read_bytes()

    @fuzz("databases", damages)
    def _(damage: Any) -> None:
        for each in tmp_path.glob("damaged.db*"):
            each.unlink()
        (tmp_path / "damaged.db").write_bytes(damaged(whole, damage))
        url = f"sqlite:///{tmp_path / 'damaged.db'}"
        refused(lambda: report.main(["--storage", url, "--study-name", "made", "--out", str(tmp_path / "out")]))


def test_attributes_of_a_database(tmp_path: Path) -> None:
    """Whoever may write to a shared database may write anything."""
    of_study = {
        "cost_model": CostModel(1e-9, 1e-8, 1e-8, 1e-8, 1e-5, 1e-4, "cpu").to_json(),
        "hardware": {"device": "cpu", "cpu": "x", "n_cores": 2},
        "versions": {"torch": "2"},
        "created": "2026-01-01T00:00:00+00:00",
        "target_accuracy": 0.85,
        "commands": ["python -m study.run"],
    }
    of_trial = {
        "slot": 0,
        "params": 100,
        "receptive_field": 50,
        "receptive_field_with_pool": 60,
        "macs": 1000,
        "n_dilated_reductions": 1,
        "anchor": "default",
        "candidate_id": "abc",
        "candidate": CANDIDATE.to_json(),
        "wall_s": 1.0,
        "repairs": ["narrower"],
        "curve": [{"epoch": 0, "n_val": 10}],
        "outcome": "complete",
        "reason": "",
    }

    @fuzz("attributes", edits, edits)
    def _(of_this_study: list[Edit], of_this_trial: list[Edit]) -> None:
        study = optuna.create_study(direction="maximize")
        for name, value in {**edited(of_study, of_this_study), "config": CONFIG.to_json()}.items():
            study.set_user_attr(name, value)
        attributes = edited(of_trial, of_this_trial)
        study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=attributes, intermediate_values={0: 0.5}))
        refused(lambda: to_markdown(build_page(study, tmp_path)))


OPTIONS = st.sampled_from(
    ("--trials", "--jobs", "--device", "--data", "--timeout", "--checkpoint-every", "--storage", "--study-name",
     "--out", "--space", "--seed", "--sampler", "--pruner", "--epochs", "--train-images", "--val-images", "--precision",
     "--max-params", "--max-macs", "--max-epoch-s", "--min-receptive-field", "--target-accuracy", "--trial",
     "--reference", "--teacher", "--teacher-epochs", "--seeds", "--augmentation", "--top", "--json", "--help", "-x",
     "--", "reference", "dilated", "image.png")
)  # fmt: skip
VALUES = st.sampled_from(
    ("1", "0", "-1", "2", "0.5", "nan", "inf", "-inf", "1e308", "1e999", "9" * 5000, "auto", "cpu", "cuda", "", " ",
     "\0", "\n", "\ud800", "../..", "/dev/null", "x" * 300, "float32", "tpe", "none", "stored", "sqlite:///x?y=%", "=",
     "\u0661")
)  # fmt: skip


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    commands: dict[str, Callable[[list[str]], Any]] = {
        # These would search and train: as far as their plans.
        **{
            each.__name__: lambda argv, each=each: each._plan(each._parser().parse_args(argv), argv)
            for each in (run, rerank, retrain)
        },
        **{each.__name__: each.main for each in (report, describe, predict)},
    }

    @fuzz("options", st.sampled_from(sorted(commands)), st.lists(st.one_of(OPTIONS, VALUES), max_size=5))
    def _(command: str, argv: list[str]) -> None:
        refused(lambda: commands[command](argv))
        capsys.readouterr()


def refused(run: Callable[[], Any]) -> None:
    """Lets `run` refuse what it was given; a parser ends after `--help`."""
    with suppress(UserError):
        try:
            run()
        except SystemExit as error:
            if error.code not in (0, 2):
                raise
