"""The two limits that every extractor has."""

from lumiglue.errors import InputError


def check_limits(max_keypoints: int | None, resize: int | None, smallest_side: int = 16) -> None:
    """Raises InputError for fewer keypoints than 1, or a long side that is too small to find any; None is no limit."""
    if max_keypoints is not None and max_keypoints < 1:
        raise InputError(f"max_keypoints is {max_keypoints}; give at least 1")
    if resize is not None and resize < smallest_side:
        raise InputError(f"resize is {resize}; give a long side of at least {smallest_side} pixels, or None")
