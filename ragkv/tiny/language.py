"""The small language of the embedded models: its words and its tokenizer.

Every word is one token, numbers from 0 to 999 included (as three-digit numbers are for Llama-3).
Names of variables, cities, films and people are made of syllables, and no word has two roles.
"""

from itertools import product

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
PUNCTUATION = [".", ",", "?", ":", "!"]
GLUE = "Read the notes below , then answer Find VAR KEY FILM HOME wrote keeps praised visited and of is".split()

TIMES = "Today Later Once Soon Then Now Often Again Early Late First Next Finally Sometimes Yesterday Tonight".split()
PEOPLE = (
    "baker farmer sailor doctor painter miner judge weaver teacher hunter singer writer guard clerk smith cook "
    "nurse driver poet tailor mason pilot dancer monk ranger potter brewer barber captain gardener"
).split()
VERBS = (
    "saw bought sold found lost carried painted washed moved hid opened closed broke mended lifted dropped cleaned "
    "carved packed weighed borrowed returned polished burned covered wrapped"
).split()
ADJECTIVES = (
    "red old small heavy green bright quiet round broken narrow cold warm empty golden wooden rusty soft sharp tall "
    "plain dusty gentle hollow pale strange simple"
).split()
NOUNS = (
    "lamp door chair boat cup rope box bell clock basket drum coat knife ladder mirror bottle bridge wagon candle "
    "kettle blanket hammer saddle barrel needle lantern shovel pillow ribbon tower window table wheel bucket"
).split()
NUMBERS = [str(n) for n in range(1000)]
VALUES = NUMBERS[100:]  # no value contains another, so a value found in an answer was really given
HEADERS = ["Passage"]


def _names(onsets: str, vowels: str, ending: str, count: int) -> list[str]:
    """`count` two-syllable names, spread evenly over all combinations."""
    every = ["".join(parts) + ending for parts in product(onsets, vowels, onsets, vowels)]
    step = len(every) // count
    return every[: step * count : step]


VARIABLES = _names("BDFGKLMNPRSTVZ", "AEIOU", "", 320)
CITIES = [name.capitalize() for name in _names("bdfglmnrst", "aeiou", "ville", 160)]
FILMS = [name.capitalize() for name in _names("bdgklmnprv", "aeiou", "x", 120)]
WHO = [name.capitalize() for name in _names("dhjklmnrst", "aeiou", "n", 120)]

VOCABULARY = list(
    dict.fromkeys(
        SPECIAL
        + PUNCTUATION
        + GLUE
        + TIMES
        + PEOPLE
        + VERBS
        + ADJECTIVES
        + NOUNS
        + VARIABLES
        + CITIES
        + FILMS
        + WHO
        + NUMBERS
        + HEADERS
    )
)
WORD_IDS = {word: i for i, word in enumerate(VOCABULARY)}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer of the small language: one token per word, and ``<s>`` before every text."""
    tokenizer = Tokenizer(models.WordLevel(WORD_IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", WORD_IDS["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
