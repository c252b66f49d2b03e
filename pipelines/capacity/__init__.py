"""Capacity planning from measurements of this machine."""
