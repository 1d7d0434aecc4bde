"""ShardBucket: shard files in an object store, for builds whose machines share no folder."""

import posixpath
from dataclasses import dataclass

from indexer.errors import BuildError, CorruptShard
from indexer.sources.remote import file_system_of, tried
from indexer.sources.retries import Transient


@dataclass(frozen=True)
class ShardBucket:
    """Shard files below a URL such as `s3://bucket/folder`. An object is there as a whole or not at all."""

    url: str

    def write(self, name: str, data: bytes) -> None:
        """Store a file by one PUT.

        Raises:
            BuildError: the store does not take it.
        """
        file_system, root = file_system_of(self.url)
        try:
            tried(lambda: file_system.pipe_file(posixpath.join(root, name), data))
        except (OSError, Transient) as error:
            raise BuildError(f"The shard {name} cannot be written to {self.url}: {error}") from error

    def read(self, name: str) -> bytes:
        """Return a file.

        Raises:
            CorruptShard: there is none, or it stays unreachable.
        """
        file_system, root = file_system_of(self.url)
        try:
            return bytes(tried(lambda: file_system.cat_file(posixpath.join(root, name))))
        except (OSError, Transient) as error:
            raise CorruptShard(f"The shard {name} cannot be read from {self.url}: {error}") from error

    def delete(self, name: str) -> None:
        """Remove a file if it is there.

        Raises:
            BuildError: the store does not remove it.
        """
        file_system, root = file_system_of(self.url)
        try:
            tried(lambda: file_system.rm_file(posixpath.join(root, name)))
        except FileNotFoundError:
            pass
        except (OSError, Transient) as error:
            raise BuildError(f"The shard {name} cannot be removed from {self.url}: {error}") from error
