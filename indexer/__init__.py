"""Photos on disk become an index on disk."""
