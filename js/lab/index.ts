import { reopened } from "./reopened";
import { sidebar } from "./sidebar";
import { tour } from "./tour";

export default [tour, reopened, sidebar];
