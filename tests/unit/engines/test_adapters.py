from __future__ import annotations

from pathlib import Path

import pytest

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.serving import Purpose
from onefleet.engines.base import Engine, EngineProcess
from onefleet.engines.catalog import BY_FORMAT, ENGINES, engine
from onefleet.engines.launch import read_port_file, write_port_file
from onefleet.engines.llamacpp_server import main as llamacpp_main


def process(folder: Path, *options: tuple[str, str]) -> EngineProcess:
    return EngineProcess(
        model_id="m",
        served_name="--name",
        purpose=Purpose.CHAT,
        path=folder / "a model.gguf",
        slots=3,
        context_length=512,
        threads=2,
        port_file=folder / "port",
        cache_folder=folder / "cache",
        options=options,
    )


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_adapter_is_what_the_agent_needs(name: str, tmp_path: Path) -> None:
    found: Engine = engine(name)
    assert found.name == name
    command = found.command(process(tmp_path))
    assert f"--port-file={tmp_path}/port" in command
    assert "--alias=--name" in command, "a name that looks like an option stays a name"
    assert "--slots=3" in command and "--context=512" in command
    assert found.dialect.health_path.startswith("/")
    with pytest.raises(InvalidRequest, match="option"):
        found.command(process(tmp_path, ("no-such", "1")))


def test_every_format_has_an_engine() -> None:
    assert set(BY_FORMAT.values()) <= set(ENGINES)
    with pytest.raises(InvalidRequest, match="no engine") as caught:
        engine("abacus")
    assert "llamacpp" in caught.value.hint


def test_llamacpp_waits_passively_and_counts_its_threads(tmp_path: Path) -> None:
    environment = dict(engine("llamacpp").environment(process(tmp_path)))
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("value", ["-1", "many", "0", "99999999999", "٣"])
def test_an_option_out_of_range_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InvalidRequest, match="batch-tokens"):
        engine("llamacpp").command(process(tmp_path, ("batch-tokens", value)))


def test_options_reach_the_command_line(tmp_path: Path) -> None:
    command = engine("llamacpp").command(process(tmp_path, ("batch-tokens", "64")))
    assert "--batch-tokens=64" in command
    command = engine("simulated").command(process(tmp_path, ("decode-tokens-s", "50")))
    assert "--decode-tokens-s=50" in command


def test_a_port_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "port"
    assert read_port_file(path) is None
    write_port_file(path, "127.0.0.1", 4242)
    assert path.read_text() == "127.0.0.1 4242\n"
    assert read_port_file(path) == ("127.0.0.1", 4242)
    assert [entry.name for entry in path.parent.iterdir()] == ["port"]
    path.write_text("127.0.0.1 forty")
    assert read_port_file(path) is None


def test_a_missing_model_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model=/nowhere.gguf", "--alias=m", "--context=64"]
    folders = [f"--port-file={tmp_path}/port", f"--cache-folder={tmp_path}"]
    assert llamacpp_main([*arguments, *folders]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the model file /nowhere.gguf does not exist"
    )


def test_the_reason_of_a_failed_engine_is_found_in_what_it_wrote() -> None:
    said = """
0.00.020 E llama_model_load: error loading model: unknown tokenizer: 'Xpt2'
0.00.021 E srv          init: exiting due to model loading error
error: llama.cpp cannot load /blobs/87 (2064800 bytes): Failed to init server
"""
    assert engine("llamacpp").complaint(said) == "unknown tokenizer: 'Xpt2'"
    assert engine("llamacpp").complaint("error: no such port\n\n") == "error: no such port"
    for name in sorted(ENGINES):
        assert engine(name).complaint("") == ""
        assert engine(name).complaint("a\nb\n") == "b"
