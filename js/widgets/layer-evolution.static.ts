import { mountHere } from "./_static";
import widget from "./layer-evolution";

mountHere(widget.render);
