"""Files of RULER's official generator: where they are, and how their prompts split into parts."""

import re
from collections.abc import Sequence
from pathlib import Path

from ragkv.benchmarks.base import Example
from ragkv.benchmarks.records import read_records, require, require_texts

# How prompts begin that are already in a chat template: the generator's own ones, and others' special tokens and roles.
_TEMPLATE = re.compile(
    r"\s*(?:<[|\uff5c][^<>\n]{1,40}[|\uff5c]>|<s>|<bos>|<(?:start|begin)_of_\w+>|<[A-Z]+_[A-Z0-9_]+>"
    r"|\[INST\]|<<SYS>>|\[gMASK\]|\[(?:BOS|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]"
    r"|(?:#+ *)?(?:USER|User|HUMAN|Human|SYSTEM|System|Instruction|Assistant) ?:"
    r"|A chat between a curious user|You are a helpful assistant\. USER:)"
)


def official_examples(source: str, name: str, length: int, prompts: int, root: Path) -> tuple[list[Example], list[str]]:
    """The first `prompts` records of a task at a length as examples, and the records skipped for having no outputs."""
    examples: list[Example] = []
    skipped: list[str] = []
    folder, stem = _find(source, name, length, root)
    for number, (where, record) in enumerate(read_records(folder, stem, root)[:prompts]):
        require(record, where, {"input": str})
        if require_texts(record, where, "outputs"):
            examples.append(_example(f"{name}-{length}-{number:04d}", where, length, record))
        else:
            skipped.append(f"{where}: no outputs")
    return examples, skipped


def one_folder_each(source: str, name: str, lengths: Sequence[int], root: Path) -> None:
    """Check that every length has a file of its own.

    Raises
    ------
    ValueError
        Two lengths would read the same file, because it is not in a folder named after its length.
    """
    files = {_find(source, name, length, root) for length in lengths}
    if len(files) < len(lengths):
        raise ValueError(
            f"{(root / source).resolve()} has one file of {name} for several lengths: ask for one length, or put each "
            f"into a folder of its own ({lengths[0]}/{name}.jsonl, {lengths[1]}/{name}.jsonl, ...)"
        )


def _find(source: str, name: str, length: int, root: Path) -> tuple[str, str]:
    """The folder of the task's file, and the file's name without its suffix."""
    places = [(f"data/{name}", "validation"), (name, "validation"), (".", name)]
    for folder in (Path(source, str(length)), Path(source)):
        for inner, stem in places:
            if (root / folder / inner / f"{stem}.jsonl").is_file():
                return str(folder / inner), stem
    top = (root / source).resolve()
    if not top.is_dir():
        raise FileNotFoundError(f"{top} is not there: put the folder of RULER's files there")
    raise FileNotFoundError(
        f"{top} has no {name}.jsonl at a length of {length}: put it at {length}/{name}.jsonl, "
        f"{length}/{name}/validation.jsonl or {length}/data/{name}/validation.jsonl"
    )


def _example(name: str, where: str, length: int, record: dict) -> Example:
    """The record; its input split so that the parts joined are the input again."""
    if "answer_prefix" in record:
        require(record, where, {"answer_prefix": str})
    outputs = require_texts(record, where, "outputs")
    if not all(output.strip() for output in outputs):
        raise ValueError(f"{where}: one of the outputs is blank, which any prediction would match")
    text = record["input"]
    if template := _TEMPLATE.match(text):
        raise ValueError(
            f"{where}: the input begins with {template[0].strip()!r}, as it was written with a model's chat template, "
            "which would be applied twice. Generate the files with --model_template_type base"
        )
    start = text.rfind("\nQuestion:") + 1 or text.rstrip().rfind("\n") + 1
    if not text[:start].strip():
        raise ValueError(f"{where}: the input is one line, so that the question cannot be told from the text before")
    line = len(re.match(r"[^\n]*\n+|", text[:start])[0])  # type: ignore[index]
    if line == start or line > 500:  # the text goes on behind the instruction, on the same line
        line = 0
    before = line or len(re.match(r"(?:[A-Z][^.\n]*\. )*", text[:start])[0])  # type: ignore[index]
    return Example(
        name,
        text[:before],
        text[before:start],
        text[start:],
        outputs,
        record.get("answer_prefix", ""),
        labels={"length": length},
    )
