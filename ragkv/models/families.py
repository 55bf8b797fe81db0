"""The supported families of models: what each one's decoder layer looks like in transformers.

Llama's layer is the ordinary one: norms in front of attention and MLP, separate projections, every layer rotated, no
scales. A `Family` says where another one differs, and is the only place that does. The steps of a layer
(`ragkv.models.decoder`), the rotary embedding and the fingerprint follow it.

Source: ``transformers.models.<family>.modeling_<family>``, where ``<family>`` is the configuration's ``model_type``
(``gemma3`` for ``gemma3_text``).
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Norms:
    """The names of a layer's norms by their place; None where there is none. And how each of them is computed.

    Attributes
    ----------
    epsilon
        The attribute with the number that keeps a norm from dividing by 0.
    rounds_once
        A norm multiplies by its weight before it rounds to the model's dtype, instead of afterwards.
    offset
        What is added to the weight.
    """

    before_attention: str | None = None
    behind_attention: str | None = None
    before_mlp: str | None = None
    behind_mlp: str | None = None
    epsilon: str = "variance_epsilon"
    rounds_once: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """How a family's decoder layer differs from Llama's.

    Attributes
    ----------
    norms
        The layer's norms. The model's last one is computed like them.
    head_norms
        What the norms of queries and keys (``q_norm``, ``k_norm``) run over: each head alone (``"head"``), or all heads
        together (``"width"``). None without such norms.
    fused
        Queries, keys and values come from one projection, ``qkv_proj``, and the MLP's gate and up from another one,
        ``gate_up_proj``.
    rotary_switch
        The attention module's attribute that says whether the layer rotates its queries and keys; None if all do.
    rotary_kinds
        The entry of the configuration that says, for each layer, which of several rotary embeddings it uses; None if
        there is one.
    embedding_scale
        The model's attribute that the embeddings are multiplied by.
    residual_scale
        The layer's attribute that the outputs of attention and MLP are multiplied by before they are added.
    logits_divisor
        The entry of the configuration that the logits are divided by.
    dropouts
        The layer's dropouts, which do nothing outside of training.
    activation
        The entry of the configuration that names the MLP's activation.
    config
        Entries of the configuration that decide what the model computes, besides those that all families have.
    unsupported
        Entries of the configuration that must not be set.
    module
        The name of transformers' module, if it is not the family's.
    """

    norms: Norms = Norms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
    head_norms: Literal["head", "width"] | None = None
    fused: bool = False
    rotary_switch: str | None = None
    rotary_kinds: str | None = None
    embedding_scale: str | None = None
    residual_scale: str | None = None
    logits_divisor: str | None = None
    dropouts: tuple[str, ...] = ()
    activation: str = "hidden_act"
    config: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    module: str | None = None


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norms="head"),
    "phi3": Family(
        fused=True,
        dropouts=("resid_attn_dropout", "resid_mlp_dropout"),
    ),
    "granite": Family(
        embedding_scale="embedding_multiplier",
        residual_scale="residual_multiplier",
        logits_divisor="logits_scaling",
        config=("logits_scaling",),
    ),
    "smollm3": Family(rotary_switch="use_rope"),
    "olmo2": Family(
        norms=Norms(
            behind_attention="post_attention_layernorm",
            behind_mlp="post_feedforward_layernorm",
            rounds_once=True,
        ),
        head_norms="width",
    ),
    "gemma3_text": Family(
        norms=Norms(
            before_attention="input_layernorm",
            behind_attention="post_attention_layernorm",
            before_mlp="pre_feedforward_layernorm",
            behind_mlp="post_feedforward_layernorm",
            epsilon="eps",
            rounds_once=True,
            offset=1.0,
        ),
        head_norms="head",
        rotary_kinds="layer_types",
        activation="hidden_activation",
        config=("hidden_activation", "layer_types", "sliding_window"),
        unsupported=("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
        module="gemma3",
    ),
}


def family_of(module: nn.Module) -> Family:
    """The family of a model, or of an attention module, both of which have a configuration."""
    return FAMILIES[module.config.model_type]
