"""An artifact: a trained adapter as a folder that names the base it belongs to.

adapter_config.json         plan, task and labels, modalities, preprocessing, streams, base, frontier, versions
adapter_model.safetensors   the trained tensors, nothing else
README.md                   the card
peft/<tower or trunk>/      of a plan of LoRA alone, the same as Hugging Face `peft` reads it
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fusetune import __version__
from fusetune.adapters.adapter import Stream
from fusetune.adapters.trained import CONFIG, WEIGHTS, self_contained
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.bases import find_base
from fusetune.backbones.sharing import copied
from fusetune.bank.artifact_config import check_sizes, checked_config
from fusetune.bank.hub import downloaded, upload
from fusetune.bank.peft_format import write_peft_folders
from fusetune.config import build, check, digest, to_plain
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.plan import Plan
from fusetune.training.data import DataSettings, load_backbone, make_task, meet, without_roots

FORMAT = 2
CARD = "README.md"
LONGEST = 2000  # characters of a setting; a longer one (a vocabulary) is given by its SHA-256
RESTORE = "Restore it, e.g. by `dvc pull`, or train again."


@dataclass(frozen=True)
class Artifact:
    """What `save_pretrained` writes and `from_pretrained` reads.

    Attributes:
        config: JSON-ready; see `of`.
        tensors: trained parameters by name in `AdaptedModel`.
        card: Markdown.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    card: str = ""

    @classmethod
    def of(cls, model: AdaptedModel, data: DataSettings, method: str, card: str, frontier: Frontier) -> "Artifact":
        """The artifact of a trained and folded model."""
        tensors = {name: p.detach().cpu().contiguous().clone() for name, p in model.kept().items()}
        names = list(data.modalities)
        config = {
            "format": FORMAT,
            "method": method,
            "plan": self_contained(to_plain(model.plan)),
            "data": without_roots(data),
            "task_state": model.task.state(),
            "streams": to_plain(model.streams),
            "preprocessing": {name: _short(model.backbone.tower(name).preprocessing()) for name in names},
            "base_fingerprint": model.backbone.fingerprint(names),
            "base_sources": model.backbone.part(names).sources(),
            "base_parameters": model.base_count(),
            "kept_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "frontier": to_plain(frontier),
            "modules_of_whole": _whole_places(model.backbone),
            "versions": _versions(),
        }
        return cls(config, tensors, card)

    def save_pretrained(self, folder: str | Path, push_to_hub: bool = False, repo_id: str = "") -> None:
        """Write the folder; on request also `push_to_hub`, as elsewhere in the ecosystem."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save(dict(self.tensors))
        config = {**self.config, "weights_sha256": hashlib.sha256(weights).hexdigest()}
        (folder / CONFIG).write_text(json.dumps({**config, "config_sha256": digest(config)}, indent=2) + "\n")
        (folder / WEIGHTS).write_bytes(weights)
        (folder / CARD).write_text(self.card)
        write_peft_folders(self.config, self.tensors, folder)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name)

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Upload to a model hub, e.g. ``me/my-adapter``; returns the commit's address.

        Raises:
            FusetuneError: not logged in, no network, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Artifact":
        """Read a folder, or what a hub holds under an id such as ``me/my-adapter``.

        Raises:
            FusetuneError: a folder that is none, of another format, or whose bytes are not those that were saved.
        """
        folder = downloaded(source, [CONFIG, WEIGHTS, CARD], revision)
        config = _config_in(folder)
        expected = config.pop("weights_sha256", None)
        try:
            data = (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise FusetuneError(f"{folder / WEIGHTS}: can't be read ({error.strerror}). {RESTORE}") from None
        check(
            hashlib.sha256(data).hexdigest() == expected,
            f"{folder / WEIGHTS}: not the bytes that were saved with this {CONFIG}, or only a part of them. {RESTORE}",
        )
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise FusetuneError(f"{folder / WEIGHTS}: no safetensors ({error}). {RESTORE}") from None
        checked_config(config, str(folder / CONFIG))
        check_sizes(config, sum(tensor.numel() for tensor in tensors.values()), str(folder / CONFIG))
        card = folder / CARD
        return cls(config, tensors, card.read_text(errors="replace") if card.is_file() else "")

    def with_plan(self, plan: Mapping[str, Any]) -> "Artifact":
        """Another plan for the same task, data and base; there are no tensors for it yet."""
        return replace(self, config={**self.config, "plan": plan}, tensors={})

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def data(self) -> DataSettings:
        return build(DataSettings, self.config["data"], "adapter_config.data")

    @property
    def frontier(self) -> Frontier:
        """Below it the adapter changes nothing."""
        return build(Frontier, self.config["frontier"], "adapter_config.frontier")

    def base_in(self, bases: Path) -> Path:
        """The base that it was trained on, of a folder of bases; raises FusetuneError if it isn't there."""
        data = self.data()
        return find_base(bases, self.config["base_fingerprint"], list(data.modalities), data.use_trunk)

    def build(self, base: str | Path) -> AdaptedModel:
        """The trained model on a fresh backbone from `base`; raises as `onto` does."""
        return self.onto(load_backbone(base, self.data()), base)

    def onto(self, backbone: Backbone, base: str | Path, fitted: bool = False) -> AdaptedModel:
        """The trained model on a backbone of its own modalities, in eval mode and attached.

        Args:
            base: where the backbone came from, for messages.
            fitted: whether `fits` has been asked before.

        Raises:
            FusetuneError: the base is not the one that the adapter was trained on, or tensors are missing, too many,
                or of another shape; the backbone is as it was.
        """
        check_base(backbone, self.data(), self.config["base_fingerprint"], base)
        if not fitted:
            self.fits(skeleton(backbone))
        model = self.placed(backbone)
        try:
            model.fold()
            model.load(self.tensors, WEIGHTS)
        except BaseException:
            model.detach()
            raise
        model.set_epoch(model.stages()[-1])  # gradual unfreezing is over
        return model.eval()

    def untrained(self, backbone: Backbone, base: str | Path) -> AdaptedModel:
        """The model as it was before training."""
        check_base(backbone, self.data(), self.config["base_fingerprint"], base)
        return self.placed(backbone)

    def fits(self, skeleton: Backbone) -> None:
        """Raise FusetuneError unless the tensors are those of the plan: names, shapes and dtypes, before any is made.

        Args:
            skeleton: of the backbone; see `skeleton`.
        """
        with torch.device("meta"):
            model = self.placed(skeleton)
            try:
                model.fold()
                model.check_tensors(self.tensors, WEIGHTS)
            finally:
                model.detach()

    def placed(self, backbone: Backbone) -> AdaptedModel:
        """The plan on a backbone, whatever weights that has; nothing trained is in it yet."""
        try:
            task = make_task(self.data().task)
            task.restore(self.config["task_state"])
            meet(task, backbone)
            streams = {name: build(Stream, s, f"streams.{name}") for name, s in self.config["streams"].items()}
            plan = build(Plan, self.config["plan"], "adapter_config.plan")
            return AdaptedModel(backbone, plan, task, streams, self.config["method"])
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise FusetuneError(
                f"{CONFIG}: no adapter can be made of it ({type(error).__name__}: {str(error)[:200]}). {RESTORE}"
            ) from error


def skeleton(backbone: Backbone) -> Backbone:
    """The same backbone without any values: what is placed on it costs no memory."""
    return copied(backbone, _hollow)


def _hollow(tensor: Tensor) -> Tensor:
    hollow = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else hollow


def check_base(backbone: Backbone, data: DataSettings, expected: str, base: str | Path) -> None:
    """Raise FusetuneError unless the backbone's weights are the very ones of `expected`."""
    backbone.remember_fingerprints()  # asked for again and again, and no adapter is on it yet
    found = backbone.fingerprint(list(data.modalities))
    check(
        found == expected,
        f"base '{base}': its fingerprint is {found[:12]}, but the adapter was trained on {expected[:12]}. "
        "Give the base that it was trained on (FUSETUNE_BASE, or `dvc checkout`), or train again.",
    )


def _config_in(folder: Path) -> dict[str, Any]:
    """The config as it was saved, without its own checksum."""
    file = folder / CONFIG
    check(file.is_file(), f"{folder}: expected an adapter's folder with {CONFIG} in it.")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise FusetuneError(f"{file}: no JSON ({error}). {RESTORE}") from None
    check(isinstance(config, dict), f"{file}: expected settings by name, found a {type(config).__name__}. {RESTORE}")
    found = config.get("format")
    check(
        "peft_type" not in config,
        f"{file}: written by `peft`, without a task. Name the folder as `pretrained` in the config of a `lora`.",
    )
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        todo = f"Update fusetune (this is {__version__})." if newer else "Train again."
        raise FusetuneError(f"{file}: format {found}, this version reads {FORMAT}. {todo}")
    expected = config.pop("config_sha256", None)
    check(digest(config) == expected, f"{file}: changed since it was saved. {RESTORE}")
    return config


def _whole_places(backbone: Backbone) -> dict[str, str]:
    """Where modules of a composite model's towers and trunk stand in it, by name here; empty for other backbones."""
    if not backbone.origin:
        return {}
    parts = {f"towers.{name}": tower for name, tower in backbone.towers.items()} | {"trunk": backbone.trunk}
    return {
        f"backbone.{part}.{own}.": f"{path}."
        for part, module in parts.items()
        for own, path in getattr(module, "modules_of_whole", dict)().items()
    }


def _short(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {key: _short(value) for key, value in settings.items()}
    plain = json.loads(json.dumps(to_plain(settings), default=str))
    return {"sha256": digest(plain)} if len(json.dumps(plain)) > LONGEST else plain


def _versions() -> dict[str, str]:
    """Of what the outputs depend on."""
    found = {"fusetune": __version__}
    for package in ("torch", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
