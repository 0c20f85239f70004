"""What a newcomer reads is true: commands parse, examples are the files, links lead somewhere."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefect_federated.cli import app
from prefect_federated.executors import load_executor

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*/README.md"),
        ROOT / "deployments" / "README.md",
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def shell_lines(text: str) -> list[str]:
    """Returns the commands in a page's indented blocks and table cells, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    cells = re.findall(r"\| `(prefect-federated [^`]+)` \|", joined)
    return [*blocks, *cells]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def our_commands() -> list[str]:
    texts = [page.read_text() for page in PAGES]
    texts.append((ROOT / "examples" / "federation.yaml").read_text().replace("\n#", "\n"))
    texts.append((ROOT / "deployments" / "prefect.yaml").read_text().replace("\n#", "\n"))
    lines = {line for text in texts for line in shell_lines(text)}
    found = (re.match(r"(?:\S+/)?prefect-federated (.+)", line) for line in lines)
    return sorted({match[1] for match in found if match})


def test_the_readme_shows_the_whole_hello_example() -> None:
    example = (ROOT / "examples" / "hello_numpy" / "hello_numpy.py").read_text()
    assert example in python_blocks(ROOT / "README.md")


@pytest.mark.parametrize("command", our_commands())
def test_every_documented_command_parses(command: str) -> None:
    tokens = shlex.split(command)
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_the_documented_commands_are_found() -> None:
    commands = our_commands()
    for start in (
        "provision ",
        "server start ",
        "site start ",
        "connect ",
        "sandbox ",
        "simulate ",
        "statistics show ",
    ):
        assert any(command.startswith(start) for command in commands), start


@pytest.mark.parametrize("unit", sorted(ROOT.glob("deployments/systemd/*")), ids=lambda p: p.name)
def test_the_command_of_a_systemd_unit_parses(unit: Path) -> None:
    text = re.sub(r"\\\n\s*", "", unit.read_text())
    start = re.search(r"^ExecStart=\S+/prefect-federated (.+)$", text, re.MULTILINE)
    assert start is not None
    tokens = shlex.split(start[1].replace("%i", "cleveland").replace("$SITE_OPTIONS", ""))
    app.parse_args(tokens, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_that_a_page_names_exists(name: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)`", (ROOT / name).read_text())) <= targets


@pytest.mark.parametrize("name", NAMES)
def test_every_link_to_a_file_leads_to_one(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_every_link_to_a_heading_leads_to_one(name: str) -> None:
    page = ROOT / name
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_python_block_compiles(name: str) -> None:
    for block in python_blocks(ROOT / name):
        ast.parse(block)


@pytest.mark.parametrize(
    ("position", "executor", "kinds"),
    [
        (0, "documented_0", {"initialize", "train", "evaluate"}),
        (1, "documented_1:main", set()),
        (
            2,
            "documented_2:network",
            {"initialize", "train", "evaluate", "scaffold", "ditto"},
        ),
    ],
)
def test_the_documented_executors_are_executors(
    position: int,
    executor: str,
    kinds: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = python_blocks(ROOT / "docs" / "executors.md")[position]
    (tmp_path / f"documented_{position}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    loaded = load_executor(executor)
    assert set(loaded.functions) == kinds
    assert (loaded.loop is None) == bool(kinds)


def test_the_deployments_file_names_flows_and_parameters_that_exist() -> None:
    content = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
    assert content["pull"] == []  # otherwise the server would look for a folder of the user's
    for deployment in content["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        flow.validate_parameters(deployment["parameters"])


def test_the_help_of_every_command_can_be_read() -> None:
    for command in (
        [],
        ["sandbox"],
        ["sandbox", "start"],
        ["connect"],
        ["simulate"],
        ["provision"],
        ["statistics", "show"],
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "prefect_federated", *command, "--help"],
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        assert "Usage: prefect-federated" in shown.stdout
