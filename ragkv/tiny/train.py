"""Train an embedded model from scratch: minutes on one GPU, or a few steps on a CPU to see how it goes.

The defaults are what made it succeed: a fifth of every batch copies random segments (from which the attention heads
that look names up emerge), embeddings start with a common direction, and lengths and hops grow from stage to stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from ragkv.tiny.corpus import SENTENCE_TOKENS, make_document
from ragkv.tiny.language import CITIES, SPECIAL, VOCABULARY, WORD_IDS, build_tokenizer
from ragkv.tiny.sums import write_sums

PAD, BOS, EOS, USER = (WORD_IDS[word] for word in ("<pad>", "<s>", "</s>", "<|user|>"))
IGNORE = -100
SHAPE = dict(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
)
FAMILIES = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "qwen": lambda: Qwen3Config(**SHAPE),
}


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes
    ----------
    share
        The stage's part of all steps, relative to the other stages.
    sentences, hops
        The longest document and the longest chain.
    copies
        Share of a batch that copies random segments.
    """

    share: float
    sentences: int
    hops: int
    copies: float = 0.2


STAGES = (
    Stage(0.16, 16, 1, copies=0.4),
    Stage(0.19, 32, 2),
    Stage(0.20, 64, 3),
    Stage(0.30, 128, 3),
    Stage(0.15, 256, 3),
)
QUESTIONS = 16
PREFIX = "<s> <|user|> Read the notes below ."


def new_model(family: str, seed: int) -> PreTrainedModel:
    """A new model in float32. Its embeddings share a direction, so that heads can attend by position alone."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue  # norms and biases keep their ones and zeros
            weight.normal_(std=weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
        embedding = model.get_input_embeddings().weight
        embedding.normal_(std=1.0)
        embedding.add_(torch.randn(1, embedding.shape[1]))
    return model


def _start(family: str, seed: int, folder: str | Path | None) -> PreTrainedModel:
    if folder is None:
        return new_model(family, seed)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )


def copy_example(rng: Random, length: int) -> tuple[list[int], list[int]]:
    """Random segments of 6 to 20 tokens, most of them repeated; the targets are the repeated tokens."""
    ids, targets = [BOS], [IGNORE]
    segments: list[list[int]] = []
    while len(ids) < length:
        if segments and rng.random() < 0.6:
            segment = rng.choice(segments)
            targets += [IGNORE, *segment[1:]]
        else:
            segment = [rng.randrange(len(SPECIAL), len(VOCABULARY)) for _ in range(rng.randint(6, 20))]
            segments.append(segment)
            targets += [IGNORE] * len(segment)
        ids += segment
    return ids[:length], targets[:length]


def document_example(rng: Random, stage: Stage) -> tuple[list[int], list[int], list[int]]:
    """A document in a user's turn, then its questions: ids, the targets of the answers, those of the document."""
    sentences = stage.sentences if rng.random() < 0.6 else rng.randint(stage.sentences // 2, stage.sentences)
    values_per_key, numbers_per_value = rng.choice(((1, 1), (1, 1), (3, 1), (1, 4)))
    room = int(0.7 * sentences)
    hops = rng.randint(0, stage.hops)
    chains = rng.randint(0, min(12, room // (hops + 1)))
    room -= chains * (hops + 1)
    needles = rng.randint(0, min(16, room)) // values_per_key
    films = rng.randint(0, min(10, (room - needles * values_per_key) // 2))
    if values_per_key == 1 and rng.random() < 0.3:  # nothing but needles
        chains, films, needles = 0, 0, min(sentences, len(CITIES))
    document = make_document(
        rng,
        sentences,
        chains=chains,
        hops=hops,
        needles=needles,
        together=1 if values_per_key > 1 else rng.choice((1, 1, 2, 3, 4)),
        values_per_key=values_per_key,
        numbers_per_value=numbers_per_value,
        films=films,
        single_hop=True,
        per_passage=rng.choice((0, 0, rng.randint(4, 16))),
    )
    ids = _ids(PREFIX) + [WORD_IDS[word] for sentence in document.sentences for word in sentence]
    language = ids
    answers = [IGNORE] * len(ids)
    for i, question in enumerate(document.questions[:QUESTIONS]):
        asked = _ids(f"{question.text.replace('?', ' ?')} <|assistant|> {question.answer_prefix}")
        turn = asked if i == 0 else [USER, *asked]
        answer = [*_ids(question.completion), EOS]
        ids += turn + answer
        answers += [IGNORE] * len(turn) + answer
    return ids, answers, language


def _ids(text: str) -> list[int]:
    return [WORD_IDS[word] for word in text.split()]


class Batches(IterableDataset):
    """Endless batches ``(ids, answers, language)``, each ``(batch, length)``; ignored targets are -100."""

    def __init__(self, stage: Stage, tokens: int, seed: int):
        self.stage, self.seed = stage, seed
        self.length = 6 + stage.sentences * (SENTENCE_TOKENS + 1) + 12 * min(QUESTIONS, stage.sentences)
        self.batch = max(1, tokens // self.length)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        rng = Random(f"{self.seed}/{self.stage}/{worker.id if worker else 0}")
        while True:
            rows = []
            for i in range(self.batch):
                if i < int(self.batch * self.stage.copies):
                    ids, answers = copy_example(rng, self.length)
                    language = [IGNORE] * len(ids)
                else:
                    ids, answers, language = document_example(rng, self.stage)
                rows.append(
                    [_fit(row, self.length, fill) for row, fill in ((ids, PAD), (answers, IGNORE), (language, IGNORE))]
                )
            yield torch.tensor(rows).transpose(0, 1)  # (3, batch, length)


def _fit(row: list[int], length: int, fill: int) -> list[int]:
    return row[:length] + [fill] * (length - len(row))


def train(
    family: str = "llama",
    *,
    seconds: float = 420,
    steps: int | None = None,
    tokens: int = 32768,
    peak: float = 1e-3,
    language_weight: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
    out: Path | None = None,
    stages: tuple[Stage, ...] = STAGES,
    start_from: str | Path | None = None,
) -> PreTrainedModel:
    """Train `family` and save weights (bf16) and tokenizer to `out`.

    Parameters
    ----------
    seconds, steps
        How long to train: `steps` if given, which is reproducible, or else as many steps as fit into `seconds`.
    tokens
        Tokens per step.
    language_weight
        Weight of the loss on the document's own words, which gives surprisal a meaning.
    start_from
        A folder of weights to continue from; None starts from scratch.
    """
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    model = _start(family, seed, start_from).to(place)
    if place.type == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=place.type == "cuda",
    )
    start, until, progress = monotonic(), 0.0, tqdm(unit="step", mininterval=5)
    step = 0
    whole = sum(stage.share for stage in stages)
    for stage in stages:
        loader = DataLoader(
            Batches(stage, tokens, seed),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            pin_memory=place.type == "cuda",
        )
        until += stage.share / whole
        for batch in loader:
            done = step / steps if steps else (monotonic() - start) / seconds
            if done >= min(until, 1.0):
                break
            ids, answers, language = batch.to(place, non_blocking=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 100, max(0.0, 1.0 - done) / 0.3)
            with torch.autocast(place.type, torch.bfloat16):
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
            losses = [
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), t[:, 1:].flatten(), ignore_index=IGNORE)
                for t in (answers, language)
            ]
            loss = losses[0] + language_weight * losses[1]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            progress.update()
            if step % 100 == 0:
                progress.set_postfix_str(
                    f"{stage.sentences} sentences, answers {losses[0].item():.3f}, words {losses[1].item():.3f}"
                )
    progress.close()
    if out is not None:
        save(model, out)
    return model


def save(model: PreTrainedModel, out: Path) -> None:
    """Write weights in bf16 and the tokenizer, as ``from_pretrained`` reads them, and their hashes."""
    model.to(torch.bfloat16).save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    write_sums(out)
