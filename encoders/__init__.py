"""Images to codes: backbones, hash layers, losses, training, artifacts, baselines and retrieval metrics."""
