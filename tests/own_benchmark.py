"""A benchmark as a user writes it: one file with one registered class. Tests copy it into a project of their own."""

from random import Random
from typing import ClassVar

from ragkv.benchmarks import Benchmark, Example, Task, register
from ragkv.tiny.language import VALUES, VARIABLES


def exact(prediction, answers, classes):
    """Whether the answer's first words are the expected ones."""
    return {"exact": float(prediction.strip().startswith(answers[0]))}


@register("lookup")
class Lookup(Benchmark):
    """Numbers to be looked up by name, in short and in long lists."""

    label: ClassVar = "size"

    def task(self, name):
        return Task(scores=exact, max_new_tokens=4)

    def examples(self, name, tokenizer, root):
        rng = Random(name)
        examples = []
        for number in range(self.tasks[name].prompts):
            size = (4, 12)[number % 2]
            names = rng.sample(VARIABLES, size)
            values = rng.sample(VALUES, size)
            pairs = zip(names, values, strict=True)
            lines = [f"Late the cook wrote VAR {variable} {value}." for variable, value in pairs]
            examples.append(
                Example(
                    id=f"{name}-{number}",
                    before="Read the notes below.\n",
                    document=" ".join(lines),
                    after=f"\nFind VAR {names[0]}?",
                    answers=(values[0],),
                    answer_prefix=f" VAR {names[0]}",
                    labels={"size": size},
                )
            )
        return examples, []

    def sizes(self, name):
        return [(self.tasks[name].prompts, 128)]
