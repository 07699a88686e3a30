"""Adapters that somebody has crafted: refused in a sentence, before they cost memory, time or the bank's lock."""

import json
import subprocess
import sys
import threading
import time

import pytest
from artifacts import made

from conftest import WANDER
from fusetune.bank.artifact import CONFIG, Artifact, skeleton
from fusetune.bank.bank import Bank
from fusetune.config import digest
from fusetune.errors import FusetuneError
from fusetune.training.data import load_backbone


@pytest.fixture
def crafted(toy):
    """Edit the config of a sound adapter, and sign it again."""
    folder = made(toy, "sound", WANDER)

    def craft(edit):
        config = json.loads((folder / CONFIG).read_text())
        config.pop("config_sha256")
        edit(config)
        (folder / CONFIG).write_text(json.dumps({**config, "config_sha256": digest(config)}))
        return folder

    return craft


def placement(config):
    return config["plan"]["placements"][0]


LOAD = """
import resource, sys, time
from fusetune.bank.bank import Bank
from fusetune.errors import FusetuneError
bank = Bank(sys.argv[1])
bank.load("sound", sys.argv[2])
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    bank.load("big", sys.argv[3])
except FusetuneError as error:
    print(error)
print(int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), time.perf_counter() - begun)
"""


@pytest.mark.parametrize(
    ("size", "said"), [(400_000, "placements.0.config.rank is 400,000"), (900, "tensor 'junction.0.")]
)
def test_a_size_that_the_file_does_not_hold_costs_nothing(toy, crafted, tmp_path, size, said):
    sound = made(toy, "other", WANDER, seed=1)
    folder = crafted(lambda config: placement(config)["config"].update(rank=size))
    command = [sys.executable, "-c", LOAD, str(toy.base), str(sound), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    *lines, last = done.stdout.strip().splitlines()
    assert said in "\n".join(lines), done.stdout + done.stderr
    kilobytes, seconds = map(float, last.split())
    assert kilobytes < 100_000 and seconds < 10


def stack_of(config, folder):
    config["plan"]["placements"].insert(
        0, {"where": "junction", "adapter": "stack", "config": {"members": [{"trained": folder}]}}
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: stack_of(c, "/etc/secret"), "it names the local folder '/etc/secret'"),
        (lambda c: c["plan"].update(orthogonal={"to": ["/etc"], "weight": 1.0}), "it names the local folder '/etc'"),
        (lambda c: placement(c)["config"].update(pretrained="/root"), "it names the local folder '/root'"),
        (lambda c: c.pop("task_state"), "'task_state' is expected to be settings by name, found 'None'"),
        (lambda c: c["task_state"].update(labels=5), "no adapter can be made of it (TypeError"),
        (lambda c: c["task_state"].pop("labels"), "no adapter can be made of it (KeyError"),
        (lambda c: c["streams"].update(left={"width": -1, "max_tokens": 3}), "expected sizes of at least 1, found -1"),
        (lambda c: c["streams"].update(left=7), "expected a mapping of settings, found 7"),
        (lambda c: c["streams"].pop("left"), "belongs to no part of the plan"),
        (lambda c: [s.update(max_tokens=10**9) for s in c["streams"].values()], "tensor 'junction.0."),
        (lambda c: c.update(plan=[1]), "'plan' is expected to be settings by name"),
        (lambda c: c["plan"].update(placements=3), "expected a list, found 3"),
        (lambda c: c.update(frontier={"towers": 1}), "expected a mapping, found 1"),
        (lambda c: c["data"].update(modalities={"left": {"kind": "smell"}}), "expected one of image, text"),
        (lambda c: c["data"]["task"].update(name="mischief"), "tasks: 'mischief' is unknown"),
        (lambda c: c.update(method=None), "'method' is expected to be text"),
    ],
)
def test_nonsense_is_a_sentence_and_the_bank_goes_on(toy, crafted, edit, said):
    bank = Bank(toy.base)
    bank.load("sound", made(toy, "kept", WANDER, seed=2))
    columns = {m: toy.experiment().source.decoded(m, [0, 1]) for m in ("left", "right")}
    before = bank.answers(["sound"] * 2, columns)
    folder = crafted(edit)
    with pytest.raises(FusetuneError) as raised:
        bank.load("bad", folder)
    assert said in str(raised.value), raised.value
    assert bank.names() == ["sound"] and bank.answers(["sound"] * 2, columns) == before


def test_requests_are_answered_while_an_adapter_is_looked_at(toy, monkeypatch):
    bank = Bank(toy.base)
    bank.load("sound", made(toy, "kept", WANDER, seed=2))
    columns = {m: toy.experiment().source.decoded(m, [0]) for m in ("left", "right")}
    looking, fits = threading.Event(), Artifact.fits

    def slow(self, bones):
        looking.set()
        time.sleep(2)
        fits(self, bones)

    monkeypatch.setattr(Artifact, "fits", slow)
    thread = threading.Thread(target=bank.load, args=("late", made(toy, "late", WANDER, seed=3)))
    thread.start()
    looking.wait()
    begun = time.perf_counter()
    bank.answers(["sound"], columns)
    assert time.perf_counter() - begun < 1.5, "answered before the other was looked at to the end"
    thread.join()
    assert bank.names() == ["sound", "late"]


def test_a_skeleton_holds_no_values_and_leaves_the_backbone_alone(toy):
    backbone = load_backbone(toy.base, toy.data)
    before = backbone.fingerprint()
    bones = skeleton(backbone)
    assert all(tensor.is_meta for tensor in [*bones.parameters(), *bones.buffers()])
    assert {n for n, _ in bones.named_parameters()} == {n for n, _ in backbone.named_parameters()}
    assert backbone.fingerprint() == before and not next(backbone.parameters()).is_meta
