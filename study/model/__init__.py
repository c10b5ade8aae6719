"""An architecture as a torch module, and what is read off it."""

from study.model.network import build

__all__ = ["build"]
