"""The explorer as a person uses it: Chromium against the application, over a real socket."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lake.commits import Committer
from lake.runs import Run
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from sample_world.clips import write_folder
from serve.app import build_app
from serve.auth import COOKIE
from serve.keys import Keys
from serve.limits import Limits
from tests.lake.filled import LABELERS, Filled, fill, jpeg
from tests.serve.conftest import TOKEN, InProcess, serve
from tests.serve.test_client import listening

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
PATHS = ("/", "/triples", "/rejected", "/videos", "/videos/{video}", "/runs", "/runs/{run}", "/live")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")


@dataclass
class Explorer:
    """A running explorer, and what a browser complained of since the test began."""

    url: str
    filled: Filled
    complaints: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path.format(video=self.filled.videos[0], run="20990101T000000-train") for path in PATHS]


def add_hostile_rows(lake: Lake, video: str) -> None:
    run_id = "20980101T000000-label"
    row = {
        "triple_id": "ffffffff-0000-5000-8000-000000000000", "run_id": run_id, "labeler_id": LABELERS[0],
        "video_id": video, "uri": f"/{HOSTILE}", "dataset": "one", "obs_time_s": 1.0, "next_time_s": 2.0,
        "action": HOSTILE, "confidence": -5.0, "labeled_at": now(), "obs": jpeg(1), "next_obs": jpeg(2),
    }  # fmt: skip
    rejected = {name: row[name] for name in row if "obs" != name != "next_obs"} | {
        "triple_id": "ffffffff-0000-5000-8000-000000000001", "reasons": ["copy", HOSTILE]
    }  # fmt: skip
    rows = {"triples": [row], "rejections": [rejected]}
    with Run(lake, run_id, "label", {}, labeler_id=LABELERS[0], counts={"accepted": 1, "rejected": 1}):
        committer = Committer(lake, LABELERS[0], run_id)
        committer.fence()
        committer.commit([lake.write_file(to_table(name, made), name, run_id) for name, made in rows.items()])
    failure = {"video_id": video, "scope": "video", "stage": "decode", "error_type": "DecodeError", "failed_at": now()}
    Writer(lake).append("failures", [failure | {"uri": f"/{HOSTILE}", "message": HOSTILE, "labeler_id": LABELERS[0]}])
    with Run(lake, "20990101T000000-train", "train", {"note": HOSTILE}, tables_read=_pinned(lake)):
        pass


def _pinned(lake: Lake) -> dict[str, int]:
    return {"triples": lake.table("triples").version()}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, models: InProcess) -> Iterator[Explorer]:
    filled = fill(Lake(str(tmp_path_factory.mktemp("explored") / "lake")), pairs=10)
    add_hostile_rows(filled.lake, filled.videos[0])
    services = replace(serve(filled.lake, models), limits=Limits())
    for url in listening(build_app(services)):
        yield Explorer(url, filled)
    services.uploads.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def explorer(started: Explorer) -> Explorer:
    return replace(started, complaints=[])


@pytest.fixture
def page(browser: Browser, explorer: Explorer) -> Iterator[Page]:
    """A fresh visitor; the test fails if the browser has complained of anything that it does not expect."""
    context = browser.new_context(base_url=explorer.url, viewport={"width": 1280, "height": 900})
    context.add_cookies([{"name": COOKIE, "value": TOKEN, "url": explorer.url}])
    page = context.new_page()
    watch(page, explorer.complaints)
    yield page
    assert page.title() != "owned"
    context.close()
    assert explorer.complaints == []


def watch(page: Page, complaints: list[str]) -> None:
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))


def show(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_selector("[data-ready]", timeout=60_000)


def test_the_overview_leads_to_what_it_counts(page: Page, explorer: Explorer) -> None:
    show(page, "/")
    assert page.locator(".tiles dd").all_inner_texts() == ["4", "81", "81", "50.0 %", "1"]
    expect(page.get_by_role("img", name="Pairs per second")).to_have_count(1)
    page.get_by_role("link", name="action 3 of Zoë").click()
    expect(page).to_have_url(f"{explorer.url}/triples?action=action+3+of+Zo%C3%AB")
    expect(page.locator(".grid li")).to_have_count(8)
    page.goto("/")
    page.get_by_role("link", name="copy").click()
    expect(page.locator("tbody").first.locator("tr")).to_have_count(1)
    expect(page.get_by_role("cell", name=HOSTILE, exact=True).first).to_be_visible()
    expect(page.get_by_role("region", name="Failures").get_by_text("DecodeError")).to_be_visible()


def test_triples_are_searched_filtered_and_gone_on_with(page: Page, explorer: Explorer) -> None:
    show(page, "/triples")
    cards = page.locator(".grid li")
    expect(cards).to_have_count(24)
    page.get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(48)
    page.get_by_label("Action contains").fill("IMG SRC")
    expect(cards).to_have_count(1)
    expect(cards.first).to_contain_text(HOSTILE)
    page.get_by_label("Action contains").fill("")
    page.get_by_label("SQL condition").fill("confidence < -0.75 AND dataset = 'two'")
    page.keyboard.press("Enter")
    expect(cards).to_have_count(8)
    # What is seen can be sent to somebody.
    show(page, page.url)
    expect(cards).to_have_count(8)
    page.get_by_label("SQL condition").fill("nothing > <b>1</b>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("syntax error")
    # The browser itself notes every 422.
    explorer.complaints[:] = [text for text in explorer.complaints if "422" not in text]


def test_two_images_flicker_and_are_subtracted(page: Page) -> None:
    show(page, "/triples")
    first = page.locator(".grid .images").first
    after = first.locator("img").nth(1)
    # At one moment: the page may still be moving what is above.
    at_one_place = """images => new Set([...images.querySelectorAll("img")]
        .map(image => JSON.stringify(image.getBoundingClientRect()))).size == 1"""
    assert not first.evaluate(at_one_place)
    page.get_by_label("Flicker").check()
    assert first.evaluate(at_one_place)
    assert after.evaluate("image => getComputedStyle(image).animationName") == "flicker"
    page.get_by_label("Difference").check()
    assert after.evaluate("image => getComputedStyle(image).mixBlendMode") == "difference"
    assert after.evaluate("image => image.naturalWidth") == 64


def test_a_keyboard_is_enough(page: Page) -> None:
    show(page, "/triples")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    cards = page.locator(".grid .card")
    cards.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    chosen = dialog.get_by_role("heading")
    name = chosen.inner_text()
    page.keyboard.press("ArrowRight")
    expect(chosen).not_to_have_text(name)
    page.keyboard.press("d")
    expect(page.get_by_label("Difference")).to_be_checked()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cards.nth(2)).to_be_focused()


def test_a_slider_says_what_it_would_keep(page: Page, explorer: Explorer) -> None:
    show(page, "/triples")
    slider = page.get_by_label("confidence")
    expect(page.locator(".kept")).to_contain_text("Keeps 81 of 81 triples (100.0 %)")
    slider.focus()
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("PageDown")
    condition = page.locator(".kept code").inner_text().removeprefix("WHERE ")
    value = float(condition.removeprefix("confidence >= "))
    scores = explorer.filled.lake.read("triples", ["confidence"])["confidence"].to_pylist()
    kept = sum(score >= value for score in scores)
    assert 0 < kept < 81
    expect(page.locator(".kept")).to_contain_text(f"Keeps {kept} of 81 triples")
    expect(page.get_by_text(f"of {kept} shown")).to_be_visible()
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(".kept")).to_contain_text("Keeps 81 of 81 triples")


def test_a_video_shows_its_pairs_in_time(page: Page, explorer: Explorer) -> None:
    show(page, "/videos")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_label("Name contains").fill("IT'S 2")
    expect(page.locator("tbody tr")).to_have_count(1)
    show(page, f"/videos/{explorer.filled.videos[0]}")
    lanes = page.locator(".timeline")
    expect(lanes).to_have_count(2)
    expect(lanes.first.get_by_role("button")).to_have_count(22)
    lanes.first.get_by_role("button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(lanes.first.locator("[aria-pressed=true]")).to_be_focused()
    chosen = page.get_by_role("region", name="Chosen pair")
    expect(chosen.get_by_text("The lake keeps no pictures of rejected pairs.")).to_be_visible()
    expect(chosen).to_contain_text(f"by copy, {HOSTILE}")
    page.keyboard.press("Home")
    expect(chosen).to_contain_text("0:01.00 to 0:02.00")
    expect(chosen.locator("img").first).to_have_js_property("naturalWidth", 64)
    expect(page.get_by_role("cell", name=f"DecodeError {HOSTILE}")).to_be_visible()


def test_a_run_shows_where_its_triples_come_from(page: Page, explorer: Explorer) -> None:
    show(page, "/runs")
    page.get_by_role("link", name="20990101T000000-train").click()
    expect(page.get_by_text("40 triples")).to_have_count(2)
    expect(page.locator("pre")).to_contain_text(HOSTILE.replace('"', '\\"'))
    page.get_by_role("link", name="label-aaaaaaaa").click()
    expect(page.get_by_role("heading", name="Run label-aaaaaaaa")).to_be_visible()
    expect(page.locator(".end").last).to_contain_text("20990101T000000-train")
    page.goto("/runs/none")
    expect(page.get_by_role("alert")).to_have_text("there is no run of this id in this lake")
    explorer.complaints[:] = [text for text in explorer.complaints if "404" not in text]


def test_the_triples_of_a_video_arrive(page: Page, explorer: Explorer, tmp_path: Path) -> None:
    show(page, "/live")
    upload, state = page.locator("input[type=file]").first, page.locator("#videoState")
    upload.set_input_files(write_folder(tmp_path, [81])[0])
    expect(state).to_contain_text("sampled =", timeout=60_000)
    sums = re.search(r"(\d+) sampled = (\d+) accepted \+ (\d+) rejected \+ (\d+) failed", state.inner_text())
    assert sums
    cards = page.get_by_role("list", name="Pairs of the video").get_by_role("listitem")
    expect(cards).to_have_count(int(sums[1]))
    expect(cards.filter(has=page.locator(".tag.accepted"))).to_have_count(int(sums[2]))
    assert int(sums[2]) > 0
    expect(cards.first.locator("img").first).to_have_js_property("naturalWidth", 64)
    upload.set_input_files({"name": f"{HOSTILE}.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    expect(page.get_by_role("alert").filter(has_text="this is not a video")).to_be_visible()
    expect(cards).to_have_count(0)
    explorer.complaints[:] = [text for text in explorer.complaints if "422" not in text]


def test_a_prediction_is_drawn_and_verified(page: Page, pairs: list[tuple[bytes, bytes, str]]) -> None:
    show(page, "/live")
    image = {"name": "obs.jpg", "mimeType": "image/jpeg", "buffer": pairs[0][0]}
    page.locator("input[type=file]").last.set_input_files(image)
    page.get_by_role("textbox", name="Action").fill(pairs[0][2])
    page.get_by_label("Candidates").fill("3")
    page.get_by_role("button", name="Predict").click()
    drawn = page.get_by_role("list", name="Predictions").get_by_role("listitem")
    expect(drawn).to_have_count(3, timeout=60_000)
    expect(drawn.first).to_contain_text("best")
    expect(drawn.first).to_contain_text("verification: log p(action)")
    expect(drawn.first.locator("img").last).to_have_js_property("naturalWidth", 32)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(browser: Browser, explorer: Explorer, scheme: str) -> None:
    context = browser.new_context(
        base_url=explorer.url, color_scheme=scheme, viewport={"width": 390, "height": 844}, reduced_motion="reduce"
    )
    context.add_cookies([{"name": COOKIE, "value": TOKEN, "url": explorer.url}])
    page = context.new_page()
    watch(page, explorer.complaints)
    for path in explorer.paths:
        show(page, path)
        page.wait_for_load_state("networkidle")
        violations = Axe().run(page).response["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations] == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    context.close()
    assert explorer.complaints == []


@pytest.fixture
def locked(tmp_path: Path, models: InProcess) -> Iterator[tuple[str, str]]:
    """The address of an explorer whose lake has keys, and a key that may read."""
    lake = fill(Lake(str(tmp_path / "lake")), videos=1).lake
    _, token = Keys(lake).create("person", ("read",))
    services = replace(serve(lake, models), limits=Limits())
    for url in listening(build_app(services)):
        yield url, token
    services.uploads.close()


def test_a_person_signs_in_with_a_key_and_out_again(browser: Browser, locked: tuple[str, str]) -> None:
    url, token = locked
    context = browser.new_context(base_url=url)
    page = context.new_page()
    page.goto("/triples?action=Zo%C3%AB")
    page.get_by_label("Key").fill("wl_000000000000_" + "a" * 43)
    assert Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("this key is not valid: ask for a new one")
    assert context.cookies() == []
    page.get_by_label("Key").fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{url}/triples?action=Zo%C3%AB")
    expect(page.locator(".grid li")).to_have_count(10)
    (cookie,) = context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Key")).to_be_visible()
    assert context.cookies() == []
    assert page.evaluate("fetch('/v1/overview').then(answer => answer.status)") == 401
    context.close()


@pytest.fixture
def elsewhere(locked: tuple[str, str]) -> Iterator[str]:
    """Another site on the same machine, to which `SameSite` gives cookies: its page would like to log people out."""
    app = FastAPI()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(f'<form method="post" action="{locked[0]}/logout"><button>win</button></form>')

    yield from listening(app)


def test_another_site_cannot_use_the_cookie(
    browser: Browser, locked: tuple[str, str], elsewhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, token = locked
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/login")
    page.get_by_label("Key").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("[data-ready]")
    page.goto(elsewhere)
    ask = "url => fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: '{}'}).catch(() => null)"
    with caplog.at_level(logging.INFO, "serve.audit"):
        page.evaluate(ask, f"{url}/v1/sql")
        page.get_by_role("button", name="win").click()
        expect(page.get_by_text("this came from a page of another site")).to_be_visible()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.audit"]
    posted = [(line["path"], line["status"]) for line in lines if line["method"] == "POST"]
    assert posted == [("/v1/sql", 403), ("/logout", 403)]
    assert len(context.cookies()) == 1
    context.close()


def test_where_a_login_leads_is_on_this_site(locked: tuple[str, str]) -> None:
    url, token = locked
    for place in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\n/evil"):
        answer = httpx.post(f"{url}/login", data={"key": token, "next": place})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")
        assert "Secure" not in answer.headers["Set-Cookie"]
    answer = httpx.post(f"{url}/login", data={"key": token}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in answer.headers["Set-Cookie"]
    policy = httpx.get(f"{url}/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
