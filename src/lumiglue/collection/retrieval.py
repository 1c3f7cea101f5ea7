"""Similar images without a trained network: VLAD of the local features (Jegou et al., CVPR 2010, with the normalisations of
Arandjelovic and Zisserman, CVPR 2013). The codebook is k-means on the collection itself."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from lumiglue.collection.pairs import Pair, unique
from lumiglue.errors import InputError
from lumiglue.system.extras import require

CLUSTERS = 64
TRAINING_DESCRIPTORS = 100_000

try:
    import faiss
except ImportError:
    raise InputError("retrieval needs the package faiss; pip install 'lumiglue[sfm]'") from None
require("faiss")

Read = Callable[[str], Float[np.ndarray, "n d"]]


class Vlad:
    """One vector for an image: for each cluster, the sum of the residuals of its descriptors.

    Args:
        codebook: k x d cluster centres.
    """

    def __init__(self, codebook: Float[np.ndarray, "k d"]) -> None:
        self.codebook = np.ascontiguousarray(codebook, np.float32)
        self._index = faiss.IndexFlatL2(self.codebook.shape[1])
        self._index.add(self.codebook)  # pyright: ignore[reportCallIssue]

    @classmethod
    def learn(cls, read: Read, names: Sequence[str], clusters: int = CLUSTERS, seed: int = 0) -> "Vlad":
        """Learns a codebook by k-means on about 100,000 descriptors, equally many of each image.

        Args:
            read: Returns the n x d descriptors of an image.
            names: The images.
            clusters: Size of the codebook.
            seed: Random seed.

        Returns:
            The VLAD of this codebook.

        Raises:
            InputError: no image has features.
        """
        rng, share = np.random.default_rng(seed), max(1, TRAINING_DESCRIPTORS // max(len(names), 1))
        samples = []
        for name in names if len(names) <= TRAINING_DESCRIPTORS else rng.choice(names, TRAINING_DESCRIPTORS, replace=False):
            descriptors = read(str(name))
            rows = rng.permutation(len(descriptors))[:share]
            samples.append(descriptors[rows])
        points = np.ascontiguousarray(np.concatenate(samples), np.float32) if samples else np.zeros((0, 1), np.float32)
        if not len(points):
            raise InputError("no image of the collection has features; retrieval has nothing to compare")
        clusters = min(clusters, len(points))
        kmeans = faiss.Kmeans(points.shape[1], clusters, niter=20, seed=seed, min_points_per_centroid=1)
        kmeans.train(points)  # pyright: ignore[reportCallIssue]
        return cls(np.asarray(kmeans.centroids).reshape(clusters, points.shape[1]))

    def __call__(self, descriptors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " v"]:
        """Computes the vector of an image, normalised inside each cluster and then as a whole.

        Args:
            descriptors: n x d, of one image.

        Returns:
            k * d numbers of unit length; zeros for an image without features.
        """
        clusters, channels = self.codebook.shape
        sums = np.zeros((clusters, channels), np.float32)
        if len(descriptors):
            descriptors = np.ascontiguousarray(descriptors, np.float32)
            _, nearest = self._index.search(descriptors, 1)  # pyright: ignore[reportCallIssue]
            np.add.at(sums, nearest[:, 0], descriptors - self.codebook[nearest[:, 0]])
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        vector = sums.ravel()
        return vector / max(float(np.linalg.norm(vector)), 1e-9)


class SimilarImages:
    """The images of a collection, to find those that are similar to another one.

    Args:
        read: Returns the n x d descriptors of an image.
        names: The images.

    Raises:
        InputError: no image has features.
    """

    def __init__(self, read: Read, names: Sequence[str]) -> None:
        self.names = list(names)
        self.vlad = Vlad.learn(read, names)
        self.vectors = np.empty((len(names), self.vlad.codebook.size), np.float32)  # the largest part of the memory
        for row, name in enumerate(names):
            self.vectors[row] = self.vlad(read(name))

    def nearest(self, vectors: Float[np.ndarray, "q v"], count: int) -> list[list[str]]:
        """Finds the most similar images.

        Args:
            vectors: VLAD vectors of the images to compare.
            count: Number of similar images for each.

        Returns:
            For each vector the names, the most similar first.
        """
        count = min(count, len(self.names))
        _, nearest = faiss.knn(vectors, self.vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        return [[self.names[int(row)] for row in rows if row >= 0] for rows in nearest]


def by_retrieval(read: Read, names: Sequence[str], neighbours: int = 20) -> list[Pair]:
    """Pairs each image with the most similar ones.

    Args:
        read: Returns the n x d descriptors of an image.
        names: The images.
        neighbours: Pairs per image.

    Returns:
        The pairs, each once.

    Raises:
        InputError: `neighbours` is less than 1, or no image has features.
    """
    if neighbours < 1:
        raise InputError(f"neighbours is {neighbours}; give at least 1")
    images = SimilarImages(read, names)
    nearest = images.nearest(images.vectors, neighbours + 1)
    return unique((name, other) for name, others in zip(names, nearest, strict=True) for other in others)
