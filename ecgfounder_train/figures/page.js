/* Values that cannot be compared (undefined) carry no data-sort and stay last in both directions. */
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sorter = head.querySelector("span");
    sorter.addEventListener("keydown", event => { if (event.key === "Enter") sorter.click(); });
    sorter.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ||
        (!head.hasAttribute("aria-sort") && head.classList.contains("number"));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.sort, number = head.classList.contains("number");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return (down ? -1 : 1) * (number ? x - y : x.localeCompare(y));
      });
      body.append(...rows);
    });
  });
});
document.querySelectorAll("input.filter").forEach(input => input.addEventListener("input", () => {
  const wanted = input.value.toLowerCase();
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
}));
