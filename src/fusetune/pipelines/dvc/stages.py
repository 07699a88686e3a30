"""What a stage of DVC depends on and makes: read off the Kedro pipelines and the catalog, so that the two agree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.datasets import HandleDataset
from fusetune.pipelines.runner import stamp_path

SIDE_EFFECT = "mlflow"  # nodes that write into this machine's MLflow: nothing that a commit could hold
ITEM = "${item.method}"
# stage -> its pipelines, and the pipelines whose nodes earlier stages have run
CHAIN: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ingest": (("ingest",), ()),
    "validate": (("validate",), ("ingest",)),
    "pretrain": (("pretrain",), ("validate",)),
    "inputs": (("inputs",), ("validate", "pretrain")),
    "plan": (("plan",), ("inputs",)),
    "estimate": (("estimate",), ()),
    "cache_features": (("cache_features", "unimodal"), ("inputs",)),
    "compare": (("compare",), ("inputs", "cache_features", "unimodal")),
}
LONG = ("plan", "estimate", "compare")  # of the default experiment: what is asked for by name
TRAINED = ("inputs", "cache_features", "unimodal")  # before `train_<method>`
WRITERS = {
    "cache_features": "feature_store",
    "pretrain": "bases",
    "compare": "comparison_cells",
}  # handles that are outs
UNSEEN = ("checkpoints",)  # handles whose content is nobody's business


class Stages:
    """The stages of one experiment.

    Args:
        catalog: of the experiment.
        pipelines: by name.
        env: in which the commands run.
        root: of the project.
        files: of parameters by top-level key, relative to the root.
        raw: what a stage reads that no catalog knows, files and folders by its name.
    """

    def __init__(
        self,
        catalog: Any,
        pipelines: Mapping[str, Any],
        env: str,
        root: Path,
        files: Mapping[str, str],
        raw: Mapping[str, Sequence[str]],
    ) -> None:
        self.raw = raw
        self.catalog, self.pipelines, self.env, self.root, self.files = catalog, pipelines, env, root, files
        self.written = {self._path(catalog.get(name)) for name in WRITERS.values()}

    def plain(self, methods: Sequence[str], chain: Sequence[str] = tuple(CHAIN)) -> dict[str, Any]:
        """Stages as dvc.yaml has them.

        Args:
            methods: that are trained one by one, by `train@<method>`.
            chain: other stages, keys of `CHAIN`.
        """
        found = {}
        for name in chain:
            own, before = CHAIN[name]
            nodes = self._nodes(own, before)
            found[name] = self._stage(name, ",".join(own), nodes)
        by_folder: dict[str, list[str]] = {}
        for method in methods:
            by_folder.setdefault(str(Path(self.files[method]).parent), []).append(method)
        for folder, several in by_folder.items():
            name = "train" if len(by_folder) == 1 or folder.startswith("conf/base/") else "train_own"
            one = several[0]
            stage = self._stage(one, f"train_{one}", self._nodes((f"train_{one}",), TRAINED))
            found[name] = {"matrix": {"method": several}, **_with_item(stage, one)}
        return found

    def _nodes(self, names: Sequence[str], before: Sequence[str]) -> list[Any]:
        """Of these pipelines, the nodes that no stage before has."""
        own = sum((self.pipelines[name] for name in names), self.pipelines[names[0]])
        done = {node.name for name in before for node in self.pipelines[name].nodes}
        return [node for node in own.nodes if node.name not in done and SIDE_EFFECT not in node.tags]

    def _stage(self, name: str, pipelines: str, nodes: Sequence[Any]) -> dict[str, Any]:
        deps, outs, params = {"src/fusetune"}, set(), set()
        made = {output for node in nodes for output in node.outputs}
        for node in nodes:
            outs |= {self._path(self.catalog.get(output)) for output in node.outputs}
            if node.outputs:
                outs.add(self._relative(stamp_path(node, self.catalog)))
            for given in node.inputs:
                if given.startswith("params:"):
                    params.add(given.removeprefix("params:"))
                elif given not in made and given not in UNSEEN:
                    dataset = self.catalog.get(given)
                    own = isinstance(dataset, HandleDataset) and WRITERS.get(name) == given
                    (outs if own else deps).add(self._path(dataset))
        deps |= {self._raw(path) for path in self.raw.get(name, ())}
        deps -= self.written & outs
        told = {"cmd": f"kedro run --pipelines {pipelines} --env {self.env}", "deps": sorted(deps)}
        return told | {"params": self._params(params)} | _sorted_outs(outs)

    def _params(self, keys: set[str]) -> list[dict[str, list[str]]]:
        by_file: dict[str, list[str]] = {}
        for key in sorted(keys):
            check(key in self.files, f"dvc: no file of conf/base or conf/{self.env} has the parameter '{key}'.")
            by_file.setdefault(self.files[key], []).append(key)
        return [{file: by_file[file]} for file in sorted(by_file)]

    def _raw(self, path: str) -> str:
        whole = Path(self.root, path).resolve()
        return self._relative(whole) if whole.is_relative_to(self.root) else str(whole)

    def _path(self, dataset: Any) -> str:
        return self._relative(dataset.path)

    def _relative(self, path: Path) -> str:
        return Path(path).resolve().relative_to(self.root).as_posix()


def _sorted_outs(outs: set[str]) -> dict[str, list[Any]]:
    """Outs, metrics and plots; every out persists: the nodes' own stamps say what of it is stale."""
    found: dict[str, list[Any]] = {"outs": [], "metrics": [], "plots": []}
    for path in sorted(outs):
        if path.endswith("/metrics.json"):
            found["metrics"].append({path: {"cache": False, "persist": True}})
        elif path.endswith("/curve.csv"):
            shown = {"x": "epoch", "y": "val_metric"}
            found["plots"].append({path: {"cache": False, "persist": True, **shown}})
        elif path.endswith("/table.csv"):
            shown = {"x": "trainable_parameters", "y": "mean", "template": "scatter"}
            found["plots"].append({path: {"cache": False, "persist": True, **shown}})
        else:
            found["outs"].append({path: {"persist": True}})
    return {kind: rows for kind, rows in found.items() if rows}


def _with_item(value: Any, method: str) -> Any:
    """A stage of one method as that of any: its name, where it stands as a part of a path, of a pipeline, of a key."""
    if isinstance(value, Mapping):
        return {_with_item(key, method): _with_item(item, method) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_item(item, method) for item in value]
    if not isinstance(value, str):
        return value
    if value == method:
        return ITEM
    parts = value.replace(f"train_{method} ", f"train_{ITEM} ").split("/")
    return "/".join(
        ITEM + part[len(method) :] if part == method or part.startswith(f"{method}.") else part for part in parts
    )
