"""Who serves what: shard servers started, watched, and moved to another version."""
