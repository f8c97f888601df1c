import { setMaxListeners } from "node:events";

// Node warns of a leak at the eleventh listener of a signal; a view has dozens, and they all end with it.
setMaxListeners(0);
