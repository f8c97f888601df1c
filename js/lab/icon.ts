import { LabIcon } from "@jupyterlab/ui-components";

/** A cut stone under a lens. */
const svgstr = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="none" stroke="#616161" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round">
    <circle cx="10.5" cy="10.5" r="8"/>
    <path d="M16.4 16.4 21.5 21.5"/>
  </g>
  <path fill="#4d94ff" d="M8 6.6h5l2 2.6-4.5 5.6L6 9.2z"/>
</svg>`;

export const gemloupeIcon = new LabIcon({ name: "gemloupe:icon", svgstr });
