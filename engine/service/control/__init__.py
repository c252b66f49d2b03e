"""Control of shard servers: starting, watching, and moving them to another version."""
