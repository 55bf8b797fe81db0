"""What a kernel does first that can be started before the kernel in front of it has ended."""

import triton
import triton.language as tl


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Let the next kernel start, and wait until all memory that earlier kernels wrote can be read.

    A kernel calls this before it reads or writes anything; it is launched with `ragkv.kernels.early_start`.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
