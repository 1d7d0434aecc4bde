"""What FastAPI cannot derive for OpenAPI: bodies that come as JSON or as a form, problem+json, and keys."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.auth import scope_for
from service.errors import PROBLEM_JSON
from service.schemas.admin import ReindexRequest, TextEncoderRequest
from service.schemas.classify import ClassifyRequest, ZeroShotRequest
from service.schemas.embeddings import EmbeddingsRequest
from service.schemas.index import Problem
from service.schemas.map import MapRequest
from service.schemas.search import BatchRequest, ExportRequest, SearchRequest
from service.schemas.similarity import SimilarityMapRequest
from service.settings import ServiceSettings

_MODELS = (
    SearchRequest,
    BatchRequest,
    ExportRequest,
    SimilarityMapRequest,
    ClassifyRequest,
    ZeroShotRequest,
    EmbeddingsRequest,
    MapRequest,
    ReindexRequest,
    TextEncoderRequest,
    Problem,
)
_REF = "#/components/schemas/{model}"
_ASKED = (
    "A key as `kindred keys create` prints it, or that of `KINDRED_ADMIN_KEY`, which has every scope. It is asked for "
    "only where the operator has set these. Each operation names the scope that its key needs."
)
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": _ASKED},
    "apiKey": {"type": "apiKey", "in": "header", "name": "api-key", "description": f"The same in a header. {_ASKED}"},
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be answered; `detail` says why.", "content": {}},
    "5XX": {"description": "The service cannot answer now; `detail` says why.", "content": {}},
}
for _response in PROBLEMS.values():
    _response["content"] = {PROBLEM_JSON: {"schema": {"$ref": _REF.format(model=Problem.__name__)}}}


def body(model: type[BaseModel], form: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Describe a request body of `model`; with `form`, also as an upload with those further fields."""
    json_schema = {"$ref": _REF.format(model=model.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": json_schema}}
    if form is not None:
        properties = model.model_json_schema(ref_template=_REF)["properties"]
        fields = {"file": {"type": "string", "format": "binary"}, **{name: properties[name] for name in form}}
        schema = {"type": "object", "required": ["file"], "properties": fields, "additionalProperties": False}
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Have the app's OpenAPI document define the models that `body` and `PROBLEMS` refer to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
            schema["components"].setdefault("schemas", {}).update(definitions["$defs"])
            _name_keys(schema, app.state.settings)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _name_keys(schema: dict[str, Any], settings: ServiceSettings) -> None:
    """Say of each operation which key it needs, as the gate has it: in either header, with the scope that is named."""
    schema["components"]["securitySchemes"] = _SCHEMES
    for path, operations in schema["paths"].items():
        scope = scope_for(path, settings)
        for operation in operations.values():
            operation["security"] = [] if scope is None else [{scheme: [scope]} for scheme in _SCHEMES]
            if scope is not None:
                operation["responses"].setdefault("4XX", PROBLEMS["4XX"])
