"""What a request to the demo may cost."""

from dataclasses import dataclass

from lumiglue.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost."""

    max_upload_mb: float = 20.0
    """Largest upload of a photo, in megabytes."""
    max_megapixels: float = 40.0
    """Largest photo, in megapixels."""
    most_keypoints: int = 4096
    """Largest number of keypoints of a request."""
    max_seconds: float = 30.0
    """Time limit of a request, in seconds."""
    max_queue: int = 8
    """Requests that may wait; more are refused."""
    workers: int = 2
    """Requests that run at the same time, each in its own process (about 0.5 GB)."""
    keep: int = 64
    """Results stored for layer views and downloads; the oldest is removed first."""

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_megapixels", "max_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; give more than 0")
        for name, least in (("most_keypoints", 128), ("max_queue", 0), ("workers", 1), ("keep", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")

    @property
    def upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return int(self.max_upload_mb * 1e6)
