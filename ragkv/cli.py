"""``ragkv``: the command line. A command's module is imported only when that command is called.

So ``ragkv --help`` answers at once, although most commands import PyTorch.
"""

from contextlib import nullcontext
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from ragkv.extras import extra
from ragkv.terminal import printable, warnings_in_one_line
from ragkv.version import __version__

LINES = "\n\t"  # a few errors have several lines


class Source(NamedTuple):
    """Where a command is defined, and what ``ragkv --help`` says about it.

    Attributes
    ----------
    module, name
        A function with typer's annotations, or a `typer.Typer` with commands of its own.
    extra
        The extra in pyproject.toml whose packages the module imports.
    help
        The first line of the function's docstring.
    """

    module: str
    name: str
    extra: str | None
    help: str


COMMANDS = {
    "init": Source(
        "ragkv.starter",
        "init",
        None,
        "Write the profiles and the notebooks into a folder, to run and to change them there.",
    ),
    "run": Source("ragkv.run", "run", "evaluation", "Run all of a profile in this process, up to its report."),
    "answer": Source(
        "ragkv.rag.command",
        "answer_command",
        "rag",
        "Answer a question from documents, with their keys and values reused.",
    ),
    "serve": Source(
        "ragkv.serving.command",
        "serve_command",
        None,
        "Serve a model with vLLM: prompts with documents come fused from a worker, all others as ever.",
    ),
    "plan": Source(
        "ragkv.planning",
        "plan_command",
        "evaluation",
        "Estimate how long a profile takes on this machine, and how much it stores.",
    ),
    "calibrate": Source(
        "ragkv.experiment.command",
        "calibrate_command",
        "evaluation",
        "Find the probe's options for a model, without labels, by comparing with its full prefill.",
    ),
    "bench": Source(
        "ragkv.bench.command",
        "bench",
        "evaluation",
        "Measure fused prefills against full prefills on this machine, as ratios of times taken in one run.",
    ),
    "bench-store": Source(
        "ragkv.bench.store",
        "store_bench",
        "evaluation",
        "Measure how fast a store is checked, read and written on this machine, in a folder and on a local S3 server.",
    ),
    "bench-serving": Source(
        "ragkv.serving.load_command",
        "bench_serving",
        None,
        "Measure a server of `ragkv serve` under load: fused prompts against vLLM's own prefill and prefix caching.",
    ),
    "context": Source(
        "ragkv.contexts.command", "context", None, "Learned contexts, which chunks are precomputed behind."
    ),
    "store": Source("ragkv.serving.add", "store", None, "Look after a store of keys and values."),
    "doctor": Source(
        "ragkv.doctor.command",
        "doctor",
        None,
        "Look at what ragkv needs here, and say what to do where it is not fine (exit code 1 if there is a problem).",
    ),
    "tiny": Source("ragkv.tiny.command", "tiny", None, "Train an embedded model from scratch."),
}


def load(command: str) -> Any:
    """Import a command and make it ready to be called.

    Raises
    ------
    ImportError
        A package is missing; the message names the extra that installs it.
    """
    source = COMMANDS[command]
    with extra(source.extra, f"`ragkv {command}`") if source.extra else nullcontext():
        module = import_module(source.module)
    holder = typer.Typer(add_completion=False, callback=lambda: None)
    defined = getattr(module, source.name)
    if isinstance(defined, typer.Typer):
        holder.add_typer(defined, name=command)
    else:
        holder.command(command)(defined)
    return get_group(holder).commands[command]


class LazyCommand(TyperCommand):
    """A command's name and help; the command itself is imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        assert self.name is not None
        return load(self.name).make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """All commands of `COMMANDS`. Errors that tell the user what to do are printed as one line, without a traceback."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        for name, source in COMMANDS.items():
            self.add_command(LazyCommand(name, help=source.help))

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings_in_one_line():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            if ctx.params.get("traceback"):
                raise
            typer.echo(f"error: {printable(str(error), keep=LINES)}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragkv {__version__}")
        raise typer.Exit


@app.callback()
def ragkv(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """Attention-aware KV cache fusion for retrieval-augmented generation."""
