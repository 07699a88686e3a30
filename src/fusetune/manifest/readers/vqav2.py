"""VQA v2: open questions about COCO pictures, ten answers each.

From https://visualqa.org (Goyal et al., CVPR 2017) and https://cocodataset.org. Expected below `folder`, as unpacked:

    v2_OpenEnded_mscoco_<part>2014_questions.json     {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_<part>2014_annotations.json             {"annotations": [{"question_id", "answers": [{"answer"} x 10],
                                                        "multiple_choice_answer", "answer_type", ...}]}
    <part>2014/COCO_<part>2014_000000000042.jpg

for `part` train and val. The answers of the official test set are not public: val2014 becomes our test split, and
`val_share` of the training pictures our validation.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers.layouts import field, is_drawn, manifest, read_json


@dataclass(frozen=True)
class VQAv2Settings:
    """
    Attributes:
        folder: holds the JSON files and the picture folders.
        val_share: of the training pictures, drawn by a hash of their numbers.
        most_answers: only questions with one of so many most frequent training answers; 0 keeps all.
    """

    folder: str
    val_share: float = 0.05
    most_answers: int = 3129


def _files(folder: str, part: str) -> tuple[Path, Path]:
    return (
        Path(folder, f"v2_OpenEnded_mscoco_{part}2014_questions.json"),
        Path(folder, f"v2_mscoco_{part}2014_annotations.json"),
    )


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(file) for part in ("train", "val") for file in _files(str(settings.get("folder")), part)]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns image (paths below `folder`), text, answer (the most frequent of ten), answers, question_type."""
    chosen, rows = build(VQAv2Settings, settings, where), []
    for part in ("train", "val"):
        questions, annotations = _files(chosen.folder, part)
        told = {a["question_id"]: a for a in field(read_json(annotations), "annotations", str(annotations))}
        for question in field(read_json(questions), "questions", str(questions)):
            number, picture = (
                field(question, "question_id", str(questions)),
                field(question, "image_id", str(questions)),
            )
            if number not in told:
                continue
            drawn = is_drawn(str(picture), chosen.val_share)
            given = told[number]
            rows.append(
                {
                    "sample_id": str(number),
                    "split": "test" if part == "val" else "val" if drawn else "train",
                    "group_id": str(picture),
                    "image": f"{part}2014/COCO_{part}2014_{picture:012d}.jpg",
                    "text": str(question["question"]),
                    "answer": str(field(given, "multiple_choice_answer", str(annotations))),
                    "answers": [str(a["answer"]) for a in field(given, "answers", str(annotations))],
                    "question_type": str(given.get("answer_type", "")),
                }
            )
    if chosen.most_answers:
        counts = Counter(row["answer"] for row in rows if row["split"] == "train")
        common = set(sorted(counts, key=lambda answer: (-counts[answer], answer))[: chosen.most_answers])
        rows = [row for row in rows if row["answer"] in common]
    return manifest(rows, where)
