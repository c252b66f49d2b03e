"""Corpora of embeddings: found, listed into ranges of rows, and read in batches."""
