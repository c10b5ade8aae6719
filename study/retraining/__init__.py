"""Retraining a candidate on all training images, testing it once."""
