"""Workers train what they are told; executors start them. Neither knows of Optuna or a storage."""
