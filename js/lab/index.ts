import { reopened } from "./reopened";
import { tour } from "./tour";

export default [tour, reopened];
