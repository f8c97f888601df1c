import { mountHere } from "./_static";
import widget from "./search-results";

mountHere(widget.render);
