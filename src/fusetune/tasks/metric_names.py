"""Metrics as papers call them, for sentences and axes; keys of metrics stay as they are."""

NAMES = {
    "map": "mAP",
    "r2": "R²",
    "auroc": "AUROC",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "negative_l1": "negative L1",
    "negative_mae": "negative MAE",
    "mean_iou": "mean IoU",
    "accuracy_at_50": "Acc@0.5",
    "recall_at_1_iou_30": "R@1 at IoU 0.3",
    "recall_at_1_iou_50": "R@1 at IoU 0.5",
    "recall_at_1_iou_70": "R@1 at IoU 0.7",
}


def metric_told(metric: str) -> str:
    """A metric's name for a reader."""
    return NAMES.get(metric, metric.replace("_", " "))


def metric_titled(metric: str) -> str:
    """The same at the beginning of a title."""
    name = metric_told(metric)
    return name if metric in NAMES else name.capitalize()
