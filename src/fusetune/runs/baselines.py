"""What a user would get without us: the majority, a linear model on the raw inputs of each modality, their late fusion.

scikit-learn's models with their usual settings, once for a data set. They stand beside every result: a method that is
below one of them needs another base.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.aligned_towers import AlignedAudio, AlignedImage, AlignedSettings
from fusetune.manifest.schema import Modality
from fusetune.runs.segment_baselines import segment_numbers
from fusetune.training.data import TaskRows

MOST_ROWS = 10_000  # training rows; of more, these many, evenly spread
STEPS, STEPS_OF_SEGMENTS = 1000, 300  # of a logistic regression, at most; a sample has many segments
MOST_WORDS = 20_000  # n-grams of letters
MEASURES = {"image": AlignedImage, "video": AlignedImage, "audio": AlignedAudio}  # whose plain numbers are taken
MAJORITY, FUSION = "majority or mean", "their late fusion"
NAMES = {"text": "TF-IDF", "image": "pixels", "video": "pixels", "audio": "log-mel", "vector": "numbers",
         "sequence": "mean and spread"}  # fmt: skip


def plain_baselines(rows: TaskRows) -> dict[str, float]:
    """The task's main metric on the test split, by what it is reached with; {} for a task that has no plain model."""
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    with threadpool_limits(1, "blas"):  # numpy and scipy bring a BLAS each, whose threads wait for one another
        return _plain(rows)


def _plain(rows: TaskRows) -> dict[str, float]:
    whole: Any = rows.task
    if several := getattr(whole, "tasks", None):
        own = {name: _scored(rows.of(one), one.per_sample) for name, one in several.items()}
        first = next(iter(own.values()))
        known = [name for name in first if all(name in scores for scores in own.values())]
        together = {n: whole.together({task: scores[n] for task, scores in own.items()}) for n in known}
        return {name: float(scores[whole.metric].mean()) for name, scores in together.items()}
    found = _scored(rows, whole.metrics)
    return {name: float(metrics[whole.metric]) for name, metrics in found.items()}


def _scored(rows: TaskRows, score: Callable[[Tensor, Tensor], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `score` says of outputs and targets of the test split, by what they are reached with."""
    task, kind = rows.task, rows.task.plain
    if kind is None:
        return {}
    train = rows.rows["train"]
    train = train[:: -(-len(train) // MOST_ROWS)]
    splits = [part.tolist() for part in (train, rows.rows["val"], rows.rows["test"])]
    targets = [rows.targets(split) for split in splits]
    if kind == "segments":  # each of them is a row of a classification
        kind, wanted, steps = "classes", [part.flatten() for part in targets], STEPS_OF_SEGMENTS
        numbers = segment_numbers(rows, splits, targets[0].shape[1])
        raw = {name: [part.reshape(-1, part.shape[-1]) for part in parts] for name, parts in numbers.items()}
    else:
        wanted, raw, steps = targets, {name: _raw(rows, name, splits) for name in rows.data.modalities}, STEPS

    def scored(outputs: Sequence[Any]) -> dict[str, Any]:
        val, test = (torch.from_numpy(np.asarray(part, np.float32)) for part in outputs)
        if wanted is not targets:
            val, test = (out.unflatten(0, part.shape) for out, part in zip((val, test), targets[1:], strict=True))
        task.settle(val, targets[1])
        return score(test, targets[2])

    if kind == "pairs":
        return {"ridge from raw to raw": scored(_pairs(rows, raw))}
    constant = _constant(kind, task, wanted[0])
    found = {MAJORITY: scored([np.repeat(constant, len(part), 0) for part in wanted[1:]])}
    outputs = {}
    for name, parts in raw.items():
        outputs[name] = _linear(kind, task, parts, wanted[0], steps)
        found[f"{NAMES[rows.data.modalities[name].kind]} of {name}"] = scored(outputs[name])
    if len(outputs) > 1:
        found[FUSION] = scored([_fused(kind, parts) for parts in zip(*outputs.values(), strict=True)])
    return found


def metric_key(name: str) -> str:
    """What a baseline is called where names have no blanks."""
    return name.replace(" ", "_").replace("-", "_").lower()


def best_of(plain: Mapping[str, float]) -> tuple[str, float] | None:
    """The strongest plain baseline."""
    return max(plain.items(), key=lambda item: item[1], default=None)


def _linear(kind: str, task: Any, parts: Sequence[Any], targets: Tensor, steps: int) -> list[np.ndarray]:
    """Outputs for validation and test, as the task's head would give them."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = [] if hasattr(parts[0], "tocsr") else [StandardScaler()]
    wanted, more = targets.numpy(), parts[1:]
    if kind == "classes":
        model = make_pipeline(*scaler, LogisticRegression(max_iter=steps)).fit(parts[0], wanted)
        outputs = []
        for part in more:
            logs = np.full((part.shape[0], len(task.labels)), np.log(1e-9))
            logs[:, model.classes_] = np.log(model.predict_proba(part) + 1e-9)
            outputs.append(logs)
        return outputs
    if kind == "labels":
        several = OneVsRestClassifier(LogisticRegression(max_iter=steps, class_weight="balanced"))
        model = make_pipeline(*scaler, several).fit(parts[0], wanted.astype(int))
        return [model.decision_function(part) for part in more]
    model = make_pipeline(*scaler, Ridge()).fit(parts[0], task.standardised(targets).numpy())
    return [model.predict(part).reshape(part.shape[0], -1) for part in more]


def _fused(kind: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    if kind == "classes":
        return np.log(np.mean([np.exp(part) for part in parts], 0))
    return np.mean(parts, 0)


def _constant(kind: str, task: Any, targets: Tensor) -> np.ndarray:
    """Outputs (1, ...) that say the same of every row."""
    if kind == "classes":
        counts = torch.bincount(targets, minlength=len(task.labels)).double()
        return (counts / counts.sum() + 1e-9).log().numpy()[None]
    if kind == "labels":
        return targets.double().mean(0).clamp(1e-6, 1 - 1e-6).logit().numpy()[None]
    return task.standardised(targets).double().mean(0, keepdim=True).numpy()


def _pairs(rows: TaskRows, raw: Mapping[str, Sequence[Any]]) -> list[np.ndarray]:
    """Query and target of each row in the target's raw space: the query's ridge regression, and the target itself."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler, normalize

    config = rows.task.config
    query, target = (
        [np.hstack(several) for several in zip(*([_dense(p) for p in raw[name]] for name in names), strict=True)]
        for names in config.sides.values()
    )
    model = make_pipeline(StandardScaler(), Ridge(alpha=100.0)).fit(query[0], target[0])
    return [
        np.stack([normalize(model.predict(ask)), normalize(there)], 1)
        for ask, there in zip(query[1:], target[1:], strict=True)
    ]


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else values


def _raw(rows: TaskRows, name: str, splits: Sequence[Sequence[int]]) -> list[Any]:
    """(rows, numbers) of each split; a missing one has the training rows' mean."""
    modality = rows.data.modalities[name]
    if modality.kind == "text":
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [[text or "" for text in rows.source.decoded(name, split)] for split in splits]
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=MOST_WORDS)
        return [words.fit_transform(texts[0]), *(words.transform(part) for part in texts[1:])]
    tower = MEASURES[modality.kind](AlignedSettings(1, segments=1, mlp=False)) if modality.kind in MEASURES else None
    numbers = [[_numbers(modality, tower, sample) for sample in rows.source.decoded(name, split)] for split in splits]
    present = [values for values in numbers[0] if values is not None]
    mean = np.mean(present, 0)
    return [np.stack([mean if values is None else values for values in part]) for part in numbers]


def _numbers(modality: Modality, tower: Any, sample: Any) -> np.ndarray | None:
    if sample is None:
        return None
    if modality.kind in ("image", "video"):
        return np.mean([tower.numbers([picture]).numpy() for picture in sample], 0)
    if modality.kind == "audio":
        return tower.numbers(sample).numpy()
    values = np.asarray(sample, np.float32).reshape(-1, np.asarray(sample).shape[-1])
    return values[0] if modality.kind == "vector" else np.concatenate([values.mean(0), values.std(0)])
