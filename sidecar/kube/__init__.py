"""The way to the API server, for whatever needs it."""
