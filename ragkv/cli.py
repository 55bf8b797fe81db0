"""``ragkv``: the command line."""

import typer

from ragkv.doctor_command import doctor

app = typer.Typer(help="Attention-aware KV cache fusion for retrieval-augmented generation.", no_args_is_help=True)
app.callback()(lambda: None)  # commands are named, even where there is one only
app.command()(doctor)
