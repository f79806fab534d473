"""A plan as a page: read as HTML, and looked at in a browser where there is one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from transom.registry.hooks import Hook
from transom.specs.node import Replacement
from transom.specs.page import render_page
from transom.specs.plan import plan
from transom.specs.totals import Cost

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Reader(HTMLParser):
    """Collects elements and their text, and checks that every element is closed in its turn."""

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.elements = []
        self.texts = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag != "code":  # the others end a word
            self.handle_data(" ")
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((data, [attrs.get("id") for _, attrs in self.open if attrs.get("id")]))

    def section(self, name):
        return "".join(text for text, ids in self.texts if name in ids)


@pytest.fixture
def made(fakes, make_spec):
    use = {"mlp": "even_mlp | fake_mlp", "layers.0.mlp": "nobody | even_mlp | fake_mlp"}
    return plan(make_spec(use=use, options={"layers.2.mlp": {"times": 3}}), registry=fakes)


@pytest.fixture
def page(made):
    return render_page(made)


def hrefs(page, text):
    """Give the anchors of the blocks whose name is ``text``."""
    return re.findall(rf"<a href='#(n\d+)'><span class='name'>{text}</span>", page)


def test_page_has_a_block_and_details_for_every_kind_of_place(page):
    elements = Reader(page).elements
    targets = {attrs["href"].removeprefix("#") for tag, attrs in elements if tag == "a"}
    sections = [attrs["id"] for tag, attrs in elements if tag == "section" and "id" in attrs]
    assert targets == set(sections)
    blocks = [attrs for tag, attrs in elements if tag == "div" and "block" in attrs.get("class", "").split()]
    assert len(blocks) == len(sections) == 17  # the model, its embedding, and three layers of five


def test_page_needs_nothing_from_elsewhere(page):
    elements = Reader(page).elements
    assert not [tag for tag, _ in elements if tag in ("script", "link", "img", "iframe", "object")]
    assert all(attrs["href"].startswith("#") for _, attrs in elements if "href" in attrs)
    assert not re.search(r"url\(|@import|https?:", page)


def test_details_tell_what_was_asked_for_and_why_others_were_refused(page):
    (name,) = hrefs(page, "mlp")[:1]
    text = Reader(page).section(name)
    for part in (
        "layers.0.mlp",
        "nobody | even_mlp | fake_mlp",
        "use.layers.0.mlp in the mapping",
        "acme-fakes 1.0",
        "acme_fakes.parts:MLP",
        "Refused before (2)",
        "no mlp is named 'nobody'.",
        "acme-fakes/even_mlp supports layer 1 is odd",
    ):
        assert part in " ".join(text.split()), part


def test_details_tell_options_features_and_costs(made):
    page = render_page(made, measured={"": Cost(5_000, 60_000, 2048)})
    text = Reader(page).section(hrefs(page, "mlp")[2])
    assert "times: 3" in text
    assert "≥ 212" in text
    assert "layernorm" in Reader(page).section(hrefs(page, "input_layernorm")[0])
    top = Reader(page).section(hrefs(page, "model")[0])
    assert ("5,000" in top, "60,000 a token" in top, "2,048 bytes a token" in top) == (True, True, True)


def test_details_tell_hooks_and_what_they_replaced(made):
    by = {"layers.0.mlp.down": (Replacement("acme-hooks/double", "acme_hooks.parts.Scaled"),)}
    hook = Hook("double", "acme-hooks", "1.0", "acme_hooks:Double", {"by": 2})
    page = render_page(dataclasses.replace(made, root=made.root.replaced(by), hooks=(hook,)))
    (text,) = {Reader(page).section(name) for name in hrefs(page, "down") if "replaced" in Reader(page).section(name)}
    assert "replaced by acme_hooks.parts.Scaled of the hook acme-hooks/double" in " ".join(text.split())
    assert "hook double (acme-hooks 1.0) {'by': 2}" in Reader(page).section(hrefs(page, "model")[0])


def test_page_sums_up_refusals(page, fakes, make_spec):
    assert re.findall(r"<b>([^<]*)</b> <span class='no'>(\d) refused", page) == [
        ("layers.0.mlp", "2"),
        ("layers.2.mlp", "1"),
    ]
    assert "Nobody who was asked for was refused." in render_page(plan(make_spec(), registry=fakes))


def test_layers_that_are_alike_are_one_block():
    page = render_page(plan("tiny-llama"))
    assert "<span class='name'>layers.0 to 3</span>" in page
    assert page.count("&times;4") == 1


def test_legend_counts_the_places_of_each_distribution():
    made = plan("tiny-llama", use={"core_attention": "dot_product", "row_linear": "parallel_linear"})
    page = render_page(made)
    legend = re.findall(r"<i class='swatch' style='--hue:([\d.]+)'></i>([^<]+) <small>(\d+) places", page)
    assert [(name.split()[0], int(count)) for _, name, count in legend] == [
        ("transom", sum(1 for _ in made.nodes()) - 8),
        ("transom-parallel-linear", 8),
    ]
    assert len({hue for hue, _, _ in legend}) == 2


def test_every_distribution_has_a_hue_of_its_own(site, make_spec, fakes):
    names = [f"acme-{i}" for i in range(12)]
    for name in names:
        site.install(name, {"norm": {name: "Norm"}}, code=(site.root / "acme_fakes" / "parts.py").read_text())
    use = {f"layers.{i}.input_layernorm": name for i, name in enumerate(names)}
    from transom.registry.registry import Registry

    made = plan(make_spec(use=use, config={"num_layers": 13}), registry=Registry())
    hues = [float(hue) for hue in re.findall(r"class='swatch' style='--hue:([\d.]+)'", render_page(made))]
    assert len(set(hues)) == 13


def test_what_a_user_wrote_is_text_and_not_markup(fakes, make_spec):
    page = render_page(plan(make_spec(name="<b>&amp;"), registry=fakes))
    assert "<h1>&lt;b&gt;&amp;amp;</h1>" in page


LOOK = """
<script>
addEventListener("load", () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const rgba = color => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data]; };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const color = rgba(getComputedStyle(e).backgroundColor); if (color[3] === 255) return color; }
    return [255, 255, 255, 255]; };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [more, less] = [light(a), light(b)].sort((x, y) => y - x); return (more + 0.05) / (less + 0.05); };
  const shown = [...document.querySelectorAll("body *")].filter(e => e.checkVisibility() &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.tagName !== "SCRIPT");
  const worst = shown.map(e => [contrast(rgba(getComputedStyle(e).color), behind(e)), e.className || e.tagName])
    .reduce((low, each) => each[0] < low[0] ? each : low, [99, ""]);
  const blocks = [...document.querySelectorAll(".block")];
  const overflows = blocks.filter(e => e.scrollWidth > e.clientWidth + 1).length;
  const result = {
    sections: [...document.querySelectorAll("aside section")].filter(e => e.checkVisibility())
      .map(e => e.id || e.className),
    worst, overflows, fills: new Set(blocks.map(e => getComputedStyle(e).borderTopColor)).size,
    blocks: blocks.filter(e => e.getBoundingClientRect().width > 60 && e.getBoundingClientRect().height > 20).length,
    wide: document.documentElement.scrollWidth > innerWidth, scrolled: scrollY, paper: light(behind(document.body)),
  };
  document.body.innerHTML = ""; document.body.append(JSON.stringify(result));
});
</script>
"""


@pytest.fixture
def look(tmp_path):
    """Give a function that opens a page in a browser and tells what is seen."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no program chromium, chromium-browser or google-chrome")

    def open_page(page, anchor="", *, width=1280, dark=False):
        path = tmp_path / "page.html"
        path.write_text(page.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else []
        command = [browser, *options, f"--window-size={width},900", "--dump-dom", f"file://{path}{anchor}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r"<body[^>]*>(\{.*\})</body>", done.stdout, re.DOTALL)
        assert found, done.stdout[-2000:]
        return json.loads(found[1].replace("&gt;", ">"))

    return open_page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_browser_shows_every_block_readably(look, dark):
    made = plan("tiny-llama", use={"linear": "parallel_linear", "layers.1.mlp": "nobody | mlp"})
    seen = look(render_page(made), dark=dark)
    assert seen["blocks"] == render_page(made).count("class='block")
    assert seen["fills"] == 3
    assert seen["sections"] == ["intro"]
    assert seen["worst"][0] >= 4.5, seen["worst"]  # WCAG 2.2, level AA
    assert (seen["overflows"], seen["wide"]) == (0, False)
    assert (seen["paper"] < 0.1) == dark


def test_browser_shows_the_reasons_where_one_clicks(look, page):
    (name,) = hrefs(page, "mlp")[:1]
    seen = look(page, f"#{name}")
    assert (seen["sections"], seen["scrolled"]) == ([name], 0)
    assert seen["worst"][0] >= 4.5, seen["worst"]


def test_browser_fits_the_page_to_a_narrow_window(look, page):
    seen = look(page, width=500)
    assert (seen["wide"], seen["overflows"]) == (False, 0)
