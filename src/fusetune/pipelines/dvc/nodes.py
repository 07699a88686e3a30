"""Node functions of `dvc`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.config import check

logger = logging.getLogger(__name__)
DEFAULT_ENV = "base"
HEAD = """# Written by `kedro run --pipelines dvc{env}` from the pipelines and the catalog; not by hand.
# `dvc repro{file}` runs what is stale{more}, `dvc push` and `dvc pull` carry data, features, base and adapters.
# Parameters come from conf/base{own} (`--env {name}`: DVC can't see conf/local). Stages depend on the whole source
# folder and every out persists, because Kedro's stamps know better: a stage that DVC finds stale runs only the nodes
# whose own code, parameters or inputs have changed.
"""


def write_stages(experiment: str, compare: Mapping[str, Any]) -> None:
    """Write dvc.yaml and conf/base/dvc.yaml, or conf/<env>/dvc.yaml of another experiment."""
    from fusetune.pipelines.conf_source import conf_env, project_root

    env, root = conf_env() or DEFAULT_ENV, project_root()
    env = DEFAULT_ENV if env == "local" else env
    for file, text in stages_texts(env, root, sorted(compare.get("methods") or {})).items():
        (root / file).write_text(text)
        where = "" if file == "dvc.yaml" else f" {file}"
        logger.info("%s: written for '%s'. `dvc repro%s` runs what is stale", file, experiment, where)


def stages_texts(env: str, root: Path, compared: list[str]) -> dict[str, str]:
    """What the files say, by their paths.

    Of the default experiment dvc.yaml has what leads to its main method, and conf/base/dvc.yaml the rest: a plain `dvc
    repro` is done in minutes. Those of other experiments hold all of it.

    Args:
        compared: methods of the comparison; those of another experiment than the default one that are trained one by
            one. Of the default experiment all are that it has a place for.
    """
    import yaml

    from fusetune.pipeline_registry import DEFAULT, register_pipelines
    from fusetune.pipelines.conf_source import method_names
    from fusetune.pipelines.dvc.stages import CHAIN, LONG, Stages
    from fusetune.pipelines.session import FusetuneSession

    with FusetuneSession.create(project_path=root, env=env) as session:
        catalog = session.load_context().catalog  # type: ignore[attr-defined]
        conf, files = root / "conf", dict[str, str]()
        for folder in dict.fromkeys((DEFAULT_ENV, env)):
            for found in sorted((conf / folder).rglob("*.yml")):
                if found.name.startswith("parameters") or found.parent.name == "methods":
                    files |= dict.fromkeys(yaml.safe_load(found.read_text()) or {}, found.relative_to(root).as_posix())
        parameters = catalog.load("parameters")
        made = Stages(catalog, register_pipelines(), env, root.resolve(), files, _raw(parameters))
        if env != DEFAULT_ENV:
            _check_own(catalog, root, env)
    known = method_names(conf, env)
    methods = (
        [m for m in known if _fits_default(conf, m)] if env == DEFAULT_ENV else [m for m in compared if m in known]
    )
    own = f"conf/{env}/dvc.yaml"
    if env == DEFAULT_ENV:
        main = [name for name in CHAIN if name not in LONG]
        of_files = {
            "dvc.yaml": made.plain([DEFAULT], main),
            own: made.plain([m for m in methods if m != DEFAULT], LONG),
        }
    else:
        of_files = {own: made.plain(methods, [name for name in CHAIN if name != "estimate"])}
    texts = {}
    for file, stages in of_files.items():
        if file != "dvc.yaml":
            stages = {name: {"wdir": "../..", **stage} for name, stage in stages.items()}
        head = HEAD.format(
            env="" if env == DEFAULT_ENV else f" --env {env}",
            file="" if file == "dvc.yaml" else f" {file}",
            more=f"; comparison and other methods: `dvc repro {own}:compare`" if file == "dvc.yaml" else "",
            own="" if env == DEFAULT_ENV else f" and conf/{env}",
            name=env,
        )
        texts[file] = head + yaml.safe_dump({"stages": stages}, sort_keys=False, width=120, allow_unicode=True)
    return texts


def _raw(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """Files that the reader reads, and folders of media, where they are told."""
    from fusetune.manifest.readers import readers

    ingest, modalities = parameters["ingest"], parameters["data"]["modalities"].values()
    sources = readers.companion(ingest["reader"], "sources")
    found = {"ingest": list(sources(ingest.get("settings") or {})) if sources else []}
    return found | {"validate": [m["root"] for m in modalities if m.get("root", ".") != "."]}


def _check_own(catalog: Any, root: Path, env: str) -> None:
    """DVC gives every folder one stage: what experiments share can't be an out of two of them."""
    import yaml

    shared = yaml.safe_load((root / "conf" / DEFAULT_ENV / "globals.yml").read_text())
    for name, key in (("feature_store", "store"), ("bases", "bases")):
        path = Path(catalog.get(name).path).resolve()
        check(
            path != (root / shared[key]).resolve(),
            f"dvc: '{env}' shares {shared[key]} with the other experiments, and DVC wants it in one stage alone. Put "
            f"`{key}: {shared[key]}_{env}` (or another folder) into conf/{env}/globals.yml.",
        )


def _fits_default(conf: Path, method: str) -> bool:
    """Whether the default experiment has a place for a method: no trunk, no second task, no adapter trained before."""
    import yaml

    placements = yaml.safe_load((conf / DEFAULT_ENV / "methods" / f"{method}.yml").read_text())[method]["placements"]
    return not any(p["where"] == "trunk" or p.get("task") or "trained" in str(p.get("config")) for p in placements)
