"""The registered model: an MLflow pyfunc from code. MLflow runs this file to load a model; nothing is pickled.

Requests are rows with one column a modality: text as text, a picture, a sound or a video as base64 text (or bytes),
several pictures as a list of them, a sequence as a list of lists, a vector as a list. A modality may be left out.
`params: {"adapter": "fusetune-family@champion"}` has another registered adapter of the same base answer; where answers
are words, `{"beams": 4}` and the like say how they are looked for (`tasks.decoding.Decoding`).
"""

import base64
import binascii
import json
import os
import time
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from fusetune.errors import FusetuneError

BASE_VARIABLE, BYTES_VARIABLE = "FUSETUNE_BASE", "FUSETUNE_BANK_BYTES"
OWN = "default"  # the adapter that was registered with this model


def registered_version(reference: str) -> str:
    """``fusetune-vqa/3`` of a reference to a registered adapter, such as ``fusetune-vqa@champion``.

    Raises:
        FusetuneError: no reference, or nobody has that alias.
    """
    address = reference.removeprefix("models:/")
    name, _, alias = address.partition("@")
    version = ""
    if not alias:
        name, _, version = address.rpartition("/")
    if not name or not (alias or version.isdigit()):
        raise FusetuneError(f"adapter '{reference}': expected NAME@ALIAS or NAME/VERSION of a registered model.")
    try:
        return f"{name}/{version or mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}"
    except MlflowException as error:
        raise FusetuneError(f"adapter '{reference}': {str(error).splitlines()[0]}") from None


def registered_folder(version: str) -> Path:
    """The adapter's folder of ``fusetune-vqa/3``, downloaded where it isn't local; raises FusetuneError without one."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"models:/{version}/artifacts/adapter"))
    except (MlflowException, OSError) as error:
        raise FusetuneError(f"adapter '{version}': {str(error).splitlines()[0]}") from None


class TooLargeAnswer(MlflowException):
    """The answer to a request that asks for more than its budget."""

    def get_http_status_code(self) -> int:
        return 413


class AdapterModel(PythonModel):
    """A bank with one adapter in it from the beginning; others of the registry come in when they are asked for."""

    def load_context(self, context: Any) -> None:
        from fusetune.bank.bank import DEFAULT_BYTES, Bank
        from fusetune.bank.budget import RequestLimits
        from fusetune.config import build
        from fusetune.device import pick_device

        base = os.environ.get(BASE_VARIABLE) or context.model_config["base"]
        self.bank = Bank(base, int(os.environ.get(BYTES_VARIABLE, DEFAULT_BYTES)), pick_device("auto"))
        self.bank.load(OWN, Path(context.artifacts["adapter"]))
        self.limits = build(RequestLimits, context.model_config.get("limits"), "limits")

    def predict(self, context, model_input, params=None):  # MLflow would read type hints as a schema
        """The task's decoded columns; raises an answer of the 4xx kind that names row and column."""
        import pandas as pd

        from fusetune.bank.budget import TooLarge

        try:
            asked = {name: value for name, value in (params or {}).items() if value is not None}
            name = self._named(asked.pop("adapter", "") or OWN)
            modalities = self.bank.data(name).modalities
            cells = _cells(_frame(model_input), modalities, self.limits)
            rows, outputs, begun = len(next(iter(cells.values()))), [], time.monotonic()
            extents: dict[str, list[Any]] = {}
            for start in range(0, rows, self.limits.slice_rows):
                if time.monotonic() - begun > self.limits.seconds:
                    raise TooLarge(
                        f"request: {start} of {rows} rows were answered in {self.limits.seconds} s, all that a request "
                        "may take. Send fewer, ask for fewer tokens, or raise serve.seconds."
                    )
                stop = min(rows, start + self.limits.slice_rows)
                samples = _decoded(cells, modalities, start, stop)
                outputs += self.bank.outputs([name] * (stop - start), samples, asked, start)
                for modality, found in self.bank.extents(name, samples).items():
                    extents.setdefault(modality, []).extend(found)
            return pd.DataFrame(self.bank.decoded(name, outputs, extents))
        except TooLarge as error:
            raise TooLargeAnswer(str(error)) from None
        except FusetuneError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _named(self, reference: str) -> str:
        """The name in the bank, of an adapter that is loaded if it isn't there yet."""
        if reference == OWN:
            return OWN
        name = registered_version(reference)
        if name not in self.bank.names():
            self.bank.load(name, registered_folder(name))
        return name


def _frame(model_input: Any) -> Any:
    """Rows as they came: a DataFrame, a list of rows, or columns of one length."""
    import pandas as pd

    if isinstance(model_input, dict):
        model_input = {name: c.tolist() if hasattr(c, "tolist") else c for name, c in model_input.items()}
        lengths = {len(c) if isinstance(c, list) else None for c in model_input.values()}
        if len(lengths) != 1 or None in lengths:  # pandas would repeat the shorter ones
            raise FusetuneError("request: columns are expected as lists of one length, or rows as dataframe_records.")
    try:
        return pd.DataFrame(model_input)
    except (ValueError, TypeError) as error:
        raise FusetuneError(f"request: expected rows with one column a modality ({error}).") from None


def _cells(frame: Any, modalities: Any, limits: Any) -> dict[str, list[Any]]:
    """By modality, each row's cell as it will be decoded, None for none; all of them within the budget of a request."""
    from fusetune.bank.budget import Budget, TooLarge

    known = list(modalities)
    unknown = [column for column in frame.columns if column not in known]
    if len(frame) > limits.rows:
        raise TooLarge(f"request: {len(frame)} rows; at most {limits.rows} are taken. Send them in several requests.")
    if unknown or not len(frame):
        raise FusetuneError(
            f"request: {len(frame)} rows, unknown columns {unknown}; expected 1 to {limits.rows} rows of "
            f"{', '.join(known)}."
        )
    budget, cells = Budget(limits), {}
    for name, modality in modalities.items():
        found = frame[name].tolist() if name in frame.columns else [modality.constant] * len(frame)
        cells[name] = [None if _absent(cell) else _sent(modality, cell, _at(row, name), limits.bytes)
                       for row, cell in enumerate(found)]  # fmt: skip
        for row, cell in enumerate(cells[name]):
            if cell is not None:
                budget.take_cell(modality, cell, _at(row, name))
    own = [column for name, column in cells.items() if modalities[name].constant is None]
    empty = next((row for row in range(len(frame)) if all(column[row] is None for column in own)), None)
    if empty is not None:
        raise FusetuneError(f"row {empty}: no modality is given; expected some of {', '.join(known)}.")
    return cells


def _decoded(cells: Any, modalities: Any, start: int, stop: int) -> dict[str, list[Any]]:
    from fusetune.manifest.decoders import decoded

    return {
        name: [None if cells[name][row] is None else decoded(modality, cells[name][row], _at(row, name))
               for row in range(start, stop)]
        for name, modality in modalities.items()
    }  # fmt: skip


def _at(row: int, name: str) -> str:
    return f"row {row}, column '{name}'"


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _sent(modality: Any, cell: Any, where: str, most: int) -> Any:
    """A cell as it came, media as bytes."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if modality.kind == "image":
        cell = [_bytes(item, where, most) for item in (cell if isinstance(cell, list) else [cell])]
        if not cell:
            raise FusetuneError(f"{where}: an empty list of pictures; leave the column out instead.")
    elif modality.kind in ("audio", "video"):
        cell = _bytes(cell, where, most)
    elif modality.kind != "text" and not isinstance(cell, list):
        raise FusetuneError(f"{where}: expected a list of floats, found {type(cell).__name__}.")
    return cell


def _bytes(item: Any, where: str, most: int) -> bytes:
    from fusetune.bank.budget import TooLarge

    if isinstance(item, str):
        if len(item) > most * 4 // 3 + 4:
            raise TooLarge(f"{where}: {len(item) * 3 // 4:,} bytes of media; at most {most:,} are taken.")
        try:
            item = base64.b64decode(item, validate=True)
        except (binascii.Error, ValueError):
            raise FusetuneError(f"{where}: media are expected as base64 text, found other text.") from None
    if not isinstance(item, bytes):
        raise FusetuneError(f"{where}: media are expected as base64 text or bytes, found {json.dumps(str(item))[:60]}.")
    if len(item) > most:
        raise TooLarge(f"{where}: {len(item):,} bytes of media; at most {most:,} are taken.")
    return item


mlflow.models.set_model(AdapterModel())
