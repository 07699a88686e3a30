"""The start of every head, found once for the same rows, targets and base; see `tasks.linear_models`.

Where a dual encoder is asked about the labels (`tasks.prompted_head`), what it makes of their names, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from fusetune import on_disk
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.prompting import directions
from fusetune.backbones.tower import fingerprint
from fusetune.config import digest
from fusetune.device import pick_device
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import Progress, extract
from fusetune.features.index import CacheSettings
from fusetune.features.orders import batches
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.tasks.joined_head import LinearStart
from fusetune.tasks.linear_models import fit_start
from fusetune.tasks.linear_space import fit_space
from fusetune.tasks.task import LinearPart, Task
from fusetune.training.data import TaskRows

BATCH = 1024  # rows that are pooled at once
ENTRY = "starts"  # folder in the store
VERSION = 2  # of what is found; a change makes all anew


def find_starts(
    rows: TaskRows, backbone: Backbone, store: Store | Path | str, cache: CacheSettings, progress: Progress
) -> dict[str, LinearStart]:
    """By task (`""` where there is one), from features of the bare backbone's top, which the store keeps.

    A start is found once for the same rows, targets and base; {} for a task whose head is no linear function of the
    streams.
    """
    parts = rows.task.linear_parts()
    if not parts:
        return {}
    store, train = Store(store), rows.rows["train"]
    plain = {name: replace(modality, augment={}) for name, modality in rows.data.modalities.items()}
    source = Source(on_disk.rows_of(rows.table, train), plain)
    targets, groups = rows.targets(train), on_disk.Cells(source.table["group_id"])
    device = pick_device(cache.device)
    top = backbone.full_depth(list(plain))
    features = extract(backbone, source, top, store, replace(cache, views=0, part="1/1"), progress, device)
    of_rows = [fingerprint({"targets": targets}), groups.digest()]
    key = digest([VERSION, features.entries, features.fingerprints(), of_rows, rows.task.state()])

    def fitted() -> dict[str, Tensor]:
        pooled = _pooled(FeatureSet(features, store, torch.device("cpu")), len(train))
        starts = {part: _fitted(linear, pooled, targets, groups) for part, linear in parts.items()}
        return {f"{part}/{k}": v for part, start in starts.items() for k, v in start.tensors().items()}

    return _read(_kept(store, key, fitted))


def find_directions(task: Task, backbone: Backbone, store: Store | Path | str, cache: CacheSettings) -> Tensor:
    """Of each label's prompts in the common space of the tower that is asked, (labels, width); the store keeps them."""
    prompts, texts = task.prompts, task.prompt_texts()
    key = digest([VERSION, backbone.tower(prompts.modality).space().identity, texts])

    def asked() -> dict[str, Tensor]:
        return {"labels": directions(backbone, prompts.modality, texts, pick_device(cache.device))}

    return _kept(Store(store), key, asked)["labels"]


def _kept(store: Store, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name out of the store; made and put there if nobody has before."""
    folder, name = store.folder(ENTRY), f"{key[:32]}.safetensors"
    if name in folder.names():
        return load(folder.read([name])[0])
    made = {key: tensor.contiguous() for key, tensor in make().items()}
    half = folder.scratch(name)
    save_file(made, half)
    folder.commit(half, name)
    return made


def _fitted(part: LinearPart, pooled: Mapping[str, Tensor], targets: Tensor, groups: Sequence[str]) -> LinearStart:
    if part.pairs:
        two = {name: pooled[name] for name in part.task.content_modalities()}
        return fit_space(two, targets, part.task.loss, part.outputs, groups)
    return fit_start(pooled, part.select(targets), part.task.loss, part.outputs, groups)


def _read(tensors: Mapping[str, Tensor]) -> dict[str, LinearStart]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return {part: LinearStart.from_tensors(own) for part, own in parts.items()}


def _pooled(features: FeatureSet, count: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, streams in features.batches(batches(count, BATCH)):
        for name, tokens in streams.items():
            pooled = tokens.pooled().float()
            if name not in found:
                found[name] = torch.from_numpy(on_disk.array((count, pooled.shape[1]), np.float32))
            found[name][index] = pooled
    return found
