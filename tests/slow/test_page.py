"""The page in real headless Chromium, before a real door; the replica is in this process."""

from __future__ import annotations

import asyncio
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from orchestrator.serving.backend import ReplicasFailedError
from orchestrator.serving.served_model import DegradationPsnr, ServedModel
from tests.orchestrator.serving.inprocess import Running, image_bytes, running, served, small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True,
}  # fmt: skip
WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("the page's tests drive Chromium, which is not here. Install it: apt install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def model() -> ServedModel:
    scores = (
        DegradationPsnr("blur", 25.6, 24.8),
        DegradationPsnr("lowlight", 7.8, 19.0),
        DegradationPsnr("average", 18.0, 22.1),
    )
    return replace(served(small_model(), scores=scores), degradations=("blur", "lowlight", "phone"))


@pytest.fixture(scope="module")
def service(model: ServedModel) -> Iterator[Running]:
    with running(model) as found:
        yield found


class Opened:
    """A page that notes every request and every complaint."""

    def __init__(self, browser: Browser, service: Running, **context: Any) -> None:
        self.origin = f"http://127.0.0.1:{service.port}"
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type == "error" else None
        )
        self.page.goto(self.origin)
        expect(self.page.locator("#model-name")).to_have_text("small")

    def upload(self, data: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
        self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})

    def upload_all(self, files: dict[str, bytes]) -> None:
        self.page.set_input_files(
            "#file", [{"name": name, "mimeType": "image/png", "buffer": files[name]} for name in files]
        )

    def states(self) -> list[str]:
        return [
            item.get_attribute("data-state") or "" for item in self.page.locator("#photo-list > li").all()
        ]

    def finished(self, summary: str) -> None:
        expect(self.page.locator("#photos-summary")).to_have_text(summary)

    def forget(self, *statuses: int) -> None:
        """Drop the browser's own lines about answers with these statuses, and about none."""
        told = tuple(f"status of {status}" for status in statuses)
        self.complaints[:] = [
            said for said in self.complaints if not any(each in said for each in (*told, "ERR_"))
        ]

    def restored(self, timeout: float = WAIT_MS) -> None:
        expect(self.page.locator("#tools")).to_be_visible(timeout=timeout)

    def split(self) -> int:
        return int(self.page.locator("#handle").get_attribute("aria-valuenow") or -1)


@pytest.fixture
def opened(browser: Browser, service: Running) -> Iterator[Opened]:
    it = Opened(browser, service, reduced_motion="reduce")
    yield it
    own = (it.origin, f"blob:{it.origin}", "data:")
    assert [url for url in it.requests if not url.startswith(own)] == []
    assert it.complaints == []
    it.context.close()


def test_an_uploaded_photograph_is_restored_and_downloaded(opened: Opened, service: Running) -> None:
    data = image_bytes(300, 200)
    opened.upload(data)
    opened.restored()
    expect(opened.page.locator("#result")).to_contain_text("300 \u00d7 200, restored by small/1")
    with opened.page.expect_download() as download:
        opened.page.click("#download")
    assert download.value.suggested_filename == "photo-restored.png"
    assert Path(download.value.path()).read_bytes() == service.restore(data).body


def test_the_divider_follows_the_mouse(opened: Opened) -> None:
    opened.upload(image_bytes(300, 200))
    opened.restored()
    assert opened.split() == 50
    box = opened.page.locator("#stage").bounding_box()
    assert box
    y = box["y"] + box["height"] / 3
    opened.page.mouse.move(box["x"] + box["width"] / 2, y)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] / 4, y, steps=4)
    opened.page.mouse.up()
    assert opened.split() == 25
    clip = opened.page.locator("#before").evaluate("element => element.style.clipPath")
    assert clip == "inset(0px 75% 0px 0px)"


def test_the_divider_follows_the_keyboard(opened: Opened) -> None:
    opened.upload(image_bytes(300, 200))
    opened.restored()
    handle = opened.page.get_by_role("slider", name="Divider between before and restored")
    expect(handle).to_be_focused()
    for key, at in (("ArrowLeft", 48), ("ArrowRight", 50), ("PageUp", 60), ("Home", 0), ("End", 100)):
        opened.page.keyboard.press(key)
        assert opened.split() == at
    assert handle.get_attribute("aria-valuetext") == "100 % before, 0 % restored"


def test_it_zooms_by_buttons_keys_and_wheel(opened: Opened) -> None:
    opened.upload(image_bytes(300, 200))
    opened.restored()
    value = opened.page.locator("#zoom-value")
    fit = value.inner_text()
    opened.page.click("#zoom-in")
    larger = value.inner_text()
    assert int(larger[:-2]) > int(fit[:-2])
    opened.page.keyboard.press("0")
    expect(value).to_have_text(fit)
    expect(opened.page.locator("#zoom-out")).to_be_disabled()
    opened.page.locator("#stage").hover()
    opened.page.mouse.wheel(0, -300)
    expect(value).not_to_have_text(fit)
    opened.page.click("#zoom-fit")
    expect(value).to_have_text(fit)


def test_a_sample_needs_no_mouse_and_no_file(opened: Opened) -> None:
    first = opened.page.locator("#samples button").first
    first.focus()
    outline = first.evaluate("element => getComputedStyle(element).outlineStyle")
    opened.page.keyboard.press("Enter")
    opened.restored()
    assert outline != "none"
    expect(opened.page.locator("#result")).to_contain_text("restored by small/1")


def test_it_shows_which_model_answers_and_its_figures(opened: Opened) -> None:
    rows = opened.page.locator("#figures-body tr")
    assert [row.split("\t") for row in rows.all_inner_texts()] == [
        ["blur", "25.6", "24.8", "\u22120.8"],
        ["low light", "7.8", "19.0", "+11.2"],
        ["average", "18.0", "22.1", "+4.1"],
    ]


def test_what_is_no_image_is_told_and_the_next_photograph_works(opened: Opened) -> None:
    opened.upload(b"hello", "notes.txt", "text/plain")
    alert = opened.page.get_by_role("alert")
    expect(alert).to_contain_text("This is not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file")
    opened.upload(image_bytes())
    opened.restored()
    expect(alert).to_be_hidden()
    opened.forget(415)


def test_a_photograph_can_be_pasted_and_dropped(opened: Opened) -> None:
    carry = """([kind, numbers]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(numbers)], kind + ".png", { type: "image/png" }));
        const how = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(kind === "paste"
            ? new ClipboardEvent(kind, { clipboardData: data, ...how })
            : new DragEvent(kind, { dataTransfer: data, ...how }));
    }"""
    for kind in ("paste", "drop"):
        opened.page.evaluate(carry, [kind, list(image_bytes())])
        expect(opened.page.locator("#result")).to_contain_text(f"{kind}.png: 40 \u00d7 24")


def test_of_two_photographs_in_a_row_the_last_one_is_shown(opened: Opened) -> None:
    opened.upload(image_bytes(64, 48), "first.png")
    opened.upload(image_bytes(72, 40), "second.png")
    expect(opened.page.locator("#result")).to_contain_text("second.png: 72 \u00d7 40")
    opened.page.wait_for_function("async () => (await (await fetch('health')).json()).in_flight === 0")
    expect(opened.page.locator("#result")).to_contain_text("second.png: 72 \u00d7 40")
    assert opened.page.locator("#after-img").evaluate("element => element.naturalWidth") == 72


def test_several_photographs_are_restored_in_turn_and_downloaded_as_one_file(
    opened: Opened, service: Running
) -> None:
    page, data = opened.page, [image_bytes(seed=seed) for seed in range(3)]
    opened.upload_all({"one.png": data[0], "two.png": data[1], "notes.png": b"hello"})
    opened.upload(data[2], "one.png")
    opened.finished("3 of 4 restored, 1 failed")
    assert opened.states() == ["done", "done", "failed", "done"]
    failed = page.locator('[data-state="failed"]')
    expect(failed).to_contain_text("notes.png")
    expect(failed).to_contain_text("This is not a JPEG")
    expect(page.locator("#retry")).to_be_hidden()  # another try would give the same answer
    expect(page.locator("#status")).to_contain_text("one.png: Restored")
    with page.expect_download() as download:
        page.click("#download-all")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        names = ["one-restored.png", "two-restored.png", "one-restored-2.png"]
        assert archive.namelist() == names
        for name, each in zip(names, data, strict=True):
            assert archive.read(name) == service.restore(each).body
    page.click("#clear")
    expect(page.locator("#drop")).to_be_visible()
    opened.forget(415)


def test_arrow_keys_choose_a_photograph_of_the_list_and_delete_removes_it(opened: Opened) -> None:
    page = opened.page
    opened.upload_all({f"{size}.png": image_bytes(size, 24) for size in (40, 48, 56)})
    opened.finished("3 of 3 restored")
    first = page.get_by_role("button", name="40.png").first
    first.focus()
    for key, shown in (("ArrowDown", "48.png"), ("End", "56.png"), ("ArrowUp", "48.png")):
        page.keyboard.press(key)
        expect(page.locator("#result")).to_contain_text(f"{shown}: {shown[:2]} \u00d7 24")
        expect(page.locator('.open[aria-current="true"]')).to_be_focused()
    assert page.locator('.open[tabindex="0"]').count() == 1
    page.keyboard.press("Delete")
    opened.finished("2 of 2 restored")
    expect(page.locator('.open[aria-current="true"]')).to_contain_text("56.png")


def test_a_busy_or_failing_service_is_asked_again(
    browser: Browser, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(model, max_in_flight=1) as service:
        it = Opened(browser, service, reduced_motion="reduce")
        tries = iter([ReplicasFailedError("a replica died"), None, None])
        restore = service.backend.restore

        async def failing(data: bytes, model: ServedModel) -> Any:
            if error := next(tries):
                raise error
            return await restore(data, model)

        monkeypatch.setattr(service.backend, "restore", failing)
        service.service.admission.in_flight = 1  # another client's request
        it.upload_all({"one.png": image_bytes(), "two.png": image_bytes(seed=1)})
        expect(it.page.locator("#work-text")).to_have_text("The service is busy")
        expect(it.page.locator("#work-time")).to_contain_text("next try in")
        expect(it.page.locator("#photo-list > li").nth(1)).to_contain_text("Waiting, 1 before it")
        service.service.admission.in_flight = 0
        it.finished("2 of 2 restored")
        it.forget(429, 503)
        assert it.complaints == []
        it.context.close()


def test_what_was_cancelled_or_got_no_answer_is_tried_again_by_a_button(
    opened: Opened, service: Running
) -> None:
    page = opened.page
    page.route("**/restore", lambda route: route.abort())
    opened.upload_all({f"{number}.png": image_bytes(seed=number) for number in range(3)})
    opened.finished("0 of 3 restored, 3 failed")
    expect(page.locator("#result")).to_contain_text("The service does not answer")
    page.unroute("**/restore")
    service.backend.hold = asyncio.Event()
    page.click("#retry")
    page.click("#stop")
    opened.finished("0 of 3 restored, 3 cancelled")
    service.backend.hold = None
    page.click("#retry")
    opened.finished("3 of 3 restored")
    opened.forget()


def test_it_holds_no_more_results_than_its_limit(opened: Opened) -> None:
    page = opened.page
    page.evaluate("queue.maxBytesHeld = 1")
    opened.upload_all({f"{number}.png": image_bytes(seed=number) for number in range(2)})
    expect(page.locator("#notice")).to_contain_text("Paused")
    assert opened.states() == ["done", "waiting"]
    page.click("#clear")
    opened.restored()
    expect(page.locator("#result")).to_contain_text("1.png")
    opened.upload_all({f"{number}.png": image_bytes(8, 8) for number in range(101)})
    expect(page.get_by_role("alert")).to_contain_text("Added 99 of 101 photographs")


DROPPED = """
    const file = (name, type = "", readable = true) => ({
        isFile: true, name, file: (give, fail) => readable ? give(new File(["x"], name, { type })) : fail(new Error()),
    });
    const folder = (...inside) => ({ isDirectory: true, createReader() {
        const batches = [inside.slice(0, 1), inside.slice(1), []];   // as browsers give them
        return { readEntries: (give) => give(batches.shift()) };
    } });
    const failing = { readEntries: (give, fail) => fail(new Error()) };
    const locked = { isDirectory: true, name: "locked", createReader: () => failing };
    const drop = (...entries) => ({ files: [], items: entries.map((each) => ({ webkitGetAsEntry: () => each })) });
"""


def test_the_photographs_of_a_dropped_folder_are_found_and_what_is_left_out_is_named(opened: Opened) -> None:
    found = opened.page.evaluate(
        f"""async () => {{ {DROPPED}
            const gone = file("gone.png", "image/png", false);
            const left = [file("notes.txt", "text/plain"), file(".DS_Store"), gone, locked];
            const inner = folder(file("b.TIF"), file("c.HEIC"), file("d.heif"));
            const tree = folder(file("a.jpg", "image/jpeg"), ...left, inner);
            const found = await filesOf(drop(tree));
            return {{ ...found, photographs: found.photographs.map((each) => each.name) }};
        }}"""
    )
    assert found == {
        "photographs": ["a.jpg", "b.TIF", "c.HEIC", "d.heif"],
        "more": False,
        "others": ["notes.txt"],
        "unreadable": ["gone.png", "locked"],
    }
    opened.page.evaluate(
        f"""async () => {{ {DROPPED}
            await chooseFrom(drop(folder(locked, ...["a", "b", "c", "d", "e"].map((name) => file(name)))));
        }}"""
    )
    expect(opened.page.get_by_role("alert")).to_contain_text(
        "The browser cannot read locked. Left out what is no photograph: a, b, c and 2 more."
    )


def test_of_a_folder_with_more_photographs_than_the_page_takes_no_false_number_is_told(
    opened: Opened,
) -> None:
    opened.page.route("**/restore", lambda route: None)  # no answer
    opened.page.evaluate(
        f"""async () => {{ {DROPPED}
            const many = Array.from({{ length: 300 }}, (_, number) => file(`${{number}}.jpg`, "image/jpeg"));
            await chooseFrom(drop(folder(file("notes.txt"), ...many)));
        }}"""
    )
    expect(opened.page.get_by_role("alert")).to_contain_text("Added 100 of more than 100 photographs")
    assert len(opened.states()) == 100


def _answering(facts: dict[str, object]) -> Callable[[Route], None]:
    return lambda route: route.fulfill(json=facts)  # Playwright gives a second parameter the request


def test_photographs_of_iphones_can_be_chosen_where_they_are_read(opened: Opened, service: Running) -> None:
    for formats, accepted in ((["HEIC", "JPEG"], True), (["JPEG"], False)):
        facts = {**service.get("/model").json(), "formats": formats}
        opened.page.route("**/model", _answering(facts))
        opened.page.reload()
        expect(opened.page.locator("#model-name")).to_have_text("small")
        assert (".heic" in str(opened.page.locator("#file").get_attribute("accept"))) is accepted


def test_an_error_instead_of_the_model_is_told(opened: Opened) -> None:
    opened.page.route("**/model", lambda route: route.fulfill(status=502, json={"error": "no"}))
    opened.page.reload()
    expect(opened.page.locator("#model-name")).to_have_text("The service answered with status 502.")
    opened.forget(502)


@pytest.mark.parametrize(
    ("degradations", "offered"),
    [
        (["noise15", "phone"], ["Noise"]),
        (["rain", "haze", "blur"], ["Haze", "Rain", "Blur"]),
        (["lowlight", "snow", "low_haze_rain"], ["Low light", "Snow", "Low light, haze and rain"]),
        (["raindrop", "phone"], []),
        ([], []),
    ],
)
def test_samples_are_offered_of_what_the_model_knows(
    opened: Opened, service: Running, degradations: list[str], offered: list[str]
) -> None:
    facts = {**service.get("/model").json(), "degradations": degradations, "description": "Restores tests."}
    opened.page.route("**/model", lambda route: route.fulfill(json=facts))
    opened.page.reload()
    expect(opened.page.locator("#description")).to_have_text("Restores tests.")
    titles = opened.page.locator("#samples button span").evaluate_all(
        "all => all.map((each) => each.firstChild.textContent)"
    )
    assert titles == offered
    assert opened.page.locator("#samples-section").is_visible() is bool(offered)


def test_before_and_after_stand_the_same_way_up(opened: Opened) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn it by 90 degrees
    file = io.BytesIO()
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(file, "JPEG", exif=exif)
    opened.upload(file.getvalue(), "turned.jpg", "image/jpeg")
    opened.restored()
    size = "element => [element.naturalWidth, element.naturalHeight]"
    assert opened.page.locator("#before-img").evaluate(size) == [200, 300]
    assert opened.page.locator("#after-img").evaluate(size) == [200, 300]


def test_twelve_megapixels_show_progress_and_arrive(opened: Opened) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((4000, 3000)).save(file, "JPEG", quality=80)
    opened.upload(file.getvalue(), "large.jpg", "image/jpeg")
    expect(opened.page.locator("#progress")).to_be_visible()
    expect(opened.page.locator("#work-text")).to_have_text("Restoring")
    expect(opened.page.locator("#cancel")).to_be_visible()
    opened.restored(timeout=300_000)
    expect(opened.page.locator("#result")).to_contain_text("4000 \u00d7 3000")
    assert opened.page.locator("#after-img").evaluate("element => element.naturalWidth") == 4000


def test_cancelling_makes_room_again(opened: Opened, service: Running) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    opened.upload(file.getvalue(), "large.jpg", "image/jpeg")
    expect(opened.page.locator("#work-text")).to_have_text("Restoring")
    opened.page.click("#cancel")
    expect(opened.page.locator("#drop")).to_be_visible()
    opened.page.wait_for_function("async () => (await (await fetch('health')).json()).in_flight === 0")


def nothing_sticks_out(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for button in page.locator("button:visible, .button:visible").all():
        box = button.bounding_box()
        assert box
        assert box["height"] >= 40
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_on_a_phone_nothing_sticks_out_and_a_finger_moves_the_divider(
    browser: Browser, service: Running
) -> None:
    it = Opened(browser, service, **PHONE, reduced_motion="reduce")
    it.upload(image_bytes(300, 200))
    it.restored()
    page = it.page
    nothing_sticks_out(page)
    box = page.locator("#stage").bounding_box()
    assert box
    page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + 20)
    assert it.split() == 25
    it.upload(image_bytes(), "a-photograph-with-a-very-long-name-without-any-space.png")
    it.finished("2 of 2 restored")
    nothing_sticks_out(page)
    assert it.complaints == []
    it.context.close()


def contrast(page: Page, selector: str) -> float:
    """Return the contrast ratio of a text and the background of its card or body, as WCAG defines it."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }"""
    )

    def luminance(colour: str) -> float:
        parts = np.array([int(part) for part in colour.strip("rgba()").split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted(map(luminance, colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Browser, service: Running, scheme: str) -> None:
    it = Opened(browser, service, color_scheme=scheme)
    background = it.page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in background.strip("rgb()").split(",")) > 384
    assert bright is (scheme == "light")
    for selector in (
        "h1",
        "header p",
        ".hint",
        ".pick",
        "#samples small",
        "#facts dt",
        ".gain",
        ".loss",
        "caption",
    ):
        assert contrast(it.page, selector) >= 4.5, selector
    it.context.close()


def test_where_a_token_is_asked_for_the_page_asks_for_it(browser: Browser, model: ServedModel) -> None:
    with running(model, token="secret") as service:
        it = Opened(browser, service, reduced_motion="reduce")
        it.upload(image_bytes())
        it.page.get_by_label("Access token of this service").fill("wrong")
        it.page.keyboard.press("Enter")
        expect(it.page.get_by_role("alert")).to_contain_text("bearer token")
        it.page.get_by_label("Access token of this service").fill("secret")
        it.page.keyboard.press("Enter")
        it.restored()
        it.context.close()
