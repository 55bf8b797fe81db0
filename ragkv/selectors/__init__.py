"""Which document tokens to recompute: one small dataclass per method, and a registry by name.

A selector of one's own is a subclass of `ScoringSelector` with a ``scores`` method (or of `Selector` with
``choose``), decorated with ``@register("its_name")``.
"""

from collections.abc import Callable

from ragkv.options import build, option_names
from ragkv.selectors.a3 import A3
from ragkv.selectors.a3_blend import A3Blend
from ragkv.selectors.base import Observation, ScoringSelector, Selector
from ragkv.selectors.cacheblend import CacheBlend
from ragkv.selectors.epic import Epic
from ragkv.selectors.probe import Probe
from ragkv.selectors.static import Cat, FullPrefill, FullReuse, RandomTokens, Tail
from ragkv.selectors.surprisal import Surprisal

__all__ = [
    "ALIASES",
    "SELECTORS",
    "Observation",
    "ScoringSelector",
    "Selector",
    "get_selector",
    "register",
    "selector_options",
]

SELECTORS: dict[str, type[Selector]] = {
    "full_prefill": FullPrefill,
    "full_reuse": FullReuse,
    "a3": A3,
    "cacheblend": CacheBlend,
    "epic": Epic,
    "surprisal": Surprisal,
    "probe": Probe,
    "a3_blend": A3Blend,
    "tail": Tail,
    "random": RandomTokens,
    "cat": Cat,
}
ALIASES = {  # names of the research code that the project comes from
    "no": "full_prefill",
    "full": "full_reuse",
    "debug": "a3",
    "blend": "cacheblend",
    "attnlink": "epic",
    "surprisal_chunk": "surprisal",
    "blend_debug": "a3_blend",
    "tail_ratio": "tail",
}


def get_selector(name: str, **options: object) -> Selector:
    """A selector by name or alias, its fields given as `options`.

    Raises
    ------
    ValueError
        An unknown name or field (the message lists those that exist), or a value that is out of range.
    """
    return build(_kind(name), f"selector {name!r}", options)


def selector_options(name: str) -> list[str]:
    """The options that a selector takes."""
    return option_names(_kind(name))


def _kind(name: str) -> type[Selector]:
    kind = SELECTORS.get(ALIASES.get(name, name))
    if kind is None:
        known = ", ".join(SELECTORS)
        aliases = ", ".join(f"{alias} = {target}" for alias, target in ALIASES.items())
        raise ValueError(f"unknown selector {name!r}: choose one of {known} (or an alias: {aliases})")
    return kind


def register(name: str) -> Callable[[type[Selector]], type[Selector]]:
    """Make a selector class known by `name`, for `get_selector` and for the notebooks' parameters.

    Defining a class again under its own name replaces it, as re-running a notebook cell does.
    """

    def add(kind: type[Selector]) -> type[Selector]:
        known = SELECTORS.get(name)
        same = known is not None and (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)
        if name in ALIASES or (known is not None and not same):
            raise ValueError(f"the selector name {name!r} is taken: choose another")
        SELECTORS[name] = kind
        return kind

    return add
