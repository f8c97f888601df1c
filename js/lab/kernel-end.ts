/**
 * The sidebar's connection to one kernel. It asks the kernel to listen (on a subshell while a cell runs), opens a
 * comm, and starts over when the kernel was restarted. `standing` says at any time how far it is.
 */

import type { ISessionContext } from "@jupyterlab/apputils";
import type { Kernel, KernelMessage } from "@jupyterlab/services";
import type { Model } from "../core/model";
import { Rpc } from "../core/rpc";
import { faultOf, type Known, type Standing, standingOf } from "./standing";

const TARGET = "gemloupe.lab";
const PROTOCOL = 1;
const REGISTER = '__import__("gemloupe.lab", fromlist=["register"]).register()';
/** Milliseconds after which a kernel that has not answered is said to be late. It is still waited for. */
const LATE = 6000;

export interface LoupeFacts {
  number: number;
  model: string;
  device: string;
  sites: number;
  methods: string[];
}
export interface ViewFacts {
  id: string;
  method: string;
  given: string;
  loupe: number;
}
export interface Opening {
  model: string | null;
  what: string;
  share: number | null;
}
export interface LabState {
  protocol: number;
  version: string;
  loupes: LoupeFacts[];
  views: ViewFacts[];
  opening: Opening | null;
}
export interface LabEvent {
  event: "opening" | "opened" | "views" | "selection";
  [fact: string]: unknown;
}

/** A comm as the seam that `Rpc` speaks through. */
function modelOf(comm: Kernel.IComm, heard: (event: LabEvent) => void): Model {
  const listeners = new Set<(message: unknown) => void>();
  comm.onMsg = (message: KernelMessage.ICommMsgMsg) => {
    const data = message.content.data as unknown as LabEvent & { kind: string };
    if (data.kind === "event") heard(data);
    else for (const listener of [...listeners]) listener(data);
  };
  const nothing = () => undefined;
  return {
    get: nothing,
    set: nothing,
    save_changes: nothing,
    send: (content) => void comm.send(content as Parameters<Kernel.IComm["send"]>[0]),
    on: (_event, listener) => void listeners.add(listener as unknown as (message: unknown) => void),
    off: (_event, listener) => void listeners.delete(listener as unknown as (message: unknown) => void),
  };
}

export class KernelEnd {
  readonly context: ISessionContext;
  /** Ask the kernel through this; null unless it is joined. */
  rpc: Rpc | null = null;
  state: LabState | null = null;
  /** What went wrong, where `standing` is "failed". */
  fault = "";
  readonly #onChange: () => void;
  readonly #onEvent: (event: LabEvent) => void;
  #join: Known["join"] = "not asked";
  #language: string | null = null;
  readonly #tag: string;
  #kernelId: string | undefined;
  #life = new AbortController();
  #ended = false;
  #was: Standing = "none";

  constructor(context: ISessionContext, tag: string, onChange: () => void, onEvent: (event: LabEvent) => void) {
    this.context = context;
    this.#tag = tag;
    this.#onChange = onChange;
    this.#onEvent = onEvent;
    context.statusChanged.connect(this.#look, this);
    context.connectionStatusChanged.connect(this.#look, this);
    context.kernelChanged.connect(this.#look, this);
    context.disposed.connect(this.dispose, this);
    this.#look();
  }

  get kernel(): Kernel.IKernelConnection | null {
    return this.context.session?.kernel ?? null;
  }

  get standing(): Standing {
    const kernel = this.kernel;
    return standingOf({
      kernel: kernel !== null,
      status: kernel?.status ?? (this.context.isDisposed ? "dead" : this.context.kernelDisplayStatus),
      connection: kernel?.connectionStatus ?? "disconnected",
      language: this.#language,
      join: this.#join,
    });
  }

  get language(): string {
    return this.#language ?? "";
  }

  /** Start over: after installing the package, or when something failed. */
  again(): void {
    this.#leave();
    this.#look();
  }

  dispose(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#leave();
    this.context.statusChanged.disconnect(this.#look, this);
    this.context.connectionStatusChanged.disconnect(this.#look, this);
    this.context.kernelChanged.disconnect(this.#look, this);
    this.context.disposed.disconnect(this.dispose, this);
  }

  async refresh(): Promise<void> {
    const { rpc } = this;
    if (!rpc) return;
    const state = await rpc.call<LabState>("state", {}, { signal: this.#life.signal });
    if (rpc !== this.rpc) return;
    this.state = state;
    this.#onChange();
  }

  #leave(): void {
    this.#life.abort();
    this.#life = new AbortController();
    this.rpc = this.state = null;
    this.#join = "not asked";
  }

  #look(): void {
    if (this.#ended) return;
    const kernel = this.kernel;
    if (kernel?.id !== this.#kernelId) {
      this.#kernelId = kernel?.id;
      this.#language = null;
      this.#leave();
    }
    const { standing } = this;
    if (standing === "restarting" || standing === "dead") this.#leave();
    if (kernel && this.#join === "not asked" && standing === "joining") this.#start(kernel);
    // A cell that has ended may have opened a loupe, or closed one.
    if (standing === "ready" && this.#was === "busy") this.refresh().catch(() => undefined);
    this.#was = standing;
    this.#onChange();
  }

  #start(kernel: Kernel.IKernelConnection): void {
    const { signal } = this.#life;
    this.#join = "asked";
    const say = (join: Known["join"], fault = "") => {
      if (signal.aborted) return;
      this.#join = join;
      this.fault = fault;
      this.#onChange();
    };
    const late = setTimeout(() => say("late"), LATE);
    signal.addEventListener("abort", () => clearTimeout(late), { once: true });
    this.#enter(kernel, signal)
      .then((fault) => {
        if (!signal.aborted) say(fault ?? "joined");
      })
      .catch((error) => {
        if (!signal.aborted) say("failed", error instanceof Error ? error.message : String(error));
      })
      .finally(() => clearTimeout(late));
  }

  /** Joins the kernel; returns what keeps it from that, if it is something to be said in words of our own. */
  async #enter(kernel: Kernel.IKernelConnection, signal: AbortSignal): Promise<"missing" | "old" | undefined> {
    this.#language = (await kernel.spec)?.language?.toLowerCase() ?? "python";
    if (signal.aborted || this.#language !== "python") return undefined;
    const reply = await execute(kernel, REGISTER);
    if (signal.aborted) return undefined;
    if (reply.status !== "ok") {
      const { ename = "", evalue = "" } = reply as { ename?: string; evalue?: string };
      const fault = faultOf(ename, evalue);
      if (fault !== "failed") return fault;
      throw new Error(`${ename}: ${evalue}`);
    }
    const comm = kernel.createComm(TARGET);
    const close = () => {
      if (!comm.isDisposed && !kernel.isDisposed && kernel.status !== "dead") comm.close();
      comm.dispose();
    };
    if (kernel.supportsSubshells) await (comm as unknown as { subshellStarted: Promise<void> }).subshellStarted;
    if (signal.aborted) {
      comm.dispose();
      return undefined;
    }
    const rpc = new Rpc(
      modelOf(comm, (event) => !signal.aborted && this.#onEvent(event)),
      signal,
    );
    comm.open({});
    signal.addEventListener("abort", close, { once: true });
    const state = await rpc.call<LabState>("state", {}, { signal });
    if (signal.aborted) return undefined;
    if (state.protocol !== PROTOCOL) return "old";
    // Widgets of this kernel speak JupyterLab's language, unless the user chose one there.
    await rpc.call("language", { tag: this.#tag }, { signal });
    this.rpc = rpc;
    this.state = state;
    return undefined;
  }
}

/** Runs code without a trace in the history; while a cell runs, on a subshell, where the kernel has them. */
async function execute(kernel: Kernel.IKernelConnection, code: string): Promise<{ status: string }> {
  const content = { code, silent: true, store_history: false, stop_on_error: false };
  if (kernel.status !== "busy" || !kernel.supportsSubshells) return (await kernel.requestExecute(content).done).content;
  const { subshell_id } = (await kernel.requestCreateSubshell({}).done).content as { subshell_id: string };
  const beside = kernel.clone({ handleComms: false, subshellId: subshell_id } as Parameters<typeof kernel.clone>[0]);
  try {
    return (await beside.requestExecute(content).done).content;
  } finally {
    beside.dispose(); // and its subshell with it
  }
}
