"""The public contract: what requests and responses look like."""

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import from_json

from indexer.catalog import ImageRecord
from indexer.encoder import EncoderName, EncoderSpec
from indexer.errors import Reason
from indexer.filters import Filter
from indexer.recall import Tuning
from indexer.snapshot import Hit, Manifest
from service.reindex import Job, JobState
from service.searcher import Searcher


def _from_base64(value: object) -> object:
    """Decode base64 text, bare or as a data URI; bytes come from an upload and are left as they are."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from error


def _not_blank(text: str) -> str:
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
Text = Annotated[str, Field(max_length=2_000, examples=["a red star"]), AfterValidator(_not_blank)]
ItemId = Annotated[str, Field(max_length=64, examples=["b7e0a2f1c3d4e5f6"])]
FilterBy = Annotated[
    Filter | None,
    BeforeValidator(_from_json, json_schema_input_type=Filter | None),
    Field(description="Which pictures may be answered with; in a form, as JSON text."),
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


class QueryPart(Contract):
    """Exactly one of a text, a picture, or the id of a picture in the index."""

    text: Text | None = None
    image: ImageBytes | None = None
    id: ItemId | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.text, self.image, self.id)) != 1:
            raise ValueError("give exactly one of text, image and id")
        return self


class SearchRequest(Contract):
    """A search; several parts count equally."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": [{"text": "a red star"}], "limit": 10},
                {
                    "query": [{"text": "a red star"}],
                    "filter": {
                        "must": [{"key": "metadata.year", "range": {"gte": 2020}}],
                        "must_not": [{"key": "label", "match": {"any": ["heart", "moon"]}}],
                    },
                },
            ]
        }
    )

    query: list[QueryPart] = Field(min_length=1, max_length=16)
    limit: Limit = 10
    filter: FilterBy = None
    exact: bool = False
    """Whether to compare with every picture, so that none of the nearest is missed, however long that takes."""

    @classmethod
    def from_form(cls, fields: dict[str, Any]) -> Self:
        """Read the fields of a form; an uploaded picture is called `file`."""
        rest = dict(fields)
        return cls.model_validate({"query": [{"image": rest.pop("file", None)}], **rest})


class ClassifyRequest(QueryPart):
    """A classification of a text, a picture, or a picture in the index (which then does not vote itself)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a red star", "k": 21, "temperature": 0.1}]})

    k: Neighbours = 21
    temperature: Temperature = 0.1
    filter: FilterBy = None


Label = Annotated[str, Field(max_length=200), AfterValidator(_not_blank)]


class ZeroShotRequest(QueryPart):
    """A classification into labels that need no examples, only words."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "b7e0a2f1c3d4e5f6", "labels": ["star", "heart"]},
                {
                    "id": "b7e0a2f1c3d4e5f6",
                    "labels": {"star": ["a star", "a star with five points"], "heart": ["a heart"]},
                },
            ]
        }
    )

    labels: (
        Annotated[list[Label], Field(min_length=1, max_length=1_000)]
        | Annotated[
            dict[Label, Annotated[list[Text], Field(min_length=1, max_length=100)]],
            Field(min_length=1, max_length=1_000),
        ]
    )
    """Labels, or prompts for each label. A label without prompts is described as `a photo of a {label}`."""

    def prompts(self) -> dict[str, list[str]]:
        """Return the prompts of each label."""
        if isinstance(self.labels, dict):
            return self.labels
        return {label: [f"a photo of a {label}"] for label in self.labels}


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


class IndexRef(Contract):
    """The snapshot that an answer comes from."""

    snapshot: str
    model: str
    count: int

    @classmethod
    def of(cls, searcher: Searcher) -> Self:
        """Name the snapshot and encoder of a searcher."""
        manifest = searcher.snapshot.manifest
        return cls(snapshot=manifest.id, model=str(searcher.encoder.spec.name), count=manifest.count)


class Item(Contract):
    """A picture in the index."""

    id: str
    label: str | None
    caption: str | None
    path: str
    metadata: dict[str, Any]
    thumbnail: str

    @classmethod
    def of(cls, image: ImageRecord, /, **more: Any) -> Self:
        """Describe a catalogued picture."""
        return cls(
            id=image.id,
            label=image.label,
            caption=image.caption,
            path=image.path,
            metadata=image.metadata,
            thumbnail=f"/v1/items/{image.id}/thumbnail",
            **more,
        )


class ItemDetail(Item):
    """A picture in the index, with all that is known of it."""

    image: str
    width: int
    height: int
    media_type: str
    content_hash: str

    @classmethod
    def of(cls, image: ImageRecord, /, **more: Any) -> Self:
        """Describe a catalogued picture fully."""
        return super().of(
            image,
            image=f"/v1/items/{image.id}/image",
            width=image.width,
            height=image.height,
            media_type=image.media_type,
            content_hash=image.content_hash,
            **more,
        )


class Result(Item):
    """One hit."""

    rank: int
    score: Score

    @classmethod
    def ranked(cls, hits: list[Hit]) -> list[Self]:
        """Describe hits, best first; the first has rank 1."""
        return [cls.of(hit.image, rank=rank, score=hit.score) for rank, hit in enumerate(hits, start=1)]


class SearchResponse(Contract):
    """Results, best first."""

    results: list[Result]
    index: IndexRef
    took_ms: dict[str, float]


class ClassProbability(Contract):
    """One class; the probabilities of an answer sum to 1."""

    label: str
    probability: float

    @classmethod
    def all(cls, probabilities: dict[str, float]) -> list[Self]:
        """Keep the order."""
        return [cls(label=label, probability=probability) for label, probability in probabilities.items()]


class ClassifyResponse(Contract):
    """Classes, most probable first, and what they are inferred from."""

    label: str
    classes: list[ClassProbability]
    neighbors: list[Result]
    index: IndexRef
    took_ms: dict[str, float]


class ZeroShotResponse(Contract):
    """Classes, most probable first."""

    label: str
    classes: list[ClassProbability]
    index: IndexRef
    took_ms: dict[str, float]


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
            encoder=searcher.encoder.spec,
            notice=searcher.encoder.spec.name.notice,
            refused=refused,
        )


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
