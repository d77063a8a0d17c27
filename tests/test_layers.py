"""The house: which module may import which, how long it may be, what an import costs."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdray import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xdray"

# A module imports only from rows above its own, never sideways.
ROWS = (
    ("redaction", "hidden"),
    (
        "errors",
        "modeling_bilstm",
        "config_data",
        "sentences",
        "agreement",
        "tokenised",
        "wordpieces",
        "exchange",
        "signals",
        "strict_json",
    ),
    (
        "remote",
        "config_cluster",
        "config_recipe",
        "config_search",
        "config_export",
        "words",
        "quantization",
        "workspace",
    ),
    ("windows", "watching"),
    (
        "config",
        "labels",
        "storage",
        "console",
        "learner",
        "places",
        "workers",
        "figures",
        "sampling",
        "padding",
        "fronts",
        "graphs",
    ),
    ("mirror", "squad", "hub", "sessions"),
    ("header",),
    (
        "weights",
        "configfile",
        "readers",
        "entities",
        "losses",
        "stages",
        "embeddings",
        "resources",
        "batches",
        "batch_plan",
        "forwarding",
        "parts",
        "sample",
        "pictures",
    ),
    ("fleet",),
    (
        "corpus",
        "runs",
        "cluster",
        "tokens",
        "stage_files",
        "trial_files",
        "space",
        "pages",
        "recipes",
        "loader",
    ),
    ("alignment", "questions", "recording", "costs"),
    ("tagged", "targets", "task", "vocabulary", "proposals", "search_pictures"),
    (
        "encoders",
        "kinds",
        "tasks.tagging",
        "tasks.classification",
        "tasks.regression",
        "tasks.answering",
        "tasks.encoding",
    ),
    ("teacher", "student", "terms"),
    ("finetuning", "splits"),
    ("evaluation", "annotator", "steps", "reading", "saving"),
    ("runtimes",),
    ("training", "sources", "starts", "checks"),
    ("lessons",),
    ("learning", "annotation", "planning", "prediction", "report"),
    ("assessment", "scoring", "trials", "search_report", "suite"),
    ("distillation", "trial_pool"),
    ("search", "search_plan", "export", "benchmark"),
    ("arguments",),
    ("cli",),
    ("__main__",),
)
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}
RAY = {"cluster", "distillation", "search"}  # the only ones that import it
ALONE = {
    "modeling_bilstm": {"torch", "transformers"}
}  # may import only these: it goes with students
LINES = 350
LONGER = {"training": 400, "config": 400}  # one loop, read top to bottom; one list of fields
PACKAGES = {"", "tasks"}  # their __init__ says what they are, no more

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
CODE = {name: path for name, path in MODULES.items() if name.removesuffix(".") not in PACKAGES}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Modules of xdray that a file imports, in the table's words."""
    found = set()
    for name in imports(path):
        if name == "xdray" or name.startswith("xdray."):
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in CODE:
                parts.pop()
            found.add(".".join(parts))
    return found - {""}  # xdray itself: its version


@pytest.mark.parametrize("module", CODE)
def test_module_has_a_row_and_imports_only_from_rows_above(module):
    assert module in ROW, f"{module} has no row; give it one in ROWS"
    wrong = {other for other in ours(CODE[module]) if ROW.get(other, 99) >= ROW[module]}
    assert not wrong, f"row {ROW[module]} imports from its own row or below: {sorted(wrong)}"


@pytest.mark.parametrize("module", PACKAGES)
def test_package_file_imports_nothing(module):
    path = MODULES[f"{module}." if module else ""]
    assert not list(imports(path))


@pytest.mark.parametrize("module", CODE)
def test_ray_is_imported_by_three_modules_only(module):
    found = {name for name in imports(CODE[module]) if name.split(".")[0] == "ray"}
    assert module in RAY or not found


@pytest.mark.parametrize("module", ALONE)
def test_modelling_file_stands_alone(module):
    others = {name.split(".")[0] for name in imports(CODE[module])} - set(sys.stdlib_module_names)
    assert others <= ALONE[module]


@pytest.mark.parametrize("module", CODE)
def test_module_is_short(module):
    lines = len(CODE[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGER.get(module, LINES)


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda job: job.stem)
def test_job_is_short_and_leaves_ray_to_the_package(job):
    assert len(job.read_text(encoding="utf-8").splitlines()) < 60
    assert not {name for name in imports(job) if name.split(".")[0] in {"ray", "torch"}}


@pytest.mark.parametrize(
    "module", ["xdray", "xdray.config", "xdray.corpus", "xdray.sample", "xdray.tasks.answering"]
)
def test_import_loads_neither_torch_nor_transformers_nor_ray(module):
    heavy = "{'torch', 'transformers', 'ray'} & set(sys.modules)"
    code = f"import sys, {module}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_paths_beside_the_checkout_are_named_only_in_configs_and_documents():
    allowed = {"configs", "docs", "benchmarks"}
    beside = "../" + "shared"  # in two parts, so that this file does not hold it
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files
    for file in files:
        if file.relative_to(ROOT).parts[0] in allowed or file.suffix == ".md" or not file.exists():
            continue
        assert beside.encode() not in file.read_bytes(), file


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_error_survives_pickling(kind):
    found = pickle.loads(pickle.dumps(kind("a.conll:3: 1 column, expected 2; add a tag")))
    assert type(found) is kind
    assert str(found) == "a.conll:3: 1 column, expected 2; add a tag"
    assert issubclass(kind, errors.XdrayError)
