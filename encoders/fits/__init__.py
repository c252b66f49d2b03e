"""Hash functions that are solved for, not trained."""
