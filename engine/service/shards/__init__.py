"""The shard server: a group of open shards that answers over Arrow Flight."""
