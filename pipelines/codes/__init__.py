"""What a folder of codes looks like."""
