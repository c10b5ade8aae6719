"""A trained network as files that others can use."""

from study.bundle.files import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
