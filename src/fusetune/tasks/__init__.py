"""One task, one file: targets, loss, metrics, decoding."""

from fusetune.registry import Registry

tasks = Registry(
    "tasks",
    {
        "classification": "fusetune.tasks.classification:Classification",
        "ordinal": "fusetune.tasks.ordinal:Ordinal",
        "regression": "fusetune.tasks.regression:Regression",
        "multi_label": "fusetune.tasks.multi_label:MultiLabel",
        "vqa": "fusetune.tasks.vqa:VQA",
        "translated": "fusetune.tasks.translated:Translated",
        "masked_words": "fusetune.tasks.masked_words:MaskedWords",
        "distilled": "fusetune.tasks.distilled:Distilled",
        "multi_task": "fusetune.tasks.multi_task:MultiTask",
        "generation": "fusetune.tasks.generation:Generation",
        "grounding": "fusetune.tasks.grounding:Grounding",
        "grounding_in_words": "fusetune.tasks.grounding_in_words:GroundingInWords",
        "segments": "fusetune.tasks.segments:Segments",
        "actions": "fusetune.tasks.actions:Actions",
        "moments": "fusetune.tasks.moments:Moments",
        "retrieval": "fusetune.tasks.retrieval:Retrieval",
    },
)
