"""The `best` space: the few dimensions of `multiscale` that are worth 50 trials.

    best
    |- architecture             `multiscale` with most of its structure fixed: layer norm, grouped reduction,
    |   |                       identity | 3x3 | 7x7 | 7x7 dilated on a quarter of the channels each
    |   |- stage 1, 32x32       depth_1 blocks, w1 wide, dilation_1
    |   |- stage 2, 16x16       depth_2 blocks, w2 = width_ratio * w1, dilation_2
    |   |- expansion            width of each half of the gated pair, relative to the block's
    |   |- activation           of the gate: gelu | silu
    |   |- residual_scale       learned, per channel: body (starts small) | identity (starts at 1)
    |   `- budget_frac          share of the parameter limit; w1 is solved to spend it
    |- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
    |                           dropout_p, dropout_hole, colour_p, colour_strength, sharpen_p, mixup
    `- optimisation             optimizer (sgd | adamw | muon), lr, weight_decay, adamw_lr, adamw_weight_decay,
                                muon_lr, muon_weight_decay, label_smoothing, warmup_frac

Studies decide what belongs here: the family is the one of the strongest public network of this size
(`search_spaces.yardstick`), and what is fixed is as it is there until a study shows better. The batch size is
fixed too: trials are compared at equal numbers of images, where small batches win by their many steps, and with
them a GPU does fewer images in a second (results/README.md has the figures). Where a limit on the predicted
seconds of an epoch is set, as on a CPU, it narrows the networks, as in every space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.constraints import Clock, Limits
from search_spaces.fitting import BUDGET_FRAC
from search_spaces.multiscale import GROUPED, MultiscaleSpace
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace, column
from search_spaces.training_dimensions import DEFAULT_TRAINING, LONG_DIMENSIONS, TRAINING_DIMENSIONS

_TREE = (__doc__ or "").split("\n\n")[1]

_FIXED: dict[str, Any] = {
    "reduction": GROUPED,
    "identity": True,
    "small_kernel": 3,
    "large_kernel": 7,
    "dilated_kernel": 7,
    "join": "concat",
    "norm": "layer",
    "batch_size": 256,
}
"""What `multiscale` samples and this space does not."""

_SAMPLED: dict[str, tuple[Dimension, Any]] = {  # and its values in the default
    "budget_frac": (BUDGET_FRAC, 1.0),
    "depth_1": (Integer(2, 5), 2),
    "depth_2": (Integer(2, 6), 5),
    "width_ratio": (Real(1.25, 2.25), 1.5),
    "dilation_1": (Integer(2, 5), 3),
    "dilation_2": (Integer(2, 5), 2),
    "expansion": (Real(0.75, 2.0), 1.0),
    "activation": (Choice(("gelu", "silu")), "silu"),
    "residual_scale": (Choice(("body", "identity")), "identity"),
}
_SHARED = {name: each for name, each in TRAINING_DIMENSIONS.items() if name not in _FIXED}
_DIMENSIONS = {**column(_SAMPLED, 0), **LONG_DIMENSIONS, **_SHARED}
_DEFAULT_PARAMS: dict[str, Any] = {
    **column(_SAMPLED, 1),
    "colour_p": 0.0,
    "colour_strength": 0.1,
    "sharpen_p": 0.0,
    "mixup": 0.0,
    "warmup_frac": 0.2,
    **{name: value for name, value in DEFAULT_TRAINING.items() if name not in _FIXED},
}
"""Under the default limits 64 and 96 channels wide: branches of 16 and 24, which a GPU's kernels like, and nearly all
parameters spent."""


class BestSpace(SearchSpace):
    """See the module's tree."""

    name = "best"
    version = 4
    tree = _TREE
    dimensions = _DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        return MultiscaleSpace().decode({**_FIXED, **params}, limits, clock)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        return {"default": dict(_DEFAULT_PARAMS)}
