"""The report's page in a real browser: what can be read, filtered, searched and reached; hostile text stays text."""

import shutil
from dataclasses import replace

import pytest
from sample_runs import HOSTILE, SESSION, answer_of, coordinated, edited, questions, sampled, single, written

from evaluation.page import write_page
from evaluation.report import read_report
from evaluation.runs import Member

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                      "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: install Debian's chromium")
WINDOWS = {"laptop": (1280, 800), "phone": (360, 780)}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the page of these runs; afterwards, that it asked for nothing and broke no rule of its policy."""
    opened = []

    def visit(*folders, window="laptop", scheme="light", anchor=""):
        out = tmp_path / "report.html"
        write_page(read_report(folders), out)
        width, height = WINDOWS[window]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(180_000)  # a machine that trains at the same time is slow
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(out.as_uri() + anchor)
        page.locator(".question").first.wait_for()
        opened.append((context, page, out.as_uri()))
        return page

    yield visit
    for context, page, address in opened:
        assert page.said == []
        assert [url for url in page.asked if not url.startswith(("data:", address))] == []
        context.close()


def names(page) -> list[str]:
    return page.locator(".question .name").all_inner_texts()


def found(page, count: int) -> None:
    """Waits until so many questions are in the list."""
    from playwright.sync_api import expect

    # Not by `wait_for_function`, whose `eval` the page's policy forbids.
    expect(page.locator(".question")).to_have_count(count, timeout=180_000)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(visit, tmp_path, window, scheme):
    page = visit(single(tmp_path / "a"), coordinated(tmp_path / "b"), sampled(tmp_path / "c"), window=window,
                 scheme=scheme)  # fmt: skip
    page.screenshot(path=tmp_path / f"{window}-{scheme}.png", full_page=True)
    assert page.locator(".headline").first.inner_text().startswith("72.7%")
    assert page.locator(".chart:visible").count() == 1
    first = page.locator(".question").first
    first.locator("summary").first.click()
    picture = first.locator("img")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60
    assert first.get_by_text("60 × 40 pixels").is_visible()
    assert first.get_by_text("It is \\boxed{0}.").first.is_visible() and first.get_by_text("Sample 4 of 4").is_visible()
    assert not first.get_by_text("Let me think.").first.is_visible()
    first.get_by_text("Reasoning, 13 characters").first.click()
    first.get_by_text("Let me think.").first.wait_for()
    first.locator(".member.wrong summary").click()
    first.get_by_text("so \\boxed{998}").wait_for()
    assert first.get_by_text("1 of 2 right, 1 lost").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window][0]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].startswith("17,")
    assert dark == (scheme == "dark")
    page.screenshot(path=tmp_path / f"{window}-{scheme}-open.png", full_page=True)


def test_filters_search_and_ways_into_the_list(visit, tmp_path):
    page = visit(single(tmp_path / "a"), coordinated(tmp_path / "b"))
    found(page, 12)
    page.get_by_label("That is").select_option("wrong")
    found(page, 3)
    assert names(page) == ["q9", "q10", "q11"] and "3 of 12" in page.locator("#found").inner_text()
    page.get_by_label("topic", exact=True).select_option(label="odd")
    found(page, 2)
    page.get_by_label("In", exact=True).select_option(label="B tiny, PaCoRe 3, temperature 1")
    found(page, 0)
    page.get_by_role("button", name="Show all").click()
    found(page, 12)
    for state, expected in (("failed", ["q3"]), ("guessed", ["q1"]), ("cut", ["q2"])):
        page.get_by_label("That is").select_option(state)
        found(page, 1)
        assert names(page) == expected
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Search").fill("ON FIRE")
    found(page, 1)
    page.get_by_label("Search").fill("response")  # the name of a field, which nobody said
    found(page, 0)
    page.get_by_role("button", name="Read these 3 in the list").click()
    found(page, 3)
    assert "better in B than in A" in page.locator("#found").inner_text()
    page.locator("button[data-question=q1]").first.dispatch_event("click")  # in a list that is folded
    page.locator(".opened").wait_for()
    assert page.locator(".question[open] .name").inner_text() == "q1"
    page.locator("button[data-group=level][data-value='10']").click()
    found(page, 4)


def test_it_goes_by_the_keyboard_alone(visit, tmp_path):
    page = visit(single(tmp_path / "a", count=120))
    found(page, 50)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "To the questions"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "search"
    page.locator(".question summary").first.focus()
    page.keyboard.press("Enter")
    page.locator(".opened").wait_for()
    page.get_by_role("button", name="Next ›").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Page 2 of 3").wait_for()
    assert names(page)[0] == "q50" and page.evaluate("document.activeElement.innerText").find("q50") > 0
    page.get_by_role("button", name="Next ›").press("Enter")
    found(page, 20)
    assert page.get_by_role("button", name="Next ›").is_disabled()


def test_a_link_opens_its_question_on_whatever_page_of_the_list(visit, tmp_path):
    page = visit(single(tmp_path / "a", count=120), anchor="#q:q77")
    page.locator(".opened").wait_for()
    assert page.locator(".question[open] .name").inner_text() == "q77"
    assert page.locator(".opened a").get_attribute("href") == "#q:q77"


@pytest.mark.parametrize("window", WINDOWS)
def test_an_edit_shows_both_pictures_its_scores_and_the_judges_words(visit, tmp_path, window):
    page = visit(edited(tmp_path / "ours"), edited(tmp_path / "theirs", "green", 1.0, HOSTILE), window=window)
    assert "3 edits" in page.locator("#found").inner_text()
    assert "Paint the scarf aa." in page.locator("#list").inner_text()
    first = page.locator(".question").first
    first.locator("summary").first.click()
    first.locator("img").nth(2).wait_for()
    widths = "all => Promise.all(all.map((image) => image.decode().then(() => image.naturalWidth)))"
    loaded = first.locator("img").evaluate_all(widths)
    assert loaded == [60, 60, 60] and first.get_by_alt_text("The edited picture").count() == 2  # before, ours, theirs
    assert first.get_by_text("The scarf is red now.").is_visible()
    assert first.locator("pre", has_text="</script>").is_visible()
    assert "followed" in first.inner_text() and "60 %" in first.inner_text()
    page.get_by_label("That is").select_option("failed")
    found(page, 1)
    page.locator(".question summary").first.click()
    page.locator(".opened").get_by_text("the judge is on fire").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window][0]
    page.screenshot(path=tmp_path / f"{window}-edits.png", full_page=True)


def test_hostile_text_runs_nothing(visit, tmp_path):
    turns = [{"role": HOSTILE, "content": HOSTILE}] * 2
    known = {"groups": {HOSTILE: HOSTILE}, "truth": {"answer": HOSTILE, "more": HOSTILE}, "conversation": turns}
    asked = [replace(q, id=q.id + HOSTILE, **known) for q in questions(2)]
    said = dict.fromkeys(("response", "reasoning", "parsed", "note"), HOSTILE) | {"notes": (HOSTILE,)}
    rounds = ((Member(HOSTILE), Member(error=HOSTILE)), (Member("other"),))
    answers = [answer_of(asked[0].id, "", **said, rounds=rounds),
               answer_of(asked[1].id, "", error=HOSTILE, score=None)]  # fmt: skip
    folder = written(tmp_path / "run", asked, answers, [replace(SESSION, commit=HOSTILE)], model=HOSTILE, rounds=(2,))
    other = written(tmp_path / "other", asked, [answer_of(asked[0].id, "", False)], seed=1)
    page = visit(folder, other)
    for number in range(2):
        page.locator(".question > summary").nth(number).click()
    page.locator(".opened").nth(1).wait_for()
    for _ in range(2):  # what is folded inside of what was folded
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        page.wait_for_timeout(300)
    assert page.locator(".opened pre", has_text="</script>").count() >= 8
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img").count() == 0 and page.locator("script").count() == 4
    # Nor would it, had it got in as markup.
    blocked = page.evaluate(
        "() => { try { document.body.innerHTML += '<img src=x onerror=\"hacked = 1\">'; return 'done'; }"
        " catch (error) { return error.name; } }"
    )
    assert blocked == "TypeError"
    page.said.clear()  # the browser tells of that


def test_three_thousand_questions_stay_quick(visit, tmp_path):
    asked = questions(3000)
    answers = [
        answer_of(q.id, q.truth["answer"], q.place % 2 == 0, reasoning=f"thought {q.place} " * 200) for q in asked
    ]
    page = visit(written(tmp_path / "run", asked, answers))
    assert page.locator(".question").count() == 50
    seconds = page.evaluate(
        """async () => {
          const began = performance.now();
          const state = document.querySelector("option[value=wrong]").parentElement;
          state.value = "wrong";
          state.dispatchEvent(new Event("change"));
          await new Promise((resolve) => setTimeout(resolve));
          return (performance.now() - began) / 1000;
        }"""
    )
    assert "1,500 of 3,000" in page.locator("#found").inner_text()
    assert seconds < 2  # some 20 ms on an idle laptop
    page.get_by_label("Search").fill("thought 2999 ")
    found(page, 1)
