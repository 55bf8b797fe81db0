"""The method as the paper tells it: whole matrices, float64, transformers' own functions, no ragkv code."""

import copy
import math
from importlib import import_module

import torch
from helpers import BOS


class Slow:
    """The method as the paper tells it, for Llama, Mistral and Qwen; the classes below say what differs."""

    def __init__(self, model, prompt, ratio):
        self.model, self.prompt, self.ratio = copy.deepcopy(model).double(), prompt, ratio
        self.modeling = import_module(type(model).__module__)
        self.start, self.stop = prompt.document_span.start, prompt.document_span.stop

    def embedded(self, ids):
        """The first layer's input, ``(tokens, hidden)``."""
        return self.model.model.embed_tokens(torch.tensor(ids))

    def rotated(self, layer, states, positions):
        """``(heads, tokens, head_dim)`` at these positions."""
        cos, sin = self.model.model.rotary_emb(states, torch.tensor([list(positions)]))
        return self.modeling.apply_rotary_pos_emb(states[None], states[None], cos, sin)[0][0]

    def project(self, layer, hidden):
        """Queries, keys and values, ``(heads, tokens, head_dim)``, before rotation."""
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        result = []
        for name in ("q", "k", "v"):
            states = self.heads(layer, getattr(attention, f"{name}_proj")(normed))
            norm = getattr(attention, f"{name}_norm", None)
            result.append(states if norm is None else norm(states))
        return result

    def heads(self, layer, states):
        """``(tokens, heads * head_dim)`` to ``(heads, tokens, head_dim)``."""
        return torch.stack(states.split(layer.self_attn.head_dim, -1))

    def scaling(self, layer):
        return layer.self_attn.head_dim**-0.5

    def attend(self, layer, rows, queries, keys, values):
        """Attention of the tokens at `rows` to the whole prompt, ``(rows, heads * head_dim)``."""
        group = len(queries) // len(keys)
        keys, values = (torch.stack([s for s in states for _ in range(group)]) for states in (keys, values))
        scores = queries @ keys.transpose(1, 2) * self.scaling(layer)
        for row, position in enumerate(rows):
            scores[:, row, position + 1 :] = float("-inf")
        return torch.cat(list(scores.softmax(-1) @ values), -1)

    def finish(self, layer, hidden, attended):
        """The rest of the layer."""
        hidden = hidden + layer.self_attn.o_proj(attended)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def logits(self, hidden):
        return self.model.lm_head(self.model.model.norm(hidden))

    def alone(self, ids, context):
        """Per layer: keys before rotation and values of a segment computed behind its context."""
        ids = [*context, *ids]
        hidden, rows, result = self.embedded(ids), range(len(ids)), []
        for layer in self.model.model.layers:
            queries, keys, values = self.project(layer, hidden)
            result.append((keys[:, len(context) :], values[:, len(context) :]))
            queries, keys = self.rotated(layer, queries, rows), self.rotated(layer, keys, rows)
            hidden = self.finish(layer, hidden, self.attend(layer, rows, queries, keys, values))
        return result

    def prefill(self, name):
        prompt, everything = self.prompt, range(len(self.prompt.ids))
        context = prompt.prefix[:1] if prompt.prefix[:1] == (BOS,) else ()
        parts = [self.alone(chunk, context) for chunk in prompt.chunks]
        if prompt.prefix:
            parts.insert(0, self.alone(prompt.prefix, ()))
        stored = [tuple(torch.cat([part[i][kv] for part in parts], 1) for kv in (0, 1)) for i in range(len(parts[0]))]
        rows = list(range(self.start, len(everything)))
        hidden = self.embedded(prompt.ids)[rows]
        if name == "epic":
            rows, hidden = self.keep(rows, hidden, self.epic())
        cache = []
        for index, layer in enumerate(self.model.model.layers):
            queries, keys, values = self.project(layer, hidden)
            queries, keys = self.rotated(layer, queries, rows), self.rotated(layer, keys, rows)
            old_keys = self.rotated(layer, stored[index][0], range(self.stop))
            old_values = stored[index][1]
            fused = []
            for old, new in ((old_keys, keys), (old_values, values)):
                states = torch.zeros(len(old), len(everything), old.shape[2], dtype=torch.float64)
                states[:, : self.stop] = old
                for row, position in enumerate(rows):
                    states[:, position] = new[:, row]
                fused.append(states)
            if index == 1 and name != "epic":
                if name == "a3":
                    chosen = self.a3(queries, fused[0], self.scaling(layer) / len(queries) ** 0.5)
                else:
                    chosen = self.cacheblend(fused[1], old_values)
                before = rows
                rows, hidden = self.keep(rows, hidden, chosen)
                queries = queries[:, [before.index(position) for position in rows]]
            hidden = self.finish(layer, hidden, self.attend(layer, rows, queries, *fused))
            cache.append(fused)
        return self.logits(hidden[-1:]), cache, rows

    def keep(self, rows, hidden, chosen):
        kept = [i for i, position in enumerate(rows) if position >= self.stop or position - self.start in chosen]
        return [rows[i] for i in kept], hidden[kept]

    @property
    def budget(self):
        return math.floor(self.ratio * (self.stop - self.start))

    def epic(self):
        """Chunks' first tokens, dealt out one by one."""
        offsets, shares, left = [], [0] * len(self.prompt.chunks), self.budget
        while left:
            for i, chunk in enumerate(self.prompt.chunks):
                if left and shares[i] < len(chunk):
                    shares[i], left = shares[i] + 1, left - 1
        for span, share in zip(self.prompt.chunk_spans, shares, strict=True):
            offsets += [position - self.start for position in span[:share]]
        return set(offsets)

    def a3(self, queries, keys, scaling):
        scores = torch.zeros(self.stop - self.start, dtype=torch.float64)
        group = len(queries) // len(keys)
        for position in self.prompt.question_span:
            query = torch.cat([head[position - self.start] for head in queries])
            products = [
                query @ torch.cat([keys[head // group, i] for head in range(len(queries))]) * scaling
                for i in range(self.start, position + 1)
            ]
            scores += torch.stack(products).softmax(0)[: len(scores)]
        padded = torch.cat([torch.zeros(2), scores, torch.zeros(2)])
        return set(padded.unfold(0, 5, 1).mean(1).topk(self.budget).indices.tolist())

    def cacheblend(self, fresh, old):
        gap = ((fresh[:, self.start : self.stop] - old[:, self.start :]) ** 2).sum((0, 2))
        return set(gap.topk(self.budget).indices.tolist())


class SlowPhi3(Slow):
    """One projection to queries, keys and values."""

    def project(self, layer, hidden):
        states = self.heads(layer, layer.self_attn.qkv_proj(layer.input_layernorm(hidden)))
        heads, kv_heads = self.model.config.num_attention_heads, self.model.config.num_key_value_heads
        return states.split([heads, kv_heads, kv_heads])


class SlowGranite(Slow):
    """Scales of the embeddings, of attention, of the residual connections and of the logits."""

    def embedded(self, ids):
        return super().embedded(ids) * self.model.config.embedding_multiplier

    def scaling(self, layer):
        return self.model.config.attention_multiplier

    def finish(self, layer, hidden, attended):
        hidden = hidden + layer.self_attn.o_proj(attended) * self.model.config.residual_multiplier
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)) * self.model.config.residual_multiplier

    def logits(self, hidden):
        return super().logits(hidden) / self.model.config.logits_scaling


class SlowSmolLM3(Slow):
    """Some layers do not rotate."""

    def rotated(self, layer, states, positions):
        rotates = self.model.config.no_rope_layers[layer.self_attn.layer_idx]
        return super().rotated(layer, states, positions) if rotates else states


class SlowOlmo2(Slow):
    """Norms behind attention and MLP, and of all heads' queries and keys together."""

    def project(self, layer, hidden):
        attention = layer.self_attn
        queries, keys = attention.q_norm(attention.q_proj(hidden)), attention.k_norm(attention.k_proj(hidden))
        return [self.heads(layer, states) for states in (queries, keys, attention.v_proj(hidden))]

    def finish(self, layer, hidden, attended):
        hidden = hidden + layer.post_attention_layernorm(layer.self_attn.o_proj(attended))
        return hidden + layer.post_feedforward_layernorm(layer.mlp(hidden))


class SlowGemma3(Slow):
    """Norms around attention and MLP, two rotary embeddings, and attention that is scaled by a number of its own."""

    def rotated(self, layer, states, positions):
        kind = self.model.config.layer_types[layer.self_attn.layer_idx]
        cos, sin = self.model.model.rotary_emb(states, torch.tensor([list(positions)]), kind)
        return self.modeling.apply_rotary_pos_emb(states[None], states[None], cos, sin)[0][0]

    def scaling(self, layer):
        return self.model.config.query_pre_attn_scalar**-0.5

    def finish(self, layer, hidden, attended):
        hidden = hidden + layer.post_attention_layernorm(layer.self_attn.o_proj(attended))
        return hidden + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))


OTHERS = {
    "phi3": SlowPhi3,
    "granite": SlowGranite,
    "smollm3": SlowSmolLM3,
    "olmo2": SlowOlmo2,
    "gemma3_text": SlowGemma3,
}


def slow_model(model, prompt, ratio):
    """The class of the model's family."""
    return OTHERS.get(model.config.model_type, Slow)(model, prompt, ratio)
