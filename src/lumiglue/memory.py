"""What the C library does with memory that was freed. Of use with glibc, Linux's; harmless elsewhere."""

import functools

import torch

# glibc learns from the blocks that it sees freed, but from none larger.
_LARGEST_LEARNT = 32 * 2**20


@functools.cache
def keep_scratch_memory() -> None:
    """Before matching on a CPU: lets glibc keep up to 64 MiB of freed memory for the next operation.

    Each operation of a layer asks for some megabytes and frees them a little later. glibc returns such blocks to the
    system, which then clears and maps the same pages again for the next one: thousands of page faults a layer. But it
    keeps blocks as large as the largest that was freed so far (up to 32 MiB), and twice as much in all; so one block of that
    size is asked for, never touched, and freed.
    """
    torch.empty(_LARGEST_LEARNT - 2**16, dtype=torch.uint8)
