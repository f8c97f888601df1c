/** A view as a file: a page that needs nothing else, or a picture. */

const TYPES = { html: "text/html", png: "image/png" };
export type FileKind = keyof typeof TYPES;

export function download(name: string, kind: FileKind, data: BlobPart): void {
  const url = URL.createObjectURL(new Blob([data], { type: TYPES[kind] }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${name}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** What a node shows as a PNG, at twice its size, on the colour of the page behind it. */
export async function pngOf(node: HTMLElement): Promise<Blob> {
  // Only who saves a picture loads what makes one.
  const { domToBlob } = await import("modern-screenshot");
  // A copy of a list shows what is chosen only where that is an attribute.
  for (const option of node.querySelectorAll("option")) option.toggleAttribute("selected", option.selected);
  return domToBlob(node, {
    scale: 2,
    font: false,
    width: node.scrollWidth,
    height: node.scrollHeight,
    backgroundColor: paper(node),
    style: { margin: "0" },
  });
}

function paper(node: Element): string {
  for (let at: Element | null = node; at; at = at.parentElement) {
    const { backgroundColor } = getComputedStyle(at);
    if (backgroundColor && !/^rgba\(.*, 0\)$|^transparent$/.test(backgroundColor)) return backgroundColor;
  }
  return "#ffffff";
}
