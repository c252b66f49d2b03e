"""Asking a collection from Python, over HTTP or in this process."""
