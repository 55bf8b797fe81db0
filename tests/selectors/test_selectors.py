"""Every selector, compared with a slow and obvious version; and the registry."""

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
import torch
from helpers import RATIO_SELECTORS, fuse, make_model, memory_store, plain, random_prompt, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from ragkv import Prompt, fused_prefill, precompute
from ragkv.selectors import ALIASES, SELECTORS, Observation, ScoringSelector, Selector, get_selector, register
from ragkv.selectors.base import share_by_length, share_evenly, top
from ragkv.selectors.cacheblend import CacheBlend

SCALING = 0.3
some_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
ratios = st.integers(0, 16).map(lambda n: n / 16)
examples = settings(max_examples=40)


@st.composite
def observations(draw):
    chunks, question = draw(some_lengths), draw(st.integers(1, 4))
    prefix, kv_heads, group, dim = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)), 4
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    prompt = Prompt([1] * prefix, [[5] * n for n in chunks], [7] * question)
    document = sum(chunks)
    stored = torch.randn(2, 1, kv_heads, document, dim, generator=random)
    surprisal = torch.rand(document, generator=random)
    return Observation(
        prompt,
        lambda: surprisal,
        queries=torch.randn(1, kv_heads * group, question, dim, generator=random),
        keys=torch.randn(1, kv_heads, document + question, dim, generator=random),
        values=torch.randn(1, kv_heads, document + question, dim, generator=random),
        reused=lambda: (stored[0], stored[1]),
        scaling=SCALING,
    )


def document_of(seen):
    return len(seen.prompt.document_span)


def softmax(numbers):
    most = max(numbers)
    weights = [math.exp(n - most) for n in numbers]
    return [w / sum(weights) for w in weights]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_attention(seen, per_head):
    queries, keys = seen.queries[0].tolist(), seen.keys[0].tolist()
    group, document = len(queries) // len(keys), document_of(seen)
    result = [0.0] * document
    for row in range(len(queries[0])):
        seen_keys = range(document + row + 1)  # the document, and the question up to this token
        products = [
            [SCALING * dot(query[row], keys[head // group][j]) for j in seen_keys] for head, query in enumerate(queries)
        ]
        if not per_head:
            products = [[sum(column) / math.sqrt(len(queries)) for column in zip(*products, strict=True)]]
        for head in products:
            for j, weight in enumerate(softmax(head)[:document]):
                result[j] += weight
    return result


def slow_pooling(scores, kernel):
    padded = [0.0] * (kernel // 2) + scores + [0.0] * (kernel // 2)
    return [sum(padded[i : i + kernel]) / kernel for i in range(len(scores))]


def slow_gap(seen, gap):
    stored = seen.reused()["kv".index(gap)][0].tolist()
    fresh = (seen.keys if gap == "k" else seen.values)[0].tolist()
    return [
        sum((a - b) ** 2 for f, s in zip(fresh, stored, strict=True) for a, b in zip(f[i], s[i], strict=True))
        for i in range(document_of(seen))
    ]


def slow_top(scores, count):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def assert_scores(selector, seen, expected):
    """The scores are these, and the highest of them are chosen."""
    scores = selector.scores(seen)
    assert torch.allclose(scores.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)
    chosen = selector.choose(seen).tolist()
    assert chosen == slow_top(scores.tolist(), math.floor(selector.ratio * document_of(seen)))


@examples
@given(seen=observations(), kernel=st.sampled_from([1, 3, 5, 9]), ratio=ratios)
@pytest.mark.parametrize("per_head", [False, True])
def test_a3_is_the_questions_attention_smoothed(seen, kernel, ratio, per_head):
    selector = get_selector("a3", ratio=ratio, kernel=kernel, per_head=per_head)
    assert_scores(selector, seen, slow_pooling(slow_attention(seen, per_head), kernel))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a3_is_one_wide_head_over_the_models_own_queries_and_keys(family, layer):
    """softmax(Q K^T / sqrt(heads * head_dim)), heads side by side and keys repeated, from transformers' modules."""
    model = make_model(family)
    prompt = random_prompt(Random(layer))
    selected = fuse(model, prompt, "a3", ratio=0.3, layer=layer).selected.tolist()

    attention = model.model.layers[layer].self_attn
    with torch.inference_mode():
        hidden = model(prompt.tensor[None], output_hidden_states=True).hidden_states[layer]
        normed = model.model.layers[layer].input_layernorm(hidden)
        split = (*normed.shape[:2], -1, attention.head_dim)
        queries = attention.q_proj(normed).view(split)
        keys = attention.k_proj(normed).view(split)
        if family == "qwen3":
            queries = attention.q_norm(queries)
            keys = attention.k_norm(keys)
        rotation = model.model.rotary_emb(hidden, torch.arange(len(prompt.ids))[None])
        queries, keys = apply_rotary_pos_emb(queries.transpose(1, 2), keys.transpose(1, 2), *rotation)
        keys = repeat_kv(keys, attention.num_key_value_groups)
        wide_queries = queries[0].transpose(0, 1).flatten(1)  # (tokens, heads * head_dim)
        wide_keys = keys[0].transpose(0, 1).flatten(1)
        products = wide_queries @ wide_keys.T / math.sqrt(wide_keys.shape[1])

    document = prompt.document_span
    scores = [0.0] * len(document)
    for row in prompt.question_span:
        weights = softmax(products[row, document.start : row + 1].tolist())
        scores = [score + weight for score, weight in zip(scores, weights, strict=False)]
    best = slow_top(slow_pooling(scores, 5), math.floor(0.3 * len(document)))
    assert selected == sorted(document.start + i for i in best) + list(prompt.question_span)


@pytest.mark.parametrize("gap", ["v", "k"])
@examples
@given(seen=observations(), ratio=ratios)
def test_cacheblend_is_the_squared_difference(gap, seen, ratio):
    assert_scores(get_selector("cacheblend", ratio=ratio, gap=gap), seen, slow_gap(seen, gap))


@pytest.mark.parametrize("gap", ["v", "k"])
@pytest.mark.parametrize("combine", ["mul", "sum", "rank"])
@examples
@given(seen=observations(), alpha=ratios, ratio=ratios)
def test_a3_blend_combines_both(combine, gap, seen, alpha, ratio):
    selector = get_selector("a3_blend", ratio=ratio, combine=combine, alpha=alpha, gap=gap)
    normed = []
    for scores in (slow_pooling(slow_attention(seen, False), 5), slow_gap(seen, gap)):
        if combine == "rank":
            order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
            normed.append([order.index(i) / max(1, len(scores) - 1) for i in range(len(scores))])
        else:
            normed.append([score / sum(scores) for score in scores])
    pairs = zip(*normed, strict=True)
    if combine == "mul":
        expected = [a**alpha * d ** (1 - alpha) for a, d in pairs]
    else:
        expected = [alpha * a + (1 - alpha) * d for a, d in pairs]
    assert_scores(selector, seen, expected)


def offsets(prompt):
    return [[i - len(prompt.prefix) for i in span] for span in prompt.chunk_spans]


@examples
@given(seen=observations(), ratio=ratios)
def test_epic_deals_the_budget_to_the_chunks_beginnings(seen, ratio):
    chosen = get_selector("epic", ratio=ratio).choose(seen).tolist()
    taken, left = set(), math.floor(ratio * document_of(seen))
    assert len(chosen) == left
    for place in range(max(map(len, seen.prompt.chunks))):
        for chunk in offsets(seen.prompt):
            if place < len(chunk) and len(taken) < left:
                taken.add(chunk[place])
    assert sorted(chosen) == sorted(taken)


@given(seen=observations(), count=st.integers(0, 12))
def test_epic_takes_a_number_of_tokens_of_every_chunk(seen, count):
    chosen = get_selector("epic", tokens_per_chunk=count).choose(seen).tolist()
    assert chosen == [i for chunk in offsets(seen.prompt) for i in chunk[:count]]


@examples
@given(seen=observations(), ratio=ratios)
def test_surprisal_takes_the_highest_of_each_chunk(seen, ratio):
    budget = math.floor(ratio * document_of(seen))
    lengths = list(map(len, seen.prompt.chunks))
    scores = seen.surprisal()
    exact = [budget * n / sum(lengths) for n in lengths]
    shares = [math.floor(e) for e in exact]
    by_remainder = sorted(range(len(lengths)), key=lambda i: (round(shares[i] - exact[i], 9), i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    expected = []
    for chunk, share in zip(offsets(seen.prompt), shares, strict=True):
        expected += [chunk[i] for i in slow_top([float(scores[j]) for j in chunk], share)]
    assert get_selector("surprisal", ratio=ratio).choose(seen).tolist() == expected


@given(seen=observations(), ratio=ratios)
def test_tail_takes_the_end(seen, ratio):
    document = document_of(seen)
    chosen = get_selector("tail", ratio=ratio).choose(seen).tolist()
    assert sorted(chosen) == list(range(document))[document - math.floor(ratio * document) :]


def test_random_depends_on_the_seed_alone(rng):
    seen = Observation(random_prompt(rng), lambda: None)
    choices = [get_selector("random", ratio=0.5, seed=seed).choose(seen).tolist() for seed in (0, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len({tuple(sorted(choice)) for choice in choices}) == 3
    torch.manual_seed(99)
    assert get_selector("random", ratio=0.5).choose(seen).tolist() == choices[0]


def test_random_favours_no_place(rng):
    seen = Observation(random_prompt(rng), lambda: None)
    often = torch.zeros(40)
    for seed in range(400):
        often[get_selector("random", ratio=0.25, seed=seed).choose(seen)] += 1
    assert 60 < often.min() <= often.max() < 140  # 100 on average, a standard deviation of 8.7


def test_the_ends_of_the_scale(rng):
    seen = Observation(random_prompt(rng), lambda: None)
    assert get_selector("full_prefill").choose(seen).tolist() == list(range(40))
    assert get_selector("full_reuse").choose(seen).tolist() == get_selector("cat").choose(seen).tolist() == []


@given(st.integers(0, 99), some_lengths)
def test_shares_by_length_are_proportional(budget, lengths):
    budget = min(budget, sum(lengths))
    shares = share_by_length(budget, lengths)
    assert sum(shares) == budget
    for share, length in zip(shares, lengths, strict=True):
        assert abs(share - budget * length / sum(lengths)) < 1
        assert 0 <= share <= length
    assert all(
        a >= b for a, m in zip(shares, lengths, strict=True) for b, n in zip(shares, lengths, strict=True) if m > n
    )


@given(st.integers(0, 99), some_lengths)
def test_shares_dealt_evenly_differ_only_where_chunks_are_full(budget, lengths):
    shares = share_evenly(budget, lengths)
    assert sum(shares) == min(budget, sum(lengths))
    unfilled = [share for share, length in zip(shares, lengths, strict=True) if share < length]
    assert all(0 <= share <= length for share, length in zip(shares, lengths, strict=True))
    if unfilled:
        assert max(shares) - min(unfilled) <= 1
        assert unfilled == sorted(unfilled, reverse=True)  # earlier chunks first


def test_nothing_is_shared_among_no_chunks():
    assert share_by_length(0, []) == share_evenly(0, []) == []


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30))
def test_of_equal_scores_the_first_are_taken(scores, count):
    assert top(torch.tensor(scores, dtype=torch.float), count).tolist() == slow_top(scores, count)


def test_ties_go_to_the_first_tokens(rng):
    prompt = random_prompt(rng)
    zeros = torch.zeros(1, 2, 46, 4)
    seen = Observation(
        prompt, lambda: torch.zeros(40), zeros[:, :, :6], zeros, zeros, reused=lambda: (zeros[:, :, :40],) * 2
    )
    assert get_selector("cacheblend", ratio=0.25).choose(seen).tolist() == list(range(10))
    assert get_selector("a3", ratio=0.25, kernel=1).choose(seen).tolist() == list(range(10))
    assert get_selector("surprisal", ratio=0.1).choose(seen).tolist() == [0, 13, 20, 21]


def test_aliases_are_the_selectors_they_stand_for():
    assert set(ALIASES.values()) <= set(SELECTORS)
    assert not set(ALIASES) & set(SELECTORS)
    for alias, name in ALIASES.items():
        assert get_selector(alias) == get_selector(name)
        assert type(get_selector(alias)) is SELECTORS[name]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown selector 'a4'") as caught:
        get_selector("a4")
    assert all(name in str(caught.value) for name in [*SELECTORS, *ALIASES])


@pytest.mark.parametrize("name", SELECTORS)
def test_an_unknown_option_lists_the_known(name):
    with pytest.raises(ValueError, match=r"no option nope: it takes .*layer"):
        get_selector(name, nope=1)


@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("name", RATIO_SELECTORS)
def test_a_ratio_out_of_range_is_refused(name, ratio):
    with pytest.raises(ValueError, match=f"ratio is {ratio}"):
        get_selector(name, ratio=ratio)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a3", {"kernel": 4}),
        ("a3", {"kernel": 0}),
        ("a3", {"layer": -1}),
        ("cacheblend", {"gap": "x"}),
        ("a3_blend", {"gap": "x"}),
        ("a3_blend", {"combine": "max"}),
        ("a3_blend", {"alpha": 1.5}),
        ("a3_blend", {"kernel": 2}),
        ("epic", {"tokens_per_chunk": -1}),
        ("full_reuse", {"ratio": 0.5}),
        ("full_prefill", {"ratio": 0.5}),
    ],
)
def test_other_values_out_of_range_are_refused(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_selector(name, **options)


@pytest.fixture
def clean_registry():
    """Forget afterwards what a test registers."""
    before = dict(SELECTORS)
    yield
    SELECTORS.clear()
    SELECTORS.update(before)


def prefill_with(model, selector):
    prompt, store = random_prompt(Random(0)), memory_store()
    precompute(model, [prompt], store)
    return fused_prefill(model, prompt, store, selector)


@pytest.mark.usefixtures("clean_registry")
def test_a_selector_of_your_own(llama):
    @register("every_third")
    @dataclass(frozen=True)
    class EveryThird(ScoringSelector):
        offset: int = 0

        def scores(self, seen):
            return (torch.arange(len(seen.prompt.document_span)) % 3 == self.offset).float()

    selected = prefill_with(llama, get_selector("every_third", ratio=0.2, offset=2)).selected.tolist()
    assert selected == [4 + i for i in range(2, 24, 3)] + list(range(44, 50))
    register("every_third")(EveryThird)  # as if its notebook cell were run again
    with pytest.raises(ValueError, match="'every_third' is taken"):
        register("every_third")(SELECTORS["a3"])


@pytest.mark.parametrize("name", ["a3", *ALIASES])
def test_a_taken_name_is_refused(name):
    with pytest.raises(ValueError, match="is taken"):
        register(name)(type("Other", (Selector,), {}))


@dataclass(frozen=True)
class Given(Selector):
    """Chooses the tokens that it was made with."""

    chosen: tuple[int, ...] = ()

    def choose(self, seen):
        return torch.tensor(self.chosen)


@pytest.mark.parametrize("chosen", [(-1,), (40,), (0, 41)])
def test_a_choice_outside_the_document_is_refused(llama, chosen):
    with pytest.raises(ValueError, match="Given chose a token outside the document's 40"):
        prefill_with(llama, Given(chosen=chosen))


def test_tokens_may_be_named_twice_and_in_any_order(llama):
    assert prefill_with(llama, Given(chosen=(39, 0, 7, 0))).selected.tolist() == [4, 11, 43, *range(44, 50)]


@pytest.mark.parametrize("gap", ["v", "k"])
def test_gradual_filtering_chooses_among_the_tokens_it_kept(model, rng, gap):
    """Three checks keep 5/3, 4/3 and 1 times the ratio, each the tokens with the largest deviations."""
    prompt, store = random_prompt(rng, chunks=(20, 20, 20)), memory_store()
    precompute(model, [prompt], store)
    seen = []

    @dataclass(frozen=True)
    class Watched(CacheBlend):
        def choose(self, observation):
            seen.append((observation.candidates, self.scores(observation), super().choose(observation)))
            return seen[-1][2]

    selector = Watched(ratio=0.3, layer=0, checks=3, gap=gap)
    prefill = fused_prefill(model, prompt, store, selector)
    assert [len(chosen) for _, _, chosen in seen] == [30, 24, 18]
    for (_, _, before), (candidates, scores, chosen) in pairwise(seen):
        assert candidates.tolist() == sorted(before.tolist())
        assert sorted(chosen.tolist()) == sorted(candidates[slow_top(scores.tolist(), len(chosen))].tolist())
    document = [p - prompt.document_span.start for p in prefill.selected.tolist() if p in prompt.document_span]
    assert document == sorted(seen[-1][2].tolist())


def test_gradual_filtering_of_everything_is_a_full_prefill(model, rng):
    prompt = random_prompt(rng)
    found = fuse(model, prompt, "cacheblend", ratio=1.0, checks=2)
    assert relative_error(found.logits, plain(model, prompt)[0]) <= 1e-5


def test_bad_checks(llama, rng):
    with pytest.raises(ValueError, match="checks is 0"):
        get_selector("cacheblend", checks=0)
    with pytest.raises(ValueError, match="selection layer 3: this model's layers are 0 to 2"):
        fuse(llama, random_prompt(rng), "cacheblend", checks=3)
