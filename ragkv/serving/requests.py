"""What clients send becomes what vLLM takes: token ids, and the lengths of their parts."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from ragkv.prompt import Prompt
from ragkv.prompt.templates import Turn
from ragkv.serving.chat import read_chat
from ragkv.serving.documents import make_prompt, split_prompt
from ragkv.serving.messages import Message
from ragkv.serving.parts import KEY, Parts
from ragkv.serving.settings import Settings

_DOCUMENT_ENTRIES = ("documents", "question", "selector", "ratio")
_LENGTHS = ("prefix", "chunks", "question")


class Requests:
    """Reads the requests of one server's clients."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._tokenizer = settings.tokenizer()

    def completion(self, request: Message) -> Message:
        """A completion request as vLLM takes it.

        Raises
        ------
        ValueError
            The request's documents or its parts are not right.
        """
        if "documents" in request:
            request = self._from_documents(request, request.get("question", request.get("prompt")))
        elif "question" in request:
            raise ValueError("'question' comes with 'documents'")
        entry = named_parts(request)
        if entry is None:
            return request
        if isinstance(entry, dict) and "marker" in entry:
            request = self._from_marker(request, entry)
        Parts.read(request["kv_transfer_params"], _tokens(request.get("prompt")))
        for name in ("n", "best_of"):
            if request.get(name) not in (None, 1):
                raise ValueError(f"{name!r} is {request[name]}: a fused prompt gets one answer per request")
        # Fused keys and values depend on more than the tokens before: no other request may find them.
        return request | {"cache_salt": uuid4().hex}

    def chat(self, request: Message) -> Message:
        """The completion request that a chat with documents becomes.

        Raises
        ------
        ValueError
            The request's documents are not right, or it asks for something that cannot be served with documents.
        """
        chat = read_chat(request)
        completion = self._from_documents(chat.rest, chat.question, chat.earlier)
        if completion.get("max_tokens") is None:  # a chat's answer is as long as there are positions
            prompt, longest = len(completion["prompt"]), self._settings.tokens
            if prompt >= longest:
                raise ValueError(f"the prompt has {prompt} tokens, and prompt and answer have {longest} at most")
            completion["max_tokens"] = longest - prompt
        return self.completion(completion)

    def _from_documents(self, request: Message, question: Any, earlier: Sequence[Turn] = ()) -> Message:
        if "kv_transfer_params" in request:
            raise ValueError("give 'documents' and a question, or a prompt and 'kv_transfer_params', not both")
        prompt = make_prompt(self._tokenizer, self._settings.instruction, request["documents"], question, earlier)
        selector = request.get("selector", self._settings.selector)
        options = self._options(selector)
        if "ratio" in request:
            options["ratio"] = request["ratio"]
        rest = {name: value for name, value in request.items() if name not in _DOCUMENT_ENTRIES}
        return _with_prompt(rest, prompt, {"selector": selector, "options": options})

    def _from_marker(self, request: Message, entry: Message) -> Message:
        if both := [name for name in _LENGTHS if name in entry]:
            raise ValueError(f"'marker' and {both[0]!r} both say where the parts are: give a marker, or lengths")
        prompt = split_prompt(self._tokenizer, request.get("prompt"), entry["marker"])
        selector = entry.get("selector", self._settings.selector)
        defaults = {"selector": selector, "options": self._options(selector)}
        given = {name: value for name, value in entry.items() if name != "marker"}
        return _with_prompt(request, prompt, defaults | given)

    def _options(self, selector: object) -> dict[str, Any]:
        """The options that a selector has unless a request gives others."""
        return dict(self._settings.options) if selector == self._settings.selector else {}


def named_parts(request: Message) -> Any:
    """What a request says of its parts itself; None if it does not name any."""
    params = request.get("kv_transfer_params")
    return params.get(KEY) if isinstance(params, dict) else None


def _with_prompt(request: Message, prompt: Prompt, entry: Message) -> Message:
    """A request with the ids of a prompt and the lengths of its parts, beside other entries about them."""
    lengths = {
        "prefix": len(prompt.prefix),
        "chunks": [len(chunk) for chunk in prompt.chunks],
        "question": len(prompt.question),
    }
    params = (request.get("kv_transfer_params") or {}) | {KEY: entry | lengths}
    return request | {"prompt": list(prompt.ids), "kv_transfer_params": params}


def _tokens(prompt: object) -> int:
    """The number of tokens of a prompt whose parts are named by their lengths."""
    if not isinstance(prompt, list) or not all(isinstance(token, int) for token in prompt):
        raise ValueError("a prompt whose parts are named must be a list of token ids, as parts are counted in tokens")
    return len(prompt)
