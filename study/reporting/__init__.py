"""What people read of a study: the report, its figures, and what optuna-dashboard shows."""
