"""What `scripts/gpu_study.py` is made of."""
