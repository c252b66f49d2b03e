"""Ray jobs and the command line that join encoders and engine: train, encode, build, search, evaluate."""
