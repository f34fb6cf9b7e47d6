// Buttons above the index of equations: show the rows of one outcome, or all.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("#tbl-equations");
  if (!table) return;
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  const column = names.indexOf("outcome");
  const rows = [...table.querySelectorAll("tbody tr")];
  const outcomeOf = (row) => row.children[column].textContent.trim();
  const bar = document.createElement("div");
  bar.className = "ledger-filter";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Show the entries with one outcome");
  const choose = (wanted) => {
    for (const row of rows) row.hidden = wanted !== "all" && outcomeOf(row) !== wanted;
    for (const button of bar.children)
      button.setAttribute("aria-pressed", String(button.dataset.outcome === wanted));
  };
  for (const outcome of ["all", ...new Set(rows.map(outcomeOf))]) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.outcome = outcome;
    const count = outcome === "all" ? rows.length : rows.filter((r) => outcomeOf(r) === outcome).length;
    button.textContent = `${outcome} (${count})`;
    button.addEventListener("click", () => choose(outcome));
    bar.append(button);
  }
  (table.closest(".pst-scrollable-table-container") ?? table).before(bar);
  choose("all");
  // A link to an entry must find its row in sight.
  addEventListener("hashchange", () => choose("all"));
});
