"""Errors of a full GPU, with what needed the memory and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def explained(what: str, device: torch.device, lower: str) -> Iterator[None]:
    """Rewrite PyTorch's error of a full GPU, so that it says what needed the memory and how to need less.

    Parameters
    ----------
    what
        What is being done.
    lower
        What to do about it, for instance which setting to lower.

    Raises
    ------
    torch.OutOfMemoryError
        The same error with a new message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(device))
        requested = str(error).partition("Tried to allocate ")[2].partition(". ")[0] or "more"
        raise torch.OutOfMemoryError(
            f"{what} needs {requested} at once, and {device} has {free:.1f} of its {total:.1f} GB left: {lower}"
        ) from error
