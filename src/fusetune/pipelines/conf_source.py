"""Which conf is in use: the project's own folder, or what `--conf-source` names, a folder or an archive."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

_used: list[tuple[Path, str | None]] = []


def project_root() -> Path:
    """Where data and MLflow's database lie: the project that this process works in, else its working directory."""
    from kedro.utils import find_kedro_project

    found = find_kedro_project(Path.cwd())
    checkout = Path(__file__).parents[3]
    return Path(found or (checkout if (checkout / "conf").is_dir() else Path.cwd()))


def use_conf(source: str | Path, env: str | None) -> None:
    """From now on, methods come from here: from base, and from this environment."""
    _used[:] = [(Path(source), env)]


def conf_source() -> Path:
    return _used[0][0] if _used else project_root() / "conf"


def conf_env() -> str | None:
    """The environment in use; None: nobody has said, as where pipelines are listed."""
    return _used[0][1] if _used else None


def method_names(conf: Path, env: str | None = None) -> list[str]:
    """The methods: every ``methods/<name>.yml`` of base and of an environment; None: of any."""
    if conf.is_dir():
        paths = [PurePosixPath(file.relative_to(conf)) for file in conf.glob("*/methods/*.yml")]
    else:
        paths = [path for name in _members(conf) if (path := PurePosixPath(name)).suffix == ".yml"]
    seen = {path for path in paths if path.parent.name == "methods"}
    return sorted({path.stem for path in seen if env is None or path.parent.parent.name in ("base", env)})


def read_file(conf: Path, name: str) -> str | None:
    """A file at the top of a conf; None where there is none."""
    if conf.is_dir():
        return (conf / name).read_text() if (conf / name).is_file() else None
    member = next((m for m in _members(conf) if PurePosixPath(m).name == name), None)
    if member is None:
        return None
    if zipfile.is_zipfile(conf):
        with zipfile.ZipFile(conf) as archive:
            return archive.read(member).decode()
    with tarfile.open(conf) as archive:
        found = archive.extractfile(member)
        return found.read().decode() if found else None


def _members(archive: Path) -> list[str]:
    if not archive.is_file():
        return []
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    with tarfile.open(archive) as opened:
        return opened.getnames()
