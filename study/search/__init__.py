"""Searching: samplers, pruners, trials, and the supervisor that keeps workers busy."""
