"""The HTML report: what it says, that nothing from a file can act in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modelzip_cli.figures import size
from modelzip_cli.html.page import html_page
from modelzip_cli.html.script import SCRIPT
from modelzip_cli.report import Gate, Report, Side, TensorRow
from tests.html.browser import Page, chromium, find_chromium

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\x1b[31m\"'&amp;<!--\u202e\ud800]]>"
COMMAND = "modelzip quantize model.safetensors -s int4"
VOID = {"meta", "wbr", "input", "br", "img", "link"}


def row(name: str, shape: tuple[int, ...] = (64, 128), *, scheme: str | None = "int4-g128", **more: Any) -> TensorRow:
    weights = shape[0] * (shape[1] if len(shape) > 1 else 1)
    lossy = scheme is not None and "sqnr_db" not in more
    values: dict[str, Any] = {
        "status": "compressed" if scheme else "kept",
        "reason": None if scheme else "1-D",
        "bytes_before": 2 * weights,
        "bytes_after": weights // 2 + 16 if scheme else 2 * weights,
        "scheme": scheme,
        "bits_per_weight": 4.125 if scheme else None,
        "sqnr_db": 19.5 if lossy else None,
        "max_abs_error": 0.0244 if lossy else None,
    }
    return TensorRow(name=name, shape=shape, dtype="bf16", exact=not lossy, **(values | more))


def rows_of(layers: int) -> list[TensorRow]:
    """Ten tensors a layer, as a transformer has them, and two more."""
    found = [row("model.embed_tokens.weight", (1000, 128), scheme="int8", sqnr_db=43.5, max_abs_error=0.001)]
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for number, part in enumerate(("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")):
            found.append(row(f"{start}.{part}_proj.weight", (128, 128), sqnr_db=18 + number / 4 + layer / 97))
        for number, part in enumerate(("gate", "up", "down")):
            found.append(row(f"{start}.mlp.{part}_proj.weight", (512, 128), sqnr_db=19 + number / 8 - layer / 89))
        found += [row(f"{start}.{part}.weight", (128,), scheme=None) for part in ("input_norm", "mlp_norm", "k_norm")]
    return [*found, row("model.norm.weight", (128,), scheme=None)]


def report_of(rows: list[TensorRow], **more: Any) -> Report:
    before, after = sum(row.bytes_before for row in rows) + 800, sum(row.bytes_after for row in rows) + 2000
    measured = any(row.sqnr_db is not None for row in rows)
    totals = {
        "ratio": round(before / after, 4),
        "weight_ratio": 3.6,
        "coverage": 0.98,
        "bits_per_weight": 4.2 if measured else None,
        "sparsity": None,
        "sqnr_db": 19.4166 if measured else None,
        "cosine": 0.9943138 if measured else None,
        "parameters": 100,
        "treated_parameters": 90,
    }
    values: dict[str, Any] = {
        "command": "quantize",
        "modelzip": "0.1.0",
        "source": Side("runs/model.safetensors", "safetensors", before, len(rows), 100),
        "output": Side("runs/model.int4-g128.safetensors", "safetensors", after, len(rows), 0, layout="native"),
        "recipe": {"scheme": "int4-g128", "layout": "native"},
        "totals": totals,
        "tensors": tuple(rows),
        "seconds": 1.5,
        "peak_rss_bytes": 45_000_000,
    }
    return Report(**(values | more))


def planned(report: Report) -> Report:
    rows = tuple(replace(row, sqnr_db=None, max_abs_error=None) for row in report.tensors)
    extra = {"planned": {"path": "runs/out.safetensors", "bytes": 5000}}
    totals = {**report.totals, "sqnr_db": None, "cosine": None}
    return replace(report, output=None, tensors=rows, extra=extra, totals=totals)


def dropping(report: Report) -> Report:
    reason = "beside the weights; --keep-extras keeps it"
    gone = [
        row(f"optimizer.state.{n}.exp_avg", scheme=None, status="dropped", reason=reason, bytes_after=0)
        for n in range(6)
    ]
    return replace(report, tensors=(*report.tensors, *gone))


class Elements(HTMLParser):
    """The elements of a page as (tag, attributes), and the text of each kind; unbalanced tags fail."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def headings(self) -> list[str]:
        return [text for tag in ("h1", "h2", "h3") for text in self.text.get(tag, [])]


def page_of(*reports: Report, **more: Any) -> str:
    return html_page(reports, **({"command_line": COMMAND} | more))


@pytest.fixture(scope="module")
def usual() -> Report:
    return report_of(rows_of(3), gates=(Gate("sqnr", 15.0, 19.4166, True), Gate("size", 9.0, 10.0, False)))


def test_the_blocks_stand_in_their_order(usual):
    found = Elements(page_of(usual)).text["h2"]
    assert found == [
        "Where the bytes are",
        "Before and after, by group",
        "Error by size",
        "Worst tensors",
        "Kept and dropped",
        "Gates and warnings",
        "Recipe and command",
        "All tensors",
        "Versions",
    ]


def test_the_headline_says_sizes_ratio_and_that_sqnr_is_no_accuracy(usual):
    header = Elements(page_of(usual)).text["header"][0]
    for said in ("model.safetensors", "After", "SQNR", "19.4 dB", "not the accuracy", "1 gate not met"):
        assert said in header
    assert f"{usual.totals['ratio']:.2f}x" in header


def test_the_table_holds_every_tensor_with_its_figures(usual):
    data = next(text for text in Elements(page_of(usual)).text["script"] if text.startswith("{"))
    table = json.loads(data)
    assert [line[0] for line in table["rows"]] == [row.name for row in usual.tensors]
    assert [line[8] for line in table["rows"]] == [row.sqnr_db for row in usual.tensors]
    assert [table["words"][line[1]] for line in table["rows"]] == [row.status for row in usual.tensors]


def test_the_worst_tensors_come_first_and_are_twelve_at_most():
    page = page_of(report_of(rows_of(4)))
    worst = page.partition("<h2>Worst tensors</h2>")[2].partition("</section>")[0].replace("<wbr>", "")
    assert re.findall(r"<code>([^<]+)</code>", worst)[:2] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    ]
    assert worst.count("<tr>") == 1 + 12


def test_what_is_dropped_is_named_with_its_reason(usual):
    page = page_of(dropping(usual)).replace("<wbr>", "")
    kept = page.partition("<h2>Kept and dropped</h2>")[2].partition("</section>")[0]
    assert "optimizer.state.{0..5}.exp_avg" in kept
    assert "--keep-extras keeps it" in kept
    assert 'class="gone"' in page


def test_the_page_loads_nothing_and_its_policy_names_its_own_style_and_script(usual):
    page = page_of(usual)
    elements = Elements(page).elements
    assert not {tag for tag, _ in elements} & {"link", "img", "iframe", "object", "embed", "base", "form", "a"}
    names = {name for _, attributes in elements for name in attributes}
    assert not names & {"src", "href", "style", "action", "srcset"}
    assert not {name for name in names if name.startswith("on")}
    policy = next(found["content"] for tag, found in elements if tag == "meta" and "http-equiv" in found)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_script_is_at_most_200_lines():
    assert len(SCRIPT.splitlines()) <= 200


def everywhere(text: str) -> tuple[Report, dict[str, Any]]:
    """A report with `text` in every place that a file or a command line can fill."""
    rows = [
        replace(found, name=f"{text}.{found.name}", dtype=text, reason=text, scheme=found.scheme and text)
        for found in rows_of(1)
    ]
    more = {"command_line": text, "environment": [(text, text)]}
    report = report_of(
        rows,
        command=text,
        modelzip=text,
        source=Side(text, text, 9000, 9, 9),
        output=Side(text, text, 900, 9, 0, layout=text),
        recipe={"scheme": text, "only": [text], "set": [{"match": text, "scheme": text}]},
        gates=(Gate(text, 1.0, 2.0, True),),
        warnings=(text,),
    )
    return report, more


@pytest.mark.parametrize("failed", [[], [(HOSTILE, HOSTILE)]], ids=["one report", "a batch"])
def test_hostile_names_stay_text(failed):
    tame = re.sub(r"[^ \w]", "-", HOSTILE)
    harmless, more = everywhere(tame)
    same = [(tame, tame) for _ in failed]
    plain = Elements(page_of(harmless, failed=same, skipped=same, **more))
    report, more = everywhere(HOSTILE)
    page = page_of(report, failed=failed, skipped=failed, **more)
    found = Elements(page)
    tags = [tag for tag, _ in found.elements if tag not in ("wbr", "tspan", "text")]
    assert tags == [tag for tag, _ in plain.elements if tag not in ("wbr", "tspan", "text")]
    assert not set(page) & set("\x1b\u2028\u202e\ud800")
    assert not {name for _, attributes in found.elements for name in attributes if name.startswith("on")}


def test_the_data_of_the_table_cannot_close_its_script():
    report, more = everywhere(HOSTILE)
    data = re.findall(r'<script type="application/json">(.*?)</script>', page_of(report, **more))
    assert len(data) == 1
    assert not set(data[0]) & set("<>&")
    assert json.loads(data[0])["rows"][0][0].startswith("</script><img src=x onerror=alert(1)>\\u2028")


def test_a_thousand_tensors_take_less_than_300_kb():
    report = report_of(rows_of(100))
    assert len(report.tensors) > 1000
    assert len(page_of(report).encode()) < 300_000


def test_the_same_report_gives_the_same_page(usual):
    assert page_of(usual) == page_of(usual)
    rerun = replace(usual, seconds=99.0, peak_rss_bytes=1)
    timing = re.compile(r'<p class="timing">.*?</p>\n')
    assert timing.sub("", page_of(rerun)) == timing.sub("", page_of(usual))


def test_without_times_no_timing_is_shown(usual):
    assert 'class="timing"' in page_of(usual)
    assert 'class="timing"' not in page_of(replace(usual, seconds=0.0, peak_rss_bytes=0))


def test_a_dry_run_says_so_and_shows_no_error(usual):
    page = Elements(page_of(planned(usual)))
    assert "Dry run: nothing was written" in page.text["header"][0]
    assert "a dry run measures nothing" in page.text["header"][0]
    assert "Error by size" not in page.headings()


def test_a_report_that_kept_everything_has_one_map_and_no_error():
    page = Elements(page_of(report_of([row(f"layers.{n}.norm", (64,), scheme=None) for n in range(4)])))
    assert page.text["figcaption"] == ["Before and after: the same bytes 512 B"]
    assert "no weight was changed" in page.text["header"][0]


@pytest.mark.parametrize("rows", [[], [row("empty", (0, 4), scheme=None)], [row("", (1,), scheme=None)]])
def test_empty_checkpoints_and_names_have_a_page(rows):
    assert "Versions" in Elements(page_of(report_of(rows))).headings()


def test_many_names_without_a_module_fit_too():
    page = page_of(report_of([row(f"t{n}", (64,), scheme=None) for n in range(3000)]))
    assert len(Elements(page).text["title"]) < 200


def test_a_name_of_thousands_of_parts_has_a_page():
    rows = [row(f"{'a.' * 3000}{n}.weight") for n in range(3)]
    assert Elements(page_of(report_of(rows)))


def test_a_batch_begins_with_its_files_and_failures(usual):
    failed = [("runs/last.ckpt", "runs/last.ckpt: truncated: the header is cut")]
    page = Elements(page_of(usual, replace(planned(usual), gates=()), failed=failed))
    assert page.text["h1"] == ["3 files"]
    assert page.headings()[1:4] == ["Files", "Command", "Reports"]
    files = page.text["table"][0]
    for said in ("runs/model.safetensors", "planned", "gate not met", "failed", "truncated:"):
        assert said in files
    assert len(page.text["details"]) == 2
    assert COMMAND in page.text["pre"][0]


def test_a_file_that_failed_alone_has_a_page_too():
    assert "failed" in Elements(page_of(failed=[("a.pth", "a.pth: broken")])).text["table"][0]
    assert "No file was found" in page_of()


def test_a_file_that_was_skipped_is_listed_with_its_reason_and_no_error(usual):
    page = Elements(page_of(usual, skipped=[("runs/old.ckpt", "its output exists")]))
    assert page.text["h1"] == ["2 files"]
    assert "1 done, 1 skipped" in page.text["header"][0]
    for said in ("runs/old.ckpt", "skipped", "its output exists"):
        assert said in page.text["table"][0]
    assert "failed" not in page.text["header"][0]
    assert "skipped" in Elements(page_of(skipped=[("a.pth", "an output of modelzip")])).text["table"][0]


# In a browser

OVERLAPS = """(() => {
  const visible = element => element.checkVisibility({ visibilityProperty: true }) &&
    !element.closest("title, noscript, script");
  const shown = box => { // what its scrolling ancestors leave of a rectangle
    let [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom];
    for (let at = box.element; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflow === "visible" || at.namespaceURI.endsWith("svg")) continue;
      const edge = at.getBoundingClientRect();
      [left, top] = [Math.max(left, edge.left), Math.max(top, edge.top)];
      [right, bottom] = [Math.min(right, edge.right), Math.min(bottom, edge.bottom)];
    }
    return { left, top, right, bottom, element: box.element, text: box.text };
  };
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (!node.data.trim() || !visible(node.parentElement)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rectangle of range.getClientRects()) {
      const { left, top, right, bottom } = rectangle;
      const box = shown({ left, top, right, bottom, element: node.parentElement, text: node.data.trim().slice(0, 40) });
      if (box.right - box.left > 1 && box.bottom - box.top > 1) boxes.push(box);
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  const found = [];
  boxes.forEach((a, at) => {
    for (let next = at + 1; next < boxes.length && boxes[next].top < a.bottom - 3; next++) {
      const b = boxes[next];
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1) found.push(`${a.text} | ${b.text}`);
    }
  });
  return { texts: boxes.length, found };
})()"""

OUTSIDE = """[...document.querySelectorAll(".map g > text")].filter(text => {
  const [inner, outer] = [text, text.parentElement.querySelector("rect")].map(part => part.getBoundingClientRect());
  return inner.width && (inner.right > outer.right || inner.bottom > outer.bottom);
}).map(text => text.textContent)"""

FAINT = """(() => {
  const light = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).map(value => value / 255)
      .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const fill = element.namespaceURI.endsWith("svg") && element.closest("g")?.querySelector("rect");
    if (fill) return getComputedStyle(fill).fill;
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }
  };
  const found = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("title, script, noscript")) continue;
    const style = getComputedStyle(element);
    const inSvg = element.namespaceURI.endsWith("svg");
    const [a, b] = [light(inSvg ? style.fill : style.color), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) found.add(`${element.tagName}.${element.getAttribute("class")}: ${contrast.toFixed(2)}`);
  }
  return [...found];
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` and these tests run")
    with chromium(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def show(tab: Page, tmp_path: Path):
    def show(page: str, width: int = 1400, *, dark: bool = False) -> Page:
        path = tmp_path / "report.html"
        path.write_text(page, encoding="utf-8")
        tab.open(path, width, dark=dark)
        return tab

    return show


def mixed() -> Report:
    """Many schemes, dropped tensors, a warning: something in every block."""
    rows = [
        replace(
            found, scheme=("int2-g64", "int4-g128", "fp16")[n % 3], bytes_after=found.bytes_before * (n % 3 + 1) // 4
        )
        if found.scheme
        else found
        for n, found in enumerate(rows_of(3))
    ]
    return dropping(report_of(rows, gates=(Gate("sqnr", 20.0, 19.4, False),), warnings=("a warning " * 20,)))


PAGES = {
    "mixed": lambda: page_of(mixed()),
    "large": lambda: page_of(report_of(rows_of(40))),
    "dry run": lambda: page_of(planned(report_of(rows_of(2)))),
    "hostile": lambda: page_of(everywhere(HOSTILE * 3)[0], **everywhere(HOSTILE * 3)[1]),
    "batch": lambda: page_of(
        mixed(),
        planned(mixed()),
        failed=[("a/b.pth", "a/b.pth: broken"), (HOSTILE, HOSTILE)],
        skipped=[("a/c.pth", "its output exists"), (HOSTILE, HOSTILE)],
    ),
}
OPEN_ALL = 'document.querySelectorAll("details").forEach(part => { part.open = true; })'
SETTLED = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))"


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_overlaps_and_the_page_does_not_scroll_sideways(show, name, width):
    page = show(PAGES[name](), width)
    page.run(OPEN_ALL)
    page.run(SETTLED)
    found = page.run(OVERLAPS)
    assert found["texts"] > 60
    assert found["found"] == []
    assert page.run(OUTSIDE) == []
    assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.problems() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_level_aa(show, dark):
    page = show(PAGES["mixed"](), dark=dark)
    assert page.run(FAINT) == []


NAMES = '[...document.querySelectorAll(".sheet tbody tr")].map(line => line.cells[{}].textContent)'
SORTS = '[...document.querySelectorAll(".sheet th")].map(head => head.ariaSort)'


def click(page: Page, column: int) -> None:
    page.run(f'document.querySelectorAll(".sheet th button")[{column}].click()')


def test_a_click_on_a_header_sorts_and_another_reverses(show):
    report = report_of(rows_of(12))
    page = show(page_of(report))
    assert page.run(NAMES.format(0)) == [row.name for row in report.tensors]

    click(page, 0)
    names = page.run(NAMES.format(0))
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)  # 2 before 10
    assert page.run(SORTS)[:2] == ["ascending", "none"]

    click(page, 5)
    sizes = [int(text.replace(",", "")) for text in page.run(NAMES.format(5))]
    assert sizes == sorted(sizes)
    click(page, 5)
    assert [int(text.replace(",", "")) for text in page.run(NAMES.format(5))] == sorted(sizes, reverse=True)
    assert page.run(SORTS)[0] == "none"
    assert page.run(SORTS)[5] == "descending"


def test_rows_without_a_figure_stay_last(show):
    page = show(page_of(report_of(rows_of(2))))
    for _ in range(2):
        click(page, 8)
        found = page.run(NAMES.format(8))
        assert found[0] != "-"
        assert "-" not in found[: len(found) - found.count("-")]


def test_a_header_sorts_from_the_keyboard(show):
    page = show(page_of(report_of(rows_of(1))))
    page.run('document.querySelector(".sheet th button").focus()')
    for kind in ("rawKeyDown", "char", "keyUp"):
        text = {"text": "\r"} if kind == "char" else {}
        page.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, **text)
    assert page.run(SORTS)[0] == "ascending"


def type_filter(page: Page, text: str) -> None:
    page.run('document.querySelector(".sheet input").focus()')
    page.run('document.querySelector(".sheet input").select()')
    page.ask("Input.insertText", text=text)


def test_the_filter_keeps_rows_with_all_its_words(show):
    page = show(page_of(report_of(rows_of(12))))
    type_filter(page, "MLP int4 .1.")
    assert page.run(NAMES.format(0)) == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    assert page.run('document.querySelector(".sheet output").textContent') == "3 of 122"
    click(page, 0)
    assert page.run(NAMES.format(0))[0] == "model.layers.1.mlp.down_proj.weight"


def test_of_thousands_of_rows_a_thousand_are_drawn_until_all_are_asked_for(show):
    page = show(page_of(report_of(rows_of(150))))
    lines = 'document.querySelectorAll(".sheet tbody tr").length'
    assert page.run(lines) == 1000
    page.run('document.querySelector(".more").click()')
    assert page.run(lines) == 1502


def test_the_files_of_a_batch_sort_by_their_bytes(show):
    small, large = report_of(rows_of(1)), report_of(rows_of(9))
    page = show(page_of(large, small, failed=[("z.pth", "broken")]))
    click(page, 2)
    assert page.run(NAMES.format(2))[:3] == [size(small.source.bytes), size(large.source.bytes), "-"]
    click(page, 2)
    found = page.run(NAMES.format(2))[:3]
    assert found == [size(large.source.bytes), size(small.source.bytes), "-"]


def test_a_hostile_report_runs_nothing_and_shows_its_names(show):
    report, more = everywhere(HOSTILE)
    page = show(page_of(report, **more))
    assert page.run("document.images.length") == 0
    assert page.run(NAMES.format(0))[0].startswith("</script><img src=x onerror=alert(1)>\\u2028\\x1b[31m")
    assert page.problems() == []


def test_the_copy_button_copies_and_says_so(show):
    page = show(page_of(report_of(rows_of(1))))
    page.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.run('document.querySelectorAll(".copy")[1].scrollIntoView({ block: "center" })')
    place = page.run(
        '(({ x, y }) => ({ x: x + 9, y: y + 9 }))(document.querySelectorAll(".copy")[1].getClientRects()[0])'
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)
    said = 'document.querySelectorAll(".copy")[1].textContent'
    wait = (
        f'new Promise(done => {{ const look = () => {said} === "Copied" ? done(true) : setTimeout(look, 5); look(); }})'
    )
    assert page.run(wait)
    assert page.run("navigator.clipboard.readText()") == COMMAND
