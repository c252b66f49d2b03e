"""Compiled loops over codes. Kernels only: no validation, no allocation, outputs are arguments."""
