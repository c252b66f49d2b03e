"""The router over shard servers: fan-out, hedging, replicas, merging."""
