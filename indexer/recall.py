"""What an approximate index was measured to find of the true nearest, for each kind of query, and how it is searched.

Text embeddings lie apart from those of pictures. A setting that finds 99 % of the true neighbours of pictures may find
60 % of those of texts, so that the two kinds are measured, and set, each for itself.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from indexer.index import SearchParameters


class QueryKind(StrEnum):
    """What a query was made of. A mixed one counts as text, which takes the more thorough search."""

    TEXT = "text"
    IMAGE = "image"


class CurvePoint(BaseModel):
    """One setting: its recall@10, 0 to 1, and the median processor time of a search by itself, in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: SearchParameters
    recall: float = Field(ge=0, le=1)
    milliseconds: float


class KindTuning(BaseModel):
    """What was measured of one kind of query.

    Attributes:
        origin: what the held-out queries were made from.
        queries: how many there were.
        chosen: the setting in use: the quickest that reaches the target, or the one with the best recall if none does.
        curve: the settings that were tried, in order of rising recall.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    queries: int
    chosen: CurvePoint
    curve: tuple[CurvePoint, ...]


class Tuning(BaseModel):
    """How an approximate index is searched, and why.

    Attributes:
        target_recall: recall@10 to reach, 0 to 1.
        exact_milliseconds: of a search that compares with all pictures, for comparison.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_recall: float
    exact_milliseconds: float
    text: KindTuning
    image: KindTuning

    def of(self, kind: QueryKind) -> KindTuning:
        """Return what was measured of a kind of query."""
        return self.text if kind is QueryKind.TEXT else self.image

    def parameters(self, kind: QueryKind) -> SearchParameters:
        """Return the setting of a kind of query."""
        return self.of(kind).chosen.parameters
