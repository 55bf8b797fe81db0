"""Token ids and parts of what clients send: documents and chats with documents."""

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
