"""Layers divided into the parts that are copied together, and into the spans that lie on one device."""

from collections.abc import Callable, Sequence

from torch import device

PART = 4  # layers that are copied and signalled as one group: the GPU begins with some while the host does the next


def divided(layers: range, cut: Callable[[int], bool]) -> list[range]:
    """The layers in consecutive ranges. A new one begins at each layer that `cut` is true of; no layers, no ranges."""
    if not layers:
        return []
    cuts = [index for index in layers[1:] if cut(index)]
    return [range(start, stop) for start, stop in zip([layers.start, *cuts], [*cuts, layers.stop], strict=True)]


def spans_of(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in spans, each on one device. `devices` has the device of every layer of the model."""
    return divided(layers, lambda index: devices[index] != devices[index - 1])


def parts_of(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in parts of up to `PART` layers, each on one device. `devices` has that of every layer of the model.

    The first and the last parts are small: the sooner the first one is there, the sooner the GPU begins, and the less
    is left to compute behind the last one, the sooner it ends.
    """

    def cut(index: int) -> bool:
        done = index - layers.start + 1
        remaining = layers.stop - index
        small = PART % done == 0 or PART % remaining == 0
        return small or done % PART == 0 or devices[index] != devices[index - 1]

    return divided(layers, cut)
