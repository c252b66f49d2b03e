"""Near-duplicates: pairs, clusters, a gallery."""
