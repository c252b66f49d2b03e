"""Where files lie: a local folder or a bucket, read and written through the same few calls."""
