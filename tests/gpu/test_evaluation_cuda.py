"""An evaluation on a GPU runs in a workspace, with the same rows."""

import pandas as pd
import pytest
import torch
from profiles import run, without_times, write_profile

from ragkv import load_model
from ragkv.experiment import prompt_loop
from ragkv.fusion.workspace import Workspace

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)  # here, so that hundreds of tests are not collected first

METHODS = [
    {"selector": "full_prefill"},
    {"selector": "full_reuse", "offline": {"context": "prefix"}},
    {"selector": "a3", "offline": {"format": "int8"}},
    {"selector": "probe"},
    {"selector": "epic", "eviction": {"name": "streaming", "capacity_ratio": 0.5}},
]


def test_rows_are_those_of_prefills_in_memory_of_their_own(tmp_path, monkeypatch):
    tiny = load_model("tiny-llama", device="cuda", dtype="float32")
    experiment = write_profile(tmp_path, methods=METHODS, device="cuda", dtype="float32")
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    workspaces = []

    def prefill(*args, real=prompt_loop.fused_prefill, **options):
        workspaces.append(options["workspace"])
        return real(*args, **options)

    monkeypatch.setattr(prompt_loop, "fused_prefill", prefill)
    found = without_times(run(experiment, tiny))
    assert len(set(workspaces)) == 1
    assert workspaces[0] is not None
    monkeypatch.setattr(Workspace, "if_faster", lambda model, tokens, backend: None)
    expected = without_times(run(experiment, tiny))
    assert workspaces[-1] is None
    pd.testing.assert_frame_equal(found, expected)


def test_other_backends_have_no_workspace():
    model, _ = load_model("tiny-llama", device="cuda")
    assert Workspace.if_faster(model, 100, "sdpa") is None
    assert Workspace.if_faster(model, 100, "triton").memory.tokens == 100
