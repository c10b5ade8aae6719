"""The study: search, retrain, report, predict and describe small CIFAR-10 networks."""

import os

# albumentations asks a server for its newest version on import unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait for each other must sleep, not spin: a neighbour on the same cores (augmentation,
# another worker) otherwise slows training several-fold. Read when torch's OpenMP runtime loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
