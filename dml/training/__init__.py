"""Training: the loop, its schedule, its checkpoints, the processes that share it, and the scores of an epoch."""
