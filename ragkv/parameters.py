"""The base class of everything that a profile says."""

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Parameters that refuse names they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
