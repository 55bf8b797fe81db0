"""Results: where they lie, how they are written and read, what they depend on, and how methods are compared."""
