"""``ragkv answer``: one question answered from documents."""

from typing import Annotated

import typer

from ragkv.fusion.sampling import Sampling
from ragkv.rag import answer
from ragkv.rag.arguments import BehindPrefixOption, ContextOption, DocumentsArgument, ModelOption
from ragkv.selectors import get_selector


def answer_command(
    question: Annotated[str, typer.Argument(help="The question.")],
    documents: DocumentsArgument,
    model: ModelOption,
    selector: Annotated[str, typer.Option(help="What to recompute: the name of a selector.")] = "a3",
    ratio: Annotated[float | None, typer.Option(help="The share of the chunks' tokens to recompute.")] = None,
    k: Annotated[int | None, typer.Option(help="How many chunks to retrieve; all of them by default.")] = None,
    store: Annotated[str | None, typer.Option(help="A folder or URL that keeps keys and values for next time.")] = None,
    context: ContextOption = None,
    behind_prefix: BehindPrefixOption = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Above 0, draw each token at random; 0 takes the likeliest one.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
) -> None:
    """Answer a question from documents, with their keys and values reused."""
    options = {} if ratio is None else {"ratio": ratio}
    sampling = Sampling(temperature=temperature, seed=seed) if temperature else None
    reply = answer(
        question,
        documents,
        model,
        store=store,
        selector=get_selector(selector, **options),
        k=k,
        context=context,
        behind_prefix=behind_prefix,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        on_token=lambda text: typer.echo(text, nl=False),
    )
    typer.echo()
    if reply.finish_reason == "length":
        typer.echo(f"(cut off after {max_new_tokens} tokens; --max-new-tokens gives it more)", err=True)
