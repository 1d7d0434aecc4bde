"""Classification: by the votes of neighbours, and by words alone."""

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field

from service.schemas.contract import Contract, FilterBy, Neighbours, Temperature, Text, not_blank
from service.schemas.items import IndexRef, Result
from service.schemas.parts import QueryPart


class ClassifyRequest(QueryPart):
    """A classification of a text, a picture, or a picture in the index (which then does not vote itself)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a red star", "k": 21, "temperature": 0.1}]})

    k: Neighbours = 21
    temperature: Temperature = 0.1
    filter: FilterBy = None


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

    def prompts(self) -> dict[str, list[str]]:
        """Return the prompts of each label."""
        if isinstance(self.labels, dict):
            return self.labels
        return {label: [f"a photo of a {label}"] for label in self.labels}


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
