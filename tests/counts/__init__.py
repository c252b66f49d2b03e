"""Exact counts of work for fixed data, checked in as JSON; see `docs/counts.md`."""
