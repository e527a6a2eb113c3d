"""A saved model comes back exactly, heads and all; damage is named; other tools can open it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from wmtp.errors import ModelError
from wmtp.model import store
from wmtp.model.mtp import MTPModel
from wmtp.model.store import fetch_model, load_model, save_model, tokenizer_location

TOKENS = torch.tensor([[5, 17, 3, 88, 41, 2, 60]])


class Tokenizer:
    """Saves itself."""

    def save_pretrained(self, save_directory: str, /) -> None:
        (Path(save_directory) / "tokenizer.json").write_text('{"a": 1}')


def trained(model: MTPModel) -> MTPModel:
    """With heads that differ from one another and from what they begin as."""
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture
def saved(tmp_path: Path, make_trunk: Callable[..., Any]) -> Path:
    """A model of three heads in a folder."""
    save_model(trained(MTPModel(make_trunk(), 3)), Tokenizer(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt_neox"])
@pytest.mark.parametrize(("horizon", "head"), [(4, "transformer"), (4, "residual"), (1, "transformer")])
def test_comes_back_bit_for_bit(kind: str, horizon: int, head: Any, tmp_path: Path, make_trunk: Any) -> None:
    model = trained(MTPModel(make_trunk(kind), horizon, head))
    save_model(model, Tokenizer(), tmp_path / "model")
    again = load_model(str(tmp_path / "model"), horizon=horizon, head=head)
    expected, found = model.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (again.horizon, again.head) == (horizon, head)
    assert (tmp_path / "model" / "mtp_heads.safetensors").exists() == (horizon > 1)


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_transformers_opens_it_as_the_trunk(kind: str, tmp_path: Path, make_trunk: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = trained(MTPModel(make_trunk(kind), 3))
    save_model(model, Tokenizer(), tmp_path / "model")
    lm, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"], "the heads are in a file of their own"
    with torch.no_grad():
        assert torch.equal(lm(input_ids=TOKENS).logits, model.trunk.lm(input_ids=TOKENS).logits)


def test_a_plain_folder_gets_fresh_heads(tmp_path: Path, make_lm: Any) -> None:
    make_lm().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), horizon=3)
    for head in model.heads:
        for own, last in zip(head.parameters(), model.trunk.last_layer.parameters(), strict=True):
            assert torch.equal(own, last)
    heads = load_model(str(tmp_path), horizon=3, head="residual").heads
    assert all(not head.linear.weight.any() for head in heads)


def test_a_saved_model_can_be_saved_over_itself(saved: Path, tmp_path: Path) -> None:
    model = load_model(str(saved), horizon=3)
    (saved / "left over").write_text("from before")
    with torch.no_grad():
        model.heads[0].mlp.up_proj.weight.add_(1.0)
    save_model(model, Tokenizer(), saved)
    again = load_model(str(saved), horizon=3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert [f.name for f in tmp_path.iterdir()] == ["model"], "no temporary folder stays"
    assert not (saved / "left over").exists()


def test_a_save_that_fails_leaves_the_old_model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(saved), horizon=3)
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(ModelError, match=r"can't be written: .*No space left"):
        save_model(model, Tokenizer(), saved)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ModelError, match=r"can't be written: .*No space left"):
        save_model(model, Tokenizer(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_old_model_that_cannot_be_deleted_does_not_cost_both(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a network file system, where a file that someone has open stays in its folder.
    model = load_model(str(saved), horizon=3)
    delete = shutil.rmtree

    def stuck(path: Path, *args: Any, **options: Any) -> None:
        if Path(path) == saved:
            (saved / "model.safetensors").unlink()
            raise OSError(39, "Directory not empty")
        delete(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", stuck)
    with contextlib.suppress(OSError):
        save_model(model, Tokenizer(), saved)
    loadable = []
    for folder in saved.parent.iterdir():
        with contextlib.suppress(ModelError):
            load_model(str(folder), horizon=3)
            loadable.append(folder)
    assert loadable, "the old model is half gone and the new one was thrown away"


class TestDamage:
    @pytest.mark.parametrize("name", ["mtp_heads.safetensors", "model.safetensors", "config.json", "tokenizer.json"])
    @pytest.mark.parametrize("place", [0, -1, 0.5])
    def test_a_flipped_bit_is_named(self, name: str, place: float, saved: Path) -> None:
        content = bytearray((saved / name).read_bytes())
        index = int(len(content) * place) if place == 0.5 else int(place)
        content[index] ^= 1
        (saved / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}.*hash"):
            load_model(str(saved), horizon=3)

    @pytest.mark.parametrize("name", ["mtp_heads.safetensors", "model.safetensors", "config.json"])
    def test_a_missing_file_is_named(self, name: str, saved: Path) -> None:
        (saved / name).unlink()
        with pytest.raises(ModelError, match=f"{name} is missing"):
            load_model(str(saved), horizon=3)

    def test_heads_without_their_description(self, saved: Path) -> None:
        (saved / "wmtp.json").unlink()
        with pytest.raises(ModelError, match=r"wmtp\.json is missing"):
            load_model(str(saved), horizon=3)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "[]",
            lambda text: text.replace('"format": 1', '"format": 2'),
            lambda text: text.replace('"horizon"', '"horizont"'),
            lambda text: text.replace('"head"', '"haed"'),
            lambda text: text.replace('"sha256"', '"md5"'),
        ],
    )
    def test_a_damaged_description(self, change: Callable[[str], str], saved: Path) -> None:
        text = (saved / "wmtp.json").read_text()
        assert change(text) != text
        (saved / "wmtp.json").write_text(change(text))
        with pytest.raises(ModelError, match=r"wmtp\.json"):
            load_model(str(saved), horizon=3)


@pytest.mark.parametrize(
    ("horizon", "head"), [(1, "transformer"), (2, "transformer"), (4, "transformer"), (3, "residual")]
)
def test_heads_are_never_dropped_silently(horizon: int, head: Any, saved: Path) -> None:
    with pytest.raises(ModelError, match=rf"horizon 3 and model\.head transformer.*{horizon} and {head}"):
        load_model(str(saved), horizon=horizon, head=head)


def test_what_is_written_is_described(saved: Path) -> None:
    meta = json.loads((saved / "wmtp.json").read_text())
    assert (meta["format"], meta["horizon"], meta["head"]) == (1, 3, "transformer")
    assert set(meta["sha256"]) == {f.name for f in saved.iterdir()} - {"wmtp.json"}
    heads = load_file(saved / "mtp_heads.safetensors")
    assert {name.split(".")[0] for name in heads} == {"0", "1"}


class TestFetch:
    def test_what_is_here_is_taken_as_it_is(self, saved: Path, tmp_path: Path) -> None:
        assert fetch_model("builtin:tiny", tmp_path) == "builtin:tiny"
        assert fetch_model(str(saved), tmp_path) == str(saved)
        assert tokenizer_location(str(saved)) == str(saved)
        assert Path(tokenizer_location("builtin:tiny")).is_file()

    @pytest.mark.parametrize("location", ["builtin:large", "/no/such/folder", "./none", "none.gguf", "a/b/c", "~/none"])
    def test_what_is_not_there(self, location: str, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=location):
            fetch_model(location, tmp_path)

    def test_a_url(self, saved: Path, tmp_path: Path) -> None:
        remote = fsspec.filesystem("memory")
        remote.put(str(saved), "/bucket/model", recursive=True)
        try:
            fetched = fetch_model("memory://bucket/model", tmp_path / "cache")
            expected = load_model(str(saved), horizon=3).state_dict()
            found = load_model(fetched, horizon=3).state_dict()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            # A second run finds the first one's files there.
            assert fetch_model("memory://bucket/model", tmp_path / "cache") == fetched
            assert {f.name for f in Path(fetched).iterdir()} == {f.name for f in saved.iterdir()}
            load_model(fetched, horizon=3)
            with pytest.raises(ModelError, match="memory://bucket/other"):
                fetch_model("memory://bucket/other", tmp_path / "cache")
        finally:
            remote.rm("/bucket", recursive=True)

    def test_the_url_of_a_gguf_file(self, tmp_path: Path) -> None:
        remote = fsspec.filesystem("memory")
        remote.pipe("/bucket/x.gguf", b"GGUF and so on")
        try:
            fetched = fetch_model("memory://bucket/x.gguf", tmp_path)
            assert Path(fetched).read_bytes() == b"GGUF and so on"
            assert fetched.endswith(".gguf")
        finally:
            remote.rm("/bucket", recursive=True)

    def test_an_unknown_kind_of_url(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="nosuch://bucket/model"):
            fetch_model("nosuch://bucket/model", tmp_path)

    def test_a_hub_that_does_not_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        def offline(*args: object, **kwargs: object) -> str:
            raise LocalEntryNotFoundError("no connection")

        monkeypatch.setattr(store, "snapshot_download", offline)
        with pytest.raises(ModelError, match=r"someone/model.*no connection"):
            fetch_model("someone/model", tmp_path)
