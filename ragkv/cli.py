"""``ragkv``: the command line."""

import typer

from ragkv.doctor.command import doctor
from ragkv.store.commands import store

app = typer.Typer(help="Attention-aware KV cache fusion for retrieval-augmented generation.", no_args_is_help=True)
app.command()(doctor)
app.add_typer(store, name="store")
