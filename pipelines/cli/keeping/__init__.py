"""Verbs that change a collection, keep its versions, or check it."""
