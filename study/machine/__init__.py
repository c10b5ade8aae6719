"""This machine: cores and GPUs, memory, processes, folders and files, what was measured here."""
