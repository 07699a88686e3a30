"""Regression, several labels, skewed classes: metrics against scikit-learn and SciPy, scores that can be resampled."""

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.class_metrics import auroc, average_precision, f1, macro_f1, mean_average_precision
from fusetune.tasks.classification import Classification, ClassificationConfig
from fusetune.tasks.multi_label import MultiLabel, MultiLabelConfig
from fusetune.tasks.multi_task import MultiTask, MultiTaskConfig
from fusetune.tasks.ordinal import Ordinal, OrdinalConfig
from fusetune.tasks.pseudo_values import BLOCKS, pseudo_values
from fusetune.tasks.regression import Regression, RegressionConfig
from fusetune.tasks.vqa import VQA, VQAConfig

RNG = np.random.default_rng(0)


def classes(rows=200, count=4):
    targets = torch.tensor(RNG.choice(count, rows, p=[0.6, 0.25, 0.1, 0.05]))
    outputs = torch.tensor(RNG.normal(0, 1, (rows, count)), dtype=torch.float32)
    outputs[torch.arange(rows), targets] += 1
    return outputs.round(decimals=1), targets  # rounded: there are ties


def test_metrics_of_classes_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    outputs, targets = classes()
    answers = outputs.argmax(1)
    assert macro_f1(outputs, targets) == pytest.approx(sklearn.f1_score(targets, answers, average="macro"))
    areas = [sklearn.roc_auc_score(targets == i, outputs[:, i]) for i in range(4)]
    assert auroc(outputs, targets) == pytest.approx(np.mean(areas))
    task = Classification(ClassificationConfig("kind", metric="balanced_accuracy"))
    task.fit({"kind": [str(int(t)) for t in targets]})
    expected = sklearn.balanced_accuracy_score(targets, answers)
    assert task.metrics(outputs, targets)["balanced_accuracy"] == pytest.approx(expected)
    assert task.per_sample(outputs, targets)["balanced_accuracy"].mean() == pytest.approx(expected)


def test_a_scale_is_scored_as_scikit_learn_scores_it():
    sklearn = pytest.importorskip("sklearn.metrics")
    outputs, targets = classes()
    task = Ordinal(OrdinalConfig("grade"))
    task.fit({"grade": [10 - int(t) for t in targets]})
    assert task.labels == ["7", "8", "9", "10"], "numbers in their order, not texts"
    targets = task.targets({"grade": [7 + int(t) for t in targets]})
    answers = [task.labels.index(row["prediction"]) for row in task.decode(outputs)]
    assert answers != outputs.argmax(1).tolist(), "the median is not always the likeliest"
    expected = sklearn.cohen_kappa_score(targets, answers, weights="quadratic")
    found, samples = task.metrics(outputs, targets), task.per_sample(outputs, targets)
    assert found["quadratic_kappa"] == pytest.approx(expected) == pytest.approx(samples["quadratic_kappa"].mean())
    assert found["negative_mae"] == pytest.approx(-sklearn.mean_absolute_error(targets, answers))
    assert found["within_one"] == pytest.approx((np.abs(np.array(answers) - targets.numpy()) <= 1).mean())
    again = Ordinal(OrdinalConfig("grade"))
    again.restore(task.state())
    assert again.labels == task.labels and again.metric == "quadratic_kappa"


def test_the_loss_of_a_scale_is_cross_entropy_for_two_labels_and_grows_with_the_distance():
    task = Ordinal(OrdinalConfig("how_often", order=("never", "always")))
    task.fit({"how_often": ["never", "always"]})
    outputs, targets = torch.randn(50, 2), torch.randint(0, 2, (50,))
    torch.testing.assert_close(task.loss(outputs, targets), torch.nn.functional.cross_entropy(outputs, targets))
    far = torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0]])
    losses = [float(task.loss(far, torch.tensor([k]))) for k in range(5)]
    assert losses == sorted(losses) and losses[0] < 0.01
    assert torch.isfinite(task.loss(100 * outputs, targets)), "far from any rounding"


@pytest.mark.parametrize(
    ("order", "values", "message"),
    [
        ((), ["low", "high"], "the labels are no numbers .high, low.. Say their order"),
        (("low", "high"), ["low", "middle"], "column 'grade': middle is not in data.task.order"),
        ((), [3, 3], "a scale has at least two labels"),
    ],
)
def test_a_scale_without_an_order_is_refused(order, values, message):
    with pytest.raises(FusetuneError, match=message):
        Ordinal(OrdinalConfig("grade", order=order)).fit({"grade": values})


def test_metrics_of_several_labels_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    wanted = torch.tensor(RNG.random((120, 5)) < [0.5, 0.3, 0.1, 0.02, 0.0])
    outputs = (torch.tensor(RNG.normal(0, 1, (120, 5))) + wanted.double()).round(decimals=1)
    there = [i for i in range(5) if wanted[:, i].any()]
    for i in there:
        expected = sklearn.average_precision_score(wanted[:, i], outputs[:, i])
        assert average_precision(outputs[:, i], wanted[:, i]) == pytest.approx(expected)
    assert len(there) < 5 and average_precision(outputs[:, 4], wanted[:, 4]) is None
    found = sklearn.average_precision_score(wanted[:, there], outputs[:, there], average="macro")
    assert mean_average_precision(outputs, wanted.float()) == pytest.approx(found)
    answers = outputs > 0.5
    assert f1(answers, wanted, False) == pytest.approx(sklearn.f1_score(wanted, answers, average="micro"))


def test_metrics_of_numbers_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    wanted = RNG.normal(3, 10, 150).round(0)
    values = wanted + RNG.normal(0, 8, 150).round(0)
    task = Regression(RegressionConfig("price"))
    task.fit({"price": wanted.tolist()})
    outputs = task.standardised(torch.tensor(values)[:, None]).float()
    targets = task.targets({"price": wanted.tolist()})
    found = task.metrics(outputs, targets)
    assert found["pearson"] == pytest.approx(pearsonr(values, wanted).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(spearmanr(values, wanted).statistic, abs=1e-6)
    assert found["mae"] == pytest.approx(np.abs(values - wanted).mean(), abs=1e-5) == -found["negative_mae"]
    assert found["rmse"] == pytest.approx(np.sqrt(((values - wanted) ** 2).mean()), abs=1e-5)
    assert found["r2"] == pytest.approx(1 - ((values - wanted) ** 2).mean() / wanted.var(), abs=1e-6)
    assert task.per_sample(outputs, targets)["r2"].mean() == pytest.approx(found["r2"])
    assert task.decode(outputs)[0]["value"] == pytest.approx(values[0], abs=1e-4)
    outputs[0] = torch.nan
    assert task.decode(outputs)[0]["value"] is None


def test_the_fields_metrics_of_a_sentiment():
    task = Regression(RegressionConfig("sentiment", sentiment=True))
    wanted = [-3.0, -1.2, 0.0, 0.4, 2.6]
    task.fit({"sentiment": wanted})
    outputs = task.standardised(torch.tensor([[-2.6], [0.3], [0.7], [1.2], [9.0]]))
    found = task.metrics(outputs, task.targets({"sentiment": wanted}))
    assert found["acc_2"] == pytest.approx(3 / 4), "of four that aren't 0, one has the other sign"
    assert found["acc_7"] == pytest.approx(2 / 5), "-3 and, clipped, 3"
    assert found["f1_2"] == pytest.approx((2 * 2 * 1 / 3 + 2 * 2 * 2 / 5) / 4)


@pytest.mark.parametrize("rows", [60, 3 * BLOCKS])
def test_pseudo_values_have_the_metrics_mean_and_its_spread(rows):
    """Their standard error is that of the metric: of means exactly, of a correlation as many draws show it."""
    outputs, targets = torch.tensor(RNG.normal(0, 1, rows)), torch.zeros(rows)
    mean = pseudo_values(lambda o, t: float(o.mean()), outputs, targets)
    assert mean.mean() == pytest.approx(float(outputs.mean()))
    if rows <= BLOCKS:
        np.testing.assert_allclose(mean, outputs, atol=1e-9)

    def correlation(a, b):
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    def drawn():
        a = torch.tensor(RNG.normal(0, 1, rows))
        return a, a + torch.tensor(RNG.normal(0, 1, rows))

    spread = np.std([correlation(*drawn()) for _ in range(400)])
    errors = [pseudo_values(correlation, *drawn()).std() / rows**0.5 for _ in range(10)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.25)


def test_the_metric_fits_the_data_unless_one_is_named():
    def fitted(cls, config, counts):
        task = cls(config)
        task.fit({"kind": [name for name, count in counts.items() for _ in range(count)]})
        return task

    even, skewed = {"a": 30, "b": 20}, {"a": 100, "b": 10, "c": 40}
    assert fitted(Classification, ClassificationConfig("kind"), even).metric == "accuracy"
    assert fitted(Classification, ClassificationConfig("kind"), skewed).metric == "macro_f1"
    assert fitted(Classification, ClassificationConfig("kind", metric="accuracy"), skewed).metric == "accuracy"
    assert fitted(VQA, VQAConfig("kind"), skewed).metric == "accuracy"
    again = Classification(ClassificationConfig("kind"))
    again.restore(fitted(Classification, ClassificationConfig("kind"), skewed).state())
    assert again.metric == "macro_f1"
    outputs = torch.zeros(2, 3)
    weighted = fitted(Classification, ClassificationConfig("kind", class_weights="balanced"), skewed)
    plain = fitted(Classification, ClassificationConfig("kind"), skewed)
    outputs[:, 0] = 2.0
    targets = torch.tensor([0, 1])
    assert weighted.loss(outputs, targets) > plain.loss(outputs, targets), "the rare one weighs more"
    with pytest.raises(FusetuneError, match="metric: expected one of accuracy, balanced_accuracy, macro_f1, auroc"):
        ClassificationConfig("kind", metric="f1")


def test_labels_come_as_lists_or_text_and_the_threshold_from_validation_rows():
    task = MultiLabel(MultiLabelConfig("tags", min_rows=2))
    rows = ["cat|pet", ["dog", "pet"], '["cat"]', "dog | rare", []]
    task.fit({"tags": rows})
    assert task.labels == ["cat", "dog", "pet"] and task.rare == 1
    targets = task.targets({"tags": rows})
    assert targets.tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    outputs = torch.where(targets > 0, 2.0, 1.0)
    assert task.per_sample(outputs, targets)["exact_match"].mean() == 0, "all are above 0"
    task.settle(outputs, targets)
    assert task.threshold == 1.5 and task.per_sample(outputs, targets)["exact_match"].mean() == 1
    decoded = task.decode(outputs)
    assert [sorted(row["labels"]) for row in decoded[:3]] == [["cat", "pet"], ["dog", "pet"], ["cat"]]
    again = MultiLabel(MultiLabelConfig("tags", min_rows=2))
    again.restore(task.state())
    assert again.decode(outputs) == decoded
    with pytest.raises(FusetuneError, match="column 'tags', row 1: '3' is no list of labels. Expected a list"):
        task.targets({"tags": ["cat", 3]})
    with pytest.raises(FusetuneError, match="0 of 4 labels stand in at least 5 training rows"):
        MultiLabel(MultiLabelConfig("tags")).fit({"tags": rows})


def test_a_number_that_is_none_is_named():
    task = Regression(RegressionConfig(labels=("valence", "arousal")))
    task.fit({"valence": [1.0, 2.0], "arousal": ["3", 5]})
    assert task.targets({"valence": [1], "arousal": ["3.5"]}).tolist() == [[1.0, 3.5]]
    assert task.known({"valence": [1, None, "x"], "arousal": [1, 1, 1]}) == [True, False, False]
    with pytest.raises(FusetuneError, match="column 'arousal', row 1: 'loud' is no number. Expected a finite number"):
        task.targets({"valence": [1, 2], "arousal": [1, "loud"]})
    with pytest.raises(FusetuneError, match="column 'valence': all training rows have the same value"):
        task.fit({"valence": [1.0, 1.0], "arousal": [3, 5]})
    with pytest.raises(FusetuneError, match="expected one of label and labels"):
        RegressionConfig()


def test_several_tasks_of_which_one_at_most_looks_through_tokens():
    tasks = {"where": {"name": "grounding"}, "when": {"name": "moments", "target": "sound"}}
    with pytest.raises(
        FusetuneError, match="data.task.tasks: where and when look through tokens; of several tasks one"
    ):
        MultiTask(MultiTaskConfig(tasks))
    with pytest.raises(FusetuneError, match="data.task.tasks.said: expected a task with a head of its own"):
        MultiTask(MultiTaskConfig(dict(list(tasks.items())[:1], said={"name": "generation", "answer": "a"})))
