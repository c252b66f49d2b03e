"""The shard server: a group of shards, open, answering over Arrow Flight."""
