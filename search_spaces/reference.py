"""The reference network: the published one to reproduce exactly, then to beat.

175,696 parameters, receptive field 47 (50 with the pooling). Stride 1 everywhere: dilated unpadded
kernels do what max pooling would do (dilation 8 takes 32x32 to 16x16, dilation 4 takes 16x16 to 8x8).
"""

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Augmentation, Candidate, Optimisation

REFERENCE_ARCHITECTURE = Architecture(
    layers=(
        Conv(16),
        Conv(16),
        Conv(16),
        Conv(16, dilation=8, padded=False),  # 32x32 -> 16x16
        Conv(32),
        Conv(32),
        Conv(32, separable=True, bias=True),
        Conv(64, dilation=4, padded=False),  # 16x16 -> 8x8
        Conv(64),
        Conv(64),
        Conv(64),
        Conv(32, padded=False),  # 8x8 -> 6x6
        Conv(16, padded=False),  # 6x6 -> 4x4
    )
)

REFERENCE = Candidate(
    REFERENCE_ARCHITECTURE,
    Augmentation(
        flip_p=0.5,
        crop_padding=0,
        affine_p=0.5,
        shift_frac=0.1,
        scale_frac=0.1,
        rotate_deg=10.0,
        dropout_p=0.25,
        dropout_hole=8,
    ),
    Optimisation(lr=0.1, batch_size=128, weight_decay=5e-4, label_smoothing=0.0),
)
"""The published network with the kinds of augmentation it was published with, at light strengths."""
