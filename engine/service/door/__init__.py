"""The way in: the HTTP server, keys, limits, and fetching images by URL."""
