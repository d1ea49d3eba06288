// What the page holds, and the elements that everything is shown with. What models said comes in as JSON and goes out as
// text nodes; nothing here makes HTML of a string. The page's parts share one scope: elements, question, filters, list.

const FLAGS = {failed: 1, guessed: 2, cut: 4, withheld: 8, toCome: 16, notAsked: 32, noScore: 64, blind: 128};
const index = JSON.parse(document.getElementById("index").textContent);
const lines = (id) => document.getElementById(id).textContent.slice(1, -1).split("\n");
const rows = lines("rows"), pictures = lines("pictures");
const several = index.letters.length > 1;

// Elements

function make(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}
const faint = (...text) => make("span", {class: "faint"}, ...text);
const words = (text) => make("pre", {tabindex: 0, dir: "auto"}, text);
const letterOf = (run) => make("b", {class: "letter"}, index.letters[run]);
const percent = (score) => (score === 1 ? "right" : score === 0 ? "wrong" : `${(100 * score).toFixed(0)} %`);
const kindOf = (score) => (score === 1 ? "right" : score === 0 ? "wrong" : "partly");

function verdict(score, guessed) {
  if (score === null) return faint("no score");  // its answer is not published
  const sign = {right: "✓", wrong: "✗", partly: "◐"}[kindOf(score)];
  return make("span", {class: `verdict ${kindOf(score)}`}, `${sign} ${percent(score)}${guessed ? ", guessed" : ""}`);
}
