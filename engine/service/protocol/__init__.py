"""What routers and shard servers say to each other, and how they trust each other."""
