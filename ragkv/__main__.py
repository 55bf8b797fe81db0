"""``python -m ragkv``: the command line."""

from ragkv.cli import app

app(prog_name="ragkv")
