"""What the page does: it fills, sorts and filters the tables, and copies code. Without it the rest can be read."""

from __future__ import annotations

SCRIPT = """
(() => {
  "use strict";
  const MOST = 1000; // rows that are drawn before somebody asks for all
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const figures = {
    bytes: value => value.toLocaleString("en-US"),
    two: value => value.toFixed(2),
    three: value => String(Number(value.toPrecision(3))),
  };

  function cell(kind, value) {
    const made = document.createElement("td");
    if (kind in figures) {
      made.className = "n";
      made.textContent = value === null ? "-" : figures[kind](value);
    } else if (kind === "name") {
      made.className = "name";
      const name = made.appendChild(document.createElement("code"));
      value.split(/(?<=[.])/).forEach((part, number) => {
        if (number) name.append(document.createElement("wbr"));
        name.append(part);
      });
    } else {
      made.textContent = value === null ? "-" : value;
    }
    return made;
  }

  function fromJson(text, kinds) {
    const { words, rows } = JSON.parse(text);
    return rows.map(row => {
      const values = row.map((value, at) => (kinds[at] === "word" && value !== null ? words[value] : value));
      const draw = () => {
        const line = document.createElement("tr");
        if (values[1] !== "compressed") line.className = "kept";
        line.append(...values.map((value, at) => cell(kinds[at], value)));
        return line;
      };
      return { values, draw };
    });
  }

  function fromTable(body, kinds) {
    return [...body.rows].map(line => ({
      values: [...line.cells].map((place, at) => {
        if (!(kinds[at] in figures)) return place.textContent;
        return place.dataset.value === "" ? null : Number(place.dataset.value);
      }),
      draw: () => line,
    }));
  }

  function order(a, b) {
    if (a === null || b === null) return 0;
    return typeof a === "number" ? a - b : compare(a, b);
  }

  function start(sheet) {
    const [body, heads] = [sheet.querySelector("tbody"), [...sheet.querySelectorAll("th")]];
    const [input, count, more] = ["input", "output", ".more"].map(what => sheet.querySelector(what));
    const kinds = heads.map(head => head.dataset.kind);
    const data = sheet.querySelector("script");
    const rows = data ? fromJson(data.textContent, kinds) : fromTable(body, kinds);
    for (const row of rows) {
      row.text = row.values.filter(value => typeof value === "string").join(" ").toLowerCase();
    }
    let [shown, all] = [rows, false];

    function draw() {
      const wanted = input.value.toLowerCase().split(/ +/);
      const found = shown.filter(row => wanted.every(word => row.text.includes(word)));
      const some = all ? found : found.slice(0, MOST);
      body.replaceChildren(...some.map(row => (row.line ??= row.draw())));
      count.textContent = `${found.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
      if (more) {
        more.hidden = some.length === found.length;
        more.textContent = `Show all ${found.length.toLocaleString("en-US")}`;
      }
    }

    heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = down ? "descending" : "ascending";
      const missing = row => row.values[at] === null; // stay last, whichever way
      shown = [...rows].sort((a, b) =>
        missing(a) - missing(b) || (down ? -1 : 1) * order(a.values[at], b.values[at]));
      draw();
    }));
    input.addEventListener("input", draw);
    more?.addEventListener("click", () => { all = true; draw(); });
    for (const part of sheet.querySelectorAll(".tools, .scroll")) part.hidden = false;
    draw();
  }

  async function copy(button) {
    const code = button.closest(".code").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // no clipboard on this page: select the text, so that Ctrl-C takes it
      getSelection().selectAllChildren(code);
      if (!document.execCommand("copy")) return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
  for (const sheet of document.querySelectorAll(".sheet")) {
    const closed = sheet.closest("details:not([open])");
    if (closed) closed.addEventListener("toggle", () => start(sheet), { once: true });
    else start(sheet);
  }
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
"""
