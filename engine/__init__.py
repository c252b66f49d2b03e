"""Codes to answers: kernels, indexes, shards and collections on disk, and the query router."""
