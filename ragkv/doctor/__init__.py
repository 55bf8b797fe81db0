"""Whether everything that is needed is here and right."""
