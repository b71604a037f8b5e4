"""The frame: cog.yaml, signatures that Cog can read, pins, ignore files, the Makefile and what documents say of it."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, project_files

# --- cog.yaml -----------------------------------------------------------------------------------------------------
# Cog refuses unknown keys; what it only warns of (predict, python_packages, pre_install, concurrency) is left out here.
TOP_KEYS = {"build": dict, "image": str, "run": str, "train": str, "environment": list}
BUILD_KEYS = {
    "gpu": bool,
    "cuda": str,
    "python_version": str,
    "python_requirements": str,
    "sdk_version": str,
    "system_packages": list,
    "run": list,
}
# The CUDA versions in Cog's table for the newest torch it knows, and the Pythons that go with them.
TORCH_KNOWN_TO_COG = {"2.11.0": {"12.6", "12.8", "12.9", "13.0"}}
PYTHONS_KNOWN_TO_COG = {"3.10", "3.11", "3.12", "3.13", "3.14"}
FORBIDDEN_ENVIRONMENT = [
    "PATH",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CUDA_*",
    "NVIDIA_*",
    "NV_*",
    "R8_*",
    "REPLICATE_*",
    "PGET_*",
    "KUBERNETES_*",
    "HF_ENDPOINT",
    "HF_HUB_ENABLE_HF_TRANSFER",
    "COG_OBSERVABILITY_*",
    "COG_TRACE_*",
    "COG_METRICS_*",
    "OTEL_*",
]


@pytest.fixture(scope="module")
def cog_yaml() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))


def test_cog_yaml_has_only_keys_cog_knows_with_their_types(cog_yaml: dict[str, Any]) -> None:
    for section, known in ((cog_yaml, TOP_KEYS), (cog_yaml["build"], BUILD_KEYS)):
        for key, value in section.items():
            assert key in known, f"unknown or deprecated key: {key}"
            # An unquoted 3.10 would be the number 3.1: a version that is no string fails here.
            assert type(value) is known[key], f"{key}: {value!r}"


def test_cog_yaml_names_the_image_that_was_decided(cog_yaml: dict[str, Any]) -> None:
    build = cog_yaml["build"]
    assert build["gpu"] is True
    assert build["python_version"] in PYTHONS_KNOWN_TO_COG
    torch = pins("requirements.txt")["torch"]
    assert build["cuda"] in TORCH_KNOWN_TO_COG.get(torch, set()), (
        f"Cog knows no torch {torch} with CUDA {build['cuda']}"
    )
    assert (ROOT / build["python_requirements"]).is_file()


@pytest.mark.parametrize(("key", "kind"), [("run", ast.ClassDef), ("train", ast.AsyncFunctionDef)])
def test_cog_yaml_points_to_what_exists(cog_yaml: dict[str, Any], key: str, kind: type[ast.AST]) -> None:
    file, _, name = cog_yaml[key].partition(":")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert any(isinstance(node, kind) and getattr(node, "name", "") == name for node in tree.body)


def test_cog_yaml_sets_only_environment_variables_that_cog_allows(cog_yaml: dict[str, Any]) -> None:
    names = []
    for entry in cog_yaml.get("environment", []):
        assert isinstance(entry, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", entry), f"not NAME=value: {entry!r}"
        names.append(entry.partition("=")[0])
    assert len(names) == len(set(names))
    forbidden = [name for name in names for pattern in FORBIDDEN_ENVIRONMENT if fnmatchcase(name, pattern)]
    assert not forbidden


def test_image_and_laptop_run_the_same_cog(cog_yaml: dict[str, Any]) -> None:
    laptop = pins("requirements-cpu.txt")
    assert cog_yaml["build"]["sdk_version"] == laptop["cog"] == laptop["coglet"]
    assert not {"cog", "coglet"} & pins("requirements.txt").keys(), "Cog strikes them out of requirements.txt"
    pin = f"coglet=={laptop['coglet']}"
    assert cog_yaml["build"]["run"] == [f"uv pip install {pin} || pip install {pin}"], "cog build leaves it to chance"


# --- signatures that Cog's static schema can read -----------------------------------------------------------------
# Cog's command line never imports the code. What it can't read fails the build or, worse, drops out of the schema
# unsaid: so every argument is checked here by the strictest of its rules.
INPUT_ARGUMENTS = {
    "default", "description", "ge", "le", "min_length", "max_length", "regex", "choices", "deprecated", "accept",
}  # fmt: skip
MAY_BE_A_CONSTANT = {"default", "description", "choices"}
INPUT_TYPES = {"str", "int", "float", "bool", "dict", "Path", "Secret"}


class Signature:
    """The parameters of one entry point, as the source has them."""

    def __init__(self, source: str, *names: str) -> None:
        self.source = source
        self.tree = ast.parse(self.source)
        self.constants = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        self.node: Any = self.tree
        for name in names:
            self.node = next((node for node in self.node.body if getattr(node, "name", "") == name), None)
            assert self.node is not None, f"there is no {'.'.join(names)}"

    def faults(self) -> list[str]:
        """Every argument of an Input that Cog would refuse, drop or misread."""
        faults = []
        for parameter, arguments in self.inputs():
            for name, value in arguments.items():
                if name not in INPUT_ARGUMENTS:
                    faults.append(f"{parameter.arg}: Input has no {name} in Cog's static schema")
                elif isinstance(value, ast.Name) and name not in MAY_BE_A_CONSTANT:
                    faults.append(f"{parameter.arg}: {name}={value.id} is dropped: only a literal is read here")
                elif fault := self.fault(self.resolve(value)):
                    faults.append(f"{parameter.arg}: {name}: {fault}")
        return faults

    def parameters(self) -> Iterator[tuple[ast.arg, ast.expr | None]]:
        arguments = self.node.args
        assert not (arguments.vararg or arguments.kwarg or arguments.posonlyargs), "Cog reads named parameters only"
        plain = [argument for argument in arguments.args if argument.arg != "self"]
        defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
        yield from zip(plain, defaults, strict=True)
        yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)

    def inputs(self) -> Iterator[tuple[ast.arg, dict[str, ast.expr]]]:
        """Each parameter with the arguments of its Input(...); a plain default counts as `default`."""
        for parameter, default in self.parameters():
            if isinstance(default, ast.Call) and isinstance(default.func, ast.Name) and default.func.id == "Input":
                assert not default.args, f"{parameter.arg}: Cog reads only keyword arguments of Input"
                yield parameter, {keyword.arg or "**": keyword.value for keyword in default.keywords}
            else:
                yield parameter, {} if default is None else {"default": default}

    def resolve(self, value: ast.expr) -> ast.expr:
        return self.constants.get(value.id, value) if isinstance(value, ast.Name) else value

    def fault(self, value: ast.expr) -> str | None:
        """Why Cog's reader would misread a literal; None where it reads what Python reads."""
        try:
            ast.literal_eval(value)
        except ValueError:
            return "not a literal"
        text = ast.get_source_segment(self.source, value) or ""
        kinds: list[int] = []
        for token in tokenize.generate_tokens(io.StringIO(f"({text})").readline):
            if token.type == tokenize.STRING:
                if kinds and kinds[-1] == tokenize.STRING:
                    return "strings joined by standing side by side keep their quotes in Cog's schema"
                if "\\" in token.string or not re.match(r"r?[\"']", token.string):
                    return "escapes and string prefixes are not interpreted"
            if token.type == tokenize.NUMBER and "_" in token.string:
                return "a number with underscores is not read"
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                kinds.append(token.type)
        return None


def run_signature() -> Signature:
    return Signature((ROOT / "predict.py").read_text(encoding="utf-8"), "Runner", "run")


def train_signature() -> Signature:
    return Signature((ROOT / "train.py").read_text(encoding="utf-8"), "train")


SIGNATURES = pytest.mark.parametrize("read", [run_signature, train_signature], ids=["run", "train"])


@SIGNATURES
def test_every_input_argument_is_a_literal(read: Any) -> None:
    faults = read().faults()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("argument", "fault"),
    [
        ("default=2 * 3", "not a literal"),
        ("default=LIMIT, ge=1, description='plain'", None),
        ("ge=LIMIT", "dropped"),
        ("default_factory=list", "no default_factory"),
        ("description='a' 'b'", "side by side"),
        ("description='line\\nline'", "escapes"),
        ("description=f'{LIMIT}'", "not a literal"),
        ("le=1_000", "underscores"),
        ("choices=[1, OTHER]", "not a literal"),
    ],
)
def test_the_check_of_signatures_sees_what_cog_would_not(argument: str, fault: str | None) -> None:
    source = f"LIMIT = 5\n\ndef train(x: int = Input({argument})) -> str: ...\n"
    found = Signature(source, "train").faults()
    assert not found if fault is None else len(found) == 1 and fault in found[0], found


def annotation_is_known(node: ast.expr) -> bool:
    """One of Cog's types, list[T], Optional[T] or T | None; a list holds no optional."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [side for side in (node.left, node.right) if ast.unparse(side) != "None"]
        return len(sides) == 1 and annotation_is_known(sides[0])
    if isinstance(node, ast.Subscript):
        outer, inner = ast.unparse(node.value), node.slice
        if outer == "Optional":
            return annotation_is_known(inner)
        if outer in ("list", "List"):
            return isinstance(inner, ast.Name | ast.Subscript) and annotation_is_known(inner) and not is_optional(inner)
        return outer in ("dict", "Dict")
    return isinstance(node, ast.Name) and node.id in INPUT_TYPES


def is_optional(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) == "Optional"
    return isinstance(node, ast.BinOp) and "None" in (ast.unparse(node.left), ast.unparse(node.right))


@SIGNATURES
def test_every_parameter_has_a_type_of_cogs(read: Any) -> None:
    for parameter, arguments in read().inputs():
        assert parameter.annotation is not None, f"{parameter.arg} has no type"
        assert annotation_is_known(parameter.annotation), f"{parameter.arg}: {ast.unparse(parameter.annotation)}"
        default = arguments.get("default")
        if default is not None and ast.unparse(default) == "None":
            assert is_optional(parameter.annotation), f"{parameter.arg}: with None as default it must be Optional"


@SIGNATURES
def test_names_in_signatures_are_imported_from_where_cog_looks(read: Any) -> None:
    signature = read()
    origin = {
        alias.asname or alias.name: node.module
        for node in signature.tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    used = {
        node.id
        for parameter, _ in signature.parameters()
        for node in ast.walk(parameter.annotation)
        if isinstance(node, ast.Name)
    }
    for name in used & {"Path", "Secret"}:
        assert origin.get(name) == "cog", f"{name} must come from cog, not from {origin.get(name)}"
    assert origin.get("Input") == "cog"


@SIGNATURES
def test_choices_are_two_or_more_and_stand_alone(read: Any) -> None:
    signature = read()
    for parameter, arguments in signature.inputs():
        if "choices" not in arguments:
            continue
        choices = ast.literal_eval(signature.resolve(arguments["choices"]))
        assert isinstance(choices, list) and len(choices) >= 2, parameter.arg
        assert all(type(choice) in (str, int) for choice in choices), parameter.arg
        assert not {"ge", "le"} & arguments.keys(), parameter.arg
        if "default" in arguments:
            default = ast.literal_eval(signature.resolve(arguments["default"]))
            assert default is None or default in choices, f"{parameter.arg}: {default!r} is not among the choices"


def test_run_and_train_share_no_name_that_has_choices() -> None:
    """Cog merges both schemas, and the enum of one would overwrite the other's."""
    with_choices, names = [], []
    for signature in (run_signature(), train_signature()):
        found = dict((parameter.arg, arguments) for parameter, arguments in signature.inputs())
        names.append(set(found))
        with_choices.append({name for name, arguments in found.items() if "choices" in arguments})
    assert not with_choices[0] & names[1]
    assert not with_choices[1] & names[0]


def test_streaming_is_declared() -> None:
    run = run_signature().node
    assert ast.unparse(run.returns) in ("AsyncConcatenateIterator[str]", "ConcatenateIterator[str]")
    assert any(ast.unparse(decorator).startswith(("streaming", "cog.streaming")) for decorator in run.decorator_list)


# --- pins ---------------------------------------------------------------------------------------------------------
def pins(file: str) -> dict[str, str]:
    """Package → version. Every line is `name==version`, a comment, blank, or `-r other-file`."""
    found = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith(("#", "-r ")):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"{file}: not a plain pin: {line!r}"
        assert match[1] not in found, f"{file}: {match[1]} stands there twice"
        found[match[1]] = match[2]
    return found


def test_image_and_laptop_have_the_same_pins_but_for_torch_and_cog() -> None:
    image, laptop = pins("requirements.txt"), pins("requirements-cpu.txt")
    assert image.pop("torch") == "2.11.0"
    assert laptop.pop("torch") == "2.13.0"
    del laptop["cog"], laptop["coglet"]
    assert image == laptop


def test_comments_in_requirements_hold_nothing_cog_would_take_for_a_pin() -> None:
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        assert not (line.startswith("#") and "==" in line), line


def test_development_adds_to_the_laptop_and_changes_nothing() -> None:
    assert "-r requirements-cpu.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert not pins("requirements-dev.txt").keys() & pins("requirements-cpu.txt").keys()


def test_everything_installed_and_needed_is_pinned_and_fits() -> None:
    """The pins are complete: nothing that a pinned package requires is left to the day of the installation."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = pins("requirements-cpu.txt") | pins("requirements-dev.txt")
    from_torch = re.compile(r"nvidia-|cuda-|triton")  # versions fixed by torch's own wheel
    for package in pinned:
        for text in distribution(package).requires or []:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if (requirement.marker and not requirement.marker.evaluate({"extra": ""})) or from_torch.match(name):
                continue
            assert name in pinned, f"{package} needs {name}, which is not pinned"
            assert requirement.specifier.contains(pinned[name]), f"{package} needs {text}; pinned is {pinned[name]}"
    for package, version in pinned.items():
        try:
            installed = distribution(package).version.partition("+")[0]
        except PackageNotFoundError:
            pytest.fail(f"{package} is pinned but not installed: run make again")
        assert installed == version, f"{package}: installed {installed}, pinned {version}"


def test_every_import_of_the_code_is_pinned() -> None:
    """`datasets` may come along with `peft` today and not tomorrow: what is imported is named."""
    image = pins("requirements.txt").keys() | {"cog", "coglet"}
    optional = {"wandb", "tensorboard", "gradio", "flash_attn", "deepspeed", "xllamacpp"}
    distributions = packages_distributions()
    for path in [*(ROOT / "alpaca").rglob("*.py"), *(ROOT / f for f in ("predict.py", "train.py", "finetune.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {module.partition(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top in optional or top == "alpaca":
                    continue
                names = {name.lower().replace("_", "-") for name in distributions.get(top, [])}
                assert names & image, f"{path.relative_to(ROOT)} imports {top}, which is not pinned"


# --- what travels, what stays -------------------------------------------------------------------------------------
PRIVATE = [
    "lora-alpaca/adapter_model.safetensors",
    "lora-alpaca/alpaca.json",
    "lora-alpaca/checkpoint-8/optimizer.pt",
    "lora-mine.zip",
    ".venv/bin/python",
    ".venv-rivals/vllm/bin/python",
    ".venv-judges/vllm/bin/python",
    "unconverted-weights/7B/consolidated.00.pth",
    "unconverted-weights/tokenizer.model",
    "alpaca/__pycache__/errors.cpython-311.pyc",
    ".pytest_cache/README.md",
    "runs/events.out",
    "wandb/run-1/config.yaml",
]
WRITTEN_BY_COG = ["weights/output", "weights/output/adapter_model.safetensors", "weights/output.0.zip"]
PUBLIC = [
    "cog.yaml",
    "requirements.txt",
    "predict.py",
    "train.py",
    "finetune.py",
    "alpaca/errors.py",
    "alpaca/data/reader.py",
    "templates/alpaca.json",
    "data/alpacas.jsonl",
]
BASES = ["weights/smollm2-135m-instruct/model.safetensors", "weights/llama-7b/config.json", "weights/tokenizer/x.json"]


def test_git_keeps_weights_adapters_and_caches_out(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shipped = [
        *PUBLIC,
        "weights/README.md",
        "unconverted-weights/README.md",
        "tests/conftest.py",
        "docs/architecture.md",
    ]
    unwanted = [*PRIVATE, *BASES, ".cog/openapi_schema.json"]
    answer = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        input="\n".join([*unwanted, *shipped]),
        capture_output=True,
        text=True,
    )
    assert answer.stdout.splitlines() == unwanted


def docker_ignores(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path or a folder above it decides."""
    ignored = False
    parents = [str(PurePosixPath(*PurePosixPath(path).parts[:n])) for n in range(1, len(PurePosixPath(path).parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!").strip("/"))
        pattern = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*").replace(r"\[co\]", "[co]")
        if any(re.fullmatch(pattern, parent) for parent in parents):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("path", [*PUBLIC, *BASES, ".cog/tmp/build/requirements.txt"])
def test_the_image_gets_code_templates_data_and_bases(path: str) -> None:
    assert not docker_ignores(path)


@pytest.mark.parametrize("path", [*PRIVATE, *WRITTEN_BY_COG, ".git/config", ".env", "mine.jsonl"])
def test_the_image_gets_nothing_private(path: str) -> None:
    assert docker_ignores(path)


# --- the library --------------------------------------------------------------------------------------------------
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "matplotlib", "pandas", "cog"}
# Where torch is the subject, a module may import it at the top. Everything else loads without it, packages too, so that
# --help, a bad option or a bad row answers at once.
TORCH_IS_THE_SUBJECT = re.compile(r"alpaca\.(training|evaluation|serving|convert|export|packed)\b")
LIGHT_ALL_THE_SAME = re.compile(
    r"alpaca\.(?!training\.progress)(training|evaluation|serving|convert|export)"
    r"(\.(config|request|text|stream|adapters|download|inputs|output|fetch|progress|checklist|params))?"
)


def library_modules() -> list[str]:
    modules = []
    for path in sorted((ROOT / "alpaca").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return modules


def test_importing_the_library_is_instant() -> None:
    modules = [module for module in library_modules() if not module.endswith("__main__")]
    light = [m for m in modules if not TORCH_IS_THE_SUBJECT.match(m) or LIGHT_ALL_THE_SAME.fullmatch(m)]
    program = (
        "import importlib, sys\n"
        f"for module in {light!r}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "    assert not heavy, f'importing {module} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_arrows_go_downwards_only() -> None:
    """Serving never imports training; nothing in the library imports the entry points; only cogserver knows cog."""
    faults = []
    for path in (ROOT / "alpaca").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in modules:
                if module.split(".")[0] in ("predict", "train", "finetune"):
                    faults.append(f"{name} imports {module}")
                if module.split(".")[0] in ("cog", "coglet") and not name.startswith("alpaca/cogserver/"):
                    faults.append(f"{name} imports {module}")
                if name.startswith("alpaca/serving/") and module.startswith("alpaca.training"):
                    faults.append(f"{name} imports {module}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", library_modules())
def test_every_module_says_what_it_is_for(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{module} has no docstring"


# --- the tree, the Makefile and the documents ---------------------------------------------------------------------
TREE = """
cog.yaml predict.py train.py finetune.py Makefile pyproject.toml README.md LICENSE .ci/run .dockerignore .gitignore
requirements.txt requirements-cpu.txt requirements-dev.txt
alpaca/__init__.py alpaca/errors.py alpaca/data alpaca/prompts alpaca/packed alpaca/base alpaca/adapter alpaca/cogserver
alpaca/compare alpaca/evaluation alpaca/training alpaca/serving alpaca/convert alpaca/export
templates/alpaca.json templates/alpaca_legacy.json templates/alpaca_short.json data/alpacas.jsonl data/README.md
unconverted-weights/README.md weights/README.md tests/conftest.py benchmarks/train.py
docs/architecture.md docs/migrating.md
"""


@pytest.mark.parametrize("path", TREE.split())
def test_the_top_level_is_as_people_know_it(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_architecture_is_true_of_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:alpaca|weights|templates|data|tests|docs)/[\w./-]*|[\w-]+\.(?:py|txt|yaml))`", text))
    assert len(named) > 10
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
    rooms = {path.name for path in (ROOT / "alpaca").iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert not [room for room in sorted(rooms) if f"`alpaca/{room}/`" not in text], "a room is not in the document"


def imports_between_rooms() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "alpaca").rglob("*.py"):
        room = path.relative_to(ROOT / "alpaca").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in modules:
                if module.startswith("alpaca.") and (other := module.split(".")[1]) != room:
                    yield room, other


def test_the_drawing_of_the_house_is_true() -> None:
    """Every room stands in it once, and a room imports only from floors drawn below its own."""
    drawing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    rooms = {path.parent.name for path in (ROOT / "alpaca").glob("*/__init__.py")}
    floors = {}
    for number, line in enumerate(drawing.splitlines()):
        for room in re.findall(r"(?:│ | {3})(\w+) {2}", line):
            if room in rooms:
                assert room not in floors, f"{room} stands in it twice"
                floors[room] = number
    assert floors.keys() == rooms
    upwards = {(a, b) for a, b in imports_between_rooms() if a in floors and b in floors and floors[a] >= floors[b]}
    assert not upwards


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = make_targets()
    assert {"demo", "test", "lint", "serve", "predict", "bench", "clean"} <= targets
    assert set(re.findall(r"^  ([a-z-]+) ", shown, re.MULTILINE)) == targets


@pytest.mark.parametrize("path", project_files(".md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_targets_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`+([^`]+)`+", text))
    unknown = {target for target in re.findall(r"\bmake ([a-z][a-z-]+)\b", code)} - make_targets()
    assert not unknown


@pytest.mark.parametrize("prompt", ['it\'s "5" $HOME $(HOME) `id` $$ \\n %s', "羊驼 ü", "-i prompt=x", "a\nb"])
def test_prompts_reach_the_program_unchanged(prompt: str) -> None:
    """make would expand dollars and the shell quotes: the recipe hands the text over in the environment."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert 'prompt="$$ALPACA_PROMPT"' in makefile
    shown = subprocess.run(
        ["make", "-s", "-f", "-", "show", f"PROMPT={prompt}"],
        input=makefile + '\nshow:\n\t@printf %s "$$ALPACA_PROMPT"\n',
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == prompt


def test_a_variable_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = subprocess.run(["make", "-n", "serve", "ADAPTOR=x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no variable 'ADAPTOR'; there are:" in done.stderr and " ADAPTER " in done.stderr


def test_predict_without_a_prompt_says_what_to_type() -> None:
    done = subprocess.run(["make", "-n", "predict"], cwd=ROOT, capture_output=True, text=True)
    assert 'make predict PROMPT="…"' in done.stdout


@pytest.mark.parametrize(
    ("given", "asked"),
    [("", ""), ("ADAPTER=", ""), ("ADAPTER=lora-nope", "lora-nope"), ("COG_WEIGHTS=lora-mine", "lora-mine")],
)
def test_an_adapter_that_was_named_is_asked_for_whether_or_not_it_is_there(
    given: str, asked: str, tmp_path: Path
) -> None:
    """Only the default may be missing: a name that leads nowhere is an error, never the base without a word."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf %s "$COG_WEIGHTS"\n')
    python.chmod(0o755)
    stamp = tmp_path / ".venv" / ".runtime-pins"
    stamp.touch()
    (tmp_path / "requirements-cpu.txt").touch()
    os.utime(stamp)
    (tmp_path / "weights" / "base").mkdir(parents=True)
    (tmp_path / "weights" / "base" / "config.json").touch()
    left = ("COG_WEIGHTS", "ADAPTER", "MAKEFLAGS", "MAKELEVEL")
    env = {name: value for name, value in os.environ.items() if name not in left}
    name, _, value = given.partition("=")
    env |= {name: value} if name == "COG_WEIGHTS" else {}
    command = ["make", "-s", "serve", *([given] if name == "ADAPTER" else [])]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == asked


def test_ci_stops_at_the_first_failure() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text and "make lint" in text and "make test" in text
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_text_names_no_place_outside_the_project() -> None:
    outside = re.compile("|".join(("\\.\\./" + "shared", "/" + "work/", "\\." + "library", "/" + "tmp/lab")))
    faults = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        faults += [f"{path.relative_to(ROOT)}: {match}" for match in outside.findall(text)]
    assert not faults
