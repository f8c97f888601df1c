import { mountHere } from "./_static";
import widget from "./feature-card";

mountHere(widget.render);
