"""How the page looks: on a wide and on a narrow screen, in light and dark, on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --soft: #f5f7f9; --line: #dfe4e9; --ink: #16202a; --quiet: #55616d; --link: #0b5cad;
  --was: #a9b6c3; --now: #2563a8; --good: #17693a; --bad: #b3261e; --warn: #7a4d00; --warn-soft: #fff6e0;
  --b0: #dff1ea; --b1: #bfe3d9; --b2: #93cfcb; --b3: #62b2c1; --b4: #2f789f; --b5: #33588f; --b6: #2c3a70;
  --gone: #e3e6ea; --on-few: #10242c; --on-many: #fff; --rim: #0006; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #101418; --soft: #171c22; --line: #2b333c; --ink: #e4e9ee; --quiet: #9ba7b3; --link: #7db8f5;
  --was: #566371; --now: #6aaef0; --good: #6fcf97; --bad: #ff8a80; --warn: #f2c063; --warn-soft: #2a2313;
  --b0: #15333a; --b1: #1b424c; --b2: #22545f; --b3: #2b6b78; --b4: #58a6b3; --b5: #8cc7ca; --b6: #c3e5e0;
  --gone: #2a3037; --on-few: #f2f7f8; --on-many: #0b1a20; --rim: #fff6; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1216px; margin: 0 auto; padding: 40px 32px 64px; }
code, pre, .map text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .92em; overflow-wrap: anywhere; }
h1, h2, h3 { margin: 0; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere; }
h1 { font-size: 30px; letter-spacing: -.015em; }
h2 { font-size: 19px; letter-spacing: -.005em; }
h3 { font-size: 17px; }
p { margin: 0; }
section { margin-top: 48px; }
section > h2, section > h3 { margin-bottom: 12px; }
small { font-size: 13px; color: var(--quiet); font-weight: 400; }
.kicker { color: var(--quiet); font-size: 14px; }
.paths { color: var(--quiet); margin-top: 6px; font-size: 14px; }
.note, .timing { color: var(--quiet); font-size: 14px; max-width: 74ch; }
header .note, header .timing { margin-top: 12px; }
section > .note { margin: -6px 0 14px; }
.badges { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px; }
.badge { font-size: 13px; font-weight: 600; padding: 2px 10px; border: 1px solid currentColor; border-radius: 99px; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .warn { color: var(--warn); }
ul { list-style: none; margin: 0; padding: 0; }
.sizes { margin-top: 28px; display: grid; gap: 8px; }
.sizes li { display: grid; grid-template-columns: 4.5em minmax(0, 1fr) 5.5em; gap: 12px; align-items: center; }
.sizes span { color: var(--quiet); } .sizes b { text-align: right; font-weight: 600; }
svg { display: block; width: 100%; }
rect.was { fill: var(--was); } rect.now { fill: var(--now); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); margin: 24px 0 0;
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.tiles div { padding: 14px 16px; box-shadow: 1px 1px var(--line); }
.tiles dt { color: var(--quiet); font-size: 13px; }
.tiles dd { margin: 2px 0 0; font-size: 25px; font-weight: 600; letter-spacing: -.01em; line-height: 1.3; }
.tiles small { display: block; letter-spacing: 0; line-height: 1.4; }
.pair { display: grid; gap: 28px 32px; grid-template-columns: minmax(0, 1fr); } .pair.uneven { row-gap: 0; }
@media (min-width: 1000px) { .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .pair.uneven { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); } }
figure { margin: 0; } figcaption { margin-bottom: 8px; color: var(--quiet); } figcaption b { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-bottom: 16px; font-size: 13px; color: var(--quiet); }
.legend li { display: flex; align-items: center; gap: 6px; } .legend svg { width: 12px; border-radius: 2px; }
.chart { max-width: 560px; height: auto; overflow: visible; }
.chart text { font-size: 11px; fill: var(--quiet); } .chart text.narrow { display: none; }
@media (min-width: 1000px) { .uneven .scatter text, .uneven .front text { font-size: 13px; } }
.map rect { stroke: var(--page); stroke-width: 1; } .map .frames rect { fill: none; stroke-width: 2.5;
  pointer-events: none; }
.b0 { fill: var(--b0); } .b1 { fill: var(--b1); } .b2 { fill: var(--b2); } .b3 { fill: var(--b3); }
.b4 { fill: var(--b4); } .b5 { fill: var(--b5); } .b6 { fill: var(--b6); } .gone { fill: var(--gone); }
.map .b0 text, .map .b1 text, .map .b2 text, .map .b3 text { fill: var(--on-few); }
.map .b4 text, .map .b5 text, .map .b6 text { fill: var(--on-many); } .map .gone text { fill: var(--ink); }
.map g:hover > rect { stroke: var(--ink); stroke-width: 2; }
.scatter path { stroke: var(--line); } .scatter circle { stroke: var(--rim); }
.scatter circle:hover { stroke: var(--ink); stroke-width: 2; }
.front .axes path { stroke: var(--line); } .front .line { fill: none; stroke: var(--now); stroke-width: 2; }
.front circle { fill: var(--page); stroke: var(--now); stroke-width: 2; } .front .knee { stroke: var(--ink); }
.front .best { fill: var(--now); } .front circle:hover { stroke: var(--ink); stroke-width: 3; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
@media screen and (max-width: 600px) { .chart text { font-size: 16.5px; } .chart text.wide { display: none; }
  .chart text.narrow { display: inline; } }
.bars li { display: grid; grid-template-columns: minmax(0, 7fr) minmax(0, 6fr) 11.5em 4em; gap: 2px 20px;
  align-items: center; padding: 9px 0; border-top: 1px solid var(--line); }
.bars .label small { display: block; } .bars .figure, .bars b { text-align: right; white-space: nowrap; }
.bars b { font-weight: 600; }
.scroll { overflow: auto; scrollbar-width: thin; scrollbar-color: var(--was) transparent;
  border: 1px solid var(--line); border-radius: 10px; }
.tall { max-height: min(72vh, 800px); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--soft); color: var(--quiet); font-weight: 600; font-size: 13px;
  z-index: 1; }
td { border-top: 1px solid var(--line); } tbody tr:first-child td { border-top: 0; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr:hover td { background: var(--soft); }
td.name { white-space: normal; } td.name code { display: block; width: max-content; max-width: 30rem;
  font-size: 12.5px;
  line-height: 1.6; } td.names { white-space: normal; min-width: 18rem; }
td.reason { white-space: normal; min-width: 10rem; } td.message { white-space: normal; min-width: 16rem; }
.uneven th, .uneven td { padding-left: 8px; padding-right: 8px; }
.sheet th button, .sheet td { padding-left: 10px; padding-right: 10px; }
.uneven td.name code { width: auto; min-width: 11rem; }
.files th button, .files td { padding-left: 8px; padding-right: 8px; } .files td.name code { max-width: 10.5rem; }
.files td.message { min-width: 12rem; max-width: 24rem; overflow-wrap: anywhere; }
.n { text-align: right; } tr.kept td { color: var(--quiet); }
th[aria-sort] { padding: 0; }
th button { all: unset; box-sizing: border-box; cursor: pointer; width: 100%; padding: 7px 14px; display: flex;
  gap: 5px;
  align-items: baseline; } th.n button { flex-direction: row-reverse; } th button:hover { color: var(--ink); }
.arrow { width: 9px; height: 9px; flex: none; background: currentColor; opacity: .28;
  clip-path: polygon(50% 0, 95% 42%, 5% 42%, 5% 58%, 95% 58%, 50% 100%, 5% 58%, 5% 42%); }
[aria-sort="ascending"] .arrow { opacity: 1; clip-path: polygon(50% 12%, 100% 82%, 0 82%); }
[aria-sort="descending"] .arrow { opacity: 1; clip-path: polygon(0 18%, 100% 18%, 50% 88%); }
[aria-sort="ascending"], [aria-sort="descending"] { color: var(--ink); }
:focus-visible, th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 4px; }
th button:focus-visible { outline-offset: -3px; }
.tools { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin-bottom: 12px; }
.tools label { display: flex; gap: 10px; align-items: center; flex: 0 1 26rem; color: var(--quiet); }
.tools output { color: var(--quiet); font-size: 14px; }
input { font: inherit; color: var(--ink); background: var(--page); border: 1px solid var(--was);
  border-radius: 7px; padding: 5px 10px; width: 100%; min-width: 0; } input::placeholder { color: var(--quiet);
  opacity: 1; }
.copy, .more { font: inherit; font-size: 13px; color: var(--link); background: var(--page);
  border: 1px solid var(--line);
  border-radius: 7px; padding: 2px 12px; cursor: pointer; } .copy:hover, .more:hover { border-color: var(--link); }
.more { margin-top: 12px; padding: 5px 14px; }
.code { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; min-width: 0; align-self: start; }
.code .bar { display: flex; justify-content: space-between; align-items: center; min-height: 38px;
  padding: 4px 8px 4px 16px;
  background: var(--soft); border-bottom: 1px solid var(--line); color: var(--quiet); font-size: 13px; }
pre { margin: 0; padding: 14px 16px; font-size: 13.5px; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { font-size: inherit; } pre span { display: inline-block; max-width: 100%; }
.warnings { display: grid; gap: 8px; } .scroll + .warnings { margin-top: 16px; }
.warnings li { border-left: 3px solid var(--warn); background: var(--warn-soft); padding: 8px 14px;
  border-radius: 0 7px 7px 0;
  overflow-wrap: anywhere; }
.pairs { display: grid; gap: 6px; margin: 0; font-size: 14px; }
.pairs div { display: grid; grid-template-columns: 8em minmax(0, 1fr); gap: 12px; } .pairs dt { color: var(--quiet);
  overflow-wrap: anywhere; }
.pairs dd { margin: 0; overflow-wrap: anywhere; }
.report { border: 1px solid var(--line); border-radius: 10px; margin-bottom: 12px; padding: 0 20px; }
.report[open] { padding-bottom: 28px; }
summary { padding: 12px 0; cursor: pointer; } summary span { color: var(--quiet); margin-left: 8px;
  white-space: nowrap; }
.report > header { padding-top: 20px; border-top: 1px solid var(--line); } .report section { margin-top: 36px; }
@media screen and (max-width: 760px) { main { padding: 24px 16px 48px; }
  h1 { font-size: 24px; } section { margin-top: 40px; }
  .bars li { grid-template-columns: minmax(0, 1fr) auto 3.5em; column-gap: 12px; }
  .bars .label { grid-column: 1 / -1; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles div:last-child:nth-child(odd) { grid-column: 1 / -1; } .tiles div { padding: 12px 14px; }
  .tiles dd { font-size: 21px; }
  td.name code { max-width: 15rem; } .report { padding: 0 12px; } summary span { white-space: normal; margin: 0;
  display: block; }
  .pairs div { grid-template-columns: 5.5em minmax(0, 1fr); } }
@media print { main { padding: 0; max-width: none; } body { font-size: 11px; } h1 { font-size: 20px; }
  h2, h3 { font-size: 14px; break-after: avoid; } section, .report section { margin-top: 20px; }
  small, .note, .timing, .kicker, .paths, .legend, .pairs, .badge, pre { font-size: 10px; }
  .tools, .copy, .more, .arrow { display: none; } .tall { max-height: none; } .scroll { overflow: visible; border: 0; }
  table { font-size: 9px; } th { font-size: 9px; position: static; } .pair.uneven { display: block; }
  th, td, .uneven th, .uneven td, .sheet td, .sheet th button { padding: 2px 6px; }
  td.name code, .files td.name code { font-size: 8.5px; width: auto; min-width: 11em; max-width: none; }
  td.names, td.reason, td.message, .files td.message { min-width: 0; } .sheet td:last-child { white-space: normal; }
  .sheet th, .sheet th button { white-space: normal; }
  .tiles dd { font-size: 16px; } .tiles div { padding: 8px 12px; } .tiles {
  grid-auto-columns: 1fr; grid-auto-flow: column; grid-template-columns: none; }
  .bars li { padding: 4px 0; } .sizes { margin-top: 14px; } .pair { gap: 16px; }
  .pair:not(.uneven) { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } .report { border: 0; padding: 0; }
  tr, figure, .chart, .bars li, .code, .tiles { break-inside: avoid; }
  svg, .badge, .tiles, th, .warnings li { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
