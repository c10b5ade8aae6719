"""What may be searched: architectures, constraints, and one file per search space. No torch here."""

from __future__ import annotations

from search_spaces.best import BestSpace
from search_spaces.dilated import DilatedSpace
from search_spaces.multiscale import MultiscaleSpace
from search_spaces.separable import SeparableSpace
from search_spaces.space import SearchSpace

__all__ = ["DEFAULT_SPACE", "GPU_SPACE", "SPACES", "SearchSpace", "UnknownSpaceError", "get_space"]

SPACES: dict[str, type[SearchSpace]] = {
    space.name: space for space in (BestSpace, DilatedSpace, MultiscaleSpace, SeparableSpace)
}
"""Every search space by the name that `--space` takes. Another space: one file, one entry here."""

DEFAULT_SPACE, GPU_SPACE = DilatedSpace.name, BestSpace.name
"""What is searched unless a space is named: convolutions that a CPU is quick at, and what only a GPU affords."""


class UnknownSpaceError(ValueError):
    """No space of that name is registered."""


def get_space(name: str) -> SearchSpace:
    """The space called `name`.

    Raises:
        UnknownSpaceError: There is none.
    """
    if name not in SPACES:
        raise UnknownSpaceError(f"No search space is called {name!r}; there is: {', '.join(sorted(SPACES))}.")
    return SPACES[name]()
