"""The house as DESIGN draws it: who may import whom, and what start-up may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fusetune"
KEDRO_SIDE = {"pipelines", "hooks.py", "settings.py", "pipeline_registry.py", "__main__.py"}
FLOORS = [
    {
        "errors",
        "config",
        "registry",
        "tokens",
        "schedule",
        "filehash",
        "scratch",
        "device",
        "cluster",
        "on_disk",
        "keys",
    },
    {"manifest", "tasks", "worlds"},
    {"backbones"},
    {"adapters", "features"},
    {"plan"},
    {"training"},
    {"bank"},
    {"runs"},
    {"comparison"},
    {"report"},
]


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


CORE = [f for f in sorted(SOURCE.rglob("*.py")) if f.relative_to(SOURCE).parts[0] not in KEDRO_SIDE]


@pytest.mark.parametrize("file", CORE, ids=lambda f: str(f.relative_to(SOURCE)))
def test_the_core_knows_neither_kedro_nor_mlflow_nor_dvc_nor_a_floor_above(file):
    found = imports(file)
    outside = {name.split(".")[0] for name in found} & {"kedro", "mlflow", "dvc", "kedro_datasets"}
    if file.name == "mlflow_model.py":
        outside -= {"mlflow"}
    assert not outside
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    floor = next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)
    for name in found if file.name != "__main__.py" else ():  # a program of its own: it may call anybody below Kedro
        parts = name.split(".")
        if parts[0] == "fusetune" and len(parts) > 1 and floor is not None:
            above = {r for rooms in FLOORS[floor + 1 :] for r in rooms} | {"pipelines"}
            assert parts[1] not in above, f"{file.name} imports {name} from a floor above"


def test_files_are_read_in_one_sitting():
    long = {f.name: n for f in SOURCE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 300}
    assert not long


def test_listing_the_pipelines_imports_nothing_heavy():
    code = (
        "import sys; from fusetune.pipeline_registry import register_pipelines; register_pipelines();"
        "import fusetune.settings;"
        "heavy = ('torch', 'transformers', 'peft', 'mlflow', 'pandas', 'pyarrow', 'matplotlib');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parents[1])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_core_runs_where_kedro_mlflow_and_dvc_are_not_installed():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('kedro', 'mlflow', 'dvc', 'pandera', 'pandas'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import fusetune.runs.__main__ as m, fusetune.runs.run\n"
        "print(m.main(['--method', 'none', '--conf', 'conf/base', '--manifest', 'x', '--base', 'x',"
        " '--store', 'x', '--out', 'x']))\n"
    )
    root = SOURCE.parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "1", done.stderr
    assert "no conf/base/methods/none.yml" in done.stderr


def test_test_files_have_names_of_their_own():
    """Two of one name are one module to pytest, and the second isn't collected."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) > 100 and sorted(set(names)) == sorted(names)
