"""Token ids and parts of what clients send: documents, chats with documents, and texts with a marker."""

from dataclasses import replace

import pytest

from ragkv.prompt.documents import whole_chunk
from ragkv.serving.documents import make_prompt
from ragkv.serving.requests import Requests

DOCUMENTS = ["Late the cook wrote VAR PIGA 414.", "Then the poet wrote VAR REDA PIGA."]
QUESTION = "Find VAR REDA?"
EARLIER = [
    {"role": "system", "content": "Answer from the notes."},
    {"role": "user", "content": "Find VAR PIGA?"},
    {"role": "assistant", "content": "VAR PIGA 414"},
]


@pytest.fixture
def requests(settings) -> Requests:
    return Requests(settings)


def lengths(request: dict) -> tuple[int, list[int], int]:
    entry = request["kv_transfer_params"]["ragkv"]
    return entry["prefix"], entry["chunks"], entry["question"]


def chat(*earlier: dict, **entries: object) -> dict:
    messages = [*earlier, {"role": "user", "content": QUESTION}]
    return {"messages": messages, "documents": DOCUMENTS, **entries}


def test_a_chat_of_one_question_has_the_ids_of_ragkvs_own_prompt(requests, settings):
    prompt = make_prompt(settings.tokenizer(), settings.instruction, DOCUMENTS, QUESTION)
    request = requests.chat(chat(max_tokens=5, ratio=0.5))
    assert tuple(request["prompt"]) == prompt.ids
    assert lengths(request) == (len(prompt.prefix), [len(chunk) for chunk in prompt.chunks], len(prompt.question))
    assert request["kv_transfer_params"]["ragkv"]["options"] == {"ratio": 0.5}
    assert request["max_tokens"] == 5
    assert not {"messages", "documents", "ratio"} & request.keys()


def test_earlier_turns_are_before_the_documents_as_the_chat_template_has_them(requests, settings):
    tokenizer = settings.tokenizer()
    request = requests.chat(chat(*EARLIER))
    last = settings.instruction + "".join(f"{text}\n\n" for text in DOCUMENTS) + f"\n{QUESTION}"
    messages = [*EARLIER, {"role": "user", "content": last}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(request["prompt"]) == tokenizer.decode(
        tokenizer(rendered, add_special_tokens=False).input_ids
    )
    prefix, chunks, question = lengths(request)
    assert chunks == [len(whole_chunk(tokenizer, text).ids) for text in DOCUMENTS]
    assert "VAR PIGA 414" in tokenizer.decode(request["prompt"][:prefix])
    assert QUESTION in tokenizer.decode(request["prompt"][-question:])


def test_a_chats_answer_is_as_long_as_there_are_positions_unless_it_says_otherwise(settings):
    request = Requests(settings).chat(chat())
    assert len(request["prompt"]) + request["max_tokens"] == settings.tokens
    short = Requests(replace(settings, tokens=20))
    with pytest.raises(ValueError, match="tokens, and prompt and answer have 20 at most"):
        short.chat(chat())


def test_a_chat_template_that_leaves_the_system_message_out_is_refused(requests):
    requests._tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="changes the text of a turn or leaves it out"):
        requests.chat(chat(EARLIER[0]))
    requests._tokenizer.chat_template = None
    with pytest.raises(ValueError, match="earlier turns need a chat template"):
        requests.chat(chat(EARLIER[0]))


def marked(prompt: object, **entry: object) -> dict:
    return {"prompt": prompt, "kv_transfer_params": {"ragkv": {"marker": "##", **entry}}}


def test_a_marker_separates_the_parts_of_a_text(requests, settings):
    tokenizer = settings.tokenizer()
    text = "Read this:\n##{}## {}\n##\nFind VAR REDA?".format(*DOCUMENTS)
    request = requests.completion(marked(text))
    chunks = [whole_chunk(tokenizer, text).ids for text in DOCUMENTS]
    prefix, found, question = lengths(request)
    ids = request["prompt"]
    assert tokenizer.decode(ids[:prefix]) == tokenizer.decode(tokenizer("Read this:\n").input_ids)
    assert ids[prefix:-question] == [*chunks[0], *chunks[1]]
    assert found == [len(chunk) for chunk in chunks]
    assert tokenizer.decode(ids[-question:]) == tokenizer.decode(tokenizer("\nFind VAR REDA?").input_ids[1:])
    assert request["cache_salt"]


def test_a_marker_comes_with_the_servers_selector_unless_the_request_names_another(settings):
    requests = Requests(replace(settings, selector="probe", options={"ratio": 0.25}))
    text = "Read:##a boat##Find it."
    entries = ({}, {"options": {"ratio": 0.5}}, {"selector": "full_reuse"})
    seen = [requests.completion(marked(text, **entry))["kv_transfer_params"]["ragkv"] for entry in entries]
    assert [(entry["selector"], entry["options"]) for entry in seen] == [
        ("probe", {"ratio": 0.25}),
        ("probe", {"ratio": 0.5}),
        ("full_reuse", {}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (marked("Read this. Why?"), "has 0 of at least 2 markers '##'"),
        (marked("Read this.##Why?"), "has 1 of at least 2 markers '##'"),
        (marked("Read:##a## ##Why?"), "chunk 2 of 2 is empty"),
        (marked("Read:##a##\n"), "there is no question after the last marker"),
        (marked([1, 2, 3]), "must be one text"),
        (marked("Read:##a##Why?", marker=""), "'marker' is ''"),
        (marked("Read:##a##Why?", marker=3), "'marker' is 3"),
        (marked("Read:##a##Why?", chunks=[1]), "'marker' and 'chunks' both say where the parts are"),
        (marked("Read:##a##Why?", ratio=1), "unknown entries (ratio)"),
        (marked("Read:##a##Why?") | {"n": 2}, "'n' is 2"),
    ],
)
def test_texts_whose_parts_do_not_add_up_are_refused(requests, content, message):
    with pytest.raises(ValueError) as error:
        requests.completion(content)
    assert message in str(error.value)
