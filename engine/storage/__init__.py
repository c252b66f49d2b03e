"""Shards and collections on disk."""
