"""Training: configuration, loop, schedules, checkpoints, several workers."""
