"""An architecture as a torch module, and what is read off it."""
