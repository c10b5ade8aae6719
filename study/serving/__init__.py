"""A page that classifies the pictures dropped on it."""
