"""The registered model: an MLflow pyfunc from code. MLflow runs this file to load a model; nothing is pickled.

Requests are rows with one column a modality: text as text, a picture as base64 text (or bytes), several pictures as a
list of them, a sequence as a list of lists, a vector as a list. A modality may be left out.
"""

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from fusetune.errors import FusetuneError

BASE_VARIABLE = "FUSETUNE_BASE"
MAX_BYTES = 16 * 2**20  # of one picture


class AdapterModel(PythonModel):
    """Loads adapter and base when it is loaded; answers with the task's decoded columns."""

    def load_context(self, context: Any) -> None:
        from fusetune.bank.artifact import Artifact

        folder = Path(context.artifacts["adapter"])
        base = os.environ.get(BASE_VARIABLE) or context.model_config["base"]
        artifact = Artifact.from_pretrained(folder)
        self.data = artifact.data()
        self.model = artifact.build(Path(base))

    def predict(self, context, model_input, params=None):  # MLflow would read type hints as a schema
        """Raises ValueError (an answer of the 4xx kind when served) that names row and column."""
        import pandas as pd
        import torch

        from fusetune.backbones.backbone import Frontier

        try:
            samples = self._decoded(pd.DataFrame(model_input))
        except FusetuneError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from None
        with torch.no_grad():
            streams = self.model.backbone.prepare(samples)
            outputs = self.model(streams, Frontier(dict.fromkeys(streams, 0)))
        return pd.DataFrame(self.model.task.decode(outputs))

    def _decoded(self, frame: Any) -> dict[str, list[Any]]:

        known = list(self.data.modalities)
        unknown = [column for column in frame.columns if column not in known]
        if unknown or not len(frame):
            raise FusetuneError(f"request: unknown columns {unknown} or no rows; expected rows of {', '.join(known)}.")
        samples = {}
        for name, modality in self.data.modalities.items():
            cells = frame[name].tolist() if name in frame.columns else [None] * len(frame)
            samples[name] = [
                None if _absent(cell) else _sample(modality, cell, row, f"row {row}, column '{name}'")
                for row, cell in enumerate(cells)
            ]
        for row in range(len(frame)):
            if all(column[row] is None for column in samples.values()):
                raise FusetuneError(f"row {row}: no modality is given; expected some of {', '.join(known)}.")
        return samples


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _sample(modality: Any, cell: Any, row: int, where: str) -> Any:
    from fusetune.manifest.decoders import decode

    return decode(modality.kind, _received(modality.kind, cell, row), where, modality.frames)


def _received(kind: str, cell: Any, row: int) -> Any:
    """A cell as the manifest would hold it: base64 text becomes bytes, arrays become lists."""
    if kind in ("audio", "video"):
        return _bytes(cell, row)
    if kind != "image":
        return cell.tolist() if hasattr(cell, "tolist") else cell
    cells = cell.tolist() if hasattr(cell, "tolist") else cell
    return [_bytes(item, row) for item in (cells if isinstance(cells, list) else [cells])]


def _bytes(item: Any, row: int) -> bytes:
    if isinstance(item, str):
        try:
            item = base64.b64decode(item, validate=True)
        except binascii.Error:
            raise FusetuneError(f"row {row}: media are expected as base64 text, found other text.") from None
    if not isinstance(item, bytes):
        raise FusetuneError(
            f"row {row}: media are expected as base64 text or bytes, found {json.dumps(str(item))[:60]}."
        )
    if len(item) > MAX_BYTES:
        raise FusetuneError(f"row {row}: {len(item)} bytes of media; at most {MAX_BYTES} are taken.")
    return item


mlflow.models.set_model(AdapterModel())
