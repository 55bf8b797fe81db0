"""Which document tokens to recompute: one small dataclass per method, and a registry by name.

To write your own, subclass `ScoringSelector` with a ``scores`` method (or `Selector` with ``choose``) and decorate the
class with ``@register("its_name")``.
"""

from ragkv.options import Registry, option_names
from ragkv.selectors.a3 import A3
from ragkv.selectors.a3_blend import A3Blend
from ragkv.selectors.base import Ask, Look, Observation, Pass, ScoringSelector, Selector
from ragkv.selectors.cacheblend import CacheBlend
from ragkv.selectors.epic import Epic
from ragkv.selectors.probe import Probe
from ragkv.selectors.static import Cat, FullPrefill, FullReuse, RandomTokens, Tail
from ragkv.selectors.surprisal import Surprisal

__all__ = [
    "ALIASES",
    "SELECTORS",
    "Ask",
    "Look",
    "Observation",
    "Pass",
    "ScoringSelector",
    "Selector",
    "get_selector",
    "register",
    "selector_options",
]

_BUILT_IN: dict[str, type[Selector]] = {
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
ALIASES = {  # names used in the research code that this project comes from
    "no": "full_prefill",
    "full": "full_reuse",
    "debug": "a3",
    "blend": "cacheblend",
    "attnlink": "epic",
    "surprisal_chunk": "surprisal",
    "blend_debug": "a3_blend",
    "tail_ratio": "tail",
}
SELECTORS: Registry[Selector] = Registry("selector", _BUILT_IN, ALIASES)
register = SELECTORS.register


def get_selector(name: str, **options: object) -> Selector:
    """The selector with this name or alias, made with `options` as its fields.

    Raises
    ------
    ValueError
        The name or an option is unknown (the message lists those that exist), or a value is out of range.
    """
    return SELECTORS.build(name, options)


def selector_options(name: str) -> list[str]:
    """The names of the options that a selector takes."""
    return option_names(SELECTORS.find(name))
