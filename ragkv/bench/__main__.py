"""``python -m ragkv.bench``: speed on this machine."""

from ragkv.bench.command import main

main()
