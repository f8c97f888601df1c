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
