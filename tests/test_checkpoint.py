"""Checkpoints: where they come from, what they may look like, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

from m3rt.errors import CheckpointError, InputError
from m3rt.export import checkpoint as reading
from m3rt.export import model, pipeline, samples
from m3rt.export.checkpoint import State
from m3rt.types import Heads

HUB_ID = "someone/m3"
OLD, NEW = "a" * 40, "b" * 40  # commits


@pytest.fixture
def mine(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def weights(path: Path, heads: Heads = Heads.ALL) -> State:
    """Read a checkpoint and see that every tensor has its place."""
    source = reading.read(str(path), heads)
    state = reading.read_weights(source)
    model.build(source, state)
    return state


def write(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def edit(file: Path, **changes: Any) -> None:
    write(file, json.loads(file.read_text()) | changes)


def rewrite(path: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a download needs, over one directory."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/{HUB_ID}"):
            names = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()]
            siblings = [{"rfilename": name} for name in names]
            self.send(json.dumps({"id": HUB_ID, "sha": NEW, "siblings": siblings}).encode())
        else:
            self.wfile.write(self.answer())

    def answer(self) -> bytes:
        file = self.folder / self.path.partition(f"/resolve/{NEW}/")[2]
        if not file.is_file():
            self.send_error(404)
            return b""
        return self.send(file.read_bytes(), file.name, write=False)

    def send(self, body: bytes, etag: str = "", write: bool = True) -> bytes:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", NEW)
        self.end_headers()
        if write:
            self.wfile.write(body)
        return body

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine that has a copy of checkpoint, and files that are of no use here."""
    (mine / "onnx").mkdir()
    (mine / "onnx" / "model.onnx_data").write_bytes(b"large")
    (mine / "README.md").write_text("readme")
    handler = type("Handler", (Hub,), {"folder": mine})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def disconnect(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Let every question to the hub end in an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error("there is no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", fail)


def fill(cache: Path, checkpoint: Path) -> None:
    """Lay out two commits as the hub's cache does; main is the newer."""
    top = cache / ("models--" + HUB_ID.replace("/", "--"))
    for folder in ("refs", "blobs", f"snapshots/{OLD}", f"snapshots/{NEW}"):
        (top / folder).mkdir(parents=True)
    (top / "refs" / "main").write_text(NEW)
    (top / "refs" / "v1").write_text(OLD)
    for file in checkpoint.iterdir():
        shutil.copy(file, top / "blobs" / f"etag-{file.name}")
        for commit in (OLD, NEW):
            link = top / "snapshots" / commit / file.name
            link.symlink_to(f"../../blobs/etag-{file.name}")


def test_a_hub_id_is_downloaded_and_then_found_in_the_cache(
    hub: None, cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, commit = reading.resolve(HUB_ID)
    assert commit == NEW
    assert {file.name for file in path.iterdir()} == {file.name for file in checkpoint.iterdir()}
    assert_same(weights(path), weights(checkpoint))
    disconnect(monkeypatch, requests.ConnectionError)
    assert reading.resolve(HUB_ID) == (path, NEW)


@pytest.mark.parametrize(
    "error",
    [requests.ConnectionError, requests.exceptions.SSLError, requests.exceptions.ProxyError],
)
def test_without_a_network_the_cache_answers(
    cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    fill(cache, checkpoint)
    disconnect(monkeypatch, error)
    for revision, commit in ((None, NEW), ("v1", OLD), (OLD, OLD), (NEW, NEW)):
        source = reading.read(HUB_ID, revision=revision)
        assert (source.name, source.revision) == (HUB_ID, commit)
        assert source.path.name == commit
    for revision in ("v2", "c" * 40):
        with pytest.raises(CheckpointError, match=f"have no {HUB_ID} at revision {revision}: "):
            reading.read(HUB_ID, revision=revision)


def test_a_hub_id_that_is_nowhere(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disconnect(monkeypatch, requests.ConnectionError)
    with pytest.raises(CheckpointError, match=f"the hub and its cache have no {HUB_ID}"):
        reading.read(HUB_ID)


@pytest.mark.parametrize("name", ["./none", "/none", "a/b/c", "not a name!"])
def test_what_is_neither_a_directory_nor_a_hub_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="no directory"):
        reading.read(name)


def test_a_file_is_no_checkpoint(mine: Path) -> None:
    with pytest.raises(CheckpointError, match="is no directory"):
        reading.read(str(mine / "config.json"))


def test_a_directory_has_no_revision(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="--revision is for hub ids"):
        reading.read(str(checkpoint), revision="main")


# Weights


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected[name]), name


def sharded(path: Path, name: str, save: Callable[[State, Path], None]) -> None:
    """Cut the weights into three files with an index."""
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    stem, _, end = name.rpartition(".")
    table: dict[str, str] = {}
    for i in range(3):
        part = f"{stem}-{i + 1:05}-of-00003.{end}"
        names = sorted(state)[i::3]
        save({key: state[key] for key in names}, path / part)
        table |= dict.fromkeys(names, part)
    (path / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def as_bin(path: Path, zipped: bool = True) -> None:
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    file = path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)


FORMS: dict[str, Callable[[Path], None]] = {
    "sharded safetensors": lambda path: sharded(path, "model.safetensors", save_file),
    "sharded bin": lambda path: sharded(path, "pytorch_model.bin", torch.save),
    "bin": as_bin,
    "bin of old torch": lambda path: as_bin(path, zipped=False),
    "under a prefix": lambda path: rewrite(
        path,
        lambda state: (
            {f"roberta.{k}": v for k, v in state.items()} | {"lm_head.bias": torch.ones(3)}
        ),
    ),
    "with what is not needed": lambda path: rewrite(
        path,
        lambda state: (
            state | {"pooler.dense.bias": torch.ones(3), "embeddings.position_ids": torch.arange(8)}
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form: str, mine: Path, checkpoint: Path) -> None:
    FORMS[form](mine)
    assert_same(weights(mine), weights(checkpoint))
    described = {file.name for file in reading.read(str(mine)).weight_files}
    assert described == {
        f.name for f in mine.iterdir() if f.suffix in (".safetensors", ".bin", ".pt")
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, mine: Path, checkpoint: Path) -> None:
    rewrite(mine, lambda state: {name: value.to(dtype) for name, value in state.items()})
    for head in reading.HEAD_FILES.values():
        state = torch.load(mine / head, weights_only=True)
        torch.save({name: value.to(dtype) for name, value in state.items()}, mine / head)
    expected = {name: value.to(dtype).float() for name, value in weights(checkpoint).items()}
    assert_same(weights(mine), expected)


def test_another_shape(odd_checkpoint: Path) -> None:
    source = reading.read(str(odd_checkpoint))
    trunk = source.trunk
    assert (trunk.hidden, trunk.layers, trunk.heads, trunk.ffn) == (48, 3, 3, 80)
    assert (trunk.positions, source.max_length) == (514, 512)
    assert weights(odd_checkpoint)["colbert_linear.weight"].shape == (20, 48)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.file, "executed")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"])
def test_code_in_a_pickle_is_not_run(name: str, zipped: bool, mine: Path, tmp_path: Path) -> None:
    if name == "pytorch_model.bin":
        (mine / "model.safetensors").unlink()
    mark = tmp_path / "mark"
    state = {"weight": torch.ones(1), "evil": Evil(mark)}
    torch.save(state, mine / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=name):
        weights(mine)
    (mine / name).write_bytes(pickle.dumps(state["evil"], 2))
    with pytest.raises(CheckpointError, match=name):
        weights(mine)
    assert not mark.exists()
    pickle.loads(pickle.dumps(state["evil"]))
    assert mark.exists()  # it would have been seen


# What is refused


def cut(file: Path, kept: float = 0.5) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])


def poisoned(path: Path, value: float) -> None:
    def change(state: State) -> State:
        state["encoder.layer.1.output.dense.weight"][3, 5] = value
        return state

    rewrite(path, change)


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


def shard_then(path: Path, act: Callable[[], object]) -> None:
    sharded(path, "model.safetensors", save_file)
    act()


CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no sparse head": (
        lambda path: (path / "sparse_linear.pt").unlink(),
        r"sparse_linear\.pt is missing.*--heads dense",
    ),
    "no colbert head": (
        lambda path: (path / "colbert_linear.pt").unlink(),
        r"colbert_linear\.pt is missing.*--heads dense",
    ),
    "no weights": (
        lambda path: (path / "model.safetensors").unlink(),
        "has neither model.safetens",
    ),
    "cut safetensors": (lambda path: cut(path / "model.safetensors"), r"model\.safetensors cannot"),
    "empty safetensors": (lambda path: cut(path / "model.safetensors", 0), "cannot be read"),
    "cut head": (lambda path: cut(path / "colbert_linear.pt"), r"colbert_linear\.pt"),
    "empty head": (lambda path: cut(path / "sparse_linear.pt", 0), r"sparse_linear\.pt"),
    "a head of something else": (
        lambda path: torch.save([torch.ones(3)], path / "sparse_linear.pt"),
        r"sparse_linear\.pt",
    ),
    "a head within a dict": (
        lambda path: torch.save({"state": {"weight": torch.ones(3)}}, path / "sparse_linear.pt"),
        r"sparse_linear\.pt.*names and tensors",
    ),
    "a head of numbers for names": (
        lambda path: torch.save({0: torch.ones(3)}, path / "sparse_linear.pt"),
        r"sparse_linear\.0",
    ),
    "a head without bias": (
        lambda path: torch.save({"weight": torch.ones(1, 64)}, path / "sparse_linear.pt"),
        r"sparse_linear\.bias is missing, expected \(1,\)",
    ),
    "a head of another width": (
        lambda path: torch.save(
            {"weight": torch.ones(20, 48), "bias": torch.ones(20)}, path / "colbert_linear.pt"
        ),
        r"colbert_linear\.weight is \(20, 48\), expected \(20, 64\)",
    ),
    "nan": (
        lambda path: poisoned(path, float("nan")),
        r"layer\.1\.output\.dense\.weight holds NaN",
    ),
    "inf": (lambda path: poisoned(path, float("-inf")), r"layer\.1\.output\.dense\.weight holds"),
    "nan in a head": (
        lambda path: torch.save(
            {"weight": torch.full((1, 64), torch.nan), "bias": torch.ones(1)},
            path / "sparse_linear.pt",
        ),
        r"sparse_linear\.weight holds NaN",
    ),
    "integers": (
        lambda path: rewrite(path, lambda state: {k: v.int() for k, v in state.items()}),
        "is torch.int32, expected floating point",
    ),
    "a tensor is missing": (
        lambda path: rewrite(path, lambda s: without(s, "encoder.layer.1.output.dense.bias")),
        r"encoder\.layer\.1\.output\.dense\.bias is missing, expected \(64,\)",
    ),
    "another model's weights": (
        lambda path: save_file({"wte.weight": torch.ones(3, 3)}, path / "model.safetensors"),
        r"embeddings.* is missing",
    ),
    "no config": (lambda path: (path / CONFIG).unlink(), r"config\.json is missing"),
    "a cut config": (lambda path: cut(path / CONFIG), r"config\.json is damaged"),
    "a binary config": (lambda path: (path / CONFIG).write_bytes(b"\xff\xfe"), "is damaged"),
    "a config that is a list": (lambda path: (path / CONFIG).write_text("[1]"), "is damaged"),
    "a config without sizes": (
        lambda path: (path / CONFIG).write_text('{"model_type": "bert"}'),
        "damaged: KeyError.'vocab_size'",
    ),
    "no padding id": (lambda path: edit(path / CONFIG, pad_token_id=None), "is damaged"),
    "a size in words": (lambda path: edit(path / CONFIG, hidden_size="64"), "is damaged"),
    "no layers": (lambda path: edit(path / CONFIG, num_hidden_layers=0), "a size is too small"),
    "heads that do not fit": (
        lambda path: edit(path / CONFIG, num_attention_heads=5),
        "of 5 heads",
    ),
    "another architecture": (
        lambda path: edit(path / CONFIG, model_type="t5"),
        "model_type is 't5', expected xlm-roberta, roberta, bert",
    ),
    "another activation": (
        lambda path: edit(path / CONFIG, hidden_act="relu"),
        "hidden_act is 'relu'",
    ),
    "relative positions": (
        lambda path: edit(path / CONFIG, position_embedding_type="relative_key"),
        "position_embedding_type is 'relative_key'",
    ),
    "fewer layers than in the config": (
        lambda path: edit(path / CONFIG, num_hidden_layers=3),
        r"encoder\.layer\.2\.\S+ is missing",
    ),
    "more layers than in the config": (
        lambda path: edit(path / CONFIG, num_hidden_layers=1),
        r"encoder\.layer\.1\.\S+ is .*, expected no such tensor",
    ),
    "another width than in the config": (
        lambda path: edit(path / CONFIG, hidden_size=32),
        r"colbert_linear\.weight is \(64, 64\), expected \(64, 32\)",
    ),
    "a shard is missing": (
        lambda path: shard_then(path, lambda: (path / SHARD).unlink()),
        r"model-00002-of-00003\.safetensors is missing",
    ),
    "a cut shard": (
        lambda path: shard_then(path, lambda: cut(path / SHARD)),
        "00002.* cannot be read",
    ),
    "a cut index": (
        lambda path: shard_then(path, lambda: cut(path / INDEX)),
        "index.json is damaged",
    ),
    "an index of something else": (
        lambda path: shard_then(path, lambda: write(path / INDEX, [])),
        r"index\.json is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, mine: Path) -> None:
    act, message = DAMAGE[damage]
    act(mine)
    with pytest.raises(CheckpointError, match=message):
        weights(mine)


def test_heads_that_are_not_asked_for_need_no_file(mine: Path, checkpoint: Path) -> None:
    (mine / "colbert_linear.pt").unlink()
    found = weights(mine, Heads.DENSE | Heads.SPARSE)
    assert "colbert_linear.weight" not in found
    (mine / "sparse_linear.pt").write_bytes(b"")
    assert_same(
        weights(mine, Heads.DENSE),
        {name: value for name, value in weights(checkpoint).items() if "_linear" not in name},
    )


@pytest.mark.parametrize("length", [2, 8193])
def test_lengths_that_do_not_fit(length: int, checkpoint: Path) -> None:
    with pytest.raises(InputError, match=f"max_length is {length}, expected 3 to 8192"):
        reading.read(str(checkpoint), max_length=length)


# Pooling


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_is_as_declared(declared: object, expected: str, mine: Path) -> None:
    write(mine / "1_Pooling" / "config.json", declared)
    assert reading.read(str(mine)).pooling == expected
    assert reading.read(str(mine), pooling="mean").pooling == "mean"


@pytest.mark.parametrize(
    "declared",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["cls", "mean"]},
        {},
    ],
)
def test_other_pooling_is_refused(declared: object, mine: Path) -> None:
    write(mine / "1_Pooling" / "config.json", declared)
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json: pooling is .* cls or mean"):
        reading.read(str(mine))


def test_steps_after_the_pooling_are_refused(mine: Path) -> None:
    names = ("Transformer", "Pooling", "Dense", "Normalize")
    write(mine / "modules.json", [{"type": f"sentence_transformers.models.{n}"} for n in names])
    with pytest.raises(CheckpointError, match=r"modules\.json has Dense"):
        reading.read(str(mine))
    assert reading.read(str(mine), pooling="cls").pooling == "cls"


def test_a_pooling_step_in_another_folder(mine: Path) -> None:
    # the class names of sentence-transformers 5
    kind = "sentence_transformers.sentence_transformer.modules"
    steps = [
        {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "2_Pooling", "type": f"{kind}.pooling.Pooling"},
        {"path": "3_Normalize", "type": f"{kind}.normalize.Normalize"},
    ]
    write(mine / "modules.json", steps)
    write(mine / "2_Pooling" / "config.json", {"pooling_mode": "mean"})
    write(mine / "1_Pooling" / "config.json", {"pooling_mode": "max"})
    assert reading.read(str(mine)).pooling == "mean"


def test_a_network_in_a_folder_of_its_own(mine: Path) -> None:
    kind = "sentence_transformers.models.Transformer"
    write(mine / "modules.json", [{"path": "0_Transformer", "type": kind}])
    with pytest.raises(CheckpointError, match=r"export \S+0_Transformer, with --pooling"):
        reading.read(str(mine), pooling="mean")


@pytest.mark.parametrize("damaged", [3, [3], [{"path": ""}], {"type": "x"}])
def test_damaged_steps(damaged: object, mine: Path) -> None:
    write(mine / "modules.json", damaged)
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged"):
        reading.read(str(mine))


# Length and letter case


STEPS = [{"path": "", "type": "sentence_transformers.models.Transformer"}]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False}, 256),
        ("sentence_xlm-roberta_config.json", {"max_seq_length": 128}, 128),
        ("sentence_bert_config.json", {"max_seq_length": 100_000}, 8192),
        ("tokenizer_config.json", {"model_max_length": 512}, 512),
        ("tokenizer_config.json", {"model_max_length": 10**30}, 8192),
        ("tokenizer_config.json", {"model_max_length": 1e30}, 8192),
        ("tokenizer_config.json", {"model_max_length": None}, 8192),
    ],
)
def test_the_length_is_as_declared(
    file: str, content: dict[str, Any], expected: int, mine: Path
) -> None:
    write(mine / file, content)
    assert reading.read(str(mine)).max_length == 8192  # not of sentence-transformers: no limit
    write(mine / "modules.json", STEPS)
    assert reading.read(str(mine)).max_length == expected
    assert reading.read(str(mine), max_length=700).max_length == 700


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"max_seq_length": "256"}, "the longest text is '256', expected a number"),
        ({"max_seq_length": True}, "the longest text is True"),
        ({"do_lower_case": "no"}, "do_lower_case is 'no', expected true or false"),
        ([1], "holds a list"),
    ],
)
def test_a_damaged_length(content: object, message: str, mine: Path) -> None:
    write(mine / "modules.json", STEPS)
    write(mine / "sentence_bert_config.json", content)
    with pytest.raises(CheckpointError, match=message):
        reading.read(str(mine))


def test_lower_case_is_as_declared(mine: Path, tmp_path: Path) -> None:
    def ids(text: str) -> list[int]:
        pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)
        found: list[int] = Backend.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
        return found

    write(mine / "modules.json", STEPS)
    before = ids("The Capital of FRANCE"), ids("the capital of france")
    assert before[0] != before[1]
    write(mine / "sentence_bert_config.json", {"do_lower_case": True})
    assert ids("The Capital of FRANCE") == ids("the capital of france") == before[1]


def test_damaged_pooling(mine: Path) -> None:
    write(mine / "1_Pooling" / "config.json", {})
    cut(mine / "1_Pooling" / "config.json")
    with pytest.raises(CheckpointError, match="is damaged"):
        reading.read(str(mine))
    with pytest.raises(InputError, match="pooling is 'max'"):
        reading.read(str(mine), pooling="max")


# The tokenizer


def test_no_tokenizer(mine: Path, tmp_path: Path) -> None:
    for file in [*mine.glob("tokenizer*"), *mine.glob("special*")]:
        file.unlink()
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)


def test_a_damaged_tokenizer(mine: Path, tmp_path: Path) -> None:
    cut(mine / "tokenizer.json")
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)


def test_a_tokenizer_with_more_ids_than_the_network(mine: Path, tmp_path: Path) -> None:
    tokenizer = Backend.from_file(str(mine / "tokenizer.json"))
    vocab = tokenizer.get_vocab_size()
    pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save(str(mine / "tokenizer.json"))
    with pytest.raises(
        CheckpointError, match=f"ids up to {vocab}, the word embeddings {vocab} rows"
    ):
        pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)
    edit(mine / CONFIG, vocab_size=vocab + 1)  # unused rows are common, and fine
    pipeline.write_tokenizer(reading.read(str(mine)), tmp_path)


def test_sentencepiece_alone_gives_the_real_ids(mine: Path, data: Path, tmp_path: Path) -> None:
    for file in [*mine.glob("tokenizer*"), *mine.glob("special*")]:
        file.unlink()
    real = data / "tokenizer"
    (mine / "sentencepiece.bpe.model").symlink_to(real / "sentencepiece.bpe.model")
    edit(mine / CONFIG, vocab_size=250002)
    assert pipeline.write_tokenizer(reading.read(str(mine)), tmp_path) == (0, 1, 2, 3)
    found = Backend.from_file(str(tmp_path / "tokenizer.json"))
    expected = Backend.from_file(str(real / "tokenizer.json"))
    for text in samples.sentences():
        assert found.encode(text).ids == expected.encode(text).ids, text
