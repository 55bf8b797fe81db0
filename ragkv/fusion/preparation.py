"""What comes before a prefill: checks, and the stored segments, whose headers are read."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from ragkv.eviction import Eviction
from ragkv.fusion.which_prompt import which_prompt
from ragkv.fusion.workspace import Workspace
from ragkv.loading.reused import ReusedKV, open_segments
from ragkv.loading.segments import SegmentInMemory, Segments
from ragkv.models.checks import check_architecture, check_model, check_prompt
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.selectors import Selector
from ragkv.store import Layout


def check(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    segments: Sequence[Sequence[Segment]],
    selector: Selector,
    eviction: Eviction | None,
    workspace: Workspace | None,
) -> None:
    """Refuse what cannot be right, before anything is computed.

    Parameters
    ----------
    segments
        Those of each prompt, see `Prompt.segments`.

    Raises
    ------
    ValueError
        The model or a prompt cannot be handled.
    """
    if workspace is not None:  # which checked its model when it was made
        workspace.memory.check_model(model)
    elif selector.reuses:  # the fingerprint, which stored segments are found by, includes the rest of the check
        check_architecture(model)
    else:
        check_model(model)
    for number, prompt in enumerate(prompts):
        with which_prompt(number, len(prompts)):
            check_prompt(model, prompt, segments[number])
    if workspace is not None:
        workspace.memory.check_prompts(prompts)
    layers = model.config.num_hidden_layers
    if selector.layers[-1] >= layers:
        raise ValueError(f"selection layer {selector.layers[-1]}: this model's layers are 0 to {layers - 1}")
    if eviction is not None:
        for number, prompt in enumerate(prompts):
            with which_prompt(number, len(prompts)):
                eviction.document_tokens(prompt)  # refuses a capacity that is too small


def open_stored(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    segments: Sequence[Sequence[Segment]],
    store: Segments | None,
    selector: Selector,
    workspace: Workspace | None,
) -> list[ReusedKV]:
    """Open each prompt's stored segments. If the selector reuses questions too, they are computed now, on their own.

    Raises
    ------
    ValueError
        There is no store, and the selector needs one.
    StoreError
        Segments of a prompt are missing, or a file is damaged.
    """
    if not selector.reuses:
        return [ReusedKV() for _ in prompts]
    if store is None:
        raise ValueError(f"{type(selector).__name__} reuses stored chunks: give it a KVStore")
    layout = Layout.of(model, store.format) if workspace is None else workspace.memory.layout(store.format)
    opened = []
    for number in range(len(prompts)):
        with which_prompt(number, len(prompts)):
            opened.append(open_segments(store, layout, segments[number]))
    reused = []
    for number, prompt in enumerate(prompts):
        question = []
        if not selector.recomputes_question:
            context = segments[number][-1].context if segments[number] else ()
            question.append(SegmentInMemory(*compute_segment(model, Segment(prompt.question, context))))
        first_chunk = len(opened[number]) - len(prompt.chunks)
        reused.append(ReusedKV(opened[number][:first_chunk], opened[number][first_chunk:], question))
    return reused
