"""Hashing that is solved for rather than trained."""
