"""Training one candidate. Knows no Optuna and no storage."""
