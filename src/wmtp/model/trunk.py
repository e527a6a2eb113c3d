"""Language models of the `transformers` library, taken apart where heads are attached.

Shapes: B rows, S positions, D hidden, V vocabulary.

Where a trunk is taken apart rests on conventions of that library, so every trunk is checked when it is made, on one
tiny batch: what we compute must equal the library's own logits.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp.errors import ModelError
from wmtp.model.kv_cache import KVCache
from wmtp.model.meta import Origin
from wmtp.model.mtp import TrunkOutput

LOGIT_SCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")
FINAL_NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm", "final_norm")


class CausalTrunk(nn.Module):
    """A causal language model, taken apart where MTP heads are attached (a `wmtp.model.mtp.Trunk`).

    Attributes:
        origin: what is remembered of a model that came in Meta's form.
    """

    def __init__(self, lm: PreTrainedModel, name: str) -> None:
        """Find the parts of `lm`; `ModelError` names what is missing. `name` is used in messages."""
        super().__init__()
        self.lm, self.name = lm, name
        self.origin: Origin | None = None
        decoder = lm.base_model
        layers = [m for m in decoder.children() if isinstance(m, nn.ModuleList)]
        norms = [m for n, m in decoder.named_children() if n in FINAL_NORMS]
        unembedding = cast("nn.Module | None", lm.get_output_embeddings())
        if len(layers) != 1 or len(norms) != 1 or not isinstance(unembedding, nn.Linear):
            raise ModelError(
                f"{name}: a {type(lm).__name__} can't be a trunk: its decoder layers, final norm or unembedding were "
                "not found; use a decoder-only model of the Llama, Qwen, Mistral or GPT-NeoX kind"
            )
        # Not registered as submodules a second time: they belong to `lm`, and each weight has one name.
        self._parts = (layers[0][-1], norms[0], unembedding)
        self._layers = list(layers[0])

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, the last one included."""
        return self._layers

    @property
    def last_layer(self) -> nn.Module:
        """The last decoder layer: the next-token head."""
        return self._parts[0]

    @property
    def norm(self) -> nn.Module:
        """The final norm, shared by all heads."""
        return self._parts[1]

    @property
    def unembedding(self) -> nn.Linear:
        """The map from hidden states to logits, shared by all heads."""
        return self._parts[2]

    @property
    def window(self) -> int | None:
        """How many tokens the model was made for, None if it does not say."""
        return getattr(self.lm.config, "max_position_embeddings", None)

    def forward(self, tokens: Tensor, positions: Tensor, cache: KVCache | None = None) -> TrunkOutput:
        """Hidden states of [B,S] tokens.

        Without a cache another document begins where positions don't count on by one. With one, tokens go on from what
        it holds (see `KVCache.begin`).
        """
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            calls.append((args, dict(kwargs)))

        # For this call alone: heads are deep copies of the layer, and a lasting hook would take the trunk along.
        handle = self.last_layer.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            # Without a mask the library tells packed documents by their positions.
            past = {"attention_mask": self._mask(cache), "past_key_values": cache} if cache else {}
            output = self.lm.base_model(input_ids=tokens, position_ids=positions, use_cache=cache is not None, **past)
        finally:
            handle.remove()
        ((before_last, *rest), options) = (
            calls[0] if calls[0][0] else ((calls[0][1].pop("hidden_states"),), calls[0][1])
        )

        def run_layer(layer: nn.Module, hidden: Tensor) -> Tensor:
            if cache:
                cache.owner = layer
            output = layer(hidden, *rest, **options)
            return output if isinstance(output, Tensor) else output[0]

        return TrunkOutput(before_last, output.last_hidden_state, run_layer)

    def _mask(self, cache: KVCache) -> Tensor | dict[str, Tensor]:
        """What is added to attention scores, [b,1,M,width]; by kind of layer, for models with several kinds."""
        config: Any = self.lm.config
        dtype = self.unembedding.weight.dtype
        distance = cache.positions[:, None, :, None] - torch.arange(cache.width, device=cache.positions.device)

        def mask(kind: str) -> Tensor:
            seen = distance >= 0
            if kind == "sliding_attention":
                seen &= distance < config.sliding_window
            return torch.zeros_like(distance, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

        kinds: list[str] | None = getattr(config, "layer_types", None)
        if kinds is None:
            return mask("sliding_attention" if getattr(config, "sliding_window", None) else "full_attention")
        return {kind: mask(kind) for kind in set(kinds)}

    @torch.no_grad()
    def attended(self, tokens: Tensor, positions: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states, and what one token of each row attends to.

        Args:
            tokens: [B,S] int64, one document a row.
            positions: [B,S] int64.
            last: [B] int64, the index of that token.

        Returns:
            [B,S,D] hidden states; [B,S] fp32 attention in the last layer, mean of its heads, which adds up to one.

        Raises:
            ModelError: the last layer has no attention that can be watched.
        """
        rows = torch.arange(len(last), device=last.device)
        paid: list[Tensor] = []

        def watch(module: nn.Module, args: object, output: object) -> None:
            del module, args
            weights = cast("tuple[object, ...]", output)[1] if isinstance(output, tuple) else None
            if isinstance(weights, Tensor) and weights.ndim == 4:
                paid.append(weights[rows, :, last].float().mean(dim=1))

        handles = [child.register_forward_hook(watch) for child in self.last_layer.children()]
        usual = cast(str, cast(Any, self.lm.config)._attn_implementation)
        self.lm.set_attn_implementation("eager")  # the fast ones never have the weights at hand
        try:
            hidden = self(tokens, positions).hidden
        finally:
            self.lm.set_attn_implementation(usual)
            for handle in handles:
                handle.remove()
        if len(paid) != 1:
            raise ModelError(
                f"{self.name}: the attention of a {type(self.lm).__name__} can't be watched; "
                "set critic.token_spread to gae, uniform or length"
            )
        return hidden, paid[0]

    @torch.no_grad()
    def check(self) -> None:
        """`ModelError` unless norm and unembedding of the parts found give the library's own logits."""
        scaling = [key for key in LOGIT_SCALING if getattr(self.lm.config, key, None) not in (None, 1, 1.0)]
        tokens = torch.arange(8, device=self.unembedding.weight.device)[None] % self.unembedding.out_features
        with _evaluating(self):
            out = self(tokens, torch.arange(8, device=tokens.device)[None])
            by_parts = self.norm(out.run_layer(self.last_layer, out.before_last))
            expected = self.lm(input_ids=tokens, use_cache=False).logits
        if scaling or not (_close(by_parts, out.hidden) and _close(self.unembedding(out.hidden), expected)):
            raise ModelError(
                f"{self.name}: a {type(self.lm).__name__} changes its hidden states or logits on the way out "
                f"({', '.join(scaling) or 'scaling'}), which is not supported as a trunk"
            )

    @torch.no_grad()
    def keeps_documents_apart(self) -> bool:
        """Whether a document that is packed behind another one is computed as if it were alone."""
        device = self.unembedding.weight.device
        tokens = torch.tensor([[3, 1, 4, 1, 5, 2, 6]], device=device) % self.unembedding.out_features
        with _evaluating(self):
            packed = self(tokens, torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=device)).hidden[:, 4:]
            return _close(packed, self(tokens[:, 4:], torch.arange(3, device=device)[None]).hidden)


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    """Without dropout."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3 * float(b.float().abs().max())))
