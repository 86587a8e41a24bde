// Sums over an answer of /v1/m3/score: no page in here.

export const HEADS = ["dense", "sparse", "colbert"];

/** Write a number; one that rounds to 0 has no sign. */
export const number = (value, digits = 3) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "");

export const plural = (count, noun) =>
  `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** The passages of an answer, each with its scores by head; a head that the model lacks is null. */
export function passagesOf({ scores, explain }) {
  return explain.passages.map((told, i) => ({
    ...told,
    number: i + 1,
    scores: Object.fromEntries(HEADS.map((head) => [head, scores[head]?.[0][i] ?? null])),
  }));
}

/** What each head adds to the combined score: the mean of the scores by the weights. */
export function parts(scores, weights) {
  const there = HEADS.filter((head) => scores[head] !== null);
  const total = there.reduce((sum, head) => sum + weights[head], 0);
  // all weights at 0 leave no mean: nothing counts, and the passages stay in their order
  return Object.fromEntries(
    there.map((head) => [head, total ? (weights[head] * scores[head]) / total : 0]),
  );
}

export const sum = (added) => Object.values(added).reduce((total, part) => total + part, 0);

/** The tokens that both texts have, by what they add to the sparse score: most first. */
export function shared(query, passage) {
  if (!query.weights || !passage.weights) return [];
  const weights = new Map(query.tokens.map((token, i) => [token, query.weights[i]]));
  const found = new Map();
  passage.tokens.forEach((token, i) => {
    const [left, right] = [weights.get(token) ?? 0, passage.weights[i]];
    // a token that comes twice has one weight, and counts once
    if (left * right > 0) found.set(token, { token, left, right, product: left * right });
  });
  return [...found.values()].sort((a, b) => b.product - a.product);
}

/** The heaviest tokens of a text, each once. */
export function heaviest({ tokens, weights }, most) {
  const found = new Map(tokens.map((token, i) => [token, weights?.[i] ?? 0]));
  return [...found]
    .filter(([, weight]) => weight > 0)
    .sort(([, a], [, b]) => b - a)
    .slice(0, most);
}

/** The least and the greatest of numbers, however many: Math.max takes no million of them. */
export function range(rows) {
  let [low, high] = [Infinity, -Infinity];
  for (const row of rows) {
    for (const value of row) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

/** Where the greatest number stands; the first of equals. */
export const best = (row) => row.reduce((at, value, i) => (value > row[at] ? i : at), 0);
