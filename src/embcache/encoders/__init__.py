"""mteb's protocols, with a cache in front."""
