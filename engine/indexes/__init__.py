"""Exact Hamming indexes behind one protocol."""
