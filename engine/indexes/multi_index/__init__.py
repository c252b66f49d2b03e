"""The multi-index: tables from substrings of codes to rows, and how they are asked."""
