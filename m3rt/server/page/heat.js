// MaxSim: how each token of the query matches each of a passage, as a table of colours.

import { best, number, plural } from "./scores.js";
import { made, special, word } from "./tokens.js";

const MOST_ROWS = 96;
const MOST_CELLS = 6000; // more are slow to draw, and too many to read

/** How much of the colour a similarity gets: more than in proportion, as most are middling. */
const shade = (value, [low, high]) =>
  high > low ? Math.max(0, (value - low) / (high - low)) ** 1.6 : 1;

/** Draw the alignment of a query and a passage; `bounds` are the least and greatest of all. */
export function heatMap(query, passage, bounds, direction) {
  // the first token has no ColBERT vector
  const [across, down] = [passage.tokens.slice(1), query.tokens.slice(1)];
  const peaks = passage.alignment.map(best);
  const score = peaks.reduce((sum, at, i) => sum + passage.alignment[i][at], 0) / peaks.length;
  const rows = down.slice(0, MOST_ROWS);
  let columns = across.map((_, i) => i);
  const notes = [];
  if (rows.length * columns.length > MOST_CELLS) {
    columns = [...new Set(peaks.slice(0, rows.length))].sort((a, b) => a - b);
    notes.push(`Of ${plural(across.length, "token")} of the passage, only best matches are shown.`);
  }
  if (rows.length < down.length) {
    notes.push(`Of ${plural(down.length, "token")} of the query, the first ${MOST_ROWS} are shown.`);
  }

  const table = made("table", "");
  const head = made("tr", "", made("td", "corner"));
  head.append(...columns.map((i) => heading("col", across[i])));
  const body = made("tbody", "");
  rows.forEach((token, i) => {
    const name = heading("row", token);
    name.append(made("span", "peak", number(passage.alignment[i][peaks[i]], 2)));
    const line = made("tr", "", name);
    for (const j of columns) {
      const value = passage.alignment[i][j];
      const cell = made("td", j === peaks[i] ? "best" : "", number(value, 2));
      cell.style.setProperty("--v", shade(value, bounds));
      cell.classList.toggle("full", shade(value, bounds) > 0.5);
      line.append(cell);
    }
    body.append(line);
  });
  table.append(made("thead", "", head), body);

  const box = made("div", "scroll", table);
  box.dir = direction; // columns run as the passage is read
  const readout = made("p", "readout");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Alignment of tokens; arrow keys go from cell to cell");
  readout.setAttribute("aria-live", "polite");
  follow(box, body, (i, column) => {
    const value = passage.alignment[i][columns[column]];
    readout.replaceChildren(
      made("bdi", "", word(rows[i])), " × ", made("bdi", "", word(across[columns[column]])),
      ` ${number(value)}`, columns[column] === peaks[i] ? ", its best match" : "",
    );
  });

  const told = made("figcaption", "", made("strong", "", "Alignment. "),
    "A row for each token of the query, with its best match in the passage ringed. The mean of ",
    `these is the ColBERT score, ${number(score)}. `, notes.join(" "));
  return made("figure", "heat", told, box, made("div", "below", readout, legend(bounds)));
}

function heading(scope, token) {
  const name = word(token);
  // a letter or two, marks aside, fit a column as they are; more are turned
  const short = name.replace(/\p{M}/gu, "").length <= 2;
  const cell = made("th", special(token) ? "special" : "", made("bdi", short ? "short" : "", name));
  cell.scope = scope;
  return cell;
}

/** Mark the cell under the pointer, or the one that arrow keys go to, and tell of it. */
function follow(box, body, tell) {
  const heads = box.querySelectorAll("thead th");
  const rtl = box.dir === "rtl";
  let at = null; // [row, column]
  const go = (row, column) => {
    for (const old of box.querySelectorAll(".at")) old.classList.remove("at");
    at = [row, column];
    const line = body.rows[row];
    for (const node of [line.cells[0], line.cells[column + 1], heads[column]]) {
      node.classList.add("at");
    }
    tell(row, column);
  };
  box.addEventListener("pointerover", ({ target }) => {
    const cell = target.closest("tbody td");
    if (cell) go(cell.parentNode.rowIndex - 1, cell.cellIndex - 1);
  });
  box.addEventListener("focus", () => {
    if (!at) go(0, body.rows[0].querySelector(".best").cellIndex - 1);
  });
  const steps = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, rtl ? 1 : -1], ArrowRight: [0, rtl ? -1 : 1],
  };
  box.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
    go(clamp(at[0] + step[0], body.rows.length), clamp(at[1] + step[1], heads.length));
    body.rows[at[0]].cells[at[1] + 1].scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

function legend([low, high]) {
  const line = made("p", "scale", number(low, 2));
  for (let i = 0; i <= 6; i++) {
    const step = made("i", "");
    step.style.setProperty("--v", shade(low + ((high - low) * i) / 6, [low, high]));
    line.append(step);
  }
  line.append(number(high, 2));
  line.setAttribute("aria-hidden", "true");
  return line;
}
