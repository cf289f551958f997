// Where the page begins.

import { converse } from "/dashboard/chat.js";
import { watch } from "/dashboard/live.js";

const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
button.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  button.textContent = `Theme: ${next}`;
});

converse();
watch();
