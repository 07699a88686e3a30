"""The store in a bucket of a real S3 server on this machine: hosts fill it, one is killed, another reads it."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from conftest import ROOT
from fusetune.features.dataset import FeatureSet
from fusetune.features.storage import Store
from fusetune.features.store import Entry

pytest.importorskip("s3fs", reason='buckets are an extra: pip install "fusetune[s3]"')
moto = pytest.importorskip("moto.server", reason='the S3 server: pip install "moto[server]"')
URL = "s3://features/store"
HOST = textwrap.dedent(
    """
    import os, signal, sys
    sys.path[:0] = [TESTS, TESTS + "/features"]
    import torch
    import test_extraction as known
    from fusetune.features import storage

    part, dies_after = sys.argv[1], int(sys.argv[2])
    commit, done = storage.RemoteFolder.commit, []

    def counted(self, *args):
        commit(self, *args)
        done.append(1)
        if len(done) == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.RemoteFolder.commit = counted
    print(known.run(known.source(), known.backbone.__wrapped__(), "s3://features/store", part=part)[1])
    """
)


@pytest.fixture
def server(monkeypatch):
    """An empty bucket; the address and the credentials are in the environment, as users have them."""
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("features")
    yield
    running.stop()


def host(tmp_path, name: str, part: str, dies_after: int = 0) -> subprocess.CompletedProcess:
    """A process that computes a part of the samples, with a cache of its own, as another machine has."""
    code = HOST.replace("TESTS", repr(str(ROOT / "tests")))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / name)}
    command = [sys.executable, "-c", code, part, str(dies_after)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_hosts_share_a_bucket_and_a_killed_one_costs_what_it_had_not_written(server, tmp_path, monkeypatch):
    import test_extraction as known

    killed = host(tmp_path, "a", "1/2", dies_after=3)  # a shard, its index, another shard without one
    assert killed.returncode == -9
    first, second = host(tmp_path, "a", "1/2"), host(tmp_path, "b", "2/2")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert int(first.stdout) > 0 and int(second.stdout) > 0 and int(first.stdout) + int(second.stdout) < 42
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    backbone = known.backbone.__wrapped__()
    features, count = known.run(known.source(), backbone, URL)
    assert count == 0, "everything is there"
    for entry in features.entries.values():
        keys = [key for shard in Entry.of(Store(URL), entry).shards() for key in shard.keys]
        assert len(keys) == len(set(keys)) == 21, "no row was written twice"
    local, _ = known.run(known.source(), backbone, tmp_path / "local")
    index = torch.arange(21)
    there, here = (FeatureSet(f, s, known.CPU).batch(index) for f, s in ((features, URL), (local, tmp_path / "local")))
    for name in here:  # other batches: the last bit of a product may be another
        assert torch.equal(there[name].mask, here[name].mask)
        torch.testing.assert_close(there[name].values, here[name].values)
