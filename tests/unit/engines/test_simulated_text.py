from __future__ import annotations

from onefleet.engines import simulated_text as text


def test_words_are_tokens_so_that_counts_agree() -> None:
    assert len(text.WORDS) == len(set(text.WORDS)) == 64
    answer = b"".join(text.words(text.voice(b"hello"), 0, 1000))
    assert text.count_tokens(answer) == len(text.tokenize(answer)) == 1000


def test_an_answer_depends_on_its_prompt_alone_and_can_be_taken_in_parts() -> None:
    whole = text.words(text.voice(b"hello"), 0, 600)
    parts = [word for at in range(0, 600, 7) for word in text.words(text.voice(b"hello"), at, 7)]
    assert parts[:600] == whole
    voices = {text.voice(f"prompt {number}".encode()) for number in range(50)}
    assert len(voices) > 30


def test_token_ids_go_round() -> None:
    for sample in (b"", b"a", "käse und brot".encode(), b"four", b"eight by"):
        assert text.detokenize(text.tokenize(sample)) == sample


def test_prompts_share_the_hashes_of_their_common_beginning() -> None:
    first = text.block_hashes(b"x" * 64 + b"y" * 64 + b"tail")
    second = text.block_hashes(b"x" * 64 + b"z" * 64)
    assert len(first) == len(second) == 2
    assert first[0] == second[0] and first[1] != second[1]
    assert text.block_hashes(b"y" * 64)[0] != first[1], "a block is known by all before it too"


def test_texts_that_share_words_are_near() -> None:
    def near(a: bytes, b: bytes) -> float:
        return sum(x * y for x, y in zip(text.embed(a, 64), text.embed(b, 64), strict=True))

    assert abs(near(b"the red cat", b"the red cat") - 1) < 1e-9
    assert (
        near(b"the red cat sat", b"the red cat ran")
        > near(b"the red cat sat", b"big blue sea") + 0.3
    )
    assert len(text.embed(b"", 8)) == 8
