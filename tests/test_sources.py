"""Where settings come from: flags, the environment, m3rt.toml, in this order."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3rt.cli import app
from m3rt.errors import InputError
from m3rt.server import sources
from m3rt.server.settings import Settings
from m3rt.server.sources import Value

DOCS = Path(__file__).parents[1] / "docs" / "serve.md"


def test_the_nearest_wins(tmp_path: Path) -> None:
    file = tmp_path / "m3rt.toml"
    file.write_text('[serve]\nmodel = "of-file"\nport = 1\nhost = "h"\nmax-wait = 1.5\n')
    environment = {"M3RT_PORT": "2", "PORT": "9", "M3RT_STREAMS": "4", "M3RT_QUANTUM": ""}
    found = sources.read({"streams": 5, "port": None}, environment, file)
    assert found["model"] == Value(Path("of-file"), str(file))
    assert found["port"] == Value(2, "M3RT_PORT")
    assert found["streams"] == Value(5, "flag")
    assert found["host"] == Value("h", str(file))
    assert found["max_wait"] == Value(1.5, str(file))
    assert found["quantum"] == Value(0.05, "default")
    assert sources.settings(found).port == 2


def test_names_of_tei() -> None:
    environment = {
        "MODEL_ID": "m",
        "PAYLOAD_LIMIT": "77",
        "MAX_CLIENT_BATCH_SIZE": "3",
        "AUTO_TRUNCATE": "false",
        "HOSTNAME": "f00dcafe",  # what a container has anyway
    }
    found = sources.settings(sources.read({}, environment))
    assert (found.model, found.max_body_bytes, found.max_client_batch_size) == (Path("m"), 77, 3)
    assert found.auto_truncate is False
    assert found.host == "127.0.0.1"


def test_types_are_converted_and_checked() -> None:
    given = {"model": "m"}
    found = sources.settings(sources.read({**given, "weights": "1,0.5,2"}, {}))
    assert found.weights == (1.0, 0.5, 2.0)
    for name, value in (
        ("port", "http"),
        ("weights", "1,2"),
        ("weights", "1,2,nan"),
        ("auto_truncate", "maybe"),
        ("metrics_compat", "statsd"),
        ("max_wait", "-1"),
        ("max_wait", "nan"),
    ):
        with pytest.raises(InputError, match=name):
            sources.read({**given, name: value}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[serve]\nmodle = 'm'", "is it model"),
        ("[serve]\nzzz = 1", "no setting"),
        ("serve = 3", "expected a table"),
        ("[serve", "cannot be read"),
        ("[serve]\nport = 'x'", "port is 'x'"),
    ],
)
def test_files_that_are_wrong(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m3rt.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        sources.read({"model": "m"}, {}, file)


def test_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="M3RT_MODEL"):
        sources.read({}, {})


def test_print_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m3rt.toml").write_text('[serve]\nmodel = "here"\nquantum = 0.1\n')
    monkeypatch.setenv("M3RT_API_KEY", "very-secret")
    options = ["serve", "--port", "81", "--hostname", "0.0.0.0", "--no-auto-truncate"]
    text = CliRunner().invoke(app, [*options, "--print-config"])
    assert text.exit_code == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.output.splitlines()}
    assert lines["model"] == "here  (m3rt.toml)"
    assert lines["port"] == "81  (flag)"
    assert lines["host"] == "0.0.0.0  (flag)"
    assert lines["auto_truncate"] == "false  (flag)"
    assert lines["quantum"] == "0.1  (m3rt.toml)"
    assert lines["api_key"] == "***  (M3RT_API_KEY)"
    assert lines["streams"] == "1  (default)"
    assert "very-secret" not in text.output
    found = CliRunner().invoke(app, [*options, "--print-config", "--json"])
    shown = json.loads(found.output)
    assert shown["port"] == {"value": "81", "source": "flag"}
    assert shown.keys() == lines.keys() == {field.name for field in fields(Settings)}


def test_every_setting_is_documented() -> None:
    text = DOCS.read_text()
    missing = [field.name for field in fields(Settings) if f"`{field.name}`" not in text]
    assert not missing
