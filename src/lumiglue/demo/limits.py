"""What a request to the demo may cost."""

from dataclasses import dataclass

from lumiglue.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost."""

    max_upload_mb: float = 20.0
    """Largest photo in megabytes, as it is sent."""
    max_megapixels: float = 40.0
    """Largest photo in megapixels, unpacked."""
    most_keypoints: int = 4096
    """Largest number of keypoints that can be asked for."""
    max_seconds: float = 30.0
    """A request that takes longer is ended."""
    max_queue: int = 8
    """Requests that may wait; more are turned away."""
    workers: int = 2
    """Requests that run at the same time, each in a process of its own (about 0.5 GB)."""
    keep: int = 64
    """Results that are kept for looking at layers and for downloads; the oldest goes first."""

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_megapixels", "max_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; give more than 0")
        for name, least in (("most_keypoints", 128), ("max_queue", 0), ("workers", 1), ("keep", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")

    @property
    def upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1e6)
