"""How well an encoder retrieves: measures, reports, pictures."""
