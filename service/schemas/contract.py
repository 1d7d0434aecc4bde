"""What all requests and responses have in common, and the types of their fields."""

import base64
import binascii
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json

from indexer.filters import Filter, known_key


def _from_base64(value: object) -> object:
    """Decode base64 text, bare or as a data URI; bytes come from an upload and are left as they are."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from error


def not_blank(text: str) -> str:
    """Refuse a text of spaces."""
    if not text.strip():
        raise ValueError("the text is blank")
    return text


def _from_json(value: object) -> object:
    """Read the JSON text that a form's field holds; what comes in a JSON body is left as it is."""
    try:
        return from_json(value, allow_inf_nan=False) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error


ImageBytes = Annotated[
    bytes, BeforeValidator(_from_base64, json_schema_input_type=str), Field(description="A picture file, in base64.")
]
Text = Annotated[str, Field(max_length=10_000, examples=["a red star"]), AfterValidator(not_blank)]
ItemId = Annotated[str, Field(max_length=64, examples=["b7e0a2f1c3d4e5f6"])]
FilterBy = Annotated[
    Filter | None,
    BeforeValidator(_from_json, json_schema_input_type=Filter | None),
    Field(description="Which pictures may be answered with; in a form, as JSON text."),
]
Key = Annotated[
    str,
    Field(
        max_length=200,
        description="A column of the catalogue or a place in the metadata, as in a filter.",
        examples=["label", "metadata.year"],
    ),
    AfterValidator(known_key),
]
Limit = Annotated[int, Field(ge=1, le=1_000, description="How many results at most.")]
Neighbours = Annotated[int, Field(ge=1, le=1_000, description="How many labelled neighbours vote.")]
Temperature = Annotated[
    float, Field(ge=0.001, le=100, description="A neighbour weighs exp(score / temperature): smaller is sharper.")
]
Score = Annotated[
    float, Field(description="Cosine similarity to the query, -1 to 1, higher is better. Text scores run lower.")
]


class Contract(BaseModel):
    """Unknown fields are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def from_form(cls, fields: dict[str, Any]) -> Self:
        """Read the fields of a form; an uploaded picture is called `file`."""
        rest = dict(fields)
        return cls.model_validate({"image": rest.pop("file", None), **rest})
