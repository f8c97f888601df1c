import { mountHere } from "./_static";
import widget from "./token-heatmap";

mountHere(widget.render);
