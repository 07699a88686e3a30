"""Towers of our own: a frozen dataclass of settings, and weights beside it on disk."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import load_file, save_file

from fusetune.backbones.tower import Tower
from fusetune.config import build, to_plain
from fusetune.errors import FusetuneError


class OwnTower(Tower):
    """Saved as `config.json` and `model.safetensors`; `__init__(settings)`."""

    Settings: ClassVar[type[Any]]
    settings: Any

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def preprocessing(self) -> dict[str, Any]:
        return {"tower": type(self).__name__, **to_plain(self.settings)}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_plain(self.settings), indent=2) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Raises FusetuneError for a folder that `save_pretrained` didn't write."""
        folder = Path(source)
        if not (folder / "config.json").is_file():
            raise FusetuneError(f"{folder}: expected the folder of a {cls.__name__} with config.json in it.")
        settings = json.loads((folder / "config.json").read_text())
        tower = cls(build(cls.Settings, settings, str(folder / "config.json")))
        tower.load_state_dict(load_file(folder / "model.safetensors"))
        return tower.eval()
