"""Errors that a user can act on. Each message names the value at fault and the remedy, in one sentence."""


class LumiglueError(Exception):
    """Base of every error that Lumiglue raises on purpose; the command line prints it and exits with code 2."""


class InputError(LumiglueError, ValueError):
    """A value that was handed in cannot be used: wrong shape, not finite, unknown name."""


class ImageError(LumiglueError):
    """A photo cannot be read: missing, empty, truncated, not an image."""


class TooLargeError(ImageError):
    """A photo has more bytes or pixels than are accepted."""


class WeightsError(LumiglueError):
    """Weights cannot be found or read, or they were made for other features."""


class DatasetError(LumiglueError):
    """A feature dataset cannot be built, read, or used for this training run."""


class TrainingError(LumiglueError):
    """Training cannot start or go on: no pairs, a loss that is not finite, a run folder of another run."""
