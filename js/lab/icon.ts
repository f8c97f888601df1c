import { LabIcon } from "@jupyterlab/ui-components";

/** A cut stone under a lens. */
const svgstr = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M10.5 2a8.5 8.5 0 1 0 5.1 15.3l4.9 4.9 1.7-1.7-4.9-4.9A8.5 8.5 0 0 0 10.5 2z"/>
  <path fill="#6ba5ff" d="M8 6.6h5l2 2.6-4.5 5.6L6 9.2z"/>
</svg>`;

export const gemloupeIcon = new LabIcon({ name: "gemloupe:icon", svgstr });
