"""Captions to token ids and back: BERT's uncased WordPiece, read from disk, from the hub, or trained on a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from simvtp_ds.files import replacing

FILE_NAME = "tokenizer.json"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = 1000  # most characters a trained vocabulary spells with (BERT's trainer uses the same); rarer: [UNK]


class TokenizerError(ValueError):
    """No usable tokenizer under that name; the message says why and what to do."""


class Tokenizer:
    """Caption <-> token ids.

    Attributes:
        vocab_size: Number of token ids (V), special and added tokens included.
        cls_id, sep_id, mask_id, pad_id: Ids of [CLS], [SEP], [MASK], [PAD].
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str):
        backend.no_truncation()  # published files often cut at 128 and pad; both are decided elsewhere
        backend.no_padding()
        self._backend = backend
        self.vocab_size = backend.get_vocab_size()
        needed = [token for token in _SPECIAL if token != "[UNK]"]
        ids = {token: id for token in needed if (id := backend.token_to_id(token)) is not None}
        missing = ", ".join(token for token in needed if token not in ids)
        if missing:
            raise TokenizerError(
                f"tokenizer {source}: has no {missing}; expected a BERT vocabulary with all of {_SPECIAL}"
            )
        self.cls_id, self.sep_id, self.mask_id = ids["[CLS]"], ids["[SEP]"], ids["[MASK]"]
        self.pad_id = ids["[PAD]"]

    @classmethod
    def load(cls, name_or_folder: str | Path) -> Tokenizer:
        """From a folder with tokenizer.json or vocab.txt (uncased BERT), else from the hub by name.

        Raises:
            TokenizerError: It cannot be found or read, or lacks a special token.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            return cls(_from_hub(str(name_or_folder)), str(name_or_folder))
        file = next((folder / name for name in (FILE_NAME, "vocab.txt") if (folder / name).is_file()), None)
        if file is None:
            raise TokenizerError(f"tokenizer {folder}: the folder holds neither {FILE_NAME} nor vocab.txt")
        try:
            if file.name == FILE_NAME:
                backend = tokenizers.Tokenizer.from_file(str(file))
            else:
                backend = _bert(file.read_text(encoding="utf-8").splitlines())
        except Exception as error:  # the library raises a bare Exception on a broken file
            raise TokenizerError(f"tokenizer {file}: cannot be read ({error})") from None
        return cls(backend, str(folder))

    def encode(self, caption: str, max_words: int) -> np.ndarray:
        """int64 [L]: [CLS], the words, [SEP]; words past L = max_words are cut off."""
        if max_words < 3:
            raise ValueError(f"max_words is {max_words}; at least 3 are needed: [CLS], one word, [SEP]")
        words = self._backend.encode(caption, add_special_tokens=False).ids[: max_words - 2]
        return np.array([self.cls_id, *words, self.sep_id], dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; special tokens are left out."""
        return self._backend.decode([int(id) for id in ids])

    def token(self, id: int) -> str:
        """The token with this id, special ones included."""
        token = self._backend.id_to_token(int(id))
        if token is None:
            raise ValueError(f"token id {id} is not in the vocabulary of {self.vocab_size}")
        return token

    def same_words(self, other: Tokenizer) -> bool:
        """Whether both give every token the same id."""
        return self._backend.get_vocab() == other._backend.get_vocab()

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json into the folder, whole or not at all."""
        with replacing(Path(folder) / FILE_NAME) as temporary:
            temporary.write_text(self._backend.to_str(pretty=True), encoding="utf-8")


def train_wordpiece(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-case WordPiece vocabulary of at most `vocab_size` tokens; the same captions give the same vocabulary.

    Raises:
        ValueError: `vocab_size` does not even hold the characters of the captions.
    """
    # The trainer numbers characters in the order of a hash table, which changes from run to run. Naming every
    # character first, bare and as a continuation, fixes all ids and with them how ties between merges are broken.
    normalizer = normalizers.BertNormalizer()
    texts = [normalizer.normalize_str(caption) for caption in captions]
    counts = Counter(character for text in texts for character in text if not character.isspace())
    kept = sorted(sorted(counts), key=lambda c: -counts[c])[:_CHARACTERS]
    alphabet = [*_SPECIAL, *sorted(kept), *(f"##{c}" for c in sorted(kept))]
    if vocab_size < len(alphabet):
        raise ValueError(
            f"vocab_size is {vocab_size}, but the characters and special tokens of these captions alone take "
            f"{len(alphabet)}; ask for more"
        )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=alphabet,
        initial_alphabet=kept,
        limit_alphabet=len(kept),
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab()
    return Tokenizer(_bert(sorted(vocabulary, key=vocabulary.__getitem__)), "trained on the captions")


def _bert(vocabulary: Sequence[str]) -> tokenizers.Tokenizer:
    """BERT's uncased tokenizer over `vocabulary` (id = position)."""
    table = {token: id for id, token in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([token for token in _SPECIAL if token in table])
    return backend


def _from_hub(name: str) -> tokenizers.Tokenizer:
    """The fast tokenizer that transformers finds under this name, in its cache or on the hub."""
    from transformers import AutoTokenizer  # slow to import, and most runs use the folder beside the manifest

    try:
        return tokenizers.Tokenizer.from_str(AutoTokenizer.from_pretrained(name).backend_tokenizer.to_str())
    except Exception as error:  # network, cache, missing name, no fast version: all mean that it is not to be had
        first = str(error).strip().splitlines()
        raise TokenizerError(
            f"tokenizer {name!r}: no such folder, and transformers cannot load it by that name "
            f"({type(error).__name__}: {first[0] if first else ''}); give a folder with tokenizer.json or vocab.txt"
        ) from None
