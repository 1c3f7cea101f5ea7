"""Several processes that train one model: each computes a slice of every batch, then they average their gradients.

The gradients are averaged in one message after the backward pass. The models are small (1.7 to 12 M parameters), so there
is little to gain from overlapping the two, and one loop serves one process and many.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lumiglue.errors import TrainingError


@dataclass(frozen=True, eq=False)
class Processes:
    """This process and how many train with it.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
        store: Where they exchange values at the end; None if this process is alone.
    """

    rank: int = 0
    count: int = 1
    store: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and validates."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU if there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) if self.count > 1 else torch.cuda.current_device()
        )

    def part_of(self, batch_size: int) -> slice:
        """This process's slice of a batch. Raises TrainingError if the batch cannot be divided evenly."""
        if batch_size % self.count:
            raise TrainingError(
                f"batch_size {batch_size} is not divisible by the {self.count} processes; choose a multiple of {self.count}"
            )
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float32 tensors by their means over the processes, in one message. Raises TrainingError if a process
        stopped."""
        if self.count == 1 or not tensors:
            return
        message = torch.cat([tensor.detach().flatten() for tensor in tensors])
        try:
            dist.all_reduce(message)
        except RuntimeError:  # the backends' errors: a connection that another process closed
            raise TrainingError("another process of this run stopped; run the same command again to resume") from None
        message /= self.count
        with torch.no_grad():
            for tensor, part in zip(tensors, message.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process. Waits for all processes."""
        flag = torch.tensor([float(value)], device=self.device)
        self.average([flag])
        return bool(flag > 0)

    def is_first_to_fail(self) -> bool:
        """Whether this process failed first and so reports the error. Others fail because of it, or for the same reason."""
        return self.store is None or self.store.add("failed", 1) == 1

    def leave(self) -> None:
        """Leaves the group of processes."""
        if self.store is not None:
            dist.destroy_process_group()


def join_processes() -> Processes:
    """Joins the processes that torchrun started, over NCCL with GPUs, else gloo. Without torchrun this process is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, count = next(iter(rendezvous("env://")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    return Processes(rank, count, store)
