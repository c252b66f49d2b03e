"""Verbs that use a collection: search it, measure it, serve it."""
