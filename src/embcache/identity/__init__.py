"""Everything that decides whether a text is a hit, and nothing else."""
