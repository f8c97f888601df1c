/** How a kernel stands to the sidebar, in one word, from what is known of it. No Jupyter here, so that it is tested alone. */

export type Standing =
  | "none"
  | "starting"
  | "joining"
  | "ready"
  | "busy"
  | "waiting"
  | "restarting"
  | "dead"
  | "offline"
  | "language"
  | "missing"
  | "old"
  | "failed";

export interface Known {
  /** Whether there is a kernel at all. */
  kernel: boolean;
  /** JupyterLab's word for what the kernel does. */
  status: string;
  /** "connected", "connecting" or "disconnected". */
  connection: string;
  /** The kernel's language; null until that is known. */
  language: string | null;
  /** How far the sidebar's own connection is. */
  join: "not asked" | "asked" | "late" | "joined" | "missing" | "old" | "failed";
}

export function standingOf({ kernel, status, connection, language, join }: Known): Standing {
  if (status === "dead" || status === "terminating") return "dead";
  if (!kernel) return status === "starting" ? "starting" : "none";
  if (status === "restarting" || status === "autorestarting") return "restarting";
  if (language !== null && language !== "python") return "language";
  if (connection === "disconnected") return "offline";
  if (join === "joined") return status === "busy" ? "busy" : "ready";
  if (join === "missing" || join === "old" || join === "failed") return join;
  if (join === "late") return "waiting";
  return status === "starting" || connection !== "connected" ? "starting" : "joining";
}

/** What a failed `register()` says about the kernel's gemloupe. */
export function faultOf(name: string, value: string): "missing" | "old" | "failed" {
  if (name !== "ModuleNotFoundError") return "failed";
  return /'gemloupe\.lab'/.test(value) ? "old" : /'gemloupe'/.test(value) ? "missing" : "failed";
}

/** Whether a kernel that stands so will not be joined by waiting: something must be done first. */
export function hopeless(standing: Standing): boolean {
  return ["none", "dead", "language", "missing", "old", "failed"].includes(standing);
}
