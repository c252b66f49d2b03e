"""Verbs that make something: an encoder, codes, a collection."""
