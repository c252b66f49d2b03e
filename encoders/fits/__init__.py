"""Hash functions of features: solved in closed form, by alternation or by a short descent: one method per file."""
