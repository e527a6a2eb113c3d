"""Meta's form: computes what an independent Llama of that form computes, comes back bit for bit, and is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.model.meta_reference import PARAMS, WIDTH, head_logits, make_weights, write_folder
from torch import Tensor
from transformers import LlamaForCausalLM

from wmtp.errors import ModelError
from wmtp.model import export_meta, load_model, model_skeleton, save_model, tokenizer_location
from wmtp.model.decoding import check
from wmtp.model.meta import llama_config
from wmtp.model.meta_file import open_meta
from wmtp.model.mtp import MTPModel

FULL = PARAMS | {"n_kv_heads": None, "ffn_dim_multiplier": 1.3, "vocab_size": 128, "rope_theta": 10000.0}
PLAIN = {key: value for key, value in PARAMS.items() if key not in ("n_future_tokens", "rope_theta")} | {"n_layers": 3}
KINDS = {"grouped": (PARAMS, WIDTH), "full": (FULL, 224), "one head": (PLAIN, WIDTH)}  # 1.3 * 170 = 221 -> 224


class Tokenizer:
    """Saves itself."""

    def save_pretrained(self, save_directory: str, /) -> None:
        (Path(save_directory) / "tokenizer.json").write_text('{"a": 1}')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "meta", PARAMS, make_weights(PARAMS, WIDTH))


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    params = json.loads((folder / "params.json").read_text())
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    change(params, weights)
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(weights, folder / "consolidated.pth")


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    return json.loads((folder / "params.json").read_text()), weights


def assert_same_files(one: Path, other: Path) -> None:
    (params, weights), (expected_params, expected) = contents(one), contents(other)
    assert params == expected_params
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert weights[key].dtype == value.dtype, key
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_computes_what_the_form_says(kind: str, dtype: torch.dtype, tmp_path: Path, make_batch: Any) -> None:
    params, width = KINDS[kind]
    weights = {key: value.to(dtype) for key, value in make_weights(params, width).items()}
    model = load_model(str(write_folder(tmp_path / "meta", params, weights)), horizon=None)
    heads = params.get("n_future_tokens", 1)
    assert (model.horizon, model.head) == (heads, "transformer")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    tokens = torch.randint(0, 128, (2, 11))
    expected = head_logits(params, weights, tokens)
    assert expected.std() > 0.5
    with torch.no_grad():
        trunk = model.trunk(tokens, torch.arange(11).expand(2, 11))
        logits = torch.stack([model.trunk.unembedding(h) for h in model.run_heads(trunk, heads)], dim=-2)
        torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
        out = model(make_batch([[(row, 0)] for row in tokens.tolist()]))
    for head in range(heads):
        there = 11 - 1 - head
        ce = -expected[:, :there, head].log_softmax(-1).gather(-1, tokens[:, head + 1 :, None])[..., 0]
        torch.testing.assert_close(out.ce[:, :there, head].double(), ce, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_comes_back_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    params, width = KINDS[kind]
    weights = {key: value.to(dtype) for key, value in make_weights(params, width).items()}
    weights["norm.weight"] = weights["norm.weight"].float()  # one that differs from the others
    if kind == "full":
        weights["rope.freqs"] = (1 / 10000 ** (torch.arange(0, 16, 2) / 16)).to(dtype)
    source = write_folder(tmp_path / "meta", params, weights)
    export_meta(load_model(str(source), horizon=None), Tokenizer(), tmp_path / "out")
    assert_same_files(tmp_path / "out", source)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"params.json", "consolidated.pth", "tokenizer.json"}
    # And through a folder of ours, as a training run leaves it.
    save_model(load_model(str(source), horizon=None), Tokenizer(), tmp_path / "ours")
    again = load_model(str(tmp_path / "ours"), horizon=None)
    export_meta(again, Tokenizer(), tmp_path / "out2")
    assert_same_files(tmp_path / "out2", source)


def test_params_leave_the_vocabulary_open(folder: Path, tmp_path: Path) -> None:
    """As Llama 2's do: it is that of the weights, and -1 stays -1."""
    rewrite(folder, lambda params, _: params.update(vocab_size=-1))
    model = load_model(str(folder), horizon=4)
    assert model.trunk.unembedding.out_features == 128
    export_meta(model, Tokenizer(), tmp_path / "out")
    assert contents(tmp_path / "out")[0]["vocab_size"] == -1


def test_other_tools_load_the_trunk_of_what_was_saved(folder: Path, tmp_path: Path) -> None:
    save_model(load_model(str(folder), horizon=4), Tokenizer(), tmp_path / "ours")
    lm = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    tokens = torch.randint(0, 128, (1, 9))
    with torch.no_grad():
        expected = head_logits(*contents(folder), tokens)[:, :, 0]
        torch.testing.assert_close(lm(tokens).logits.double(), expected, atol=1e-5, rtol=1e-5)


def test_weights_stay_in_the_file_until_asked_for(folder: Path) -> None:
    """One by one, each as it is in the model; only what must change places is copied."""
    checkpoint = open_meta(folder)
    expected = load_model(str(folder), horizon=4).state_dict()
    found = dict(checkpoint.weights())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    again = dict(checkpoint.weights())
    copied = {name for name in found if found[name].data_ptr() != again[name].data_ptr()}
    assert copied == {name for name in expected if ".q_proj." in name or ".k_proj." in name}
    assert {name for name, _ in checkpoint.weights("heads.")} == {n[6:] for n in expected if n.startswith("heads.")}


def test_the_skeleton_fits(folder: Path) -> None:
    skeleton, model = model_skeleton(str(folder), horizon=None), load_model(str(folder), horizon=None)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in skeleton.state_dict().items()} == shapes
    assert all(value.device.type == "meta" for value in skeleton.parameters())
    assert skeleton.trunk.origin == model.trunk.origin is not None


def test_decodes_token_by_token(folder: Path) -> None:
    check(load_model(str(folder), horizon=4).eval())


def test_a_loaded_model_does_not_need_the_file(folder: Path) -> None:
    model = load_model(str(folder), horizon=4)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    file = folder / "consolidated.pth"
    file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_an_old_file_that_cannot_be_mapped(folder: Path) -> None:
    expected = load_model(str(folder), horizon=4).state_dict()
    weights = torch.load(folder / "consolidated.pth", weights_only=True, mmap=False)
    torch.save(weights, folder / "consolidated.pth", _use_new_zipfile_serialization=False)
    found = load_model(str(folder), horizon=4).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class TestModelsOfOtherOrigin:
    @pytest.mark.parametrize("kind", ["llama", "llama-tied"])
    def test_any_llama_can_be_written(self, kind: str, tmp_path: Path, make_trunk: Any) -> None:
        model = MTPModel(make_trunk(kind), 3)
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        export_meta(model, Tokenizer(), tmp_path / "out")
        params, weights = contents(tmp_path / "out")
        assert (params["n_layers"], params["n_future_tokens"]) == (4, 3)
        tokens = torch.randint(0, 97, (1, 9))
        with torch.no_grad():
            trunk = model.trunk(tokens, torch.arange(9)[None])
            logits = torch.stack([model.trunk.unembedding(h) for h in model.run_heads(trunk, 3)], dim=-2)
        torch.testing.assert_close(logits.double(), head_logits(params, weights, tokens), atol=1e-5, rtol=1e-5)
        found = load_model(str(tmp_path / "out"), horizon=None)
        assert found.horizon == 3
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())

    @pytest.mark.parametrize("width", [1, 47, 85, 86, 300])
    def test_any_width_can_be_said(self, width: int, tmp_path: Path, make_trunk: Any) -> None:
        export_meta(MTPModel(make_trunk(intermediate_size=width), 1), Tokenizer(), tmp_path / "out")
        params, weights = contents(tmp_path / "out")
        # As in the reference code.
        hidden = int(2 * (4 * params["dim"]) / 3)
        if params["ffn_dim_multiplier"] is not None:
            hidden = int(params["ffn_dim_multiplier"] * hidden)
        hidden = params["multiple_of"] * ((hidden + params["multiple_of"] - 1) // params["multiple_of"])
        assert hidden == width == weights["layers.0.feed_forward.w1.weight"].shape[0]
        assert load_model(str(tmp_path / "out"), horizon=1).window == 4096

    def test_heads_on_a_model_that_had_one(self, tmp_path: Path) -> None:
        """More heads than it came with: counted among its layers, and the rest of params.json stays."""
        weights = {key: value.bfloat16() for key, value in make_weights(PLAIN, WIDTH).items()}
        model = load_model(str(write_folder(tmp_path / "meta", PLAIN, weights)), horizon=3)
        export_meta(model, Tokenizer(), tmp_path / "out")
        params, found = contents(tmp_path / "out")
        assert params == PLAIN | {"n_layers": 5, "n_future_tokens": 3}
        assert all(torch.equal(found[key], value) for key, value in weights.items())
        last, head = "layers.2.attention.wq.weight", "extra_heads.1.attention.wq.weight"
        assert torch.equal(found[head], weights[last])  # fresh heads are copies of the last layer, here in its dtype

    @pytest.mark.parametrize(
        ("kind", "settings", "said"),
        [
            ("qwen2", {}, "of kind qwen2"),
            ("llama", {"attention_bias": True}, "attention_bias"),
            ("llama", {"hidden_act": "gelu"}, "hidden_act"),
            ("llama", {"head_dim": 16}, "head_dim"),
            (
                "llama",
                {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
                "rope_type",
            ),
        ],
    )
    def test_what_the_form_cannot_say(
        self, kind: str, settings: dict[str, Any], said: str, tmp_path: Path, make_trunk: Any
    ) -> None:
        with pytest.raises(ModelError, match=said):
            export_meta(MTPModel(make_trunk(kind, **settings), 2), Tokenizer(), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_residual_heads(self, tmp_path: Path, make_trunk: Any) -> None:
        with pytest.raises(ModelError, match="heads of kind residual"):
            export_meta(MTPModel(make_trunk(), 2, "residual"), Tokenizer(), tmp_path / "out")


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda p, w: w.pop("layers.2.ffn_norm.weight"), r"1 missing: layers\.2\.ffn_norm\.weight"),
            (lambda p, w: w.update(bias=torch.zeros(1)), "1 unknown: bias"),
            (lambda p, w: p.pop("n_future_tokens"), r"27 missing: layers\.4\..*27 unknown: extra_heads\.0\."),
            (
                lambda p, w: p.update(multiple_of=64, ffn_dim_multiplier=1.5),
                r"w1\.weight is \(192, 64\), not \(256, 64",
            ),
            (lambda p, w: p.pop("n_kv_heads"), r"wk\.weight is \(32, 64\), not \(64, 64\)"),
            (lambda p, w: p.update(vocab_size=127), r"tok_embeddings\.weight is \(128, 64\), not \(127, 64\)"),
            (lambda p, w: p.update(n_future_tokens=8), r"params\.json: dim 64.* n_future_tokens 8 make no Llama"),
            (lambda p, w: p.update(n_heads=3), "n_heads 3"),
            (lambda p, w: p.update(n_kv_heads=3), "n_kv_heads 3"),
            (lambda p, w: p.update(dim="64"), "dim is '64'"),
            (lambda p, w: p.pop("n_layers"), "no n_layers"),
            (lambda p, w: p.update(n_future_tokens=0), "n_future_tokens is 0"),
            (lambda p, w: p.update(n_future_tokens=True), "n_future_tokens is True"),
            (lambda p, w: p.update(rope_theta=-1), "rope_theta is -1"),
            (lambda p, w: p.update(norm_eps="tiny"), "norm_eps is 'tiny'"),
            (lambda p, w: p.update(use_scaled_rope=True), "use_scaled_rope: what this means"),
            (lambda p, w: w.update({"rope.freqs": torch.ones(8)}), r"rope\.freqs is not what rope_theta 500"),
            (
                lambda p, w: w.update({"norm.weight": w["norm.weight"].double()}),
                "'norm.weight' is no tensor of float32",
            ),
            (lambda p, w: w.update({"norm.weight": 3}), "'norm.weight' is no tensor"),
            (lambda p, w: w.clear(), "no mapping of names to tensors"),
        ],
    )
    def test_weights_and_params_that_do_not_fit(self, change: Any, said: str, folder: Path) -> None:
        rewrite(folder, change)
        with pytest.raises(ModelError, match=said):
            load_model(str(folder), horizon=None)

    def test_a_switch_that_is_off_means_nothing(self, folder: Path) -> None:
        rewrite(folder, lambda params, _: params.update(use_scaled_rope=False))
        assert load_model(str(folder), horizon=4).horizon == 4

    def test_parts_of_model_parallelism(self, folder: Path) -> None:
        (folder / "consolidated.pth").rename(folder / "consolidated.00.pth")
        assert load_model(str(folder), horizon=4).horizon == 4  # as Llama 2 names a single one
        (folder / "consolidated.01.pth").write_bytes(b"")
        with pytest.raises(ModelError, match=r"2 files consolidated\.00\.pth to consolidated\.01\.pth.*join them"):
            load_model(str(folder), horizon=4)

    @pytest.mark.parametrize(("horizon", "head"), [(1, "transformer"), (3, "transformer"), (4, "residual")])
    def test_heads_are_never_dropped_silently(self, horizon: int, head: Any, folder: Path) -> None:
        with pytest.raises(ModelError, match=rf"horizon 4 and model\.head transformer.*{horizon} and {head}"):
            load_model(str(folder), horizon=horizon, head=head)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3"])
    def test_params_that_are_no_mapping(self, text: str, folder: Path) -> None:
        (folder / "params.json").write_text(text)
        with pytest.raises(ModelError, match=r"params\.json: not"):
            load_model(str(folder), horizon=4)

    @pytest.mark.parametrize("keep", [0, 10, 1000, -100, -1])
    def test_a_file_cut_short(self, keep: int, folder: Path) -> None:
        data = (folder / "consolidated.pth").read_bytes()
        (folder / "consolidated.pth").write_bytes(data[:keep])
        with pytest.raises(ModelError, match=r"consolidated\.pth"):
            load_model(str(folder), horizon=4)

    def test_code_in_the_file_is_not_run(self, folder: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "touched",))

        torch.save({"norm.weight": Evil()}, folder / "consolidated.pth")
        with pytest.raises(ModelError, match="not a file of weights that can be read"):
            load_model(str(folder), horizon=4)
        assert not (tmp_path / "touched").exists()


def test_where_the_tokenizer_is(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json or tokenizer\.model there or in the folder above"):
        tokenizer_location(str(folder))
    (folder.parent / "tokenizer.model").touch()  # where the published models have it
    assert tokenizer_location(str(folder)) == str(folder.parent / "tokenizer.model")
    (folder / "tokenizer.model").touch()
    assert tokenizer_location(str(folder)) == str(folder / "tokenizer.model")
    (folder / "tokenizer.json").touch()
    assert tokenizer_location(str(folder)) == str(folder)


def test_settings_of_the_published_models() -> None:
    """7B_1T_4: 32 layers and heads together, of which 29 stand behind one another; Llama's usual width."""
    params = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5, "n_future_tokens": 4}
    config = llama_config(params, vocabulary=32000)
    assert config["num_hidden_layers"] == 29
    assert config["intermediate_size"] == 11008
    assert (config["num_key_value_heads"], config["vocab_size"]) == (32, 32000)
