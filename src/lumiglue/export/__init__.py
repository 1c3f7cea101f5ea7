"""Writing matches for other programs."""
