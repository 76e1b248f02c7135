"""The tokenizer against transformers' own, and the trained vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from simvtp_ds.data.text import Tokenizer, TokenizerError, train_wordpiece

CAPTIONS = [
    "A red ball moves left.",
    "a blue square moves right, slowly",
    "The RED square doesn't move!",
    "naïve café, 犬が走る",
    "two balls, three squares & 4 triangles",
]
HARD = [
    *CAPTIONS,
    "",
    "   ",
    "x" * 300,
    "tab\tnew\nline\u200b\x00\ufffd",
    "[MASK] me",
    "🙂 emoji İstanbul ßtraße",
    "don't_stop#1",
]


@pytest.mark.parametrize("max_words", [3, 8, 64])
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_ids_equal_those_of_transformers_bert_tokenizer(shared, tmp_path, max_words, form):
    from transformers import BertTokenizer

    folder = shared / "data/vocab"
    oracle = BertTokenizer.from_pretrained(str(folder))
    (tmp_path / form).write_bytes((folder / form).read_bytes())
    ours = Tokenizer.load(tmp_path)
    assert ours.vocab_size == len(oracle) == 30522
    assert (ours.cls_id, ours.sep_id, ours.mask_id, ours.pad_id) == (
        oracle.cls_token_id,
        oracle.sep_token_id,
        oracle.mask_token_id,
        oracle.pad_token_id,
    )
    clips = (shared / "data/clips/clips.jsonl").read_text().splitlines()
    for caption in [*HARD, *(json.loads(line)["caption"] for line in clips)]:
        ids = ours.encode(caption, max_words)
        assert ids.dtype == np.int64
        assert ids.tolist() == oracle(caption, truncation=True, max_length=max_words)["input_ids"], caption


def test_a_trained_vocabulary_spells_its_corpus_and_ends_where_asked():
    tokenizer = train_wordpiece(CAPTIONS * 3, 150)
    assert tokenizer.vocab_size <= 150
    assert [tokenizer.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for caption in CAPTIONS:
        tokens = [tokenizer.token(id) for id in tokenizer.encode(caption, 500)]
        assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
        assert "[UNK]" not in tokens
        letters = "".join(token.removeprefix("##") for token in tokens[1:-1])
        plain = tokenizers.normalizers.BertNormalizer().normalize_str(caption)
        assert letters == "".join(plain.split())
    assert tokenizer.decode(tokenizer.encode("A red ball", 64)) == "a red ball"


def test_frequent_words_become_single_tokens():
    tokenizer = train_wordpiece(CAPTIONS * 3, 400)
    assert [tokenizer.token(id) for id in tokenizer.encode("red square moves", 64)[1:-1]] == ["red", "square", "moves"]


def test_training_gives_the_same_vocabulary_in_every_process():
    code = (
        "import hashlib, random; from simvtp_ds.data.text import train_wordpiece; r = random.Random(0);"
        "words = [''.join(r.choice('abcdefghijklmnopqrstuvwxyzäöüé') for _ in range(r.randint(1, 9)))"
        " for _ in range(3000)];"
        "t = train_wordpiece([' '.join(r.choice(words) for _ in range(9)) for _ in range(2000)], 2000);"
        "print(t.vocab_size, hashlib.sha256(' '.join(t.token(i) for i in range(t.vocab_size)).encode()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(3)}
    assert len(runs) == 1
    assert runs.pop().startswith(b"2000 ")


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 20"):
        train_wordpiece(CAPTIONS, 20)


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer = train_wordpiece(CAPTIONS, 200)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.vocab_size == tokenizer.vocab_size
    for caption in HARD:
        assert np.array_equal(again.encode(caption, 16), tokenizer.encode(caption, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the answer must not hang on the network
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match=r"'no/such-tokenizer'.*give a folder"):
        Tokenizer.load("no/such-tokenizer")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(TokenizerError, match=r"has no \[MASK\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_too_few_words_and_unknown_ids_are_refused():
    tokenizer = train_wordpiece(CAPTIONS, 200)
    with pytest.raises(ValueError, match="max_words is 2"):
        tokenizer.encode("a", 2)
    with pytest.raises(ValueError, match="token id 5000"):
        tokenizer.token(5000)


def test_the_module_does_not_import_torch():
    code = "import sys, simvtp_ds.data.text; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2
