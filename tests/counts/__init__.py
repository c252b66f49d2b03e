"""Exact counts of work for fixed data, checked in as JSON and compared exactly: see `docs/counts.md`."""
