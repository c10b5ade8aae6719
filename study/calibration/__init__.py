"""What operations cost on this machine, and how many trainings at once it likes best."""
