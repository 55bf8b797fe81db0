"""Stored keys and values on their way to the device that needs them: disk, pinned memory, GPU, place in the cache."""
