"""``ragkv context``: train a learned context for a model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from ragkv.contexts.plan import plan_lines
from ragkv.contexts.training import Progress, Settings, train
from ragkv.costs.shape import Shape
from ragkv.models.load import load_model
from ragkv.prompt import encode
from ragkv.prompt.documents import read_documents

HELD_OUT = 20  # every 20th text is not trained on
context = typer.Typer(help="Learned contexts, which chunks are precomputed behind.", no_args_is_help=True)


@context.callback()
def _group() -> None:
    """Learned contexts, which chunks are precomputed behind."""


@context.command("train")
def train_command(
    model: Annotated[str, typer.Argument(help="An embedded model, a folder or a hub id.")],
    texts: Annotated[Path, typer.Option(help="A folder of plain text to train on; nothing is labelled.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    tokens: Annotated[int, typer.Option(min=1, help="The context's length.")] = Settings.tokens,
    minutes: Annotated[float, typer.Option(min=0.0, help="How long to train at most.")] = Settings.seconds / 60,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop when this many looks at held-out text in a row found nothing better.")
    ] = Settings.patience,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = Settings.learning_rate,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a step.")] = Settings.batches,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Document tokens of a batch.")] = 16384,
    questions: Annotated[int, typer.Option(min=1, help="Questions about each document, which share its pass.")] = 4,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Gradient checkpointing: far less memory, a third more time.")
    ] = False,
    chunk_tokens: Annotated[tuple[int, int], typer.Option(help="The shortest and the longest chunk.")] = (64, 512),
    document_tokens: Annotated[tuple[int, int], typer.Option(help="The shortest and the longest document.")] = (
        512,
        3584,
    ),
    seed: Annotated[int, typer.Option(help="Of the order of the texts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state here, to go on from.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how long it takes and how much memory; nothing is loaded.")
    ] = False,
    tflops: Annotated[float, typer.Option(min=0.001, help="The speed that a dry run assumes, in TFLOP/s.")] = 400,
) -> None:
    """Train keys and values that chunks of this model are precomputed behind, by distilling its own full prefill."""
    settings = Settings(
        tokens=tokens,
        seconds=60 * minutes,
        learning_rate=learning_rate,
        batches=batches,
        patience=patience,
        recompute=recompute,
        seed=seed,
    )
    sizes: dict[str, Any] = {
        "chunk_tokens": chunk_tokens,
        "document_tokens": document_tokens,
        "batch_tokens": batch_tokens,
        "questions": questions,
    }
    if dry_run:
        number_bytes = 4 if dtype == "float32" else 2
        for line in plan_lines(Shape.of(model), settings, **sizes, number_bytes=number_bytes, tflops=tflops):
            typer.echo(line)
        return
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    loaded.requires_grad_(False)
    ids = [encode(tokenizer, document.text) for document in read_documents(texts)]
    held_out = ids[::HELD_OUT] if len(ids) >= HELD_OUT else []
    trained_on = [text for number, text in enumerate(ids) if number % HELD_OUT] if held_out else ids
    with tqdm(total=round(settings.seconds), unit="s", desc="train") as bar:
        last = Progress()

        def show(progress: Progress) -> None:
            nonlocal last
            last = progress
            bar.update(round(progress.seconds) - bar.n)
            bar.set_postfix_str(
                f"step {progress.step}, {progress.divergence:.4f} nats, held out {progress.held_out:.4f}", refresh=False
            )

        trained = train(
            loaded,
            tokenizer,
            trained_on,
            settings,
            held_out=held_out,
            checkpoint=checkpoint,
            on_step=show,
            **sizes,
        )
    trained.save(
        out,
        trained_on=f"{len(trained_on)} texts of {sum(map(len, trained_on))} tokens",
        settings=f"{settings}, {sizes}",
        training=f"{last.step} steps, {last.prompts} prompts, {last.seconds:.0f} s on {loaded.device.type}",
    )
    typer.echo(f"{out}: {trained.tokens} tokens for {model}, {trained.layers.nbytes / 1e3:.0f} kB")
