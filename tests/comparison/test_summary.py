"""What the summary says, on scores that were made up so that the answer is known."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from fusetune.comparison.cells import Cell
from fusetune.comparison.record import Compared
from fusetune.comparison.sentences import beats
from fusetune.comparison.statistics import Difference
from fusetune.comparison.summary import summarize
from fusetune.errors import FusetuneError
from fusetune.report.charts import log_axis, pareto_front
from fusetune.report.comparison_page import comparison_page
from fusetune.training.evaluation import EvaluationSettings

SAMPLES = 600


class Made(Cell):
    def predictions(self):
        return pa.table({"score": self.results["scores"], "label": ["a"] * SAMPLES, "prediction": ["a"] * SAMPLES})


def variant(name: str, rate: float, parameters: int, seeds: int = 4, error: str = "") -> Compared:
    cells = {}
    for seed in range(0 if error else seeds):
        drawn = np.random.default_rng([seed, parameters]).random(SAMPLES) < rate
        metrics = {
            "metric": "accuracy",
            "validation": rate + 0.01 * seed,
            "test": {"accuracy": float(drawn.mean())},
            "trainable_parameters": parameters,
            "base_parameters": 10 * parameters,
            "target_columns": ["label"],
            "train_samples": 100,
            "best_epoch": 1,
        }
        results = {
            "scores": drawn.astype(float),
            "metrics": metrics,
            "curve": [{"epoch": 1, "val_metric": rate + 0.01 * seed}],
            "calibration": {"ece": 0.1, "bins": [{"confidence": 0.5, "accuracy": 0.4, "share": 1.0}]},
            "conditions": {"samples": 10, "whole": rate, "without": {"text": rate - 0.3, "image": rate - 0.1}},
            "continual": {},
            "attention": {},
            "interactions": {},
        }
        cost = {"train_seconds": 2.0, "epochs": 1, "how": "alone", "peak_bytes": 1, "joules": None}
        cost |= {"seconds_per_answer": 0.001, "seconds_plain": 0.001, "overhead": 0.0}
        cells[seed] = Made(folder_of(name, seed), results, cost)
    return Compared(name, name, {}, 1.0, True, {}, cells, {0: error} if error else {})


def folder_of(name: str, seed: int):
    from pathlib import Path

    return Path("/nowhere", name, str(seed))


def figures_of(page: str) -> list[dict]:
    rest = page.split('<script id="figures" type="application/json">')[1]
    return json.loads(rest.split("</script>")[0].replace("<\\/", "</"))


def summed(*found: Compared, unimodal=None):
    return summarize(found, None, unimodal or {}, EvaluationSettings())


def test_the_sentences_say_what_the_numbers_hold():
    found = [
        variant("lora", 0.70, 1000),
        variant("wander", 0.90, 400),
        variant("unipelt", 0.902, 200),
        variant("probe", 0.50, 50),
        variant("broken", 0.5, 7, error="the loss is nan"),
    ]
    summary = summed(*found, unimodal={"text": 0.4, "image": 0.6})
    rows = summary.rows
    assert list(summary.rows)[-2:] == ["lora", "probe"] and set(summary.errors) == {"broken"}
    pair = next(p for p in summary.differences if (p.first, p.second) == ("wander", "lora"))
    assert pair.value == pytest.approx(rows["wander"]["mean"] - rows["lora"]["mean"])
    text = " ".join(summary.sentences)
    best = next(iter(rows))
    other = {"wander": "unipelt", "unipelt": "wander"}[best]
    against = next(p for p in summary.differences if (p.first, p.second) == (best, "lora"))
    share = {"wander": "40%", "unipelt": "20%"}[best]
    assert f"{best} beats lora by {100 * against.value:.1f} points (95% CI {100 * against.low:.1f} to" in text
    assert f"with {share} of its parameters." in text
    rate = {name: f"{rows[name]['mean']:.3f}" for name in rows}
    assert summary.sentences[0].startswith(f"A tie: {best} is best on validation, and {other} is not distinguishable")
    assert "the smallest of these is unipelt: test accuracy " + rate["unipelt"] in summary.sentences[0]
    assert "It also beats probe." in text
    assert "The best modality alone, image, reaches 0.600" in text
    assert f"{best} leans most on text: without it, it loses 30.0 points." in text
    assert summary.winner[1].endswith(f"{best}/3/adapter"), "the seed that is best on validation"


def test_settings_and_winner_are_chosen_on_validation_and_reported_on_test():
    """A grid whose point that is best on test is not the one that is best on validation."""
    small, large, other = (
        variant("wander, rank 4", 0.6, 400),
        variant("wander, rank 8", 0.8, 800),
        variant("lora", 0.7, 9),
    )
    for one, val_metric in ((small, 0.9), (large, 0.5), (other, 0.7)):
        for cell in one.cells.values():
            cell.results["metrics"]["validation"] = val_metric
    grid = [replace(small, method="wander"), replace(large, method="wander"), other]
    summary = summed(*grid)
    assert list(summary.rows) == ["wander, rank 4", "lora", "wander, rank 8"] and summary.winner[0] == "wander, rank 4"
    assert [row["chosen"] for row in summary.rows.values()] == [True, True, False]
    assert [{pair.first, pair.second} for pair in summary.differences] == [{"wander, rank 4", "lora"}]
    assert summary.rows["wander, rank 4"]["mean"] < summary.rows["wander, rank 8"]["mean"], (
        "and test would say otherwise"
    )
    text = " ".join(summary.sentences)
    assert "No clear winner: wander, rank 4 is best on validation, with test accuracy 0.5" in summary.sentences[0]
    assert "and lora ahead." in summary.sentences[0]
    assert "On the test split lora beats wander, rank 4 by" in text
    assert "wander, rank 8 (not chosen)" in comparison_page(summary, grid, "x")


def test_the_verdict_is_true_as_it_stands():
    clear = summed(variant("wander", 0.9, 400), variant("lora", 0.6, 100), variant("probe", 0.7, 10))
    second = clear.rows["probe"]["mean"]
    assert (
        clear.sentences[0].startswith("wander wins: test accuracy 0.")
        and f"next is probe, {second:.3f}" in (clear.sentences[0])
    )
    found = [variant("wander", 0.7, 400), variant("lora", 0.7, 100)]
    lost = summarize(found, None, {"image": 0.75, "text": 0.6}, EvaluationSettings(), {"TF-IDF": 0.8, "pixels": 0.2})
    assert lost.sentences[0].startswith("TF-IDF (scikit-learn on the raw inputs) reaches 0.800, MORE than")
    assert lost.sentences[1].startswith("A tie: ")
    cost = 100 * (0.75 - next(iter(lost.rows.values()))["mean"])
    assert f"The best modality alone, image, reaches 0.750: fusion costs {cost:.1f} points" in " ".join(lost.sentences)


def test_what_needs_no_method_stands_in_the_charts():
    found = [variant("wander", 0.7, 400), variant("lora", 0.7, 100_000)]
    bare = comparison_page(summed(*found), found, "x")
    summary = summarize(found, None, {"image": 0.65, "text": 0.6}, EvaluationSettings(), {"TF-IDF": 0.5, "pixels": 0.2})
    page = comparison_page(summary, found, "x")
    drawn = [sum(trace.get("name", "").startswith(name) for figure in figures_of(page) for trace in figure["data"])
             for name in ("TF-IDF (scikit-learn)", "image alone", "pixels (scikit-learn)")]  # fmt: skip
    assert drawn == [4, 4, 1], "two costs, modalities, the means; what isn't the best of its kind in the means alone"
    assert "scikit-learn)" not in json.dumps(figures_of(bare))
    assert figures_of(page)[1]["layout"]["xaxis"]["ticktext"] == ["300", "1k", "3k", "10k", "30k", "100k"]


def test_ticks_of_a_logarithmic_axis_are_round_and_few():
    assert log_axis("x", [350, 120_000])["ticktext"] == ["300", "1k", "3k", "10k", "30k", "100k"]
    assert log_axis("x", [2, 40])["ticktext"] == ["2", "5", "10", "20", "50"]
    assert log_axis("x", [0.44, 0.66])["ticktext"] == ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert log_axis("x", [1, 2_000_000_000])["ticktext"][-2:] == ["100M", "1G"]
    assert log_axis("x", [7, 7])["ticktext"] == ["6", "8", "10"]
    assert len(log_axis("x", [25_600])["tickvals"]) < 8


def test_one_method_alone_and_none_at_all():
    summary = summed(variant("wander", 0.9, 400))
    assert summary.differences == [] and len(summary.sentences) == 2
    with pytest.raises(FusetuneError, match="nothing came to an end. broken: the loss is nan"):
        summed(variant("broken", 0.5, 7, error="the loss is nan"))


def test_the_summary_is_json_and_its_flat_form_holds_what_dvc_shows():
    summary = summed(variant("a", 0.9, 400), variant("b", 0.5, 10))
    assert json.loads(json.dumps(summary.plain()))["winner"] == "a"
    assert set(summary.flat()["a"]) == {
        "accuracy", "low", "high", "seeds", "ece", "trainable_parameters", "train_seconds",
    }  # fmt: skip


def test_the_front_holds_what_nothing_beats():
    points = {"cheap": (1, 0.5), "same": (1, 0.4), "middle": (5, 0.4), "good": (10, 0.9), "dear": (20, 0.9)}
    assert pareto_front(points) == ["cheap", "good"]


def test_every_chart_has_axes_and_a_caption_is_valid_and_nothing_is_fetched():
    import re

    import plotly.graph_objects as go

    found = [variant("a", 0.9, 400), variant("<b>", 0.5, 10), variant("broken", 0.5, 7, error="<script>no</script>")]
    page = comparison_page(summed(*found), found, "a & b")
    head, figures = page.split('<script id="figures"')[0], figures_of(page)
    assert len(figures) == head.count("class='plot'") == head.count("<figcaption>") >= 8
    assert "<figcaption></figcaption>" not in head
    for figure in figures:
        go.Figure(figure)  # raises for what Plotly doesn't know
        assert figure["layout"]["yaxis"]["title"]["text"], figure["layout"]
        shown = figure["layout"]["xaxis"]
        assert shown["title"]["text"] or shown["tickangle"], "names of methods need no title"
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page), "all of it is in the page"
    assert "<title>a &amp; b</title>" in page and "<script>no" not in page and "&lt;b&gt;" in page
    assert "@@" not in head and "prefers-color-scheme" in page


def test_who_acts_is_told_of_and_who_does_not_is_not():
    from fusetune.comparison import acting

    def row(**rates):
        return {"other_metrics": rates}

    own = {"success": 0.4, "success_low": 0.3, "success_high": 0.5, "success_noise": 0.2, "success_noise_low": 0.1,
           "success_noise_high": 0.3}  # fmt: skip
    rows = {"wander": row(**own), "lora": row(**{**own, "success": 0.6})}
    assert acting.told(rows) == [
        "In its world wander succeeds in 40% of the episodes (interval of a seed 30% to 50%); noise 20%. Most often "
        "lora does, in 60%."
    ]
    assert acting.told({"lora": rows["lora"], "wander": rows["wander"]})[0].endswith("; noise 20%.")
    assert acting.told({"wander": row(accuracy=0.5)}) == []


@pytest.mark.parametrize(("parameters", "told"), [(458, "0.2% of"), (40, "under 0.1% of"), (90_000, "45% of")])
def test_shares_of_parameters_are_told_with_their_digits(parameters, told):
    rows = {"small": {"trainable_parameters": parameters}, "large": {"trainable_parameters": 200_000}}
    assert f"with {told} its parameters" in beats(Difference("small", "large", 0.1, 0.05, 0.15, 0.01), rows, 0.95)


def test_what_scikit_learn_has_is_told_beside_the_interval():
    found = [variant("a", 0.7, 100)]
    row = summarize(found, None, {}, EvaluationSettings()).rows["a"]
    inside, outside = (row["mean"] + row["low"]) / 2, row["low"] - 0.05
    for value, ends in ((inside, "raw inputs), inside the interval."), (outside, "raw inputs).")):
        (text,) = [
            s
            for s in summarize(found, None, {}, EvaluationSettings(), {"TF-IDF": value}).sentences
            if "Without any" in s
        ]
        assert text.endswith(ends)
