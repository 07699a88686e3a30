"""Main memory that rows take, whatever is in them: of a manifest, of the store, of a whole run.

pytest -m benchmark -s tests/benchmarks/test_memory.py          # SIZES=100000,1000000,10000000 in the environment
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measuring import show

from fusetune.backbones.backbone import Frontier
from fusetune.features.index import Features
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.keys import Keys

pytestmark = pytest.mark.benchmark
SIZES = [int(size) for size in os.environ.get("SIZES", "100000,1000000").split(",")]
WIDTH, SHARD, BATCHES = 16, 8192, 300

READER = """
import json, sys, time
from pathlib import Path
import torch
from fusetune.features import dataset, orders
from fusetune.features.index import Features

def memory():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) / 1e3 for name in ("VmHWM", "RssAnon")}

root, before, began = Path(sys.argv[1]), memory(), time.perf_counter()
dataset.free_memory = lambda _: 0  # nothing fits: all is read from the map
features = dataset.FeatureSet(Features.load(root / "features.arrow"), root, torch.device("cpu"))
seconds, generator = time.perf_counter() - began, torch.Generator().manual_seed(0)
order = orders.batches(len(features), 256, generator, blocks=features.blocks())
for number, _ in enumerate(features.batches(order)):
    if number == int(sys.argv[2]):
        break
after = memory()
peak, own = (after[name] - before[name] for name in ("VmHWM", "RssAnon"))
print(json.dumps({"seconds": seconds, "peak": peak, "own": own}))
"""


def test_rows_of_a_store_that_no_memory_holds(tmp_path):
    table = []
    for size in SIZES:
        folder = tmp_path / str(size)
        entry, keys = Entry.of(Store(folder), "left"), []
        for start in range(0, size, SHARD):
            count = min(SHARD, size - start)
            some = Keys.of(hashlib.sha256(b"%d" % row).hexdigest() for row in range(start, start + count))
            entry.write(some, torch.zeros(count, WIDTH), torch.ones(count, dtype=torch.long), "float16")
            keys.append(some)
        Features(Frontier({"left": 1}), {"left": "left"}, {"left": Keys.joined(keys)}).save(folder / "features.arrow")
        done = subprocess.run(
            [sys.executable, "-c", READER, str(folder), str(BATCHES)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        table.append(
            [f"{size:,}", f"{found['seconds']:.1f}", f"{found['peak']:.0f}", f"{found['own']:.0f}",
             f"{found['own'] * 1e6 / size:.0f}"]
        )  # fmt: skip
    show(f"rows of {WIDTH} float16", ["rows", "s to open", "MB, peak", "MB, own at the end", "bytes a row"], table)
    assert len(table) == len(SIZES)


@pytest.mark.parametrize("what", ["manifest", "run"])
def test_rows_from_a_table_to_an_adapter(what, tmp_path):
    found: dict[str, list[str]] = {}
    for size in SIZES:
        script = Path(__file__).with_name("rows_in_memory.py")
        arguments = [sys.executable, str(script), what, str(tmp_path / str(size)), str(size)]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
        for phase, seconds, peak in json.loads(done.stdout.splitlines()[-1]):
            found.setdefault(phase, []).append(f"{seconds:.1f} s, {peak:.0f} MB")
        shutil.rmtree(tmp_path / str(size))
    show(
        f"{what}: own memory at the peak",
        ["", *(f"{size:,} rows" for size in SIZES)],
        [[n, *v] for n, v in found.items()],
    )
    assert found
