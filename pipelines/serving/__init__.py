"""Serving a collection: embedded, from local shard servers, or on Ray."""
