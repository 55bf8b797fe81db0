"""The chat template around a document, and between the turns of a conversation, as token ids."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ragkv.prompt.encoding import check_text, encode, guards

Turn = tuple[str, str]  # a role, such as "user", and its text


def chat_parts(
    tokenizer: PreTrainedTokenizerBase,
    before: str,
    after: str,
    answer_prefix: str = "",
    *,
    chat: bool = True,
    earlier: Sequence[Turn] = (),
) -> tuple[list[int], list[int]]:
    """The ids before and after the document in a user turn of the tokenizer's chat template.

    If the tokenizer uses a BOS token, the prefix begins with exactly one. Without a chat template, the parts are plain
    text.

    Parameters
    ----------
    before, after
        The texts around the document, concatenated with it as they are.
    answer_prefix
        The beginning of the answer, appended to the assistant's header.
    chat
        False ignores the chat template.
    earlier
        The turns before this one: a system message, questions and answers. They need a chat template.

    Returns
    -------
    prefix, question
        Token ids.

    Raises
    ------
    ValueError
        The chat template refuses a user turn without a system turn, repeats or changes its text, or a text cannot be
        encoded.
    """
    guards(tokenizer)  # refuses a tokenizer that cannot be used before its template is tried
    check_text(before, "the text before the document")
    check_text(after, "the text after the document")
    check_text(answer_prefix, "the beginning of the answer")
    if chat and tokenizer.chat_template:
        start, end = _split_turn(tokenizer, before, after, earlier)
    elif earlier:
        raise ValueError("earlier turns need a chat template, and the tokenizer has none (tokenizer.chat_template)")
    else:
        start, end = before, after
    prefix = tokenizer(start, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [bos]
    if adds_bos and prefix[:1] != [bos]:
        prefix = [bos, *prefix]
    return prefix, encode(tokenizer, end + answer_prefix, special=True)


def next_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids between an answer and the next one: the end of the turn, a user turn with `text`, the assistant's header.

    Without a chat template, the text is put on a line of its own.

    Raises
    ------
    ValueError
        The chat template refuses a second turn, or repeats or changes the text of a turn.
    """
    check_text(text, "the question")
    if not tokenizer.chat_template:
        return encode(tokenizer, f"\n{text}\n")
    answer = _placeholder("answer", text)
    rendered = _render(tokenizer, ("user", "-"), ("assistant", answer), ("user", text))
    _, rest = _split(rendered, answer)
    if text.strip() not in rest:
        raise ValueError(_changed_text())
    return encode(tokenizer, rest, special=True)


def _split_turn(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str, earlier: Sequence[Turn]
) -> tuple[str, str]:
    """The rendered conversation before and after the document in its last user turn."""
    document = _placeholder("document", before + after + "".join(text for _, text in earlier))
    start, end = _split(_render(tokenizer, *earlier, ("user", before + document + after)), document)
    # Templates may strip the whole message, but nothing else may change.
    if not start.endswith(before.lstrip()) or not end.startswith(after.rstrip()):
        raise ValueError(_changed_text())
    # They may also leave out an earlier answer's reasoning.
    if not all(text.strip() in start for role, text in earlier if role != "assistant"):
        raise ValueError(_changed_text())
    return start, end


def _placeholder(name: str, text: str) -> str:
    """A mark for a text that is not known yet, which does not occur in `text`. Its mixed case shows any rewriting."""
    number = 0
    while (mark := f"\N{LEFT ANGLE BRACKET}The {name.title()} {number}\N{RIGHT ANGLE BRACKET}") in text:
        number += 1
    return mark


def _render(tokenizer: PreTrainedTokenizerBase, *turns: Turn) -> str:
    """The turns, (role, text) each, in the chat template, up to the assistant's next answer."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # a template is a program of its own and may raise anything
        roles = ", ".join(role for role, _ in turns)
        raise ValueError(
            f"the tokenizer's chat template refuses the turns {roles} ({error}): give the tokenizer another one "
            "(tokenizer.chat_template), or None for prompts of plain text"
        ) from error


def _split(rendered: str, mark: str) -> tuple[str, str]:
    parts = rendered.split(mark)
    if len(parts) < 2:
        raise ValueError(_changed_text())
    if len(parts) > 2:
        raise ValueError(
            f"the tokenizer's chat template repeats the text of a turn ({len(parts) - 1} times): give the tokenizer "
            "one that contains it once (tokenizer.chat_template), or None for prompts of plain text"
        )
    return parts[0], parts[1]


def _changed_text() -> str:
    return (
        "the tokenizer's chat template changes the text of a turn or leaves it out: give the tokenizer one that "
        "contains it as it is (tokenizer.chat_template), or None for prompts of plain text"
    )
