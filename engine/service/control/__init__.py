"""Who serves what: shard servers found by asking them; compaction in the background."""
