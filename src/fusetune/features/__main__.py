"""See to the feature store.

python -m fusetune.features sizes            # per entry
python -m fusetune.features verify --repair  # checksums of every shard; damaged ones go, and are made anew later
python -m fusetune.features gc --delete      # shards that no features.arrow names
"""

import argparse
import sys
from pathlib import Path

from fusetune.errors import FusetuneError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 for damage found and left there."""
    parser = argparse.ArgumentParser(prog="python -m fusetune.features", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["sizes", "verify", "gc"])
    parser.add_argument("--store", default="data/04_feature/store", help="folder or URL")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where features.arrow files are looked for")
    parser.add_argument("--repair", action="store_true", help="verify: remove damaged shards")
    parser.add_argument("--delete", action="store_true", help="gc: really delete")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except FusetuneError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from fusetune.features.shards import references
    from fusetune.features.storage import Store
    from fusetune.features.upkeep import collect_garbage, sizes, verify

    store = Store(options.store)
    if not store.entries():
        raise FusetuneError(f"--store {store}: there is no entry. Run `kedro run --pipelines cache_features` first.")
    if options.command == "verify":
        found = list(verify(store, options.repair))
        print("\n".join(found) or f"{store}: every byte is as it was written")
        if found and options.repair:
            print(
                f"removed {len(found)} shards; `kedro run --pipelines cache_features` makes them anew, and nothing else"
            )
        return 1 if found and not options.repair else 0
    indices = sorted(options.data.rglob("features.arrow"))
    named = references(indices)
    if options.command == "sizes":
        for size in sizes(store, named):
            print(
                f"{size.bytes / 1e6:10.1f} MB  {size.rows:8d} rows, {size.referenced} in use  {size.shards:5d} shards"
                f"  {size.name}"
            )
        return 0
    old = [file for file in sorted(options.data.rglob("features.json")) if not file.with_suffix(".arrow").exists()]
    if old:
        raise FusetuneError(
            f"{old[0]}: an index of an older fusetune, whose rows nothing names now. Run `cache_features`, "
            "which writes it anew and computes nothing, or delete it; nothing was deleted."
        )
    if not indices:
        raise FusetuneError(f"--data {options.data}: no features.arrow below it, so everything would go.")
    count, size_ = collect_garbage(store, named, options.delete)
    print(f"{count} shards, {size_ / 1e6:.1f} MB {'deleted' if options.delete else 'could go (add --delete)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
