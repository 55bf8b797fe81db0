"""``python -m ragkv.bench``: measure speed on this machine."""

import typer

from ragkv.bench.command import bench

if __name__ == "__main__":
    typer.run(bench)
