"""What the page of the leaderboard does in a browser: its style, and sorting and filtering."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #595959; --line: #d8d8d8; --tint: #f3f6fa;
  --link: #005a8f; --d0: #0072b2; --d1: #b34b00; --d2: #007a5a; --d3: #a8437f; --d4: #8a6100; --d5: #2b7bb0;
  --grey: #767676 }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --text: #e8e8e8; --soft: #a8adb5; --line: #383c44;
  --tint: #1e2229; --link: #7cc4f2; --d0: #56b4e9; --d1: #f0884a; --d2: #2fc79a; --d3: #e39ac4; --d4: #e6b13c;
  --d5: #9ad0f5; --grey: #9a9a9a } }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--back); color: var(--text); max-width: 76rem;
  margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
a { color: var(--link) } p { max-width: 50rem; margin: .4rem 0 } .small { color: var(--soft); font-size: .82rem }
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: center; margin: 1rem 0 }
.filters[hidden] { display: none } .filters p { margin: 0; color: var(--soft) }
select, button { font: inherit; color: inherit } select { background: var(--back); border: 1px solid var(--soft);
  border-radius: 4px; padding: .25rem .4rem; margin-left: .35rem }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
table { border-collapse: collapse; width: 100%; font-size: .875rem }
th, td { padding: .4rem .45rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--soft) }
.words { text-align: left } .gates { white-space: nowrap }
tbody th { font-weight: 400; min-width: 15rem; overflow-wrap: anywhere }
tbody th a { font-weight: 600 } .control th a { font-weight: 400 } tbody tr:target { background: var(--tint) }
td .small, th .small { display: block; white-space: nowrap } tbody th .small, .gates .small { white-space: normal }
.warns { color: var(--d1) } thead button { background: none; border: 0; padding: 0; font-weight: 600; cursor: pointer;
  text-align: inherit; line-height: 1.25 }
thead button::after { content: " \\2195"; color: var(--soft); font-weight: 400 }
[aria-sort=ascending] button::after { content: " \\2191"; color: inherit }
[aria-sort=descending] button::after { content: " \\2193"; color: inherit }
figure { margin: 0 } svg.plot { width: 100%; max-width: 46rem; height: auto; display: block }
.plot text { font-size: 14px; fill: var(--text) } .plot .axis { fill: var(--soft) } .plot .grid { stroke: var(--line) }
.plot .whole { stroke: var(--soft); stroke-dasharray: 5 5 } .number { paint-order: stroke; stroke: var(--back);
  stroke-width: 4px; font-weight: 600 }
.mark { stroke: var(--c); fill: var(--c); stroke-width: 2 } .hollow { fill: var(--back) } .bar { stroke: var(--c) }
.d0 { --c: var(--d0) } .d1 { --c: var(--d1) } .d2 { --c: var(--d2) } .d3 { --c: var(--d3) } .d4 { --c: var(--d4) }
.d5 { --c: var(--d5) } .grey { --c: var(--grey) }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .3rem 0;
  font-size: .85rem } .key svg { width: 1rem; height: 1rem; vertical-align: -.15rem; margin-right: .35rem }
@media (max-width: 60rem) {
  .plot text { font-size: 20px }
  table, tbody { display: block } thead tr { display: flex; flex-wrap: wrap; gap: .4rem }
  thead th { border: 1px solid var(--line); border-radius: 4px; padding: .15rem .5rem; text-align: left }
  thead br { display: none } thead th:last-child { display: none }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .1rem 1rem;
    border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; margin: .7rem 0 }
  tbody td, tbody th { border: 0; padding: .1rem 0; text-align: left }
  tbody th { grid-column: 1 / -1; order: -1 }
  tbody td::before { content: attr(data-label) ": "; color: var(--soft) } td .small { display: inline }
}
@media (max-width: 25.5rem) { tbody tr { grid-template-columns: 1fr } }
"""

SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
const filters = document.querySelector(".filters"), told = filters.querySelector("[role=status]");
const selects = [...filters.querySelectorAll("select")];

function value(row, place) {
  const text = row.cells[place].dataset.value, number = Number(text);
  return Number.isNaN(number) ? text : number;
}

function sort(place, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  body.append(...[...body.rows].sort((a, b) => sign * compare(value(a, place), value(b, place))));
  heads.forEach((head, other) => {
    if (head.dataset.first) head.setAttribute("aria-sort", other === place ? direction : "none");
  });
}

function filter() {
  const shown = item => selects.every(select => !select.value || item.dataset[select.name] === select.value);
  for (const item of document.querySelectorAll("[data-dataset]")) item.style.display = shown(item) ? "" : "none";
  told.textContent = [...body.rows].filter(shown).length + " of " + body.rows.length + " entries shown";
}

heads.forEach((head, place) => head.querySelector("button")?.addEventListener("click", () => {
  const now = head.getAttribute("aria-sort"), first = head.dataset.first;
  const second = first === "ascending" ? "descending" : "ascending";
  sort(place, now === first ? second : first);
}));
selects.forEach(select => select.addEventListener("change", filter));
filters.hidden = false;
sort(heads.findIndex(head => head.textContent === "R@1 left"), "descending");
filter();
"""
