"""Serving a collection: shard servers over Arrow Flight, the router over them, and the gateway in front."""
