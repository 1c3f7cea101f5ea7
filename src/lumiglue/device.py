"""Where to compute."""

import torch

from lumiglue.errors import InputError


def usable_device(device: torch.device | str | None) -> torch.device | str:
    """The device, or for None the GPU if there is one, else the CPU. Raises InputError for one that cannot be used here."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(chosen)!r} cannot be used ({reason}); choose 'cpu' or 'cuda'") from None
    return chosen
