"""One backbone, many adapters: each request is answered as by its own adapter alone."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from artifacts import alone, made, of_row, samples
from methods import GATE, METHODS, SMALL, placement

from fusetune.backbones.backbone import Backbone
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.errors import FusetuneError

TASK = {"name": "retrieval", "query": "left", "target": "right"}


def weights_of(bank):
    return {name: p.clone() for name, p in bank._whole.named_parameters()}


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS.keys())
def test_a_mixed_batch_gives_what_one_by_one_gives(toy, row):
    folders = {f"a{seed}": made(toy, f"a{seed}", *row.placements, seed=seed) for seed in (1, 2)}
    folders["wander"] = made(toy, "wander", SMALL, seed=3)
    folders["lora"] = made(toy, "lora", placement("towers", "lora", rank=3), seed=4)
    bank = Bank(toy.base)
    for name, folder in folders.items():
        bank.load(name, folder)
    before = weights_of(bank)
    columns = samples(toy, range(16))
    names = [list(folders)[i % 4] for i in (0, 1, 2, 3, 3, 1, 0, 2, 2, 2, 0, 0, 1, 3, 1, 0)]
    found = bank.outputs(names, columns)
    models = {name: Artifact.from_pretrained(folder).build(toy.base) for name, folder in folders.items()}
    for i, name in enumerate(names):
        torch.testing.assert_close(found[i], of_row(models[name], columns, i), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], of_row(models["a2"], columns, 0), atol=1e-3), "the adapters differ"
    after = weights_of(bank)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    again = bank.outputs(names, columns)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_thirty_two_adapters_of_all_kinds_answer_two_hundred_and_fifty_six_requests(toy):
    several = [m for m in METHODS.values() if m.placements]
    folders = [made(toy, f"m{i}", *several[i % len(several)].placements, seed=i) for i in range(32)]
    bank = Bank(toy.base)
    for i, folder in enumerate(folders):
        bank.load(f"m{i}", folder)
    columns = samples(toy, [i % 240 for i in range(256)])
    generator = torch.Generator().manual_seed(0)
    owners = torch.randint(32, (256,), generator=generator).tolist()
    found = bank.outputs([f"m{i}" for i in owners], columns)
    models = [Artifact.from_pretrained(folder).build(toy.base) for folder in folders]
    for row, owner in enumerate(owners):
        torch.testing.assert_close(found[row], of_row(models[owner], columns, row), rtol=1e-5, atol=1e-5)


def test_low_rank_adapters_go_through_the_backbone_once_and_together(toy, monkeypatch):
    bank = Bank(toy.base)
    for seed, adapter in enumerate(("lora", "vera", "adalora", "lora")):
        options = {"rank": 2, "initial_rank": 3} if adapter == "adalora" else {"rank": 2 + seed}
        bank.load(f"{adapter}{seed}", made(toy, f"{adapter}{seed}", placement("towers", adapter, **options), seed=seed))
    bank.load("wander", made(toy, "wander", SMALL))
    passes, columns = [], samples(toy, range(10))
    advance = Backbone.advance
    monkeypatch.setattr(Backbone, "advance", lambda self, s, a, b: passes.append(a) or advance(self, s, a, b))
    bank.outputs([name for name in bank.names() for _ in range(2)], columns)
    assert sum(start.towers["left"] == 0 for start in passes) == 1, "one pass from the ground for five adapters"


def test_unmixable_rows_and_bad_requests_are_named_and_the_bank_goes_on(toy):
    bank = Bank(toy.base)
    bank.load("pairs", made(toy, "pairs", task=TASK, use_trunk=False))
    bank.load("left", made(toy, "left", modalities={"left": toy.data.modalities["left"]}))
    columns = samples(toy, range(3))
    with pytest.raises(FusetuneError, match="request 0: adapter 'left' takes left, not 'right'"):
        bank.answers(["left", "pairs", "pairs"], columns)
    with pytest.raises(FusetuneError, match="'pairs': its task compares the rows of a request"):
        bank.answers(
            ["left", "pairs", "pairs"], {"left": [columns["left"][0]] * 3, "right": [None, *columns["right"][:2]]}
        )
    with pytest.raises(FusetuneError, match="adapter 'nobody' is not in the bank. It has pairs, left"):
        bank.answers(["nobody"], {"left": columns["left"][:1]})
    with pytest.raises(FusetuneError, match="request 1: no modality is given"):
        bank.answers(["left", "left"], {"left": [columns["left"][0], None]})
    assert len(bank.answers(["left", "left"], {"left": [columns["left"][0]] * 2})) == 2


def test_the_least_recently_used_leaves_and_comes_back(toy):
    folders = {str(i): made(toy, str(i), SMALL, seed=i) for i in range(3)}
    size = Artifact.from_pretrained(folders["0"]).bytes
    bank = Bank(toy.base, most_bytes=2 * size)
    columns = samples(toy, range(3))
    for name, folder in folders.items():
        bank.load(name, folder)
    assert bank.in_memory() == ["1", "2"] and bank.names() == ["0", "1", "2"] and bank.bytes == 2 * size
    first = bank.outputs(["0"] * 3, columns)
    assert bank.in_memory() == ["2", "0"]
    bank.unload("2")
    assert bank.in_memory() == ["0"] and bank.names() == ["0", "1"]
    torch.testing.assert_close(first[0], alone(toy, folders["0"], columns, 0), rtol=1e-5, atol=1e-5)
    with pytest.raises(FusetuneError, match="the bank holds at most 10"):
        Bank(toy.base, most_bytes=10).load("0", folders["0"])


def test_a_failed_load_leaves_the_bank_as_it_was(toy, tmp_path):
    bank = Bank(toy.base)
    bank.load("good", made(toy, "good", placement("towers", "lora", rank=2)))
    columns = samples(toy, range(3))
    before, modules = bank.outputs(["good"] * 3, columns), [type(m) for m in bank._whole.modules()]
    for number, kind in enumerate(("full_finetune", "lora", "prefix", "several at once")):
        other = Artifact.from_pretrained(made(toy, f"bad{number}", *METHODS[kind].placements))
        less = dict(list(other.tensors.items())[1:])
        replace(other, tensors=less).save_pretrained(tmp_path / "bad")
        with pytest.raises(FusetuneError, match="is missing"):
            bank.load("good", tmp_path / "bad")
        assert bank.names() == ["good"] and [type(m) for m in bank._whole.modules()] == modules
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in bank._whole.modules())
    after = bank.outputs(["good"] * 3, columns)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_threads_take_turns(toy):
    folders = {"lora": [placement("towers", "lora", rank=2)], "houlsby": METHODS["adapter, houlsby"].placements,
               "full": METHODS["full_finetune"].placements, "gate": [GATE]}  # fmt: skip
    made_folders = {name: made(toy, name, *p, seed=i) for i, (name, p) in enumerate(folders.items())}
    size = max(Artifact.from_pretrained(f).bytes for f in made_folders.values())
    bank = Bank(toy.base, most_bytes=size)  # so that loading goes on all the time
    for name, folder in made_folders.items():
        bank.load(name, folder)
    columns = samples(toy, range(3))
    expected = {name: torch.stack(bank.outputs([name] * 3, columns)) for name in folders}
    wrong, end = [], time.monotonic() + 4

    def ask(name):
        while time.monotonic() < end:
            if not torch.equal(torch.stack(bank.outputs([name] * 3, columns)), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tasks_one_after_another_leave_the_first_bitwise_as_it_was(toy, tmp_path):
    """Continual: A, then B, then C are trained on one backbone; A answers after C as it did before B."""
    from test_conformance import SETTINGS

    from fusetune.runs.experiment import Experiment
    from fusetune.training.epochs import Reporter
    from fusetune.training.loop import train

    columns = samples(toy, range(8))
    bank, backbone, answers = Bank(toy.base), Backbone.from_pretrained(toy.base), {}
    for number, kind in enumerate(("lora", "full_finetune", "several at once")):
        like = toy.experiment(*METHODS[kind].placements)
        experiment = Experiment(toy.table, backbone.part(["left", "right"]), toy.data, like.model.plan, number, kind)
        splits = toy.splits(experiment)
        train(experiment.model, splits["train"], splits["val"], SETTINGS, kind, tmp_path / kind, Reporter())
        experiment.model.fold()
        Artifact.of(experiment.model, toy.data, kind, "", experiment.frontier).save_pretrained(tmp_path / f"{kind}_a")
        experiment.model.detach()
        bank.load(kind, tmp_path / f"{kind}_a")
        for name in bank.names():
            outputs = torch.stack(bank.outputs([name] * 8, columns))
            assert torch.equal(answers.setdefault(name, outputs), outputs), f"{name} after {kind}"
    assert len(answers) == 3
