"""Classification: by the votes of neighbours, and by words alone."""

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from service.describe import joined
from service.schemas.contract import Contract, FilterBy, Neighbours, Score, Temperature, Text, not_blank
from service.schemas.items import IndexRef, Result
from service.schemas.parts import QueryPart


class ClassifyRequest(QueryPart):
    """A classification of a text, a picture, or a picture in the index (which then does not vote itself)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a red star", "k": 21, "temperature": 0.1}]})

    k: Neighbours = 21
    temperature: Temperature = 0.1
    filter: FilterBy = None
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Confidence under which no label is given: the answer says `abstained`."""


Label = Annotated[str, Field(max_length=200), AfterValidator(not_blank)]


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
    descriptors: Annotated[dict[Label, Annotated[list[Text], Field(max_length=100)]], Field(max_length=1_000)] = Field(
        default_factory=dict
    )
    """What some of `labels` look like, such as `{"hen": ["two legs", "a red comb"]}`.

    Each is read as `hen, which has two legs` or `hen, which is a bird`, in place of the label's prompts.
    """
    none_of_these: bool = False
    """Whether to give no label to a picture that resembles none of them."""
    false_rejects: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the index's own pictures of these labels that `none_of_these` may turn away."""

    @model_validator(mode="after")
    def _about_these_labels(self) -> Self:
        strange = [label for label in self.descriptors if label not in self.labels]
        if strange:
            raise ValueError(f"there are descriptors of {strange[0]!r}, which is none of the labels")
        if self.none_of_these and self.text is not None:
            raise ValueError("none_of_these is learnt from pictures, and tells nothing of a text: leave it out")
        return self

    def texts(self) -> dict[str, list[str]]:
        """Return the texts that describe each label: its descriptors, else its prompts."""
        prompts = self.labels
        if isinstance(prompts, list):
            prompts = {label: [f"a photo of a {label}"] for label in prompts}
        described = {label: [joined(label, each) for each in own] for label, own in self.descriptors.items() if own}
        return {**prompts, **described}


class ClassProbability(Contract):
    """One class; the probabilities of an answer sum to 1."""

    label: str
    probability: float

    @classmethod
    def all(cls, probabilities: dict[str, float]) -> list[Self]:
        """Keep the order."""
        return [cls(label=label, probability=probability) for label, probability in probabilities.items()]


class ClassifyResponse(Contract):
    """Classes, most probable first, and what they are inferred from.

    Attributes:
        label: the most probable class; null where the answer abstains.
        confidence: how likely the most probable class is right, as measured on the snapshot's own labels with the
            default `k` and `temperature`; null where it was not.
        abstained: whether `confidence` is under `min_confidence`.
        notes: what a caller should know, such as that a long text was read in parts.
    """

    label: str | None
    confidence: float | None
    abstained: bool
    classes: list[ClassProbability]
    neighbors: list[Result]
    notes: list[str]
    index: IndexRef
    took_ms: dict[str, float]


class Evidence(Contract):
    """How well one text of a label fits: with `descriptors`, the mean of these scores is the label's own.

    Without, a label is the normalised mean of its prompts, as in CLIP.
    """

    label: str
    text: str
    score: Score


class ZeroShotResponse(Contract):
    """Classes, most probable first.

    Attributes:
        label: the most probable class; null where the answer abstains.
        abstained: whether the picture resembles none of the labels, if that was asked for.
        reason: why it abstained.
        evidence: of the two most probable classes, text by text, best first.
        notes: what a caller should know, such as that a long text was read in parts.
    """

    label: str | None
    abstained: bool
    reason: str | None
    classes: list[ClassProbability]
    evidence: list[Evidence]
    notes: list[str]
    index: IndexRef
    took_ms: dict[str, float]
