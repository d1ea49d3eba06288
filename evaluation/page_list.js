// The list, a page at a time, and the ways into it from the rest of the page.

const A_PAGE = 50;
const list = document.getElementById("list"), status = document.getElementById("found"), pager = document.getElementById("pages");
let shown = [], page = 0;

async function refresh() {
  const said = chosen.search.trim() ? "Searching …" : "";
  if (said) status.textContent = said;
  const found = await searched(matching());
  if (found === null) return false;
  shown = found;
  page = 0;
  draw();
  return true;
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / A_PAGE));
  const own = shown.slice(page * A_PAGE, (page + 1) * A_PAGE);
  list.replaceChildren(...own.map(line));
  const all = index.ids.length;
  const some = shown.length === all ? "" : `${shown.length.toLocaleString("en")} of `;
  const count = `${some}${all.toLocaleString("en")} ${index.noun}`;
  status.textContent = chosen.only ? `${count}: ${index.only[chosen.only].label}` : count;
  const filtered = chosen.only || chosen.search || chosen.run || chosen.state || chosen.groups.some((value) => value !== "");
  controls.clear.disabled = !filtered;
  pager.hidden = pages === 1;
  const [before, here, after] = pager.children;
  before.disabled = page === 0;
  after.disabled = page === pages - 1;
  here.textContent = `Page ${page + 1} of ${pages}`;
}

function turn(by) {
  page += by;
  draw();
  status.scrollIntoView();
  // The first summary of the new page: who turns by keyboard goes on reading there.
  list.querySelector("summary")?.focus({preventScroll: true});
}

function buildPager() {
  const before = make("button", {type: "button"}, "‹ Previous"), after = make("button", {type: "button"}, "Next ›");
  before.addEventListener("click", () => turn(-1));
  after.addEventListener("click", () => turn(1));
  pager.append(before, make("span", {}), after);
}

function line(place) {
  const groups = index.groups.filter((group) => group.of[place] !== null).map((group) => group.values[group.of[place]]);
  const run = index.runs.findIndex((states) => states[place][2]);
  const parse = run < 0 ? "" : index.runs[run][place][2];
  const said = several || !parse ? null : make("bdi", {class: "said"}, parse);
  const truth = index.truths[place] ? make("bdi", {class: "truth"}, index.truths[place]) : null;
  const asked = index.asked.length ? make("bdi", {class: "said"}, index.asked[place]) : null;
  const summary = make("summary", {},
    make("span", {class: "marks"}, index.runs.map((_, one) => mark(one, place))),
    make("bdi", {class: "name"}, index.ids[place]),
    asked,
    make("span", {class: "answers"}, said && [asked ? null : faint("said "), said], said && truth && " ", truth && [faint("truth "), truth]),
    faint(groups.join(" · ")));
  const details = make("details", {class: "question"}, summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(question(place));
  });
  return details;
}

// Ways into the list from the rest of the page

async function open(id) {
  const place = index.ids.indexOf(id);
  if (place < 0) return;
  if (!shown.includes(place)) { clear(); await refresh(); }
  page = Math.floor(shown.indexOf(place) / A_PAGE);
  draw();
  const details = list.children[shown.indexOf(place) % A_PAGE];
  details.open = true;
  details.scrollIntoView();
  details.querySelector("summary").focus({preventScroll: true});
}

document.addEventListener("click", async ({target}) => {
  const button = target instanceof Element && target.closest("button[data-question], button[data-only], button[data-group]");
  if (!button) return;
  if (button.dataset.question !== undefined) { open(button.dataset.question); return; }
  clear();
  if (button.dataset.only !== undefined) chosen.only = button.dataset.only;
  else {
    const number = index.groups.findIndex((group) => group.name === button.dataset.group);
    const value = String(index.groups[number].values.indexOf(button.dataset.value));
    chosen.groups[number] = controls.groups[number].value = value;
  }
  await refresh();
  document.getElementById("questions").scrollIntoView();
  list.querySelector("summary")?.focus({preventScroll: true});
});

function follow() {
  if (!location.hash.startsWith("#q:")) return;
  let id;
  try { id = decodeURIComponent(location.hash.slice(3)); } catch { return; }
  open(id);
}

buildFilters();
buildPager();
refresh().then(follow);
window.addEventListener("hashchange", follow);
