import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from saol_jax import gallery as gallery_module
from saol_jax.errors import UserError
from saol_jax.gallery import Gallery
from saol_jax.predictor import Prediction

_HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028\"'&"
_NAMES = ("ant", "bee", _HOSTILE, "constructor")
_COUNT = 130
_CHROMIUM_FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)


def _prediction(i, *, spatial=True):
  """Image i of 40 x 80 pixels: class i mod 4 first, its blob in the grid's cell (0, i mod 4)."""
  labels = (np.arange(4, dtype=np.int32) + i) % 4
  first = 0.4 + 0.6 * ((7 * i) % _COUNT) / _COUNT  # all different
  grids, boxes = {}, None
  if spatial:
    class_maps = np.zeros((4, 2, 4), np.float32)
    class_maps[0, 0, i % 4] = 0.8
    class_maps[1, 1, 0] = 0.4
    attention = np.full((1, 2, 4), 0.05, np.float32)
    attention[0, 1, 3] = 0.65
    grids = {"attention": attention, "class": class_maps}
    left = 20 * (i % 4)
    boxes = np.int32([[0, left, 20, left + 20], [20, 0, 40, 20], [0, 0, 0, 0], [0, 0, 0, 0]])
  return Prediction(
    labels=labels,
    names=tuple(_NAMES[k] for k in labels),
    probabilities=np.float32([first, 1 - first, 0, 0]),
    size=(40, 80),
    grids=grids,
    boxes=boxes,
  )


def _truth(i):
  """Every tenth has no label, every seventh a wrong one."""
  return None if i % 10 == 0 else (i + (i % 7 == 0)) % 4


def _write(path, count=_COUNT, *, spatial=True, labelled=True, skipped=()):
  gallery = Gallery(_NAMES, box_map="class", expected=count)
  picture = Image.fromarray(np.full((40, 80, 3), 200, np.uint8))
  for i in range(count):
    file = f"{_HOSTILE}.png" if i == 3 else f"folder/{i:03d}.png"
    gallery.add(file, picture, _prediction(i, spatial=spatial), _truth(i) if labelled else None)
  gallery.write(path, model="model of step 7", skipped=skipped, title=_HOSTILE)
  return path


class _Elements(html.parser.HTMLParser):
  """Start tags with their attributes, and the text of each script and style."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts, self._inside = [], [], False
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self._inside = tag in ("script", "style")

  def handle_endtag(self, tag):
    self._inside = False

  def handle_data(self, text):
    if self._inside:
      self.texts.append((*self.tags[-1], text))


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
  return _write(tmp_path_factory.mktemp("gallery") / "report.html", skipped=[(_HOSTILE, "broken")])


@pytest.fixture(scope="module")
def elements(page_path):
  return _Elements(page_path.read_text(encoding="utf-8"))


def _data(elements):
  (text,) = [t for tag, attrs, t in elements.texts if attrs.get("type") == "application/json"]
  return json.loads(text)


def test_data_comes_through_whole(elements):
  data = _data(elements)
  assert data["classNames"] == list(_NAMES)
  assert data["items"][3]["file"] == f"{_HOSTILE}.png"
  assert data["skipped"] == [[_HOSTILE, "broken"]]
  assert [item["truth"] for item in data["items"]] == [_truth(i) for i in range(_COUNT)]


def test_names_are_never_markup(page_path, elements):
  assert "window.hacked" in page_path.read_text()  # as data
  assert [tag for tag, _ in elements.tags].count("script") == 2
  assert not any("onerror" in attributes for _, attributes in elements.tags)
  assert "\u2028" not in page_path.read_text().replace(_HOSTILE, "").split("<style>")[1]


def test_the_page_needs_nothing_else(page_path, elements):
  for tag, attributes in elements.tags:
    assert not {"src", "href", "action"} & attributes.keys(), tag
  assert not re.search(r"https?://|@import|url\(", page_path.read_text())
  (policy,) = [
    attributes["content"]
    for _, attributes in elements.tags
    if attributes.get("http-equiv") == "Content-Security-Policy"
  ]
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  assert rules["default-src"] == "'none'"
  assert rules["img-src"] == "data:"
  for tag in ("style", "script"):
    (text,) = [t for name, attrs, t in elements.texts if name == tag and not attrs]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_maps_of_one_image_share_a_scale(elements):
  item = _data(elements)["items"][1]
  assert item["maps"]["class"]["size"] == [2, 4]
  assert item["maps"]["class"]["high"] == pytest.approx(0.8)
  first, second, *_ = (
    np.frombuffer(base64.b64decode(text), np.uint8).reshape(2, 4)
    for text in item["maps"]["class"]["data"]
  )
  assert first[0, 1] == 255
  assert second[1, 0] == 128  # 0.4 of 0.8
  assert first.sum() == 255


def test_maps_are_shown_in_one_order_whatever_that_of_the_predictor(tmp_path):
  """A compiled function returns its dictionary sorted by name, the box map perhaps first."""
  gallery = Gallery(_NAMES, box_map="a", expected=1)
  grids = {name: np.ones((1, 2, 4), np.float32) for name in ("a", "class", "attention")}
  prediction = dataclasses.replace(_prediction(0), grids=grids)
  gallery.add("a", Image.new("RGB", (80, 40)), prediction, None)
  gallery.write(tmp_path / "a.html", model="")
  views = _data(_Elements((tmp_path / "a.html").read_text()))["views"]
  assert [name for _, name, _ in views] == ["Attention", "Class map", "Box map"]


def test_pictures_shrink_when_there_are_many():
  picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 800, 3), np.uint8))
  widths = []
  for expected in (10, 1000, 2000):
    gallery = Gallery(_NAMES, box_map="class", expected=expected)
    gallery.add("a", picture, _prediction(0), None)
    uri = gallery._items[0]["picture"]
    assert uri.startswith("data:image/jpeg;base64,")
    widths.append(len(uri))
  assert widths[0] > widths[1] > widths[2]
  assert picture.size == (800, 400)  # the caller's is left alone


def test_too_many_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(gallery_module, "MOST", 3)
  data = _data(_Elements(_write(tmp_path / "a.html", 5).read_text()))
  assert (len(data["items"]), data["leftOut"]) == (3, 2)


def test_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match=r"report.html cannot be written: No such file"):
    _write(tmp_path / "nowhere" / "report.html", 1)


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser():
  sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
  executable = shutil.which("chromium") or shutil.which("chromium-browser")
  if executable is None:
    pytest.skip("no chromium; on Debian: apt-get install chromium")
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=executable, args=list(_CHROMIUM_FLAGS))
    yield browser
    browser.close()


@pytest.fixture
def visit(browser):
  """Opens a page; at the end of the test, fails on errors in it and on requests beyond it."""
  pages, troubles = [], []

  def visit(path, **options):
    page = browser.new_page(viewport={"width": 1280, "height": 860}, **options)
    pages.append(page)
    page.set_default_timeout(5000)
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append("a dialog"), dialog.dismiss()))
    page.on(
      "request",
      lambda request: (
        request.url.startswith(("data:", path.as_uri())) or troubles.append(request.url)
      ),
    )
    page.goto(path.as_uri())
    page.wait_for_selector(".card")
    return page

  yield visit
  hacked = [page.evaluate("window.hacked") for page in pages]
  for page in pages:
    page.close()
  assert troubles == []
  assert not any(hacked)


def _files(page):
  return page.locator(".card .sub:last-child").all_text_contents()


def _file(i):
  return f"{_HOSTILE}.png" if i == 3 else f"folder/{i:03d}.png"


def _confidence(i):
  return _prediction(i).confidence


def test_hostile_names_are_shown_as_text(page_path, visit):
  page = visit(page_path)
  assert page.locator("#title").text_content() == _HOSTILE
  assert page.title() == _HOSTILE
  page.locator(".card .stage").nth(2).click()
  assert page.locator("#detail-name").text_content() == f"✓ {_HOSTILE}"
  page.keyboard.press("ArrowRight")
  assert f"{_HOSTILE}.png" in page.locator("#detail-facts").text_content()
  page.keyboard.press("Escape")
  page.locator("#skipped summary").click()
  assert page.locator("#skipped li").text_content() == f"{_HOSTILE}: broken"


def test_cards_appear_while_scrolling(page_path, visit):
  page = visit(page_path)
  assert page.locator(".card").count() == 60
  for _ in range(40):
    page.mouse.wheel(0, 2000)
    page.wait_for_timeout(20)
    if page.locator(".card").count() == _COUNT:
      break
  assert page.locator(".card").count() == _COUNT
  assert _files(page)[-1] == _file(_COUNT - 1)


def test_of_a_thousand_images_only_those_in_sight_are_drawn(tmp_path, visit):
  page = visit(_write(tmp_path / "report.html", 1000))
  assert page.locator("#count").inner_text().startswith("All 1,000 images")
  assert page.evaluate("document.querySelectorAll('*').length") < 4000
  page.evaluate("while (state.made < state.shown.length) makeMore()")
  assert page.locator(".card").count() == 1000
  page.evaluate("setView('attention')")
  page.wait_for_timeout(100)
  drawn = page.evaluate("items.filter((item) => item.frame.map).length")
  assert 4 <= drawn < 60


def test_a_click_on_a_class_shows_its_map_and_box(page_path, visit):
  page = visit(page_path)
  card = page.locator(".card").nth(1)
  frame, bars = card.locator(".frame"), card.locator(".bars button")

  def box():
    outer, inner = frame.bounding_box(), card.locator(".box").bounding_box()
    return [
      round((inner["x"] - outer["x"]) / outer["width"], 2),
      round((inner["y"] - outer["y"]) / outer["height"], 2),
      round(inner["width"] / outer["width"], 2),
      round(inner["height"] / outer["height"], 2),
    ]

  def brightest():
    """Place of the map's most opaque pixel, as shares of width and height."""
    return card.locator("canvas").evaluate(
      """canvas => {
        const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
        context.drawImage(canvas, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        const opacity = data.filter((_, i) => i % 4 === 3);
        const best = opacity.indexOf(Math.max(...opacity));
        const [x, y] = [best % canvas.width, Math.floor(best / canvas.width)];
        return [x / canvas.width, y / canvas.height];
      }"""
    )

  assert "heated" not in frame.get_attribute("class")
  assert box() == [0.25, 0, 0.25, 0.5]  # pixels 20 to 40 of 80, 0 to 20 of 40
  bars.nth(0).click()
  assert "heated" in frame.get_attribute("class")
  assert bars.nth(0).get_attribute("aria-pressed") == "true"
  x, y = brightest()
  assert 0.25 <= x < 0.5
  assert y < 0.5
  bars.nth(1).click()
  assert box() == [0, 0.5, 0.25, 0.5]
  x, y = brightest()
  assert x < 0.25
  assert y >= 0.5
  bars.nth(2).click()  # an empty box
  assert not card.locator(".box").is_visible()
  bars.nth(2).click()  # back
  assert "heated" not in frame.get_attribute("class")
  assert box() == [0.25, 0, 0.25, 0.5]
  assert page.locator(".frame.heated").count() == 0


def test_the_view_and_the_boxes_of_all_images(page_path, visit):
  page = visit(page_path)
  page.get_by_role("button", name="Attention").click()
  assert page.locator(".card .frame.heated").count() == 60
  page.get_by_role("button", name="Image", exact=True).click()
  assert page.locator(".card .frame.heated").count() == 0
  assert page.locator(".card .box").first.is_visible()
  page.get_by_label("Boxes").uncheck()
  assert not page.locator(".card .box").first.is_visible()


def test_filters(page_path, visit):
  page = visit(page_path)
  count = page.locator("#count")

  def expect(chosen):
    assert count.inner_text().startswith(f"{len(chosen)} of {_COUNT} images")
    assert _files(page) == [_file(i) for i in chosen][:60]

  wrong = [i for i in range(_COUNT) if _truth(i) not in (None, i % 4)]
  page.get_by_role("button", name=re.compile("^Wrong")).click()
  expect(wrong)
  page.select_option("#class", "predicted:2")
  expect([i for i in wrong if i % 4 == 2])
  page.get_by_role("button", name="All", exact=True).click()
  page.select_option("#class", "true:3")
  expect([i for i in range(_COUNT) if _truth(i) == 3])
  page.select_option("#class", "")
  page.locator("#low").fill("60")
  page.locator("#high").fill("80")
  expect([i for i in range(_COUNT) if 0.6 <= _confidence(i) <= 0.8])
  page.fill("#query", "FOLDER/01")
  expect([i for i in range(10, 20) if 0.6 <= _confidence(i) <= 0.8])
  page.fill("#query", "no such file")
  assert page.locator(".card").count() == 0
  page.get_by_role("button", name="Clear all filters").click()
  assert page.locator(".card").count() == 60
  assert count.inner_text().startswith(f"All {_COUNT} images")


def test_orders(page_path, visit):
  page = visit(page_path)

  def key(i):
    if _truth(i) is None:
      return -1
    return 1 - _confidence(i) if _truth(i) == i % 4 else 1 + _confidence(i)

  orders = {
    "low": sorted(range(_COUNT), key=_confidence),
    "high": sorted(range(_COUNT), key=_confidence, reverse=True),
    "worst": sorted(range(_COUNT), key=key, reverse=True),
    "file": list(range(_COUNT)),
  }
  for order, expected in orders.items():
    page.select_option("#sort", order)
    assert _files(page) == [_file(i) for i in expected[:60]], order
  page.select_option("#sort", "class")
  names = page.locator(".card .name .what").all_text_contents()
  assert names[:40] == [_HOSTILE] * 32 + ["ant"] * 8  # "<" comes before letters; 32 of 130 are 2


def test_keyboard(page_path, visit):
  page = visit(page_path)
  columns = page.evaluate(
    "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
  )

  def expect_focus(card):
    """Focus moves a moment after a dialog closes."""
    page.wait_for_function(
      "n => document.activeElement.closest('.card') === document.querySelectorAll('.card')[n]",
      arg=card,
    )

  page.keyboard.press("ArrowRight")
  expect_focus(0)
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowDown")
  expect_focus(1 + columns)
  page.keyboard.press("2")
  card = page.locator(".card").nth(1 + columns)
  assert card.locator(".bars button").nth(1).get_attribute("aria-pressed") == "true"
  page.keyboard.press("Enter")
  assert page.locator("#detail").is_visible()
  assert page.locator("#place").inner_text() == f"{2 + columns} of {_COUNT}"
  page.keyboard.press("ArrowRight")
  assert page.locator("#place").inner_text() == f"{3 + columns} of {_COUNT}"
  page.keyboard.press("3")
  pressed = page.locator("#detail-bars button").nth(2)
  assert pressed.get_attribute("aria-pressed") == "true"
  page.keyboard.press("Escape")
  assert not page.locator("#detail").is_visible()
  expect_focus(2 + columns)
  page.keyboard.press("v")
  assert page.locator("#views [aria-pressed=true]").inner_text() == "Attention"
  page.keyboard.press("b")
  assert not page.get_by_label("Boxes").is_checked()
  page.keyboard.press("?")
  assert page.locator("#help").is_visible()
  page.keyboard.press("Escape")
  page.keyboard.press("/")
  page.keyboard.type("b1?")  # keys are letters here
  assert page.input_value("#query") == "b1?"


def test_the_detail_tells_all(page_path, visit):
  page = visit(page_path)
  page.locator(".card .stage").nth(7).click()
  assert page.locator("#panels figure").count() == 3
  assert page.locator("#detail-truth").inner_text() == "truly ant"  # 7 is labelled 0
  assert page.locator("#detail-bars button").count() == 4
  text = page.locator("#detail-facts").inner_text()
  for fact in ("folder/007.png", "80 \u00d7 40 pixels", "y 0 to 20, x 60 to 80", "map “class”"):
    assert fact in text
  captions = page.locator("#panels figcaption").all_inner_texts()
  assert "65.0 % of the attention" in captions[1]
  assert captions[2].startswith("Class map: constructor")
  assert "80.0 % probability" in captions[2]
  page.locator("#detail-bars button").nth(1).click()
  assert "y 20 to 40, x 0 to 20" in page.locator("#detail-facts").inner_text()
  page.locator("#close").click()
  page.locator(".card .stage").nth(0).click()
  assert page.locator("#previous").is_disabled()
  assert page.locator("#detail-truth").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page_path, visit, scheme):
  page = visit(page_path, color_scheme=scheme, has_touch=True)
  page.set_viewport_size({"width": 390, "height": 844})
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  boxes, views = (page.locator(name).bounding_box() for name in ("#boxes-label", "#views"))
  assert boxes["y"] < views["y"] + views["height"]  # on one line
  heights = [share.bounding_box()["height"] for share in page.locator(".bars .share").all()[:6]]
  assert max(heights) < 1.5 * min(heights)  # no line break beside a long name
  assert not page.locator("#sort").is_visible()
  page.locator("#filters-button").tap()
  assert page.locator("#sort").is_visible()
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  page.locator(".card .stage").nth(1).tap()
  assert page.locator("#panels").bounding_box()["width"] <= 390
  assert page.evaluate("document.getElementById('detail').scrollWidth") == 390


def test_labels_only(tmp_path, visit):
  page = visit(_write(tmp_path / "report.html", 5, spatial=False, labelled=False))
  assert "labels only" in page.locator("#facts").inner_text()
  for name in ("#views", "#boxes-label", "#outcomes", "#skipped"):
    assert not page.locator(name).is_visible()
  page.keyboard.press("ArrowRight")
  for key in "1bv":
    page.keyboard.press(key)
  page.locator(".card .stage").nth(1).click()
  page.keyboard.press("2")
  assert page.locator("#panels figure").count() == 1
  assert "Box" not in page.locator("#detail-facts").inner_text()
