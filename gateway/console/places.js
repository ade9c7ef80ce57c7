/** Finds where in a JSON text a value stands that is named by its path. */

/**
 * @param {string} text valid JSON @param {string} path as problems name fields: `personas.default.persona_id`, `origins[0]`
 * @returns {number} the line, from 1, of the value, or of the nearest one around it; 0 where not even that is there
 */
export function lineOf(text, path) {
  const wanted = path.split(/[.[\]]+/).filter(Boolean);
  let best = 0;
  let depth = -1;
  walk(text, (at, offset) => {
    let same = 0;
    while (same < at.length && same < wanted.length && at[same] === wanted[same]) same++;
    if (same === at.length && same > depth && same > 0) {
      depth = same;
      best = text.slice(0, offset).split("\n").length;
    }
  });
  return best;
}

/** Calls back with the path and the place of every member. @param {string} text @param {(path: string[], offset: number) => void} seen */
function walk(text, seen) {
  /** @type {{names: boolean, name: string, index: number}[]} what one is inside of */
  const inside = [];
  const pattern = /"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s[\]{}:,"]+/g;
  let named = false; // the next value has been told with its name
  const path = () => inside.map(({ names, name, index }) => (names ? name : String(index)));
  for (const match of text.matchAll(pattern)) {
    const [token] = match;
    const top = inside.at(-1);
    const key = top?.names && !named && token[0] === '"';
    if (key && top) {
      top.name = JSON.parse(token);
      seen(path(), match.index);
    } else if (token === ":") named = true;
    else if (token === ",") {
      named = false;
      if (top) top.index++;
    } else if (token === "}" || token === "]") {
      inside.pop();
      named = true; // it was a value
    } else {
      if (top && !top.names) seen(path(), match.index);
      if (token === "{" || token === "[") {
        inside.push({ names: token === "{", name: "", index: 0 });
        named = false;
      }
    }
  }
}
