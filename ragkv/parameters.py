"""The base class of everything that a profile says."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Parameters(BaseModel):
    """Parameters that refuse names they do not know, and ``true`` or ``false`` for anything but a switch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, values: Any) -> Any:
        """YAML reads ``yes`` and ``true`` as booleans, and pydantic would take these for 1."""
        if not isinstance(values, dict):
            return values
        for name, field in cls.model_fields.items():
            value = values.get(name)
            some = value if isinstance(value, list) else [value]
            takes_booleans = bool in (field.annotation, *get_args(field.annotation))
            if not takes_booleans and any(isinstance(item, bool) for item in some):
                raise ValueError(f"{name} is {value}: true and false are not what it takes")
        return values
