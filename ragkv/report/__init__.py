"""Results as HTML pages: one per profile, with its figures and tables as files, and an index of all profiles."""

from ragkv.report.index import write_index
from ragkv.report.profile import write_report

__all__ = ["write_index", "write_report"]
