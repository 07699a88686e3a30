"""Node functions of `promote` and `rollback`."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromoteSettings:
    """
    Attributes:
        version: a number or an alias; None: the challenger.
        force: make it champion whatever the comparison says.
    """

    version: Any = None
    force: bool = False


def promote(promote: Mapping[str, Any], register: Mapping[str, Any], evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a version with the champion, and move the alias if it wins or is forced. Returns the decision."""
    from fusetune.config import build
    from fusetune.pipelines.registry import CHALLENGER, RegisterSettings, Registry
    from fusetune.pipelines.train.registration import log_decision

    settings = build(PromoteSettings, promote, "promote")
    registry = Registry(RegisterSettings(**register), evaluate)
    with registry.locked():
        asked = CHALLENGER if settings.version is None else str(settings.version)
        version = str(registry.version(asked).version)
        decision = registry.compare(version)
        moved = decision.held != version and (decision.champion or settings.force)
        if moved:
            registry.crown(version)
    logger.info(
        "%s: version %s %s: %s%s", registry.name, version, "is champion now" if moved else "changes nothing",
        decision.reason, ", forced" if moved and not decision.champion else "",
    )  # fmt: skip
    log_decision(decision)
    return {**asdict(decision), "moved": moved, "forced": settings.force}


def roll_back(register: Mapping[str, Any], evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """Give the alias `champion` back to the version that had it before."""
    from fusetune.pipelines.registry import RegisterSettings, Registry

    registry = Registry(RegisterSettings(**register), evaluate)
    with registry.locked():
        before = registry.history()[-1:]
        version = registry.rollback()
    logger.info("%s: champion is version %s again, no longer %s", registry.name, version, "".join(before))
    return {"champion": version, "before": "".join(before)}


def never_the_same(_: Mapping[str, Any]) -> str:
    """What these nodes depend on is in the registry: they always run."""
    from uuid import uuid4

    return uuid4().hex


promote.outside = roll_back.outside = never_the_same  # type: ignore[attr-defined]
