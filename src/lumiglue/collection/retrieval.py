"""Similar images without any trained network: VLAD over the local features that are there anyway (Jegou et al., CVPR 2010,
with the normalisations of Arandjelovic and Zisserman, CVPR 2013). The codebook is k-means on the collection itself."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from lumiglue.collection.pairs import Pair, unique
from lumiglue.errors import InputError

CLUSTERS = 64
TRAINING_DESCRIPTORS = 100_000

try:
    import faiss
except ImportError:
    raise InputError("retrieval needs the package faiss; pip install 'lumiglue[sfm]'") from None

Read = Callable[[str], Float[np.ndarray, "n d"]]


class Vlad:
    """One vector for an image: for each cluster, the sum of the residuals of its descriptors."""

    def __init__(self, codebook: Float[np.ndarray, "k d"]) -> None:
        self.codebook = np.ascontiguousarray(codebook, np.float32)
        self._index = faiss.IndexFlatL2(self.codebook.shape[1])
        self._index.add(self.codebook)  # pyright: ignore[reportCallIssue]

    @classmethod
    def learn(cls, read: Read, names: Sequence[str], clusters: int = CLUSTERS, seed: int = 0) -> "Vlad":
        """A codebook of the images' descriptors, as many of each as make 100,000. Raises InputError where there are none."""
        rng, share = np.random.default_rng(seed), max(1, TRAINING_DESCRIPTORS // max(len(names), 1))
        taken = []
        for name in names if len(names) <= TRAINING_DESCRIPTORS else rng.choice(names, TRAINING_DESCRIPTORS, replace=False):
            descriptors = read(str(name))
            rows = rng.permutation(len(descriptors))[:share]
            taken.append(descriptors[rows])
        points = np.ascontiguousarray(np.concatenate(taken), np.float32) if taken else np.zeros((0, 1), np.float32)
        if not len(points):
            raise InputError("no image of the collection has features; retrieval has nothing to compare")
        clusters = min(clusters, len(points))
        kmeans = faiss.Kmeans(points.shape[1], clusters, niter=20, seed=seed, min_points_per_centroid=1)
        kmeans.train(points)  # pyright: ignore[reportCallIssue]
        return cls(np.asarray(kmeans.centroids).reshape(clusters, points.shape[1]))

    def __call__(self, descriptors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " v"]:
        """Normalised inside each cluster, then as a whole; zeros for an image without features."""
        clusters, channels = self.codebook.shape
        sums = np.zeros((clusters, channels), np.float32)
        if len(descriptors):
            descriptors = np.ascontiguousarray(descriptors, np.float32)
            _, nearest = self._index.search(descriptors, 1)  # pyright: ignore[reportCallIssue]
            np.add.at(sums, nearest[:, 0], descriptors - self.codebook[nearest[:, 0]])
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        vector = sums.ravel()
        return vector / max(float(np.linalg.norm(vector)), 1e-9)


def by_retrieval(read: Read, names: Sequence[str], neighbours: int = 20) -> list[Pair]:
    """Each image with those most similar to it. read: the descriptors of an image."""
    if neighbours < 1:
        raise InputError(f"neighbours is {neighbours}; give at least 1")
    vlad = Vlad.learn(read, names)
    vectors = np.stack([vlad(read(name)) for name in names])
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    _, nearest = index.search(vectors, min(neighbours + 1, len(names)))  # pyright: ignore[reportCallIssue]
    return unique((name, names[int(j)]) for name, row in zip(names, nearest, strict=True) for j in row if j >= 0)
