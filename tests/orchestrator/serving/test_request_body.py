from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.serving.request_body import BodyError, first_file, read_body

FORM = "multipart/form-data; boundary=frontier"


async def chunked(data: bytes, size: int = 10) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def read(data: bytes, content_type: str = "image/png", declared: str | None = None, most: int = 100) -> bytes:
    return asyncio.run(read_body(chunked(data), declared, content_type, most))


def form(*parts: tuple[str, bytes]) -> bytes:
    inner = b"".join(
        b"--frontier\r\nContent-Disposition: form-data; %s\r\nContent-Type: image/png\r\n\r\n%s\r\n"
        % (head.encode(), data)
        for head, data in parts
    )
    return inner + b"--frontier--\r\n"


def test_a_raw_body_is_the_image() -> None:
    assert read(b"x" * 100) == b"x" * 100


def test_the_first_file_of_a_form_is_the_image_to_the_byte() -> None:
    data = b"\r\n--frontie\x00\r\n\r\n\xff" * 3
    body = form(('name="note"', b"hello"), ('name="image"; filename="a.png"', data), ('filename="b"', b"no"))
    assert read(body, FORM) == data
    assert read(body, 'multipart/form-data; charset=x; boundary="frontier"') == data


@pytest.mark.parametrize(
    "body", [form(('name="note"', b"hello")), form(('filename="a"', b"x"))[:60], b"", b"--frontier--\r\n"]
)
def test_a_form_without_a_whole_file_is_refused(body: bytes) -> None:
    with pytest.raises(BodyError, match="no file") as error:
        first_file(body, b"frontier")
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("parts", "image"),
    [
        ([('name="a"; filename=""', b""), ('name="b"; filename="b.png"', b"image")], b"image"),
        ([('name="filename=x"', b"no"), ('name="; filename=x"', b"no"), ("filename=b", b"image")], b"image"),
        ([("filename*=UTF-8''b.png", b"image")], b"image"),
        ([('filename="a"', b"im\r\n--frontiers\r\nage")], b"im\r\n--frontiers\r\nage"),
        ([('filename="a"', b"im--frontier\r\nage")], b"im--frontier\r\nage"),
        ([("x" * 20_000 + ";filename=a", b"no"), ("filename=b", b"image")], b"image"),
    ],
)
def test_a_file_is_a_part_with_a_file_name_between_whole_boundaries(
    parts: list[tuple[str, bytes]], image: bytes
) -> None:
    assert first_file(form(*parts), b"frontier") == image


def test_a_form_may_have_a_preamble_spaces_after_a_boundary_and_a_boundary_of_latin_letters() -> None:
    plain = form(('filename="a"', b"image"))
    for body in (b"hello\r\n" + plain, plain.replace(b"frontier\r", b"frontier \t\r"), plain.rstrip()):
        assert first_file(body, b"frontier") == b"image"
    latin = plain.replace(b"frontier", "é".encode("latin-1"))
    assert read(latin, 'multipart/form-data; boundary="é"', most=300) == b"image"


def test_a_form_whose_files_are_all_empty_has_no_image() -> None:
    with pytest.raises(BodyError, match="no image"):
        read(form(('filename=""', b"")), FORM)


def test_a_body_beyond_the_limit_is_refused_whether_it_says_so_or_not() -> None:
    for declared in (None, "101", "5"):
        with pytest.raises(BodyError, match="the limit is 100") as error:
            read(b"x" * 101, declared=declared)
        assert error.value.status == 413


def test_a_file_in_a_form_has_the_same_limit() -> None:
    with pytest.raises(BodyError, match="the limit is 100"):
        read(form(('filename="a"', b"x" * 101)), FORM)


def test_an_endless_body_is_not_read_to_its_end() -> None:
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        while True:
            seen += 50
            yield b"x" * 50

    with pytest.raises(BodyError):
        asyncio.run(read_body(endless(), None, "image/png", 100))
    assert 250 <= seen <= 400  # as much again is read, so that the client sees the response


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(BodyError, match="no image"):
        read(b"")
