"""Settings of the server, on top of those both rooms share."""

from pydantic import Field, SecretStr

from indexer.settings import Settings


class ServiceSettings(Settings):
    """Every field is read from `KINDRED_<FIELD>`."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""

    service_workers: int = Field(default=1, ge=1)
    """Processes that answer, over the same files in memory; the encoder and the interpreter each has for itself."""

    admin_key: SecretStr | None = Field(default=None, min_length=16)
    """API key with the admin scope; without one there are no admin routes."""

    roots: tuple[str, ...] = ()
    """Folders and URLs (a JSON list) that a reindex may read, besides the current snapshot's sources."""

    query_hosts: tuple[str, ...] = ()
    """Hosts (a JSON list) that `image_url` may name, as `KINDRED_FETCH_HOSTS` has them; none unless told."""

    max_body_bytes: int = Field(default=20 * 2**20, gt=0)
    """Largest request body, in bytes."""

    deadline_seconds: float = Field(default=30, gt=0)
    """Time that a query may take once its body is there, in seconds; what is not begun by then is not done."""

    max_batch: int = Field(default=32, ge=1, le=1_024)
    """Queries that are encoded, or searched for, at once; 1 does each by itself."""

    batch_wait_seconds: float = Field(default=0.005, ge=0, le=1)
    """Time that the first query of a batch may wait for others, in seconds; a client by itself never waits."""

    queue: int = Field(default=256, ge=1)
    """Queries that may wait for each stage (decoding, encoding, searching); more are refused with 503."""

    text_cache: int = Field(default=10_000, ge=0)
    """Texts whose embeddings are kept in memory, the last used ones; 0 keeps none."""

    refresh_seconds: float = Field(default=0.5, gt=0)
    """How often to look for a newly published snapshot, in seconds."""
