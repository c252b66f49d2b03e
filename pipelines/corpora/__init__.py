"""Kinds of corpora: what is in them and how it is read; work lists, ids, labels."""
