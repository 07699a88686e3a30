"""One task, one file: targets, loss, metrics, decoding."""

from fusetune.registry import Registry

tasks = Registry(
    "tasks",
    {
        "classification": "fusetune.tasks.classification:Classification",
        "vqa": "fusetune.tasks.vqa:VQA",
        "multi_task": "fusetune.tasks.multi_task:MultiTask",
        "retrieval": "fusetune.tasks.retrieval:Retrieval",
    },
)
