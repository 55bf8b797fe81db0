"""What to do when a GPU's memory is full, said where it happened."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def explained(what: str, device: torch.device, lower: str) -> Iterator[None]:
    """PyTorch's error of a full GPU, with what needed the memory and how to need less.

    Parameters
    ----------
    what, lower
        What is being done, and which setting to change.

    Raises
    ------
    torch.OutOfMemoryError
        Once more, in words.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(device))
        asked = str(error).partition("Tried to allocate ")[2].partition(". ")[0] or "more"
        raise torch.OutOfMemoryError(
            f"{what} needs {asked} at once, and {device} has {free:.1f} of its {total:.1f} GB left: {lower}"
        ) from error
