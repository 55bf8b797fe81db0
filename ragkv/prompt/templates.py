"""The chat template around a document, and between the turns of a conversation, as token ids."""

from transformers import PreTrainedTokenizerBase

from ragkv.prompt.encoding import encode

_DOCUMENT = "\N{BULLET}document\N{BULLET}"  # placeholder for the document while the chat template is rendered


def chat_parts(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str, answer_prefix: str = "", *, chat: bool = True
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

    Returns
    -------
    prefix, question
        Token ids.
    """
    text = before + _DOCUMENT + after
    if chat and tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    start, end = text.split(_DOCUMENT)
    prefix = tokenizer(start, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [bos]
    if adds_bos and prefix[:1] != [bos]:
        prefix = [bos, *prefix]
    return prefix, encode(tokenizer, end + answer_prefix, special=True)


_ANSWER = "\N{BULLET}answer\N{BULLET}"  # placeholder for the answer while the chat template is rendered


def next_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids between an answer and the next one: the end of the turn, a user turn with `text`, the assistant's header.

    Without a chat template, the text is put on a line of its own.
    """
    if not tokenizer.chat_template:
        return encode(tokenizer, f"\n{text}\n")
    turns = [("user", "-"), ("assistant", _ANSWER), ("user", text)]
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return encode(tokenizer, rendered.split(_ANSWER)[1], special=True)
