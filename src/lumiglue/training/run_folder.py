"""The folder of a run: its record, log and checkpoint, each complete at any moment.

settings.json        settings and datasets; a run with others is refused in this folder
metrics.jsonl        a line for each step, cut back to the checkpoint when a run resumes
checkpoint.pt        the last state
matches/             pictures of validation pairs, if requested
snapshots/           intermediate weights, if requested
tensorboard/         the figures of metrics.jsonl, if TensorBoard is installed
weights.safetensors  the result
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from lumiglue.errors import TrainingError
from lumiglue.io.atomic import disk_is_full, replacing
from lumiglue.io.text import differences
from lumiglue.matcher.models import MatcherModel
from lumiglue.system.extras import available, outdated
from lumiglue.visualization import save_figure
from lumiglue.weights.files import save_weights


class RunFolder:
    """The folder of a run, locked for this process until `close`.

    Args:
        path: The folder; made if it does not exist.
        record: Settings and datasets of the run, as JSON values. Keys that begin with "_" are stored but may change.

    Raises:
        TrainingError: If the folder contains another run, another process is training in it, or the disk is full.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        file = path / "settings.json"
        text = json.dumps(record, indent=2, sort_keys=True)
        now = _without_notes(json.loads(text))
        if file.exists() and (before := _read_record(file)) != now:
            raise TrainingError(
                f"{path} contains a run with other settings or datasets{differences(before, now)}; choose another folder or "
                "delete it"
            )
        with self._saying_when_the_disk_is_full():
            path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(path / "lock")
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise TrainingError(
                    f"another process is training in {path}; wait for it, or choose another folder"
                ) from None
            _replace(file, (text + "\n").encode())

    def close(self) -> None:
        """Unlocks the folder."""
        self.lock.release()

    def start_log(self, step: int) -> "RunLog":
        """Opens the log, cut back to its first `step` lines."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[:step] if step and file.exists() else []
        with self._saying_when_the_disk_is_full():
            _replace(file, "".join(line + "\n" for line in lines).encode())
            return RunLog(self, file, step)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint. After a kill or with a full disk, either the old or the new state is there, complete."""
        buffer = io.BytesIO()  # a full disk is then a plain OSError
        torch.save(dict(state), buffer)
        with self._saying_when_the_disk_is_full():
            _replace(self.path / "checkpoint.pt", buffer.getbuffer())

    def write_weights(self, model: MatcherModel, metadata: Mapping[str, Any], pairs: int | None = None) -> None:
        """Writes weights.safetensors, or for some number of pairs seen snapshots/pairs-000016000.safetensors."""
        with self._saying_when_the_disk_is_full():
            file = self.path / "weights.safetensors" if pairs is None else self._numbered("snapshots", pairs, ".safetensors")
            save_weights(model, file, metadata)

    def write_picture(self, figure: Figure, pairs: int) -> None:
        """Writes matches/pairs-000016000.png: the figure after that many pairs."""
        with self._saying_when_the_disk_is_full():
            save_figure(figure, self._numbered("matches", pairs, ".png"))

    def _numbered(self, folder: str, pairs: int, suffix: str) -> Path:
        (self.path / folder).mkdir(exist_ok=True)
        return self.path / folder / f"pairs-{pairs:09d}{suffix}"

    @contextlib.contextmanager
    def _saying_when_the_disk_is_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not disk_is_full(error):
                raise
            loss = "its last checkpoint is intact" if (self.path / "checkpoint.pt").exists() else "nothing is lost yet"
            raise TrainingError(
                f"the disk of {self.path} is full, {loss}; make room and run the same command again"
            ) from None


class RunLog:
    """metrics.jsonl and, if TensorBoard is installed, its scalars over the pairs seen.

    TensorBoard's events after `step`, the steps of earlier starts that count, are purged.
    """

    def __init__(self, folder: RunFolder, file: Path, step: int) -> None:
        self.folder, self.lines, self.step = folder, file.open("a"), step
        self.events: Any = None
        self.with_events = available("tensorboard")
        if message := outdated("tensorboard"):
            logging.getLogger(__name__).warning("%s; until then no event files are written", message)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one step."""
        with self.folder._saying_when_the_disk_is_full():
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
        if self.with_events:
            self._write_events(line, line["pairs"])

    def _write_events(self, line: Mapping[str, Any], pairs: int) -> None:
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter

            # Only now is the pair count known from which on events are written again.
            first = pairs if self.step else None
            self.events = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=first, flush_secs=30)
        for name in ("loss", "learning_rate", "gradient_norm", "pairs_per_second"):
            self.events.add_scalar(name, line[name], pairs)
        for kind in ("layers", "ema_layers"):
            for layer, figures in enumerate(line[kind] or [], start=1):
                for name, value in figures.items():
                    self.events.add_scalar(f"validation{'_ema' * (kind == 'ema_layers')}/layer_{layer}/{name}", value, pairs)

    def close(self) -> None:
        """Closes the files."""
        with contextlib.suppress(OSError):  # lines lost on a full disk; the checkpoint decides where the run resumes
            self.lines.close()
        if self.events is not None:
            self.events.close()


def read_checkpoint(run: Path, device: torch.device) -> dict[str, Any] | None:
    """The last state of a run; None if there is none. Raises TrainingError if it cannot be read."""
    file = run / "checkpoint.pt"
    if not file.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickle protocols
            state = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises errors of many types for a damaged file
        raise TrainingError(f"{file} cannot be read ({type(error).__name__}); delete {run} to start again") from None
    if not isinstance(state, dict):
        raise TrainingError(f"{file} is not a checkpoint of a run; delete {run} to start again")
    return state


def _replace(file: Path, content: bytes | memoryview) -> None:
    with replacing(file) as unfinished:
        unfinished.write_bytes(content)


def _read_record(file: Path) -> Any:
    try:
        return _without_notes(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        raise TrainingError(f"{file} is not a run's record; choose another folder or delete it") from None


def _without_notes(value: Any) -> Any:
    """A record without the keys that may change."""
    if isinstance(value, dict):
        return {key: _without_notes(inner) for key, inner in value.items() if not key.startswith("_")}
    return [_without_notes(inner) for inner in value] if isinstance(value, list) else value
