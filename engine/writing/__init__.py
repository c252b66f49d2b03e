"""Writes to a collection that is being served: gathered from many requests, committed together."""
