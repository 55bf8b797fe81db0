"""Arguments that the commands about a user's documents share."""

from pathlib import Path
from typing import Annotated

import typer

DocumentsArgument = Annotated[list[Path], typer.Argument(help="Text, HTML and PDF files, or folders of such files.")]
ModelOption = Annotated[str, typer.Option(help="smollm2, an embedded model, a local folder, or a hub id.")]
ContextOption = Annotated[
    str | None, typer.Option(help="Compute chunks behind a learned context: learned (comes with ragkv), or a file.")
]
BehindPrefixOption = Annotated[
    bool, typer.Option("--behind-prefix", help="Compute chunks behind the prompt's prefix, too.")
]
FormatOption = Annotated[str, typer.Option(help="How they are stored: model, fp8, int8 or int4.")]
