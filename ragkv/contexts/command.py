"""``ragkv context``: train a learned context for a model."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from ragkv.contexts.training import Progress, Settings, train
from ragkv.models.load import load_model
from ragkv.prompt import encode
from ragkv.prompt.documents import read_documents

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
    minutes: Annotated[float, typer.Option(min=0.0, help="How long to train.")] = Settings.seconds / 60,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = Settings.learning_rate,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Document tokens of a step.")] = 16384,
    longest: Annotated[int, typer.Option(min=64, help="The longest document, in tokens.")] = 3584,
    seed: Annotated[int, typer.Option(help="Of the order of the texts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state here, to go on from.")] = None,
) -> None:
    """Train keys and values that chunks of this model are precomputed behind, by distilling its own full prefill."""
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    loaded.requires_grad_(False)
    ids = [encode(tokenizer, document.text) for document in read_documents(texts)]
    settings = Settings(tokens=tokens, seconds=60 * minutes, learning_rate=learning_rate, seed=seed)
    chunk_tokens = (64, min(512, longest // 2))
    with tqdm(total=round(settings.seconds), unit="s", desc="train") as bar:

        def show(progress: Progress) -> None:
            bar.update(round(progress.seconds) - bar.n)
            bar.set_postfix_str(f"step {progress.step}, {progress.divergence:.4f} nats", refresh=False)

        trained = train(
            loaded,
            tokenizer,
            ids,
            settings,
            checkpoint=checkpoint,
            on_step=show,
            chunk_tokens=chunk_tokens,
            document_tokens=(min(512, longest), longest),
            batch_tokens=batch_tokens,
        )
    trained.save(out, trained_on=f"{len(ids)} texts", settings=repr(settings))
    typer.echo(f"{out}: {trained.tokens} tokens for {model}, {trained.layers.nbytes / 1e3:.0f} kB")
