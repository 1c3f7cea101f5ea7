"""Main directions of states, and linear maps by least squares."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_RIDGE = 1e-4  # relative to the mean squared input of a least-squares fit

Basis = Float[Tensor, "wide narrow"]


def main_directions(points: Float[Tensor, "n wide"], count: int) -> Basis:
    """Orthonormal directions with most of the squared length of the points, from the largest."""
    wide = points.double()
    return torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -count:].flip(1).float()


def shared_directions(states: Sequence[Float[Tensor, "n wide"]], count: int) -> Basis:
    """The main directions of states of several layers, each layer with the same weight."""
    return main_directions(torch.cat([x / x.norm() for x in states]), count)


def directions_of(states: Sequence[Float[Tensor, "n wide"]], coordinates: Sequence[Float[Tensor, "n narrow"]]) -> Basis:
    """The orthonormal directions in which the states have, as nearly as possible, the given coordinates.

    Each layer has the same weight. A least-squares map, made orthonormal by its polar decomposition.
    """
    x = torch.cat([layer / layer.norm() for layer in states]).double()
    y = torch.cat([own / layer.norm() for own, layer in zip(coordinates, states, strict=True)]).double()
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    left, _, right = torch.linalg.svd(torch.linalg.solve(gram, x.T @ y), full_matrices=False)
    return (left @ right).float()


@torch.no_grad()
def fit_linear(linear: nn.Linear, inputs: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> None:
    """Sets a linear map to the ridge regression of targets on inputs."""
    x, y = inputs.double(), targets.double()
    centre, mean = x.mean(0), y.mean(0)
    x, y = x - centre, y - mean
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y).T
    linear.weight.copy_(weight)
    linear.bias.copy_(mean - weight @ centre)
