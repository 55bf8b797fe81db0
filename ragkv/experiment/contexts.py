"""The learned contexts that a profile's methods use: their files are found and checked before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ragkv.contexts import LearnedContext
from ragkv.contexts.find import shipped
from ragkv.contexts.owner import owner, owner_of_folder
from ragkv.experiment.inputs import find_model
from ragkv.experiment.offline import Offline
from ragkv.models.load import model_source

MODEL = "{model}"  # in a file's name: stands for the name of the model's folder in outputs/


@dataclass(frozen=True)
class ProfileContexts:
    """The learned contexts of a profile for one model.

    Attributes
    ----------
    ways
        Every way in which some method wants chunks computed, with or without a learned context.
    model
        As the profile names it.
    name
        The name of the model's folder in outputs/.
    root
        Where relative paths start.
    """

    ways: list[Offline]
    model: str
    name: str
    root: Path

    def find(self, offline: Offline) -> LearnedContext | None:
        """A method's learned context, checked as far as possible without loading the model; None if it has none.

        Raises
        ------
        ValueError
            There is no such file, it is not a learned context, it is damaged, or it is another model's.
        """
        if not offline.learned:
            return None
        folder = Path(model_source(find_model(self.model, self.root)))
        model = owner_of_folder(folder) if folder.is_dir() else None  # a model on the hub is known once it is loaded
        if offline.file is None:
            return LearnedContext.read(shipped(model, self.model))
        path = self.root / offline.file.replace(MODEL, self.name)
        context = LearnedContext.read(path)
        if model is not None:
            context.check(model, path)
        return context

    def problems(self) -> list[str]:
        """What is wrong with them, a line each."""
        lines: dict[str, None] = {}
        for offline in self.ways:
            try:
                self.find(offline)
            except ValueError as error:
                lines[str(error)] = None
        return list(lines)

    @property
    def state(self) -> str:
        """Changes when their contents do; empty without any. Errors as in `find`."""
        contexts = filter(None, map(self.find, self.ways))
        return " ".join(context.identity for context in contexts)

    def load(self, model: PreTrainedModel) -> dict[Offline, LearnedContext | None]:
        """Each way with its learned context, if it has one.

        Raises
        ------
        ValueError
            A file is missing or damaged, or it is another model's.
        """
        contexts = {offline: self.find(offline) for offline in self.ways}
        if any(contexts.values()):
            this_model = owner(model)
            for context in filter(None, contexts.values()):
                context.check(this_model)
        return contexts
