"""Hash functions that are fitted in closed form or by alternation, not trained: one method per file."""
