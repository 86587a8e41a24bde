// A text as its tokens, shaded by their lexical weights. Texts only ever become text nodes.

import { number } from "./scores.js";

const GAP = "▁"; // SentencePiece's mark for the space before a word

const SPECIAL = /^(<(s|\/s|pad|unk|mask)>|\[(CLS|SEP|UNK|PAD|MASK)\])$/;

export const special = (token) => SPECIAL.test(token);

/** A token as it is read: without the mark of the space before it. */
export const word = (token) => token.replaceAll(GAP, " ").trim() || "␣";

/** An element of a class that holds a text, or other nodes. */
export function made(tag, name, ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);
  return element;
}

/**
 * Write a text's tokens into an element.
 *
 * They are inline and without padding, so that letters of Arabic join across them, and the spaces
 * between words are spaces, so that lines break there and a copy is the text.
 */
export function write(element, { tokens, weights }, most, marked = new Set()) {
  element.replaceChildren();
  tokens.forEach((token, i) => {
    if (special(token)) {
      // bdi: its letters do not count when the browser finds out the text's direction
      const mark = made("bdi", "special", token);
      mark.setAttribute("aria-hidden", "true");
      const [before, after] = [i === tokens.length - 1 ? " " : "", i ? "" : " "];
      element.append(before, mark, after);
      return;
    }
    const weight = weights?.[i] ?? 0;
    const bare = token === GAP;
    const text = token.startsWith(GAP) ? token.slice(1) : token;
    const node = made("span", bare ? "token bare" : "token", bare ? "\u00a0" : text);
    node.style.setProperty("--w", most > 0 ? weight / most : 0);
    node.title = `${token}  ${number(weight)}`;
    node.classList.toggle("shared", marked.has(token) && !bare);
    element.append(token.startsWith(GAP) && !bare ? " " : "", node);
  });
}
