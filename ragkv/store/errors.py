"""The errors of a store."""


class StoreError(RuntimeError):
    """The store cannot give or take a segment; the message says which one, why, and what to do."""


class ReadOnlyError(StoreError):
    """The store can be read but not written to."""


class FullDiskError(StoreError):
    """The disk is full."""


class WrongKeyError(StoreError):
    """The store was written with another key than the one in the environment, or without one."""
