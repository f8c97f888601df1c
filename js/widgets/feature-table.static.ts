import { mountHere } from "./_static";
import widget from "./feature-table";

mountHere(widget.render);
