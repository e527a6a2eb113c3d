"""Trunks: what is loaded is what the library computes, and what can't be used is refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wmtp.errors import ModelError
from wmtp.model.builtin import tiny_config
from wmtp.model.pretrained import load_trunk
from wmtp.model.trunk import CausalTrunk

TOKENS = torch.tensor([[5, 17, 3, 88, 41, 2, 60]])


@pytest.fixture
def folder(tmp_path: Path, make_lm: Callable[..., Any]) -> Path:
    """A tiny Llama of two layers, as the library saves it."""
    make_lm("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def logits_of(trunk: CausalTrunk) -> torch.Tensor:
    with torch.no_grad():
        out = trunk(TOKENS, torch.arange(TOKENS.shape[1])[None])
        return trunk.unembedding(out.hidden)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gpt_neox", "mistral-window"])
def test_a_folder_gives_the_librarys_logits(kind: str, tmp_path: Path, make_lm: Any) -> None:
    lm = make_lm(kind)
    lm.save_pretrained(tmp_path)
    trunk = load_trunk(str(tmp_path), native_mtp="refuse", seed=0)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(trunk), lm(input_ids=TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in trunk.parameters())


def test_half_precision_weights_become_fp32(tmp_path: Path, make_lm: Any) -> None:
    lm = make_lm().bfloat16()
    lm.save_pretrained(tmp_path)
    trunk = load_trunk(tmp_path, native_mtp="refuse", seed=0)
    for name, p in trunk.lm.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, lm.get_parameter(name).float())


def test_each_weight_has_one_name(make_trunk: Any) -> None:
    names = [name for name, _ in make_trunk().named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert all(name.startswith("lm.") for name in names)


class TestOwnMTPWeights:
    """A checkpoint's own multi-token-prediction module: refused, or dropped on request; never dropped silently."""

    NAMES = (
        # DeepSeek-V3, GLM-4.5: one layer more than num_hidden_layers (here 2)
        ("model.layers.2.eh_proj.weight", "model.layers.2.self_attn.q_proj.weight"),
        ("model.layers.3.self_attn.q_proj.weight",),
        ("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"),  # Qwen3-Next
        ("model.mtp_layers.0.input_proj.weight",),  # MiMo
        ("model.mtp_block.0.mlp.up_proj.weight",),  # Ernie 4.5
    )

    @pytest.mark.parametrize("names", NAMES)
    def test_refused_by_default(self, names: tuple[str, ...], folder: Path) -> None:
        change_weights(folder, lambda w: w.update({name: torch.ones(4, 4) for name in names}))
        with pytest.raises(ModelError, match=rf"brings {len(names)} weights .*{names[0]}.*native_mtp: drop"):
            load_trunk(folder, native_mtp="refuse", seed=0)

    @pytest.mark.parametrize("names", NAMES)
    def test_dropped_on_request(self, names: tuple[str, ...], folder: Path, make_lm: Any) -> None:
        change_weights(folder, lambda w: w.update({name: torch.ones(4, 4) for name in names}))
        trunk = load_trunk(folder, native_mtp="drop", seed=0)
        with torch.no_grad():
            assert torch.equal(logits_of(trunk), make_lm()(input_ids=TOKENS).logits)

    def test_in_a_later_shard(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        files = {"model-00001-of-00002.safetensors": weights, "model-00002-of-00002.safetensors": {}}
        files["model-00002-of-00002.safetensors"]["mtp.fc.weight"] = torch.ones(4, 4)
        for name, content in files.items():
            save_file(content, folder / name, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: name for name, content in files.items() for key in content}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match=r"mtp\.fc\.weight"):
            load_trunk(folder, native_mtp="refuse", seed=0)
        load_trunk(folder, native_mtp="drop", seed=0)

    @pytest.mark.parametrize("name", ["mtp.fc.weight", "model.layers.2.eh_proj.weight"])
    def test_in_a_pickled_checkpoint(self, name: str, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        load_trunk(folder, native_mtp="refuse", seed=0)
        torch.save(weights | {name: torch.ones(4, 4)}, folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match="multi-token-prediction"):
            load_trunk(folder, native_mtp="refuse", seed=0)
        load_trunk(folder, native_mtp="drop", seed=0)


class TestNotUsable:
    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
    def test_missing_weight(self, name: str, folder: Path) -> None:
        change_weights(folder, lambda w: w.pop(name))
        with pytest.raises(ModelError, match=rf"1 weights are missing.*{name}"):
            load_trunk(folder, native_mtp="refuse", seed=0)

    def test_weight_of_another_shape(self, folder: Path) -> None:
        change_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(33)}))
        with pytest.raises(ModelError, match=str(folder)):
            load_trunk(folder, native_mtp="refuse", seed=0)

    def test_a_tied_unembedding_is_not_missing(self, tmp_path: Path, make_lm: Any) -> None:
        make_lm("llama-tied").save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        trunk = load_trunk(tmp_path, native_mtp="refuse", seed=0)
        assert trunk.unembedding.weight is trunk.lm.get_input_embeddings().weight

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("cohere", {"logit_scale": 0.0625}),
            ("granite", {"logits_scaling": 8.0}),
            ("gemma2", {"final_logit_softcapping": 30.0, "head_dim": 8}),
        ],
    )
    def test_a_model_that_scales_its_logits(self, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
        lm = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(name, **sizes, **heads, eos_token_id=1, **settings), attn_implementation="eager"
        )
        lm.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="not supported as a trunk"):
            load_trunk(tmp_path, native_mtp="refuse", seed=0)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="nowhere"):
            load_trunk(tmp_path / "nowhere", native_mtp="refuse", seed=0)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=str(tmp_path)):
            load_trunk(tmp_path, native_mtp="refuse", seed=0)

    @pytest.mark.parametrize("content", ["{", "[1, 2]", "{}", '{"model_type": "t5"}', '{"model_type": "no-such"}'])
    def test_a_config_that_is_none(self, content: str, folder: Path) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=str(folder)):
            load_trunk(folder, native_mtp="refuse", seed=0)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=str(folder)):
            load_trunk(folder, native_mtp="refuse", seed=0)

    @pytest.mark.parametrize("keep", [0, 5, 500, -100])
    def test_cut_off_weights(self, keep: int, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            load_trunk(folder, native_mtp="refuse", seed=0)

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 10])
    def test_not_a_gguf_file(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"x\.gguf"):
            load_trunk(tmp_path / "x.gguf", native_mtp="refuse", seed=0)

    def test_an_encoder(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
        BertForMaskedLM(config).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=str(tmp_path)):
            load_trunk(tmp_path, native_mtp="refuse", seed=0)

    def test_remote_code_is_not_run(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
        with pytest.raises(ModelError):
            load_trunk(folder, native_mtp="refuse", seed=0)
        assert not (folder / "ran").exists()


class TestBuiltin:
    def test_the_seed_decides_and_nothing_else(self) -> None:
        torch.manual_seed(5)
        first = load_trunk("builtin:tiny", native_mtp="refuse", seed=1).state_dict()
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(after, torch.rand(1)), "the caller's random numbers were used up"
        again = load_trunk("builtin:tiny", native_mtp="refuse", seed=1).state_dict()
        other = load_trunk("builtin:tiny", native_mtp="refuse", seed=2).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        matrices = [name for name in first if first[name].ndim == 2]
        assert all(not torch.equal(first[name], other[name]) for name in matrices)

    def test_its_size(self) -> None:
        trunk = load_trunk("builtin:tiny", native_mtp="refuse", seed=0)
        assert 2e6 < sum(p.numel() for p in trunk.parameters()) < 6e6, "a few million parameters"
        assert trunk.unembedding.out_features == tiny_config()["vocab_size"]


def llama_cpp_order(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection as llama.cpp keeps them: pairs (i, i + d/2) of a head side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, lm: Any, extra: dict[str, Any] | None = None) -> None:
    """A Llama as llama.cpp's converter writes it, unquantised."""
    import gguf

    config = lm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in lm.state_dict().items():
        values = weight.numpy()
        if "q_proj" in name:
            values = llama_cpp_order(values, config.num_attention_heads)
        if "k_proj" in name:
            values = llama_cpp_order(values, config.num_key_value_heads)
        parts = name.removesuffix(".weight").split(".")
        short = f"blk.{parts[2]}.{names['.'.join(parts[3:])]}" if "layers" in parts else names[".".join(parts)]
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestGGUF:
    def test_gives_the_librarys_logits_and_can_be_saved(self, tmp_path: Path, make_lm: Any) -> None:
        lm = make_lm("llama", num_key_value_heads=4)
        write_gguf(tmp_path / "tiny.gguf", lm)
        trunk = load_trunk(tmp_path / "tiny.gguf", native_mtp="refuse", seed=0)
        with torch.no_grad():
            torch.testing.assert_close(logits_of(trunk), lm(input_ids=TOKENS).logits, atol=1e-4, rtol=1e-4)
        assert all(p.dtype == torch.float32 for p in trunk.parameters())
        trunk.lm.save_pretrained(tmp_path / "plain")
        again = load_trunk(tmp_path / "plain", native_mtp="refuse", seed=0)
        assert torch.equal(logits_of(again), logits_of(trunk))

    def test_own_mtp_weights(self, tmp_path: Path, make_lm: Any) -> None:
        extra = {"blk.2.nextn.eh_proj.weight": np.ones((4, 4), dtype=np.float32)}
        write_gguf(tmp_path / "tiny.gguf", make_lm("llama", num_key_value_heads=4), extra)
        with pytest.raises(ModelError, match="eh_proj"):
            load_trunk(tmp_path / "tiny.gguf", native_mtp="refuse", seed=0)

    def test_another_model_beside_it_does_not_matter(self, tmp_path: Path, folder: Path, make_lm: Any) -> None:
        lm = make_lm("llama", seed=3, num_key_value_heads=4)
        write_gguf(folder / "tiny.gguf", lm)
        change_weights(folder, lambda w: w.update({"mtp.fc.weight": torch.ones(4, 4)}))
        trunk = load_trunk(folder / "tiny.gguf", native_mtp="refuse", seed=0)
        with torch.no_grad():
            torch.testing.assert_close(logits_of(trunk), lm(input_ids=TOKENS).logits, atol=1e-4, rtol=1e-4)


def test_loading_leaves_the_folder_as_it_was(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    load_trunk(folder, native_mtp="refuse", seed=0)
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in (tmp_path / "copy").iterdir())
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "copy" / file.name).read_bytes()


@pytest.mark.parametrize(("name", "apart"), [("gpt2", True), ("bloom", False)])
def test_whether_packed_documents_stay_apart_is_found_out(name: str, apart: bool, tmp_path: Path) -> None:
    # GPT-2 has dropout, which must not be taken for a difference; Bloom's positions come from its mask alone.
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).save_pretrained(tmp_path)
    assert load_trunk(tmp_path, native_mtp="refuse", seed=0).keeps_documents_apart() == apart
