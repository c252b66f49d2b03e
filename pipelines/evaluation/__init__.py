"""How well an encoder retrieves: metrics, reports, pictures."""
