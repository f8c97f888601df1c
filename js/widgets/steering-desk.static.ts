import { mountHere } from "./_static";
import widget from "./steering-desk";

mountHere(widget.render);
