"""An app for JupyterLab that shows one prompt: the answers of two selectors beside a full prefill's, and their tokens.

Put ``Explorer(profile)`` on the last line of a cell to show it. Everything that it shows is also available without a
browser: `Looks` computes answers, times and attention, and `ragkv.explorer.page` turns them into HTML.
"""

from ragkv.explorer.app import Explorer
from ragkv.explorer.looks import Look, Looks, Subject
from ragkv.explorer.sources import FromBenchmark, OwnText, Source

__all__ = ["Explorer", "FromBenchmark", "Look", "Looks", "OwnText", "Source", "Subject"]
