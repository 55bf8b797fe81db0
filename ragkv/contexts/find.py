"""Which learned context is meant: one that comes with the package, a file, or one in memory."""

from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedModel

from ragkv.contexts.learned import LearnedContext, metadata_of
from ragkv.contexts.owner import owner

SHIPPED = "learned"  # the name of the context that comes with the package for a model
FOLDER = Path(str(files("ragkv.contexts"))) / "shipped"


def find_context(context: LearnedContext | str | Path, model: PreTrainedModel) -> LearnedContext:
    """The context itself, the one in a file, or for ``"learned"`` the one that comes with the package for this model.

    Raises
    ------
    ValueError
        There is no such context, or it is another model's.
    """
    if isinstance(context, LearnedContext):
        context.check(owner(model))
        return context
    if not isinstance(context, str | Path):
        raise ValueError(
            f"the context is of type {type(context).__name__}: give a LearnedContext, the path of its file, or "
            f"{SHIPPED!r} for the one that comes with ragkv"
        )
    path = shipped(owner(model), model.name_or_path or "in use") if context == SHIPPED else context
    return LearnedContext.load(path, model)


def shipped(model: str | None, name: str) -> Path:
    """The file of the context that comes with the package for a model.

    Parameters
    ----------
    model
        See `ragkv.contexts.owner`; None if that is not known.
    name
        What the error calls the model.

    Raises
    ------
    ValueError
        There is none for this model.
    """
    for path in sorted(FOLDER.glob("*.safetensors")):
        if metadata_of(path)["model"] == model:
            return path
    raise ValueError(
        f"no learned context comes with ragkv for the model {name}: train one with `ragkv context train`, and name its "
        "file instead"
    )
