"""A bundle of an earlier version, with no more than a prediction needs: no config.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study.model.network import build

CANDIDATE = Candidate(Architecture((Conv(8, stride=2), Conv(8, dilation=2, separable=True))))


def write_older_bundle(folder: Path) -> Path:
    (folder / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (folder / "metrics.json").write_text("{}")
    torch.save(build(CANDIDATE.architecture, seed=3).state_dict(), folder / "weights.pt")
    return folder
