"""The served snapshot, and whether there is one."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel

from indexer.encoder import EncoderSpec
from indexer.errors import Reason
from indexer.recall import Tuning
from indexer.relevance import Relevance
from service.schemas.contract import Contract
from service.searcher import Searcher


class IndexResponse(Contract):
    """The served snapshot."""

    snapshot: str
    created_at: datetime
    count: int
    labels: int
    """How many different labels there are."""
    skipped: dict[Reason, int]
    factory: str
    dim: int
    tuning: Tuning | None
    """How thoroughly each kind of query is searched, and what that finds; null for an index that finds all."""
    relevance: Relevance | None
    """What scores and votes were learnt to mean, and how far that is off; null where nothing has been learnt."""
    encoder: EncoderSpec
    """The encoder of queries; its image half made the embeddings."""
    notice: str | None
    """What users of this encoder should know."""
    refused: str | None
    """Why a newer snapshot is not served."""

    @classmethod
    def of(cls, searcher: Searcher, refused: str | None) -> Self:
        """Describe what is served."""
        manifest = searcher.snapshot.manifest
        return cls(
            snapshot=manifest.id,
            created_at=manifest.created_at,
            count=manifest.count,
            labels=len(searcher.snapshot.catalog.label_counts()),
            skipped=manifest.skipped,
            factory=manifest.factory,
            dim=manifest.encoder.dim,
            tuning=manifest.tuning,
            relevance=manifest.relevance,
            encoder=searcher.encoder.spec,
            notice=searcher.encoder.spec.name.notice,
            refused=refused,
        )


class Health(Contract):
    """Whether the service can do its work, and if not, why."""

    status: Literal["ok", "not ready"]
    reason: str | None = None


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str | None
    errors: list[dict[str, str]] | None = None
