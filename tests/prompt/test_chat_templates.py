"""The parts of a prompt add up to the rendered chat template, for templates like those of the model families."""

from dataclasses import dataclass, replace
from functools import cached_property

import pytest
from helpers import byte_level_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ragkv import Prompt, chat_parts, encode
from ragkv.prompt.chunking import chunk_document
from ragkv.prompt.templates import next_turn

LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN = ("<|im_start|>", "<|im_end|>")
LLAMA_TURN = (
    "{{ '<|start_header_id|>user<|end_header_id|>\n\n' + (messages[0]['content'] | trim) + '<|eot_id|>' }}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_TURN = (
    "{{ '<|im_start|>user\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template of the same shape as the family's own, and the expected prompt."""

    special: tuple[str, ...]
    template: str | None
    begins: str  # the text before the user's words
    ends: str  # the text after them
    bos: str | None = None
    adds_bos: bool = True  # else the template uses the BOS token to begin every turn

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level tokenizer with the family's special tokens, which may add the family's BOS to every text."""
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_level_bpe(*self.special).backend_tokenizer,
            bos_token=self.bos,
            additional_special_tokens=list(self.special),
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
        )
        if self.bos is not None and self.adds_bos:
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, tokenizer.bos_token_id)]
            )
        return tokenizer


FAMILIES = {
    "llama-3": Family(
        LLAMA,
        "{{ bos_token }}" + LLAMA_TURN,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>",
    ),
    "llama-3.1": Family(
        LLAMA,
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nDate: 1 May\n\n<|eot_id|>' }}" + LLAMA_TURN,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nDate: 1 May\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>",
    ),
    "mistral-v0.2": Family(
        ("<s>", "</s>"),
        "{{ bos_token + '[INST] ' + messages[0]['content'] + ' [/INST]' }}",
        "<s>[INST] ",
        " [/INST]",
        bos="<s>",
    ),
    "mistral-v0.3": Family(
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "{{ bos_token + '[INST]' + messages[0]['content'] + '[/INST]' }}",
        "<s>[INST]",
        "[/INST]",
        bos="<s>",
    ),
    "qwen2.5": Family(
        QWEN,
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>user\n' + messages[0]['content'] + '<|im_end|>\n' }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": Family(
        (*QWEN, "<think>", "</think>"),
        QWEN_TURN,
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "smollm2": Family(
        QWEN,
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>user\n' + messages[0]['content'] + '<|im_end|>\n' }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        bos="<|im_start|>",
        adds_bos=False,
    ),
    "base": Family(("<|begin_of_text|>", "<|end_of_text|>"), None, "<|begin_of_text|>", "", bos="<|begin_of_text|>"),
}
WITH_TEMPLATE = [name for name, family in FAMILIES.items() if family.template]
WITH_BOS_IN_IT = [name for name in WITH_TEMPLATE if FAMILIES[name].bos and FAMILIES[name].adds_bos]
BEFORE, DOCUMENT, AFTER = "Read this.\n", "The tide turned. The bell rang!", "\nWho rang the bell?"
# without the characters that special tokens consist of
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>[]|\N{BULLET}"), max_size=30)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def rendered(family, content):
    """The whole message rendered at once."""
    if family.template is None:
        return family.bos + content
    return family.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def bos_count(family, ids):
    return sum(i == family.tokenizer.bos_token_id for i in ids)


@settings(max_examples=40)
@given(before=texts, document=texts, after=texts, answer=texts)
def test_parts_and_document_add_up_to_the_rendered_template(family, before, document, after, answer):
    document = f"a{document}z"  # templates may strip white space at the ends of the whole message
    prefix, question = chat_parts(family.tokenizer, before, after, answer)
    ids = prefix + encode(family.tokenizer, document) + question
    text = rendered(family, before + document + after) + answer
    assert family.tokenizer.decode(ids) == text
    for token in family.special:
        assert ids.count(family.tokenizer.convert_tokens_to_ids(token)) == text.count(token)
    if family.bos is None:
        assert family.tokenizer.bos_token_id is None
    elif family.adds_bos:
        assert ids[0] == family.tokenizer.bos_token_id and bos_count(family, ids) == 1
    else:
        assert bos_count(family, ids) == family.template.count(family.bos)


def test_each_part_holds_its_side_of_the_template(family):
    prefix, question = chat_parts(family.tokenizer, BEFORE, AFTER)
    decode = family.tokenizer.decode
    assert decode(prefix) == family.begins + BEFORE
    assert decode(question) == AFTER + family.ends


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_the_question_ends_with_the_assistants_header_or_the_answers_beginning(name):
    family = FAMILIES[name]
    header = encode(family.tokenizer, family.ends.strip(" "), special=True)
    _, question = chat_parts(family.tokenizer, BEFORE, AFTER)
    assert question[-len(header) :] == header
    _, answered = chat_parts(family.tokenizer, BEFORE, AFTER, "The keeper")
    assert family.tokenizer.decode(answered) == family.tokenizer.decode(question) + "The keeper"


def test_without_chat_it_is_plain_text(family):
    prefix, question = chat_parts(family.tokenizer, BEFORE, AFTER, " So", chat=False)
    start = [family.tokenizer.bos_token_id] if family.bos and family.adds_bos else []
    assert prefix == start + encode(family.tokenizer, BEFORE)
    assert question == encode(family.tokenizer, AFTER + " So")


@pytest.mark.parametrize("name", WITH_BOS_IN_IT)
def test_bos_is_not_added_twice_by_template_and_tokenizer(name):
    family = FAMILIES[name]
    careless = family.tokenizer(rendered(family, BEFORE + DOCUMENT + AFTER)).input_ids
    assert bos_count(family, careless) == 2
    prefix, question = chat_parts(family.tokenizer, BEFORE, AFTER)
    assert bos_count(family, prefix) == 1 and bos_count(family, question) == 0


def test_a_bos_that_only_the_template_adds_is_kept():
    family = replace(FAMILIES["llama-3"])  # a copy with its own tokenizer
    family.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert bos_count(family, family.tokenizer("").input_ids) == 0
    prefix, _ = chat_parts(family.tokenizer, BEFORE, AFTER)
    assert prefix[0] == family.tokenizer.bos_token_id and bos_count(family, prefix) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_are_computed_after_the_bos_that_the_prompt_begins_with(name):
    family = FAMILIES[name]
    prefix, question = chat_parts(family.tokenizer, BEFORE, AFTER)
    prompt = Prompt(prefix, [encode(family.tokenizer, DOCUMENT)], question)
    bos = family.tokenizer.bos_token_id
    assert prompt.start(bos) == ((bos,) if bos is not None and prefix[0] == bos else ())
    assert not prompt.repeats_bos(bos)


def test_thinking_is_disabled_if_the_template_supports_that():
    qwen = FAMILIES["qwen3"]
    thinking = qwen.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True
    )
    assert "<think>" not in thinking  # the model would open it itself
    think, done = (qwen.tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "</think>"))
    _, question = chat_parts(qwen.tokenizer, BEFORE, AFTER)
    assert [i for i in question if i in (think, done)] == [think, done]


def space_before_every_text() -> PreTrainedTokenizerFast:
    """A tokenizer like those of Llama-2 and Mistral: a space is inserted before every text, line breaks are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(["the tide turned and the boat came home. Who saw it? It is here."], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


def test_no_space_is_inserted_between_the_parts_of_a_prompt():
    tokenizer = space_before_every_text()
    before, document, after = "the tide. ", "the boat came home.", "\nWho saw it?"
    whole = tokenizer(before + document + after, add_special_tokens=False).input_ids
    prefix, question = chat_parts(tokenizer, before, after)
    assert tokenizer("the", add_special_tokens=False).input_ids != encode(tokenizer, "the")  # the space is there
    assert tokenizer.decode(prefix + encode(tokenizer, document) + question) == tokenizer.decode(whole)
    assert "".join(tokenizer.convert_ids_to_tokens(encode(tokenizer, document)))[0] == "t"


def test_special_tokens_in_a_document_are_plain_text():
    tokenizer = byte_level_bpe(*LLAMA)
    text = "He wrote <|begin_of_text|> and <|eot_id|> on the wall."
    special = set(tokenizer.convert_tokens_to_ids(list(LLAMA)))
    for by in ("tokens", "sentences"):
        ids = [i for chunk in chunk_document(tokenizer, text, by=by).chunks for i in chunk]
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text
    assert special & set(encode(tokenizer, text, special=True))


REFUSED = {
    "needs a system turn": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('System role required') }}{% endif %}",
        r"refuses the turns user \(System role required\): give the tokenizer another one",
    ),
    "expects lists of contents": (
        "{% for part in messages[0]['content'] %}{{ part['text'] | trim }}{{ part.text.upper() }}{% endfor %}",
        r"refuses the turns user \('str object' has no attribute 'text'\)",
    ),
    "is no template": ("{% if %}", r"refuses the turns user \("),
    "has no default": ({"tool_use": "{{ messages[0]['content'] }}"}, r"refuses the turns user \("),
    "repeats": ("{{ messages[0]['content'] }} Again: {{ messages[0]['content'] }}", r"repeats the text .* \(2 times\)"),
    "leaves out": ("{{ 'Hello.' }}", "changes the text of a turn or leaves it out"),
    "lower case": ("{{ messages[0]['content'] | lower }}", "changes the text of a turn"),
    "escapes": ("{{ messages[0]['content'] | replace('&', '&amp;') }}", "changes the text of a turn"),
    "cuts": ("{{ messages[0]['content'][:50] }}", "changes the text of a turn"),
    "joins lines": ("{{ messages[0]['content'].split() | join(' ') }}", "changes the text of a turn"),
    "reorders": ("{{ messages[0]['content'].split('\n') | reverse | join('\n') }}", "changes the text of a turn"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_hold_the_prompt_is_refused(name):
    template, message = REFUSED[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe().backend_tokenizer, chat_template=template)
    with pytest.raises(ValueError, match=f"the tokenizer's chat template {message}"):
        chat_parts(tokenizer, "Read this & that:\n", "\nWho rang\nthe bell, and when did it ring for the first time?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}",
         r"refuses the turns user, assistant, user \(one turn only\)"),
        ("{{ messages[-1].content }}", "changes the text of a turn or leaves it out"),
        ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", "changes the text of a turn or leaves it out"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats the text of a turn"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_hold_a_conversation_is_refused(template, message):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe().backend_tokenizer, chat_template=template)
    with pytest.raises(ValueError, match=f"the tokenizer's chat template {message}"):
        next_turn(tokenizer, "And who heard it?")


def test_placeholders_in_the_users_text_are_plain_text():
    tokenizer = FAMILIES["qwen2.5"].tokenizer
    mark = "\N{LEFT ANGLE BRACKET}The Document 0\N{RIGHT ANGLE BRACKET}"
    prefix, question = chat_parts(tokenizer, f"What is {mark}?\n", f"\n{mark}")
    assert tokenizer.decode(prefix).endswith(f"What is {mark}?\n")
    assert tokenizer.decode(question).startswith(f"\n{mark}<|im_end|>")


@pytest.mark.parametrize("bad", ["\udc80", None, 5])
def test_texts_around_the_document_must_be_text(bad):
    tokenizer = FAMILIES["qwen2.5"].tokenizer
    with pytest.raises(ValueError, match="the text before the document"):
        chat_parts(tokenizer, bad, AFTER)
    with pytest.raises(ValueError, match="the text after the document"):
        chat_parts(tokenizer, BEFORE, bad)
    with pytest.raises(ValueError, match="the question"):
        next_turn(tokenizer, bad)
