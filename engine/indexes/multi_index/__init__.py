"""The multi-index: tables from substrings of codes to rows, and the search through them."""
