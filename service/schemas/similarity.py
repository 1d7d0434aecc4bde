"""Similarity maps."""

from typing import Annotated

from pydantic import ConfigDict, Field

from service.schemas.contract import Contract
from service.schemas.search import Parts


class SimilarityMapRequest(Contract):
    """What the parts of a picture are compared with."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": [{"text": "a red star"}]}, {"query": "a moon"}]}
    )

    query: Annotated[Parts, Field(min_length=1)]
    """As in a search."""
