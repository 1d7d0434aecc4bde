"""The admin routes: reindexing, snapshots, the text half of the encoder."""

from datetime import datetime
from typing import Self

from pydantic import ConfigDict, Field

from indexer.encoder import EncoderName
from indexer.errors import Reason
from indexer.snapshot import Manifest
from service.reindex import Job, JobState
from service.schemas.contract import Contract


class ReindexRequest(Contract):
    """What to build; what is left out is as in the current snapshot."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"labels": "parent"}]})

    sources: list[str] | None = Field(default=None, min_length=1)
    labels: str | None = None
    index: str | None = None
    model: str | None = None
    pretrained: str | None = None


class TextEncoderRequest(Contract):
    """A model whose image half is that of the served snapshot."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "local-dir:/models/realigned"}]})

    model: str
    pretrained: str | None = None


class SnapshotInfo(Contract):
    """One snapshot in the folder."""

    id: str
    current: bool
    created_at: datetime
    count: int
    factory: str
    encoder: EncoderName
    sources: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, current: str | None) -> Self:
        """Describe a snapshot by its manifest."""
        return cls(
            id=manifest.id,
            current=manifest.id == current,
            created_at=manifest.created_at,
            count=manifest.count,
            factory=manifest.factory,
            encoder=manifest.encoder.name,
            sources=manifest.options.sources,
        )


class JobInfo(Contract):
    """A reindex, as far as it has come."""

    id: str
    state: JobState
    started_at: datetime
    finished_at: datetime | None
    stage: str | None = None
    done: int = 0
    total: int = 0
    rate: float | None = None
    seconds_left: float | None = None
    snapshot: str | None = None
    new: int | None = None
    changed: int | None = None
    moved: int | None = None
    unchanged: int | None = None
    deleted: int | None = None
    encoded: int | None = None
    reused: int | None = None
    resumed: int | None = None
    skipped: dict[Reason, int] | None = None
    error: str | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Describe a job as it stands."""
        facts = {**job.progress, **job.result}
        return cls.model_validate(
            {
                "id": job.id,
                "state": job.state,
                "started_at": job.started_at,
                "finished_at": job.finished_at,
                "error": job.error,
                **facts,
            }
        )
