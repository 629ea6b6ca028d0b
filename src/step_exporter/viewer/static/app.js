// What the pages do beyond reading: keys, live changes, lines as they are scrolled to, details beside the waterfall.
// Everything that is put into a page is HTML made by the server, which escapes what came from spans.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

async function get(url) {
  const response = await fetch(url, { headers: { Accept: "text/html" } });
  if (!response.ok || response.redirected) throw new Error(`${url}: ${response.status}`);
  return response.text();
}

// Dark and light

const theme = $("#theme");
try {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* storage may be off */ }
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
});

// Copying

function showCopies() { for (const part of $$("[data-copies]")) part.hidden = false; }
showCopies();
async function copy(button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(button.dataset.copy);
  else copyBySelection(button.dataset.copy);  // a page that came over plain HTTP from another machine has none
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Lines of a waterfall. Chunks are fetched when they come near, and let go when they are far: a trace of 50,000 spans
// never has more than a few hundred lines in the page.

const lines = $("#lines");
const ROW = 30;
let near;
if (lines) {
  const total = Number(lines.dataset.total), size = Number(lines.dataset.chunk), first = Number(lines.dataset.from) / size;
  const given = $(".chunk", lines);
  $("#more").replaceChildren();
  near = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? load(entry.target) : unload(entry.target);
  }, { rootMargin: "1500px 0px" });
  for (let at = 0; at * size < total; at++) addChunk(at, at === Math.floor(first) ? given : null, total, size);
  const chosen = $(".row.chosen", lines);
  if (chosen && first > 0) chosen.scrollIntoView({ block: "center" });
}

function addChunk(at, given, total, size) {
  const chunk = given ?? document.createElement("div");
  chunk.className = "chunk" + (given ? "" : " loading");
  chunk.dataset.at = at;
  chunk.dataset.loaded = given ? "1" : "";
  chunk.style.minHeight = `${Math.min(size, total - at * size) * ROW}px`;
  lines.append(chunk);
  near.observe(chunk);
}

async function load(chunk, again = false) {
  if (chunk.dataset.loaded && !again) return;
  chunk.dataset.loaded = "1";
  try {
    const html = await get(`${lines.dataset.url}?from=${chunk.dataset.at * lines.dataset.chunk}&${chosen()}`);
    if (chunk.dataset.loaded) { chunk.innerHTML = html; chunk.classList.remove("loading"); mark(); }
  } catch { chunk.dataset.loaded = ""; }
}

function unload(chunk) {
  if (!chunk.dataset.loaded) return;
  chunk.dataset.loaded = "";
  chunk.classList.add("loading");
  chunk.replaceChildren();
}

// Details beside the waterfall

// A key is the part of the address that names a line: span=ID or step=ID.
function chosen() {
  const asked = new URLSearchParams(location.search);
  const kind = ["step", "span"].find((each) => asked.get(each));
  return kind ? `${kind}=${encodeURIComponent(asked.get(kind))}` : "";
}

async function open(key, push = true) {
  if (push) history.pushState(null, "", location.pathname + (key ? `?${key}` : ""));
  for (const row of $$(".row.chosen")) row.classList.remove("chosen");
  $(`.row[data-key="${CSS.escape(key)}"]`)?.classList.add("chosen");
  await fill(key);
}

async function fill(key) {
  const detail = $("#detail"), same = detail.dataset.key === key;
  const html = key ? await get(`${location.pathname}/detail?${key}`) : "";
  if (key !== chosen()) return;  // another line was chosen meanwhile
  const open = same ? $$("details", detail).map((each) => each.open) : [];
  detail.innerHTML = html;
  detail.dataset.key = key;
  $$("details", detail).forEach((each, at) => { each.open = open[at] ?? each.open; });
  if (!same) detail.scrollTop = 0;
  $("#split").classList.toggle("open", Boolean(key));
  showCopies();
}
if (lines) $("#detail").dataset.key = chosen();
addEventListener("popstate", () => { if (lines) open(chosen(), false); });

// Clicks

document.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const target = event.target;
  const button = target.closest("[data-copy]");
  if (button) return void copy(button);
  if (lines && target.closest("[data-close]")) return void (event.preventDefault(), open(""));
  const link = lines && target.closest(".row, [data-goto]");
  if (link) {
    event.preventDefault();
    if (link.matches(".row")) setCurrent(link);
    return void open(link.dataset.key ?? link.dataset.goto);
  }
  const row = target.closest("tr[data-href]");
  if (row && !target.closest("a") && !String(getSelection())) location.href = row.dataset.href;
});

document.addEventListener("submit", async (event) => {
  if (!event.target.matches("[data-edit]")) return;
  event.preventDefault();
  const body = new URLSearchParams(new FormData(event.target, event.submitter));
  const answer = await fetch(event.target.action, { method: "POST", body, redirect: "manual" });
  if (answer.type === "opaqueredirect") return void fill(chosen());
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const note = document.createElement("p");
  note.className = "notice";
  note.textContent = $("main", page)?.textContent.trim() || "That was not kept.";
  event.target.after(note);
});

// Keys

let current = null;  // the key of the current row, as rows come and go
const keyOf = (row) => row.dataset.key ?? row.dataset.href ?? String($$("[data-row]").indexOf(row));
function mark() { for (const row of $$("[data-row]")) row.classList.toggle("current", keyOf(row) === current); }
function setCurrent(row) { current = keyOf(row); mark(); row.scrollIntoView({ block: "nearest" }); }

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const rows = $$("[data-row]");
  const at = rows.findIndex((row) => keyOf(row) === current);
  if (event.key === "j" && rows.length) setCurrent(rows[Math.min(at + 1, rows.length - 1)]);
  else if (event.key === "k" && rows.length) setCurrent(rows[Math.max(at - 1, 0)]);
  else if (event.key === "Enter" && at >= 0 && !event.target.closest("a, button, summary")) {
    if (lines) open(rows[at].dataset.key);
    else if (rows[at].dataset.href) location.href = rows[at].dataset.href;
  } else if (event.key === "Escape" && lines) open("");
  else if (event.key === "/") {
    const search = $("[data-search]");
    if (search) search.focus();
    else location.href = "/";
  } else return;
  event.preventDefault();
});

// Live: the server says that something has changed, and the page asks for itself again.

let busy = false, again = false;
async function refresh() {
  if (busy) return void (again = true);
  busy = true;
  try {
    const page = new DOMParser().parseFromString(await get(location.href), "text/html");
    for (const part of $$("[data-live]")) {
      const fresh = page.getElementById(part.id);
      if (fresh) part.replaceChildren(...fresh.childNodes);
    }
    if (lines) {
      const total = Number($("#lines", page)?.dataset.total ?? 0), size = Number(lines.dataset.chunk);
      lines.dataset.total = total;
      for (let at = $$(".chunk", lines).length; at * size < total; at++) addChunk(at, null, total, size);
      await Promise.all($$(".chunk", lines).map((chunk) => {
        chunk.style.minHeight = `${Math.max(Math.min(size, total - chunk.dataset.at * size), 0) * ROW}px`;
        return chunk.dataset.loaded ? load(chunk, true) : null;
      }));
    }
    showCopies();
    mark();
  } catch { /* the next change asks again */ }
  busy = false;
  if (again) { again = false; refresh(); }
}

if (document.body.dataset.events) {
  const events = new EventSource(document.body.dataset.events);
  const sign = $("#live-mark");
  events.addEventListener("open", () => { sign.hidden = false; });
  events.addEventListener("error", () => { sign.hidden = true; });
  events.addEventListener("change", refresh);
  addEventListener("pagehide", () => events.close());
}
