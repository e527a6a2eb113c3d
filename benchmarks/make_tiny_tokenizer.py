"""Make the embedded model's tokenizer from the embedded training tasks: `python benchmarks/make_tiny_tokenizer.py`.

A byte-level BPE: any text goes in and comes out unchanged. Digits stand alone, so that numbers can be copied; the start
of a line keeps its indentation, and a run of punctuation its space, so that common bits of Python are one token.
"""

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from wmtp.data.builtin import builtin_tasks
from wmtp.model.builtin import tokenizer_file

VOCABULARY = 1024
PIECES = r"\d|\n *|[ _]?[A-Za-z]+| ?[^\sA-Za-z\d]+(?: (?![^\sA-Za-z\d]))?|\s"


def make() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rows = builtin_tasks("train")
    texts = (f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n{row["code"]}' for row in rows)
    tokenizer.train_from_iterator(texts, trainer, length=len(rows))
    return tokenizer


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else tokenizer_file()
    make().save(str(target), pretty=False)
    print(target)
