"""The admin routes, behind the admin key: reindex, roll back, swap the text half of the encoder."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from indexer.encoder import EncoderName
from indexer.labels import PARENT
from indexer.snapshot import BuildOptions
from indexer.sources.opening import is_within
from indexer.store import SnapshotStore
from service.deps import AppSettings, JobRunner, Live, asked
from service.errors import NotReady, SourceForbidden
from service.openapi import PROBLEMS, body
from service.schemas.admin import JobInfo, ReindexRequest, SnapshotInfo, TextEncoderRequest
from service.schemas.index import IndexResponse
from service.settings import ServiceSettings

router = APIRouter(prefix="/admin/v1", tags=["admin"], responses=PROBLEMS)


@router.post("/reindex", status_code=HTTPStatus.ACCEPTED, openapi_extra=body(ReindexRequest))
def reindex(
    request: Annotated[ReindexRequest, Depends(asked(ReindexRequest))],
    settings: AppSettings,
    jobs: JobRunner,
    response: Response,
) -> JobInfo:
    """Build and publish a new snapshot, of the same source unless told otherwise; the job says how far it is."""
    options, name, roots = _build_options(request, settings)
    job = jobs.start(options, name, roots)
    response.headers["Location"] = f"/admin/v1/jobs/{job.id}"
    return JobInfo.of(job)


@router.get("/jobs/{job_id}")
def job(job_id: str, jobs: JobRunner) -> JobInfo:
    """Tell how far a reindex is."""
    return JobInfo.of(jobs.get(job_id))


@router.delete("/jobs/{job_id}")
def cancel(job_id: str, jobs: JobRunner) -> JobInfo:
    """Stop a reindex; one that has ended is left as it is."""
    return JobInfo.of(jobs.cancel(job_id))


@router.get("/snapshots")
def snapshots(settings: AppSettings) -> list[SnapshotInfo]:
    """List all snapshots, newest first."""
    store = SnapshotStore(settings.snapshots)
    current = store.current()
    return [SnapshotInfo.of(store.manifest(snapshot_id), current) for snapshot_id in store.ids()]


@router.post("/snapshots/{snapshot_id}/activate")
def activate(snapshot_id: str, live: Live) -> IndexResponse:
    """Make a snapshot current, for example an earlier one (rollback)."""
    return IndexResponse.of(live.activate(snapshot_id), live.refused)


@router.post("/text-encoder", openapi_extra=body(TextEncoderRequest))
def set_text_encoder(
    request: Annotated[TextEncoderRequest, Depends(asked(TextEncoderRequest))], live: Live
) -> IndexResponse:
    """Encode queries with a model of the same image half and another text half; no picture is encoded again."""
    name = EncoderName(model=request.model, pretrained=request.pretrained)
    return IndexResponse.of(live.set_text_encoder(name), live.refused)


@router.delete("/text-encoder")
def reset_text_encoder(live: Live) -> IndexResponse:
    """Encode queries with the snapshot's own encoder again."""
    return IndexResponse.of(live.set_text_encoder(None), live.refused)


def _build_options(
    request: ReindexRequest, settings: ServiceSettings
) -> tuple[BuildOptions, EncoderName, tuple[str, ...]]:
    """Fill in what a request leaves out, and see that it names registered folders only; return these too."""
    store = SnapshotStore(settings.snapshots)
    current = store.current()
    if current is not None:
        manifest = store.manifest(current)
        before, name = manifest.options, manifest.encoder.name
        roots = (*settings.roots, *before.sources)
    elif request.sources is not None:
        before, name = BuildOptions(sources=tuple(request.sources)), EncoderName.of(settings)
        roots = settings.roots
    else:
        raise NotReady("Nothing has been published yet, so a reindex needs sources.")
    tables = [] if request.labels in {None, PARENT} else [str(request.labels)]
    for path in (*(request.sources or ()), *tables):
        if not is_within(path, roots):
            raise SourceForbidden(f"{path} is in none of the registered folders; add its folder to KINDRED_ROOTS.")
    changes = request.model_dump(include={"sources", "labels", "index"}, exclude_none=True)
    if request.model is not None:
        name = EncoderName(model=request.model, pretrained=request.pretrained)
    return BuildOptions.model_validate({**before.model_dump(), **changes}), name, roots
