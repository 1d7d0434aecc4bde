"""Settings of the server, on top of those both rooms share."""

from pydantic import Field, SecretStr

from indexer.settings import Settings


class ServiceSettings(Settings):
    """Every field is read from `KINDRED_<FIELD>`."""

    threads: int = Field(default=1, ge=0)
    """Threads that one call of the encoder may use; 1 lets the requests be the parallelism, 0 means one per core."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""

    admin_key: SecretStr | None = Field(default=None, min_length=16)
    """API key with the admin scope; without one there are no admin routes."""

    roots: tuple[str, ...] = ()
    """Folders and URLs (a JSON list) that a reindex may read, besides the current snapshot's sources."""

    max_body_bytes: int = Field(default=20 * 2**20, gt=0)
    """Largest request body, in bytes."""

    refresh_seconds: float = Field(default=0.5, gt=0)
    """How often to look for a newly published snapshot, in seconds."""
