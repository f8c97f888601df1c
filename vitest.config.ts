import { defineConfig } from "vitest/config";

export default defineConfig({
  test: { include: ["tests/js/**/*.test.ts"], setupFiles: ["tests/js/setup.ts"], environment: "jsdom", css: false, restoreMocks: true },
});
