"""The reference network: the published one to reproduce exactly, then to beat.

175,696 parameters, receptive field 47 (50 with the pooling). Stride 1 everywhere: dilated unpadded
kernels do what max pooling would do (dilation 8 takes 32x32 to 16x16, dilation 4 takes 16x16 to 8x8).
"""

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from search_spaces.training_dimensions import DEFAULT_TRAINING, decode_augmentation, decode_optimisation

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
    REFERENCE_ARCHITECTURE, decode_augmentation(DEFAULT_TRAINING), decode_optimisation(DEFAULT_TRAINING)
)
"""The published network, trained by `DEFAULT_TRAINING`, as the defaults of spaces are (but for some batch sizes).

The kinds of augmentation are those it was published with. SGD, with which it was trained here before, is behind Muon
after ten epochs (results/README.md).
"""
