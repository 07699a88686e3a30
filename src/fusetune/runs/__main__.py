"""Train one method without Kedro, MLflow or DVC, from files that the pipelines made: for a bare GPU machine.

    python -m fusetune.runs --method wander --manifest data/03_primary/vqa/manifest.parquet \\
        --base data/06_models/vqa/base.json --store data/04_feature/store --conf conf/base --out /tmp/wander

Behind `torchrun --nproc_per_node N`, the N processes train it together.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusetune.errors import FusetuneError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fusetune.runs", description=__doc__.splitlines()[0])
    parser.add_argument("--method", required=True, help="a file of <conf>/methods")
    parser.add_argument("--conf", type=Path, default=Path("conf/base"), help="folder with the parameters")
    parser.add_argument("--env", help="an experiment beside --conf, e.g. avdigits: what its files say goes before")
    parser.add_argument("--manifest", type=Path, required=True, help="validated manifest, Parquet")
    parser.add_argument(
        "--base", type=Path, required=True, help="folder of the frozen base, or an experiment's reference to it"
    )
    parser.add_argument("--store", required=True, help="feature store, folder or URL; what is missing is added")
    parser.add_argument("--out", type=Path, required=True, help="folder for adapter, metrics and figures")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.batch_size=1024")
    try:
        run(parser.parse_args(arguments))
    except FusetuneError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Cache what is missing, train, test, write."""
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.features.index import CacheSettings
    from fusetune.on_disk import read_parquet
    from fusetune.plan.plan import Plan
    from fusetune.report.training_figures import training_figures
    from fusetune.runs.experiment import Experiment
    from fusetune.runs.ranks import take_part
    from fusetune.runs.run import train_and_test
    from fusetune.training.data import DataSettings, load_backbone
    from fusetune.training.distributed import joined
    from fusetune.training.epochs import Epoch, Reporter
    from fusetune.training.evaluation import EvaluationSettings
    from fusetune.training.settings import of_method

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    class Printer(Reporter):
        def stage(self, text: str) -> None:
            print(text, flush=True)

        def epoch(self, epoch: Epoch, best: bool) -> None:
            print(
                f"epoch {epoch.number}: loss {epoch.train_loss:.3f}, validation {epoch.val_metric:.3f}, "
                f"{epoch.samples_per_second:.0f} samples/s{' *' if best else ''}",
                flush=True,
            )

    layers = [options.conf, *([options.conf.parent / options.env] if options.env else [])]
    parameters = read_parameters(layers, options.set)
    if options.method not in parameters:
        where = " or ".join(f"{layer}/methods/{options.method}.yml" for layer in layers)
        raise FusetuneError(f"method '{options.method}': no {where}.")
    method, cache = parameters[options.method], build(CacheSettings, parameters["cache"], "cache")
    settings = of_method(parameters["train"], method, options.method)
    data = build(DataSettings, parameters["data"], "data")
    if not options.manifest.is_file():
        raise FusetuneError(f"--manifest {options.manifest}: no such file. Run `kedro run --pipelines validate` first.")
    experiment = Experiment(
        read_parquet(options.manifest),
        load_backbone(options.base, data),
        data,
        build(Plan, method, options.method),
        settings.seed,
        options.method,
    )

    def cached(done: int, total: int, written: int) -> None:
        if done == total:
            print(f"cached {done} of {total}", flush=True)

    checkpoints = options.out / "checkpoints"
    with joined(settings.devices) as group:
        device = pick_device(settings.device)
        if not group.rank:
            print(f"device {device}, {group.size} in all, frontier at {experiment.frontier}", flush=True)
        if group.size > 1:  # each its part of what is to be cached
            own = replace(cache, part=f"{group.rank + 1}/{group.size}")
            experiment.extract(options.store, own, cached, device)
            group.wait()
        experiment.begin(options.store, cache, cached)
        group.wait()
        features = experiment.extract(options.store, cache, cached, device)
        evaluation = build(EvaluationSettings, parameters["evaluate"], "evaluate")
        if group.rank:
            take_part(experiment, features, options.store, settings, evaluation, checkpoints, options.method, group)
            return
        result = train_and_test(
            experiment,
            features,
            options.store,
            settings,
            evaluation,
            checkpoints,
            Printer(),
            options.method,
            {},
            group=group,
        )
    result.artifact.save_pretrained(options.out / "adapter")
    training_figures(result).save_pretrained(options.out / "figures")
    (options.out / "metrics.json").write_text(json.dumps(result.metrics, indent=2) + "\n")
    print(result.sentence())


def read_parameters(layers: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """All parameter files of one folder of conf or several as one mapping; Kedro's interpolations stay as text.

    Args:
        layers: as in Kedro, a key of a later one replaces that of an earlier one as a whole.
        overrides: ``dotted.key=value``, for single values.
    """
    import yaml

    parameters: dict[str, Any] = {}
    for conf in layers:
        files = sorted(conf.glob("parameters*.yml")) + sorted(conf.glob("methods/*.yml"))
        if not files:
            raise FusetuneError(f"{conf}: no parameters*.yml in it.")
        for file in files:
            parameters |= yaml.safe_load(file.read_text()) or {}
    for override in overrides:
        path, found, value = override.partition("=")
        if not found:
            raise FusetuneError(f"--set {override}: expected KEY=VALUE, e.g. train.batch_size=1024.")
        *parents, last = path.split(".")
        place = parameters
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)
    return parameters


if __name__ == "__main__":
    sys.exit(main())
