"""One task, one file: targets, loss, metrics, decoding."""

from fusetune.registry import Registry

tasks = Registry(
    "tasks",
    {
        "classification": "fusetune.tasks.classification:Classification",
        "vqa": "fusetune.tasks.vqa:VQA",
        "retrieval": "fusetune.tasks.retrieval:Retrieval",
    },
)
