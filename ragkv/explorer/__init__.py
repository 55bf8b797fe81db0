"""An app for JupyterLab: one prompt, its answers by two selectors beside a full prefill's, and what was recomputed.

``Explorer(profile)`` as the last line of a cell shows it. What it shows is made without a browser as well: `Looks`
gives answers, times and attention, `ragkv.explorer.page` the HTML.
"""

from ragkv.explorer.app import Explorer
from ragkv.explorer.looks import Look, Looks, Subject
from ragkv.explorer.sources import FromBenchmark, OwnText, Source

__all__ = ["Explorer", "FromBenchmark", "Look", "Looks", "OwnText", "Source", "Subject"]
