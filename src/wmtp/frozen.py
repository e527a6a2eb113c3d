"""The base model before anything is trained, and what it and other models say of the data once and for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data import Example, TokenStore, load_tokenizer, pad_id, tokenise
from wmtp.data.state_loader import open_or_build_rewards
from wmtp.data.states import StateStore, content_key, open_or_build_states
from wmtp.data.tokenize import Tokenizer
from wmtp.inputs import Say
from wmtp.model import MTPModel, fetch_model, load_model, tokenizer_location
from wmtp.model.files import weights_hash
from wmtp.model.reward import is_classifier, load_reward_model
from wmtp.model.trunk import CausalTrunk
from wmtp.rewards.sequence import log_likelihoods, scores
from wmtp.settings import Settings
from wmtp.training.step import Hardware
from wmtp.types import Batch

BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Frozen:
    """The base model before anything is trained, and what reads it.

    Attributes:
        model: on the device of `hardware`; without values where another process of this machine has filled the cache.
        identity: hash of its weights and the precision that it runs in.
        tokenizer: its own.
        hardware: where it runs.
        cache: folder for what is computed once.
        say: is told what takes long.
    """

    model: MTPModel
    identity: str
    tokenizer: Tokenizer
    hardware: Hardware
    cache: Path
    say: Say

    def states(self, store: TokenStore, *, attention: bool) -> StateStore:
        """Hidden states of the responses, from the cache if they are there."""
        trunk = self.model.trunk
        assert isinstance(trunk, CausalTrunk)

        def forward(batch: Batch) -> tuple[Tensor, Tensor | None]:
            here = batch.to(self.hardware.device)
            with self.hardware.autocast():
                if attention:
                    return trunk.attended(here.tokens, here.positions, (here.documents >= 0).sum(dim=1) - 1)
                return trunk(here.tokens, here.positions).hidden, None

        self.model.eval()
        return open_or_build_states(
            self.cache / "states",
            store,
            forward,
            model=self.identity,
            width=trunk.unembedding.in_features,
            attention=attention,
            pad_id=pad_id(self.tokenizer),
            batch_tokens=BATCH_TOKENS,
            say=self.say,
        )


def rewards_of(settings: Settings, frozen: Frozen, store: TokenStore) -> tuple[NDArray[np.float64], str]:
    """[N] rewards of `store`'s documents, and what gave them."""
    critic, models = settings.recipe.critic, settings.config.paths.models
    assert critic is not None
    if models.rm is None:
        origin = "paths.models.base (its own log-likelihood)"
        key = content_key("pseudo rewards", store.key, frozen.identity)

        def build() -> NDArray[np.float64]:
            frozen.say(f"pseudo rewards of {len(store)} documents: computed once")
            return _likelihoods(frozen.model, frozen, store, pad_id(frozen.tokenizer))
    else:
        path = fetch_model(models.rm, frozen.cache, "paths.models.rm")
        origin = f"paths.models.rm: {models.rm}"
        key = content_key("rewards", store.key, path, str(frozen.hardware.precision))

        def build() -> NDArray[np.float64]:
            frozen.say(f"rewards of {len(store)} documents from {models.rm}: computed once")
            return _scored(path, settings, frozen, store)

    return open_or_build_rewards(frozen.cache / "rewards", key, build), origin


def _scored(path: str, settings: Settings, frozen: Frozen, store: TokenStore) -> NDArray[np.float64]:
    """Rewards by another model: a classifier's scores, or a causal model's mean log-likelihood."""
    texts: list[Example] = []
    for i in range(len(store)):
        ids, prompt = store.document(i)
        parts = [ids[:prompt], ids[prompt:]]
        before, after = (frozen.tokenizer.decode(part.tolist(), skip_special_tokens=True) for part in parts)
        texts.append(Example(str(before), str(after), str(i)))
    if is_classifier(path):
        classifier = load_reward_model(path)
        classifier.lm.to(frozen.hardware.device)
        with frozen.hardware.autocast():
            return scores([text.prompt + text.response for text in texts], classifier.score, batch_size=8)
    model = load_model(path, horizon=None, native_mtp="drop", seed=settings.config.seed)
    tokenizer = load_tokenizer(tokenizer_location(path))
    own = tokenise(texts, tokenizer, 10**9)
    return _likelihoods(model.to(frozen.hardware.device), frozen, own, pad_id(tokenizer))


def _likelihoods(model: MTPModel, frozen: Frozen, store: TokenStore, pad: int) -> NDArray[np.float64]:
    model.eval()

    def forward(batch: Batch):
        with frozen.hardware.autocast():
            return model(batch.to(frozen.hardware.device))

    documents = [store.document(i) for i in range(len(store))]
    return log_likelihoods(documents, forward, pad_id=pad, batch_tokens=BATCH_TOKENS, window=model.window)


def identity_of(model: MTPModel, hardware: Hardware) -> str:
    """What hidden states depend on: the trunk's weights, and the precision that it runs in."""
    return f"{weights_hash(model.trunk)} {str(hardware.precision).removeprefix('torch.')}"
