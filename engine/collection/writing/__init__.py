"""Changes to a collection: recorded, prepared without a lock, and made live in one step."""
