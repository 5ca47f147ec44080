"""Keys, look-up, encoding of what is missing, write-back, and the caller's order."""
