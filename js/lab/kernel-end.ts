/**
 * The extension's connection to one kernel. It asks the kernel to listen (on a subshell while a cell runs), opens a
 * comm, and starts over when the kernel was restarted. `standing` says at any time how far it is.
 */

import type { ISessionContext } from "@jupyterlab/apputils";
import type { Kernel, KernelMessage } from "@jupyterlab/services";
import type { Model } from "../core/model";
import { Rpc } from "../core/rpc";
import { faultOf, hopeless, type Known, type Standing, standingOf } from "./standing";

const TARGET = "gemloupe.lab";
const PROTOCOL = 1;
const REGISTER = '__import__("gemloupe.lab", fromlist=["register"]).register()';
/** Milliseconds after which a kernel that has not answered is said to be late. It is still waited for. */
const LATE = 6000;
/** Milliseconds after which a kernel at work is called busy: our own questions take less. */
const BUSY = 600;

export interface LoupeFacts {
  number: number;
  model: string;
  device: string;
  sites: number;
  methods: string[];
  /** Whether a sidebar opened it, so that a sidebar may close it. */
  mine: boolean;
}
export interface ViewFacts {
  id: string;
  method: string;
  given: string;
  /** The number of the loupe that made it; null where none did. */
  loupe: number | null;
  /** Whether a sidebar made it; else it is a notebook's, and only shown here too. */
  own: boolean;
  /** The feature chosen in it. */
  feature: string | null;
}
export interface Opening {
  model: string | null;
  what: string;
  share: number | null;
  cancelling?: boolean;
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
/** A kernel that cannot be asked, and how it stands. */
export class NotJoined extends Error {
  readonly standing: Standing;
  readonly language: string;

  constructor(standing: Standing, language: string, fault: string) {
    super(fault || standing);
    this.name = "NotJoined";
    this.standing = standing;
    this.language = language;
  }
}
export interface Listener {
  changed?(): void;
  heard?(event: LabEvent): void;
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
  readonly #listeners = new Set<Listener>();
  #join: Known["join"] = "not asked";
  #language: string | null = null;
  readonly #tag: string;
  #kernelId: string | undefined;
  #life = new AbortController();
  #ended = false;
  #working = false; // at a cell
  #busySince = Number.POSITIVE_INFINITY;
  #busyTimer: ReturnType<typeof setTimeout> | undefined;

  /** `tag` is JupyterLab's language, which the widgets of the kernel then speak. */
  constructor(context: ISessionContext, tag: string) {
    this.context = context;
    this.#tag = tag;
    context.statusChanged.connect(this.#look, this);
    context.connectionStatusChanged.connect(this.#look, this);
    context.kernelChanged.connect(this.#look, this);
    context.iopubMessage.connect(this.#overheard, this);
    context.disposed.connect(this.dispose, this);
    this.#look();
  }

  /** `listener` hears of every change until the function returned is called. */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  get isDisposed(): boolean {
    return this.#ended;
  }

  get kernel(): Kernel.IKernelConnection | null {
    return this.context.session?.kernel ?? null;
  }

  get standing(): Standing {
    const kernel = this.kernel;
    const displayed = this.context.isDisposed ? "dead" : this.context.kernelDisplayStatus;
    const status = displayed === "restarting" ? displayed : (this.#status ?? displayed);
    return standingOf({
      kernel: kernel !== null,
      status: status === "busy" && performance.now() - this.#busySince < BUSY ? "idle" : status,
      connection: kernel?.connectionStatus ?? "disconnected",
      language: this.#language,
      join: this.#join,
    });
  }

  /** The kernel's status, which a subshell that has answered does not end: a cell still runs beside it. */
  get #status(): Kernel.Status | undefined {
    const status = this.kernel?.status;
    return status === "idle" && this.#working ? "busy" : status;
  }

  get language(): string {
    return this.#language ?? "";
  }

  /** Start over: after installing the package, or when something failed. */
  again(): void {
    this.#leave();
    this.#look();
  }

  /** Waits until the kernel can be asked; fails once it is clear that it never will. */
  joined(): Promise<Rpc> {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.rpc) resolve(this.rpc);
        else if (this.#ended || hopeless(this.standing))
          reject(new NotJoined(this.#ended ? "dead" : this.standing, this.language, this.fault));
        else return false;
        stop();
        return true;
      };
      const stop = this.listen({ changed: () => void look() });
      look();
    });
  }

  dispose(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#busyTimer);
    this.#leave();
    this.context.statusChanged.disconnect(this.#look, this);
    this.context.connectionStatusChanged.disconnect(this.#look, this);
    this.context.kernelChanged.disconnect(this.#look, this);
    this.context.iopubMessage.disconnect(this.#overheard, this);
    this.context.disposed.disconnect(this.dispose, this);
    this.#changed();
    this.#listeners.clear();
  }

  async refresh(): Promise<void> {
    const { rpc } = this;
    if (!rpc) return;
    const state = await rpc.call<LabState>("state", {}, { signal: this.#life.signal });
    if (rpc !== this.rpc) return;
    this.state = state;
    this.#changed();
  }

  #changed(): void {
    for (const listener of [...this.#listeners]) listener.changed?.();
  }

  #leave(): void {
    this.#life.abort();
    this.#life = new AbortController();
    this.rpc = this.state = null;
    this.#working = false;
    this.#join = "not asked";
  }

  /** A cell that has ended may have opened a loupe, or closed one. */
  #overheard(_context: ISessionContext, message: KernelMessage.IMessage): void {
    const parent = message.parent_header as { msg_type?: string; subshell_id?: string | null };
    if (message.header.msg_type !== "status" || parent.msg_type !== "execute_request") return;
    const idle = (message.content as { execution_state?: string }).execution_state === "idle";
    if (!parent.subshell_id) {
      this.#working = !idle;
      this.#look();
    }
    if (idle && this.rpc) this.refresh().catch(() => undefined);
  }

  #look(): void {
    if (this.#ended) return;
    const kernel = this.kernel;
    if (kernel?.id !== this.#kernelId) {
      this.#kernelId = kernel?.id;
      this.#language = null;
      this.#leave();
    }
    if (this.#status !== "busy") {
      clearTimeout(this.#busyTimer);
      this.#busySince = Number.POSITIVE_INFINITY;
    } else if (this.#busySince === Number.POSITIVE_INFINITY) {
      this.#busySince = performance.now();
      this.#busyTimer = setTimeout(() => this.#changed(), BUSY);
    }
    const { standing } = this;
    if (standing === "restarting" || standing === "dead") this.#leave();
    if (kernel && this.#join === "not asked" && standing === "joining") this.#start(kernel);
    this.#changed();
  }

  #start(kernel: Kernel.IKernelConnection): void {
    const { signal } = this.#life;
    this.#join = "asked";
    const now = (join: Known["join"], fault = "") => {
      if (signal.aborted) return;
      this.#join = join;
      this.fault = fault;
      this.#changed();
    };
    const late = setTimeout(() => now("late"), LATE);
    signal.addEventListener("abort", () => clearTimeout(late), { once: true });
    this.#enter(kernel, signal)
      .then((fault) => {
        if (!signal.aborted) now(fault ?? "joined");
      })
      .catch((error) => {
        if (!signal.aborted) now("failed", error instanceof Error ? error.message : String(error));
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
    const hear = (event: LabEvent) => {
      if (signal.aborted) return;
      for (const listener of [...this.#listeners]) listener.heard?.(event);
      if (event.event === "views" || event.event === "opened") this.refresh().catch(() => undefined);
    };
    const rpc = new Rpc(modelOf(comm, hear), signal);
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

/** One end per kernel's context, however many look at it; it goes when the context does. */
export class KernelEnds {
  readonly #ends = new Map<ISessionContext, KernelEnd>();
  readonly #tag: string;

  constructor(tag: string) {
    this.#tag = tag;
  }

  of(context: ISessionContext): KernelEnd {
    const known = this.#ends.get(context);
    if (known && !known.isDisposed) return known;
    const made = new KernelEnd(context, this.#tag);
    this.#ends.set(context, made);
    context.disposed.connect(() => this.#ends.delete(context));
    return made;
  }

  dispose(): void {
    for (const end of this.#ends.values()) end.dispose();
    this.#ends.clear();
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
