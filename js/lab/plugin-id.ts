/** The settings' plugin, named as its schema. */
export const PLUGIN = "gemloupe:plugin";
export const CATEGORY = "Gemloupe";
