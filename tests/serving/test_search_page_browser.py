"""The search page in a real browser, without a window: what a person sees and does there."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from searchr3.answers import Hit
from searchr3.serving.backend import Said, Unavailable
from searchr3.serving.searchers import Question
from searchr3.serving.settings import KEYS, read_keys

from .conftest import KEY, Doubt, Patient, Shelf, until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason=f"no browser is installed, none of {', '.join(NAMES)}")

EVIL = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>"
LONG = "a_folder_with_a_long_name/" * 4 + "and_a_file_whose_name_does_not_end.md"


class Files(Shelf):
    """Three passages as a store has them, with all that texts may do to a page."""

    filters = True

    def check(self, hybrid: bool, paths: Any, types: Any) -> None:
        """All of it can be asked."""

    def find(self, asked: Question) -> list[Hit]:
        paths = [f"docs/{EVIL}.md", "src/parse.py", LONG]
        return [
            Hit(
                hit.rank,
                hit.score,
                hit.document_id,
                EVIL,
                f"🎉 {EVIL} parses a date",
                {
                    "path": path,
                    "line": "3",
                    "last_line": "9",
                    "heading": EVIL,
                    "text": f"{EVIL}\n" + "x" * 500,
                },
            )
            for hit in super().find(replace(asked, thought=""))
            for path in [paths[int(hit.document_id[1:])]]
        ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed with the module: its event loop would be in the way of others in this thread."""
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(client, "#q=…", width=…)` is a page there; at the end nothing of it may have failed."""
    contexts, wrong = [], []

    def opened(client: Any, place: str = "", width: int = 1200, **more: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **more))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: "Security Policy" in line.text and wrong.append(line.text))
        page.goto(f"{client.base_url}{place}")
        playwright.expect(page.locator("#server")).not_to_be_empty()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def see(page: Any, selector: str, text: str | re.Pattern[str]) -> None:
    playwright.expect(page.locator(selector)).to_contain_text(text)


def choose(page: Any, mode: str) -> None:
    page.locator("fieldset").get_by_text(mode).click()


def ids(page: Any, side: int = 0) -> list[str]:
    """Documents of the hits of a side, from above."""
    page.locator(".side").nth(side).locator(".hits li").first.wait_for()
    rows = page.locator(".side").nth(side).locator(".hits li").all()
    return [row.get_attribute("data-id") for row in rows]


def test_a_thought_streams_before_the_hits(serving: Any, patient: Patient, visit: Any) -> None:
    with serving(patient, searcher=Shelf()) as client:
        page = visit(client)
        see(page, "#server", "tiny · 3 documents")
        page.keyboard.type("parse a date")  # the box has the focus
        page.keyboard.press("Enter")
        see(page, ".thought", "first")
        see(page, "#status", "Thinking…")
        assert page.locator(".hits li").count() == 0 and page.locator("#stop").is_visible()
        patient.go.set()
        assert ids(page) == ["d1", "d0", "d2"]
        see(page, ".facts", re.compile(r"1 token thought · 2 read · .+ to think and embed · .+ to search"))
        see(page, "#status", "3 hits.")
        assert page.locator("#go").is_visible() and page.title() == "parse a date · searchr3"
        choose(page, "Don’t think")
        page.get_by_role("button", name="Search").click()
        see(page, ".facts", "to embed")
        assert ids(page) == ["d0", "d1", "d2"] and page.locator(".thinks").count() == 0


def test_two_rankings_side_by_side(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient, searcher=Shelf()) as client:
        page = visit(client, "#q=x&think=compare")
        see(page, "#status", "3 of 3 hits in both rankings, 2 at another rank")
        assert (ids(page, 0), ids(page, 1)) == (["d0", "d1", "d2"], ["d1", "d0", "d2"])
        assert page.locator(".move").all_text_contents() == ["▲ 1", "▼ 1", "="] * 2
        told = page.locator(".side").nth(1).locator(".move").first.get_attribute("aria-label")
        assert told == "higher by 1 than without thinking (rank 2)"
        assert page.locator("h2").all_inner_texts() == ["Without thinking", "After thinking"]
        left, right = (one.bounding_box() for one in page.locator(".hits").all())
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        page.locator("li[data-id=d0]").first.hover()
        assert page.locator("li.twin").count() == 2
        page.locator("[name=k]").fill("1")
        page.keyboard.press("Enter")
        see(page, "#status", "0 of 1 hit in both rankings.")
        assert page.locator(".move").all_text_contents() == ["only here"] * 2


def test_texts_stay_texts(serving: Any, patient: Patient, visit: Any, monkeypatch: Any) -> None:
    vector = np.eye(4, dtype=np.float32)[1]
    monkeypatch.setattr(patient, "_said", lambda ask: Said(EVIL, 1, 2, True, vector))
    patient.go.set()
    with serving(patient, searcher=Files()) as client:
        page = visit(client)
        page.locator("#query").fill(f"{EVIL} date")
        choose(page, "Compare")
        page.keyboard.press("Enter")
        ids(page, 1)
        see(page, "#status", "both rankings")
        for selector in (".thinks .thought", "li[data-id=d0] >> nth=0", "li[data-id=d0] .heading >> nth=0"):
            see(page, selector, EVIL)
        page.locator("#request summary").click()
        see(page, "#request pre", "<img src=x")
        assert page.locator("main img, main script").count() == 0 and "evil" not in page.title()[:4]
        marked = page.locator(".side").first.locator(".hits li").first.locator("mark").all_text_contents()
        assert marked[-1] == "date"  # offsets count characters, and 🎉 is one
        taken = (
            "() => { try { document.body.innerHTML = '<b>'; return '' } catch (error) { return `${error}` } }"
        )
        assert "TrustedHTML" in page.evaluate(taken)  # the browser itself takes no HTML from a script


@pytest.mark.parametrize("by_key", [False, True])
def test_stopping_frees_the_server(serving: Any, patient: Patient, visit: Any, by_key: bool) -> None:
    with serving(patient, searcher=Shelf()) as client:
        page = visit(client, "#q=x")
        see(page, ".thought", "first")
        traffic = client.extensions["server"].traffic
        assert traffic.active == 1
        if by_key:
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        see(page, "#status", "Stopped.")
        until(lambda: patient.left == 1 and traffic.active == 0)
        assert page.locator("#go").is_visible() and page.locator(".busy").count() == 0
        see(page, ".thought", "first")
        patient.go.set()
        page.get_by_role("button", name="Search").click()
        assert len(ids(page)) == 3


def test_all_of_it_by_keyboard(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient, searcher=Files()) as client:
        page = visit(client)
        page.locator("#intro").click()
        page.keyboard.press("/")
        page.keyboard.type("a/b")
        assert page.locator("#query").input_value() == "a/b"
        seen = """() => [document.activeElement, document.activeElement.nextElementSibling].some(
            (one) => one && getComputedStyle(one).outlineStyle === "solid")"""
        met = []
        for _ in range(4):
            page.keyboard.press("Tab")
            met.append(
                page.evaluate("() => document.activeElement.textContent || document.activeElement.name")
            )
            assert page.evaluate(seen), met
            if met[-1] == "think":
                page.keyboard.press("ArrowRight")
                page.keyboard.press("ArrowRight")
        assert met == ["Search", "think", "k", "Filters"]
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("docs, *.py")
        with page.expect_request("**/search") as request:
            page.keyboard.press("Enter")
        assert request.value.post_data_json["paths"] == ["docs", "*.py"]
        assert len(ids(page, 0)) == len(ids(page, 1)) == 3
        while page.evaluate("() => document.activeElement.textContent") != "Whole passage":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.locator(".whole pre").first.is_visible()


def test_a_phone_scrolls_one_way(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient, searcher=Files(), rule=Doubt()) as client:
        for place in ("", f"#q={'word' * 60}&think=compare&paths=docs"):
            page = visit(client, place, width=360)
            if place:
                ids(page, 1)
                for summary in page.locator("summary:visible").all()[1:]:
                    summary.click()
                first, second = (one.bounding_box() for one in page.locator(".hits").all())
                assert first["y"] + first["height"] <= second["y"]
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
            for box in page.locator("input:visible, button:visible, summary:visible").all():
                place_of = box.bounding_box()
                assert place_of["x"] >= 0 and place_of["x"] + place_of["width"] <= 360


def test_the_api_page_on_a_phone(serving: Any, patient: Patient, browser: Any) -> None:
    with serving(patient) as client:
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.goto(f"{client.base_url}/docs")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        first = page.locator("td:first-child").all()[:12]  # statuses: a number is one line
        assert {one.inner_text() for one in first} >= {"200", "401", "503"}
        lines = "one => { const all = document.createRange(); all.selectNodeContents(one);"
        lines += " return all.getClientRects().length }"
        assert {one.evaluate(lines) for one in first} == {1}
        page.close()


def test_the_key_is_asked_for_and_kept_nowhere(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient, searcher=Shelf(), bounds={"keys": read_keys({KEYS: KEY})}) as client:
        page = visit(client, "#q=x&think=compare")
        door = page.get_by_label("This server wants an API key.")
        playwright.expect(door).to_be_focused()
        page.keyboard.type("a-key-that-is-not-known")
        page.keyboard.press("Enter")
        see(page, "#refused", "refused; try another")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        assert (ids(page, 0)[0], ids(page, 1)[0]) == ("d0", "d1")
        playwright.expect(door).not_to_be_visible()
        stores = "() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])"
        assert page.evaluate(stores) == '[{},{},""]'
        assert KEY not in page.url and KEY not in page.content()
        see(page, "#request pre", "Bearer $KEY")
        page.reload()
        playwright.expect(door).to_be_visible()


def test_too_many_requests(serving: Any, patient: Patient, visit: Any) -> None:
    with serving(patient, searcher=Shelf(), bounds={"requests": 1}) as client:
        at_work = visit(client, "#q=first")
        see(at_work, ".thought", "first")
        page = visit(client, "#q=second")
        see(page, ".problem", re.compile(r"too much to do. Try again in \d+ s\."))
        patient.go.set()
        ids(at_work)
        page.get_by_role("button", name="Try again").click()
        assert len(ids(page)) == 3 and page.locator(".problem").count() == 0


def test_an_error_in_a_stream_and_a_server_that_is_gone(serving: Any, patient: Patient, visit: Any) -> None:
    with serving(patient, searcher=Shelf(), bounds={"seconds": 1}) as client:
        page = visit(client, "#q=x")
        see(page, ".problem", "The time for a request was over")
        patient.go.set()
        page.locator("#query").fill("fail")
        page.keyboard.press("Enter")
        see(page, ".problem", "The server could not do this: the server failed at this")
    page.get_by_role("button", name="Try again").click()
    see(page, ".problem", "The server does not answer. Is it still running?")


FAILURES = [
    ({"status": 413}, "too long for this server; shorten it", False),
    ({"status": 422, "json": {"error": {"message": "k: too large"}}}, "this: k: too large.", False),
    ({"status": 503, "headers": {"Retry-After": "5"}}, "may be shutting down. Try again", True),
    ({"status": 503, "json": {"error": {"message": "no files; later"}}}, "now: no files. Try again", True),
    ({"status": 502, "body": "<html>"}, "could not do this: status 502.", False),
    ({"body": 'event: reasoning\ndata: {"text":"so"}\n\nevent: an'}, "lost in the middle", True),
]


def test_each_failure_is_one_line(serving: Any, patient: Patient, visit: Any) -> None:
    with serving(patient, searcher=Shelf()) as client:
        page = visit(client)
        for number, (answer, told, again) in enumerate(FAILURES):
            page.route("**/search", lambda route, _, answer=answer: route.fulfill(**answer))
            page.locator("#query").fill(f"question {number}")
            page.keyboard.press("Enter")
            see(page, ".problem", told)
            assert page.locator(".problem").count() == 1
            assert page.get_by_role("button", name="Try again").is_visible() is again


def test_a_model_alone_shows_what_it_thinks(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient) as client:
        page = visit(client, "#q=x")
        see(page, "#nothing", "no documents")
        see(page, ".thought", "first")
        see(page, ".found", "A vector of 4 numbers: 0.000, 1.000")
        assert not page.locator("#hits").is_visible() and not page.locator("#more").is_visible()
        choose(page, "Compare")
        page.keyboard.press("Enter")
        see(page, "#status", "The cosine of both vectors is 0.000")


def test_documents_that_could_not_be_read_are_asked_for_anew(
    serving: Any, patient: Patient, visit: Any
) -> None:
    class Away(Files):
        away = True

        @property
        def documents(self) -> int:  # type: ignore[override]
            if self.away:
                raise Unavailable("the documents cannot be searched now; ask again later")
            return 3

    shelf = Away()
    patient.go.set()
    with serving(patient, searcher=shelf) as client:
        page = visit(client)
        see(page, "#server", "tiny · the documents cannot be searched now")
        assert page.locator("#nothing").is_hidden() and page.locator("#more").is_visible()
        shelf.away = False
        choose(page, "Don’t think")
        page.locator("[name=q]").fill("parse a date")
        page.keyboard.press("Enter")
        assert ids(page) == ["d0", "d1", "d2"]
        see(page, "#server", "tiny · 3 passages")


def test_a_search_has_an_address_and_back_costs_nothing(serving: Any, patient: Patient, visit: Any) -> None:
    patient.go.set()
    with serving(patient, searcher=Files(), rule=Doubt()) as client:
        page = visit(client, "#q=one&think=off&k=2&hybrid=1&types=md%2Cpy")
        assert ids(page) == ["d0", "d1"]
        assert page.locator("#query").input_value() == "one" and page.locator("[name=hybrid]").is_checked()
        choose(page, "Auto")
        page.locator("#query").fill("two")
        with page.expect_request("**/search") as request:
            page.keyboard.press("Enter")
        sent = request.value.post_data_json
        assert sent == {
            **{"query": "two", "k": 2, "reasoning": "auto", "stream": True},
            **{"hybrid": True, "types": ["md", "py"]},
        }
        assert ids(page) == ["d1", "d0"]
        asked = patient.entered
        page.go_back()
        see(page, ".name", "Without thinking")
        assert ids(page) == ["d0", "d1"] and page.locator("#query").input_value() == "one"
        page.go_forward()
        assert ids(page) == ["d1", "d0"] and patient.entered == asked
        page.get_by_role("link", name="searchr3").click()
        playwright.expect(page.locator("#intro")).to_be_visible()
        assert page.locator(".side").count() == 0 and page.title() == "searchr3"


def test_it_follows_the_wishes_of_the_reader(serving: Any, patient: Patient, visit: Any) -> None:
    with serving(patient, searcher=Shelf()) as client:
        looks = []
        for more in ({}, {"color_scheme": "dark", "reduced_motion": "reduce"}):
            page = visit(client, "#q=x", **more)
            see(page, ".thought", "first")
            paper = page.locator("body").evaluate("(one) => getComputedStyle(one).backgroundColor")
            blinks = page.locator(".thought").evaluate(
                "(one) => getComputedStyle(one, '::after').animationName"
            )
            looks.append((int(re.findall(r"\d+", paper)[0]) > 127, blinks))
        assert looks == [(True, "blink"), (False, "none")]
