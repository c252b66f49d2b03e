"""What is asked of a collection as a whole: how far its items are, which stand for it, which are duplicates."""
