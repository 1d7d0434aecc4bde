"""Settings of the server, on top of those both rooms share."""

from ipaddress import ip_network
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from indexer.settings import Settings
from service.rate_limits import checked


class ServiceSettings(Settings):
    """Every field is read from `KINDRED_<FIELD>`."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""

    service_workers: int = Field(default=1, ge=1)
    """Processes that answer, over the same files in memory; the encoder and the interpreter each has for itself."""

    admin_key: SecretStr | None = Field(default=None, min_length=16)
    """A key with all scopes; without it and without `keys` there are no admin routes."""

    keys: Path | None = None
    """File of API keys that `kindred keys` writes; with it, all but probes, pages and the API document needs a key."""

    rate_limit: str = ""
    """Most requests, such as `100/second`, by each key, and by each address without one, of each process."""

    proxies: str = ""
    """Addresses and networks, with commas, of proxies whose `X-Forwarded-For` names the client; none unless told."""

    roots: tuple[str, ...] = ()
    """Folders and URLs (a JSON list) that a reindex may read, besides the current snapshot's sources."""

    query_hosts: tuple[str, ...] = ()
    """Hosts (a JSON list) that `image_url` may name, as `KINDRED_FETCH_HOSTS` has them; none unless told."""

    max_body_bytes: int = Field(default=20 * 2**20, gt=0)
    """Largest request body, in bytes."""

    header_seconds: float = Field(default=10, gt=0)
    """Time that the headers of a request may take, from the connection or from the request before, in seconds."""

    body_seconds: float = Field(default=30, gt=0)
    """Time that a body may take, either way, in seconds; longer while it moves at 10 kB/s."""

    deadline_seconds: float = Field(default=30, gt=0)
    """Time that a query may take once its body is there, in seconds; what is not begun by then is not done."""

    max_batch: int = Field(default=32, ge=1, le=1_024)
    """Queries that are encoded, or searched for, at once; 1 does each by itself."""

    batch_wait_seconds: float = Field(default=0.005, ge=0, le=1)
    """Time that the first query of a batch may wait for others, in seconds; a client by itself never waits."""

    queue: int = Field(default=256, ge=1)
    """Queries that may wait for each stage (filter, decoding, encoding, searching); more are refused with 503."""

    queue_seconds: float = Field(default=0.1, gt=0)
    """Time that a query may be expected to take, in seconds, once twice `max_batch` are there; then it is refused."""

    decode_pixels: int = Field(default=100_000_000, gt=0)
    """Pixels that are decoded at a time; further pictures wait."""

    body_memory: int = Field(default=512 * 2**20, gt=0)
    """Bytes of request bodies in memory at a time; more are refused with 503."""

    text_cache: int = Field(default=10_000, ge=0)
    """Texts whose embeddings are kept in memory, the last used ones; 0 keeps none."""

    refresh_seconds: float = Field(default=0.5, gt=0)
    """How often to look for a newly published snapshot, in seconds."""

    shadow_rate: float = Field(default=0.001, ge=0, le=1)
    """Share of the searches of an approximate index that are repeated exactly, afterwards, to measure its recall."""

    otlp_endpoint: str | None = None
    """URL of an OTLP/HTTP receiver of traces, such as `http://localhost:4318/v1/traces`; none are made without it."""

    @field_validator("rate_limit")
    @classmethod
    def _is_a_limit(cls, value: str) -> str:
        if value:
            checked(value)
        return value

    @field_validator("proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for part in value.split(",") if value else ():
            try:
                ip_network(part.strip())
            except ValueError as error:
                told = f"'{part}' is no address or network of a proxy; write for example 10.0.0.7,10.1.0.0/16."
                raise ValueError(told) from error
        return value
