"""Labels made from the collection itself: clusters of its embeddings, for training without labels."""

import numpy as np

from indexer.encoder import Embeddings
from indexer.errors import BuildError
from indexer.index_building import kmeans

PER_CLUSTER = 100
"""Pictures in a cluster, on average: the coarse end of the 20 to 100 that are usual, which measured best."""

# Of a small collection more clusters are made than that: what is told apart must be several things.
_FEWEST = 10

# A cluster below this share of the average is a left-over between others rather than a class.
_TINY = 0.2


def cluster_labels(embeddings: Embeddings, seed: int, per_cluster: int | None = None) -> list[str | None]:
    """Return a made-up label for each picture: that of its cluster; None where the cluster is tiny.

    n pictures make n / per_cluster clusters by k-means on the embeddings of the model that is to be tuned, as UNICOM
    (An et al., ICLR 2023) and MLCD (An et al., ECCV 2024) make classes of a collection without labels. Smaller clusters
    are purer, and yet worse to train on: they part what belongs together. `indexer/README.md` has the figures.

    Args:
        embeddings: unit rows, shape (n, dim).
        seed: of k-means; the same one gives the same labels.
        per_cluster: pictures in a cluster on average, at least 2; None makes it 100, or a tenth of a small collection.

    Raises:
        BuildError: the pictures are too few for two clusters.
    """
    if per_cluster is None:
        per_cluster = max(2, min(PER_CLUSTER, len(embeddings) // _FEWEST))
    if per_cluster < 2:  # noqa: PLR2004 - a class of one picture has nothing in common with another
        raise BuildError(f"A cluster must hold at least 2 pictures on average, not {per_cluster}.")
    count = len(embeddings) // per_cluster
    if count < 2:  # noqa: PLR2004 - one class tells nothing apart
        raise BuildError(
            f"{len(embeddings):,} pictures are too few for clusters of {per_cluster}: at least {2 * per_cluster:,} are "
            "needed. Give more pictures, fewer of them per cluster, or labels."
        )
    assignment = kmeans(embeddings, count, seed).assignment
    sizes = np.bincount(assignment, minlength=count)
    kept = sizes >= max(2.0, _TINY * per_cluster)
    return [f"cluster {number}" if kept[number] else None for number in assignment]
