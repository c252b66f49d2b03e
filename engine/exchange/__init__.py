"""Codes, ids and attributes to and from what other programs read: numpy, Arrow, Parquet, FAISS.

A source becomes `Incoming`: batches of `Rows`, of which one at a time is in memory. What goes out is record batches,
with the columns that `columns` describes. Nothing here knows of a collection, which writes the one and makes the other.
"""
