"""Searching for images and for files of queries."""
