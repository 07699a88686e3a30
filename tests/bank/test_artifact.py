"""An artifact comes back as it was, and only onto its own base."""

import base64
import hashlib
import http.server
import json
import pickle
import random
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from conftest import WANDER, clean
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.bank.artifact import CONFIG, WEIGHTS, Artifact
from fusetune.errors import FusetuneError
from fusetune.report.training_figures import training_figures
from fusetune.runs.run import train_and_test
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings


@pytest.fixture
def saved(toy, tmp_path):
    experiment = toy.experiment(WANDER)
    result = train_and_test(
        experiment,
        toy.features(experiment),
        toy.store,
        TrainSettings(epochs=3, batch_size=16, device="cpu"),
        EvaluationSettings(bootstrap_samples=20),
        tmp_path / "checkpoints",
        Reporter(),
        "wander",
        {"left": 0.5},
    )
    result.artifact.save_pretrained(tmp_path / "adapter")
    training_figures(result).save_pretrained(tmp_path / "figures")
    return tmp_path / "adapter", experiment, result


def test_loaded_equals_trained_and_the_card_says_what_was_measured(saved, toy):
    folder, experiment, result = saved
    model = Artifact.from_pretrained(folder).build(toy.base)
    inputs = model.backbone.prepare({m: experiment.source.decoded(m, [0, 1, 239]) for m in ("left", "right")})
    start = Frontier({"left": 0, "right": 0})
    with torch.no_grad():
        assert torch.equal(model(inputs, start), experiment.model.eval()(inputs, start))
    card = (folder / "README.md").read_text()
    config = json.loads((folder / CONFIG).read_text())
    assert config["task_state"]["labels"] == ["other", "same"] and config["frontier"]["towers"] == {
        "left": 2,
        "right": 1,
    }
    assert config["versions"]["torch"] == torch.__version__ and set(config["preprocessing"]) == {"left", "right"}
    assert f"{result.metrics['test']['accuracy']:.3f}" in card and "left alone | 0.500" in card
    assert {f.name for f in (folder.parent / "figures").iterdir()} == {
        "learning_curve.png",
        "test_metrics.png",
        "confusion_matrix.png",
    }
    assert not list((folder.parent / "checkpoints").glob("*")), "a finished run leaves no checkpoint"


def test_another_base_is_refused(saved, toy, tmp_path):
    folder = saved[0]
    other = Backbone.from_pretrained(toy.base)
    with torch.no_grad():
        next(other.trunk.parameters()).view(-1)[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(FusetuneError, match="its fingerprint is .* but the adapter was trained on"):
        Artifact.from_pretrained(folder).build(tmp_path / "other")


def truncated(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": torch.zeros(1)}))


def edited(**changes):
    def damage(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    return damage


def written(text):
    return lambda folder: (folder / CONFIG).write_text(text)


def gone(folder):
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "not the bytes that were saved"),
        (pickled, "not the bytes that were saved"),
        (gone, "No such file"),
        (edited(format=99), "format 99, this version reads 2. Update fusetune"),
        (edited(format=1), "format 1, this version reads 2. Train again"),
        (edited(method="other"), "changed since it was saved"),
        (edited(base_fingerprint="0" * 64), "changed since it was saved"),
        (edited(stranger=1), "changed since it was saved"),
        (written("{"), "no JSON"),
        (written("[]"), "expected settings by name, found a list"),
        (shutil.rmtree, "expected an adapter's folder, or the id"),
    ],
)
def test_a_damaged_artifact_is_named(saved, damage, message):
    damage(saved[0])
    with pytest.raises(FusetuneError, match=message):
        Artifact.from_pretrained(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "stranger": torch.zeros(1)}, "tensor 'stranger' belongs to no part of the plan"),
        (lambda t: dict(list(t.items())[1:]), "is missing"),
        (lambda t: {**t, "junction.0.scale": torch.zeros(3)}, r"'junction.0.scale' has shape \(3,\) and dtype float32"),
        (lambda t: {n: v.half() for n, v in t.items()}, "and dtype float16, the plan says"),
    ],
)
def test_tensors_that_do_not_belong_to_the_plan_are_refused(saved, toy, tmp_path, change, message):
    """A whole artifact, checksums and all, that somebody else has put together."""
    artifact = Artifact.from_pretrained(saved[0])
    replace(artifact, tensors=change(artifact.tensors)).save_pretrained(tmp_path / "other")
    with pytest.raises(FusetuneError, match=message):
        Artifact.from_pretrained(tmp_path / "other").build(toy.base)


def test_a_thousand_mutations_are_refused_or_change_nothing(saved, toy, tmp_path):
    """Bytes flipped, cut out, put in, swapped, zeroed, in config and weights: an error of ours, or the very adapter."""
    folder = saved[0]
    original = Artifact.from_pretrained(folder)
    whole = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    rng = random.Random(0)
    planted = pickle.dumps(_Bomb(tmp_path / "planted"))
    refused = 0
    for number in range(1000):
        name = rng.choice([CONFIG, WEIGHTS])
        data = bytearray(whole[name])
        at, length = rng.randrange(len(data)), rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 5:
            data[at : at + len(planted)] = planted
        else:
            data = bytearray(planted if number % 2 else whole[rng.choice([CONFIG, WEIGHTS])])
        (folder / name).write_bytes(data)
        try:
            found = Artifact.from_pretrained(folder)
            assert found.config == original.config and found.tensors.keys() == original.tensors.keys()
            assert all(torch.equal(found.tensors[n], original.tensors[n]) for n in found.tensors)
        except FusetuneError as error:
            refused += 1
            assert name in str(error) and len(str(error)) < 1000
        (folder / name).write_bytes(whole[name])
    assert refused > 900 and not (tmp_path / "planted").exists(), "nothing is ever unpickled"


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def oid(data):
    return hashlib.sha1(data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """What a model hub answers when a folder of small files is committed and read back; files are kept by name."""

    files: dict[str, bytes] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.say({"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine"})
        elif self.path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.say({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.say(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/mine/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                }
            )

    def do_GET(self):
        if "/tree/" in self.path:
            self.say([{"type": "file", "path": n, "size": len(d), "oid": oid(d)} for n, d in self.files.items()])
        elif self.path.startswith("/api/models/me/mine"):
            found = [{"rfilename": name} for name in self.files]
            self.say(
                {"id": "me/mine", "sha": "1" * 40, "siblings": found, "private": False, "tags": [], "downloads": 0}
            )
        else:
            self.do_HEAD(body=True)

    def do_HEAD(self, body=False):
        data = self.files.get(self.path.split("/", 5)[-1])
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        for name, value in {
            "ETag": f'"{oid(data)}"',
            "X-Repo-Commit": "1" * 40,
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def say(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_): ...


def test_a_hub_takes_it_and_gives_it_back(saved, tmp_path):
    """By the hub's own client, against a server in this process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys, torch; from fusetune.bank.artifact import Artifact\n"
        "mine = Artifact.from_pretrained(sys.argv[1]); print(mine.push_to_hub('me/mine'))\n"
        "back = Artifact.from_pretrained('me/mine')\n"
        "assert back.config == mine.config and back.card == mine.card\n"
        "assert all(torch.equal(back.tensors[n], t) for n, t in mine.tensors.items())\n"
        "print('same')"
    )
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    command = [sys.executable, "-c", code, str(saved[0])]
    environment = clean(**hub, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "commit/1" in done.stdout and "same" in done.stdout


def test_a_hub_that_cannot_be_reached_is_one_sentence(saved):
    with pytest.raises(FusetuneError, match="me/none: no such folder, and the hub gives none"):
        Artifact.from_pretrained("me/none")
