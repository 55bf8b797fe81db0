"""One prompt looked at closely: the question's attention layer by layer, and the tokens that each method selects."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.experiment.experiment import Experiment
from ragkv.fusion.prefill import fused_prefill
from ragkv.loading.segments import Segments
from ragkv.prompt import Prompt
from ragkv.results.files import read_json, write_json
from ragkv.selectors.a3 import question_attention
from ragkv.selectors.base import Observation, Selector


@dataclass(frozen=True)
class _Watch(Selector):
    """Recomputes everything, and keeps the question's attention at each of the first `depth` layers."""

    ratio: float = 1.0
    depth: int = 1
    seen: list[Tensor] = field(default_factory=list)

    @property
    def observes(self) -> bool:
        return True

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.depth))

    def choose(self, seen: Observation) -> Tensor:
        self.seen.append(question_attention(seen, per_head=True).cpu())
        return seen.candidates


def attention_by_layer(model: PreTrainedModel, prompt: Prompt, store: Segments) -> Tensor:
    """The question's attention to the document in a full prefill, ``(layers, document)``.

    It is summed over heads and over the question's tokens. Each head has a softmax of its own, over the tokens that
    follow the prefix.
    """
    watch = _Watch(depth=model.config.num_hidden_layers)
    fused_prefill(model, prompt, store, watch)
    return torch.stack(watch.seen)


def look_at(
    experiment: Experiment, benchmark: str, task: str, number: int, ratio: float, model: PreTrainedModel
) -> dict:
    """Everything that figures and report show of one evaluated prompt, also written to the experiment's outputs.

    Parameters
    ----------
    number
        Which prompt of the task, from 0.
    ratio
        The evaluated ratio whose selected tokens are shown.

    Returns
    -------
    dict
        ``benchmark, task, identity`` (of the evaluation), ``prompt, question, answers, ratio``; and as indices within
        the document: ``document`` (its length), ``chunks`` (where each begins), ``evidence``, ``selected`` (by method),
        ``attention`` (`attention_by_layer`). It is read back from the file, so that what is drawn is what was written.
    """
    item = experiment.items(benchmark, task)[number]
    rows = experiment.rows(benchmark, task)
    identity = rows.attrs.get("identity")
    rows = rows[(rows["prompt"] == item.id) & (rows["ratio"] == ratio)]
    span = item.prompt.document_span
    view = {
        "benchmark": benchmark,
        "task": task,
        "identity": identity,
        "prompt": item.id,
        "question": item.question,
        "answers": item.answers,
        "ratio": ratio,
        "document": len(span),
        "chunks": [chunk.start - span.start for chunk in item.prompt.chunk_spans],
        "evidence": item.evidence,
        "selected": {
            row.method: [int(position) - span.start for position in row.recomputed if position in span]
            for row in rows.itertuples()
        },
        "attention": attention_by_layer(model, item.prompt, experiment.read_ahead(model)).tolist(),
    }
    write_json(experiment.outputs.tokens, view, checked=True)
    return read_json(experiment.outputs.tokens, "06_selected_tokens.ipynb")
