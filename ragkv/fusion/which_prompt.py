"""Errors that say which prompt of a batch they are about."""

from collections.abc import Iterator
from contextlib import contextmanager

from ragkv.store import StoreError


@contextmanager
def which_prompt(number: int, prompts: int) -> Iterator[None]:
    """Begin the message of an error with the number of the prompt; that of a single prompt stays as it is.

    Parameters
    ----------
    number
        Counted from 0; the message counts from 1.
    prompts
        How many there are.

    Raises
    ------
    ValueError, StoreError
        The same error with a new message.
    """
    try:
        yield
    except (ValueError, StoreError) as error:
        if prompts == 1:
            raise
        raise type(error)(f"prompt {number + 1} of {prompts}: {error}") from error
