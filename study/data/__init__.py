"""The data set, its split, and augmented batches of it."""
