"""A run's figures for TensorBoard; imported only where TensorBoard is installed (`pip install lumiglue[tensorboard]`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """Scalars over the pairs seen. step: how many steps of an earlier start count; what lies beyond is purged."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.writer: SummaryWriter | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        pairs = line["pairs"]
        if self.writer is None:  # only now the first pair count that is written again is known
            self.writer = SummaryWriter(str(self.folder), purge_step=pairs if self.step else None, flush_secs=30)
        for name in ("loss", "learning_rate", "gradient_norm", "pairs_per_second"):
            self.writer.add_scalar(name, line[name], pairs)
        for kind in ("layers", "ema_layers"):
            for layer, figures in enumerate(line[kind] or [], start=1):
                for name, value in figures.items():
                    self.writer.add_scalar(f"validation{'_ema' * (kind == 'ema_layers')}/layer_{layer}/{name}", value, pairs)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
