"""FAISS's own indexes behind the protocol."""
