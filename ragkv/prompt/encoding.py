"""Text to token ids, for texts that are one part of a longer prompt."""

from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

Guard = tuple[str, list[int]]  # a text, and its token ids


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Token ids of `text` as a part of a longer text: no BOS or other special token is added.

    Parameters
    ----------
    special
        Whether special tokens that are written out in the text are encoded as such. In documents they are plain text.

    Raises
    ------
    ValueError
        `text` is not valid text, or the tokenizer cannot encode the parts of a prompt separately.
    """
    encoded, (_, own) = _encoded(tokenizer, text, split_special_tokens=not special)
    return encoded.input_ids[len(own) :]


def encode_with_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `text` as `encode` gives them, and the (start, stop) character span of each token.

    Raises
    ------
    ValueError
        The tokenizer has no character offsets, or as for `encode`.
    """
    if not tokenizer.is_fast:
        raise ValueError("this tokenizer has no character offsets: use a fast one, or chunk_by='tokens'")
    encoded, (before, own) = _encoded(tokenizer, text, split_special_tokens=True, return_offsets_mapping=True)
    offsets = encoded.offset_mapping[len(own) :]
    spans = [(max(start - len(before), 0), stop - len(before)) for start, stop in offsets]
    return encoded.input_ids[len(own) :], spans


def check_text(text: object, name: str) -> str:
    """Return the text if it can be encoded as UTF-8; `name` is what error messages call it.

    Raises
    ------
    ValueError
        It is not a `str`, or contains a lone surrogate; the message gives the line.
    """
    if not isinstance(text, str):
        kind = "missing (null)" if text is None else f"of type {type(text).__name__}"
        raise ValueError(f"{name} is {kind}: give its text as str")
    place = lone_surrogate(text)
    if place is not None:
        line = text.count("\n", 0, place) + 1
        raise ValueError(
            f"{name}, line {line}: {text[place]!a} is half of a surrogate pair, not a character. "
            "Decode the text as UTF-8, and join the escapes of a pair in JSON"
        )
    return text


def lone_surrogate(text: str) -> int | None:
    """The place of the first character that is half of a surrogate pair, which UTF-8 cannot encode; None without."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


# Guards. Many tokenizers insert a space before every text that they encode (Llama-2, Mistral, others with
# SentencePiece or add_prefix_space), which would separate the parts of a prompt. They encode a part behind a guard,
# a short text whose tokens are dropped afterwards: the space then goes before the guard. A guard fits a text if its
# own tokens come first: its last token must not be merged with the first characters of the text.
_NO_GUARD: Guard = ("", [])
_CANDIDATES = ("\n", ".", "0", "a")

# Pairs of adjacent parts whose encodings must add up to the whole: words, line breaks, numbers, brackets, no space.
_SEAMS = (
    ("Read this:\n", "The boat came."),
    ("Read this. ", "the boat"),
    ("One.", "\n\nTwo."),
    ("One.", "\nTwo?"),
    ("Number ", "42 boats"),
    ("Say ", "(yes)"),
    ("\u8bfb\u3002", "\u732b\u6765\u4e86"),
)

_known_guards: WeakKeyDictionary[PreTrainedTokenizerBase, list[Guard]] = WeakKeyDictionary()


def guards(tokenizer: PreTrainedTokenizerBase) -> list[Guard]:
    """The guards to use with a tokenizer, found once: the empty one if it encodes parts as they are.

    Raises
    ------
    ValueError
        The tokenizer cannot encode the parts of a prompt separately, or not at all.
    """
    if tokenizer not in _known_guards:
        try:
            fitting = _find_guards(tokenizer)
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"{_unusable(tokenizer)} ({error}): load it with transformers' AutoTokenizer") from error
        if fitting is None:
            raise ValueError(
                f"{_unusable(tokenizer)}: it changes text where the parts of a prompt meet, for example by inserting "
                "or removing spaces. Use a model with another tokenizer"
            )
        _known_guards[tokenizer] = fitting
    return _known_guards[tokenizer]


def _find_guards(tokenizer: PreTrainedTokenizerBase) -> list[Guard] | None:
    candidates = [(text, tokenizer(text, add_special_tokens=False).input_ids) for text in _CANDIDATES]
    candidates = [(text, own) for text, own in candidates if _is_spelled(tokenizer, text, own)]
    for guards in ([_NO_GUARD], candidates):
        if all(_adds_up(tokenizer, guards, *seam) for seam in _SEAMS):
            return guards
    return None


def _unusable(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer ({type(tokenizer).__name__}) cannot encode the parts of a prompt separately"


def _is_spelled(tokenizer: PreTrainedTokenizerBase, text: str, own: list[int]) -> bool:
    """Whether the tokens of a guard are its characters, not unknown or normalised ones that may also cover others."""
    return tokenizer.unk_token_id not in own and tokenizer.decode(own).endswith(text)


def _adds_up(tokenizer: PreTrainedTokenizerBase, guards: list[Guard], first: str, second: str) -> bool:
    """Whether two parts, encoded one by one, decode to what the whole decodes to."""
    fitting = _first_fitting(tokenizer, guards, second, {"split_special_tokens": True})
    if fitting is None:
        return False
    encoded, (_, own) = fitting
    parts = tokenizer(first, add_special_tokens=False).input_ids + encoded.input_ids[len(own) :]
    whole = tokenizer(first + second, add_special_tokens=False).input_ids
    return _decoded(tokenizer, parts) == _decoded(tokenizer, whole)


def _first_fitting(
    tokenizer: PreTrainedTokenizerBase, guards: list[Guard], text: str, options: dict[str, bool]
) -> tuple[Any, Guard] | None:
    """The encoding of `text` behind the first guard whose tokens stay as they are, and that guard."""
    for before, own in guards:
        encoded = tokenizer(before + text, add_special_tokens=False, **options)
        if encoded.input_ids[: len(own)] == own:
            return encoded, (before, own)
    return None


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> tuple[Any, Guard]:
    check_text(text, "the text")
    fitting = _first_fitting(tokenizer, guards(tokenizer), text, options)
    if fitting is None:
        raise ValueError(f"{_unusable(tokenizer)}: it merges {text[:40]!r} with any text before it")
    return fitting


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of ids in which a run of unknown tokens counts as one, as some tokenizers encode it."""
    unknown = tokenizer.unk_token_id
    kept = [token for i, token in enumerate(ids) if token != unknown or ids[i - 1 : i] != [unknown]]
    return tokenizer.decode(kept)
