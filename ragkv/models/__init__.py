"""Models: loading one, checking it, its identity, its layers in steps, and attention."""
