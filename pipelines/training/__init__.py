"""The training job, in one process or on Ray."""
