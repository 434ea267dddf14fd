"""What a training run reports as it goes: metrics.jsonl, TensorBoard, and the progress bar."""

import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from sims.clip.model.learner import Learner
from sims.clip.records.reading import brief, parsed
from sims.engine import files
from sims.engine.flags import UsageError


class Log:
    """metrics.jsonl, TensorBoard and the progress bar of process 0.

    Lines of metrics.jsonl past step `done` are removed: they are from a run that was cut short.
    records: trained on.  peak: FLOP/s, for MFU; None: MFU is not reported.
    """

    def __init__(
        self,
        learner: Learner,
        out: pathlib.Path,
        done: int,
        records: int,
        *,
        peak: float | None,
        tensorboard: bool,
        quiet: bool,
    ):
        self.learner, self.peak, self.records, self.path = learner, peak, records, out / "metrics.jsonl"
        self.flops = learner.flops() if peak else 0.0
        kept = [line for line in read_lines(self.path, {"step": int}) if line["step"] <= done]
        files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.writer = None
        if tensorboard:
            import tensorboardX

            self.writer = tensorboardX.SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
        hidden = quiet or not sys.stderr.isatty()
        self.bar = tqdm.tqdm(total=learner.steps, initial=done, unit="step", file=sys.stderr, disable=hidden)
        self.at = time.perf_counter()

    def steps(self, done: Sequence[tuple[int, dict[str, float]]], bad: int) -> None:
        """Write the metrics of the steps since the last call."""
        now = time.perf_counter()
        rate = len(done) * self.learner.config.batch_size / (now - self.at)
        speed = {"images_per_s": rate}
        if self.peak:
            speed["mfu"] = rate / self.learner.config.batch_size * self.flops / self.peak
        self.at = now
        numbers = np.array([number for number, _ in done])
        rates = np.asarray(self.learner.schedule(numbers - 1))
        lines = []
        for (number, metrics), learning_rate in zip(done, rates, strict=True):
            record = {
                "step": number, "epoch": number * self.learner.config.batch_size / self.records, **metrics,
                "learning_rate": float(learning_rate),
            }  # fmt: skip
            if number == done[-1][0]:
                record |= {**speed, "bad_records": bad}
            lines.append(record)
        self._write(lines)
        self.bar.update(len(done))
        shown = {"loss": f"{done[-1][1]['loss']:.3f}", "images/s": f"{rate:.0f}"}
        self.bar.set_postfix(shown | ({"MFU": f"{speed['mfu']:.1%}"} if "mfu" in speed else {}))

    def held_out(self, number: int, loss: float) -> None:
        """Write the held-out loss at a checkpoint; its time does not count as training."""
        self._write([{"step": number, "held_out_loss": loss}])
        self.at = time.perf_counter()

    def _write(self, lines: Sequence[dict[str, float]]) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines if self.writer is not None else ():
            for name, value in line.items():
                if name != "step":
                    self.writer.add_scalar(name, value, int(line["step"]))

    def close(self) -> None:
        """End the bar and the files."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def read_lines(path: pathlib.Path, wanted: Mapping[str, type]) -> list[dict[str, Any]]:
    """The lines of a JSONL file, each with these keys, of these types.

    A last line that a killed run has cut is left out. Raises: UsageError if another line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parsed(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and all(isinstance(row.get(key), type_) for key, type_ in wanted.items()):
            rows.append(row)
        elif number < len(lines) or line.endswith(b"\n"):
            raise UsageError(f"{path}, line {number}, is damaged ({brief(line)}); mend or remove the line.")
    return rows
