"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const key = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
  const order = (one, other) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    const [a, b] = [Number(one), Number(other)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b;
  };
  const sort = (table, head) => {
    const down = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("number");
    const up = head.getAttribute("aria-sort") === "ascending" ? false : !down;
    const sign = up ? 1 : -1;
    const rows = all("tbody tr", table);
    rows.sort((one, other) => {
      const [a, b] = [key(one, head.cellIndex), key(other, head.cellIndex)];
      return a === "" || b === "" ? order(a, b) : sign * order(a, b);
    });
    all("th[aria-sort]", table).forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  };
  for (const table of all("table.sortable")) {
    for (const head of all("thead tr:last-child th", table)) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head));
      head.append(button);
    }
  }
  const form = document.querySelector(".filter");
  const [name, controls] = [form.querySelector("[type=search]"), form.querySelector("[type=checkbox]")];
  const filter = () => {
    const wanted = name.value.trim().toLowerCase();
    for (const one of all("[data-system]")) {
      const fits = one.dataset.system.toLowerCase().includes(wanted) || one.dataset.role === "greedy";
      one.toggleAttribute("hidden", !fits || (one.dataset.role === "control" && !controls.checked));
    }
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));
})();
