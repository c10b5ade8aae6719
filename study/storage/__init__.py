"""Studies in their databases: configuration, trials, slots."""
