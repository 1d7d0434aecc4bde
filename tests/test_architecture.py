"""The map of who imports whom, checked against the imports as they are written."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in ("indexer", "service")
    for path in sorted((ROOT / room).rglob("*.py"))
}

# Each module may import its own row's and the rows' above.
LEVELS = (
    ("indexer.settings", "indexer.errors", "indexer.torch_runtime", "indexer.ahead", "indexer.durable"),
    ("indexer.selection", "indexer.filters", "indexer.gpus"),
    ("indexer.filter_sql",),
    ("indexer.images", "indexer.encoder", "indexer.catalog", "indexer.vote", "indexer.labels", "indexer.progress"),
    ("indexer.text_map", "indexer.segments"),
    ("indexer.index", "indexer.preprocessing", "indexer.tars", "indexer.fork_server", "indexer.sources.source"),
    ("indexer.index_building", "indexer.recall", "indexer.gpu_index"),
    ("indexer.index_policy", "indexer.tuning", "indexer.relevance"),
    ("indexer.held_out", "indexer.calibration"),
    ("indexer.relevance_learning",),
    ("indexer.open_clip_encoder", "indexer.clusters", "indexer.workers", "indexer.shards", "indexer.near_duplicates"),
    ("indexer.onnx_encoder", "indexer.skipped", "indexer.journal"),
    ("indexer.sources.hosts", "indexer.sources.retries"),
    ("indexer.sources.fetch", "indexer.sources.folder", "indexer.sources.remote"),
    ("indexer.sources.tables", "indexer.sources.tar_source"),
    ("indexer.sources.opening", "indexer.preparing"),
    ("indexer.snapshot",),
    ("indexer.store", "indexer.writer", "indexer.samples", "indexer.snapshot_tuning"),
    ("indexer.reindex",),
    ("indexer.captions", "indexer.plan", "indexer.encoding"),
    ("indexer.planning", "indexer.assemble", "indexer.node", "indexer.shard_bucket"),
    ("indexer.distribute",),
    ("indexer.build",),
    ("indexer.build_command",),
)
READ_SIDE = {
    "indexer.settings",
    "indexer.errors",
    "indexer.images",
    "indexer.encoder",
    "indexer.index",
    "indexer.recall",
    "indexer.relevance",
    "indexer.text_map",
    "indexer.selection",
    "indexer.filters",
    "indexer.gpu_index",
    "indexer.catalog",
    "indexer.vote",
    "indexer.labels",
    "indexer.durable",
    "indexer.sources.fetch",
    "indexer.sources.retries",
    "indexer.sources.opening",
    "indexer.snapshot",
    "indexer.store",
}
DOORS = {
    "faiss": {"indexer.index", "indexer.index_building", "indexer.gpu_index", "indexer.gpus"},
    "cachetools": {"indexer.catalog", "service.pipeline"},
    "sqlite3": {"indexer.catalog", "indexer.plan", "indexer.journal"},  # each with tables of its own
    "torch": {"indexer.torch_runtime", "indexer.preprocessing"},  # the latter in processes that want torch alone
    "torchvision": {"indexer.torch_runtime"},
    "open_clip": {"indexer.torch_runtime"},
    "filelock": {"indexer.store"},
    "scipy": {"indexer.calibration", "service.layout"},
    "rich": {"indexer.progress", "service.terminal"},
    "pyarrow": {"indexer.labels", "indexer.shards", "indexer.skipped"},
    "fsspec": {"indexer.sources.remote"},
    "ssrfguard": {"indexer.sources.fetch", "indexer.sources.hosts"},
    "tenacity": {"indexer.sources.retries", "service.client_wire"},  # the latter for asyncio too
    "httpx2": {"service.client", "service.client_wire", "service.in_process"},
    "simplejpeg": {"indexer.images"},
    "imagehash": {"indexer.images"},
    "onnxruntime": {"indexer.onnx_encoder"},
    "ray": {"indexer.distribute"},
    "tarfile": {"indexer.tars"},
    "matplotlib": {"indexer.evaluate.plots"},
    "jinja2": {"indexer.evaluate.page"},
    "pydantic_settings": {"indexer.settings"},
    "prometheus_client": {"service.telemetry"},
    "uvicorn": {"service.server", "service.protocol"},
    "limits": {"service.rate_limits"},
    "opentelemetry": {"service.tracing"},
    "subprocess": {"service.reindex", "indexer.workers"},
}
# What is reached up for when it is needed: torch takes seconds to import.
LAZY = {
    "indexer.encoder": {"indexer.open_clip_encoder", "indexer.onnx_encoder", "indexer.torch_runtime"},
    "indexer.gpus": {"indexer.torch_runtime"},
}
# One sets OMP_WAIT_POLICY, one where the metrics of several processes meet, one looks for what the terminal can, and
# one for misspelt settings; settings come from pydantic_settings.
ENVIRONMENT_READERS = {"indexer", "service.server", "service.terminal", "service.cli"}


def imports(name: str) -> set[str]:
    """Return every module that a module imports, anywhere in it, `from package import module` resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(names or {module})
    return found


@pytest.mark.parametrize("name", MODULES)
def test_the_indexer_knows_nothing_of_the_service_or_of_http(name: str) -> None:
    if name.startswith("indexer"):
        tops = {each.split(".")[0] for each in imports(name)}
        assert not tops & {"service", "fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("name", MODULES)
def test_the_service_imports_the_read_side_only(name: str) -> None:
    if name.startswith("service"):
        assert {each for each in imports(name) if each.startswith("indexer")} <= READ_SIDE


@pytest.mark.parametrize("name", MODULES)
def test_evaluation_knows_nothing_of_training_nor_a_build_of_either(name: str) -> None:
    ours = {each for each in imports(name) if each.startswith("indexer.")}
    if name.startswith("indexer.evaluate"):
        assert not {each for each in ours if each.startswith("indexer.finetune")}
    if name in {"indexer.build", "indexer.writer", "indexer.samples", "indexer.captions", "indexer.clusters"}:
        assert not {each for each in ours if each.startswith(("indexer.finetune", "indexer.evaluate"))}


@pytest.mark.parametrize("name", MODULES)
def test_each_library_has_one_door(name: str) -> None:
    for library, doors in DOORS.items():
        if library in {each.split(".")[0] for each in imports(name)}:
            assert name in doors, f"{name} imports {library}; its door is {doors}"


@pytest.mark.parametrize("name", MODULES)
def test_lower_modules_do_not_import_higher_ones(name: str) -> None:
    level = {module: number for number, row in enumerate(LEVELS) for module in row}
    if name in level:
        ours = {each for each in imports(name) if each.startswith("indexer")}
        ours -= LAZY.get(name, set())
        assert {each for each in ours if level.get(each, len(LEVELS)) > level[name]} == set()


@pytest.mark.parametrize("name", MODULES)
def test_only_settings_read_the_environment(name: str) -> None:
    text = MODULES[name].read_text()
    if name.removesuffix(".__init__") not in ENVIRONMENT_READERS:
        assert "os.environ" not in text
        assert "getenv" not in text


def test_the_service_starts_without_loading_torch() -> None:
    reached: set[str] = set()
    waiting = {"service.app"}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= {each for each in imports(name) - LAZY.get(name, set()) if each in MODULES} - reached
    assert "indexer.torch_runtime" not in reached
