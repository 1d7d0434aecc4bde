// A query in short, as the service's own shorthand has it: `2:golden retriever + @b7e0a2f1 - fruit`.
// Only for texts that stand beside pictures; a text by itself is sent as it is.

const SIGN = /(?:^|(?<=\s))[+-](?=\s)/g;
const WEIGHT = /^(\d+(?:\.\d+)?):/;
const TERM = /^(?:@(\S+)|"([^"]+)"|([^@"].*|"[^"].*))$/s;

/** Return the parts of a query, as `POST /v1/search` has them. */
export function parse(query) {
  // Quotation marks are found first, and what is in them is kept away from the search for signs.
  const masked = query.replace(/"[^"]*"/g, (quoted) => `"${"_".repeat(quoted.length - 2)}"`);
  const signs = [...masked.matchAll(SIGN)];
  const starts = [[0, "+"], ...signs.map((sign) => [sign.index + 1, sign[0]])];
  const ends = [...signs.map((sign) => sign.index), query.length];
  const terms = starts.map(([start, sign], number) => [query.slice(start, ends[number]).trim(), sign]);
  return terms.filter(([term], number) => term || number || !signs.length).map(([term, sign]) => part(term, sign));
}

function part(term, sign) {
  const weighed = WEIGHT.exec(term);
  const found = TERM.exec(weighed ? term.slice(weighed[0].length).trim() : term);
  if (!found) {
    throw new SyntaxError(`After “${weighed?.[0] ?? sign}” there is nothing yet: type a text, or @ and the id of a picture.`);
  }
  const [, id, quoted, text] = found;
  const weight = Number(weighed?.[1] ?? 1) * (sign === "-" ? -1 : 1);
  const named = id ? { id } : { text: text ?? quoted };
  return weight === 1 ? named : { ...named, weight };
}
