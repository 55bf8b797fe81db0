"""Results on disk: where they lie, how they are written and read, and how methods compare."""
