"""The study: search, retrain, report, predict and describe small CIFAR-10 networks."""

import os

# albumentations asks a server for its newest version on import unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait for each other spin for a moment, then sleep. Sleeping at once costs a third of the
# throughput (a training step has hundreds of such moments); spinning on takes the cores from a neighbour
# that has work for them. Read when torch's OpenMP runtime loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
# oneDNN keeps its kernels for 1,024 shapes; a study meets new ones in every trial. A network needs about 100.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
