"""Results as pages: one per profile with its tables and figures beside it, and an index over all profiles."""

from ragkv.report.index import write_index
from ragkv.report.profile import write_report

__all__ = ["write_index", "write_report"]
