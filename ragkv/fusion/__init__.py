"""Fused prefill, the workspace it can run in, and decoding behind it."""
