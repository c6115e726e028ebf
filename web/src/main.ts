// The clinic's pages: which of them it is, and the frame that they share.

import { startDialog } from "./dialog";
import { $, el, extend, may, type Me, type Page, say, start, whoIsIn } from "./shared";
import { ENGLISH } from "./words/en";
import { CHINESE } from "./words/zh";

const PAGES: Record<string, () => Promise<{ page: Page }>> = {
  "/study": () => import("./viewer/page"),
  "/annotate": () => import("./annotate/page"),
};

extend({ en: ENGLISH, zh: CHINESE });

function drawPlaces(me: Me | null): void {
  const link = (path: string, word: string) => el("a", {
    href: path, "aria-current": location.pathname === path ? "page" : null,
  }, say(word));
  $("places").hidden = !me;
  $("places").replaceChildren(...(me ? [
    link("/", may("study.read") ? "worklist" : "projects"),
    ...(may("consent.read") ? [link("/consent", "consents")] : []),
  ] : []));
}

const { page } = await (PAGES[location.pathname] ?? (() => import("./worklist/page")))();
document.body.classList.add(location.pathname.slice(1) || "worklist");
startDialog();
addEventListener("hashchange", () => location.reload());
await start({
  ...page,
  async came(me) {
    if (!may("study.read") && !may("annotate")) {
      location.replace("/consent");
      return;
    }
    await page.came(me);
  },
  draw() {
    const me = whoIsIn();
    $("page").hidden = !me;
    drawPlaces(me);
    page.draw();
  },
});
