"""Whether everything that a collection consists of is there and makes sense, and what can be rebuilt if not."""
