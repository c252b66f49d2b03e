"""Conditions on attributes, in SQL's syntax, that select rows."""
