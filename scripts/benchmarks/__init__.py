"""One module per benchmark; `scripts/benchmark.py` is the command."""
