"""Serving a collection: shard servers over Arrow Flight, the router that asks them, the gateway before both."""
