"""What cannot be right, or cannot be known, is refused with one message that says what to do."""

from functools import partial

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, LayerwiseCastingHook, add_hook_to_module, remove_hook_from_module
from adapters import Int8Linear, Lora, replace
from helpers import ROPES, byte_level_bpe, fuse, make_model, memory_store, plain, random_prompt, relative_error
from torch import nn
from torch.ao.quantization import quantize_dynamic
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from transformers.tokenization_mistral_common import MistralCommonBackend

from ragkv import Rag, decode, fused_prefill, precompute
from ragkv.fusion.workspace import Workspace
from ragkv.models.checks import check_model, check_room, check_tokenizer
from ragkv.models.fingerprint import fingerprint
from ragkv.selectors import get_selector


def same(*arguments):
    """A hook that does nothing."""


def register(part, kind):
    return lambda model: getattr(model.get_submodule(part), f"register_{kind}")(same)


def put(part, name, value):
    return lambda model: setattr(model.get_submodule(part), name, value)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, hidden):
        return hidden * self.weight


def train_with_dropout(model):
    replace(model, "v_proj", Lora, ("first",), 0.1)
    model.train()


def train_with_checkpoints(model):
    model.gradient_checkpointing_enable()
    model.train()


def train_with_attention_dropout(model):
    model.config.attention_dropout = 0.1
    model.train()


def hold(value):
    return lambda model: setattr(replace(model, "q_proj", Lora), "held", value)


def add_sparse_buffer(model):
    replace(model, "q_proj", Int8Linear).register_buffer("held", torch.eye(3).to_sparse())


def cast_layerwise(model):
    add_hook_to_module(model.model.norm, LayerwiseCastingHook(torch.half, torch.float, non_blocking=False))


REFUSED = {
    "a hook": (register("model.norm", "forward_hook"), r"model.norm has a forward hook, .*same.*remove the hook"),
    "a hook before": (register("lm_head", "forward_pre_hook"), "lm_head has a forward hook"),
    "a hook of the model": (register("", "forward_hook"), "the model has a forward hook"),
    "input gradients": (lambda model: model.enable_input_require_grads(), "embed_tokens has a forward hook"),
    "a forward": (put("model.norm", "forward", same), r"forward of model.norm was replaced by .*same.*load the model"),
    "a partial forward": (put("", "forward", partial(same, 1)), r"of the model was replaced by functools.partial"),
    "a norm": (put("model", "norm", Norm()), r"model.norm is of the class .*Norm, which transformers does not use"),
    "a layer": (lambda model: model.model.layers.append(Norm()), r"layers.3 is of the class .*Norm"),
    "an adapter's dropout": (train_with_dropout, r"training mode, and .*v_proj is of .*Lora: call model.eval"),
    "a dropout": (
        put("model.layers.0.mlp", "act_fn", nn.Dropout(0.2)),
        r"training mode, .*act_fn has a dropout of 0.2",
    ),
    "attention dropout": (train_with_attention_dropout, "training mode, and its attention has a dropout of 0.1"),
    "checkpointing": (train_with_checkpoints, "training mode, and gradient checkpointing switches its cache off"),
    "offloaded": (lambda model: model.model.norm.to("meta"), "some weights are offloaded: give device_map only"),
    "a partial function": (hold(partial(same)), r"q_proj.held holds an object of the class .*partial"),
    "a closure": (hold(hold(1)), r"q_proj.held holds an object of the class builtins.function.*merge the adapter"),
    "a sparse weight": (add_sparse_buffer, "q_proj.held is a sparse_coo tensor"),
    "casting": (cast_layerwise, "model.norm has accelerate's LayerwiseCastingHook"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_refused_also_after_it_was_checked(case):
    change, message = REFUSED[case]
    model = make_model("llama")
    check_model(model)
    fingerprint(model)
    change(model)
    for refuse in (check_model, fingerprint):
        with pytest.raises(ValueError, match=message):
            refuse(model)


def test_a_hook_of_all_modules_is_refused(llama):
    check_model(llama)
    for register_hook in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register_hook(same)
        with pytest.raises(ValueError, match=r"a forward hook of all modules, .*same.*remove the hook"):
            check_model(llama)
        handle.remove()
        check_model(llama)


def test_a_class_whose_forward_was_replaced_is_refused(llama, monkeypatch):
    monkeypatch.setattr(type(llama.model.norm), "forward", same)
    with pytest.raises(ValueError, match=r"the forward of .*norm was replaced by .*same"):
        check_model(llama)


def test_a_subclass_is_accepted_unless_it_has_a_forward_of_its_own(llama):
    class Named(LlamaForCausalLM):
        def loss_of_mine(self):
            return 0

    class Changed(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    check_model(Named(llama.config).eval())
    with pytest.raises(ValueError, match=r"the model is of the class .*Changed, which transformers does not use there"):
        check_model(Changed(llama.config).eval())


def test_autocast_is_refused(llama, rng):
    store = memory_store()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"autocast is on for cpu.*leave torch"):
        precompute(llama, [random_prompt(rng)], store)
    assert store.keys() == []


def test_hooks_that_only_move_tensors_are_accepted(llama):
    model = make_model("llama")
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    add_hook_to_module(model.model.layers[1].mlp, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    add_hook_to_module(model.model.layers[1].mlp, AlignDevicesHook(execution_device="cpu"), append=True)
    check_model(model)
    assert fingerprint(model) == fingerprint(llama)
    remove_hook_from_module(model, recurse=True)  # leaves forwards behind
    assert fingerprint(model) == fingerprint(llama)


def test_the_mode_of_training_alone_is_accepted(llama):
    model = make_model("llama").train()
    model.model.layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.0))
    check_model(model)


class WithPrompt(nn.Module):
    """As peft's model around a transformers one."""

    def __init__(self, model, is_prompt_learning):
        super().__init__()
        self.base_model = model
        self.active_peft_config = type("Config", (), {"is_prompt_learning": is_prompt_learning})
        self.config, self.device = model.config, model.device

    def get_base_model(self):
        return self.base_model


WRAPPED = {
    "compiled": (torch.compile, r"wrapped by torch.compile: give the model that was compiled \(compiled._orig_mod\)"),
    "peft": (
        lambda model: WithPrompt(model, False),
        r"give the model inside.*get_base_model\(\).*merge_and_unload\(\)",
    ),
    "prompt tuning": (lambda model: WithPrompt(model, True), "adds tokens or keys to the prompt"),
    "parallel": (nn.DataParallel, "the model is a DataParallel: give a model of transformers"),
    "a name": (lambda model: "tiny-llama", "the model is a str: give a model of transformers, such as load_model"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_is_refused_wherever_a_model_is_given(llama, rng, case):
    wrap, message = WRAPPED[case]
    wrapped, prompt, store = wrap(llama), random_prompt(rng), memory_store()
    prefill = fuse(llama, prompt, "a3")
    for use in (
        lambda: check_model(wrapped),
        lambda: precompute(wrapped, [prompt], store),
        lambda: fused_prefill(wrapped, prompt, store, get_selector("a3")),
        lambda: decode(wrapped, prefill),
        lambda: Workspace(wrapped, 64),
        lambda: Rag(["a text"], (wrapped, byte_level_bpe()), store="memory://ragkv-refused"),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_model_without_a_language_models_head_is_refused():
    with pytest.raises(ValueError, match="LlamaForSequenceClassification, which predicts no tokens"):
        check_model(LlamaForSequenceClassification(make_model("llama").config))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_is_refused():
    model = quantize_dynamic(make_model("llama"), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"q_proj is of the class torch.*Linear, which keeps its weight where"):
        check_model(model)


def test_tokenizers_of_other_libraries_are_refused(llama):
    check_tokenizer(byte_level_bpe())
    mistral = object.__new__(MistralCommonBackend)
    for tokenizer, message in (
        (mistral, "mistral-common's MistralCommonBackend.*mistral_format=False"),
        (byte_level_bpe().backend_tokenizer, "the tokenizer is a tokenizers.Tokenizer: give one of transformers"),
        (None, "the tokenizer is a builtins.NoneType: give one of transformers"),
    ):
        with pytest.raises(ValueError, match=message):
            Rag(["a text"], (llama, tokenizer))


UNSCALED = {  # ropes of checkpoints whose max_position_embeddings is that before scaling, and what they reach
    "yarn": (ROPES["yarn"] | {"original_max_position_embeddings": 48}, 4 * 48),
    "linear": (ROPES["linear"], 3 * 48),
}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("rope", UNSCALED)
def test_scaled_positions_are_used(rng, family, rope):
    parameters, positions = UNSCALED[rope]
    model = make_model(family, rope_parameters=parameters, max_position_embeddings=48)
    prompt = random_prompt(rng, chunks=(30, positions - 50), question=10, prefix=10)
    assert len(prompt.ids) == positions
    fused = fuse(model, prompt, "a3", ratio=1.0)
    assert relative_error(fused.logits, plain(model, prompt)[0]) <= 1e-5
    longer = random_prompt(rng, chunks=(30, positions - 49), question=10, prefix=10)
    with pytest.raises(ValueError, match=f"has {positions + 1} tokens, more than the model's {positions} positions"):
        fuse(model, longer, "a3")
    with pytest.raises(ValueError, match=f"together more than the model's {positions} positions: shorten it"):
        check_room(model, len(prompt.ids), 1, "shorten it")


def test_positions_that_are_already_scaled_are_not_scaled_again(rng):
    rope = ROPES["yarn"] | {"original_max_position_embeddings": 16}
    model = make_model("qwen2", rope_parameters=rope, max_position_embeddings=64)
    with pytest.raises(ValueError, match="more than the model's 64 positions"):
        fuse(model, random_prompt(rng, chunks=(60,)), "a3")
