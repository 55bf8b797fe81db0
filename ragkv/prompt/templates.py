"""Text to token ids: encoding a part of a prompt, and the chat template around the document."""

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Token ids of `text` as they are within a longer text, without BOS or other special tokens added.

    Parameters
    ----------
    special
        Whether special tokens written out in the text are what they say. A document's are not: it is only text.
    """
    before, skip = guard(tokenizer)
    return tokenizer(before + text, add_special_tokens=False, split_special_tokens=not special).input_ids[skip:]


def guard(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """What to put before a text that stands within a longer one, and how many tokens that is.

    Llama-2's and Mistral's tokenizers put a space before every text that they are given, which would set the parts of
    a prompt apart; behind a line break, which they never merge with what follows, it goes with the guard.
    """
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("\n", add_special_tokens=False).input_ids)
    return ("\n", len(tokens)) if tokens[:1] == ["\N{LOWER ONE EIGHTH BLOCK}"] else ("", 0)


_DOCUMENT = "\N{BULLET}document\N{BULLET}"  # stands for the document while the chat template is filled in


def chat_parts(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str, answer_prefix: str = "", *, chat: bool = True
) -> tuple[list[int], list[int]]:
    """The ids before and after the document in a user's turn of the tokenizer's chat template.

    Exactly one BOS stands at the beginning where the tokenizer uses one. A tokenizer without a chat template
    gives plain text.

    Parameters
    ----------
    before, after
        The texts around the document, put together with it as they are.
    answer_prefix
        How the answer begins: put after the assistant's header.
    chat
        False leaves the chat template out.

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


_ANSWER = "\N{BULLET}answer\N{BULLET}"  # stands for the answer while the chat template is filled in


def next_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids between an answer and the next one: the end of the turn, the user's next one, the assistant's header.

    A tokenizer without a chat template gives the text on a line of its own.
    """
    if not tokenizer.chat_template:
        return encode(tokenizer, f"\n{text}\n")
    turns = [("user", "-"), ("assistant", _ANSWER), ("user", text)]
    filled = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return encode(tokenizer, filled.split(_ANSWER)[1], special=True)
