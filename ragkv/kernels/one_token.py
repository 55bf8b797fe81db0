"""Linear maps of a single token, for decoding: reading the weights takes all the time, so nothing else may wait for it.

Each program computes one output. Maps of the same states are computed by one kernel, which also adds what is added to
its result.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import early_start, on_its_gpu
from ragkv.kernels.early import wait_for_previous

BLOCK = 1024  # weights that a program reads at a time, the fastest of those tried on an H200


@on_its_gpu
def linear(
    states: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], residual: Tensor | None = None
) -> list[Tensor]:
    """Up to three linear maps of the same states.

    Parameters
    ----------
    states
        ``(1, 1, width)``, contiguous.
    weights, biases
        ``(outputs, width)``, contiguous, and ``(outputs,)`` of each map, in the dtype of the states. All maps have a
        bias, or none.
    residual
        ``(1, 1, outputs)``, contiguous: is added to the result of a single map, once that is rounded.

    Returns
    -------
    list
        ``(1, 1, outputs)`` of each map.
    """
    outputs = [len(weight) for weight in weights]
    out = torch.empty(1, 1, sum(outputs), dtype=states.dtype, device=states.device)
    first, second, third = [*weights, *[weights[0]] * (3 - len(weights))]
    first_bias, second_bias, third_bias = [*biases, *[biases[0]] * (3 - len(biases))]
    biased = first_bias is not None
    _linear[(sum(outputs),)](
        states, first, second, third,
        *((first_bias, second_bias, third_bias) if biased else (states, states, states)),
        states if residual is None else residual, out, outputs[0], sum(outputs[:2]), states.shape[-1],
        BIASED=biased, RESIDUAL=residual is not None, BLOCK=BLOCK, **early_start(states, 1),
    )  # fmt: skip
    return list(out.split(outputs, dim=-1))


@on_its_gpu
def gated(states: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate @ states) * (up @ states)``, rounded after each step.

    Parameters
    ----------
    states
        ``(1, 1, width)``, contiguous.
    gate, up
        ``(outputs, width)`` each, contiguous, in the dtype of the states.
    """
    outputs = len(gate)
    out = torch.empty(1, 1, outputs, dtype=states.dtype, device=states.device)
    _gated[(outputs,)](states, gate, up, out, states.shape[-1], BLOCK=BLOCK, num_warps=8, **early_start(states, 1))
    return out


@triton.jit
def _product(states, weight, width, BLOCK: tl.constexpr):
    """The product of a row of weights and the states, in float32."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, width, BLOCK, num_stages=1):
        index = start + tl.arange(0, BLOCK)
        valid = index < width
        weights = tl.load(weight + index, valid, 0.0, eviction_policy="evict_first").to(tl.float32)
        total += tl.load(states + index, valid, 0.0).to(tl.float32) * weights
    return tl.sum(total)


@triton.jit
def _linear(
    states, first, second, third, first_bias, second_bias, third_bias, residual, out, second_start, third_start, width,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """One output of one of the maps."""
    wait_for_previous(EARLY)
    output = tl.program_id(0)
    weight = first
    bias = first_bias
    row = output
    if output >= third_start:
        weight = third
        bias = third_bias
        row = output - third_start
    elif output >= second_start:
        weight = second
        bias = second_bias
        row = output - second_start
    result = _product(states, weight + row.to(tl.int64) * width, width, BLOCK)
    if BIASED:
        result += tl.load(bias + row).to(tl.float32)
    result = result.to(out.dtype.element_ty)
    if RESIDUAL:
        result = (tl.load(residual + output).to(tl.float32) + result.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + output, result)


@triton.jit
def _gated(states, gate, up, out, width, BLOCK: tl.constexpr, EARLY: tl.constexpr = False):
    """One output."""
    wait_for_previous(EARLY)
    output = tl.program_id(0)
    row = output.to(tl.int64) * width
    gates = tl.zeros([BLOCK], tl.float32)
    ups = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, width, BLOCK, num_stages=1):  # both at a time, so that more reads are in flight
        index = start + tl.arange(0, BLOCK)
        valid = index < width
        state = tl.load(states + index, valid, 0.0).to(tl.float32)
        gates += state * tl.load(gate + row + index, valid, 0.0, eviction_policy="evict_first").to(tl.float32)
        ups += state * tl.load(up + row + index, valid, 0.0, eviction_policy="evict_first").to(tl.float32)
    dtype = out.dtype.element_ty
    gated_by = tl.sum(gates).to(dtype).to(tl.float32)
    silu = (gated_by / (1 + tl.exp(-gated_by))).to(dtype).to(tl.float32)
    tl.store(out + output, (silu * tl.sum(ups).to(dtype).to(tl.float32)).to(dtype))
