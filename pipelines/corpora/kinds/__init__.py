"""Kinds of corpora: each file lists and reads one kind."""
