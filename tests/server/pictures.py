"""What the engine view draws, pixel by pixel, against what the server told the page.

The page's own copy of the feed is what counts: `LISTEN` keeps the bytes that it got. Distances are CSS pixels; pictures
have SCALE of their own to each, so that the second in which things happen is more than three pixels of a plot.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
from array import array
from typing import Any

import numpy as np
import pytest
from PIL import Image

LISTEN = """
window.told = "";
const ask = window.fetch;
window.fetch = async (...args) => {
  const answer = await ask(...args);
  if (answer.url.endsWith("/events")) (async () => {
    const reader = answer.clone().body.getReader();
    const decoder = new TextDecoder();
    try {
      for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
        window.told += decoder.decode(value, { stream: true });
      }
    } catch { /* the page listens no more */ }
  })();
  return answer;
};
"""
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PAINT = """(css) => {
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = css.startsWith("--") ? getComputedStyle(document.documentElement).getPropertyValue(css) : css;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""
SCALE = 4  # device pixels to one of CSS
SECONDS, TOP = 60, 14  # of a plot: its width, and where its highest value is
COLUMN, LABELS = 6, 74  # of the batch: the width of a step, and of what is written on the left
SOLID = 80  # alpha of a line, and not of the area below it
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "/s": 1.0, "k/s": 1e3, "ms": 1e-3, "s": 1.0, "%": 0.01}


def told(page: Any) -> dict[str, list[Any]]:
    """The events that the page has got, by name, oldest first."""
    found: dict[str, list[Any]] = {"engine": [], "view": [], "ended": []}
    for block in page.evaluate("window.told").split("\n\n")[:-1]:
        name, value = block.split("\n")
        found[name.removeprefix("event: ")].append(json.loads(value.removeprefix("data: ")))
    return found


def delivered(page: Any, number: int, prompt_tokens: int) -> list[Any]:
    """The sequences with such a prompt that have ended and that their readers have, once there are so many at least."""
    end = time.monotonic() + 10
    while True:
        ended = {each["timeline"]["request_id"]: each for event in told(page)["ended"] for each in event}
        found = [each for each in ended.values()
                 if each["delivery"] is not None and each["timeline"]["prompt_tokens"] == prompt_tokens]
        if len(found) >= number:  # another test's may be among them
            return found
        assert time.monotonic() < end, f"{len(found)} of {number}"
        page.wait_for_timeout(100)


def pixels(canvas: Any) -> Any:
    """[height, width, 4] uint8, once what is due has been drawn."""
    canvas.page.evaluate(DRAWN)
    url = canvas.evaluate("(canvas) => canvas.toDataURL()")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")).astype(int)


def colour(page: Any, css: str) -> Any:
    """[3], of a CSS colour, or of a custom property of the page."""
    return np.array(page.evaluate(PAINT, css))


def request_colours(page: Any) -> dict[int, Any]:
    """By request id: what the dot in the list of requests looks like."""
    dots = page.evaluate("""() => [...document.querySelectorAll(".requests .dot + .id")].map((id) =>
        [id.textContent, getComputedStyle(id.previousElementSibling).backgroundColor])""")
    return {int(text.removeprefix("#")): colour(page, css) for text, css in dots}


def quantity(text: str) -> float:
    """A number with a unit, as the page writes it."""
    match = re.fullmatch(r"([\d.,]+) ?([a-zA-Z/%]*)", text)
    assert match, text
    return float(match[1].replace(",", "")) * UNITS[match[2]]


def same(one: Any, other: Any) -> bool:
    return bool(np.abs(one[:3] - other[:3]).max() <= 24)


def rate_of(views: list[Any], name: str) -> list[float]:
    """Of a counter: its growth in a second, over the second before each view."""
    rates = [0.0]
    for i, view in enumerate(views[1:], 1):
        past = next((each for each in views[:i] if each["time"] >= view["time"] - 1), views[i - 1])
        rates.append((view["stats"][name] - past["stats"][name]) / (view["time"] - past["time"]))
    return rates


def series(looks: list[Any]) -> dict[str, list[list[float | None]]]:
    """What each plot should show: for each of its lines a value for each look."""
    views = [look["view"] for look in looks]
    stats = [view["stats"] for view in views]
    step = [sum(each["seconds"] for each in view["steps"]) / len(view["steps"]) if view["steps"] else None
            for view in views]
    return {"Output": [list(rate_of(views, "generated_tokens"))],
            "Requests": [[each["running"] for each in stats], [each["waiting"] for each in stats]],
            "Step": [step],
            "First token": [[look["time_to_first_token"] for look in looks]],
            "Between tokens": [[look["inter_token"] for look in looks]],
            "KV cache": [[each["used_blocks"] / each["total_blocks"] for each in stats]]}


def check_plot(card: Any, times: list[float], lines: list[list[float | None]], colours: list[str]) -> None:
    """The large number is the last value of the first line, and every line goes through its values."""
    title = card.locator("h3").inner_text()
    latest = next(value for value in reversed(lines[0]) if value is not None)
    assert quantity(card.locator(".value").inner_text()) == pytest.approx(latest, rel=0.03), title
    highest = max(value for line in lines for value in line if value is not None)
    most = re.search(r"at most (.+?);", card.locator("canvas").get_attribute("aria-label"))
    assert most and quantity(most[1]) == pytest.approx(highest, rel=0.03) and highest > 0, title
    picture = pixels(card.locator("canvas"))
    width, base = picture.shape[1], picture.shape[0] / SCALE - 1
    ceiling = 1.0 if title == "KV cache" else highest
    points = [[(width - (times[-1] - time) / SECONDS * width, base - value / ceiling * (base - TOP))
               for time, value in zip(times, line) if value is not None] for line in lines]
    for line, css in enumerate(colours):
        solid = (picture[:, :, 3] > SOLID) & (np.abs(picture[:, :, :3] - colour(card.page, css)).max(axis=2) <= 40)
        first, last = int(points[line][0][0]) + 1, int(points[line][-1][0])
        seen = 0
        for column in range(first, max(first + 1, last)):
            low, high = reach(points[line], column)
            others = [reach(other, column) for other in points if other is not points[line]]
            if low > high or any(low - 4 <= theirs[1] and theirs[0] <= high + 4 for theirs in others):
                continue  # nothing was told of this moment, or one line covers another
            rows = np.flatnonzero(solid[:, column]) / SCALE
            assert rows.size and low - 2 <= rows.min() <= high + 2, (
                f"{title}: {css} at {column} of {width} is at {rows.tolist()}, not between {low:.1f} and {high:.1f}")
            seen += 1
        assert seen, title


def reach(points: list[tuple[float, float]], column: int) -> tuple[float, float]:
    """Between which heights a line may be in a column: those of its points there, and of the ones beside them."""
    inside = [i for i, (x, _) in enumerate(points) if abs(x - column) <= SCALE]  # a line is wide
    if not inside:
        return 1.0, 0.0
    heights = [y for _, y in points[max(0, inside[0] - 1):inside[-1] + 2]]
    return min(heights), max(heights)


def check_batch(canvas: Any, steps: list[Any], num_columns: int) -> None:
    """The newest steps on the right: prompt chunks upward by their tokens, decode rows downward, each in its colour."""
    picture = pixels(canvas)[SCALE // 2::SCALE, SCALE // 2::SCALE]
    height, width, _ = picture.shape
    shown = steps[-((width - LABELS) // COLUMN):]
    middle = int(height * 0.52 + 0.5)
    most_tokens = max(1, *(sum(step["chunks"]) for step in shown))
    row = (height - middle - 4) / max(1, *(step["num_decodes"] for step in shown))
    colours = request_colours(canvas.page)
    for i, step in enumerate(reversed(shown[-num_columns:])):
        column = picture[:, width - (i + 1) * COLUMN + 2]
        drawn = column[:, 3] > SOLID
        up, down = drawn[:middle - 1], np.flatnonzero(drawn[middle + 1:])
        tokens = sum(step["chunks"]) / most_tokens * (middle - 4)
        assert abs((len(up) - up.argmax() if up.any() else 0) - tokens) <= 2.5, step
        assert abs((down[-1] + 1 if down.size else 0) - step["num_decodes"] * row) <= 2.5, step
        top = middle - 1.0
        for at, request_id in enumerate(step["request_ids"]):
            if at < step["num_decodes"]:
                y = middle + 2 + (at + 0.45) * row
            else:
                chunk = step["chunks"][at - step["num_decodes"]] / most_tokens * (middle - 4)
                y, top = top - 0.45 * chunk, top - chunk
            assert same(column[int(y)], colours[request_id]), (step, at)


def check_pool(canvas: Any, view: Any) -> None:
    """Every block in the colour of its only owner, or of its state, which a mark tells as well."""
    picture = pixels(canvas)[SCALE // 2::SCALE, SCALE // 2::SCALE]
    side = 14  # of a cell in a pool this small
    columns = picture.shape[1] // side
    cells = array("H", base64.b64decode(view["cells"]))
    assert len(cells) == view["stats"]["total_blocks"] <= columns
    requests = request_colours(canvas.page)
    fixed = [colour(canvas.page, f"--{name}") for name in ("sunken", "cached", "shared")]
    owners = [requests[request_id] for request_id, _ in view["owners"]]
    for i, cell in enumerate(cells):
        assert same(picture[2, i * side + 2], fixed[cell] if cell < 3 else owners[cell - 3]), (i, cell)
        marked = not same(picture[6, i * side + 6], picture[2, i * side + 2])
        assert marked == (cell in (1, 2)), (i, cell)


def check_timeline(entry: Any, ended: Any) -> None:
    """The bar and the table of a request that has ended: each of its spans, and the wait for its reader."""
    timeline, delivery = ended["timeline"], ended["delivery"]
    spans, begin = [], timeline["arrival"]
    for phase, end, tokens in [*timeline["spans"], ("reader", delivery["end"], 0)]:
        if phase != "reader" or end > begin:
            spans.append((phase, begin - timeline["arrival"], max(begin, end) - timeline["arrival"], tokens))
            begin = max(begin, end)
    life = spans[-1][2]
    if not entry.locator(".timeline").count():
        entry.locator("summary").click()
        entry.locator(".timeline").wait_for()
    drawn = entry.locator(".timeline > .lane:not(.thin) > i").evaluate_all(
        "(spans) => spans.map((span) => [span.className, parseFloat(span.style.left), parseFloat(span.style.width),"
        " getComputedStyle(span).backgroundColor])")
    assert [each[0] for each in drawn] == [span[0] for span in spans], (drawn, spans)
    for (phase, left, width, css), (_, begin, end, _) in zip(drawn, spans):
        assert (left, width) == pytest.approx((100 * begin / life, 100 * (end - begin) / life), abs=0.01)
        assert same(colour(entry.page, css), colour(entry.page, f"--{phase}"))
    rows = dict(entry.locator("tbody tr").evaluate_all("""(rows) => rows.map((row) =>
        [row.querySelector(".dot").className.slice(4), [...row.cells].map((cell) => cell.innerText)])"""))
    assert set(rows) == {span[0] for span in spans}
    for phase, (_, seconds, share, what) in rows.items():
        ours = [span for span in spans if span[0] == phase]
        total = sum(end - begin for _, begin, end, _ in ours)
        assert quantity(seconds) == pytest.approx(total, rel=0.03, abs=1e-4), phase
        assert quantity(share.removeprefix("< ")) == pytest.approx(total / life, abs=0.006), phase
        count = {"prefill": sum(1 for span in ours if span[3]), "preempted": len(ours)}.get(phase)
        tokens = sum(span[3] for span in ours)
        assert what.startswith({"prefill": f"{count} chunk", "decode": f"{tokens} token",
                                "preempted": f"{count} time"}.get(phase, "")), what
