"""Maps of a space: a sample of its vectors in two dimensions, as a page, a picture or a table."""
