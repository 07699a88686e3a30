"""From placements to adapters in their places: each is resolved once to exact modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fusetune.adapters import adapters
from fusetune.adapters.adapter import (
    Adapter,
    BackboneAdapter,
    Block,
    BlockAdapter,
    HeadAdapter,
    Stack,
    Stream,
    StreamAdapter,
)
from fusetune.adapters.behind_blocks import BehindBlocks
from fusetune.adapters.one_side import OneSide
from fusetune.adapters.peft_tuners import LoRA
from fusetune.backbones.backbone import Backbone
from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.plan.placing import Choice, choose, names_ranks
from fusetune.tasks.task import Task

TRUNK = "trunk"


@dataclass(frozen=True)
class Placed:
    """An adapter in its place.

    Attributes:
        number: of the placement in its plan.
        site: a modality's name, trunk, connector, junction, or backbone.
        from_epoch: when it begins to act.
    """

    number: int
    adapter: Adapter
    site: str
    from_epoch: int

    def owners(self, backbone: Backbone) -> Mapping[nn.Parameter, str]:
        """For what opens the backbone at large: the tower (or the trunk) that each parameter belongs to."""
        if self.site != "backbone":
            return {}
        owners = {p: name for name, tower in backbone.towers.items() for p in tower.parameters()}
        return owners | ({p: TRUNK for p in backbone.trunk.parameters()} if backbone.trunk else {})


@dataclass
class Assembly:
    """Collects the adapters of a plan.

    Attributes:
        resolved: one line for each placement: what it came to mean on this backbone.
        head: makes the head from its width and its number of outputs.
    """

    backbone: Backbone
    task: Task
    streams: Mapping[str, Stream]
    where: str
    connectors: list[StreamAdapter] = field(default_factory=list)
    blocks: list[Adapter] = field(default_factory=list)
    junction: list[StreamAdapter] = field(default_factory=list)
    branches: dict[str, list[StreamAdapter]] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    heads: list[Callable[[int, int], nn.Module]] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)

    def of(self, placements: Sequence[Any]) -> "Assembly":
        """Place all; raises FusetuneError that names the placement."""
        for number, placement in enumerate(placements):
            at = f"{self.where}.placements[{number}]"
            cls = adapters.get(placement.adapter)
            if placement.where not in cls.sites:
                raise FusetuneError(
                    f"{at}: '{placement.adapter}' is placed at {_either(cls.sites)}, not '{placement.where}'."
                )
            if placement.blocks != "all" and placement.where not in ("towers", TRUNK):
                raise FusetuneError(f"{at}.blocks: blocks are chosen in towers and trunk, not at '{placement.where}'.")
            if cls.rank_key is None and names_ranks(placement.blocks):
                raise FusetuneError(f"{at}.blocks: '{placement.adapter}' has no size that a rank could set.")
            config = build(cls.Config, placement.config, f"{at}.config")
            self._place(cls, config, placement, number, at)
        LoRA.check_together([placed.adapter for placed in self.placed])
        if len(self.heads) != 1:
            raise FusetuneError(f"{self.where}: a plan has exactly one placement at 'head', found {len(self.heads)}.")
        return self

    @property
    def head(self) -> Callable[[int, int], nn.Module]:
        return self.heads[0]

    def _place(self, cls: Any, config: Any, placement: Any, number: int, at: str) -> None:
        if issubclass(cls, HeadAdapter):
            self.heads.append(lambda width, outputs: cls(config, width, outputs))
            if self.task.speaks:
                self.resolved.append(f"no {placement.adapter} head: the model's own answers, and stays as it is")
        elif issubclass(cls, BackboneAdapter):
            adapter = cls(config)
            opened = adapter.open_in(self.backbone)
            own = set(adapter.trained())
            for name in (*self.streams, *([TRUNK] if self.backbone.trunk else [])):
                names = [key for key, p in self.backbone.stack(name).named_parameters() if p in own]
                self._claim(name, names, f"placement {number} ({placement.adapter})", at)
            self._done(placement, number, adapter, "backbone", f"all of {', '.join(opened)}")
        elif issubclass(cls, BlockAdapter):
            self._in_blocks(cls, config, placement, number, at)
        elif not self.task.fuses and not (placement.where == "junction" and self.task.fused_apart()):
            raise FusetuneError(f"{at}: '{placement.adapter}' mixes the streams that this task compares.")
        elif placement.where == "connector":
            self._connector(cls(config, self._tower_streams()), placement, number, at)
        elif placement.where == TRUNK:
            self._behind_blocks(cls, config, placement, number, at)
        else:
            self._at_junction(cls, config, placement, number, at)

    def _in_blocks(self, cls: Any, config: Any, placement: Any, number: int, at: str) -> None:
        if placement.where == "connector":
            chosen = self._own_connectors(placement, at)
        else:
            chosen = choose(placement.blocks, self._offered(placement.where, at), at)
        told, missing = [], []
        for name, ranks in chosen.items():
            stack = self._stack(name)
            modules = stack.module.blocks()  # type: ignore[operator]
            blocks = [Block(i, modules[i], rank if cls.rank_key else None) for i, rank in ranks.items()]
            adapter = cls(config, stack, [block for block in blocks if any(True for _ in block.module.parameters())])
            missing.append(adapter.missing)
            claims = adapter.claims()
            if not claims:
                continue  # e.g. no attention in the tower of a vector
            self._claim(name, claims, f"placement {number} ({placement.adapter})", at)
            self.blocks.append(adapter)
            told.append(f"{name} blocks {', '.join(map(str, ranks))} ({len(claims)} places)")
            self.placed.append(Placed(number, adapter, name, placement.from_epoch))
        nowhere = frozenset.intersection(*missing)
        if nowhere or not told:
            roles = {f"{name}: {', '.join(self._stack(name).roles) or 'none'}" for name in chosen}
            raise FusetuneError(
                f"{at}: no chosen block has {' or '.join(sorted(nowhere)) or 'what it needs'}. The parts that blocks "
                f"have by name: {'; '.join(sorted(roles))}. A path in a block may be given instead."
            )
        self.resolved.append(f"{placement.adapter} in {'; '.join(told)}")

    def _own_connectors(self, placement: Any, at: str) -> dict[str, dict[int, int | None]]:
        """By tower, the number of the block that a model's own connector is."""
        towers = {name: self.backbone.tower(name) for name in self.streams}
        found = {n: t for n, t in towers.items() if len(getattr(t, "connector", ())) == 1}
        check(
            bool(found),
            f"{at}: '{placement.adapter}' takes the place of a connector that is one module, in a model that speaks "
            "(LLaVA, PaliGemma, Qwen2-VL, Idefics3, SmolVLM); there is none here.",
        )
        return {name: {tower.depth - 1: None} for name, tower in found.items()}

    def _behind_blocks(self, cls: Any, config: Any, placement: Any, number: int, at: str) -> None:
        chosen = choose(placement.blocks, self._offered(TRUNK, at), at)[TRUNK]
        last = self.backbone.trunk.depth - 1
        if self.task.speaks and last in chosen:
            del chosen[last]
            check(bool(chosen), f"{at}: behind the last language block nothing reads a stream. Choose others.")
            self.resolved.append(f"no {placement.adapter} behind the last language block: nothing reads a stream there")
        asked = getattr(self.backbone.trunk, "asked", None)
        late = [i for i in chosen if asked is not None and i >= asked]
        if late and len(late) < len(chosen):
            for i in late:
                del chosen[i]
            told = f"no {placement.adapter} behind trunk blocks {', '.join(map(str, late))}: there an answer is said"
            self.resolved.append(told)
        streams = self._met_streams(self.backbone.in_trunk(self.streams))
        made = {}
        for i, rank in chosen.items():
            made[i] = cls(cls.sized(config, rank), streams)
            if made[i].streams_out(streams) != streams:
                raise FusetuneError(f"{at}: '{placement.adapter}' changes the streams; inside the trunk it can't.")
        adapter = BehindBlocks(made, self.backbone.trunk)
        self.blocks.append(adapter)
        self._done(placement, number, adapter, TRUNK, f"behind trunk blocks {', '.join(map(str, chosen))}")

    def _connector(self, adapter: Any, placement: Any, number: int, at: str) -> None:
        depths = {name: self.backbone.tower(name).depth for name in self.streams}
        reach = adapter.reach(depths)
        for name in self.streams:
            if reach[name] < depths[name]:
                if self.backbone.tower(name).kind not in ("text", "sequence"):
                    raise FusetuneError(
                        f"{at}: the tower of '{name}' takes no added tokens; a text or a sequence does."
                    )
                self._claim(name, ["tokens in front"], f"placement {number} ({placement.adapter})", at)
        before, after = self._tower_streams(), adapter.streams_out(self._tower_streams())
        towers = {name: self.backbone.tower(name) for name in self.streams}
        gridded = {name: tower for name, tower in towers.items() if getattr(tower, "gridded", False)}
        check(
            all(after[n] in (before[n], Stream(t.width, t.tokens_out(1))) for n, t in gridded.items()),
            f"{at}: '{placement.adapter}' changes how many places a picture has, and these language blocks know their "
            "rows and columns, or tiles. Expected an adapter that keeps them.",
        )
        self.connectors.append(adapter)
        behind = "the trunk" if self.backbone.trunk else "the junction"
        self._done(placement, number, adapter, "connector", f"in front of {behind}")

    def _at_junction(self, cls: Any, config: Any, placement: Any, number: int, at: str) -> None:
        if self.task.speaks:
            raise FusetuneError(
                f"{at}: behind the last language block nothing reads what '{placement.adapter}' makes of the streams: "
                "the model's own head answers, word by word. Place it in the language blocks: where: trunk."
            )
        streams = self._met_streams(self.streams)
        for before in self.junction:
            streams = before.streams_out(streams)
        if placement.task is None:
            if self.branches:
                raise FusetuneError(f"{at}: what all tasks share stands before what is of one task.")
            for names in [None] if self.task.fuses else self.task.fused_apart():
                own = streams if names is None else {name: streams[name] for name in names}
                adapter = cls(config, own) if names is None else OneSide(cls(config, own), names)
                self.junction.append(adapter)
                told = "at the junction" + (f", of {', '.join(names)}" if names else "")
                self._done(placement, number, adapter, "junction", told)
            return
        tasks = getattr(self.task, "tasks", {})
        if placement.task not in tasks:
            raise FusetuneError(f"{at}.task: no task '{placement.task}'. Known: {', '.join(tasks) or 'one task only'}.")
        branch = self.branches.setdefault(placement.task, [])
        for before in branch:
            streams = before.streams_out(streams)
        adapter = cls(config, streams)
        branch.append(adapter)
        self._done(placement, number, adapter, "junction", f"at the junction, of task '{placement.task}'")

    def _done(self, placement: Any, number: int, adapter: Adapter, site: str, told: str) -> None:
        self.placed.append(Placed(number, adapter, site, placement.from_epoch))
        self.resolved.append(f"{placement.adapter} {told}")

    def _claim(self, stack: str, names: Sequence[str], who: str, at: str) -> None:
        for name in names:
            other = self.claimed.setdefault(f"{stack}: {name}", who)
            if other != who:
                taken = sorted(key for key, holder in self.claimed.items() if holder == other)
                raise FusetuneError(
                    f"{at}: '{stack}: {name}' is taken by {other} already, which holds {', '.join(taken[:5])}"
                    f"{f' and {len(taken) - 5} more' if len(taken) > 5 else ''}. Choose other blocks or parts."
                )

    def _offered(self, where: str, at: str) -> list[Choice]:
        if where == "towers":
            towers = {name: self.backbone.tower(name) for name in self.streams}
            offered = [Choice(name, tower.kind, tower.depth) for name, tower in towers.items() if tower.depth]
            return [*offered, *(self._offered(TRUNK, at) if self.backbone.origin else [])]  # the tower of its texts
        if self.backbone.trunk is None:
            raise FusetuneError(
                f"{at}: there is no trunk here. Use a backbone with one and data.use_trunk: true, or place the adapter "
                "in the towers or at the junction."
            )
        kind = "text" if self.backbone.origin else TRUNK  # language blocks are what presets mean by language
        return [Choice(TRUNK, kind, self.backbone.trunk.depth)]

    def _stack(self, name: str) -> Stack:
        module = self.backbone.stack(name)
        if name == TRUNK:
            return Stack(name, module, module.roles(), self._met_streams(self.streams))  # type: ignore[operator]
        return Stack(name, module, module.roles(), {name: self._tower_streams()[name]})  # type: ignore[operator]

    def _tower_streams(self) -> dict[str, Stream]:
        return {n: Stream(self.backbone.tower(n).width, s.max_tokens) for n, s in self.streams.items()}

    def _met_streams(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        """The streams behind all connectors."""
        behind = self._tower_streams()
        for connector in self.connectors:
            behind = connector.streams_out(behind)
        return {name: Stream(s.width, behind[name].max_tokens) for name, s in streams.items()}


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
