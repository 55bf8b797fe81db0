"""``python -m ragkv.tiny --family llama --seconds 530 --out weights/tiny-llama``: the same as ``ragkv tiny``."""

import typer

from ragkv.tiny.command import tiny

typer.run(tiny)
