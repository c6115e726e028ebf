import type { Page } from "../shared"; export const page: Page = { title: () => "", async came() {}, went() {}, draw() {} };
