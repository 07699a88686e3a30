"""Running a trained model over a table, raw samples in, outputs out.

Cost of a row: read, decoded and prepared once, ahead of the model's passes, and its outputs, on disk where they are
many. A batch with a row that can't be read is prepared once more, row by row, to find that row.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusetune import on_disk
from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.features.chunks import Chunk
from fusetune.features.decoding import Prepared, attempted_ahead, batches, deaths_told, prepared_rows
from fusetune.features.index import CacheSettings
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.speaking import answered
from fusetune.tasks.task import finite_rows


@dataclass(frozen=True)
class Scored:
    """
    Attributes:
        rows: those that could be read, in order, (rows,).
        outputs: the task's, one for each of `rows`, float32 on the CPU.
        errors: what is wrong with the others, by row, in order.
    """

    rows: np.ndarray
    outputs: Tensor
    errors: dict[int, str]


def score(
    model: AdaptedModel,
    source: Source,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda *_: None,
    decoders: int | None = 0,
) -> Scored:
    """Outputs of the given rows; a row that can't be read costs itself alone.

    Args:
        progress: called with the rows done and their number after each batch.
        decoders: processes that decode ahead of the model, as `CacheSettings` has it; starting them takes as long as
            some hundred pictures.

    Raises:
        FusetuneError: no row at all can be read; the first one's fault. Or a process that decodes was killed.
    """
    model.to(device)
    asked = np.asarray(rows, np.int64)
    scoring = _Scoring(model, source, device, len(asked))
    chunk = Chunk(tuple(source.modalities), scoring.given(asked), Keys.of([]), {})
    settings = CacheSettings(batch_size=batch_size, decoders=decoders)
    done, died = len(asked) - len(chunk.rows), deaths_told("predict.decoders", "Nothing was written")
    with closing(attempted_ahead(model.backbone, source, [chunk], settings, device)) as ready, died:
        for places, samples in zip(batches(chunk, batch_size), ready, strict=True):
            scoring.take(chunk.rows[places.start : places.stop], samples)
            done += len(places)
            progress(done, len(asked))
    return scoring.scored()


class _Scoring:
    """Outputs and errors as they come.

    Args:
        most: rows of which there may be outputs.
    """

    def __init__(self, model: AdaptedModel, source: Source, device: torch.device, most: int) -> None:
        self.model, self.source, self.device, self.most = model, source, device, most
        self.errors: dict[int, str] = {}
        self._rows, self._count = on_disk.array(most, np.int64), 0
        self._outputs: np.ndarray | None = None

    def given(self, rows: np.ndarray) -> np.ndarray:
        """Those in which any modality is there that isn't the same for all; of the others it is an error."""
        own = [name for name, modality in self.source.modalities.items() if modality.constant is None]
        there = np.zeros(len(rows), bool)
        for name in own:
            for some in on_disk.slices(len(rows)):
                there[some] |= on_disk.taken(self.source.column(name), rows[some]).is_valid().to_numpy()
        nothing = f"no modality is given; expected some of {', '.join(own)}."
        self.errors |= {row: f"row {row}: {nothing}" for row in rows[~there].tolist()}
        return rows[there]

    def take(self, rows: np.ndarray, samples: Prepared | Exception) -> None:
        """Answer a batch; where that fails, its rows one by one."""
        try:
            if isinstance(samples, Exception):
                raise samples
            self._add(rows, self._answered(samples))
        except FusetuneError as error:
            if len(rows) == 1:
                self.errors[int(rows[0])] = str(error)
                return
            alone = [(rows[i : i + 1], self._prepared(rows[i : i + 1])) for i in range(len(rows))]
            sound = [row for row, found in alone if not isinstance(found, Exception)]
            if isinstance(samples, Exception) and 0 < len(sound) < len(rows):  # the others are a batch again
                self.errors |= {int(row[0]): str(found) for row, found in alone if isinstance(found, FusetuneError)}
                readable = np.concatenate(sound)
                self.take(readable, self._prepared(readable))
            else:
                for row, found in alone:
                    self.take(row, found)

    def scored(self) -> Scored:
        errors = dict(sorted(self.errors.items()))
        if self._outputs is None or not self._count:
            raise FusetuneError(f"no row could be read: {next(iter(errors.values()), 'there is none')}")
        return Scored(self._rows[: self._count], torch.from_numpy(self._outputs[: self._count]), errors)

    def _prepared(self, rows: np.ndarray) -> Prepared | Exception:
        try:
            return prepared_rows(self.model.backbone, self.source, tuple(self.source.modalities), rows)
        except FusetuneError as error:
            return error

    @torch.no_grad()
    def _answered(self, samples: Prepared) -> Tensor:
        streams = {name: tokens.to(self.device) for name, tokens in samples.items()}
        return answered(self.model, streams, Frontier(dict.fromkeys(streams, 0)))

    def _add(self, rows: np.ndarray, outputs: Tensor) -> None:
        finite = finite_rows(outputs).numpy()
        for row in rows[~finite].tolist():
            self.errors[row] = f"row {row}: the model's outputs are NaN or infinite; that is no answer."
        if self._outputs is None:
            self._outputs = on_disk.array((self.most, *outputs.shape[1:]), np.float32)
        stop = self._count + int(finite.sum())
        self._rows[self._count : stop], self._outputs[self._count : stop] = rows[finite], outputs.numpy()[finite]
        self._count = stop
