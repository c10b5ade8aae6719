"""Questions about the search itself, each answered by a script of its own and a block of results/README.md."""
