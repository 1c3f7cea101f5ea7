"""Assignment: the equations, mutual maxima, and the streamed form."""

import pytest
import torch
from torch.testing import assert_close

from lumiglue.matcher.assignment import assign, log_assignment

pytestmark = [pytest.mark.numeric, pytest.mark.portable]


def case(m: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((m, 16), (n, 16), (m,), (n,))
    return tuple(torch.randn(shape, generator=generator) * 1.3 for shape in shapes)  # pyright: ignore[reportReturnType]


def test_log_assignment_is_the_papers_equation() -> None:
    f0, f1, z0, z1 = (t.double() for t in case(6, 9))
    similarity = f0 @ f1.T
    p = z0.sigmoid()[:, None] * z1.sigmoid() * similarity.softmax(0) * similarity.softmax(1)
    assert_close(log_assignment(similarity, z0, z1).exp(), p)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 40), (40, 1), (37, 53), (200, 90)])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_equal_the_whole(m: int, n: int, block: int) -> None:
    inputs = case(m, n, seed=m + n)
    pairs, scores = assign(*inputs, threshold=0.0)
    streamed, streamed_scores = assign(*inputs, threshold=0.0, block=block)
    assert torch.equal(pairs, streamed)
    assert_close(scores, streamed_scores, rtol=0, atol=1e-5)
    assert len(pairs) > 0


def test_matches_are_mutual_maxima_above_the_threshold() -> None:
    inputs = case(30, 40, seed=3)
    p = log_assignment(inputs[0] @ inputs[1].T, inputs[2], inputs[3]).exp()
    pairs, scores = assign(*inputs, threshold=0.05)
    for (i, j), score in zip(pairs.tolist(), scores, strict=True):
        assert p[i, j] == p[i].max() == p[:, j].max()
        assert score > 0.05
    assert len(set(pairs[:, 1].tolist())) == len(pairs)
    assert len(assign(*inputs, threshold=0.9999)[0]) == 0


@pytest.mark.parametrize("strength", [3.0, 12.0])
def test_large_similarities_lose_nothing(strength: float) -> None:
    """Beyond the range of one offset for all rows and columns, sums are exact all the same."""
    f0, f1, z0, z1 = case(80, 70, seed=5)
    pairs, scores = assign(f0 * strength, f1 * strength, z0, z1, threshold=0.0)
    p = log_assignment((f0.double() * strength) @ (f1.double() * strength).T, z0.double(), z1.double()).exp()
    assert_close(scores.double(), p[pairs[:, 0], pairs[:, 1]], rtol=0, atol=1e-3)
    assert_close(p.amax(1)[pairs[:, 0]], p.amax(0)[pairs[:, 1]])
    assert len(pairs) > 10


def test_identical_points_match_at_most_once() -> None:
    """Ties are broken towards the first, so even identical descriptors give a one-to-one assignment."""
    ones = torch.ones(5, 16)
    for block in (None, 2):
        pairs, _ = assign(ones, ones, torch.zeros(5), torch.zeros(5), threshold=0.0, block=block)
        assert pairs.tolist() == [[0, 0]]


def test_empty_sides_have_no_matches() -> None:
    for m, n in ((0, 5), (5, 0), (0, 0)):
        pairs, scores = assign(*case(m, n), threshold=0.0)
        assert pairs.shape == (0, 2)
        assert scores.shape == (0,)
