"""Collections: opened, written, searched and re-ranked."""
