"""Who gets in: the HTTP server, keys, limits, and images fetched from elsewhere."""
