/** The difference of two texts, word by word. */

export interface Part {
  kind: "same" | "gone" | "new";
  text: string;
}

/** Words with the white space before them; what is left over stays with the last. */
export function words(text: string): string[] {
  return text.match(/\s*\S+|\s+$/gu) ?? [];
}

/** From `before` to `after` along a longest common subsequence; neighbours of one kind are one part. */
export function wordDiff(before: string, after: string): Part[] {
  const [a, b] = [words(before), words(after)];
  const same = (i: number, j: number) => a[i].trim() === b[j].trim();
  let start = 0;
  while (start < a.length && start < b.length && same(start, start)) start++;
  // lengths[i][j]: longest common subsequence of a from i and b from j, both after the common beginning
  const [n, m] = [a.length - start, b.length - start];
  const lengths = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      lengths[i][j] = same(start + i, start + j)
        ? lengths[i + 1][j + 1] + 1
        : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  const parts: Part[] = [];
  const put = (kind: Part["kind"], text: string) => {
    const last = parts.at(-1);
    if (last?.kind === kind) last.text += text;
    else parts.push({ kind, text });
  };
  for (let i = 0; i < start; i++) put("same", b[i]);
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && same(start + i, start + j)) {
      put("same", b[start + j]);
      i++;
      j++;
    } else if (i < n && (j === m || lengths[i + 1][j] >= lengths[i][j + 1])) put("gone", a[start + i++]);
    else put("new", b[start + j++]);
  }
  return parts;
}
