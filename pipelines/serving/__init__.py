"""Serving a collection: embedded, from shard servers here, or on Ray."""
