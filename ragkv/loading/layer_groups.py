"""Layers split into the groups that are copied together, and into the spans that are on one device."""

from collections.abc import Callable, Sequence

from torch import device

GROUP_SIZE = 4  # layers that are copied and signalled together, so that the GPU can begin before all are there


def split_layers(layers: range, cut: Callable[[int], bool]) -> list[range]:
    """The layers in consecutive ranges; each layer for which `cut` is true begins a new one. No layers, no ranges."""
    if not layers:
        return []
    cuts = [index for index in layers[1:] if cut(index)]
    return [range(start, stop) for start, stop in zip([layers.start, *cuts], [*cuts, layers.stop], strict=True)]


def device_spans(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in spans, each on one device. `devices` has the device of every layer of the model."""
    return split_layers(layers, lambda index: devices[index] != devices[index - 1])


def layer_groups(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in groups of up to `GROUP_SIZE`, each on one device. `devices` has that of every layer of the model.

    The first and the last groups are small: the sooner the first one is there, the sooner the GPU begins, and the less
    is left to compute behind the last one, the sooner it ends.
    """

    def cut(index: int) -> bool:
        done = index - layers.start + 1
        remaining = layers.stop - index
        small = GROUP_SIZE % done == 0 or GROUP_SIZE % remaining == 0
        return small or done % GROUP_SIZE == 0 or devices[index] != devices[index - 1]

    return split_layers(layers, cut)
