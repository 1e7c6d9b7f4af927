"""Word pieces of code descriptions: trained and applied by Hugging Face's `tokenizers`, as BERT's are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from ehrctx.timelines.spec import SPECIAL_TOKENS, UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Its threads would count in another order on every run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def sentence(code: str, description: str | None, text: str | None) -> str:
    """A code in words: its description, or the code itself where it has none; and the text, if there is one."""
    words = description or code
    return f"{words}: {text}" if text else words


def sentences(table: pl.DataFrame, descriptions: pl.DataFrame, texts: bool) -> list[str]:
    """One for each row (code, text) of `table`; `descriptions` is (code, description), each code once."""
    described = table.select("code", "text").join(descriptions, on="code", how="left", maintain_order="left")
    return [sentence(code, description, text if texts else None) for code, text, description in described.iter_rows()]


def _untrained(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    unknown = SPECIAL_TOKENS[UNK]
    made = Tokenizer(models.WordPiece(vocabulary or {unknown: 0}, unk_token=unknown, max_input_chars_per_word=200))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def _characters(untrained: Tokenizer, said: Sequence[str]) -> list[str]:
    """The pieces of one character that `said` holds: `c` where it begins a word, `##c` within one."""
    words = {
        word
        for one in said
        for word, _ in untrained.pre_tokenizer.pre_tokenize_str(untrained.normalizer.normalize_str(one))
    }
    first = sorted({word[0] for word in words})
    return first + [f"##{c}" for c in sorted({c for word in words for c in word[1:]})]


def train_word_pieces(entries: pl.DataFrame, descriptions: pl.DataFrame, texts: bool, room: int) -> list[str]:
    """At most `room` pieces, learned from the distinct sentences of `entries` (code, text); each counts once."""
    from tokenizers import trainers

    learned, said = _untrained(), sorted(set(sentences(entries, descriptions, texts)))
    # The trainer numbers characters in the random order of a hash table, and breaks ties by these numbers. Named
    # beforehand, they have the same numbers on every run.
    known = [SPECIAL_TOKENS[UNK], *_characters(learned, said)]
    trainer = trainers.WordPieceTrainer(vocab_size=max(room + 1, len(known)), special_tokens=known, show_progress=False)
    learned.train_from_iterator(said, trainer)
    by_id = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in by_id if piece != SPECIAL_TOKENS[UNK]][:room]


def spell(pieces: pl.DataFrame, said: Sequence[str]) -> list[list[int]]:
    """The tokens of each sentence; `pieces` is (token, text). A word with characters that no piece has is [UNK]."""
    vocabulary = {SPECIAL_TOKENS[UNK]: UNK} | dict(pieces.select("text", "token").iter_rows())
    return [encoding.ids for encoding in _untrained(vocabulary).encode_batch(list(said), add_special_tokens=False)]
