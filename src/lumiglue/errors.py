"""Errors that a user can act on. Each message names the wrong value and the remedy in one sentence."""


class LumiglueError(Exception):
    """Base of every error that Lumiglue raises on purpose; the command line prints it and exits with code 2."""


class InputError(LumiglueError, ValueError):
    """An argument cannot be used: wrong shape, not finite, unknown name."""


class ImageError(LumiglueError):
    """A photo cannot be read: missing, empty, truncated, not an image."""


class TooLargeError(ImageError):
    """A photo exceeds the accepted number of bytes or pixels."""


class WeightsError(LumiglueError):
    """Weights cannot be found or read, or were trained for other features."""


class DatasetError(LumiglueError):
    """A feature dataset cannot be built, read, or used for this training run."""


class TrainingError(LumiglueError):
    """Training cannot start or continue: no pairs, a loss that is not finite, the folder of another run."""
