"""This machine: cores and GPUs, memory, processes, folders, what was measured here."""
