"""The page "Writing a workflow" does what it says: its files run on virtual sites."""

import importlib
import logging
import re
from pathlib import Path

import pytest

from prefect_federated import simulate
from prefect_federated.messages import JsonValue

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-workflow.md"
FILES = {
    match[2]: match[1]
    for match in re.finditer(r'```python\n("""(\w+)\.py: .*?)```', PAGE.read_text(), re.DOTALL)
}

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the page's files into a folder that is on the path."""
    for name, content in FILES.items():
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_every_python_block_of_the_page_is_a_file() -> None:
    assert len(FILES) == PAGE.read_text().count("```python")


@pytest.mark.parametrize(
    ("flow", "rows", "parameters"),
    [
        ("one_round", ["1/1", "4/4"], {}),
        ("averaging", ["1/1", *["3/3", "4/4"] * 12], {"rounds": 12}),
        ("attended", ["1/1", "4/4", "4/4"], {"is_attended": False}),
        ("relaying", ["1/1", *["4/4"] * 3], {}),
        ("asynchronous", None, {"updates": 60}),
    ],
)
def test_a_flow_of_the_page_fits_the_line(
    flow: str,
    rows: list[str] | None,
    parameters: dict[str, JsonValue],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger=flow):
        result = simulate(
            f"{flow}:{flow}", sites=4, threads=2, parameters={"executor": "line", **parameters}
        )
    if rows is not None:
        assert [row["sites"] for row in result.metrics] == rows
    if flow in ("averaging", "relaying", "asynchronous"):
        assert float(result.model["slope"]) == pytest.approx(2, abs=0.15)
        assert float(result.model["offset"]) == pytest.approx(1, abs=0.15)
    if flow == "averaging":
        assert result.path.with_name("best.safetensors").exists()
    if flow == "attended":
        assert "round 2 round_completed" in caplog.text
