"""Several processes that train one model: each takes its slice of every batch, and they average their gradients.

A plain average in one message after the backward pass: the models are small (1.7 to 12 M parameters), so there is little
to gain from overlapping it with the backward pass, and the loop stays one loop for one process and for many.
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
    """This process among those of its run: number `rank` of `count`. By default it is alone."""

    rank: int = 0
    count: int = 1
    store: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and validates."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process if there is one, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) if self.count > 1 else torch.cuda.current_device()
        )

    def part_of(self, batch_size: int) -> slice:
        """The pairs of a batch that are this process's. Raises TrainingError where they cannot be shared evenly."""
        if batch_size % self.count:
            raise TrainingError(
                f"batch_size {batch_size} is not divisible by the {self.count} processes; choose a multiple of {self.count}"
            )
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float32 tensors by their means over the processes, in one message.

        Raises TrainingError where another process is gone.
        """
        if self.count == 1 or not tensors:
            return
        message = torch.cat([tensor.detach().flatten() for tensor in tensors])
        try:
            dist.all_reduce(message)
        except RuntimeError:  # the backends' errors: a connection that another process closed
            raise TrainingError("another process of this run stopped; run the same command again to go on") from None
        message /= self.count
        with torch.no_grad():
            for tensor, part in zip(tensors, message.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def agree(self, wish: bool) -> bool:
        """True in all processes where one of them wishes it; no process goes on before all have come here."""
        flag = torch.tensor([float(wish)], device=self.device)
        self.average([flag])
        return bool(flag > 0)

    def is_first_to_fail(self) -> bool:
        """Whether it is for this process to say why the run ends: others fail because of it, or of the same cause."""
        return self.store is None or self.store.add("failed", 1) == 1

    def leave(self) -> None:
        """Lets go of the others."""
        if self.store is not None:
            dist.destroy_process_group()


def join_processes() -> Processes:
    """The processes that torchrun started, joined over gloo or, with GPUs, NCCL; this one alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, count = next(iter(rendezvous("env://")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    return Processes(rank, count, store)
