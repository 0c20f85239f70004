"""The page "Algorithms" is true: its commands fit the flows, its parameters and defaults exist."""

import inspect
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from prefect_federated.agents.simulator import _fitting, load_flow
from prefect_federated.cli.simulate import _parameter
from prefect_federated.cross_site_matrix import Matrix
from prefect_federated.filters import FilterSpec
from prefect_federated.filters.own import Own

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = {
    title: re.findall(r"^    prefect-federated simulate (.+)$", text, re.MULTILINE)
    for title, text in SECTIONS.items()
}
DEFAULT = re.compile(r"`(\w+)` \(([^)]*)\)")


def parameters_of(flow: str) -> dict[str, object]:
    """Returns a flow's parameters and their defaults."""
    known = inspect.signature(load_flow(flow).fn).parameters
    return {name: each.default for name, each in known.items()}


class Documented(NamedTuple):
    """A command of a page that simulates a flow."""

    page: str
    flow: str
    words: tuple[str, ...]


def documented() -> list[Documented]:
    """Returns the commands of all pages but this one."""
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.name not in ("algorithms.md", "writing-a-workflow.md"):  # these have their tests
            for line in re.findall(
                r"^ *prefect-federated simulate (.+)$", page.read_text(), re.MULTILINE
            ):
                flow, *words = shlex.split(line)
                found.append(Documented(page.name, flow.replace("-", "_"), tuple(words)))
    return found


def linked_pages() -> set[str]:
    """Returns the pages that this one leads to."""
    return set(re.findall(r"\]\(([\w-]+\.md)\)", PAGE))


@pytest.mark.parametrize(
    "command", documented(), ids=lambda command: f"{command.page}-{command.flow}"
)
def test_the_commands_of_other_pages_fit_their_flows(command: Documented) -> None:
    words = command.words
    given = [words[place + 1] for place, word in enumerate(words) if word == "--param"]
    _fitting(load_flow(command.flow), dict(_parameter(text) for text in given))


def flow_of(section: str) -> str:
    """Returns the flow that a section's command runs."""
    (command,) = COMMANDS[section]
    return str(command.split()[0])


@pytest.mark.parametrize("section", SECTIONS)
def test_the_command_of_a_section_fits_its_flow(section: str) -> None:
    flow, *words = shlex.split(COMMANDS[section][0])
    given = [words[place + 1] for place, word in enumerate(words) if word == "--param"]
    fitting = _fitting(load_flow(flow), dict(_parameter(text) for text in given))
    assert fitting["executor"] == "digits"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_parameters_of_a_section_exist_and_have_these_defaults(section: str) -> None:
    known = parameters_of(flow_of(section))
    cells = re.findall(r"^\| (`.+?) \|", SECTIONS[section], re.MULTILINE)
    for cell in cells:
        for name, shown in DEFAULT.findall(cell):
            default = known[name]
            said = "none" if default is None else str(default).lower()
            assert shown == said or float(shown) == default, name


def test_the_arguments_of_the_filter_are_the_filters() -> None:
    named = re.findall(r"^\| `(\w+)` \|", SECTIONS["FedBN"], re.MULTILINE)
    assert (
        set(named) == {*Own.model_fields, "kinds"} <= {*Own.model_fields, *FilterSpec.model_fields}
    )


def test_the_fields_of_the_matrix_file_are_the_files() -> None:
    table = SECTIONS["Cross-site evaluation"].partition("| field |")[2]
    named = {name for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
             for name in re.findall(r"`(\w+)`", cell)}  # fmt: skip
    assert named - {"at"} == set(Matrix((), ()).to_json())


def test_every_flow_that_trains_has_a_section_and_every_link_of_the_page_leads_to_one() -> None:
    flows = {path.stem for path in (ROOT / "flows").glob("[a-z]*.py")} - {"statistics"}
    elsewhere = {command.flow for command in documented() if command.page in linked_pages()}
    assert flows == {flow_of(section) for section in SECTIONS} | (elsewhere & flows)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert set(linked) == anchors


def test_the_settings_that_the_page_names_are_those_of_the_torch_executor() -> None:
    intro = PAGE.partition("What `TorchExecutor` takes from it:")[2].partition(".")[0]
    named = re.findall(r"`(\w+)`", intro)
    source = "".join(
        path.read_text()
        for path in (ROOT / "prefect_federated" / "adapters" / "torch").glob("*.py")
    )
    for name in named:
        assert json.dumps(name) in source, name
