"""The cost of a prefill, measured."""
