// The clinic's pages: which of them it is.
import { start } from "../../src/qinjing/serve/static/door.js";
start({ title: () => "Qinjing", came() {}, went() {}, draw() {} });
