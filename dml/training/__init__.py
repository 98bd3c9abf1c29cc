"""Training: the loop, its schedule, its checkpoints, and the scores that select an epoch."""
