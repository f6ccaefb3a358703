from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator

import pytest

from orchestrator.serving.request_body import BodyError, first_file, paced, read_body

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
    assert seen == 300  # as much again is read, so that the client sees the response


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(BodyError, match="no image"):
        read(b"")


@pytest.mark.parametrize(
    ("declared", "content_type", "status"),
    [("101", "image/png", 413), (None, "multipart/mixed; boundary=x", 400)],
)
@pytest.mark.parametrize(("waits", "read_bytes"), [(True, 0), (False, 120)])
def test_of_a_body_that_is_refused_by_its_head_as_much_is_read_as_the_client_sends_anyway(
    declared: str | None, content_type: str, status: int, waits: bool, read_bytes: int
) -> None:
    seen = 0

    async def sent() -> AsyncIterator[bytes]:
        nonlocal seen
        while True:
            seen += 20
            yield b"x" * 20

    with pytest.raises(BodyError) as error:
        asyncio.run(read_body(sent(), declared, content_type, 100, waits=waits))
    assert error.value.status == status
    assert seen == read_bytes


def test_a_form_may_have_16_kib_besides_its_file() -> None:
    whole = form(('filename="a"', b"x" * 100))
    limit = 100 + 16 * 1024
    body = b"-" * (limit - len(whole) - 2) + b"\r\n" + whole
    assert len(body) == limit
    assert read(body, FORM, declared=str(limit)) == b"x" * 100
    for declared in (None, str(limit + 1)):
        with pytest.raises(BodyError, match=f"at least {limit + 1:,} bytes"):
            read(b"-" + body, FORM, declared=declared)


def test_a_form_of_more_than_100_parts_is_refused() -> None:
    notes = [('name="note"', b"no")]
    assert first_file(form(*99 * notes, ('filename="a"', b"image")), b"frontier") == b"image"
    with pytest.raises(BodyError, match="more than 100 parts") as error:
        first_file(form(*100 * notes, ('filename="a"', b"image")), b"frontier")
    assert error.value.status == 400


def test_a_head_of_16_kib_may_name_a_file_and_a_longer_one_does_not() -> None:
    rest = len(b'Content-Disposition: form-data; ;filename="a"\r\nContent-Type: image/png')
    for more, image in ((0, b"first"), (1, b"second")):
        long = "x" * (16 * 1024 - rest + more) + ';filename="a"'
        assert first_file(form((long, b"first"), ('filename="b"', b"second")), b"frontier") == image


@pytest.mark.parametrize("empty", [b"", b"\r\n"])
def test_an_image_without_bytes_has_status_400(empty: bytes) -> None:
    with pytest.raises(BodyError) as error:
        read(form(('filename=""', b"")) if empty else b"", FORM if empty else "image/png")
    assert error.value.status == 400


class JumpingClock(selectors.DefaultSelector):
    """What an event loop waits with: instead of waiting, the clock jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


async def timed(*chunks: tuple[float, int]) -> AsyncIterator[bytes]:
    """Yield chunks of so many bytes, each after so many seconds."""
    for seconds, size in chunks:
        await asyncio.sleep(seconds)
        yield b"x" * size


def arrived(chunks: AsyncIterator[bytes], seconds: float = 5.0) -> list[int]:
    """Return the sizes of the chunks that arrive at 100 bytes a second, measured over 0.1 seconds."""
    sizes: list[int] = []

    async def collect() -> None:
        async for chunk in paced(chunks, 100, 0.1, seconds):
            sizes.append(len(chunk))

    clock = JumpingClock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(collect())
    except BodyError as error:
        raise BodyError(error.status, f"{error.status}: {error} After {sizes}") from None
    return sizes


def test_an_upload_is_refused_whose_window_does_not_bring_the_rate() -> None:
    assert arrived(timed((0.06, 10), (0.06, 10), (0.06, 10))) == [10, 10, 10]
    with pytest.raises(BodyError, match=r"408: .*less than 100 bytes per second.*After \[9\]"):
        arrived(timed((0.06, 9), (0.06, 10)))
    with pytest.raises(BodyError, match=r"408: .*less than 100 bytes per second.*After \[5, 5, 9\]"):
        arrived(timed((0.0, 5), (0.06, 5), (0.06, 9), (0.06, 9)))


def test_an_upload_is_refused_that_takes_too_long_in_all_at_any_rate() -> None:
    with pytest.raises(BodyError, match=r"408: .*did not arrive within 0.15 s.*After \[50, 50\]"):
        arrived(timed((0.06, 50), (0.06, 50), (0.06, 50)), seconds=0.15)
    with pytest.raises(BodyError, match=r"408: .*did not arrive within 0.05 s"):
        arrived(timed((0.2, 50)), seconds=0.05)
