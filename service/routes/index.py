"""The served snapshot, and probes."""

from fastapi import APIRouter, Response

from service.deps import AppMetrics, CurrentSearcher, Live
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS
from service.schemas.index import Health, IndexResponse
from service.telemetry import METRICS_TYPE

router = APIRouter(prefix="/v1", tags=["index"], responses=PROBLEMS, route_class=AwaitedRoute)
probes = APIRouter(tags=["probes"])


@router.get("/index")
def index(searcher: CurrentSearcher, live: Live) -> IndexResponse:
    """Describe the served snapshot and its encoder."""
    return IndexResponse.of(searcher, live.refused)


@probes.get("/livez")
async def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@probes.get("/readyz", responses={503: {"model": Health}})
async def readyz(live: Live, response: Response) -> Health:
    """Tell whether queries can be answered."""
    if live.searcher is not None and not live.leaving:
        return Health(status="ok")
    response.status_code = 503
    why = "the service is being stopped" if live.leaving else live.refused or "no snapshot has been published"
    return Health(status="not ready", reason=why)


@probes.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, "5XX": PROBLEMS["5XX"]}
)
def metrics(of_app: AppMetrics) -> Response:
    """Return metrics for Prometheus."""
    return Response(of_app.text(), media_type=METRICS_TYPE)
