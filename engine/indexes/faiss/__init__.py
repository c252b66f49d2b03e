"""FAISS's own indexes behind the `Index` interface."""
