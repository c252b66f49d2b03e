"""Hash functions that are solved for, not trained: one method a file."""
