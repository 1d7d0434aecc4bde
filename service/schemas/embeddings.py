"""Embeddings, as OpenAI's route has them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from service.schemas.contract import Contract
from service.schemas.parts import QueryPart


def _input_parts(given: object) -> object:
    """Read OpenAI's `input`: one text or a list of them, where a data URI is a picture."""
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ValueError("give a text or a list of texts; a picture goes in as a data URI")
    return [{"image" if each.startswith("data:") else "text": each} for each in inputs]


class EmbeddingsRequest(Contract):
    """As OpenAI's: texts, or pictures as data URIs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["a red star"]}]})

    input: Annotated[
        list[QueryPart],
        BeforeValidator(_input_parts, json_schema_input_type=str | list[str]),
        Field(min_length=1, max_length=256),
    ]
    model: str | None = None
    """Taken for the sake of clients that send it; the encoder is the served snapshot's."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """If given, it must be the encoder's own."""
    user: str | None = None


class Embedding(Contract):
    """One embedding: a list of numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Contract):
    """Tokens that the text tower read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Contract):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
