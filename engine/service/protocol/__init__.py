"""The protocol between routers and shard servers, and how they authenticate each other."""
