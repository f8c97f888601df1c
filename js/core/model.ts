/** What a host (anywidget, a sidebar, a saved page, a test) must offer for a widget to be shown. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, listener: (...args: never[]) => void): void;
  off(event: string, listener: (...args: never[]) => void): void;
}

/** The wire's version; it must equal the kernel's `protocol` trait. */
export const PROTOCOL = 1;
